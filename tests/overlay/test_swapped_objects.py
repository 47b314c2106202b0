"""Does a change hit the object that was looked up, whatever was put in its place meanwhile?

The attacker is somebody who owns a directory of the upper and can reach it: they can rename what is in it, and put
there links, FIFOs and other people's files. What must never change is a canary: a file of root's outside the
directory, or one in it that the attacker may rename but not write.
"""

from __future__ import annotations

import errno
import os
import random
import signal
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from overlayfs_demo.linux import syscalls
from overlayfs_demo.overlay.node import DirNode, FileNode, Node
from overlayfs_demo.overlay.tree import Tree
from overlayfs_demo.overlay.types import AttrChange, Attrs, Caller
from tests.builders import WHITEOUT, directory, file
from tests.contract.engine_subject import Engine
from tests.overlay.conftest import Make

ALICE = 4711
SECRET = b"root's secret"
CALLER = Caller(ALICE, ALICE, os.getpid(), 0o022, "test")


def _opened(view: Engine, node: Node, flags: int, act: Callable[[FileNode, int], object] = lambda *_: None) -> None:
    handle = view.overlay.open(node, flags, CALLER)
    assert isinstance(node, FileNode)
    try:
        act(node, handle.opened.fd)
    finally:
        view.overlay.files.release(node, handle)


def _read(view: Engine, node: Node) -> None:
    _opened(view, node, os.O_RDONLY, lambda _, fd: not_secret(os.pread(fd, 100, 0)))


def not_secret(data: bytes) -> None:
    assert SECRET not in data, "the canary was read"


def _change(**what: Any) -> Callable[[Engine, Node], object]:
    return lambda view, node: view.overlay.set_attrs(node, AttrChange(**what), CALLER)


VERBS: dict[str, Callable[[Engine, Node], object]] = {
    "chmod": _change(mode=0o666),
    "chown": _change(uid=ALICE, gid=ALICE),
    "utimensat": _change(atime_ns=5, mtime_ns=6),
    "truncate": _change(size=3),
    "extend": _change(size=9000),
    "drop set-id bits": lambda view, node: view.overlay.set_attrs(node, AttrChange(kill_privileges=True), CALLER),
    "setxattr": lambda view, node: view.overlay.set_xattr(node, "user.mine", b"1", 0, CALLER),
    "removexattr": lambda view, node: view.overlay.remove_xattr(node, "user.canary", CALLER),
    "open and truncate": lambda view, node: _opened(view, node, os.O_WRONLY | os.O_TRUNC),
    "open read-only and truncate": lambda view, node: _opened(view, node, os.O_RDONLY | os.O_TRUNC),
    "open and write": lambda view, node: _opened(view, node, os.O_WRONLY, lambda _, fd: os.pwrite(fd, b"!", 0)),
    "open and read": _read,
    "getxattr": lambda view, node: not_secret(view.overlay.xattr(node, "user.canary")),
    "link": lambda view, node: view.overlay.link(node, view.overlay.root, b"stolen", CALLER),
    "stat": lambda view, node: view.overlay.attrs(node),
}

Impostor = Callable[[Path, Path], object]


def _device(place: Path, _canary: Path) -> None:
    os.mknod(place, stat.S_IFCHR | 0o600, os.makedev(1, 3))


def _directory(place: Path, _canary: Path) -> None:
    place.mkdir(mode=0o700)


IMPOSTORS: dict[str, Impostor] = {
    "a symbolic link": lambda place, canary: place.symlink_to(canary),
    "another file": lambda place, canary: os.link(canary, place),
    "a FIFO": lambda place, _: os.mkfifo(place),
    "a device": _device,
    "a directory": _directory,
    "nothing": lambda *_: None,
}


def canary_at(path: Path) -> Path:
    """A file of root's, in which any change can be seen."""
    path.write_bytes(SECRET)
    path.chmod(0o4600)
    os.setxattr(path, "user.canary", SECRET)
    os.utime(path, ns=(1, 2))
    return path


def state(path: Path) -> tuple[object, ...]:
    status = path.lstat()
    return (
        status.st_mode,
        status.st_uid,
        status.st_gid,
        status.st_size,
        status.st_mtime_ns,
        path.read_bytes(),
        {name: os.getxattr(path, name) for name in os.listxattr(path)},
    )


def replace(path: Path, impostor: Impostor, canary: Path) -> None:
    path.rename(path.with_name("away"))
    impostor(path, canary)


@pytest.fixture(params=["upper", "lower", "an open file"])
def owned(request: pytest.FixtureRequest, overlaid: Make) -> tuple[Engine, Path]:
    """A view, and where the layer has `home/f` of Alice's: in the upper or in a lower."""
    mine = {"home": directory({"f": file("alice's", uid=ALICE, gid=ALICE)}, uid=ALICE, gid=ALICE, mode=0o755)}
    if request.param == "lower":
        view = overlaid(mine)
        return view, view.layers.lowers[0] / "home/f"
    view = overlaid({}, upper=mine)
    if request.param == "an open file":
        view.open("home/f", os.O_RDWR)
    return view, view.upper("home/f")


@pytest.mark.parametrize("impostor", IMPOSTORS)
@pytest.mark.parametrize("verb", VERBS)
def test_verb_never_touches_what_was_put_in_the_place_of_its_file(
    owned: tuple[Engine, Path], tmp_path: Path, verb: str, impostor: str
) -> None:
    view, real = owned
    canary = canary_at(tmp_path / "canary")
    before = state(canary)
    node = view.node("home/f")
    replace(real, IMPOSTORS[impostor], canary)
    with pytest.raises(OSError) as failure:
        VERBS[verb](view, node)
    assert failure.value.errno == errno.ESTALE
    assert state(canary) == before
    assert not view.exists("stolen")


def test_readlink_never_reads_another_link(overlaid: Make) -> None:
    view = overlaid({}, upper={"home/": None})
    real = view.upper("home/l")
    real.symlink_to("mine")
    node = view.node("home/l")
    real.rename(real.with_name("away"))
    real.symlink_to("of root's")
    with pytest.raises(OSError) as failure:
        view.overlay.readlink(node)
    assert failure.value.errno == errno.ESTALE


def _make(view: Engine, node: DirNode) -> list[Callable[[], object]]:
    overlay = view.overlay
    return [
        lambda: overlay.create(node, b"made", 0o644, os.O_WRONLY, CALLER),
        lambda: overlay.mkdir(node, b"made", 0o755, CALLER),
        lambda: overlay.mknod(node, b"made", stat.S_IFIFO | 0o600, 0, CALLER),
        lambda: overlay.symlink(node, b"made", b"x", CALLER),
        lambda: overlay.link(view.node("f"), node, b"made", CALLER),
        lambda: overlay.rename(overlay.root, b"f", node, b"made", 0, CALLER),
        lambda: overlay.unlink(node, b"canary", CALLER),
        lambda: overlay.set_attrs(node, AttrChange(mode=0o777), CALLER),
        lambda: overlay.set_xattr(node, "user.x", b"1", 0, CALLER),
        lambda: overlay.lookup(node, b"canary"),
        lambda: overlay.entries(node),
    ]


@pytest.mark.parametrize("where", ["upper", "lower"])
def test_directory_that_was_replaced_is_not_taken_for_the_one_before(overlaid: Make, where: str) -> None:
    mine = {"home": directory({"d/": None, "roots": directory({"canary": file(SECRET)}, mode=0o700)}, uid=ALICE)}
    view = overlaid({} if where == "upper" else mine, upper=(mine if where == "upper" else {}) | {"f": "1"})
    home = (view.upper() if where == "upper" else view.layers.lowers[0]) / "home"
    node = view.node("home/d")
    assert isinstance(node, DirNode)
    (home / "d").rename(home / "away")
    (home / "roots").rename(home / "d")
    for act in _make(view, node):
        for source in node.sources:
            source.release()  # As when many others were opened since.
        with pytest.raises(OSError) as failure:
            act()
        assert failure.value.errno == errno.ESTALE
        assert os.listdir(home / "d") == ["canary"]
        assert stat.S_IMODE((home / "d").stat().st_mode) == 0o700


def test_work_directory_that_others_can_enter_is_made_again(overlaid: Make) -> None:
    view = overlaid({"a": "1"})
    view.stop()
    assert view.layers.work is not None
    work = view.layers.work / "work"
    work.chmod(0o777)
    os.chown(work, ALICE, ALICE)
    fd = os.open(work, os.O_RDONLY | os.O_DIRECTORY)
    view.start()
    assert os.fstat(fd).st_nlink == 0, "it is the one that somebody may have opened"
    os.close(fd)
    after = work.stat()
    assert (after.st_uid, stat.S_IMODE(after.st_mode)) == (0, 0o700)


# --- against the clock -----------------------------------------------------------------------------

ROUNDS = 400


@contextmanager
def attacker(home: Path, impostors: list[str]) -> Iterator[None]:
    """A process that exchanges `f`, and `d`, with one impostor after the other, as fast as it can."""
    child = os.fork()
    if not child:
        try:
            fd = os.open(home, os.O_RDONLY | os.O_DIRECTORY)
            while True:
                for name in impostors:
                    taken = b"d" if name == "rootsdir" else b"f"
                    for _ in range(2):
                        syscalls.rename(fd, os.fsencode(name), fd, taken, syscalls.RENAME_EXCHANGE)
        finally:
            os._exit(1)
    try:
        yield
        assert os.waitpid(child, os.WNOHANG) == (0, 0), "the attacker gave up"
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def allowed(view: Engine, path: str) -> tuple[Node, Attrs] | None:
    """What the kernel lets Alice change: it asks who owns a file when it looks it up, and not again."""
    try:
        above, name = os.path.split(path)
        parent = view.node(above)
        assert isinstance(parent, DirNode)
        node, attrs = view.overlay.lookup(parent, os.fsencode(name))
    except OSError:
        return None
    return (node, attrs) if attrs.uid == ALICE else None


def test_canaries_outlive_an_attacker_who_exchanges_names(overlaid: Make, tmp_path: Path) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    view = overlaid(
        {},
        upper={
            "home": directory(
                {
                    "f": file("alice's", uid=ALICE, gid=ALICE),
                    "d": directory(uid=ALICE, gid=ALICE),
                    "rootsdir": directory(mode=0o700),
                },
                uid=ALICE,
                gid=ALICE,
            )
        },
    )
    home = view.upper("home")
    outside, inside = canary_at(tmp_path / "outside"), canary_at(home / "inside")
    (home / "link").symlink_to(outside)
    os.mkfifo(home / "fifo")
    os.link(outside, home / "hardlink")
    before, number_of_inside = (state(outside), state(inside)), inside.stat().st_ino
    made = 0
    with attacker(home, ["link", "inside", "fifo", "hardlink", "rootsdir"]):
        for number in range(ROUNDS):
            name = dice.choice([*VERBS, "create"])
            if name == "create":
                found = allowed(view, "home/d")
                if found and isinstance(found[0], DirNode):
                    dice.choice(found[0].sources).release()
                    made += _tried(
                        lambda found=found, number=number: view.overlay.symlink(  # type: ignore[misc]
                            found[0], b"%d" % number, b"x", CALLER
                        )
                    )
            elif (found := allowed(view, "home/f")) and found[0].kind == stat.S_IFREG:
                made += _tried(lambda name=name, found=found: VERBS[name](view, found[0]))  # type: ignore[misc]
    # The attacker may have been killed between two exchanges, so the file of root's has any of the names.
    inside = next(path for path in home.iterdir() if path.lstat().st_ino == number_of_inside)
    assert (state(outside), state(inside)) == before
    roots = next(path for path in (home / "d", home / "rootsdir") if path.stat().st_uid == 0)
    assert os.listdir(roots) == []
    assert made, "nothing was ever done"


def _tried(act: Callable[[], object]) -> bool:
    try:
        act()
    except OSError:
        return False
    return True


def _swap_when(monkeypatch: pytest.MonkeyPatch, owner: object, function: str, swap: Callable[[], object]) -> None:
    """Let the attacker act in the middle of a verb: when it has called this function."""
    real = getattr(owner, function)

    def call(*arguments: object, **options: object) -> object:
        answer = real(*arguments, **options)
        monkeypatch.setattr(owner, function, real)
        swap()
        return answer

    monkeypatch.setattr(owner, function, call)


REMOVALS: dict[str, Callable[[Engine, DirNode], object]] = {
    "rmdir": lambda view, home: view.overlay.rmdir(home, b"d", CALLER),
    "rmdir of a merged directory": lambda view, home: view.overlay.rmdir(home, b"both", CALLER),
    "rename onto it": lambda view, home: view.overlay.rename(home, b"other", home, b"d", 0, CALLER),
}


@pytest.mark.parametrize("removal", REMOVALS)
def test_directory_that_was_put_in_the_place_of_an_empty_one_is_not_removed(
    overlaid: Make, monkeypatch: pytest.MonkeyPatch, removal: str
) -> None:
    emptied = directory({"x": WHITEOUT}, uid=ALICE)
    view = overlaid(
        {"home": {"both": {"x": "1"}}},
        upper={
            "home": directory(
                {
                    "d": emptied,
                    "both": emptied,
                    "other": directory(uid=ALICE),
                    "roots": directory({"canary": file(SECRET)}, mode=0o700),
                },
                uid=ALICE,
            )
        },
    )
    real = view.upper("home")
    name = "both" if "merged" in removal else "d"

    def swap() -> None:
        (real / name).rename(real / "away")
        (real / "roots").rename(real / name)

    home = view.node("home")
    assert isinstance(home, DirNode)
    view.node(f"home/{name}")
    _swap_when(monkeypatch, Tree, "is_empty", swap)
    with pytest.raises(OSError) as failure:
        REMOVALS[removal](view, home)
    assert failure.value.errno in (errno.ESTALE, errno.ENOTEMPTY)
    assert (real / name / "canary").read_bytes() == SECRET
