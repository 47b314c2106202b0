"""The table of all rows: what each does, on which input, and its targets."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks import costs, data, inputs, layers, programs, trees
from benchmarks.inputs import Input, Sizes
from benchmarks.operations import (
    COPY_UP,
    CREATE,
    MISS,
    OPEN_READ,
    RENAME,
    STAT,
    UNLINK_LOWER,
    UNLINK_UPPER,
    Operation,
    with_clients,
)
from benchmarks.view import View


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit to print, and how many of them one second, byte or piece is."""

    name: str
    factor: float = 1.0


MICROSECONDS, MILLISECONDS = Unit("µs", 1e6), Unit("ms", 1e3)
BYTES, MEBIBYTES, PIECES = Unit("B"), Unit("MiB", 2**-20), Unit("")


@dataclass(frozen=True, slots=True)
class Limit:
    """The most that is allowed on a tmpfs and on a disk. None: no target."""

    tmpfs: float | None = None
    disk: float | None = None


def everywhere(most: float) -> Limit:
    return Limit(most, most)


# How many times the kernel's overlayfs a row may take. Each open of a file is a request to a FUSE daemon, so what opens
# many files counts as changing metadata even if it is repeated.
DATA, PAGES, WARM, CHANGING = everywhere(1.15), everywhere(1.5), everywhere(1.3), Limit(6, 4)
NONE = Limit()


@dataclass(frozen=True, slots=True)
class Row:
    """One thing that is measured: `work` returns seconds, bytes or pieces, of which less is better.

    Targets: the time of our kernel front as a ratio to that of fuse-overlayfs 1.10 (`fuse`) and of the kernel's
    overlayfs (`kernel`), and the `most` that it may be, in the row's unit.

    `cold`: the kernel's caches are dropped before the mount, on a disk. `layered`: without layers it would be something
    else. `once`: repeating it, or another place, changes nothing. `slow`: not in a quick run.
    """

    name: str
    about: str
    unit: Unit
    input: Callable[[Path, Sizes], Input]
    work: Callable[[View], float]
    fuse: Limit = NONE
    kernel: Limit = NONE
    most: float | None = None
    cold: bool = False
    layered: bool = False
    volatile: bool = False
    once: bool = False
    slow: bool = False


# As fast as fuse-overlayfs 1.10 where nothing more is asked. A difference of 5 % is noise.
EVEN = everywhere(1.05)


def _at_most(tmpfs: float) -> Limit:
    """A target measured on a tmpfs. On a disk, where both wait for it, being as fast is enough."""
    return Limit(tmpfs, EVEN.disk)


_US, _MS = MICROSECONDS, MILLISECONDS
_FLAT, _LARGE, _PACKAGES = inputs.flat, inputs.large, inputs.packages

_METADATA = (
    Row("stat", "stat of a file, first", _US, _FLAT, STAT.time, _at_most(0.60), CHANGING),
    Row("open-read", "open, read, close, first", _US, _FLAT, OPEN_READ.time, _at_most(0.40), CHANGING),
    Row("miss", "stat of a missing name", _US, _FLAT, MISS.time, _at_most(0.55), CHANGING),
    Row("create", "create, write 5 bytes, close", _US, _FLAT, CREATE.time, _at_most(0.47), CHANGING),
    Row("rename", "rename of an upper file", _US, _FLAT, RENAME.time, _at_most(0.50), CHANGING),
    Row("unlink-upper", "unlink of an upper file", _US, _FLAT, UNLINK_UPPER.time, _at_most(0.50), CHANGING),
    Row(
        "unlink-lower", "unlink of a lower file", _US, _FLAT, UNLINK_LOWER.time, _at_most(0.60), CHANGING, layered=True
    ),
    # fuse-overlayfs never waits for the disk. The kernel's overlayfs and ours do, unless mounted with `volatile`.
    Row(
        "copy-up",
        "chmod that copies up 5 bytes, ours with fsync",
        _US,
        _FLAT,
        COPY_UP.time,
        Limit(1.2, None),
        CHANGING,
        layered=True,
    ),
    Row(
        "copy-up-volatile",
        "chmod that copies up 5 bytes, volatile",
        _US,
        _FLAT,
        COPY_UP.time,
        _at_most(0.8),
        CHANGING,
        layered=True,
        volatile=True,
    ),
    Row("clients-2", "2 clients: read a file, create a file", _US, _FLAT, with_clients(2), EVEN, CHANGING),
    Row("clients-8", "8 clients: read a file, create a file", _US, _FLAT, with_clients(8), EVEN, CHANGING),
)

_DATA = (
    Row("write-4k", "write 4 KiB", _US, _FLAT, data.write_pages, EVEN, PAGES),
    Row("write-1m", "write 1 MiB", _US, _FLAT, data.write_mebibytes, EVEN, DATA),
    Row("write-random", "write 4 KiB at random places", _US, _FLAT, data.random_writes, EVEN, PAGES),
    Row("append", "append a byte to a large lower file", _MS, _LARGE, data.append, EVEN, DATA, layered=True),
    Row("read-cold", "read 1 MiB in sequence, first", _US, _LARGE, data.read_cold, EVEN, DATA, cold=True),
    Row("read-warm", "read 1 MiB in sequence, again", _US, _LARGE, data.read_warm, EVEN, DATA),
    Row("read-written", "read 1 MiB of a file just written", _US, _FLAT, data.read_written, EVEN, DATA),
    Row(
        "read-random-cold",
        "read 4 KiB at random places, first",
        _US,
        _LARGE,
        data.random_read_cold,
        EVEN,
        DATA,
        cold=True,
    ),
    Row("read-random-warm", "read 4 KiB at random places, again", _US, _LARGE, data.random_read_warm, EVEN, DATA),
    Row(
        "read-random-written",
        "read 4 KiB at random places of a file just written",
        _US,
        _FLAT,
        data.random_read_written,
        EVEN,
        DATA,
    ),
    Row("mmap", "read 1 MiB of a mapped file, first", _US, _LARGE, data.mapped_read, EVEN, DATA),
)

_TREES = (
    Row("find-cold", "find -ls in three layers, first", _MS, _PACKAGES, trees.find, EVEN, CHANGING, cold=True),
    Row("find-warm", "find -ls, again", _MS, _PACKAGES, trees.find_warm, EVEN, WARM),
    Row("grep-cold", "grep -r, first", _MS, _PACKAGES, trees.grep, EVEN, CHANGING, cold=True),
    Row("grep-warm", "grep -r, again", _MS, _PACKAGES, trees.grep_warm, EVEN, CHANGING),
    Row("stat-cold", "stat in random order, first", _US, _PACKAGES, trees.sampled_stats, EVEN, CHANGING, cold=True),
    Row(
        "open-read-cold", "read in random order, first", _US, _PACKAGES, trees.sampled_reads, EVEN, CHANGING, cold=True
    ),
    Row("ls", "ls -l of many names, first", _MS, inputs.listed, trees.list_long, EVEN, CHANGING, cold=True),
    Row("untar", "tar -x of small files", _MS, _PACKAGES, trees.untar, EVEN, CHANGING),
    Row("chmod-R", "chmod -R of a lower tree", _MS, _PACKAGES, trees.chmod, Limit(1.2, None), CHANGING, layered=True),
    Row("rm-lower", "rm -rf of a lower tree", _MS, _PACKAGES, trees.remove_lower, EVEN, CHANGING, layered=True),
    Row("rm-upper", "rm -rf of an upper tree", _MS, _PACKAGES, trees.remove_upper, EVEN, CHANGING),
)


def _layer_rows(count: int) -> tuple[Row, Row, Row]:
    shown, among = partial(inputs.layers, count), f"{count} layer{'s' if count > 1 else ''}"
    return (
        Row(f"hit-{count}", f"stat of a name of the bottom, {among}", _US, shown, layers.hit, EVEN, CHANGING),
        Row(f"miss-{count}", f"stat of a missing name, {among}", _US, shown, layers.miss, EVEN, CHANGING),
        Row(f"list-{count}", f"listing, first, {among}", _MS, shown, layers.listing, EVEN, CHANGING),
    )


_PROGRAMS = (
    Row("sqlite", "sqlite insert with fsync", _US, _FLAT, programs.sqlite_inserts, EVEN, CHANGING),
    Row("git-status", "git status, again", _MS, inputs.repository, programs.git_status, EVEN, WARM),
    Row("git-clone", "git clone within the view", _MS, inputs.repository, programs.git_clone, EVEN, CHANGING),
    Row("c-build", "build of a small program in C", _MS, inputs.sources, programs.c_build, EVEN, CHANGING),
)

_STARTS = (
    Row("mount", "mount, until it returns", _MS, _PACKAGES, costs.mount_time, most=120),
    Row("help", "--help", _MS, _FLAT, costs.help_time, most=80),
)


def _memory_rows(count: int, *, most: float | None = None) -> tuple[Row, Row]:
    shown, slow = partial(inputs.names, count), count > 100_000
    return (
        Row(f"rss-{count}", f"RSS after {count:,} names", MEBIBYTES, shown, costs.resident, once=True, slow=slow),
        Row(
            f"name-{count}",
            f"RSS a name of {count:,}",
            BYTES,
            shown,
            costs.bytes_a_name,
            most=most,
            once=True,
            slow=slow,
        ),
    )


_MEMORY = (
    *_memory_rows(10_000),
    *_memory_rows(100_000),
    *_memory_rows(1_000_000, most=400),
    Row(
        "rss-removed",
        "RSS after rm -rf of 10,000 names",
        MEBIBYTES,
        partial(inputs.names, 10_000),
        costs.resident_after_removal,
        once=True,
    ),
)

_OPERATIONS = {
    "stat": STAT,
    "open-read": OPEN_READ,
    "create": CREATE,
    "rename": RENAME,
    "unlink-upper": UNLINK_UPPER,
    "unlink-lower": UNLINK_LOWER,
    "copy-up": COPY_UP,
}

_PROCESSOR = (
    *(
        Row(f"cpu-{name}", f"processor time of the daemon for one {name}", _US, _FLAT, costs.processor_time(operation))
        for name, operation in _OPERATIONS.items()
        if name in ("stat", "open-read", "create")
    ),
    Row("cpu-idle", "processor time of the daemon in an idle second", _MS, _FLAT, costs.idle, once=True),
)


def _count_rows(kind: str, count: Callable[[Operation], Callable[[View], float]]) -> tuple[Row, ...]:
    layered = ("unlink-lower", "copy-up")
    return tuple(
        Row(
            f"{kind}-{name}",
            f"{kind.replace('calls', 'system calls')} for one {name}",
            PIECES,
            _FLAT,
            count(operation),
            layered=name in layered,
            once=True,
        )
        for name, operation in _OPERATIONS.items()
    )


GROUPS: dict[str, tuple[Row, ...]] = {
    "Metadata": _METADATA,
    "Data": _DATA,
    "Trees": _TREES,
    "Layers": tuple(row for count in (1, 20, 100, 500) for row in _layer_rows(count)),
    "Programs": _PROGRAMS,
    "Start": _STARTS,
    "Memory": _MEMORY,
    "Processor time": _PROCESSOR,
    "Requests and system calls": (*_count_rows("requests", costs.requests), *_count_rows("calls", costs.system_calls)),
}
ROWS = tuple(row for rows in GROUPS.values() for row in rows)


def choose(patterns: Sequence[str], *, quick: bool) -> tuple[Row, ...]:
    """Return the rows that the shell patterns name, in the table's order; without any, all.

    A quick run has a slow row only if a pattern is its name. Raises ValueError for a pattern that names no row.
    """
    for pattern in patterns:
        if not fnmatch.filter([row.name for row in ROWS], pattern):
            raise ValueError(f"no row is named {pattern!r}; the rows are {', '.join(row.name for row in ROWS)}")

    def is_wanted(row: Row) -> bool:
        if quick and row.slow:
            return row.name in patterns
        return not patterns or any(fnmatch.fnmatchcase(row.name, pattern) for pattern in patterns)

    return tuple(row for row in ROWS if is_wanted(row))
