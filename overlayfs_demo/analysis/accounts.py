"""What does each layer of an image add, change and hide?

These are the books of an analysis, kept path by path; `analysis` says what is counted.
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
    that the sum over all of an image is what the image wastes. If one layer hid several of the last names, the first
    of them in order counts.
    """

    path: bytes
    shipped_by: int
    hidden_by: int
    why: Why
    size: int
    wasted: int


@dataclass(slots=True)
class _Loss:
    """A name of a file that was hidden; `deleted`: the hiding layer has nothing in its place."""

    path: bytes
    hidden_by: int
    why: Why
    ghost: bool
    deleted: bool


@dataclass(slots=True)
class _Linked:
    """A file of several names in one layer: which they are, how many of them are seen in the end, which were hidden."""

    size: int
    names: list[bytes] = field(default_factory=list)
    seen: int = 0
    losses: list[_Loss] = field(default_factory=list)


class _Sheet:
    """The tallies of one layer in the making: for each kind the files, the directories and the bytes."""

    __slots__ = ("counts", "live", "shipped", "whiteouts")

    def __init__(self) -> None:
        self.counts = {kind: [0, 0, 0] for kind in ("added", "changed", "unchanged", "deleted")}
        self.whiteouts = 0
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
            shipped=self.shipped,
            live=self.live,
        )


class Accounts:
    """The books of one analysis: visits every place of a walk, and is finished.

    `hidden` and `ghosts` are then those of `Analysis`. What is in the layers more than once is told to `same`.
    """

    def __init__(self, titles: Sequence[str], same: SameData | None) -> None:
        self._titles = titles
        self._same = same
        self._sheets = {number: _Sheet() for number in range(1, len(titles) + 1)}
        # What is hidden in the directories on the way to the present place, the root first.
        self._hiding: list[Hiding] = [{}]
        # By layer and inode.
        self._linked: dict[tuple[int, int], _Linked] = {}
        self.hidden: list[Hidden] = []
        self.ghosts: list[Hidden] = []

    def visit(self, place: Place) -> None:
        """Enter what each layer does to this place."""
        del self._hiding[place.depth :]
        laid = lay(place.things, self._hiding[-1])
        self._hiding.append(laid.hiding)
        for number, thing in place.things.items():
            if thing.regular:
                self._ship(place, number, thing, laid.shown == number)
        for step in laid.steps:
            self._enter(place, step, laid.shown is None)

    def finish(self) -> None:
        """Settle what only the end of the walk tells, and put everything in order."""
        for (layer, _), body in self._linked.items():
            self._settle(layer, body.size, body.seen > 0, body.names)
            # The bytes are wasted with the first of the names that were hidden last.
            order = sorted(body.losses, key=lambda one: (-one.hidden_by, one.path))
            for loss in order:
                self._hide(layer, body.size, loss, body.size if loss is order[0] and not body.seen else 0)
        self._linked.clear()
        for found in (self.hidden, self.ghosts):
            found.sort(key=lambda one: (one.path, -one.shipped_by))

    def reports(self) -> tuple[LayerReport, ...]:
        """A report for each layer."""
        return tuple(sheet.report(number, self._titles[number - 1]) for number, sheet in self._sheets.items())

    def _enter(self, place: Place, step: Step, ghost: bool) -> None:
        number, before, why = step
        sheet = self._sheets[number]
        thing = place.things.get(number)
        if thing is not None and thing.says in (Says.WHITEOUT, Says.OPAQUE_DIRECTORY):
            sheet.whiteouts += 1
        what = None
        if thing is None or thing.says is Says.WHITEOUT:
            thing = None
        elif before is None:
            sheet.count("added", thing, self._first_size(place, number, thing))
        else:
            what = difference(place, before, number)
            kind = "unchanged" if what is Difference.NONE else "changed"
            sheet.count(kind, thing, self._first_size(place, number, thing))
        if before is not None and why is not None:
            self._lose(place, before, _Loss(place.path, number, _why(why, what), ghost, thing is None))

    def _ship(self, place: Place, number: int, thing: Thing, seen: bool) -> None:
        """Enter a name of a regular file, and its bytes if it has no other."""
        if thing.links > 1:
            body = self._linked.setdefault((number, thing.inode), _Linked(thing.size))
            body.names.append(place.path)
            body.seen += seen
        else:
            self._settle(number, thing.size, seen, (place.path,))

    def _first_size(self, place: Place, number: int, thing: Thing) -> int:
        """The size of a file at its first name."""
        if thing.regular and thing.links > 1 and self._linked[number, thing.inode].names[0] != place.path:
            return 0
        return thing.size

    def _lose(self, place: Place, layer: int, loss: _Loss) -> None:
        """Enter that something is not seen any more."""
        thing = place.things[layer]
        if not thing.regular:
            if loss.deleted:
                self._sheets[loss.hidden_by].count("deleted", thing, 0)
        elif thing.links > 1:
            self._linked[layer, thing.inode].losses.append(loss)
        else:
            self._hide(layer, thing.size, loss, thing.size)

    def _settle(self, layer: int, size: int, live: bool, names: Sequence[bytes]) -> None:
        """Enter a file's bytes, once for all of its names."""
        sheet = self._sheets[layer]
        sheet.shipped += size
        sheet.live += size if live else 0
        if self._same is not None:
            self._same.add(layer, names, size, live)

    def _hide(self, layer: int, size: int, loss: _Loss, wasted: int) -> None:
        hidden = Hidden(loss.path, layer, loss.hidden_by, loss.why, size, wasted)
        self.hidden.append(hidden)
        if loss.ghost:
            self.ghosts.append(hidden)
        if loss.deleted:
            counts = self._sheets[loss.hidden_by].counts["deleted"]
            counts[0] += 1
            counts[2] += wasted


def _why(otherwise: Why, what: Difference | None) -> Why:
    """Why a file went; `what` is how the thing that the same layer has in its place differs, None if nothing has."""
    if what is None:
        return otherwise
    return Why.OVERWRITTEN if what is Difference.CONTENT else Why.METADATA_ONLY
