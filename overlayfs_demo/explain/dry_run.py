"""The dry run of a command on a view, which it leaves unchanged.

The command runs on a second view of the same stack, see `Stack.rehearsal`. That view has its own upper, in the work
directory of the first: this is the right filesystem, with all the abilities of the upper's. In the command's
sandbox the second view is mounted in place of the first. A separate process serves it and afterwards removes
everything, no matter how this process ends.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from overlayfs_demo.errors import MountError
from overlayfs_demo.explain.sandbox import Sandbox
from overlayfs_demo.fronts import attach, select
from overlayfs_demo.fronts.keeper import Keeper
from overlayfs_demo.images.layer_tree import remove_tree
from overlayfs_demo.linux import attributes
from overlayfs_demo.linux.attributes import Attributes
from overlayfs_demo.mounts import mount, serving
from overlayfs_demo.mounts.held import naming_the_layer
from overlayfs_demo.mounts.options import MountOptions, parse
from overlayfs_demo.mounts.registry import MountRecord
from overlayfs_demo.overlay.factory import open_overlay
from overlayfs_demo.overlay.forecast import Effect
from overlayfs_demo.overlay.stack import Stack
from overlayfs_demo.overlay.whiteout import TRUSTED, USER

_log = logging.getLogger(__name__)

# How many seconds the kernel may trust answers. With a timeout, no changes behind the view are watched.
_TIMEOUT = 1.0
# What the serving process writes when the view answers. In the end the effects follow, or why it failed.
_READY = b"ready\n"


@dataclass(frozen=True, slots=True)
class Outcome:
    """The effects that a command would have on a view, and its exit status."""

    effects: list[Effect]
    status: int


def rehearse(record: MountRecord, command: Sequence[str], cwd: bytes) -> Outcome:
    """Try a command on the mounted view of this record, without changing the view. Raises MountError."""
    options = parse([record.options])
    work = options.stack.work
    if work is None:
        raise MountError(f"{record.mountpoint} has no upper", "nothing can be changed in it")
    mountpoint = os.fsencode(record.mountpoint)
    options = options._replace(flags=mount.present_flags(mountpoint), timeout=_TIMEOUT)
    try:
        base = tempfile.mkdtemp(prefix=b"explain-", dir=work)
    except OSError as error:
        raise MountError(
            f"workdir {os.fsdecode(work)}: {error.strerror}", "the dry run needs a directory there"
        ) from error
    server = _Server(base, options)
    try:
        server.start(titles=record.titles)
        status = Sandbox(mountpoint, server.view, cwd).run(command)
    finally:
        effects = server.finish()
    return Outcome(effects, status)


class _Server:
    """The process that serves the trial view on `base`/view.

    It ends, and removes `base`, when this process closes a pipe. The kernel does that for a process that is killed.
    """

    def __init__(self, base: bytes, options: MountOptions) -> None:
        self._base = base
        self._options = options
        self.view = os.path.join(base, b"view")
        self._pid = 0
        self._is_ready = False
        self._answers = -1
        self._hold = -1

    def start(self, titles: Sequence[str]) -> None:
        """Start the process, and return when the view answers. Raises MountError."""
        self._answers, writing = os.pipe()
        held, self._hold = os.pipe()
        self._pid = os.fork()
        if not self._pid:
            os.close(self._answers)
            os.close(self._hold)
            os._exit(self._live(titles, writing, held))
        os.close(writing)
        os.close(held)
        said = os.read(self._answers, 4096)
        if said != _READY:
            raise MountError(os.fsdecode(said).strip() or "the view for the dry run could not be mounted")
        self._is_ready = True

    def finish(self) -> list[Effect]:
        """Unmount and remove everything, and return the effects of the command; none if `start` failed.

        Raises MountError if the view failed after that: then the effects are not known in full.
        """
        if not self._pid:
            _remove(self._base)
            return []
        # First close the pipe that keeps the process running, because it sends the effects when it ends.
        os.close(self._hold)
        with os.fdopen(self._answers, "rb") as answers:
            report = answers.read()
        os.waitpid(self._pid, 0)
        return _effects(report) if self._is_ready else []

    # --- the process -------------------------------------------------------------------------------

    def _live(self, titles: Sequence[str], answers: int, held: int) -> int:
        for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGTSTP, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        # Warnings would be about the trial view, which the user does not know.
        logging.disable(logging.WARNING)
        os.chdir("/")
        os.umask(0)
        try:
            with _removed(self._base):
                told = self._serve(titles, answers, held)
        except (MountError, OSError) as error:
            os.write(answers, os.fsencode(str(error)))
            return 1
        except Exception:  # noqa: BLE001 - a child must not go on as its parent
            _log.exception("the dry run failed")
            return 1
        with os.fdopen(answers, "wb") as out:
            out.write(told)
        return 0

    def _serve(self, titles: Sequence[str], answers: int, held: int) -> bytes:
        """Serve until the other end of the pipe `held` is closed, and return the effects as JSON."""

        def unmount_in_the_end() -> None:
            os.read(held, 1)
            with contextlib.suppress(OSError, MountError):  # Somebody else has already unmounted it.
                attach.detach(self.view, lazy=True)

        def ready() -> None:
            threading.Thread(target=unmount_in_the_end, daemon=True).start()
            os.write(answers, _READY)

        with naming_the_layer():
            overlay = open_overlay(self._stack(titles))
        try:
            forecast = overlay.forecast()
            front, view = select.front(self._options.front)[1], serving.view_of(overlay, self.view, self._options)
            front.serve(view, ready, Keeper())
            return json.dumps(forecast.effects()).encode()
        finally:
            overlay.close()

    def _stack(self, titles: Sequence[str]) -> Stack:
        """Return the stack of the trial: the upper becomes the topmost lower, under a new upper and workdir."""
        stack = self._options.stack
        assert stack.upper is not None
        upper, work = os.path.join(self._base, b"upper"), os.path.join(self._base, b"work")
        for path in (upper, work, self.view):
            os.mkdir(path, 0o700)
        _dress(upper, stack)
        return stack._replace(
            lowers=(stack.upper, *stack.lowers), upper=upper, work=work, rehearsal=True, titles=("", *titles)
        )


def _effects(report: bytes) -> list[Effect]:
    """The effects in the serving process's report. Raises MountError if it holds something else: why it failed."""
    try:
        return [Effect(*fields) for fields in json.loads(report)]
    except (ValueError, TypeError) as error:
        raise MountError(f"the second view failed: {os.fsdecode(report).strip() or 'it ended too early'}") from error


def _dress(path: bytes, stack: Stack) -> None:
    """Copy the owner, mode, attributes and times of the upper to `path`, because the view's root shows them.

    The overlay's own marks are left out.
    """
    assert stack.upper is not None
    private = USER if stack.user_xattrs else TRUSTED
    names = (name for name in os.listxattr(stack.upper) if not name.startswith(private.prefix))
    xattrs = ((name, os.getxattr(stack.upper, name)) for name in names)
    attributes.apply(Attributes.of(os.stat(stack.upper), xattrs), path)


@contextlib.contextmanager
def _removed(base: bytes) -> Iterator[None]:
    """Remove the directory afterwards."""
    try:
        yield
    finally:
        _remove(base)


def _remove(base: bytes) -> None:
    above, name = os.path.split(base)
    fd = os.open(above, os.O_RDONLY | os.O_DIRECTORY)
    try:
        remove_tree(fd, name, fd)
    finally:
        os.close(fd)
