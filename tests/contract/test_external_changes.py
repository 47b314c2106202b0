"""Is a change that was made in a layer, while it is mounted, seen in the view?

The kernel's overlayfs leaves open what happens then ("undefined behavior"), so it is no subject here. The
fusepy front trusts names for as long as it is told to, which is tested in test_fusepy_sees below.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from overlayfs_demo.fronts.kernel import cache_policy
from overlayfs_demo.linux import fanotify
from overlayfs_demo.mounts.options import MountOptions
from overlayfs_demo.overlay import external_changes
from tests.builders import IMAGE_OPAQUE, OPAQUE, directory, file
from tests.conftest import PATIENCE, wait_until
from tests.contract.conftest import Mount
from tests.contract.marks import only
from tests.contract.subjects import USER, Fronted, Subject, in_child

followed = only(
    ["engine", "engine-with-tables", "kernel-front"], "the others do not follow what is changed behind them"
)


@pytest.fixture(autouse=True)
def only_what_is_followed_shows(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """What cannot be followed is not trusted for a moment here, but for longer than any test waits."""
    monkeypatch.setattr(Fronted, "start", Fronted.start_as_patched)
    if request.node.get_closest_marker("trusts_a_moment") is None:
        monkeypatch.setattr(cache_policy, "_MOMENT", 3600.0)


def seen(look: Callable[[], Any], wanted: Any) -> None:
    """The view shows this in the end, which it does only if it is told of the change."""
    deadline = time.monotonic() + PATIENCE
    while (found := look()) != wanted:
        assert time.monotonic() < deadline, f"{found!r} is shown, not {wanted!r}"
        time.sleep(0.002)


def contents(view: Subject, path: str) -> bytes | None:
    while True:
        try:
            return view.read(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            # Replaced between the look at its name and the open: look again, as open(2) does (once).
            if error.errno != errno.ESTALE:
                raise


def look_around(view: Subject, path: str = "") -> None:
    """See, read and ask for what is not there: all that could be remembered."""
    for name in view.names(path):
        below = os.path.join(path, os.fsdecode(name))
        if view.stat(below).mode & 0o170000 == 0o040000:
            look_around(view, below)
        else:
            view.read(below)
    assert not view.exists(os.path.join(path, "new"))


def layer(view: Subject, where: str) -> Path:
    return view.upper() if where == "upper" else view.layers.lowers[0]


TREE = {"file": "old", "d": {"inner": "old", "e/deep": "old"}, "other": "other"}
wheres = pytest.mark.parametrize("where", ["lower", "upper"])


@pytest.fixture
def place(mounted: Mount, where: str) -> tuple[Subject, Path]:
    """A view somebody looked at all over, and the layer that everything in it comes from."""
    view = mounted(*([TREE] if where == "lower" else [{}]), upper=TREE if where == "upper" else None)
    look_around(view)
    return view, layer(view, where)


Place = tuple[Subject, Path]


@followed
@wheres
def test_written_in_place(place: Place) -> None:
    view, real = place
    (real / "file").write_text("new and longer")
    seen(lambda: contents(view, "file"), b"new and longer")
    seen(lambda: view.stat("file").size, 14)
    (real / "d/inner").write_text("NEW")
    seen(lambda: contents(view, "d/inner"), b"NEW")


@followed
@wheres
def test_written_by_an_editor_that_renames(place: Place) -> None:
    view, real = place
    (real / "d/.inner.swp").write_text("edited")
    (real / "d/.inner.swp").rename(real / "d/inner")
    seen(lambda: contents(view, "d/inner"), b"edited")
    assert view.names("d") == [b"e", b"inner"]


def opened_by(pid: int, layer: Path) -> list[str]:
    """The files of a layer that a process has open for reading or writing."""
    found = []
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            path, flags = os.readlink(fd), (fd.parent.parent / "fdinfo" / fd.name).read_text().split()[3]
            if Path(path).parent == layer and not int(flags, 8) & (os.O_PATH | os.O_DIRECTORY):
                found.append(path)
    return found


@pytest.mark.trusts_a_moment
@only(["kernel-front", "fusepy-front"], "the kernel asks again after ESTALE")
def test_what_vanished_from_the_upper_is_looked_up_again_at_once(mounted: Mount) -> None:
    names = [f"f{number}" for number in range(20)]
    view = mounted(dict.fromkeys(names, "lower"), upper=dict.fromkeys(names, "upper"))
    for name in names:
        assert view.read(name) == b"upper"
        # The kernel tells later that a file was closed, and what is open shows what it was opened as.
        wait_until(lambda: not opened_by(view.daemon(), view.upper()), "the daemon to close the file")
        view.upper(name).unlink()
        # Without a rest in between, in which the change could have been noticed.
        assert view.read(name) == b"lower"


@only(["kernel-front", "fusepy-front"], "the daemon must not wait for a FIFO")
def test_fifo_in_the_place_of_a_file_keeps_nobody_waiting(mounted: Mount) -> None:
    names = [f"f{number}" for number in range(20)]
    view = mounted({"other": "1"}, upper=dict.fromkeys(names, "old"))
    for name in names:
        view.stat(name)
        view.upper(name).unlink()
        os.mkfifo(view.upper(name))
    readers = [threading.Thread(target=try_to_read, args=(view, name), daemon=True) for name in names]
    for reader in readers:
        reader.start()
    # More callers than the daemon has threads wait, if at all, for a FIFO of the view's own.
    assert view.read("other") == b"1"
    view.write("new", b"2")
    assert view.read("new") == b"2"


@only(["kernel-front", "fusepy-front"], "the kernel checks permissions, before it asks the engine")
def test_o_creat_opens_nothing_that_its_caller_may_not_open(mounted: Mount) -> None:
    """Somebody who owns the directory puts a file of root's where the kernel knows that there is none."""
    secret = file("root's secret", mode=0o600)
    view = mounted({}, upper={"d": directory({"secret": secret}, uid=USER, gid=USER, mode=0o755)})
    real = view.upper("d/secret")
    for attempt in range(20):
        name = f"d/x{attempt}"
        assert not view.exists(name)
        real.rename(view.upper(name))
        with pytest.raises(PermissionError):
            view.run_as(USER, 0o022, partial(view.write, name, b"evil", os.O_CREAT))
        assert view.upper(name).read_text() == "root's secret"
        view.upper(name).rename(real)


@only(["kernel-front", "fusepy-front"], "the engine has one node, see test_held_objects")
def test_name_made_behind_the_view_shows_what_is_changed_through_the_other(mounted: Mount) -> None:
    view = mounted({}, upper={"a": file("1", mode=0o666)})
    view.read("a")
    os.link(view.upper("a"), view.upper("b"))
    assert view.read("b") == b"1"
    view.chmod("a", 0o600)
    assert view.stat("b").mode & 0o777 == 0o600
    view.chown("b", USER, USER)
    assert view.stat("a").uid == USER


def try_to_read(view: Subject, name: str) -> None:
    with contextlib.suppress(OSError):
        opened = view.open(name, os.O_RDONLY | os.O_NONBLOCK)
        opened.close()


@followed
@wheres
def test_names_made_and_removed(place: Place) -> None:
    view, real = place
    (real / "d/new").write_text("1")
    seen(lambda: contents(view, "d/new"), b"1")
    seen(lambda: view.names("d"), [b"e", b"inner", b"new"])
    (real / "d/inner").unlink()
    seen(lambda: view.exists("d/inner"), False)
    seen(lambda: view.names("d"), [b"e", b"new"])
    (real / "file").rename(real / "new")
    seen(lambda: (view.exists("file"), contents(view, "new")), (False, b"old"))


@followed
@wheres
def test_listing_alone_shows_what_was_made(place: Place) -> None:
    view, real = place
    assert view.names("d") == [b"e", b"inner"]
    (real / "d/fresh").write_text("1")
    seen(lambda: view.names("d"), [b"e", b"fresh", b"inner"])


@followed
@wheres
def test_attributes(place: Place) -> None:
    view, real = place
    (real / "file").chmod(0o600)
    seen(lambda: view.stat("file").mode & 0o777, 0o600)
    (real / "d").chmod(0o700)
    seen(lambda: view.stat("d").mode & 0o777, 0o700)


@followed
@wheres
def test_directories_made_removed_and_replaced(place: Place) -> None:
    view, real = place
    (real / "new").mkdir()
    (real / "new/x").write_text("1")
    seen(lambda: contents(view, "new/x"), b"1")
    shutil.rmtree(real / "d")
    seen(lambda: view.exists("d"), False)
    seen(lambda: view.names(), [b"file", b"new", b"other"])
    (real / "d").mkdir()
    (real / "d/again").write_text("2")
    seen(lambda: view.exists("d") and view.names("d"), [b"again"])
    (real / "other").unlink()
    (real / "other").mkdir()
    seen(lambda: view.exists("other") and view.stat("other").mode & 0o170000, 0o040000)


@followed
def test_a_layer_above_gets_the_same_file(mounted: Mount) -> None:
    view = mounted({"d": {"file": "bottom"}}, {"d": {"top": "1"}})
    look_around(view)
    (view.layers.lowers[1] / "d/file").write_text("top")
    seen(lambda: contents(view, "d/file"), b"top")
    (view.layers.lowers[1] / "d/file").unlink()
    seen(lambda: contents(view, "d/file"), b"bottom")


@followed
@pytest.mark.parametrize("below", [0, 3, 6])
def test_names_come_and_go_in_a_directory_of_many_lowers(mounted: Mount, below: int) -> None:
    view = mounted(*[{f"d/f{number}": str(number), "d/all": str(number)} for number in range(7)], upper={"d/up": "1"})
    look_around(view)
    for number in range(20):
        assert not view.exists(f"d/none{number}")
    real = view.layers.lowers[below] / "d"
    (real / "none1").write_text("1")
    seen(lambda: contents(view, "d/none1"), b"1")
    (real / f"f{below}").rename(real / "none2")
    seen(lambda: (contents(view, "d/none2"), view.exists(f"d/f{below}")), (str(below).encode(), False))
    (real / "none1").unlink()
    rest = [b"f%d" % number for number in range(7) if number != below]
    seen(lambda: view.names("d"), sorted([b"all", b"none2", b"up", *rest]))
    view.unlink("d/none2")
    view.write("d/none1", b"2")
    assert view.names("d") == sorted([b"all", b"none1", b"up", *rest])


@followed
@pytest.mark.parametrize("above", ["upper", "lower"])
def test_a_directory_gets_and_loses_a_part(mounted: Mount, above: str) -> None:
    view = mounted({"d": {"file": "bottom", "e": {"x": "bottom"}}}, {})
    look_around(view)
    real = view.upper() if above == "upper" else view.layers.lowers[1]
    held = view.hold("d")
    (real / "d/e").mkdir(parents=True)
    (real / "d/new").write_text("top")
    (real / "d/e/x").write_text("top")
    seen(lambda: contents(view, "d/new"), b"top")
    seen(lambda: contents(view, "d/e/x"), b"top")
    seen(lambda: held.names(), [b"e", b"file", b"new"])
    assert view.read("d/file") == b"bottom"
    held.create("made", b"1")
    assert (view.upper() / "d/made").read_bytes() == b"1"
    shutil.rmtree(view.upper() / "d")
    shutil.rmtree(real / "d", ignore_errors=True)
    seen(lambda: view.names("d"), [b"e", b"file"])
    seen(lambda: contents(view, "d/e/x"), b"bottom")
    held.close()


@followed
def test_whiteouts_made_and_removed_by_hand(mounted: Mount) -> None:
    view = mounted({"a": "1", "d": {"b": "2"}}, upper={"d": {}})
    look_around(view)
    os.mknod(view.upper("a"), 0o020000, 0)
    os.mknod(view.upper("d/b"), 0o020000, 0)
    seen(lambda: (view.exists("a"), view.exists("d/b"), view.names("d")), (False, False, []))
    view.upper("a").unlink()
    view.upper("d/b").unlink()
    seen(lambda: (contents(view, "a"), contents(view, "d/b")), (b"1", b"2"))


@followed
@pytest.mark.parametrize("looked_into", [True, False])
def test_a_directory_is_made_opaque_by_hand(mounted: Mount, looked_into: bool) -> None:
    view = mounted({"d": {"b": "2", "e": {"x": "3"}}}, {"d": {"c": "3"}})
    if looked_into:
        look_around(view)
    else:
        view.stat("d")
    top = view.layers.lowers[1] / "d"
    os.setxattr(top, "trusted.overlay.opaque", b"y")
    seen(lambda: (view.names("d"), view.exists("d/e/x")), ([b"c"], False))
    os.removexattr(top, "trusted.overlay.opaque")
    seen(lambda: (view.names("d"), contents(view, "d/e/x")), ([b"b", b"c", b"e"], b"3"))
    (top / ".wh..wh..opq").touch()
    seen(lambda: (view.names("d"), view.exists("d/e/x")), ([b"c"], False))
    (top / ".wh..wh..opq").unlink()
    (top / ".wh.b").touch()
    seen(lambda: view.names("d"), [b"c", b"e"])


@followed
def test_opaque_from_the_start_lets_nothing_through(mounted: Mount) -> None:
    view = mounted({"d": {"b": "2"}}, {"d": OPAQUE({"c": "3"}), "i": IMAGE_OPAQUE({})})
    look_around(view)
    (view.layers.lowers[0] / "d/new").write_text("hidden")
    (view.layers.lowers[0] / "mark").write_text("1")
    # Changes are told in their order: after this one, the hidden one has been dealt with.
    seen(lambda: contents(view, "mark"), b"1")
    assert view.names("d") == [b"c"]
    assert not view.exists("d/new")


@followed
@wheres
def test_a_reader_keeps_what_was_replaced(place: Place) -> None:
    view, real = place
    handle = view.open("file")
    assert handle.read() == b"old"
    (real / "swap").write_text("replacement")
    (real / "swap").rename(real / "file")
    seen(lambda: contents(view, "file"), b"replacement")
    assert (handle.read(), handle.stat().size) == (b"old", 3)
    handle.close()


@followed
@wheres
def test_the_view_still_writes_after_it(place: Place) -> None:
    view, real = place
    (real / "file").write_text("from behind")
    seen(lambda: contents(view, "file"), b"from behind")
    view.append("file", b" and through")
    assert view.read("file") == b"from behind and through"
    assert view.upper("file").read_bytes() == b"from behind and through"
    (real / "d/gone").write_text("1")
    seen(lambda: view.exists("d/gone"), True)
    view.unlink("d/gone")
    assert view.names("d") == [b"e", b"inner"]
    assert view.is_whiteout("d/gone") == (real != view.upper())


@followed
def test_many_changes_on_both_sides_end_in_the_same_tree(mounted: Mount) -> None:
    """Neither a crash, nor a caller that waits for ever, nor something remembered wrongly in the end."""
    view = mounted({f"d{n}": {f"f{m}": "0" for m in range(10)} for n in range(3)}, {"d0": {"top": "1"}})
    look_around(view)
    low = view.layers.lowers[0]
    stop = threading.Event()

    def edit() -> None:
        for count in range(200):
            directory = low / f"d{count % 3}"
            (directory / f"f{count % 10}").write_text(str(count))
            (directory / "swap").write_text(str(count))
            (directory / "swap").rename(directory / f"f{(count + 5) % 10}")
            (directory / f"g{count % 7}").mkdir(exist_ok=True)
            shutil.rmtree(directory / f"g{(count + 3) % 7}", ignore_errors=True)
        stop.set()

    thread = threading.Thread(target=edit)
    thread.start()
    count = 0
    while not stop.is_set() or count < 50:
        count += 1
        view.write(f"d{count % 3}/own{count % 5}", b"mine")
        view.names(f"d{count % 3}")
        contents(view, f"d{count % 3}/f{count % 10}")
        if view.exists(f"d{count % 3}/own{(count + 2) % 5}"):
            view.unlink(f"d{count % 3}/own{(count + 2) % 5}")
    thread.join()
    for number in range(3):
        real = {os.fsencode(path.name) for path in (low / f"d{number}").iterdir()}
        own = {os.fsencode(path.name) for path in view.upper(f"d{number}").iterdir()}
        top = {b"top"} if number == 0 else set()
        seen(partial(view.names, f"d{number}"), sorted(real | own | top))
        for name in real:
            path = low / f"d{number}" / os.fsdecode(name)
            if path.is_file():
                seen(partial(contents, view, f"d{number}/{path.name}"), path.read_bytes())


@only(["kernel-front", "fusepy-front"], "the engine takes no timeout")
def test_with_a_timeout_of_0_everything_is_asked_anew(mounted: Mount, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Fronted, "options", lambda self, stack: MountOptions(stack, self.front, timeout=0))
    view = mounted(TREE)
    look_around(view)
    real = layer(view, "lower")
    (real / "file").write_text("changed")
    (real / "d/new").write_text("1")
    (real / "other").unlink()
    assert (contents(view, "file"), view.exists("other")) == (b"changed", False)
    assert view.names("d") == [b"e", b"inner", b"new"]
    assert contents(view, "d/new") == b"1"


# --- where it cannot be followed ------------------------------------------------------------------

kernel_front = only(["kernel-front"], "this is about what it does without fanotify, or with less of it")


def no_marks(group: int, fd: int) -> fanotify.Key:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def no_group() -> int:
    raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))


@pytest.mark.trusts_a_moment
@kernel_front
@pytest.mark.parametrize("missing", ["marks", "group"])
def test_without_watches_what_is_shown_is_trusted_for_a_moment_only(
    mounted: Mount, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    if missing == "marks":
        monkeypatch.setattr(fanotify, "watch", no_marks)
    else:
        monkeypatch.setattr(fanotify, "new_group", no_group)
    # The upper's part of a merged directory does not tell by its time that a lower's was changed.
    view = mounted(TREE, upper={"d": {"up": "1"}})
    look_around(view)
    real = layer(view, "lower")
    (real / "file").write_text("changed")
    (real / "d/inner").unlink()
    (real / "d/new").write_text("1")
    seen(lambda: (contents(view, "file"), view.exists("d/inner"), contents(view, "d/new")), (b"changed", False, b"1"))
    seen(lambda: view.names("d"), [b"e", b"new", b"up"])


@kernel_front
def test_events_that_were_lost_make_the_kernel_forget_everything(
    mounted: Mount, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = fanotify.events

    def lost(data: bytes) -> Iterator[fanotify.Event]:
        return (one._replace(mask=fanotify.Q_OVERFLOW, pid=0) for one in read(data))

    monkeypatch.setattr(fanotify, "events", lost)
    view = mounted(TREE, {"d": {"other": "1"}})
    look_around(view)
    real = layer(view, "lower")
    (real / "file").write_text("changed")
    seen(lambda: contents(view, "file"), b"changed")
    (real / "d/new").write_text("1")
    seen(lambda: contents(view, "d/new"), b"1")
    shutil.rmtree(real / "d/e")
    seen(lambda: view.names("d"), [b"inner", b"new", b"other"])


@only(["engine"], "the message is the same for all")
def test_the_log_says_what_is_not_followed(
    mounted: Mount, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    view = mounted(TREE)
    assert view.overlay.external_changes.start()
    monkeypatch.setattr(fanotify, "watch", no_marks)
    for path in ("", "d", "d/e"):
        assert not view.overlay.external_changes.watch(view.node(path))
    [upper, lower] = [record.getMessage() for record in caplog.records]
    assert "layer 1 (layer0)" in lower and "max_user_marks" in lower
    assert "upper" in upper


@only(["engine"], "the bound is the engine's")
def test_the_number_of_watches_is_bounded(
    mounted: Mount, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(external_changes, "_MOST_WATCHES", 3)
    view = mounted(TREE)
    watcher = view.overlay.external_changes
    assert watcher.start()
    nodes = [view.node(path) for path in ("", "d", "d/e")]
    assert [watcher.watch(node) for node in nodes] == [True, True, False]
    assert "more than 3 directories" in caplog.text
    assert watcher.watch(nodes[0])


@only(["engine"], "what this process does itself is the engine's to tell")
def test_own_changes_are_no_news(mounted: Mount) -> None:
    view = mounted(TREE)
    watcher = view.overlay.external_changes
    assert watcher.start()
    for path in ("", "d"):
        watcher.watch(view.node(path))
    view.append("d/inner", b"x")
    view.write("new", b"1")
    view.rename("file", "d/moved")
    view.unlink("other")
    assert not watcher.read()
    in_child(lambda: view.upper("foreign").touch())
    assert watcher.read().names
