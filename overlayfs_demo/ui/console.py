"""Plain output of commands: text and JSON on stdout, notes on stderr."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence

PROGRAM = "overlayfs-demo"


def put(text: str) -> None:
    """Print text, which may hold bytes that are not UTF-8 (as surrogates)."""
    sys.stdout.buffer.write(text.encode("utf-8", "surrogateescape"))
    sys.stdout.flush()


def put_json(rows: Sequence[Mapping[str, object]]) -> None:
    """Print one JSON object per line."""
    put("".join(json.dumps(row) + "\n" for row in rows))


def can_place_cursor() -> bool:
    """Return whether the terminal can show a picture that changes, as TERM tells; see term(7)."""
    return os.environ.get("TERM", "dumb") not in ("dumb", "unknown")


def note(text: str) -> None:
    """Print one line on stderr: what a person should know beside the output."""
    print(f"{PROGRAM}: {text}", file=sys.stderr)
