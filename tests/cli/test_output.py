"""Does --output replace files whole, and write straight into what is no file?"""

from __future__ import annotations

import os
import stat
import struct
import subprocess
import threading
from pathlib import Path

import pytest

from overlayfs_demo.cli.output import output
from overlayfs_demo.errors import ImageError, UsageError
from overlayfs_demo.images.sample_image import TAG
from overlayfs_demo.overlay.acl import ACCESS
from tests.images.builders import needs_root
from tests.places import BIN, Place, run, teaching_image

NOBODY = 65534


def write(path: Path, text: bytes = b"result") -> None:
    with output(path) as out:
        out.write(text)


def fail_to_write(path: Path) -> None:
    with pytest.raises(RuntimeError), output(path) as out:
        out.write(b"half")
        raise RuntimeError


def permissions(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# --- regular files ---------------------------------------------------------------------------------


def test_new_file_has_the_permissions_that_the_umask_leaves(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write(tmp_path / "out")
    finally:
        os.umask(before)
    assert (tmp_path / "out").read_bytes() == b"result"
    assert permissions(tmp_path / "out") == 0o640
    assert os.listdir(tmp_path) == ["out"]


def test_replaced_file_keeps_its_permissions_without_set_id_bits(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a longer text than the result")
    (tmp_path / "out").chmod(0o4604)
    write(tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == b"result"
    assert permissions(tmp_path / "out") == 0o604


@needs_root
def test_replaced_file_keeps_its_owner(tmp_path: Path) -> None:
    (tmp_path / "out").touch(mode=0o600)
    os.chown(tmp_path / "out", NOBODY, 7)
    write(tmp_path / "out")
    status = (tmp_path / "out").stat()
    assert (status.st_uid, status.st_gid, permissions(tmp_path / "out")) == (NOBODY, 7, 0o600)


def test_replaced_file_keeps_its_acl(tmp_path: Path) -> None:
    """For with one, the group's bits of the mode are a mask, and without it would let the group in."""
    (tmp_path / "out").touch()
    entries = [(1, 6, -1), (2, 6, NOBODY), (4, 0, -1), (16, 6, -1), (32, 0, -1)]
    wanted = struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *entry) for entry in entries)
    try:
        os.setxattr(tmp_path / "out", ACCESS, wanted)
    except OSError as error:
        pytest.skip(f"this filesystem has no ACLs: {error.strerror}")
    write(tmp_path / "out")
    assert os.getxattr(tmp_path / "out", ACCESS) == wanted


def test_unfinished_file_is_as_private_as_what_it_replaces(tmp_path: Path) -> None:
    (tmp_path / "out").touch(mode=0o600)
    with output(tmp_path / "out"):
        assert [permissions(one) for one in tmp_path.iterdir()] == [0o600, 0o600]


def test_reader_sees_the_old_file_until_the_new_one_is_whole(tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"old")
    with output(tmp_path / "out") as out:
        out.write(b"new")
        out.flush()
        assert (tmp_path / "out").read_bytes() == b"old"
    assert (tmp_path / "out").read_bytes() == b"new"


@pytest.mark.parametrize("there", [True, False])
def test_failure_leaves_what_was_there(tmp_path: Path, there: bool) -> None:
    if there:
        (tmp_path / "out").write_bytes(b"old")
    fail_to_write(tmp_path / "out")
    assert [one.read_bytes() for one in tmp_path.iterdir()] == [b"old"] * there


def test_name_of_the_unfinished_file_cannot_be_taken_by_somebody_else(tmp_path: Path) -> None:
    (tmp_path / "canary").write_bytes(b"safe")
    (tmp_path / ".out.unfinished").symlink_to("canary")
    write(tmp_path / "out")
    assert (tmp_path / "canary").read_bytes() == b"safe"


# --- symbolic links --------------------------------------------------------------------------------


def test_symbolic_link_is_followed_and_its_target_replaced(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there/target").write_bytes(b"old")
    (tmp_path / "there/target").chmod(0o640)
    (tmp_path / "link").symlink_to("there/target")
    (tmp_path / "out").symlink_to("link")
    before = (tmp_path / "there/target").stat().st_ino
    write(tmp_path / "out")
    assert (tmp_path / "out").is_symlink() and (tmp_path / "link").is_symlink()
    after = (tmp_path / "there/target").stat()
    assert (tmp_path / "out").read_bytes() == b"result"
    assert after.st_ino != before and stat.S_IMODE(after.st_mode) == 0o640
    assert os.listdir(tmp_path / "there") == ["target"]


def test_dangling_link_makes_its_target(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "out").symlink_to("there/target")
    fail_to_write(tmp_path / "out")
    assert os.listdir(tmp_path / "there") == []
    write(tmp_path / "out")
    assert (tmp_path / "out").is_symlink()
    assert (tmp_path / "there/target").read_bytes() == b"result"


@needs_root
@pytest.mark.parametrize("there", [True, False])
def test_link_that_somebody_else_put_into_a_shared_directory_is_not_followed(tmp_path: Path, there: bool) -> None:
    if Path("/proc/sys/fs/protected_symlinks").read_text().strip() != "1":
        pytest.skip("this kernel follows such links: fs.protected_symlinks is off")
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o1777)
    if there:
        (tmp_path / "target").write_bytes(b"safe")
    (tmp_path / "shared/out").symlink_to(tmp_path / "target")
    os.lchown(tmp_path / "shared/out", NOBODY, NOBODY)
    with pytest.raises(ImageError, match="Permission denied"):
        write(tmp_path / "shared/out")
    assert (tmp_path / "target").exists() == there
    assert not there or (tmp_path / "target").read_bytes() == b"safe"


# --- what is no file -------------------------------------------------------------------------------


def test_fifo_is_written_into_and_stays(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "out").symlink_to("fifo")
    for name in ("fifo", "out"):
        writer = threading.Thread(target=write, args=(tmp_path / name,), daemon=True)
        writer.start()
        assert (tmp_path / "fifo").read_bytes() == b"result"
        writer.join()
    assert (tmp_path / "fifo").is_fifo()
    assert sorted(os.listdir(tmp_path)) == ["fifo", "out"]


@needs_root
def test_device_is_written_into_and_stays(tmp_path: Path) -> None:
    for name, device in (("null", 3), ("full", 7)):
        os.mknod(tmp_path / name, stat.S_IFCHR | 0o666, os.makedev(1, device))
    write(tmp_path / "null")
    with pytest.raises(ImageError, match="full: No space left on device"):
        write(tmp_path / "full")
    assert all((tmp_path / name).is_char_device() for name in ("null", "full"))
    assert sorted(os.listdir(tmp_path)) == ["full", "null"]


def test_directory_is_named_as_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="Is a directory: choose another --output"):
        write(tmp_path)


def test_terminal_is_refused_by_any_name(tmp_path: Path) -> None:
    ours, theirs = os.openpty()
    (tmp_path / "out").symlink_to(os.ttyname(theirs))
    (tmp_path / "number").symlink_to(f"/proc/self/fd/{theirs}")
    for name in ("out", "number"):
        with pytest.raises(UsageError, match="refusing to write an archive to a terminal"):
            write(tmp_path / name)
    os.close(ours)
    os.close(theirs)


@pytest.mark.parametrize("target", ["/proc/self/fd/1", "/dev/fd/1"])
@pytest.mark.parametrize("links", [1, 2])
def test_descriptor_is_written_on_from_where_it_is(tmp_path: Path, target: str, links: int) -> None:
    """A file behind it is neither replaced nor written from its start: `{ echo head; save -o /dev/stdout; } > file`.

    The links are our own: a program that replaces what it should follow must not hurt this machine's /dev/stdout.
    """
    (tmp_path / "link1").symlink_to(target)
    (tmp_path / "link2").symlink_to("link1")
    script = (
        "import sys; from pathlib import Path; from overlayfs_demo.cli.output import output\n"
        "with output(Path(sys.argv[1])) as out: out.write(b'result\\n')"
    )
    with (tmp_path / "file").open("wb") as file:
        file.write(b"head\n")
        file.flush()
        before = (tmp_path / "file").stat().st_ino
        subprocess.run([BIN / "python", "-c", script, f"link{links}"], stdout=file, cwd=tmp_path, check=True)
    assert (tmp_path / "file").read_bytes() == b"head\nresult\n"
    assert (tmp_path / "file").stat().st_ino == before
    assert (tmp_path / f"link{links}").is_symlink()


# --- the verbs -------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["save", "export", "report"])
def test_every_verb_with_an_output_writes_into_a_device(place: Place, verb: str) -> None:
    def demo(*words: str | Path) -> None:
        done = run("overlayfs-demo", words[0], "--store", place / "store", *words[1:])
        assert done.returncode == 0, done.stderr

    os.mknod(place / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    teaching_image(place / "image.tar")
    demo("load", place / "image.tar")
    demo("create", TAG, "--name", "c1")
    demo(verb, "c1" if verb == "export" else TAG, "-o", place / "null")
    assert (place / "null").is_char_device()
