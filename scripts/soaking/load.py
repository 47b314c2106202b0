"""The processes that use a view. Each does one kind of thing, again and again, and leaves as many names as before."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from soaking.served import Served

_DIRECTORIES, _FILES = 20, 40
_LARGE = 3_000_000


def fill(lowers: list[Path]) -> None:
    """Make the lowers: they share their directories, and each has files of its own."""
    for number, lower in enumerate(lowers):
        for directory in range(_DIRECTORIES):
            place = lower / f"d{directory}"
            place.mkdir(parents=True)
            for file in range(_FILES):
                (place / f"f{number}-{file}").write_text(f"{number} {file}\n" * 100)
        (lower / f"large{number}").write_bytes(bytes(range(256)) * (_LARGE // 256))


def _files(view: Served, chance: random.Random) -> None:
    """Create, write, rename, link and remove files and directories."""
    own = view.path / f"files-{os.getpid()}"
    own.mkdir()
    for number in range(chance.randrange(5, 50)):
        file = own / f"{number}"
        file.write_bytes(chance.randbytes(chance.choice((0, 10, 5000))))
        file.rename(own / f"r{number}")
        if chance.random() < 0.3:
            (own / f"l{number}").hardlink_to(own / f"r{number}")
    shutil.rmtree(own)


def _copy_ups(view: Served, chance: random.Random) -> None:
    """Change files of the lowers, remove them, and make them again."""
    place = view.path / f"d{chance.randrange(_DIRECTORIES)}"
    for name in chance.sample(os.listdir(place), 5):
        file = place / name
        with contextlib.suppress(FileNotFoundError, FileExistsError):
            if chance.random() < 0.5:
                file.chmod(chance.choice((0o600, 0o644)))
                os.truncate(file, chance.randrange(100))
            else:
                file.unlink()
                file.write_text("again\n")


def _interrupts(view: Served, chance: random.Random) -> None:
    """Kill programs in the middle of what they do."""
    large = view.path / f"large{chance.randrange(len(view.lowers))}"
    killed = os.fork()
    if killed == 0:
        with contextlib.suppress(OSError), large.open("r+b") as file:
            file.write(b"x")
        os._exit(0)
    time.sleep(chance.random() / 100)
    os.kill(killed, signal.SIGKILL)
    os.waitpid(killed, 0)


def _listings(view: Served, _chance: random.Random) -> None:
    """Walk through everything."""
    for above, _, names in os.walk(view.path):
        for name in names:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                os.lstat(os.path.join(above, name))


def _external_changes(view: Served, chance: random.Random) -> None:
    """Change a lower behind the view."""
    place = chance.choice(view.lowers) / f"d{chance.randrange(_DIRECTORIES)}"
    file = place / f"behind-{os.getpid()}"
    file.write_text("behind\n")
    with contextlib.suppress(OSError):
        os.listdir(view.path / place.name)
    file.unlink()
    time.sleep(0.02)


def _watchers(view: Served, chance: random.Random) -> None:
    """Watch the view for a moment."""
    program = Path(sys.executable).with_name("overlayfs-demo")
    with subprocess.Popen(
        [program, "watch", "--json", view.path], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as watcher:
        time.sleep(chance.random())
        watcher.send_signal(chance.choice((signal.SIGTERM, signal.SIGKILL, signal.SIGINT)))
        watcher.wait()


KINDS: tuple[Callable[[Served, random.Random], None], ...] = (
    _files,
    _files,
    _copy_ups,
    _interrupts,
    _listings,
    _external_changes,
    _watchers,
)


@contextmanager
def loaded(view: Served, seed: int) -> Iterator[Callable[[], list[str]]]:
    """Use the view while the context is open. Gives a function that returns which kinds of use have failed."""
    running = {_started(kind, view, f"{seed} {number}"): kind.__name__ for number, kind in enumerate(KINDS)}
    failed: list[str] = []

    def ended() -> list[str]:
        for pid in list(running):
            if os.waitpid(pid, os.WNOHANG)[0]:
                failed.append(running.pop(pid).removeprefix("_"))
        return failed

    try:
        yield ended
    finally:
        for pid in running:
            os.kill(pid, signal.SIGTERM)
        for pid in running:
            os.waitpid(pid, 0)


def _started(kind: Callable[[Served, random.Random], None], view: Served, seed: str) -> int:
    """Start a process that goes on until it gets SIGTERM. It ends by itself only if something fails."""
    pid = os.fork()
    if pid:
        return pid
    try:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
        chance = random.Random(seed)
        while True:
            kind(view, chance)
    except BaseException:  # noqa: BLE001 - whatever it was, it must be seen
        traceback.print_exc()
    finally:
        os._exit(1)
