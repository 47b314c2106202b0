"""What became of one file: what does each layer say, which versions are there, and how do they differ?

Names and contents are hostile: whatever is no plain text is escaped here, and a template escapes the rest.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from itertools import pairwise

from overlayfs_demo.errors import printable
from overlayfs_demo.overlay.layer_statements import Statement
from overlayfs_demo.overlay.merge import Says
from overlayfs_demo.ui.text import human_size, plural
from overlayfs_demo.ui.text_diff import text_lines, unified
from overlayfs_demo.ui.wording import outcome, said
from overlayfs_demo.web.subject import Ask, LayerRoot, Subject, key_of

# A text is shown, and compared, up to so many bytes.
MOST_TEXT = 64 * 1024
_DUMPED = 256  # bytes of what is no text
_DIFF_CLASSES = {"+": "added", "-": "deleted", "@": "place"}


@dataclass(frozen=True, slots=True)
class Say:
    """One layer's say, in words: `key` and `name` are the layer's, `state` is "seen", "hidden", "deleted" or ""."""

    key: str
    name: str
    title: str
    says: str
    outcome: str
    state: str


@dataclass(frozen=True, slots=True)
class Version:
    """The file as one layer has it: its text (or a dump of its first bytes), and a note on what is not shown."""

    key: str
    name: str
    size: str
    seen: bool
    text: str
    note: str
    lines: tuple[str, ...] | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two versions that follow each other: each line with its class, "added", "deleted", "place" or ""."""

    before: str
    after: str
    lines: tuple[tuple[str, str], ...]
    note: str


@dataclass(frozen=True, slots=True)
class Story:
    """All about one path; versions and comparisons are from the top down."""

    path: str
    key: str
    why: str
    says: tuple[Say, ...]
    versions: tuple[Version, ...]
    comparisons: tuple[Comparison, ...]


def story(subject: Subject, ask: Ask, path: bytes) -> Story:
    """All about a path, which is checked. Raises OverlayError, OSError; FileNotFoundError if no layer knows it."""
    explanation = ask(path)
    if path != b"/" and all(one.mode is None and not one.deleted_at for one in explanation.statements):
        raise FileNotFoundError(f"no layer has {printable(path)}")
    known = list(zip(subject.layers, explanation.statements, strict=False))
    versions = tuple(_version(layer, one) for layer, one in known if one.mode is not None and stat.S_ISREG(one.mode))
    words = tuple(_say(layer, one, path) for layer, one in known)
    return Story(
        printable(path),
        key_of(path),
        explanation.why,
        words,
        versions,
        tuple(_compared(old, new) for new, old in pairwise(versions)),
    )


def _say(layer: LayerRoot, one: Statement, path: bytes) -> Say:
    states = ((one.wins, "seen"), (bool(one.deleted_at), "deleted"), (bool(one.hidden_by), "hidden"))
    return Say(
        layer.key,
        layer.name,
        printable(layer.title),
        said(one, path),
        outcome(one, path),
        next((state for holds, state in states if holds), ""),
    )


def _version(layer: LayerRoot, one: Statement) -> Version:
    size = one.size or 0
    text, note, lines = "", "", None
    if one.says is Says.METACOPY:
        note = "Owner, mode and times only; the data is in a layer below."
    else:
        try:
            data = _read(layer, one.stored_at, MOST_TEXT)
        except OSError as error:
            note = f"Cannot be read: {error.strerror}."
        else:
            text, note, lines = _shown(data, size)
    return Version(layer.key, layer.name, human_size(size), one.wins, text, note, lines)


def _read(layer: LayerRoot, path: bytes, most: int) -> bytes:
    fd = layer.open(path, os.O_RDONLY)
    with os.fdopen(fd, "rb") as file:
        # It may be another file since it was asked about.
        return file.read(most) if stat.S_ISREG(os.fstat(fd).st_mode) else b""


def _shown(data: bytes, size: int) -> tuple[str, str, tuple[str, ...] | None]:
    """The text, a note, and the lines if these are all of them."""
    whole = len(data) >= size
    # The cut may have gone through a character.
    lines = text_lines(data) if whole else text_lines(data[: data.rfind(b"\n") + 1] or data)
    if lines is None:
        beginning = f", the first {_DUMPED} are shown" if size > _DUMPED else ""
        return _dump(data[:_DUMPED]), f"Not text: {plural(size, 'byte')}{beginning}.", None
    safe = tuple(map(_plain, lines))
    if whole:
        return "".join(safe), "" if size else "Empty file.", safe
    return "".join(safe), f"Only the beginning of {human_size(size)} is shown.", None


def _plain(line: str) -> str:
    """A line without what would act on who reads it: control characters, and marks that turn the direction."""
    return printable(line, keep="\t\n")


def _dump(data: bytes) -> str:
    """Bytes as hexdump -C has them."""
    lines = []
    for offset in range(0, len(data), 16):
        piece = data[offset : offset + 16]
        letters = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in piece)
        lines.append(f"{offset:08x}  {piece.hex(' '):<47}  {letters}\n")
    return "".join(lines)


def _compared(old: Version, new: Version) -> Comparison:
    if old.lines is None or new.lines is None:
        same = old.text == new.text and old.size == new.size
        note = "These versions cannot be compared line by line." if not same else "The parts shown are the same."
        return Comparison(old.name, new.name, (), note)
    lines = [(_DIFF_CLASSES.get(line[0], ""), line) for line in unified(old.lines, new.lines, old.name, new.name)[2:]]
    return Comparison(old.name, new.name, tuple(lines), "" if lines else "Same text; only metadata differs.")
