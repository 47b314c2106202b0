"""Does a client see its own titles in what a daemon says, and everything else unchanged?"""

from __future__ import annotations

import pytest

from overlayfs_demo.events import Action, Event
from overlayfs_demo.mounts.control.protocol import Dropped, Happened, WhichAnswer
from overlayfs_demo.mounts.control.titles import relabelled, titled, titled_record
from overlayfs_demo.mounts.registry import MountRecord
from overlayfs_demo.overlay.layer_statements import Statement
from overlayfs_demo.overlay.merge import Says
from overlayfs_demo.overlay.provenance import Provenance

TITLES = ("ADD base", "", "RUN make")


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("layer 1 (diff)", "layer 1 (ADD base)"),
        ("layer 2 (diff)", "layer 2 (diff)"),
        ("layer 3 (a (b)\n)", "layer 3 (RUN make)"),
        ("layer 4 (diff)", "layer 4 (diff)"),
        ("layer 0 (diff)", "layer 0 (diff)"),
        ("layer 1", "layer 1"),
        ("upper", "upper"),
        ("", ""),
        (f"layer {'9' * 5000} (diff)", f"layer {'9' * 5000} (diff)"),
    ],
)
def test_a_label_takes_the_title_of_its_number(given: str, shown: str) -> None:
    assert relabelled(given, TITLES) == shown


def test_a_long_title_is_cut_as_the_daemon_does() -> None:
    assert relabelled("layer 1 (diff)", ["x" * 60]) == f"layer 1 ({'x' * 39}…)"


def test_events_and_answers_carry_the_titles() -> None:
    event = Event(Action.COPY_UP, b"/a", 1, 0, "open", "layer 3 (diff)")
    told = titled(Happened(0.0, event, "sh"), TITLES)
    assert isinstance(told, Happened) and told.event == event._replace(layer="layer 3 (RUN make)")
    below = Statement("layer 1 (diff)", Says.FILE, wins=False, mode=0o100644, size=1, hidden_by="layer 3 (diff)")
    answer = titled(WhichAnswer(b"/a", Provenance((below,))), TITLES)
    assert isinstance(answer, WhichAnswer)
    assert [(said.layer, said.hidden_by) for said in answer.provenance.statements] == [
        ("layer 1 (ADD base)", "layer 3 (RUN make)")
    ]
    assert titled(Dropped(3), TITLES) == Dropped(3)


def test_a_record_lists_titles_from_the_top_down() -> None:
    record = MountRecord("/v", 1, "kernel", ["/3", "/2", "/1"], None, ["", "two", ""], [], [], "", 1)
    labels = ["layer 3 (3)", "layer 2 (2)", "layer 1 (1)"]
    shown = titled_record(record._replace(labels=labels), TITLES)
    assert shown.titles == ["RUN make", "two", "ADD base"]
    assert shown.labels == ["layer 3 (RUN make)", "layer 2 (2)", "layer 1 (ADD base)"]
    assert titled_record(record._replace(labels=labels), (*TITLES, "more")).titles == shown.titles
    assert titled_record(record._replace(titles=[]), ()).titles == ["", "", ""]
