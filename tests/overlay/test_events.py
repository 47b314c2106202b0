"""Does every change tell of itself, once?"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable

import pytest

from overlayfs_demo.events import Action, Event, Events
from overlayfs_demo.linux.syscalls import RENAME_EXCHANGE
from overlayfs_demo.overlay import upper_attributes
from tests.builders import WHITEOUT, directory
from tests.contract.engine_subject import Engine
from tests.overlay.conftest import Make

A = Action


def fails(call: Callable[[str], object], path: str) -> None:
    with pytest.raises(OSError):
        call(path)


def make_named(view: Engine, directory: str, name: str) -> None:
    opened = view.open(directory, os.O_TMPFILE | os.O_WRONLY)
    try:
        opened.link(name)
    finally:
        opened.close()


LOWER = {"a": "data", "b": "2", "d": {"x": "1", "e/": None}, "empty/": None, "p/q/deep": "1"}

# Each call, and the events (action and path) that it causes.
CALLS: dict[str, tuple[Callable[[Engine], object], list[tuple[Action, str]]]] = {
    "create": (lambda v: v.open("new", os.O_CREAT | os.O_WRONLY).close(), [(A.CREATE, "/new")]),
    "create over whiteout": (lambda v: v.open("gone", os.O_CREAT | os.O_WRONLY).close(), [(A.CREATE, "/gone")]),
    "create in lower directory": (
        lambda v: v.open("p/q/n", os.O_CREAT | os.O_WRONLY).close(),
        [(A.COPY_UP, "/p"), (A.COPY_UP, "/p/q"), (A.CREATE, "/p/q/n")],
    ),
    "tmpfile": (lambda v: v.open("d", os.O_TMPFILE | os.O_RDWR).close(), [(A.COPY_UP, "/d"), (A.TMPFILE, "/d")]),
    "tmpfile that is named": (lambda v: make_named(v, "", "new"), [(A.TMPFILE, "/"), (A.LINK, "/new")]),
    "mkdir": (lambda v: v.mkdir("new"), [(A.MKDIR, "/new")]),
    "mkdir over whiteout": (lambda v: v.mkdir("gone"), [(A.MKDIR, "/gone")]),
    "mknod": (lambda v: v.mknod("new", stat.S_IFIFO | 0o600), [(A.MKNOD, "/new")]),
    "symlink": (lambda v: v.symlink("x", "new"), [(A.SYMLINK, "/new")]),
    "link of upper": (lambda v: v.link("up", "new"), [(A.LINK, "/new")]),
    "link of lower": (lambda v: v.link("a", "new"), [(A.COPY_UP, "/a"), (A.LINK, "/new")]),
    "unlink of upper": (lambda v: v.unlink("up"), [(A.UNLINK, "/up")]),
    "unlink of lower": (lambda v: v.unlink("a"), [(A.WHITEOUT, "/a")]),
    "unlink below lower": (lambda v: v.unlink("d/x"), [(A.COPY_UP, "/d"), (A.WHITEOUT, "/d/x")]),
    "rmdir of upper": (lambda v: v.rmdir("updir"), [(A.RMDIR, "/updir")]),
    "rmdir of lower": (lambda v: v.rmdir("empty"), [(A.WHITEOUT, "/empty")]),
    "rename of upper": (lambda v: v.rename("up", "new"), [(A.RENAME, "/up")]),
    "rename of lower": (lambda v: v.rename("a", "new"), [(A.COPY_UP, "/a"), (A.RENAME, "/a")]),
    "rename of lower directory": (
        lambda v: v.rename("d", "new"),
        [(A.COPY_UP, "/d"), (A.REDIRECT, "/d"), (A.RENAME, "/d")],
    ),
    "exchange": (lambda v: v.rename("a", "up", RENAME_EXCHANGE), [(A.COPY_UP, "/a"), (A.EXCHANGE, "/a")]),
    "append to lower": (lambda v: v.append("a", b"more"), [(A.COPY_UP, "/a"), (A.WRITE, "/a")]),
    "append to upper": (lambda v: v.append("up", b"more"), [(A.WRITE, "/up")]),
    "truncating open": (
        lambda v: v.open("a", os.O_WRONLY | os.O_TRUNC).close(),
        [(A.COPY_UP, "/a"), (A.TRUNCATE, "/a")],
    ),
    "truncate": (lambda v: v.truncate("a", 2), [(A.COPY_UP, "/a"), (A.TRUNCATE, "/a")]),
    "chmod": (lambda v: v.chmod("a", 0o600), [(A.COPY_UP, "/a"), (A.CHMOD, "/a")]),
    "chmod of directory": (lambda v: v.chmod("d", 0o700), [(A.COPY_UP, "/d"), (A.CHMOD, "/d")]),
    "chown": (lambda v: v.chown("up", 1, 1), [(A.CHOWN, "/up")]),
    "utime": (lambda v: v.utime("up", 1, 1), [(A.UTIMENS, "/up")]),
    "setxattr": (lambda v: v.set_xattr("up", "user.k", b""), [(A.SETXATTR, "/up")]),
    "removexattr": (lambda v: v.remove_xattr("up", "user.own"), [(A.REMOVEXATTR, "/up")]),
    "reading": (lambda v: (v.read("a"), v.names("d"), v.xattrs("a"), v.stat("d/x")), []),
    "failing": (lambda v: fails(v.rmdir, "d"), []),
}


@pytest.fixture
def view(overlaid: Make) -> Engine:
    made = overlaid(LOWER | {"gone": "1"}, upper={"up": "1", "updir/": None, "gone": WHITEOUT})
    os.setxattr(made.upper("up"), "user.own", b"")
    return made


@pytest.mark.parametrize("call", CALLS)
def test_each_mutation_is_one_event(view: Engine, call: str) -> None:
    act, expected = CALLS[call]
    seen: list[Event] = []
    view.overlay.events.attach(seen.append)
    act(view)
    assert [(event.action, os.fsdecode(event.path)) for event in seen] == expected
    assert {(event.pid, event.uid, event.call) for event in seen} <= {(os.getpid(), 0, "test")}


def test_copy_up_tells_layer_and_bytes(view: Engine) -> None:
    seen: list[Event] = []
    view.overlay.events.attach(seen.append)
    view.append("a", b"more")
    view.truncate("b", 0)
    copied, written = seen[0], seen[1]
    assert (copied.layer, copied.size) == ("layer 1 (layer0)", 4)
    assert written.size == 4
    assert (seen[2].action, seen[2].size) == (Action.COPY_UP, 0)


def test_truncating_open_copies_no_data(view: Engine) -> None:
    seen: list[Event] = []
    view.overlay.events.attach(seen.append)
    view.open("a", os.O_WRONLY | os.O_TRUNC).close()
    assert [(event.action, event.size) for event in seen] == [(Action.COPY_UP, 0), (Action.TRUNCATE, 0)]


def test_whiteout_tells_what_it_hides(overlaid: Make) -> None:
    view = overlaid({"a": "1"}, {"a": "2"}, {})
    seen: list[Event] = []
    view.overlay.events.attach(seen.append)
    view.unlink("a")
    assert seen[0].layer == "layer 2 (layer1)"


def test_rename_tells_both_names(view: Engine) -> None:
    seen: list[Event] = []
    view.overlay.events.attach(seen.append)
    view.rename("up", "updir/new")
    assert (seen[0].path, seen[0].detail) == (b"/up", "/updir/new")


def test_without_a_listener_no_event_is_built(view: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> Event:
        pytest.fail("an event was built for nobody")

    monkeypatch.setattr(upper_attributes, "Event", refuse)
    for call in ("create", "link of upper", "unlink below lower", "chmod of directory", "append to lower"):
        if view.exists("new"):
            view.unlink("new")
        CALLS[call][0](view)


def test_listener_can_be_detached() -> None:
    events = Events()
    first: list[Event] = []
    second: list[Event] = []
    detach = events.attach(first.append)
    events.attach(second.append)
    event = Event(Action.CREATE, b"/a", 1, 0, "open")
    events.emit(event)
    detach()
    detach()
    events.emit(event)
    assert (len(first), len(second)) == (1, 2)
    assert events.listening


def test_directory_replaced_by_rename_is_told_as_opaque(overlaid: Make) -> None:
    view = overlaid({"src/a": "1", "dst": directory({"x": "1"})}, upper={"dst": {"x": WHITEOUT}})
    seen: list[Event] = []
    view.overlay.events.attach(seen.append)
    view.rename("src", "dst")
    assert [event.action for event in seen] == [A.COPY_UP, A.REDIRECT, A.OPAQUE, A.RENAME]
