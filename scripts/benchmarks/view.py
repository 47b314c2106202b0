"""A mounted view of one peer, its daemon, and commands that run on it."""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from benchmarks.faults import FAULTS, LeftOutError, WrongResultError, expect
from benchmarks.inputs import Input, Sizes, copy_shown
from benchmarks.peers import Peer

T = TypeVar("T")
LIMIT, SLOW_LIMIT = 120.0, 1200.0  # seconds; what takes longer counts as hung
_LEAVING = 20.0  # seconds that a daemon may take to end after umount
# Daemons inherit this variable, however they detach, and are known by its value.
_MARK = "OVERLAYFS_DEMO_BENCHMARK_VIEW"
_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class View:
    """A mount of `peer` at `path`, which shows `input`. `mount_time` is in seconds."""

    path: Path
    upper: Path
    peer: Peer
    input: Input
    sizes: Sizes
    mark: str
    mount_time: float

    def run(self, *words: str | Path, cwd: Path | None = None) -> str:
        """Run a command and return its output. Raises WrongResultError if it fails."""
        return run(self.path.parent, *words, cwd=cwd)

    def daemons(self) -> list[int]:
        """Return the processes that serve this mount. Raises LeftOutError if there are none."""
        found = marked(self.mark)
        if not found:
            raise LeftOutError("has no daemon")
        return found

    def processor_time(self) -> float:
        """Return how long the daemon's threads have run, in seconds."""
        tasks = [task for pid in self.daemons() for task in Path(f"/proc/{pid}/task").iterdir()]
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9

    def resident(self) -> int:
        """Return the resident memory of the daemon, in bytes."""
        pages = (int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in self.daemons())
        return sum(pages) * os.sysconf("SC_PAGE_SIZE")


def timed(work: Callable[[], T]) -> tuple[float, T]:
    """Return how long `work` took, in seconds, and its result."""
    gc.disable()
    try:
        start = time.perf_counter()
        result = work()
        return time.perf_counter() - start, result
    finally:
        gc.enable()


def run(place: Path, *words: str | Path, cwd: Path | None = None, mark: str = "") -> str:
    """Run a command, whose output goes to a file in `place`, and return it. Raises WrongResultError if it fails.

    There is no limit, because waiting with a limit polls, which rounds the time up: the watchdog ends what hangs.
    """
    # Not to a pipe, because a pipe that a daemon keeps open would not end.
    log = place / f"{Path(words[0]).name}.log"
    env = {**os.environ, "LC_ALL": "C", "GIT_CONFIG_GLOBAL": "/dev/null", _MARK: mark}
    with log.open("wb") as out:
        done = subprocess.run(words, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, env=env, cwd=cwd)
    text = log.read_text(errors="replace")
    if done.returncode:
        raise WrongResultError(f"{Path(words[0]).name}: {(text.strip().splitlines() or ['failed'])[-1]}")
    return text


def marked(mark: str) -> list[int]:
    """Return the processes that were started with this mark and still run."""
    wanted = f"{_MARK}={mark}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            # Processes end, and an ordinary user may not look into those of others.
            with contextlib.suppress(OSError):
                if wanted in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
    return found


def is_mounted(path: Path) -> bool:
    """Return whether the kernel lists a mount there; a stat of a dead daemon's mount point fails."""
    return f" {path} " in Path("/proc/self/mountinfo").read_text()


def force_umount(path: Path) -> None:
    """Unmount the path if it is still mounted.

    -f ends a FUSE connection, so that processes waiting for a hung daemon get an error.
    """
    subprocess.run(["umount", "-f", "-l", path], stderr=subprocess.DEVNULL, check=False)


def _end(path: Path, mark: str, ending: threading.Event) -> None:
    """End a mount and its daemon, or a command that never made one, whatever they do. `ending` says so before."""
    ending.set()
    for pid in marked(mark):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    force_umount(path)


def _wait_for_end(mark: str) -> None:
    deadline = time.monotonic() + _LEAVING
    while left := marked(mark):
        if time.monotonic() > deadline:
            raise WrongResultError(f"the daemon {left[0]} still runs {_LEAVING:.0f} seconds after umount")
        time.sleep(0.005)


def _empty(place: Path, *, in_memory: bool) -> None:
    """Remove what a measurement left.

    On a disk, small files stay until the run ends: after many deletions an ext4 without a journal creates files slowly
    for minutes, which would slow the next peer down.
    """
    if in_memory:
        shutil.rmtree(place, ignore_errors=True)
        return
    for directory, _, names in os.walk(place):
        for name in names:
            path = Path(directory, name)
            if path.lstat().st_size > 1 << 20:
                path.unlink()


@contextlib.contextmanager
def mounted(peer: Peer, shown: Input, sizes: Sizes, limit: float, *, volatile: bool = False) -> Iterator[View]:
    """Mount a new view, with its upper and work directory beside it; at the end unmount it and wait for its daemon.

    All of it may take `limit` seconds. Raises one of FAULTS.
    """
    place = Path(tempfile.mkdtemp(prefix="cell-", dir=shown.place.parent))
    mnt, upper, work = (place / name for name in ("mnt", "upper", "work"))
    mark = f"{os.getpid()}-{next(_numbers)}"
    hung = threading.Event()
    watchdog = threading.Timer(limit, _end, [mnt, mark, hung])
    for directory in (mnt, upper, work):
        directory.mkdir()
    if not peer.layered:
        copy_shown(shown, upper)
    words = peer.words(lower=":".join(shown.lowers), upper=upper, work=work, mnt=mnt, volatile=volatile)
    try:
        watchdog.start()
        # The names of the layers are relative, because 500 absolute ones do not fit into the page that mount(2) copies.
        seconds, _ = timed(lambda: run(place, *words, cwd=shown.place, mark=mark))
        expect("mount", is_mounted(mnt), True)
        yield View(mnt, upper, peer, shown, sizes, mark, seconds)
        run(place, "umount", mnt)
        expect("mount left", is_mounted(mnt), False)
        _wait_for_end(mark)
    except FAULTS as error:
        if hung.is_set():
            raise WrongResultError(f"took longer than {limit:.0f} seconds") from error
        raise
    finally:
        watchdog.cancel()
        _end(mnt, mark, hung)
        _empty(place, in_memory=shown.in_memory)
