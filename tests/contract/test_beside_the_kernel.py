"""Where is our overlay right and the kernel's, as it comes, is not?

Each fact holds the two answers side by side, to the same commands. (The contract has what is alike.)
"""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from tests import builders
from tests.builders import WHITEOUT, hardlink
from tests.contract.conftest import why_unavailable
from tests.places import Place, run, set_up


class Answers(NamedTuple):
    """To one question, put to both."""

    kernel: object
    ours: object


def mount(who: str, place: Place, options: str | None = None, view: Path | None = None) -> tuple[int, str]:
    """Mount with the kernel's default settings, or with ours: the exit status, and what was said."""
    words = ("mount", "-t", "overlay", "overlay") if who == "kernel" else ("overlayfs-demo", "mount")
    done = run(*words, "-o", options or place.options, view or place.view)
    return done.returncode, done.stderr


@contextmanager
def mounted(who: str, place: Place) -> Iterator[Path]:
    assert mount(who, place) == (0, "")
    yield place.view
    assert run("umount", place.view).returncode == 0


Both = Callable[[Callable[[str, Place], object]], Answers]


@pytest.fixture
def both(place: Place) -> Both:
    """Put a question twice, each time about fresh directories."""
    for kind in ("kernel", "kernel-front"):
        if problem := why_unavailable(kind):
            pytest.skip(problem)

    def ask(question: Callable[[str, Place], object]) -> Answers:
        answers = []
        for who in Answers._fields:
            (place / who).mkdir()
            answers.append(question(who, set_up(place / who)))
        return Answers(*answers)

    return ask


def test_a_reader_from_before_the_copy_up_sees_the_new_data(both: Both) -> None:
    """The kernel's does, too, since Linux 4.19."""

    def question(who: str, place: Place) -> bytes:
        with mounted(who, place) as view, (view / "motd").open("rb", buffering=0) as reader:
            (view / "motd").write_text("HELLO\n")
            return reader.read()

    assert both(question) == Answers(kernel=b"HELLO\n", ours=b"HELLO\n")


def test_a_mapping_from_before_the_copy_up_sees_the_new_data(both: Both) -> None:
    def question(who: str, place: Place) -> bytes:
        with mounted(who, place) as view:
            with (view / "motd").open("rb") as reader:
                mapping = mmap.mmap(reader.fileno(), 0, prot=mmap.PROT_READ)
            with mapping:
                (view / "motd").write_text("HELLO\n")
                return mapping[:]

    assert both(question) == Answers(kernel=b"hello\n", ours=b"HELLO\n")


def test_hard_links_stay_together_by_default(both: Both) -> None:
    def question(who: str, place: Place) -> tuple[str, int]:
        builders.fill(os.fsencode(place / "bottom"), {"one": "before", "two": hardlink("one")})
        with mounted(who, place) as view:
            (view / "one").write_text("after")
            return (view / "two").read_text(), (view / "one").stat().st_nlink

    assert both(question) == Answers(kernel=("before", 1), ours=("after", 2))


def test_a_stray_whiteout_is_never_listed(both: Both) -> None:
    def question(who: str, place: Place) -> tuple[list[str], bool]:
        builders.fill(os.fsencode(place / "top"), {"alone": {"stray": WHITEOUT}})
        with mounted(who, place) as view:
            return os.listdir(view / "alone"), (view / "alone/stray").exists()

    assert both(question) == Answers(kernel=(["stray"], False), ours=([], False))


def test_a_directory_with_nothing_but_a_stray_whiteout_can_be_removed(both: Both) -> None:
    def question(who: str, place: Place) -> str:
        builders.fill(os.fsencode(place / "upper"), {"alone": {"stray": WHITEOUT}})
        with mounted(who, place) as view:
            try:
                (view / "alone").rmdir()
            except OSError as error:
                return errno.errorcode[error.errno or 0]
            return "removed"

    assert both(question) == Answers(kernel="ENOTEMPTY", ours="removed")


def test_a_missing_lower_is_named(both: Both) -> None:
    def question(who: str, place: Place) -> tuple[bool, bool]:
        status, said = mount(who, place, place.options.replace("bottom", "nowhere"))
        return status != 0, str(place / "nowhere") in said

    assert both(question) == Answers(kernel=(True, False), ours=(True, True))


def test_a_second_mount_of_one_upper_is_refused(both: Both) -> None:
    def question(who: str, place: Place) -> tuple[bool, bool]:
        second = place / "second"
        second.mkdir()
        with mounted(who, place):
            status, said = mount(who, place, view=second)
            if status == 0:
                run("umount", second)
            return status != 0, str(place / "upper") in said

    assert both(question) == Answers(kernel=(False, False), ours=(True, True))


def test_an_upper_over_another_stack_is_noticed(both: Both) -> None:
    def question(who: str, place: Place) -> tuple[int, bool]:
        (place / "other").mkdir()
        with mounted(who, place) as view:
            (view / "motd").unlink()
        status, said = mount(who, place, place.options.replace("bottom", "other"))
        return status, all(str(place / name) in said for name in ("upper", "bottom", "other"))

    assert both(question) == Answers(kernel=(0, False), ours=(0, True))
