"""The ledger of what the kernel refers to by number, which outlives the process that serves it.

The kernel knows nodes and open files by the numbers that it was told. Another process can answer for them only if it
knows what they mean: the place and inode number of each node and how often the kernel was told of it, and the node and
flags of each open file. All of that is in shared memory, see `shared_records`, so writing it takes no system call.
The numbers contain a serial number, so a number that the kernel has given back is not used again soon.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator

from overlayfs_demo.fronts.kernel import wire
from overlayfs_demo.fronts.kernel.shared_records import DamagedError, Memory, Names, Slots
from overlayfs_demo.named_tuple import NamedTuple

# The kinds of segments, which differ for another layout. The last byte is the layout's version.
_HEADER, _NODES, _FILES, _NAMES, _STREAMS = 0x6F76_6C02, 0x6F76_6E01, 0x6F76_6601, 0x6F76_7301, 0x6F76_6401

# A node: id, inode number, lookups, position of its name (0: it has none).
_NODE = 4
# A file: number, node, flags of open(2), id of the real file + 1 (0: cached), the request that opened it, uid and gid,
# pid, whether the upper had it.
_FILE = 8
# The stream of a directory: node, position of its first piece of data. Each piece is a name's record, with the position
# of the next piece as its number.
_STREAM = 2
# In bytes.
_PIECE = 1 << 18

# The words of the header, after its kind.
_MINOR, _READAHEAD, _FLAGS, _SERIAL = 1, 2, 3, 4
_INTENTS, _INTENT_COUNT = 64, 1024
_ATTEMPTS, _ATTEMPT_COUNT = _INTENTS + 2 * _INTENT_COUNT, 256

_SERIAL_SHIFT = 32
_NUMBER = (1 << _SERIAL_SHIFT) - 1
# Python's integers are longer above 2**60, and there may be millions.
_LAST_SERIAL = (1 << 28) - 1
# So many serial numbers at a time are noted as used, because noting each would take time.
_SERIALS = 1 << 12
# The bit of a request's number that says that the kernel sends it again: FUSE_UNIQUE_RESEND.
RESENT = 1 << 63


class Place(NamedTuple):
    """Where a node was last known: the id of its directory, and its name there."""

    parent: int
    name: bytes


class NotedNode(NamedTuple):
    """A node that the kernel holds. `place` is None for one without a name, see `Ledger.lose_name`."""

    ino: int
    place: Place | None


class NotedFile(NamedTuple):
    """A file that the kernel has open. `backing` is the id of the real file if it passes, see `io_modes`."""

    number: int
    nodeid: int
    flags: int
    backing: int | None
    unique: int
    uid: int
    gid: int
    pid: int
    in_upper: bool


class Ledger:
    """What one process writes, and the next one reads. The caller owns the descriptor of the memory.

    Calls about nodes are not safe to use from several threads; the others are.
    """

    def __init__(self, fd: int | None = None) -> None:
        """Open the memory `fd`, which may be new; by default it ends with this process.

        Raises DamagedError, OSError.
        """
        memory = Memory(fd)
        headers = memory.of_kind(_HEADER)
        if len(memory) and not headers:
            raise DamagedError("it is of another version")
        self._header = (headers[0] if headers else memory.add(_HEADER)).cast("Q")
        self._nodes = Slots(memory, _NODES, _NODE)
        self._files = Slots(memory, _FILES, _FILE)
        self._serial = itertools.count(max(self._header[_SERIAL], 1))
        self._note_serials(self._header[_SERIAL])
        self._count = sum(1 for _ in self._nodes)
        self._streams = Slots(memory, _STREAMS, _STREAM)
        self._stream_of = {view[at]: number for number in self._streams for view, at in [self._streams.place(number)]}
        self._names = Names(memory, _NAMES)
        used = {view[at + 3] for view, at in map(self._nodes.place, self._nodes)}
        for view, at in map(self._streams.place, self._streams):
            used.update(position for position, _ in self._pieces(view[at + 1]))
        self._names.reclaim(used - {0})
        self._opening = threading.Lock()
        self._intents = itertools.cycle(range(_INTENTS, _INTENTS + 2 * _INTENT_COUNT, 2))

    def _number(self, record: int) -> int:
        serial = next(self._serial)
        if not serial % _SERIALS:
            self._note_serials(serial)
        return (serial & _LAST_SERIAL or next(self._serial) & _LAST_SERIAL) << _SERIAL_SHIFT | record

    def _note_serials(self, serial: int) -> None:
        # Twice as many, because another thread may be ahead of this one.
        self._header[_SERIAL] = serial + 2 * _SERIALS

    # --- the connection ----------------------------------------------------------------------------

    @property
    def protocol(self) -> wire.Protocol | None:
        """What was agreed on in INIT; None if the kernel has not been answered yet."""
        header = self._header
        return wire.Protocol(header[_MINOR], header[_READAHEAD], header[_FLAGS]) if header[_MINOR] else None

    @protocol.setter
    def protocol(self, agreed: wire.Protocol) -> None:
        header = self._header
        header[_READAHEAD], header[_FLAGS] = agreed.readahead, agreed.flags
        header[_MINOR] = agreed.minor

    # --- nodes -------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return self._count

    def enter(self, parent: int, name: bytes, ino: int) -> int:
        """Enter a node that the kernel is told of for the first time, and return its id. Raises OSError."""
        nodes = self._nodes
        number = nodes.allocate()
        view, at = nodes.views[number >> nodes.shift], (number & nodes.mask) * _NODE
        view[at + 1] = ino
        view[at + 2] = 1
        view[at + 3] = self._names.add(parent, name)
        nodeid = self._number(number)
        view[at] = nodeid
        self._count += 1
        return nodeid

    def count(self, nodeid: int, lookups: int) -> int:
        """Add to a node's lookups, or take away, and return how many there are then; 0 for an unknown node."""
        nodes = self._nodes
        number = nodeid & _NUMBER
        view, at = nodes.views[number >> nodes.shift], (number & nodes.mask) * _NODE
        if view[at] != nodeid:
            return 0
        count: int = view[at + 2] + lookups
        view[at + 2] = max(count, 0)
        return count

    def move(self, nodeid: int, parent: int, name: bytes) -> None:
        """Note a node's new place. Raises OSError."""
        view, at = self._node(nodeid)
        before = view[at + 3]
        view[at + 3] = self._names.add(parent, name)
        if before:
            self._names.free(before)

    def renumber(self, nodeid: int, ino: int) -> None:
        """Note a node's new inode number."""
        view, at = self._node(nodeid)
        view[at + 1] = ino

    def lose_name(self, nodeid: int) -> None:
        """Note that a node has no name any more, so that another one with its inode number is not taken for it."""
        view, at = self._node(nodeid)
        before = view[at + 3]
        view[at + 3] = 0
        if before:
            self._names.free(before)

    def remove(self, nodeid: int) -> None:
        """Remove a node that the kernel no longer holds."""
        view, at = self._node(nodeid)
        self.drop_stream(nodeid)
        name = view[at + 3]
        self._nodes.free(nodeid & _NUMBER)
        self._count -= 1
        if name:
            self._names.free(name)

    def node(self, nodeid: int) -> NotedNode:
        """Return a node. Raises KeyError for one that the kernel does not hold."""
        view, at = self._node(nodeid)
        return NotedNode(view[at + 1], Place(*self._names.get(view[at + 3])) if view[at + 3] else None)

    def nodes(self) -> Iterator[tuple[int, NotedNode]]:
        """Yield the ids of all nodes except the root, and the nodes."""
        for view, at in map(self._nodes.place, self._nodes):
            nodeid = view[at]
            yield nodeid, self.node(nodeid)

    def _node(self, nodeid: int) -> tuple[memoryview, int]:
        return _record(self._nodes, nodeid)

    # --- the order of names ------------------------------------------------------------------------

    def keep_stream(self, nodeid: int, data: bytes) -> None:
        """Keep data about a directory that is being read, in place of what was kept before. Raises OSError."""
        first = 0
        for start in reversed(range(0, len(data), _PIECE)):
            first = self._names.add(first, data[start : start + _PIECE])
        self.drop_stream(nodeid)
        number = self._streams.allocate()
        view, at = self._streams.place(number)
        view[at + 1] = first
        view[at] = nodeid
        self._stream_of[nodeid] = number

    def stream(self, nodeid: int) -> bytes | None:
        """Return what was kept about a directory, if anything was."""
        number = self._stream_of.get(nodeid)
        if number is None:
            return None
        view, at = self._streams.place(number)
        return b"".join(data for _, data in self._pieces(view[at + 1]))

    def drop_stream(self, nodeid: int) -> None:
        """Drop what was kept about a directory, if anything was."""
        number = self._stream_of.pop(nodeid, None)
        if number is not None:
            view, at = self._streams.place(number)
            pieces = [position for position, _ in self._pieces(view[at + 1])]
            self._streams.free(number)
            for position in pieces:
                self._names.free(position)

    def _pieces(self, position: int) -> Iterator[tuple[int, bytes]]:
        while position:
            following, data = self._names.get(position)
            yield position, data
            position = following

    # --- open files --------------------------------------------------------------------------------

    def open(self, file: NotedFile) -> int:
        """Enter an open file, and return the number by which the kernel will know it. Raises OSError."""
        with self._opening:
            record = self._files.allocate()
        view, at = self._files.place(record)
        number = self._number(record)
        view[at + 1], view[at + 2] = file.nodeid, file.flags
        view[at + 3] = 0 if file.backing is None else file.backing + 1
        view[at + 4], view[at + 5] = file.unique, file.uid << 32 | file.gid
        view[at + 6], view[at + 7] = file.pid, file.in_upper
        view[at] = number
        return number

    def close(self, number: int) -> None:
        """Remove an open file. Raises KeyError if the kernel has no file with this number open."""
        _record(self._files, number)
        self._files.free(number & _NUMBER)

    def note_layer(self, number: int, *, in_upper: bool) -> None:
        """Note whether an open file is in the upper now. Raises KeyError like `close`."""
        view, at = _record(self._files, number)
        view[at + 7] = in_upper

    def file(self, number: int) -> NotedFile:
        """Return an open file. Raises KeyError like `close`."""
        view, at = _record(self._files, number)
        backing = view[at + 3] - 1 if view[at + 3] else None
        uid, gid = view[at + 5] >> 32, view[at + 5] & _NUMBER
        return NotedFile(
            number, view[at + 1], view[at + 2], backing, view[at + 4], uid, gid, view[at + 6], bool(view[at + 7])
        )

    def files(self) -> list[NotedFile]:
        """Return all open files."""
        return [self.file(view[at]) for view, at in map(self._files.place, self._files)]

    # --- requests ----------------------------------------------------------------------------------

    def intend(self, unique: int, value: int) -> None:
        """Note something about a request that is about to be carried out. What was noted long ago is forgotten."""
        header, at = self._header, next(self._intents)
        header[at] = 0
        header[at + 1] = value
        header[at] = unique & ~RESENT

    def intended(self, unique: int) -> int | None:
        """Return what was noted about a request that the kernel sends again; None if nothing was."""
        header, first = self._header, unique & ~RESENT
        for at in range(_INTENTS, _INTENTS + 2 * _INTENT_COUNT, 2):
            if header[at] == first:
                value: int = header[at + 1]
                return value
        return None

    def attempt(self, unique: int) -> int:
        """Count an attempt to answer a request that the kernel sends again, and return which one it is."""
        header = self._header
        at = _ATTEMPTS + 2 * (unique % _ATTEMPT_COUNT)
        if header[at] != unique:
            header[at], header[at + 1] = unique, 0
        header[at + 1] += 1
        count: int = header[at + 1]
        return count


def _record(slots: Slots, number: int) -> tuple[memoryview, int]:
    """Return the words of the record with a number, and the position of its first word. Raises KeyError."""
    try:
        view, at = slots.place(number & _NUMBER)
    except DamagedError:
        raise KeyError(number) from None
    if view[at] != number:
        raise KeyError(number)
    return view, at
