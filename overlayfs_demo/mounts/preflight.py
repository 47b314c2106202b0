"""The checks that a stack must pass before it is mounted.

The rules are the kernel's (Linux Documentation/filesystems/overlayfs.rst and fs/overlayfs/super.c).
Unlike mount(2), which only says EINVAL, each error names the layer, the rule and the remedy.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shlex
import stat
from collections.abc import Iterator

from overlayfs_demo.errors import MountError
from overlayfs_demo.linux import mountinfo, syscalls
from overlayfs_demo.mounts.option_paths import unescape
from overlayfs_demo.named_tuple import NamedTuple
from overlayfs_demo.overlay import incompat, layer_snapshots
from overlayfs_demo.overlay.pairing import pairing_of
from overlayfs_demo.overlay.stack import Stack
from overlayfs_demo.overlay.whiteout import TRUSTED, USER, make_whiteout

__all__ = ["Stack", "Written", "absolute", "checked", "how_to_create", "written_by_kernel"]

# The advice for a lower layer that does not exist.
_CHECK_LOWER = "check the path; in lowerdir= a ':' inside it is written '\\:'"


def checked(stack: Stack) -> Stack:
    """Return the stack with absolute paths if it can be mounted. Raises MountError."""
    given, stack = stack, absolute(stack)
    for number, path in enumerate(stack.lowers, 1):
        _check_directory(path, f"lower layer {number} of {len(stack.lowers)} (counted from the top)")
    for path in stack.data_only:
        _check_directory(path, "data-only lower layer")
    _check_distinct(stack)
    _check_follows(stack)
    if stack.time_machine:
        _check_name_free(stack)
    if stack.upper is not None and stack.work is not None:
        _check_directory(stack.upper, "upperdir", how_to_create(given.upper or stack.upper))
        _check_directory(stack.work, "workdir", how_to_create(given.work or stack.work))
        _check_apart(stack, stack.upper, stack.work)
        _check_not_with_kernel(stack.upper)
        _check_compatible(stack.upper, stack.work)
        _check_index(stack)
        _check_abilities(stack.work, USER.opaque if stack.user_xattrs else TRUSTED.opaque)
    return stack


def absolute(stack: Stack) -> Stack:
    """Return the same stack with absolute paths, which do not depend on the working directory."""
    return stack._replace(
        lowers=tuple(os.path.abspath(path) for path in stack.lowers),
        data_only=tuple(os.path.abspath(path) for path in stack.data_only),
        upper=os.path.abspath(stack.upper) if stack.upper is not None else None,
        work=os.path.abspath(stack.work) if stack.work is not None else None,
    )


def how_to_create(path: bytes) -> str:
    """Return the advice for a directory that does not exist."""
    parents = "" if os.path.isdir(os.path.dirname(os.path.abspath(path))) else "-p "
    command = f"mkdir {parents}{shlex.quote(os.fsdecode(path))}"
    return f"create it with {command}" if "'" in command else f"create it with '{command}'"


def _check_directory(path: bytes, role: str, missing: str = _CHECK_LOWER) -> None:
    shown = os.fsdecode(path)
    try:
        status = os.stat(path)
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
    except OSError as error:
        remedy = {errno.ENOENT: missing, errno.ENOTDIR: "name a directory"}.get(
            error.errno or 0, "make it readable by the user who mounts it"
        )
        raise MountError(f"{role}, {shown}: {error.strerror}", remedy) from error
    assert stat.S_ISDIR(status.st_mode)


def _check_follows(stack: Stack) -> None:
    """Check that userxattr is not combined with an option whose marks are then not trusted.

    The kernel refuses the same as conflicting options (ovl_fs_params_verify).
    """
    asked = "metacopy=on" if stack.metacopy else "a data-only layer" if stack.data_only else ""
    if asked and stack.user_xattrs and not USER.follows:
        raise MountError(
            f"root cannot use {asked} with 'userxattr': anyone who owns a file there could use it to read all others",
            "leave out 'userxattr', or mount as the owner of the layers",
        )


def _check_name_free(stack: Stack) -> None:
    name = os.fsdecode(layer_snapshots.NAME)
    for path in (*stack.lowers, *([stack.upper] if stack.upper else [])):
        if os.path.lexists(os.path.join(path, layer_snapshots.NAME)):
            raise MountError(
                f"{os.fsdecode(path)} has a {name} of its own, which 'timemachine' would hide",
                f"mount without that option, or rename {name} there",
            )


def _check_distinct(stack: Stack) -> None:
    """Check that no directory is used twice, or lies inside another layer (ovl_check_layer).

    Otherwise its changes would be seen through two layers at once.
    """
    paths = stack.lowers + stack.data_only
    roles = [f"lower layer {number}" for number in range(1, len(stack.lowers) + 1)]
    roles += [f"data-only layer {number}" for number in range(1, len(stack.data_only) + 1)]
    places = mountinfo.places(paths)
    seen: dict[mountinfo.Place, int] = {}
    for number, place in enumerate(places):
        first = seen.setdefault(place, number)
        if first != number:
            raise MountError(
                f"{roles[number]}, {os.fsdecode(paths[number])}, is the same directory as {roles[first]}",
                "name each layer once in lowerdir=",
            )
    for number, place in enumerate(places):
        outer = next((seen[above] for above in _above(place) if above in seen), None)
        if outer is not None:
            raise MountError(
                f"{roles[number]}, {os.fsdecode(paths[number])}, is inside {roles[outer]}, {os.fsdecode(paths[outer])}",
                "its files would appear twice: use directories that do not contain each other",
            )


def _above(place: mountinfo.Place) -> Iterator[mountinfo.Place]:
    path = place.path
    while path != (path := os.path.dirname(path)):
        yield place._replace(path=path)


def _check_apart(stack: Stack, upper: bytes, work: bytes) -> None:
    apart = "filesystems" if os.stat(upper).st_dev != os.stat(work).st_dev else "mounts"
    if apart == "filesystems" or mountinfo.mount_number(upper) != mountinfo.mount_number(work):
        raise MountError(
            f"upperdir {os.fsdecode(upper)} and workdir {os.fsdecode(work)} are on different {apart}",
            "a change is published by a rename from work to upper: put both on one",
        )
    above, below, *lowers = mountinfo.places((upper, work, *stack.lowers))
    if above.is_within(below) or below.is_within(above):
        raise MountError(
            f"upperdir {os.fsdecode(upper)} and workdir {os.fsdecode(work)} must not contain each other",
            "make them two directories side by side",
        )
    for number, (lower, path) in enumerate(zip(lowers, stack.lowers, strict=True), 1):
        for role, place, shown in (("upperdir", above, upper), ("workdir", below, work)):
            if place.is_within(lower) or lower.is_within(place):
                raise MountError(
                    f"{role} {os.fsdecode(shown)} overlaps lower layer {number}, {os.fsdecode(path)}",
                    "a lower layer must not change while it is mounted: keep them apart",
                )


def _check_not_with_kernel(upper: bytes) -> None:
    """Check that the kernel's overlayfs does not use the upper. It takes no visible lock, but lists its upper."""
    for used in written_by_kernel():
        if used.role == "upperdir" and os.path.exists(used.path) and os.path.samefile(used.path, upper):
            raise MountError(
                f"upperdir {os.fsdecode(upper)} is in use by the kernel's overlayfs on {used.mountpoint}",
                "unmount that first",
            )


class Written(NamedTuple):
    """A directory that a live mount writes to; `role` is upperdir or workdir."""

    role: str
    path: bytes
    mountpoint: str


def written_by_kernel() -> Iterator[Written]:
    """Return the uppers and work directories of the kernel's overlayfs mounts.

    The paths are as they were given, and may be relative.
    """
    for mounted in mountinfo.mounts():
        for option in mounted.options if mounted.kind == "overlay" else ():
            role, _, value = option.partition("=")
            if role in ("upperdir", "workdir"):
                # The list has the path with the backslashes of a mount option.
                path = unescape(os.fsdecode(mountinfo.unescape(value)))
                yield Written(role, path, os.fsdecode(mounted.mountpoint))


def _check_compatible(upper: bytes, work: bytes) -> None:
    """Check that the workdir names no incompatible feature. The kernel refuses the same, with a line in its log."""
    try:
        found = incompat.features(work)
    except OSError as error:
        raise MountError(f"workdir {os.fsdecode(work)}: cannot read its contents: {error.strerror}") from error
    mark = os.path.join(os.fsdecode(work), "work", "incompat")
    if incompat.VOLATILE in found:
        raise MountError(
            f"upperdir {os.fsdecode(upper)} was mounted volatile, and may have lost data if the machine crashed",
            f"discard upper and work; or, if it did not, remove the mark with 'rm -r {mark}'",
        )
    if found:
        raise MountError(
            f"workdir {os.fsdecode(work)} says that upperdir {os.fsdecode(upper)} uses the feature "
            f"'{os.fsdecode(found[0])}', which is unknown to this program",
            "mount it with the program that created it",
        )


def _check_index(stack: Stack) -> None:
    """Check that the index belongs to this upper and this topmost lower.

    The kernel refuses the same with index=on, as a stale file handle.
    """
    pairing = pairing_of(stack)
    if pairing is None:
        return
    upper, work = os.fsdecode(pairing.upper), os.fsdecode(pairing.work)
    try:
        stranger = pairing.stranger()
    except OSError as error:
        raise MountError(f"workdir {work}: its index cannot be read: {error.strerror}") from error
    if stranger == "upper":
        raise MountError(
            f"workdir {work} has the index of another upper, not of upperdir {upper}: it would show the wrong changes",
            "name the workdir that this upper was used with, or an empty one, or mount with index=off",
        )
    if stranger == "lower":
        raise MountError(
            f"upperdir {upper} was used over a different topmost lower, not {os.fsdecode(pairing.lower)}, and the "
            f"index in workdir {work} refers to files of that lower",
            "mount it over the original lowers, or with an empty workdir, or with index=off",
        )


def _check_abilities(work: bytes, opaque: str) -> None:
    """Try everything in the work directory that the upper's filesystem must support. Raises MountError."""
    probe = os.path.join(work, b"#probe-" + os.urandom(8).hex().encode())
    doing = "create a directory"
    try:
        with contextlib.ExitStack() as held:
            os.mkdir(probe, 0o700)
            held.callback(_remove, probe)
            fd = os.open(probe, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            held.callback(os.close, fd)
            doing = f"set the attribute {opaque}"
            os.setxattr(fd, opaque, b"y")
            doing = "create a whiteout (character device 0/0)"
            make_whiteout(fd, b"whiteout")
            doing = "create a hard link"
            os.link(b"whiteout", b"link", src_dir_fd=fd, dst_dir_fd=fd, follow_symlinks=False)
            doing = "rename without replacing"
            syscalls.rename(fd, b"link", fd, b"moved", syscalls.RENAME_NOREPLACE)
            doing = "exchange two names"
            syscalls.rename(fd, b"whiteout", fd, b"moved", syscalls.RENAME_EXCHANGE)
    except OSError as error:
        raise MountError(
            f"workdir {os.fsdecode(work)}: cannot {doing} there: {error.strerror}", _remedy(error, opaque)
        ) from error


def _remove(directory: bytes) -> None:
    """Remove a directory that contains only files."""
    for name in os.listdir(directory):
        os.unlink(os.path.join(directory, name))
    os.rmdir(directory)


def _remedy(error: OSError, opaque: str) -> str:
    if error.errno in (errno.EPERM, errno.EACCES) and opaque.startswith("trusted."):
        return "mount as root, or with -o userxattr"
    if error.errno in (errno.EROFS, errno.EACCES, errno.ENOSPC):
        return "upper and work must be writable"
    return "put upper and work on a filesystem such as ext4, xfs, btrfs or tmpfs (not a folder shared with a host)"
