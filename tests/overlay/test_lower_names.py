"""Does a directory that is merged from many lowers cost what one layer costs, and is it still the same directory?

With a table of the lowers' names nobody but the upper is asked for a name that no lower has. Without one each lower is
asked: that is the oracle here. `tests/contract` holds both to the kernel's overlayfs.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from overlayfs_demo.linux import fanotify, syscalls
from overlayfs_demo.overlay import lower_names, name_table
from overlayfs_demo.overlay.layer import Descriptor, LayerDir
from overlayfs_demo.overlay.node import DirNode, Node
from tests import builders
from tests.builders import IMAGE_OPAQUE, IMAGE_WHITEOUT, OPAQUE, WHITEOUT, XATTR_WHITEOUT, directory, metacopy
from tests.contract.engine_subject import Engine
from tests.contract.subjects import in_child
from tests.overlay.conftest import Make

SEEDS = range(60)
NAMES = [b"a", b"b", b"c", b"d", b".wh.a", b".wh.b", b".wh..wh..opq", b".wh."]


@pytest.fixture(autouse=True)
def noticed() -> None:
    """Tables need fanotify(7)."""
    try:
        os.close(fanotify.new_group())
    except OSError as error:
        pytest.skip(f"fanotify_init: {error.strerror}")


def watched(view: Engine, path: str = "") -> DirNode:
    """A directory of a view in which changes behind it are noticed from now on, without a table yet."""
    changes = view.overlay.external_changes
    assert changes.started or changes.start()
    node = view.node(path)
    assert isinstance(node, DirNode)
    assert changes.watch(node)
    return node


def known(view: Engine, path: str = "") -> DirNode:
    """The same with a table."""
    node = watched(view, path)
    view.overlay.names(node)
    assert node.name_table is not None
    return node


def many(count: int) -> list[builders.Content]:
    return [{f"d/f{number}": str(number), "d/all": str(number)} for number in range(count)]


# --- what it saves --------------------------------------------------------------------------------


class Asked:
    """Counts what is asked of lowers: names, and descriptors and listings of directories."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.names: list[str] = []
        self.listings = 0
        self.opened = 0
        stat, scandir, hold = LayerDir.stat, os.scandir, LayerDir.hold

        def counted_stat(source: LayerDir, name: bytes) -> os.stat_result | None:
            self.names.append(source.layer.label)
            return stat(source, name)

        def counted_scandir(place: Any) -> Any:
            self.listings += 1
            return scandir(place)

        def counted_hold(source: LayerDir, descriptor: Descriptor) -> None:
            self.opened += 1
            hold(source, descriptor)

        monkeypatch.setattr(LayerDir, "stat", counted_stat)
        monkeypatch.setattr(LayerDir, "hold", counted_hold)
        monkeypatch.setattr(os, "scandir", counted_scandir)


def test_miss_asks_the_upper_only_and_hit_one_lower(overlaid: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    view = overlaid(*many(50), upper={"d": {"up": "1"}})
    node = known(view, "d")
    asked = Asked(monkeypatch)
    assert view.overlay.walk(b"/d") is node
    asked.names.clear()
    with pytest.raises(FileNotFoundError):
        view.overlay.lookup(node, b"none")
    assert asked.names == ["upper"]
    asked.names.clear()
    view.overlay.lookup(node, b"f3")
    assert asked.names == ["upper", "layer 4 (layer3)"]
    asked.names.clear()
    view.overlay.lookup(node, b"all")
    assert asked.names == ["upper", "layer 50 (layer49)"]


def test_second_listing_reads_the_upper_only(overlaid: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    view = overlaid(*many(50), upper={"d": {"up": "1"}})
    node = watched(view, "d")
    first = view.overlay.names(node)
    asked = Asked(monkeypatch)
    assert view.overlay.names(node).names == first.names
    assert (asked.listings, asked.names) == (1, [])
    assert len(first.names) == 52


def test_directory_of_500_lowers_opens_nothing_for_a_miss(overlaid: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    view = overlaid(*many(500))
    node = known(view, "d")
    for source in node.sources:
        source.release()
    asked = Asked(monkeypatch)
    for number in range(20):
        with pytest.raises(FileNotFoundError):
            view.overlay.lookup(node, b"none%d" % number)
    assert (asked.names, asked.opened) == ([], 0)


def test_new_names_and_removals_ask_no_lower(overlaid: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    view = overlaid(*many(50), upper={"d": {}})
    node = known(view, "d")
    asked = Asked(monkeypatch)
    view.overlay.mkdir(node, b"new", 0o755, view.caller)
    view.overlay.rmdir(node, b"new", view.caller)
    assert set(asked.names) == {"upper"}


# --- when there is one ----------------------------------------------------------------------------


def look_up(view: Engine, node: DirNode, times: int) -> None:
    for number in range(times):
        with pytest.raises(FileNotFoundError):
            view.overlay.lookup(node, b"none%d" % number)


def test_table_is_made_after_a_few_lookups(overlaid: Make) -> None:
    view = overlaid(*many(3))
    node = watched(view, "d")
    look_up(view, node, 7)
    assert node.name_table is None
    look_up(view, node, 1)
    assert node.name_table is not None


def test_many_names_are_read_only_when_many_were_looked_up(overlaid: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    view = overlaid({f"f{number}": "" for number in range(1000)}, {"top": ""})
    node = watched(view)
    read = 0
    listed = name_table.NameTable

    def counted(lowers: Any, at_most: int, most_entries: int) -> Any:
        nonlocal read
        read += most_entries
        return listed(lowers, at_most, most_entries)

    monkeypatch.setattr(lower_names, "NameTable", counted)
    look_up(view, node, 100)
    assert node.name_table is None
    assert read <= 2 * 100 * 2 * 4
    look_up(view, node, 100)
    assert node.name_table is not None


@pytest.mark.parametrize("why", ["one lower", "nobody watches", "the past"])
def test_there_is_none(overlaid: Make, why: str) -> None:
    view = overlaid(*many(1 if why == "one lower" else 3))
    if why != "nobody watches":
        assert view.overlay.external_changes.start()
    node = view.node("d")
    assert isinstance(node, DirNode)
    if why == "one lower":
        view.overlay.external_changes.watch(node)
    look_up(view, node, 50)
    view.overlay.names(node)
    assert node.name_table is None


def test_filesystem_with_unlisted_names_gets_none(overlaid: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(syscalls, "filesystem_magic", lambda fd: 0x2FC12FC1)  # ZFS_SUPER_MAGIC
    view = overlaid(*many(3))
    node = watched(view, "d")
    look_up(view, node, 50)
    assert len(view.overlay.names(node).names) == 4
    assert node.name_table is None


def test_directory_that_folds_case_gets_none(overlaid: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(syscalls, "folds_case", lambda fd: True)
    view = overlaid(*many(3))
    node = watched(view, "d")
    view.overlay.names(node)
    look_up(view, node, 50)
    assert node.name_table is None


def test_too_long_name_is_still_told_from_a_missing_one(overlaid: Make) -> None:
    view = overlaid(*many(3))
    node = known(view, "d")
    with pytest.raises(OSError, match="File name too long"):
        view.overlay.lookup(node, b"n" * 256)


def test_layers_at_rest_need_no_watches(overlaid: Make) -> None:
    view = overlaid(*many(3))
    view.overlay.external_changes.trust_layers()
    node = view.node("d")
    assert isinstance(node, DirNode)
    look_up(view, node, 8)
    assert node.name_table is not None
    assert view.names("d") == [b"all", b"f0", b"f1", b"f2"]


def test_number_of_entries_is_bounded(overlaid: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    content = {f"d{number}": {f"f{count}": "" for count in range(10)} for number in range(6)}
    view = overlaid(content, content)
    monkeypatch.setattr(lower_names, "_MOST_ENTRIES", 100)
    nodes = [known(view, f"d{number}") for number in range(2)]
    for number in range(2, 6):
        look_up(view, nodes[0], 1)
        nodes.append(known(view, f"d{number}"))
    assert nodes[0].name_table is not None, "it is in use"
    assert sum(node.name_table is not None for node in nodes) == 3
    assert all(view.names(f"d{number}") == [b"f%d" % count for count in range(10)] for number in range(6))


def test_tables_of_forgotten_directories_make_room(overlaid: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    content = {f"d{number}": {f"f{count}": "" for count in range(10)} for number in range(6)}
    view = overlaid(content, content)
    monkeypatch.setattr(lower_names, "_MOST_ENTRIES", 100)
    kept = known(view, "d0")
    for number in range(1, 6):
        known(view, f"d{number}")
        look_up(view, kept, 1)
    assert kept.name_table is not None


# --- it is the same directory ---------------------------------------------------------------------


def random_layer(dice: random.Random, depth: int = 0) -> dict[bytes, Any]:
    content: dict[bytes, Any] = {}
    for name in NAMES:
        if dice.random() > (0.6 if len(name) == 1 else 0.15) or content.get(name[4:]) is IMAGE_WHITEOUT:
            continue
        roll = dice.random()
        if roll < 0.3:
            content[name] = "" if dice.random() < 0.5 else "data"
        elif roll < 0.75 and depth < 2:
            content[name] = random_directory(dice, random_layer(dice, depth + 1))
        elif roll < 0.85:
            redirect = dice.choice(["", "", "/a", "/b/c", "b", "d"])
            content[name] = metacopy(4096, redirect)
        elif roll < 0.95:
            content[name] = dice.choice([WHITEOUT, WHITEOUT, XATTR_WHITEOUT])
        elif not name.startswith(b".wh."):
            content[name] = IMAGE_WHITEOUT
    return content


def random_directory(dice: random.Random, content: dict[bytes, Any]) -> builders.Dir:
    roll = dice.random()
    if roll < 0.7:
        return directory(content)
    if roll < 0.8:
        return OPAQUE(content)
    if roll < 0.85:
        return IMAGE_OPAQUE({name: thing for name, thing in content.items() if name != b".wh..wh..opq"})
    redirect = dice.choice([b"a", b"b", b"c", b"d", b"/a", b"/b/a"])
    return directory(content, xattrs={"trusted.overlay.redirect": redirect})


def shown(view: Engine, node: DirNode, depth: int = 0) -> dict[bytes, Any]:
    """All that a directory shows: its names, and what is found by any name, listed or not, or the error."""
    listed = view.overlay.names(node).names
    found: dict[bytes, Any] = {b"listed": sorted((name, one.kind, one.ino) for name, one in listed.items())}
    for name in {*NAMES, *listed, b"none"}:
        found[name] = outcome(lambda name=name: looked_up(view, node, name, depth))  # type: ignore[misc]
    return found


def looked_up(view: Engine, node: DirNode, name: bytes, depth: int) -> Any:
    child, attrs = view.overlay.lookup(node, name)
    attrs = attrs._replace(atime_ns=0)  # Listing the upper's directories changes it.
    if isinstance(child, DirNode):
        keep(view, child)
        return attrs, child.keys, shown(view, child, depth + 1) if depth < 2 else None
    return attrs, where(child)


def where(node: Node) -> Any:
    data = getattr(node, "data", None)
    return node.key, data and (data.place.layer.label, data.name, data.key)


def outcome(look: Callable[[], Any]) -> Any:
    try:
        return look()
    except OSError as error:
        return error.errno


def keep(view: Engine, node: DirNode) -> None:
    """Make a directory's table if the view has tables."""
    changes = view.overlay.external_changes
    if changes.started and len(node.lowers) > 1:
        changes.watch(node)


@pytest.mark.parametrize("seed", SEEDS)
def test_random_layers_look_the_same_with_tables_and_without(overlaid: Make, seed: int) -> None:
    dice = random.Random(seed)
    layers = [random_layer(dice) for _ in range(dice.randint(2, 6))]
    view = overlaid(*layers, upper=random_layer(dice) if seed % 2 else None, metacopy=True)
    without = shown(view, view.overlay.root)
    assert view.overlay.external_changes.start()
    keep(view, view.overlay.root)
    first = shown(view, view.overlay.root)
    assert first == without
    assert len(view.overlay.root.lowers) == 1 or view.overlay.root.name_table is not None
    assert shown(view, view.overlay.root) == without


def test_image_whiteout_counts_although_the_upper_has_an_object_of_its_name(overlaid: Make) -> None:
    view = overlaid({"b": "1", "c": "2"}, {"b": IMAGE_WHITEOUT}, upper={".wh.b": "ordinary"})
    assert view.names() == [b".wh.b", b"c"]
    assert not view.exists("b")
    known(view)
    assert view.names() == [b".wh.b", b"c"]


# --- a lower is changed behind the view -----------------------------------------------------------

Change = Callable[[Path], object]


def bury(real: Path) -> None:
    os.mknod(real / "old", 0o020000, 0)


CHANGES: dict[str, Change] = {
    "miss becomes hit": lambda real: (real / "new").write_text("1"),
    "hit becomes miss": lambda real: (real / "all").unlink(),
    "name moves away": lambda real: (real / "all").rename(real / "other"),
    "link": lambda real: os.link(real / "all", real / "new"),
    "directory": lambda real: (real / "new").mkdir(),
    "whiteout": lambda real: os.mknod(real / "deep", 0o020000, 0),
    "image whiteout": lambda real: (real / ".wh.deep").touch(),
    "attribute makes a whiteout": lambda real: os.setxattr(real / "plain", "trusted.overlay.whiteout", b"y"),
    "attribute makes whiteouts count": lambda real: os.setxattr(real, "trusted.overlay.opaque", b"x"),
    "whiteout gets data": lambda real: (real / "marked").write_text("1"),
    "image whiteout gets data": lambda real: (real / ".wh.old").write_text("1"),
    "directory gets opaque": lambda real: os.setxattr(real, "trusted.overlay.opaque", b"y"),
}
# A directory's own marks are read once, and again when the engine is told.
AT_ONCE = [what for what in CHANGES if what not in ("attribute makes whiteouts count", "directory gets opaque")]
BEHIND = [b"new", b"all", b"other", b"deep", b"old", b"plain", b"marked", b".wh.old", b"f1"]


def state(view: Engine, node: DirNode) -> Any:
    names = sorted(view.overlay.names(node).names)
    hits = [outcome(lambda name=name: view.overlay.lookup(node, name)[1].ino) for name in BEHIND]  # type: ignore[misc]
    return names, hits


@pytest.mark.parametrize("level", [1, 2])
@pytest.mark.parametrize(("what", "told"), [*[(what, True) for what in CHANGES], *[(what, False) for what in AT_ONCE]])
def test_change_of_a_lower_is_seen_at_once(overlaid: Make, what: str, level: int, told: bool) -> None:
    whiteout = builders.file("", xattrs={"trusted.overlay.whiteout": b"y"})
    content = {"all": "", "plain": "", "marked": whiteout, ".wh.old": ""}
    marks = {} if what == "attribute makes whiteouts count" else {"trusted.overlay.opaque": b"x"}
    view = overlaid(
        {"d": {"deep": "1", "old": "1", "marked": "1", "f1": "1"}},
        {"d": directory(content, xattrs=marks)},
        {"d": directory(content, xattrs=marks)},
        upper={"d": {"up": "1"}},
    )
    node = known(view, "d")
    before = state(view, node)
    in_child(lambda: CHANGES[what](view.layers.lowers[level] / "d"))
    if told:
        view.overlay.external_changes.read()
        view.overlay.names(node)
        assert (node.name_table is None) == (len(node.lowers) == 1)
    after = state(view, node)
    assert (after, after) == (state(view, node), asked_directly(view))
    assert after != before or level == 1, what


def asked_directly(view: Engine) -> Any:
    """The same directory in another engine, which has no tables and remembers nothing."""
    other = Engine(view.layers)
    other.start()
    try:
        node = other.node("d")
        assert isinstance(node, DirNode)
        return state(other, node)
    finally:
        other.stop()


def test_change_while_the_table_is_made_is_not_missed(overlaid: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    view = overlaid(*many(3))
    node = watched(view, "d")
    real = view.layers.lowers[1] / "d/late"
    listed = name_table.NameTable

    def overtaken(*arguments: Any) -> Any:
        made = listed(*arguments)
        real.write_text("1")
        return made

    monkeypatch.setattr(lower_names, "NameTable", overtaken)
    view.overlay.names(node)
    monkeypatch.undo()
    assert view.exists("d/late")
    view.overlay.external_changes.read()
    assert view.exists("d/late")
    assert b"late" in view.names("d")


def test_lost_events_drop_all_tables(overlaid: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    view = overlaid(*many(3))
    node = known(view, "d")
    read = fanotify.events
    monkeypatch.setattr(
        fanotify, "events", lambda data: [one._replace(mask=fanotify.Q_OVERFLOW, pid=0) for one in read(data)]
    )
    (view.layers.lowers[0] / "d/new").write_text("1")
    view.overlay.external_changes.read()
    assert node.name_table is None
    assert view.exists("d/new")


def test_directory_that_is_replaced_gets_another_table(overlaid: Make) -> None:
    view = overlaid(*many(3))
    known(view, "")
    before = known(view, "d")
    real = view.layers.lowers[1]
    shutil.rmtree(real / "d")
    (real / "d").mkdir()
    (real / "d/new").write_text("1")
    assert view.exists("d/new")
    view.overlay.external_changes.read()
    known(view, "d")
    assert view.names("d") == [b"all", b"f0", b"f2", b"new"]
    assert before.name_table is None or before.name_table.lowers is before.lowers


def test_own_changes_of_the_upper_leave_the_table_in_use(overlaid: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    view = overlaid(*many(20), upper={"d": {}})
    node = known(view, "d")
    view.write("d/new", b"1")
    view.unlink("d/f3")
    asked = Asked(monkeypatch)
    look_up(view, node, 1)
    assert asked.names == ["upper"]
    assert b"f3" not in view.names("d") and b"new" in view.names("d")
