"""Does the filter say of each system call what it should, on each machine? Python plays the kernel's part here."""

from __future__ import annotations

import errno
import os
import struct
from pathlib import Path

import pytest

from overlayfs_demo.explain.syscall_filter import MACHINES, REFUSED, program

AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
COLUMN = {"x86_64": 0, "aarch64": 1}
KILLED, ALLOWED = -1, 0


def answer(machine: str, number: int, *arguments: int, audit: int | None = None) -> int:
    """The error by which a call fails, ALLOWED or KILLED: the machine of linux/filter.h, as far as it is used."""
    six = (*arguments, 0, 0, 0, 0, 0, 0)[:6]
    data = struct.pack("=iIQ6Q", number, AUDIT[machine] if audit is None else audit, 0, *six)
    instructions = list(struct.iter_unpack("=HBBI", program(machine)))
    at = 0
    loaded: int = 0
    while True:
        code, then, otherwise, operand = instructions[at]
        at += 1
        match code:
            case 0x20:
                loaded = struct.unpack_from("=I", data, operand)[0]
            case 0x54:
                loaded &= operand
            case 0x15 | 0x25 | 0x45:
                true = {0x15: loaded == operand, 0x25: loaded > operand, 0x45: bool(loaded & operand)}[code]
                at += then if true else otherwise
            case 0x06:
                ends: dict[int, int] = {0x7FFF0000: ALLOWED, 0x80000000: KILLED, 0x00050000: operand & 0xFFFF}
                return ends[operand & 0xFFFF0000]
            case _:
                raise AssertionError(f"an instruction that is not used: {code:#x}")


@pytest.fixture(params=MACHINES)
def machine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_the_calls_of_the_table_are_refused_and_no_others(machine: str) -> None:
    numbers = {numbers[COLUMN[machine]] for numbers in REFUSED.values()} - {None}
    special = {"x86_64": {435, 41, 53}, "aarch64": {435, 198, 199}}[machine]
    for number in set(range(470)) - special:
        assert answer(machine, number) == (errno.EPERM if number in numbers else ALLOWED), number


def test_calls_of_other_architectures_kill(machine: str) -> None:
    assert answer(machine, 1, audit=0x40000003) == KILLED


def test_unknown_calls_and_clone3_do_not_exist(machine: str) -> None:
    for number in (470, 435, 0x40000001):
        assert answer(machine, number) == errno.ENOSYS


@pytest.mark.parametrize(
    "flags, expected",
    [
        (17, ALLOWED),
        (0x3D0F00, ALLOWED),
        (0x10000000, errno.EPERM),
        (0x00020011, errno.EPERM),
        (0x02000000, errno.EPERM),
    ],
)
def test_clone_makes_processes_and_threads_but_no_namespaces(machine: str, flags: int, expected: int) -> None:
    assert answer(machine, {"x86_64": 56, "aarch64": 220}[machine], flags) == expected


@pytest.mark.parametrize(
    "request_number, expected",
    [(0x5412, errno.EPERM), (0x541C, errno.EPERM), (0x1_0000_5412, errno.EPERM), (0x5413, ALLOWED)],
)
def test_ioctls_type_into_no_terminal(machine: str, request_number: int, expected: int) -> None:
    """Of the request the kernel takes the lower half."""
    assert answer(machine, {"x86_64": 16, "aarch64": 29}[machine], 0, request_number) == expected


@pytest.mark.parametrize(
    "command, expected",
    [
        (1024, errno.EPERM),
        (1026, errno.EPERM),
        (0x1_0000_0400, errno.EPERM),
        (1025, ALLOWED),
        (6, ALLOWED),
        (1030, ALLOWED),
    ],
)
def test_fcntl_takes_no_lease_and_watches_no_directory(machine: str, command: int, expected: int) -> None:
    """Locks (6, F_SETLK) and descriptors (1030, F_DUPFD_CLOEXEC) it may have."""
    assert answer(machine, {"x86_64": 72, "aarch64": 25}[machine], 0, command) == expected


def test_sockets_are_of_the_network_or_stay_a_pair(machine: str) -> None:
    socket, pair = {"x86_64": (41, 53), "aarch64": (198, 199)}[machine]
    assert [family for family in range(50) if answer(machine, socket, family) == ALLOWED] == [2, 10]
    assert [kind for kind in range(16) if answer(machine, pair, 1, kind | 0x80800) == ALLOWED] == [1, 5]
    assert answer(machine, pair, 30, 1) == errno.EAFNOSUPPORT


def test_the_numbers_of_calls_are_those_of_the_headers() -> None:
    machine = os.uname().machine
    header = Path(f"/usr/include/{machine}-linux-gnu/asm/unistd_64.h")
    if not header.exists():
        pytest.skip(f"needs {header}, of the package linux-libc-dev")
    lines = [line.split() for line in header.read_text().splitlines() if line.startswith("#define __NR_")]
    there = {words[1].removeprefix("__NR_"): int(words[2]) for words in lines}
    for name, numbers in REFUSED.items():
        assert there.get(name, numbers[COLUMN[machine]]) == numbers[COLUMN[machine]], name


def test_a_machine_whose_calls_are_not_known_is_no_key() -> None:
    with pytest.raises(KeyError):
        program("vax")
