"""A disk whose power can be cut: a filesystem in a file, and copies of that file as the power would leave it.

What a program has written is in the page cache of the mounted filesystem, and not yet in the file, which holds only
what was synced. The filesystem writes nothing by itself meanwhile, because its commit interval is long. A cut is one of
two extremes: nothing but what was synced is on the disk, or all names and records of files are, but none of the data
that was not synced. `data=ordered` keeps files from showing other files' old data, so they are empty or full of zeros.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from overlayfs_demo.linux import mounting

_SIZE = 6 << 20
# noauto_da_alloc: the filesystem must not guess that a renamed file is to be synced.
_OPTIONS = "loop,commit=600,noauto_da_alloc,nodiscard"
# Before each of these, the power may be cut: `sys.addaudithook`. Changes below an open directory do not count, because
# a layer takes thousands of them.
_CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link")


class Disk:
    """The file of a filesystem, and where it is mounted."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.file = base / "disk"
        self.root = base / "disk.d"
        with self.file.open("wb") as file:
            file.truncate(_SIZE)
        # Nothing is initialised later, in the background.
        subprocess.run(
            ["mkfs.ext4", "-qF", "-b1024", "-J", "size=1", "-E", "lazy_itable_init=0", self.file], check=True
        )

    @contextmanager
    def powered(self) -> Iterator[Path]:
        """Mount it; its root is the disk's root."""
        with _mounted(self.file, self.root):
            yield self.root

    def cut(self, number: int, *, names_are_kept: bool) -> Path:
        """Copy it as a cut of the power would leave it now."""
        if names_are_kept:
            # Commits the journal, which has the names and inodes of all files, and not the data of any other.
            with (self.root / ".journal").open("wb") as file:
                file.write(b"%d" % number)
                file.flush()
                os.fsync(file.fileno())
        copy = self.base / f"cut{number}"
        with self.file.open("rb") as source, copy.open("wb") as target:
            shutil.copyfileobj(source, target)
        return copy


@contextmanager
def _mounted(file: Path, root: Path) -> Iterator[None]:
    root.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "ext4", "-o", _OPTIONS, file, root], check=True)
    try:
        yield
    finally:
        mounting.unmount(os.fsencode(root))


_on_change: Callable[[], None] | None = None


def _audit(event: str, words: tuple[object, ...]) -> None:
    if _on_change is not None and event in _CHANGES and words[-1] == -1:
        _on_change()


sys.addaudithook(_audit)


def cuts(disk: Disk, act: Callable[[], object], *, names_are_kept: bool) -> Iterator[tuple[Path, bool]]:
    """Do something on the powered disk. Each different disk that a cut of the power leaves, and whether it came after.

    Each is mounted in its turn, at the path of the disk, which must not be powered any more.
    """
    global _on_change
    copies: list[Path] = []
    seen: set[bytes] = set()

    def cut() -> None:
        global _on_change
        _on_change = None
        copy = disk.cut(len(copies), names_are_kept=names_are_kept)
        with copy.open("rb") as file:
            content = hashlib.file_digest(file, "md5").digest()
        if content in seen:
            copy.unlink()
        else:
            seen.add(content)
            copies.append(copy)
        _on_change = cut

    with disk.powered():
        _on_change = cut
        try:
            act()
        finally:
            _on_change = None
        last = disk.cut(len(copies), names_are_kept=names_are_kept)
    for copy in (*copies, last):
        with _mounted(copy, disk.root):
            yield disk.root, copy == last
        copy.unlink()
