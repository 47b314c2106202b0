"""Lowers that many tries share, each with an upper of its own: nothing ever changes a lower."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from overlayfs_demo.linux import syscalls
from overlayfs_demo.linux.libc import AT_FDCWD
from tests import builders
from tests.contract.engine_subject import Engine
from tests.contract.subjects import Kernel, Layers
from tests.overlay.changes import LOWER, UPPER
from tests.overlay.shown import FRESH, Shown, seen_by_kernel

# Whether the index is used, and whether changes of metadata copy no data.
OPTIONS = [(True, False), (True, True), (False, False), (False, True)]


class Ground:
    """The layers that `changes` are made in, with these two options of the mount."""

    def __init__(self, where: Path, *, index: bool, metacopy: bool) -> None:
        builders.directories(where, "lowers", "tries")
        self._where = where / "tries"
        self._lowers = builders.layers(where / "lowers", LOWER)
        self.index = index
        self._metacopy = metacopy
        self._number = count()

    @contextmanager
    def fresh(self) -> Iterator[Engine]:
        """Yield a view with a new upper. It is closed in the end, unless that has been done."""
        above = self._where / str(next(self._number))
        builders.directories(above, "upper", "work", "merged")
        builders.fill(os.fsencode(above / "upper"), UPPER)
        layers = Layers(
            self._lowers, above / "upper", above / "work", above / "merged", index=self.index, metacopy=self._metacopy
        )
        view = Engine(layers)
        view.start()
        try:
            yield view
        finally:
            view.stop()
            shutil.rmtree(above)


def shown_by_kernel(view: Engine) -> Shown:
    """Return what the kernel's overlayfs shows of the same layers. Nothing else may have them mounted."""
    kernel = Kernel(view.layers)
    kernel.start()
    try:
        return seen_by_kernel(kernel.prefix)
    finally:
        kernel.stop()


def left_in_work(view: Engine) -> list[str]:
    """Return the names in the work directory that no mount needs: what is staged, and copies without a name."""
    assert view.layers.work is not None
    left = [] if view.work_is_empty() else [path.name for path in (view.layers.work / "work").iterdir()]
    index = view.layers.work / "index"
    if not index.exists():
        return left
    tree = view.overlay._tree
    assert tree.index is not None
    for path in index.iterdir():
        entry = tree.index.find(bytes.fromhex(path.name), path.lstat().st_mode & 0o170000)
        if entry is None or not tree.index.links(entry, None).view:
            left.append(path.name)
    return left


def on_disk(view: Engine) -> list[object]:
    """Return what the upper and the index hold, from which everything follows that a later mount shows."""
    assert view.layers.upper is not None and view.layers.work is not None
    found: list[object] = []
    for root in (view.layers.upper, view.layers.work / "index"):
        for path, seen in sorted(builders.tree(root).items()) if root.exists() else ():
            real = os.fsencode(root / os.fsdecode(path))
            time = min(seen.mtime_ns, FRESH)
            # Not the owner's view of it, but what no other attribute tells: its links and its inode flags.
            attributes = syscalls.statx(AT_FDCWD, real).attributes
            found.append((path, seen._replace(mtime_ns=time), os.lstat(real).st_nlink, attributes))
    return found
