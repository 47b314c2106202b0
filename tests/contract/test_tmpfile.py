"""What is a file that has no name yet (open(2), O_TMPFILE), and how does it get one (linkat(2))?"""

from __future__ import annotations

import errno
import os
import stat

import pytest

from overlayfs_demo.linux import proc
from tests.builders import WHITEOUT, directory, symlink
from tests.contract.conftest import Mount
from tests.contract.marks import differs, kernel_version, only
from tests.contract.raw import link_descriptor
from tests.contract.subjects import USER, File, Subject
from tests.contract.test_permissions import GROUP_OBJ, MASK, NAMED_USER, OTHER, USER_OBJ, acl

UNNAMED = os.O_TMPFILE | os.O_RDWR

# The subjects that have such files at all.
having = only(["engine", "kernel-front", "kernel"], "libfuse 2 knows no O_TMPFILE, see the first fact")
mounts_having = only(["kernel-front", "kernel"], "the kernel sees to this before it asks the engine")


def unnamed(view: Subject, path: str = "", flags: int = UNNAMED, mode: int = 0o644) -> File:
    """A file without a name in a directory of the view."""
    try:
        return view.open(path, flags, mode)
    except OSError as error:
        # FUSE learned it in Linux 6.2 (protocol 7.37), the kernel's overlayfs in 6.1.
        if error.errno == errno.EOPNOTSUPP and view.kind != "engine" and kernel_version() < (6, 2):
            pytest.skip("this kernel has no O_TMPFILE here")
        raise


@differs("fusepy-front", "libfuse 2 has no such request: EOPNOTSUPP")
def test_unnamed_file_is_written_and_read_and_has_no_name(mounted: Mount) -> None:
    view = mounted({"d/x": ""})
    if view.differs:
        with pytest.raises(OSError) as failure:
            view.open("d", UNNAMED)
        assert failure.value.errno == errno.EOPNOTSUPP
        return
    opened = unnamed(view, "d", mode=0o640)
    opened.write(b"data")
    assert opened.read() == b"data"
    status = opened.stat()
    assert (status.nlink, status.size, status.mode) == (0, 4, stat.S_IFREG | 0o640)
    assert view.names("d") == [b"x"]
    assert view.upper_names() == ["d"]
    opened.close()
    assert view.upper_names() == ["d"]
    assert view.work_is_empty()


@having
def test_unnamed_file_takes_attributes(mounted: Mount) -> None:
    view = mounted({})
    opened = unnamed(view)
    opened.chmod(0o604)
    assert stat.S_IMODE(opened.stat().mode) == 0o604
    opened.allocate(0, 0, 10_000)
    assert opened.stat().size == 10_000
    opened.close()


@mounts_having
def test_unnamed_file_is_reached_by_its_descriptor(mounted: Mount) -> None:
    view = mounted({})
    unnamed(view).close()
    fd = os.open(view.path(""), UNNAMED, 0o600)
    os.fchown(fd, 5, 6)
    os.setxattr(fd, "user.k", b"v")
    os.utime(fd, ns=(1, 2))
    os.ftruncate(fd, 3)
    again = os.open(proc.fd_path(fd), os.O_RDWR)
    os.write(again, b"xy")
    assert os.pread(fd, 10, 0) == b"xy\0"
    os.close(fd)
    status = os.fstat(again)
    assert (status.st_uid, status.st_gid, status.st_nlink, os.getxattr(again, "user.k")) == (5, 6, 0, b"v")
    os.close(again)


@having
@pytest.mark.parametrize("flags", [UNNAMED, os.O_TMPFILE | os.O_WRONLY])
@pytest.mark.parametrize("where", ["new", "d/new", "u/new", "gone"])
def test_link_names_the_file(mounted: Mount, where: str, flags: int) -> None:
    view = mounted({"d/x": "", "gone": "1"}, upper={"gone": WHITEOUT, "u/": None})
    opened = unnamed(view, "d", flags, 0o640)
    opened.write(b"data")
    ino = opened.stat().ino
    opened.link(where)
    assert opened.stat().nlink == 1
    opened.write(b" and more", 4)
    opened.close()
    status = view.stat(where)
    assert (status.ino, status.nlink, status.size) == (ino, 1, 13)
    assert view.read(where) == b"data and more"
    assert os.fsencode(os.path.basename(where)) in view.names(os.path.dirname(where))
    assert view.work_is_empty()
    view.remount()
    assert (view.read(where), view.stat(where).ino) == (b"data and more", ino)


@having
def test_named_file_is_like_any_other(mounted: Mount) -> None:
    view = mounted({"d/x": ""})
    opened = unnamed(view)
    opened.write(b"data")
    opened.link("a")
    opened.link("d/b")
    assert opened.stat().nlink == 2
    view.rename("a", "c")
    view.append("c", b"!")
    assert opened.read() == view.read("d/b") == b"data!"
    view.unlink("c")
    view.unlink("d/b")
    assert opened.stat().nlink == 0
    with pytest.raises(FileNotFoundError):
        opened.link("again")
    opened.close()
    assert view.names() == [b"d"]


@having
def test_name_that_exists_is_not_replaced(mounted: Mount) -> None:
    view = mounted({"a": "1", "d/": None}, upper={"b": "2"})
    opened = unnamed(view)
    for name in ("a", "b", "d"):
        with pytest.raises(FileExistsError):
            opened.link(name)
    opened.link("c")
    opened.close()
    assert (view.read("a"), view.read("b"), view.read("c")) == (b"1", b"2", b"")


@having
def test_exclusive_unnamed_file_never_gets_a_name(mounted: Mount) -> None:
    view = mounted({})
    opened = unnamed(view, flags=UNNAMED | os.O_EXCL)
    opened.write(b"data")
    with pytest.raises(FileNotFoundError):
        opened.link("a")
    assert opened.read() == b"data"
    opened.close()
    assert view.names() == []
    assert view.work_is_empty()


@having
@pytest.mark.parametrize("uid", [0, USER])
def test_unnamed_file_belongs_to_who_made_it(mounted: Mount, uid: int) -> None:
    view = mounted({"d": directory(mode=0o777), "s": directory(mode=0o2777, gid=77)})
    unnamed(view).close()

    def make() -> None:
        for above, mode in (("d", 0o666), ("s", 0o7777)):
            opened = unnamed(view, above, mode=mode)
            opened.link(f"{above}/a")
            opened.close()

    view.run_as(uid, 0o027, make)
    assert (view.stat("d/a").uid, view.stat("d/a").gid, stat.S_IMODE(view.stat("d/a").mode)) == (uid, uid, 0o640)
    assert (view.stat("s/a").uid, view.stat("s/a").gid) == (uid, 77)


@having
def test_default_acl_applies_to_unnamed_files(mounted: Mount) -> None:
    view = mounted({"d": directory(mode=0o777)})
    view.set_default_acl("d", acl((USER_OBJ, 7), (NAMED_USER, 7, 99), (GROUP_OBJ, 5), (MASK, 7), (OTHER, 5)))
    opened = unnamed(view, "d", mode=0o666)
    opened.link("d/a")
    opened.close()
    expected = acl((USER_OBJ, 6), (NAMED_USER, 7, 99), (GROUP_OBJ, 5), (MASK, 6), (OTHER, 4))
    assert view.xattr("d/a", "system.posix_acl_access") == expected
    assert stat.S_IMODE(view.stat("d/a").mode) == 0o664


def fails(view: Subject, path: str, flags: int = UNNAMED) -> int | None:
    """The errno of an open(2), None if it succeeds."""
    try:
        view.open(path, flags).close()
    except OSError as error:
        return error.errno
    return None


@mounts_having
def test_unnamed_file_must_be_opened_for_writing_in_a_directory(mounted: Mount) -> None:
    view = mounted({"a": "", "l": symlink("nowhere")})
    unnamed(view).close()
    assert fails(view, "", os.O_TMPFILE | os.O_RDONLY) == errno.EINVAL
    assert fails(view, "a") == errno.ENOTDIR
    assert fails(view, "l") == errno.ENOENT


@having
def test_unnamed_file_needs_an_upper(mounted: Mount) -> None:
    view = mounted({"d/": None}, writable=False)
    if view.kind != "engine" and kernel_version() < (6, 2):
        pytest.skip("this kernel has no O_TMPFILE here")
    assert fails(view, "d") == errno.EROFS


@mounts_having
@differs("kernel", "says EPERM or ENOTDIR")
def test_removed_directory_takes_no_unnamed_file(mounted: Mount) -> None:
    view = mounted({"d/": None})
    unnamed(view).close()
    held = os.open(view.path("d"), os.O_RDONLY)
    view.rmdir("d")
    with pytest.raises(OSError) as failure:
        os.open(".", UNNAMED, dir_fd=held)
    os.close(held)
    assert failure.value.errno == errno.ENOENT or view.differs


@mounts_having
def test_link_of_a_descriptor_needs_no_path(mounted: Mount) -> None:
    view = mounted({"d/": None})
    unnamed(view).close()
    fd = os.open(view.path(""), UNNAMED, 0o600)
    os.write(fd, b"data")
    link_descriptor(fd, view.path("d/a"))
    os.close(fd)
    assert view.read("d/a") == b"data"


@having
def test_many_unnamed_files_are_told_apart(mounted: Mount) -> None:
    view = mounted({})
    files = [unnamed(view) for _ in range(10)]
    for number, opened in enumerate(files):
        opened.write(b"%d" % number)
    assert len({opened.stat().ino for opened in files}) == 10
    for number, opened in enumerate(files):
        opened.link(f"{number}")
        opened.close()
    assert [view.read(f"{number}") for number in range(10)] == [b"%d" % number for number in range(10)]
