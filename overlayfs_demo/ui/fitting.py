"""How a table fits a terminal: which columns it keeps, and how wide they are.

The rule goes by the title of a column, because a title means the same in every table. The most important columns come
first; a column that no longer fits is left out. Cells that may be cut share the room that is left.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from overlayfs_demo.ui.text import cut_end, cut_middle

# Columns between two cells. Docker has 3, which a narrow terminal cannot afford.
PADDING = 2


@dataclass(frozen=True, slots=True)
class Fit:
    """How a column gives way: less important ones (a lower number) go first.

    `cut` shortens a cell to a number of columns, and leaves it at least `least`; None if a part of it would be of no
    use, as with a number.
    """

    importance: int
    cut: Callable[[str, int], str] | None = None
    least: int = 0

    def narrowest(self, title: str, natural: int) -> int:
        """Return the smallest width of a column whose widest cell has `natural` columns; its title stays whole."""
        return natural if self.cut is None else min(natural, max(self.least, len(title)))

    def cell(self, text: str, width: int) -> str:
        """Return the text of a cell in at most `width` columns."""
        return (self.cut or cut_end)(text, width)


# A column that is not in the list below.
OTHER = Fit(5, cut_end, 12)
# The end of a name or a path says most, the beginning of a text does.
BY_TITLE: Mapping[str, Fit] = {
    "REPOSITORY": Fit(9, cut_middle, 16),
    "NAME": Fit(9, cut_middle, 12),
    "FILE": Fit(9, cut_middle, 20),
    "PATH": Fit(9, cut_middle, 20),
    "CREATED BY": Fit(9, cut_end, 20),
    "CONTAINER ID": Fit(9, cut_middle, 12),
    "STATUS": Fit(9),
    "LAYER": Fit(9, cut_end, 12),
    "SAYS": Fit(9, cut_end, 16),
    "IMAGE": Fit(8, cut_middle, 10),
    "SIZE": Fit(8),
    "TAG": Fit(8, cut_end, 8),
    "WASTED": Fit(8),
    "MADE BY": Fit(8, cut_end, 16),
    "USED BY": Fit(8, cut_end, 16),
    "WHAT": Fit(8),
    "": Fit(8, cut_end, 16),
    "IMAGE ID": Fit(7),
    "DIFF ID": Fit(7),
    "SHIPPED BY": Fit(7),
    "HIDDEN BY": Fit(7, cut_end, 12),
    "DELETED BY": Fit(7),
    "MODE": Fit(7),
    "ADDED": Fit(6),
    "CHANGED": Fit(6),
    "DELETED": Fit(6),
    "SHARED SIZE": Fit(6),
    "UNIQUE SIZE": Fit(6),
    "MOUNTPOINT": Fit(6, cut_middle, 20),
    "WHITEOUTS": Fit(5),
    "LIVE": Fit(5),
    "OWNER": Fit(5),
    "UPPER": Fit(5),
    "CREATED": Fit(4),
    "CREATED AT": Fit(4),
    "MODIFIED": Fit(4),
    "CONTAINERS": Fit(4),
    "COMMAND": Fit(4, cut_end, 10),
    "CHAIN ID": Fit(3),
    "NAMES": Fit(3, cut_middle, 12),
    "DIGEST": Fit(2),
    "LOCAL VOLUMES": Fit(1),
    "GROUP": Fit(3),
    "PID": Fit(3),
    "LINKS": Fit(2),
    "MEMORY": Fit(2),
    "CPU": Fit(1),
    "COMMENT": Fit(1, cut_end, 12),
}


def fitted_widths(titles: Sequence[str], naturals: Sequence[int], fits: Sequence[Fit], width: int) -> Mapping[int, int]:
    """Return the columns that fit in a line of `width` columns, each with its width, in their order.

    `naturals` are the widths that the columns would need. The most important column is always there, if need be cut.
    """
    narrowest = [fit.narrowest(title, natural) for fit, title, natural in zip(fits, titles, naturals, strict=True)]
    first, *others = sorted(range(len(fits)), key=lambda column: -fits[column].importance)
    kept = [first]
    room = width - narrowest[first]
    for column in others:
        needed = narrowest[column] + PADDING
        if needed <= room:
            kept.append(column)
            room -= needed
    made = {column: min(narrowest[column], width) for column in sorted(kept)}
    while room > 0 and (short := [column for column in made if made[column] < naturals[column]]):
        made[min(short, key=lambda column: (made[column], -fits[column].importance))] += 1
        room -= 1
    return made
