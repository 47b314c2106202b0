"""Can one overlay be a layer of another, ours or the kernel's, and does each keep its marks to itself?

Every pair must show and store what the kernel's overlayfs does on top of the kernel's.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from overlayfs_demo.fronts.kernel import cache_policy
from tests import builders
from tests.builders import tree
from tests.conftest import unmount_all, wait_until
from tests.contract.conftest import make_subject, why_unavailable
from tests.contract.marks import kernel_version
from tests.contract.subjects import Fronted, Layers, Mounted

KINDS = ("kernel-front", "fusepy-front", "kernel")
escaping = pytest.mark.skipif(
    kernel_version() < (6, 7), reason="the kernel's overlayfs escapes attributes since Linux 6.7"
)
pairs = pytest.mark.parametrize(("inner", "outer"), [(inner, outer) for inner in KINDS for outer in KINDS])


class Nest:
    """Two overlays, the outer with the view of the inner as its lower."""

    def __init__(self, where: Path, inner: str, outer: str) -> None:
        for kind in (inner, outer):
            if problem := why_unavailable(kind):
                pytest.skip(problem)
        lowers = builders.layers(
            where, {"d": {"f": "low", "e": {}}, "a": "a", "gone": "g", "link": builders.symlink("a")}
        )
        builders.directories(where, *(name + number for name in ("upper", "work", "view") for number in "12"))
        views = where / "view1", where / "view2"
        first = make_subject(inner, Layers(lowers, where / "upper1", where / "work1", views[0]))
        second = make_subject(outer, Layers([views[0]], where / "upper2", where / "work2", views[1]))
        assert isinstance(first, Mounted) and isinstance(second, Mounted)
        self.inner, self.outer = first, second

    def start(self) -> None:
        self.inner.start()
        self.outer.start()

    def stop(self) -> None:
        self.outer.stop()
        wait_until(self._inner_stops, "end of the inner view's use")

    def _inner_stops(self) -> bool:
        """What served the outer view lets go of the inner one a moment after it is gone."""
        try:
            self.inner.stop()
        except Exception as error:  # noqa: BLE001 - whichever way each subject says it
            assert "busy" in str(error)
            return False
        return True


@pytest.fixture
def below(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    unmount_all(str(tmp_path))


def change(nest: Nest) -> None:
    """Use every private attribute on both levels."""
    inner, outer = nest.inner, nest.outer
    inner.start()
    inner.unlink("gone")
    inner.append("d/f", b"+1")
    inner.rename("d", "moved")
    inner.mkdir("new")
    for name in ("opaque", "mine", "overlay.deep", "overlay.overlay.deeper"):
        inner.set_xattr("a", f"trusted.overlay.{name}", b"v")
    outer.start()
    outer.append("moved/f", b"+2")
    outer.rename("moved", "again")
    outer.set_xattr("a", "trusted.overlay.two", b"2")
    outer.set_xattr("a", "trusted.overlay.overlay.three", b"3")
    outer.rmdir("new")
    outer.mkdir("new")
    outer.write("gone", b"back")
    outer.symlink("x", "link2")
    outer.unlink("link")


def comparable(root: Path | bytes) -> dict[bytes, builders.Seen]:
    """The tree without times, numbers of files (each origin's value), and what each notes of the stack."""
    notes = ("overlay.uuid", "overlay.demo-lowers")
    found = {}
    for path, one in tree(root, times=False).items():
        xattrs = tuple(
            (name, b"" if name.endswith(".origin") else value)
            for name, value in one.xattrs
            if not name.endswith(notes if path else (*notes, "overlay.origin"))
        )
        found[path] = one._replace(xattrs=xattrs)
    return found


@escaping
@pairs
def test_an_overlay_on_an_overlay_is_the_kernels_on_the_kernels(below: Path, inner: str, outer: str) -> None:
    found = {}
    for name, kinds in (("kernels", ("kernel", "kernel")), ("this", (inner, outer))):
        nest = Nest(below / name, *kinds)
        change(nest)
        found[name] = [comparable(nest.outer.prefix), comparable(nest.outer.upper()), comparable(nest.inner.upper())]
        nest.stop()
        nest.start()
        assert comparable(nest.outer.prefix) == found[name][0]
        nest.stop()
    assert found["this"] == found["kernels"]


@escaping
@pairs
def test_private_attributes_are_hidden_and_escaped_on_each_level(below: Path, inner: str, outer: str) -> None:
    nest = Nest(below, inner, outer)
    nest.start()
    nest.inner.set_xattr("a", "trusted.overlay.opaque", b"v")
    nest.inner.set_xattr("a", "trusted.overlay.overlay.deep", b"v")
    stored = os.listxattr(nest.inner.upper("a"))
    assert {"trusted.overlay.overlay.opaque", "trusted.overlay.overlay.overlay.deep"} <= set(stored)
    assert nest.inner.xattrs("a") == ["trusted.overlay.opaque", "trusted.overlay.overlay.deep"]
    assert nest.outer.xattrs("a") == ["trusted.overlay.deep"]
    assert nest.outer.xattr("a", "trusted.overlay.deep") == b"v"
    nest.stop()


@pairs
def test_numbers_survive_copy_up_on_each_level(below: Path, inner: str, outer: str) -> None:
    nest = Nest(below, inner, outer)
    nest.start()
    before = nest.outer.stat("a").ino, nest.outer.stat("d/f").ino
    nest.outer.append("a", b"+")
    nest.outer.chmod("d/f", 0o600)
    assert (nest.outer.stat("a").ino, nest.outer.stat("d/f").ino) == before
    if outer != "kernel":  # The kernel lists another number than it shows.
        assert dict(nest.outer.listing())[b"a"] == before[0]
    nest.stop()


@pytest.mark.parametrize("inner", KINDS)
def test_what_changes_in_the_inner_view_shows_in_the_outer(
    below: Path, inner: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Because it is told, where the inner one can be watched: the kernel's since Linux 6.6. Else after a second."""
    if inner == "kernel" and kernel_version() >= (6, 6):
        monkeypatch.setattr(cache_policy, "_MOMENT", 3600.0)
        monkeypatch.setattr(Fronted, "start", Fronted.start_as_patched)
    nest = Nest(below, inner, "kernel-front")
    nest.start()
    for _ in range(2):
        assert (nest.outer.read("a"), nest.outer.read("d/f"), nest.outer.exists("new")) == (b"a", b"low", False)
        nest.outer.names("d")
    nest.inner.write("a", b"changed")
    nest.inner.append("d/f", b"+")
    nest.inner.write("new", b"1")
    nest.inner.unlink("gone")
    wait_until(lambda: nest.outer.exists("new"), "a new name in the outer view")
    wait_until(lambda: not nest.outer.exists("gone"), "a name that is gone")
    wait_until(lambda: (nest.outer.read("a"), nest.outer.read("d/f")) == (b"changed", b"low+"), "new data")
    nest.stop()
