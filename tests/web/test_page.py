"""Does the page say what the layers hold, and can nothing in them become a part of the page itself?"""

from __future__ import annotations

import fnmatch
import json
import os
import re
import time
import tomllib
from html.parser import HTMLParser
from importlib import resources
from typing import Any

import pytest

from overlayfs_demo.analysis.accounts import Hidden
from overlayfs_demo.analysis.stacked_view import Why
from overlayfs_demo.analysis.waste import Analysis, analyse
from overlayfs_demo.errors import UsageError
from overlayfs_demo.images.reference import ImageName
from overlayfs_demo.store.store import Store
from overlayfs_demo.store.stored import StoredImage
from overlayfs_demo.ui.text import plural
from overlayfs_demo.web import browse, content, report
from overlayfs_demo.web.browse import listing, search
from overlayfs_demo.web.content import Story, story
from overlayfs_demo.web.guard import is_known
from overlayfs_demo.web.model import Bar, Page, image_page
from overlayfs_demo.web.pages import html
from overlayfs_demo.web.report import embedded
from overlayfs_demo.web.subject import checked_path
from overlayfs_demo.web.treemap import tiles
from tests.images.builders import OPAQUE, WHITEOUT, Members, directory, symlink
from tests.places import ROOT
from tests.web.conftest import MakeImage, asked

SCRIPT = "<script>alert(1)</script>"
BREAKOUT = "</script></pre><script>alert(2)</script><img src=x onerror=alert(3)>"


def analysed(made: StoredImage) -> Analysis:
    return analyse([one.directory for one in made.layers], [f"RUN {SCRIPT}"] * len(made.layers), duplicates=False)


def page_of(made: StoredImage) -> Page:
    return image_page(made, analysed(made), time.time())


def told(store: Store, made: StoredImage, path: bytes) -> Story:
    with asked(store, made) as (subject, ask):
        return story(subject, ask, path)


def report_of(store: Store, made: StoredImage) -> str:
    with asked(store, made) as (subject, ask):
        return report.report(page_of(made), embedded(subject, ask))


class _Elements(HTMLParser):
    """Every element that a browser would see, and what its attributes are."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


# --- one file --------------------------------------------------------------------------------------


def test_a_story_has_each_layers_say_the_versions_and_what_changed(store: Store, image: MakeImage) -> None:
    found = told(store, image({"a": "one\nsame\n"}, {"b": "x"}, {"a": "two\nsame\n"}), b"/a")
    assert [(one.name, one.state) for one in found.says] == [
        ("Layer 3", "seen"),
        ("Layer 2", ""),
        ("Layer 1", "hidden"),
    ]
    assert [(one.name, one.text, one.seen) for one in found.versions] == [
        ("Layer 3", "two\nsame\n", True),
        ("Layer 1", "one\nsame\n", False),
    ]
    [change] = found.comparisons
    assert (change.before, change.after) == ("Layer 1", "Layer 3")
    assert [line for line in change.lines if line[0] != "place"] == [
        ("deleted", "-one\n"),
        ("added", "+two\n"),
        ("", " same\n"),
    ]


def test_a_deleted_file_still_has_its_story(store: Store, image: MakeImage) -> None:
    found = told(store, image({"secret": "key\n"}, {"secret": WHITEOUT}), b"/secret")
    assert [one.state for one in found.says] == ["deleted", "hidden"]
    assert found.versions[0].text == "key\n" and not found.versions[0].seen
    assert "is deleted in" in found.why


def test_what_is_no_text_is_dumped_and_what_is_long_is_cut(store: Store, image: MakeImage) -> None:
    long = "0123456789abcde\n" * 5000
    made = image({"binary": b"\0\1ABC", "long": long, "empty": ""})
    [binary], [cut], [empty] = (told(store, made, path).versions for path in (b"/binary", b"/long", b"/empty"))
    assert binary.text.startswith("00000000  00 01 41 42 43 ") and binary.text.endswith("..ABC\n")
    assert "5 bytes" in binary.note
    assert len(cut.text) <= content.MOST_TEXT and long.startswith(cut.text) and "80kB" in cut.note
    assert (empty.text, empty.note) == ("", "Empty file.")


def test_control_characters_and_marks_of_direction_are_shown_as_text(store: Store, image: MakeImage) -> None:
    [version] = told(store, image({"a": "x\x1b[31m\u202egpj.exe\tend\n"}), b"/a").versions
    assert version.text == "x\\x1b[31m\\u202egpj.exe\tend\n"


def test_a_link_out_of_the_layer_leads_nowhere(store: Store, image: MakeImage) -> None:
    made = image({"out": symlink("/etc"), "file": symlink("/etc/passwd")})
    with asked(store, made) as (subject, ask):
        assert story(subject, ask, b"/file").versions == ()
        for path in (b"/out/passwd", b"/nothing"):
            with pytest.raises(FileNotFoundError):
                story(subject, ask, path)
        with pytest.raises(FileNotFoundError):
            listing(subject, ask, b"/out")


@pytest.mark.parametrize("path", [b"out/passwd", b"file", b"../store", b"/etc/passwd"])
def test_a_layer_opens_nothing_outside(store: Store, image: MakeImage, path: bytes) -> None:
    """Whatever it was when it was asked about: it may be another file since."""
    made = image({"out": symlink("/etc"), "file": symlink("/etc/passwd")})
    with asked(store, made) as (subject, _), pytest.raises(OSError):
        subject.layers[0].open(path, os.O_RDONLY)


@pytest.mark.parametrize("path", [b"/../etc/passwd", b"/a/../../b", b"..", b"/a\0b", b"/" + b"x" * 5000])
def test_a_path_that_leads_out_is_refused(path: bytes) -> None:
    with pytest.raises(UsageError):
        checked_path(path)


# --- the tree --------------------------------------------------------------------------------------


def test_a_directory_lists_what_is_seen_and_what_was_taken_away(store: Store, image: MakeImage) -> None:
    made = image({"d/gone": "1", "d/kept": "22", "o/old": "1"}, {"d/gone": WHITEOUT, "o": directory(), "o/": OPAQUE})
    with asked(store, made) as (subject, ask):
        rows = {one.name: one for one in listing(subject, ask, b"/d").rows}
        [old] = listing(subject, ask, b"/o").rows
    assert (rows["kept"].layer, rows["kept"].hidden_by, rows["kept"].size) == ("1", None, 2)
    assert (rows["gone"].layer, rows["gone"].hidden_by, rows["gone"].said) == ("1", "2", 2)
    assert (old.layer, old.hidden_by) == ("1", "2")


def test_too_many_names_are_counted(store: Store, image: MakeImage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(browse, "MOST_NAMES", 2)
    with asked(store, image({name: "" for name in "abcde"})) as (subject, ask):
        found = listing(subject, ask, b"/")
    assert ([one.name for one in found.rows], found.left_out) == (["a", "b"], 3)


def test_a_search_finds_names_in_any_layer(store: Store, image: MakeImage) -> None:
    with asked(store, image({"d/Secret.key": "1", "other": ""}, {"d/Secret.key": WHITEOUT})) as (subject, ask):
        [row] = search(subject, ask, "secret").rows
    assert (row.key, row.hidden_by) == ("/d/Secret.key", "2")


# --- the image -------------------------------------------------------------------------------------


def test_boxes_are_from_the_top_and_numbered_from_the_bottom(image: MakeImage) -> None:
    page = page_of(image({"a": "1234"}, {"a": WHITEOUT, "b": "1"}))
    bars = [("2", "Layer 2", Bar(0.2, 0.2)), ("1", "Layer 1", Bar(0.8, 0.0))]
    assert [(one.key, one.name, one.bar) for one in page.boxes] == bars
    assert dict(page.boxes[0].facts) == {
        "size": "1B",
        "entries": "1",
        "added": "1",
        "changed": "0",
        "deleted": "1",
        "whiteouts": "1",
        "wasted": "0B",
    }


def test_waste_has_the_totals_and_the_files(image: MakeImage) -> None:
    waste = page_of(image({"a": "x" * 3000, "b": "x" * 1000}, {"a": WHITEOUT})).waste
    assert waste is not None
    assert (waste.shipped, waste.live, waste.wasted, waste.share) == ("4kB", "1kB", "3kB", "75.0%")
    [row] = waste.rows
    assert (row.path, row.shipped_by, row.hidden_by, row.size) == ("/a", 1, 2, "3kB")


def test_history_has_the_columns_of_the_verb_and_each_steps_layer(image: MakeImage) -> None:
    page = page_of(image({"a": "1"}, {"b": "1"}))
    assert page.history_header == ("IMAGE", "CREATED", "CREATED BY", "SIZE", "COMMENT", "LAYER")
    assert [(one.cells[2], one.layer) for one in page.history] == [
        ("/bin/sh -c make layer 2", 2),
        ("/bin/sh -c make layer 1", 1),
    ]


def hidden(path: bytes, layer: int, wasted: int) -> Hidden:
    return Hidden(path, layer, layer + 1, Why.DELETED, wasted, wasted)


def test_the_area_of_a_tile_is_its_bytes() -> None:
    found = tiles([hidden(b"a", 1, 600), hidden(b"b", 1, 100), hidden(b"c", 2, 300)], {1: 0, 2: 900, 3: 100})
    areas = {(one.name, one.layer): one.width * one.height for one in found}
    expected = {("a", 1): 3000, ("b", 1): 500, ("c", 2): 1500, ("visible", 2): 4500, ("visible", 3): 500}
    assert areas == pytest.approx(expected, rel=0.001)
    assert {one.layer for one in found if one.live} == {2, 3}
    assert all(one.x + one.width <= 100.01 and one.y + one.height <= 100.01 for one in found)


def test_small_files_share_a_tile() -> None:
    found = tiles([hidden(b"f%d" % number, 1, 1000 - number) for number in range(100)], {})
    assert len(found) == 40
    [rest] = [one for one in found if not one.key]
    assert rest.name == "61 smaller files"


def test_nothing_shipped_is_no_tile() -> None:
    assert tiles([], {}) == () and tiles([], {1: 0}) == ()


@pytest.mark.parametrize(
    ("layers", "word"),
    [
        ([{"d/a": "x" * 900, "b": "1" * 100}, {"d": WHITEOUT}], "kinder"),
        ([{"a": "1"}, {"a": "x" * 1000}], "stricter"),
        ([{"a": "x" * 1000}, {"a": "y" * 1000}], "agrees"),
        ([{"a": "1"}], "agrees"),
    ],
)
def test_dives_score_has_its_reason(image: MakeImage, layers: list[Members], word: str) -> None:
    waste = page_of(image(*layers)).waste
    assert waste is not None and f"dive {word}" in waste.dive_reason.replace("is ", "")


def test_an_image_is_headed_by_the_name_that_it_was_opened_by(store: Store, image: MakeImage) -> None:
    made = image({"a": "1"})
    for name in ("other:2", "zzz:3"):
        store.name_image(ImageName.parse(name), made.id)
    for name in ("test:1", "other:2", "zzz:3"):
        page = page_of(store.find(name))
        assert page.title == name and name not in dict(page.facts)["also called"]
    assert page_of(store.find(str(made.id))).title == made.id.short


def test_a_layer_has_the_same_size_in_its_box_and_in_the_history(image: MakeImage) -> None:
    page = page_of(image({"a": "1234", "link": symlink("a-long-target")}, {"b": "1"}))
    assert [dict(one.facts)["size"] for one in page.boxes] == [one.cells[3] for one in page.history] == ["1B", "17B"]


# --- the report ------------------------------------------------------------------------------------


def test_a_report_loads_nothing_from_anywhere(store: Store, image: MakeImage) -> None:
    text = report_of(store, image({"a": "see https://example.org/\n"}, {"a": WHITEOUT}))
    for tag, attributes in _Elements(text).found:
        for name in ("src", "href", "srcset", "data", "action", "poster"):
            where = attributes.get(name)
            assert where is None or where.startswith(("#", "data:")), (tag, where)
    style, script = text.partition("<style>")[2].partition("</style>")[0], text.rpartition("<script>")[2]
    assert style and "@import" not in style and "url(" not in style
    assert script.startswith('"use strict"')
    assert "default-src &#39;none&#39;" in text or "default-src 'none'" in text


def embedded_in(text: str) -> Any:
    """The data that a report has in it."""
    found = re.search(r'<script type="application/json" id="embedded">(.*?)</script>', text, re.S)
    assert found is not None
    return json.loads(found[1])


def test_a_report_has_names_stories_waste_and_history(store: Store, image: MakeImage) -> None:
    text = report_of(store, image({"d/a": "old\n"}, {"d/a": "new\n"}, {"d/a": WHITEOUT}))
    held = embedded_in(text)
    assert [row["name"] for row in held["trees"]["/d"]] == ["a"]
    assert "-old" in held["stories"]["/d/a"] and "+new" in held["stories"]["/d/a"]
    assert held["note"] == ""
    assert 'class="treemap"' in text and "make layer 3" in text


def test_a_report_says_what_it_leaves_out(store: Store, image: MakeImage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "MOST_STORIES", 3000)
    made = image({"d/alone": "1", "e/both": "1"}, {"e/both": "2"})
    with asked(store, made) as (subject, ask):
        held = embedded(subject, ask)
        # What two layers speak of comes first.
        assert "/e/both" in held.stories and "/d/alone" not in held.stories
        assert f"the content of {plural(held.stories_left_out, 'file')}," in held.note
        assert held.note in report.report(page_of(made), held)
        monkeypatch.setattr(report, "MOST_NAMES", 1)
        assert "names beyond the first 1" in embedded(subject, ask).note


def test_names_contents_and_steps_cannot_become_markup(store: Store, image: MakeImage) -> None:
    made = image({f"{SCRIPT[:-9]}x": BREAKOUT, "<img src=x onerror=alert(1)>": BREAKOUT}, {"a": "1"})
    text = report_of(store, made)
    page = html("page.html", page=page_of(made), policy=None, style=None, script=None, embedded=None)
    stories = embedded_in(text)["stories"]
    assert len(stories) == 3
    for one in (text, page, *stories.values()):
        assert SCRIPT not in one and "alert(2)</script>" not in one
        assert not [tag for tag, attributes in _Elements(one).found if tag == "img" or "onerror" in attributes]
    # The page's script and its data, and no other.
    assert [tag for tag, _ in _Elements(text).found].count("script") == 2


# --- who may ask, and what is installed ------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "listening", "known"),
    [
        ("localhost:8080", "127.0.0.1", True),
        ("127.0.0.1", "127.0.0.1", True),
        ("[::1]:8080", "::1", True),
        ("LOCALHOST", "127.0.0.1", True),
        ("my.host:80", "my.host", True),
        ("192.168.1.2:8080", "0.0.0.0", True),
        ("evil.example", "127.0.0.1", False),
        ("evil.example:8080", "0.0.0.0", False),
        ("", "127.0.0.1", False),
        ("localhost.evil.example", "127.0.0.1", False),
        ("192.168.1.2", "127.0.0.1", False),
        ("[::1", "x", True),
        ("127.0.0.1.evil.example", "127.0.0.1", False),
        ("a:b:c", "127.0.0.1", False),
    ],
)
def test_requests_must_name_this_machine(header: str, listening: str, known: bool) -> None:
    assert is_known(header, listening) is known


def test_templates_and_static_files_are_installed_with_the_package() -> None:
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    there = resources.files("overlayfs_demo.web")
    files = [f"{kind}/{one.name}" for kind in ("static", "templates") for one in there.joinpath(kind).iterdir()]
    assert {"static/page.js", "static/page.css", "templates/page.html"} <= set(files)
    for file in files:
        assert any(fnmatch.fnmatch(file, pattern) for pattern in patterns["overlayfs_demo.web"]), file
