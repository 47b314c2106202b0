"""Are options taken, and refused, as the kernel's overlayfs does through its mount API (fsconfig(2), Linux 6.8)?"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from overlayfs_demo.errors import MountError, UsageError
from overlayfs_demo.mounts.option_kinds import MountOption, Owner
from overlayfs_demo.mounts.option_table import OPTIONS
from overlayfs_demo.mounts.options import parse
from overlayfs_demo.mounts.preflight import checked
from overlayfs_demo.overlay.factory import open_overlay
from tests.builders import directories, fill
from tests.contract.conftest import why_unavailable
from tests.contract.marks import kernel_version
from tests.contract.raw import kernel_overlay, kernel_takes

UPPER = "upperdir=u workdir=w"

# Words, and which of the layers' own names are seen; None: refused.
SEEN = {
    "lowerdir=a:b": "ab",
    "lowerdir=a:b lowerdir=c:a": "ac",
    "lowerdir+=a lowerdir+=b": "ab",
    "lowerdir+=a lowerdir=b:c": "bc",
    "lowerdir+=a datadir+=d lowerdir=b:c": "bc",
    "lowerdir=a:b::d lowerdir=b:c": "bc",
    "lowerdir=a:b lowerdir= lowerdir+=c lowerdir+=a": "ac",
    "lowerdir+=a datadir+=d": "a",
    "lowerdir=a::d": "a",
    "lowerdir=a::d::c": "a",
    "lowerdir=a:b lowerdir=": None,
    "lowerdir=": None,
    "datadir+=d": None,
    "datadir+=d lowerdir+=a": None,
    "lowerdir+=a datadir+=d lowerdir+=b": None,
    "lowerdir=a:b lowerdir+=c": None,
    "lowerdir=a:b datadir+=d": None,
    "lowerdir=a:b::d datadir+=c": None,
    "lowerdir=:a": None,
    "lowerdir=a:": None,
    "lowerdir=a::": None,
    "lowerdir=a:::b": None,
    "lowerdir=a::b:c": None,
    "lowerdir=::d": None,
    "lowerdir+=": None,
    "datadir+=": None,
    "lowerdir=a:a": None,
    "lowerdir+=a lowerdir+=b lowerdir+=a": None,
    "lowerdir=a:b::a": None,
    "lowerdir=l:l/sub": None,
    "lowerdir=l/sub:a:l": None,
    "lowerdir=l:a::l/sub": None,
    r"lowerdir+=e\:f lowerdir+=a": "abackslash",
    "lowerdir+=e:f lowerdir+=a": "acolon",
    r"lowerdir=e\:f:a": "acolon",
    r"lowerdir=e\\\:f:a": "abackslash",
    "lowerdir+=a:b": None,
    f"lowerdir=a {UPPER}": "au",
    f"lowerdir=a {UPPER} upperdir=u2 workdir=w2": "a",
    f"lowerdir=u {UPPER}": None,
    f"lowerdir=u/in {UPPER}": None,
    f"lowerdir=w:a {UPPER}": None,
    "lowerdir=a upperdir=u workdir=u": None,
    "lowerdir=a upperdir=u": None,
    "lowerdir=a upperdir= workdir=w": None,
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Layers that each hold one file of their name, or one that tells which they are; we are where they are."""
    if problem := why_unavailable("kernel"):
        pytest.skip(problem)
    if kernel_version() < (6, 8):
        pytest.skip("lowerdir+= and datadir+= came with Linux 6.8")
    directories(tmp_path, "l/sub", "u/in", "w", "u2", "w2")
    for name in "abcdu":
        fill(os.fsencode(tmp_path), {f"{name}/{name}": ""})
    fill(os.fsencode(tmp_path), {"e:f/colon": "", "e\\:f/backslash": ""})
    monkeypatch.chdir(tmp_path)
    return tmp_path


def ours(words: list[str]) -> list[str] | None:
    try:
        overlay = open_overlay(checked(parse(words).stack))
    except (UsageError, MountError) as error:
        assert error.problem and error.remedy
        return None
    try:
        return sorted(os.fsdecode(entry.name) for entry in overlay.entries(overlay.root))
    finally:
        overlay.close()


def kernels(words: list[str]) -> list[str] | None:
    pairs = [tuple(word.split("=", 1)) for word in words]
    try:
        return kernel_overlay([(key, value) for key, value in pairs])
    except OSError:
        return None


@pytest.mark.parametrize("line", SEEN)
def test_the_same_layers_are_seen_and_the_same_lines_refused(place: Path, line: str) -> None:
    words = line.split(" ")
    seen = kernels(words)
    assert ours(words) == seen
    own = [name for name in ("a", "b", "c", "d", "u", "colon", "backslash") if seen and name in seen]
    assert ("".join(own) if seen else None) == SEEN[line]


@pytest.mark.parametrize(
    "option", [option for option in OPTIONS if option.owner is not Owner.MOUNT], ids=lambda option: str(option.usage)
)
def test_the_kernel_takes_the_options_that_are_its_own_and_no_others(place: Path, option: MountOption) -> None:
    name, equals, shape = option.usage.partition("=")
    values = shape.split("|") if "|" in shape or shape in ("off", "on") else ["a"]
    for value in values:
        assert kernel_takes(name, value if equals else None) == (option.owner is Owner.KERNEL)
