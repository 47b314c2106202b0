"""The words of a Go template: text, and the tokens between `{{` and `}}` (Go's text/template/parse, lex.go)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from overlayfs_demo.errors import printable
from overlayfs_demo.ui.go_template_error import TemplateError


class Kind(Enum):
    """What a token is."""

    SPACE = "space"
    STRING = "string"
    RAW = "raw"
    CHARACTER = "character"
    NUMBER = "number"
    FIELD = "field"
    VARIABLE = "variable"
    WORD = "word"
    MARK = "mark"
    END = "end"


@dataclass(frozen=True, slots=True)
class Token:
    """One token of an action; `start` and `end` are its place in the template, in characters."""

    kind: Kind
    text: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Text:
    """What a template says literally."""

    text: str


@dataclass(frozen=True, slots=True)
class Action:
    """The tokens between `{{` and `}}`, without blanks; the last has the kind END. `source` is all of it."""

    tokens: tuple[Token, ...]
    source: str


_TOKEN = re.compile(
    r"""(?P<space>[ \t\r\n]+)
    | (?P<string>"(?:[^"\\]|\\.)*")
    | (?P<raw>`[^`]*`)
    | (?P<character>'(?:[^'\\\n]|\\[^\n]{1,9}?)')
    | (?P<number>[+-]?\.?[0-9][0-9A-Za-z_.]*)
    | (?P<field>\.[A-Za-z_][A-Za-z0-9_]*)
    | (?P<variable>\$[A-Za-z0-9_]*)
    | (?P<word>[A-Za-z_][A-Za-z0-9_]*)
    | (?P<mark>:=|[.=|(),])""",
    re.VERBOSE,
)
_COMMENT = re.compile(r"(?:-[ \t\r\n]+)?/\*.*?\*/(?:[ \t\r\n]+-)?\}\}", re.DOTALL)
_END = re.compile(r"[ \t\r\n]+-\}\}|\}\}")
_BLANKS = " \t\r\n"


def lex(template: str) -> Iterator[Text | Action]:
    """Split a template into text and actions; blanks that `{{-` and `-}}` trim are gone. Raises TemplateError."""
    at, trim_next = 0, False
    while True:
        start = template.find("{{", at)
        text = template[at:] if start < 0 else template[at:start]
        if trim_next:
            text = text.lstrip(_BLANKS)
        trims = start >= 0 and template[start + 2 : start + 3] == "-" and template[start + 3 : start + 4] in (*_BLANKS,)
        if trims:
            text = text.rstrip(_BLANKS)
        if text:
            yield Text(text)
        if start < 0:
            return
        comment = _COMMENT.match(template, start + 2)
        if comment is None:
            tokens, at = _tokens(template, start + (3 if trims else 2))
            yield Action(tokens, printable(template[start:at]))
        else:
            at = comment.end()
        trim_next = template[at - 3] == "-"


def _tokens(template: str, at: int) -> tuple[tuple[Token, ...], int]:
    """Return the tokens of the action whose inside begins here, and the place after its end."""
    tokens: list[Token] = []
    while True:
        end = _END.match(template, at)
        if end is not None:
            return (*tokens, Token(Kind.END, "}}", end.start(), end.end())), end.end()
        match = _TOKEN.match(template, at)
        if match is None:
            raise _unreadable(template, at)
        kind = Kind(str(match.lastgroup))
        if kind is not Kind.SPACE:
            tokens.append(Token(kind, match[0], at, match.end()))
        at = match.end()


def _unreadable(template: str, at: int) -> TemplateError:
    rest = template[at : at + 1]
    if not rest:
        return TemplateError("unclosed action", "end it with }}")
    if rest in "\"`'":
        return TemplateError(f"unterminated string: {printable(template[at : at + 20])}", f"end it with {rest}")
    if template.startswith("/*", at):
        return TemplateError("unclosed comment", "end it with */}}")
    return TemplateError(f"unexpected {printable(rest)!r} in an action", "put text in quotes, or outside of {{ }}")
