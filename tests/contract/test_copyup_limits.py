"""Is a copy-up that is over a limit refused, and nothing else?"""

from __future__ import annotations

import errno
import os
from contextlib import AbstractContextManager

import pytest

from tests import builders
from tests.builders import hardlink
from tests.contract.conftest import Mount, why_unavailable
from tests.contract.marks import SUBJECTS
from tests.contract.subjects import Subject

LIMIT = 1000
BIG = "x" * (LIMIT + 1)
JUST = "y" * LIMIT


@pytest.fixture(params=[one for one in SUBJECTS if one != "kernel"])
def kind(request: pytest.FixtureRequest) -> str:
    """The kernel's overlayfs has no such limits."""
    if problem := why_unavailable(request.param):
        pytest.skip(problem)
    return str(request.param)


@pytest.fixture
def limited(mounted: Mount) -> Subject:
    view = mounted({"d/big": BIG, "d/just": JUST, "top/": None}, copyup_max=LIMIT)
    assert isinstance(view, Subject)
    return view


def is_untouched(view: Subject) -> bool:
    """Nothing stands in the upper, or is left in the work directory, and the lower's file is read."""
    work = view.layers.work
    assert work is not None and view.layers.upper is not None
    left = [os.listdir(work / name) for name in os.listdir(work)]
    return not any(left) and set(builders.tree(view.layers.upper)) <= {b"", b"d"} and view.read("d/big") == BIG.encode()


def refused() -> AbstractContextManager[pytest.ExceptionInfo[OSError]]:
    return pytest.raises(OSError, match=os.strerror(errno.EDQUOT))


def test_opening_for_append_is_refused_and_leaves_nothing(limited: Subject) -> None:
    with refused() as caught:
        limited.open("d/big", os.O_WRONLY | os.O_APPEND)
    assert caught.value.errno == errno.EDQUOT
    assert is_untouched(limited)


def test_changing_metadata_is_refused_where_it_copies_data(limited: Subject) -> None:
    with refused():
        limited.chmod("d/big", 0o600)
    assert is_untouched(limited)


def test_renaming_a_file_is_refused_for_it_copies_data(limited: Subject) -> None:
    with refused():
        limited.rename("d/big", "top/big")
    assert limited.read("d/big") == BIG.encode()
    assert not limited.upper("top/big").exists()


def test_a_file_of_just_the_limit_is_copied(limited: Subject) -> None:
    opened = limited.open("d/just", os.O_WRONLY)
    opened.write(b"+", LIMIT)
    opened.close()
    assert limited.read("d/just") == JUST.encode() + b"+"


def test_what_is_in_the_upper_may_grow_beyond_it(limited: Subject) -> None:
    for offset in (0, LIMIT):
        opened = limited.open("d/just", os.O_WRONLY)
        opened.write(JUST.encode(), offset)
        opened.close()
    assert limited.stat("d/just").size == 2 * LIMIT


def test_opening_with_truncation_copies_no_data_and_is_allowed(limited: Subject) -> None:
    opened = limited.open("d/big", os.O_WRONLY | os.O_TRUNC)
    opened.write(b"new", 0)
    opened.close()
    assert limited.read("d/big") == b"new"


def test_deleting_is_allowed(limited: Subject) -> None:
    limited.unlink("d/big")
    assert limited.names("d") == [b"just"]


def test_renaming_a_directory_is_allowed(limited: Subject) -> None:
    limited.rename("d", "top/moved")
    assert limited.read("top/moved/big") == BIG.encode()


def test_a_copy_of_metadata_is_under_any_limit_but_not_the_data_after_it(mounted: Mount) -> None:
    view = mounted({"big": BIG}, metacopy=True, copyup_max=LIMIT)
    view.chmod("big", 0o600)
    assert view.stat("big").mode & 0o777 == 0o600
    with refused():
        view.open("big", os.O_WRONLY)
    assert view.read("big") == BIG.encode()
    opened = view.open("big", os.O_WRONLY | os.O_TRUNC)
    opened.close()
    assert view.read("big") == b""


def test_a_file_that_leaves_its_data_below_moves_under_any_limit(mounted: Mount) -> None:
    view = mounted(
        {"big": BIG, "other": BIG, "one": BIG, "two": hardlink("one"), "d/": None}, metacopy=True, copyup_max=LIMIT
    )
    view.rename("big", "d/big")
    view.link("other", "d/other")
    view.unlink("one")
    assert view.read("d/big") == view.read("d/other") == view.read("two") == BIG.encode()


def test_a_hard_linked_file_is_refused_whole(mounted: Mount) -> None:
    view = mounted({"one": BIG, "two": hardlink("one")}, copyup_max=LIMIT)
    with refused():
        view.open("one", os.O_WRONLY)
    assert view.read("two") == BIG.encode()


def test_a_warning_refuses_nothing(mounted: Mount) -> None:
    view = mounted({"big": BIG}, copyup_warn=LIMIT)
    view.chmod("big", 0o600)
    assert view.stat("big").mode & 0o777 == 0o600
