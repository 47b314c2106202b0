"""What each layer has at one path, which layer wins, and what hides the others.

A lookup stops when its verdict is clear. Here the layers below are asked as well, to tell what they have and which
layer hides it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence

from overlayfs_demo.named_tuple import NamedTuple
from overlayfs_demo.overlay.layer import Layer, LayerDir, LowerDir
from overlayfs_demo.overlay.lookup import Answer, Lookup, Part, judge
from overlayfs_demo.overlay.merge import Says, Verdict


class Statement(NamedTuple):
    """What one layer has at a path.

    `layer` is its label. `mode`, `size` (in bytes) and `target` (of a symbolic link) are those of the layer's object,
    if it has one. `wins`: the view shows this object, or a directory merged with it. `hidden_by` is the label of the
    layer that hides this one, "" if none does, and `hidden_at` where: the path itself or a directory on the way.
    `deleted_at`: if the layer says "deleted", the path of its whiteout in the view. `stored_at` is the object's path
    in the layer, without a leading slash; after a redirect it differs from the path in the view.
    """

    layer: str
    says: Says
    wins: bool
    mode: int | None = None
    size: int | None = None
    target: bytes | None = None
    hidden_by: str = ""
    hidden_at: bytes = b""
    deleted_at: bytes = b""
    stored_at: bytes = b""


# The layers that are hidden, by their depths: the layer that hides each, and the path where.
_Hidden = dict[int, tuple[Layer, bytes]]
# A layer's answer, and the path of its whiteout if it says "deleted".
_Ended = tuple[Answer, bytes]


class StatementsInside:
    """The statements about the names in one directory of the view.

    The directory is looked up once, so use this only while the layers do not change. `layers` are those in which names
    are looked up, topmost first, `root` is what the view's root is merged from, and `names` lead from there to the
    directory, which need not exist; none may be `.` or `..`.
    """

    __slots__ = ("_hidden", "_layers", "_lookup", "_names", "_reached", "_sources")

    def __init__(
        self, lookup: Lookup, layers: Sequence[Layer], root: Sequence[LayerDir], names: Sequence[bytes]
    ) -> None:
        """Look the directory up. Raises OSError."""
        self._lookup = lookup
        self._layers = layers
        self._names = names
        # What the layers that no lookup has asked have there, by their depths.
        self._reached: dict[int, LayerDir | _Ended] = {}
        self._hidden = _hidden_at_root(layers, root)
        # What the directory is merged from; nothing if the view has no such directory.
        self._sources = root
        for depth, name in enumerate(names):
            verdict, answers = lookup.verdict(self._sources, name)
            _note_hidden(self._hidden, layers, verdict, answers, _path(names[: depth + 1]))
            parts = [part for position in verdict.positions if (part := answers[position].part)]
            self._sources = [part.directory for part in parts if part.directory]
            if not self._sources:
                break

    def about(self, name: bytes) -> list[Statement]:
        """Return the statements of all layers about a name.

        A data-only layer is included only if the path leads to its data. Raises OSError.
        """
        path = _path((*self._names, name))
        hidden = self._hidden.copy()
        answers: Sequence[Answer] = ()
        winners: set[int] = set()
        if self._sources:
            verdict, answers = self._lookup.verdict(self._sources, name)
            _note_hidden(hidden, self._layers, verdict, answers, path)
            winners = {answers[position].layer.depth for position in verdict.positions}
        answered = {answer.layer.depth: (answer, path) for answer in answers}
        known = {layer.depth for layer in self._layers}
        data = [answer.layer for answer in answers if answer.layer.depth not in known]
        found = []
        for layer in (*self._layers, *data):
            answer, deleted_at = answered.get(layer.depth) or self._alone(layer, name, path)
            found.append(_statement(answer, layer.depth in winners, hidden.get(layer.depth), deleted_at))
        return found

    def _alone(self, layer: Layer, name: bytes, path: bytes) -> _Ended:
        """Return the answer of a layer that the lookup did not ask."""
        directory = self._reached.get(layer.depth)
        if directory is None:
            merged = (source for source in self._sources if source.layer is layer)
            directory = self._reached[layer.depth] = next(merged, None) or _reach(layer, self._names)
        if isinstance(directory, LayerDir):
            return judge(directory, name, directory.stat(name)), path
        return directory


def statements_about(lookup: Lookup, layers: Sequence[Layer], root: Sequence[LayerDir], path: bytes) -> list[Statement]:
    """Return the statements of all layers about an absolute path. The other arguments are as in `StatementsInside`.

    Raises OSError.
    """
    names = names_of(path)
    if names:
        return StatementsInside(lookup, layers, root, names[:-1]).about(names[-1])
    winners = {source.layer.depth for source in root}
    hidden = _hidden_at_root(layers, root)
    found = []
    for layer in layers:
        opaque = LowerDir(layer, b"").marks.opaque
        answer = Answer(Says.OPAQUE_DIRECTORY if opaque else Says.DIRECTORY, None, layer)
        found.append(_statement(answer, layer.depth in winners, hidden.get(layer.depth), b""))
    return found


def names_of(path: bytes) -> list[bytes]:
    """Return the names that a path consists of."""
    return [name for name in path.split(b"/") if name]


def _path(names: Sequence[bytes]) -> bytes:
    return b"/" + b"/".join(names)


def _hidden_at_root(layers: Sequence[Layer], root: Sequence[LayerDir]) -> _Hidden:
    hidden: _Hidden = {}
    if root[-1].marks.opaque:
        _hide_below(hidden, layers, root[-1].layer, b"/")
    return hidden


def _note_hidden(
    hidden: _Hidden, layers: Sequence[Layer], verdict: Verdict, answers: Sequence[Answer], path: bytes
) -> None:
    if verdict.decided_by is None:
        return
    decider = answers[verdict.decided_by]
    _hide_below(hidden, layers, decider.layer, path)
    if decider.part is not None and verdict.decided_by not in verdict.positions:
        # A file below merged directories ends the merge, and the lowest of them hides it.
        hidden.setdefault(decider.layer.depth, (answers[verdict.positions[-1]].layer, path))


def _hide_below(hidden: _Hidden, layers: Sequence[Layer], decider: Layer, path: bytes) -> None:
    for layer in layers:
        if layer.depth > decider.depth:
            hidden.setdefault(layer.depth, (decider, path))


def _reach(layer: Layer, names: Sequence[bytes]) -> LayerDir | _Ended:
    """Return a layer's own directory, or what the layer answers for every name in it if it has none."""
    directory: LayerDir = LowerDir(layer, b"")
    for depth, name in enumerate(names):
        answer = judge(directory, name, directory.stat(name))
        if answer.says is Says.WHITEOUT:
            return answer, _path(names[: depth + 1])
        if answer.part is None or answer.part.directory is None:
            return Answer(Says.ABSENT, None, layer), b""
        directory = answer.part.directory
    return directory


def _statement(answer: Answer, wins: bool, hidden: tuple[Layer, bytes] | None, deleted_at: bytes) -> Statement:
    part, says = answer.part, answer.says
    target = None
    if part is not None and stat.S_ISLNK(part.status.st_mode):
        target = os.readlink(part.name, dir_fd=part.place.open().fd)
    by, at = hidden if hidden and says is not Says.ABSENT and not wins else (None, b"")
    mode, size = (part.status.st_mode, part.status.st_size) if part else (None, None)
    return Statement(
        answer.layer.label,
        says,
        wins,
        mode,
        size,
        target,
        by.label if by else "",
        at,
        deleted_at if says is Says.WHITEOUT else b"",
        _stored_at(part) if part else b"",
    )


def _stored_at(part: Part) -> bytes:
    above = part.place.path()
    return b"%s/%s" % (above, part.name) if above else part.name
