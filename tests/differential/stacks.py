"""Which layers does a random sequence start from?

A layer is a flat list of entries, so that a shrinker can drop one after the other. All layers of a stack
draw from one small set of paths: names meet, merge and hide each other.
"""

from __future__ import annotations

import os
import random
import stat
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from tests import builders
from tests.contract.subjects import USER

NAMES: tuple[bytes, ...] = (b"a", b"b", b"c", b"d", b"e", b"f")
ODD_NAMES: tuple[bytes, ...] = (
    b"\xff\xfe",
    "ü".encode(),
    b"new\nline",
    b"sp ace",
    b".wh.a",
    b".wh.z",
    b".wh..wh..opq",
    b"n" * 255,
    b"back\\s:,",
)
DIRECTORY_MODES = (0o755, 0o755, 0o777, 0o777, 0o1777, 0o700, 0o2775, 0o2777, 0o555)
FILE_MODES = (0o644, 0o644, 0o666, 0o600, 0o755, 0o4755, 0o2755, 0o6777, 0o2644, 0o000)
OTHER_GROUP = 54321  # A group that nobody is in.
OWNERS = ((0, 0), (0, 0), (USER, USER), (USER, USER), (0, USER), (USER, OTHER_GROUP), (777, 777))
DEVICES = ((1, 3), (42, 7))
TARGETS: tuple[bytes, ...] = (b"a", b"b/a", b"../a", b"/a", b"/b/c", b"nowhere", b"", b"x" * 300)
CAPABILITY = bytes.fromhex("0000000201000000000000000000000000000000")  # v2, CAP_CHOWN
XATTRS: tuple[tuple[str, bytes], ...] = (
    ("user.one", b"1"),
    ("user.two", b"\0binary\xff"),
    ("trusted.x", b"t"),
    ("security.x", b"s"),
    ("trusted.overlay.overlay.x", b"escaped"),
    ("user.overlay.opaque", b"y"),
)


@dataclass(frozen=True)
class Entry:
    """One object of a layer."""

    path: bytes
    thing: Any

    def __repr__(self) -> str:
        return f"{self.path!r}: {_short(self.thing)}"


@dataclass(frozen=True)
class StackSpec:
    """What a stack is made of: lowers from bottom to top, and what the upper holds already."""

    lowers: tuple[tuple[Entry, ...], ...]
    upper: tuple[Entry, ...]

    def make(self, where: Path) -> tuple[list[Path], Path, Path]:
        """The lowers below `where`, and the upper twice."""
        lowers = builders.layers(where, *(_content(layer) for layer in self.lowers))
        uppers = []
        for name in ("upper-ours", "upper-kernel"):
            builders.directories(where, name)
            builders.fill(os.fsencode(where / name), _content(self.upper))
            uppers.append(where / name)
        return lowers, uppers[0], uppers[1]

    def __str__(self) -> str:
        layers = [f"    {{{', '.join(map(repr, layer))}}}," for layer in self.lowers]
        return "\n".join([*layers, f"    upper={{{', '.join(map(repr, self.upper))}}},"])


def random_stack(dice: random.Random) -> StackSpec:
    """One to four lowers and, half of the time, a filled upper."""
    names = [*NAMES, *dice.sample(ODD_NAMES, 3)]
    directories: list[bytes] = [b""]
    for _ in range(dice.randint(3, 8)):
        parent = dice.choice(directories)
        if parent.count(b"/") < 3:
            directories.append(os.path.join(parent, dice.choice(names)))
    leaves = {os.path.join(dice.choice(directories), dice.choice(names)) for _ in range(dice.randint(4, 12))}
    skeleton = sorted({*directories, *leaves} - {b""}, key=lambda path: (path.count(b"/"), path))
    layers = [_layer(dice, skeleton, set(directories)) for _ in range(dice.randint(1, 4))]
    layers.append(_layer(dice, skeleton, set(directories)) if dice.random() < 0.5 else ())
    if dice.random() < 0.3:
        number = dice.randrange(1, len(layers))
        layers[number] = _with_redirect(dice, layers[number], skeleton)
    layers = [
        tuple(one for one in layer if not _is_stray(one, layers[: number + 1])) for number, layer in enumerate(layers)
    ]
    return StackSpec(tuple(layers[:-1]), (_root(dice), *layers[-1]))


def _is_stray(entry: Entry, layers: list[tuple[Entry, ...]]) -> bool:
    """Is this a whiteout in a directory of the last of `layers` that merges with nothing in those below?

    The kernel lists such a one and counts it as content, we do not: an intended difference.
    """
    if entry.thing is not builders.WHITEOUT:
        return False
    above = os.path.dirname(entry.path)
    if _ends_at(above, layers[-1], opaque=True):
        return True
    for layer in reversed(layers[:-1]):
        if _ends_at(above, layer, opaque=False):
            return True
        if not above or any(one.path == above or one.path.startswith(above + b"/") for one in layer):
            return False
        if _ends_at(above, layer, opaque=True):
            return True
    return True


def _ends_at(path: bytes, layer: tuple[Entry, ...], opaque: bool) -> bool:
    """Does something at or above a path keep what is below this layer from it?"""
    for entry in layer:
        if entry.path and (entry.path == path or path.startswith(entry.path + b"/")):
            if not isinstance(entry.thing, builders.Dir):
                return True
            if opaque and "trusted.overlay.opaque" in entry.thing.xattrs:
                return True
    return False


def _with_redirect(dice: random.Random, layer: tuple[Entry, ...], skeleton: list[bytes]) -> tuple[Entry, ...]:
    """Let one directory have been renamed: a whiteout stands at its old name.

    Only one of a stack, for a directory that is reached by two ways is a mistake, to which the kernel says ESTALE.
    """
    moved = [one for one in layer if isinstance(one.thing, builders.Dir)]
    taken = {one.path for one in layer}
    targets = [
        path
        for path in skeleton
        if not any(path == one or one.startswith(path + b"/") for one in taken)
        and not _ends_at(path, layer, opaque=False)
    ]
    if not moved or not targets:
        return layer
    chosen, target = dice.choice(moved), dice.choice(targets)
    same_parent = os.path.dirname(chosen.path) == os.path.dirname(target)
    redirect = os.path.basename(target) if same_parent and dice.random() < 0.7 else b"/" + target
    xattrs = {name: value for name, value in chosen.thing.xattrs.items() if name != "trusted.overlay.opaque"}
    thing = replace(chosen.thing, xattrs={**xattrs, "trusted.overlay.redirect": redirect})
    kept = tuple(Entry(one.path, thing) if one is chosen else one for one in layer)
    return (*kept, Entry(target, builders.WHITEOUT))


def _root(dice: random.Random) -> Entry:
    uid, gid = dice.choice(OWNERS)
    return Entry(b"", builders.directory(mode=dice.choice(DIRECTORY_MODES), uid=uid, gid=gid))


def _layer(dice: random.Random, skeleton: list[bytes], directories: set[bytes]) -> tuple[Entry, ...]:
    density = dice.choice((0.3, 0.6, 0.9))
    entries: list[Entry] = []
    solid: set[bytes] = set()  # What nothing can stand below.
    for path in skeleton:
        above = os.path.dirname(path)
        if dice.random() > density or any(above == one or above.startswith(one + b"/") for one in solid):
            continue
        if path in directories and dice.random() < 0.8:
            entries.append(Entry(path, _directory(dice)))
        else:
            solid.add(path)
            entries.append(Entry(path, _leaf(dice, path, entries)))
    return tuple(entries)


def _directory(dice: random.Random) -> builders.Dir:
    xattrs = _xattrs(dice)
    if dice.random() < 0.15:
        xattrs["trusted.overlay.opaque"] = b"y"
    uid, gid = dice.choice(OWNERS)
    return builders.directory(mode=dice.choice(DIRECTORY_MODES), uid=uid, gid=gid, xattrs=xattrs)


def _leaf(dice: random.Random, path: bytes, before: list[Entry]) -> Any:
    files = [entry.path for entry in before if isinstance(entry.thing, builders.File)]
    roll = dice.random()
    uid, gid = dice.choice(OWNERS)
    owner: dict[str, Any] = {"uid": uid, "gid": gid}
    if roll < 0.2:
        return builders.WHITEOUT
    if roll < 0.32:
        return builders.symlink(dice.choice(TARGETS[:6]), **owner)
    if roll < 0.37:
        return builders.fifo(mode=dice.choice(FILE_MODES), **owner)
    if roll < 0.42:
        return builders.device(*dice.choice(DEVICES), mode=0o666, **owner)
    if roll < 0.55 and files:
        target = os.path.relpath(b"/" + dice.choice(files), os.path.dirname(b"/" + path))
        return builders.hardlink(os.fsdecode(target))
    data = dice.choice((b"", b"x", b"data" * 5, b"long" * 3000))
    when = builders.MTIME + dice.randint(0, 9) * 1_000_000_007
    return builders.file(data, mode=dice.choice(FILE_MODES), mtime_ns=when, xattrs=_xattrs(dice), **owner)


def _xattrs(dice: random.Random) -> dict[str, bytes]:
    return dict(dice.sample(XATTRS, dice.choice((0, 0, 0, 1, 2))))


def _content(entries: tuple[Entry, ...]) -> dict[str | bytes, Any]:
    return {entry.path: entry.thing for entry in entries}


def _short(thing: Any) -> str:
    """A builder's call, as short as it can be written."""
    if not is_dataclass(thing):
        return repr(thing)
    given = {}
    for one in fields(thing):
        value = getattr(thing, one.name)
        default = one.default_factory() if callable(one.default_factory) else one.default
        if value != default:
            given[one.name] = f"0o{value:o}" if one.name == "mode" else repr(value)
    if isinstance(thing, builders.Special):
        given.pop("kind", None)
        given.pop("device", None)
        major, minor = thing.device
        call = "fifo(" if thing.kind == stat.S_IFIFO else f"device({major}, {minor}, "
        return call + ", ".join(f"{name}={value}" for name, value in given.items()) + ")"
    name = {"File": "file", "Dir": "directory", "Symlink": "symlink", "Hardlink": "hardlink"}[type(thing).__name__]
    first = given.pop("data", None) or given.pop("target", None)
    arguments = ([first] if first else []) + [f"{name}={value}" for name, value in given.items()]
    return f"{name}({', '.join(arguments)})"
