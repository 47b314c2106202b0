"""A supervisor: a process that keeps a view mounted when the daemon that serves it dies.

The supervisor starts the daemon as its child, and does nothing but wait and keep descriptors, see `fronts.keeper`. So
there is little that could end it. If the daemon is killed or fails, it starts another one, which goes on where the last
one ended: the kernel sends again what was not answered (FUSE_NOTIFY_RESEND, Linux 6.9). Callers notice only a pause.
On an older kernel the next daemon mounts the view again at the same place, and what was open there fails with ENOTCONN.
If the supervisor itself is killed, the kernel kills its daemon, too.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Iterator
from typing import NoReturn

from overlayfs_demo.errors import MountError
from overlayfs_demo.fronts import attach, keeper
from overlayfs_demo.fronts.keeper import Keeper, Kind, Message
from overlayfs_demo.fronts.kernel import shared_records
from overlayfs_demo.linux import confinement
from overlayfs_demo.named_tuple import NamedTuple
from overlayfs_demo.overlay import budget

# So many daemons in a row may fail before they serve.
_MOST_IN_VAIN = 5
# Seconds before the next attempt.
_PAUSE = 0.2
# How long a daemon may take to end, in seconds.
_TIMEOUT = 10.0

_log = logging.getLogger(__name__)


class Kept(NamedTuple):
    """What a supervisor keeps: the descriptors of the connection, of the memory and, by number, of open files.

    `resumable`: another daemon can go on with this connection.
    """

    memory: int
    device: int | None
    files: dict[int, int]
    resumable: bool


class Supervisor:
    """The supervisor of one mount.

    `serve` is called in each daemon, and `serving` in the supervisor, with the daemon's process ID, when a daemon has
    begun to serve. `renew` is called when the present program should take the place of this process; it returns only if
    that fails.
    """

    def __init__(
        self,
        mountpoint: bytes,
        serve: Callable[[Keeper], None],
        serving: Callable[[int], None],
        renew: Callable[[Kept], None],
        kept: Kept | None = None,
    ) -> None:
        """Begin with what another process has kept, by default with nothing."""
        self._mountpoint = mountpoint
        self._serve = serve
        self._serving = serving
        self._renew = renew
        self._kept = kept or Kept(shared_records.create(), None, {}, resumable=False)
        self._has_served = kept is not None
        self._daemon = 0
        self._stopping = False
        self._renewing = False
        self._signals: tuple[int, ...] = ()
        # Readable when a signal has come: one that comes just before a blocking call would not end that call.
        self._woken, self._wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._renewal_signal = 0

    def run(self, stopping: tuple[int, ...], renewing: int) -> None:
        """Keep a daemon running until the view is unmounted.

        The signals `stopping` end it; `renewing` kills it, and lets the present program serve. Raises the MountError of
        a daemon that could not mount the view, or that could not serve it and was one of many.
        """
        # If the caller ignored it, nobody would be told how a daemon died: wait(2).
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        budget.raise_limit()
        signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
        for number in stopping:
            signal.signal(number, self._stop)
        # Until a daemon serves: the present program is about to serve already.
        signal.signal(renewing, signal.SIG_IGN)
        self._renewal_signal = renewing
        self._signals = (*stopping, renewing)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, self._signals)  # See `_blocking`.
        in_vain = 0
        while (death := self._let_live()) is not None:
            in_vain = 0 if death.innocent else in_vain + 1
            if self._stopping or not self._has_served or in_vain >= _MOST_IN_VAIN:
                self._detach()
                if self._stopping:
                    return
                raise death.why
            _log.warning("%s: %s; another daemon goes on", os.fsdecode(self._mountpoint), death.why)
            if in_vain:
                time.sleep(_PAUSE)
            if self._renewing:
                with self._blocking():
                    self._renewing = False
                    self._renew(self._kept)
            if not self._kept.resumable:
                self._begin_again()

    @contextlib.contextmanager
    def _blocking(self) -> Iterator[None]:
        """Let signals wait until there is a daemon to end, or another program that handles them: execve(2)."""
        signal.pthread_sigmask(signal.SIG_BLOCK, self._signals)
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, self._signals)

    def _stop(self, _number: int, _frame: object) -> None:
        self._stopping = True
        self._end_if_asked()

    def _begin_renewal(self, _number: int, _frame: object) -> None:
        self._renewing = True
        self._end_if_asked()

    def _end_if_asked(self) -> None:
        if self._stopping:
            self._kill(signal.SIGTERM)
        elif self._renewing:
            self._kill(signal.SIGKILL)

    def _kill(self, number: int) -> None:
        # It stays a zombie, and its number its own, until `_let_live` has waited for it.
        if self._daemon:
            os.kill(self._daemon, number)

    # --- one daemon --------------------------------------------------------------------------------

    def _let_live(self) -> _Death | None:
        """Let a daemon live, and return how it died; None if there is nothing left to serve. Raises MountError."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours:
            with theirs, self._blocking():
                pid = os.fork()
                if pid == 0:
                    ours.close()
                    self._be_daemon(theirs)
                self._daemon = pid
            self._end_if_asked()  # Perhaps there was no daemon yet.
            try:
                served, error = self._listen(ours)
            except BaseException:
                self._end()
                raise
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        self._daemon = 0
        if status == 0 or (self._kept.device is not None and not _is_connected(self._kept.device)):
            return None
        how = f"killed by signal {-status}" if status < 0 else f"exit status {status}"
        return _Death(served or status == -signal.SIGKILL, error or MountError(f"the daemon died: {how}"))

    def _end(self) -> None:
        """End the daemon, which unmounts the view; if it does not end in time, kill it."""
        ended = select.poll()
        process = os.pidfd_open(self._daemon)
        ended.register(process, select.POLLIN)
        self._kill(signal.SIGTERM)
        if not ended.poll(_TIMEOUT * 1000):
            self._kill(signal.SIGKILL)
        os.waitpid(self._daemon, 0)
        os.close(process)
        self._detach()

    def _be_daemon(self, channel: socket.socket) -> NoReturn:
        """Serve until the end, in the child."""
        status = 1
        try:
            signal.set_wakeup_fd(-1)
            for number in self._signals:
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, self._signals)
            supervisor = os.getppid()
            confinement.die_with_parent()
            kept = self._kept
            end = Keeper(channel, kept.memory, kept.device, kept.files)
            if os.getppid() == supervisor:
                status = self._serve_for(end)
        finally:
            os._exit(status)

    def _serve_for(self, end: Keeper) -> int:
        try:
            self._serve(end)
        except MountError as error:
            end.failed(error)
            return 1
        except BaseException as error:  # noqa: BLE001 - a child must not go on as its parent, whatever happens
            _log.exception("the daemon failed")
            end.failed(MountError(f"the daemon failed: {error or type(error).__name__}"))
            return 1
        return 0

    def _listen(self, channel: socket.socket) -> tuple[bool, MountError | None]:
        """Take what the daemon says until it ends. Return whether it has served, and why it failed, if it says that."""
        served, error = False, None
        while (message := self._next(channel)) is not None:
            if message.kind is Kind.SERVING:
                served = self._has_served = True
            elif message.kind is Kind.FAILED:
                error = message.error
            self._take(message)
        return served, error

    def _next(self, channel: socket.socket) -> Message | None:
        """Return the daemon's next message, or None if there will be no more. Meanwhile signals are handled."""
        poll = select.poll()
        poll.register(channel, select.POLLIN)
        poll.register(self._woken, select.POLLIN)
        while True:
            ready = [fd for fd, _ in poll.poll()]
            if self._woken in ready:
                os.read(self._woken, 1024)
            if channel.fileno() in ready:
                return keeper.receive(channel)

    def _take(self, message: Message) -> None:
        kept = self._kept
        if message.kind is Kind.DEVICE:
            self._kept = kept._replace(device=message.fd)
        elif message.kind is Kind.SERVING:
            self._kept = kept._replace(resumable=bool(message.number))
            self._serving(self._daemon)
            signal.signal(self._renewal_signal, self._begin_renewal)
        elif message.kind is Kind.FILE:
            if message.fd < 0:  # unix(7): one that would be too many is dropped.
                _log.warning("too many open files: one without a name will not outlive its daemon")
                return
            before = kept.files.pop(message.number, None)
            if before is not None:  # Two threads handed it over.
                os.close(before)
            kept.files[message.number] = message.fd
        elif message.kind is Kind.FAILED:
            self._kept = kept._replace(resumable=kept.resumable and not message.number)
        elif message.kind is Kind.RELEASED and message.number in kept.files:
            os.close(kept.files.pop(message.number))

    def _begin_again(self) -> None:
        """Let the next daemon mount the view again: close the connection, which ends all calls in the view."""
        for fd in (self._kept.device, self._kept.memory, *self._kept.files.values()):
            if fd is not None:
                os.close(fd)
        self._detach()
        self._kept = Kept(shared_records.create(), None, {}, resumable=False)

    def _detach(self) -> None:
        with contextlib.suppress(OSError, MountError):
            attach.detach(self._mountpoint, lazy=True)


class _Death(NamedTuple):
    """How a daemon died: whether it was not its own fault, because it has served or was killed, and why."""

    innocent: bool
    why: MountError


def _is_connected(device: int) -> bool:
    """Whether the view of a connection is still mounted somewhere: fs/fuse/dev.c, fuse_dev_poll."""
    poll = select.poll()
    poll.register(device, select.POLLIN)
    return not any(events & (select.POLLERR | select.POLLNVAL) for _, events in poll.poll(0))
