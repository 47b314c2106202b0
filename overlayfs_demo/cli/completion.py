"""The verb `completion`, and the completion of half-typed words in a shell.

argcomplete does the work: it knows bash, zsh and fish, and takes verbs and options from the parser. This module adds
what it cannot know: which images, containers and views exist now.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import argcomplete
from argcomplete.completers import FilesCompleter
from argcomplete.shell_integration import shellcode

from overlayfs_demo.cli import documents
from overlayfs_demo.cli.command import Verbs, new_verb
from overlayfs_demo.cli.parser import all_verbs, verbs_of
from overlayfs_demo.errors import OverlayError
from overlayfs_demo.mounts import registry
from overlayfs_demo.store.container import all_containers
from overlayfs_demo.store.root import default_root
from overlayfs_demo.store.store import Store
from overlayfs_demo.ui.console import PROGRAM, put

SHELLS = ("bash", "zsh", "fish")


def add_verbs(verbs: Verbs[argparse.ArgumentParser]) -> None:
    """Add the verb of this module."""
    verb = new_verb(
        verbs, "completion", f"source <({PROGRAM} completion bash)\n{PROGRAM} completion fish | source", _script
    )
    verb.add_argument("shell", choices=SHELLS, help="the shell that reads it")


def _script(arguments: argparse.Namespace) -> int:
    """Print the script that a shell reads to complete our words."""
    put(shellcode([PROGRAM], shell=arguments.shell).strip() + "\n")
    return 0


def complete(parser: argparse.ArgumentParser) -> None:
    """Answer the shell, and end the process."""
    for verb in all_verbs(parser):
        for action in verb._actions:
            completer = _COMPLETERS.get(str(action.metavar))
            if completer is not None:
                action.completer = completer  # type: ignore[attr-defined]  # argcomplete looks for it there
    argcomplete.autocomplete(parser, always_complete_options=False)


def _store(arguments: argparse.Namespace) -> Store | None:
    """Return the store that the words so far name; None if there is none, because completion must not make one."""
    root: Path = arguments.store or default_root()
    return Store(root) if (root / "version").exists() else None


def _images(parsed_args: argparse.Namespace, **_: Any) -> list[str]:
    store = _store(parsed_args)
    return [str(name) for image in store.images() for name in image.names] if store else []


def _containers(parsed_args: argparse.Namespace, **_: Any) -> list[str]:
    store = _store(parsed_args)
    return [container.name for container in all_containers(store)] if store else []


def _both(parsed_args: argparse.Namespace, **more: Any) -> list[str]:
    return _containers(parsed_args, **more) + _images(parsed_args, **more)


def _verb_names(parsed_args: argparse.Namespace, **_: Any) -> list[str]:
    return list(verbs_of(parsed_args.parser_for([])))


def _views(**_: Any) -> list[str]:
    return sorted(registry.mounted())


def _views_and_containers(parsed_args: argparse.Namespace, **more: Any) -> list[str]:
    return _views() + _containers(parsed_args, **more)


def _quietly(candidates: Callable[..., list[str]]) -> Callable[..., list[str]]:
    """Return the same function, which offers nothing if the store cannot be read: a command will say why."""

    def offered(**context: Any) -> list[str]:
        try:
            return candidates(**context)
        except (OverlayError, OSError):
            return []

    return offered


# By the name of the word in the help.
_COMPLETERS = {
    "IMAGE": _quietly(_images),
    "IMAGE[@N]": _quietly(_images),
    "C": _quietly(_containers),
    "C|IMAGE": _quietly(_both),
    "C|IMAGE[@N]": _quietly(_both),
    "MOUNTPOINT|C|IMAGE": _quietly(_both),
    "MOUNTPOINT|C": _quietly(_views_and_containers),
    "MOUNTPOINT": _quietly(_views),
    "DIR": FilesCompleter(),
    "FILE": FilesCompleter(),
    "PATH": FilesCompleter(),
    "TOPIC": lambda **_: documents.topics(),
    "VERB": _verb_names,
}
