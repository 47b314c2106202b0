"""Does a name keep its number for as long as anybody reads the directory?"""

from __future__ import annotations

import stat
import threading
from collections.abc import Callable
from typing import cast

import pytest

from overlayfs_demo.fronts.kernel.directory_offsets import DOT_DOT, DirectoryStream, Numbering
from overlayfs_demo.overlay.layer import LayerDir
from overlayfs_demo.overlay.listing import Listed, Snapshot

NOWHERE = cast(LayerDir, None)


def names(text: str) -> Callable[[], Snapshot]:
    """Takes a snapshot of one-letter names; those in capitals are directories."""
    listed = [
        Listed(letter.encode(), stat.S_IFDIR if letter.isupper() else stat.S_IFREG, ord(letter), NOWHERE, True)
        for letter in text
    ]
    return lambda: Snapshot({one.name: one for one in listed}, (), 0)


def shown(numbering: Numbering, offset: int = 0) -> str:
    return b"".join(entry.listed.name for entry in numbering.after(offset)).decode()


def numbers(numbering: Numbering) -> dict[str, int]:
    return {entry.listed.name.decode(): entry.number for entry in numbering.after(0)}


def test_numbers_follow_those_of_the_dots() -> None:
    assert numbers(DirectoryStream().refresh(names("ab"))) == {"a": DOT_DOT + 1, "b": DOT_DOT + 2}


def test_number_of_a_name_stays_when_others_go() -> None:
    stream = DirectoryStream()
    before = numbers(stream.refresh(names("abcd")))
    after = numbers(stream.refresh(names("bd")))
    assert after == {"b": before["b"], "d": before["d"]}


def test_number_of_a_name_stays_when_others_come() -> None:
    stream = DirectoryStream()
    before = numbers(stream.refresh(names("bd")))
    after = numbers(stream.refresh(names("abcd")))
    assert {name: after[name] for name in before} == before


def test_new_name_comes_last() -> None:
    stream = DirectoryStream()
    stream.refresh(names("bd"))
    assert shown(stream.refresh(names("abcd"))) == "bdac"


def test_gone_name_is_skipped() -> None:
    stream = DirectoryStream()
    stream.refresh(names("abc"))
    assert shown(stream.refresh(names("ac"))) == "ac"


def test_number_of_a_gone_name_is_not_given_again() -> None:
    stream = DirectoryStream()
    before = numbers(stream.refresh(names("abc")))
    stream.refresh(names("ab"))
    after = numbers(stream.refresh(names("abd")))
    assert after["d"] > before["c"]


def test_number_is_not_given_again_after_all_names_went() -> None:
    stream = DirectoryStream()
    before = numbers(stream.refresh(names("ab")))
    assert shown(stream.refresh(names(""))) == ""
    after = numbers(stream.refresh(names("ab")))
    assert min(after.values()) > max(before.values())


def test_name_that_went_and_came_back_comes_last() -> None:
    stream = DirectoryStream()
    stream.refresh(names("abc"))
    stream.refresh(names("bc"))
    assert shown(stream.refresh(names("abc"))) == "bca"


def test_numbers_rise() -> None:
    stream = DirectoryStream()
    for text in ("abc", "bde", "", "ea", "xeb"):
        found = list(numbers(stream.refresh(names(text))).values())
        assert found == sorted(set(found))


def test_name_is_shown_as_it_is_listed_now() -> None:
    stream = DirectoryStream()
    stream.refresh(names("ab"))
    changed = names("ab")()
    changed.names[b"a"] = changed.names[b"a"]._replace(kind=stat.S_IFLNK, ino=99)
    (first, _) = stream.refresh(lambda: changed).after(0)
    assert (first.listed.kind, first.listed.ino) == (stat.S_IFLNK, 99)


@pytest.mark.parametrize(("last_read", "rest"), [("a", "bcd"), ("b", "cd"), ("c", "d"), ("d", "")])
def test_after_goes_on_behind_the_name_that_was_read_last(last_read: str, rest: str) -> None:
    numbering = DirectoryStream().refresh(names("abcd"))
    assert shown(numbering, numbers(numbering)[last_read]) == rest


def test_after_goes_on_where_the_name_that_was_read_last_is_gone() -> None:
    stream = DirectoryStream()
    place = numbers(stream.refresh(names("abcd")))["b"]
    assert shown(stream.refresh(names("acd")), place) == "cd"


@pytest.mark.parametrize("offset", [0, DOT_DOT - 1, DOT_DOT])
def test_all_names_are_behind_the_dots(offset: int) -> None:
    assert shown(DirectoryStream().refresh(names("ab")), offset) == "ab"


def test_older_numbering_stays_as_it_was() -> None:
    stream = DirectoryStream()
    older = stream.refresh(names("abc"))
    stream.refresh(names("c"))
    assert shown(older) == "abc"


def test_current_is_the_latest_numbering() -> None:
    stream = DirectoryStream()
    assert stream.current is None
    stream.refresh(names("ab"))
    latest = stream.refresh(names("b"))
    assert stream.current is latest


def test_numbers_stay_after_a_rest() -> None:
    stream = DirectoryStream()
    before = numbers(stream.refresh(names("aDb")))
    stream.rest()
    assert stream.current is None
    assert numbers(stream.refresh(names("xaDb"))) == {**before, "x": max(before.values()) + 1}


def directories(stream: DirectoryStream) -> str:
    """What `next_directory` says until it comes to the end."""
    return b"".join(iter(stream.next_directory, None)).decode()


def test_next_directory_of_what_was_never_read_is_none() -> None:
    assert DirectoryStream().next_directory() is None


def test_next_directory_gives_the_subdirectories_in_order() -> None:
    stream = DirectoryStream()
    stream.refresh(names("aDbBAc"))
    assert directories(stream) == "DBA"
    assert stream.next_directory() is None


def test_subdirectories_are_known_after_a_rest() -> None:
    stream = DirectoryStream()
    stream.refresh(names("aDbB"))
    stream.rest()
    assert directories(stream) == "DB"


def test_next_directory_starts_again_after_refresh() -> None:
    stream = DirectoryStream()
    stream.refresh(names("DBA"))
    assert [stream.next_directory(), stream.next_directory()] == [b"D", b"B"]
    stream.refresh(names("DACB"))
    assert directories(stream) == "DBAC"


def test_older_snapshot_never_follows_a_newer_one() -> None:
    stream, taken = DirectoryStream(), []

    def take_newer() -> Snapshot:
        taken.append("newer")
        return names("abc")()

    other = threading.Thread(target=stream.refresh, args=(take_newer,))

    def take_older() -> Snapshot:
        other.start()
        other.join(0.1)  # Which it would use to come first.
        taken.append("older")
        return names("ab")()

    stream.refresh(take_older)
    other.join()
    assert taken == ["older", "newer"]
    assert stream.current and shown(stream.current) == "abc"
