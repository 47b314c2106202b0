"""A place where the threads of a session stand until a test lets them go."""

from __future__ import annotations

import threading

from tests.conftest import PATIENCE


class Gate:
    """Callers of `wait` stand here until it is opened."""

    def __init__(self) -> None:
        self.reached = 0
        self._open = threading.Event()

    def wait(self) -> None:
        self.reached += 1
        assert self._open.wait(PATIENCE)

    def open(self) -> None:
        self._open.set()
