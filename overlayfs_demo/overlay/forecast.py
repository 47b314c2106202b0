"""What would a mount do to its upper, judging by a rehearsal?

In a rehearsal (`Stack.rehearsal`) the mount's upper lies, untouched, as the topmost lower below an upper of the
rehearsal's own. So what is rehearsed leaves whiteouts and copies where the mount would simply remove or change
what its upper has. The forecast listens to the rehearsal's events, asks what the layers have at each place, and
notes what the mount itself would have done.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from overlayfs_demo.events import Action, Event
from overlayfs_demo.linux import syscalls
from overlayfs_demo.overlay.layer import Key, key_of
from overlayfs_demo.overlay.lookup import Part
from overlayfs_demo.overlay.node import DirNode, Node
from overlayfs_demo.overlay.tree import Tree

# The number of the layer that is the upper of the mount.
_UPPER = 1

# A file of several names: the label of its layer, and its identity.
_Linked = tuple[str, Key]


@dataclass(slots=True)
class Hidden:
    """Files of layers that are no longer seen: by the layer's label how many, and of how many bytes.

    `layer` is the topmost that has the name which hides them. `linked` are the sizes of those that have several names,
    by the layer's label and the file's identity: each counts once, whatever hides its names.
    """

    layer: str
    files: dict[str, tuple[int, int]] = field(default_factory=dict)
    linked: dict[_Linked, int] = field(default_factory=dict)

    def take_over(self, other: Hidden) -> None:
        """All of the other, too."""
        for layer, (files, size) in other.files.items():
            _add(self.files, layer, files, size)
        self.linked.update(other.linked)

    def totals(self, told: set[_Linked]) -> dict[str, tuple[int, int]]:
        """Like `files`, with those of `linked` that are not in `told`, which they now are."""
        found = dict(self.files)
        for one, size in self.linked.items():
            if one not in told:
                told.add(one)
                _add(found, one[0], 1, size)
        return found


def _add(files: dict[str, tuple[int, int]], layer: str, number: int, size: int) -> None:
    before, size_before = files.get(layer, (0, 0))
    files[layer] = before + number, size_before + size


@dataclass(slots=True)
class Fate:
    """What becomes of one file or directory of the view; sizes in bytes.

    `copied` is how much data is copied up, None if it is not copied up at all, and `layer` where from. `kept` is how
    much data the mount's upper has of it already, as `part`. `moved_from` is its path before, `created` says
    that there was none; `changed`, that more than its name is another. `hides` is what it takes the place of.
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

    `what` is one of `copy up`, `whiteout`, `hide` (files in a layer, by a whiteout or what takes their place),
    `opaque`, `free` (in the upper), `create`, `write`, `rename`, `change` (of what the upper has already), `refuse`
    and `warn`. `size` is bytes of data copied, hidden, freed or written, `files` how many files are hidden.
    `detail` is `directory`; of a rename the old path; of what is refused or warned of the limit.
    """

    what: str
    path: str
    size: int = 0
    layer: str = ""
    files: int = 0
    detail: str = ""


@dataclass(slots=True)
class Forecast:
    """All that would happen, by paths of the view as they are in the end.

    `passing` is what was copied up, created or written, and then removed again. `freed` is what goes from the
    mount's upper, in bytes.
    """

    _tree: Tree
    fates: dict[bytes, Fate] = field(default_factory=dict)
    whiteouts: dict[bytes, Hidden] = field(default_factory=dict)
    freed: dict[bytes, int] = field(default_factory=dict)
    passing: list[tuple[bytes, Fate]] = field(default_factory=list)
    limited: list[Effect] = field(default_factory=list)
    # Places in the mount's upper that are empty by now, and how many names are left of what has several.
    _left: set[bytes] = field(default_factory=set)
    _names: dict[tuple[int, int], int] = field(default_factory=dict)

    def take(self, event: Event) -> None:
        """Note one event of the rehearsal; a listener."""
        handler = _HANDLERS.get(event.action)
        if handler is not None:
            with self._tree.lock:
                handler(self, event)

    def effects(self) -> list[Effect]:
        """All that would happen."""
        with self._tree.lock:
            found = [effect for path, fate in self.passing for effect in _work(os.fsdecode(path), fate)]
            told: set[_Linked] = set()
            for path, fate in self.fates.items():
                found += [*_work(os.fsdecode(path), fate), *_traces(os.fsdecode(path), fate, told)]
            for path, one in self.whiteouts.items():
                found += [Effect("whiteout", os.fsdecode(path), 0, one.layer), *_hidden(os.fsdecode(path), one, told)]
            found += [Effect("free", os.fsdecode(path), size, "upper") for path, size in self.freed.items()]
            return found + self.limited

    # --- what the layers have at a place -------------------------------------------------------------

    def _parent(self, path: bytes) -> tuple[DirNode, bytes]:
        """The directory of a name, as it is known in memory: nodes hold those above them."""
        above, name = os.path.split(path)
        node: Node | None = self._tree.root
        for one in filter(None, above.split(b"/")):
            assert isinstance(node, DirNode)
            node = node.children.get(one)
        assert isinstance(node, DirNode)
        return node, name

    def _before(self, path: bytes) -> Part | None:
        """What the mount showed there when the rehearsal began; of a directory the topmost."""
        parent, name = self._parent(path)
        parts = self._tree.lookup.find(parent.lowers, name) if parent.lowers else ()
        return parts[0] if parts else None

    def _below(self, path: bytes) -> Part | None:
        """What the mount's lowers would show there if its upper said nothing."""
        parent, name = self._parent(path)
        lowers = [source for source in parent.lowers if source.layer.number != _UPPER]
        parts = self._tree.lookup.find(lowers, name) if lowers else ()
        return parts[0] if parts else None

    # --- what begins ---------------------------------------------------------------------------------

    def _fate(self, path: bytes) -> Fate:
        return self.fates.setdefault(path, Fate())

    def _copied_up(self, event: Event) -> None:
        fate = self._fate(event.path)
        before = self._before(event.path)
        fate.directory = event.detail == "directory"
        if before is not None and before.place.layer.number == _UPPER and fate.part is None:
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
            self._fate(event.path)  # A name of a lower file, see `index`, has come into the upper.
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
        within = [self.whiteouts.pop(one) for one in self._names_in(self.whiteouts, path)]
        below = self._below(path)
        # What a directory showed that was moved away is hidden by the whiteout at its old place.
        hidden = self.whiteouts.get(fate.moved_from) if fate else None
        if below is not None:
            hidden = self.whiteouts[path] = _file_hidden(below)
        for one in within:
            if hidden is not None:
                hidden.take_over(one)

    def _leave(self, path: bytes) -> Fate | None:
        """What is at `path` goes for good; its fate, if it had one."""
        fate = self.fates.pop(path, None)
        if fate is not None and (fate.created or fate.written or fate.copied is not None):
            self.passing.append((path, fate))
        if fate is not None and fate.part is not None:
            self._left.add(_place(fate.part))
            if self._is_last_name(fate.part):
                self._free(path, fate.kept)
        elif fate is None or not (fate.created or fate.moved_from):
            before = self._before(path)
            if before is not None and before.place.layer.number == _UPPER and _place(before) not in self._left:
                self._left.add(_place(before))
                if self._is_last_name(before):
                    self._free(path, _data_size(before))
        return fate

    def _is_last_name(self, part: Part) -> bool:
        """Does the file go with this name? The index's own name, see `index`, does not keep it."""
        if part.directory is not None:
            return False
        key = key_of(part.status)
        left = self._names.get(key, part.status.st_nlink) - 1
        self._names[key] = left
        if left != 1:
            return not left
        path = syscalls.path_of(part.place.open().fd, part.name)
        return syscalls.get_xattr(path, part.place.layer.xattrs.nlink) is not None

    def _free(self, path: bytes, size: int) -> None:
        if size:
            self.freed[path] = self.freed.get(path, 0) + size

    @staticmethod
    def _names_in(known: dict[bytes, Hidden] | dict[bytes, Fate], path: bytes) -> list[bytes]:
        return [one for one in known if one.startswith(path + b"/")]

    # --- what moves ----------------------------------------------------------------------------------

    def _renamed(self, event: Event) -> None:
        old, new = event.path, os.fsencode(event.detail)
        # The event is told before the nodes follow: what moves is still known by its old name.
        parent, name = self._parent(old)
        node = parent.children.get(name)
        self._leave(new)
        fate = self._move(old, new)
        if fate.part is not None:
            self._left.add(_place(fate.part))
        elif (before := self._before(old)) is not None and before.place.layer.number == _UPPER:
            self._left.add(_place(before))
        below_old, below_new = self._below(old), self._below(new)
        if below_old is not None:
            self.whiteouts[old] = _file_hidden(below_old)
        fate.hides = self.whiteouts.pop(new, None)
        if below_new is None:
            return
        if isinstance(node, DirNode):
            merges = any(source.layer.number != _UPPER for source in node.lowers)
            fate.opaque = not merges and below_new.directory is not None
        elif fate.hides is None and self._before(new) is not None:
            fate.hides = _file_hidden(below_new)

    def _exchanged(self, event: Event) -> None:
        old, new = event.path, os.fsencode(event.detail)
        parent, name = self._parent(new)
        if parent.children.get(name) is None:
            self._renamed(event)  # A directory changes places with a whiteout.
            return
        aside = b"\0"  # No path of the view.
        self._move(old, aside)
        self._move(new, old)
        self._move(aside, new)
        self.fates[new].moved_from = old

    def _move(self, old: bytes, new: bytes) -> Fate:
        """What was noted of `old`, and of all in it, is noted of `new`; the fate of that."""
        for known in (self.fates, self.whiteouts):
            for one in self._names_in(known, old):
                known[new + one[len(old) :]] = known.pop(one)  # type: ignore[assignment]  # of the same dict
        fate = self.fates.pop(old, None) or Fate()
        if not fate.created and not fate.moved_from:
            fate.moved_from = old
        self.fates[new] = fate
        return fate


def _work(path: str, fate: Fate) -> Iterator[Effect]:
    """What was done, even if nothing of it is left."""
    if fate.copied is not None:
        yield Effect("copy up", path, fate.copied, fate.layer, detail="directory" if fate.directory else "")
    if fate.written:
        yield Effect("write", path, fate.written, "upper")


def _traces(path: str, fate: Fate, told: set[_Linked]) -> Iterator[Effect]:
    """What is left of it in the end."""
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
    """That this object of a layer is hidden; what is in a directory is counted by itself."""
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
    """What removing it frees, in bytes."""
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
