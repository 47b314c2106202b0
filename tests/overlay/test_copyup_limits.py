"""Is everyone told of a copy-up that is over a limit: the log, and who listens?"""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from overlayfs_demo.events import Action, Event, Events
from overlayfs_demo.overlay.factory import open_overlay
from overlayfs_demo.overlay.stack import Stack
from overlayfs_demo.overlay.types import Caller
from tests import builders

SIZE = 5000


def open_for_writing(base: Path, **limits: int) -> tuple[int, list[Event]]:
    """The errno of the attempt, and what was told."""
    [lower] = builders.layers(base, {"big": "x" * SIZE})
    builders.directories(base, "upper", "work")
    events = Events()
    told: list[Event] = []
    events.attach(told.append)
    stack = Stack(
        (os.fsencode(lower),),
        os.fsencode(base / "upper"),
        os.fsencode(base / "work"),
        user_xattrs=os.geteuid() != 0,
        **limits,  # type: ignore[arg-type]  # limits are fields of Stack
    )
    overlay = open_overlay(stack, events)
    caller = Caller(os.geteuid(), os.getegid(), os.getpid(), 0o022, "test")
    try:
        node = overlay.walk(b"/big")
        overlay.files.release(node, overlay.open(node, os.O_WRONLY, caller))  # type: ignore[arg-type]  # it is a file
    except OSError as error:
        return error.errno or 0, told
    finally:
        overlay.close()
    return 0, told


def test_a_refusal_names_path_size_limit_and_remedy(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    code, told = open_for_writing(tmp_path, copyup_max=SIZE - 1, copyup_warn=1)
    assert code == errno.EDQUOT
    [event] = told
    assert (event.action, event.path, event.size, event.detail) == (Action.REFUSE, b"/big", SIZE, "copyup_max=4999")
    [record] = caplog.records
    assert record.levelname == "WARNING"
    for words in ("'/big'", "5000 bytes", "copyup_max=4999", "mount with a higher copyup_max"):
        assert words in record.getMessage()


def test_a_warning_comes_before_the_copy_up(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    code, told = open_for_writing(tmp_path, copyup_warn=SIZE - 1)
    assert code == 0
    assert [(one.action, one.size) for one in told] == [(Action.WARN, SIZE), (Action.COPY_UP, SIZE)]
    [record] = caplog.records
    assert "exceed copyup_warn=4999" in record.getMessage()


def test_just_the_limit_is_told_to_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    code, told = open_for_writing(tmp_path, copyup_max=SIZE, copyup_warn=SIZE)
    assert code == 0
    assert [one.action for one in told] == [Action.COPY_UP]
    assert not caplog.records
