"""Plain output of commands: text and JSON on stdout, notes on stderr."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence

from overlayfs_demo.ui.text import filled

PROGRAM = "overlayfs-demo"
# Columns of a terminal that does not know how many it has.
_WIDTH = 80


def put(text: str) -> None:
    """Print text, which may hold bytes that are not UTF-8 (as surrogates)."""
    sys.stdout.buffer.write(text.encode("utf-8", "surrogateescape"))
    sys.stdout.flush()


def put_json(rows: Sequence[Mapping[str, object]]) -> None:
    """Print one JSON object per line."""
    import json  # Neither the help nor the version needs it.

    put("".join(json.dumps(row) + "\n" for row in rows))


def can_place_cursor() -> bool:
    """Return whether the terminal can show a picture that changes, as TERM tells; see term(7)."""
    return os.environ.get("TERM", "dumb") not in ("dumb", "unknown")


def columns() -> int:
    """Return the columns of the terminal as shutil.get_terminal_size does, whose import every start would wait for.

    A user may set COLUMNS. A terminal that does not know its width counts as 80 columns wide, and so does a file.
    """
    try:
        chosen = int(os.environ.get("COLUMNS", ""))
        if chosen > 0:
            return chosen
    except ValueError:
        pass
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns or _WIDTH
    except (AttributeError, ValueError, OSError):  # There is no stdout, it is closed, or it is not a terminal.
        return _WIDTH


def note(text: str) -> None:
    """Print one line on stderr: what a person should know beside the output."""
    put_error(f"{PROGRAM}: {text}")


def put_error(line: str) -> None:
    """Print a line on stderr; a terminal gets it in several lines, broken at words, if it is too long for one."""
    if sys.stderr.isatty():
        line = filled(line, os.get_terminal_size(sys.stderr.fileno()).columns or _WIDTH)
    print(line, file=sys.stderr)
