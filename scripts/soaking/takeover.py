"""A soak of the takeover: programs use a view whose daemon is killed at random, and must notice nothing."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

from overlayfs_demo.mounts import mount, registry, umount
from overlayfs_demo.mounts.options import parse

_ROOT = Path(__file__).resolve().parent.parent.parent
# Seconds between two kills, at most.
_LONGEST = 0.8
_TIMEOUT = 60.0


class _Soak:
    """One view, and the programs that use it."""

    def __init__(self, base: Path) -> None:
        self._view = base / "view"
        self._base = base
        for name in ("lower", "upper", "work", "view"):
            (base / name).mkdir()
        shutil.copytree(_ROOT / "overlayfs_demo", base / "lower/program", ignore=shutil.ignore_patterns("__pycache__"))
        _run("tar", "-cf", base / "tests.tar", "--exclude=__pycache__", "-C", _ROOT, "tests")
        _run("git", "init", "-q", "--bare", base / "repository")
        self._options = f"lowerdir={base / 'lower'},upperdir={base / 'upper'},workdir={base / 'work'}"
        self._ended = threading.Event()
        self.failed: list[str] = []
        self.rounds: dict[str, int] = {}
        self.kills = 0

    def run(self, seconds: float, chance: random.Random) -> None:
        """Kill the daemon again and again for so long."""
        mount.mount(os.fsencode(self._view), parse([self._options]))
        uses = [self._tar, self._git, self._sqlite]
        if shutil.which("rsync"):
            uses.append(self._rsync)
        threads = [threading.Thread(target=self._use, args=(use,)) for use in uses]
        try:
            for thread in threads:
                thread.start()
            end = time.monotonic() + seconds
            while time.monotonic() < end and not self.failed:
                time.sleep(chance.uniform(0.02, _LONGEST))
                self._kill()
            self._ended.set()
            for thread in threads:
                thread.join(_TIMEOUT)
        finally:
            umount.unmount(os.fsencode(self._view), lazy=bool(self.failed))

    def _kill(self) -> None:
        """Kill the daemon, and wait for the next one."""
        record = registry.find_record(str(self._view))
        if record is None:
            self.failed.append("the view is gone")
            return
        os.kill(record.daemon, signal.SIGKILL)
        self.kills += 1
        deadline = time.monotonic() + _TIMEOUT
        while (now := registry.find_record(str(self._view))) is None or now.daemon == record.daemon:
            if time.monotonic() > deadline:
                self.failed.append("no other daemon goes on")
                return
            time.sleep(0.01)

    def _use(self, use: Callable[[Path], None]) -> None:
        name = use.__name__.strip("_")
        place = self._view / name
        while not self._ended.is_set():
            try:
                use(place)
            except subprocess.CalledProcessError as error:
                self.failed.append(f"{name}: {error.cmd}: {error.stdout}{error.stderr}")
                return
            except (OSError, sqlite3.Error, AssertionError) as error:
                self.failed.append(f"{name}: {error!r}")
                return
            self.rounds[name] = self.rounds.get(name, 0) + 1

    def _tar(self, place: Path) -> None:
        place.mkdir()
        _run("tar", "-xf", self._base / "tests.tar", "-C", place)
        _run("tar", "-df", self._base / "tests.tar", "-C", place)
        _run("rm", "-r", place)

    def _git(self, place: Path) -> None:
        _run("git", "clone", "-q", self._base / "repository", place)
        shutil.copytree(self._view / "program", place / "program")
        _run("git", "-C", place, "add", ".")
        _run("git", "-C", place, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "-m", "all of it")
        _run("git", "-C", place, "gc", "-q")
        _run("git", "-C", place, "fsck", "--strict")
        _run("rm", "-r", place)

    def _sqlite(self, place: Path) -> None:
        database = sqlite3.connect(place, timeout=_TIMEOUT)
        database.execute("pragma synchronous=full")
        database.execute("create table t(a integer primary key, b)")
        for number in range(60):
            database.execute("insert into t values(?, ?)", (number, os.urandom(100)))
            database.commit()
        assert database.execute("select count(*) from t").fetchone() == (60,)
        assert database.execute("pragma integrity_check").fetchone() == ("ok",)
        database.close()
        place.unlink()

    def _rsync(self, place: Path) -> None:
        _run("rsync", "-aH", f"{self._view / 'program'}/", place)
        _run("diff", "-r", self._view / "program", place)
        _run("rm", "-r", place)


def _run(*words: str | Path) -> None:
    subprocess.run([str(word) for word in words], check=True, capture_output=True, text=True)


def soak(base: Path, seconds: float, seed: int) -> list[str]:
    """Use a view in an empty directory for so long. Return what went wrong."""
    using = _Soak(base)
    using.run(seconds, random.Random(seed))
    print(f"{using.kills} kills; rounds: {using.rounds}")
    return using.failed
