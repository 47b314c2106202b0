"""Serving a view: in this process, or in a daemon with a supervisor.

A mounted view leaves a record, see `registry`. Locks on the upper and work directories show what is in use. Locks,
layers and record belong to the supervisor, so that one daemon can follow another.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator

from overlayfs_demo.errors import MountError
from overlayfs_demo.events import Events, Listener
from overlayfs_demo.fronts import attach
from overlayfs_demo.fronts.front import SUBTYPE, Front, View
from overlayfs_demo.fronts.keeper import Keeper
from overlayfs_demo.linux import mounting
from overlayfs_demo.mounts import registry
from overlayfs_demo.mounts.control.server import Server
from overlayfs_demo.mounts.daemon import Readiness, leave_terminal
from overlayfs_demo.mounts.held import Held, hold, naming_the_layer
from overlayfs_demo.mounts.options import MountOptions, option_line
from overlayfs_demo.mounts.registry import MountRecord, Registration
from overlayfs_demo.mounts.restart import RENEWING
from overlayfs_demo.mounts.supervisor import Kept, Supervisor
from overlayfs_demo.overlay.engine import Overlay
from overlayfs_demo.overlay.factory import open_overlay
from overlayfs_demo.overlay.private_mount import Roots
from overlayfs_demo.overlay.stack import Stack

# For gc.set_threshold: the numbers of allocations, and of runs of the younger generations, before a collection.
_RARE_COLLECTIONS = (500_000, 20, 50)

# The signals that end a daemon.
STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

_log = logging.getLogger(__name__)


def serve_here(front: Front, mountpoint: bytes, options: MountOptions, trace: Listener | None) -> None:
    """Serve a view in this process until it is unmounted, by another process or by SIGTERM, SIGINT or SIGHUP.

    Nothing is left behind, even if the view cannot be served. Nothing outlives this process. Raises MountError.
    """
    with _process_as_before():
        os.umask(0)  # The umask of each request's caller applies, not ours.
        _serve_alone(front, mountpoint, options, lambda: None, trace)


def serve_supervised(front: Front, mountpoint: bytes, options: MountOptions, ready: Readiness) -> None:
    """Do the same in a child process, which is replaced if it dies. `ready` is called when the view answers.

    libfuse gives its connection to nobody, so the fusepy front is served in this process.
    """
    if front.is_resumable:
        Mount(front, mountpoint, options, hold(options)).run(ready)
    else:
        _serve_alone(front, mountpoint, options, ready)


def _serve_alone(
    front: Front, mountpoint: bytes, options: MountOptions, ready: Callable[[], None], trace: Listener | None = None
) -> None:
    """Serve a view in this process, whose end is the end of the mount. `ready` is called when the view answers."""
    with contextlib.ExitStack() as held:
        mine = hold(options)
        held.callback(mine.close)

        def answered() -> None:
            held.callback(Registration(record(mountpoint, options, os.getpid())).forget)
            ready()

        _serve(front, mountpoint, options, mine.roots, Keeper(), answered, trace)


class Mount:
    """A mount in its supervisor."""

    def __init__(
        self,
        front: Front,
        mountpoint: bytes,
        options: MountOptions,
        held: Held,
        registration: Registration | None = None,
    ) -> None:
        """Own what is held from now on. `registration` is there if another program served the view before."""
        self._front = front
        self._mountpoint = mountpoint
        self._options = options
        self._held = held
        self._registration = registration

    def run(self, ready: Readiness, kept: Kept | None = None) -> None:
        """Supervise until the view is unmounted. Raises MountError."""

        def serve(keeper: Keeper) -> None:
            # A later daemon has inherited no terminal.
            answered = (lambda: None) if ready.is_said else leave_terminal
            ready.drop()
            _serve(self._front, self._mountpoint, self._options, self._held.roots, keeper, answered)

        def serving(daemon: int) -> None:
            self._register(daemon)
            ready()

        try:
            supervisor = Supervisor(self._mountpoint, serve, serving, self._renew, kept)
            supervisor.run(STOPPING, RENEWING)
        finally:
            if self._registration is not None:
                self._registration.forget()
            self._held.close()

    def _register(self, daemon: int) -> None:
        """Note who serves the view now."""
        if self._registration is None:
            self._registration = Registration(record(self._mountpoint, self._options, daemon))
        else:
            before = self._registration.record
            try:
                self._registration.replace(before._replace(daemon=daemon, restarts=before.restarts + 1))
            except (OSError, MountError) as error:
                _log.warning("cannot note that process %d serves %s now: %s", daemon, before.mountpoint, error)

    def _renew(self, kept: Kept) -> None:
        """Let the present program take the place of this process. Returns only if that fails."""
        from overlayfs_demo.mounts import renewal  # Rarely needed.

        assert self._registration is not None
        renewal.replace_process(self._options.stack.titles, self._held, self._registration, kept)


def view_of(overlay: Overlay, mountpoint: bytes, options: MountOptions) -> View:
    """Return the overlay's view on a mount point, as these options say."""
    return View(
        overlay,
        mountpoint,
        Counter(),
        options.source or SUBTYPE,
        options.flags,
        options.timeout,
        os.geteuid() == 0 if options.allow_other is None else options.allow_other,
        options.passthrough,
        options.polling,
    )


def _serve(
    front: Front,
    mountpoint: bytes,
    options: MountOptions,
    roots: Roots,
    keeper: Keeper,
    answered: Callable[[], None],
    trace: Listener | None = None,
) -> None:
    """Serve a view in this process until it is unmounted. `answered` is called when it answers. Raises MountError."""

    def stop(_number: int, _frame: object) -> None:
        # In a separate thread, because unmounting may need answers that this thread gives.
        threading.Thread(target=_detach_quietly, args=(mountpoint,), daemon=True).start()

    stack = options.stack
    with contextlib.ExitStack() as held:
        events = Events()
        if trace is not None:
            events.attach(trace)
        with naming_the_layer():
            overlay = open_overlay(stack._replace(flags=options.flags), events, roots)
        held.callback(overlay.close)
        if keeper.device is None:
            _warn_of_other_lowers(overlay, stack)
        # Without an upper the whole mount is read-only, as with the kernel's overlayfs.
        flags = options.flags if stack.upper is not None else options.flags | mounting.MS_RDONLY
        view = view_of(overlay, mountpoint, options._replace(flags=flags))
        if view.at_rest:
            overlay.external_changes.trust_layers()

        # Nodes are freed by their reference counts, so the collector would walk all of them in vain.
        gc.freeze()
        gc.set_threshold(*_RARE_COLLECTIONS)

        server = Server(registry.socket_path(os.fsdecode(mountpoint)), overlay, view.asked)
        held.callback(server.close)

        def ready() -> None:
            # The record comes after the socket, because anyone who finds the record may ask there at once.
            try:
                server.start()
            except (OSError, MountError) as error:
                if keeper.device is None:
                    raise
                # The user's runtime directory may end with their session. The view must not.
                _log.warning("%s: nobody can ask the daemon: %s", os.fsdecode(mountpoint), error)
            answered()

        for number in STOPPING:
            signal.signal(number, stop)
        front.serve(view, ready, keeper)


def record(mountpoint: bytes, options: MountOptions, daemon: int) -> MountRecord:
    """Return the record of a view that `daemon` serves, and this process supervises."""
    stack = options.stack
    return MountRecord(
        os.fsdecode(mountpoint),
        os.getpid(),
        options.front,
        [os.fsdecode(path) for path in stack.lowers],
        os.fsdecode(stack.upper) if stack.upper is not None else None,
        list(stack.titles),
        [os.fsdecode(path) for path in stack.data_only],
        stack.labels(),
        option_line(options),
        daemon,
    )


def _warn_of_other_lowers(overlay: Overlay, stack: Stack) -> None:
    before, now = overlay.note_stack()
    if before:
        _log.warning(
            "upperdir %s was last mounted over lowerdir=%s, and is now mounted over lowerdir=%s: its changes may "
            "not fit these layers",
            os.fsdecode(stack.upper or b""),
            before,
            now,
        )


@contextlib.contextmanager
def _process_as_before() -> Iterator[None]:
    """Afterwards restore the umask, the signal handlers and how often the garbage collector runs."""
    umask = os.umask(0)
    os.umask(umask)
    handlers = {number: signal.getsignal(number) for number in STOPPING}
    threshold = gc.get_threshold()
    try:
        yield
    finally:
        os.umask(umask)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        gc.set_threshold(*threshold)


def _detach_quietly(mountpoint: bytes) -> None:
    try:
        attach.detach(mountpoint, lazy=True)
    except (OSError, MountError) as error:
        _log.warning("cannot unmount %s: %s", os.fsdecode(mountpoint), error)
