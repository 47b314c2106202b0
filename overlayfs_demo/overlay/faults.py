"""Which of the overlay's private marks in a layer are broken, and how is that told?

Anybody may have written them. A broken one makes the name it stands at fail, as in the kernel's overlayfs, and no
other; whoever meets the name sees no more than an errno, so the log says the rest, once for each mark.
"""

from __future__ import annotations

import errno
import logging
import os

from overlayfs_demo.overlay.layer import LayerDir

_log = logging.getLogger(__name__)

# A layer can be full of broken marks; the log need not be.
_MOST_TOLD = 100
# Bytes of a value that are shown.
_LONGEST = 200
# fs/overlayfs/overlayfs.h, OVL_METACOPY_MIN_SIZE, in bytes. An empty value is sound as well.
_METACOPY_HEAD = 4


def checked_redirect(value: bytes, place: LayerDir, name: bytes) -> bytes:
    """The `overlay.redirect` of the object `name` in `place`, if it is a sibling's name or an absolute path.

    Raises EINVAL for empty components and relative paths, EACCES for `.` and `..`, which could lead out of the layer
    (fs/overlayfs/util.c, ovl_get_redirect_xattr; fs/namei.c, lookup_noperm_common).
    """
    absolute = value.startswith(b"/")
    parts = value[absolute:].split(b"/")
    if b"" in parts or (len(parts) > 1 and not absolute):
        raise broken(errno.EINVAL, place, name, "redirect", value)
    if b"." in parts or b".." in parts:
        raise broken(errno.EACCES, place, name, "redirect", value)
    return value


def check_metacopy(value: bytes, place: LayerDir, name: bytes) -> None:
    """Raise EIO for an `overlay.metacopy` that is too short (ovl_check_metacopy_xattr)."""
    if 0 < len(value) < _METACOPY_HEAD:
        raise broken(errno.EIO, place, name, "metacopy", value)


def broken(
    code: int, place: LayerDir, name: bytes, mark: str, value: bytes | None, remedy: str = "correct it, or remove it"
) -> OSError:
    """The error for a bad `overlay.MARK` (None: missing) of the object `name` in `place`, which is logged."""
    path = os.path.join(place.path(), name)
    told = place.layer.told
    if (path, mark) not in told and len(told) < _MOST_TOLD:
        told.add((path, mark))
        shown = "none" if value is None else ascii(os.fsdecode(value[:_LONGEST]))
        _log.warning(
            "%s: %s cannot be used, for its attribute overlay.%s is wrong: %s; %s",
            place.layer.label, ascii(os.fsdecode(path)), mark, shown, remedy,
        )
    return OSError(code, os.strerror(code), name)
