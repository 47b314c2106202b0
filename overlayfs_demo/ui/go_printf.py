"""Go's fmt.Sprintf, as far as templates need it (pkg.go.dev/fmt): %v %s %q %d %x %X %o %b %c %t %f %g %e %T, flags,
width and precision. What does not fit is shown in place, as Go does: `%!d(string=a)`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from overlayfs_demo.ui.go_template_error import TemplateError
from overlayfs_demo.ui.go_values import spell, type_name

_VERB = re.compile(r"%([-+# 0]*)([0-9]*)(?:\.([0-9]*))?(.|$)", re.DOTALL)
_WIDEST = 10_000
_WHOLE_NUMBERS = {"d": "d", "x": "x", "X": "X", "o": "o", "b": "b"}


@dataclass(frozen=True, slots=True)
class _Form:
    """What stands between `%` and the letter; `precision` is None if it is not given."""

    flags: str
    width: int
    precision: int | None
    verb: str

    def padded(self, text: str, *, number: bool = False) -> str:
        """Return the text in its width, a number with zeros after its sign."""
        if "-" in self.flags:
            return text.ljust(self.width)
        if "0" in self.flags and number:
            return text.zfill(self.width)
        return text.rjust(self.width)


def sprintf(template: str, values: Sequence[object]) -> str:
    """Return the template with the values in their places. Raises TemplateError for an excessive width."""
    rest = list(values)

    def written(match: re.Match[str]) -> str:
        if match[4] == "%":
            return "%"
        if not match[4]:
            return "%!(NOVERB)"
        form = _Form(match[1], _number(match[2]), None if match[3] is None else _number(match[3]), match[4])
        return _written(form, rest.pop(0)) if rest else f"%!{match[4]}(MISSING)"

    text = _VERB.sub(written, template)
    extra = ", ".join(f"{type_name(value)}={spell(value)}" for value in rest)
    return text + f"%!(EXTRA {extra})" if extra else text


def _number(digits: str) -> int:
    if len(digits) > len(str(_WIDEST)) or int(digits or 0) > _WIDEST:
        raise TemplateError(f"error calling printf: {digits[:20]} is too wide", f"the most is {_WIDEST}")
    return int(digits or 0)


def _written(form: _Form, value: object) -> str:
    if form.verb == "v":
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return form.padded(spell(value), number=number)
    if form.verb == "T":
        return form.padded(type_name(value))
    if isinstance(value, list | tuple):
        return "[" + " ".join(_written(form, inner) for inner in value) + "]"
    text = _text(form, value)
    if text is None:
        return f"%!{form.verb}({type_name(value)}={spell(value)})" if value is not None else f"%!{form.verb}(<nil>)"
    return form.padded(text, number=not isinstance(value, str))


def _text(form: _Form, value: object) -> str | None:
    """Return the value by its verb, without padding; None if the verb does not fit its type."""
    if isinstance(value, bool):
        return spell(value) if form.verb == "t" else None
    if isinstance(value, str):
        return _string(form, value)
    if isinstance(value, int):
        return _whole(form, value)
    if isinstance(value, float) and form.verb in "feg":
        sign = "+" if "+" in form.flags else ""
        if form.verb == "g" and form.precision is None:
            return spell(value)
        return format(value, f"{sign}.{6 if form.precision is None else form.precision}{form.verb}")
    return None


def _string(form: _Form, value: str) -> str | None:
    cut = value if form.precision is None else value[: form.precision]
    if form.verb == "s":
        return cut
    if form.verb == "q":
        return json.dumps(cut, ensure_ascii=False)
    if form.verb in "xX":
        digits = cut.encode("utf-8", "replace").hex()
        return digits if form.verb == "x" else digits.upper()
    return None


def _whole(form: _Form, value: int) -> str | None:
    if form.verb in _WHOLE_NUMBERS:
        return format(value, ("+" if "+" in form.flags else "") + _WHOLE_NUMBERS[form.verb])
    if form.verb == "c" and 0 <= value <= 0x10FFFF:
        return chr(value)
    return None
