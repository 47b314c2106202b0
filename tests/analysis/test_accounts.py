"""Is every byte of an image accounted for, and every file that is not seen any more explained?"""

from __future__ import annotations

import os
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from overlayfs_demo.analysis.accounts import Hidden, Tally
from overlayfs_demo.analysis.ghosts import extract_ghosts
from overlayfs_demo.analysis.image_diff import diff_trees
from overlayfs_demo.analysis.stacked_view import Why
from overlayfs_demo.analysis.waste import Analysis, analyse
from overlayfs_demo.images import sample_image
from overlayfs_demo.images.build import build_layers
from overlayfs_demo.images.view_compare import opened
from overlayfs_demo.mounts.layer_facts import LayerFacts, walked
from overlayfs_demo.overlay.stack import Stack
from tests.builders import OPAQUE, WHITEOUT, Content, directory, file, hardlink, layers, symlink
from tests.images.builders import needs_root
from tests.images.test_real_archives import ARCHIVES, golden, real_archive

pytestmark = needs_root


def analysed(where: Path, *contents: Content, **more: Any) -> Analysis:
    """Layers of these contents, analysed."""
    made = layers(where, *contents)
    return analyse(made, [f"step {number}" for number in range(len(made))], **more)


def told(found: Sequence[Hidden]) -> list[tuple[str, int, int, Why, int]]:
    return [(one.path.decode(), one.shipped_by, one.hidden_by, one.why, one.wasted) for one in found]


# --- images ----------------------------------------------------------------------------------------


def test_the_teaching_images_cache_is_shipped_by_layer_3_and_dies_in_layer_4(tmp_path: Path) -> None:
    with (tmp_path / "teaching.tar").open("wb") as out:
        sample_image.write_teaching_image(out)
    built = build_layers(tmp_path / "teaching.tar", tmp_path / "out")
    found = analyse([one.directory for one in built], [one.instruction for one in built])
    _, _, third, fourth = found.layers
    assert (third.wasted, third.live) == (3_000_000, third.shipped - 3_000_000)
    assert third.shipped == built[2].size
    assert (fourth.shipped, fourth.deleted) == (0, Tally(files=2, directories=1, size=3_000_000))
    assert fourth.title == "RUN rm -r $HOME/.cache"
    assert [(path, shipped, killed, why, size) for path, shipped, killed, why, size in told(found.ghosts)] == [
        ("root/.cache/packages.bin", 3, 4, Why.DELETED, 1_500_000),
        ("root/.cache/sources.bin", 3, 4, Why.DELETED, 1_500_000),
    ]
    assert found.wasted == sum(one.wasted for one in found.hidden)


def test_dive_sees_none_of_what_the_teaching_image_wastes(tmp_path: Path) -> None:
    with (tmp_path / "teaching.tar").open("wb") as out:
        sample_image.write_teaching_image(out)
    built = build_layers(tmp_path / "teaching.tar", tmp_path / "out")
    found = analyse([one.directory for one in built], [""] * len(built), duplicates=False)
    assert found.wasted / found.shipped > 0.99
    assert found.dive_score > 0.99


def test_what_is_live_of_a_real_image_is_what_docker_shows(tmp_path: Path) -> None:
    built = build_layers(real_archive(ARCHIVES[0]), tmp_path / "out")
    found = analyse([one.directory for one in built], [one.instruction for one in built])
    shows = [line.split(" ") for line in golden()]
    # The listing gives links no size; in Docker's SIZE, they have the length of their targets.
    targets = sum(len(words[8]) for words in shows if words[0] == "l")
    assert found.live == targets + sum(int(words[4]) for words in shows)
    assert found.wasted == sum(one.wasted for one in found.hidden)
    assert sum(layer.added.paths - layer.deleted.paths for layer in found.layers) == len(shows)


# --- what a layer does -----------------------------------------------------------------------------


def test_removing_a_directory_deletes_all_that_was_in_it(tmp_path: Path) -> None:
    found = analysed(tmp_path, {"d": {"a": "12", "e": {"b": "345", "link": symlink("b")}}, "f": "6"}, {"d": WHITEOUT})
    assert found.layers[1].deleted == Tally(files=3, directories=2, size=6)
    assert found.layers[1].deleted.paths == 5
    assert told(found.ghosts) == [("d/a", 1, 2, Why.DELETED, 2), ("d/e/b", 1, 2, Why.DELETED, 3)]
    # The link ships its target, "b", and nothing that could be extracted.
    assert (found.shipped, found.live, found.wasted) == (7, 1, 6)


def test_an_opaque_directory_hides_what_it_does_not_hold_again(tmp_path: Path) -> None:
    found = analysed(
        tmp_path, {"d": {"same": "11", "other": "22", "gone": "33"}}, {"d": OPAQUE({"same": "11", "other": "2"})}
    )
    assert told(found.hidden) == [
        ("d/gone", 1, 2, Why.OPAQUE, 2),
        ("d/other", 1, 2, Why.OVERWRITTEN, 2),
        ("d/same", 1, 2, Why.METADATA_ONLY, 2),
    ]
    assert told(found.ghosts) == [("d/gone", 1, 2, Why.OPAQUE, 2)]
    report = found.layers[1]
    assert (report.deleted, report.added) == (Tally(files=1, size=2), Tally())
    assert (report.changed, report.unchanged) == (Tally(files=1, size=1), Tally(files=1, directories=1, size=2))


def test_an_opaque_mark_of_an_ordinary_users_layer_counts_too(tmp_path: Path) -> None:
    marked = directory({}, xattrs={"user.overlay.opaque": b"y"})
    assert told(analysed(tmp_path, {"d": {"a": "1"}}, {"d": marked}).ghosts) == [("d/a", 1, 2, Why.OPAQUE, 1)]


@pytest.mark.parametrize(
    "copy",
    [file("data", mode=0o600), file("data", uid=7), file("data", mtime_ns=1), file("data", xattrs={"user.x": b"y"})],
)
def test_a_copy_for_its_metadata_wastes_the_data(tmp_path: Path, copy: Any) -> None:
    found = analysed(tmp_path, {"a": file("data", mode=0o644)}, {"a": copy})
    assert told(found.hidden) == [("a", 1, 2, Why.METADATA_ONLY, 4)]
    assert found.layers[1].changed == Tally(files=1, size=4)
    assert found.ghosts == ()


def test_data_of_the_same_size_is_read(tmp_path: Path) -> None:
    long = "x" * 700_000
    found = analysed(tmp_path, {"a": long + "1", "b": long}, {"a": long + "2", "b": long})
    assert [one.why for one in found.hidden] == [Why.OVERWRITTEN, Why.METADATA_ONLY]
    assert (found.layers[1].changed.files, found.layers[1].unchanged.files) == (1, 1)


def test_a_hard_linked_file_counts_once_and_lives_as_long_as_one_name(tmp_path: Path) -> None:
    base: Content = {"a": "12345", "b": hardlink("a"), "c": hardlink("a")}
    found = analysed(tmp_path, base, {"a": WHITEOUT, "b": "1"}, {"c": WHITEOUT})
    assert found.layers[0].added == Tally(files=3, size=5)
    assert [(report.shipped, report.live) for report in found.layers] == [(5, 0), (1, 1), (0, 0)]
    assert told(found.hidden) == [
        ("a", 1, 2, Why.DELETED, 0),
        ("b", 1, 2, Why.OVERWRITTEN, 0),
        ("c", 1, 3, Why.DELETED, 5),
    ]
    assert [report.deleted.size for report in found.layers] == [0, 0, 5]


def test_a_hard_linked_file_with_one_name_left_is_live(tmp_path: Path) -> None:
    found = analysed(tmp_path, {"a": "12345", "b": hardlink("a")}, {"a": WHITEOUT})
    assert (found.live, found.wasted) == (5, 0)
    assert told(found.ghosts) == [("a", 1, 2, Why.DELETED, 0)]


def test_live_duplicates_are_told_and_are_no_waste(tmp_path: Path) -> None:
    found = analysed(tmp_path, {"a": "data", "b": "data", "c": hardlink("a"), "x": "atad"}, {"d/e": "data"})
    [duplicate] = found.duplicates
    assert [(one.path, one.layer, one.live) for one in duplicate.copies] == [
        (b"a", 1, True),
        (b"b", 1, True),
        (b"d/e", 2, True),
    ]
    assert (duplicate.size, found.wasted, found.hidden) == (4, 0, ())


def test_a_file_that_was_moved_is_a_duplicate_of_which_one_copy_is_hidden(tmp_path: Path) -> None:
    found = analysed(tmp_path, {"a": "data"}, {"a": WHITEOUT, "b": "data"})
    assert [(one.path, one.live) for one in found.duplicates[0].copies] == [(b"a", False), (b"b", True)]
    assert found.wasted == 4


def test_duplicates_are_looked_for_only_if_wanted(tmp_path: Path) -> None:
    assert analysed(tmp_path, {"a": "data", "b": "data"}, duplicates=False).duplicates == ()


def test_a_file_deleted_and_made_again_is_no_ghost_and_ships_twice(tmp_path: Path) -> None:
    found = analysed(tmp_path, {"a": "1"}, {"a": WHITEOUT}, {"a": "22"})
    assert told(found.hidden) == [("a", 1, 2, Why.DELETED, 1)]
    assert found.ghosts == ()
    assert (found.layers[2].added, found.wasted) == (Tally(files=1, size=2), 1)


def test_ghosts_of_one_path_come_newest_first(tmp_path: Path) -> None:
    found = analysed(tmp_path, {"k": "1"}, {"k": "22"}, {"k": "333"}, {"k": WHITEOUT})
    assert told(found.ghosts) == [
        ("k", 3, 4, Why.DELETED, 3),
        ("k", 2, 3, Why.OVERWRITTEN, 2),
        ("k", 1, 2, Why.OVERWRITTEN, 1),
    ]


def test_a_file_in_the_place_of_a_directory_hides_all_below(tmp_path: Path) -> None:
    found = analysed(tmp_path, {"d": {"a": "1", "b": "2"}}, {"d": "now a file"}, {"d": {"b": "3"}})
    assert told(found.hidden) == [
        ("d", 2, 3, Why.OVERWRITTEN, 10),
        ("d/a", 1, 2, Why.OVERWRITTEN, 1),
        ("d/b", 1, 2, Why.OVERWRITTEN, 1),
    ]
    assert [one.path for one in found.ghosts] == [b"d/a"]
    assert (found.layers[1].deleted.files, found.layers[1].changed.files) == (2, 1)


def test_a_directory_that_only_holds_something_new_is_unchanged(tmp_path: Path) -> None:
    made = layers(tmp_path, {"d": {"a": "1"}}, {"d": {"b": "2"}})
    os.utime(made[1] / "d", ns=(5, 5))
    report = analyse(made, ["", ""]).layers[1]
    assert (report.added, report.unchanged) == (Tally(files=1, size=1), Tally(directories=1))


def test_an_opaque_mark_of_a_layers_root_hides_nothing(tmp_path: Path) -> None:
    """The kernel merges the roots of all layers, and `unpack` writes whiteouts instead."""
    made = layers(tmp_path, {"a": "1"}, {"b": "2"})
    os.setxattr(made[1], "trusted.overlay.opaque", b"y")
    assert analyse(made, ["", ""]).hidden == ()


def test_an_opaque_directory_is_not_a_whiteout(tmp_path: Path) -> None:
    made = layers(tmp_path, {"d": {"a": "1"}, "b": "2"}, {"d": {"c": "3"}, "b": WHITEOUT})
    os.setxattr(made[1] / "d", "trusted.overlay.opaque", b"y")
    report = analyse(made, ["", ""]).layers[1]
    count = walked(LayerFacts("2", "", str(made[1]))).count
    assert count is not None
    assert (report.whiteouts, report.opaque, count.whiteouts, count.entries) == (1, 1, 1, 2)
    (made[1] / "d/.wh..wh..opq").touch()
    (made[1] / "d/.wh.a").touch()
    assert walked(LayerFacts("2", "", str(made[1]))).count == count._replace(whiteouts=2)


def test_titles_must_be_as_many_as_layers(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a title"):
        analyse(layers(tmp_path, {}, {}), ["one"])


# --- dive's score ----------------------------------------------------------------------------------


def test_dives_score_of_a_file_replaced_by_a_larger_one_is_low(tmp_path: Path) -> None:
    found = analysed(tmp_path, {"a": "1"}, {"a": "1" * 99})
    assert found.dive_score == 1 / 100
    assert found.wasted == 1


def test_dives_score_of_a_deleted_file_counts_it_in_full(tmp_path: Path) -> None:
    assert analysed(tmp_path, {"a": "1" * 30, "b": "1" * 70}, {"a": WHITEOUT}).dive_score == 0.7


def test_dives_score_follows_its_own_example_with_the_directories_listed(tmp_path: Path) -> None:
    """dive's TestEfficency says 0.75, since no layer of it lists /etc/nginx; a real tar does, and then 8000 count."""
    nginx = {"nginx.conf": "1" * 2000, "public": "2" * 3000}
    found = analysed(
        tmp_path,
        {"etc/nginx": nginx},
        {"etc": {"nginx/nginx.conf": "1" * 5000, "athing": "3" * 10000}},
        {"etc/nginx": WHITEOUT},
    )
    assert found.dive_score == (15000 + 8000) / (20000 + 8000)


def test_dives_score_does_not_know_opaque_directories(tmp_path: Path) -> None:
    assert analysed(tmp_path, {"d/a": "1" * 50}, {"d": OPAQUE()}).dive_score == 1.0


def test_dives_score_takes_a_hard_link_for_nothing(tmp_path: Path) -> None:
    assert analysed(tmp_path, {"a": "1" * 50, "b": hardlink("a")}, {"b": "1" * 10}).dive_score == 50 / 60


def test_dives_score_of_a_layer_ends_at_a_whiteout_of_nothing(tmp_path: Path) -> None:
    """`.wh.x` sorts before `a`, so the copy of `a` is not counted."""
    assert analysed(tmp_path, {"a": "1"}, {"x": WHITEOUT, "a": "1"}).dive_score == 1.0


def test_dives_score_of_nothing_is_one(tmp_path: Path) -> None:
    assert analysed(tmp_path, {}).dive_score == 1.0


# --- a slow and obvious model ----------------------------------------------------------------------

NAMES = ["a", "b", "c"]


def random_layer(chance: random.Random, depth: int = 0) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for name in NAMES:
        kind = chance.choice(["none", "none", "file", "link", "whiteout", "directory", "directory", "opaque"])
        files = [other for other, thing in content.items() if isinstance(thing, str)]
        if kind == "file":
            content[name] = chance.choice(["", "1", "22", "33", "4444"])
        elif kind == "link" and files:
            content[name] = hardlink(chance.choice(files))
        elif kind == "whiteout":
            content[name] = WHITEOUT
        elif kind in ("directory", "opaque") and depth < 3:
            inner = random_layer(chance, depth + 1)
            content[name] = OPAQUE(inner) if kind == "opaque" else directory(inner)
    return content


Says = dict[str, tuple[str, Any]]


def flat(content: Mapping[Any, Any], above: str = "") -> Says:
    """What a layer says, by path: a kind, and for a file where its data is: the path first given it, and the data."""
    says: Says = {}
    for name, thing in content.items():
        path = above + name
        if thing is WHITEOUT:
            says[path] = ("whiteout", None)
        elif isinstance(thing, str):
            says[path] = ("file", (path, thing))
        elif hasattr(thing, "target"):
            says[path] = says[above + thing.target]
        else:
            says[path] = ("opaque" if thing.xattrs else "directory", None)
            says |= flat(thing.content, path + "/")
    return says


def seen(stack: Sequence[Says], path: str) -> int | None:
    """The number of the layer that shows a path, by the definition: from the top down, who speaks first?"""
    parents = [path[:position] for position, one in enumerate(path) if one == "/"]
    for number in range(len(stack), 0, -1):
        says = stack[number - 1]
        if path in says:
            return number if says[path][0] != "whiteout" else None
        if any(says.get(parent, ("directory",))[0] != "directory" for parent in parents):
            return None
    return None


def view(stack: Sequence[Says]) -> dict[str, int]:
    every = {path for says in stack for path in says}
    return {path: number for path in every if (number := seen(stack, path)) is not None}


@pytest.mark.parametrize("seed", range(40))
def test_the_books_agree_with_a_slow_and_obvious_model(tmp_path: Path, seed: int) -> None:
    print(f"seed {seed}")
    chance = random.Random(seed)
    contents = [random_layer(chance) for _ in range(chance.randint(1, 5))]
    made = layers(tmp_path, *contents)
    found = analyse(made, [""] * len(made))
    stack = [flat(content) for content in contents]
    views = [view(stack[:number]) for number in range(len(stack) + 1)]
    final = views[-1]

    def bodies(names: Sequence[tuple[str, int]]) -> dict[tuple[int, str], int]:
        """The files behind these names, with their sizes: by layer and first name."""
        behind = [(number, stack[number - 1][path][1]) for path, number in names if stack[number - 1][path][1]]
        return {(number, body[0]): len(body[1]) for number, body in behind}

    shipped = bodies([(path, number) for number, says in enumerate(stack, 1) for path in says])
    live = bodies(list(final.items()))
    for number, report in enumerate(found.layers, start=1):
        assert report.shipped == sum(size for (layer, _), size in shipped.items() if layer == number)
        assert report.live == sum(size for (layer, _), size in live.items() if layer == number)
        assert report.added.size + report.changed.size + report.unchanged.size == report.shipped
        before, after = views[number - 1], views[number]
        assert report.added.paths == len(after.keys() - before.keys())
        assert report.deleted.paths == len(before.keys() - after.keys())
        assert report.changed.paths + report.unchanged.paths == sum(
            path in before and stack[number - 1][path][0] != "whiteout" for path in stack[number - 1]
        )
    hidden = {
        (path, shown, number)
        for number in range(1, len(stack) + 1)
        for path, shown in views[number - 1].items()
        if stack[shown - 1][path][0] == "file" and views[number].get(path) != shown
    }
    assert {(one.path.decode(), one.shipped_by, one.hidden_by) for one in found.hidden} == hidden
    assert sum(one.wasted for one in found.hidden) == found.wasted
    assert {one.path.decode() for one in found.ghosts} == {path for path, _, _ in hidden} - final.keys()
    extracted = extract_ghosts(found.ghosts, made, tmp_path / "ghosts")
    assert [path.read_text() for path in extracted] == [
        stack[one.shipped_by - 1][one.path.decode()][1][1] for one in found.ghosts
    ]
    with opened(Stack(tuple(os.fsencode(one) for one in reversed(made)))) as engine:
        for path in {path for says in stack for path in says}:
            says = engine.which(b"/" + path.encode()).statements
            assert next((len(made) - place for place, one in enumerate(says) if one.wins), None) == final.get(path)
    split = chance.randint(0, len(made))
    changes = diff_trees(made[:split], made)
    assert {one.path.decode() for one in changes.added} == final.keys() - views[split].keys()
    assert {one.path.decode() for one in changes.deleted} == views[split].keys() - final.keys()
