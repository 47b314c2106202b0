"""Which real objects make up a name of the view?

A lookup asks the layers from the top down until `merge.decide` has a verdict. It never relies on the result of
an earlier lookup. Renamed directories are followed through their redirects, as described in overlayfs.rst,
"redirect_dir", and implemented in fs/overlayfs/namei.c.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Iterator, Sequence

from overlayfs_demo.named_tuple import NamedTuple
from overlayfs_demo.overlay import faults
from overlayfs_demo.overlay.layer import Layer, LayerDir, LowerDir, key_of, redirect_in
from overlayfs_demo.overlay.merge import Says, Verdict, decide
from overlayfs_demo.overlay.name_table import NameTable
from overlayfs_demo.overlay.whiteout import IMAGE_WHITEOUT_PREFIX

# The answers that most lookups get. Python 3.11 takes long to find a member of an enumeration.
_ABSENT, _FILE = Says.ABSENT, Says.FILE
# The length of the longest name of most filesystems, in bytes: limits.h.
_NAME_MAX = 255


class Part(NamedTuple):
    """One layer's object for a name: where it is, its status, and its `LayerDir` if it is a directory.

    `metacopy`: its data is in the next part, if there is one.
    """

    place: LayerDir
    name: bytes
    status: os.stat_result
    directory: LayerDir | None
    metacopy: bool = False


class Answer(NamedTuple):
    """What one layer says about a name, the object (if it has one), and the layer."""

    says: Says
    part: Part | None
    layer: Layer


class _Walked(NamedTuple):
    """What one layer says about a path, and the path to look up in the next layer below; `stop`: ask no other layer."""

    answer: Answer
    below: bytes
    stop: bool


class Lookup:
    """Looks names up in the layers of one mount.

    `lowers` are topmost first. `data_layers` are below them and are searched only for the data of metacopies, by
    absolute redirects.
    """

    __slots__ = ("_data_layers", "_lowers")

    def __init__(self, lowers: Sequence[Layer], data_layers: Sequence[Layer]) -> None:
        self._lowers = tuple(lowers)
        self._data_layers = tuple(data_layers)

    def find(self, sources: Sequence[LayerDir], name: bytes, table: NameTable | None = None) -> tuple[Part, ...]:
        """Return the objects that make up `name` in the directory merged from `sources`, topmost first.

        The result is empty if the view has no such name. Only directories and metacopies have more than one part;
        a metacopy's second part is its data. `table` is that of the lowers among the sources: those without an entry
        are not asked. Raises OSError: EINVAL or EACCES for a bad redirect, see `faults`.
        """
        for position in _asked(sources, name, table):
            source = sources[position]
            answer = judge(source, name, source.stat(name))
            if answer.says is _FILE:
                assert answer.part is not None
                return (answer.part,)  # The common case: no layer below matters.
            if answer.says is not _ABSENT:
                answers: list[Answer] = []
                verdict = decide(self._listen(sources, name, answers, table, answer, position))
                return tuple(part for position in verdict.positions if (part := answers[position].part))
        return ()

    def may_lack_data(self, sources: Sequence[LayerDir], name: bytes) -> bool:
        """Whether `name` is a metacopy of a lower whose search for data went as far as the data layers.

        If the data is missing, only reading fails. The lookup of any other metacopy without data fails (ovl_lookup).
        """
        _, answers = self.verdict(sources, name)
        in_lower = any(answer.says is Says.METACOPY and not answer.layer.is_upper for answer in answers)
        return in_lower and answers[-1].layer in self._data_layers

    def verdict(self, sources: Sequence[LayerDir], name: bytes) -> tuple[Verdict, list[Answer]]:
        """Return the verdict about `name`, and the answers of the layers that were asked until it was clear."""
        answers: list[Answer] = []
        return decide(self._listen(sources, name, answers)), answers

    def _listen(
        self,
        sources: Sequence[LayerDir],
        name: bytes,
        answers: list[Answer],
        table: NameTable | None = None,
        first: Answer | None = None,
        start: int = 0,
    ) -> Iterator[Says]:
        """Ask one layer after another, each only when the verdict needs it, and append the answers to `answers`.

        It begins at the position `start`; `first` is the answer of the source there if that was asked already.
        """
        redirected = False
        asked = iter(_asked(sources, name, table, start))
        while (position := next(asked, None)) is not None:
            source = sources[position]
            if first is None:
                status = _status_if_possible(source, name) if redirected else source.stat(name)
                answer = judge(source, name, status)
            else:
                answer, first = first, None
            answers.append(answer)
            yield answer.says
            redirect = _redirect(answer)
            if redirect is None:
                continue
            if redirect.startswith(b"/"):
                yield from self._listen_below(source.layer, redirect, answers)
                return
            name, redirected = redirect, True
            asked = iter(_asked(sources, name, table, position + 1))

    def _listen_below(self, above: Layer, path: bytes, answers: list[Answer]) -> Iterator[Says]:
        """Ask the layers below `above` about an absolute path, which each resolves from its root."""
        for layer in (*self._lowers, *self._data_layers):
            if layer.depth <= above.depth:
                continue
            if layer in self._data_layers and not any(answer.says is Says.METACOPY for answer in answers):
                return
            walked = _walk(layer, path)
            answers.append(walked.answer)
            yield walked.answer.says
            if walked.stop:
                return
            path = walked.below


def _asked(sources: Sequence[LayerDir], name: bytes, table: NameTable | None, start: int = 0) -> Iterable[int]:
    """Return the positions from `start` on of the sources that may have something to say about the name."""
    if table is None or len(name) > _NAME_MAX:  # Only a filesystem says which names are too long for it.
        return range(start, len(sources))
    return table.asked(name, start, len(sources) - len(table.lowers))


def judge(source: LayerDir, name: bytes, status: os.stat_result | None) -> Answer:
    """Return what the layer of `source` says about `name`, given the object's status there."""
    layer = source.layer
    if status is None:
        deleted = not layer.last and source.has_image_mark(IMAGE_WHITEOUT_PREFIX + name)
        return Answer(Says.WHITEOUT if deleted else _ABSENT, None, layer)
    if stat.S_ISDIR(status.st_mode):
        return _judge_directory(source, name, status)
    if not status.st_size or not stat.S_ISREG(status.st_mode):  # Whiteouts and marks are empty files, or devices.
        if layer.hides(name, status, source):
            return Answer(Says.WHITEOUT, None, layer)
        if layer.is_image_mark(name, status):
            return Answer(_ABSENT, None, layer)
    if not layer.is_metacopy(name, status, source):
        return Answer(_FILE, Part(source, name, status, None), layer)
    faults.check_metacopy(source.xattr(name, layer.xattrs.metacopy) or b"", source, name)
    return Answer(Says.METACOPY, Part(source, name, status, None, True), layer)


def _judge_directory(source: LayerDir, name: bytes, status: os.stat_result) -> Answer:
    layer = source.layer
    directory = source.child(name, key_of(status))
    part = Part(source, name, status, directory)
    if layer.last:
        return Answer(Says.DIRECTORY, part, layer)
    # Held until the marks are read, so that the cache cannot close the directory before.
    descriptor = directory.adopt(source, name)
    opaque = directory.marks.opaque or source.has_image_mark(IMAGE_WHITEOUT_PREFIX + name)
    del descriptor
    return Answer(Says.OPAQUE_DIRECTORY if opaque else Says.DIRECTORY, part, layer)


def _status_if_possible(source: LayerDir, name: bytes) -> os.stat_result | None:
    """Return the status of a name from a redirect. A name that is too long for any file counts as absent
    (ovl_lookup_single)."""
    try:
        return source.stat(name)
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        return None


def _redirect(answer: Answer) -> bytes | None:
    """Return the name of the object in the layers below, if it differs: an absolute path or a sibling's name."""
    part = answer.part
    if part is None or part.place.layer.last or answer.says is Says.OPAQUE_DIRECTORY:
        return None
    if part.metacopy:
        value = redirect_in(part.place.xattr(part.name, part.place.layer.xattrs.redirect))
    else:
        value = part.directory.marks.redirect if part.directory else None
    return None if value is None else faults.checked_redirect(value, part.place, part.name)


def _walk(layer: Layer, path: bytes) -> _Walked:
    """Look an absolute path up in one layer only.

    Whiteouts, opaque marks and redirects of the directories on the way count like those of the last component. An
    opaque directory ends the search, unless an absolute redirect further down, or a metacopy at the end, continues it
    (fs/overlayfs/namei.c, ovl_lookup_layer, ovl_check_redirect).
    """
    directory: LayerDir = LowerDir(layer, b"")
    # The path for the next layer, as far as this one has been walked, and the part of this one that remains.
    below = b""
    rest = path
    stop = False
    while True:
        name, _, rest = rest[1:].partition(b"/")
        rest = rest and b"/" + rest
        answer = judge(directory, name, _status_if_possible(directory, name))
        if answer.says is Says.WHITEOUT or (answer.says in (Says.FILE, Says.METACOPY) and rest):
            return _Walked(Answer(Says.WHITEOUT, None, layer), path, True)
        if answer.says is Says.OPAQUE_DIRECTORY:
            stop = True
        redirect = _redirect(answer)
        if redirect is not None and redirect.startswith(b"/"):
            below, stop = redirect, False
        else:
            below += b"/" + (redirect or name)
        if not rest or answer.part is None or answer.part.directory is None:
            stop = stop and answer.says is not Says.METACOPY
            return _Walked(Answer(_final(answer.says, stop), answer.part, layer), below + rest, stop)
        directory = answer.part.directory


def _final(says: Says, stop: bool) -> Says:
    """Return `says`, changed so that it ends the search if an opaque directory on the way does (`stop`)."""
    if not stop:
        return says
    return {Says.DIRECTORY: Says.OPAQUE_DIRECTORY, Says.ABSENT: Says.WHITEOUT}.get(says, says)
