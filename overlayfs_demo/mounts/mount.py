"""Mounting and remounting views.

Everything that can be wrong is checked before the daemon starts, so that the person who typed the
command learns of it. How a view is then served says `serving`.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import stat
from collections.abc import Sequence

from overlayfs_demo.errors import ImageError, MountError
from overlayfs_demo.events import Listener
from overlayfs_demo.fronts import attach, select
from overlayfs_demo.fronts.front import FILESYSTEM_TYPE
from overlayfs_demo.images.record_file import LAYERS_RECORD
from overlayfs_demo.linux import mountinfo, mounting
from overlayfs_demo.mounts import daemon, layer_usage, preflight, registry, serving
from overlayfs_demo.mounts.options import MountOptions, remount_flags
from overlayfs_demo.mounts.registry import find_record, mounted

_REMOUNTABLE = (
    mounting.MS_RDONLY
    | mounting.MS_NOSUID
    | mounting.MS_NODEV
    | mounting.MS_NOEXEC
    | mounting.MS_SYNCHRONOUS
    | mounting.MS_NOATIME
    | mounting.MS_NODIRATIME
)

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
        serving.serve_here(front, mountpoint, options, trace)
        return
    try:
        started = daemon.start(lambda ready: serving.serve_supervised(front, mountpoint, options, ready))
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


def _confirm(mountpoint: bytes) -> None:
    """Check that the view answers. Raises MountError."""
    try:
        os.listdir(mountpoint)
    except OSError as error:
        raise MountError(f"{os.fsdecode(mountpoint)}: mounted, but does not answer: {error.strerror}") from error
