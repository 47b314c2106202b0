"""What find, grep, ls, chmod, rm and tar do with whole trees."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from benchmarks import clients
from benchmarks.faults import expect
from benchmarks.inputs import NEEDLE, archive_files, sample, with_parents
from benchmarks.view import View, timed

T = TypeVar("T")


def find(view: View) -> float:
    seconds, listing = timed(lambda: view.run("find", view.path, "-ls"))
    columns = [line.split(maxsplit=10) for line in listing.splitlines()]
    sizes = {line[10]: int(line[6]) for line in columns if line[2].startswith("-")}
    expect("sizes", sizes, {f"{view.path}/{path}": len(data) for path, data in view.input.shown.items()})
    expect("number of lines", len(columns), 1 + len(set[str]().union(*map(with_parents, view.input.shown))))
    return seconds


def find_warm(view: View) -> float:
    find(view)
    return find(view)


def grep(view: View) -> float:
    seconds, found = timed(lambda: view.run("grep", "-r", NEEDLE, view.path))
    holders = [path for path, data in view.input.shown.items() if NEEDLE.encode() in data]
    expect("matches", sorted(found.splitlines()), sorted(f"{view.path}/{path}:{NEEDLE}" for path in holders))
    return seconds


def grep_warm(view: View) -> float:
    grep(view)
    return grep(view)


def list_long(view: View) -> float:
    """List a directory with many names."""
    seconds, found = timed(lambda: view.run("ls", "-l", view.path / "d"))
    expect("names", [f"d/{line.split()[-1]}" for line in found.splitlines()[1:]], list(view.input.shown))
    return seconds


def chmod(view: View) -> float:
    seconds, _ = timed(lambda: view.run("chmod", "-R", "go-r", view.path))
    modes = {os.stat(view.path / path).st_mode & 0o044 for path in view.input.shown}
    expect("modes", modes, {0})
    path = max(view.input.shown)
    expect("content in the upper", (view.upper / path).read_bytes(), view.input.shown[path])
    return seconds


def _packages(view: View) -> list[str]:
    return sorted({path.split("/")[0] for path in view.input.shown})


def remove_lower(view: View) -> float:
    """Remove a third of the packages. The others show that nothing else is gone."""
    packages = _packages(view)
    third = len(packages) // 3
    gone = [view.path / name for name in packages[:third]]
    layers = [view.input.place / name for name in view.input.lowers]
    before = [len(files) for layer in layers for _, _, files in os.walk(layer)]
    seconds, _ = timed(lambda: view.run("rm", "-rf", *gone))
    expect("names left", sorted(os.listdir(view.path)), packages[third:])
    expect("answers for removed names", [path for path in gone if os.path.lexists(path)], [])
    expect("layers", [len(files) for layer in layers for _, _, files in os.walk(layer)], before)
    return seconds


def _archive(view: View) -> Path:
    return view.input.place / "incoming.tar"


def untar(view: View) -> float:
    seconds, _ = timed(lambda: view.run("tar", "-xf", _archive(view), "-C", view.path))
    wanted = archive_files(view.sizes.archived)
    expect("files", {path: (view.upper / path).read_bytes() for path in wanted}, wanted)
    return seconds


def remove_upper(view: View) -> float:
    untar(view)
    seconds, _ = timed(lambda: view.run("rm", "-rf", view.path / "incoming"))
    expect("names left", sorted(os.listdir(view.path)), _packages(view))
    # fuse-overlayfs leaves a whiteout.
    expect("directory in the upper", (view.upper / "incoming").is_dir(), False)
    return seconds


def _sampled(view: View, ask: Callable[[str], T], wanted: Callable[[bytes], T]) -> float:
    names = sample(view.input.shown, view.sizes.sampled)
    paths = [f"{view.path}/{name}" for name in names]
    seconds, found = timed(lambda: [ask(path) for path in paths])
    expect("answers", found, [wanted(view.input.shown[name]) for name in names])
    return seconds / len(names)


def sampled_stats(view: View) -> float:
    return _sampled(view, lambda path: os.stat(path).st_size, len)


def sampled_reads(view: View) -> float:
    return _sampled(view, clients.read, bytes)
