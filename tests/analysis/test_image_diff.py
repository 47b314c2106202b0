"""Are two stacks of layers compared as they are seen?"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from overlayfs_demo.analysis.differing import difference
from overlayfs_demo.analysis.image_diff import ChangeKind, PathChange, diff_trees
from overlayfs_demo.analysis.inventory import opened
from overlayfs_demo.analysis.layer_walk import Place, walk
from overlayfs_demo.errors import ImageError
from tests.builders import OPAQUE, WHITEOUT, Content, device, directory, file, layers, symlink
from tests.images.builders import needs_root

pytestmark = needs_root


def changed(where: Path, before: Content, after: Content) -> list[tuple[str, ChangeKind]]:
    old, new = layers(where / "before", before), layers(where / "after", after)
    return [(one.path.decode(), one.change) for one in diff_trees(old, new).changed]


def test_paths_are_added_changed_and_deleted(tmp_path: Path) -> None:
    made = layers(tmp_path, {"a": "1", "b": "1", "d/x": "123"}, {"a": WHITEOUT, "b": "22", "c": "", "d": OPAQUE()})
    found = diff_trees(made[:1], made)
    assert found.added == (PathChange(b"c", ChangeKind.ADDED, None, 0),)
    assert found.changed == (PathChange(b"b", ChangeKind.CONTENT, 1, 2),)
    assert found.deleted == (
        PathChange(b"a", ChangeKind.DELETED, 1, None),
        PathChange(b"d/x", ChangeKind.DELETED, 3, None),
    )


def test_equal_trees_in_other_layers_do_not_differ(tmp_path: Path) -> None:
    one = layers(tmp_path / "one", {"d": {"a": "1", "l": symlink("a")}}, {"d/b": "2"})
    other = layers(tmp_path / "other", {"d": {"a": "1", "l": symlink("a"), "b": "2"}})
    found = diff_trees(one, other)
    assert (found.added, found.changed, found.deleted) == ((), (), ())


@pytest.mark.parametrize(
    "after", [file("12", mode=0o600), file("12", gid=5), file("12", mtime_ns=9), file("12", xattrs={"user.x": b""})]
)
def test_other_metadata_is_told_from_other_content(tmp_path: Path, after: object) -> None:
    assert changed(tmp_path, {"a": "12"}, {"a": after}) == [("a", ChangeKind.METADATA)]


@pytest.mark.parametrize(
    ("before", "after"),
    [("12", "13"), ("1", {}), (symlink("a"), symlink("b")), (device(1, 3), device(1, 5)), (symlink("1"), "1")],
)
def test_other_content_is_seen_in_every_kind_of_file(tmp_path: Path, before: object, after: object) -> None:
    assert changed(tmp_path, {"x": before}, {"x": after}) == [("x", ChangeKind.CONTENT)]


def test_a_directory_counts_for_its_mode_but_not_for_its_times(tmp_path: Path) -> None:
    old, new = layers(tmp_path, {"d": {}, "e": {}}, {"d": directory(mode=0o700), "e": {}})
    os.utime(new / "e", ns=(1, 1))
    assert [(one.path, one.change) for one in diff_trees([old], [new]).changed] == [(b"d", ChangeKind.METADATA)]


def test_an_opaque_mark_is_no_attribute_of_the_image(tmp_path: Path) -> None:
    assert changed(tmp_path, {"d": {}}, {"d": OPAQUE()}) == []


def test_what_both_show_from_one_layer_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = layers(tmp_path, {"a": "1", "b": "2"}, {"b": "3"}, {"c": "4"})
    read: list[bytes] = []
    real = Place.open

    def recorded(place: Place, number: int, flags: int) -> int:
        read.append(place.path)
        return real(place, number, flags)

    monkeypatch.setattr(Place, "open", recorded)
    assert [one.path for one in diff_trees(made[:1], made).changed] == [b"b"]
    assert set(read) == {b"b"}


def test_a_file_that_cannot_be_read_is_named_with_its_layer_and_a_remedy(tmp_path: Path) -> None:
    made = layers(tmp_path, {"a": "1"}, {"a": "2"})
    with opened(made) as roots:
        place = next(walk(roots))
        (made[0] / "a").unlink()
        with pytest.raises(ImageError, match=r"layer0: '/a' cannot be read: No such file .*: run this as root"):
            difference(place, 1, 2)


def test_a_layer_that_is_no_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ImageError, match="file: Not a directory: name the directories that were built"):
        diff_trees([], [tmp_path / "file"])
