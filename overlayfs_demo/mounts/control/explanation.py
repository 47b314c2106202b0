"""How is an explanation of a path written as JSON: by a daemon that is asked for one, and by `which`?"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from overlayfs_demo.overlay.layer_statements import Statement
from overlayfs_demo.overlay.merge import Says
from overlayfs_demo.overlay.provenance import Explanation

_MOST = 1 << 63


def to_json(explanation: Explanation) -> dict[str, Any]:
    """The explanation's fields. What there is nothing to say of is None."""
    return {"layers": [_fields(one) for one in explanation.statements], "why": explanation.why}


def _fields(one: Statement) -> dict[str, Any]:
    return {
        "layer": one.layer,
        "says": one.says.value,
        "wins": one.wins,
        "mode": one.mode,
        "size": one.size,
        "target": None if one.target is None else os.fsdecode(one.target),
        "hidden_by": one.hidden_by or None,
        "hidden_at": os.fsdecode(one.hidden_at) or None,
        "deleted_at": os.fsdecode(one.deleted_at) or None,
        "stored_at": None if one.mode is None else os.fsdecode(one.stored_at),
    }


def from_json(fields: Mapping[str, Any]) -> Explanation:
    """The explanation with these fields. Raises KeyError, TypeError or ValueError if they are not as `to_json` writes
    them: the daemon may be of another version, or anybody's program."""
    return Explanation(tuple(map(_statement, fields["layers"])))


def _statement(fields: Mapping[str, Any]) -> Statement:
    says, mode = Says(fields["says"]), _number(fields, "mode", 1 << 16)
    if mode is None and says in (Says.FILE, Says.METACOPY):
        raise ValueError("a file without a mode")
    return Statement(
        str(fields["layer"]),
        says,
        bool(fields["wins"]),
        mode,
        None if mode is None else _number(fields, "size", _MOST),
        None if fields["target"] is None else _bytes(fields, "target"),
        os.fsdecode(_bytes(fields, "hidden_by")),
        _bytes(fields, "hidden_at"),
        _bytes(fields, "deleted_at"),
        _bytes(fields, "stored_at"),
    )


def _number(fields: Mapping[str, Any], name: str, limit: int) -> int | None:
    value = fields[name]
    if value is not None and not (isinstance(value, int) and 0 <= value < limit):
        raise ValueError(f"{name} is no such number")
    return value


def _bytes(fields: Mapping[str, Any], name: str) -> bytes:
    value = fields[name]
    if value is not None and not isinstance(value, str):
        raise TypeError(f"{name} is no text")
    return os.fsencode(value or "")
