"""Can a lecturer turn the tour's pages by single keys, and does every page fit the screen?"""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest

from overlayfs_demo.tour.experiments import ALL
from overlayfs_demo.tour.projector import Turn, walk
from tests.places import at_terminal
from tests.terminal import Terminal

QUESTION = r"Enter: go on, b: back, n: skip, q: quit $"
NEXT = r"Enter: next, b: back, q: quit $"
MORE = r"Enter: more, b: back, n: skip, q: quit $"
NAMES = [experiment.name for experiment in ALL]
FIRST, SECOND, THIRD = NAMES[:3]


def read_on(screen: Terminal) -> list[str]:
    """Press Enter at the question, and at the end of each page; the pages, without the questions below them."""
    pages = []
    while True:
        screen.shows(f"{QUESTION}|{MORE}|{NEXT}|All hold")
        pages.append(re.sub(f"{QUESTION}|{MORE}|{NEXT}", "", screen.text))
        if re.search(f"{NEXT}|All hold", screen.text):
            return pages
        screen.press("\r")


@pytest.mark.parametrize("key", ["\r", " ", "\x1b[6~"])
def test_a_learner_is_asked_before_it_is_done(temporary: Path, key: str) -> None:
    with Terminal("tour", FIRST, rows=60) as screen:
        screen.shows(QUESTION)
        assert "?" in screen.text and "\n$ " not in screen.text
        screen.press(key)
        screen.shows("All hold")
        assert "\n$ " in screen.text or screen.text.startswith("$ ")
        screen.ends(0)


def test_pages_fit_the_terminal_and_lose_no_line(temporary: Path) -> None:
    with Terminal("tour", *NAMES[:2], rows=16) as screen:
        pages = read_on(screen)
        assert len(pages) > 2
        screen.press("q")
        screen.ends(0)
    for page in "".join(pages).split("\f"):
        assert page.count("\n") <= 15, page
    alone = at_terminal("", "tour", "--yes", FIRST)
    shown = "".join(pages)
    told = alone.partition("Experiments: ")[0]
    assert [line for line in told.splitlines() if line.strip() and line not in shown] == []


def test_a_page_is_turned_only_if_something_is_on_the_next(temporary: Path) -> None:
    with Terminal("tour", *NAMES[:2], rows=60) as screen:
        height = "".join(read_on(screen)).rpartition("\f")[2].strip().count("\n") + 1
        screen.press("q")
        screen.ends(0)
    for rows in (height + 1, height + 2):
        with Terminal("tour", *NAMES[:2], rows=rows) as screen:
            screen.shows(QUESTION)
            screen.press("\r")
            screen.shows(f"{MORE}|{NEXT}")
            assert re.search(NEXT, screen.text)
            screen.press("q")
            screen.ends(0)


def test_every_screen_begins_empty_unless_asked_not_to(temporary: Path) -> None:
    for words, clears in (((), True), (("--no-clear",), False)):
        with Terminal("tour", *words, FIRST, SECOND) as screen:
            screen.shows(QUESTION)
            screen.press("n")
            screen.shows(QUESTION)
            assert SECOND in screen.text and ("\f" in screen.text) == clears
            screen.press("q")
            screen.ends(0)


def test_b_goes_back_to_the_question_and_then_to_the_experiment_before(temporary: Path) -> None:
    with Terminal("tour", FIRST, SECOND, rows=60) as screen:
        screen.shows(QUESTION)
        screen.press("n")
        screen.shows(QUESTION)
        screen.press("b")
        screen.shows(QUESTION)
        assert f": {FIRST} -" in screen.text
        screen.press("\r")
        screen.shows(NEXT)
        screen.press("b")
        screen.shows(QUESTION)
        assert f": {FIRST} -" in screen.text
        screen.press("q")
        screen.shows(r"Experiments: 1\.")
        screen.ends(0)


def test_q_in_the_middle_of_an_experiment_quits(temporary: Path) -> None:
    with Terminal("tour", FIRST, rows=12) as screen:
        screen.shows(QUESTION)
        screen.press("\r")
        screen.shows(MORE)
        screen.press("q")
        screen.shows(r"Experiments: 0\.")
        screen.ends(0)


def test_keys_typed_ahead_turn_no_page(temporary: Path) -> None:
    with Terminal("tour", FIRST, SECOND, rows=60) as screen:
        screen.shows(QUESTION)
        screen.press("\r\r\r\r\r")
        screen.shows(NEXT)
        assert SECOND not in screen.text
        screen.press("q")
        screen.ends(0)


def test_keys_without_a_meaning_are_ignored_and_not_shown(temporary: Path) -> None:
    with Terminal("tour", FIRST, rows=60) as screen:
        screen.shows(QUESTION)
        screen.press("x")
        os.write(screen._ours, b"\x1b[A")
        screen.press("q")
        screen.ends(0)
        assert "x" not in screen.text.partition("Experiments")[0]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 130)])
def test_signal_restores_the_terminal(temporary: Path, number: int, status: int) -> None:
    with Terminal("tour", FIRST, rows=12) as screen:
        screen.shows(QUESTION)
        screen.press("\r")
        screen.shows(MORE)
        screen.process.send_signal(number)
        screen.ends(status)


def test_with_yes_nobody_is_asked(temporary: Path) -> None:
    assert "Enter:" not in at_terminal("", "tour", "--yes", "1")


def test_walk_goes_where_each_visit_says() -> None:
    turns = iter([Turn.BACK, Turn.ON, Turn.BACK, Turn.SKIP, Turn.ON, Turn.ON])
    seen: list[int] = []

    def visit(at: int) -> Turn:
        seen.append(at)
        return next(turns)

    walk(3, visit)
    assert seen == [0, 0, 1, 0, 1, 2]
