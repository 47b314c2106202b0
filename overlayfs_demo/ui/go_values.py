"""Values as Go's fmt and encoding/json write them, and what Go's templates take for true.

A value is a string, a number, a truth value, None, a list or a mapping with string keys, as JSON has them. A mapping
may also hold functions of one string: a template calls them as in `{{.Label "maintainer"}}`; they are not printed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from overlayfs_demo.images.go_json import go_json
from overlayfs_demo.ui.go_spelling import go_spelling
from overlayfs_demo.ui.go_template_error import TemplateError


@dataclass(frozen=True, slots=True)
class Nil:
    """Go's nil of a list or map type: empty and `null` in JSON, but printed as `[]` or `map[]`, its `text`."""

    text: str


NIL_LIST = Nil("[]")
NIL_MAP = Nil("map[]")


class Row(dict[str, object]):
    """A row of one of docker's lists. Such a row writes its own JSON, in which `<`, `>` and `&` are escaped."""


def truth(value: object) -> bool:
    """Whether an `if` takes the value for true: Go calls zero and everything empty false."""
    return not isinstance(value, Nil) and bool(value)


def spell(value: object) -> str:
    """The value as Go's `%v` writes it: `[a b]` for a list, `map[key:value]`, sorted by key, for a mapping."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return _float(value)
    if isinstance(value, Mapping):
        return "map[" + " ".join(f"{key}:{spell(inner)}" for key, inner in sorted(_fields(value).items())) + "]"
    if isinstance(value, list | tuple):
        return "[" + " ".join(map(spell, value)) + "]"
    if isinstance(value, Nil):
        return value.text
    return "<nil>" if value is None else str(value)


def _float(value: float) -> str:
    """A number as `%v` writes it: the shortest that reads back as the same, with an exponent from 1e21 on."""
    if value.is_integer() and abs(value) < 1e21:
        return str(int(value))
    return repr(value).replace("inf", "+Inf").replace("-+", "-").replace("nan", "NaN")


def to_json(value: object) -> str:
    """The value as docker's template function `json` writes it: compact, and only a `Row` has escapes for HTML."""
    if isinstance(value, Row):
        return go_spelling(go_json(_plain(value)).decode("utf-8", "surrogatepass"))
    return go_spelling(json.dumps(_plain(value), separators=(",", ":"), ensure_ascii=False))


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in _fields(value).items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, Nil) else value


def _fields(value: Mapping[str, object]) -> Mapping[str, object]:
    return {key: inner for key, inner in value.items() if not callable(inner)}


def type_name(value: object) -> str:
    """The name that Go has for the value's type."""
    kinds = ((bool, "bool"), (int, "int"), (float, "float64"), (str, "string"), (Mapping, "map[string]interface {}"))
    found = next((name for kind, name in kinds if isinstance(value, kind)), None)
    return found or ("<nil>" if value is None else "[]interface {}")


# --- comparisons -----------------------------------------------------------------------------------


def equal(first: object, second: object) -> bool:
    """`eq` of Go's templates. Raises TemplateError for values of different kinds."""
    if None in (first, second) or isinstance(first, Nil) or isinstance(second, Nil):
        return first == second
    _check_comparable(first, second, str | bool | int | float)
    return first == second


def compare(test: Callable[[int], bool], first: object, second: object) -> bool:
    """`lt`, `le`, `gt` or `ge` of Go's templates; `test` gets -1, 0 or 1. Raises TemplateError."""
    _check_comparable(first, second, str | int | float)
    return test((first > second) - (first < second))  # type: ignore[operator]  # both are checked


def _check_comparable(first: object, second: object, kinds: object) -> None:
    texts, truths = ([isinstance(value, kind) for value in (first, second)] for kind in (str, bool))
    sound = all(isinstance(value, kinds) for value in (first, second))  # type: ignore[arg-type]  # a union
    if not sound or texts[0] != texts[1] or truths[0] != truths[1]:
        kind = " and ".join(type_name(value) for value in (first, second))
        raise TemplateError(
            f"incompatible types for comparison: {kind}", "compare text with text, numbers with numbers"
        )
