r"""The words of a Dockerfile instruction, with quotes, escapes and variables, as BuildKit reads them.

The rules are those of BuildKit's frontend/dockerfile: parser/line_parsers.go, which cuts a line into words and keeps
their quotes, and shell/lex.go, which then removes quotes and replaces $NAME, ${NAME}, ${NAME:-word} and ${NAME:+word}.
In single quotes nothing is replaced; in double quotes a backslash escapes only `"`, `$` and itself.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from overlayfs_demo.errors import UsageError, printable

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*|[0-9]")


def split(text: str) -> list[str]:
    """Return the words of a line, with their quotes and backslashes; a blank inside quotes does not end a word."""
    words: list[str] = []
    word, quote, position = "", "", 0
    while position < len(text):
        char = text[position]
        if char == "\\" and quote != "'" and position + 1 < len(text):
            word += text[position : position + 2]
            position += 2
            continue
        position += 1
        if not quote and char.isspace():
            if word:
                words.append(word)
            word = ""
            continue
        if quote:
            quote = "" if char == quote else quote
        elif char in "'\"":
            quote = char
        word += char
    return [*words, word] if word else words


def expand(word: str, variables: Mapping[str, str]) -> str:
    """Return a word without its quotes, and with the values of its variables. Raises UsageError if it does not end."""
    return _Word(word, variables).read()


class _Word:
    """A word that is being read, from `position` on."""

    def __init__(self, text: str, variables: Mapping[str, str]) -> None:
        self._text = text
        self._variables = variables
        self._position = 0

    def read(self, stop: str = "") -> str:
        """Return what is read up to the character `stop`, which is consumed, or the end."""
        found = ""
        while self._position < len(self._text):
            char = self._next()
            if char == stop:
                return found
            found += self._piece(char)
        if stop:
            raise self._unfinished(stop)
        return found

    def _piece(self, char: str) -> str:
        if char == "'":
            return self._single_quoted()
        if char == '"':
            return self._double_quoted()
        if char == "$":
            return self._variable()
        if char == "\\" and self._position < len(self._text):
            return self._next()
        return char

    def _next(self) -> str:
        self._position += 1
        return self._text[self._position - 1]

    def _single_quoted(self) -> str:
        end = self._text.find("'", self._position)
        if end < 0:
            raise self._unfinished("'")
        found = self._text[self._position : end]
        self._position = end + 1
        return found

    def _double_quoted(self) -> str:
        found = ""
        while self._position < len(self._text):
            char = self._next()
            if char == '"':
                return found
            if char == "$":
                found += self._variable()
            elif char == "\\" and self._text[self._position : self._position + 1] in ('"', "$", "\\"):
                found += self._next()
            else:
                found += char
        raise self._unfinished('"')

    def _variable(self) -> str:
        if self._text[self._position : self._position + 1] != "{":
            name = self._name()
            return self._variables.get(name, "") if name else "$"
        self._position += 1
        name = self._name()
        if not name:
            raise self._bad("a variable in braces has a name: ${NAME}")
        value = self._variables.get(name, "")
        operator = self._text[self._position : self._position + 2]
        if operator.startswith("}"):
            self._position += 1
            return value
        if operator not in (":-", ":+"):
            raise self._bad("write ${NAME}, ${NAME:-word} or ${NAME:+word}")
        self._position += 2
        other = self.read("}")
        return (value or other) if operator == ":-" else (other if value else "")

    def _name(self) -> str:
        match = _NAME.match(self._text, self._position)
        if match is None:
            return ""
        self._position = match.end()
        return match[0]

    def _unfinished(self, mark: str) -> UsageError:
        return self._bad(f"{mark} is missing at the end")

    def _bad(self, rule: str) -> UsageError:
        return UsageError(f"'{printable(self._text)}' cannot be read", rule)
