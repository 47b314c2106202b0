"""A record of the lowers that an upper was last mounted over.

An upper is meaningful only over the lowers it was made for: its whiteouts and directories refer to them. The
kernel's overlayfs checks that with index=on only (fs/overlayfs/super.c, ovl_verify_origin). Here an attribute of
the upper's root records the stack. The kernel ignores the attribute and hides it like all private ones.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Sequence

from overlayfs_demo.linux import xattr
from overlayfs_demo.overlay.layer import Layer
from overlayfs_demo.overlay.origin import Origins
from overlayfs_demo.overlay.sha256 import digest
from overlayfs_demo.overlay.whiteout import PrivateXattrs

# In bytes. ext4 keeps all attributes of a file in one block of 4 KiB.
_LONGEST_NAMES = 1024


def last_stack(upper: Layer, lowers: Sequence[Layer], xattrs: PrivateXattrs) -> str:
    """Return the names of the lowers of the upper's last mount if they were different, else "".

    Also "" if the upper is empty or has no record.
    """
    value = xattr.get(upper.root_fd, xattrs.lowers)
    if value is None or not os.listdir(upper.root_fd):
        return ""
    now = _description(lowers)
    try:
        before = json.loads(value)
        # Layers that were moved are the same, and so are copies at the old paths.
        same = before["files"] == now["files"] or before["paths"] == now["paths"]
        return "" if same else str(before["names"])
    except (ValueError, TypeError, KeyError):
        return ""  # The record is not ours.


def remember(upper: Layer, lowers: Sequence[Layer], xattrs: PrivateXattrs) -> None:
    """Record the stack. Errors are ignored: the upper works without the record."""
    value = json.dumps(_description(lowers)).encode()
    if value != xattr.get(upper.root_fd, xattrs.lowers):
        with contextlib.suppress(OSError):
            os.setxattr(upper.root_fd, xattrs.lowers, value)


def names(lowers: Sequence[Layer]) -> str:
    """Return the paths of the lowers as one text for messages, shortened if it is long."""
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
    return digest(b"".join(map(digest, parts))).hex()[:32]
