"""Is a document on a terminal complete, and no wider than that?"""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from overlayfs_demo.cli import documents
from overlayfs_demo.tour.experiments import ALL
from overlayfs_demo.tour.labs import LABS
from overlayfs_demo.ui.document import Document


def shown(text: str, width: int) -> str:
    out = io.StringIO()
    Console(file=out, width=width).print(Document(text, hyperlinks=False))
    return out.getvalue()


@pytest.mark.parametrize("topic", documents.topics())
@pytest.mark.parametrize("width", [39, 80])
def test_no_text_of_a_document_is_cut(topic: str, width: int) -> None:
    text = documents.read(topic)
    page = shown(text, width)
    assert page.count("…") == text.count("…")
    assert max(map(len, page.splitlines())) <= width


def test_a_name_to_be_typed_is_not_broken() -> None:
    words = shown(documents.read("teaching"), 80).replace(",", " ").split()
    names = {experiment.name for experiment in ALL} | {lab.name for lab in LABS}
    assert names <= set(words)


def test_a_table_that_cannot_hold_its_words_breaks_them() -> None:
    page = shown(f"| a | b |\n| - | - |\n| {'x' * 50} | {'y' * 50} |\n", 40)
    assert (page.count("x"), page.count("y")) == (50, 50)
