"""The trace of a mount: one sentence for what repeats, nothing lost, and in order."""

from __future__ import annotations

from overlayfs_demo.events import Action, Event
from overlayfs_demo.watch.trace import Trace
from tests.conftest import wait_until

WRITE = Event(Action.WRITE, b"/a", 0, 0, "write", size=2)
CHMOD = Event(Action.CHMOD, b"/a", 0, 0, "chmod", detail="0644")


def test_writes_to_one_file_are_one_sentence_and_so_are_equal_events() -> None:
    told: list[str] = []
    trace = Trace(told.append)
    for event in (CHMOD, CHMOD, WRITE, WRITE, WRITE, CHMOD):
        trace.tell(event)
    trace.finish()
    chmod = "kernel set the mode of /a to 0644 in the upper"
    assert told == [f"{chmod} (2 times)", "kernel wrote 6B to /a in the upper", chmod]


def test_an_event_is_told_though_nothing_follows() -> None:
    told: list[str] = []
    Trace(told.append).tell(WRITE)
    wait_until(lambda: told == ["kernel wrote 2B to /a in the upper"], "the sentence")


def test_the_end_is_told_once() -> None:
    told: list[str] = []
    trace = Trace(told.append)
    trace.tell(WRITE)
    trace.finish()
    trace.finish()
    assert len(told) == 1
