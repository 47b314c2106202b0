"""The help of the program itself: all verbs, in groups, with one line each."""

from __future__ import annotations

from overlayfs_demo.cli.families import FAMILIES, SUMMARIES
from overlayfs_demo.ui.console import PROGRAM

# What a newcomer needs is at the end, which a terminal of 24 lines still shows.
_FRAME = """\
usage: {program} COMMAND [OPTION]... [ARGUMENT]...

An overlay filesystem you can watch.

{groups}
'{program} help COMMAND' shows the options of a command, and examples.
New here? Start with '{program} tour'.
"""


def overview() -> str:
    """Return the help."""
    width = max(map(len, SUMMARIES))
    lines = []
    for group, families in FAMILIES.items():
        verbs = [verb for family in families.values() for verb in family]
        lines += [group, *(f"  {verb:<{width}}  {SUMMARIES[verb]}" for verb in verbs), ""]
    return _FRAME.format(program=PROGRAM, groups="\n".join(lines))
