"""Named tuples that take little time to define: typing.NamedTuple for modules whose annotations are text.

typing.NamedTuple compiles the annotation of every field to a type that nobody looks at, and the package has so many
named tuples that this took a third of the time of a command. Type checkers see the original.
"""

from __future__ import annotations

from collections import namedtuple
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing import NamedTuple as NamedTuple
else:

    class _Definition(type):
        """What turns the body of a class into a named tuple."""

        def __new__(cls, name: str, bases: tuple[type, ...], body: dict[str, Any]) -> type:
            if not bases:
                return super().__new__(cls, name, bases, body)
            fields = body.get("__annotations__", {})
            defaults = [body.pop(field) for field in fields if field in body]
            defined = namedtuple(name, fields, defaults=defaults, module=body.pop("__module__"))
            for attribute, value in body.items():
                setattr(defined, attribute, value)
            return defined

    class NamedTuple(metaclass=_Definition):
        """The base that a class names to become a named tuple; it is not a base of the class that results."""
