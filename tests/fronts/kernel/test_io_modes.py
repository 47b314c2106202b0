"""Is every open of a file at a time of one kind, and is each real file that was given to the kernel taken back?"""

from __future__ import annotations

import errno
import random
from collections import Counter

import pytest

from overlayfs_demo.fronts.kernel.io_modes import IoModes
from overlayfs_demo.linux.failure import failure

NODE, OTHER, FD = 7, 8, 40


class Kernel:
    """What the kernel was given, and the rule that it enforces for each file: fs/fuse/iomode.c."""

    def __init__(self) -> None:
        self.given: dict[int, int] = {}
        self.error = 0
        self._serial = 0

    def give(self, fd: int) -> int:
        if self.error:
            raise failure(self.error)
        self._serial += 1
        self.given[self._serial] = fd
        return self._serial

    def take_back(self, backing: int) -> None:
        del self.given[backing]


@pytest.fixture
def kernel() -> Kernel:
    return Kernel()


@pytest.fixture
def modes(kernel: Kernel) -> IoModes:
    made = IoModes()
    made.allow(kernel)
    return made


def test_first_open_passes_and_the_next_use_the_same_real_file(modes: IoModes, kernel: Kernel) -> None:
    first = modes.open(NODE, FD, may_pass=True)
    assert first is not None
    assert modes.open(NODE, FD + 1, may_pass=False) == first
    assert kernel.given == {first: FD}


def test_real_file_is_taken_back_with_the_last_release(modes: IoModes, kernel: Kernel) -> None:
    for _ in range(2):
        modes.open(NODE, FD, may_pass=True)
    modes.release(NODE, passed=True)
    assert kernel.given
    modes.release(NODE, passed=True)
    assert not kernel.given


def test_nothing_passes_while_a_cached_open_remains(modes: IoModes, kernel: Kernel) -> None:
    assert modes.open(NODE, FD, may_pass=False) is None
    assert modes.open(NODE, FD, may_pass=True) is None
    modes.release(NODE, passed=False)
    assert modes.open(NODE, FD, may_pass=True) is None
    for _ in range(2):
        modes.release(NODE, passed=False)
    assert modes.open(NODE, FD, may_pass=True) is not None


def test_files_have_modes_of_their_own(modes: IoModes) -> None:
    assert modes.open(NODE, FD, may_pass=False) is None
    assert modes.open(OTHER, FD, may_pass=True) is not None


def test_nothing_passes_before_the_kernel_has_agreed() -> None:
    assert IoModes().open(NODE, FD, may_pass=True) is None


@pytest.mark.parametrize("code", [errno.EPERM, errno.ELOOP, errno.ENOTTY])
def test_what_will_never_work_is_not_tried_again(modes: IoModes, kernel: Kernel, code: int) -> None:
    kernel.error = code
    assert modes.open(NODE, FD, may_pass=True) is None
    kernel.error = 0
    assert modes.open(OTHER, FD, may_pass=True) is None


def test_file_that_the_kernel_cannot_take_now_is_cached_and_others_pass(modes: IoModes, kernel: Kernel) -> None:
    kernel.error = errno.ENOMEM
    assert modes.open(NODE, FD, may_pass=True) is None
    kernel.error = 0
    assert modes.open(OTHER, FD, may_pass=True) is not None


def test_file_that_was_given_is_taken_back_even_if_no_other_can_be_given(modes: IoModes, kernel: Kernel) -> None:
    modes.open(NODE, FD, may_pass=True)
    kernel.error = errno.EPERM
    assert modes.open(OTHER, FD, may_pass=True) is None
    modes.release(NODE, passed=True)
    assert not kernel.given


def test_opens_of_a_file_are_never_of_two_kinds(modes: IoModes, kernel: Kernel) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    opens: dict[int, Counter[int | None]] = {NODE: Counter(), OTHER: Counter()}
    for _ in range(3000):
        node = chance.choice((NODE, OTHER))
        held = opens[node]
        if held and chance.random() < 0.55:
            kind = chance.choice(list(held))
            modes.release(node, passed=kind is not None)
            held[kind] -= 1
            opens[node] = held = +held
        else:
            held[modes.open(node, FD, may_pass=chance.random() < 0.5)] += 1
        assert len(held) <= 1, f"{held}: the kernel fails the second kind with EIO"
        assert len(kernel.given) == sum(None not in kinds for kinds in opens.values() if kinds)
