"""Does every compression, and every way to lay an archive out, lead to the same image or to its name?"""

from __future__ import annotations

import bz2
import io
import json
import struct
import tarfile
from pathlib import Path

import pytest
import zstandard

from overlayfs_demo.errors import ImageError
from overlayfs_demo.images.model import Digest
from overlayfs_demo.store.load import load
from overlayfs_demo.store.store import Store
from tests.images.builders import (
    COMPRESSIONS,
    archive,
    config,
    digest,
    directory,
    docker_save,
    hexdigest,
    layer,
    oci_archive,
    podman_save,
)

BASE = layer({"etc/motd": "hello\n"})
APP = layer({"app": "x" * 9000})
# A frame that is to be skipped (RFC 8878, 3.1.2), as zstd:chunked ends with and pzstd begins with.
SKIPPED = struct.pack("<II", 0x184D2A50, 4) + b"toc!"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def loaded(store: Store, data: bytes) -> list[Digest]:
    path = store.root.parent / "image.tar"
    path.write_bytes(data)
    [one] = load(store, path)
    return [layer.diff_id for layer in one.image.layers]


def stored_layer(data: bytes) -> bytes:
    """An archive whose only layer is BASE, stored so."""
    settings = config([BASE])
    rows = [{"Config": "c.json", "RepoTags": ["test:1"], "Layers": ["layer"]}]
    return archive([("c.json", settings), ("layer", data), ("manifest.json", json.dumps(rows).encode())])


def zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(data)


GOOD = {
    "bzip2": bz2.compress(BASE),
    "bzip2 of several streams": bz2.compress(BASE[:700]) + bz2.compress(BASE[700:]),
    "zstd:chunked": zstd(BASE[:700]) + zstd(BASE[700:]) + SKIPPED,
    "pzstd": SKIPPED + zstd(BASE),
    "estargz": COMPRESSIONS["gzip"](BASE[:700]) + COMPRESSIONS["gzip"](BASE[700:]),
    "gzip": COMPRESSIONS["gzip"](BASE),
    "xz": COMPRESSIONS["xz"](BASE),
    "plain": BASE,
}


@pytest.mark.parametrize("kind", GOOD)
def test_a_layer_may_be_compressed_so(store: Store, kind: str) -> None:
    assert loaded(store, stored_layer(GOOD[kind])) == [Digest.of(BASE)]


def test_an_archive_may_be_compressed_with_bzip2(store: Store) -> None:
    assert loaded(store, bz2.compress(oci_archive([BASE]))) == [Digest.of(BASE)]


def test_a_layer_of_nothing_in_bzip2_is_not_taken_for_a_tar(store: Store) -> None:
    with pytest.raises(ImageError, match="does not match its diff ID"):
        loaded(store, stored_layer(bz2.compress(b"")))


@pytest.mark.parametrize("cut", [20, -20])
def test_damaged_bzip2_is_named(store: Store, cut: int) -> None:
    with pytest.raises(ImageError, match="its bzip2 data is damaged or truncated"):
        loaded(store, stored_layer(bz2.compress(BASE)[:cut]))


@pytest.mark.parametrize("name", ["BZh9-notes", "LZIP", "]"])
def test_a_tar_whose_first_name_looks_like_a_mark_is_a_tar(store: Store, name: str) -> None:
    tar = layer({name: "x"})
    assert loaded(store, docker_save([tar])) == [Digest.of(tar)]


UNKNOWN = {
    "lz4": (b"\x04\x22\x4d\x18\x64\x40\xa7", "lz4 -d"),
    "zip": (b"PK\x03\x04\x14\x00", "unzip"),
    "7z": (b"7z\xbc\xaf\x27\x1c\x00\x04", "7z x"),
    "rar": (b"Rar!\x1a\x07\x01\x00", "unrar x"),
    "lzip": (b"LZIP\x01\x0c", "lzip -d"),
    "lzma": (b"\x5d\x00\x00\x80\x00\xff\xff", "xz -d --format=lzma"),
    "compress": (b"\x1f\x9d\x90", "uncompress"),
}


@pytest.mark.parametrize("kind", UNKNOWN)
@pytest.mark.parametrize("whole", [True, False])
def test_a_compression_that_is_not_read_is_named_with_what_undoes_it(store: Store, kind: str, whole: bool) -> None:
    magic, undo = UNKNOWN[kind]
    data = magic + b"x" * 600
    with pytest.raises(ImageError, match=f"is compressed with {kind}, which .*: decompress it first: {undo}$"):
        loaded(store, data if whole else stored_layer(data))


# --- archives that lie in a directory ---------------------------------------------------------------


def dir_layout(layers: list[bytes], tag_of_manifest: str = "manifest.json") -> dict[str, bytes]:
    """The files that `skopeo copy … dir:` writes: blobs by their bare hashes."""
    settings = config(layers)
    rows = [
        {"mediaType": "application/vnd.docker.image.rootfs.diff.tar.gzip", "digest": digest(one), "size": len(one)}
        for one in (COMPRESSIONS["gzip"](one) for one in layers)
    ]
    described = {
        "mediaType": "application/vnd.docker.container.image.v1+json",
        "digest": digest(settings),
        "size": len(settings),
    }
    manifest = {"schemaVersion": 2, "config": described, "layers": rows}
    return {
        "version": b"Directory Transport Version: 1.1\n",
        tag_of_manifest: json.dumps(manifest).encode(),
        hexdigest(settings): settings,
    } | {hexdigest(one): one for one in (COMPRESSIONS["gzip"](one) for one in layers)}


def put(where: Path, files: dict[str, bytes]) -> Path:
    where.mkdir()
    for name, data in files.items():
        (where / name).write_bytes(data)
    return where


def test_a_directory_of_skopeo_loads_and_so_does_its_tar(store: Store, tmp_path: Path) -> None:
    files = dir_layout([BASE, APP])
    [one] = load(store, put(tmp_path / "dir", files))
    assert [layer.diff_id for layer in one.image.layers] == [Digest.of(BASE), Digest.of(APP)]
    assert one.image.id.encoded in files
    assert loaded(store, archive([("./", directory()), *((f"./{name}", data) for name, data in files.items())])) == [
        Digest.of(BASE),
        Digest.of(APP),
    ]


def test_a_directory_of_skopeo_may_hold_several_platforms(store: Store, tmp_path: Path) -> None:
    files: dict[str, bytes] = {}
    entries = []
    for architecture, layers in (("arm64", [BASE]), ("amd64", [APP])):
        one = dir_layout(layers)
        manifest = one.pop("manifest.json")
        files |= one | {f"{hexdigest(manifest)}.manifest.json": manifest}
        entries.append(
            {
                "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
                "digest": digest(manifest),
                "size": len(manifest),
                "platform": {"os": "linux", "architecture": architecture},
            }
        )
    files["manifest.json"] = json.dumps({"schemaVersion": 2, "manifests": entries}).encode()
    outcome = load(store, put(tmp_path / "dir", files), every_platform=True)
    assert [one.image.layers[0].diff_id for one in outcome] == [Digest.of(BASE), Digest.of(APP)]


def test_a_directory_with_a_manifest_of_schema_1_is_refused(store: Store, tmp_path: Path) -> None:
    manifest = b'{"schemaVersion": 1, "name": "x", "fsLayers": [{"blobSum": "sha256:00"}], "history": []}'
    with pytest.raises(ImageError, match=r"schema 1.* skopeo copy --format v2s2"):
        load(store, put(tmp_path / "dir", {"manifest.json": manifest}))


@pytest.mark.parametrize("flavour", [docker_save, podman_save, oci_archive])
def test_an_archive_that_was_unpacked_loads_from_its_directory(store: Store, tmp_path: Path, flavour: object) -> None:
    with tarfile.open(fileobj=io.BytesIO(flavour([BASE, APP]))) as tar:  # type: ignore[operator]
        tar.extractall(tmp_path / "unpacked", filter="data")
    [one] = load(store, tmp_path / "unpacked")
    assert [layer.diff_id for layer in one.image.layers] == [Digest.of(BASE), Digest.of(APP)]


def test_a_link_that_leads_out_of_an_unpacked_archive_names_no_member(store: Store, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(BASE)
    rows = [{"Config": "c.json", "RepoTags": ["test:1"], "Layers": ["layer"]}]
    where = put(tmp_path / "dir", {"c.json": config([BASE]), "manifest.json": json.dumps(rows).encode()})
    (where / "layer").symlink_to("../secret")
    with pytest.raises(ImageError, match=r"'layer' links to '\.\./secret', which is missing"):
        load(store, where)


def test_an_archive_of_an_old_docker_is_named(store: Store) -> None:
    data = archive([("repositories", b'{"t": {"1": "abc"}}'), ("abc/layer.tar", BASE), ("abc/json", b"{}")])
    with pytest.raises(ImageError, match=r"Docker before 1\.10"):
        loaded(store, data)


def test_the_config_of_a_blob_is_proved_in_a_directory_of_skopeo(store: Store, tmp_path: Path) -> None:
    files = dir_layout([BASE])
    files[hexdigest(config([BASE]))] = config([BASE], comment="another")
    with pytest.raises(ImageError, match="does not match its digest"):
        load(store, put(tmp_path / "dir", files))
