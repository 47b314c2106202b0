"""The manual page, in man(7)'s language.

It is made from the parsers, the only place that says what each verb does and takes.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator

from overlayfs_demo.cli.help_text import blocks
from overlayfs_demo.cli.parser import verbs_of

_HEAD = r""".TH OVERLAYFS-DEMO 1 "" overlayfs-demo "User Commands"
.SH NAME
overlayfs\-demo \- an overlay filesystem you can watch
.SH SYNOPSIS
.B overlayfs\-demo
.I COMMAND
[\fIOPTION\fR]... [\fIARGUMENT\fR]...
.SH DESCRIPTION
A view shows a stack of directories, its layers, as one tree. The lower layers are never changed. The upper layer takes
all changes: a file is copied up before it is written to, and deleting a file of a lower layer leaves a whiteout. The
layers of container images are such directories, and a container is an image with its own upper.
.PP
Layers and uppers use the format of the kernel's overlayfs, so the kernel can mount them, too.
.SH COMMANDS
"""
_TAIL = r""".SH EXIT STATUS
0 for success, 1 for a failure, 2 for wrong usage. A failure prints one line on standard error.
.SH ENVIRONMENT
.TP
.B OVERLAYFS_DEMO_STORE
the directory of images and containers, instead of the default below
.TP
.B XDG_RUNTIME_DIR
where an ordinary user's mounts are recorded
.TP
.B SOURCE_DATE_EPOCH
the creation time of images made by
.BR commit ,
in seconds since 1970: the same changes then give the same image
.TP
.B NO_COLOR
if set, print no colours on a terminal
.SH FILES
.TP
.I /var/lib/overlayfs\-demo
root's store; for other users
.I ~/.local/share/overlayfs\-demo
.TP
.I /run/overlayfs\-demo
records of root's mounts; for other users
.I $XDG_RUNTIME_DIR/overlayfs\-demo
.SH SEE ALSO
.BR mount (8),
.BR docker (1),
.BR getfattr (1),
and the kernel's
.I Documentation/filesystems/overlayfs.rst
"""
# A parser breaks its usage into lines for a terminal.
_USAGE = re.compile(r"^usage:\s*")


def manual(parser: argparse.ArgumentParser) -> str:
    """Return the page for the parser of all verbs."""
    return _HEAD + "".join(map(_verb, verbs_of(parser).values())) + _TAIL


def _verb(verb: argparse.ArgumentParser) -> str:
    verb.color = False  # type: ignore[attr-defined]  # Python 3.14 would colour the usage on a terminal.
    usage = " ".join(_USAGE.sub("", verb.format_usage()).split())
    name = verb.prog.split()[-1]
    lines = [f".SS {_text(name)}", _text(usage), *_blocks(verb.description or "")]
    for action in verb._actions:
        lines += _argument(verb, action)
    lines += _blocks(verb.epilog or "")
    return "\n".join(line for line in lines if line) + "\n"


def _argument(verb: argparse.ArgumentParser, action: argparse.Action) -> Iterator[str]:
    if action.help in (None, argparse.SUPPRESS) or "-h" in action.option_strings:
        return
    metavar = "" if action.nargs == 0 else str(action.metavar or "{" + ",".join(action.choices or ()) + "}")
    names = ", ".join(rf"\fB{_text(option)}\fR" for option in action.option_strings)
    yield ".TP"
    yield f"{names} \\fI{_text(metavar)}\\fR".strip() if metavar else names
    yield _text((action.help or "") % {**vars(action), "prog": verb.prog})


def _blocks(text: str) -> Iterator[str]:
    for is_prose, lines in blocks(text):
        if is_prose:
            yield from (".PP", *map(_text, lines))
        elif any(lines):
            yield from (".nf", *map(_text, lines), ".fi")


def _text(text: str) -> str:
    """Return the text, escaped so that man(7) takes all of it literally."""
    escaped = text.replace("\\", r"\e").replace("-", r"\-").replace("'", r"\(aq").replace("`", r"\(ga")
    return rf"\&{escaped}" if escaped.startswith(".") else escaped or r"\&"
