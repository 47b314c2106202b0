"""The layers that all peers share, and what a correct view of them shows."""

from __future__ import annotations

import functools
import itertools
import os
import random
import shutil
import stat
import subprocess
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.faults import LeftOutError

MIB = 1 << 20
PAGE = 4096
NEEDLE = "needle"
SMALL = b"hello"  # the content of the small files of `flat`
_PACKAGES, _KINDS = 16, 10
_IN_A_DIRECTORY = 1000

Plan = dict[str, bytes | None]  # the files of one layer; None is a whiteout


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much there is of everything. Large files are in MiB."""

    operations: int = 400
    large: int = 512
    written: int = 64
    random: int = 2000  # reads or writes of a page
    listed: int = 20_000
    files: int = 50  # in each directory of `packages`
    archived: int = 3000
    sampled: int = 5000
    layer_names: int = 1000
    commits: int = 200
    sources: int = 30


FULL = Sizes()
QUICK = Sizes(200, 32, 16, 400, 2000, 10, 300, 500, 200, 30, 8)


@dataclass(frozen=True, slots=True)
class Input:
    """Layers by their names in `place`, the top one first, and the files that a view of them shows, if this is checked.

    `only_layered` says why it is not for peers without layers. They may have links to the files instead of copies if
    they only read them (`only_read`).
    """

    place: Path
    lowers: tuple[str, ...] = ("lower",)
    shown: Mapping[str, bytes] = field(default_factory=dict)
    only_layered: str = ""
    only_read: bool = False

    @property
    def in_memory(self) -> bool:
        return filesystem(self.place) == "tmpfs"


@functools.cache
def filesystem(place: Path) -> str:
    """Return the type of the filesystem that a directory is on."""
    words = ["findmnt", "--noheadings", "--output", "FSTYPE", "--target", str(place)]
    # Of several mounts at one place, the last is on top.
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()[-1]


def copy_shown(shown: Input, target: Path) -> None:
    """Copy what a view of the input shows, for a peer without layers. Raises LeftOutError."""
    if shown.only_layered:
        raise LeftOutError(shown.only_layered)
    if len(shown.lowers) > 1:
        write_files(target, shown.shown)
        return
    source = shown.place / shown.lowers[0]
    how = "--link" if shown.only_read else "--reflink=auto"
    subprocess.run(["cp", "-a", how, f"{source}/.", target], check=True)


def write_files(place: Path, files: Mapping[str, bytes | None]) -> None:
    for name, data in files.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        if data is None:
            os.mknod(place / name, stat.S_IFCHR, os.makedev(0, 0))
        else:
            (place / name).write_bytes(data)


def with_parents(path: str) -> set[str]:
    return set(itertools.accumulate(path.split("/"), "{}/{}".format))


# --- small inputs -----------------------------------------------------------------------------------


def flat(place: Path, sizes: Sizes) -> Input:
    """Small files in the directory `d` of one layer."""
    shown = {f"d/f{number}": SMALL for number in range(sizes.operations)}
    write_files(place / "lower", shown)
    return Input(place, shown=shown)


def large(place: Path, sizes: Sizes) -> Input:
    """One large file `large`, each of whose pages begins with its number."""
    (place / "lower").mkdir(parents=True)
    with (place / "lower/large").open("wb") as file:
        for first in range(0, sizes.large * MIB, MIB):
            file.write(b"".join(page(number) for number in range(first // PAGE, (first + MIB) // PAGE)))
    # Only the row that copies the file up writes to it, and that row needs layers.
    return Input(place, only_read=True)


def page(number: int) -> bytes:
    """Return a page of data that begins with its number."""
    return number.to_bytes(8, "big") * (PAGE // 8)


def listed(place: Path, sizes: Sizes) -> Input:
    """One directory `d` with many names."""
    shown = {f"d/name{number:06}": b"" for number in range(sizes.listed)}
    write_files(place / "lower", shown)
    return Input(place, shown=shown)


def layers(count: int, place: Path, sizes: Sizes) -> Input:
    """Layers that all have the directory `d`: each has a file of its own there, and the bottom one has many more."""
    for number in range(count):
        write_files(place / str(number), {f"d/own{number}": SMALL})
    write_files(place / str(count - 1), {f"d/base{number}": SMALL for number in range(sizes.layer_names)})
    return Input(place, tuple(map(str, range(count))), only_layered="has no layers" if count > 1 else "")


def names(count: int, place: Path, sizes: Sizes) -> Input:
    """Many empty files, 1000 in a directory."""
    for first in range(0, count, _IN_A_DIRECTORY):
        directory = place / f"lower/dir{first // _IN_A_DIRECTORY:04}"
        directory.mkdir(parents=True)
        for number in range(first, min(first + _IN_A_DIRECTORY, count)):
            os.mknod(f"{directory}/file{number:07}", stat.S_IFREG | 0o644)
    # passthrough_ll walks through a list of all that it knows, and has each open.
    return Input(place, only_layered="is too slow with many names" if count > 10_000 else "")


# --- packages in three layers -----------------------------------------------------------------------


def content(path: str, layer: str) -> bytes:
    """Return small, deterministic content, with a needle in every seventh file."""
    number = zlib.crc32(path.encode())
    lines = [f"{path} of the {layer} layer"] * (1 + number % 40)
    return "\n".join([*lines, NEEDLE if number % 7 == 0 else "hay", ""]).encode()


def package_plans(files: int) -> list[Plan]:
    """Return three layers, bottom first: directories in two and three layers, whiteouts of files and of directories."""
    plans: list[Plan] = [{}, {}, {}]
    base, middle, top = plans
    for number in range(_PACKAGES * _KINDS):
        package, kind = divmod(number, _KINDS)
        home = f"pkg{package:02}/dir{kind}"
        for name, digit in ((f"{home}/file{file:03}", file % 10) for file in range(files)):
            base[name] = content(name, "base")
            if kind in (0, 3, 6) and digit in (0, 1):
                middle[name] = content(name, "middle") if digit == 0 else None
                middle[f"{name}-added"] = content(f"{name}-added", "middle")
            if kind in (0, 5) and digit in (0, 3):
                top[name] = content(name, "top") if digit == 0 else None
        if kind == 8:
            top[home] = None
    return plans


def merge(plans: list[Plan]) -> dict[str, bytes]:
    """Return what a view of these layers, bottom first, must show."""
    view: dict[str, bytes] = {}
    for plan in plans:
        hidden = {path for path, data in plan.items() if data is None}
        view = {path: data for path, data in view.items() if not hidden & with_parents(path)}
        view |= {path: data for path, data in plan.items() if data is not None}
    return view


def packages(place: Path, sizes: Sizes) -> Input:
    """Packages in three layers, and beside them the archive `incoming.tar`."""
    plans = package_plans(sizes.files)
    for name, plan in zip(("base", "middle", "top"), plans, strict=True):
        write_files(place / name, plan)
    archived = archive_files(sizes.archived)
    write_files(place, archived)
    shutil.make_archive(str(place / "incoming"), "tar", place, "incoming")
    return Input(place, ("top", "middle", "base"), merge(plans))


def archive_files(count: int) -> dict[str, bytes]:
    """Return the files of `incoming.tar`."""
    paths = (f"incoming/dir{number // 50:02}/file{number:04}" for number in range(count))
    return {path: content(path, "archive") for path in paths}


def sample(shown: Mapping[str, bytes], count: int) -> list[str]:
    """Return names in random order, so that no peer profits from the order in which it lists a directory."""
    return random.Random(0).sample(sorted(shown), min(len(shown), count))


# --- inputs of programs -----------------------------------------------------------------------------


def repository(place: Path, sizes: Sizes) -> Input:
    """A git repository `repo`. Raises LeftOutError."""
    if shutil.which("git") is None:
        raise LeftOutError("needs git")
    home = place / "lower/repo"
    write_files(home, archive_files(sizes.archived))
    who = ("-c", "user.name=nobody", "-c", "user.email=nobody@localhost", "-c", "gc.auto=0")
    for words in (("init", "--quiet"), ("add", "."), (*who, "commit", "--quiet", "--message", "all")):
        env = {**os.environ, "GIT_CONFIG_GLOBAL": "/dev/null"}
        subprocess.run(["git", "-C", home, *words], check=True, capture_output=True, env=env)
    return Input(place)


def sources(place: Path, sizes: Sizes) -> Input:
    """A program in C: a header, many small sources and a main function."""
    home = place / "lower/src"
    calls = "".join(f"    sum += part{number}(sum);\n" for number in range(sizes.sources))
    declared = "".join(f"int part{number}(int);\n" for number in range(sizes.sources))
    files = {"parts.h": declared, "main.c": f'#include "parts.h"\nint main(void) {{\n    int sum = 0;\n{calls}'}
    files["main.c"] += f"    return sum != {sum(range(sizes.sources))};\n}}\n"
    for number in range(sizes.sources):
        text = f"int part{number}(int sum) {{ return sum - sum + {number}; }}\n"
        files[f"part{number}.c"] = f'#include <stdio.h>\n#include "parts.h"\n{text}'
    write_files(home, {name: text.encode() for name, text in files.items()})
    return Input(place)
