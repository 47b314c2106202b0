"""Which access times does reading change, in the lowers and in the upper?"""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import pytest

from overlayfs_demo.linux import mounting
from tests.builders import symlink
from tests.contract.conftest import Mount
from tests.contract.marks import also_cached, differs
from tests.contract.subjects import Subject

pytestmark = also_cached

FLAGS = {
    "relatime": 0,
    "noatime": mounting.MS_NOATIME,
    "strictatime": mounting.MS_STRICTATIME,
    "nodiratime": mounting.MS_NODIRATIME,
    "ro": mounting.MS_RDONLY,
}
LOWER = {"dir/low": "1", "merged/low": "1", "file": "data", "link": symlink("file")}
UPPER = {"updir/up": "2", "merged/up": "2", "upfile": "data", "uplink": symlink("upfile")}
DIRECTORIES = ("dir", "merged", "updir", "")
FILES = ("file", "upfile")
LINKS = ("link", "uplink")

flags = pytest.mark.parametrize("word", FLAGS)


def read(view: Subject, path: str) -> None:
    """Read it, whatever it is."""
    if path in DIRECTORIES:
        view.listing(path)
    elif path.endswith("link"):
        view.readlink(path)
    else:
        assert view.read(path)


def set_long_ago(*layers: Path) -> None:
    for layer in layers:
        for path in (layer, *layer.rglob("*")):
            os.utime(path, (1, 2), follow_symlinks=False)


def access_times(layer: Path) -> dict[str, int]:
    return {str(path.relative_to(layer)): path.lstat().st_atime_ns for path in (layer, *layer.rglob("*"))}


def ticks() -> None:
    """Let so much time go by that the next access time is another one."""
    time.sleep(0.02)


@flags
def test_reading_changes_no_access_time_in_a_lower(mounted: Mount, word: str) -> None:
    view = mounted(LOWER, upper=UPPER, flags=FLAGS[word])
    [lower] = view.layers.lowers
    set_long_ago(lower)
    before = access_times(lower)
    for path in DIRECTORIES + FILES + LINKS:
        read(view, path)
    if word != "ro":
        view.chmod("file", 0o600)
        view.append("merged/low", b"more")
        view.chown("link", 1, 1)
        with pytest.raises(OSError, match=os.strerror(errno.ENOTEMPTY)):
            view.rmdir("dir")
    assert access_times(lower) == before


@flags
@pytest.mark.parametrize("path", ["updir", "merged", "", "upfile", "uplink"])
def test_reading_changes_the_access_time_in_the_upper_as_the_flags_say(mounted: Mount, word: str, path: str) -> None:
    view = mounted(LOWER, upper=UPPER, flags=FLAGS[word])
    set_long_ago(view.upper())
    view.remount()
    read(view, path)
    changed = view.upper(path).lstat().st_atime != 1
    assert changed == (word not in ("noatime", "ro") and (word != "nodiratime" or path not in DIRECTORIES))
    assert view.stat(path).atime_ns == view.upper(path).lstat().st_atime_ns


@pytest.mark.parametrize("path", ["updir", "upfile", "uplink"])
def test_access_time_that_is_recent_enough_stays(mounted: Mount, path: str) -> None:
    view = mounted(LOWER, upper=UPPER)
    ticks()
    read(view, path)
    before = view.upper(path).lstat().st_atime_ns
    ticks()
    read(view, path)
    assert view.upper(path).lstat().st_atime_ns == before


@pytest.mark.parametrize("path", ["updir", "upfile", "uplink"])
def test_every_reading_counts_with_strictatime(mounted: Mount, path: str) -> None:
    view = mounted(LOWER, upper=UPPER, flags=mounting.MS_STRICTATIME)
    times = []
    for _ in range(3):
        ticks()
        read(view, path)
        times.append(view.upper(path).lstat().st_atime_ns)
    assert len(set(times)) == 3


def test_first_reading_after_a_change_counts(mounted: Mount) -> None:
    view = mounted(LOWER, upper=UPPER)
    view.write("new", b"x" * 4096)
    view.append("upfile", b"more")
    view.append("file", b"more")
    view.write("updir/new", b"")
    ticks()
    for path in ("new", "upfile", "file", "updir"):
        before = view.upper(path).stat()
        read(view, path)
        after = view.upper(path).stat()
        assert after.st_atime_ns > max(before.st_mtime_ns, before.st_atime_ns), path
        assert view.stat(path).atime_ns == after.st_atime_ns


def test_looking_whether_a_directory_is_empty_is_no_reading(mounted: Mount) -> None:
    view = mounted(LOWER, upper=UPPER)
    set_long_ago(view.upper())
    for path in ("updir", "merged"):
        with pytest.raises(OSError, match=os.strerror(errno.ENOTEMPTY)):
            view.rmdir(path)
        assert view.upper(path).stat().st_atime == 1


@differs("cached-kernel-front", "the kernel answers from its cache without telling us: the access time stays")
@differs("fusepy-front", "as above")
def test_reading_through_the_descriptor_that_wrote_counts(mounted: Mount) -> None:
    view = mounted(LOWER)
    opened = view.open("new", os.O_RDWR | os.O_CREAT)
    opened.write(b"x" * 4096)
    ticks()
    before = view.upper("new").stat().st_atime_ns
    assert opened.read() == b"x" * 4096
    assert (view.upper("new").stat().st_atime_ns > before) != view.differs
    opened.close()
