"""Is the union rule what overlayfs.rst says? The rule is data, so it is tested without a filesystem."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from overlayfs_demo.overlay.merge import Says, decide

_WORDS = {
    "-": Says.ABSENT,
    "w": Says.WHITEOUT,
    "f": Says.FILE,
    "d": Says.DIRECTORY,
    "o": Says.OPAQUE_DIRECTORY,
    "m": Says.METACOPY,
}

# What the layers say from the top down; the positions of the merged object; who decided.
TABLE = [
    ("", (), None),
    ("-", (), None),
    ("---", (), None),
    ("f", (0,), 0),
    ("-f", (1,), 1),
    ("fff", (0,), 0),
    ("fd", (0,), 0),
    ("w", (), 0),
    ("wf", (), 0),
    ("-wf", (), 1),
    ("fw", (0,), 0),
    ("d", (0,), None),
    ("dd", (0, 1), None),
    ("d-d", (0, 2), None),
    ("-d-d-", (1, 3), None),
    ("dfd", (0,), 1),
    ("dwd", (0,), 1),
    ("dod", (0, 1), 1),
    ("od", (0,), 0),
    ("o", (0,), 0),
    ("d-of", (0, 2), 2),
    ("w-d", (), 0),
    ("mf", (0, 1), 1),
    ("m-mf", (0, 3), 3),
    ("-m-f", (1, 3), 3),
    ("m", (0,), None),
    ("mm", (0,), None),
    ("mwf", (0,), 1),
    ("mdf", (0,), 1),
    ("mo", (0,), 1),
    ("fm", (0,), 0),
    ("dmf", (0,), 1),
    ("wmf", (), 0),
]


@pytest.mark.parametrize(("said", "positions", "decided_by"), TABLE, ids=[row[0] or "no layers" for row in TABLE])
def test_verdict(said: str, positions: tuple[int, ...], decided_by: int | None) -> None:
    verdict = decide(_WORDS[letter] for letter in said)
    assert verdict.positions == positions
    assert verdict.decided_by == decided_by
    assert verdict.directory == (bool(positions) and said[positions[0]] in "do")


@pytest.mark.parametrize("deciding", "wfo")
def test_layers_below_the_deciding_one_are_never_asked(deciding: str) -> None:
    def ask() -> Iterator[Says]:
        yield Says.ABSENT
        yield _WORDS[deciding]
        pytest.fail("a layer below was asked")

    decide(ask())
