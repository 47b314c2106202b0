"""Checks of statements about the disk.

Each function makes one statement about a stage together with its test, such as `whiteout("upper/motd")`. Paths are
relative to the stage.
"""

from __future__ import annotations

import stat
from collections.abc import Callable
from dataclasses import dataclass

from overlayfs_demo.tour.scan import Kind, ScanEntry
from overlayfs_demo.tour.stage import Stage


@dataclass(frozen=True, slots=True)
class Check:
    """A sentence, without its full stop, and the function that says whether it holds."""

    says: str
    holds: Callable[[Stage], bool]


def entry(stage: Stage, path: str) -> ScanEntry | None:
    """Return the entry at a path, or None if there is none."""
    directory, _, name = path.partition("/")
    return stage.tree(directory).get(name)


def _is(path: str, kind: Kind) -> Callable[[Stage], bool]:
    def holds(stage: Stage) -> bool:
        found = entry(stage, path)
        return found is not None and found.kind is kind

    return holds


def whiteout(path: str) -> Check:
    """Check that the path is a whiteout."""
    return Check(f"{path} is a whiteout: a character device 0/0", _is(path, Kind.WHITEOUT))


def file(path: str) -> Check:
    """Check that the path is a file."""
    return Check(f"{path} is a file", _is(path, Kind.FILE))


def opaque(path: str) -> Check:
    """Check that the path is an opaque directory, which hides the directories below it."""
    return Check(f'{path} has the mark opaque="y"', lambda stage: getattr(entry(stage, path), "opaque", False))


def redirect(path: str, to: str) -> Check:
    """Check that the path is a directory with a redirect: its lower part is called `to`."""
    return Check(
        f'{path} has the mark redirect="{to}"', lambda stage: getattr(entry(stage, path), "redirect", "") == to
    )


def absent(path: str) -> Check:
    """Check that the path does not exist, not even as a whiteout."""
    return Check(f"{path} does not exist", lambda stage: entry(stage, path) is None)


def exactly(where: str, *paths: str) -> Check:
    """Check that a directory holds exactly these paths."""
    says = f"{where} contains {', '.join(paths)} and nothing else" if paths else f"{where} is empty"
    return Check(says, lambda stage: set(stage.tree(where)) == set(paths))


def text(path: str, content: str) -> Check:
    """Check that the path is a file with this content."""
    shown = content.strip().replace("\n", " / ")
    return Check(
        f"{path} contains: {shown}",
        lambda stage: _is(path, Kind.FILE)(stage) and stage.path(path).read_text() == content,
    )


def size(path: str, bytes_: int) -> Check:
    """Check that the path is a file of this many bytes."""
    return Check(f"{path} has {bytes_:,} bytes", lambda stage: getattr(entry(stage, path), "size", -1) == bytes_)


def mode(path: str, bits: int) -> Check:
    """Check that the path has these permissions."""
    return Check(
        f"{path} has mode {bits:o}",
        lambda stage: stage.path(path).exists() and stat.S_IMODE(stage.path(path).stat().st_mode) == bits,
    )


def symlink(path: str, target: str) -> Check:
    """Check that the path is a symbolic link to this target."""
    return Check(
        f"{path} is a symbolic link to {target}",
        lambda stage: _is(path, Kind.SYMLINK)(stage) and getattr(entry(stage, path), "target", "") == target,
    )


def same(first: str, second: str) -> Check:
    """Check that two files have the same data."""

    def holds(stage: Stage) -> bool:
        found, compared = entry(stage, first), entry(stage, second)
        return found is not None and compared is not None and found.digest == compared.digest != ""

    return Check(f"{first} and {second} have the same data", holds)


def one_file(first: str, second: str) -> Check:
    """Check that two names belong to the same file."""
    return Check(
        f"{first} and {second} are one file",
        lambda stage: (
            all(stage.path(path).is_file() for path in (first, second))
            and stage.path(first).samefile(stage.path(second))
        ),
    )


def unchanged(where: str) -> Check:
    """Check that a layer is as it was made: names, data, modes, times."""
    return Check(f"{where} is unchanged, to the last byte", lambda stage: stage.tree(where) == stage.before[where])


def printed(*words: str, by: int = -1) -> Check:
    """Check that a command printed all these words. `by` is the command's index, by default that of the last one."""
    says = " and ".join(f'"{word}"' for word in words)
    return Check(
        f"the last command printed {says}" if by == -1 else f"command {by + 1} printed {says}",
        lambda stage: all(word in stage.done[by].output for word in words),
    )
