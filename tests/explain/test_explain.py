"""Does `explain` tell what a command would do, do nothing itself, and leave nothing behind?"""

from __future__ import annotations

import errno
import json
import os
import signal
import stat
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from overlayfs_demo.errors import MountError
from overlayfs_demo.events import Action, Event
from overlayfs_demo.explain import dry_run
from overlayfs_demo.explain.dry_run import rehearse
from overlayfs_demo.mounts import registry
from overlayfs_demo.mounts.control.client import Connection
from overlayfs_demo.mounts.control.protocol import Happened
from overlayfs_demo.overlay.whiteout import SHARED
from tests import builders
from tests.builders import hardlink
from tests.conftest import PATIENCE, mount_points, wait_until, why_no_sandbox
from tests.contract.conftest import why_unavailable
from tests.places import BIN, MINUTE, Place, fails, run

BOTTOM = {
    "etc/motd": "the bottom's\n",
    "etc/passwd": "root\n",
    "opt/big": "x" * 20_000,
    "opt/d/one": "1",
    "opt/d/two": "22",
    "pair/a": "linked",
    "pair/b": hardlink("a"),
    "gone/x": "deleted before",
    "opt/both": "below",
}
TOP = {"opt/top": "from the top", "opt/both": "above\n"}


@pytest.fixture
def stacked(place: Place) -> Place:
    """Two layers, and an upper that has changed, added and deleted something; not yet mounted."""
    if problem := why_no_sandbox():
        pytest.skip(problem)
    builders.fill(os.fsencode(place / "bottom"), BOTTOM)
    builders.fill(os.fsencode(place / "top"), TOP)
    assert place.mount().returncode == 0
    script = "echo more >> opt/top; echo new > opt/new; mkdir -p only/sub; echo y > only/sub/y; rm -r gone; mkdir e"
    subprocess.run(["sh", "-c", script], cwd=place.view, check=True)
    done = place.umount()
    assert done.returncode == 0, done.stderr
    return place


@pytest.fixture
def view(front: str, stacked: Place) -> Place:
    """That, mounted by each front."""
    done = stacked.mount("--front", front)
    assert (done.returncode, done.stderr) == (0, "")
    return stacked


@pytest.fixture
def one_view(stacked: Place) -> Place:
    """That, mounted by the kernel front."""
    if problem := why_unavailable("kernel-front"):
        pytest.skip(problem)
    assert stacked.mount("--front", "kernel").returncode == 0
    return stacked


def explain(place: Place, *words: str, cwd: Path | None = None) -> dict[str, Any]:
    """The object that it prints, which leaves nothing behind."""
    before = builders.tree(place / "upper"), builders.tree(place.view)
    done = run("overlayfs-demo", "explain", "--json", *words, cwd=cwd or place.view)
    assert done.returncode == 0, done.stderr
    assert (builders.tree(place / "upper"), builders.tree(place.view)) == before
    assert_no_trace(place)
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def assert_no_trace(place: Place) -> None:
    assert set(os.listdir(place / "work")) <= {"work", "index"}
    assert set(os.listdir(place / "work/work")) <= {os.fsdecode(SHARED)}  # the mount's own
    assert mount_points(str(place.base)) == [str(place.view)]


def effects(told: dict[str, Any], *what: str) -> set[tuple[str, str, int]]:
    return {(one["what"], one["path"], one["size"]) for one in told["paths"] if one["what"] in what or not what}


def test_root_s_view_with_userxattr_is_explained(stacked: Place) -> None:
    """There is no metacopy there, nor a redirect."""
    if problem := why_unavailable("kernel-front"):
        pytest.skip(problem)
    assert stacked.mount("--front", "kernel", "-o", "userxattr,index=off").returncode == 0
    script = "chmod 600 opt/big && mv opt/big opt/large && cat opt/large && mv opt/d opt/e && cat opt/e/one"
    told = explain(stacked, "sh", "-c", script)
    assert told["status"] == 0
    assert ("copy up", "/opt/large", 20_000) in effects(told)


# --- the truth: what is told is what happens ---------------------------------------------------------

SCRIPTS = {
    "chmod of a tree": "chmod -R g+w opt",
    "chown of a file": "chown 1:1 etc/passwd",
    "append": "echo x >> etc/motd",
    "append to what the upper has": "echo x >> opt/top",
    "write over": ": > opt/big; echo short > opt/big",
    "truncate": "truncate -s 100 opt/big",
    "sed": "sed -i s/bottom/top/ etc/motd",
    "touch": "touch opt/d/one opt/new",
    "remove a lower file": "rm etc/motd",
    "remove an upper file": "rm opt/new",
    "remove a changed file": "rm opt/top",
    "remove a lower tree": "rm -r etc",
    "remove a mixed tree": "rm -r opt",
    "remove an upper tree": "rm -r only",
    "remove and make again": "rm -r opt/d; mkdir opt/d; echo 1 > opt/d/new",
    "make over a whiteout": "mkdir gone; echo 1 > gone/y",
    "rename a lower file": "mv etc/motd etc/issue",
    "rename an upper file": "mv opt/new e/new",
    "rename a changed file, and remove it": "mv opt/top e/t; rm e/t",
    "rename over": "mv etc/motd opt/both",
    "rename a merged directory": "mv opt elsewhere",
    "rename an upper directory": "mv only e/only",
    "rename, then remove": "mv opt elsewhere; rm -r elsewhere",
    "rename an upper directory, then remove": "mv only o2; rm -r o2",
    "rename over an empty directory": "mv -T only e",
    "rename to and fro": "mv opt/d e/d; mv e/d opt/d",
    "remove a name, and move in another": "rm -r opt/d; mv only opt/d",
    "change, then remove": "chmod 600 opt/big; rm opt/big",
    "change, then append": "chmod 600 opt/big; echo x >> opt/big",
    "hard link": "ln etc/motd etc/link",
    "linked pair": "chmod 600 pair/a; rm pair/b",
    "copy": "cp -r opt copy",
    "come and go": "echo temporary > t; rm t",
    "remove twice": "rm opt/new; echo again > opt/new; rm opt/new",
    "nothing": "cat etc/motd; ls -lR",
}


class Real:
    """What really happens in a view, by its daemon's events and what is in the upper before and after."""

    def __init__(self, place: Place, script: str) -> None:
        upper = place / "upper"
        before, files = _whiteouts(upper), _files(upper)
        with Connection(registry.socket_path(str(place.view)), str(place.view)) as connection:
            connection.attach()
            self.status = subprocess.run(["sh", "-c", script], cwd=place.view, stdout=subprocess.DEVNULL).returncode
            # A mark, so that all before it has been told.
            os.mkdir(place.view / "the end")
            self.events: list[Event] = []
            while isinstance(update := connection.receive(PATIENCE), Happened) and update.event.path != b"/the end":
                self.events.append(update.event)
            assert isinstance(update, Happened)
        os.rmdir(place.view / "the end")
        self.whiteouts = _whiteouts(upper) - before
        after = _files(upper)
        self.freed = sum(size for inode, size in files.items() if inode not in after)
        self.freed += sum(max(0, size - after[inode]) for inode, size in files.items() if inode in after)

    def sizes(self, action: Action) -> Counter[str]:
        """Bytes by layer."""
        found: Counter[str] = Counter()
        for event in self.events:
            if event.action is action:
                found[event.layer] += event.size
        return found

    def copies(self) -> Counter[tuple[str, bool]]:
        copies = (event for event in self.events if event.action is Action.COPY_UP)
        return Counter((os.fsdecode(event.path), event.detail == "directory") for event in copies)


def _whiteouts(upper: Path) -> set[str]:
    return {
        f"/{path.relative_to(upper)}"
        for path in upper.rglob("*")
        if stat.S_ISCHR(path.lstat().st_mode) and not path.lstat().st_rdev
    }


def _files(upper: Path) -> dict[int, int]:
    """The bytes of each file by its inode number. A metacopy has none: its data is in a lower."""
    found = [path.lstat() for path in upper.rglob("*") if path.is_file()]
    return {status.st_ino: status.st_size if status.st_blocks else 0 for status in found}


def assert_true(place: Place, script: str) -> None:
    told = explain(place, "sh", "-c", script)
    real = Real(place, script)
    assert told["status"] == real.status
    copies = [one for one in told["paths"] if one["what"] == "copy up"]
    by_layer: Counter[str] = Counter()
    for one in copies:
        by_layer[one["layer"]] += one["size"]
    assert by_layer == real.sizes(Action.COPY_UP)
    assert sum(one["detail"] == "directory" for one in copies) == sum(is_dir for _, is_dir in real.copies().elements())
    assert len(copies) == len(real.copies())
    written = sum(one["size"] for one in told["paths"] if one["what"] == "write")
    assert written == sum(real.sizes(Action.WRITE).values())
    assert {one["path"] for one in told["paths"] if one["what"] == "whiteout"} == real.whiteouts
    assert sum(one["size"] for one in told["paths"] if one["what"] == "free") == real.freed


@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS)
def test_what_is_told_is_what_happens(one_view: Place, script: str) -> None:
    assert_true(one_view, script)


@pytest.mark.parametrize("name", ["chmod of a tree", "append", "remove a mixed tree", "rename over", "copy"])
def test_it_is_true_with_each_front(view: Place, name: str) -> None:
    assert_true(view, SCRIPTS[name])


@pytest.mark.parametrize("name", ["chmod of a tree", "change, then append", "rename a lower file", "linked pair"])
def test_it_is_true_with_metacopy_too(stacked: Place, name: str) -> None:
    assert stacked.mount(options=f"{stacked.options},metacopy=on").returncode == 0
    assert_true(stacked, SCRIPTS[name])
    # And again, where the upper holds metacopies.
    assert_true(stacked, "echo y >> opt/both; chmod 640 opt/both opt/d/one")


# --- what is told ------------------------------------------------------------------------------------


def test_chmod_of_a_tree_counts_every_lower_file_once(one_view: Place) -> None:
    told = explain(one_view, "chmod", "-R", "g+w", "opt")
    assert effects(told, "copy up") == {
        ("copy up", "/opt/big", 20_000),
        ("copy up", "/opt/d", 0),
        ("copy up", "/opt/d/one", 1),
        ("copy up", "/opt/d/two", 2),
        ("copy up", "/opt/both", 6),
    }
    assert effects(told, "change") == {("change", one, 0) for one in ("/opt", "/opt/new", "/opt/top")}
    assert told["totals"]["copy up"] == {"count": 5, "directories": 1, "size": 20_009, "files": 0}


def test_removing_a_mixed_tree_is_one_whiteout_that_hides_what_the_layers_have(one_view: Place) -> None:
    told = explain(one_view, "rm", "-r", "opt")
    assert effects(told, "whiteout") == {("whiteout", "/opt", 0)}
    hidden = {(one["layer"], one["files"], one["size"]) for one in told["paths"] if one["what"] == "hide"}
    assert hidden == {("layer 1 (bottom)", 3, 20_003), ("layer 2 (top)", 2, 18)}
    assert effects(told, "free") == {("free", "/opt/top", 17), ("free", "/opt/new", 4)}


@pytest.mark.parametrize("words", [["rm", "pair/a", "pair/b"], ["rm", "-r", "pair"], ["rm", "pair/b"]])
def test_a_hidden_file_of_two_names_counts_once(one_view: Place, words: list[str]) -> None:
    """With one name gone the other shows a copy, so that the layer's file is hidden all the same."""
    hidden = explain(one_view, *words)["totals"]["hide"]
    assert (hidden["files"], hidden["size"]) == (1, 6)


def test_what_only_the_upper_has_is_simply_removed(one_view: Place) -> None:
    assert effects(explain(one_view, "rm", "-r", "only")) == {("free", "/only/sub/y", 2)}


def test_what_the_upper_has_is_changed_at_no_cost(one_view: Place) -> None:
    told = explain(one_view, "chmod", "700", "only", "opt/new")
    assert effects(told) == {("change", "/only", 0), ("change", "/opt/new", 0)}
    done = run("overlayfs-demo", "explain", "chmod", "700", "only", "opt/new", cwd=one_view.view)
    assert done.stdout.startswith("would change 1 file and 1 directory already in the upper\n")


def test_a_directory_in_the_place_of_a_deleted_one_is_opaque(one_view: Place) -> None:
    assert effects(explain(one_view, "mkdir", "gone"), "opaque") == {("opaque", "/gone", 0)}
    assert effects(explain(one_view, "mkdir", "fresh"), "opaque") == set()


def test_with_metacopy_a_chmod_copies_no_data(stacked: Place) -> None:
    assert stacked.mount(options=f"{stacked.options},metacopy=on").returncode == 0
    assert effects(explain(stacked, "chmod", "600", "opt/big")) == {("copy up", "/opt/big", 0)}


def test_a_huge_file_is_not_copied_but_counted(one_view: Place) -> None:
    size = 1 << 37
    with (one_view / "bottom/opt/huge").open("w") as file:
        file.truncate(size)
    wait_until((one_view.view / "opt/huge").exists, "the new file")
    done = run("overlayfs-demo", "explain", "--json", "chmod", "600", "opt/huge", cwd=one_view.view)
    assert effects(json.loads(done.stdout)) == {("copy up", "/opt/huge", size)}
    assert not (one_view / "upper/opt/huge").exists()
    assert_no_trace(one_view)


def test_a_limit_is_told_of(stacked: Place) -> None:
    assert stacked.mount(options=f"{stacked.options},copyup_max=10k,copyup_warn=5").returncode == 0
    told = explain(stacked, "chmod", "600", "opt/big", "opt/both")
    assert effects(told) == {("refuse", "/opt/big", 20_000), ("warn", "/opt/both", 6), ("copy up", "/opt/both", 6)}
    assert told["status"] == 1
    done = run("overlayfs-demo", "explain", "chmod", "600", "opt/big", cwd=stacked.view)
    assert "would be refused copy-up of /opt/big (20kB) from layer 1 (bottom): over copyup_max=10240\n" in done.stdout
    assert "Disk quota exceeded" in done.stderr


def test_in_words(one_view: Place) -> None:
    script = "echo said; rm etc/motd; echo x >> etc/passwd"
    done = run("overlayfs-demo", "explain", "sh", "-c", script, cwd=one_view.view)
    assert (done.returncode, done.stderr) == (0, "said\n")
    assert (
        done.stdout
        == """\
would copy up 1 file (5B) and 1 directory (itself only) from layer 1 (bottom)
would create 1 whiteout
would hide 1 file (13B) in layer 1 (bottom); it stays there, so no image shrinks
would write 2B to 1 file

WHAT       SIZE      LAYER              PATH
hide       13B       layer 1 (bottom)   /etc/motd
copy up    5B        layer 1 (bottom)   /etc/passwd
write      2B        upper              /etc/passwd
copy up    0B        layer 1 (bottom)   /etc/
whiteout   0B        layer 1 (bottom)   /etc/motd
"""
    )


def test_ten_paths_are_shown_or_all(one_view: Place) -> None:
    script = "for i in 1 2 3 4 5 6 7 8 9 10 11 12; do mkdir m$i; done"
    few = run("overlayfs-demo", "explain", "sh", "-c", script, cwd=one_view.view)
    assert few.stdout.count("/m") == 10
    assert few.stdout.endswith("... and 2 more (use --all to show them)\n")
    assert run("overlayfs-demo", "explain", "--all", "sh", "-c", script, cwd=one_view.view).stdout.count("/m") == 12


def test_a_command_that_changes_nothing(one_view: Place) -> None:
    done = run("overlayfs-demo", "explain", "ls", "etc", cwd=one_view.view)
    assert (done.returncode, done.stdout) == (0, f"would change nothing in {one_view.view}\n")


def test_a_command_that_fails_is_explained_and_its_status_told(one_view: Place) -> None:
    done = run("overlayfs-demo", "explain", "sh", "-c", "rm opt/new; exit 7", cwd=one_view.view)
    assert done.returncode == 0
    assert "would free 4B in the upper\nthe command exited with status 7" in done.stdout
    assert explain(one_view, "sh", "-c", "kill -TERM $$")["status"] == 128 + signal.SIGTERM


# --- which view --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        ("rm", "view/etc/motd"),
        ("sh", "-c", "rm view/etc/motd"),
        ("--on", "view", "sh", "-c", "cd view; rm etc/motd"),
        ("dd", "if=/dev/null", "of=view/etc/motd", "status=none"),
    ],
)
def test_the_view_is_the_one_that_the_command_names(one_view: Place, words: tuple[str, ...]) -> None:
    told = explain(one_view, *words, cwd=one_view.base)
    assert told["mountpoint"] == str(one_view.view)
    assert "/etc/motd" in {one["path"] for one in told["paths"]}


def test_the_command_runs_where_we_are(one_view: Place) -> None:
    assert effects(explain(one_view, "rm", "one", cwd=one_view.view / "opt/d"), "hide") == {("hide", "/opt/d/one", 1)}


def test_without_a_view_it_says_how_to_name_one(place: Place) -> None:
    fails(run("overlayfs-demo", "explain", "rm", "-r", "x", cwd=place.base), "--on MOUNTPOINT", status=2)
    fails(run("overlayfs-demo", "explain", "no-such-command", cwd=place.base), "no-such-command")


def test_a_view_without_an_upper_is_refused(place: Place) -> None:
    assert place.mount(options=f"lowerdir={place / 'top'}:{place / 'bottom'}").returncode == 0
    fails(run("overlayfs-demo", "explain", "rm", "motd", cwd=place.view), "has no upper", "nothing can be changed")


# --- what it does not do -----------------------------------------------------------------------------


def test_nothing_outside_of_the_view_can_be_changed(one_view: Place) -> None:
    script = f"echo x > {one_view / 'outside'}; rm {one_view / 'bottom/motd'}; mount -o remount,rw /; id -u"
    done = run("overlayfs-demo", "explain", "sh", "-c", script, cwd=one_view.view)
    assert done.returncode == 0
    assert done.stderr.count("Read-only file system") == 2
    assert "permission denied" in done.stderr
    assert done.stderr.endswith("0\n")
    assert not (one_view / "outside").exists()
    assert (one_view / "bottom/motd").exists()


def test_no_disk_can_be_opened_and_no_process_seen(one_view: Place) -> None:
    os.mknod(one_view / "disk", stat.S_IFBLK | 0o666, os.stat("/").st_dev)
    script = f"cat {one_view / 'disk'}; kill {os.getpid()}; echo x > /dev/null; ls /sys/class/net"
    done = run("overlayfs-demo", "explain", "sh", "-c", script, cwd=one_view.view)
    assert done.stderr.count("Permission denied") == 1
    assert "No such process" in done.stderr


def test_what_is_left_running_is_ended(one_view: Place) -> None:
    told = explain(one_view, "sh", "-c", "rm opt/new; (trap '' TERM HUP; sleep 3141.59) & exit 0")
    assert effects(told) == {("free", "/opt/new", 4)}
    assert not [one for one in Path("/proc").glob("[0-9]*/cmdline") if _has(one, b"3141.59")]


def _has(path: Path, word: bytes) -> bool:
    try:
        return word in path.read_bytes()
    except OSError:
        return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_leaves_nothing_behind(view: Place, number: signal.Signals) -> None:
    words: list[str | Path] = [
        BIN / "overlayfs-demo",
        "explain",
        "sh",
        "-c",
        "rm opt/new; echo ready >&2; sleep 27.1828",
    ]
    with subprocess.Popen(words, cwd=view.view, stderr=subprocess.PIPE, start_new_session=True) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == b"ready\n"
        if number == signal.SIGINT:  # As a terminal does: all in the foreground get it.
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        assert process.wait(MINUTE) in (128 + number, -number)
        assert b"Traceback" not in process.stderr.read()
    wait_until(lambda: len(mount_points(str(view.base))) == 1, "unmounting")
    wait_until(lambda: not list((view / "work").glob("explain-*")), "removing")
    assert not [one for one in Path("/proc").glob("[0-9]*/cmdline") if _has(one, b"27.1828")]
    assert_no_trace(view)
    assert (view.view / "opt/new").read_text() == "new\n"


def test_the_view_is_not_busy_afterwards(view: Place) -> None:
    explain(view, "chmod", "-R", "a+x", "opt")
    assert view.umount().returncode == 0


def test_without_namespaces_the_command_does_not_run(place: Place) -> None:
    code = (
        "import sys\n"
        "from overlayfs_demo.cli.command import guarded\nfrom overlayfs_demo.explain.sandbox import Sandbox\n"
        "place = sys.argv[1].encode()\n"
        "sys.exit(guarded('explain', lambda: Sandbox(place, place, place).run(['touch', sys.argv[1] + '/ran'])))"
    )
    done = run("setpriv", "--bounding-set=-sys_admin", "--inh-caps=-all", sys.executable, "-c", code, place.view)
    fails(done, "cannot create a sandbox", "Operation not permitted", "permission to create namespaces")
    assert not (place.view / "ran").exists()


@pytest.mark.parametrize(
    ("error", "why"), [(OSError(errno.EIO, "Input/output error"), "Input/output error"), (RuntimeError(), "it ended")]
)
def test_second_view_that_fails_is_an_error_and_not_an_explanation(
    one_view: Place, monkeypatch: pytest.MonkeyPatch, error: Exception, why: str
) -> None:
    def fail(_server: object, _titles: object, report: int, held: int) -> bytes:
        os.write(report, b"ready\n")
        os.read(held, 1)
        raise error

    monkeypatch.setattr(dry_run._Server, "_serve", fail)
    monkeypatch.setattr(dry_run, "Sandbox", lambda *_: SimpleNamespace(run=lambda command: 0))
    record = registry.find_record(str(one_view.view))
    assert record is not None
    with pytest.raises(MountError, match=f"the second view failed: .*{why}"):
        rehearse(record, ["true"], b"/")
    assert not list((one_view / "work").glob("explain-*"))
