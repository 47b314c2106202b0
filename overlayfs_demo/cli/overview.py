"""The help of the program itself: all verbs, in groups, with one line each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from overlayfs_demo.ui.console import PROGRAM

# What a newcomer needs is at the end, which a terminal of 24 lines still shows.
_FRAME = """\
usage: {program} COMMAND [OPTION]... [ARGUMENT]...

An overlay filesystem you can watch.

{groups}
'{program} help COMMAND' shows the options of a command, and examples.
New here? Start with '{program} tour'.
"""


def overview(groups: Mapping[str, Iterable[str]], summaries: Mapping[str, str]) -> str:
    """Return the help; `groups` has the verbs of each group, and `summaries` what each verb does."""
    width = max(map(len, summaries))
    lines = []
    for group, verbs in groups.items():
        lines += [group, *(f"  {verb:<{width}}  {summaries[verb]}" for verb in verbs), ""]
    return _FRAME.format(program=PROGRAM, groups="\n".join(lines))
