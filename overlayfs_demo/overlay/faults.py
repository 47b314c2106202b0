"""Checks of the overlay's private marks in a layer, and reports of those that are broken or must not be followed.

Anyone may have written them. As in the kernel's overlayfs, such a mark makes lookups of its own name fail, and of no
other. A program that looks the name up sees only an errno, so the log gives the details, once for each mark, and so
does the error's `strerror`, for a caller that can print it.
"""

from __future__ import annotations

import errno
import logging
import os

from overlayfs_demo.errors import printable
from overlayfs_demo.overlay.layer import LayerDir

_log = logging.getLogger(__name__)

# A layer may be full of broken marks, but the log must not be.
_MOST_TOLD = 100
# How many bytes of a value to show.
_LONGEST = 200
# fs/overlayfs/overlayfs.h, OVL_METACOPY_MIN_SIZE, in bytes. An empty value is valid as well.
_METACOPY_HEAD = 4


def checked_redirect(value: bytes, place: LayerDir, name: bytes) -> bytes:
    """Return `value`, the `overlay.redirect` of the object `name` in `place`: a sibling's name or an absolute path.

    Raises EPERM where redirects are not followed, EINVAL for empty components and relative paths, EACCES for `.` and
    `..`, which could lead out of the layer (fs/overlayfs/util.c, ovl_get_redirect_xattr; fs/namei.c,
    lookup_noperm_common).
    """
    _check_follows(place, name, "redirect")
    absolute = value.startswith(b"/")
    parts = value[absolute:].split(b"/")
    if b"" in parts or (len(parts) > 1 and not absolute):
        raise broken(errno.EINVAL, place, name, "redirect", value)
    if b"." in parts or b".." in parts:
        raise broken(errno.EACCES, place, name, "redirect", value)
    return value


def check_metacopy(value: bytes, place: LayerDir, name: bytes) -> None:
    """Raise EPERM where `overlay.metacopy` is not followed, EIO if it is too short (ovl_check_metacopy_xattr)."""
    _check_follows(place, name, "metacopy")
    if 0 < len(value) < _METACOPY_HEAD:
        raise broken(errno.EIO, place, name, "metacopy", value)


def _check_follows(place: LayerDir, name: bytes, mark: str) -> None:
    """Raise EPERM if this mount follows no redirects and metacopies (fs/overlayfs/namei.c, ovl_check_follow_redirect).

    `mark` is the name of the mark that the object `name` in `place` has.
    """
    xattrs = place.layer.xattrs
    if not xattrs.follows:
        raise _told(
            errno.EPERM,
            place,
            name,
            mark,
            f"cannot be looked up because root's mount does not follow its attribute {xattrs.prefix}{mark}, which any "
            "owner may set; look at it in a mount by the upper's owner, or without userxattr",
        )


def broken(
    code: int, place: LayerDir, name: bytes, mark: str, value: bytes | None, remedy: str = "correct it, or remove it"
) -> OSError:
    """Log a bad `overlay.MARK` (None: missing) of the object `name` in `place`, and return the error for it."""
    shown = "none" if value is None else f"'{printable(value[:_LONGEST])}'"
    problem = f"cannot be used because its attribute overlay.{mark} is wrong: {shown}; {remedy}"
    return _told(code, place, name, mark, problem)


def _told(code: int, place: LayerDir, name: bytes, mark: str, problem: str) -> OSError:
    """Log the problem of one mark unless it was logged before, and return the error for it."""
    path = os.path.join(place.path(), name)
    sentence = f"{place.layer.label}: '{printable(path)}' {problem}"
    told = place.layer.told
    if (path, mark) not in told and len(told) < _MOST_TOLD:
        told.add((path, mark))
        _log.warning("%s", sentence)
    return OSError(code, f"{os.strerror(code)}: {sentence}", name)
