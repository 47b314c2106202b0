"""Contexts for work in the work directory. As classes: generators with `contextlib` take several times as long."""

from __future__ import annotations

from collections.abc import Callable


class Staged:
    """A free name in the work directory. If the body of the `with` statement fails, `discard` is called with it."""

    __slots__ = ("_discard", "_name")

    def __init__(self, name: bytes, discard: Callable[[bytes], None]) -> None:
        self._name = name
        self._discard = discard

    def __enter__(self) -> bytes:
        return self._name

    def __exit__(self, failed: type[BaseException] | None, *_: object) -> None:
        if failed is not None:
            self._discard(self._name)


class Swept:
    """Calls `sweep` after the body of the `with` statement, even if that fails."""

    __slots__ = ("_sweep",)

    def __init__(self, sweep: Callable[[], None]) -> None:
        self._sweep = sweep

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        self._sweep()
