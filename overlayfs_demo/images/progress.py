"""Progress reporting for long operations."""

from __future__ import annotations

from typing import BinaryIO, cast


class Progress:
    """Is told of long work, step by step. This one ignores it; others show it to a person."""

    def step(self, what: str, size: int | None = None) -> None:
        """`what` begins; it will take `size` bytes, if that is known."""

    def advance(self, count: int) -> None:
        """So many bytes more are done. Another thread may call that."""


SILENT = Progress()


class _Counted:
    """A file that is written forward; progress is told of every byte."""

    def __init__(self, out: BinaryIO, progress: Progress) -> None:
        self._out = out
        self._progress = progress

    def write(self, data: bytes) -> int:
        count = self._out.write(data)
        self._progress.advance(count)
        return count


def counted(out: BinaryIO, progress: Progress) -> BinaryIO:
    """`out`, to be written alone, where progress is told of every byte; it stays the caller's."""
    return cast(BinaryIO, _Counted(out, progress))
