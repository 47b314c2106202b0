"""The verb `explain`: what a command would change in a view."""

from __future__ import annotations

import argparse
import os
import re
import shutil
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from overlayfs_demo.cli.command import Verbs, new_verb
from overlayfs_demo.cli.redirection import check_outside_views
from overlayfs_demo.cli.store_options import add_store
from overlayfs_demo.cli.view_name import view_path
from overlayfs_demo.errors import MountError, OverlayError, UsageError, printable
from overlayfs_demo.explain.dry_run import Outcome, rehearse
from overlayfs_demo.mounts import registry
from overlayfs_demo.overlay.forecast import Effect
from overlayfs_demo.ui.console import PROGRAM, put, put_json
from overlayfs_demo.ui.table import Table
from overlayfs_demo.ui.terminal import put_prose, put_table
from overlayfs_demo.ui.text import human_size, plural

# How many paths are shown without --all.
_SHOWN = 10
# The characters that can surround a path in a word for a shell, or precede it in dd's words.
_AROUND = re.compile(r"[\s;|&<>()'\"=]+")

_HELP = """\
Show what a command would copy up, white out, free and write in a view, without doing it.

The command really runs, on a second view of the same layers that is removed afterwards. It runs in a
sandbox made by bubblewrap: the second view takes the place of the first, and all other directories, even
/tmp, are read-only. The command has no network and cannot reach any daemon. It sees no other processes, and
everything that it starts ends with it. Root has no more capabilities than in a Docker container.

A redirection belongs to the command only inside quotes: explain sh -c 'echo hi > view/file'. Otherwise
your shell makes it, before anything is explained; if its file is in a view, explain stops.

The command's standard streams are pipes, so it sees no terminal. Its output goes to stderr; only the
explanation goes to stdout. It reads the standard input of explain: inside a shell's `while read` loop that
reads from a pipe, add </dev/null.

The command can still read whatever you can read, print to your terminal, take data out of a FIFO, lock files
that it can read, and use up memory, processor time, and the space beside the view's work directory. On a
kernel without Landlock (Linux 5.19), it can also write to FIFOs outside the view.

The view is the one named by --on; otherwise the one in which an argument of the command is a path; otherwise
the one of the current directory. --on changes neither the directory in which the command starts nor its paths, so
for a container they begin with its mount point, which 'ps' shows.

The exit status is 0 if the explanation is complete; the command's own exit status is part of the explanation.
"""


def add_verbs(verbs: Verbs[argparse.ArgumentParser]) -> None:
    """Add the verbs of this module."""
    verb = new_verb(
        verbs,
        "explain",
        f"{PROGRAM} explain chmod -R g+w view/opt\n{PROGRAM} explain --on view sh -c 'cd view/etc && sed -i s/a/b/ *'",
        _explain,
        _HELP,
    )
    verb.add_argument("--on", metavar="MOUNTPOINT|C", help="the view, any path in it, or a container")
    add_store(verb)
    verb.add_argument("--json", action="store_true", help="one JSON object with totals and every path")
    verb.add_argument("--all", action="store_true", help=f"show all paths instead of the {_SHOWN} largest")
    verb.add_argument("command", metavar="COMMAND")
    verb.add_argument("arguments", nargs=argparse.REMAINDER, metavar="ARG")


def _explain(arguments: argparse.Namespace) -> int:
    command = [arguments.command, *arguments.arguments]
    check_outside_views(command)
    if shutil.which(arguments.command) is None:
        raise OverlayError(f"command not found: '{printable(arguments.command)}'", "name a program and its arguments")
    mountpoint = _view_of(arguments.on and view_path(arguments.on, arguments.store), command)
    record = registry.find_record(mountpoint)
    if record is None:
        raise MountError(
            f"{printable(mountpoint)} is not recorded as mounted by this user", "run this as the user who mounted it"
        )
    outcome = rehearse(record, command, os.getcwdb())
    if arguments.json:
        put_json([_json(mountpoint, command, outcome)])
    else:
        put_prose("".join(f"{line}\n" for line in _sentences(mountpoint, outcome)))
        _put_paths(outcome.effects, None if arguments.all else _SHOWN)
    return 0


def _view_of(on: str | None, command: Sequence[str]) -> str:
    """Return the mount point of the view that is meant. Raises MountError, UsageError."""
    if on is not None:
        return registry.place_in_view(os.fsencode(on), follow=True).mountpoint
    pieces = [piece for word in command[1:] for piece in _AROUND.split(word) if piece and not piece.startswith("-")]
    for piece in [*pieces, "."]:
        try:
            return registry.place_in_view(os.fsencode(piece), follow=False).mountpoint
        except MountError:
            continue
    raise UsageError("no argument of the command is a path in a view", "name the view: --on MOUNTPOINT")


# --- in words --------------------------------------------------------------------------------------


def _files(number: int) -> str:
    return plural(number, "file")


def _directories(number: int) -> str:
    return plural(number, "directory", "directories")


def _files_and_directories(effects: Sequence[Effect]) -> str:
    directories = sum(effect.detail == "directory" for effect in effects)
    files = len(effects) - directories
    return " and ".join([*([_files(files)] if files else []), *([_directories(directories)] if directories else [])])


def _sum(effects: Sequence[Effect]) -> int:
    return sum(effect.size for effect in effects)


def _by_layer(effects: Sequence[Effect]) -> Iterator[tuple[str, list[Effect]]]:
    """Yield each layer's printable name and the effects on it."""
    for layer in sorted({effect.layer for effect in effects}):
        yield printable(layer), [effect for effect in effects if effect.layer == layer]


def _copy(effect: Effect) -> str:
    return f"{printable(effect.path)} ({human_size(effect.size)}) from {printable(effect.layer)}"


def _sentences(mountpoint: str, outcome: Outcome) -> Iterator[str]:
    of: dict[str, list[Effect]] = defaultdict(list)
    for effect in outcome.effects:
        of[effect.what].append(effect)
    if not of:
        yield f"would change nothing in {printable(mountpoint)}"
    yield from _sentences_of_copies(of["copy up"])
    for effect in of["refuse"]:
        yield f"would be refused copy-up of {_copy(effect)}: over {effect.detail}"
    for effect in of["warn"]:
        yield f"would exceed {effect.detail}: copy-up of {_copy(effect)}"
    yield from _sentences_of_marks(of)
    yield from _sentences_of_upper(of)
    if outcome.status:
        yield (
            f"the command exited with status {outcome.status}, as it would outside the sandbox "
            "unless the sandbox stopped it"
        )


def _sentences_of_marks(of: Mapping[str, Sequence[Effect]]) -> Iterator[str]:
    if some := of["whiteout"]:
        yield f"would create {plural(len(some), 'whiteout')}"
    for layer, some in _by_layer(of["hide"]):
        number = sum(effect.files for effect in some)
        stay = "it stays" if number == 1 else "they stay"
        yield f"would hide {_files(number)} ({human_size(_sum(some))}) in {layer}; {stay} there, so no image shrinks"
    if some := of["opaque"]:
        yield f"would mark {_directories(len(some))} opaque"


def _sentences_of_upper(of: Mapping[str, Sequence[Effect]]) -> Iterator[str]:
    if some := of["free"]:
        yield f"would free {human_size(_sum(some))} in the upper"
    if some := of["create"]:
        yield f"would create {_files_and_directories(some)}"
    if some := of["write"]:
        yield f"would write {human_size(_sum(some))} to {_files(len({effect.path for effect in some}))}"
    if some := of["rename"]:
        yield f"would rename {plural(len(some), 'file or directory', 'files or directories')}"
    if some := of["change"]:
        yield f"would change {_files_and_directories(some)} already in the upper"


def _sentences_of_copies(copies: Sequence[Effect]) -> Iterator[str]:
    for layer, some in _by_layer(copies):
        directories = sum(effect.detail == "directory" for effect in some)
        files = len(some) - directories
        words = [f"{_files(files)} ({human_size(_sum(some))})"] if files else []
        if directories:
            alone = "itself only" if directories == 1 else "themselves only"
            words.append(f"{_directories(directories)} ({alone})")
        yield f"would copy up {' and '.join(words)} from {layer}"


def _put_paths(effects: Sequence[Effect], at_most: int | None) -> None:
    ordered = sorted(effects, key=lambda effect: (-effect.size, effect.path))
    if not ordered:
        return
    rows = [
        (effect.what, human_size(effect.size), printable(effect.layer), _path_cell(effect))
        for effect in ordered[:at_most]
    ]
    put("\n")
    put_table(Table(("WHAT", "SIZE", "LAYER", "PATH"), rows))
    if at_most is not None and len(ordered) > at_most:
        put(f"... and {len(ordered) - at_most} more (use --all to show them)\n")


def _path_cell(effect: Effect) -> str:
    path = printable(effect.path)
    if effect.what == "rename":
        return f"{path} <- {printable(effect.detail)}"
    return f"{path}/" if effect.detail == "directory" else path


# --- for machines ----------------------------------------------------------------------------------


def _json(mountpoint: str, command: Sequence[str], outcome: Outcome) -> dict[str, object]:
    totals: dict[str, dict[str, int]] = {}
    for effect in outcome.effects:
        total = totals.setdefault(effect.what, {"count": 0, "directories": 0, "size": 0, "files": 0})
        total["count"] += 1
        total["directories"] += effect.detail == "directory"
        total["size"] += effect.size
        total["files"] += effect.files
    return {
        "mountpoint": mountpoint,
        "command": list(command),
        "status": outcome.status,
        "totals": totals,
        "paths": [effect._asdict() for effect in outcome.effects],
    }
