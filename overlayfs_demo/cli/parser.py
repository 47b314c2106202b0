"""The parser of the program and of each verb."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from overlayfs_demo.cli.unknown import unknown_in_group
from overlayfs_demo.errors import near

_ActionT = TypeVar("_ActionT", bound=argparse.Action)
# Docker takes the value of an option that is on or off, as in `--pause=false` (pflag).
_TRUTH = re.compile(r"(--[\w-]+)=(true|false)")


class Parser(argparse.ArgumentParser):
    """A parser that reports a word it does not know itself, with its own usage.

    argparse leaves such words to the outermost parser, whose usage does not show the options of the verb.
    """

    @property
    def description(self) -> str | None:
        """The text between the usage and the options."""
        return self._describe()

    @description.setter
    def description(self, text: str | None) -> None:
        self._describe: Callable[[], str | None] = lambda: text

    def describe_with(self, describe: Callable[[], str]) -> None:
        """Call `describe` for the description, but only when that is shown."""
        self._describe = describe

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse as argparse does, but exit with status 2 if a word is left over, and take `--OPTION=true` or `=false`.

        Raises UsageError for a verb that a group does not have.
        """
        found, unknown = super().parse_known_args(None if args is None else self._without_truths(args), namespace)
        if unknown:
            self.error(self._complaint(unknown))
        return found, unknown

    def _add_action(self, action: _ActionT) -> _ActionT:
        # Before Python 3.13, argparse lists a last argument that may be empty among those that are missing.
        if not action.option_strings and action.nargs in (argparse.ZERO_OR_MORE, argparse.REMAINDER):
            action.required = False
        return super()._add_action(action)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if isinstance(action, argparse._SubParsersAction) and value not in action.choices:
            raise unknown_in_group(self.prog.rpartition(" ")[2], value, action.choices)
        super()._check_value(action, value)

    def _without_truths(self, words: Sequence[str]) -> list[str]:
        """Return the words with `--OPTION` for `--OPTION=true`, and without `--OPTION=false`.

        The words of a command that is to be run are not ours: they begin with a word that is no option.
        """
        runs = any(action.nargs == argparse.REMAINDER for action in self._actions)
        kept: list[str] = []
        is_value = False
        for index, word in enumerate(words):
            if word == "--" or (runs and not is_value and not word.startswith("-")):
                return [*kept, *words[index:]]
            option = self._option_string_actions.get(word)
            is_value = option is not None and option.nargs is None
            truth = _TRUTH.fullmatch(word)
            if truth and isinstance(self._option_string_actions.get(truth[1]), argparse._StoreTrueAction):
                kept += [truth[1]] if truth[2] == "true" else []
            else:
                kept.append(word)
        return kept

    def _complaint(self, unknown: list[str]) -> str:
        words = " ".join(unknown)
        meant = near(unknown[0].partition("=")[0], self._option_string_actions)
        return f"unrecognized arguments: {words}" + (f": did you mean '{meant[0]}'?" if meant else "")


def verbs_of(parser: argparse.ArgumentParser) -> Mapping[str, argparse.ArgumentParser]:
    """Return the parser of each verb that a parser has, by name."""
    return {
        name: verb
        for action in parser._actions
        if isinstance(action, argparse._SubParsersAction)
        for name, verb in action.choices.items()
    }


def all_verbs(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """Yield the parser of each verb that a parser has, and of each verb in a group."""
    for verb in verbs_of(parser).values():
        yield verb
        yield from all_verbs(verb)
