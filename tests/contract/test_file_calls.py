"""What do the rarer calls on an open file do: fallocate, lseek, copy_file_range, sync, statx, O_PATH, ...?"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from functools import partial

import pytest

from overlayfs_demo.linux import file_handle, proc, syscalls
from tests.builders import hardlink, sparse, symlink
from tests.contract.conftest import Mount
from tests.contract.marks import CACHED, differs, only
from tests.contract.raw import STATX_BASIC_STATS, statx
from tests.contract.subjects import Subject, error_of

# Filesystems in memory have fewer modes of fallocate(2), and no largest offset.
pytestmark = pytest.mark.on_disk

mounts = only(
    ["kernel-front", CACHED, "fusepy-front", "kernel"], "what the kernel does with descriptors, not the engine"
)
fronts = only(["kernel-front", "fusepy-front"], "the kernel's overlayfs does what the upper's filesystem does")

PAGE = 4096
PAGES = b"a" * PAGE + b"b" * PAGE + b"c" * PAGE

# Modes of fallocate(2).
KEEP_SIZE, PUNCH_HOLE, COLLAPSE_RANGE, ZERO_RANGE, INSERT_RANGE = 0x01, 0x02, 0x08, 0x10, 0x20


# --- fallocate ----------------------------------------------------------------------------------------


def need_mode(view: Subject, mode: int) -> None:
    """Skip the fact where the upper's filesystem does not know the mode."""
    assert view.layers.work is not None
    with (view.layers.work / "probe").open("wb") as probe:
        probe.write(PAGES)
        probe.flush()
        failure = error_of(lambda: syscalls.allocate(probe.fileno(), mode, PAGE, PAGE))
    if failure:
        pytest.skip(f"the upper's filesystem has no fallocate mode {mode:#x}: {os.strerror(failure)}")


MIDDLE_GONE = PAGES[:PAGE] + bytes(PAGE) + PAGES[2 * PAGE :]

# The mode, where, how much, and what is in the file of three pages after it.
MODES = {
    "plain inside": (0, PAGE, PAGE, PAGES),
    "plain beyond": (0, 2 * PAGE, 3 * PAGE, PAGES + bytes(2 * PAGE)),
    "keep size": (KEEP_SIZE, 2 * PAGE, 3 * PAGE, PAGES),
    "punch": (PUNCH_HOLE | KEEP_SIZE, PAGE, PAGE, MIDDLE_GONE),
    "punch part of a page": (PUNCH_HOLE | KEEP_SIZE, 100, 50, PAGES[:100] + bytes(50) + PAGES[150:]),
    "punch to the end": (PUNCH_HOLE | KEEP_SIZE, PAGE, 9 * PAGE, PAGES[:PAGE] + bytes(2 * PAGE)),
    "zero": (ZERO_RANGE, PAGE, PAGE, MIDDLE_GONE),
    "zero beyond": (ZERO_RANGE, 2 * PAGE, 2 * PAGE, PAGES[: 2 * PAGE] + bytes(2 * PAGE)),
    "zero, keep size": (ZERO_RANGE | KEEP_SIZE, 2 * PAGE, 2 * PAGE, PAGES[: 2 * PAGE] + bytes(PAGE)),
}


@differs("fusepy-front", "libfuse 2 through fusepy has no fallocate: EOPNOTSUPP")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("where", ["lower", "upper"])
def test_allocation_changes_what_readers_see_at_once(mounted: Mount, where: str, mode: str) -> None:
    flags, offset, length, expected = MODES[mode]
    view = mounted({"lower": PAGES}, upper={"upper": PAGES})
    need_mode(view, flags)
    reader = view.open(where)
    assert reader.read() == PAGES
    writer = view.open(where, os.O_RDWR)
    assert writer.read() == PAGES
    failure = error_of(lambda: writer.allocate(flags, offset, length))
    assert failure == (errno.EOPNOTSUPP if view.differs else None)
    if view.differs:
        expected = PAGES
    assert reader.read() == writer.read() == view.read(where) == expected
    assert writer.stat().size == view.stat(where).size == len(expected)
    writer.write(b"!", 1)
    assert reader.read() == expected[:1] + b"!" + expected[2:]
    writer.close()
    reader.close()
    assert view.upper(where).read_bytes() == expected[:1] + b"!" + expected[2:]


@differs("kernel-front", "the kernel refuses these modes for every FUSE filesystem: EOPNOTSUPP")
@differs("fusepy-front", "as above")
@pytest.mark.parametrize(
    ("mode", "expected"),
    [(COLLAPSE_RANGE, PAGES[:PAGE] + PAGES[2 * PAGE :]), (INSERT_RANGE, PAGES[:PAGE] + bytes(PAGE) + PAGES[PAGE:])],
)
def test_ranges_are_collapsed_and_inserted(mounted: Mount, mode: int, expected: bytes) -> None:
    view = mounted({"a": PAGES})
    need_mode(view, mode)
    writer = view.open("a", os.O_RDWR)
    assert error_of(lambda: writer.allocate(mode, PAGE, PAGE)) == (errno.EOPNOTSUPP if view.differs else None)
    writer.close()
    assert view.read("a") == (PAGES if view.differs else expected)


@differs("fusepy-front", "without fallocate, EOPNOTSUPP comes before the rest is looked at")
def test_wrong_allocations_are_refused(mounted: Mount) -> None:
    view = mounted({"a": PAGES})
    writer = view.open("a", os.O_RDWR)
    for mode, offset, length, expected in (
        (0, 0, 0, errno.EINVAL),
        (0, -1, 1, errno.EINVAL),
        (0, (1 << 63) - 1, 1, errno.EFBIG),
        (PUNCH_HOLE, 0, PAGE, errno.EOPNOTSUPP),
        (0x4000, 0, PAGE, errno.EOPNOTSUPP),
    ):
        failure = error_of(partial(writer.allocate, mode, offset, length))
        assert failure == expected or view.differs, (mode, offset, length)
        assert failure
    writer.close()
    reader = view.open("a")
    assert error_of(lambda: reader.allocate(0, 0, PAGE)) == errno.EBADF
    reader.close()
    assert view.read("a") == PAGES


# --- holes --------------------------------------------------------------------------------------------

HOLES = sparse(8 << 20, {1 << 20: b"x" * PAGE, 4 << 20: b"y" * PAGE})


@differs("fusepy-front", "libfuse 2 has no such request: the kernel takes the whole file for data")
@pytest.mark.parametrize("where", ["lower", "upper", "copied"])
def test_data_and_holes_are_told(mounted: Mount, where: str) -> None:
    view = mounted({"lower": HOLES, "copied": HOLES}, upper={"upper": HOLES})
    if where == "copied":
        view.append(where, b"end")
    opened = view.open(where)
    size = opened.stat().size
    if view.differs:
        assert (opened.seek(0, os.SEEK_DATA), opened.seek(0, os.SEEK_HOLE)) == (0, size)
    elif where != "copied" or view.kind != "kernel":  # Which copies in pieces of a megabyte, holes included.
        assert opened.seek(0, os.SEEK_DATA) == 1 << 20
        assert opened.seek(1 << 20, os.SEEK_HOLE) == (1 << 20) + PAGE
        assert opened.seek((1 << 20) + PAGE, os.SEEK_DATA) == 4 << 20
        assert opened.seek(0, os.SEEK_HOLE) == 0
    for whence in (os.SEEK_DATA, os.SEEK_HOLE):
        assert error_of(partial(opened.seek, size, whence)) == errno.ENXIO
    opened.close()


@differs("fusepy-front", "libfuse 2 has no such request: the kernel takes the whole file for data")
def test_hole_that_was_just_filled_is_data(mounted: Mount) -> None:
    view = mounted({"a": sparse(1 << 20, {})})
    writer = view.open("a", os.O_RDWR)
    writer.write(b"x", 512 << 10)
    assert writer.seek(0, os.SEEK_DATA) == (0 if view.differs else 512 << 10)
    writer.close()


@pytest.mark.parametrize("offset", [-1, -5, -(1 << 40), -(1 << 63), (1 << 63) - 1])
def test_offset_without_data_is_enxio(mounted: Mount, offset: int) -> None:
    view = mounted({"lower": PAGES}, upper={"upper": PAGES})
    for path in ("lower", "upper"):
        opened = view.open(path)
        for whence in (os.SEEK_DATA, os.SEEK_HOLE):
            assert error_of(partial(opened.seek, offset, whence)) == errno.ENXIO
        opened.close()


# --- copy_file_range ----------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["lower", "upper", "copied"])
@pytest.mark.parametrize("target", ["new", "other", "otherlow"])
def test_range_is_copied_between_files(mounted: Mount, source: str, target: str) -> None:
    view = mounted({"lower": PAGES, "copied": PAGES, "otherlow": "-" * 20}, upper={"upper": PAGES, "other": "-" * 20})
    if source == "copied":
        view.append(source, b"")
    reader, writer = view.open(source), view.open(target, os.O_RDWR | os.O_CREAT)
    before = writer.read()
    assert reader.copy_to(writer, 3000, PAGE - 1000, 10) == 3000
    expected = before[:10].ljust(10, b"\0") + PAGES[PAGE - 1000 : PAGE + 2000]
    assert writer.read() == view.read(target) == expected
    assert view.read(source) == PAGES
    reader.close()
    writer.close()
    assert view.upper(target).read_bytes() == expected


def test_copied_range_ends_with_the_file(mounted: Mount) -> None:
    view = mounted({"a": "0123456789", "b": ""})
    reader, writer = view.open("a"), view.open("b", os.O_RDWR)
    assert reader.copy_to(writer, 100, 4) == 6
    assert reader.copy_to(writer, 100, 10) == 0
    assert reader.copy_to(writer, 100, 5000) == 0
    assert reader.copy_to(writer, 0, 0) == 0
    assert writer.read() == b"456789"
    reader.close()
    writer.close()


def test_copying_from_or_to_an_impossible_offset_is_refused(mounted: Mount) -> None:
    view = mounted({"a": "0123456789", "b": ""})
    reader, writer = view.open("a"), view.open("b", os.O_RDWR)
    biggest = (1 << 63) - 1
    for source, target in ((-1, 0), (0, -1), (-(1 << 63), 0), (0, biggest)):
        assert error_of(partial(reader.copy_to, writer, 5, source, target)) in (
            errno.EINVAL,
            errno.EOVERFLOW,
            errno.EFBIG,
        ), (source, target)
    for file in (reader, writer):
        file.close()
    assert view.read("b") == b""


@mounts
def test_reading_and_writing_at_an_impossible_offset_is_refused(mounted: Mount) -> None:
    view = mounted({"a": "0123456789"})
    opened = view.open("a", os.O_RDWR)
    biggest = (1 << 63) - 1
    for offset in (-1, -(1 << 63)):
        assert error_of(partial(opened.read, 5, offset)) == errno.EINVAL
        assert error_of(partial(opened.write, b"x", offset)) == errno.EINVAL
    assert error_of(lambda: opened.write(b"x", biggest - 1)) == errno.EFBIG
    assert error_of(lambda: view.truncate("a", -1)) == errno.EINVAL
    assert error_of(lambda: view.truncate("a", biggest)) == errno.EFBIG
    assert opened.read() == b"0123456789"
    opened.close()


def test_range_is_copied_within_a_file(mounted: Mount) -> None:
    view = mounted({"a": "0123456789"})
    opened = view.open("a", os.O_RDWR)
    assert opened.copy_to(opened, 3, 0, 5) == 3
    assert opened.read() == b"0123401289"
    assert error_of(lambda: opened.copy_to(opened, 5, 0, 3)) == errno.EINVAL
    opened.close()
    assert view.read("a") == b"0123401289"


@mounts
def test_range_is_copied_by_the_descriptors_own_positions(mounted: Mount) -> None:
    view = mounted({"a": "0123456789"})
    source, target = os.open(view.path("a"), os.O_RDONLY), os.open(view.path("b"), os.O_RDWR | os.O_CREAT)
    assert [os.copy_file_range(source, target, 4) for _ in range(4)] == [4, 4, 2, 0]
    assert os.pread(target, 100, 0) == b"0123456789"
    assert error_of(lambda: os.copy_file_range(target, source, 4, 0, 0)) == errno.EBADF
    appending = os.open(view.path("b"), os.O_WRONLY | os.O_APPEND)
    assert error_of(lambda: os.copy_file_range(source, appending, 4, 0)) == errno.EBADF
    for fd in (source, target, appending):
        os.close(fd)


# --- cloning ------------------------------------------------------------------------------------------


@fronts
def test_fuse_clones_nothing(mounted: Mount) -> None:
    view = mounted({"a": "data"})
    source, target = os.open(view.path("a"), os.O_RDONLY), os.open(view.path("b"), os.O_RDWR | os.O_CREAT)
    assert error_of(lambda: fcntl.ioctl(target, syscalls.FICLONE, source)) == errno.EOPNOTSUPP
    os.close(source)
    os.close(target)


# --- to the disk --------------------------------------------------------------------------------------


@mounts
@pytest.mark.parametrize("writable", [True, False])
def test_everything_can_be_synchronised(mounted: Mount, writable: bool) -> None:
    view = mounted({"d/a": "1"}, writable=writable)
    if writable:
        view.append("d/a", b"2")
        view.write("d/new", b"3")
    for path in view.names("d"):
        fd = os.open(view.path(b"d/" + path), os.O_RDONLY)
        os.fsync(fd)
        os.fdatasync(fd)
        os.close(fd)
    fd = os.open(view.path("d"), os.O_RDONLY)
    os.fsync(fd)
    syscalls.sync_filesystem(fd)
    os.close(fd)


@mounts
def test_synchronous_writes_are_read_back(mounted: Mount) -> None:
    view = mounted({"a": "1"})
    for flag, data in ((os.O_SYNC, b"first"), (os.O_DSYNC, b"other")):
        fd = os.open(view.path("a"), os.O_RDWR | flag)
        os.pwrite(fd, data, 0)
        assert os.pread(fd, 100, 0) == view.upper("a").read_bytes() == data
        os.close(fd)


# --- statx --------------------------------------------------------------------------------------------

AT_SYMLINK_NOFOLLOW, AT_STATX_FORCE_SYNC, AT_STATX_DONT_SYNC = 0x100, 0x2000, 0x4000
STATX_ALL_THERE_IS, STATX_ATTR_MOUNT_ROOT = 0xFFF, 0x2000


@mounts
@pytest.mark.parametrize("sync", [0, AT_STATX_FORCE_SYNC, AT_STATX_DONT_SYNC])
def test_statx_tells_what_stat_tells(mounted: Mount, sync: int) -> None:
    view = mounted({"d/": None, "a": "data", "l": symlink("a")}, upper={"u": "1", "v": hardlink("u")})
    view.append("a", b"more")
    for path in ("", "d", "a", "l", "u"):
        status = view.stat(path)
        found = statx(view.path(path), AT_SYMLINK_NOFOLLOW | sync, STATX_ALL_THERE_IS)
        assert found.mask & STATX_BASIC_STATS == STATX_BASIC_STATS, path
        assert (found.ino, found.mode, found.nlink, found.size, found.blocks, found.uid, found.gid) == (
            status.ino,
            status.mode,
            status.nlink,
            status.size,
            status.blocks,
            status.uid,
            status.gid,
        ), path
        assert not found.attributes & ~found.attributes_mask, path
        is_root = bool(found.attributes & STATX_ATTR_MOUNT_ROOT)
        assert is_root == (path == "") or not found.attributes_mask & STATX_ATTR_MOUNT_ROOT


# --- O_PATH -------------------------------------------------------------------------------------------


@mounts
def test_path_descriptor_copies_nothing_up_and_gives_no_data(mounted: Mount) -> None:
    view = mounted({"d/a": "data"})
    fd = os.open(view.path("d/a"), os.O_PATH)
    assert os.fstat(fd).st_size == 4
    assert error_of(lambda: os.read(fd, 1)) == errno.EBADF
    assert error_of(lambda: os.write(fd, b"x")) == errno.EBADF
    assert error_of(lambda: os.fchmod(fd, 0o600)) == errno.EBADF
    assert view.upper_names() == []
    again = os.open(proc.fd_path(fd), os.O_RDWR)
    os.pwrite(again, b"DATA", 0)
    assert (os.pread(again, 10, 0), view.upper("d/a").read_bytes()) == (b"DATA", b"DATA")
    os.close(again)
    os.close(fd)


@mounts
def test_path_descriptor_of_a_directory_leads_on(mounted: Mount) -> None:
    view = mounted({"d/e/a": "data", "d/l": symlink("e/a")})
    fd = os.open(view.path("d"), os.O_PATH | os.O_DIRECTORY)
    view.rename("d", "moved")
    assert os.stat("e/a", dir_fd=fd).st_size == 4
    link = os.open("l", os.O_PATH | os.O_NOFOLLOW, dir_fd=fd)
    assert stat.S_ISLNK(os.fstat(link).st_mode)
    assert os.readlink(b"", dir_fd=link) == b"e/a"
    os.close(link)
    os.mkdir("new", dir_fd=fd)
    assert view.exists("moved/new")
    os.close(fd)


@mounts
@differs("fusepy-front", "libfuse 2 asks by path, and a removed file has none: ENOENT")
@differs("kernel", "the file that is held is still the lower one, which has its name")
def test_path_descriptor_outlives_the_name(mounted: Mount) -> None:
    view = mounted({"a": "data"})
    fd = os.open(view.path("a"), os.O_PATH)
    view.unlink("a")
    if view.kind == "fusepy-front":
        assert error_of(lambda: os.fstat(fd)) == errno.ENOENT
    else:
        assert (os.fstat(fd).st_size, os.fstat(fd).st_nlink) == (4, 1 if view.differs else 0)
    os.close(fd)


# --- file handles -------------------------------------------------------------------------------------


@only(["kernel-front", "fusepy-front"], "the kernel's overlayfs has file handles with nfs_export=on only")
def test_stale_file_handle_never_means_another_file(mounted: Mount) -> None:
    view = mounted({"d/": None})
    view.write("old", b"old")
    root = os.open(view.path(""), os.O_RDONLY)
    kind, opaque = file_handle.handle_of(root, b"old")

    def open_again() -> bytes:
        fd = file_handle.open_handle(root, kind, opaque, os.O_RDONLY)
        try:
            return os.read(fd, 10)
        finally:
            os.close(fd)

    # For as long as the kernel has the file in its cache, and on some kernels not even then.
    assert error_of(open_again) in (None, errno.ESTALE, errno.EOPNOTSUPP)
    view.unlink("old")
    for number in range(20):  # ext4 gives the inode to one of them.
        view.write(f"d/{number}", b"new")
    assert error_of(open_again) in (errno.ESTALE, errno.EOPNOTSUPP)
    os.close(root)
