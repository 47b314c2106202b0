"""The story of one file: what each layer says about it, its versions, and how they differ.

Names and contents are hostile. Characters that are not plain text are escaped here, and a template escapes HTML.
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

# How many bytes of a text are shown and compared.
MOST_TEXT = 64 * 1024
_DUMPED = 256  # bytes of a file that is not a text
_DIFF_CLASSES = {"+": "added", "-": "deleted", "@": "place"}


@dataclass(frozen=True, slots=True)
class Say:
    """A layer's statement in words. `key` and `name` are the layer's; `state` is "seen", "hidden", "deleted" or ""."""

    key: str
    name: str
    title: str
    says: str
    outcome: str
    state: str


@dataclass(frozen=True, slots=True)
class Version:
    """The file as one layer has it: its text (or a dump of its first bytes), and a note about what is not shown."""

    key: str
    name: str
    size: str
    seen: bool
    text: str
    note: str
    lines: tuple[str, ...] | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two successive versions, compared: each line has its class, "added", "deleted", "place" or ""."""

    before: str
    after: str
    lines: tuple[tuple[str, str], ...]
    note: str


@dataclass(frozen=True, slots=True)
class Story:
    """Everything about one path. Versions and comparisons go from the top layer down."""

    path: str
    key: str
    why: str
    says: tuple[Say, ...]
    versions: tuple[Version, ...]
    comparisons: tuple[Comparison, ...]


def story(subject: Subject, ask: Ask, path: bytes) -> Story:
    """Return the story of a path that has been checked.

    Raises OverlayError, OSError, and FileNotFoundError if no layer knows the path.
    """
    provenance = ask(path)
    if path != b"/" and all(statement.mode is None and not statement.deleted_at for statement in provenance.statements):
        raise FileNotFoundError(f"no layer has {printable(path)}")
    known = list(zip(subject.layers, provenance.statements, strict=False))
    versions = tuple(
        _version(layer, statement)
        for layer, statement in known
        if statement.mode is not None and stat.S_ISREG(statement.mode)
    )
    words = tuple(_say(layer, statement, path) for layer, statement in known)
    return Story(
        printable(path),
        key_of(path),
        provenance.why,
        words,
        versions,
        tuple(_compared(old, new) for new, old in pairwise(versions)),
    )


def _say(layer: LayerRoot, statement: Statement, path: bytes) -> Say:
    states = ((statement.wins, "seen"), (bool(statement.deleted_at), "deleted"), (bool(statement.hidden_by), "hidden"))
    return Say(
        layer.key,
        layer.name,
        printable(layer.title),
        said(statement, path),
        outcome(statement, path),
        next((state for holds, state in states if holds), ""),
    )


def _version(layer: LayerRoot, statement: Statement) -> Version:
    size = statement.size or 0
    text, note, lines = "", "", None
    if statement.says is Says.METACOPY:
        note = "Owner, mode and times only; the data is in a layer below."
    else:
        try:
            data = _read(layer, statement.stored_at, MOST_TEXT)
        except OSError as error:
            note = f"Cannot be read: {error.strerror}."
        else:
            text, note, lines = _shown(data, size)
    return Version(layer.key, layer.name, human_size(size), statement.wins, text, note, lines)


def _read(layer: LayerRoot, path: bytes, most: int) -> bytes:
    fd = layer.open(path, os.O_RDONLY)
    with os.fdopen(fd, "rb") as file:
        # Another file may have taken its place since the layer was asked.
        return file.read(most) if stat.S_ISREG(os.fstat(fd).st_mode) else b""


def _shown(data: bytes, size: int) -> tuple[str, str, tuple[str, ...] | None]:
    """Return the text, a note, and its lines (None unless these are all the lines of a text)."""
    whole = len(data) >= size
    # The end may be in the middle of a character.
    lines = text_lines(data) if whole else text_lines(data[: data.rfind(b"\n") + 1] or data)
    if lines is None:
        beginning = f", the first {_DUMPED} are shown" if size > _DUMPED else ""
        return _dump(data[:_DUMPED]), f"Not text: {plural(size, 'byte')}{beginning}.", None
    safe = tuple(map(_plain, lines))
    if whole:
        return "".join(safe), "" if size else "Empty file.", safe
    return "".join(safe), f"Only the beginning of {human_size(size)} is shown.", None


def _plain(line: str) -> str:
    """Return a line with control characters and bidirectional marks escaped: these could mislead a reader."""
    return printable(line, keep="\t\n")


def _dump(data: bytes) -> str:
    """Return bytes as hexdump -C shows them."""
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
