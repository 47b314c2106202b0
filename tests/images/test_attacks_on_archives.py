"""Does an archive that was made to do harm stay harmless, and end in one line?"""

from __future__ import annotations

import io
import json
import os
import subprocess
import tarfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from overlayfs_demo.analysis.waste import analyse
from overlayfs_demo.errors import ImageError
from overlayfs_demo.images import formats
from overlayfs_demo.images.archive import open_archive
from overlayfs_demo.images.formats import contents
from overlayfs_demo.images.reference import ImageName
from overlayfs_demo.images.tarstream import TarStream
from overlayfs_demo.store.load import load
from overlayfs_demo.store.save import save
from overlayfs_demo.store.store import Store
from overlayfs_demo.ui import docker_tables
from tests.images.builders import (
    Blobs,
    Build,
    Content,
    Entry,
    annotated,
    archive,
    config,
    directory,
    docker_save,
    hexdigest,
    layer,
    needs_root,
    snapshot,
)

BASE = layer({"f": "data"})
HUGE = 1 << 40  # bytes


def header(name: str, kind: bytes, data: bytes = b"") -> bytes:
    """A member as it stands in a tar; of an extended header, `data` are its records."""
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, len(data)
    return info.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % tarfile.BLOCKSIZE)


def record(key: str, value: str) -> bytes:
    """One record of a pax header, of 10 to 99 bytes."""
    text = f" {key}={value}\n"
    return f"{len(text) + 2}{text}".encode()


def sparse(size: int, where: int = 0) -> Entry:
    """A file of `size` bytes, all of them zeros but the one at `where`."""
    return Entry(
        data=b"x",
        pax={
            "GNU.sparse.major": "0",
            "GNU.sparse.minor": "1",
            "GNU.sparse.map": f"{where},1",
            "GNU.sparse.size": str(size),
            "GNU.sparse.numblocks": "1",
        },
    )


# --- layers ----------------------------------------------------------------------------------------


def test_global_pax_headers_say_nothing_about_members(build: Build) -> None:
    """So do Docker, podman and umoci: with them, `path` here would name every file of the layer."""
    records = record("path", "other") + record("uid", "77") + record("SCHILY.xattr.user.key", "value")
    members = header("a", tarfile.REGTYPE, b"A") + header("b", tarfile.REGTYPE, b"B")
    (top,) = build(header("pax_global_header", tarfile.XGLTYPE, records) + members + bytes(1024))
    assert snapshot(top) == {"a": ("file", 0o644, "A"), "b": ("file", 0o644, "B")}
    assert (top / "a").stat().st_uid == os.geteuid()
    assert os.listxattr(top / "a") == ([] if os.geteuid() == 0 else ["user.overlayfs_demo.stat"])


@pytest.mark.parametrize(
    "entry, problem",
    [
        (Entry(pax={"SCHILY.xattr.user.a\0b": "1"}), "attribute with an invalid name"),
        (sparse(10**30), "an invalid size"),
        (sparse(10**30, 10**29), "an invalid size"),
    ],
)
def test_member_that_no_file_can_be_is_one_error(build: Build, entry: Entry, problem: str) -> None:
    with pytest.raises(ImageError, match=f"layer member 'f' has an? {problem}|layer member 'f' has {problem}"):
        build({"f": entry})


def test_headers_of_one_member_have_a_limit_together() -> None:
    """A compressed tar may hold a million of them, and all are kept in memory."""
    names = header("long", tarfile.GNUTYPE_LONGNAME, b"n" * (1 << 20)) * 17
    with pytest.raises(ImageError, match="a header of more than 16777216 bytes"):
        list(TarStream(io.BytesIO(names + header("f", tarfile.REGTYPE)), "bomb", marked_end=False))


def test_headers_of_many_members_have_no_limit_together() -> None:
    one = header("long", tarfile.GNUTYPE_LONGNAME, b"n" * (1 << 20)) + header("f", tarfile.REGTYPE)
    assert len(list(TarStream(io.BytesIO(one * 18), "tar", marked_end=False))) == 18


def test_holes_are_not_read_to_compare_files(build: Build) -> None:
    """Reading one of these would take an hour."""
    directories = build(
        {"a": sparse(HUGE), "b": sparse(HUGE), "c": sparse(HUGE, HUGE - 1), "d": sparse(HUGE)}, {"d": sparse(HUGE)}
    )
    (found,) = analyse(directories, ["", ""]).duplicates
    assert [copy.path for copy in found.copies] == [b"a", b"b", b"d", b"d"]


@pytest.mark.parametrize("stretches", [0, 1, 5])
def test_an_old_gnu_sparse_file_is_unpacked(build: Build, tmp_path: Path, stretches: int) -> None:
    """Its header has four places for stretches, and what is left of them is empty."""
    with (tmp_path / "file").open("wb") as file:
        for number in range(stretches):
            file.seek(number << 20)
            file.write(b"data")
        file.truncate(1 << 24)
    tar = subprocess.run(
        ["tar", "--sparse", "--format=gnu", "-C", str(tmp_path), "-c", "file"], capture_output=True, check=True
    )
    (directory,) = build(tar.stdout)
    assert (directory / "file").read_bytes() == (tmp_path / "file").read_bytes()


# --- lists of images -------------------------------------------------------------------------------


def opened(path: Path, data: bytes) -> formats.Contents:
    path.write_bytes(data)
    with open_archive(path) as found:
        return contents(found)


def nested(levels: int, names: Sequence[str]) -> bytes:
    """Indexes inside indexes; each lists the next one once for each name."""
    blobs = Blobs()
    entry = blobs.image([BASE])
    for _ in range(levels):
        entry = blobs.index([annotated(entry, {"org.opencontainers.image.ref.name": name}) for name in names])
    return blobs.layout([entry])


def test_manifest_that_is_listed_again_is_read_once(tmp_path: Path) -> None:
    """Seven levels of ten make ten million."""
    assert len(opened(tmp_path / "i.tar", nested(7, ["test:1"] * 10)).candidates) == 1


def test_index_lists_a_limited_number_of_manifests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "_MAX_ENTRIES", 100)
    with pytest.raises(ImageError, match="list more than 100 manifests"):
        opened(tmp_path / "i.tar", nested(7, [f"test:{number}" for number in range(40)]))


def test_config_of_many_rows_is_kept_once_at_most(tmp_path: Path) -> None:
    settings = config([BASE])
    rows = [{"Config": "c.json", "RepoTags": [f"t:{number}"], "Layers": ["l.tar"]} for number in range(50)]
    members = [("c.json", settings), ("l.tar", BASE), ("manifest.json", json.dumps(rows).encode())]
    found = opened(tmp_path / "i.tar", archive(members))
    assert len({id(one.identity) for one in found.candidates}) == 1
    outcome = load(Store(tmp_path / "store"), tmp_path / "i.tar")
    assert [len(one.names) for one in outcome] == [50]


def test_names_of_an_image_are_written_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One by one, some thousand names took minutes."""
    settings = config([BASE])
    rows = [{"Config": "c.json", "RepoTags": [f"t:{number}" for number in range(50)], "Layers": ["l.tar"]}]
    members = [("c.json", settings), ("l.tar", BASE), ("manifest.json", json.dumps(rows).encode())]
    (tmp_path / "i.tar").write_bytes(archive(members))
    written: list[int] = []
    write = Store.write_names

    def counted(store: Store, names: Any) -> None:
        written.append(len(names))
        write(store, names)

    monkeypatch.setattr(Store, "write_names", counted)
    load(Store(tmp_path / "store"), tmp_path / "i.tar")
    assert written == [50]


@pytest.mark.parametrize("name", ["sha256:{}", "library/sha256:{}", "docker.io/library/sha256:{}"])
def test_no_name_can_be_taken_for_the_id_of_another_image(tmp_path: Path, name: str) -> None:
    store = Store(tmp_path / "store")
    (tmp_path / "good.tar").write_bytes(docker_save([BASE], tag="good:1"))
    (good,) = load(store, tmp_path / "good.tar")
    (tmp_path / "bad.tar").write_bytes(docker_save([layer({"bad": "1"})], tag=name.format(good.image.id.encoded)))
    with pytest.raises(ImageError, match="'sha256:' begins an image ID"):
        load(store, tmp_path / "bad.tar")
    assert store.find(str(good.image.id)).id == good.image.id


# --- what is printed -------------------------------------------------------------------------------


def test_inspect_prints_nothing_that_a_terminal_acts_on() -> None:
    text = "\x7f\x9b31m\u202e\u2066\U000e0041é\n"
    printed = docker_tables.inspect_text([{"Author": text}])
    assert json.loads(printed) == [{"Author": text}]
    assert [one for one in printed if not one.isprintable() and one != "\n"] == []
    assert "é" in printed


# --- stores and places -----------------------------------------------------------------------------


@pytest.mark.parametrize("directory", ["tmp", "layers", "images"])
def test_store_whose_directory_is_a_link_is_refused(tmp_path: Path, directory: str) -> None:
    """What lies in `tmp` is removed."""
    Store(tmp_path / "store")
    (tmp_path / "canary").mkdir()
    (tmp_path / "canary/kept").touch()
    (tmp_path / "store" / directory).rmdir()
    (tmp_path / "store" / directory).symlink_to(tmp_path / "canary")
    with pytest.raises(ImageError, match=f"its {directory} is a symbolic link"):
        Store(tmp_path / "store")
    assert (tmp_path / "canary/kept").exists()


@needs_root
def test_store_of_another_user_is_refused(tmp_path: Path) -> None:
    Store(tmp_path / "store")
    os.chown(tmp_path / "store", 1000, 1000)
    with pytest.raises(ImageError, match=r"belongs to another user \(uid 1000\)"):
        Store(tmp_path / "store")


def test_layer_that_is_a_link_is_not_there(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    (tmp_path / "i.tar").write_bytes(docker_save([BASE], tag="t:1"))
    (loaded,) = load(store, tmp_path / "i.tar")
    (one,) = loaded.image.layers
    one.directory.rename(tmp_path / "elsewhere")
    one.directory.symlink_to(tmp_path / "elsewhere")
    assert store.layer(one.chain_id) is None


def test_size_that_no_file_can_have_damages_a_record(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    (tmp_path / "i.tar").write_bytes(docker_save([BASE], tag="t:1"))
    (loaded,) = load(store, tmp_path / "i.tar")
    (one,) = loaded.image.layers
    path = one.directory.with_suffix(".json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "size": 10**400}))
    assert any("'size' must be a size in bytes" in str(problem) for problem in store.inventory().problems)


def test_archive_is_read_from_a_pipe(tmp_path: Path) -> None:
    """As in `load <(skopeo copy … docker-archive:/dev/stdout)`."""
    os.mkfifo(tmp_path / "pipe")
    data = docker_save([BASE], tag="t:1")
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(data,), daemon=True)
    writer.start()
    (loaded,) = load(Store(tmp_path / "store"), tmp_path / "pipe")
    writer.join(60)
    assert loaded.names == (ImageName.parse("t:1"),)


def test_replaced_directories_take_no_more_time_each_than_a_few(tmp_path: Path) -> None:
    """Each costs what is in it, however many others there are: with 3000 it once took seconds."""
    members: list[tuple[str, Content]] = []
    for number in range(3000):
        members += [(f"d{number}/", directory()), (f"d{number}/f", "x"), (f"d{number}", "now a file")]
    [one] = load(Store(tmp_path / "store"), io.BytesIO(docker_save([layer(members)])))
    assert len(os.listdir(one.image.layers[0].directory)) == 3000
    out = io.BytesIO()
    save([one.image], out)
    assert layer(members) in out.getvalue()


def test_number_that_no_program_can_keep_is_refused(tmp_path: Path) -> None:
    data = config([BASE]).replace(b'"os"', b'"unknown": 1e999, "os"')
    name = f"{hexdigest(data)}.json"
    manifest = json.dumps([{"Config": name, "Layers": ["l"], "RepoTags": []}]).encode()
    with pytest.raises(ImageError, match="1e999 is too large a number"):
        load(Store(tmp_path / "store"), io.BytesIO(archive([(name, data), ("l", BASE), ("manifest.json", manifest)])))


def test_image_with_layers_without_end_is_refused(tmp_path: Path) -> None:
    data = config([BASE] * 1001)
    name = f"{hexdigest(data)}.json"
    manifest = json.dumps([{"Config": name, "Layers": ["l"] * 1001, "RepoTags": []}]).encode()
    with pytest.raises(ImageError, match="1001 layers; this program accepts 1000"):
        load(Store(tmp_path / "store"), io.BytesIO(archive([(name, data), ("l", BASE), ("manifest.json", manifest)])))
