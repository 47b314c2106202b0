"""Where did the bytes of an image go?

Every layer ships bytes, and what a later layer overwrites or deletes is shipped all the same. `analyse`
says for each layer what it added, changed and deleted, and for each file that is not seen any more which
layer hid it, and why. Layers are numbered from 1, the bottom, as `build_layers` names their directories.

What is counted: the size (st_size) of each regular file, once for each inode of a layer however many names
it has there. A file is live while any of its names is seen in the view of all layers, so that shipped is
live and wasted, exactly.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from overlayfs_demo.images.divescore import dive_score
from overlayfs_demo.images.layerview import Laid, View, Why
from overlayfs_demo.images.progress import SILENT, Progress
from overlayfs_demo.images.survey import Difference, SurveyedLayer, Thing, difference, pieces, surveyed
from overlayfs_demo.overlay.merge import Says


@dataclass(frozen=True, slots=True)
class Tally:
    """A number of names, and bytes. `files` is everything that is no directory."""

    files: int = 0
    directories: int = 0
    size: int = 0

    @property
    def paths(self) -> int:
        """All names, directories too."""
        return self.files + self.directories


@dataclass(frozen=True, slots=True)
class LayerReport:
    """What one layer does to the view of those below it, and what became of its bytes.

    `added`: names that were not seen before. `changed`: names with other data, of another kind, or with other
    metadata (of directories the times do not count). `unchanged`: names that were there just so. The sizes
    of these three together are `shipped`: a file of several names counts at the first. `deleted`: names that
    were seen and are not any more, all below a removed directory among them, and the bytes of the files that
    so lost their last name. `whiteouts`: the layer's own words for that, whiteouts and opaque marks. `live`: of
    the bytes shipped, those that are seen through all layers.
    """

    number: int
    title: str
    added: Tally
    changed: Tally
    unchanged: Tally
    deleted: Tally
    whiteouts: int
    shipped: int
    live: int

    @property
    def wasted(self) -> int:
        """The bytes that are shipped for nothing."""
        return self.shipped - self.live


@dataclass(frozen=True, slots=True)
class Hidden:
    """A name of a regular file that an upper layer hid: shipped by one layer, hidden by another.

    `size` is the file's; `wasted` the same if this was the last of the file's names to be seen, else 0, so
    that the sum over all of an image is what the image wastes.
    """

    path: bytes
    shipped_by: int
    hidden_by: int
    why: Why
    size: int
    wasted: int


@dataclass(frozen=True, slots=True)
class Copy:
    """One of the files that have the same data: one of its names, its layer, and whether it is live."""

    path: bytes
    layer: int
    live: bool


@dataclass(frozen=True, slots=True)
class Duplicate:
    """Data that an image ships more than once, in files of `size` bytes, in the order of layers and names.

    Live copies are no waste in the sense of `Analysis.wasted`: nothing hides them.
    """

    size: int
    copies: tuple[Copy, ...]


@dataclass(frozen=True, slots=True)
class Analysis:
    """What became of an image's bytes.

    `layers` from the bottom to the top; `hidden` by path, the newest version first; `ghosts` are those of
    them whose path is not seen at all in the end, and which can be taken out of the image all the same;
    `duplicates` the costliest first. `dive_score` is dive's efficiency, from 0 to 1: see `divescore`.
    """

    layers: tuple[LayerReport, ...]
    hidden: tuple[Hidden, ...]
    ghosts: tuple[Hidden, ...]
    duplicates: tuple[Duplicate, ...]
    dive_score: float

    @property
    def shipped(self) -> int:
        """Bytes of all layers."""
        return sum(layer.shipped for layer in self.layers)

    @property
    def live(self) -> int:
        """Bytes that are seen."""
        return sum(layer.live for layer in self.layers)

    @property
    def wasted(self) -> int:
        """Bytes that are shipped and not seen."""
        return self.shipped - self.live


def analyse(
    directories: Sequence[Path], titles: Sequence[str], *, duplicates: bool = True, progress: Progress = SILENT
) -> Analysis:
    """Analyse an image's layer directories, from the bottom to the top, each with its title (its instruction).

    Each layer is walked once. Data is read where one name has the same size in two layers, and, unless
    `duplicates` is False, of all files that are as large as another; `progress` is told of
    the latter. Raises ImageError naming the layer and the file that cannot be read, ValueError where titles and
    directories are not of one number.
    """
    with surveyed(directories) as layers:
        accounts = _Accounts(layers)
        sheets = [
            accounts.lay(number, title)
            for number, (_, title) in enumerate(zip(layers, titles, strict=True), start=1)
        ]
        hidden = sorted(accounts.hidden, key=lambda one: (one.path, -one.shipped_by))
        shipped, live = accounts.sums()
        return Analysis(
            tuple(sheet.report(shipped, live) for sheet in sheets),
            tuple(hidden),
            tuple(one for one in hidden if not accounts.view.shows(one.path)),
            _duplicates(layers, accounts.bodies.values(), progress) if duplicates else (),
            dive_score([layer.things for layer in layers]),
        )


class _Body:
    """A regular file of one layer: its first name, its size, and how many of its names are seen."""

    __slots__ = ("layer", "names", "path", "size")

    def __init__(self, layer: int, path: bytes, size: int) -> None:
        self.layer = layer
        self.path = path
        self.size = size
        self.names = 0


class _Sheet:
    """The tallies of one layer in the making: for each kind the files, the directories and the bytes."""

    __slots__ = ("_counts", "_number", "_title", "_whiteouts")

    def __init__(self, number: int, title: str, whiteouts: int) -> None:
        self._number = number
        self._title = title
        self._whiteouts = whiteouts
        self._counts = {kind: [0, 0, 0] for kind in ("added", "changed", "unchanged", "deleted")}

    def count(self, kind: str, thing: Thing, size: int) -> None:
        counts = self._counts[kind]
        counts[thing.directory] += 1
        counts[2] += size

    def report(self, shipped: Mapping[int, int], live: Mapping[int, int]) -> LayerReport:
        """The finished report; the bytes come by the layer's number."""
        return LayerReport(
            self._number, self._title, **{kind: Tally(*counts) for kind, counts in self._counts.items()},
            whiteouts=self._whiteouts, shipped=shipped[self._number], live=live[self._number],
        )


class _Accounts:
    """The books of one analysis: the view so far, every file, and every name that was hidden."""

    def __init__(self, layers: Sequence[SurveyedLayer]) -> None:
        self._layers = layers
        self.view = View()
        # By layer and inode; in the order of layers and names.
        self.bodies: dict[tuple[int, int], _Body] = {}
        self.hidden: list[Hidden] = []

    def lay(self, number: int, title: str) -> _Sheet:
        """Lay the next layer on those before it, and enter what it does."""
        words = self._layers[number - 1].things
        things = {path: thing for path, thing in words.items() if thing.says is not Says.WHITEOUT}
        marks = sum(thing.says in (Says.WHITEOUT, Says.OPAQUE_DIRECTORY) for thing in words.values())
        laid = self.view.lay(number, words)
        sheet = _Sheet(number, title, marks)
        compared = self._compared(number, things, laid)
        for path, thing in things.items():
            what = compared.get(path)
            kind = "added" if what is None else "unchanged" if what is Difference.NONE else "changed"
            sheet.count(kind, thing, self._shipped(number, path, thing))
        for path, gone in laid.gone.items():
            wasted = self._lost(gone.layer, gone.thing)
            if path not in things:
                sheet.count("deleted", gone.thing, wasted)
            if gone.thing.regular:
                why = _why(gone.why, compared.get(path))
                self.hidden.append(Hidden(path, gone.layer, number, why, gone.thing.size, wasted))
        return sheet

    def sums(self) -> tuple[Counter[int], Counter[int]]:
        """For each layer's number the bytes that it ships, and those of them that are seen."""
        shipped: Counter[int] = Counter()
        live: Counter[int] = Counter()
        for body in self.bodies.values():
            shipped[body.layer] += body.size
            live[body.layer] += body.size if body.names else 0
        return shipped, live

    def _compared(self, number: int, things: Iterable[bytes], laid: Laid) -> dict[bytes, Difference]:
        """How this layer's things differ from what was seen in their places."""
        found = {}
        for path in things:
            before = laid.layer_before(path)
            if before is not None:
                found[path] = difference(path, self._layers[before - 1], self._layers[number - 1])
        return found

    def _shipped(self, number: int, path: bytes, thing: Thing) -> int:
        """Enter a name that is now seen; the bytes that the layer ships with it."""
        if not thing.regular:
            return 0
        key = (number, thing.inode)
        first = key not in self.bodies
        body = self.bodies.setdefault(key, _Body(number, path, thing.size))
        body.names += 1
        return body.size if first else 0

    def _lost(self, layer: int, thing: Thing) -> int:
        """Strike out a name that is not seen any more; the bytes that are wasted with it."""
        if not thing.regular:
            return 0
        body = self.bodies[layer, thing.inode]
        body.names -= 1
        return 0 if body.names else body.size


def _why(otherwise: Why, what: Difference | None) -> Why:
    """Why a file went; `what` is how the thing that the same layer has in its place differs, None if nothing has."""
    if what is None:
        return otherwise
    return Why.OVERWRITTEN if what is Difference.CONTENT else Why.METADATA_ONLY


def _duplicates(
    layers: Sequence[SurveyedLayer], bodies: Iterable[_Body], progress: Progress
) -> tuple[Duplicate, ...]:
    """Files with the same data. Only files of one size are read, whole and in chunks, and their hashes compared."""
    by_size: defaultdict[int, list[_Body]] = defaultdict(list)
    for body in bodies:
        if body.size:
            by_size[body.size].append(body)
    several = {size: alike for size, alike in by_size.items() if len(alike) > 1}
    progress.step("comparing files of one size", sum(size * len(alike) for size, alike in several.items()))
    found = []
    for size, alike in several.items():
        by_hash: defaultdict[bytes, list[_Body]] = defaultdict(list)
        for body in alike:
            by_hash[_hash(layers[body.layer - 1], body.path)].append(body)
            progress.advance(size)
        found += [
            Duplicate(size, tuple(Copy(body.path, body.layer, body.names > 0) for body in same))
            for same in by_hash.values() if len(same) > 1
        ]
    return tuple(sorted(found, key=lambda one: (-one.size * (len(one.copies) - 1), one.copies[0].path)))


def _hash(layer: SurveyedLayer, path: bytes) -> bytes:
    hasher = hashlib.blake2b()
    with os.fdopen(layer.open(path, os.O_RDONLY), "rb", buffering=0) as file:
        for offset, data in pieces(file.fileno()):
            hasher.update(offset.to_bytes(8, "big") + data)
    return hasher.digest()
