"""Does the walk of all layers at once see what a slow walk of each sees, and is what is counted on it right?"""

from __future__ import annotations

import os
import random
import stat
import tracemalloc
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from overlayfs_demo.analysis import layer_walk, same_data
from overlayfs_demo.analysis.image_diff import diff_trees
from overlayfs_demo.analysis.inventory import opened
from overlayfs_demo.analysis.layer_walk import walk
from overlayfs_demo.analysis.stacked_view import Why
from overlayfs_demo.analysis.waste import analyse
from overlayfs_demo.errors import ImageError
from overlayfs_demo.overlay.merge import Says
from overlayfs_demo.store.load import load
from overlayfs_demo.store.store import Store
from tests.analysis.test_accounts import random_layer
from tests.builders import WHITEOUT, fifo, hardlink, layers, sparse
from tests.images import builders
from tests.images.builders import docker_save, needs_root

pytestmark = needs_root

Names = tuple[bytes, ...]


def by_names(layer: Path) -> dict[Names, Path]:
    """Everything in a layer but its root, by the names of its path, in order."""
    base = len(layer.parts)
    return dict(sorted((tuple(map(os.fsencode, path.parts[base:])), path) for path in layer.rglob("*")))


def is_whiteout(path: Path) -> bool:
    return stat.S_ISCHR(path.lstat().st_mode)


def random_stack(where: Path, seed: int) -> list[Path]:
    print(f"seed {seed}")
    chance = random.Random(seed)
    # Names that sort otherwise with a slash than without.
    contents = [random_layer(chance) | {"a-": "0", "a\n": "1"} for _ in range(chance.randint(1, 5))]
    return layers(where, *contents)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("descriptors", [1, 128])
def test_every_layers_things_come_once_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, descriptors: int
) -> None:
    monkeypatch.setattr(layer_walk, "_OPEN_DIRECTORIES", descriptors)
    made = random_stack(tmp_path, seed)
    expected: defaultdict[Names, dict[int, int]] = defaultdict(dict)
    for number, layer in enumerate(made, start=1):
        for names, path in by_names(layer).items():
            expected[names][number] = path.lstat().st_ino
    before = os.listdir("/proc/self/fd")
    with opened(made) as roots:
        places = [
            (tuple(place.path.split(b"/")), place.depth, {number: one.inode for number, one in place.things.items()})
            for place in walk(roots)
        ]
    assert places == [(names, len(names), expected[names]) for names in sorted(expected)]
    assert os.listdir("/proc/self/fd") == before


# --- dive's score, by dive's own way ---------------------------------------------------------------


class Tree(dict[bytes, "Tree"]):
    """dive's stacked tree."""

    size = 0
    directory = True

    def total(self) -> int:
        return self.size + sum(child.total() for child in self.values())


def found(tree: Tree, names: Names) -> Tree | None:
    for name in names:
        if name not in tree:
            return None
        tree = tree[name]
    return tree


def dives_leaves(things: dict[Names, Path]) -> Iterator[Names]:
    parents = {names[:length] for names in things for length in range(len(names))}
    leaves = [names for names in things if names not in parents]
    return iter(sorted(leaves, key=lambda one: (*one[:-1], b".wh." * is_whiteout(things[one]) + one[-1])))


def dives_score(made: list[Path]) -> float:
    stacked = Tree()
    sizes: defaultdict[Names, list[int]] = defaultdict(list)
    for layer in made:
        things, size, inodes = by_names(layer), defaultdict[Names, int](int), set()
        for names, path in things.items():
            status = path.lstat()
            if stat.S_ISREG(status.st_mode) and status.st_ino not in inodes:
                inodes.add(status.st_ino)
                size[names] = status.st_size
        for names in dives_leaves(things):
            if not is_whiteout(things[names]):
                sizes[names].append(size[names])
                continue
            hidden = found(stacked, names)
            if hidden is None:
                break
            sizes[names].append(hidden.total() if hidden.directory else 0)
        for names, path in things.items():
            above = found(stacked, names[:-1])
            if is_whiteout(path):
                if above is not None:
                    above.pop(names[-1], None)
                continue
            assert above is not None
            node = above.setdefault(names[-1], Tree())
            node.size, node.directory = size[names], path.is_dir() and not path.is_symlink()
    total = sum(map(sum, sizes.values()))
    return sum(map(min, sizes.values())) / total if total else 1.0


@pytest.mark.parametrize("seed", range(100, 140))
def test_dives_score_is_what_dives_own_way_gives(tmp_path: Path, seed: int) -> None:
    made = random_stack(tmp_path, seed)
    assert analyse(made, [""] * len(made), duplicates=False).dive_score == dives_score(made)


# --- files with the same data ----------------------------------------------------------------------


def same_files(made: list[Path]) -> set[tuple[int, frozenset[tuple[int, bytes]]]]:
    """The sizes of the data that stands in several files, and their layers and first names."""
    first: dict[tuple[int, int], tuple[Names, bytes]] = {}
    for number, layer in enumerate(made, start=1):
        for names, path in by_names(layer).items():
            if path.is_file() and not path.is_symlink():
                first.setdefault((number, path.lstat().st_ino), (names, path.read_bytes()))
    by_data: defaultdict[bytes, set[tuple[int, bytes]]] = defaultdict(set)
    for (number, _), (names, data) in first.items():
        by_data[data].add((number, b"/".join(names)))
    return {(len(data), frozenset(files)) for data, files in by_data.items() if data and len(files) > 1}


@pytest.mark.parametrize("seed", range(200, 210))
def test_duplicates_are_the_files_with_the_same_data(tmp_path: Path, seed: int) -> None:
    made = random_stack(tmp_path, seed)
    duplicates = analyse(made, [""] * len(made)).duplicates
    copies = [(one.size, [(copy.layer, copy.path) for copy in one.copies]) for one in duplicates]
    assert {(size, frozenset(ones)) for size, ones in copies} == same_files(made)
    assert all(ones == sorted(ones) for _, ones in copies)


def read_files(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The paths of the files that are read for their data from now on."""
    read: list[bytes] = []
    real = same_data._digest

    def recorded(root: tuple[str, int], path: bytes) -> bytes:
        read.append(path)
        return real(root, path)

    monkeypatch.setattr(same_data, "_digest", recorded)
    return read


STORED = [
    builders.layer({"a": "one", "b": "two", "c": "six", "d": builders.hard_link("b"), "e": "four"}),
    builders.layer({"z": "one", "y": builders.Entry(data=b"five", mode=0)}),
]


def test_with_checksums_only_files_that_agree_in_them_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "image.tar").write_bytes(docker_save(STORED))
    [loaded] = load(Store(tmp_path / "store"), tmp_path / "image.tar")
    made = [layer.directory for layer in loaded.image.layers]
    recipes = [layer.recipe for layer in loaded.image.layers]
    read = read_files(monkeypatch)
    duplicates = analyse(made, ["", ""], recipes=recipes).duplicates
    assert [[copy.path for copy in one.copies] for one in duplicates] == [[b"a", b"z"]]
    # No recipe refers to a file that its owner may not read, so those of its size are all read.
    assert sorted(read) == [b"a", b"e", b"y", b"z"]


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:-9])])
def test_without_a_sound_recipe_the_files_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Any
) -> None:
    (tmp_path / "image.tar").write_bytes(docker_save(STORED))
    [loaded] = load(Store(tmp_path / "store"), tmp_path / "image.tar")
    recipes = [layer.recipe for layer in loaded.image.layers]
    damage(recipes[0])
    read = read_files(monkeypatch)
    duplicates = analyse([layer.directory for layer in loaded.image.layers], ["", ""], recipes=recipes).duplicates
    assert [[copy.path for copy in one.copies] for one in duplicates] == [[b"a", b"z"]]
    assert {b"a", b"b", b"c"} <= set(read)


def test_a_checksum_of_a_file_that_is_another_now_does_not_count(tmp_path: Path) -> None:
    (tmp_path / "image.tar").write_bytes(docker_save(STORED))
    [loaded] = load(Store(tmp_path / "store"), tmp_path / "image.tar")
    made = [layer.directory for layer in loaded.image.layers]
    (made[0] / "a").write_text("five")
    (made[1] / "z").write_text("five")
    [duplicate] = analyse(made, ["", ""], recipes=[layer.recipe for layer in loaded.image.layers]).duplicates
    assert [copy.path for copy in duplicate.copies] == [b"a", b"y", b"z"]


def test_no_room_for_temporary_files_is_told_with_a_remedy() -> None:
    problem = pytest.raises(ImageError, match=r"cannot be compared: .*: free some space for temporary files")
    with problem, same_data.same_data() as same:
        same._database.execute("PRAGMA max_page_count = 10")
        for number in range(2000):
            same.add(1, [b"x" * 200 + b"%d" % number], 1, live=True)


# --- hostile layers --------------------------------------------------------------------------------

TERABYTE = 1 << 40


def test_holes_are_not_read_and_count_as_the_zeros_that_they_are(tmp_path: Path) -> None:
    hole, ended = sparse(TERABYTE, {}), sparse(TERABYTE, {TERABYTE - 1: b"x"})
    written = sparse(TERABYTE, {1 << 30: bytes(1 << 20)})
    made = layers(tmp_path, {"a": hole, "b": ended, "c": hole}, {"a": ended, "c": written})
    found = analyse(made, ["", ""])
    assert [(one.path, one.why) for one in found.hidden] == [(b"a", Why.OVERWRITTEN), (b"c", Why.METADATA_ONLY)]
    assert [[copy.path for copy in one.copies] for one in found.duplicates] == [[b"a", b"c", b"c"], [b"b", b"a"]]
    assert [one.path for one in diff_trees(made[:1], made).changed] == [b"a"]


def test_a_tree_of_600_levels_is_walked(tmp_path: Path) -> None:
    deep = "/".join(["d"] * 600)
    made = layers(tmp_path, {f"{deep}/a": "1", f"{deep}/b": "1"}, {f"{deep}/a": WHITEOUT}, {"d": WHITEOUT})
    found = analyse(made, [""] * 3)
    assert [(one.path.count(b"/"), one.hidden_by) for one in found.hidden] == [(600, 2), (600, 3)]
    assert found.layers[2].deleted.directories == 600


def test_fifos_and_names_with_newlines_are_things_like_others(tmp_path: Path) -> None:
    lower: dict[str | bytes, Any] = {"f": fifo(), "d/\n": "1", b"\xff": "2"}
    made = layers(tmp_path, lower, {"f": fifo(), "d/\n": "2", "g": fifo()})
    found = analyse(made, ["", ""])
    assert [(one.path, one.why) for one in found.hidden] == [(b"d/\n", Why.OVERWRITTEN)]
    assert (found.layers[1].unchanged.files, found.layers[1].changed.files, found.layers[1].added.files) == (1, 1, 1)


def test_the_bytes_of_a_file_of_several_names_are_wasted_once_with_the_first_hidden_last(tmp_path: Path) -> None:
    linked = {"a": "12345", "b": hardlink("a"), "c": hardlink("a")}
    found = analyse(layers(tmp_path, {"d": linked}, {"d": {"b": WHITEOUT}}, {"d": WHITEOUT}), [""] * 3)
    assert [(one.path, one.hidden_by, one.wasted) for one in found.hidden] == [
        (b"d/a", 3, 5),
        (b"d/b", 2, 0),
        (b"d/c", 3, 0),
    ]


def test_memory_does_not_grow_with_the_number_of_files(tmp_path: Path) -> None:
    """A table of all files takes some hundred bytes for each, and would so be some hundred thousand more."""
    peaks = []
    for number, directories in enumerate((10, 10, 30)):  # the first time, what is loaded only once comes on top
        content = {f"d{one}": {f"f{two}": "" for two in range(40)} for one in range(directories)}
        made = layers(tmp_path / str(number), content, {"d0": {"f0": "1"}})
        tracemalloc.start()
        analyse(made, ["", ""])
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] - peaks[1] < 50_000


def test_what_a_directory_says_is_read_before_what_is_in_it(tmp_path: Path) -> None:
    made = layers(tmp_path, {"d": {"a": "1"}, "d-": "2"})
    with opened(made) as roots:
        says = [(place.path, place.things[1].says, place.filled) for place in walk(roots)]
    assert says == [(b"d", Says.DIRECTORY, [1]), (b"d/a", Says.FILE, []), (b"d-", Says.FILE, [])]
