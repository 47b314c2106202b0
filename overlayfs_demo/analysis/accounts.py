"""Per-layer accounts of what an image's layers add, change and hide.

They are kept path by path; `waste` says what is counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from overlayfs_demo.analysis.differing import Difference, difference
from overlayfs_demo.analysis.inventory import Thing
from overlayfs_demo.analysis.layer_walk import Place
from overlayfs_demo.analysis.same_data import SameData
from overlayfs_demo.analysis.stacked_view import Hiding, Step, Why, lay
from overlayfs_demo.overlay.merge import Says


@dataclass(frozen=True, slots=True)
class Tally:
    """A count of names, and their bytes. `files` counts everything except directories."""

    files: int = 0
    directories: int = 0
    size: int = 0

    @property
    def paths(self) -> int:
        """The number of names, including directories."""
        return self.files + self.directories


@dataclass(frozen=True, slots=True)
class LayerReport:
    """What one layer does to the view of the layers below it, and what became of its bytes.

    `added`: names that were not visible before. `changed`: names with different data, of a different kind, or with
    different metadata (the times of directories do not count). `unchanged`: names that were already there, identical.
    The sizes of these three add up to `shipped`: a file with several names counts at its first name. `deleted`: names
    that were visible and no longer are, including everything below a removed directory, and the bytes of the files
    that lost their last name this way. `whiteouts` and `opaque`: the layer's own marks for this, on names and on
    directories.
    `live`: the shipped bytes that are visible in the view of all layers.
    """

    number: int
    title: str
    added: Tally
    changed: Tally
    unchanged: Tally
    deleted: Tally
    whiteouts: int
    opaque: int
    shipped: int
    live: int

    @property
    def wasted(self) -> int:
        """The bytes that the layer ships for nothing."""
        return self.shipped - self.live


@dataclass(frozen=True, slots=True)
class Hidden:
    """A name of a regular file or symbolic link that one layer ships and an upper layer hides.

    `size` is the size of the file. `wasted` is the same if this was the file's last visible name, otherwise 0, so
    the sum over an image is what the image wastes. If one layer hid several last names at once, the first of them in
    sort order counts.
    """

    path: bytes
    shipped_by: int
    hidden_by: int
    why: Why
    size: int
    wasted: int


@dataclass(slots=True)
class _Loss:
    """A hidden name of a file; `deleted` says that the hiding layer has nothing in its place."""

    path: bytes
    hidden_by: int
    why: Why
    ghost: bool
    deleted: bool


@dataclass(slots=True)
class _Body:
    """A file or link of one layer: its names there, how many are visible in the end, and which were hidden."""

    size: int
    regular: bool
    names: list[bytes] = field(default_factory=list)
    seen: int = 0
    losses: list[_Loss] = field(default_factory=list)


class _Sheet:
    """The running tallies of one layer: the files, directories and bytes of each kind."""

    __slots__ = ("counts", "live", "opaque", "shipped", "whiteouts")

    def __init__(self) -> None:
        self.counts = {kind: [0, 0, 0] for kind in ("added", "changed", "unchanged", "deleted")}
        self.whiteouts = 0
        self.opaque = 0
        self.shipped = 0
        self.live = 0

    def count(self, kind: str, thing: Thing, size: int) -> None:
        counts = self.counts[kind]
        counts[thing.directory] += 1
        counts[2] += size

    def report(self, number: int, title: str) -> LayerReport:
        return LayerReport(
            number,
            title,
            **{kind: Tally(*counts) for kind, counts in self.counts.items()},
            whiteouts=self.whiteouts,
            opaque=self.opaque,
            shipped=self.shipped,
            live=self.live,
        )


class Accounts:
    """The books of one analysis: call `visit` for every place of a walk, then `finish`.

    `hidden` and `ghosts` then hold what `Analysis` has under these names. Every file's data is reported to `same`,
    which finds what the layers hold more than once.
    """

    def __init__(self, titles: Sequence[str], same: SameData | None) -> None:
        self._titles = titles
        self._same = same
        self._sheets = {number: _Sheet() for number in range(1, len(titles) + 1)}
        # What is hidden in each directory on the path to the current place, starting with the root.
        self._hiding: list[Hiding] = [{}]
        # Keyed by layer and inode.
        self._linked: dict[tuple[int, int], _Body] = {}
        self.hidden: list[Hidden] = []
        self.ghosts: list[Hidden] = []

    def visit(self, place: Place) -> None:
        """Enter what each layer does at this place."""
        del self._hiding[place.depth :]
        if len(place.things) == 1 and not self._hiding[-1]:
            [(number, thing)] = place.things.items()
            if thing.says is Says.FILE and thing.links == 1:
                self._enter_alone(place.path, number, thing)
                return
        laid = lay(place.things, self._hiding[-1])
        self._hiding.append(laid.hiding)
        # Ship first: `_enter` looks up the linked files that `_ship` records.
        for number, thing in place.things.items():
            if thing.ships:
                self._ship(place, number, thing, laid.shown == number)
        for step in laid.steps:
            self._enter(place, step, laid.shown is None)

    def finish(self) -> None:
        """Settle what is known only at the end of the walk, and sort the results."""
        for (layer, _), body in self._linked.items():
            self._settle(layer, body)
            # The bytes count as wasted at the first of the names that the highest layer hid.
            order = sorted(body.losses, key=lambda loss: (-loss.hidden_by, loss.path))
            for loss in order:
                self._hide(layer, body, loss, body.size if loss is order[0] and not body.seen else 0)
        self._linked.clear()
        for found in (self.hidden, self.ghosts):
            found.sort(key=lambda hidden: (hidden.path, -hidden.shipped_by))

    def reports(self) -> tuple[LayerReport, ...]:
        """Return a report for each layer."""
        return tuple(sheet.report(number, self._titles[number - 1]) for number, sheet in self._sheets.items())

    def _enter_alone(self, path: bytes, number: int, thing: Thing) -> None:
        """Enter a file that only one layer has, with one name: the usual case, which is handled first and quickly."""
        sheet = self._sheets[number]
        sheet.count("added", thing, thing.size)
        if thing.ships:
            sheet.shipped += thing.size
            sheet.live += thing.size
            if self._same is not None and thing.regular:
                self._same.add(number, (path,), thing.size, True)

    def _enter(self, place: Place, step: Step, ghost: bool) -> None:
        number, before, why = step
        sheet = self._sheets[number]
        thing = place.things.get(number)
        if thing is not None:
            sheet.whiteouts += thing.says is Says.WHITEOUT
            sheet.opaque += thing.says is Says.OPAQUE_DIRECTORY
        change = None
        if thing is None or thing.says is Says.WHITEOUT:
            thing = None
        elif before is None:
            sheet.count("added", thing, self._first_size(place, number, thing))
        else:
            change = difference(place, before, number)
            kind = "unchanged" if change is Difference.NONE else "changed"
            sheet.count(kind, thing, self._first_size(place, number, thing))
        if before is not None and why is not None:
            self._lose(place, before, _Loss(place.path, number, _why(why, change), ghost, thing is None))

    def _ship(self, place: Place, number: int, thing: Thing, seen: bool) -> None:
        """Enter a name of a file or link, and its bytes if it has no other name."""
        if thing.links > 1:
            body = self._linked.setdefault((number, thing.inode), _Body(thing.size, thing.regular))
            body.names.append(place.path)
            body.seen += seen
        else:
            self._settle(number, _Body(thing.size, thing.regular, [place.path], seen))

    def _first_size(self, place: Place, number: int, thing: Thing) -> int:
        """Return the size of a file at its first name, and 0 at its other names."""
        if thing.ships and thing.links > 1 and self._linked[number, thing.inode].names[0] != place.path:
            return 0
        return thing.size

    def _lose(self, place: Place, layer: int, loss: _Loss) -> None:
        """Enter that a name is no longer visible."""
        thing = place.things[layer]
        if not thing.ships:
            if loss.deleted:
                self._sheets[loss.hidden_by].count("deleted", thing, 0)
        elif thing.links > 1:
            self._linked[layer, thing.inode].losses.append(loss)
        else:
            self._hide(layer, _Body(thing.size, thing.regular), loss, thing.size)

    def _settle(self, layer: int, body: _Body) -> None:
        """Enter a file's bytes, once for all its names."""
        sheet = self._sheets[layer]
        sheet.shipped += body.size
        sheet.live += body.size if body.seen else 0
        if self._same is not None and body.regular:
            self._same.add(layer, body.names, body.size, body.seen > 0)

    def _hide(self, layer: int, body: _Body, loss: _Loss, wasted: int) -> None:
        hidden = Hidden(loss.path, layer, loss.hidden_by, loss.why, body.size, wasted)
        self.hidden.append(hidden)
        # A link holds no data that could be extracted.
        if loss.ghost and body.regular:
            self.ghosts.append(hidden)
        if loss.deleted:
            counts = self._sheets[loss.hidden_by].counts["deleted"]
            counts[0] += 1
            counts[2] += wasted


def _why(otherwise: Why, change: Difference | None) -> Why:
    """Return why a file is hidden.

    `change` says how the layer's replacement differs; None if the layer has nothing in the file's place.
    """
    if change is None:
        return otherwise
    return Why.OVERWRITTEN if change is Difference.CONTENT else Why.METADATA_ONLY
