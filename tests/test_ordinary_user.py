"""Can somebody without any privilege mount a view, change it, and find the changes again?"""

from __future__ import annotations

import errno
import os
import pwd
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from overlayfs_demo import mounts, records
from overlayfs_demo.containers import Containers
from overlayfs_demo.control import Connection
from overlayfs_demo.errors import MountError
from overlayfs_demo.images.load import load
from overlayfs_demo.images.remove import prune
from overlayfs_demo.images.store import Store
from overlayfs_demo.mount_options import parse
from tests import builders
from tests.conftest import PATIENCE, unmount_all, wait_until, why_no_mounts
from tests.contract.conftest import why_unavailable
from tests.contract.subjects import in_child
from tests.images.builders import WHITEOUT, directory, docker_save, layer

# fusermount3 wants a user that has a name.
USER = pwd.getpwnam("nobody").pw_uid


@pytest.fixture(params=["kernel", "fusepy"])
def front(request: pytest.FixtureRequest) -> str:
    name = str(request.param)
    if problem := why_no_mounts() or why_unavailable(f"{name}-front"):
        pytest.skip(problem)
    if not shutil.which("fusermount3") or not shutil.which("fusermount"):
        pytest.skip("needs fusermount3, of the package fuse3")
    return name


@pytest.fixture
def home() -> Iterator[Path]:
    """A directory of that user's, with two lowers, an upper, a work directory and a mount point."""
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


def mount(front: str, options: str = "") -> None:
    """Called as that user, in the directory."""
    line = f"lowerdir=top:bottom,upperdir=upper,workdir=work,front={front}{options}"
    mounts.mount(b"view", parse([line]))


def test_ordinary_user_is_told_of_changes_and_layers(home: Path, front: str) -> None:
    def session() -> None:
        mount(front, ",userxattr")
        mountpoint, path, socket = records.place_in_view(b"view/motd", follow=False)
        with Connection(socket, mountpoint) as connection:
            assert [one["wins"] for one in connection.explain(path)] == [False, False, True]
            connection.attach()
            os.mkdir("view/made")
            event = connection.event(PATIENCE)
            assert event is not None and (event["path"], event["uid"]) == ("/made", USER)
        mounts.unmount(b"view")

    as_user(home, session)


def test_ordinary_user_mounts_with_userxattr(home: Path, front: str) -> None:
    def session() -> None:
        mount(front, ",userxattr")
        with Path("view/motd").open("a") as file:
            file.write("more\n")
        Path("view/d/x").unlink()
        Path("view/d").rmdir()
        Path("view/d").mkdir()
        mounts.unmount(b"view")
        mount(front, ",userxattr")
        assert Path("view/motd").read_text() == "hello\nmore\n"
        assert os.listdir("view/d") == []
        mounts.unmount(b"view")

    as_user(home, session)
    assert (home / "bottom/motd").read_text() == "hello\n"
    assert os.getxattr(home / "upper/d", "user.overlay.opaque") == b"y"


def test_ordinary_users_layers_are_followed_too(home: Path, front: str) -> None:
    if front == "fusepy":
        pytest.skip("libfuse 2 cannot make the kernel forget a name")

    def session() -> None:
        mount(front, ",userxattr")
        assert Path("view/motd").read_text() == "hello\n"
        assert not Path("view/new").exists()
        Path("top/new").write_text("1")
        Path("bottom/motd").write_text("changed\n")
        wait_until(Path("view/new").exists, "a name made behind the view")
        wait_until(lambda: Path("view/motd").read_text() == "changed\n", "data written behind the view")
        mounts.unmount(b"view")

    as_user(home, session)


def test_ordinary_user_is_told_to_use_userxattr(home: Path, front: str) -> None:
    with pytest.raises(MountError, match=r"trusted.overlay.opaque.*mount as root, or with -o userxattr"):
        as_user(home, lambda: mount(front))


def test_nobody_else_may_look_in(home: Path, front: str) -> None:
    def other() -> None:
        os.setresuid(12345, 12345, 12345)
        os.listdir("view")

    as_user(home, lambda: mount(front, ",userxattr"))
    with pytest.raises(PermissionError) as caught:
        in_child(lambda: (os.chdir(home.parent), os.chmod(home, 0o755), os.chdir(home), other()))
    assert caught.value.errno == errno.EACCES
    as_user(home, lambda: mounts.unmount(b"view"))


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
            ("A", b"/e"), ("A", b"/e/a"), ("D", b"/d"),
        ]
        image = containers.commit(container, "new").image
        containers.remove(container, force=True)
        again = containers.create(image, "c2")
        assert (again.mountpoint / "e/a").read_text() == "1"
        containers.remove(again, force=True)
        assert prune(store, {}, every=True).size == len("12") + len("1")

    as_user(home, session)
