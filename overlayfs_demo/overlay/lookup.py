"""Which real objects make up a name of the view?

A lookup asks the layers from the top down until `merge.decide` has heard enough. It never trusts what
an earlier lookup found. Directories that were renamed are followed through their redirects, as
overlayfs.rst, "redirect_dir", and fs/overlayfs/namei.c have it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from overlayfs_demo import syscalls
from overlayfs_demo.overlay.layer import Layer, LayerDir, LowerDir, key_of
from overlayfs_demo.overlay.merge import Says, Verdict, decide
from overlayfs_demo.overlay.whiteout import IMAGE_WHITEOUT_PREFIX


class Part(NamedTuple):
    """One layer's object of a name: where it stands, its status, and itself if it is a directory.

    `metacopy` says that its data is in the part below, if there is one.
    """

    place: LayerDir
    name: bytes
    status: os.stat_result
    directory: LayerDir | None
    metacopy: bool = False


class Answer(NamedTuple):
    """What one layer said, the object (where it has one), and which layer it was."""

    says: Says
    part: Part | None
    layer: Layer


class _Redirected(NamedTuple):
    """Where the layers below must look on: a path from their roots, and whether they need to at all."""

    path: bytes
    stop: bool


class Lookup:
    """Looks names up in the layers of one mount. `lowers` is the whole stack, topmost first.

    `data_layers` lie below it and are searched for the data of a metacopy alone, by absolute redirects.
    """

    __slots__ = ("_below", "_data_layers")

    def __init__(self, lowers: Sequence[Layer], data_layers: Sequence[Layer]) -> None:
        self._below = (*lowers, *data_layers)
        self._data_layers = frozenset(data_layers)

    def find(self, sources: Sequence[LayerDir], name: bytes) -> tuple[Part, ...]:
        """The objects that `name` is made of in the directory merged from `sources`, topmost first.

        Empty when the view has no such name. Only directories have more than one part, and metacopies,
        whose second part is their data. Raises OSError.
        """
        if len(sources) == 1:
            # Most directories stand in one layer, and most names in them are no directories.
            source = sources[0]
            status = source.stat(name)
            if status is None:
                return ()
            if not stat.S_ISDIR(status.st_mode):
                answer = judge(source, name, status)
                if answer.says is not Says.METACOPY:
                    return (answer.part,) if answer.part else ()
        answers: list[Answer] = []
        verdict = decide(self._listen(sources, name, answers))
        return tuple(part for position in verdict.positions if (part := answers[position].part))

    def may_lack_data(self, sources: Sequence[LayerDir], name: bytes) -> bool:
        """Is `name` a metacopy of a lower whose data was looked for in the data layers, if in vain?

        Then only reading it fails. All other metacopies without data cannot be looked up (ovl_lookup).
        """
        _, answers = self.explain(sources, name)
        in_lower = any(answer.says is Says.METACOPY and not answer.layer.is_upper for answer in answers)
        return in_lower and answers[-1].layer in self._data_layers

    def explain(self, sources: Sequence[LayerDir], name: bytes) -> tuple[Verdict, list[Answer]]:
        """What each layer says about `name`, until the verdict was clear."""
        answers: list[Answer] = []
        return decide(self._listen(sources, name, answers)), answers

    def _listen(self, sources: Sequence[LayerDir], name: bytes, answers: list[Answer]) -> Iterator[Says]:
        """Ask layer after layer, each only when the verdict needs it, and note the answers."""
        for source in sources:
            answer = judge(source, name, source.stat(name))
            answers.append(answer)
            yield answer.says
            redirect = _redirect(answer)
            if redirect is None:
                continue
            if redirect.startswith(b"/"):
                yield from self._listen_below(source.layer, redirect, answers)
                return
            name = redirect

    def _listen_below(self, above: Layer, path: bytes, answers: list[Answer]) -> Iterator[Says]:
        """Ask the layers below `above` about an absolute path, each from its root."""
        for layer in self._below:
            if layer.number <= above.number:
                continue
            answer, onward = _walk(layer, path)
            answers.append(answer)
            yield answer.says
            if onward.stop:
                return
            path = onward.path


def judge(source: LayerDir, name: bytes, status: os.stat_result | None) -> Answer:
    """What the layer of `source` says about `name`, given the object's status there."""
    layer = source.layer
    if status is None:
        deleted = not layer.last and layer.has_image_mark(source.open().fd, IMAGE_WHITEOUT_PREFIX + name)
        return Answer(Says.WHITEOUT if deleted else Says.ABSENT, None, layer)
    if layer.hides(name, status, source):
        return Answer(Says.WHITEOUT, None, layer)
    if not stat.S_ISDIR(status.st_mode):
        if layer.is_image_mark(name, status):
            return Answer(Says.ABSENT, None, layer)
        metacopy = layer.is_metacopy(name, status, source)
        return Answer(Says.METACOPY if metacopy else Says.FILE, Part(source, name, status, None, metacopy), layer)
    directory = source.child(name, key_of(status))
    part = Part(source, name, status, directory)
    if layer.last:
        return Answer(Says.DIRECTORY, part, layer)
    descriptor = directory.adopt(source, name)
    opaque = directory.marks.opaque or layer.has_image_mark(source.open().fd, IMAGE_WHITEOUT_PREFIX + name)
    del descriptor
    return Answer(Says.OPAQUE_DIRECTORY if opaque else Says.DIRECTORY, part, layer)


def _redirect(answer: Answer) -> bytes | None:
    part = answer.part
    if part is None or part.place.layer.last:
        return None
    if part.metacopy:
        path = syscalls.path_of(part.place.open().fd, part.name)
        return syscalls.get_xattr(path, part.place.layer.xattrs.redirect)
    return part.directory.marks.redirect if part.directory else None


def _walk(layer: Layer, path: bytes) -> tuple[Answer, _Redirected]:
    """Look an absolute path up in one layer alone, and say where the next layer must look.

    Whiteouts, opaque marks and redirects of the directories on the way count like those of the last
    component (fs/overlayfs/namei.c, ovl_lookup_layer).
    """
    parts = path.strip(b"/").split(b"/")
    directory: LayerDir = LowerDir(layer, b"")
    onward: list[bytes] = []
    stop = False
    for depth, name in enumerate(parts):
        last = depth == len(parts) - 1
        answer = judge(directory, name, directory.stat(name))
        if answer.says is Says.WHITEOUT or (answer.says in (Says.FILE, Says.METACOPY) and not last):
            return Answer(Says.WHITEOUT, None, layer), _Redirected(path, True)
        stop = stop or answer.says is Says.OPAQUE_DIRECTORY
        redirect = _redirect(answer) or name
        if redirect.startswith(b"/"):
            onward.clear()
        onward.extend(redirect.strip(b"/").split(b"/"))
        if last or answer.part is None or answer.part.directory is None:
            below = b"/" + b"/".join([*onward, *parts[depth + 1 :]])
            return Answer(_final(answer.says, stop), answer.part, layer), _Redirected(below, stop)
        directory = answer.part.directory
    raise AssertionError("a path has at least one component")


def _final(says: Says, stop: bool) -> Says:
    """An opaque directory on the way ends the search below, whatever it holds."""
    if not stop:
        return says
    return {Says.DIRECTORY: Says.OPAQUE_DIRECTORY, Says.ABSENT: Says.WHITEOUT}.get(says, says)
