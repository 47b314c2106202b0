"""Is the origin that we write the kernel's own, byte for byte?"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from overlayfs_demo.overlay.factory import open_overlay
from overlayfs_demo.overlay.layer import DescriptorCache, Layer
from overlayfs_demo.overlay.origin import Origins
from overlayfs_demo.overlay.private_mount import LOWER, open_root
from overlayfs_demo.overlay.stack import Stack
from overlayfs_demo.overlay.types import AttrChange, Caller
from overlayfs_demo.overlay.whiteout import TRUSTED
from tests import builders
from tests.builders import fifo, hardlink, symlink
from tests.contract.engine_subject import Engine
from tests.contract.subjects import Kernel
from tests.overlay.conftest import Make

Beside = Callable[[Engine], Kernel]
PRIVATE = ("trusted.overlay.origin", "trusted.overlay.impure", "trusted.overlay.opaque", "trusted.overlay.redirect")


def private(path: Path) -> dict[str, bytes]:
    names = set(os.listxattr(path, follow_symlinks=False))
    return {name: os.getxattr(path, name, follow_symlinks=False) for name in names if name in PRIVATE}


def change(view: Engine | Kernel) -> None:
    view.append("d/a", b"2")
    view.append("linked", b"2")
    view.rename("s", "t")
    view.rename("e", "d/e")
    view.mkdir("d/new")


@pytest.mark.parametrize("path", ["d/a", "d", "t", "d/e", "linked", "d/new", ""])
def test_private_attributes_are_those_of_the_kernel(overlaid: Make, beside: Beside, path: str) -> None:
    ours = overlaid({"d/a": "1", "s": symlink("x"), "e/f": "3", "linked": "1", "link": hardlink("linked")})
    kernels = beside(ours)
    change(ours)
    change(kernels)
    assert private(ours.upper(path)) == private(kernels.upper(path))


def layer(path: Path, number: int = 1) -> Layer:
    root = open_root(os.fsencode(path), LOWER)
    return Layer(os.fsencode(path), root, number, "", TRUSTED, DescriptorCache(8), image_dialect=True, last=True)


def test_origin_leads_back_to_its_file(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root: opening a file by its handle")
    (tmp_path / "a").write_text("1")
    lower = layer(tmp_path)
    origins = Origins([lower])
    value = origins.encode(lower, lower.root_fd, b"a")
    assert value
    status = origins.decode(value)
    assert status is not None
    assert status.st_ino == (tmp_path / "a").stat().st_ino
    os.close(lower.root_fd)


@pytest.mark.parametrize("damage", ["empty", "cut", "magic", "uuid", "gone", "long"])
def test_origin_that_leads_nowhere_is_none(tmp_path: Path, damage: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root: opening a file by its handle")
    (tmp_path / "a").write_text("1")
    lower = layer(tmp_path)
    origins = Origins([lower])
    value = bytearray(origins.encode(lower, lower.root_fd, b"a") or b"")
    assert origins.decode(bytes(value)) is not None
    if damage == "empty":
        value.clear()
    elif damage == "cut":
        value.pop()
    elif damage == "magic":
        value[1] ^= 0xFF
    elif damage == "uuid":
        value[6] ^= 0xFF
    elif damage == "long":  # More than any handle has.
        value += bytes(0xFF - len(value))
        value[2] = 0xFF
    else:
        (tmp_path / "a").unlink()
    assert origins.decode(bytes(value)) is None
    os.close(lower.root_fd)


def test_what_can_hold_no_user_attribute_is_copied_up_without_origin(tmp_path: Path) -> None:
    lowers = builders.layers(
        tmp_path, {"link": symlink("x"), "pipe": fifo(), "links": symlink("x"), "more": hardlink("links")}
    )
    builders.directories(tmp_path, "upper", "work")
    upper, work = (os.fsencode(tmp_path / name) for name in ("upper", "work"))
    for _ in range(2):
        overlay = open_overlay(Stack((os.fsencode(lowers[0]),), upper, work, user_xattrs=True))
        caller = Caller(os.geteuid(), os.getegid())
        for name in (b"/link", b"/pipe", b"/links"):
            node = overlay.walk(name)
            overlay.set_attrs(node, AttrChange(mtime_ns=1), caller)
            assert overlay.attrs(node).mtime_ns == 1
        assert overlay.attrs(overlay.walk(b"/more")).mtime_ns == builders.MTIME
        overlay.close()
