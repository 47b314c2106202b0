"""Docker's groups of verbs: `image ls` is `images`, `system df` is `df`.

Each verb of a group is the verb of its own module under another name, with the same options.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from functools import partial

from overlayfs_demo.cli.command import Verbs
from overlayfs_demo.cli.families import MODULE_OF, SUMMARIES, family
from overlayfs_demo.cli.help_text import HelpFormatter
from overlayfs_demo.ui.console import PROGRAM, put

# By group and by the verb's name in it: its name among all verbs.
GROUPS: Mapping[str, Mapping[str, str]] = {
    "image": {
        "ls": "images",
        "history": "history",
        "inspect": "inspect",
        "import": "import",
        "load": "load",
        "prune": "prune",
        "pull": "pull",
        "push": "push",
        "rm": "rmi",
        "save": "save",
        "tag": "tag",
    },
    "container": {
        "ls": "ps",
        "create": "create",
        "run": "run",
        "exec": "exec",
        "cp": "cp",
        "start": "start",
        "restart": "restart",
        "stop": "stop",
        "rename": "rename",
        "rm": "rm",
        "prune": "prune",
        "inspect": "inspect",
        "diff": "diff",
        "commit": "commit",
        "export": "export",
    },
    "system": {"df": "df", "prune": "prune"},
}
# A verb that only a group has: its module, and what it does.
_OWN: Mapping[tuple[str, str], tuple[str, str]] = {
    ("container", "prune"): ("container_prune", "remove all stopped containers and their changes")
}
# What a verb takes for granted in a group.
_DEFAULTS: Mapping[tuple[str, str], Mapping[str, object]] = {
    ("image", "inspect"): {"type": "image"},
    ("container", "inspect"): {"type": "container"},
}


def add_verbs(verbs: Verbs[argparse.ArgumentParser]) -> None:
    """Add the verbs of this module."""
    for group, members in GROUPS.items():
        names = (name if name == verb else f"{name} ({verb})" for name, verb in members.items())
        title = f"{SUMMARIES[group]}: {', '.join(names)}"
        first = next(iter(members))
        parser = verbs.add_parser(
            group,
            help=SUMMARIES[group],
            description=f"{title[0].upper()}{title[1:]}.",
            epilog=f"example:\n  {PROGRAM} {group} {first}",
            formatter_class=HelpFormatter,
        )
        parser.set_defaults(run=partial(_help, parser))
        inner = parser.add_subparsers(title="commands", metavar="COMMAND")
        for name, verb in members.items():
            module, summary = _OWN.get((group, name), (MODULE_OF[verb], SUMMARIES[verb]))
            _add(inner, group, name, _verb(module, verb), summary)


def _help(parser: argparse.ArgumentParser, _arguments: argparse.Namespace) -> int:
    """Print the help of a group, as docker does for a group without a verb."""
    put(parser.format_help())
    return 0


def _verb(module: str, verb: str) -> argparse.ArgumentParser:
    """Return the parser of a verb, from a parser of its own that nobody else uses."""
    found = argparse.ArgumentParser(prog=PROGRAM).add_subparsers()
    family(module).add_verbs(found)
    return found.choices[verb]


def _add(
    inner: Verbs[argparse.ArgumentParser], group: str, name: str, verb: argparse.ArgumentParser, summary: str
) -> None:
    examples = (verb.epilog or "").replace(verb.prog, f"{PROGRAM} {group} {name}")
    parser = inner.add_parser(
        name,
        parents=[verb],
        add_help=False,  # The verb has that option already.
        help=summary,
        description=verb.description,
        epilog=examples,
        formatter_class=HelpFormatter,
    )
    parser.set_defaults(**_DEFAULTS.get((group, name), {}))
