"""Does a program that somebody else wrote lose its set-id bits, for the kernel that would run it, too?

The kernel caches modes and leaves dropping the bits to the daemon (FUSE_HANDLE_KILLPRIV_V2). Where it is not told,
it runs what any user wrote into a world-writable file as the file's owner.
"""

from __future__ import annotations

import mmap
import os
import stat
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from overlayfs_demo.linux import syscalls
from tests import builders
from tests.contract.subjects import USER, in_child
from tests.places import Place

CAPABILITY = bytes.fromhex("0000000201000000000000000000000000000000")  # v2, CAP_CHOWN
PROGRAM = Path("/usr/bin/id").read_bytes()


def _by_descriptor(act: Callable[[int], object], flags: int = os.O_WRONLY) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        fd = os.open(path, flags)
        act(fd)
        os.close(fd)

    return change


def _copy_range(fd: int) -> None:
    source = os.open("own", os.O_RDONLY)
    os.copy_file_range(source, fd, 4, 0, len(PROGRAM))
    os.close(source)


def _through_a_mapping(fd: int) -> None:
    """Writing to a mapped page drops no bits by itself: the truncation before must have dropped them."""
    os.ftruncate(fd, len(PROGRAM))
    with mmap.mmap(fd, len(PROGRAM)) as pages:
        pages[:] = PROGRAM


CHANGES: dict[str, Callable[[Path], object]] = {
    "write": _by_descriptor(lambda fd: os.pwrite(fd, b"evil", len(PROGRAM))),
    "append": _by_descriptor(lambda fd: os.write(fd, b"evil"), os.O_WRONLY | os.O_APPEND),
    "open with O_TRUNC": _by_descriptor(lambda _: None, os.O_WRONLY | os.O_TRUNC),
    "open read-only with O_TRUNC": _by_descriptor(lambda _: None, os.O_RDONLY | os.O_TRUNC),
    "open with O_TRUNC, and a mapping": _by_descriptor(_through_a_mapping, os.O_RDWR | os.O_TRUNC),
    "truncate": lambda path: os.truncate(path, 10),
    "truncate to the same size": lambda path: os.truncate(path, len(PROGRAM)),
    "ftruncate": _by_descriptor(lambda fd: os.ftruncate(fd, 10)),
    "fallocate": _by_descriptor(lambda fd: syscalls.allocate(fd, 0, 0, 4096)),
    "copy_file_range": _by_descriptor(_copy_range),
}
# After these the file is a program still.
RUNS = {
    name
    for name in CHANGES
    if name not in ("open with O_TRUNC", "open read-only with O_TRUNC", "truncate", "ftruncate")
}

TIMEOUTS = ("", ",timeout=0", ",timeout=1", ",timeout=10000")


def program(mode: int) -> builders.File:
    return builders.file(PROGRAM, mode=mode, xattrs={"security.capability": CAPABILITY})


def as_user(view: Path, act: Callable[[], object]) -> None:
    def child() -> None:
        os.chdir(view)  # The directories above are root's alone.
        os.setgroups([])
        os.setgid(USER)
        os.setuid(USER)
        act()

    in_child(child)


def run_as(name: str) -> str:
    """As which user and group the program runs."""
    done = subprocess.run([f"./{name}"], capture_output=True, text=True, check=True)
    return done.stdout


@pytest.mark.parametrize("layer", ["bottom", "upper"])
@pytest.mark.parametrize("timeout", TIMEOUTS)
def test_program_that_another_user_changes_runs_without_rights(
    front: str, place: Place, timeout: str, layer: str
) -> None:
    """Nobody asks for its attributes in between: the kernel must have been told."""
    builders.fill(os.fsencode(place / layer), {what.replace(" ", "-"): program(0o6777) for what in RUNS})
    builders.fill(os.fsencode(place / layer), {"own": builders.file("own data", mode=0o644)})
    assert place.mount("--front", front, options=place.options + timeout).returncode == 0
    for what in RUNS:
        if front == "fusepy" and what == "fallocate":
            continue  # libfuse 2 has no fallocate.

        def attack(what: str = what) -> None:
            name = what.replace(" ", "-")
            assert "euid=0" in run_as(name), "set-id programs do not work here: nothing is tested"
            CHANGES[what](Path(name))
            after = run_as(name)
            assert "euid" not in after and "egid" not in after, f"{what}: {after}"

        as_user(place.view, attack)


@pytest.mark.parametrize("layer", ["bottom", "upper"])
@pytest.mark.parametrize("timeout", TIMEOUTS)
def test_program_that_another_user_changes_loses_its_rights(front: str, place: Place, timeout: str, layer: str) -> None:
    names = {f"{mode:o}{what}": (mode, what) for mode in (0o4777, 0o6757, 0o2777) for what in CHANGES}
    builders.fill(os.fsencode(place / layer), {name: program(mode) for name, (mode, _) in names.items()})
    builders.fill(os.fsencode(place / layer), {"own": builders.file("own data", mode=0o644)})
    assert place.mount("--front", front, options=place.options + timeout).returncode == 0
    for name, (mode, what) in names.items():
        if front == "fusepy" and what == "fallocate":
            continue  # libfuse 2 has no fallocate.
        path = place.view / name
        assert stat.S_IMODE(path.stat().st_mode) == mode  # Now the kernel knows it.

        as_user(place.view, partial(CHANGES[what], Path(name)))
        seen = stat.S_IMODE(path.stat().st_mode)
        assert seen == stat.S_IMODE((place / "upper" / name).stat().st_mode), name
        assert not seen & (stat.S_ISUID | stat.S_ISGID), f"{name}: {seen:o}"
        assert "security.capability" not in os.listxattr(path), name
