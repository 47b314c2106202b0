"""Can one user's open files keep the others from anything but opening more?"""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests import builders
from tests.conftest import wait_until
from tests.contract.subjects import USER
from tests.places import BIN, Place, run

LIMIT = 1024


@contextmanager
def greedy(view: Path, names: list[str], *, remove: bool = False) -> Iterator[tuple[int, int]]:
    """A process of another user that opens files until that is refused: how many it has, and the errno."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.chdir(view)  # The directories above are root's alone.
            os.setgid(USER)
            os.setuid(USER)
            os.write(writing, json.dumps(_open_all(names, remove)).encode())
            os.close(writing)
            signal.pause()
        finally:
            os._exit(1)
    os.close(writing)
    try:
        with os.fdopen(reading) as told:
            count, code = json.load(told)
        yield count, code
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _open_all(names: list[str], remove: bool) -> tuple[int, int | None]:
    held: list[int] = []
    try:
        while len(held) < 2 * LIMIT:
            name = names[len(held) % len(names)]
            held.append(os.open(name, os.O_RDONLY | (os.O_CREAT if remove else 0), 0o600))
            if remove:
                os.unlink(name)
    except OSError as error:
        return len(held), error.errno
    return len(held), None


def mount_with_few_descriptors(place: Place) -> None:
    subprocess.run(
        [
            "prlimit",
            f"--nofile={LIMIT}:{LIMIT}",
            BIN / "overlayfs-demo",
            "mount",
            "--front",
            "kernel",
            "-o",
            place.options,
            place.view,
        ],
        check=True,
        timeout=60,
    )


def everything_but_opening_works(place: Place) -> None:
    view = place.view
    (view / "made").mkdir()
    (view / "link").symlink_to("x")
    os.mkfifo(view / "made/fifo")
    (view / "made/fifo").rename(view / "moved")
    (view / "moved").unlink()
    (view / "d/deep").chmod(0o600)  # A copy-up.
    os.truncate(view / "d/deep", 2)
    os.link(view / "d/deep", view / "d/second")
    (view / "d/second").unlink()
    assert len(list(view.rglob("*"))) > 300  # Directories that were never looked into.
    assert os.statvfs(view).f_bsize
    for directory in (view / "many").iterdir():
        assert (directory / "f").stat().st_size == 1


def refused(path: Path, flags: int) -> int | None:
    try:
        os.close(os.open(path, flags, 0o600))
    except OSError as error:
        return error.errno
    return None


def test_open_files_of_one_user_leave_descriptors_for_all_but_opens(place: Place) -> None:
    builders.fill(os.fsencode(place / "bottom"), {f"many/{number}/f": "1" for number in range(300)})
    mount_with_few_descriptors(place)
    with greedy(place.view, [f"many/{number}/f" for number in range(300)]) as (count, code):
        assert (code, count > 100) == (errno.ENFILE, True), count
        everything_but_opening_works(place)
        assert refused(place.view / "new", os.O_WRONLY | os.O_CREAT) == errno.ENFILE
        assert not (place.view / "new").exists()
        assert refused(place.view / "motd", os.O_WRONLY | os.O_TRUNC) == errno.ENFILE
        assert (place.view / "motd").stat().st_size == 6
    wait_until(lambda: refused(place.view / "motd", os.O_RDONLY) is None, "release of the files")
    assert refused(place.view / "new", os.O_WRONLY | os.O_CREAT) is None
    assert run("overlayfs-demo", "umount", place.view).returncode == 0


def test_open_files_that_were_removed_leave_descriptors_for_all_but_opens(place: Place) -> None:
    builders.fill(os.fsencode(place / "bottom"), {f"many/{number}/f": "1" for number in range(300)})
    (place / "top").chmod(0o777)
    (place / "upper").chmod(0o777)
    mount_with_few_descriptors(place)
    with greedy(place.view, ["gone"], remove=True) as (count, code):
        assert (code, count > 50) == (errno.ENFILE, True), count
        everything_but_opening_works(place)
    wait_until(lambda: refused(place.view / "motd", os.O_RDONLY) is None, "release of the files")
