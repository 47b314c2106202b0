"""Is what was fsynced there after a power failure, and is nothing there by half?

The upper is on a disk in a file. Whatever the filesystem has written to that disk is in the file, and what it only has
in its caches is not, so a copy of the file is what a power failure at that moment leaves. A copy is made whenever a
call that flushes returns. The filesystem writes nothing by itself in the meantime: it commits its journal once an hour.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from overlayfs_demo.linux import syscalls
from overlayfs_demo.overlay.node import DirNode, FileNode
from tests import builders
from tests.builders import file
from tests.conftest import unmount_all, why_no_mounts
from tests.contract.engine_subject import Engine
from tests.contract.subjects import Layers
from tests.places import run

MIB = 1 << 20
DATA = os.urandom(MIB)
OTHER = b"other data"
FLUSHING: dict[Any, tuple[str, ...]] = {os: ("fsync", "fdatasync"), syscalls: ("sync_filesystem",)}


class Disk:
    """A disk in a file, with an ext4 filesystem that holds an upper and a work directory."""

    def __init__(self, where: Path) -> None:
        self._where = where
        self._image = where / "image"
        self.failures: list[Path] = []
        builders.directories(where, "mounted")
        self._lowers = builders.layers(where, {"big": file(DATA, mode=0o640), "d": {"small": "1"}, "b": "2"})

    def make(self) -> str:
        """Make the filesystem and mount it. Return why that is impossible, or ""."""
        with self._image.open("wb") as image:
            image.truncate(24 * MIB)
        made = run("mkfs.ext4", "-q", "-F", self._image)
        # Without its own remedies for programs that do not fsync.
        done = run("mount", "-o", "loop,commit=3600,noauto_da_alloc", self._image, self._where / "mounted")
        if made.returncode or done.returncode:
            return f"no ext4 on a loop device here: {made.stderr}{done.stderr}"
        builders.directories(self._where / "mounted", "upper", "work", "merged", "beside")
        os.sync()
        return ""

    def fail(self) -> None:
        """Keep what a power failure now would leave."""
        copy = self._where / f"failure{len(self.failures)}"
        shutil.copyfile(self._image, copy)
        self.failures.append(copy)

    def commit(self) -> None:
        """Let another program fsync: the filesystem then commits all changes of metadata, with no regard to data."""
        fd = os.open(self._where / f"mounted/beside/{len(self.failures)}", os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    @contextmanager
    def view(self, *, metacopy: bool = False) -> Iterator[Engine]:
        mounted = self._where / "mounted"
        engine = Engine(
            Layers(self._lowers, mounted / "upper", mounted / "work", mounted / "merged", metacopy=metacopy)
        )
        engine.start()
        try:
            yield engine
        finally:
            engine.stop()

    @contextmanager
    def after(self, failure: Path, *, metacopy: bool = False) -> Iterator[Engine]:
        """Mount what a power failure left."""
        assert run("umount", self._where / "mounted").returncode == 0
        assert run("mount", "-o", "loop", failure, self._where / "mounted").returncode == 0
        with self.view(metacopy=metacopy) as engine:
            yield engine


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    if problem := why_no_mounts():
        pytest.skip(problem)
    if not shutil.which("mkfs.ext4"):
        pytest.skip("needs mkfs.ext4")
    made = Disk(tmp_path)
    try:
        if problem := made.make():
            pytest.skip(problem)
        for module, names in FLUSHING.items():
            for name in names:
                monkeypatch.setattr(module, name, _followed_by(made.fail, getattr(module, name)))
        yield made
    finally:
        unmount_all(str(tmp_path))


def _followed_by(then: Callable[[], None], call: Callable[..., Any]) -> Callable[..., Any]:
    def both(*arguments: Any) -> Any:
        result = call(*arguments)
        then()
        return result

    return both


def fsync(view: Engine, path: str) -> None:
    """Open a file for reading, and fsync it."""
    node = view.node(path)
    assert isinstance(node, FileNode)
    handle = view.overlay.open(node, os.O_RDONLY, view.caller)
    view.overlay.files.sync_file(node, handle, False)
    view.overlay.files.release(node, handle)


def fsync_directory(view: Engine, path: str) -> None:
    node = view.node(path)
    assert isinstance(node, DirNode)
    view.overlay.files.sync_directory(node)


def read(view: Engine, path: str) -> bytes:
    opened = view.open(path)
    try:
        return opened.read(2 * MIB)
    finally:
        opened.close()


def test_created_file_is_there_once_it_is_fsynced(disk: Disk) -> None:
    with disk.view() as view:
        view.write("d/new", OTHER)
        fsync(view, "d/new")
    with disk.after(disk.failures[-1]) as view:
        assert read(view, "d/new") == OTHER


def test_change_of_a_lower_file_is_there_once_it_is_fsynced(disk: Disk) -> None:
    with disk.view() as view:
        view.append("big", OTHER)
        fsync(view, "big")
    with disk.after(disk.failures[-1]) as view:
        assert read(view, "big") == DATA + OTHER


@pytest.mark.parametrize("metacopy", [False, True])
def test_copy_is_whole_or_not_there_at_every_power_failure(disk: Disk, metacopy: bool) -> None:
    with disk.view(metacopy=metacopy) as view:
        if metacopy:
            view.chmod("big", 0o600)
            disk.commit()
        view.open("big", os.O_RDWR).close()
        disk.commit()
    assert len(disk.failures) > 1
    for failure in disk.failures:
        with disk.after(failure, metacopy=metacopy) as view:
            assert read(view, "big") == DATA
            assert view.stat("big").mode & 0o777 == (0o600 if metacopy else 0o640)


def test_rename_is_there_once_the_directory_is_fsynced(disk: Disk) -> None:
    with disk.view() as view:
        view.rename("b", "d/moved")
        fsync_directory(view, "d")
    with disk.after(disk.failures[-1]) as view:
        assert read(view, "d/moved") == b"2"
        assert view.names() == [b"big", b"d"]


def test_mode_of_a_metacopy_is_there_once_a_reader_of_before_fsyncs(disk: Disk) -> None:
    with disk.view(metacopy=True) as view:
        node = view.node("big")
        assert isinstance(node, FileNode)
        handle = view.overlay.open(node, os.O_RDONLY, view.caller)
        view.chmod("big", 0o600)
        view.overlay.files.sync_file(node, handle, False)
        view.overlay.files.release(node, handle)
    assert disk.failures
    with disk.after(disk.failures[-1], metacopy=True) as view:
        assert view.stat("big").mode & 0o777 == 0o600
        assert read(view, "big") == DATA
