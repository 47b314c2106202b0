"""A picture of several trees side by side."""

from __future__ import annotations

from collections.abc import Mapping

from overlayfs_demo.errors import printable
from overlayfs_demo.tour.scan import Kind, ScanEntry, Tree
from overlayfs_demo.ui.text import cut_end, human_size

# The maximal number of characters in a line, on a terminal that has as many.
WIDTH = 80
_GAP = "  "
_ABSENT = "-"


def picture(trees: Mapping[str, Tree], width: int = WIDTH) -> list[str]:
    """Return the lines of a table with a line for each path and a column for each tree, at most `width` wide.

    The first line has the names of the trees. The redirects are listed below the table.
    """
    paths = sorted({path for tree in trees.values() for path in tree}, key=lambda path: path.split("/"))
    labels = [_label(path, any(_is_directory(tree.get(path)) for tree in trees.values())) for path in paths]
    rows = [("", *trees)]
    for path, label in zip(paths, labels, strict=True):
        rows.append((label, *(_cell(tree.get(path)) for tree in trees.values())))
    if not paths:
        rows.append(("", *("(empty)" for _ in trees)))
    return _lines(rows, width) + [
        cut_end(f'{name}/{printable(path)} has the mark redirect="{entry.redirect}"', width)
        for name, tree in trees.items()
        for path, entry in sorted(tree.items())
        if entry.redirect
    ]


def _is_directory(entry: ScanEntry | None) -> bool:
    return entry is not None and entry.kind is Kind.DIRECTORY


def _label(path: str, directory: bool) -> str:
    *above, name = path.split("/")
    return "  " * len(above) + printable(name) + ("/" if directory else "")


def _cell(entry: ScanEntry | None) -> str:
    if entry is None:
        return _ABSENT
    match entry.kind:
        case Kind.FILE:
            executable = ", x" if entry.mode & 0o111 else ""
            return human_size(entry.size) + executable + (f", {entry.links} links" if entry.links > 1 else "")
        case Kind.DIRECTORY:
            marks = [word for word, has in (("opaque", entry.opaque), ("redirect", entry.redirect)) if has]
            return ", ".join(["dir", *marks])
        case Kind.SYMLINK:
            return f"-> {printable(entry.target)}"
        case Kind.WHITEOUT:
            return "whiteout"
        case Kind.OTHER:
            return "special file"


def _lines(rows: list[tuple[str, ...]], most: int) -> list[str]:
    """Return the rows as lines.

    The first column is as wide as it needs to be. The columns of the trees have the same width, and are cut if they
    do not fit.
    """
    columns = len(rows[0]) - 1
    first = min(max(len(row[0]) for row in rows), most // 3)
    widest = max(len(cell) for row in rows for cell in row[1:])
    # A minimal width, so that the columns of small pictures also line up with each other.
    width = min(max(widest, 14), (most - first) // columns - len(_GAP))
    lines = []
    for row in rows:
        cells = [cut_end(row[0], first).ljust(first), *(cut_end(cell, width).ljust(width) for cell in row[1:])]
        lines.append(_GAP.join(cells).rstrip())
    return lines
