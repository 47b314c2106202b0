"""The functions of docker's templates: those of Go's text/template (funcs.go), and docker's own
(docker/cli templates/templates.go: json, split, join, title, lower, upper, pad, truncate).
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import quote_plus

from overlayfs_demo.ui.go_printf import sprintf
from overlayfs_demo.ui.go_template_error import TemplateError
from overlayfs_demo.ui.go_values import Nil, compare, equal, spell, to_json, truth, type_name

# The most characters that one value may have.
LONGEST = 2**22
_WIDEST_PAD = 10_000


@dataclass(frozen=True, slots=True)
class Function:
    """A function of templates, and with how many arguments it may be called (`most` None: with any number)."""

    call: Callable[..., object]
    least: int
    most: int | None


def _exactly(number: int, call: Callable[..., object]) -> Function:
    return Function(call, number, number)


def _string(value: object) -> str:
    if not isinstance(value, str):
        raise TemplateError(f"wrong type: expected string; got {type_name(value)}", "'print' makes a string of a value")
    return value


def _count(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TemplateError(f"wrong type: expected int; got {type_name(value)}", "write a whole number")
    return value


def _print(*values: object) -> str:
    """Go's fmt.Sprint: a blank between two values if neither is a string."""
    pieces: list[str] = []
    for number, value in enumerate(values):
        if number and not isinstance(value, str) and not isinstance(values[number - 1], str):
            pieces.append(" ")
        pieces.append(spell(value))
    return "".join(pieces)


def _println(*values: object) -> str:
    return " ".join(map(spell, values)) + "\n"


def _join(values: object, separator: object) -> str:
    between = _string(separator)
    if isinstance(values, Nil):
        return ""
    if not isinstance(values, list | tuple):
        raise TemplateError(f"wrong type: expected a list; got {type_name(values)}", 'as in {{join .RepoTags ","}}')
    texts = [_string(value) for value in values]
    if sum(map(len, texts)) + len(texts) * len(between) > LONGEST:
        raise TemplateError("the result is too long", f"the most is {LONGEST} characters")
    return between.join(texts)


def _split(text: object, separator: object) -> list[str]:
    return _string(text).split(between) if (between := _string(separator)) else list(_string(text))


def _title(text: object) -> str:
    """Each word with a capital letter; what follows in the word stays (Go's strings.Title)."""
    return re.sub(r"(?<!\w)\w", lambda match: match[0].upper(), _string(text))


def _pad(text: object, before: object, after: object) -> str:
    left, right = _count(before), _count(after)
    if max(left, right) > _WIDEST_PAD:
        raise TemplateError(f"{max(left, right)} blanks are too many", f"the most is {_WIDEST_PAD}")
    return " " * left + _string(text) + " " * right if text else ""


def _truncate(text: object, length: object) -> str:
    return _string(text)[: max(_count(length), 0)]


def _len(value: object) -> int:
    if isinstance(value, Nil):
        return 0
    if isinstance(value, str):
        return len(value.encode("utf-8", "replace"))
    if not isinstance(value, list | tuple | Mapping):
        raise TemplateError(f"a value of type {type_name(value)} has no length", "it needs a string, a list or a map")
    return len(value)


def _index(value: object, *keys: object) -> object:
    for key in keys:
        if isinstance(value, Nil) and isinstance(key, str):
            value = ""
        elif isinstance(value, Mapping):
            value = value.get(_string(key), "")  # Go's zero value of a map of strings.
        elif isinstance(value, list | tuple | str):
            if not 0 <= _count(key) < len(value):
                raise TemplateError(f"index out of range: {key}", f"it has {len(value)}, counted from 0")
            found = value[_count(key)]
            value = ord(found) if isinstance(value, str) else found
        else:
            raise TemplateError(f"can't index a value of type {type_name(value)}", "it needs a list or a map")
    return value


def _slice(value: object, *bounds: object) -> object:
    if not isinstance(value, list | tuple | str):
        raise TemplateError(f"can't slice a value of type {type_name(value)}", "it needs a string or a list")
    start, end = (*map(_count, bounds), *(0, len(value))[len(bounds) :])
    if not 0 <= start <= end <= len(value):
        raise TemplateError(f"index out of range: {start}:{end}", f"it has {len(value)}, counted from 0")
    return value[start:end]


def _eq(first: object, *others: object) -> bool:
    return any([equal(first, other) for other in others])


def _ordered(test: Callable[[int], bool]) -> Function:
    return _exactly(2, lambda first, second: compare(test, first, second))


# `and` and `or` are not called here: they stop at the first argument that decides, see `go_template`.
LAZY: Mapping[str, bool] = {"and": False, "or": True}

FUNCTIONS: Mapping[str, Function] = {
    "eq": Function(_eq, 2, None),
    "ge": _ordered(lambda order: order >= 0),
    "gt": _ordered(lambda order: order > 0),
    "html": Function(lambda *values: html.escape(_print(*values)).replace("&#x27;", "&#39;"), 1, None),
    "index": Function(_index, 1, None),
    "join": _exactly(2, _join),
    "json": _exactly(1, to_json),
    "le": _ordered(lambda order: order <= 0),
    "len": _exactly(1, _len),
    "lower": _exactly(1, lambda text: _string(text).lower()),
    "lt": _ordered(lambda order: order < 0),
    "ne": _exactly(2, lambda first, second: not equal(first, second)),
    "not": _exactly(1, lambda value: not truth(value)),
    "pad": _exactly(3, _pad),
    "print": Function(_print, 0, None),
    "printf": Function(lambda form, *values: sprintf(_string(form), values), 1, None),
    "println": Function(_println, 0, None),
    "slice": Function(_slice, 1, 3),
    "split": _exactly(2, _split),
    "title": _exactly(1, _title),
    "truncate": _exactly(2, _truncate),
    "upper": _exactly(1, lambda text: _string(text).upper()),
    "urlquery": Function(lambda *values: quote_plus(_print(*values), errors="replace"), 1, None),
}

# In the header of a table, the name of a column stays as it is (docker/cli templates.HeaderFunctions).
HEADER_FUNCTIONS: Mapping[str, Function] = {
    **FUNCTIONS,
    **dict.fromkeys(("json", "lower", "title", "upper"), _exactly(1, lambda text: text)),
    "truncate": _exactly(2, lambda text, _length: text),
}


def names(functions: Mapping[str, Function]) -> Sequence[str]:
    """The names of all functions that a template may use, sorted."""
    return sorted([*functions, *LAZY])
