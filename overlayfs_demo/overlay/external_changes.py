"""Changes made in the layers behind the view, and the names and files of the view that they affect.

The real directories that callers have used, of the lowers and the upper, are watched with fanotify(7). Changes
made by this process are ignored. Nodes in memory are updated here; `Changes` tells the front what the
kernel must forget.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import select
from collections.abc import Iterator
from weakref import ref

from overlayfs_demo.linux import fanotify
from overlayfs_demo.overlay import questions
from overlayfs_demo.overlay.layer import LayerDir
from overlayfs_demo.overlay.lower_names import LowerNames
from overlayfs_demo.overlay.node import DirNode, FileNode, Node
from overlayfs_demo.overlay.tree import Tree
from overlayfs_demo.overlay.whiteout import IMAGE_OPAQUE, IMAGE_WHITEOUT_PREFIX

_log = logging.getLogger(__name__)

# Each watch takes about a kilobyte of kernel memory.
_MOST_WATCHES = 50_000
_BUFFER = 1 << 16
_CONTENT = fanotify.MODIFY | fanotify.ATTRIB


# The FAN_* bits by the directory, the name in it and the process that made the change.
_Events = dict[tuple[fanotify.Key, bytes, int], int]


class Changes:
    """What may be out of date in the kernel's caches: the meaning of `names`, the attributes and data of `nodes`, or
    everything."""

    __slots__ = ("everything", "names", "nodes")

    def __init__(self, *, everything: bool = False) -> None:
        self.names: dict[tuple[DirNode, bytes], None] = {}
        self.nodes: dict[Node, None] = {}
        self.everything = everything

    def __bool__(self) -> bool:
        return bool(self.names or self.nodes or self.everything)


class ExternalChanges:
    """Watches the layers of one tree. Owns the descriptors in `fds`, which are readable when something has changed,
    until `close`.

    The lowers have a queue of their own, because this process itself changes the upper all the time. The kernel queues
    a change before the system call that made it returns, so while that queue is empty, all changes of lowers are known.
    """

    __slots__ = ("_complained", "_lowers_poll", "_nodes", "_of_lowers", "_of_upper", "_tree")

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._nodes: dict[fanotify.Key, list[ref[DirNode]]] = {}
        self._complained: set[str] = set()
        self._of_lowers = self._of_upper = -1
        self._lowers_poll = select.poll()

    @property
    def fds(self) -> set[int]:
        """The queues of changes."""
        return {self._of_lowers, self._of_upper} - {-1}

    @property
    def started(self) -> bool:
        """Whether changes are noticed, at least in some directories."""
        return self._of_lowers >= 0

    def start(self) -> bool:
        """Start, in the process that serves the view. Return False if this machine does not allow it."""
        try:
            self._of_lowers = self._of_upper = fanotify.new_group()
        except OSError as error:
            self._complain(f"changes behind the view are not noticed at once: fanotify_init: {error.strerror}")
            return False
        if len(self._tree.lowers) > 1:
            # Without a second group (fs.fanotify.max_user_groups), tables are used less often.
            with contextlib.suppress(OSError):
                self._of_upper = fanotify.new_group()
            self._lowers_poll.register(self._of_lowers, select.POLLIN)
            self._tree.lower_names = LowerNames(self._knows_lowers)
        return True

    def trust_layers(self) -> None:
        """Rely on layers that nobody changes behind the view."""
        self._tree.lower_names = LowerNames(lambda _: True)

    def close(self) -> None:
        """Stop watching."""
        self._tree.lower_names = None
        for fd in self.fds:
            os.close(fd)
        self._of_lowers = self._of_upper = -1

    def _knows_lowers(self, node: DirNode) -> bool:
        """Whether the directory's lowers are watched, and all of their changes are known. Call with the tree's lock."""
        return bool(node.watched) and not self._lowers_poll.poll(0)

    def watch(self, node: DirNode) -> bool:
        """Watch the directory from now on; return whether that worked.

        Call it before reading anything in the directory: a change between the two would be missed.
        """
        watched = node.watched
        if watched is None:
            with self._tree.lock:
                watched = self.started and all([self._watch(source, node) for source in node.sources])
                node.watched = watched
        return watched

    def _watch(self, source: LayerDir, node: DirNode) -> bool:
        if len(self._nodes) >= _MOST_WATCHES:
            self._forget_dead()
            if len(self._nodes) >= _MOST_WATCHES:
                self._complain(f"more than {_MOST_WATCHES} directories: changes behind others are not noticed at once")
                return False
        if source.layer.may_stall:  # Its filesystem has no number to recognise it by in events, see fanotify_mark(2).
            self._complain(f"changes behind {source.layer.label} are not noticed at once: its data is elsewhere")
            return False
        try:
            queue = self._of_upper if source is node.upper else self._of_lowers
            key = fanotify.watch(queue, source.open().fd)
        except OSError as error:
            hint = "; see fs.fanotify.max_user_marks" if error.errno == errno.ENOSPC else ""
            self._complain(
                f"changes behind {source.layer.label} are not all noticed at once: fanotify_mark: "
                f"{error.strerror}{hint}"
            )
            return False
        holders = self._nodes.setdefault(key, [])
        holders[:] = [holder for holder in holders if (kept := holder()) is not None and kept is not node]
        holders.append(ref(node))
        return True

    def _forget_dead(self) -> None:
        self._nodes = {key: held for key, held in self._nodes.items() if any(holder() is not None for holder in held)}

    def _complain(self, message: str) -> None:
        if message not in self._complained:
            self._complained.add(message)
            _log.warning("%s", message)

    # --- what happened -----------------------------------------------------------------------------

    def read(self) -> Changes:
        """Return the changes since the last call. Never waits."""
        changes = Changes()
        questions.begin()
        with self._tree.lock:
            self._tree.passed_writes.next_round()
        events: _Events = {}
        if self._of_upper != self._of_lowers:
            self._take(self._of_upper, events, changes)
        # From here until all of it is noted, nobody may take the empty queue for a sign that no lower has changed.
        with self._tree.lock:
            self._take(self._of_lowers, events, changes)
            if changes.everything:
                if self._tree.lower_names is not None:
                    self._tree.lower_names.drop_all()
                self._reconsider_below(self._tree.root, changes)
            for (key, name, pid), mask in events.items():
                self._note(key, name, pid, mask, changes)
        return changes

    def _take(self, queue: int, events: _Events, changes: Changes) -> None:
        """Add what is in a queue to the events, without the changes that this process made through the view."""
        ours = os.getpid() if queue == self._of_upper else None
        while data := _read_some(queue):
            for mask, pid, key, name in fanotify.events(data):
                if mask & fanotify.Q_OVERFLOW:
                    changes.everything = True
                elif pid != ours:
                    events[key, name, pid] = events.get((key, name, pid), 0) | mask

    def _note(self, key: fanotify.Key, name: bytes, pid: int, mask: int, changes: Changes) -> None:
        if name == b".":
            for node in self._known(key) or self._search(key):
                self._note_itself(node, changes)
            return
        for node in self._known(key):
            self._drop_table(node)
            if name.startswith(IMAGE_WHITEOUT_PREFIX):
                if name == IMAGE_OPAQUE:
                    self._note_itself(node, changes)
                else:
                    self._note_name(node, name[len(IMAGE_WHITEOUT_PREFIX) :], changes)
            child = node.children.get(name)
            # A change of attributes may also turn an object into a whiteout, or back.
            if mask & fanotify.NAMES or (child is None and mask & fanotify.ATTRIB):
                self._note_name(node, name, changes)
            if child is not None and mask & _CONTENT and not self._is_passed(child, pid, mask):
                self._note_content(child, changes)

    def _is_passed(self, node: Node, pid: int, mask: int) -> bool:
        """Whether a caller, this process, has made the change through the view, past the engine."""
        if mask & fanotify.ATTRIB or not isinstance(node, FileNode):
            return False
        with contextlib.suppress(OSError, questions.AskFirstError):
            return self._tree.passed_writes.explain(node, pid)
        return False

    def _known(self, key: fanotify.Key) -> list[DirNode]:
        held = [holder() for holder in self._nodes.get(key, ())]
        return [node for node in held if node is not None and not node.gone]

    def _search(self, key: fanotify.Key) -> list[DirNode]:
        """Return the directories with this key that are not watched themselves because nobody has used them yet."""
        found = []
        for node in _below(self._tree.root):
            if isinstance(node, DirNode) and not node.watched:
                with contextlib.suppress(OSError, questions.AskFirstError):
                    if any(fanotify.key_of(source.open().fd) == key for source in node.sources):
                        found.append(node)
        return found

    def _note_name(self, parent: DirNode, name: bytes, changes: Changes) -> None:
        changes.names[parent, name] = None
        changes.nodes[parent] = None
        # A new tuple with the same contents makes older snapshots out of date, see `Snapshot.is_current`.
        parent.sources = (*parent.sources,)
        known = parent.children.get(name)
        if known is not None:
            changes.nodes[known] = None
            self._reconsider(known, changes)

    def _note_content(self, node: Node, changes: Changes) -> None:
        changes.nodes[node] = None
        node.protection = None
        if isinstance(node, FileNode):
            self._reconsider(node, changes)
            with contextlib.suppress(OSError, questions.AskFirstError):
                if node.stat().st_nlink > 1:
                    same = (known for known in _below(self._tree.root) if known.key == node.key)
                    changes.nodes.update(dict.fromkeys(same))

    def _note_itself(self, node: DirNode, changes: Changes) -> None:
        """Note that a directory's own attributes were changed, perhaps those that hide the layers below."""
        changes.nodes[node] = None
        node.protection = None
        self._drop_table(node)
        for source in node.sources:
            source.forget_marks()
        if node.parent is not None:
            before = node.sources
            self._reconsider(node, changes)
            if node.gone or node.sources is not before:
                changes.names[node.parent, node.name] = None

    def _drop_table(self, node: DirNode) -> None:
        """Forget the table of the lowers' names. Even a write may change what is listed: whiteouts are empty."""
        if self._tree.lower_names is not None:
            self._tree.lower_names.drop(node)

    # --- what follows for the nodes ----------------------------------------------------------------

    def _reconsider(self, node: Node, changes: Changes) -> None:
        """Update the node, and the known nodes below it, from what is in the layers now."""
        waiting = [node]
        while waiting:
            next_node = waiting.pop()
            if self._follow(next_node, changes) and isinstance(next_node, DirNode):
                children = next_node.children.known()
                changes.nodes.update(dict.fromkeys(children))
                waiting += children

    def _follow(self, node: Node, changes: Changes) -> bool:
        """Update one node. Return whether it was a directory and is now a different one, or gone."""
        parent, name = node.parent, node.name
        if parent is None or parent.children.get(name) is not node:
            return False
        before = node.sources if isinstance(node, DirNode) else None
        watched = isinstance(node, DirNode) and node.watched
        try:
            self._tree.find(parent, name)
        except questions.AskFirstError:
            changes.names[parent, name] = None  # Whoever needs it asks again.
        except OSError:
            pass
        if node.gone:
            changes.names[parent, name] = None
        if not isinstance(node, DirNode) or (not node.gone and node.sources is before):
            return False
        if watched and not node.gone:
            self.watch(node)
        return True

    def _reconsider_below(self, node: DirNode, changes: Changes) -> None:
        for child in node.children.known():
            changes.nodes[child] = None
            self._reconsider(child, changes)


def _read_some(queue: int) -> bytes:
    try:
        return os.read(queue, _BUFFER)
    except BlockingIOError:
        return b""


def _below(directory: DirNode) -> Iterator[Node]:
    """Yield all known nodes below a directory."""
    waiting = [directory]
    while waiting:
        for child in waiting.pop().children.known():
            yield child
            if isinstance(child, DirNode):
                waiting.append(child)
