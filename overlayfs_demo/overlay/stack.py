"""Which directories are overlaid, and how?"""

from __future__ import annotations

import os
from dataclasses import dataclass

from overlayfs_demo.overlay.idmap import AS_ON_DISK, Ids

# What of a title stands in a label, in characters.
_LONGEST_TITLE = 40


@dataclass(frozen=True, slots=True)
class Stack:
    """What to overlay, for an `engine.Overlay`.

    `lowers` are paths, topmost first, at least one. `upper` and `work` come together, on one
    filesystem, or are both None for a read-only view. `user_xattrs` keeps the private attributes
    under `user.` instead of `trusted.`. `image_whiteouts` also understands the image format's
    zero-length `.wh.NAME` files in lowers. `volatile` gives up durability: nothing waits for the
    disk, and the work directory is marked, see `incompat`. `index` keeps the names of a hard-linked
    lower file together when it is copied up. `metacopy` copies only metadata up as long as only that
    is changed. `data_only` are layers below the lowers, in which nothing is seen, but the data of
    metacopies is found. `ids` says to whom the files belong in the view, see `mapped`. `read_only`
    looks at an upper that may be in use by another mount: it is read as the topmost layer. `titles` say what
    made each of the lowers, such as a row of an image's history; "", or none at all, if that is unknown.
    `time_machine` adds a hidden directory of the layers, see `timemachine`.
    `copyup_max` and `copyup_warn` are limits for the data of one copy-up, in bytes, see `limits`. In a `rehearsal`
    the topmost of `lowers` is the upper of another mount, for which all this is tried out: events and limits are
    about what a copy-up costs there, and no data is copied for a change of metadata, see `forecast`.
    `flags` are the MS_* flags of mount(2), of which those about access times count in the upper; 0 is relatime.
    """

    lowers: tuple[bytes, ...]
    upper: bytes | None = None
    work: bytes | None = None
    user_xattrs: bool = False
    image_whiteouts: bool = True
    volatile: bool = False
    index: bool = True
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
        """How messages name the lowers, and then the data-only layers: counted from the bottom, as an image does."""
        paths = self.lowers + self.data_only
        titles = (*self.titles, *[""] * len(paths))
        return [
            "upper"
            if self.rehearsal and not place
            else f"layer {len(paths) - place} ({_short(title) or os.fsdecode(os.path.basename(path))})"
            for place, (path, title) in enumerate(zip(paths, titles, strict=False))
        ]


def _short(title: str) -> str:
    return title if len(title) <= _LONGEST_TITLE else title[: _LONGEST_TITLE - 1] + "…"
