"""Is it told what each layer says about a path, who wins, and why the others do not?"""

from __future__ import annotations

from pathlib import Path

import pytest

from overlayfs_demo.errors import ImageError, UsageError
from overlayfs_demo.images.layerwords import LayerWord, Word, layer_words
from tests.builders import OPAQUE, WHITEOUT, Content, device, fifo, layers, symlink
from tests.images.builders import needs_root

pytestmark = needs_root


def words(where: Path, path: str, *contents: Content) -> list[tuple[Word, bool, int | None]]:
    return [(one.word, one.wins, one.hidden_by) for one in layer_words(layers(where, *contents), path)]


def test_the_topmost_file_wins_and_hides_those_below(tmp_path: Path) -> None:
    assert words(tmp_path, "/etc/motd", {"etc/motd": "1"}, {"etc/x": ""}, {"etc/motd": "2"}) == [
        (Word.FILE, False, 3), (Word.ABSENT, False, None), (Word.FILE, True, None),
    ]


def test_directories_win_together(tmp_path: Path) -> None:
    assert words(tmp_path, "d", {"d": {}}, {"d": {"a": ""}}) == [(Word.DIRECTORY, True, None)] * 2


def test_of_a_whiteout_nobody_wins(tmp_path: Path) -> None:
    assert words(tmp_path, "a", {"a": "1"}, {"a": WHITEOUT}) == [(Word.FILE, False, 2), (Word.WHITEOUT, False, None)]


def test_an_opaque_directory_wins_alone(tmp_path: Path) -> None:
    assert words(tmp_path, "d", {"d": {}}, {"d": OPAQUE()}, {"d": {}}) == [
        (Word.DIRECTORY, False, 2), (Word.OPAQUE_DIRECTORY, True, None), (Word.DIRECTORY, True, None),
    ]


def test_a_file_below_directories_is_hidden_by_the_lowest_of_them(tmp_path: Path) -> None:
    assert words(tmp_path, "d", {"d": {}}, {"d": "file"}, {"d": {}}, {"d": {}}) == [
        (Word.DIRECTORY, False, 2), (Word.FILE, False, 3), (Word.DIRECTORY, True, None), (Word.DIRECTORY, True, None),
    ]


@pytest.mark.parametrize(("parent", "word"), [
    (WHITEOUT, Word.PARENT_WHITEOUT), (OPAQUE(), Word.PARENT_OPAQUE), ("file", Word.PARENT_NOT_DIRECTORY),
    (symlink("/etc"), Word.PARENT_NOT_DIRECTORY),
])
def test_a_parent_hides_the_path_in_all_layers_below(tmp_path: Path, parent: object, word: Word) -> None:
    made = layers(tmp_path, {"d/e/a": "1"}, {"d": parent})
    assert layer_words(made, "d/e/a") == (
        LayerWord(1, Word.FILE, None, False, 2), LayerWord(2, word, b"d", False, None),
    )


def test_a_file_in_an_opaque_parent_wins(tmp_path: Path) -> None:
    assert words(tmp_path, "d/a", {"d/a": "1"}, {"d": OPAQUE({"a": "2"})}, {"d": {}}) == [
        (Word.FILE, False, 2), (Word.FILE, True, None), (Word.ABSENT, False, None),
    ]


def test_a_parent_deleted_and_made_again_does_not_bring_the_file_back(tmp_path: Path) -> None:
    assert words(tmp_path, "d/a", {"d/a": "1"}, {"d": WHITEOUT}, {"d": {}}) == [
        (Word.FILE, False, 2), (Word.PARENT_WHITEOUT, False, None), (Word.ABSENT, False, None),
    ]


def test_links_and_special_files_are_called_so(tmp_path: Path) -> None:
    contents: list[Content] = [{"a": symlink("x")}, {"a": fifo()}, {"a": device(1, 3)}]
    assert [word for word, _, _ in words(tmp_path, "a", *contents)] == [Word.SYMLINK, Word.SPECIAL, Word.SPECIAL]


def test_the_root_is_a_directory_of_every_layer(tmp_path: Path) -> None:
    assert words(tmp_path, "/", {}, {"a": "1"}) == [(Word.DIRECTORY, True, None)] * 2


def test_a_path_that_climbs_out_is_wrong_usage(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"'/a/\.\./b' climbs out .* write a path as it is seen"):
        layer_words(layers(tmp_path, {}), "/a/../b")


def test_a_layer_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="nowhere: No such file"):
        layer_words([tmp_path / "nowhere"], "/a")
