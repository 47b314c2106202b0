"""JSON as Go's encoding/json writes it, for what docker writes."""

from __future__ import annotations

import json


def go_json(value: object) -> bytes:
    """Return the JSON of a value: compact, and safe inside HTML."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    for special in "&<>\u2028\u2029":
        text = text.replace(special, f"\\u{ord(special):04x}")
    return text.encode("utf-8", "surrogatepass")
