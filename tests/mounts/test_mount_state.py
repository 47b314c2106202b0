"""What do `volatile`, `ro`, `noatime` and `remount` do, and does the kernel's overlayfs agree?"""

from __future__ import annotations

import errno
import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from overlayfs_demo.errors import MountError
from overlayfs_demo.mounts import registry
from tests.conftest import wait_until
from tests.contract.conftest import why_unavailable
from tests.places import Place, fails, run

# Without the helper. mount(8) of util-linux 2.39 on asks by fsconfig(2), which FUSE takes no changes by.
REMOUNT = ("env", "LIBMOUNT_FORCE_MOUNT2=always", "mount", "-i", "-o")

fronts = pytest.mark.parametrize("front", ["kernel", "fusepy"])


def mount(place: Place, more: str, front: str = "kernel") -> None:
    if problem := why_unavailable(f"{front}-front"):
        pytest.skip(problem)
    done = place.mount("--front", front, options=place.options + more)
    assert (done.returncode, done.stderr) == (0, "")


def kernel_mounts(place: Place, more: str = "") -> bool:
    if problem := why_unavailable("kernel"):
        pytest.skip(problem)
    return run("mount", "-t", "overlay", "overlay", place.view, "-o", place.options + more).returncode == 0


# --- volatile -------------------------------------------------------------------------------------


@fronts
def test_a_volatile_upper_is_marked_as_the_kernel_does(place: Place, front: str) -> None:
    mount(place, ",volatile", front)
    (place.view / "new").write_text("1")
    fd = os.open(place.view / "new", os.O_WRONLY)
    os.fsync(fd)
    os.close(fd)
    assert place.umount().returncode == 0
    ours = sorted(str(path) for path in (place / "work").rglob("*"))
    assert not kernel_mounts(place)
    run("rm", "-r", place / "work" / "work")
    assert kernel_mounts(place, ",volatile")
    assert sorted(str(path) for path in (place / "work").rglob("*")) == ours


def test_a_volatile_upper_is_not_mounted_again_until_the_mark_is_gone(place: Place) -> None:
    mount(place, ",volatile")
    assert place.umount().returncode == 0
    for more in ("", ",volatile"):
        done = place.mount(options=place.options + more)
        fails(done, str(place / "upper"), "volatile", f"rm -r {place / 'work/work/incompat'}")
    assert run("rm", "-r", place / "work/work/incompat").returncode == 0
    mount(place, "")


def test_the_kernels_volatile_upper_is_refused_too(place: Place) -> None:
    assert kernel_mounts(place, ",volatile")
    assert run("umount", place.view).returncode == 0
    fails(place.mount(), "volatile", "incompat")


def test_an_unknown_feature_is_refused_by_name(place: Place) -> None:
    (place / "work/work/incompat/sparkle").mkdir(parents=True)
    fails(place.mount(), str(place / "work"), "'sparkle'")
    assert not kernel_mounts(place)


# --- flags ----------------------------------------------------------------------------------------


@fronts
def test_a_view_is_remounted_read_only_and_back(place: Place, front: str) -> None:
    mount(place, "", front)
    assert run(*REMOUNT, "remount,ro", place.view).returncode == 0
    with pytest.raises(OSError) as caught:
        (place.view / "new").touch()
    assert caught.value.errno == errno.EROFS
    assert run(*REMOUNT, "remount,rw", place.view).returncode == 0
    (place.view / "new").touch()


def test_mount_8_remounts_through_the_helper(helper: Place) -> None:
    place = helper
    words = ("mount", "-t", "fuse.overlayfs-demo", "name", place.view, "-o", f"noatime,ro,{place.options}")
    assert run(*words).returncode == 0
    assert not os.access(place.view, os.W_OK)
    assert run("mount", "-o", "remount,rw", place.view).returncode == 0
    (place.view / "new").touch()
    assert "noatime" in run("findmnt", "-no", "OPTIONS", place.view).stdout
    assert run("mount", "-o", "remount,ro,nosuid", place.view).returncode == 0
    options = run("findmnt", "-no", "OPTIONS", place.view).stdout.strip().split(",")
    assert {"ro", "nosuid", "noatime"} <= set(options)
    assert (place.view / "motd").read_text() == "hello\n"


def test_remount_changes_only_what_it_names(place: Place) -> None:
    mount(place, ",noexec,noatime")
    assert place.mount(options="remount,ro").returncode == 0
    flags = os.statvfs(place.view).f_flag
    assert flags & os.ST_RDONLY and flags & os.ST_NOEXEC and flags & os.ST_NOATIME
    assert place.mount(options="remount,rw,exec,lowerdir=/nowhere").returncode == 0
    assert not os.statvfs(place.view).f_flag & (os.ST_RDONLY | os.ST_NOEXEC)


def test_a_view_without_an_upper_stays_read_only(place: Place) -> None:
    assert place.mount(options=f"lowerdir={place / 'top'}:{place / 'bottom'}").returncode == 0
    fails(place.mount(options="remount,rw"), str(place.view), "no upper")


def test_remount_of_what_is_not_mounted_is_refused(place: Place) -> None:
    fails(place.mount(options="remount,ro"), str(place.view), "not mounted")


@fronts
@pytest.mark.parametrize("flag", ["noatime", "strictatime"])
def test_reading_an_upper_file_touches_its_access_time_unless_told(place: Place, front: str, flag: str) -> None:
    (place / "upper/mine").write_text("1")
    os.utime(place / "upper/mine", (1, 2))
    os.utime(place / "top/motd", (1, 2))
    mount(place, f",{flag}", front)
    assert (place.view / "mine").read_text() == "1"
    assert (place.view / "motd").read_text() == "hello\n"
    assert (os.stat(place / "upper/mine").st_atime == 1) == (flag == "noatime")
    assert os.stat(place / "top/motd").st_atime == 1


def test_a_record_of_another_version_is_a_named_error(place: Place) -> None:
    assert place.mount().returncode == 0
    record = registry.find_record(str(place.view))
    assert record is not None
    [path] = [
        one
        for one in Path(registry.socket_path(record.mountpoint)).parent.glob("*.json")
        if str(place.view) in one.read_text()
    ]
    path.write_text(json.dumps({**json.loads(path.read_text()), "made_up": 1}))
    with pytest.raises(MountError, match="damaged, or of another version: unmount its view"):
        registry.find_record(str(place.view))


# --- other mount namespaces -----------------------------------------------------------------------


def test_umount_says_who_keeps_the_mount_in_a_namespace_of_its_own(place: Place) -> None:
    assert place.mount().returncode == 0
    daemon = place.supervisor()
    with keeping(place.view) as keeper:
        done = place.umount()
        assert done.returncode == 0
        assert f"sleep ({keeper})" in done.stderr and f"process {daemon}" in done.stderr
        assert os.path.exists(f"/proc/{daemon}")
    wait_until(lambda: not os.path.exists(f"/proc/{daemon}"), "the daemon ends with the namespace")


def test_a_daemon_that_lingers_takes_nothing_from_the_mount_that_came_after_it(place: Place) -> None:
    lowers = f"lowerdir={place / 'top'}:{place / 'bottom'}"
    assert place.mount(options=lowers).returncode == 0
    before = place.supervisor()
    with keeping(place.view):
        assert place.umount().returncode == 0
        assert place.mount(options=lowers).returncode == 0
    wait_until(lambda: not os.path.exists(f"/proc/{before}"), "the first daemon ends")
    assert place.supervisor() != before
    assert "visible" in run("overlayfs-demo", "which", place.view / "motd").stdout


@contextmanager
def keeping(view: Path) -> Iterator[int]:
    """A process, which is told, with a mount namespace of its own that has the view."""
    words = ["unshare", "--mount", "--propagation", "private", "sleep", "1000"]
    with subprocess.Popen(words) as process:
        wait_until(lambda: Path(f"/proc/{process.pid}/comm").read_text() == "sleep\n", "the namespace")
        assert f" {view} " in Path(f"/proc/{process.pid}/mountinfo").read_text()
        yield process.pid
        process.kill()
