"""Is every damage of an upper found and mended, and nothing else touched, with the kernel's overlayfs as the judge?"""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from overlayfs_demo.fsck.finding import State, mend
from overlayfs_demo.fsck.upper_check import check_upper
from tests import builders
from tests.conftest import unmount_all
from tests.contract.conftest import why_unavailable
from tests.contract.engine_subject import Engine
from tests.contract.subjects import Kernel, Layers, Subject
from tests.fsck.uppers import DAMAGES, Place, by_both, make, use

pytestmark = pytest.mark.skipif(bool(why_unavailable("kernel")), reason=why_unavailable("kernel"))

MAKERS: dict[str, type[Subject]] = {"kernel": Kernel, "engine": Engine}


@pytest.fixture(params=MAKERS)
def layers(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Layers]:
    """A stack that was used, by the kernel's overlayfs or ours, and is not mounted."""
    layers = make(tmp_path)
    view = MAKERS[request.param](layers)
    view.start()
    use(view)
    view.stop()
    yield layers
    unmount_all(str(tmp_path))


def place_of(layers: Layers) -> Place:
    assert layers.upper and layers.work
    return Place(layers.upper, layers.work)


def on_disk(layers: Layers) -> dict[bytes, builders.Seen]:
    """All that is in the upper, the work directory and the lowers, but for the times of directories."""
    found = builders.tree(layers.mountpoint.parent)
    return {path: seen._replace(mtime_ns=0) if seen.kind == "directory" else seen for path, seen in found.items()}


def kinds(layers: Layers) -> list[str]:
    with check_upper(layers.stack()) as findings:
        return sorted(finding.kind for finding in findings)


def test_a_sound_upper_is_found_sound(layers: Layers) -> None:
    assert kinds(layers) == []
    assert by_both(layers)
    assert kinds(layers) == []


# The two makers take turns.
@pytest.mark.parametrize(
    ("layers", "damage"), list(zip(itertools.cycle(MAKERS), DAMAGES, strict=False)), indirect=["layers"]
)
def test_damage_is_found_and_mended_and_nothing_else_is_touched(layers: Layers, damage: str) -> None:
    before, sound = on_disk(layers), by_both(layers)
    expected = DAMAGES[damage].kinds
    DAMAGES[damage].act(place_of(layers))
    damaged = on_disk(layers)
    assert set(kinds(layers)) <= set(expected)
    assert expected[0] in kinds(layers)
    assert on_disk(layers) == damaged
    results = list(mend(lambda: check_upper(layers.stack())))
    assert {result.state for result in results} == {State.REPAIRED}
    assert {result.finding.kind for result in results} == set(expected)
    assert all(result.finding.sentence.count("the repair ") == 1 for result in results)
    changed = {path for path in damaged.keys() | before.keys() if damaged.get(path) != before.get(path)}
    after = on_disk(layers)
    aside = {path for path in after if b"lost+found" in path}
    touched = {path for path in damaged.keys() | after.keys() if damaged.get(path) != after.get(path)} - aside
    assert touched <= changed | DAMAGES[damage].also
    assert kinds(layers) == []
    now = by_both(layers)
    assert not DAMAGES[damage].restores or now == sound


def feature(place: Place) -> None:
    (place.left("incompat") / "future").mkdir(parents=True)


def other_upper(place: Place) -> None:
    own = os.getxattr(place.upper, "trusted.overlay.origin")
    os.setxattr(place.work / "index", "trusted.overlay.upper", own)


@pytest.mark.parametrize(("act", "kind"), [(feature, "unknown-feature"), (other_upper, "foreign-index")])
def test_what_only_a_person_can_mend_is_left(layers: Layers, act: Callable[[Place], None], kind: str) -> None:
    act(place_of(layers))
    damaged = on_disk(layers)
    (result,) = mend(lambda: check_upper(layers.stack()))
    assert (result.state, result.finding.kind) == (State.LEFT, kind)
    assert on_disk(layers) == damaged


def test_a_repair_that_fails_is_left_with_its_error(layers: Layers, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_words: object, **_more: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    place = place_of(layers)
    place.left("#1").touch()
    place.mark("made/file", "opaque")
    monkeypatch.setattr(os, "removexattr", fail)
    results = {result.finding.kind: result for result in mend(lambda: check_upper(layers.stack()))}
    assert {kind: result.state for kind, result in results.items()} == {
        "leftover": State.REPAIRED,
        "misplaced-opaque": State.LEFT,
    }
    assert isinstance(results["misplaced-opaque"].error, OSError)
