"""An upper with all that an upper can hold, who shows it, and the ways to damage it."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from overlayfs_demo.linux import xattr
from tests import builders
from tests.builders import file, hardlink
from tests.contract.engine_subject import Engine
from tests.contract.subjects import Kernel, Layers, Subject

OVERLAY = "trusted.overlay."
DATA = "data of the lower" * 1000


def make(where: Path) -> Layers:
    """The directories of a stack whose upper is still empty."""
    lowers = builders.layers(
        where,
        {
            "etc": {"passwd": file("root", mode=0o644), "motd": "hello"},
            "var": {"log": {"a": "1", "b": "2"}, "cache": {"x": "1", "y": {"z": "2"}}},
            "big": DATA,
            "gone": "1",
            "l1": "1",
            "l2": hardlink("l1"),
            "l3": hardlink("l1"),
        },
        {"etc": {"new": "2"}, "var": {"log": {"c": "3"}}, "top": "t"},
    )
    builders.directories(where, "upper", "work", "merged")
    return Layers(lowers, where / "upper", where / "work", where / "merged", metacopy=True)


def use(view: Subject) -> None:
    """A little of everything."""
    view.append("etc/passwd", b"more")
    view.chmod("big", 0o600)
    view.unlink("gone")
    view.unlink("etc/motd")
    view.rename("var/log", "logs")
    view.append("logs/a", b"+")
    view.unlink("var/cache/x")
    view.rename("var/cache", "moved")
    view.mkdir("var/cache")
    view.write("var/cache/only", b"o")
    view.mkdir("made")
    view.write("made/file", b"f")
    view.mkdir("made/inner")
    view.append("l1", b"2")
    view.unlink("l2")
    view.link("l3", "made/l4")
    view.symlink("top", "made/link")
    view.rename("top", "made/top")


class Object(NamedTuple):
    """What a view shows of an object."""

    mode: int
    nlink: int
    size: int
    data: bytes


def shown(view: Subject) -> dict[bytes, Object]:
    """All that a view shows. Every name that it lists must be one that can be looked up."""
    found: dict[bytes, Object] = {}
    pending = [b""]
    while pending:
        above = pending.pop()
        for name in view.names(above):
            path = os.path.join(above, name)
            status = view.stat(path)
            kind = stat.S_IFMT(status.mode)
            data = view.read(path) if kind == stat.S_IFREG else b""
            if kind == stat.S_IFDIR:
                pending.append(path)
                status = status._replace(nlink=0, size=0)
            found[path] = Object(status.mode, status.nlink, status.size, data)
    return found


def shown_by(kind: Callable[[Layers], Subject], layers: Layers) -> dict[bytes, Object]:
    """The same of a view that is mounted for that."""
    view = kind(layers)
    view.start()
    try:
        return shown(view)
    finally:
        view.stop()


def by_both(layers: Layers) -> dict[bytes, Object]:
    """What both the kernel's overlayfs and ours show, each of which must show the same."""
    kernels = shown_by(Kernel, layers)
    assert shown_by(Engine, layers) == kernels
    return kernels


# --- damage ---------------------------------------------------------------------------------------------


class Place(NamedTuple):
    """The upper and the work directory."""

    upper: Path
    work: Path

    def mark(self, path: str, mark: str, value: bytes = b"y") -> None:
        os.setxattr(self.upper / path, OVERLAY + mark, value, follow_symlinks=False)

    def unmark(self, path: str, mark: str) -> None:
        os.removexattr(self.upper / path, OVERLAY + mark, follow_symlinks=False)

    def whiteout(self, path: str) -> None:
        os.mknod(self.upper / path, stat.S_IFCHR, 0)

    def entry(self) -> Path:
        """The one file in the index."""
        (entry,) = (self.work / "index").iterdir()
        return entry

    def left(self, name: str) -> Path:
        return self.work / "work" / name


@dataclass(frozen=True)
class Damage:
    """A way to damage an upper, the kinds of findings, and whether the repair restores what was there before.

    `also` is what is repaired besides what was damaged.
    """

    act: Callable[[Place], object]
    kinds: tuple[str, ...]
    restores: bool = True
    also: frozenset[bytes] = frozenset()


def _half_data(place: Place) -> None:
    with (place.upper / "big").open("r+b") as out:
        out.write(DATA[:5000].encode())


def _volatile(place: Place) -> None:
    (place.left("incompat") / "volatile").mkdir(parents=True)
    (place.left("incompat") / "volatile" / "dirty").touch()


def _contents(place: Place) -> None:
    place.left("#7").mkdir()
    (place.left("#7") / "mine").write_text("somebody's")


def _wrong_origin(place: Place) -> None:
    origin = xattr.get(os.fsencode(place.upper / "logs"), OVERLAY + "origin")
    assert origin is not None
    place.mark("etc/passwd", "origin", origin)


def _stale_origin(place: Place) -> None:
    origin = xattr.get(os.fsencode(place.upper / "etc/passwd"), OVERLAY + "origin")
    assert origin is not None
    # Another generation of the same inode, as of a file that was removed.
    place.mark("etc/passwd", "origin", origin[:-4] + bytes(byte ^ 0x55 for byte in origin[-4:]))


def _orphan(place: Place) -> None:
    """As after a kill between the removal of the last name and that of the copy."""
    entry = place.entry()
    for name in ("l1", "l3", "made/l4"):
        if (place.upper / name).exists():
            (place.upper / name).unlink()
    for name in ("l1", "l3"):
        place.whiteout(name)
    os.setxattr(entry, OVERLAY + "nlink", b"U+5")


DAMAGES = {
    "opaque on a file": Damage(lambda place: place.mark("made/file", "opaque"), ("misplaced-opaque",)),
    "opaque on a link": Damage(lambda place: place.mark("made/link", "opaque"), ("misplaced-opaque",)),
    "impure on a file": Damage(lambda place: place.mark("etc/passwd", "impure"), ("misplaced-impure",)),
    "metacopy on a directory": Damage(lambda place: place.mark("made", "metacopy", b""), ("misplaced-metacopy",)),
    "invalid opaque": Damage(lambda place: place.mark("made/inner", "opaque", b"z"), ("invalid-opaque",)),
    "redirect to nowhere": Damage(
        lambda place: place.mark("made/inner", "redirect", b"/no/where"), ("redirect-to-nowhere",)
    ),
    "redirect to a file": Damage(
        lambda place: place.mark("logs", "redirect", b"/big"), ("redirect-to-nowhere",), False
    ),
    "redirect out": Damage(
        lambda place: place.mark("logs", "redirect", b"/var/../etc"), ("redirect-to-nowhere",), False
    ),
    "redirect gone and another below": Damage(
        lambda place: place.mark("etc", "redirect", b"none"),
        ("redirect-to-nowhere", "useless-whiteout"),
        False,
        frozenset({b"upper/etc/motd"}),
    ),
    "metacopy without data": Damage(lambda place: place.mark("made/file", "metacopy", b""), ("metacopy-without-data",)),
    "metacopy without any data": Damage(
        lambda place: place.mark("big", "redirect", b"/none"), ("metacopy-without-data",), False
    ),
    "metacopy with half the data": Damage(_half_data, ("half-copied-data",)),
    "metacopy too short": Damage(lambda place: place.mark("big", "metacopy", b"\0"), ("invalid-metacopy",)),
    "origin to nowhere": Damage(_stale_origin, ("origin-to-nowhere",)),
    "origin of another kind": Damage(_wrong_origin, ("origin-to-nowhere",)),
    "origin invalid": Damage(lambda place: place.mark("etc/passwd", "origin", b"x"), ("origin-to-nowhere",)),
    "impure missing": Damage(lambda place: place.unmark("etc", "impure"), ("impure-missing",)),
    "impure missing of the root": Damage(lambda place: place.unmark(".", "impure"), ("impure-missing",)),
    "whiteout in what only the upper has": Damage(lambda place: place.whiteout("made/none"), ("useless-whiteout",)),
    "whiteout in an opaque directory": Damage(lambda place: place.whiteout("var/cache/x"), ("useless-whiteout",)),
    "mark of a whiteout on a file": Damage(lambda place: place.mark("made/file", "whiteout"), ("misplaced-whiteout",)),
    "half a copy": Damage(lambda place: place.left("#42").write_text("half"), ("leftover",)),
    "a removed directory": Damage(lambda place: place.left("#43").mkdir(), ("leftover",)),
    "a removed directory with contents": Damage(_contents, ("leftover-with-contents",)),
    "volatile": Damage(_volatile, ("volatile",)),
    "count too high": Damage(lambda place: os.setxattr(place.entry(), OVERLAY + "nlink", b"U+1"), ("link-count",)),
    "count too low": Damage(lambda place: os.setxattr(place.entry(), OVERLAY + "nlink", b"U-2"), ("link-count",)),
    "count lost": Damage(lambda place: os.removexattr(place.entry(), OVERLAY + "nlink"), ("link-count",)),
    "orphan in the index": Damage(_orphan, ("orphan",), False),
    "foreign file in the index": Damage(
        lambda place: (place.work / "index" / "file").write_text("x"), ("stale-index-entry",)
    ),
    "entry of the index with another origin": Damage(
        lambda place: os.setxattr(place.entry(), OVERLAY + "origin", b"x"),
        ("origin-to-nowhere", "stale-index-entry"),
        False,
    ),
}
