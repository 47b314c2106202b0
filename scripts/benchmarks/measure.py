"""The rounds of a run, in which the peers take turns."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.faults import FAULTS, LeftOutError
from benchmarks.inputs import Input, Sizes, flat
from benchmarks.operations import STAT
from benchmarks.peers import Peer
from benchmarks.results import Figures, Results
from benchmarks.rows import Row
from benchmarks.view import LIMIT, SLOW_LIMIT, mounted

_DROP_CACHES = Path("/proc/sys/vm/drop_caches")
_LONG = 10.0  # seconds; what takes longer with its mount is not repeated
_Maker = Callable[[Path, Sizes], Input]


@dataclass(slots=True)
class Ground:
    """A directory at a place, with the inputs that were made there."""

    directory: Path
    sizes: Sizes
    _inputs: dict[_Maker, Input | LeftOutError] = field(default_factory=dict)
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def input(self, make: _Maker) -> Input:
        """Return an input, made when it is first wanted. Raises LeftOutError if this machine lacks what it needs."""
        if make not in self._inputs:
            place = self.directory / f"input{next(self._numbers)}"
            place.mkdir()
            try:
                self._inputs[make] = make(place, self.sizes)
            except LeftOutError as error:
                self._inputs[make] = error
        found = self._inputs[make]
        if isinstance(found, LeftOutError):
            raise found
        return found

    def forget(self, make: _Maker) -> None:
        """Remove an input that no row needs any more."""
        found = self._inputs.pop(make, None)
        if isinstance(found, Input):
            shutil.rmtree(found.place)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def working(peers: Sequence[Peer], ground: Ground) -> list[Peer]:
    """Return the peers that can mount and show a small tree. The others are named."""
    found = []
    for peer in peers:
        try:
            with mounted(peer, ground.input(flat), ground.sizes, LIMIT) as view:
                STAT.time(view)
            found.append(peer)
        except FAULTS as error:
            say(f"left out: {peer.name}: {reason(error)}")
    return found


def drop_caches() -> None:
    """Make the kernel forget what it can read again. Raises LeftOutError."""
    if not os.access(_DROP_CACHES, os.W_OK):
        raise LeftOutError("starts cold, and only root can drop the kernel's caches")
    os.sync()
    _DROP_CACHES.write_text("3")


def sample(row: Row, peer: Peer, ground: Ground) -> float:
    """Measure one row on a new mount of one peer, and check what it did. Raises one of FAULTS."""
    if row.layered and not peer.layered:
        raise LeftOutError("has no layers")
    shown = ground.input(row.input)
    if row.cold and not shown.in_memory:
        drop_caches()
    limit = SLOW_LIMIT if row.slow else LIMIT
    with mounted(peer, shown, ground.sizes, limit, volatile=row.volatile) as view:
        return row.work(view)


def reason(error: BaseException) -> str:
    """Return what an error says, without the directory that was made for the measurement."""
    return re.sub(r"[^\s'\"]*/cell-\w+/", "", str(error)) or type(error).__name__


def measure(
    results: Results, rows: Sequence[Row], peers: Sequence[Peer], grounds: dict[str, Ground], rounds: int
) -> None:
    """Measure all rows at all places, and add the figures to the results.

    A row's rounds are done together, so that its input needs room only meanwhile.
    """
    for number, row in enumerate(rows, 1):
        for place in results.places[:1] if row.once else results.places:
            say(f"{number} of {len(rows)}: {row.name} on {place.name}")
            ground = grounds[place.name]
            for peer, figures in _all_rounds(row, peers, ground, 1 if row.once else rounds).items():
                results.figures[place.name, row.name, peer] = figures
            if all(later.input is not row.input for later in rows[number:]):
                ground.forget(row.input)


def _all_rounds(row: Row, peers: Sequence[Peer], ground: Ground, rounds: int) -> dict[str, Figures]:
    """Return the figures of each peer. One that fails or takes very long gets no further turn."""
    found = {peer.name: Figures() for peer in peers}
    out: set[str] = set()
    for number in range(rounds):
        turn = number % len(peers)
        for peer in [peer for peer in [*peers[turn:], *peers[:turn]] if peer.name not in out]:
            start = time.monotonic()
            try:
                found[peer.name] = Figures((*found[peer.name].samples, sample(row, peer, ground)))
            except FAULTS as error:
                found[peer.name] = Figures(fault=reason(error))
            if found[peer.name].fault or time.monotonic() - start > _LONG:
                out.add(peer.name)
    return found
