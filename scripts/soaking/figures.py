"""The figures of a daemon, and whether they level off."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Figures(NamedTuple):
    """What a daemon takes at one moment: open descriptors, resident memory in kB, nodes in memory, and threads."""

    descriptors: int
    rss: int
    nodes: int
    threads: int

    def __str__(self) -> str:
        return (
            f"{self.descriptors:5} descriptors  {self.rss / 1024:7.1f} MiB  {self.nodes:6} nodes  "
            f"{self.threads:3} threads"
        )


# By how much a figure may differ between two times of the same load.
_SLACK = Figures(descriptors=32, rss=4096, nodes=200, threads=12)
_RATIO = 1.05
# Fewer samples say nothing.
LEAST = 6


def growing(samples: Sequence[Figures]) -> list[str]:
    """Return the names of the figures that do not level off.

    The load is the same all the time, so the most of the last third must not exceed the most of the second. In the
    first third, caches fill.
    """
    third = len(samples) // 3
    middle, last = samples[third : 2 * third], samples[2 * third :]
    return [
        name
        for position, name in enumerate(Figures._fields)
        if max(later[position] for later in last)
        > _RATIO * max(earlier[position] for earlier in middle) + _SLACK[position]
    ]
