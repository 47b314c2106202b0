"""The tree as a person has opened it, and its lines from the top down.

It reads nothing: it says which directories are missing, and is given their listings.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from overlayfs_demo.browse.census import Found, Sums, joined
from overlayfs_demo.browse.depths import Entry

ROOT = b"/"


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the tree: a path and how deep it is, or a `note` in place of names, such as an error.

    `size` is in bytes: of a directory, the sum of what is in it; None until that is counted.
    """

    path: bytes
    depth: int
    entry: Entry | None
    size: int | None = None
    is_open: bool = False
    note: str = ""


@dataclass(slots=True)
class Tree:
    """The open directories, the choice of what is shown, and the listings that were read so far.

    A listing may be a sentence that says why there is none. With `found`, only what a filter matches is shown, and the
    directories on the way.
    """

    opened: set[bytes] = field(default_factory=lambda: {ROOT})
    only_changes: bool = False
    by_size: bool = False
    found: Found | None = None
    listings: dict[bytes, Sequence[Entry] | str] = field(default_factory=dict)
    sums: Mapping[bytes, Sums] = field(default_factory=dict)
    counted: bool = False
    _wanted: frozenset[bytes] | None = None

    def filter(self, found: Found | None) -> None:
        """Show only the paths that were found, with the directories on the way to them; None shows everything."""
        self.found = found
        self._wanted = None
        if found is not None:
            on_the_way = {above for path in found.paths for above in above_all(path)}
            self._wanted = frozenset(found.paths) | on_the_way
            self.opened |= on_the_way

    def toggle(self, path: bytes) -> None:
        """Open or close a directory."""
        self.opened ^= {path}

    def close_all(self) -> None:
        """Close every directory except the root."""
        self.opened = {ROOT}

    def missing(self) -> list[bytes]:
        """Return the directories that are open and shown, but not read yet."""
        return [path for path in self._open_directories() if path not in self.listings]

    def closed(self) -> list[bytes]:
        """Return the directories that are shown and not open."""
        return [line.path for line in self.lines() if line.entry and line.entry.is_directory and not line.is_open]

    def lines(self) -> list[Line]:
        """Return the lines from the top down."""
        found: list[Line] = []
        # Not recursive, because a tree may be thousands of directories deep.
        levels = [iter(self._inside(ROOT, 0))]
        while levels:
            line = next(levels[-1], None)
            if line is None:
                levels.pop()
                continue
            found.append(line)
            if line.is_open:
                levels.append(iter(self._inside(line.path, line.depth + 1)))
        return found

    def _open_directories(self) -> Iterator[bytes]:
        yield ROOT
        yield from (line.path for line in self.lines() if line.is_open)

    def _inside(self, directory: bytes, depth: int) -> list[Line]:
        listing = self.listings.get(directory)
        if listing is None:
            return [Line(directory, depth, None, note="reading…")]
        if isinstance(listing, str):
            return [Line(directory, depth, None, note=listing)]
        lines = [
            self._line(joined(directory, entry.name), depth, entry)
            for entry in listing
            if entry.kind is not None or not self.only_changes
        ]
        if self._wanted is not None:
            lines = [line for line in lines if line.path in self._wanted]
        if self.by_size:
            lines.sort(key=lambda line: -(line.size or 0))
        if not lines and depth == 0:
            return [Line(directory, depth, None, note=self._nothing())]
        return lines

    def _nothing(self) -> str:
        if self._wanted is not None:
            return "nothing matches the filter"
        return "this layer changes nothing" if self.only_changes else "empty"

    def _line(self, path: bytes, depth: int, entry: Entry) -> Line:
        if not entry.is_directory:
            return Line(path, depth, entry, entry.size)
        return Line(path, depth, entry, self._sum(path, entry), path in self.opened)

    def _sum(self, path: bytes, entry: Entry) -> int | None:
        if not self.counted:
            return None
        sums = self.sums.get(path, Sums())
        return sums.own if self.only_changes and not entry.is_deleted else sums.live


def above_all(path: bytes) -> Iterator[bytes]:
    """Yield the directories above a path, the root last."""
    while path != ROOT:
        path = path.rpartition(b"/")[0] or ROOT
        yield path
