"""Does `cp` copy by Docker's rules, and does no link of an image lead it to a file of this machine?"""

from __future__ import annotations

import gzip
import io
import os
import stat
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from overlayfs_demo.errors import MountError
from overlayfs_demo.store.container_state import root_of
from tests.conftest import unmount_all, why_no_mounts
from tests.images.builders import Entry, docker_save_many, layer, symlink
from tests.places import BIN, fails, run

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    """A directory of this machine with a file that nobody may read or change through a container."""
    (tmp_path / "host").mkdir()
    (tmp_path / "host/secret").write_text("canary")
    return tmp_path / "host"


@pytest.fixture
def demo(tmp_path: Path, canary: Path) -> Iterator[Run]:
    """`overlayfs-demo` on a store with the container c1, whose links lead to the canary; we work in tmp_path/here."""
    if problem := why_no_mounts():
        pytest.skip(problem)
    (tmp_path / "here").mkdir()

    def command(*words: str | Path) -> subprocess.CompletedProcess[str]:
        return run("overlayfs-demo", words[0], "--store", tmp_path / "store", *words[1:], cwd=tmp_path / "here")

    up = "../" * 20
    tree = layer(
        {
            "etc/motd": "hello\n",
            "etc/conf/a": "1",
            "link": symlink("etc/motd"),
            "to-dir": symlink("etc"),
            "absolute": symlink(str(canary)),
            "upwards": symlink(f"{up}{str(canary)[1:]}"),
            "to-secret": symlink(str(canary / "secret")),
            "self": symlink("/proc/self/root/etc"),
            "su": Entry(mode=0o6755),
            "dev/zero": Entry(b"3", mode=0o666, device=(1, 5)),
        }
    )
    (tmp_path / "images.tar").write_bytes(docker_save_many({"a:1": [tree]}))
    assert command("load", "-q", tmp_path / "images.tar").returncode == 0
    assert command("create", "a:1", "--name", "c1").returncode == 0
    yield command
    unmount_all(str(tmp_path))


def ok(done: subprocess.CompletedProcess[str]) -> None:
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def merged(tmp_path: Path) -> Path:
    return tmp_path / "store/containers/c1/merged"


def test_a_file_is_copied_out_and_in(demo: Run, tmp_path: Path) -> None:
    here = tmp_path / "here"
    ok(demo("cp", "c1:/etc/motd", "."))
    ok(demo("cp", "c1:etc/motd", "copy"))
    assert ((here / "motd").read_text(), (here / "copy").read_text()) == ("hello\n", "hello\n")
    (here / "motd").write_text("changed\n")
    ok(demo("cp", "motd", "c1:/etc/"))
    ok(demo("cp", "motd", "c1:/etc/new"))
    assert (merged(tmp_path) / "etc/motd").read_text() == "changed\n"
    assert demo("diff", "c1").stdout == "C /etc\nC /etc/motd\nA /etc/new\n"


def test_directories_follow_dockers_rules(demo: Run, tmp_path: Path) -> None:
    here = tmp_path / "here"
    ok(demo("cp", "c1:/etc", "new"))
    ok(demo("cp", "c1:/etc", "new"))
    ok(demo("cp", "c1:/etc/conf/.", "new"))
    assert sorted(path.relative_to(here).as_posix() for path in here.rglob("*") if path.is_file()) == [
        "new/a",
        "new/conf/a",
        "new/etc/conf/a",
        "new/etc/motd",
        "new/motd",
    ]
    ok(demo("cp", "new/", "c1:/"))
    assert (merged(tmp_path) / "new/etc/conf/a").read_text() == "1"
    fails(demo("cp", "c1:/etc", "new/motd"), "new/motd is not a directory")
    fails(demo("cp", "c1:/etc/motd", "none/"), "none/: the directory does not exist")
    fails(demo("cp", "c1:/etc/motd", "none/x"), "none/x: No such file or directory")
    fails(demo("cp", "c1:/etc/motd", "new/motd/"), "not a directory")
    (here / "new/etc2").mkdir()
    (here / "new/etc2/motd").mkdir()
    done = demo("cp", "c1:/etc/.", "new/etc2")
    assert done.returncode == 1 and "Is a directory" in done.stderr
    fails(demo("cp", "c1:/", "c1:/x"), "both sides", status=2)
    fails(demo("cp", "a", "b"), "neither side", status=2)
    fails(demo("cp", "c2:/a", "b"), "no container 'c2'")
    fails(demo("cp", "c1:/nothing", "."), "c1:/nothing: No such file")


def test_a_link_is_copied_as_such_unless_it_is_to_be_followed(demo: Run, tmp_path: Path) -> None:
    here = tmp_path / "here"
    ok(demo("cp", "c1:/link", "."))
    assert os.readlink(here / "link") == "etc/motd"
    ok(demo("cp", "-L", "c1:/link", "followed"))
    assert (here / "followed").read_text() == "hello\n"
    (here / "mine").symlink_to("followed")
    ok(demo("cp", "mine", "c1:/"))
    assert os.readlink(merged(tmp_path) / "mine") == "followed"
    ok(demo("cp", "-L", "mine", "c1:/to-dir/mine"))
    assert (merged(tmp_path) / "etc/mine").read_text() == "hello\n"


@pytest.mark.parametrize("way", ["absolute", "upwards"])
def test_no_link_of_an_image_leads_out_of_the_container(demo: Run, tmp_path: Path, canary: Path, way: str) -> None:
    here, inside = tmp_path / "here", merged(tmp_path)
    for words in (("-L", f"c1:/{way}/secret"), ("-L", f"c1:/{way}"), ("-L", "c1:/to-secret"), (f"c1:/{way}/.",)):
        fails(demo("cp", *words, "out"), "No such file or directory")
    assert os.listdir(here) == []
    (here / "secret").write_text("overwritten")
    fails(demo("cp", "secret", f"c1:/{way}/secret"), "No such file or directory")
    # Inside, the link's target does not exist; so the copy gets its name, as with docker.
    fails(demo("cp", "secret", f"c1:/{way}/"), "No such file or directory")
    fails(demo("cp", "secret", "c1:/self/"), "No such file or directory")
    (inside / str(canary)[1:]).mkdir(parents=True)
    ok(demo("cp", "secret", f"c1:/{way}/"))
    ok(demo("cp", "secret", "c1:/to-secret"))
    assert (inside / str(canary)[1:] / "secret").read_text() == "overwritten"
    assert (canary / "secret").read_text() == "canary" and os.listdir(canary) == ["secret"]


def test_a_tree_is_copied_out_over_no_link_that_a_copy_before_left(demo: Run, tmp_path: Path, canary: Path) -> None:
    """An image can bring a link first, and then a directory of the same name."""
    here, inside = tmp_path / "here", merged(tmp_path)
    (inside / "trap").mkdir()
    (inside / "trap/x").symlink_to(canary)
    ok(demo("cp", "c1:/trap", "."))
    (inside / "trap/x").unlink()
    (inside / "trap/x").mkdir()
    (inside / "trap/x/secret").write_text("overwritten")
    done = demo("cp", "c1:/trap", ".")
    assert done.returncode == 1 and "Not a directory" in done.stderr
    (inside / "trap/y").symlink_to(canary / "secret")
    (inside / "trap/x/secret").unlink()
    (inside / "trap/x").rmdir()
    ok(demo("cp", "c1:/trap", "."))
    (inside / "trap/y").unlink()
    (inside / "trap/y").write_text("overwritten")
    ok(demo("cp", "c1:/trap", "."))
    assert (here / "trap/y").read_text() == "overwritten" and not (here / "trap/y").is_symlink()
    assert (canary / "secret").read_text() == "canary"


def test_set_id_bits_and_devices_do_not_come_out(demo: Run, tmp_path: Path) -> None:
    here = tmp_path / "here"
    ok(demo("cp", "-a", "c1:/su", "."))
    assert stat.S_IMODE((here / "su").stat().st_mode) == 0o755
    fails(demo("cp", "c1:/dev/zero", "."), "c1:/dev/zero is a device")
    done = demo("cp", "c1:/dev", ".")
    assert (done.returncode, os.listdir(here / "dev")) == (0, [])
    assert done.stderr == "overlayfs-demo: note: skipped 1 device or socket: c1:/dev/zero\n"


def test_no_device_in_the_place_of_a_target_is_written_to(demo: Run, tmp_path: Path) -> None:
    (tmp_path / "here/f").write_text("x")
    done = demo("cp", "f", "c1:/dev/zero")
    assert done.returncode == 1 and "File exists" in done.stderr


def test_owners_are_those_of_the_copier_unless_they_are_to_be_kept(demo: Run, tmp_path: Path) -> None:
    here, inside = tmp_path / "here", merged(tmp_path)
    (here / "f").write_text("x")
    os.chown(here / "f", 1234, 1235)
    ok(demo("cp", "f", "c1:/root"))
    ok(demo("cp", "-a", "f", "c1:/kept"))
    assert ((inside / "root").stat().st_uid, (inside / "root").stat().st_gid) == (0, 0)
    assert ((inside / "kept").stat().st_uid, (inside / "kept").stat().st_gid) == (1234, 1235)
    ok(demo("cp", "c1:/kept", "mine"))
    ok(demo("cp", "--archive", "c1:/kept", "theirs"))
    assert ((here / "mine").stat().st_uid, (here / "theirs").stat().st_uid) == (os.geteuid(), 1234)


def test_a_copy_that_may_not_keep_the_owner_names_the_file_and_the_remedy(demo: Run, tmp_path: Path) -> None:
    os.chown(merged(tmp_path) / "etc/motd", 1234, 1235)
    words = ("cp", "--store", tmp_path / "store", "--archive", "c1:/etc", tmp_path / "out")
    done = run("setpriv", "--bounding-set=-chown", BIN / "overlayfs-demo", *words)
    fails(done, "c1:/etc/motd: Operation not permitted: only root", "leave out --archive")


def test_a_stopped_container_is_copied_from_and_to_and_stays_stopped(demo: Run, tmp_path: Path) -> None:
    assert demo("stop", "c1").returncode == 0
    ok(demo("cp", "c1:/etc/motd", "."))
    ok(demo("cp", "motd", "c1:/new"))
    assert demo("ps", "-q", "--filter", "status=exited").stdout == "c1\n"
    assert demo("diff", "c1").stdout == "A /new\n"


def test_a_directory_is_not_copied_into_itself(demo: Run, tmp_path: Path) -> None:
    done = run("overlayfs-demo", "cp", "--store", tmp_path / "store", "c1:/", "etc/deep", cwd=merged(tmp_path))
    assert done.returncode == 1 and "symbolic links" in done.stderr


def pipe(tmp_path: Path, *words: str, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    command: list[str | Path] = [BIN / "overlayfs-demo", words[0], "--store", tmp_path / "store", *words[1:]]
    return subprocess.run(command, input=given, capture_output=True, timeout=60)


def test_a_tar_comes_out_and_goes_in(demo: Run, tmp_path: Path) -> None:
    assert demo("stop", "c1").returncode == 0
    done = pipe(tmp_path, "cp", "c1:/etc", "-")
    assert (done.returncode, done.stderr) == (0, b"")
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        assert archive.getnames() == ["etc", "etc/conf", "etc/conf/a", "etc/motd"]
    assert pipe(tmp_path, "cp", "-", "c1:/etc", given=done.stdout).returncode == 0
    assert demo("diff", "c1").stdout == "C /etc\nA /etc/etc\nA /etc/etc/conf\nA /etc/etc/conf/a\nA /etc/etc/motd\n"
    assert b"is not a directory" in pipe(tmp_path, "cp", "-", "c1:/etc/motd", given=done.stdout).stderr
    assert b"not a tar archive" in pipe(tmp_path, "cp", "-", "c1:/etc", given=b"x" * 2000).stderr


def test_no_member_of_a_tar_leaves_the_container(demo: Run, tmp_path: Path, canary: Path) -> None:
    def member(name: str, **fields: object) -> bytes:
        written = io.BytesIO()
        with tarfile.open(fileobj=written, mode="w") as archive:
            info = tarfile.TarInfo(name)
            for field, value in fields.items():
                setattr(info, field, value)
            info.size = 0 if fields else 11
            archive.addfile(info, io.BytesIO(b"overwritten"))
        return written.getvalue()

    secret = str(canary / "secret")
    for given in (
        member(f"../../../../../../../../..{secret}"),
        member("absolute/secret"),
        member("upwards/secret"),
        member("hard", type=tarfile.LNKTYPE, linkname=secret),
        member("hard", type=tarfile.LNKTYPE, linkname="to-secret"),
        member("zero", type=tarfile.CHRTYPE, devmajor=1, devminor=5),
        member("to-secret"),
        member(secret),
    ):
        done = pipe(tmp_path, "cp", "-", "c1:/", given=given)
        assert b"Traceback" not in done.stderr
        assert (canary / "secret").read_text() == "canary" and os.listdir(canary) == ["secret"]
    assert (merged(tmp_path) / secret[1:]).read_text() == "overwritten"
    assert not (merged(tmp_path) / "zero").exists()


def tar_of(name: str, **fields: object) -> bytes:
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo(name)
        for field, value in fields.items():
            setattr(info, field, value)
        archive.addfile(info)
    return written.getvalue()


@pytest.mark.parametrize(
    ("given", "rule"),
    [
        (tar_of("a", pax_headers={"path": "a\0b"}), "not a valid file name"),
        (tar_of("a", pax_headers={"mtime": "9" * 39}), "an invalid time"),
        (tar_of("a", pax_headers={"mtime": "nan"}), "an invalid time"),
        (tar_of("a", pax_headers={"uid": "-1"}), "an invalid owner"),
        (tar_of("a", pax_headers={"linkpath": "a\0b"}, type=tarfile.SYMTYPE, linkname="a"), "an invalid name"),
        (tar_of("x" * 300), "name too long"),
        (tar_of("../a"), "'..'"),
        (tar_of("a")[:1000], "damaged or truncated"),
        (tar_of("a")[:512], "end-of-archive mark is missing"),
        (b"\x1f\x8b" + bytes(100), "gzip data is damaged"),
    ],
)
def test_a_bad_tar_is_refused_in_one_line(demo: Run, tmp_path: Path, given: bytes, rule: str) -> None:
    done = pipe(tmp_path, "cp", "-a", "-", "c1:/", given=given)
    assert done.returncode == 1 and rule in done.stderr.decode() and done.stderr.count(b"\n") == 1


def test_a_member_of_an_unknown_kind_is_left_out(demo: Run, tmp_path: Path) -> None:
    done = pipe(tmp_path, "cp", "-", "c1:/", given=tar_of("a", type=b"Q"))
    assert done.returncode == 0 and b"skipped 1" in done.stderr
    assert not (merged(tmp_path) / "a").exists()


def test_a_tar_goes_into_a_directory_that_a_link_names(demo: Run, tmp_path: Path) -> None:
    given = gzip.compress(tar_of("./", type=tarfile.DIRTYPE)[:512] + tar_of("new"))
    assert pipe(tmp_path, "cp", "-", "c1:/to-dir", given=given).returncode == 0
    assert (merged(tmp_path) / "etc/new").exists() and (merged(tmp_path) / "to-dir").is_symlink()


def test_holes_stay_holes(demo: Run, tmp_path: Path) -> None:
    """A small image may have a file of terabytes, which would fill the disk."""
    huge = tmp_path / "here/huge"
    with huge.open("wb") as file:
        file.truncate(1 << 42)
    sparse = run("tar", "--sparse", "-C", str(huge.parent), "-cf", str(tmp_path / "sparse.tar"), "huge")
    assert sparse.returncode == 0
    assert pipe(tmp_path, "cp", "-", "c1:/", given=(tmp_path / "sparse.tar").read_bytes()).returncode == 0
    ok(demo("cp", "huge", "c1:/in"))
    for name in ("huge", "in"):
        ok(demo("cp", f"c1:/{name}", "out"))
        status = (tmp_path / "here/out").stat()
        assert status.st_size == 1 << 42 and status.st_blocks < 100


def test_set_id_bits_do_not_come_out_in_a_tar(demo: Run, tmp_path: Path) -> None:
    done = pipe(tmp_path, "cp", "c1:/su", "-")
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        assert archive.getmember("su").mode == 0o755


def test_a_file_of_proc_has_its_data_in_the_copy(demo: Run, tmp_path: Path) -> None:
    ok(demo("cp", "/proc/version", "c1:/"))
    assert (merged(tmp_path) / "version").read_text() == Path("/proc/version").read_text()


def test_a_mount_point_that_is_no_view_is_not_copied_to(tmp_path: Path) -> None:
    """Whoever may rename a directory above it can put a link in its place."""
    (tmp_path / "link").symlink_to(tmp_path)
    for place in (tmp_path / "link", tmp_path, tmp_path / "none"):
        with pytest.raises(MountError), root_of(place):
            pass
