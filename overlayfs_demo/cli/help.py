"""What can be typed to learn about the commands: completion and the manual page?"""

from __future__ import annotations

import argparse
from collections.abc import Callable

from overlayfs_demo.cli.command import Verbs, new_verb
from overlayfs_demo.cli.completion import SHELLS, script
from overlayfs_demo.cli.manpage import manual
from overlayfs_demo.ui.console import PROGRAM, put


def add_shell_verbs(
    verbs: Verbs[argparse.ArgumentParser], whole_parser: Callable[[], argparse.ArgumentParser]
) -> None:
    """The verbs of this module; `whole_parser` makes the parser of all verbs."""
    verb = new_verb(
        verbs, "completion", "print what a shell needs to complete our words",
        f"source <({PROGRAM} completion bash)\n{PROGRAM} completion fish | source",
        lambda arguments: _print(script(arguments.shell)),
    )
    verb.add_argument("shell", choices=SHELLS, help="which shell reads it")
    new_verb(
        verbs, "manual", "print the manual page", f"{PROGRAM} manual | man -l -",
        lambda _arguments: _print(manual(whole_parser())), "Print the manual page, in man(7)'s language.",
    )


def _print(text: str) -> int:
    put(text)
    return 0
