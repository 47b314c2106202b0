"""Does every bad archive end in one clear sentence, and leave the output directory alone?"""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from overlayfs_demo.errors import ImageError
from overlayfs_demo.images.build import build_layers
from tests.images.builders import (
    COMPRESSIONS,
    WHITEOUT,
    Blobs,
    Content,
    Entry,
    Members,
    archive,
    config,
    digest,
    directory,
    docker_save,
    hard_link,
    hexdigest,
    layer,
    named,
    oci_archive,
    podman_save,
    symlink,
)

GOOD = layer({"etc/motd": "hello", "usr/bin/x": b"x" * 5000})

Refused = Callable[[bytes], str]


@pytest.fixture
def refused(tmp_path: Path) -> Refused:
    """Build the archive, which must fail and leave no trace; the message."""

    def run(data: bytes) -> str:
        path = tmp_path / "image.tar"
        path.write_bytes(data)
        kept = tmp_path / "kept"
        kept.mkdir(exist_ok=True)
        (kept / "mine").write_text("mine")
        with pytest.raises(ImageError) as caught:
            build_layers(path, kept)
        assert sorted(os.listdir(kept)) == ["mine"]
        with pytest.raises(ImageError):
            build_layers(path, tmp_path / "new" / "deep")
        assert sorted(os.listdir(tmp_path)) == ["image.tar", "kept"]
        message = str(caught.value)
        assert message.isprintable()
        assert message.startswith(str(path))
        return message

    return run


# --- members that a layer may not have -------------------------------------------------------------

BAD_MEMBERS: dict[str, tuple[Members, str]] = {
    "through-links-in-a-circle": ([("l", symlink("m")), ("m", symlink("l")), ("l/evil", "x")], "l/evil"),
    "through-a-link-to-a-file": ([("f", "x"), ("l", symlink("/f")), ("l/evil", "x")], "l/evil"),
    "through-a-file": ([("f", "x"), ("f/evil", "x")], "f/evil"),
    "hard-link-dot-dot": ({"evil": hard_link("../../etc/passwd")}, "evil"),
    "hard-link-absolute": ({"evil": hard_link("/etc/passwd")}, "evil"),
    "hard-link-through-a-symlink": ([("l", symlink("/etc")), ("evil", hard_link("l/passwd"))], "evil"),
    "hard-link-through-a-file": ([("l", "x"), ("evil", hard_link("l/passwd"))], "evil"),
    "hard-link-to-nothing": ({"evil": hard_link("nowhere/x")}, "evil"),
    "hard-link-to-a-directory": ({"d": directory(), "evil": hard_link("d")}, "evil"),
    "hard-link-to-the-root": ({"evil": hard_link("/")}, "evil"),
    "hard-link-in-place-of-its-target": ([("d/x", "1"), ("d", hard_link("d/x"))], "d"),
    "bare-whiteout": ({"d/.wh.": ""}, "d/.wh."),
    "whiteout-of-dot": ({"d/.wh..": ""}, "d/.wh.."),
    "whiteout-of-dot-dot": ({"d/.wh...": ""}, "d/.wh..."),
    "through-a-whiteout": ({"d/.wh.x/y": ""}, "d/.wh.x/y"),
    "root-is-a-file": ({"./": "x"}, "."),
    "root-is-a-link": ({"a/..": symlink("x")}, "a/.."),
    "unknown-type": ({"evil": Entry(b"Z")}, "evil"),
    "name-too-long": ({"d/" + "n" * 300: "x"}, "d/nnn"),
    "path-too-long": ({"n/" * 2100 + "x": "x"}, "n/n/n"),
    "time-of-no-file": ({"evil": Entry(pax={"mtime": "9" * 30})}, "evil"),
    "time-of-no-clock": ({"evil": Entry(pax={"mtime": "noon"})}, "evil"),
    "name-with-nul": ({"x": Entry(pax={"path": "evil\0x"})}, "evil"),
}


@pytest.mark.parametrize("case", BAD_MEMBERS)
def test_bad_member_is_named_and_nothing_is_left(refused: Refused, case: str) -> None:
    members, named_member = BAD_MEMBERS[case]
    before = sorted(os.listdir("/tmp"))
    message = refused(docker_save([GOOD, layer(members)]))
    assert f"layer member {named_member!r}"[:-1] in message
    assert [name for name in os.listdir("/tmp") if name not in before and "evil" in name] == []


@pytest.mark.parametrize("owner", [(-1, 0), (0, 1 << 33), (0xFFFFFFFF, 0)])
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: only root's layers have owners")
def test_owner_that_no_file_can_have_is_refused(refused: Refused, owner: tuple[int, int]) -> None:
    numbers = {"uid": str(owner[0]), "gid": str(owner[1])}
    assert "'evil'" in refused(docker_save([layer({"evil": Entry(pax=numbers)})]))


@pytest.mark.parametrize("stretches", ["0,999999999", "-5,5", "4096,10", "0,-1", "5,5,0,5", "0,5,4,5"])
def test_map_of_holes_that_does_not_fit_is_refused(refused: Refused, stretches: str) -> None:
    pax = {"GNU.sparse.map": stretches, "GNU.sparse.size": "4096", "GNU.sparse.numblocks": "1"}
    assert "'evil'" in refused(docker_save([layer({"evil": Entry(data=b"x" * 10, pax=pax)})]))


def test_member_names_cannot_write_to_the_terminal(refused: Refused) -> None:
    assert "\\x1b]0;evil\\x07\\n" in refused(docker_save([layer({"\x1b]0;evil\x07\n": Entry(b"Z")})]))


# --- damaged layers --------------------------------------------------------------------------------


def test_layer_that_is_not_its_diff_id_is_refused(refused: Refused) -> None:
    data = docker_save([GOOD]).replace(b"hello", b"hullo")
    message = refused(data)
    assert "0/layer.tar'" in message
    assert digest(GOOD) in message
    assert digest(GOOD.replace(b"hello", b"hullo")) in message


@pytest.mark.parametrize("compression", ["plain", "gzip", "zstd", "xz"])
def test_blob_that_is_not_its_digest_is_refused(refused: Refused, compression: str) -> None:
    blobs = Blobs()
    entry = blobs.image([GOOD], compression)
    blob = f"blobs/sha256/{hexdigest(COMPRESSIONS[compression](GOOD))}"
    damaged = bytearray(blobs.members[blob])
    damaged[len(damaged) // 2] ^= 0xFF
    blobs.members[blob] = bytes(damaged)
    assert blob in refused(blobs.layout([entry]))


@pytest.mark.parametrize("compression", ["gzip", "zstd", "xz"])
@pytest.mark.parametrize("part", [0.1, 0.5, 0.99])
def test_compressed_layer_that_is_cut_short_is_refused(refused: Refused, compression: str, part: float) -> None:
    whole = COMPRESSIONS[compression](GOOD)
    cut = whole[: int(len(whole) * part)]
    blobs = Blobs()
    settings = blobs.add(config([GOOD]), "application/vnd.oci.image.config.v1+json")
    manifest = {"config": settings, "layers": [blobs.add(cut, "application/vnd.oci.image.layer.v1.tar")]}
    entry = blobs.add(json.dumps(manifest).encode(), "application/vnd.oci.image.manifest.v1+json")
    assert hexdigest(cut) in refused(blobs.layout([entry]))


@pytest.mark.parametrize("cut", [1, 511, 512, 600, 1536, 3000, 6000, 9000])
def test_layer_that_is_cut_short_is_refused(refused: Refused, cut: int) -> None:
    settings = config([GOOD])
    rows = [{"Config": "config.json", "RepoTags": None, "Layers": ["l/layer.tar"]}]
    message = refused(
        archive([("config.json", settings), ("l/layer.tar", GOOD[:cut]), ("manifest.json", json.dumps(rows).encode())])
    )
    assert "'l/layer.tar'" in message


def test_damaged_header_does_not_end_a_layer(refused: Refused) -> None:
    tar = bytearray(layer({"a": "1", "b": "2", "c": "3"}))
    tar[1024 + 150] ^= 0xFF
    assert "after member 'a': invalid header" in refused(docker_save([bytes(tar)]))


def test_chain_of_extended_headers_is_refused(refused: Refused) -> None:
    info = tarfile.TarInfo("x")
    info.pax_headers = {"comment": "x"}
    header = info.tobuf(tarfile.PAX_FORMAT)[:1024]
    assert "damaged" in refused(docker_save([header * 3000 + layer({"a": "1"})]))


def test_huge_extended_header_is_refused(refused: Refused) -> None:
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 1 << 40
    assert "damaged" in refused(docker_save([info.tobuf(tarfile.GNU_FORMAT) + layer({"a": "1"})]))


# --- damaged archives ------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", ["plain", "gzip", "zstd", "xz"])
@pytest.mark.parametrize("part", [0.01, 0.2, 0.5, 0.75, 0.9])
def test_archive_that_is_cut_short_is_refused(refused: Refused, compression: str, part: float) -> None:
    whole = docker_save([GOOD, layer({"noise": os.urandom(30_000)})]).rstrip(b"\0") + b"\0" * 1024
    whole = COMPRESSIONS[compression](whole)
    refused(whole[: int(len(whole) * part)])


def test_archive_without_end_mark_is_refused(refused: Refused) -> None:
    assert "end-of-archive" in refused(layer({"etc": directory(), "etc/motd": Entry(data=b"x" * 512)})[: 4 * 512 - 512])


@pytest.mark.parametrize(
    "data", [b"", b"hello\n", b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"PK\x03\x04" * 500, b"\0" * 10240]
)
def test_file_that_is_no_tar_is_refused(refused: Refused, data: bytes) -> None:
    refused(data)


def test_tar_that_is_no_image_is_refused(refused: Refused) -> None:
    assert "is not an image" in refused(layer({"thesis.tex": "x", "figures/one.png": "y"}))


def test_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="is a directory"):
        build_layers(tmp_path, tmp_path / "out")


def test_missing_archive_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"nowhere\.tar: No such file"):
        build_layers(tmp_path / "nowhere.tar", tmp_path / "out")
    assert os.listdir(tmp_path) == []


def test_member_that_is_there_twice_is_refused(refused: Refused) -> None:
    settings = config([GOOD])
    rows = json.dumps([{"Config": "config.json", "Layers": ["l/layer.tar"]}]).encode()
    members: list[tuple[str, bytes | Entry]] = [
        ("config.json", settings),
        ("l/layer.tar", GOOD),
        ("l/layer.tar", layer({"evil": "x"})),
        ("manifest.json", rows),
    ]
    assert "'l/layer.tar' occurs twice" in refused(archive(members))
    members = [("config.json", settings), ("l/layer.tar", GOOD), ("manifest.json", rows), ("./manifest.json", rows)]
    assert "'manifest.json' occurs twice" in refused(archive(members))


def _docker(rows: object, **members: bytes | Entry) -> bytes:
    given = [(name.replace("__", "/"), data) for name, data in members.items()]
    return archive([*given, ("manifest.json", json.dumps(rows).encode())])


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (_docker({}), "manifest.json"),
        (_docker([]), "manifest.json"),
        (_docker([1]), "manifest.json"),
        (_docker([{"Config": 1}]), "'Config' must be a string"),
        (_docker([{"Config": "c", "Layers": "l"}], c=b"{}"), "'Layers' must be a list"),
        (_docker([{"Config": "nowhere", "Layers": []}]), "'nowhere' is missing"),
        (_docker([{"Config": "c", "Layers": []}], c=b"["), "c: not JSON"),
        (_docker([{"Config": "c", "Layers": []}], c=b"{}"), "'rootfs' is missing"),
        (_docker([{"Config": "c", "Layers": ["l"]}], c=b'{"rootfs": {}}', l=GOOD), "0 (rootfs.diff_ids), not 1"),
        (_docker([{"Config": "c", "Layers": ["l"]}], c=config([GOOD])), "'l' is missing"),
        (_docker([{"Config": "c", "Layers": ["l"]}], c=config([GOOD]), l=directory()), "'l' is a directory"),
        (_docker([{"Config": "c", "Layers": ["l"]}], c=config([GOOD]), l=symlink("l")), "is a link to itself"),
        (_docker([{"Config": "c", "Layers": ["l"]}], c=config([GOOD]), l=symlink("/etc/passwd")), "/etc/passwd"),
        (_docker([{"Config": "c", "Layers": ["l"]}], c=config([GOOD]), l=symlink("../../x")), "../../x"),
        (_docker([{"Config": f"{'0' * 64}.json", "Layers": []}], **{f"{'0' * 64}.json": b"{}"}), "its digest"),
    ],
)
def test_docker_archive_that_contradicts_itself_is_refused(refused: Refused, data: bytes, words: str) -> None:
    assert words in refused(data)


def _oci(change: Callable[[Blobs, dict[str, object]], list[dict[str, object]]]) -> bytes:
    blobs = Blobs()
    return blobs.layout(change(blobs, blobs.image([GOOD])))


def _loop(depth: int) -> Callable[[Blobs, dict[str, object]], list[dict[str, object]]]:
    def change(blobs: Blobs, entry: dict[str, object]) -> list[dict[str, object]]:
        for _ in range(depth):
            entry = blobs.index([entry])
        return [entry]

    return change


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (_oci(lambda blobs, entry: []), "lists no image"),
        (_oci(lambda blobs, entry: [dict(entry, digest="sha256:12")]), "not a digest"),
        (_oci(lambda blobs, entry: [dict(entry, digest=digest(b"x"))]), "is missing"),
        (_oci(lambda blobs, entry: [dict(entry, mediaType=5)]), "'mediaType' must be a string"),
        (_oci(lambda blobs, entry: [dict(entry, platform="linux")]), "'platform'"),
        (_oci(_loop(20)), "nests indexes too deeply"),
    ],
)
def test_oci_archive_that_contradicts_itself_is_refused(refused: Refused, data: bytes, words: str) -> None:
    assert words in refused(data)


def test_manifest_that_is_not_its_digest_is_refused(refused: Refused) -> None:
    blobs = Blobs()
    entry = blobs.image([GOOD])
    blob = f"blobs/sha256/{str(entry['digest'])[7:]}"
    blobs.members[blob] = blobs.members[blob].replace(b'"schemaVersion": 2', b'"schemaVersion": 3')
    assert blob in refused(blobs.layout([named(entry, "x:1")]))


def test_layer_of_another_size_than_promised_is_refused(refused: Refused) -> None:
    blobs = Blobs()
    row = blobs.add(GOOD, "application/vnd.oci.image.layer.v1.tar")
    settings = blobs.add(config([GOOD]), "application/vnd.oci.image.config.v1+json")
    manifest = {"config": settings, "layers": [dict(row, size=7)]}
    entry = blobs.add(json.dumps(manifest).encode(), "application/vnd.oci.image.manifest.v1+json")
    assert "the manifest says 7" in refused(blobs.layout([entry]))


@pytest.mark.parametrize("make", [docker_save, podman_save, oci_archive])
def test_damage_anywhere_is_an_image_error_or_none(tmp_path: Path, make: Callable[[list[bytes]], bytes]) -> None:
    content: dict[str, Content] = {
        "etc/motd": "hello",
        "l": symlink("x"),
        "etc/h": hard_link("etc/motd"),
        "x": WHITEOUT,
    }
    whole = make([GOOD, layer(content)])
    path = tmp_path / "image.tar"
    for place in range(0, len(whole), 97):
        damaged = bytearray(whole)
        damaged[place] ^= 0x55
        path.write_bytes(damaged)
        out = tmp_path / "out"
        try:
            names = {one.directory.name for one in build_layers(path, out)}
        except ImageError:
            assert not out.exists(), place
            continue
        assert {name for name in os.listdir(out) if not name.startswith(".")} == names
        for directory_name in names:
            _remove(out / directory_name)
        (out / ".layers.json").unlink()
        out.rmdir()


def _remove(top: Path) -> None:
    for path in sorted(top.rglob("*"), reverse=True):
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        else:
            path.unlink()
    top.rmdir()
