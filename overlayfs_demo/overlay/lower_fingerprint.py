"""Over which lowers was this upper mounted before?

An upper makes sense over the lowers it was made over: its whiteouts and directories speak of them. The
kernel's overlayfs checks that with index=on only (fs/overlayfs/super.c, ovl_verify_origin). Here the root
of the upper remembers the stack in an attribute, which the kernel hides like all private ones and ignores.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Sequence

from overlayfs_demo.linux import syscalls
from overlayfs_demo.overlay.layer import Layer
from overlayfs_demo.overlay.origin import Origins
from overlayfs_demo.overlay.whiteout import PrivateXattrs

# Bytes. ext4 keeps all attributes of a file in one block of 4 KiB.
_LONGEST_NAMES = 1024


def last_stack(upper: Layer, lowers: Sequence[Layer], xattrs: PrivateXattrs) -> str:
    """The lowers that the upper was last mounted over, as text, if they were others and it holds something; or ""."""
    value = syscalls.get_xattr(upper.root_fd, xattrs.lowers)
    if value is None or not os.listdir(upper.root_fd):
        return ""
    now = _description(lowers)
    try:
        before = json.loads(value)
        # Layers that were moved are still the same, and so are copies in their place.
        same = before["files"] == now["files"] or before["paths"] == now["paths"]
        return "" if same else str(before["names"])
    except (ValueError, TypeError, KeyError):
        return ""  # Not ours.


def remember(upper: Layer, lowers: Sequence[Layer], xattrs: PrivateXattrs) -> None:
    """Note the stack. Best effort: an upper without the note is as good."""
    value = json.dumps(_description(lowers)).encode()
    if value != syscalls.get_xattr(upper.root_fd, xattrs.lowers):
        with contextlib.suppress(OSError):
            os.setxattr(upper.root_fd, xattrs.lowers, value)


def names(lowers: Sequence[Layer]) -> str:
    """The stack, for messages."""
    text = ":".join(os.fsdecode(layer.path) for layer in lowers)
    if len(os.fsencode(text)) > _LONGEST_NAMES:
        return f"{text[: _LONGEST_NAMES // 4]}... ({len(lowers)} layers)"
    return text


def _description(lowers: Sequence[Layer]) -> dict[str, str]:
    origins = Origins(lowers)
    files = [origins.encode(layer, layer.root_fd, b"") or os.urandom(16) for layer in lowers]
    return {
        "files": _digest(files),
        "paths": _digest([os.path.realpath(layer.path) for layer in lowers]),
        "names": names(lowers),
    }


def _digest(parts: Sequence[bytes]) -> str:
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()[:32]
