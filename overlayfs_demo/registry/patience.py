"""How long a registry is waited for, and how often it is asked again."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Patience:
    """Times in seconds. `attempts` is how often one request, or one piece of a blob, is tried.

    The wait before the second attempt is `first_delay`, and doubles. A registry may ask for a longer wait with
    `Retry-After`, but not longer than `longest_delay`. A registry that sends or takes less than `least_rate` bytes
    a second, measured over a `window`, counts as a broken connection. `commit` is how long a registry may take to put
    an uploaded blob in its place.
    """

    attempts: int = 5
    first_delay: float = 1.0
    longest_delay: float = 60.0
    connect: float = 20.0
    read: float = 60.0
    commit: float = 300.0
    window: float = 30.0
    least_rate: int = 128

    def delay(self, failures: int) -> float:
        """Return the wait after so many failures in a row."""
        return float(min(self.first_delay * 2 ** (failures - 1), self.longest_delay))
