"""Mounting and remounting views.

Everything that can be wrong is checked before the daemon starts, so that the person who typed the
command learns of it. A mounted view leaves a record, see `registry`. Locks on the upper and work directories,
which end with their holder, show what is in use.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import gc
import logging
import os
import signal
import stat
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from overlayfs_demo.errors import ImageError, MountError
from overlayfs_demo.events import Events, Listener
from overlayfs_demo.fronts import attach, select
from overlayfs_demo.fronts.front import FILESYSTEM_TYPE, SUBTYPE, Front, View
from overlayfs_demo.images.record_file import LAYERS_RECORD
from overlayfs_demo.linux import mountinfo, mounting
from overlayfs_demo.mounts import daemon, layer_usage, preflight, registry
from overlayfs_demo.mounts.control.server import Server
from overlayfs_demo.mounts.options import MountOptions, option_line, remount_flags
from overlayfs_demo.mounts.registry import MountRecord, find_record, live_records, mounted
from overlayfs_demo.overlay.engine import Overlay
from overlayfs_demo.overlay.factory import open_overlay
from overlayfs_demo.overlay.stack import Stack

# How long to wait for a daemon that has nothing left to serve, or that is starting up, in seconds.
_TIMEOUT = 10.0
_POLL = 0.02

# For gc.set_threshold: the numbers of allocations, and of runs of the younger generations, before a collection.
_RARE_COLLECTIONS = (500_000, 20, 50)

_REMOUNTABLE = (
    mounting.MS_RDONLY
    | mounting.MS_NOSUID
    | mounting.MS_NODEV
    | mounting.MS_NOEXEC
    | mounting.MS_SYNCHRONOUS
    | mounting.MS_NOATIME
    | mounting.MS_NODIRATIME
)

# The signals that end a daemon.
_STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

_log = logging.getLogger(__name__)


def mount(mountpoint: bytes, options: MountOptions, *, foreground: bool = False, trace: Listener | None = None) -> None:
    """Mount a view. Returns when it answers or, with `foreground`, when it is unmounted again.

    Raises MountError, which names the cause and the remedy; nothing is then left behind.
    """
    mountpoint = _prepare_mountpoint(mountpoint)
    front_name, front = select.front(options.front)
    stack = preflight.absolute(preflight.checked(options.stack))
    layer_usage.check_unused(stack)
    stack = stack if stack.titles else stack._replace(titles=_titles(stack.lowers))
    options = options._replace(stack=stack, front=front_name)
    if foreground:
        with _process_as_before():
            os.umask(0)  # The umask of each request's caller applies, not ours.
            _serve(front, mountpoint, options, trace, lambda: None)
        return
    try:
        started = daemon.start(lambda ready: _serve(front, mountpoint, options, trace, ready))
        try:
            _confirm(mountpoint)
        except BaseException:
            started.end()
            raise
    except BaseException:
        # A daemon that was killed could not do this itself. An error here must not hide the first one.
        with contextlib.suppress(MountError):
            clear_dead(mountpoint)
        raise


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


def present_flags(mountpoint: bytes) -> int:
    """Return the present MS_* flags of a mounted view, which a remount may have changed.

    Only the flags that a remount can change are included.
    """
    # The ST_* flags of statvfs(3) have the values of mount(2)'s MS_*, except ST_RELATIME, which is the default.
    return os.statvfs(mountpoint).f_flag & _REMOUNTABLE


def remount(path: bytes, options: list[str]) -> bool:
    """Change the flags of a mounted view if the options say `remount`; return whether they do. Raises MountError."""
    if remount_flags(options, 0) is None:
        return False
    mountpoint = os.path.realpath(path)
    shown = os.fsdecode(mountpoint)
    if shown not in mounted():
        raise MountError(f"{shown} is not mounted by overlayfs-demo", "leave out 'remount' to mount it")
    record = find_record(shown)
    flags = remount_flags(options, present_flags(mountpoint)) or 0
    if record is not None and record.upper is None and not flags & mounting.MS_RDONLY:
        raise MountError(f"{shown} has no upper and stays read-only", "mount it with upperdir= and workdir=")
    try:
        mounting.mount(b"none", mountpoint, FILESYSTEM_TYPE.encode(), flags | mounting.MS_REMOUNT, b"")
    except OSError as error:
        raise MountError(f"{shown}: cannot be remounted: {error.strerror}", "only root can") from error
    return True


def _titles(lowers: Sequence[bytes]) -> tuple[str, ...]:
    """Return the titles of layers that `build-layers` built, which say what made each.

    There are none if they cannot be read, because a view can be mounted without titles.
    """
    if not any(os.path.lexists(os.path.join(os.path.dirname(path), os.fsencode(LAYERS_RECORD))) for path in lowers):
        return ("",) * len(lowers)
    # Imported only here: it costs a third of a mount, and most layers have no record.
    from overlayfs_demo.images.build_record import built_titles

    try:
        return built_titles(lowers)
    except (ImageError, OSError) as error:
        _log.warning("cannot read what made the layers: %s", error)
        return ()


def open_stack(stack: Stack, events: Events) -> Overlay:
    """Open the overlay of a stack; the caller closes it. Raises MountError, which names the faulty layer."""
    try:
        return open_overlay(stack, events)
    except OSError as error:
        where = os.fsdecode(error.filename) if error.filename else "the layers"
        raise MountError(f"{where}: {error.strerror}") from error


def _prepare_mountpoint(path: bytes) -> bytes:
    """Return the mount point's real path, after unmounting what a killed daemon left there. Raises MountError."""
    shown = os.fsdecode(path)
    mountpoint = os.path.realpath(path)
    clear_dead(mountpoint)
    try:
        status = os.stat(mountpoint)
    except FileNotFoundError as error:
        raise MountError(f"{shown}: mount point does not exist", preflight.how_to_create(path)) from error
    except OSError as error:
        raise MountError(f"{shown}: {error.strerror}") from error
    if not stat.S_ISDIR(status.st_mode):
        raise MountError(f"{shown}: mount point is not a directory")
    return mountpoint


def clear_dead(mountpoint: bytes) -> bool:
    """Unmount the views on a mount point's real path whose daemon is dead; return whether there was one.

    Raises MountError.
    """
    shown = os.fsdecode(mountpoint)
    found = False
    while (top := mountinfo.top(mountpoint)) and top.kind == FILESYSTEM_TYPE and _is_dead(mountpoint):
        found = True
        try:
            attach.detach(mountpoint, lazy=True)
        except OSError as error:
            raise MountError(
                f"{shown}: a mount without its daemon is in the way: {error.strerror}",
                f"unmount it with 'umount -l {shown}'",
            ) from error
    registry.forget_dead(shown)
    return found


def _is_dead(mountpoint: bytes) -> bool:
    """Return whether nobody serves the view that is visible here.

    A daemon that is known to be alive is not asked, so this does not wait for one that hangs. Otherwise it calls
    statvfs(3), which the kernel never answers from a cache; it may still have the root's attributes and names.
    """
    if registry.is_served(os.fsdecode(mountpoint)):
        return False
    try:
        os.statvfs(mountpoint)
    except OSError as error:
        return error.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    return False


def _lock(path: bytes) -> int:
    """Lock the upper or work directory for this process and its children, and return the descriptor of the lock.

    The caller closes it. A daemon whose view was just unmounted may take a moment to release its locks, so this waits
    for a lock that belongs to no live mount. Raises MountError if the directory stays in use.
    """
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    deadline = time.monotonic() + _TIMEOUT
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = next((record for record in live_records() if _same(record.upper, path)), None)
            if holder is not None or time.monotonic() > deadline:
                os.close(fd)
                where = f" (mounted on {holder.mountpoint} by process {holder.pid})" if holder else ""
                raise MountError(
                    f"{os.fsdecode(path)} is in use by another mount{where}",
                    "unmount that first, or use a separate upper and work directory for this mount",
                ) from None
            time.sleep(_POLL)
        else:
            return fd


def _same(recorded: str | None, path: bytes) -> bool:
    return recorded is not None and os.path.exists(recorded) and os.path.samefile(os.fsencode(recorded), path)


def _confirm(mountpoint: bytes) -> None:
    """Check that the view answers. Raises MountError."""
    try:
        os.listdir(mountpoint)
    except OSError as error:
        raise MountError(f"{os.fsdecode(mountpoint)}: mounted, but does not answer: {error.strerror}") from error


# --- serving ---------------------------------------------------------------------------------------


def _serve(
    front: Front, mountpoint: bytes, options: MountOptions, trace: Listener | None, ready: Callable[[], None]
) -> None:
    """Serve a view in this process until it is unmounted, by another process or by SIGTERM, SIGINT or SIGHUP.

    Nothing is left behind, even if the view cannot be served. Raises MountError.
    """

    def stop(_number: int, _frame: object) -> None:
        # In a separate thread, because unmounting may need answers that this thread gives.
        threading.Thread(target=_detach_quietly, args=(mountpoint,), daemon=True).start()

    stack = options.stack
    with contextlib.ExitStack() as held:
        # The locks come first: they are released last, when the overlay is closed and the record is gone.
        for path in (stack.upper, stack.work):
            if path is not None:
                held.callback(os.close, _lock(path))
        events = Events()
        if trace is not None:
            events.attach(trace)
        overlay = open_stack(stack._replace(flags=options.flags), events)
        held.callback(overlay.close)
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

        def answered() -> None:
            # The record comes after the socket, because anyone who finds the record may ask there at once.
            server.start()
            held.callback(registry.Registration(_record(mountpoint, options)).forget)
            ready()

        for number in _STOPPING:
            signal.signal(number, stop)
        front.serve(view, answered)


def _record(mountpoint: bytes, options: MountOptions) -> MountRecord:
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
    handlers = {number: signal.getsignal(number) for number in _STOPPING}
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
