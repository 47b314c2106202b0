"""Are control messages written as they always were, and read back as the same values?"""

from __future__ import annotations

import json
from collections import Counter

import pytest

from overlayfs_demo.events import Action, Event
from overlayfs_demo.mounts.control import protocol
from overlayfs_demo.mounts.control.event_queue import EventQueue
from overlayfs_demo.mounts.control.protocol import (
    Answer,
    Attached,
    Counters,
    Dropped,
    Happened,
    ProtocolError,
    Refused,
    Request,
    WatchRequest,
    WhichAnswer,
    WhichRequest,
)
from overlayfs_demo.overlay.layer_statements import Statement
from overlayfs_demo.overlay.merge import Says
from overlayfs_demo.overlay.provenance import Provenance

COPY_UP = Event(Action.COPY_UP, b"/\xff", 812, 1000, "open", "layer 1 (ADD \N{SNOWMAN})", 1234)
RENAME = Event(Action.RENAME, b"/a", 0, (1 << 32) - 1, "rename", detail="/b")
UPPER = Statement("upper", Says.FILE, True, 0o120777, 3, b"\xff", stored_at=b"x")
BELOW = Statement("layer 1 (a)", Says.WHITEOUT, False, 0o20000, 0, None, "upper", b"/d", b"/d/x", b"d/x")
NOTHING = Statement("layer 0", Says.ABSENT, False)

REQUESTS: dict[str, Request] = {
    r'{"verb": "explain", "path": "/\udcff"}': WhichRequest(b"/\xff"),
    '{"verb": "events", "counters": true}': WatchRequest(counters=True),
    '{"verb": "events", "counters": false}': WatchRequest(counters=False),
}
ANSWERS: dict[str, Answer] = {
    '{"attached": true}': Attached(),
    '{"error": "not a request"}': Refused("not a request"),
    '{"dropped": 12}': Dropped(12),
    '{"counters": {"lookup": 12, "open": 1}}': Counters({"lookup": 12, "open": 1}),
    r'{"time": 1718000000.25, "action": "copy-up", "path": "/\udcff", "pid": 812, "who": "\udcfe", "uid": 1000, '
    r'"call": "open", "layer": "layer 1 (ADD \u2603)", "size": 1234, "detail": ""}': Happened(
        1718000000.25, COPY_UP, "\udcfe"
    ),
    '{"time": 0.0, "action": "rename", "path": "/a", "pid": 0, "who": "", "uid": 4294967295, '
    '"call": "rename", "layer": "", "size": 0, "detail": "/b"}': Happened(0.0, RENAME, ""),
    r'{"path": "/d/x", "layers": ['
    r'{"layer": "upper", "says": "a file", "wins": true, "mode": 41471, "size": 3, "target": "\udcff", '
    r'"hidden_by": null, "hidden_at": null, "deleted_at": null, "stored_at": "x"}, '
    r'{"layer": "layer 1 (a)", "says": "deleted", "wins": false, "mode": 8192, "size": 0, "target": null, '
    r'"hidden_by": "upper", "hidden_at": "/d", "deleted_at": "/d/x", "stored_at": "d/x"}, '
    r'{"layer": "layer 0", "says": "nothing", "wins": false, "mode": null, "size": null, "target": null, '
    r'"hidden_by": null, "hidden_at": null, "deleted_at": null, "stored_at": null}], '
    r'"why": "Comes from upper, the topmost layer that has it; the one in layer 1 (a) is hidden."}': WhichAnswer(
        b"/d/x", Provenance((UPPER, BELOW, NOTHING))
    ),
}


@pytest.mark.parametrize(("line", "message"), {**REQUESTS, **ANSWERS}.items())
def test_message_is_this_line(line: str, message: Request | Answer) -> None:
    assert protocol.encode(message) == line.encode() + b"\n"


@pytest.mark.parametrize(("line", "request_"), REQUESTS.items())
def test_request_is_read_back(line: str, request_: Request) -> None:
    assert protocol.decode_request(line.encode() + b"\n") == request_


@pytest.mark.parametrize(("line", "answer"), ANSWERS.items())
def test_answer_is_read_back(line: str, answer: Answer) -> None:
    assert protocol.decode_answer(line.encode() + b"\n") == answer


def test_every_message_is_pinned() -> None:
    pinned = {type(message) for message in (*REQUESTS.values(), *ANSWERS.values())}
    assert pinned == {*Request.__args__, *Answer.__args__}


def test_counters_need_not_be_mentioned() -> None:
    assert protocol.decode_request(b'{"verb": "events"}') == WatchRequest(counters=False)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"x", "Expecting value"),
        (b"[]", "it is not an object"),
        (b"[" * 60_000, "it is nested too deeply"),
        (b"{}", "verb is missing"),
        (b'{"verb": 1}', "verb is not text"),
        (b'{"verb": "sing"}', "the verbs are events and explain"),
        (b'{"verb": "events", "counters": 1}', "counters is not true or false"),
        (b'{"verb": "explain"}', "path is missing"),
        (b'{"verb": "explain", "path": 1}', "path is not text"),
        (rb'{"verb": "explain", "path": "/\ud800"}', "path is not a valid path"),
        (rb'{"verb": "explain", "path": "/\u0000"}', "path contains a null byte"),
    ],
    ids=str,
)
def test_line_that_is_not_a_request_is_refused(line: bytes, why: str) -> None:
    with pytest.raises(ProtocolError, match=why):
        protocol.decode_request(line)


def test_queue_holds_events_then_what_was_dropped_then_counters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("overlayfs_demo.mounts.control.event_queue._MOST_WAITING", 2)
    queue, asked = EventQueue(), Counter(lookup=5)
    queue.count(asked)
    for _ in range(5):
        queue.put(RENAME)
    asked["lookup"] += 7
    queue.end()
    first, second, *rest = queue
    assert isinstance(first, Happened) and isinstance(second, Happened) and first.event == second.event == RENAME
    assert rest == [Dropped(3), Counters({"lookup": 7})]
    assert json.loads(protocol.encode(rest[1])) == {"counters": {"lookup": 7}}
