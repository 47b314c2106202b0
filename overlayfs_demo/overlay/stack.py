"""The directories to overlay, and the options."""

from __future__ import annotations

import os

from overlayfs_demo.named_tuple import NamedTuple
from overlayfs_demo.overlay.idmap import AS_ON_DISK, Ids

# The part of a title that a label shows, in characters.
_LONGEST_TITLE = 40


class Stack(NamedTuple):
    """The layers and options of an overlay, see `factory.open_overlay`.

    `lowers` are paths, topmost first, at least one. `upper` and `work` are both set, on one filesystem, or are
    both None for a read-only view. `user_xattrs` keeps the private attributes under `user.` instead of `trusted.`.
    `image_whiteouts` also recognizes the image format's zero-length `.wh.NAME` files in lowers. `volatile` gives up
    durability: nothing waits for the disk, and the work directory is marked, see `incompat`. `index` keeps the
    names of a hard-linked lower file together when it is copied up. `metacopy` copies only metadata up as long as
    only metadata is changed. `data_only` are layers below the lowers whose names are not visible, but which supply
    the data of metacopies. `ids` maps the owners of files for the view, see `idmap`. `read_only` reads the upper as
    the topmost layer, because another mount may be using it. `titles` say what created each of the lowers, such as a
    row of an image's history; "", or no titles at all, if that is unknown. `time_machine` adds a hidden directory of
    the layers, see `layer_snapshots`. `copyup_max` and `copyup_warn` are limits for the data of one copy-up, in bytes,
    see `copyup_limits`. In a `rehearsal` the topmost of `lowers` is the upper of another mount, whose behaviour is
    tried out: events and limits are about the cost of a copy-up there, and a change of metadata copies no data,
    see `forecast`. `flags` are MS_* flags of mount(2); those for access times apply to the upper, and 0 is relatime.
    """

    lowers: tuple[bytes, ...]
    upper: bytes | None = None
    work: bytes | None = None
    user_xattrs: bool = False
    image_whiteouts: bool = True
    volatile: bool = False
    index: bool = True  # type: ignore[assignment]  # hides tuple.index
    metacopy: bool = False
    data_only: tuple[bytes, ...] = ()
    ids: Ids = AS_ON_DISK
    read_only: bool = False
    titles: tuple[str, ...] = ()
    time_machine: bool = False
    copyup_max: int | None = None
    copyup_warn: int | None = None
    rehearsal: bool = False
    flags: int = 0

    def labels(self) -> list[str]:
        """Return the labels of the lowers, then of the data-only layers, counted from the bottom as in an image."""
        paths = self.lowers + self.data_only
        titles = (*self.titles, *[""] * len(paths))
        return [
            "upper"
            if self.rehearsal and not place
            else label(len(paths) - place, title or os.fsdecode(os.path.basename(path)))
            for place, (path, title) in enumerate(zip(paths, titles, strict=False))
        ]


def label(number: int, title: str) -> str:
    """Return the label of a layer, `layer N (TITLE)`. A long title is cut."""
    return f"layer {number} ({title if len(title) <= _LONGEST_TITLE else title[: _LONGEST_TITLE - 1] + '…'})"
