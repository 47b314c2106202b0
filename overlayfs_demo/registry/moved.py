"""What a pull or a push moved, and what it did not need to move: the point of layers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Moved:
    """A number of layers, of which `spared` did not cross the wire; `bytes` are the stored bytes that did cross it."""

    layers: int
    spared: int
    bytes: int
    bytes_spared: int
