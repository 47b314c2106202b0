"""The stage, a directory in which an experiment happens, and its cleanup.

The commands of an experiment start in that directory, through `sh`, with a clean environment in which `overlayfs-demo`
is this program, the store is the stage's own, and no path of this machine is visible.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from overlayfs_demo.errors import MountError, OverlayError
from overlayfs_demo.linux import mountinfo
from overlayfs_demo.mounts import registry, umount
from overlayfs_demo.overlay.whiteout import USER
from overlayfs_demo.tour.building import Content, build
from overlayfs_demo.tour.scan import Tree, scan

# How long a command may take, and how much longer it may take when we are interrupted, in seconds.
_TIMEOUT, _LAST_WORDS = 300, 10
_PACKAGE = Path(__file__).parents[2]
_PROGRAMS = {"overlayfs-demo": "overlayfs_demo", "build-layers": "overlayfs_demo.cli.build_layers"}
# The directories of the programs and of the store, which `ls` does not show.
_BIN, _STORE = ".bin", ".store"
# The directories that a view needs besides its layers.
PLACES = ("upper", "work", "merged")
# What changes without a learner: the programs, and what mounting a view writes and shows.
_NOT_THE_LEARNERS = (_BIN, "work", "merged")


@dataclass(frozen=True, slots=True)
class Done:
    """A command that has run, with its status.

    `output` is what it printed to stdout and stderr, without the path of the stage.
    """

    command: str
    output: str
    status: int


class Stage:
    """A stage in the directory `root`, an absolute path, which must exist and be empty.

    `front` names the front that serves the views that its commands mount.
    """

    def __init__(self, root: Path, front: str | None = None) -> None:
        self.root = root
        self.done: list[Done] = []
        # The layers as they were made.
        self.before: dict[str, Tree] = {}
        self._began: Tree = {}
        self._aside: Collection[str] = ()
        self._make_programs(front)

    def _make_programs(self, front: str | None) -> None:
        self.programs.mkdir()
        for name, module in _PROGRAMS.items():
            path = self.programs / name
            lines = ["#!/bin/sh"]
            if front and name == "overlayfs-demo":
                lines.append(f'[ "$1" = mount ] && shift && set -- mount --front {shlex.quote(front)} "$@"')
            where, python = shlex.quote(str(_PACKAGE)), shlex.quote(sys.executable)
            lines.append(f'PYTHONPATH={where} exec {python} -P -m {module} "$@"')
            path.write_text("\n".join(lines) + "\n")
            path.chmod(0o755)

    @property
    def programs(self) -> Path:
        """The directory of its programs, which `ls` does not show."""
        return self.root / _BIN

    def environment(self) -> dict[str, str]:
        """Return the variables that the programs of the stage need. The caller decides about all others."""
        path = f"{self.programs}:{os.environ.get('PATH', os.defpath)}"
        return {"PATH": path, "OVERLAYFS_DEMO_STORE": str(self.root / _STORE)}

    def path(self, name: str) -> Path:
        """Return a path of the stage. `name` may be a pattern that matches one path, and `.store` is the store."""
        return next(iter(sorted(self.root.glob(name))), self.root / name) if "*" in name else self.root / name

    def layers(self, layers: Mapping[str, Content]) -> None:
        """Make these layers, and the empty directories upper, work and merged."""
        for name, content in layers.items():
            build(self.root / name, content)
            self.before[name] = self.tree(name)
        for name in PLACES:
            (self.root / name).mkdir()

    def tree(self, name: str) -> Tree:
        """Return the present content of a directory of the stage."""
        return scan(self.path(name))

    def begin(self) -> None:
        """Remember the present state, in which a learner begins."""
        # A command that only lists images makes a store where there was none.
        self._aside = _NOT_THE_LEARNERS if self.path(_STORE).exists() else (*_NOT_THE_LEARNERS, _STORE)
        self._began = self._state()

    def is_untouched(self) -> bool:
        """Return whether everything is as it was when the learner began. Raises OSError."""
        # The names first: something large may be mounted at a new one.
        began = {path for path in self._began if "/" not in path}
        return began == set(os.listdir(self.root)) - set(self._aside) and self._began == self._state()

    def _state(self) -> Tree:
        """Return all files of the stage without their times, because a command that only reads may set some."""
        return {path: replace(entry, mtime_ns=0) for path, entry in scan(self.root, self._aside).items()}

    def run(self, command: str) -> Done:
        """Run a command as it is typed, and add it to `done`. Raises OverlayError if it does not end."""
        kept = {name: os.environ[name] for name in ("XDG_RUNTIME_DIR", "TMPDIR") if name in os.environ}
        environment = kept | {"LC_ALL": "C", "TZ": "UTC", "HOME": str(self.root), "SOURCE_DATE_EPOCH": "1704067200"}
        with subprocess.Popen(
            ["sh", "-c", command],
            cwd=self.root,
            env=environment | self.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            umask=0o022,
            process_group=0,
        ) as process:
            output = _output(process).decode("utf-8", "replace")
        done = Done(command, output.replace(f"{self.root}/", "").replace(str(self.root), "."), process.returncode)
        self.done.append(done)
        return done

    def mount(self, redirects: bool = False) -> None:
        """Mount upper and the layers on merged. Raises MountError.

        With `redirects` the directories of a lower can be renamed there; for that, root mounts without userxattr.
        """
        marks = "trusted" if redirects and not USER.follows else "user"
        done = self.run(mount_command(*self.before, marks=marks))
        if done.status:
            raise MountError(done.output.strip().removeprefix("overlayfs-demo: "))
        self.done.remove(done)

    def unmount(self) -> None:
        """Unmount all views that are mounted here, even if they are in use. Raises MountError if a mount is left."""
        _unmount_below(self.root)


def _unmount_below(root: Path) -> None:
    # In reverse order, so that a view inside another is unmounted first.
    for where in sorted(registry.mounted(), reverse=True):
        if Path(where).is_relative_to(root):
            try:
                umount.unmount(os.fsencode(where))
            except MountError:
                umount.unmount(os.fsencode(where), lazy=True)
    # Removing the directory would also empty a foreign mount in it.
    for mounted in mountinfo.mounts():
        where = os.fsdecode(mounted.mountpoint)
        if Path(where).is_relative_to(root):
            raise MountError(f"{where} is still mounted", f"unmount it, and remove {root}")


def _output(process: subprocess.Popen[bytes]) -> bytes:
    """Return everything that a command prints. Raises OverlayError if it does not end.

    The command has its own process group, so that Ctrl-C interrupts only us. It then has a little time to finish its
    work, because a half-made mount could not be found and unmounted.
    """
    try:
        return process.communicate(timeout=_TIMEOUT)[0]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise OverlayError("a command did not finish", f"the limit is {_TIMEOUT} seconds") from None
    except BaseException:
        try:
            process.wait(_LAST_WORDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
        raise


def mount_command(*lowers: str, marks: str = "user") -> str:
    """Return the command that mounts upper and these lowers, the topmost first.

    `marks` is the xattr namespace of the overlay's marks, `user` or `trusted`.
    """
    userxattr = "userxattr," if marks == "user" else ""
    options = f"{userxattr}lowerdir={':'.join(lowers)},upperdir=upper,workdir=work"
    return f"overlayfs-demo mount \\\n    -o {options} merged"


@contextmanager
def stage(front: str | None = None, at: Path | None = None) -> Iterator[Stage]:
    """Make a stage in a new temporary directory, which is removed afterwards, or in the empty directory `at`.

    That one stays, except the programs in it.
    """
    root = Path(tempfile.mkdtemp(prefix="overlayfs-demo-") if at is None else at).resolve()
    before = os.umask(0o022)
    try:
        yield Stage(root, front)
    finally:
        os.umask(before)
        with undisturbed():
            _unmount_below(root)
            shutil.rmtree(root if at is None else root / _BIN, onerror=_open_up)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Delay the signals that end a program, such as a second Ctrl-C, until a cleanup is complete."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _open_up(_remove: object, path: str, _error: object) -> None:
    """Make a directory accessible that an experiment made inaccessible to its own user, and remove it again."""
    parent = os.path.dirname(path)
    os.chmod(parent, 0o700)
    if os.path.isdir(path) and not os.path.islink(path):
        os.chmod(path, 0o700)
        shutil.rmtree(path)
    else:
        os.unlink(path)
