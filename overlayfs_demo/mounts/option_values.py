"""Values of mount options: reading them from a word, and writing them. Each reader raises UsageError."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

from overlayfs_demo.errors import UsageError
from overlayfs_demo.mounts.option_draft import Word
from overlayfs_demo.mounts.option_paths import escape_path, split_escaped, unescape
from overlayfs_demo.overlay.idmap import Range, parse_ranges

# Powers of 1024, as docker's flags and tmpfs(5) have them.
_SIZE = re.compile(r"(\d+(?:\.\d+)?)([kmgtp]?)(?:i?b)?", re.IGNORECASE)
_SECONDS = re.compile(r"\d+(\.\d+)?")
# 2**32 - 1 is no id: in chown(2) it means "leave it".
_NO_ID = 2**32 - 1


def nonempty(word: Word) -> str:
    """The value, which must be there."""
    if word.value is None:
        raise word.unknown()
    if not word.value:
        raise UsageError(f"{word.text} has an empty path", "name a directory")
    return word.value


def path(word: Word) -> bytes:
    """A single path."""
    return unescape(nonempty(word))


def layers(value: str) -> tuple[tuple[bytes, ...], tuple[bytes, ...]]:
    """The layers of a `lowerdir=` list, and the data-only ones. Both are empty for an empty list.

    Layers are separated by one colon. The data-only ones come last, each after two colons.
    """
    before_data, *data = split_escaped(value, "::")
    layered = split_escaped(before_data, ":")
    if value and ("" in layered + data or any(len(split_escaped(path, ":")) > 1 for path in data)):
        raise UsageError(
            f"lowerdir={value} has an empty path, or a layer after a data-only one",
            r"separate layers with one colon, put :: before each data-only layer, write \: for a colon in a path",
        )
    return tuple(unescape(path) for path in layered if path), tuple(map(unescape, data))


def size(word: Word) -> int:
    """A number of bytes, which may have a unit: 4096, 10M, 1.5G."""
    match = _SIZE.fullmatch(word.value or "")
    if match is None:
        raise word.wrong("use a size such as 4096, 10M or 1.5G (powers of 1024)")
    return int(float(match[1]) * 1024 ** ("", *"kmgtp").index(match[2].lower()))


def seconds(word: Word) -> float:
    """A time in seconds."""
    if not _SECONDS.fullmatch(word.value or ""):
        raise word.wrong("use seconds, such as timeout=1.5")
    return float(word.value or "")


def text(word: Word) -> str:
    """Any text; "" if there is no value."""
    return os.fsdecode(unescape(word.value or ""))


def escape_text(value: str) -> str:
    """The inverse of `text`."""
    return escape_path(os.fsencode(value))


def identity(word: Word) -> int:
    """A user or group ID."""
    value = word.value or ""
    if value.isascii() and value.isdigit() and int(value) < _NO_ID:
        return int(value)
    raise word.wrong("use a numeric ID")


def ranges(word: Word) -> tuple[Range, ...]:
    """Ranges of IDs, see `idmap.parse_ranges`.

    containers/storage puts a colon before each range, also before the first (drivers/overlay, optsAppendMappings).
    """
    try:
        return parse_ranges((word.value or "").removeprefix(":"))
    except ValueError as error:
        raise word.wrong(str(error)) from None


def show_ranges(mapping: Iterable[Range]) -> str:
    """The inverse of `ranges`."""
    return ":".join(str(number) for piece in mapping for number in piece)
