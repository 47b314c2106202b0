"""What does a person see in the browser, and what do the keys do?"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("textual")
from rich.cells import cell_len
from rich.text import Text
from textual.pilot import Pilot

from overlayfs_demo.browse.app import Browser
from overlayfs_demo.browse.depths import Depths
from overlayfs_demo.browse.panes import tree_heading
from overlayfs_demo.browse.subject import Subject, image_subject, view_subject
from overlayfs_demo.mounts import registry
from overlayfs_demo.store.store import Store
from tests.browse.conftest import MakeImage
from tests.conftest import PATIENCE
from tests.images.builders import OPAQUE, WHITEOUT, directory, needs_root, symlink
from tests.places import Place

pytestmark = needs_root

Steps = Callable[[Browser, Pilot[int]], Awaitable[None]]


def browsed(subject: Subject, steps: Steps, width: int = 80, height: int = 24) -> None:
    """Open a browser on a terminal of this size, and do these steps once everything is read."""

    async def go() -> None:
        with Depths(subject.stack) as depths:
            app = Browser(subject, depths)
            async with app.run_test(size=(width, height)) as pilot:
                await settled(app, pilot)
                await steps(app, pilot)

    asyncio.run(go())


async def settled(app: Browser, pilot: Pilot[int]) -> None:
    """Wait until everything that is read in the background was read."""

    async def wait() -> None:
        while True:
            await pilot.pause()
            await app.workers.wait_for_complete()
            await pilot.pause()
            if all(worker.is_finished for worker in app.workers):
                return

    await asyncio.wait_for(wait(), PATIENCE * 4)


async def press(app: Browser, pilot: Pilot[int], *keys: str) -> None:
    for key in keys:
        await pilot.press(key)
        await settled(app, pilot)


def rows(app: Browser) -> list[str]:
    """The lines of the screen as text."""
    return ["".join(segment.text for segment in strip).rstrip() for strip in app.screen._compositor.render_strips()]


def tree(app: Browser) -> list[str]:
    """The lines of the tree, with single blanks."""
    pane = app.tree_pane
    return [" ".join(pane.draw(index, pane.size.width).plain.split()) for index in range(pane.count)]


def status(app: Browser) -> str:
    return "\n".join(rows(app)[-4:-1])


@pytest.fixture
def subject(store: Store, image: MakeImage) -> Subject:
    made = image(
        {"etc": directory(), "etc/motd": "hello\n", "etc/issue": "x", "log": directory(), "log/a": "12345"},
        {"etc": directory(), "etc/motd": "changed\n", "link": symlink("etc"), "big": "y" * 2000},
        {"log": WHITEOUT, "etc": OPAQUE},
    )
    return image_subject(store, made)


# --- what is shown ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "height"), [(80, 24), (200, 50)])
def test_layers_are_left_and_the_tree_is_right(subject: Subject, width: int, height: int) -> None:
    async def steps(app: Browser, pilot: Pilot[int]) -> None:
        seen = rows(app)
        assert len(seen) == height and max(map(len, seen)) <= width
        assert seen[0].startswith("test:1")
        assert [line.split()[:2] for line in seen[2:5]] == [["3", "0B"], ["2", "2.01kB"], ["1", "12B"]]
        assert tree(app)[0].startswith("2 ") and "q quit" in seen[-1]
        assert ("MODE" in seen[1]) == (width == 200)

    browsed(subject, steps, width, height)


def test_moving_to_a_layer_shows_its_tree(subject: Subject) -> None:
    async def steps(app: Browser, pilot: Pilot[int]) -> None:
        assert tree(app) == ["2 2kB big", "C 3 0B + etc/ opaque", "2 3B link -> etc", "D 1 5B + log/"]
        await press(app, pilot, "down")
        assert tree(app) == ["A 2 2kB big", "C 2 9B + etc/", "A 2 3B link -> etc", "1 5B + log/"]
        assert "layer 2, 2.01kB; A 2  C 2  D 0 names; the tree as of this layer: 2.02kB" in status(app)

    browsed(subject, steps)


def test_a_change_is_a_letter_and_a_colour(subject: Subject) -> None:
    async def steps(app: Browser, pilot: Pilot[int]) -> None:
        line = app.tree_pane.draw(3, 60)
        assert line.plain.startswith("D ") and "red" in [str(span.style) for span in line.spans]

    browsed(subject, steps)


def test_steps_without_a_layer_are_dimmed_and_skipped(store: Store, subject: Subject) -> None:
    from overlayfs_demo.browse.subject import LayerStep

    env = LayerStep(None, "", "ENV A=1", 0)
    first, *others = subject.steps

    async def steps(app: Browser, pilot: Pilot[int]) -> None:
        assert "ENV A=1" in rows(app)[3] and str(app.layer_pane.draw(1, 30).spans[0].style) == "dim"
        await press(app, pilot, "down")
        assert app.place == 1
        await press(app, pilot, "m")
        assert "ENV A=1" not in "\n".join(rows(app))

    browsed(replace(subject, steps=(first, env, *others)), steps)


def test_names_are_escaped_and_never_markup(store: Store, image: MakeImage) -> None:
    made = image({"[red]a[bold]": "1", "new\nline": "2", "\x1b[31mred": "3", "\u202etxt.exe": "4"})

    async def steps(app: Browser, pilot: Pilot[int]) -> None:
        names = [line.rpartition("B ")[2] for line in tree(app)]
        assert names == ["\\x1b[31mred", "[red]a[bold]", "new\\nline", "\\u202etxt.exe"]
        await press(app, pilot, "tab", "end", "up")
        assert "/new\\nline" in status(app)

    browsed(image_subject(store, made), steps)


def test_the_summary_says_what_is_wasted(subject: Subject) -> None:
    async def steps(app: Browser, pilot: Pilot[int]) -> None:
        for _ in range(1000):
            if app.waste:
                break
            await asyncio.sleep(PATIENCE / 1000)
        assert "wasted" in rows(app)[0] and "dive's score" in rows(app)[0]

    browsed(subject, steps)


# --- keys ------------------------------------------------------------------------------------------


def test_space_opens_and_closes_a_directory(subject: Subject) -> None:
    async def steps(app: Browser, pilot: Pilot[int]) -> None:
        await press(app, pilot, "down", "tab", "down", "space")
        assert tree(app)[1:4] == ["C 2 9B - etc/", "1 1B issue", "C 2 8B motd"]
        await press(app, pilot, "space")
        assert tree(app)[1] == "C 2 9B + etc/" and len(tree(app)) == 4

    browsed(subject, steps)


def test_left_goes_to_the_directory_and_closes_it(subject: Subject) -> None:
    async def steps(app: Browser, pilot: Pilot[int]) -> None:
        await press(app, pilot, "down", "tab", "down", "right", "down", "left")
        assert app.tree_pane.line is not None and app.tree_pane.line.path == b"/etc"
        await press(app, pilot, "left")
        assert len(tree(app)) == 4

    browsed(subject, steps)


def test_the_status_says_what_hides_the_file_at_the_cursor(subject: Subject) -> None:
    async def steps(app: Browser, pilot: Pilot[int]) -> None:
        await press(app, pilot, "down", "tab", "plus", "end", "up", "up", "up")
        assert app.tree_pane.line is not None and app.tree_pane.line.path == b"/etc/motd"
        assert "/etc/motd  -rw-r--r-- 0:0 8B" in status(app)
        assert "layer 2: a file, 8B; hides layer 1; hidden by layer 3, at /etc" in status(app)

    browsed(subject, steps)


def test_only_changes_leaves_out_what_comes_from_below(subject: Subject) -> None:
    async def steps(app: Browser, pilot: Pilot[int]) -> None:
        await press(app, pilot, "c")
        assert tree(app) == ["C 3 0B + etc/ opaque", "D 1 5B + log/"]
        assert "changes only" in rows(app)[1]
        await press(app, pilot, "c")
        assert len(tree(app)) == 4

    browsed(subject, steps)


def test_sorting_by_size_counts_what_is_in_directories(subject: Subject) -> None:
    async def steps(app: Browser, pilot: Pilot[int]) -> None:
        await press(app, pilot, "down", "s")
        assert [line.split()[-1] for line in tree(app)] == ["big", "etc/", "log/", "etc"]

    browsed(subject, steps)


def test_plus_opens_everything_and_minus_closes_it(subject: Subject) -> None:
    async def steps(app: Browser, pilot: Pilot[int]) -> None:
        await press(app, pilot, "plus")
        assert [line for line in tree(app) if line.startswith("D")] == [
            "D 1 1B issue",
            "D 2 8B motd",
            "D 1 5B - log/",
            "D 1 5B a",
        ]
        await press(app, pilot, "minus")
        assert len(tree(app)) == 4

    browsed(subject, steps)


def test_the_filter_shows_matches_and_the_way_to_them(subject: Subject) -> None:
    async def steps(app: Browser, pilot: Pilot[int]) -> None:
        await press(app, pilot, "down", "slash", *"mot", "enter")
        assert tree(app) == ["C 2 9B - etc/", "C 2 8B motd"]
        assert app.tree_pane.line is not None and app.tree_pane.line.path == b"/etc/motd"
        await press(app, pilot, "escape")
        assert len(tree(app)) > 4

    browsed(subject, steps)


def test_a_filter_without_matches_says_so(subject: Subject) -> None:
    async def steps(app: Browser, pilot: Pilot[int]) -> None:
        await press(app, pilot, "slash", *"zz", "enter")
        assert tree(app) == ["nothing matches the filter"]

    browsed(subject, steps)


def test_a_filter_stays_while_layers_change(subject: Subject) -> None:
    async def steps(app: Browser, pilot: Pilot[int]) -> None:
        await press(app, pilot, "slash", *"mot", "enter", "tab", "down", "down")
        assert app.place == 2 and tree(app) == ["A 1 7B - etc/", "A 1 6B motd"]

    browsed(subject, steps)


def test_counting_goes_on_while_help_is_open(subject: Subject) -> None:
    async def steps(app: Browser, pilot: Pilot[int]) -> None:
        await pilot.press("down", "question_mark")
        await settled(app, pilot)
        assert app.census.is_done and app.place == 1
        await press(app, pilot, "escape")
        assert "layer 2, 2.01kB; A 2  C 2  D 0 names" in status(app)

    browsed(subject, steps)


def test_help_fits_and_a_key_leaves_it(subject: Subject) -> None:
    async def steps(app: Browser, pilot: Pilot[int]) -> None:
        await press(app, pilot, "question_mark")
        assert "q  quit" in "\n".join(rows(app)) and "Left: the layers" in "\n".join(rows(app))
        await press(app, pilot, "q")
        assert app.is_running and rows(app)[0].startswith("test:1")

    browsed(subject, steps)


def test_q_quits(subject: Subject) -> None:
    async def steps(app: Browser, pilot: Pilot[int]) -> None:
        await pilot.press("q")
        await pilot.pause()
        assert app.return_code == 0

    browsed(subject, steps)


def test_a_click_puts_the_cursor_there_and_a_second_one_opens(subject: Subject) -> None:
    async def steps(app: Browser, pilot: Pilot[int]) -> None:
        for _ in range(2):
            await pilot.click("#tree", offset=(12, 3))
            await settled(app, pilot)
        assert tree(app)[3:] == ["D 1 5B - log/", "D 1 5B a"]

    browsed(subject, steps)


@pytest.mark.parametrize("count", [3, 40])
@pytest.mark.parametrize("long", ["x" * 200, "\u6f22" * 60])
def test_a_name_that_is_cut_ends_with_an_ellipsis_also_beside_the_bar(
    store: Store, image: MakeImage, long: str, count: int
) -> None:
    made = image({f"{number:02}{long}": "" for number in range(count)})

    async def steps(app: Browser, pilot: Pilot[int]) -> None:
        cut = [row for row in rows(app) if long[:5] in row and "/" not in row]
        assert len(cut) >= 3 and all("\u2026" in row.rpartition(long[0])[2] for row in cut)
        assert max(cell_len(row) for row in rows(app)) <= 80

    browsed(image_subject(store, made), steps)


def test_the_tree_only_draws_what_is_on_the_screen(
    store: Store, image: MakeImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = image({f"f{number:04}": "" for number in range(3000)})

    async def steps(app: Browser, pilot: Pilot[int]) -> None:
        drawn: set[int] = set()
        real = app.tree_pane.draw

        def draw(index: int, width: int) -> Text:
            drawn.add(index)
            return real(index, width)

        monkeypatch.setattr(app.tree_pane, "draw", draw)
        await press(app, pilot, "tab", "end")
        assert app.tree_pane.line is not None and app.tree_pane.line.path == b"/f2999"
        assert 2999 in drawn and len(drawn) < 200

    browsed(image_subject(store, made), steps)


def test_an_image_without_layers_is_empty(store: Store, image: MakeImage) -> None:
    async def steps(app: Browser, pilot: Pilot[int]) -> None:
        assert tree(app) == ["empty"] and "this image has no layers" in status(app)

    browsed(image_subject(store, image()), steps)


def test_the_heading_stands_over_its_columns() -> None:
    assert tree_heading(60) == "  LAYER    SIZE   NAME"


# --- a mounted view --------------------------------------------------------------------------------


def test_a_view_has_its_upper_on_top(place: Place) -> None:
    assert place.mount().returncode == 0
    (place.view / "d/made").write_text("new")
    (place.view / "motd").unlink()
    record = registry.find_record(str(place.view))
    assert record is not None

    async def steps(app: Browser, pilot: Pilot[int]) -> None:
        assert [line.split()[:2] for line in rows(app)[2:5]] == [["upper", "3B"], ["2", "6B"], ["1", "11B"]]
        await press(app, pilot, "plus")
        assert tree(app) == ["C upper 8B - d/", "1 5B deep", "A upper 3B made", "D 2 6B motd"]
        os.unlink(place.view / "d/made")
        await press(app, pilot, "r")
        assert "A upper 3B made" not in tree(app)

    browsed(view_subject(record), steps)


def test_a_renamed_directory_of_a_view_keeps_its_files(place: Place) -> None:
    assert place.mount(options=f"{place.options},redirect_dir=on").returncode == 0
    (place.view / "d").rename(place.view / "moved")
    record = registry.find_record(str(place.view))
    assert record is not None

    async def steps(app: Browser, pilot: Pilot[int]) -> None:
        await press(app, pilot, "plus")
        assert tree(app)[-2:] == ["A upper 5B - moved/ renamed, lower files in d", "A 1 5B deep"]

    browsed(view_subject(record), steps)


def test_a_read_only_view_has_no_upper(place: Place) -> None:
    lowers = f"lowerdir={place / 'top'}:{place / 'bottom'}"
    assert place.mount(options=lowers).returncode == 0
    record = registry.find_record(str(place.view))
    assert record is not None

    async def steps(app: Browser, pilot: Pilot[int]) -> None:
        assert [line.split()[0] for line in rows(app)[2:4]] == ["2", "1"]
        assert tree(app) == ["1 5B + d/", "C 2 6B motd"]

    browsed(view_subject(record), steps)


def test_hidden_image_marks_count_where_the_view_reads_them(tmp_path: Path, place: Place) -> None:
    (place / "top" / ".wh.d").touch()
    assert place.mount().returncode == 0
    record = registry.find_record(str(place.view))
    assert record is not None

    async def steps(app: Browser, pilot: Pilot[int]) -> None:
        await press(app, pilot, "down")
        assert tree(app) == ["D 1 5B + d/", "C 2 6B motd"]

    browsed(view_subject(record), steps)
