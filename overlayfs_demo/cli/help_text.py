"""The form of help: at most 80 columns, prose wrapped at words, and indented lines as they are."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from itertools import groupby

from overlayfs_demo.ui.console import columns

_WIDTH = 80
# argparse leaves so many columns free at the right.
_MARGIN = 2


class HelpFormatter(argparse.HelpFormatter):
    """Formats help for the terminal, but no wider than a page of a book."""

    def __init__(self, prog: str, *_: object, **__: object) -> None:
        """`prog` is the name of the program; argparse's other settings are ours."""
        super().__init__(prog, width=min(columns(), _WIDTH) - _MARGIN)

    def _split_lines(self, text: str, width: int) -> list[str]:
        return filled(text, width)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n".join(indent + line for is_prose, lines in blocks(text) for line in _lines(is_prose, lines, width))


def _lines(is_prose: bool, lines: Sequence[str], width: int) -> Sequence[str]:
    return filled(" ".join(lines), width) if is_prose else lines


def filled(text: str, width: int) -> list[str]:
    """Return a paragraph in lines of at most `width` columns; an option or a path is not broken."""
    # Imported only here: its regular expressions take a while to compile, and most commands print no help.
    import textwrap

    return textwrap.wrap(text, max(width, 1), break_long_words=False, break_on_hyphens=False)


def blocks(text: str) -> Iterator[tuple[bool, list[str]]]:
    """Return the parts of a text: whether each is a paragraph, and its lines.

    The lines of a paragraph may be filled. Indented and empty lines stay as they are.
    """
    for is_prose, lines in groupby(text.splitlines(), key=lambda line: line[:1] not in ("", " ")):
        yield is_prose, list(lines)
