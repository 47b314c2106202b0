"""Progress reporting for long operations."""

from __future__ import annotations

from typing import BinaryIO, cast


class Progress:
    """Receiver of reports on long work, step by step. This class ignores them; subclasses show them to a person."""

    def step(self, title: str, size: int | None = None) -> None:
        """Report that the step `title` begins; `size` is its number of bytes, if known."""

    def advance(self, count: int) -> None:
        """Report that `count` more bytes are done. Another thread may call this."""


SILENT = Progress()


class _Counted:
    """A file that is written forward and reports every byte to `progress`."""

    def __init__(self, out: BinaryIO, progress: Progress) -> None:
        self._out = out
        self._progress = progress

    def write(self, data: bytes) -> int:
        count = self._out.write(data)
        self._progress.advance(count)
        return count


def counted(out: BinaryIO, progress: Progress) -> BinaryIO:
    """Return a write-only file that passes data to `out` and reports every byte. The caller keeps `out`."""
    return cast(BinaryIO, _Counted(out, progress))
