"""What remains where the engine may make no mounts of its own, and what do these hide?"""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from overlayfs_demo.linux import mounting
from overlayfs_demo.overlay import private_mount
from overlayfs_demo.overlay.engine import Overlay
from overlayfs_demo.overlay.factory import open_overlay
from overlayfs_demo.overlay.node import DirNode
from overlayfs_demo.overlay.stack import Stack
from overlayfs_demo.overlay.types import Caller
from tests import builders

OLD = (1, 2)


@pytest.fixture
def stack(tmp_path: Path) -> Stack:
    builders.directories(tmp_path, "upper/updir/sub", "work")
    builders.layers(tmp_path, {"dir/sub/low": "1"})
    paths = [os.fsencode(tmp_path / name) for name in ("layer0", "upper", "work")]
    for path in (*tmp_path.rglob("*"), tmp_path):
        os.utime(path, OLD)
    return Stack((paths[0],), paths[1], paths[2], user_xattrs=True)


@pytest.fixture
def no_mounts(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(mounting, "clone_mount", refuse)


def read_all(overlay: Overlay, node: DirNode) -> None:
    for entry in overlay.entries(node):
        child, _ = overlay.lookup(node, entry.name)
        if isinstance(child, DirNode):
            read_all(overlay, child)


@pytest.mark.usefixtures("no_mounts")
@pytest.mark.parametrize("flags", [0, mounting.MS_NOATIME, mounting.MS_NODIRATIME, mounting.MS_RDONLY])
def test_without_private_mounts_directories_are_read_quietly(stack: Stack, flags: int) -> None:
    overlay = open_overlay(Stack(stack.lowers, stack.upper, stack.work, user_xattrs=True, flags=flags))
    read_all(overlay, overlay.root)
    overlay.close()
    assert stack.upper is not None
    lower = [os.path.join(stack.lowers[0], path) for path in (b"", b"dir", b"dir/sub")]
    upper = [os.path.join(stack.upper, path) for path in (b"", b"updir", b"updir/sub")]
    assert {os.stat(path).st_atime for path in lower} == {OLD[0]}
    assert {os.stat(path).st_atime == OLD[0] for path in upper} == {bool(flags)}


@pytest.mark.usefixtures("no_mounts")
def test_without_private_mounts_changes_are_published_all_the_same(stack: Stack) -> None:
    overlay = open_overlay(stack)
    overlay.mkdir(overlay.root, b"new", 0o755, Caller(os.geteuid(), os.getegid()))
    overlay.close()
    assert stack.upper is not None
    assert os.path.isdir(os.path.join(stack.upper, b"new"))


def test_lower_cannot_be_written_through_its_private_mount(tmp_path: Path) -> None:
    root = private_mount.open_root(os.fsencode(tmp_path), private_mount.LOWER)
    if root.reads_quietly:
        pytest.skip("needs the right to make mounts")
    with pytest.raises(OSError, match=os.strerror(errno.EROFS)):
        os.mkdir("new", dir_fd=root.fd)
    os.close(root.fd)


def test_missing_layer_is_named(tmp_path: Path) -> None:
    missing = os.fsencode(tmp_path / "missing")
    with pytest.raises(FileNotFoundError) as caught:
        private_mount.open_root(missing, private_mount.LOWER)
    assert caught.value.filename == missing
