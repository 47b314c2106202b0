"""What does a person at a shell see, when it works and when it does not?"""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from overlayfs_demo.cli import main
from overlayfs_demo.cli.families import FAMILIES
from overlayfs_demo.cli.parser import verbs_of
from overlayfs_demo.errors import MountError
from overlayfs_demo.fronts import select
from overlayfs_demo.linux import libc, mounting
from overlayfs_demo.mounts import registry
from tests.command import started
from tests.conftest import wait_until, why_no_mounts
from tests.contract.conftest import why_unavailable
from tests.places import BIN, MINUTE, Place, fails, run

# --- mount and umount -----------------------------------------------------------------------------


@pytest.mark.parametrize("front", ["auto", "kernel", "fusepy"])
def test_mount_returns_when_the_view_answers(place: Place, front: str) -> None:
    if front != "auto" and (problem := why_unavailable(f"{front}-front")):
        pytest.skip(problem)
    done = place.mount("--front", front)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (place.view / "motd").read_text() == "hello\n"
    assert place.umount().returncode == 0
    assert not place.is_mounted()


def test_umount_returns_when_the_upper_is_free_again(place: Place) -> None:
    for _ in range(3):
        assert place.mount().returncode == 0
        assert place.umount().returncode == 0


def test_relative_paths_are_the_callers(place: Place) -> None:
    options = "lowerdir=top:bottom,upperdir=upper,workdir=work"
    assert run("overlayfs-demo", "mount", "-o", options, "view", cwd=place.base).returncode == 0
    (place.view / "new").write_text("1")
    assert run("overlayfs-demo", "umount", "view", cwd=place.base).returncode == 0
    assert (place / "upper" / "new").read_text() == "1"


WRITES: dict[str, Callable[[Path], object]] = {
    "create": lambda view: (view / "new").touch(),
    "write": lambda view: (view / "motd").write_text("x"),
    "mkdir": lambda view: (view / "new").mkdir(),
    "unlink": lambda view: (view / "motd").unlink(),
    "rmdir": lambda view: (view / "d").rmdir(),
    "rename": lambda view: (view / "motd").rename(view / "other"),
    "link": lambda view: (view / "other").hardlink_to(view / "motd"),
    "chmod": lambda view: (view / "motd").chmod(0o600),
    "utime": lambda view: os.utime(view / "motd"),
    "setxattr": lambda view: os.setxattr(view / "motd", "user.key", b"1"),
}


@pytest.mark.parametrize("front", ["kernel", "fusepy"])
def test_without_an_upper_every_write_is_erofs(place: Place, front: str) -> None:
    if problem := why_unavailable(f"{front}-front"):
        pytest.skip(problem)
    assert place.mount("--front", front, options=f"lowerdir={place / 'top'}:{place / 'bottom'}").returncode == 0
    seen = {}
    for name, write in WRITES.items():
        with pytest.raises(OSError) as caught:
            write(place.view)
        seen[name] = caught.value.errno
    assert seen == dict.fromkeys(WRITES, errno.EROFS)


def test_umount_of_a_busy_view_names_who_uses_it(place: Place) -> None:
    place.mount()
    with subprocess.Popen(["sleep", "600"], cwd=place.view / "d") as user:
        try:
            fails(place.umount(), "is busy", f"sleep ({user.pid})", "--lazy")
            assert place.is_mounted()
            assert place.umount("--lazy").returncode == 0
            assert not place.is_mounted()
        finally:
            user.kill()


def test_umount_of_what_is_not_ours_is_refused(place: Place) -> None:
    fails(place.umount(), str(place.view), "is not mounted by overlayfs-demo", "findmnt")


# --- what can be wrong ----------------------------------------------------------------------------


def test_missing_lower_is_named(place: Place) -> None:
    fails(place.mount(options=f"lowerdir={place / 'top'}:{place / 'nowhere'}"), "lower layer 2 of 2", "/nowhere")


def test_upper_and_work_on_two_filesystems_are_refused(place: Place) -> None:
    mounting.mount(b"none", os.fsencode(place / "work"), b"tmpfs", 0, b"")
    fails(place.mount(), str(place / "upper"), str(place / "work"), "different filesystems", "put both on one")


def test_busy_upper_says_where_it_is_mounted_and_by_whom(place: Place) -> None:
    place.mount()
    (place / "second").mkdir()
    done = run("overlayfs-demo", "mount", "-o", place.options, place / "second")
    fails(done, str(place / "upper"), "in use", str(place.view), str(place.supervisor()))


@pytest.mark.parametrize(
    ("make", "said"),
    [(lambda view: view.rmdir(), "does not exist"), (lambda view: (view.rmdir(), view.touch()), "not a directory")],
)
def test_mount_point_must_be_a_directory(place: Place, make: Callable[[Path], object], said: str) -> None:
    make(place.view)
    fails(place.mount(), str(place.view), said)


def test_missing_device_is_named_with_the_remedy(place: Place) -> None:
    command = f"mount -t tmpfs none /dev && exec overlayfs-demo mount -o {place.options} {place.view} 2>&1"
    if run("unshare", "--mount", "true").returncode:
        pytest.skip("needs a mount namespace of its own, which unshare(1) cannot make below a chroot")
    done = run("unshare", "--mount", "sh", "-c", command)
    assert done.returncode == 1
    assert done.stdout == "overlayfs-demo: /dev/fuse does not exist: load the kernel module with 'modprobe fuse'\n"


def test_missing_mtab_is_named_before_a_user_mounts_what_fusermount_could_not_unmount(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if problem := why_no_mounts():
        pytest.skip(problem)
    monkeypatch.setattr(select, "MTAB", str(tmp_path / "mtab"))
    assert select.front("kernel")[0] == "kernel"
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(MountError, match=r"mtab does not exist.*'ln -s \.\./proc/self/mounts "):
        select.front("kernel")


def test_missing_libfuse_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    if problem := why_no_mounts():
        pytest.skip(problem)
    monkeypatch.setattr(libc, "has_library", lambda name: False)
    with pytest.raises(MountError, match=r"libfuse 2 is not installed.*install the package libfuse2"):
        select.front("fusepy")
    assert select.front("auto")[0] == "kernel"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["frobnicate"], "frobnicate"),
        (["mount"], "MOUNTPOINT"),
        (["mount", "view"], "no lowerdir="),
        (["mount", "-o", "lowerdir=a,sparkle", "view"], "sparkle"),
        (["mount", "--front", "quantum", "view"], "quantum"),
        (["mount", "--trace", "-o", "lowerdir=a", "view"], "--foreground"),
    ],
)
def test_wrong_usage_is_status_2_and_names_the_word(words: list[str], said: str) -> None:
    done = run("overlayfs-demo", *words)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "words",
    [
        ("--version",),
        (),
        ("images", "--help"),
        ("frobnicate",),
        ("history", "--store", "{base}/store", "none:1"),
        ("mount", "-o", "lowerdir={base}/nowhere", "{base}"),
    ],
    ids=" ".join,
)
def test_the_installed_command_says_what_the_tests_are_told_of_it(tmp_path: Path, words: tuple[str, ...]) -> None:
    """Most tests start no interpreter for it: tests.command."""
    command = [word.format(base=tmp_path) for word in words]
    settings = {**os.environ, "LC_ALL": "C.UTF-8"}
    alone = subprocess.run([BIN / "overlayfs-demo", *command], capture_output=True, text=True, env=settings)
    told = run("overlayfs-demo", *command)
    assert (told.returncode, told.stdout, told.stderr) == (alone.returncode, alone.stdout, alone.stderr)


def listed_verbs() -> dict[str, list[str]]:
    """The verbs that the table lists for each module."""
    verbs: dict[str, list[str]] = {}
    for families in FAMILIES.values():
        for family, some in families.items():
            verbs.setdefault(family, []).extend(some)
    return verbs


@pytest.mark.parametrize("family", listed_verbs())
def test_each_verb_is_added_by_the_module_that_the_table_names(family: str) -> None:
    for verb in listed_verbs()[family]:
        assert sorted(verbs_of(main.parser_for([verb]))) == sorted(listed_verbs()[family])


def test_a_failed_mount_leaves_nothing_behind(place: Place) -> None:
    place.mount(options=f"{place.options}:{place / 'nowhere'}")
    place.mount("--front", "kernel", options=place.options + ",upperdir=/proc")
    assert not place.is_mounted()
    assert registry.find_record(str(place.view)) is None
    assert place.mount().returncode == 0


def test_damaged_record_is_named_and_hides_no_other_view(place: Place) -> None:
    assert place.mount().returncode == 0
    [file] = [file for file in Path("/run/overlayfs-demo").glob("*.json") if str(place.view) in file.read_text()]
    sound = file.read_text()
    for damaged in ("", json.dumps({**json.loads(sound), "more": "x"}), "[]"):
        file.write_text(damaged)
        with pytest.raises(MountError, match=f"the record {file} of a mount is damaged"):
            registry.find_record(str(place.view))
        assert str(place.view) not in {record.mountpoint for record in registry.live_records()}
    file.write_text(sound)
    assert str(place.view) in {record.mountpoint for record in registry.live_records()}
    assert place.umount().returncode == 0


# --- a daemon that dies ---------------------------------------------------------------------------


def killed(place: Place) -> None:
    place.mount()
    (place.view / "kept").write_text("1")
    daemon = place.daemon()
    os.kill(place.supervisor(), signal.SIGKILL)
    # A listing before that would be cached, and go on for ever.
    wait_until(lambda: not os.path.exists(f"/proc/{daemon}"), "end of the daemon")
    wait_until(lambda: _is_dead(place.view), "end of the killed daemon")


def _is_dead(view: Path) -> bool:
    try:
        os.listdir(view)
    except OSError as error:
        return error.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    return False


def test_next_mount_cleans_up_after_a_killed_daemon(place: Place) -> None:
    killed(place)
    done = place.mount()
    assert (done.returncode, done.stderr) == (0, "")
    assert (place.view / "kept").read_text() == "1"
    assert place.umount().returncode == 0
    assert not place.is_mounted()


def test_umount_takes_away_what_a_killed_daemon_left(place: Place) -> None:
    killed(place)
    assert place.umount().returncode == 0
    assert not place.is_mounted()


# --- through mount(8) -----------------------------------------------------------------------------


def test_mount_8_mounts_by_type(helper: Place) -> None:
    done = run("mount", "-t", "fuse.overlayfs-demo", "my-name", helper.view, "-o", helper.options)
    assert done.returncode == 0, done.stderr
    source = run("findmnt", "--noheadings", "--output", "SOURCE,FSTYPE", helper.view).stdout.split()
    assert source == ["my-name", "fuse.overlayfs-demo"]
    assert run("umount", helper.view).returncode == 0


def test_a_line_of_fstab_is_enough(helper: Place) -> None:
    (helper / "fstab").write_text(f"demo {helper.view} fuse.overlayfs-demo {helper.options},noauto,nofail,x-y=z 0 0\n")
    done = run("mount", "--fstab", helper / "fstab", helper.view)
    assert done.returncode == 0, done.stderr
    assert (helper.view / "motd").read_text() == "hello\n"


def test_helper_is_known_by_its_name_too(place: Place) -> None:
    (place / "mount.fuse.overlayfs-demo").symlink_to(BIN / "overlayfs-demo")
    done = run(place / "mount.fuse.overlayfs-demo", "name", place.view, "-o", f"rw,{place.options}")
    assert done.returncode == 0, done.stderr
    assert place.is_mounted()
    fails(run(place / "mount.fuse.overlayfs-demo", "name", place.view, "-o", "lowerdir=/nowhere"), "/nowhere")


# --- in the foreground ----------------------------------------------------------------------------


@pytest.fixture
def traced(place: Place) -> Iterator[tuple[Place, subprocess.Popen[str]]]:
    """A view that is served in the foreground, and tells of what happens."""
    words: list[str | Path] = ["mount", "--foreground", "--trace", "-o", place.options, place.view]
    with started(words, stdout=subprocess.PIPE, text=True) as process:
        try:
            wait_until(place.is_mounted, "the mount")
            yield place, process
        finally:
            process.kill()


def test_trace_tells_who_did_what_to_which_layer(traced: tuple[Place, subprocess.Popen[str]]) -> None:
    place, process = traced
    script = "echo more >> d/deep; rm motd; mkdir made"
    with subprocess.Popen(["bash", "-c", script], cwd=place.view) as shell:
        shell.wait(MINUTE)
    assert place.umount().returncode == 0
    told, _ = process.communicate(timeout=MINUTE)
    assert re.sub(r"^rm\[\d+\]", "rm[PID]", re.sub(r"^mkdir\[\d+\]", "mkdir[PID]", told, flags=re.M), flags=re.M) == (
        f"bash[{shell.pid}] copied up directory /d (itself only) from layer 1 (bottom)\n"
        f"bash[{shell.pid}] copied up /d/deep (5B) from layer 1 (bottom) to write to it\n"
        f"bash[{shell.pid}] wrote 5B to /d/deep in the upper\n"
        "rm[PID] created whiteout for /motd, hiding the one in layer 2 (top)\n"
        "mkdir[PID] created directory /made in the upper\n"
    )
    assert process.returncode == 0


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM, None], ids=["int", "term", "umount"])
def test_view_goes_on_and_ends_cleanly_though_nothing_it_says_can_be_written(place: Place, end: int | None) -> None:
    """As when the log is on a full disk."""
    words: list[str | Path] = ["mount", "--foreground", "--trace", "-o", place.options, place.view]
    with Path("/dev/full").open("w") as full, started(words, stdout=full, stderr=full, text=True) as process:
        try:
            wait_until(place.is_mounted, "the mount")
            for name in ("new", "d/new"):
                (place.view / name).write_text("new")
                (place.view / name).unlink()
            if end is None:
                assert place.umount().returncode == 0
            else:
                process.send_signal(end)
            assert process.wait(MINUTE) == 0
        finally:
            process.kill()
    assert not place.is_mounted()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_foreground_and_unmounts(
    traced: tuple[Place, subprocess.Popen[str]], number: signal.Signals
) -> None:
    place, process = traced
    process.send_signal(number)
    process.wait(MINUTE)
    assert not place.is_mounted()
