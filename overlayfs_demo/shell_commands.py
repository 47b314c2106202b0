"""What can be typed to learn about the commands: completion and the manual page?"""

from __future__ import annotations

import argparse
from collections.abc import Callable

from overlayfs_demo.commands import PROGRAM, Verbs, put
from overlayfs_demo.completion import SHELLS, script
from overlayfs_demo.manual import manual


def add_shell_verbs(
    verbs: Verbs[argparse.ArgumentParser], whole_parser: Callable[[], argparse.ArgumentParser]
) -> None:
    """The verbs of this module; `whole_parser` makes the parser of all verbs."""
    verb = verbs.add_parser(
        "completion", help="print what a shell needs to complete our words",
        description="Print what a shell needs to complete our words.",
        epilog=f"example:\n  source <({PROGRAM} completion bash)\n  {PROGRAM} completion fish | source",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verb.add_argument("shell", choices=SHELLS, help="which shell reads it")
    verb.set_defaults(run=lambda arguments: _print(script(arguments.shell)))
    verb = verbs.add_parser(
        "manual", help="print the manual page", description="Print the manual page, in man(7)'s language.",
        epilog=f"example:\n  {PROGRAM} manual | man -l -", formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verb.set_defaults(run=lambda _arguments: _print(manual(whole_parser())))


def _print(text: str) -> int:
    put(text)
    return 0
