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


class _PathLookup:
    """The result of the lookup of a path, component by component.

    `hidden` maps a layer's depth to the layer that hides it and the path where. `sources` make up the directory in
    which the path's last component was looked up, and `answers` are about that component; both are empty if that
    directory does not exist.
    """

    __slots__ = ("answers", "hidden", "positions", "sources")

    def __init__(self) -> None:
        self.hidden: dict[int, tuple[Layer, bytes]] = {}
        self.sources: Sequence[LayerDir] = ()
        self.answers: Sequence[Answer] = ()
        self.positions: Sequence[int] = ()


def statements_about(lookup: Lookup, layers: Sequence[Layer], root: Sequence[LayerDir], path: bytes) -> list[Statement]:
    """Return the statements of all `layers` in which names are looked up, topmost first, about an absolute path.

    `root` is what the view's root is merged from. A data-only layer is included only if the path leads to its data.
    `path` must not contain `.` or `..`. Raises OSError.
    """
    names = [name for name in path.split(b"/") if name]
    looked_up = _look_up(lookup, layers, root, names)
    answers = {answer.layer.depth: answer for answer in looked_up.answers}
    winners = {looked_up.answers[position].layer.depth for position in looked_up.positions}
    if not names:
        winners = {source.layer.depth for source in root}
    known = {layer.depth for layer in layers}
    data = [answer.layer for answer in looked_up.answers if answer.layer.depth not in known]
    found = []
    for layer in (*layers, *data):
        answer = answers.get(layer.depth)
        deleted_at = _path(names)
        if answer is None:
            answer, deleted_at = _alone(layer, looked_up.sources, names)
        found.append(_statement(answer, layer.depth in winners, looked_up.hidden.get(layer.depth), deleted_at))
    return found


def _path(names: Sequence[bytes]) -> bytes:
    return b"/" + b"/".join(names)


def _look_up(lookup: Lookup, layers: Sequence[Layer], root: Sequence[LayerDir], names: Sequence[bytes]) -> _PathLookup:
    looked_up = _PathLookup()
    if root[-1].marks.opaque:
        _hide_below(looked_up, layers, root[-1].layer, b"/")
    sources: Sequence[LayerDir] = root
    for depth, name in enumerate(names):
        verdict, answers = lookup.verdict(sources, name)
        _note_hidden(looked_up, layers, verdict, answers, _path(names[: depth + 1]))
        if depth == len(names) - 1:
            looked_up.sources, looked_up.answers, looked_up.positions = sources, answers, verdict.positions
        parts = [part for position in verdict.positions if (part := answers[position].part)]
        sources = [part.directory for part in parts if part.directory]
        if not sources:
            break
    return looked_up


def _note_hidden(
    looked_up: _PathLookup, layers: Sequence[Layer], verdict: Verdict, answers: Sequence[Answer], path: bytes
) -> None:
    if verdict.decided_by is None:
        return
    decider = answers[verdict.decided_by]
    _hide_below(looked_up, layers, decider.layer, path)
    if decider.part is not None and verdict.decided_by not in verdict.positions:
        # A file below merged directories ends the merge, and the lowest of them hides it.
        looked_up.hidden.setdefault(decider.layer.depth, (answers[verdict.positions[-1]].layer, path))


def _hide_below(looked_up: _PathLookup, layers: Sequence[Layer], decider: Layer, path: bytes) -> None:
    for layer in layers:
        if layer.depth > decider.depth:
            looked_up.hidden.setdefault(layer.depth, (decider, path))


def _alone(layer: Layer, sources: Sequence[LayerDir], names: Sequence[bytes]) -> tuple[Answer, bytes]:
    """Return the answer of a layer that the lookup did not ask, and the path of its whiteout if it says "deleted"."""
    for source in sources:
        if source.layer is layer:
            return judge(source, names[-1], source.stat(names[-1])), _path(names)
    directory: LayerDir = LowerDir(layer, b"")
    for depth, name in enumerate(names):
        answer = judge(directory, name, directory.stat(name))
        last = depth == len(names) - 1
        if last or answer.says is Says.WHITEOUT:
            return answer, _path(names[: depth + 1])
        if answer.part is None or answer.part.directory is None:
            return Answer(Says.ABSENT, None, layer), b""
        directory = answer.part.directory
    # No names: the path is the root, which every layer has.
    return Answer(Says.OPAQUE_DIRECTORY if directory.marks.opaque else Says.DIRECTORY, None, layer), b""


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
