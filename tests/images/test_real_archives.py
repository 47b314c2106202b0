"""Does one real image, exported by every tool, become exactly the tree that Docker shows?

The archives are not part of the source: OVERLAYFS_DEMO_IMAGES names their folder, or they lie in
`shared/images` beside the repository.
"""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

import pytest

from overlayfs_demo.images.build import build_layers
from tests.contract.conftest import make_subject, why_unavailable
from tests.contract.subjects import Layers
from tests.images.builders import needs_root
from tests.places import ROOT

ARCHIVES = [
    "layer-demo.docker-20.10-save.tar",
    "layer-demo.podman-docker-archive.tar",
    "layer-demo.oci-archive.tar",
    "layer-demo.podman-oci-archive.tar",
    "layer-demo.oci-layout-zstd.tar",
]
EXPORTED = "layer-demo.c1.docker-export.tar"
# Docker's own mount points and what it puts there, which only an exported container has.
DOCKERS_OWN = {
    "/.dockerenv",
    "/dev",
    "/dev/console",
    "/dev/pts",
    "/dev/shm",
    "/etc/hostname",
    "/etc/hosts",
    "/etc/mtab",
    "/etc/resolv.conf",
    "/proc",
    "/sys",
}


def real_archive(name: str) -> Path:
    """The file, or a skipped test."""
    beside = ROOT.parent / "shared" / "images"
    path = Path(os.environ.get("OVERLAYFS_DEMO_IMAGES", beside)) / name
    if not path.exists():
        pytest.skip(f"no {name}: set OVERLAYFS_DEMO_IMAGES to the folder that has it")
    return path


def described(top: Path) -> list[str]:
    """The tree in the words of golden/merged-tree.txt: type, mode, uid, gid, size, mtime, path, target or sha256."""
    lines: list[str] = []
    linked: dict[int, str] = {}
    for path in sorted(top.rglob("*"), key=lambda path: str(path.relative_to(top))):
        status, name = path.lstat(), "/" + str(path.relative_to(top))
        mode, more = status.st_mode, ""
        kind, size = {stat.S_IFDIR: "d", stat.S_IFLNK: "l", stat.S_IFIFO: "p", stat.S_IFREG: "f"}[stat.S_IFMT(mode)], 0
        if kind == "l":
            more = f"-> {path.readlink()}"
        elif kind == "f":
            first = linked.setdefault(status.st_ino, name)
            if first != name:
                kind, more = "h", f"-> {first[1:]}"
            else:
                size, more = status.st_size, hashlib.sha256(path.read_bytes()).hexdigest()
        when = "*" if name == "/etc" else int(status.st_mtime)
        lines.append(f"{kind} {mode:o} {status.st_uid} {status.st_gid} {size} {when} {name} {more}".rstrip())
    return sorted(lines)


def golden() -> list[str]:
    """The golden lines; the mtime of /etc is the container's, not the image's, and is left open."""
    found = []
    for line in real_archive("golden/merged-tree.txt").read_text().splitlines():
        words = line.split(" ")
        if words[6] == "/etc":
            words[5] = "*"
        found.append(" ".join(words).rstrip())
    return sorted(found)


@pytest.mark.parametrize("kind", ["kernel", "kernel-front", "fusepy-front"])
@pytest.mark.parametrize("name", ARCHIVES)
def test_mounted_layers_are_the_tree_that_docker_shows(tmp_path: Path, name: str, kind: str) -> None:
    if problem := why_unavailable(kind):
        pytest.skip(problem)
    layers = build_layers(real_archive(name), tmp_path / "out")
    assert len(layers) == 8
    (tmp_path / "view").mkdir()
    view = make_subject(kind, Layers([one.directory for one in layers], None, None, tmp_path / "view"))
    view.start()
    try:
        assert described(tmp_path / "view") == golden()
    finally:
        view.stop()


def test_every_archive_has_the_same_layers(tmp_path: Path) -> None:
    names = {
        tuple(one.directory.name for one in build_layers(real_archive(name), tmp_path / name)) for name in ARCHIVES
    }
    assert len(names) == 1


@needs_root
def test_exported_container_differs_from_the_image_as_docker_diff_says(tmp_path: Path) -> None:
    (only,) = build_layers(real_archive(EXPORTED), tmp_path / "out")
    image = {line.split(" ")[6]: _unlinked(line) for line in golden()}
    container = {line.split(" ")[6]: _unlinked(line) for line in described(only.directory)}
    container = {name: line for name, line in container.items() if name not in DOCKERS_OWN}
    said = real_archive("golden/docker-diff-c1.txt").read_text().split()
    verdicts = dict(zip(said[1::2], said[::2], strict=True))
    added, deleted = set(container) - set(image), set(image) - set(container)
    changed = {name for name in set(container) & set(image) if container[name] != image[name]}
    assert added == {name for name, verdict in verdicts.items() if verdict == "A"}
    # Docker names a deleted directory, not what was below it.
    assert {name for name in deleted if str(Path(name).parent) not in deleted} == {"/app"}
    assert changed | {"/etc"} == {name for name, verdict in verdicts.items() if verdict == "C"}


def _unlinked(line: str) -> str:
    """What docker diff compares: not the times of directories."""
    words = line.split(" ")
    return " ".join(words[:5] + words[7:]) if words[0] == "d" else line
