"""In which lines do two texts differ?"""

from __future__ import annotations

import difflib
from collections.abc import Sequence


def text_lines(data: bytes) -> list[str] | None:
    """The lines of a text, each with its newline; None for what is no text (no UTF-8, or with NUL in it)."""
    try:
        return None if b"\0" in data else data.decode().splitlines(keepends=True)
    except UnicodeDecodeError:
        return None


def unified(before: Sequence[str], after: Sequence[str], old: str, new: str) -> list[str]:
    """The lines that differ, as diff -u shows them, each with its newline; `old` and `new` are what is compared."""
    lines = difflib.unified_diff(before, after, old, new)
    return [line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines]
