"""A stack as it was at each of its layers, one directory at a time.

For each layer the engine opens two views: of this layer and those below it, and of those below it alone. What differs
between them is what the layer does, as in `images.upper_diff`. So the merge, whiteouts, opaque directories, redirects
and metacopies are the engine's own, and this module knows no rule of theirs.
"""

from __future__ import annotations

import errno
import stat
import threading
from collections import OrderedDict
from collections.abc import Container, Iterator, Sequence

from overlayfs_demo.browse.subject import layer_name
from overlayfs_demo.errors import printable
from overlayfs_demo.images.upper_diff import Kind
from overlayfs_demo.linux.failure import failure
from overlayfs_demo.named_tuple import NamedTuple
from overlayfs_demo.overlay.engine import Overlay
from overlayfs_demo.overlay.factory import open_overlay
from overlayfs_demo.overlay.layer import Layer, LayerDir
from overlayfs_demo.overlay.layer_statements import Statement
from overlayfs_demo.overlay.listing import Listed, Snapshot
from overlayfs_demo.overlay.merge import Says
from overlayfs_demo.overlay.node import DirNode, FileNode, Node
from overlayfs_demo.overlay.provenance import Provenance
from overlayfs_demo.overlay.stack import Stack
from overlayfs_demo.overlay.types import Attrs, Dirent
from overlayfs_demo.ui.wording import said

# Each open view holds a descriptor of each of its layers.
_OPEN_VIEWS = 4


class Entry(NamedTuple):
    """One name in a directory as of a layer.

    `kind` says what the layer does to it (None: nothing). `own`: the layer itself holds its data. `size` is in bytes,
    0 for a directory. `inode` is 0 unless the file has several names. `layer` is the label of the topmost layer that
    shows it. `target` is that of a symbolic link. `opaque` and `redirect` are the layer's own marks on a directory.
    `broken`: its lookup fails, and only the type in `mode` is known.
    """

    name: bytes
    kind: Kind | None
    own: bool
    mode: int
    uid: int
    gid: int
    size: int
    inode: int
    layer: str
    target: bytes = b""
    opaque: bool = False
    redirect: bytes = b""
    broken: bool = False

    @property
    def is_directory(self) -> bool:
        """Whether it is a directory that can be opened."""
        return stat.S_ISDIR(self.mode) and not self.broken

    @property
    def is_deleted(self) -> bool:
        """Whether the layer takes it away."""
        return self.kind is Kind.DELETED


class Depths:
    """The views of a stack. Places count layers from 0, the topmost. All methods may be called from several threads.

    Use it in a `with`, which closes the views.
    """

    def __init__(self, stack: Stack) -> None:
        self._stack = stack._replace(read_only=True, time_machine=False)
        self._lock = threading.Lock()
        self._views: OrderedDict[int, Overlay] = OrderedDict()
        self._is_closed = False

    def __enter__(self) -> Depths:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._is_closed = True
        self.forget()

    def forget(self) -> None:
        """Close the views: the next call reads the layers' directories again."""
        with self._lock:
            while self._views:
                self._views.popitem()[1].close()

    def listing(self, place: int, path: bytes) -> tuple[Entry, ...]:
        """Return what is in a directory as of a layer, and what the layer deletes there, sorted by name.

        `path` is absolute. Raises OSError.
        """
        with self._lock:
            after, before = self._view(place), self._view(place + 1)
            assert after is not None, "there is a layer at each place"
            new, old = _directory(after, path), _directory(before, path)
            if before is None or old is None:
                found = list(_present(after, new, None, ()))
            else:
                known = before.names(old, quietly=True)
                found = list(_present(after, new, old, known.names))
                present = {entry.name for entry in found}
                gone = [listed for listed in known.names.values() if listed.name not in present]
                found += _deleted(before, old, known, gone)
        return tuple(sorted(found, key=lambda entry: entry.name))

    def explain(self, place: int, path: bytes) -> str:
        """Return what a layer says about a path, what that hides, and which layer hides it. Raises OSError."""
        with self._lock:
            here, last = self._view(place), self._view(0)
            assert here is not None and last is not None, "there is a layer at each place"
            return _explained(here.which(path), last.which(path), path)

    # --- the views ---------------------------------------------------------------------------------

    def _view(self, place: int) -> Overlay | None:
        """Return the view of the layer at a place and those below it; None below the bottom."""
        if self._is_closed:
            raise failure(errno.ESHUTDOWN)  # A thread that reads in the background has not noticed yet.
        uppers = self._stack.upper is not None
        if place >= len(self._stack.lowers) + uppers:
            return None
        if place in self._views:
            self._views.move_to_end(place)
            return self._views[place]
        stack = self._stack
        if place or not uppers:
            skipped = place - uppers
            stack = stack._replace(lowers=stack.lowers[skipped:], titles=stack.titles[skipped:], upper=None, work=None)
        view = self._views[place] = open_overlay(stack)
        if len(self._views) > _OPEN_VIEWS:
            self._views.popitem(last=False)[1].close()
        return view


def _directory(view: Overlay | None, path: bytes) -> DirNode | None:
    """Return the directory at a path of a view, if there is one."""
    if view is None:
        return None
    try:
        node = view.walk(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return node if isinstance(node, DirNode) else None


def _present(after: Overlay, new: DirNode | None, old: DirNode | None, known: Container[bytes]) -> Iterator[Entry]:
    """Yield what is in a directory as of a layer; `old` and its names `known` are without that layer."""
    if new is None:
        return
    top = after.root.sources[0].layer
    # A directory that was made again, or renamed to this place, has other layers below the top one.
    replaced = old is not None and _lower_parts(new, top) != _lower_parts(old, top)
    snapshot = after.names(new, quietly=True)
    names = list(snapshot.names.values())
    for listed, found in zip(names, after.lookup_listed(new, snapshot, names), strict=True):
        if isinstance(found, Dirent):
            yield _broken(listed)
        elif found is not None:
            node, attrs = found
            held = _topmost(node).layer is top
            kind = None
            if held or old is None or replaced:
                kind = Kind.CHANGED if listed.name in known else Kind.ADDED
            yield _entry(after, listed.name, node, attrs, kind, held)


def _deleted(before: Overlay, old: DirNode, known: Snapshot, gone: Sequence[Listed]) -> Iterator[Entry]:
    """Yield those of the `known` names of a directory that a layer takes away."""
    for listed, found in zip(gone, before.lookup_listed(old, known, gone), strict=True):
        if isinstance(found, Dirent):
            yield _broken(listed)._replace(kind=Kind.DELETED)
        elif found is not None:
            yield _entry(before, listed.name, *found, Kind.DELETED, held=False)


def _lower_parts(directory: DirNode, top: Layer) -> list[tuple[bytes, bytes]]:
    return [(source.layer.path, source.path()) for source in directory.sources if source.layer is not top]


def _topmost(node: Node) -> LayerDir:
    """Return the directory of a layer that has the node, or that is the node."""
    if isinstance(node, DirNode):
        return node.sources[0]
    assert isinstance(node, FileNode), "there are no other nodes"
    return node.place


def _broken(listed: Listed) -> Entry:
    """Return the entry of a name whose lookup fails, because the marks of its layers are damaged."""
    return Entry(listed.name, None, False, listed.kind, 0, 0, 0, 0, listed.source.layer.label, broken=True)


def _entry(view: Overlay, name: bytes, node: Node, attrs: Attrs, kind: Kind | None, held: bool) -> Entry:
    source = _topmost(node)
    own, opaque, redirect = held, False, b""
    if isinstance(node, DirNode):
        if held:
            opaque, redirect = source.marks.opaque, source.marks.redirect or b""
    elif isinstance(node, FileNode) and node.metacopy:
        own = False
    return Entry(
        name,
        kind,
        own,
        attrs.mode,
        attrs.uid,
        attrs.gid,
        0 if isinstance(node, DirNode) else attrs.size,
        attrs.ino if attrs.nlink > 1 else 0,
        source.layer.label,
        view.readlink(node) if stat.S_ISLNK(attrs.mode) else b"",
        opaque,
        redirect,
    )


# --- sentences -------------------------------------------------------------------------------------


def _explained(here: Provenance, last: Provenance, path: bytes) -> str:
    """Return a sentence on a path. `here` is what the layers up to the present one say, `last` what all of them say."""
    top = here.statements[0]
    shown = top if top.says is not Says.ABSENT else next((one for one in here.statements if one.wins), None)
    if shown is None:
        return here.why
    words = [f"{layer_name(shown.layer)}: {said(shown, path)}"]
    if shown is top:
        words += _hides(here, top)
    others = [layer_name(one.layer) for one in here.statements if one.wins and one is not shown]
    if others:
        words.append(f"merged with {', '.join(others)}")
    words += _fate(last, shown, path)
    return "; ".join(words)


def _hides(here: Provenance, top: Statement) -> list[str]:
    hidden = [layer_name(one.layer) for one in here.statements if one.hidden_by == top.layer and one.mode is not None]
    return [f"hides {', '.join(hidden)}"] if hidden else []


def _fate(last: Provenance, shown: Statement, path: bytes) -> list[str]:
    """Return what became of an object in the end."""
    end = next((one for one in last.statements if one.layer == shown.layer), None)
    if end is None or shown.says is Says.WHITEOUT or not end.hidden_by:
        return []
    at = "" if end.hidden_at == path else f", at {printable(end.hidden_at)}"
    return [f"hidden by {layer_name(end.hidden_by)}{at}"]
