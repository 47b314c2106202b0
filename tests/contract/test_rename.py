"""What happens in the view and on disk when names move?"""

from __future__ import annotations

import os

import pytest

from overlayfs_demo.linux import xattr
from overlayfs_demo.linux.syscalls import RENAME_EXCHANGE, RENAME_NOREPLACE
from tests.builders import OPAQUE, WHITEOUT, symlink
from tests.contract.conftest import Mount
from tests.contract.marks import differs
from tests.contract.subjects import Subject


def redirect(view: Subject, path: str) -> bytes | None:
    return xattr.get(os.fsencode(view.upper(path)), "trusted.overlay.redirect")


def test_renamed_lower_file_is_copied_up_and_leaves_a_whiteout(mounted: Mount) -> None:
    view = mounted({"a": "data"})
    view.rename("a", "b")
    assert view.names() == [b"b"]
    assert view.read("b") == b"data"
    assert view.is_whiteout("a")
    view.remount()
    assert view.read("b") == b"data"


def test_renamed_upper_only_file_leaves_nothing(mounted: Mount) -> None:
    view = mounted({"d/": None}, upper={"new": "1"})
    view.rename("new", "d/moved")
    assert view.upper_names() == ["d", "d/moved"]
    assert view.read("d/moved") == b"1"


def test_rename_replaces_a_lower_file(mounted: Mount) -> None:
    view = mounted({"a": "1", "b": "2"})
    view.rename("a", "b")
    assert view.names() == [b"b"]
    assert view.read("b") == b"1"
    view.remount()
    assert view.read("b") == b"1"


def test_rename_of_a_symlink_moves_the_link(mounted: Mount) -> None:
    view = mounted({"l": symlink("target"), "d/": None})
    view.rename("l", "d/l")
    assert view.readlink("d/l") == b"target"


def test_rename_onto_a_whiteout(mounted: Mount) -> None:
    view = mounted({"a": "1", "gone": "2", "d/x": "3", "dgone/y": "4"}, upper={"gone": WHITEOUT, "dgone": WHITEOUT})
    view.rename("a", "gone")
    view.rename("d", "dgone")
    assert view.names() == [b"dgone", b"gone"]
    assert view.names("dgone") == [b"x"]
    view.remount()
    assert view.read("gone") == b"1"
    assert view.names("dgone") == [b"x"]
    assert view.work_is_empty()


def test_new_directory_renamed_onto_a_whiteout_stays_what_it_was(mounted: Mount) -> None:
    view = mounted({"gone/low": "1"}, upper={"gone": WHITEOUT})
    view.mkdir("new")
    view.write("new/own", b"2")
    view.rename("new", "gone")
    assert view.names() == [b"gone"]
    assert view.names("gone") == [b"own"]
    assert view.upper_names() == ["gone", "gone/own"]
    view.remount()
    assert view.names("gone") == [b"own"]


def test_renamed_lower_directory_keeps_its_content_by_a_relative_redirect(mounted: Mount) -> None:
    view = mounted({"d": {"old": {"a": "1", "e/b": "2"}}})
    view.rename("d/old", "d/new")
    assert view.names("d") == [b"new"]
    assert view.names("d/new") == [b"a", b"e"]
    assert view.read("d/new/e/b") == b"2"
    assert redirect(view, "d/new") == b"old"
    assert view.is_whiteout("d/old")
    view.remount()
    assert view.read("d/new/e/b") == b"2"
    view.append("d/new/e/b", b"3")
    assert view.read("d/new/e/b") == b"23"


def test_lower_directory_moved_to_another_parent_has_an_absolute_redirect(mounted: Mount) -> None:
    view = mounted({"p": {"old": {"a": "1"}}, "q/": None})
    view.rename("p/old", "q/new")
    assert redirect(view, "q/new") == b"/p/old"
    assert view.names("q/new") == [b"a"]
    view.remount()
    assert view.names("q/new") == [b"a"]
    assert view.names("p") == []


def test_redirects_follow_a_renamed_parent(mounted: Mount) -> None:
    view = mounted({"a": {"b": {"c": {"x": "1"}}}, "z/": None})
    view.rename("a", "a2")
    view.rename("a2/b", "z/b2")
    assert redirect(view, "z/b2") == b"/a/b"
    view.rename("z/b2/c", "z/b2/c2")
    view.remount()
    assert view.read("z/b2/c2/x") == b"1"
    assert view.names("a2") == []


def test_merged_directory_moves_with_all_its_parts(mounted: Mount) -> None:
    view = mounted({"d/low": "1"}, {"d/mid": "2"}, upper={"d/up": "3", "other/": None})
    view.rename("d", "other/d")
    assert view.names("other/d") == [b"low", b"mid", b"up"]
    view.remount()
    assert [view.read(f"other/d/{name}") for name in ("low", "mid", "up")] == [b"1", b"2", b"3"]


def test_directory_renamed_back_is_as_before(mounted: Mount) -> None:
    view = mounted({"d/a": "1", "p/": None})
    view.rename("d", "p/e")
    view.rename("p/e", "d")
    assert view.names("d") == [b"a"]
    view.remount()
    assert view.names() == [b"d", b"p"]
    assert view.names("d") == [b"a"]


def test_directory_made_where_one_moved_away_is_empty(mounted: Mount) -> None:
    view = mounted({"d/a": "1"})
    view.rename("d", "moved")
    view.mkdir("d")
    view.remount()
    assert view.names("d") == []
    assert view.names("moved") == [b"a"]


def test_new_directory_moved_over_a_lower_name_is_opaque(mounted: Mount) -> None:
    view = mounted({"d/low": "1"})
    view.unlink("d/low")
    view.mkdir("new")
    view.write("new/own", b"2")
    view.rename("new", "d")
    assert view.names("d") == [b"own"]
    view.remount()
    assert view.names("d") == [b"own"]
    assert view.work_is_empty()


def test_directory_renamed_onto_an_empty_merged_one(mounted: Mount) -> None:
    view = mounted({"src/a": "1", "dst/x": "2"}, upper={"dst": {"x": WHITEOUT}})
    view.rename("src", "dst")
    assert view.names() == [b"dst"]
    assert view.names("dst") == [b"a"]
    view.remount()
    assert view.names("dst") == [b"a"]
    assert view.work_is_empty()


def test_directory_renamed_onto_an_empty_lower_one(mounted: Mount) -> None:
    view = mounted({"src/a": "1", "dst/": None})
    view.rename("src", "dst")
    view.remount()
    assert view.names("dst") == [b"a"]


def test_rename_onto_a_full_directory_is_enotempty(mounted: Mount) -> None:
    view = mounted({"src/": None, "dst/a": ""})
    with pytest.raises(OSError, match="not empty"):
        view.rename("src", "dst")
    assert view.names() == [b"dst", b"src"]


def test_rename_between_file_and_directory_is_refused(mounted: Mount) -> None:
    view = mounted({"d/": None, "f": ""})
    with pytest.raises(IsADirectoryError):
        view.rename("f", "d")
    with pytest.raises(NotADirectoryError):
        view.rename("d", "f")


def test_rename_into_itself_is_einval(mounted: Mount) -> None:
    view = mounted({"d/e/": None})
    with pytest.raises(OSError, match="Invalid argument"):
        view.rename("d", "d/e/d")


def test_rename_of_what_is_not_there_is_enoent(mounted: Mount) -> None:
    view = mounted({"d/": None, "gone": ""}, upper={"gone": WHITEOUT})
    for name in ("x", "gone"):
        with pytest.raises(FileNotFoundError):
            view.rename(name, "y")


def test_rename_of_two_links_to_one_file_does_nothing(mounted: Mount) -> None:
    view = mounted({}, upper={"a": "1"})
    view.link("a", "b")
    view.rename("a", "b")
    assert view.names() == [b"a", b"b"]


fusepy_has_no_flags = "libfuse 2 knows rename(2) only, so every flag is EINVAL"


@differs("fusepy-front", fusepy_has_no_flags)
def test_noreplace_refuses_what_is_there(mounted: Mount) -> None:
    view = mounted({"a": "1", "b": "2", "gone": ""}, upper={"gone": WHITEOUT})
    if view.differs:
        with pytest.raises(OSError, match="Invalid argument"):
            view.rename("a", "gone", RENAME_NOREPLACE)
        return
    with pytest.raises(FileExistsError):
        view.rename("a", "b", RENAME_NOREPLACE)
    assert view.read("b") == b"2"
    view.rename("a", "gone", RENAME_NOREPLACE)
    assert view.names() == [b"b", b"gone"]


EXCHANGED = [("f", "g"), ("f", "d"), ("d", "e"), ("new", "f"), ("newdir", "d"), ("newdir", "g"), ("d/x", "e/y")]


@differs("fusepy-front", fusepy_has_no_flags)
@pytest.mark.parametrize(("one", "other"), EXCHANGED)
def test_exchange_lets_two_names_change_places(mounted: Mount, one: str, other: str) -> None:
    view: Subject = mounted({"f": "F", "g": "G", "d/x": "X", "e/y": "Y"})
    view.write("new", b"N")
    view.mkdir("newdir")
    view.write("newdir/z", b"Z")

    def shown(path: str) -> list[bytes] | bytes:
        try:
            return view.names(path)
        except NotADirectoryError:
            return view.read(path)

    before = shown(one), shown(other)
    if view.differs:
        with pytest.raises(OSError, match="Invalid argument"):
            view.rename(one, other, RENAME_EXCHANGE)
        return
    view.rename(one, other, RENAME_EXCHANGE)
    assert (shown(other), shown(one)) == before
    view.remount()
    assert (shown(other), shown(one)) == before


def test_exchange_needs_both_names(mounted: Mount) -> None:
    view = mounted({"a": "1"})
    if view.kind != "fusepy-front":
        with pytest.raises(FileNotFoundError):
            view.rename("a", "b", RENAME_EXCHANGE)


def test_held_directory_follows_its_rename(mounted: Mount) -> None:
    view = mounted({"p": {"d/a": "1"}, "q/": None})
    held = view.hold("p/d")
    view.rename("p/d", "q/moved")
    assert held.names() == [b"a"]
    assert held.parent_ino() == view.stat("q").ino
    held.create("new", b"2")
    held.close()
    assert view.names("q/moved") == [b"a", b"new"]
    assert view.names("p") == []


def test_held_directory_follows_the_rename_of_its_parent(mounted: Mount) -> None:
    view = mounted({"p": {"d/a": "1"}})
    held = view.hold("p/d")
    view.rename("p", "q")
    held.create("new", b"2")
    held.close()
    view.remount()
    assert view.names("q/d") == [b"a", b"new"]
    assert view.names() == [b"q"]


def test_deep_tree_moves_and_can_be_changed_below(mounted: Mount) -> None:
    view = mounted({"a/b/c/d/e/f": "1"})
    view.rename("a/b", "b2")
    view.rename("b2/c/d", "d2")
    view.append("d2/e/f", b"2")
    view.rename("d2/e/f", "f2")
    view.remount()
    assert view.read("f2") == b"12"
    assert view.names("d2/e") == []
    assert view.names("b2/c") == []
    assert view.names("a") == []


def test_upper_only_directory_moved_into_a_merged_one_hides_what_comes_below(mounted: Mount) -> None:
    view = mounted({"d/": None}, upper={"new": {"x": "1"}})
    view.rename("new", "d/new")
    assert view.names("d/new") == [b"x"]
    view.remount()
    assert view.names("d/new") == [b"x"]


def test_opaque_directory_moves_and_stays_opaque(mounted: Mount) -> None:
    view = mounted({"d/low": "1", "e/low": "2"}, upper={"d": OPAQUE({"own": "3"}), "e": WHITEOUT})
    view.rename("d", "e")
    view.remount()
    assert view.names("e") == [b"own"]
    assert view.names() == [b"e"]
