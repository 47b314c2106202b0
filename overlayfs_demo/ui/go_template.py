"""Go templates over plain values, by which docker's `--format '{{…}}'` is understood (Go's text/template, exec.go).

`go_template_syntax` says which subset it is. No template runs for long: each has a budget of steps and of characters,
which a hostile one uses up within seconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass

from overlayfs_demo.errors import printable
from overlayfs_demo.ui.go_template_error import TemplateError
from overlayfs_demo.ui.go_template_functions import FUNCTIONS, LAZY, LONGEST, Function, names
from overlayfs_demo.ui.go_template_lexer import Text
from overlayfs_demo.ui.go_template_syntax import (
    Block,
    Command,
    Dot,
    Field,
    Literal,
    Node,
    Operand,
    Output,
    Pipeline,
    Variable,
    parse,
)
from overlayfs_demo.ui.go_template_syntax import Function as Named
from overlayfs_demo.ui.go_values import Nil, spell, truth, type_name

_MOST_STEPS = 200_000
_MOST_CHARACTERS = 2**25


class Template:
    """A template that was read, to be executed with any number of values."""

    def __init__(self, text: str) -> None:
        """Read a template. Raises TemplateError."""
        self._nodes = parse(text, names(FUNCTIONS))

    def asks_for(self, name: str) -> bool:
        """Return whether the template may use this field of its value: by its name, or with the whole value."""
        return _asks_for(self._nodes, name)

    def execute(self, value: object, functions: Mapping[str, Function] = FUNCTIONS) -> str:
        """Return the template's text for a value, see `go_values`.

        `functions` may give other ones for the names of FUNCTIONS. Raises TemplateError if the value lacks what the
        template asks for, or if it is too much work.
        """
        return _Execution(value, functions).text(self._nodes)


def _asks_for(part: object, name: str) -> bool:
    """Return whether a part of the tree has this field, or a `.` or variable without a field, which may be anything."""
    if isinstance(part, Dot | Variable):
        return True
    if isinstance(part, Field):
        return part.name == name or (not isinstance(part.of, Dot | Variable) and _asks_for(part.of, name))
    if isinstance(part, tuple):
        return any(_asks_for(inner, name) for inner in part)
    return is_dataclass(part) and any(_asks_for(getattr(part, field.name), name) for field in fields(part))


class _Execution:
    """One execution: the variables, the output so far, and what is left of the budget."""

    def __init__(self, value: object, functions: Mapping[str, Function]) -> None:
        self._root = value
        self._functions = functions
        self._variables: list[tuple[str, object]] = [("$", value)]
        self._steps = _MOST_STEPS
        self._characters = _MOST_CHARACTERS
        self._written: list[str] = []

    def text(self, nodes: Sequence[Node]) -> str:
        """Execute the nodes of the whole template."""
        self._run(nodes, self._root)
        return "".join(self._written)

    def _spend(self, characters: int = 0) -> None:
        self._steps -= 1
        self._characters -= characters
        if min(self._steps, self._characters) < 0 or characters > LONGEST:
            raise TemplateError("it is too much work", "write one with fewer or shorter loops")

    # --- actions -----------------------------------------------------------------------------------

    def _run(self, nodes: Sequence[Node], dot: object) -> None:
        for node in nodes:
            self._spend()
            if isinstance(node, Text):
                self._write(node.text)
            elif isinstance(node, Block):
                self._block(node, dot)
            else:
                self._output(node, dot)

    def _output(self, node: Output, dot: object) -> None:
        value = self._value(node.pipeline, dot)
        if node.pipeline.variables:
            self._set(node.pipeline, [value])
            return
        self._write("<no value>" if value is None else spell(value))

    def _write(self, text: str) -> None:
        self._spend(len(text))
        self._written.append(text)

    def _block(self, block: Block, dot: object) -> None:
        outside = len(self._variables)
        value = self._value(block.pipeline, dot)
        if block.keyword == "range":
            self._range(block, value, dot)
        else:
            if block.pipeline.variables:
                self._set(block.pipeline, [value])
            inside = value if block.keyword == "with" and truth(value) else dot
            self._run(block.body if truth(value) else block.otherwise, inside)
        del self._variables[outside:]

    def _range(self, block: Block, value: object, dot: object) -> None:
        outside, empty = len(self._variables), True
        for key, element in _elements(value, block.source):
            self._spend()
            empty = False
            if block.pipeline.variables:
                self._set(block.pipeline, [key, element][-len(block.pipeline.variables) :])
            self._run(block.body, element)
            del self._variables[outside:]
        if empty:
            if block.pipeline.declares:
                self._set(block.pipeline, [value] * len(block.pipeline.variables))
            self._run(block.otherwise, dot)

    def _set(self, pipeline: Pipeline, values: Sequence[object]) -> None:
        for name, value in zip(pipeline.variables, values, strict=True):
            if pipeline.declares:
                self._variables.append((name, value))
            else:
                self._variables[self._place(name)] = (name, value)

    def _place(self, name: str) -> int:
        """Return the place of the variable of this name that was declared last."""
        return next(at for at in reversed(range(len(self._variables))) if self._variables[at][0] == name)

    # --- values ------------------------------------------------------------------------------------

    def _value(self, pipeline: Pipeline, dot: object) -> object:
        first, *following = pipeline.commands
        value = self._command(first, dot, ())
        for command in following:
            value = self._command(command, dot, (value,))
        return value

    def _command(self, command: Command, dot: object, last: tuple[object, ...]) -> object:
        """Return the value of a command; `last` holds the result of the command before it, if there is one."""
        self._spend()
        head = command.head
        if isinstance(head, Named) and head.name in LAZY:
            return self._lazy(head.name, command.arguments, dot, last)
        arguments = [*(self._operand(argument, dot) for argument in command.arguments), *last]
        self._spend(sum(len(value) for value in arguments if isinstance(value, str | list | tuple)))
        if isinstance(head, Named):
            value = self._call(head.name, arguments)
        elif isinstance(head, Field):
            value = self._field(head, dot, arguments)
        else:
            value = self._operand(head, dot)
        if isinstance(value, str | list):
            self._spend(len(value))
        return value

    def _lazy(self, name: str, arguments: Sequence[Operand], dot: object, last: tuple[object, ...]) -> object:
        """Return the first argument that decides, or the last one."""
        if not arguments and not last:
            raise TemplateError(f"wrong number of arguments for {name}: want at least 1, got 0", "give it a value")
        value: object = None
        for argument in arguments:
            value = self._operand(argument, dot)
            if truth(value) == LAZY[name]:
                return value
        return last[0] if last else value

    def _call(self, name: str, arguments: Sequence[object]) -> object:
        function = self._functions[name]
        if len(arguments) < function.least or (function.most is not None and len(arguments) > function.most):
            wanted = str(function.least) if function.least == function.most else f"at least {function.least}"
            raise TemplateError(
                f"wrong number of arguments for {name}: want {wanted}, got {len(arguments)}",
                "give it what it needs, in parentheses if that is a command",
            )
        try:
            return function.call(*arguments)
        except TemplateError as error:
            problem = error.problem.removeprefix("template: ").removeprefix(f"error calling {name}: ")
            raise TemplateError(f"error calling {name}: {problem}", error.remedy) from None

    def _operand(self, operand: Operand, dot: object) -> object:
        if isinstance(operand, Literal):
            return operand.value
        if isinstance(operand, Dot):
            return dot
        if isinstance(operand, Variable):
            return self._variables[self._place(operand.name)][1]
        if isinstance(operand, Pipeline):
            return self._value(operand, dot)
        if isinstance(operand, Field):
            return self._field(operand, dot, ())
        return self._command(Command(operand, ()), dot, ())

    def _field(self, field: Field, dot: object, arguments: Sequence[object]) -> object:
        self._spend()
        of = self._operand(field.of, dot)
        if not isinstance(of, Mapping):
            raise _no_fields(field, of)
        try:
            value = of[field.name]
        except KeyError:
            raise _missing(field, of) from None
        if not callable(value):
            if arguments:
                raise TemplateError(f"{{{{{printable(field.source)}}}}} takes no arguments", "begin with a function")
            return value
        if len(arguments) != 1 or not isinstance(arguments[0], str):
            what = printable(field.source)
            raise TemplateError(f"{{{{{what}}}}} needs one argument", f'write {{{{{what} "name"}}}}')
        return value(arguments[0])


def _owner(field: Field) -> str:
    """Return the text of what the field belongs to; "" for the present value."""
    return printable(field.source.removesuffix("." + field.name))


def _no_fields(field: Field, of: object) -> TemplateError:
    kind = "null" if of is None or isinstance(of, Nil) else f"a value of type {type_name(of)}"
    owner = _owner(field) or "."
    return TemplateError(
        f"{{{{{printable(field.source)}}}}}: {owner} is {kind}, which has no fields", f"use {{{{{owner}}}}} itself"
    )


def _missing(field: Field, of: Mapping[str, object]) -> TemplateError:
    there = ", ".join(f".{name}" for name in of)
    where = f" in {owner}" if (owner := _owner(field)) else ""
    remedy = f"use one of {there}" if there else "there is nothing in it"
    return TemplateError(f"there is no placeholder {{{{.{field.name}}}}}{where}", remedy)


def _elements(value: object, source: str) -> Iterable[tuple[object, object]]:
    """Return the keys and elements that a range visits; those of a mapping are sorted, as in Go."""
    if isinstance(value, Mapping):
        return sorted((key, inner) for key, inner in value.items() if not callable(inner))
    if isinstance(value, list | tuple):
        return enumerate(value)
    if value is None or isinstance(value, Nil):
        return ()
    if isinstance(value, int) and not isinstance(value, bool):
        return ((number, number) for number in range(value))
    raise TemplateError(f"{source}: can't iterate over a value of type {type_name(value)}", "it needs a list or a map")
