"""Can the kernel's overlayfs go on where we stopped, and we where it stopped?"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from overlayfs_demo.linux.syscalls import RENAME_EXCHANGE
from tests import builders
from tests.builders import OPAQUE, WHITEOUT, directory, file, hardlink, symlink, tree
from tests.conftest import unmount_all
from tests.contract.conftest import make_subject, why_unavailable
from tests.contract.marks import only
from tests.contract.subjects import Fronted, Kernel, Layers, Mounted

Change = Callable[[Mounted], None]

ours = only(["kernel-front", "fusepy-front"], "what is exchanged is a mounted upper")


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Layers]:
    lowers = builders.layers(
        tmp_path,
        {
            "etc": {"passwd": file("root", mode=0o644), "shadow": file("secret", mode=0o600, gid=42)},
            "usr/bin": {"su": file("elf", mode=0o4755), "sh": symlink("dash"), "dash": "elf2"},
            "var": {"log": {"a": "1", "b": "2"}, "cache": {"x": "1", "y/z": "2"}, "old/deep/file": "3"},
            "linked": "1",
            "link": hardlink("linked"),
            "only-low": "1",
            "l1": "1",
            "l2": hardlink("l1"),
            "l3": hardlink("l1"),
            "l4": hardlink("l1"),
        },
        {
            "etc": {"passwd": "root2", "new": "2"},
            "var": {"log": {"c": "3"}, "cache": OPAQUE({"w": "4"})},
            "only-low": WHITEOUT,
            "tmp": directory(mode=0o1777),
        },
    )
    for name in ("upper", "work", "merged"):
        (tmp_path / name).mkdir()
    yield Layers(lowers, tmp_path / "upper", tmp_path / "work", tmp_path / "merged")
    unmount_all(str(tmp_path))


def change_much(view: Mounted) -> None:
    """A little of everything, the same whoever serves the view."""
    view.append("etc/passwd", b"more")
    view.chmod("etc/shadow", 0o640)
    view.write("etc/new", b"replaced")
    view.unlink("usr/bin/sh")
    view.symlink("su", "usr/bin/sh")
    view.rename("var/log", "var/logs")
    view.append("var/logs/a", b"+")
    view.rename("var/old/deep", "tmp/deep")
    view.mkdir("var/log")
    view.write("var/log/fresh", b"f")
    view.unlink("var/cache/w")
    view.rmdir("var/cache")
    view.mkdir("var/cache")
    view.write("var/cache/only", b"o")
    view.write("only-low", b"again")
    view.link("etc/new", "tmp/link-to-new")
    view.append("linked", b"2")
    view.append("l1", b"2")
    view.unlink("l2")
    view.rename("l3", "tmp/l5")
    view.link("l4", "l6")
    view.mknod("tmp/pipe", stat.S_IFIFO | 0o600)
    view.set_xattr("usr", "user.k", b"v")
    view.set_xattr("usr", "trusted.overlay.mine", b"v")
    view.chown("usr/bin/su", 5, 6)
    view.rename("var/log/fresh", "etc/passwd-")
    if view.kind != "fusepy-front":
        view.rename("etc", "tmp", RENAME_EXCHANGE)
        view.rename("tmp", "etc", RENAME_EXCHANGE)
    for path in ("etc/passwd", "etc/new", "var/log", "tmp", "var/cache", "only-low", "linked"):
        view.utime(path, builders.MTIME, builders.MTIME)


def without_directory_times(found: dict[bytes, builders.Seen]) -> dict[bytes, builders.Seen]:
    return {path: one._replace(mtime_ns=0) if one.kind == "directory" else one for path, one in found.items()}


def require(kind: str) -> None:
    if problem := why_unavailable(kind):
        pytest.skip(problem)


@ours
def test_kernel_shows_our_upper_as_we_did(kind: str, stack: Layers) -> None:
    require("kernel")
    first, second = make_subject(kind, stack), Kernel(stack)
    assert isinstance(first, Fronted)
    check_handover(first, second)


@ours
def test_we_show_the_kernels_upper_as_it_did(kind: str, stack: Layers) -> None:
    require("kernel")
    second = make_subject(kind, stack)
    assert isinstance(second, Fronted)
    check_handover(Kernel(stack), second)


@ours
def test_the_two_make_the_same_tree(kind: str, stack: Layers, tmp_path: Path) -> None:
    require("kernel")
    first = make_subject(kind, stack)
    assert isinstance(first, Fronted)
    first.start()
    change_much(first)
    shown = comparable(first)
    first.stop()
    for name in ("upper2", "work2"):
        (tmp_path / name).mkdir()
    second = Kernel(Layers(stack.lowers, tmp_path / "upper2", tmp_path / "work2", stack.mountpoint))
    second.start()
    change_much(second)
    assert comparable(second) == shown


@ours
@pytest.mark.parametrize("ours_first", [True, False], ids=["ours-first", "kernel-first"])
def test_either_finds_the_data_that_the_other_left_below(kind: str, stack: Layers, ours_first: bool) -> None:
    require("kernel")
    stack = replace(stack, metacopy=True)
    mine, kernel = make_subject(kind, stack), Kernel(stack)
    assert isinstance(mine, Fronted)
    first, second = (mine, kernel) if ours_first else (kernel, mine)
    check_handover(first, second, leave_data_below, fetch_data)


def leave_data_below(view: Mounted) -> None:
    """Move and link files without their data."""
    view.chmod("etc/passwd", 0o600)
    view.rename("etc/passwd", "tmp/passwd")
    view.rename("var/log", "var/logs")
    view.rename("var/logs/a", "tmp/a")
    view.link("var/logs/b", "tmp/b")
    view.rename("usr/bin/dash", "usr/bin/dash2")
    view.chmod("l1", 0o640)
    view.rename("l2", "tmp/l2")
    view.link("l3", "tmp/l5")
    view.unlink("l4")
    files = [path for path in view.upper().rglob("*") if stat.S_ISREG(path.lstat().st_mode)]
    assert all("trusted.overlay.metacopy" in os.listxattr(path) for path in files)


def fetch_data(view: Mounted) -> None:
    """Move and write the same files."""
    view.rename("tmp/passwd", "var/passwd")
    view.append("var/passwd", b"+")
    view.rename("tmp/a", "a")
    for path in ("tmp/b", "usr/bin/dash2", "tmp/l2"):
        view.append(path, b"+")
    view.unlink("l1")


def check_handover(
    first: Mounted, second: Mounted, change: Change = change_much, change_again: Change | None = None
) -> None:
    """What `first` made is seen by `second`, changed by it, and seen by `first` again."""
    first.start()
    change(first)
    shown = tree(first.prefix)
    numbers = {path: identity(first, path) for path in shown}
    first.stop()
    second.start()
    assert tree(second.prefix) == shown
    files = [path for path in shown if shown[path].kind != "directory"]
    assert {path: identity(second, path) for path in files} == {path: numbers[path] for path in files}
    (change_again or change_more)(second)
    shown = tree(second.prefix)
    second.stop()
    first.start()
    assert tree(first.prefix) == shown
    first.stop()


def identity(view: Mounted, path: bytes) -> tuple[int, int]:
    """The inode number and the count of names."""
    status = os.lstat(os.path.join(view.prefix, path))
    return status.st_ino, status.st_nlink


def change_more(view: Mounted) -> None:
    """Work on with what somebody else left."""
    view.append("l4", b"+")
    view.unlink("l1")
    view.append("var/logs/b", b"+")
    view.rename("var/logs", "var/log2")
    view.rename("tmp/deep", "deep")
    view.append("deep/file", b"+")
    view.unlink("etc/passwd")
    view.unlink("var/cache/only")
    view.rmdir("var/cache")
    view.write("var/cache", b"a file now")
    view.unlink("tmp/link-to-new")
    view.mkdir("var/logs")


def comparable(view: Mounted) -> dict[bytes, builders.Seen]:
    """The tree without what depends on when it was made."""
    found = without_directory_times(tree(view.prefix))
    return {path: one._replace(mtime_ns=0) if one.mtime_ns != builders.MTIME else one for path, one in found.items()}
