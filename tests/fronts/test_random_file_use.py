"""Do random uses of a few files by several processes give what they give on a plain filesystem?

Each call is made in the view and in a plain directory, and the answers are compared: data, sizes, modes, error
numbers. The kernel chooses how it carries the data by what is open already, so the order of opens matters most.
`OVERLAYFS_DEMO_SEED` repeats a run.
"""

from __future__ import annotations

import errno
import mmap
import multiprocessing
import os
import random
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from overlayfs_demo.linux import syscalls
from tests import builders
from tests.places import Place

_USERS, _CALLS = 3, 400
_LOWER = {"low": "low" * 200, "twin": b"t" * 9000, "large": b"l" * 150_000}
_UPPER = {"up": b"u" * 6000}
_NAMES = ("low", "twin", "link", "large", "up", "new", "newer")
_SIZES = (0, 1, 5, 4095, 4096, 4097, 10_000, 65_536, 70_000, 131_072)
_ACCESS = (os.O_RDONLY, os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDWR)
_MORE = (0, 0, 0, 0, os.O_CREAT, os.O_CREAT | os.O_EXCL, os.O_TRUNC, os.O_APPEND, os.O_SYNC, os.O_NOATIME)


class Side:
    """One of the two directories, as one process uses it: its files and mappings by number."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._files: dict[int, int] = {}
        self._maps: dict[int, mmap.mmap] = {}

    def open(self, number: int, name: str, flags: int) -> None:
        self._files[number] = os.open(self._root / name, flags, 0o644)

    def close(self, number: int) -> None:
        os.close(self._files.pop(number))

    def unmap(self, number: int) -> None:
        self._maps.pop(number).close()

    def read(self, number: int, offset: int, size: int) -> bytes:
        return os.pread(self._files[number], size, offset)

    def write(self, number: int, offset: int, data: bytes) -> int:
        return os.pwrite(self._files[number], data, offset)

    def append(self, number: int, data: bytes) -> tuple[int, int]:
        fd = self._files[number]
        return os.write(fd, data), os.lseek(fd, 0, os.SEEK_CUR)

    def end(self, number: int) -> int:
        return os.lseek(self._files[number], 0, os.SEEK_END)

    def cut(self, number: int, size: int) -> None:
        os.ftruncate(self._files[number], size)

    def cut_name(self, name: str, size: int) -> None:
        os.truncate(self._root / name, size)

    def allocate(self, number: int, mode: int, offset: int, size: int) -> None:
        syscalls.allocate(self._files[number], mode, offset, size)

    def copy(self, number: int, other: int, offset: int, target: int, size: int) -> int:
        return os.copy_file_range(self._files[number], self._files[other], size, offset, target)

    def map(self, number: int, writable: bool) -> int:
        fd = self._files[number]
        size = os.fstat(fd).st_size
        if size:  # An empty file cannot be mapped.
            access = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
            self._maps[number] = mmap.mmap(fd, size, prot=access)
        return size

    def read_mapped(self, number: int, offset: int, size: int) -> bytes:
        return self._maps[number][offset : min(offset + size, self._mapped(number))]

    def write_mapped(self, number: int, offset: int, data: bytes) -> None:
        data = data[: max(self._mapped(number) - offset, 0)]
        self._maps[number][offset : offset + len(data)] = data

    def _mapped(self, number: int) -> int:
        """Where the mapping, or the file behind it, ends."""
        return min(len(self._maps[number]), os.fstat(self._files[number]).st_size)

    def status(self, number: int) -> tuple[int, int, int]:
        return _shown(os.fstat(self._files[number]))

    def status_of(self, name: str) -> tuple[int, int, int]:
        return _shown(os.stat(self._root / name))

    def data_of(self, name: str) -> bytes:
        return (self._root / name).read_bytes()

    def rename(self, name: str, other: str) -> None:
        os.rename(self._root / name, self._root / other)

    def link(self, name: str, other: str) -> None:
        os.link(self._root / name, self._root / other)

    def unlink(self, name: str) -> None:
        os.unlink(self._root / name)

    def chmod(self, name: str, mode: int) -> None:
        os.chmod(self._root / name, mode)


def _shown(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_size, status.st_mode, status.st_nlink


def _answer(side: Side, call: str, arguments: tuple[Any, ...]) -> object:
    try:
        return getattr(side, call)(*arguments)
    except OSError as error:
        assert error.errno is not None
        return errno.errorcode[error.errno]


def _use(pipe: Connection, view: Path, plain: Path) -> None:
    """Make the calls that arrive, until None, on both sides."""
    sides = Side(view), Side(plain)
    while (asked := pipe.recv()) is not None:
        call, *arguments = asked
        pipe.send([_answer(side, call, tuple(arguments)) for side in sides])


class User:
    """A process, and what it has open: the flags of files by number, and the numbers of those that are mapped."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self.files: dict[int, int] = {}
        self.mapped: set[int] = set()

    def both(self, *asked: Any) -> object:
        """The answer to a call, which both sides give."""
        self._pipe.send(asked)
        here, there = self._pipe.recv()
        assert here == there, f"{asked[:2]}"
        return here

    def end(self) -> None:
        self._pipe.send(None)


@contextmanager
def users(view: Path, plain: Path) -> Iterator[list[User]]:
    context = multiprocessing.get_context("fork")
    pipes = [context.Pipe() for _ in range(_USERS)]
    processes = [context.Process(target=_use, args=(theirs, view, plain), daemon=True) for _, theirs in pipes]
    for process in processes:
        process.start()
    found = [User(ours) for ours, _ in pipes]
    try:
        yield found
        for user in found:
            user.end()
        for process in processes:
            process.join(10)
    finally:
        for process in processes:
            process.kill()
            process.join()


def _act(user: User, dice: random.Random, number: int) -> None:
    """One random call; a file that is opened gets the `number`."""
    kind = dice.random()
    if kind < 0.25 or not user.files:
        flags = dice.choice(_ACCESS) | dice.choice(_MORE)
        if user.both("open", number, dice.choice(_NAMES), flags) is None:
            user.files[number] = flags
    elif kind < 0.4:
        _change_names(user, dice)
    elif kind < 0.55 and user.mapped & user.files.keys():
        _use_mapping(user, dice)
    else:
        _use_file(user, dice)


def _use_file(user: User, dice: random.Random) -> None:
    number = dice.choice(list(user.files))
    offset, size = dice.choice(_SIZES), dice.choice(_SIZES)
    match dice.choice(("close", "map", "read", "write", "append", "cut", "allocate", "copy", "end", "status")):
        case "close":
            _close(user, number)
        case "map":
            _map(user, number)
        case "read":
            user.both("read", number, offset, size)
        case "write":
            user.both("write", number, offset, _data(dice))
        case "append":
            user.both("append", number, _data(dice))
        case "cut":
            user.both("cut", number, size)
        case "allocate":
            user.both("allocate", number, dice.choice((0, 1, 3)), offset, size + 1)
        case "copy":
            user.both("copy", number, dice.choice(list(user.files)), offset, dice.choice(_SIZES), size)
        case call:
            user.both(call, number)


def _close(user: User, number: int) -> None:
    user.both("close", number)
    del user.files[number]
    if number in user.mapped:
        user.mapped.remove(number)
        user.both("unmap", number)


def _map(user: User, number: int) -> None:
    if number in user.mapped:
        return
    answer = user.both("map", number, user.files[number] & os.O_ACCMODE == os.O_RDWR)
    if isinstance(answer, int) and answer:
        user.mapped.add(number)


def _use_mapping(user: User, dice: random.Random) -> None:
    number = dice.choice(sorted(user.mapped & user.files.keys()))
    if user.files[number] & os.O_ACCMODE == os.O_RDWR and dice.random() < 0.5:
        user.both("write_mapped", number, dice.choice(_SIZES), _data(dice))
    else:
        user.both("read_mapped", number, dice.choice(_SIZES), dice.choice(_SIZES))


def _change_names(user: User, dice: random.Random) -> None:
    name, other = dice.choice(_NAMES), dice.choice(_NAMES)
    match dice.choice(
        ("status_of", "status_of", "data_of", "data_of", "cut_name", "rename", "link", "unlink", "chmod")
    ):
        case "cut_name":
            user.both("cut_name", name, dice.choice(_SIZES))
        case "chmod":
            user.both("chmod", name, dice.choice((0o644, 0o755, 0o600)))
        case "rename" | "link" as call:
            user.both(call, name, other)
        case call:
            user.both(call, name)


def _data(dice: random.Random) -> bytes:
    return bytes([dice.randrange(65, 91)]) * dice.choice((1, 3, 10, 4096, 5000))


def _fill(*directories: Path, files: dict[str, Any]) -> None:
    for directory in directories:
        builders.fill(os.fsencode(directory), files)


@pytest.mark.parametrize("more", ["", ",passthrough=off", ",metacopy=on", ",timeout=10000", ",timeout=0"])
def test_answers_are_those_of_a_plain_filesystem(place: Place, more: str) -> None:
    seed = int(os.environ.get("OVERLAYFS_DEMO_SEED", secrets.randbits(32)))
    print(f"OVERLAYFS_DEMO_SEED={seed}")
    dice = random.Random(seed)
    plain = place / "plain"
    plain.mkdir()
    _fill(place / "bottom", plain, files=_LOWER)
    _fill(place / "upper", plain, files=_UPPER)
    for directory in (place / "bottom", plain):
        os.link(directory / "twin", directory / "link")
    assert place.mount("--front", "kernel", options=place.options + more).returncode == 0
    with users(place.view, plain) as found:
        for number in range(_CALLS):
            _act(dice.choice(found), dice, number)
    for path in plain.iterdir():
        assert (place.view / path.name).read_bytes() == path.read_bytes()
    assert place.umount().returncode == 0
    for path in plain.iterdir():
        real = place / "upper" / path.name
        if real.exists():
            assert real.read_bytes() == path.read_bytes()
