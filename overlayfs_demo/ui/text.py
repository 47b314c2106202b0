"""Numbers as people read them, and text cut to a width.

Names are escaped by `errors.printable`: it is not here because the folders below this one write messages, too.
"""

from __future__ import annotations

import unicodedata

_UNITS = ("B", "kB", "MB", "GB", "TB", "PB", "EB")


def human_size(size: float, digits: int = 3) -> str:
    """A number of bytes as Docker prints it (go-units, HumanSize): three digits, powers of 1000."""
    for unit in _UNITS:
        if size < 1000 or unit == _UNITS[-1]:
            return f"{size:.{digits}g}{unit}"
        size /= 1000
    raise AssertionError("the last unit takes any size")


def plural(number: int, noun: str, several: str = "") -> str:
    """A count with its noun: `1 file`, `2 files`; `several` is a plural that does not just add -s (`entries`)."""
    return f"{number} {noun if number == 1 else several or noun + 's'}"


def percentage(part: float, whole: float, digits: int = 1) -> str:
    """The share of `part` in `whole`, such as `12.5%`, with this many digits after the point; `0%` if `whole` is 0.

    Only all of it is `100.0%`, and only nothing is `0.0%`: what would round to them is `>99.9%` or `<0.1%`.
    """
    if not whole:
        return "0%"
    step, rounded = 10**-digits, f"{part * 100 / whole:.{digits}f}"
    if part > 0 and rounded == f"{0:.{digits}f}":
        return f"<{step:.{digits}f}%"
    if part < whole and rounded == f"{100:.{digits}f}":
        return f">{100 - step:.{digits}f}%"
    return f"{rounded}%"


def columns(text: str) -> int:
    """The columns that a text takes on a terminal: an East Asian wide character takes two.

    So Docker counts (docker/cli cli/command/formatter/displayutils.go). A combining mark takes none; it counts as one.
    """
    return len(text) if text.isascii() else sum(map(_character_columns, text))


def _character_columns(character: str) -> int:
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def filled(line: str, width: int, indent: str = "") -> str:
    """A line of prose, broken at blanks into lines of at most `width` columns; a longer word is not broken.

    All lines but the first begin with `indent`.
    """
    lines: list[str] = []
    for word in line.split(" "):
        if lines and columns(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(indent + word if lines else word)
    return "\n".join(lines)


def cut_end(text: str, width: int) -> str:
    """`text`, or its beginning and an ellipsis, in at most `width` columns, which must be 1 or more."""
    return text if columns(text) <= width else _beginning(text, width - 1) + "…"


def cut_middle(path: str, longest: int) -> str:
    """A path of at most `longest` columns: a longer one loses some in the middle, because its end says most."""
    if columns(path) <= longest:
        return path
    head = (longest - 1) // 3
    return f"{_beginning(path, head)}…{_beginning(path[::-1], longest - 1 - head)[::-1]}"


def _beginning(text: str, width: int) -> str:
    """As much of the beginning of a text as fits in so many columns."""
    for index, character in enumerate(text):
        width -= _character_columns(character)
        if width < 0:
            return text[:index]
    return text
