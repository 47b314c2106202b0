"""Can somebody without any privilege mount a view, change it, and find the changes again?"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import io
import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from overlayfs_demo.cli import build_layers
from overlayfs_demo.errors import MountError
from overlayfs_demo.explain.dry_run import rehearse
from overlayfs_demo.images.reference import ImageName
from overlayfs_demo.mounts import mount, registry, umount
from overlayfs_demo.mounts.control.client import Connection
from overlayfs_demo.mounts.control.protocol import Happened
from overlayfs_demo.mounts.options import parse
from overlayfs_demo.overlay import override_stat
from overlayfs_demo.run import start
from overlayfs_demo.run.process import Process
from overlayfs_demo.store.container import Container
from overlayfs_demo.store.containers import Containers
from overlayfs_demo.store.load import load
from overlayfs_demo.store.remove import prune
from overlayfs_demo.store.save import save
from overlayfs_demo.store.scratch import scratch
from overlayfs_demo.store.store import Store
from overlayfs_demo.web.content import story
from overlayfs_demo.web.model import mount_page
from overlayfs_demo.web.subject import mount_subject
from tests import builders
from tests.cli.test_containers import static_busybox
from tests.conftest import (
    PATIENCE,
    mount_points,
    unmount_all,
    wait_until,
    why_no_mounts,
    why_no_mounts_of_others,
    why_no_sandbox,
)
from tests.contract.conftest import why_unavailable
from tests.contract.raw import become_root_of_namespace
from tests.contract.subjects import in_child
from tests.images.builders import OPAQUE, WHITEOUT, Entry, directory, docker_save, layer, symlink
from tests.places import BIN, MINUTE, fails, run
from tests.watch.test_screen import Terminal

# fusermount3 wants a user that has a name.
USER = pwd.getpwnam("nobody").pw_uid


@pytest.fixture
def front(front: str) -> str:
    """Each that an ordinary user can mount by."""
    if not shutil.which("fusermount3") or not shutil.which("fusermount"):
        pytest.skip("needs fusermount3, of the package fuse3")
    return front


@pytest.fixture
def home() -> Iterator[Path]:
    """A directory of that user's, with two lowers, an upper, a work directory and a mount point."""
    if problem := why_no_mounts_of_others():
        pytest.skip(problem)
    # Not below pytest's own, which nobody else may enter.
    base = Path(tempfile.mkdtemp(prefix="overlayfs-demo-test-"))
    builders.directories(base, "top", "bottom", "upper", "work", "view")
    builders.fill(os.fsencode(base / "bottom"), {"motd": "hello\n", "d/x": "1"})
    for path in (base, *base.rglob("*")):
        os.chown(path, USER, USER)
    try:
        yield base
    finally:
        unmount_all(str(base))
        shutil.rmtree(base)


def as_user(home: Path, action: Callable[[], None]) -> None:
    """Do it in a process of that user's, who starts in the directory."""

    def child() -> None:
        os.chdir(home)
        os.setgroups([])
        os.setresgid(USER, USER, USER)
        os.setresuid(USER, USER, USER)
        os.environ["XDG_RUNTIME_DIR"] = str(home)
        action()

    in_child(child)


def let_python_start() -> None:
    """Called as that user: a sandbox starts Python, and ours may lie where only root may go."""
    if not os.access(sys.executable, os.X_OK):
        sys.executable = "/usr/bin/python3"
        os.environ["PYTHONPATH"] = str(Path(mount.__file__).parent.parent.parent)


def mount_view(front: str, options: str = "") -> None:
    """Called as that user, in the directory."""
    line = f"lowerdir=top:bottom,upperdir=upper,workdir=work,front={front}{options}"
    mount.mount(b"view", parse([line]))


def test_ordinary_user_is_told_of_changes_and_layers(home: Path, front: str) -> None:
    def session() -> None:
        mount_view(front, ",userxattr")
        place = registry.place_in_view(b"view/motd", follow=False)
        with Connection(place.socket, place.mountpoint) as connection:
            assert [one.wins for one in connection.which(os.fsencode(place.path)).statements] == [False, False, True]
            connection.attach()
            os.mkdir("view/made")
            update = connection.receive(PATIENCE)
            assert isinstance(update, Happened) and (update.event.path, update.event.uid) == (b"/made", USER)
        umount.unmount(b"view")

    as_user(home, session)


def test_open_file_that_its_owner_may_not_open_again_outlives_the_daemon(home: Path, front: str) -> None:
    if front != "kernel":
        pytest.skip("has no supervisor")

    def session() -> None:
        mount_view(front, ",userxattr")
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
        read_only, closed = os.open("view/made", flags, 0o444), os.open("view/changed", flags, 0o600)
        os.fchmod(closed, 0)
        before = registry.find_record(str(home / "view"))
        assert before is not None
        os.kill(before.daemon, signal.SIGKILL)
        for fd in (read_only, closed):
            os.write(fd, b"new")
            assert os.pread(fd, 9, 0) == b"new"
            os.close(fd)
        assert Path("view/made").read_text() == "new"
        assert os.stat("view/changed").st_size == 3
        umount.unmount(b"view")

    as_user(home, session)


@pytest.mark.parametrize("runtime", [f"/run/user/{USER}", ""], ids=["XDG_RUNTIME_DIR", "none"])
def test_root_watches_an_ordinary_users_view(home: Path, runtime: str) -> None:
    if problem := why_no_mounts() or why_unavailable("kernel-front"):
        pytest.skip(problem)
    if not shutil.which("fusermount3") or os.path.exists(f"/run/user/{USER}"):
        pytest.skip("needs fusermount3, and that this user is not logged in")

    def session(action: Callable[[], None]) -> None:
        os.environ.pop("XDG_RUNTIME_DIR")
        if runtime:
            os.environ["XDG_RUNTIME_DIR"] = runtime
        action()

    def change() -> None:
        os.mkdir("view/made")
        umount.unmount(b"view")

    if runtime:
        builders.directories(Path("/"), runtime[1:])
        os.chown(runtime, USER, USER)
    try:
        as_user(home, lambda: session(lambda: mount_view("kernel", ",userxattr")))
        place = registry.place_in_view(os.fsencode(home / "view"), follow=True)
        assert place.owner == USER
        with Connection(place.socket, place.mountpoint, place.owner) as connection:
            labels = [one.layer for one in connection.which(b"/").statements]
        assert labels == ["upper", "layer 2 (top)", "layer 1 (bottom)"]
        with contextlib.closing(Terminal(home / "view")) as terminal:
            # Only what the daemon says: root is not led to the paths that its record names.
            terminal.shows(r"layer 2(?s:.*)top(?s:.*)\?(?s:.*)layer 1")
            terminal.press("q")
            terminal.ends(0)
        fails(run("overlayfs-demo", "serve", home / "view"), f"mounted by user {USER}", "run this as that user")
        fails(run("overlayfs-demo", "explain", "rm", home / "view/motd"), "run this as the user who mounted it")
        command: list[str | Path] = [BIN / "overlayfs-demo", "watch", home / "view"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as watcher:
            assert watcher.stderr is not None and "watching" in watcher.stderr.readline()
            as_user(home, lambda: session(change))
            assert "created directory /made in the upper" in watcher.communicate(timeout=MINUTE)[0]
    finally:
        unmount_all(str(home))
        shutil.rmtree(runtime or f"/tmp/overlayfs-demo-{USER}")


@pytest.mark.parametrize("runtime", [True, False], ids=["XDG_RUNTIME_DIR", "none"])
def test_root_of_a_user_namespace_mounts_and_asks(home: Path, runtime: bool) -> None:
    """As after `unshare -Urm`: it may not write to /run, and whoever owns the directory in /tmp is checked."""
    if problem := why_no_mounts() or why_unavailable("kernel-front"):
        pytest.skip(problem)

    def session() -> None:
        if not runtime:
            os.environ.pop("XDG_RUNTIME_DIR")
        become_root_of_namespace()
        assert os.geteuid() == 0
        mount_view("kernel", ",userxattr")
        Path("view/made").mkdir()
        place = registry.place_in_view(b"view/motd", follow=False)
        assert (place.owner, Path(place.socket).parent.parent) == (0, home if runtime else Path("/tmp"))
        with Connection(place.socket, place.mountpoint, place.owner) as connection:
            assert any(one.wins for one in connection.which(os.fsencode(place.path)).statements)
        umount.unmount(b"view")

    try:
        as_user(home, session)
    finally:
        if not runtime:
            shutil.rmtree("/tmp/overlayfs-demo-0")
    assert (home / "upper/made").is_dir()


@pytest.mark.parametrize("recorded", [False, True])
def test_ordinary_user_is_told_what_a_command_would_do(home: Path, front: str, recorded: bool) -> None:
    if problem := why_no_sandbox():
        pytest.skip(problem)
    if recorded:
        for name in ("top", "bottom", "upper"):
            os.setxattr(home / name, override_stat.NAME, b"0:0:0755")
    script = (
        f"set -e; chmod 600 motd; rm -r d; echo new > n; test $(id -u) = {USER}; ! echo x > ../out 2> /dev/null; "
        "! true 1<> ../fifo 2> /dev/null; "
        "test $(grep -c -e 'CapEff:.0*$' -e 'NoNewPrivs:.1' /proc/self/status) = 2"
    )

    def session() -> None:
        let_python_start()
        os.mkfifo("fifo")
        mount_view(front, ",userxattr")
        record = registry.find_record(str(home / "view"))
        assert record is not None
        before = builders.tree(home / "upper")
        outcome = rehearse(record, ["sh", "-c", script], os.fsencode(home / "view"))
        assert outcome.status == 0
        sizes: Counter[str] = Counter()
        for one in outcome.effects:
            sizes[one.what] += one.size
        assert sizes == {"copy up": 6, "whiteout": 0, "hide": 1, "create": 0, "write": 4}
        assert builders.tree(home / "upper") == before
        assert sorted(os.listdir("view")) == ["d", "motd"]
        assert set(os.listdir("work")) <= {"work", "index"}
        umount.unmount(b"view")

    as_user(home, session)
    assert mount_points(str(home)) == []


def test_ordinary_user_sees_the_page_of_a_view(home: Path, front: str) -> None:
    def session() -> None:
        mount_view(front, ",userxattr")
        Path("view/d/x").unlink()
        place = registry.place_in_view(b"view", follow=False)
        record = registry.find_record(place.mountpoint)
        assert record is not None
        subject = mount_subject(record, place.socket)
        upper = mount_page(record, subject).upper
        assert upper is not None and [(one.key, one.mark) for one in upper.entries] == [
            ("/d", "copied"),
            ("/d/x", "deleted"),
        ]
        with subject.asking() as ask:
            assert story(subject, ask, b"/motd").versions[0].text == "hello\n"
        umount.unmount(b"view")

    as_user(home, session)


def test_ordinary_user_mounts_with_userxattr(home: Path, front: str) -> None:
    def session() -> None:
        mount_view(front, ",userxattr")
        with Path("view/motd").open("a") as file:
            file.write("more\n")
        assert os.getxattr("view/motd", "user.overlayfs_demo.origin") == b"layer 1 (bottom)"
        Path("view/d/x").unlink()
        Path("view/d").rmdir()
        Path("view/d").mkdir()
        umount.unmount(b"view")
        mount_view(front, ",userxattr")
        assert Path("view/motd").read_text() == "hello\nmore\n"
        assert os.listdir("view/d") == []
        umount.unmount(b"view")

    as_user(home, session)
    assert (home / "bottom/motd").read_text() == "hello\n"
    assert os.getxattr(home / "upper/d", "user.overlay.opaque") == b"y"


def test_ordinary_users_volatile_upper_is_marked_until_the_mark_is_taken_away(home: Path, front: str) -> None:
    def session() -> None:
        mount_view(front, ",userxattr,volatile")
        Path("view/new").write_text("x")
        umount.unmount(b"view")
        with pytest.raises(MountError, match="volatile"):
            mount_view(front, ",userxattr")
        shutil.rmtree("work/work/incompat")
        mount_view(front, ",userxattr")
        umount.unmount(b"view")

    as_user(home, session)


def test_ordinary_user_mounts_what_the_kernel_mounted_for_it(home: Path, front: str) -> None:
    """In a user namespace; the kernel leaves WORKDIR/work with mode 0."""

    def session() -> None:
        os.mkdir("work/work", 0)
        mount_view(front, ",userxattr")
        Path("view/motd").write_text("changed\n")
        umount.unmount(b"view")

    as_user(home, session)
    assert (home / "upper/motd").read_text() == "changed\n"


def test_ordinary_user_is_told_that_the_kernels_upper_is_volatile(home: Path, front: str) -> None:
    def session() -> None:
        os.makedirs("work/work/incompat/volatile")
        for path in ("work/work/incompat", "work/work"):
            os.chmod(path, 0)
        with pytest.raises(MountError, match="volatile"):
            mount_view(front, ",userxattr")

    as_user(home, session)


def test_ordinary_users_layers_are_followed_too(home: Path, front: str) -> None:
    if front == "fusepy":
        pytest.skip("libfuse 2 cannot make the kernel forget a name")

    def session() -> None:
        mount_view(front, ",userxattr")
        assert Path("view/motd").read_text() == "hello\n"
        assert not Path("view/new").exists()
        Path("top/new").write_text("1")
        Path("bottom/motd").write_text("changed\n")
        wait_until(Path("view/new").exists, "a name made behind the view")
        wait_until(lambda: Path("view/motd").read_text() == "changed\n", "data written behind the view")
        umount.unmount(b"view")

    as_user(home, session)


def test_ordinary_user_mounts_by_the_line_that_build_layers_prints(home: Path, front: str) -> None:
    (home / "image.tar").write_bytes(docker_save([layer({"d/x": "1"}), layer({"d": OPAQUE, "d/y": "2"})]))

    def session() -> None:
        printed = io.TextIOWrapper(io.BytesIO())
        with contextlib.redirect_stdout(printed):
            assert build_layers.main(["image.tar", "layers"]) == 0
        printed.seek(0)
        line = printed.read().splitlines()[-1]
        mount.mount(b"view", parse([f"{line},upperdir=upper,workdir=work,front={front}"]))
        assert os.listdir("view/d") == ["y"]
        umount.unmount(b"view")

    as_user(home, session)


def test_ordinary_user_is_told_to_use_userxattr(home: Path, front: str) -> None:
    with pytest.raises(MountError, match=r"trusted.overlay.opaque.*mount as root, or with -o userxattr"):
        as_user(home, lambda: mount_view(front))


def test_nobody_else_may_look_in(home: Path, front: str) -> None:
    def other() -> None:
        os.setresuid(12345, 12345, 12345)
        os.listdir("view")

    def open_home_and_ask() -> None:
        os.chdir(home.parent)
        os.chmod(home, 0o755)
        os.chdir(home)
        other()

    as_user(home, lambda: mount_view(front, ",userxattr"))
    with pytest.raises(PermissionError) as caught:
        in_child(open_home_and_ask)
    assert caught.value.errno == errno.EACCES
    as_user(home, lambda: umount.unmount(b"view"))


def test_ordinary_user_keeps_images_and_containers(home: Path) -> None:
    if problem := why_no_mounts() or why_unavailable("kernel-front"):
        pytest.skip(problem)
    if not shutil.which("fusermount3"):
        pytest.skip("needs fusermount3, of the package fuse3")
    archive = home / "image.tar"
    archive.write_bytes(docker_save([layer({"d/": directory(), "d/a": "1", "b": "2"}), layer({"b": WHITEOUT})]))

    def session() -> None:
        store = Store(Path("store"))
        [loaded] = load(store, archive)
        assert loaded.image.layers[0].marks.startswith("user.")
        containers = Containers(store)
        container = containers.create(loaded.image, "c1")
        assert os.listdir(container.mountpoint) == ["d"]
        (container.mountpoint / "d").rename(container.mountpoint / "e")
        assert [(one.kind.value, one.path) for one in containers.diff(container)] == [
            ("A", b"/e"),
            ("A", b"/e/a"),
            ("D", b"/d"),
        ]
        image = containers.commit(container, ImageName.parse("new")).image
        containers.remove(container, force=True)
        again = containers.create(image, "c2")
        assert (again.mountpoint / "e/a").read_text() == "1"
        containers.remove(again, force=True)
        assert prune(store, every=True).size == len("12") + len("1")

    as_user(home, session)


def test_ordinary_user_runs_commands_in_a_container(home: Path) -> None:
    if problem := why_no_mounts() or why_unavailable("kernel-front"):
        pytest.skip(problem)
    if not shutil.which("fusermount3"):
        pytest.skip("needs fusermount3, of the package fuse3")
    tool = static_busybox()

    def session() -> None:
        let_python_start()
        # A process that has changed its user cannot write to its own /proc/self, PR_SET_DUMPABLE(2const).
        ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)
        containers = Containers(Store(Path("store")))
        container = containers.create(scratch(), "c1")
        for name in ("proc", "dev"):
            (container.mountpoint / name).mkdir()
        shutil.copy(tool, container.mountpoint / "busybox")
        process = Process(
            str(container.mountpoint),
            container.mountpoint.stat().st_dev,
            ("/busybox", "sh", "-c", "/busybox id -u; /busybox tty; /busybox ls /proc/self/fd; echo > /new; exit 7"),
            {},
            "/",
            "",
            "c1",
            makes_directory=False,
            devices=False,
            terminal=True,
        )
        output = os.open("output", os.O_RDWR | os.O_CREAT)
        before = os.dup(1)
        os.dup2(output, 1)
        try:
            status = start.run(process, interactive=False)
        except start.RunError as error:
            raise AssertionError(str(error)) from None
        os.dup2(before, 1)
        assert Path("output").read_text().split()[:2] == ["0", "/dev/pts/0"]
        assert (status, container.upper.joinpath("new").stat().st_uid) == (7, USER)
        with pytest.raises(start.RunError, match="only root can run"):
            start.run(replace(process, user="5"), interactive=False)
        (home / "elsewhere").mkdir()
        with pytest.raises(start.RunError, match="Stale"):
            start.run(replace(process, root=str(home / "elsewhere")), interactive=False)
        containers.remove(container, force=True)

    as_user(home, session)


OWNED = layer(
    {
        "./": directory(),
        "secret": Entry(data=b"s", mode=0o640, owner=(0, 42)),
        "sudo": Entry(mode=0o4755),
        "spool/": directory(owner=(7, 8), mode=0o2750),
        "spool/job": Entry(data=b"j", mode=0, owner=(7, 8)),
        "tmp/": directory(mode=0o1777),
        "link": symlink("secret"),
        "implied/f": Entry(owner=(3, 4)),
    }
)


def shows(path: Path) -> tuple[int, int, str]:
    status = path.lstat()
    return status.st_uid, status.st_gid, f"{stat.S_IMODE(status.st_mode):04o}"


SHOWN = {
    "secret": (0, 42, "0640"),
    "sudo": (0, 0, "4755"),
    "spool": (7, 8, "2750"),
    "spool/job": (7, 8, "0000"),
    "tmp": (0, 0, "1777"),
    "link": (0, 0, "0777"),
    "implied": (0, 0, "0755"),
    "implied/f": (3, 4, "0644"),
    "": (0, 0, "0755"),
}


def in_owned_container(home: Path, front: str, action: Callable[[Containers, Container], None]) -> None:
    """Do it, as that user, with a mounted container of an image whose files belong to many; then remove that."""
    (home / "image.tar").write_bytes(docker_save([OWNED]))

    def session() -> None:
        store = Store(home / "store")
        [loaded] = load(store, home / "image.tar")
        containers = Containers(store)
        container = containers.create(loaded.image, "c1")
        containers.stop(container)
        containers.start(container, front)
        action(containers, container)
        containers.remove(container, force=True)

    as_user(home, session)


def test_ordinary_user_sees_the_owners_of_the_image(home: Path, front: str) -> None:
    def session(containers: Containers, container: Container) -> None:
        view = container.mountpoint
        assert {name: shows(view / name) for name in SHOWN} == SHOWN
        [layer_directory] = containers.stack(container).lowers
        on_disk = [path.lstat() for path in Path(os.fsdecode(layer_directory)).rglob("*")]
        assert {(status.st_uid, status.st_mode & stat.S_ISUID) for status in on_disk} == {(USER, 0)}

    in_owned_container(home, front, session)


def test_ordinary_user_changes_what_belongs_to_others_in_the_view(home: Path, front: str) -> None:
    def session(containers: Containers, container: Container) -> None:
        view = container.mountpoint
        with (view / "spool/job").open("a") as file:
            file.write("ob")
        assert ((view / "spool/job").read_text(), shows(view / "spool/job")) == ("job", SHOWN["spool/job"])
        os.chown(view / "secret", 5, -1)
        assert shows(view / "secret") == (5, 42, "0640")
        (view / "secret").chmod(0o4700)
        assert shows(view / "secret") == (5, 42, "4700")
        (view / "spool").chmod(0)
        assert (os.listdir(view / "spool"), shows(view / "spool")) == (["job"], (7, 8, "0000"))
        (view / "shut").mkdir(0o000)
        (view / "shut/in").write_text("")
        assert shows(view / "shut")[2] == "0000"
        (view / "tmp/mine").write_text("")
        (view / "tmp/mine").unlink()
        os.utime(view / "secret", ns=(1, 2))
        (view / "moved").symlink_to("x")
        with pytest.raises(PermissionError):
            os.chown(view / "moved", 1, 1, follow_symlinks=False)
        assert "user.containers.override_stat" not in os.listxattr(view / "secret")
        containers.stop(container)
        containers.start(container, front)
        assert (shows(view / "secret"), shows(view / "spool")) == ((5, 42, "4700"), (7, 8, "0000"))

    in_owned_container(home, front, session)


def test_what_an_ordinary_user_commits_has_the_owners_of_the_view(home: Path, front: str) -> None:
    def session(containers: Containers, container: Container) -> None:
        view = container.mountpoint
        with (view / "spool/job").open("a") as file:
            file.write("ob")
        (view / "new").write_text("1")
        found = [f"{one.kind.value} {os.fsdecode(one.path)}" for one in containers.diff(container)]
        assert found == ["A /new", "C /spool", "C /spool/job"]
        image = containers.commit(container, ImageName.parse("new")).image
        with (home / "new.tar").open("wb") as file:
            save([image], file)
        again = containers.create(image, "c2")
        assert shows(again.mountpoint / "spool/job") == SHOWN["spool/job"]
        assert shows(again.mountpoint / "new")[:2] == (0, 0)
        containers.remove(again, force=True)

    in_owned_container(home, front, session)
    roots = Store(home / "roots")
    [loaded] = load(roots, home / "new.tar")
    assert shows(loaded.image.layers[0].directory / "spool/job") == SHOWN["spool/job"]
    top = loaded.image.layers[1].directory
    assert (shows(top / "spool/job"), shows(top / "new")[:2]) == (SHOWN["spool/job"], (0, 0))


def test_fuse_overlayfs_reads_the_same_owners(home: Path) -> None:
    if not shutil.which("fuse-overlayfs") or not Path("/dev/fuse").exists():
        pytest.skip("needs fuse-overlayfs")
    (home / "image.tar").write_bytes(docker_save([OWNED]))

    def session() -> None:
        [loaded] = load(Store(home / "store"), home / "image.tar")
        directory = loaded.image.layers[0].directory
        subprocess.run(["fuse-overlayfs", "-o", f"lowerdir={directory}", "view"], check=True)
        try:
            # It shows a link, which has no record, as its real owner's, and lets nobody into another's directory.
            names = SHOWN.keys() - {"link", "spool/job"}
            assert {name: shows(home / "view" / name) for name in names} == {name: SHOWN[name] for name in names}
        finally:
            subprocess.run(["fusermount3", "-u", "view"], check=True)

    as_user(home, session)


def test_root_heeds_no_records(home: Path, front: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for layer_name in ("bottom", "upper"):
        os.setxattr(home / layer_name, "user.containers.override_stat", b"0:0:0755")
    os.setxattr(home / "bottom/motd", "user.containers.override_stat", b"0:0:04755")
    monkeypatch.chdir(home)
    mount_view(front)
    assert shows(home / "view/motd") == (USER, USER, f"{stat.S_IMODE((home / 'bottom/motd').stat().st_mode):04o}")
    assert os.getxattr(home / "view/motd", "user.containers.override_stat") == b"0:0:04755"
    umount.unmount(b"view")
