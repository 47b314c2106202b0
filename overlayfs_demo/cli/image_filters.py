"""Which images `images` lists: --filter, and the name that may be a pattern (moby daemon/images/images.go)."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from overlayfs_demo.cli.image_settings import fields_of, labels_of
from overlayfs_demo.cli.store_options import add_filter
from overlayfs_demo.errors import UsageError, printable
from overlayfs_demo.images.config import creation_time
from overlayfs_demo.images.describe import NONE, ImageRow
from overlayfs_demo.images.reference import Reference
from overlayfs_demo.store.store import Store
from overlayfs_demo.store.stored import StoredImage

_KEYS = "dangling=true|false, reference=PATTERN, label=KEY[=VALUE], before=IMAGE or since=IMAGE"
_TRUTHS = {"1": True, "t": True, "true": True, "0": False, "f": False, "false": False}
_SPECIAL = "*?["

# A time of creation: seconds since 1970, and the fraction of a second.
_Moment = tuple[int, float]


def add_image_filter(verb: argparse.ArgumentParser) -> None:
    """Give the verb the option --filter, whose values `ImageFilter.of` reads."""
    add_filter(verb, f"only images with {_KEYS}; PATTERN is a name with *, ? and [...], such as 'app:*'")


@dataclass(frozen=True, slots=True)
class ImageFilter:
    """What all listed images have in common. `dangling` is true for images without a name, None for all."""

    dangling: bool | None = None
    patterns: tuple[re.Pattern[str], ...] = ()
    labels: tuple[tuple[str, str | None], ...] = ()
    before: _Moment | None = None
    since: _Moment | None = None

    @classmethod
    def of(cls, words: Sequence[str], store: Store) -> ImageFilter:
        """Read the values of --filter. Raises UsageError for a bad one, ImageError for an image that is not there."""
        found = cls()
        for word in words:
            key, equals, value = word.partition("=")
            if not equals or not value:
                raise UsageError(f"--filter '{printable(word)}' is not KEY=VALUE", f"use {_KEYS}")
            found = found._with(key, value, store)
        return found

    def _with(self, key: str, value: str, store: Store) -> ImageFilter:
        if key == "reference":
            return replace(self, patterns=(*self.patterns, _pattern(value)))
        if key == "label":
            name, equals, wanted = value.partition("=")
            return replace(self, labels=(*self.labels, (name, wanted if equals else None)))
        if key == "before":
            return replace(self, before=_moment(store.find(value)))
        if key == "since":
            return replace(self, since=_moment(store.find(value)))
        if key == "dangling" and value.lower() in _TRUTHS:
            return replace(self, dangling=_TRUTHS[value.lower()])
        raise UsageError(f"--filter '{printable(key)}={printable(value)}' cannot be used", f"use {_KEYS}")

    def takes(self, image: StoredImage) -> bool:
        """Return whether the image has what is asked for, apart from its names."""
        if self.dangling not in (None, not image.names):
            return False
        return self._takes_moment(image) and self._takes_labels(image)

    def _takes_moment(self, image: StoredImage) -> bool:
        if self.before is None and self.since is None:
            return True
        moment = _moment(image)
        return (self.before is None or moment < self.before) and (self.since is None or moment > self.since)

    def _takes_labels(self, image: StoredImage) -> bool:
        there = labels_of(image) if self.labels else {}
        return all(name in there and wanted in (None, there[name]) for name, wanted in self.labels)

    def takes_name(self, row: ImageRow) -> bool:
        """Return whether the name of the row fits one of the patterns."""
        names = () if row.repository == NONE else (f"{row.repository}:{row.tag}", row.repository)
        return not self.patterns or any(pattern.fullmatch(name) for pattern in self.patterns for name in names)


def is_named(row: ImageRow, word: str) -> bool:
    """Return whether a row has the name, or a name of the pattern, that a person gives. Raises ImageError."""
    if any(special in word for special in _SPECIAL):
        return ImageFilter(patterns=(_pattern(word),)).takes_name(row)
    wanted = Reference.parse(word)
    return row.repository == str(wanted.repository) and row.tag in (wanted.tag or row.tag,)


def _moment(image: StoredImage) -> _Moment:
    seconds, text = creation_time(fields_of(image))
    fraction = re.search(r"\.\d+", text)
    return seconds, float(fraction[0]) if fraction else 0.0


def _pattern(text: str) -> re.Pattern[str]:
    """Return a pattern of Go's path.Match: `*` and `?` do not match a slash. Raises UsageError."""
    pieces = re.findall(r"\*+|\?|\[\^?[^\]]+\]|\\.|[^*?\[\\]", text, re.DOTALL)
    if "".join(pieces) != text:
        raise UsageError(f"'{printable(text)}' is not a valid pattern", "close each [, and write \\[ for a bracket")
    try:
        return re.compile("".join(map(_piece, pieces)))
    except re.error:
        raise UsageError(f"'{printable(text)}' is not a valid pattern", "write a range as in [a-z]") from None


def _piece(piece: str) -> str:
    if piece[0] == "*":
        return "[^/]*"
    if piece == "?":
        return "[^/]"
    if piece[0] == "[":
        inside = piece[1:-1]
        negation, characters = ("^", inside[1:]) if inside[0] == "^" else ("", inside)
        return f"(?!/)[{negation}{re.escape(characters).replace(chr(92) + '-', '-')}]"
    return re.escape(piece[-1])
