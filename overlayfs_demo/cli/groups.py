"""Docker's groups of verbs: `image ls` is `images`, `system df` is `df`.

Each verb of a group is the verb of its own module under another name, with the same options.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from functools import partial
from importlib import import_module

from overlayfs_demo.cli.command import Verbs
from overlayfs_demo.cli.help_text import HelpFormatter
from overlayfs_demo.ui.console import PROGRAM, put

# By group and by the verb's name in it: which module has the verb, and its name there.
GROUPS: Mapping[str, Mapping[str, tuple[str, str]]] = {
    "image": {
        "ls": ("images", "images"),
        "history": ("images", "history"),
        "inspect": ("inspect", "inspect"),
        "import": ("images", "import"),
        "load": ("images", "load"),
        "prune": ("images", "prune"),
        "rm": ("images", "rmi"),
        "save": ("save", "save"),
        "tag": ("images", "tag"),
    },
    "container": {
        "ls": ("containers", "ps"),
        "create": ("containers", "create"),
        "run": ("container_run", "run"),
        "exec": ("container_run", "exec"),
        "cp": ("container_cp", "cp"),
        "start": ("containers", "start"),
        "stop": ("containers", "stop"),
        "rename": ("containers", "rename"),
        "rm": ("containers", "rm"),
        "prune": ("container_prune", "prune"),
        "inspect": ("inspect", "inspect"),
        "diff": ("containers", "diff"),
        "commit": ("containers", "commit"),
        "export": ("containers", "export"),
    },
    "system": {"df": ("disk_usage", "df"), "prune": ("images", "prune")},
}
_TITLES = {
    "image": "docker's group of verbs for images",
    "container": "docker's group of verbs for containers",
    "system": "docker's group of verbs for the whole store",
}
# What a verb takes for granted in a group.
_DEFAULTS: Mapping[tuple[str, str], Mapping[str, object]] = {
    ("image", "inspect"): {"type": "image"},
    ("container", "inspect"): {"type": "container"},
}


def add_verbs(verbs: Verbs[argparse.ArgumentParser]) -> None:
    """Add the verbs of this module."""
    for group, members in GROUPS.items():
        names = (name if name == verb else f"{name} ({verb})" for name, (_, verb) in members.items())
        title = f"{_TITLES[group]}: {', '.join(names)}"
        first = next(iter(members))
        parser = verbs.add_parser(
            group,
            help=_TITLES[group],
            description=f"{title[0].upper()}{title[1:]}.",
            epilog=f"example:\n  {PROGRAM} {group} {first}",
            formatter_class=HelpFormatter,
        )
        parser.set_defaults(run=partial(_help, parser))
        inner = parser.add_subparsers(title="commands", metavar="COMMAND")
        for name, (module, verb) in members.items():
            _add(inner, group, name, _verb(module, verb))


def _help(parser: argparse.ArgumentParser, _arguments: argparse.Namespace) -> int:
    """Print the help of a group, as docker does for a group without a verb."""
    put(parser.format_help())
    return 0


def _verb(module: str, verb: str) -> argparse.ArgumentParser:
    """Return the parser of a verb, from a parser of its own that nobody else uses."""
    found = argparse.ArgumentParser(prog=PROGRAM).add_subparsers()
    import_module(f"overlayfs_demo.cli.{module}").add_verbs(found)
    return found.choices[verb]


def _add(inner: Verbs[argparse.ArgumentParser], group: str, name: str, verb: argparse.ArgumentParser) -> None:
    examples = (verb.epilog or "").replace(verb.prog, f"{PROGRAM} {group} {name}")
    parser = inner.add_parser(
        name,
        parents=[verb],
        add_help=False,  # The verb has that option already.
        help=(verb.description or "").partition("\n")[0],
        description=verb.description,
        epilog=examples,
        formatter_class=HelpFormatter,
    )
    parser.set_defaults(**_DEFAULTS.get((group, name), {}))
