"""Is the tree as of each layer right, and do its marks and sizes agree with `analyze` and `history`?"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from overlayfs_demo.analysis.waste import analyse
from overlayfs_demo.browse.census import Census
from overlayfs_demo.browse.depths import Depths, Entry
from overlayfs_demo.browse.subject import image_subject, waste_of
from overlayfs_demo.images.upper_diff import Kind
from overlayfs_demo.overlay.stack import Stack
from overlayfs_demo.store.store import Store
from overlayfs_demo.store.stored import StoredImage
from tests import builders
from tests.browse.conftest import MakeImage
from tests.images.builders import OPAQUE, WHITEOUT, Members, directory, hard_link, needs_root, symlink

pytestmark = needs_root

# Whiteouts of a file and of a tree, an opaque directory, hard links, a file in place of a directory and the reverse.
LAYERS: tuple[Members, ...] = (
    {
        "etc": directory(),
        "etc/motd": "hello\n",
        "etc/same": "same",
        "cache": directory(),
        "cache/a": "12345",
        "cache/deep": directory(),
        "cache/deep/b": "678",
        "conf": directory(),
        "conf/old": "old",
        "one": "linked data",
        "two": hard_link("one"),
        "turned": directory(),
        "turned/inside": "xx",
        "link": symlink("etc/motd"),
    },
    {
        "etc": directory(),
        "etc/motd": "changed\n",
        "etc/same": "same",
        "conf": OPAQUE,
        "conf/new": "fresh",
        "new": "n",
        "new2": hard_link("new"),
    },
    {"cache": WHITEOUT, "turned": "now a file", "one": WHITEOUT},
)


@contextmanager
def opened(store: Store, made: StoredImage) -> Iterator[Depths]:
    with Depths(image_subject(store, made).stack) as depths:
        yield depths


def census(depths: Depths, place: int) -> Census:
    """Everything counted."""
    taken = Census(depths, place)
    while not taken.is_done:
        taken.advance(60)
    return taken


def named(entries: tuple[Entry, ...]) -> dict[str, Entry]:
    return {entry.name.decode(): entry for entry in entries}


def marks(entries: tuple[Entry, ...]) -> dict[str, str]:
    return {entry.name.decode(): entry.kind.value if entry.kind else "" for entry in entries}


# --- marks -----------------------------------------------------------------------------------------


def test_each_layer_marks_what_it_adds_changes_and_deletes(store: Store, image: MakeImage) -> None:
    with opened(store, image(*LAYERS)) as depths:
        top, middle = marks(depths.listing(0, b"/")), marks(depths.listing(1, b"/"))
        assert {name for name, mark in top.items() if mark} == {"cache", "turned", "one"}
        assert (top["cache"], top["turned"], top["one"]) == ("D", "C", "D")
        assert middle == {
            **dict.fromkeys(("cache", "link", "one", "turned", "two"), ""),
            **{"conf": "C", "etc": "C", "new": "A", "new2": "A"},
        }
        assert set(marks(depths.listing(2, b"/")).values()) == {"A"}


def test_an_opaque_directory_is_marked_and_deletes_what_it_hides(store: Store, image: MakeImage) -> None:
    with opened(store, image(*LAYERS)) as depths:
        assert named(depths.listing(1, b"/"))["conf"].opaque
        assert not named(depths.listing(2, b"/"))["conf"].opaque
        assert marks(depths.listing(1, b"/conf")) == {"new": "A", "old": "D"}
        assert marks(depths.listing(0, b"/conf")) == {"new": ""}


def test_a_deleted_directory_can_still_be_opened(store: Store, image: MakeImage) -> None:
    with opened(store, image(*LAYERS)) as depths:
        assert marks(depths.listing(0, b"/cache")) == {"a": "D", "deep": "D"}
        assert marks(depths.listing(0, b"/cache/deep")) == {"b": "D"}


def test_an_entry_names_the_layer_that_shows_it_and_a_links_target(store: Store, image: MakeImage) -> None:
    with opened(store, image(*LAYERS)) as depths:
        found = named(depths.listing(0, b"/"))
        assert found["link"].layer.startswith("layer 1") and found["link"].target == b"etc/motd"
        assert found["new"].layer.startswith("layer 2")


def test_a_redirect_of_a_lower_layer_is_followed(tmp_path: Path) -> None:
    moved = builders.directory({}, xattrs={"trusted.overlay.redirect": b"/old"})
    made = builders.layers(
        tmp_path, {"old": {"kept": "data"}, "new": {"hidden": "x"}}, {"old": builders.WHITEOUT, "new": moved}
    )
    with Depths(Stack(tuple(os.fsencode(path) for path in reversed(made)))) as depths:
        assert marks(depths.listing(0, b"/")) == {"new": "C", "old": "D"}
        assert named(depths.listing(0, b"/"))["new"].redirect == b"/old"
        assert marks(depths.listing(0, b"/new")) == {"hidden": "D", "kept": "A"}
        assert not named(depths.listing(0, b"/new"))["kept"].own
        assert census(depths, 0).sums[b"/new"].own == 0
        assert census(depths, 0).sums[b"/new"].live == 4


# --- sizes -----------------------------------------------------------------------------------------


def test_what_a_layer_holds_adds_up_to_its_size_in_history(store: Store, image: MakeImage) -> None:
    made = image(*LAYERS)
    with opened(store, made) as depths:
        held = [census(depths, place).sums[b"/"].own for place in range(3)]
    assert held == [layer.size for layer in reversed(made.layers)]
    assert all(held)


def test_the_view_holds_what_analyze_calls_live(store: Store, image: MakeImage) -> None:
    bottom = {name: content for name, content in dict(LAYERS[0]).items() if name != "link"}
    made = image(bottom, *LAYERS[1:])
    found = analyse([layer.directory for layer in made.layers], [""] * 3, duplicates=False)
    with opened(store, made) as depths:
        assert census(depths, 0).total == found.live > 0


def test_counts_of_names_are_those_of_analyze(store: Store, image: MakeImage) -> None:
    made = image(*LAYERS)
    found = analyse([layer.directory for layer in made.layers], [""] * 3, duplicates=False)
    with opened(store, made) as depths:
        for report in found.layers:
            kinds = census(depths, 3 - report.number).kinds
            assert kinds[Kind.ADDED] == report.added.paths
            assert kinds[Kind.CHANGED] == report.changed.paths + report.unchanged.paths
            # What was in a directory that became a file is below no name of the tree.
            replaced = 1 if report.number == 3 else 0
            assert kinds[Kind.DELETED] == report.deleted.paths - replaced


def test_the_ghosts_of_an_image_are_deleted_in_the_layer_that_hides_them(store: Store, image: MakeImage) -> None:
    made = image(*LAYERS)
    ghosts = analyse([layer.directory for layer in made.layers], [""] * 3, duplicates=False).ghosts
    assert len(ghosts) == 5
    with opened(store, made) as depths:
        for ghost in ghosts:
            above, _, name = (b"/" + ghost.path).rpartition(b"/")
            if above != b"/turned":
                assert marks(depths.listing(3 - ghost.hidden_by, above or b"/"))[name.decode()] == "D"


def test_a_deleted_directory_has_the_size_of_what_was_in_it_but_adds_nothing(store: Store, image: MakeImage) -> None:
    with opened(store, image(*LAYERS)) as depths:
        taken = census(depths, 0)
        assert taken.sums[b"/cache"].live == 8
        assert taken.sums[b"/"].own == len("now a file")


def test_the_words_about_waste_are_those_of_analyze(store: Store, image: MakeImage) -> None:
    made = image({"a": "12345"}, {"a": "1"})
    assert waste_of(image_subject(store, made).directories).startswith("wasted 5B (83.3%), dive's score ")


# --- sentences -------------------------------------------------------------------------------------


def test_it_says_what_hides_what(store: Store, image: MakeImage) -> None:
    with opened(store, image({"a": "1"}, {"a": "22"}, {"a": "333"})) as depths:
        assert depths.explain(0, b"/a") == "layer 3: a file, 3B; hides layer 2, layer 1"
        assert depths.explain(1, b"/a") == "layer 2: a file, 2B; hides layer 1; hidden by layer 3"
        assert depths.explain(2, b"/a") == "layer 1: a file, 1B; hidden by layer 3"


def test_it_says_where_something_is_hidden_by_a_directory_above(store: Store, image: MakeImage) -> None:
    with opened(store, image({"d": directory(), "d/a": "1"}, {"d": WHITEOUT})) as depths:
        assert depths.explain(1, b"/d/a") == "layer 1: a file, 1B; hidden by layer 2, at /d"
        assert depths.explain(0, b"/d") == "layer 2: deleted; hides layer 1"
        assert depths.explain(0, b"/d/a") == "layer 2: deleted: /d; hides layer 1"


def test_what_a_layer_has_no_part_in_is_said_of_the_layer_below(store: Store, image: MakeImage) -> None:
    with opened(store, image({"a": "1", "d": directory()}, {"b": "2", "d": directory()}, {"c": "3"})) as depths:
        assert depths.explain(0, b"/a") == "layer 1: a file, 1B"
        assert depths.explain(0, b"/d") == "layer 2: a directory; merged with layer 1"


# --- searching -------------------------------------------------------------------------------------


def test_a_filter_finds_parts_of_names_patterns_and_paths(store: Store, image: MakeImage) -> None:
    with opened(store, image(*LAYERS)) as depths:
        taken = census(depths, 1)
        assert set(taken.find("MOT", only_changes=False).paths) == {b"/etc/motd"}
        assert set(taken.find("new*", only_changes=False).paths) == {b"/new", b"/new2", b"/conf/new"}
        assert set(taken.find("cache/", only_changes=False).paths) == {b"/cache/a", b"/cache/deep", b"/cache/deep/b"}
        assert taken.find("cache", only_changes=True).paths == ()
        assert taken.find("[", only_changes=False).paths == ()


def test_closed_views_are_not_opened_again(store: Store, image: MakeImage) -> None:
    with opened(store, image({"a": "1"})) as depths:
        pass
    taken = census(depths, 0)
    assert (taken.unreadable, taken.seen) == (1, 0)
