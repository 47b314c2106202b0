"""Do the messages look as include/uapi/linux/fuse.h, protocol 7.45, has them?"""

from __future__ import annotations

import os
import stat
import struct

import pytest

from overlayfs_demo.fronts.kernel import wire
from overlayfs_demo.overlay.types import Attrs
from tests.fronts.kernel.replies import DIRENT_START, ENTRY, ENTRY_START, attrs_at, encoded, plain, plus

VALID = wire.Valid(3.25)
FILE = Attrs(
    ino=(1 << 63) + 7,
    mode=stat.S_IFREG | 0o4751,
    nlink=2,
    uid=1001,
    gid=1002,
    rdev=0,
    size=1 << 40,
    blocks=11,
    blksize=4096,
    atime_ns=1_000_000_001,
    mtime_ns=2_000_000_002,
    ctime_ns=3_999_999_999,
)
DEVICE = FILE._replace(mode=stat.S_IFBLK | 0o600, rdev=os.makedev(4095, 0xFFFFF))

# The whole of each request's struct, or as much of its beginning as is of use.
REQUESTS = [
    (wire.HEADER, "fuse_in_header", 40),
    (wire.INIT_IN, "fuse_init_in up to flags", 16),
    (wire.INIT_FLAGS2_IN, "fuse_init_in up to flags2", 20),
    (wire.FORGET_IN, "fuse_forget_in", 8),
    (wire.BATCH_FORGET_IN, "fuse_batch_forget_in", 8),
    (wire.FORGET_ONE, "fuse_forget_one", 16),
    (wire.SETATTR_IN, "fuse_setattr_in", 88),
    (wire.MKNOD_IN, "fuse_mknod_in", 16),
    (wire.MKDIR_IN, "fuse_mkdir_in", 8),
    (wire.RENAME_IN, "fuse_rename_in", 8),
    (wire.RENAME2_IN, "fuse_rename2_in", 16),
    (wire.LINK_IN, "fuse_link_in", 8),
    (wire.OPEN_IN, "fuse_open_in", 8),
    (wire.CREATE_IN, "fuse_create_in", 16),
    (wire.READ_IN, "fuse_read_in up to read_flags", 24),
    (wire.WRITE_IN, "fuse_write_in", 40),
    (wire.RELEASE_IN, "fuse_release_in up to release_flags", 16),
    (wire.FSYNC_IN, "fuse_fsync_in", 16),
    (wire.SETXATTR_IN, "fuse_setxattr_in", 16),
    (wire.GETXATTR_IN, "fuse_getxattr_in", 8),
    (wire.FALLOCATE_IN, "fuse_fallocate_in", 32),
    (wire.IOCTL_IN, "fuse_ioctl_in", 32),
    (wire.LSEEK_IN, "fuse_lseek_in", 24),
    (wire.COPY_FILE_RANGE_IN, "fuse_copy_file_range_in", 56),
]
REPLIES = [
    (wire.REPLY.pack(16, 0, 1), "fuse_out_header", 16),
    (wire.init_reply(wire.Protocol(45, 1 << 17, 0), 64, 1 << 20), "fuse_init_out", 64),
    (wire.entry_reply(2, FILE, VALID), "fuse_entry_out", 128),
    (wire.negative_entry(VALID), "fuse_entry_out of no name", 128),
    (wire.attr_reply(FILE, VALID), "fuse_attr_out", 104),
    (wire.open_reply(1, 0), "fuse_open_out", 16),
    (wire.dirent(1, 1, b"", stat.S_IFREG), "fuse_dirent", 24),
    (wire.direntplus(2, FILE, VALID, 1, b""), "fuse_direntplus", 152),
    (wire.bare_direntplus(2, 1, b"", stat.S_IFDIR), "fuse_direntplus of no node", 152),
    (wire.statfs_reply(os.statvfs("/")), "fuse_statfs_out", 80),
    (wire.WRITE_OUT.pack(1), "fuse_write_out", 8),
    (wire.XATTR_SIZE.pack(1), "fuse_getxattr_out", 8),
    (wire.IOCTL_OUT.pack(0), "fuse_ioctl_out", 16),
    (wire.statx_reply(FILE, 1, VALID), "fuse_statx_out", 288),
    (wire.LSEEK_OUT.pack(1), "fuse_lseek_out", 8),
    (wire.COPY_FILE_RANGE_OUT.pack(1), "fuse_copy_file_range_out", 8),
    (wire.NOTIFY_STORE_OUT.pack(1, 0, 1), "fuse_notify_store_out", 24),
]
LENGTHS = [*range(1, 17), 255]


def name_of(length: int) -> bytes:
    return b"n" * length


@pytest.mark.parametrize(("layout", "size"), [(row[0], row[2]) for row in REQUESTS], ids=[row[1] for row in REQUESTS])
def test_size_of_a_request(layout: struct.Struct, size: int) -> None:
    assert layout.size == size


@pytest.mark.parametrize(("reply", "size"), [(row[0], row[2]) for row in REPLIES], ids=[row[1] for row in REPLIES])
def test_size_of_a_reply(reply: bytes, size: int) -> None:
    assert len(reply) == size


def test_layouts_have_the_byte_order_of_the_machine_and_no_alignment() -> None:
    assert {row[0].format[0] for row in REQUESTS} == {"="}


def test_fields_of_setattr_stand_where_the_kernel_puts_them() -> None:
    # valid, padding; fh, size, lock_owner, three times; their nanoseconds, mode, unused, uid, gid, unused.
    body = struct.pack("=2I6Q8I", 1, 0, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 0, 12, 13, 0)
    assert wire.SETATTR_IN.unpack(body) == (1, 2, 3, 4, 5, 6, 8, 9, 11, 12, 13)


def test_time_before_1970_in_setattr_is_negative() -> None:
    body = struct.pack("=2I3Q3q8I", 1, 0, 2, 3, 4, -5, -6, -7, 8, 9, 10, 11, 0, 12, 13, 0)
    assert wire.SETATTR_IN.unpack(body)[4:6] == (-5, -6)


@pytest.mark.parametrize(
    ("layout", "size", "offsets"),
    [
        (wire.READ_IN, 24, [8]),
        (wire.WRITE_IN, 40, [8]),
        (wire.LSEEK_IN, 24, [8]),
        (wire.FALLOCATE_IN, 32, [8, 16]),
        (wire.COPY_FILE_RANGE_IN, 56, [8, 32]),
        (wire.SETATTR_IN, 88, [16, 32, 40]),
    ],
)
def test_offsets_sizes_and_times_are_signed(layout: struct.Struct, size: int, offsets: list[int]) -> None:
    for value in (-1, -(1 << 63), (1 << 63) - 1):
        body = bytearray(size)
        for offset in offsets:
            struct.pack_into("=q", body, offset, value)
        assert list(layout.unpack(body)).count(value) == len(offsets)


def test_statx_reply_holds_what_stat_said_and_the_time_of_birth() -> None:
    reply = wire.statx_reply(DEVICE, 1_500_000_007, VALID)
    # mask, blksize, attributes, nlink, uid, gid, mode; ino, size, blocks.
    assert struct.unpack_from("=IIQIIIH2xQQQ", reply, 32) == (
        0xFFF,
        4096,
        0,
        2,
        1001,
        1002,
        DEVICE.mode,
        FILE.ino,
        FILE.size,
        11,
    )
    assert struct.unpack_from("=QI", reply) == (3, 250_000_000)
    # Access, birth, change, modification; then the device.
    assert struct.unpack_from("=qI4xqI4xqI4xqI4xII", reply, 32 + 64) == (
        1,
        1,
        1,
        500_000_007,
        3,
        999_999_999,
        2,
        2,
        4095,
        0xFFFFF,
    )
    assert struct.unpack_from("=I", wire.statx_reply(FILE, None, VALID), 32) == (0x7FF,)


def test_fields_of_write_stand_where_the_kernel_puts_them() -> None:
    # fh, offset; size, write_flags; lock_owner; flags, padding.
    assert wire.WRITE_IN.unpack(struct.pack("=2Q2IQ2I", 1, 2, 3, 4, 5, 6, 0)) == (1, 2, 3, 4)


def test_fields_of_init_reply_stand_where_the_kernel_looks_for_them() -> None:
    reply = wire.init_reply(wire.Protocol(45, 1 << 17, (1 << 37) | (1 << 3)), 64, 1 << 20)
    # major, minor, max_readahead, flags; max_background, congestion_threshold; max_write, time_gran; max_pages,
    # map_alignment; flags2, max_stack_depth; request_timeout and what is unused.
    fields = struct.unpack("=4I2H2I2H2I12H", reply)
    assert fields == (7, 45, 1 << 17, 1 << 3, 64, 48, 1 << 20, 1, 256, 0, 1 << 5, 1, *[0] * 12)


@pytest.mark.parametrize("attrs", [FILE, DEVICE], ids=["file", "device"])
def test_entry_holds_id_times_and_attributes(attrs: Attrs) -> None:
    reply = wire.entry_reply(5, attrs, VALID)
    assert ENTRY_START.unpack_from(reply) == (5, 0, 3, 3, 250_000_000, 250_000_000)
    assert attrs_at(reply, ENTRY_START.size) == encoded(attrs)


def test_entry_of_no_name_is_valid_but_has_no_id() -> None:
    reply = wire.negative_entry(VALID)
    assert ENTRY_START.unpack_from(reply) == (0, 0, 3, 0, 250_000_000, 0)
    assert not any(reply[ENTRY_START.size :])


@pytest.mark.parametrize("attrs", [FILE, DEVICE], ids=["file", "device"])
def test_attr_reply_holds_times_and_attributes(attrs: Attrs) -> None:
    reply = wire.attr_reply(attrs, VALID)
    assert struct.unpack_from("=Q2I", reply) == (3, 250_000_000, 0)
    assert attrs_at(reply, 16) == encoded(attrs)


def test_time_before_1970_has_positive_nanoseconds() -> None:
    reply = wire.attr_reply(FILE._replace(mtime_ns=-1), VALID)
    assert struct.unpack_from("=3q3I", reply, 16 + 3 * 8)[1] == -1
    assert struct.unpack_from("=3q3I", reply, 16 + 3 * 8)[4] == 999_999_999


@pytest.mark.parametrize("length", LENGTHS)
def test_dirent_is_read_as_it_was_written(length: int) -> None:
    data = wire.dirent(FILE.ino, 9, name_of(length), stat.S_IFLNK)
    (entry,) = plain(data)
    assert entry[:4] == (name_of(length), stat.S_IFLNK, FILE.ino, 9)
    assert len(data) % 8 == 0


@pytest.mark.parametrize("length", LENGTHS)
def test_direntplus_is_entry_and_dirent(length: int) -> None:
    name = name_of(length)
    together = wire.entry_reply(5, DEVICE, VALID) + wire.dirent(DEVICE.ino, 9, name, stat.S_IFMT(DEVICE.mode))
    assert wire.direntplus(5, DEVICE, VALID, 9, name) == together


@pytest.mark.parametrize("length", LENGTHS)
def test_bare_direntplus_is_no_entry_and_dirent(length: int) -> None:
    data = wire.bare_direntplus(FILE.ino, 9, name_of(length), stat.S_IFDIR)
    assert not any(data[:ENTRY])
    assert data[ENTRY:] == wire.dirent(FILE.ino, 9, name_of(length), stat.S_IFDIR)


@pytest.mark.parametrize("length", LENGTHS)
def test_sizes_told_are_those_packed(length: int) -> None:
    name = name_of(length)
    assert wire.dirent_size(name) == len(wire.dirent(1, 1, name, stat.S_IFREG))
    assert wire.direntplus_size(name) == len(wire.direntplus(2, FILE, VALID, 1, name))
    assert wire.direntplus_size(name) == len(wire.bare_direntplus(2, 1, name, stat.S_IFDIR))


def test_entries_can_stand_behind_each_other() -> None:
    names = [name_of(length) for length in LENGTHS]
    data = b"".join(wire.direntplus(2, FILE, VALID, number, name) for number, name in enumerate(names))
    assert [(entry.name, entry.offset) for entry in plus(data)] == [(name, number) for number, name in enumerate(names)]
    assert DIRENT_START.size == 24


@pytest.mark.parametrize(
    ("major", "minor"), [(0, 0), (0, 255), (1, 3), (8, 256), (259, 0xFFFFF), (4095, 0xFFFFF), (4095, 0x12345)]
)
def test_device_numbers_are_decoded_as_they_were_encoded(major: int, minor: int) -> None:
    number = wire.encode_device(os.makedev(major, minor))
    assert 0 <= number < 1 << 32
    assert wire.decode_device(number) == os.makedev(major, minor)


@pytest.mark.parametrize(
    ("major", "minor", "number"), [(1, 3, 0x103), (8, 256, 0x100800), (0xABC, 0x12345, 0x123ABC45)]
)
def test_device_number_is_the_kernels(major: int, minor: int, number: int) -> None:
    assert wire.encode_device(os.makedev(major, minor)) == number


@pytest.mark.parametrize(
    ("timeout", "seconds", "nanoseconds"),
    [(0, 0, 0), (0.25, 0, 250_000_000), (1, 1, 0), (3.5, 3, 500_000_000), (86400.125, 86400, 125_000_000)],
)
def test_timeout_is_split_into_seconds_and_nanoseconds(timeout: float, seconds: int, nanoseconds: int) -> None:
    valid = wire.Valid(timeout)
    assert (valid.seconds, valid.nanoseconds) == (seconds, nanoseconds)


def test_numbers_of_requests_are_the_kernels() -> None:
    expected = {
        "LOOKUP": 1,
        "INIT": 26,
        "READDIR": 28,
        "BATCH_FORGET": 42,
        "READDIRPLUS": 44,
        "RENAME2": 45,
        "LSEEK": 46,
        "COPY_FILE_RANGE": 47,
        "SYNCFS": 50,
    }
    assert {name: wire.Opcode[name].value for name in expected} == expected


def test_statfs_reply_holds_what_statvfs_said() -> None:
    status = os.statvfs_result((4096, 512, 3, 4, 5, 6, 7, 8, 9, 255))
    fields = struct.unpack("=5Q3I", wire.statfs_reply(status)[:52])
    # blocks, bfree, bavail, files, ffree, bsize, namelen, frsize.
    assert fields == (3, 4, 5, 6, 7, 4096, 255, 512)
