"""Read-ahead in a thread: reading, decompression and hashing continue while earlier data is unpacked.

The thread reads the source some pieces ahead. Decompression, hashing, reading and writing all let other threads run
meanwhile, and the distance is bounded, so memory stays flat.
"""

from __future__ import annotations

import contextlib
import io
import queue
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

PIECE = 1 << 18
MOST_AHEAD = 8

# How long `close` waits for the thread, in seconds, before it checks again whether the queue is full.
_POLL = 0.01


class ReadAhead(io.RawIOBase):
    """The bytes of `source`, read by a thread. The caller must close it, which ends the thread.

    An exception from the source is raised to the reader at the same place. Until `close`, only the thread may use the
    source; the caller must close the source.
    """

    def __init__(self, source: io.RawIOBase) -> None:
        self._source = source
        self._pieces: queue.Queue[bytes | Exception] = queue.Queue(MOST_AHEAD)
        self._stopped = False
        self._rest = memoryview(b"")
        self._end: Exception | None = None
        self._ended = False
        self._thread = threading.Thread(target=self._produce, name="read-ahead", daemon=True)
        self._thread.start()

    def _produce(self) -> None:
        try:
            while not self._stopped:
                piece = self._source.read(PIECE) or b""
                self._pieces.put(piece)
                if not piece:
                    return
        except Exception as error:  # noqa: BLE001 - it is raised where the data is read
            self._pieces.put(error)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        if not self._rest and not self._ended:
            piece = self._pieces.get()
            if isinstance(piece, Exception):
                self._end, self._ended = piece, True
            else:
                self._rest, self._ended = memoryview(piece), not piece
        if self._end is not None:
            raise self._end
        view = memoryview(buffer)
        count = min(len(view), len(self._rest))
        view[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count

    def close(self) -> None:
        """Stop reading, and wait until the thread has ended."""
        self._stopped = True
        while self._thread.is_alive():
            # The thread may be waiting for room in the queue.
            with contextlib.suppress(queue.Empty):
                self._pieces.get_nowait()
            self._thread.join(_POLL)
        super().close()
