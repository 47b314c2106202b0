"""JSON text as the Go that built Docker 20.10 writes it."""

from __future__ import annotations

import json
import re
import unicodedata


def go_spelling(text: str) -> str:
    """JSON text of Python's json module, not limited to ASCII, with the escapes that Go's encoding/json writes.

    Where Go leaves a character as it is that a terminal would act on, it is escaped here: the value is the same.
    """
    text = text.replace("\u2028", r"\u2028").replace("\u2029", r"\u2029")
    # Half a surrogate pair is no character to Go.
    text = re.sub("[\ud800-\udfff]", "\ufffd", text)
    text = "".join(
        _escaped(character) if unicodedata.category(character) in ("Cc", "Cf") and character != "\n" else character
        for character in text
    )
    # Backslashes are matched in pairs, so that the b of \\b is not taken for a part of \b.
    return re.sub(r"\\[\\bf]", lambda match: {r"\b": r"\u0008", r"\f": r"\u000c"}.get(match[0], match[0]), text)


def _escaped(character: str) -> str:
    return json.dumps(character)[1:-1] if ord(character) > 0x7F else f"\\u{ord(character):04x}"
