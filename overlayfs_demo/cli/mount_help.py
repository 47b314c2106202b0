"""The help of `mount`: its description, with every mount option."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from itertools import groupby

from overlayfs_demo.cli.help_text import filled
from overlayfs_demo.mounts.option_kinds import MountOption
from overlayfs_demo.mounts.option_table import OPTIONS

# Columns: where the help of an option begins, and how long a line may be. The manual page indents it by 7 more.
_HELP_COLUMN = 26
_WIDTH = 73

_FRAME = """\
Mount a stack of layers as one tree, and return when the view is ready.

options (-o, comma-separated; a comma in a path is written '\\,'):
{options}

example:
  overlayfs-demo mount -o lowerdir=app:base,upperdir=up,workdir=work view
"""


def mount_help() -> str:
    """Return the description in `mount --help` and the manual page. Neighbours with the same help share an entry."""
    entries = (_entry(help, options) for help, options in groupby(OPTIONS, key=lambda option: option.help))
    return _FRAME.format(options="\n".join(entries))


def _entry(help: str, options: Iterable[MountOption]) -> str:
    """Return the options followed by their help, which begins on its own line if they leave no room for it."""
    usages = ", ".join(option.usage for option in options)
    lines = textwrap.wrap(
        usages, _WIDTH, initial_indent="  ", subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )
    first, *rest = filled(help, _WIDTH - _HELP_COLUMN) or [""]
    if len(lines[-1]) < _HELP_COLUMN:
        lines[-1] = f"{lines[-1]:{_HELP_COLUMN}}{first}".rstrip()
    elif first:
        lines.append(" " * _HELP_COLUMN + first)
    return "\n".join([*lines, *(" " * _HELP_COLUMN + line for line in rest)])
