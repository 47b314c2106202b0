"""Does what is said about the disk hold?

Each function here says one thing about a stage, and knows how to find out: `whiteout("upper/motd")`. Paths are
below the stage.
"""

from __future__ import annotations

import stat
from collections.abc import Callable
from dataclasses import dataclass

from overlayfs_demo.tour.scan import Entry, Kind
from overlayfs_demo.tour.stage import Stage


@dataclass(frozen=True, slots=True)
class Check:
    """A sentence, without its full stop, and whether it holds."""

    says: str
    holds: Callable[[Stage], bool]


def entry(stage: Stage, path: str) -> Entry | None:
    """What stands at a path; None if nothing does."""
    directory, _, name = path.partition("/")
    return stage.tree(directory).get(name)


def _is(path: str, kind: Kind) -> Callable[[Stage], bool]:
    def holds(stage: Stage) -> bool:
        found = entry(stage, path)
        return found is not None and found.kind is kind

    return holds


def whiteout(path: str) -> Check:
    """The name is deleted there."""
    return Check(f"{path} is a whiteout: a character device 0/0", _is(path, Kind.WHITEOUT))


def file(path: str) -> Check:
    """It is a file."""
    return Check(f"{path} is a file", _is(path, Kind.FILE))


def opaque(path: str) -> Check:
    """It is a directory that hides what lies below it."""
    return Check(f'{path} has the mark opaque="y"', lambda stage: getattr(entry(stage, path), "opaque", False))


def redirect(path: str, to: str) -> Check:
    """It is a directory whose lower part has another name."""
    return Check(
        f'{path} has the mark redirect="{to}"', lambda stage: getattr(entry(stage, path), "redirect", "") == to
    )


def absent(path: str) -> Check:
    """Nothing stands there: no whiteout either."""
    return Check(f"{path} does not exist", lambda stage: entry(stage, path) is None)


def exactly(where: str, *paths: str) -> Check:
    """A directory holds these paths, and no others."""
    says = f"{where} holds {', '.join(paths)} and nothing else" if paths else f"{where} is empty"
    return Check(says, lambda stage: set(stage.tree(where)) == set(paths))


def text(path: str, content: str) -> Check:
    """It is a file with this in it."""
    shown = content.strip().replace("\n", " / ")
    return Check(
        f"{path} says: {shown}", lambda stage: _is(path, Kind.FILE)(stage) and stage.path(path).read_text() == content
    )


def size(path: str, bytes_: int) -> Check:
    """It is a file with this many bytes."""
    return Check(f"{path} has {bytes_:,} bytes", lambda stage: getattr(entry(stage, path), "size", -1) == bytes_)


def mode(path: str, bits: int) -> Check:
    """It has these permissions."""
    return Check(
        f"{path} has the mode {bits:o}",
        lambda stage: stage.path(path).exists() and stat.S_IMODE(stage.path(path).stat().st_mode) == bits,
    )


def symlink(path: str, target: str) -> Check:
    """It is a symbolic link to this."""
    return Check(
        f"{path} is a symbolic link to {target}",
        lambda stage: _is(path, Kind.SYMLINK)(stage) and getattr(entry(stage, path), "target", "") == target,
    )


def same(one: str, other: str) -> Check:
    """Two files have the same data."""

    def holds(stage: Stage) -> bool:
        first, second = entry(stage, one), entry(stage, other)
        return first is not None and second is not None and first.digest == second.digest != ""

    return Check(f"{one} and {other} have the same data", holds)


def one_file(one: str, other: str) -> Check:
    """Two names stand for the same file."""
    return Check(
        f"{one} and {other} are one file",
        lambda stage: (
            all(stage.path(path).is_file() for path in (one, other)) and stage.path(one).samefile(stage.path(other))
        ),
    )


def unchanged(where: str) -> Check:
    """A layer is as it was made: names, data, modes, times."""
    return Check(f"{where} is what it was, to the last byte", lambda stage: stage.tree(where) == stage.before[where])


def printed(*words: str, by: int = -1) -> Check:
    """A command (the last one, if not told) printed all of this."""
    says = " and ".join(f'"{word}"' for word in words)
    return Check(
        f"that printed {says}" if by == -1 else f"command {by + 1} printed {says}",
        lambda stage: all(word in stage.done[by].output for word in words),
    )
