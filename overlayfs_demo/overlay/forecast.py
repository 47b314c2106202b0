"""A forecast of what a mount would do to its upper, made from a rehearsal.

In a rehearsal (`Stack.rehearsal`) the mount's upper is the topmost lower, which stays untouched, below the
rehearsal's own upper. So the rehearsal leaves whiteouts and copies where the mount would simply remove or change
what its upper has. The forecast listens to the rehearsal's events, looks at what the layers have at each path, and
records what the mount itself would have done.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from overlayfs_demo.events import Action, Event
from overlayfs_demo.linux import proc, xattr
from overlayfs_demo.named_tuple import NamedTuple
from overlayfs_demo.overlay.layer import Key, key_of
from overlayfs_demo.overlay.lookup import Part
from overlayfs_demo.overlay.node import DirNode, Node
from overlayfs_demo.overlay.tree import Tree

# The depth of the layer that is the mount's upper.
_UPPER = 1

# A hard-linked file: the label of its layer, and its identity.
_Linked = tuple[str, Key]


@dataclass(slots=True)
class Hidden:
    """Files of layers that are no longer visible: their number and their bytes, by the layer's label.

    `layer` is the topmost layer that has the hidden name. `linked` has the sizes of hard-linked files, by the layer's
    label and the file's identity: each file counts once, whatever hides its names.
    """

    layer: str
    files: dict[str, tuple[int, int]] = field(default_factory=dict)
    linked: dict[_Linked, int] = field(default_factory=dict)

    def take_over(self, other: Hidden) -> None:
        """Add the files of `other`."""
        for layer, (files, size) in other.files.items():
            _add(self.files, layer, files, size)
        self.linked.update(other.linked)

    def totals(self, told: set[_Linked]) -> dict[str, tuple[int, int]]:
        """Return `files` and the `linked` files that are not in `told`, and add those to `told`."""
        found = dict(self.files)
        for file, size in self.linked.items():
            if file not in told:
                told.add(file)
                _add(found, file[0], 1, size)
        return found


def _add(files: dict[str, tuple[int, int]], layer: str, number: int, size: int) -> None:
    before, size_before = files.get(layer, (0, 0))
    files[layer] = before + number, size_before + size


@dataclass(slots=True)
class Fate:
    """What happens to one file or directory of the view. Sizes are in bytes.

    `copied` is the amount of data copied up (None if it is not copied up at all), and `layer` where it comes from.
    `part` is the object that the mount's upper has already, and `kept` the amount of data in it. `moved_from` is the
    path before a rename. `created`: it is new. `changed`: more than its name has changed. `hides` is what it replaces.
    """

    directory: bool = False
    copied: int | None = None
    layer: str = ""
    created: bool = False
    written: int = 0
    kept: int = 0
    part: Part | None = None
    moved_from: bytes = b""
    changed: bool = False
    opaque: bool = False
    hides: Hidden | None = None


class Effect(NamedTuple):
    """One thing that would happen to one path of the view.

    `what` is one of `copy up`, `whiteout`, `hide` (files in a layer, by a whiteout or a new object), `opaque`, `free`
    (space in the upper), `create`, `write`, `rename`, `change` (of an object already in the upper), `refuse`
    and `warn`. `size` is the number of bytes copied, hidden, freed or written, `files` the number of hidden files.
    `detail` is `directory` for a directory, the old path of a rename, or the limit for `refuse` and `warn`.
    """

    what: str
    path: str
    size: int = 0
    layer: str = ""
    files: int = 0
    detail: str = ""


@dataclass(slots=True)
class Forecast:
    """All effects of the mount, by the final paths in the view.

    `passing` holds what was copied up, created or written and then removed again. `freed` is the space freed in the
    mount's upper, in bytes.
    """

    _tree: Tree
    fates: dict[bytes, Fate] = field(default_factory=dict)
    whiteouts: dict[bytes, Hidden] = field(default_factory=dict)
    freed: dict[bytes, int] = field(default_factory=dict)
    passing: list[tuple[bytes, Fate]] = field(default_factory=list)
    limited: list[Effect] = field(default_factory=list)
    # Paths in the mount's upper that are empty by now, and the number of names left of each hard-linked file there.
    _left: set[bytes] = field(default_factory=set)
    _names: dict[tuple[int, int], int] = field(default_factory=dict)

    def take(self, event: Event) -> None:
        """Record one event of the rehearsal. This is the listener for `Events`."""
        handler = _HANDLERS.get(event.action)
        if handler is not None:
            with self._tree.lock:
                handler(self, event)

    def effects(self) -> list[Effect]:
        """Return all that would happen."""
        with self._tree.lock:
            found = [effect for path, fate in self.passing for effect in _work(os.fsdecode(path), fate)]
            told: set[_Linked] = set()
            for path, fate in self.fates.items():
                found += [*_work(os.fsdecode(path), fate), *_traces(os.fsdecode(path), fate, told)]
            for path, hidden in self.whiteouts.items():
                found += [
                    Effect("whiteout", os.fsdecode(path), 0, hidden.layer),
                    *_hidden(os.fsdecode(path), hidden, told),
                ]
            found += [Effect("free", os.fsdecode(path), size, "upper") for path, size in self.freed.items()]
            return found + self.limited

    # --- what the layers have at a place -------------------------------------------------------------

    def _parent(self, path: bytes) -> tuple[DirNode, bytes]:
        """Return the directory of a path, and its last name. The directory is in memory: nodes hold their parents."""
        above, name = os.path.split(path)
        node: Node | None = self._tree.root
        for component in filter(None, above.split(b"/")):
            assert isinstance(node, DirNode)
            node = node.children.get(component)
        assert isinstance(node, DirNode)
        return node, name

    def _before(self, path: bytes) -> Part | None:
        """Return what the mount showed there when the rehearsal began; for a directory, its topmost part."""
        parent, name = self._parent(path)
        parts = self._tree.lookup.find(parent.lowers, name) if parent.lowers else ()
        return parts[0] if parts else None

    def _below(self, path: bytes) -> Part | None:
        """Return what the mount's lowers would show there if its upper had nothing."""
        parent, name = self._parent(path)
        lowers = [source for source in parent.lowers if source.layer.depth != _UPPER]
        parts = self._tree.lookup.find(lowers, name) if lowers else ()
        return parts[0] if parts else None

    # --- what begins ---------------------------------------------------------------------------------

    def _fate(self, path: bytes) -> Fate:
        return self.fates.setdefault(path, Fate())

    def _copied_up(self, event: Event) -> None:
        fate = self._fate(event.path)
        before = self._before(event.path)
        fate.directory = event.detail == "directory"
        if before is not None and before.place.layer.depth == _UPPER and fate.part is None:
            fate.part = before
            fate.kept = _data_size(before)
            if not event.size:
                return
        if fate.copied is None or event.size:
            fate.copied = (fate.copied or 0) + event.size
            fate.layer = event.layer

    def _created(self, event: Event) -> None:
        before, below = self._before(event.path), self._below(event.path)
        is_there = before is not None and event.path not in self.whiteouts and _place(before) not in self._left
        if event.action is Action.LINK and is_there:
            self._fate(event.path)  # The upper now also has this name of a lower file, see `index`: nothing is new.
            return
        fate = self.fates[event.path] = Fate(created=True, directory=event.action is Action.MKDIR)
        fate.hides = self.whiteouts.pop(event.path, None)
        fate.opaque = fate.directory and below is not None and below.directory is not None

    def _written(self, event: Event) -> None:
        self._fate(event.path).written += event.size

    def _truncated(self, event: Event) -> None:
        fate = self._fate(event.path)
        fate.changed = True
        if fate.kept > event.size:
            self._free(event.path, fate.kept - event.size)
            fate.kept = event.size

    def _changed(self, event: Event) -> None:
        self._fate(event.path).changed = True

    def _limited(self, event: Event) -> None:
        path = os.fsdecode(event.path)
        self.limited.append(Effect(event.action.value, path, event.size, event.layer, detail=event.detail))

    # --- what goes -----------------------------------------------------------------------------------

    def _removed(self, event: Event) -> None:
        path = event.path
        fate = self._leave(path)
        within = [self.whiteouts.pop(inner) for inner in self._names_in(self.whiteouts, path)]
        below = self._below(path)
        # If a renamed directory is removed, the whiteout at its old path hides what it showed.
        hidden = self.whiteouts.get(fate.moved_from) if fate else None
        if below is not None:
            hidden = self.whiteouts[path] = _file_hidden(below)
        for inner_hidden in within:
            if hidden is not None:
                hidden.take_over(inner_hidden)

    def _leave(self, path: bytes) -> Fate | None:
        """Record that the object at `path` is removed or replaced. Return its fate, if it had one."""
        fate = self.fates.pop(path, None)
        if fate is not None and (fate.created or fate.written or fate.copied is not None):
            self.passing.append((path, fate))
        if fate is not None and fate.part is not None:
            self._left.add(_place(fate.part))
            if self._is_last_name(fate.part):
                self._free(path, fate.kept)
        elif fate is None or not (fate.created or fate.moved_from):
            before = self._before(path)
            if before is not None and before.place.layer.depth == _UPPER and _place(before) not in self._left:
                self._left.add(_place(before))
                if self._is_last_name(before):
                    self._free(path, _data_size(before))
        return fate

    def _is_last_name(self, part: Part) -> bool:
        """Whether the file is removed with this name. The name in the index does not keep it, see `index`."""
        if part.directory is not None:
            return False
        key = key_of(part.status)
        left = self._names.get(key, part.status.st_nlink) - 1
        self._names[key] = left
        if left != 1:
            return not left
        path = proc.path_of(part.place.open().fd, part.name)
        return xattr.get(path, part.place.layer.xattrs.nlink) is not None

    def _free(self, path: bytes, size: int) -> None:
        if size:
            self.freed[path] = self.freed.get(path, 0) + size

    @staticmethod
    def _names_in(known: dict[bytes, Hidden] | dict[bytes, Fate], path: bytes) -> list[bytes]:
        return [inner for inner in known if inner.startswith(path + b"/")]

    # --- what moves ----------------------------------------------------------------------------------

    def _renamed(self, event: Event) -> None:
        old, new = event.path, os.fsencode(event.detail)
        # The event comes before the nodes are updated, so the object is still known by its old name.
        parent, name = self._parent(old)
        node = parent.children.get(name)
        self._leave(new)
        fate = self._move(old, new)
        if fate.part is not None:
            self._left.add(_place(fate.part))
        elif (before := self._before(old)) is not None and before.place.layer.depth == _UPPER:
            self._left.add(_place(before))
        below_old, below_new = self._below(old), self._below(new)
        if below_old is not None:
            self.whiteouts[old] = _file_hidden(below_old)
        fate.hides = self.whiteouts.pop(new, None)
        if below_new is None:
            return
        if isinstance(node, DirNode):
            merges = any(source.layer.depth != _UPPER for source in node.lowers)
            fate.opaque = not merges and below_new.directory is not None
        elif fate.hides is None and self._before(new) is not None:
            fate.hides = _file_hidden(below_new)

    def _exchanged(self, event: Event) -> None:
        old, new = event.path, os.fsencode(event.detail)
        parent, name = self._parent(new)
        if parent.children.get(name) is None:
            self._renamed(event)  # The engine moves a directory onto a whiteout by exchanging the two.
            return
        aside = b"\0"  # Cannot be a path of the view.
        self._move(old, aside)
        self._move(new, old)
        self._move(aside, new)
        self.fates[new].moved_from = old

    def _move(self, old: bytes, new: bytes) -> Fate:
        """Move the records of `old`, and of everything in it, to `new`. Return the fate of `new`."""
        for known in (self.fates, self.whiteouts):
            for inner in self._names_in(known, old):
                known[new + inner[len(old) :]] = known.pop(inner)  # type: ignore[assignment]  # of the same dict
        fate = self.fates.pop(old, None) or Fate()
        if not fate.created and not fate.moved_from:
            fate.moved_from = old
        self.fates[new] = fate
        return fate


def _work(path: str, fate: Fate) -> Iterator[Effect]:
    """Yield the work that was done, even if its result was removed again."""
    if fate.copied is not None:
        yield Effect("copy up", path, fate.copied, fate.layer, detail="directory" if fate.directory else "")
    if fate.written:
        yield Effect("write", path, fate.written, "upper")


def _traces(path: str, fate: Fate, told: set[_Linked]) -> Iterator[Effect]:
    """Yield what is left in the end."""
    if fate.created:
        yield Effect("create", path, 0, "upper", detail="directory" if fate.directory else "")
    elif fate.moved_from and os.fsencode(path) != fate.moved_from:
        yield Effect("rename", path, 0, "upper", detail=os.fsdecode(fate.moved_from))
    elif fate.changed and fate.copied is None and not fate.written:
        yield Effect("change", path, 0, "upper", detail="directory" if fate.directory else "")
    if fate.opaque:
        yield Effect("opaque", path, 0, "upper")
    if fate.hides is not None:
        yield from _hidden(path, fate.hides, told)


def _hidden(path: str, hidden: Hidden, told: set[_Linked]) -> Iterator[Effect]:
    for layer, (files, size) in hidden.totals(told).items():
        yield Effect("hide", path, size, layer, files)


def _file_hidden(part: Part) -> Hidden:
    """Return a `Hidden` with this object of a layer. Files in a directory are counted separately."""
    hidden = Hidden(part.place.layer.label)
    if part.directory is None:
        if part.status.st_nlink > 1:
            hidden.linked[hidden.layer, key_of(part.status)] = _size(part)
        else:
            hidden.files[hidden.layer] = 1, _size(part)
    return hidden


def _place(part: Part) -> bytes:
    return part.place.path() + b"/" + part.name


def _size(part: Part) -> int:
    return part.status.st_size if stat.S_ISREG(part.status.st_mode) else 0


def _data_size(part: Part) -> int:
    """Return how many bytes are freed when it is removed."""
    return 0 if part.metacopy else _size(part)


_HANDLERS: dict[Action, Callable[[Forecast, Event], None]] = {
    Action.COPY_UP: Forecast._copied_up,
    **dict.fromkeys((Action.CREATE, Action.MKDIR, Action.MKNOD, Action.SYMLINK, Action.LINK), Forecast._created),
    **dict.fromkeys((Action.WRITE, Action.FALLOCATE), Forecast._written),
    Action.TRUNCATE: Forecast._truncated,
    **dict.fromkeys(
        (Action.CHMOD, Action.CHOWN, Action.UTIMENS, Action.SETXATTR, Action.REMOVEXATTR), Forecast._changed
    ),
    **dict.fromkeys((Action.UNLINK, Action.RMDIR, Action.WHITEOUT), Forecast._removed),
    Action.RENAME: Forecast._renamed,
    Action.EXCHANGE: Forecast._exchanged,
    **dict.fromkeys((Action.WARN, Action.REFUSE), Forecast._limited),
}
