"""The parser of Go templates: from text to the tree that is executed (Go's text/template/parse).

The subset: fields, variables, literals, pipelines, parentheses, functions, `if`, `with`, `range`, `else`, comments and
trimming. There are no `define`, `template`, `block`, `break` and `continue`, so no template calls itself.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from overlayfs_demo.ui.go_template_error import TemplateError
from overlayfs_demo.ui.go_template_lexer import Action, Kind, Text, Token, lex

# How deep blocks and parentheses may be nested.
_DEEPEST = 50
_MOST_CHARACTERS = 65_536
_NOT_HERE = ("define", "template", "block", "break", "continue")
_BLOCKS = ("if", "with", "range")
_LONGEST_NUMBER = 70
_CONSTANTS: dict[str, object] = {"true": True, "false": False, "nil": None}


@dataclass(frozen=True, slots=True)
class Literal:
    """A string, a number, true, false or nil."""

    value: object


@dataclass(frozen=True, slots=True)
class Variable:
    """`$x`; `$` is the value that the template was given."""

    name: str


@dataclass(frozen=True, slots=True)
class Dot:
    """`.`, the present value."""


@dataclass(frozen=True, slots=True)
class Field:
    """`.Name` of a value."""

    of: Operand
    name: str
    source: str


@dataclass(frozen=True, slots=True)
class Function:
    """The name of a function, as an operand."""

    name: str


@dataclass(frozen=True, slots=True)
class Command:
    """An operand, and the arguments that follow it."""

    head: Operand
    arguments: tuple[Operand, ...]


@dataclass(frozen=True, slots=True)
class Pipeline:
    """Commands, each of which gets the result of the one before as its last argument; then variables to set.

    `declares` says that the variables are new (`:=`).
    """

    commands: tuple[Command, ...]
    variables: tuple[str, ...] = ()
    declares: bool = False


Operand = Literal | Variable | Dot | Field | Function | Pipeline


@dataclass(frozen=True, slots=True)
class Output:
    """An action that prints the value of a pipeline."""

    pipeline: Pipeline


@dataclass(frozen=True, slots=True)
class Block:
    """An `if`, `with` or `range` with its two bodies; `source` is its first action, for messages."""

    keyword: str
    pipeline: Pipeline
    body: tuple[Node, ...]
    otherwise: tuple[Node, ...]
    source: str


Node = Text | Output | Block


def parse(template: str, functions: Collection[str]) -> tuple[Node, ...]:
    """Return the tree of a template. Raises TemplateError."""
    if len(template) > _MOST_CHARACTERS:
        raise TemplateError(f"it has more than {_MOST_CHARACTERS} characters", "write a shorter one")
    return _Parser(list(lex(template)), template, functions).whole()


class _Parser:
    """The parser of the whole template: bodies and blocks."""

    def __init__(self, parts: Sequence[Text | Action], template: str, functions: Collection[str]) -> None:
        self._parts = parts
        self._at = 0
        self._template = template
        self._functions = functions
        self._depth = 0

    def whole(self) -> tuple[Node, ...]:
        body, stop = self._body(("$",))
        if stop is not None:
            raise TemplateError(f"unexpected {stop.source}", "it needs an {{if}}, {{with}} or {{range}} before it")
        return body

    def _body(self, variables: tuple[str, ...]) -> tuple[tuple[Node, ...], Action | None]:
        """Return the nodes up to an `else` or `end`, and that action; None at the end of the template."""
        nodes: list[Node] = []
        while self._at < len(self._parts):
            part = self._parts[self._at]
            self._at += 1
            if isinstance(part, Text):
                nodes.append(part)
                continue
            word = part.tokens[0].text
            if word in ("else", "end"):
                return tuple(nodes), part
            if word in _BLOCKS:
                nodes.append(self._block(part, part.tokens, variables))
            else:
                pipeline = self._pipeline(part, part.tokens, variables)
                variables += pipeline.variables if pipeline.declares else ()
                nodes.append(Output(pipeline))
        return tuple(nodes), None

    def _block(self, action: Action, tokens: Sequence[Token], variables: tuple[str, ...]) -> Block:
        self._depth += 1
        if self._depth > _DEEPEST:
            raise TemplateError(f"its blocks are nested more than {_DEEPEST} deep", "write a simpler one")
        keyword = tokens[0].text
        pipeline = self._pipeline(action, tokens[1:], variables, in_range=keyword == "range")
        inside = variables + (pipeline.variables if pipeline.declares else ())
        body, stop = self._body(inside)
        otherwise: tuple[Node, ...] = ()
        if stop is not None and stop.tokens[0].text == "else":
            otherwise, stop = self._otherwise(stop, keyword, inside)
        if stop is None:
            raise TemplateError(f"{action.source} has no {{{{end}}}}", "add {{end}}")
        if stop.tokens[0].text != "end" or stop.tokens[1].kind is not Kind.END:
            raise TemplateError(f"expected {{{{end}}}}, found {stop.source}", "a block has one {{else}}, then {{end}}")
        self._depth -= 1
        return Block(keyword, pipeline, body, otherwise, action.source)

    def _otherwise(
        self, action: Action, keyword: str, variables: tuple[str, ...]
    ) -> tuple[tuple[Node, ...], Action | None]:
        """Return the nodes of an `else`, and the action that ends them; an `else if` also needs only one `end`."""
        following = action.tokens[1]
        if following.kind is Kind.END:
            return self._body(variables)
        if following.text != keyword or keyword == "range":
            raise TemplateError(f"unexpected {action.source}", "write {{else}}, or {{else if}} in an {{if}}")
        block = self._block(action, action.tokens[1:], variables)
        last = self._parts[self._at - 1]
        assert isinstance(last, Action)
        return (block,), last

    def _pipeline(
        self, action: Action, tokens: Sequence[Token], variables: tuple[str, ...], *, in_range: bool = False
    ) -> Pipeline:
        reader = _ActionParser(tokens, action.source, self._template, self._functions, variables)
        return reader.whole(in_range=in_range)


class _ActionParser:
    """The parser of one action: a pipeline."""

    def __init__(
        self,
        tokens: Sequence[Token],
        source: str,
        template: str,
        functions: Collection[str],
        variables: tuple[str, ...],
    ) -> None:
        self._tokens = tokens
        self._at = 0
        self._source = source
        self._template = template
        self._functions = functions
        self._variables = variables
        self._depth = 0

    @property
    def _next(self) -> Token:
        return self._tokens[self._at]

    def _take(self) -> Token:
        self._at += 1
        return self._tokens[self._at - 1]

    def _unexpected(self, token: Token) -> TemplateError:
        if token.kind is Kind.END:
            return TemplateError(f"{self._source}: a value is missing", "write a placeholder, such as {{.ID}}")
        return TemplateError(f"{self._source}: unexpected {token.text}", "separate words by blanks, and commands by |")

    def whole(self, *, in_range: bool) -> Pipeline:
        variables, declares = self._declaration(in_range=in_range)
        known = self._variables
        if not declares and (unknown := [name for name in variables if name not in known]):
            raise TemplateError(f"undefined variable {unknown[0]}", "define it first with :=")
        pipeline = self._commands()
        if self._next.kind is not Kind.END:
            raise self._unexpected(self._next)
        return Pipeline(pipeline.commands, variables, declares)

    def _declaration(self, *, in_range: bool) -> tuple[tuple[str, ...], bool]:
        """Read `$x :=`, `$x =` or, in a range, `$i, $x :=` if that is there."""
        marks = ["$" if token.kind is Kind.VARIABLE else token.text for token in self._tokens[:4]]
        if marks[:2] in (["$", ":="], ["$", "="]):
            length = 2
        elif in_range and marks in (["$", ",", "$", ":="], ["$", ",", "$", "="]):
            length = 4
        else:
            return (), False
        self._at = length
        return tuple(token.text for token in self._tokens[:length:2]), marks[length - 1] == ":="

    def _commands(self) -> Pipeline:
        commands = [self._command()]
        while self._next.text == "|" and self._next.kind is Kind.MARK:
            self._take()
            commands.append(self._command())
            if not isinstance(commands[-1].head, Function | Field):
                raise TemplateError(f"{self._source}: what follows | must be a function", "as in {{.ID | upper}}")
        return Pipeline(tuple(commands))

    def _command(self) -> Command:
        head, *arguments = self._operands()
        if arguments and not isinstance(head, Function | Field):
            raise TemplateError(f"{self._source}: a value takes no arguments", "begin with a function")
        return Command(head, tuple(arguments))

    def _operands(self) -> list[Operand]:
        found: list[Operand] = []
        while not (self._next.kind is Kind.END or (self._next.kind is Kind.MARK and self._next.text in "|)")):
            found.append(self._operand())
        if not found:
            raise self._unexpected(self._next)
        return found

    def _operand(self) -> Operand:
        first = self._take()
        operand, fields = self._term(first), 0
        # Fields of one operand follow each other without blanks: `.A.B` is one value, `.A .B` are two.
        while self._next.kind is Kind.FIELD and self._next.start == self._tokens[self._at - 1].end:
            token = self._take()
            operand, fields = Field(operand, token.text[1:], self._template[first.start : token.end]), fields + 1
            if fields > _DEEPEST:
                raise TemplateError(f"a value has more than {_DEEPEST} fields in a row", "write a simpler one")
        return operand

    def _term(self, token: Token) -> Operand:
        if token.kind is Kind.FIELD:
            return Field(Dot(), token.text[1:], token.text)
        if token.kind is Kind.VARIABLE:
            if token.text not in self._variables:
                raise TemplateError(f"undefined variable {token.text}", "define it first with :=")
            return Variable(token.text)
        if token.kind is Kind.WORD:
            return self._word(token.text)
        if token.kind is Kind.MARK:
            return self._marked(token)
        return Literal(_value(token))

    def _word(self, word: str) -> Operand:
        if word in _CONSTANTS:
            return Literal(_CONSTANTS[word])
        if word in _NOT_HERE:
            raise TemplateError(f"{{{{{word}}}}} is not supported", "use {{if}}, {{with}}, {{range}} and functions")
        if word not in self._functions:
            raise TemplateError(
                f"function {word!r} is not defined", f"a placeholder begins with a dot; functions: {self._listed()}"
            )
        return Function(word)

    def _listed(self) -> str:
        return ", ".join(sorted(self._functions))

    def _marked(self, token: Token) -> Operand:
        if token.text == ".":
            return Dot()
        if token.text != "(":
            raise self._unexpected(token)
        self._depth += 1
        if self._depth > _DEEPEST:
            raise TemplateError(f"its parentheses are nested more than {_DEEPEST} deep", "write a simpler one")
        pipeline = self._commands()
        if self._take().text != ")":
            raise TemplateError(f"{self._source}: unclosed left parenthesis", "add )")
        self._depth -= 1
        return pipeline


# --- literals --------------------------------------------------------------------------------------

_ESCAPE = re.compile(r"\\(x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|[0-7]{3}|.)")
_CONTROLS = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}


def _value(token: Token) -> object:
    if token.kind is Kind.RAW:
        return token.text[1:-1]
    if token.kind in (Kind.STRING, Kind.CHARACTER):
        text = _ESCAPE.sub(_unescaped, token.text[1:-1])
        return text if token.kind is Kind.STRING else ord(text[:1])
    return _number(token.text)


def _unescaped(match: re.Match[str]) -> str:
    code = match[1]
    try:
        if code[0] in "xuU" and len(code) > 1:
            return chr(int(code[1:], 16))
        if len(code) == 3:
            return chr(int(code, 8))
    except ValueError:
        raise TemplateError(f"{match[0]} is not a character", "Unicode ends at \\U0010ffff") from None
    if code in _CONTROLS or code in "\\\"'":
        return _CONTROLS.get(code, code)
    raise TemplateError(f"unknown escape {match[0]} in a string", "write \\\\ for a backslash")


def _number(text: str) -> int | float:
    digits = text.lower()
    try:
        if re.fullmatch(r"[+-]?(0[xob][0-9a-f_]+|0|[1-9][0-9_]*)", digits) and len(digits) <= _LONGEST_NUMBER:
            return int(digits, 0)
        return float(digits)
    except ValueError:
        raise TemplateError(
            f"bad number syntax: {text[:_LONGEST_NUMBER]}", "write it as in 12 or 1.5, or put text in quotes"
        ) from None
