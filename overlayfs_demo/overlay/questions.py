"""Questions to a layer that may not answer for a long time, because another program or machine has to answer them.

Everything that needs the tree's lock waits for its holder, so whoever holds the lock must not wait for such a layer: if
its program stops, only those who need that layer should. So a verb that finds it needs an answer does not get it there
and then: `ask` raises AskFirstError. The verb has changed nothing by then but complete copy-ups. The front lets go of
everything, gets the answer without the lock (`AskFirstError.get_answers`), and calls the verb again, which now finds
the answer. The lowers of a view do not depend on what changes in the view, so the answer is as good as it would have
been a moment later. Once a verb has changed something, it asks directly: all that a change needs is asked before it.

A front chooses this for each of its threads with `begin`. Other threads always ask directly, as for any other layer: a
disk is slow at most.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Sequence
from typing import ParamSpec, TypeVar

_P = ParamSpec("_P")
_T = TypeVar("_T")

# A function and its arguments.
_Question = tuple[Hashable, ...]


class _Answer:
    """What a question led to: a value, or an error."""

    __slots__ = ("_error", "_value")

    def __init__(self, function: Callable[..., object], arguments: Sequence[object]) -> None:
        self._value: object = None
        self._error: OSError | None = None
        try:
            self._value = function(*arguments)
        except OSError as error:
            self._error = error

    def get(self) -> object:
        if self._error is not None:
            raise self._error.with_traceback(None)
        return self._value


class _Here(threading.local):
    """The answers that the verb in progress has got; None if this thread asks directly. And whether the verb can still
    begin again."""

    answers: dict[_Question, _Answer] | None = None
    can_begin_again = True


_here = _Here()


class AskFirstError(Exception):
    """A verb needs answers first. Let go of all locks, call `get_answers`, and call the verb again."""

    def __init__(self, questions: Sequence[_Question]) -> None:
        super().__init__()
        self.questions = questions

    def get_answers(self) -> None:
        """Get the answers, however long that takes. They are kept until this thread calls `begin` or `end`."""
        answers = _here.answers
        if answers is None:
            answers = _here.answers = {}
        for function, *arguments in self.questions:
            assert callable(function)
            answers[function, *arguments] = _Answer(function, arguments)


def begin() -> None:
    """Let this thread get answers before it needs them, and forget those it has."""
    _here.answers = {}
    _here.can_begin_again = True


def note_change() -> None:
    """Note that the verb in progress has changed something, so that it must not begin again."""
    _here.can_begin_again = False


def end() -> None:
    """Let this thread ask directly from now on, and forget all answers."""
    _here.answers = None


def ask(function: Callable[_P, _T], *arguments: _P.args, **none: _P.kwargs) -> _T:
    """Return what `function` does, or raise its OSError. It asks the layer and needs nothing but its arguments.

    Raises AskFirstError.
    """
    answers = _here.answers
    if answers is None:
        return function(*arguments, **none)
    question = (function, *arguments)
    answer = answers.get(question)
    if answer is None:
        if _here.can_begin_again:
            raise AskFirstError([question])
        return function(*arguments, **none)
    value: _T = answer.get()  # type: ignore[assignment]
    return value


class Together:
    """Collects what several parts of a verb need to know, so that it need not begin again for each.

    Use it as a context for each part; a part that needs an answer ends there. `check` raises AskFirstError if one did.
    """

    __slots__ = ("_questions",)

    def __init__(self) -> None:
        self._questions: list[_Question] = []

    def __enter__(self) -> None:
        pass

    def __exit__(self, _type: object, error: BaseException | None, _traceback: object) -> bool:
        if not isinstance(error, AskFirstError):
            return False
        self._questions += error.questions
        return True

    def check(self) -> None:
        """Raise AskFirstError if a part needs an answer."""
        if self._questions:
            raise AskFirstError(self._questions)
