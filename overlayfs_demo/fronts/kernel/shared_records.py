"""Records in shared memory, which outlive the process that wrote them.

The memory is a file without a name (memfd_create(2)) in segments of one size. Each segment holds records of one kind
and says so in its first word. A process may be killed between any two stores, so whatever makes a record valid is
stored last, in one word; and what is free is not recorded, but found by whoever opens the memory next.
"""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Iterator

# In bytes. A word has eight.
_SEGMENT = 1 << 20
WORD = 8
_WORDS = _SEGMENT // WORD
# Records of so many words or more have one of few sizes.
_LONG = 16


class DamagedError(Exception):
    """The memory does not hold what it should."""


def create() -> int:
    """Return the descriptor of new memory, which the caller owns. Raises OSError."""
    return os.memfd_create("overlayfs-demo", os.MFD_CLOEXEC)


class Memory:
    """Mapped segments. The caller owns the descriptor `fd`; None: the memory is this process's alone."""

    def __init__(self, fd: int | None) -> None:
        """Map what is there. Raises OSError."""
        self._fd = fd
        self._adding = threading.Lock()
        size = 0 if fd is None else os.fstat(fd).st_size
        self._segments = [self._map(start) for start in range(0, size, _SEGMENT)]

    def _map(self, start: int) -> memoryview:
        return memoryview(mmap.mmap(-1, _SEGMENT) if self._fd is None else mmap.mmap(self._fd, _SEGMENT, offset=start))

    def __len__(self) -> int:
        return len(self._segments)

    def of_kind(self, kind: int) -> list[memoryview]:
        """Return the segments of one kind, in the order in which they were added, as bytes."""
        return [segment for segment in self._segments if segment.cast("Q")[0] == kind]

    def add(self, kind: int) -> memoryview:
        """Return a new segment of zeros, as bytes. Any thread may call this. Raises OSError (ENOMEM)."""
        with self._adding:
            start = len(self._segments) * _SEGMENT
            if self._fd is not None:
                os.ftruncate(self._fd, start + _SEGMENT)
            segment = self._map(start)
            segment.cast("Q")[0] = kind
            self._segments.append(segment)
            return segment


class Slots:
    """Records of `size` words each, a power of two, found by their numbers. The first word of a free record is 0.

    `views` are the segments as words; `shift` and `mask` lead from a number to its segment and place there.
    """

    __slots__ = ("_free", "_kind", "_memory", "_next", "mask", "shift", "size", "views")

    def __init__(self, memory: Memory, kind: int, size: int) -> None:
        self._memory = memory
        self._kind = kind
        self.size = size
        each = _WORDS // size
        self.shift, self.mask = each.bit_length() - 1, each - 1
        self.views = [segment.cast("Q") for segment in memory.of_kind(kind)]
        used = set(self)
        self._next = max(used, default=0) + 1
        # Record 0 of a segment is its tag.
        self._free = [number for number in range(self._next) if number & self.mask and number not in used]

    def __iter__(self) -> Iterator[int]:
        """Yield the numbers of the records in use."""
        for number, view in enumerate(self.views):
            first = number << self.shift
            yield from [first + at for at, word in enumerate(view[:: self.size].tolist()) if word and at]

    def allocate(self) -> int:
        """Return the number of a free record. Its first word is 0, the others may be anything. Raises OSError."""
        if self._free:
            return self._free.pop()
        if not self._next & self.mask:
            self._next += 1
        number = self._next
        if number >> self.shift >= len(self.views):
            self.views.append(self._memory.add(self._kind).cast("Q"))
        self._next += 1
        return number

    def place(self, number: int) -> tuple[memoryview, int]:
        """Return the words of a record's segment, and the position of its first word. Raises DamagedError."""
        segment = number >> self.shift
        if segment >= len(self.views) or not number & self.mask:
            raise DamagedError(f"there is no record {number}")
        return self.views[segment], (number & self.mask) * self.size

    def free(self, number: int) -> None:
        """Free a record."""
        view, at = self.place(number)
        view[at] = 0
        self._free.append(number)


class Names:
    """Names of different lengths, each with a number that goes with it: records that never change.

    The first word of a record has its size in words and the length of its name, the second one the number.
    """

    __slots__ = ("_bytes", "_end", "_free", "_kind", "_memory", "_words")

    def __init__(self, memory: Memory, kind: int) -> None:
        """Open what is there. Call `reclaim` before anything is added."""
        self._memory = memory
        self._kind = kind
        self._bytes = memory.of_kind(kind)
        self._words = [segment.cast("Q") for segment in self._bytes]
        # By size in words: the positions of free records.
        self._free: dict[int, list[int]] = {}
        # The position after the last record; a position is counted in words over all segments of this kind.
        self._end = len(self._words) * _WORDS

    def reclaim(self, used: set[int]) -> None:
        """Find what is free. `used` are the positions of the records that are still needed. Raises DamagedError."""
        found = 0
        for segment, words in enumerate(self._words):
            at = 1
            while at < _WORDS and (size := words[at] >> 32):
                position = segment * _WORDS + at
                if position in used:
                    found += 1
                else:
                    self._free.setdefault(size, []).append(position)
                at += size
            if segment == len(self._words) - 1:
                self._end = segment * _WORDS + at
        if found != len(used):
            raise DamagedError("a name is not where it should be")

    def add(self, number: int, name: bytes) -> int:
        """Store a name and return its position, which is never 0. Raises OSError."""
        length = len(name)
        size = 2 + (length + WORD - 1) // WORD
        if size >= _LONG:
            size = _rounded(size)
        free = self._free.get(size)
        if free:
            position = free.pop()
        else:
            position = self._end
            if not self._words or position % _WORDS + size > _WORDS or not position % _WORDS:
                # What is left of the last segment stays unused: no size there says that it ends here.
                self._bytes.append(self._memory.add(self._kind))
                self._words.append(self._bytes[-1].cast("Q"))
                position = (len(self._words) - 1) * _WORDS + 1
            self._end = position + size
        segment, at = divmod(position, _WORDS)
        words = self._words[segment]
        words[at + 1] = number
        self._bytes[segment][(at + 2) * WORD : (at + 2) * WORD + length] = name
        words[at] = size << 32 | length
        return position

    def get(self, position: int) -> tuple[int, bytes]:
        """Return the number and the name at a position. Raises DamagedError."""
        segment, at = divmod(position, _WORDS)
        if segment >= len(self._words):
            raise DamagedError(f"there is no position {position}")
        words = self._words[segment]
        start = (at + 2) * WORD
        return words[at + 1], bytes(self._bytes[segment][start : start + (words[at] & 0xFFFFFFFF)])

    def free(self, position: int) -> None:
        """Free a name."""
        segment, at = divmod(position, _WORDS)
        self._free.setdefault(self._words[segment][at] >> 32, []).append(position)


def _rounded(size: int) -> int:
    """Return one of few sizes, at most an eighth more, so that a free record fits many others."""
    unit = 1 << (size.bit_length() - 4)
    return -(-size // unit) * unit
