"""The parser of the program and of each verb."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from typing import Any


class Parser(argparse.ArgumentParser):
    """A parser that reports a word it does not know itself, with its own usage.

    argparse leaves such words to the outermost parser, whose usage does not show the options of the verb.
    """

    def parse_known_args(self, *arguments: Any, **more: Any) -> Any:
        """Parse as argparse does, but exit with status 2 if a word is left over."""
        found, unknown = super().parse_known_args(*arguments, **more)
        if unknown:
            self.error(self._complaint(unknown))
        return found, unknown

    def _complaint(self, unknown: list[str]) -> str:
        import difflib  # Only a mistake needs it.

        words = " ".join(unknown)
        near = difflib.get_close_matches(unknown[0].partition("=")[0], self._option_string_actions, 1)
        return f"unrecognized arguments: {words}" + (f": did you mean '{near[0]}'?" if near else "")


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
