"""Is every name listed once, as it is now, however much of the listing was made ready before?"""

from __future__ import annotations

import errno
import stat
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from overlayfs_demo.fronts.kernel import readdir
from overlayfs_demo.linux import syscalls
from tests.builders import WHITEOUT, Content, device, directory, fifo, file, symlink
from tests.conftest import PATIENCE
from tests.contract.engine_subject import Engine
from tests.fronts.kernel.reader import DOTS, LONG, Asked, Mount, in_view, names_of
from tests.overlay.conftest import Make

NAMES = [b"file-%03d" % number for number in range(200)]
MANY: Content = {name: name.decode() for name in NAMES}
# A tree in which every level has something to walk on to.
TREE: Content = {"a/x/1": "1", "a/y/2": "2", "b/3": "3", "c/z/4": "4", "top": "0"}
OF_ALL_KINDS: Content = {
    "file": file("12", mode=0o4755, uid=7, gid=8),
    "link": symlink("file"),
    "pipe": fifo(),
    "device": device(8, 300),
    "sub/x": "1",
    "long" * 60: "3",
}
# Where the names of a directory `d`, and a file beside it, may stand: the lowers, and the upper.
PLACES: dict[str, tuple[tuple[Content, ...], Content]] = {
    "one lower": (({"d/a": "1", "d/b": "2", "d/s/x": "3", "f": "4"},), {}),
    "two lowers": (({"d/a": "1", "d/s/x": "3", "f": "4"}, {"d/b": "2", "d/s/y": "5"}), {}),
    "upper and lower": (({"d/a": "1", "d/s/x": "3", "f": "4"},), {"d/b": "2"}),
    "upper": (({},), {"d/a": "1", "d/b": "2", "d/s/x": "3", "f": "4"}),
}


def replace(view: Engine) -> None:
    view.unlink("d/a")
    view.mkdir("d/a")


CHANGES: dict[str, Callable[[Engine], None]] = {
    "create": lambda view: view.write("d/new", b"1"),
    "mkdir": lambda view: view.mkdir("d/new"),
    "symlink": lambda view: view.symlink("a", "d/new"),
    "link": lambda view: view.link("d/a", "d/new"),
    "unlink a": lambda view: view.unlink("d/a"),
    "unlink b": lambda view: view.unlink("d/b"),
    "append a": lambda view: view.append("d/a", b"more"),
    "append b": lambda view: view.append("d/b", b"more"),
    "chmod": lambda view: view.chmod("d/a", 0o600),
    "chmod of a directory": lambda view: view.chmod("d/s", 0o700),
    "append below": lambda view: view.append("d/s/x", b"more"),
    "rename": lambda view: view.rename("d/a", "d/z"),
    "rename over": lambda view: view.rename("d/a", "d/b"),
    "move in": lambda view: view.rename("f", "d/new"),
    "exchange": lambda view: view.rename("f", "d/a", syscalls.RENAME_EXCHANGE),
    "move out": lambda view: view.rename("d/s", "s"),
    "replace": replace,
}


def set_clock(monkeypatch: pytest.MonkeyPatch, now: float) -> None:
    monkeypatch.setattr(readdir, "time", SimpleNamespace(monotonic=lambda: now))


def walk(mount: Mount, path: str = "") -> list[bytes]:
    """Read a tree as find(1) does: a directory to its end, then its subdirectories; their paths in this order."""
    seen = [f"/{path}".encode()]
    entries = mount.read(path)
    for entry in entries:
        if entry.kind == stat.S_IFDIR and entry.name not in DOTS:
            seen += walk(mount, f"{path}/{entry.name.decode()}".lstrip("/"))
    return seen


# --- listing ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("plus", "size", "at_once"), [(True, 640, 4), (True, 4096, 25), (False, 128, 4)])
def test_small_portions_give_every_name_once(overlaid: Make, plus: bool, size: int, at_once: int) -> None:
    upper = {"d/upper": "1", "d/file-001": WHITEOUT}
    view = overlaid({"d": MANY}, {"d/file-000": WHITEOUT, "d/lower": "1"}, upper=upper)
    reader = Mount(view).begin("d", plus=plus, size=size)
    portions = list(iter(reader.portion, []))
    found = [entry for portion in portions for entry in portion]
    assert {len(portion) for portion in portions[:-1]} == {at_once}
    expected = set(NAMES) - {b"file-000", b"file-001"} | {b"lower", b"upper"}
    assert sorted(names_of(found)) == sorted(expected)
    assert [entry.name for entry in found[:2]] == list(DOTS)
    assert len(found) == len(expected) + 2


@pytest.mark.parametrize("plus", [True, False])
def test_offsets_rise_from_entry_to_entry(overlaid: Make, plus: bool) -> None:
    entries = Mount(overlaid(MANY)).read(plus=plus)
    assert [entry.offset for entry in entries] == list(range(1, len(NAMES) + 3))


def test_entry_is_what_lookup_answers(overlaid: Make) -> None:
    view = overlaid({"d": directory(OF_ALL_KINDS)}, {"d/sub/y": "2"}, upper={"d/in upper": "1"})
    assert Mount(view, timeout=0).attrs("d") == in_view(view, "d")


def test_ids_are_those_that_the_nodes_are_known_by(overlaid: Make) -> None:
    view = overlaid(TREE)
    mount = Mount(view)
    for entry in mount.read():
        if entry.name not in DOTS:
            assert mount.nodes.node(entry.nodeid) is view.node(entry.name)


@pytest.mark.parametrize("plus", [True, False])
def test_kinds_and_inode_numbers_are_those_of_stat(overlaid: Make, plus: bool) -> None:
    view = overlaid({"d": directory(OF_ALL_KINDS)}, {"d/sub/y": "2"}, upper={"d/in upper": "1"})
    for entry in Mount(view).read("d", plus=plus)[2:]:
        status = view.stat(b"d/" + entry.name)
        assert (entry.kind, entry.ino) == (stat.S_IFMT(status.mode), status.ino)


@pytest.mark.parametrize("plus", [True, False])
def test_dots_are_the_directory_and_the_one_above(overlaid: Make, plus: bool) -> None:
    view = overlaid(TREE)
    mount = Mount(view)
    for path, above in (("a/x", "a"), ("a", ""), ("", "")):
        dots = mount.read(path, plus=plus)[:2]
        assert [(dot.name, dot.ino) for dot in dots] == [(b".", view.stat(path).ino), (b"..", view.stat(above).ino)]
        assert {(dot.kind, dot.nodeid) for dot in dots} == {(stat.S_IFDIR, 0)}


@pytest.mark.parametrize("timeout", [0, LONG])
def test_each_entry_counts_one_lookup(overlaid: Make, timeout: float) -> None:
    mount = Mount(overlaid(TREE), timeout)
    walk(mount)
    # A directory stays because of what is in it.
    ids = {entry.nodeid for entry in mount.read("a/x") if entry.nodeid and entry.kind != stat.S_IFDIR}
    assert ids
    for nodeid in ids:
        mount.nodes.forget(nodeid, 1)
        assert mount.nodes.node(nodeid)
        mount.nodes.forget(nodeid, 1)
        with pytest.raises(KeyError):
            mount.nodes.node(nodeid)


def test_lookup_is_counted_only_for_what_is_told(overlaid: Make) -> None:
    mount = Mount(overlaid(MANY))
    told = names_of(mount.begin(size=640).portion())
    assert len(mount.nodes) == 1 + len(told)


def test_name_that_is_gone_is_skipped(overlaid: Make) -> None:
    view = overlaid(MANY)
    reader = Mount(view).begin(size=640)
    first = names_of(reader.portion())
    gone = next(name for name in NAMES if name not in first)
    view.unlink(gone)
    assert sorted([*first, *names_of(reader.rest())]) == [name for name in NAMES if name != gone]


def test_reading_goes_on_behind_many_names_that_are_gone(overlaid: Make) -> None:
    view = overlaid(MANY)
    mount = Mount(view, timeout=0)
    order = names_of(mount.read())
    reader = mount.begin(size=640)
    read = names_of(reader.portion())
    for name in order[len(read) : len(read) + 10]:
        view.unlink(name)
    assert names_of(reader.rest()) == order[len(read) + 10 :]


def test_removed_directory_has_only_dots(overlaid: Make) -> None:
    view = overlaid({"d/": None})
    mount = Mount(view)
    mount.read()
    reader = mount.begin("d")
    view.rmdir("d")
    assert [entry.name for entry in reader.rest()] == list(DOTS)


@pytest.mark.parametrize("plus", [False, True])
@pytest.mark.parametrize("content", [{}, {"a": ""}, {f"{number:03}": "" for number in range(100)}], ids=len)
def test_the_portion_with_the_last_name_says_so(overlaid: Make, content: dict[str, str], plus: bool) -> None:
    reader = Mount(overlaid(content)).begin(plus=plus, size=1024)
    entries = []
    while not reader.had_last:
        entries += reader.portion()
    assert sorted(names_of(entries)) == sorted(map(str.encode, content))
    assert reader.portion() == []


# --- two readers --------------------------------------------------------------------------------------


def change_some(view: Engine, order: list[bytes]) -> None:
    """Remove a name that was read and one that was not, and make a new one."""
    view.unlink(order[0])
    view.unlink(order[-1])
    view.write("new", b"1")


@pytest.mark.parametrize("plus", [True, False])
def test_reader_goes_on_where_it_was_when_another_begins(overlaid: Make, plus: bool) -> None:
    view = overlaid(MANY)
    mount = Mount(view)
    order = names_of(mount.read())
    first = mount.begin(plus=plus, size=640)
    read = names_of(first.portion())
    assert read == order[: len(read)]
    change_some(view, order)
    # The second one sees the changes; the first goes on in what the second has read.
    assert names_of(mount.read(plus=plus)) == [*order[1:-1], b"new"]
    assert names_of(first.rest()) == [*order[len(read) : -1], b"new"]


def test_reader_goes_on_where_it_was_when_its_directory_is_read_ahead(overlaid: Make) -> None:
    view = overlaid({"d": MANY, "x": "1"})
    mount = Mount(view)
    order = names_of(mount.begin("d").rest())
    first = mount.begin("d", size=640)
    read = names_of(first.portion())
    view.unlink(b"d/" + order[0])
    view.unlink(b"d/" + order[-1])
    view.write("d/new", b"1")
    mount.read()
    assert names_of(first.rest()) == [*order[len(read) : -1], b"new"]
    assert names_of(mount.read("d")) == [*order[1:-1], b"new"]


def test_readers_in_turn_get_all_names_each(overlaid: Make) -> None:
    mount = Mount(overlaid({"d": MANY}))
    mount.read()
    readers = [mount.begin("d", size=640), mount.begin("d", size=1024, plus=False)]
    found: list[list[bytes]] = [[], []]
    for _ in NAMES:
        for reader, names in zip(readers, found, strict=True):
            names += names_of(reader.portion())
    assert found[0] == found[1]
    assert sorted(found[0]) == NAMES


def test_what_was_read_ahead_is_for_one_reader(overlaid: Make) -> None:
    view = overlaid({"d/a": "1", "d/b": "2"})
    mount, asked = Mount(view), Asked(view)
    mount.read()
    first = mount.attrs("d")
    assert asked.names == [b"/", b"/d"]
    assert mount.attrs("d") == first
    assert asked.names == [b"/", b"/d", b"/d"]


# --- read-ahead ---------------------------------------------------------------------------------------


def test_first_subdirectory_is_made_ready(overlaid: Make) -> None:
    view = overlaid({"d": MANY})
    mount, asked = Mount(view), Asked(view)
    mount.read()
    assert asked.names == [b"/", b"/d"]
    asked.lookups.clear()
    mount.begin("d").portion()
    assert asked.names == [b"/", b"/d"]
    assert asked.lookups == []


def test_only_as_many_names_are_looked_up_before_as_a_reply_may_hold(overlaid: Make) -> None:
    view = overlaid({"d": MANY})
    mount, asked = Mount(view), Asked(view)
    mount.read()
    assert asked.lookups == [1, 150]


def test_tree_is_walked_in_the_order_in_which_it_is_made_ready(overlaid: Make) -> None:
    view = overlaid(TREE, {"a/x/5": "5", "d/e/f/g": "6"})
    mount, asked = Mount(view), Asked(view)
    walked = walk(mount)
    assert set(walked) == {b"/", b"/a", b"/a/x", b"/a/y", b"/b", b"/c", b"/c/z", b"/d", b"/d/e", b"/d/e/f"}
    # Each was read but once, so each but the first was ready when it was asked for.
    assert asked.names == walked


def test_next_one_is_ready_before_it_is_asked_for(overlaid: Make) -> None:
    view = overlaid({"a/x": "1", "b/y": "1"})
    mount, asked = Mount(view), Asked(view)
    order = names_of(mount.read())
    for number, name in enumerate(order, 2):
        assert len(asked.names) == number
        assert asked.names[-1] == b"/" + name
        mount.read(name.decode())
    assert len(asked.names) == 3


@pytest.mark.parametrize("size", [640, 4096, 1 << 17])
def test_listing_that_was_made_ready_is_that_without(overlaid: Make, size: int) -> None:
    everything: dict[Any, Any] = {**MANY, **OF_ALL_KINDS}
    view = overlaid({"d": directory(everything)}, {"d/sub/y": "2"})
    plain = Mount(view, timeout=0)
    expected = plain.attrs("d")
    for nodeid in plain.nodes.ids():
        plain.nodes.forget(nodeid, 2)  # One front at a time shows a node.
    ahead, asked = Mount(view), Asked(view)
    ahead.read()
    assert asked.names == [b"/", b"/d"]
    found = ahead.read("d", size=size)
    assert asked.names.count(b"/d") == 1
    assert {entry.name: entry.attrs and entry.attrs._replace(atime_ns=0) for entry in found[2:]} == expected
    assert len(found) == len(expected) + 2
    for entry in found[2:]:
        assert ahead.nodes.node(entry.nodeid) is view.node(b"d/" + entry.name)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("change", CHANGES)
def test_change_after_read_ahead_is_shown(overlaid: Make, place: str, change: str) -> None:
    lowers, upper = PLACES[place]
    view = overlaid(*lowers, upper=upper)
    mount, asked = Mount(view), Asked(view)
    before = in_view(view, "d")
    mount.read()
    assert asked.names[-1] == b"/d"
    CHANGES[change](view)
    after = in_view(view, "d")
    if change != "append below":
        assert after != before
    assert mount.attrs("d") == after


@pytest.mark.parametrize("place", PLACES)
def test_change_between_the_portions_of_what_was_read_ahead_is_shown(overlaid: Make, place: str) -> None:
    lowers, upper = PLACES[place]
    view = overlaid({"d": MANY}, *lowers, upper=upper)
    mount = Mount(view)
    mount.read()
    reader = mount.begin("d", size=640)
    told = names_of(reader.portion())
    untold = next(name for name in view.names("d") if name not in told and name.startswith(b"file-"))
    view.append(b"d/" + untold, b"more")
    (entry,) = (entry for entry in reader.rest() if entry.name == untold)
    assert entry.attrs
    assert entry.attrs.size == view.stat(b"d/" + untold).size > len("more")


@pytest.mark.parametrize(("number", "ready"), [(1000, True), (1001, False)])
def test_directory_with_more_than_a_thousand_names_is_not_read_ahead(overlaid: Make, number: int, ready: bool) -> None:
    names = [f"{count:04}" for count in range(number)]
    view = overlaid({"d": dict.fromkeys(names, "")})
    mount, asked = Mount(view), Asked(view)
    mount.read()
    asked.names.clear()
    assert sorted(names_of(mount.read("d", size=1 << 16))) == [name.encode() for name in names]
    assert asked.names == ([] if ready else [b"/d"])


@pytest.mark.parametrize(("timeout", "ready"), [(0, False), (0.5, False), (1, True), (LONG, True)])
def test_nothing_is_read_ahead_that_the_kernel_may_not_trust(overlaid: Make, timeout: float, ready: bool) -> None:
    view = overlaid(TREE)
    mount, asked = Mount(view, timeout), Asked(view)
    mount.read()
    assert len(asked.names) == (2 if ready else 1)


@pytest.mark.parametrize(("age", "fresh"), [(0.0, True), (1.0, True), (1.001, False), (3600.0, False)])
def test_what_is_older_than_its_second_is_read_anew(
    overlaid: Make, monkeypatch: pytest.MonkeyPatch, age: float, fresh: bool
) -> None:
    view = overlaid({"d/a": "1", "d/b": "2"})
    mount, asked = Mount(view), Asked(view)
    set_clock(monkeypatch, 1000.0)
    mount.read()
    set_clock(monkeypatch, 1000.0 + age)
    asked.names.clear()
    assert mount.attrs("d") == in_view(view, "d")
    assert asked.names.count(b"/d") == (1 if fresh else 2)


def test_change_made_behind_the_view_is_seen_when_its_second_is_over(
    overlaid: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    view = overlaid({"d/a": "1"})
    mount = Mount(view)
    set_clock(monkeypatch, 1000.0)
    mount.read()
    (view.layers.lowers[0] / "d" / "new").write_text("2")
    set_clock(monkeypatch, 1002.0)
    assert set(mount.attrs("d")) == {b"a", b"new"}


def test_reading_another_directory_leaves_what_is_ready(overlaid: Make) -> None:
    view = overlaid({"d/a": "1", "d/s/x": "2"})
    mount, asked = Mount(view), Asked(view)
    mount.directory("d/s")
    mount.read()
    mount.begin("d/s").portion()
    asked.names.clear()
    assert names_of(mount.begin("d").portion())
    assert asked.names == []


def test_directory_removed_after_read_ahead_has_only_dots(overlaid: Make) -> None:
    view = overlaid({"d/": None}, upper={"d/a": "1"})
    mount = Mount(view)
    mount.read()
    reader = mount.begin("d")
    view.unlink("d/a")
    view.rmdir("d")
    assert [entry.name for entry in reader.rest()] == list(DOTS)


def test_directory_put_in_the_place_of_the_one_read_ahead_is_shown(overlaid: Make) -> None:
    view = overlaid({"d/a": "1"})
    mount = Mount(view)
    mount.read()
    view.rename("d", "e")
    view.mkdir("d")
    view.write("d/b", b"2")
    assert mount.attrs("d") == in_view(view, "d")
    assert mount.attrs("e") == in_view(view, "e")


def test_directory_that_the_kernel_forgot_is_not_read_ahead(overlaid: Make) -> None:
    view = overlaid({"d/a": "1"})
    mount, asked = Mount(view), Asked(view)
    reader = mount.begin()
    (found,) = (entry for entry in reader.portion() if entry.name == b"d")
    mount.nodes.forget(found.nodeid, 1)
    assert reader.rest() == []
    assert asked.names == [b"/"]


def test_directory_forgotten_after_read_ahead_gives_every_name_once(overlaid: Make) -> None:
    view = overlaid({"d": MANY})
    mount = Mount(view)
    order = names_of(mount.read("d"))
    for name in order[:20]:
        view.unlink(b"d/" + name)
    (found,) = (entry for entry in mount.read() if entry.name == b"d")
    mount.nodes.forget(found.nodeid, 2)
    assert sorted(names_of(mount.read("d"))) == sorted(order[20:])


@pytest.mark.parametrize("error", [OSError(errno.EIO, "broken"), KeyError(7)], ids=["broken", "forgotten"])
def test_failed_read_ahead_does_no_harm(overlaid: Make, error: Exception) -> None:
    view = overlaid({"d/a": "1"})
    mount, asked = Mount(view), Asked(view)

    def fail() -> None:
        raise error

    reader = mount.begin()
    assert names_of(reader.portion()) == [b"d"]
    asked.meanwhile = fail
    assert reader.rest() == []
    assert names_of(mount.read("d")) == [b"a"]
    assert asked.names == [b"/", b"/d", b"/d"]


# --- several at once ----------------------------------------------------------------------------------


def test_one_directory_at_a_time_is_made_ready(overlaid: Make) -> None:
    view = overlaid({"a/x": "1", "b/y": "1"})
    mount, asked = Mount(view), Asked(view)
    reader = mount.begin()
    reader.portion()
    asked.meanwhile = lambda: mount.directories.read_ahead(view.overlay.root)
    reader.rest()
    assert len(asked.names) == 2


def test_reader_waits_for_what_is_being_made_ready(overlaid: Make) -> None:
    view = overlaid({"d/a": "1", "d/b": "2"})
    mount, asked = Mount(view), Asked(view)
    found: list[bytes] = []
    reader = mount.begin()
    reader.portion()
    second = mount.begin("d")
    thread = threading.Thread(target=lambda: found.extend(names_of(second.portion())), daemon=True)
    asked.meanwhile = thread.start
    reader.rest()
    thread.join(PATIENCE)
    assert sorted(found) == [b"a", b"b"]
    assert asked.names == [b"/", b"/d"]
