"""Limits for the data of one copy-up.

The user who mounts a view may set two: a copy-up above one is reported, a copy-up above the other is refused before
anything is written. The errno is EDQUOT, "Disk quota exceeded": like a quota, the limit is somebody's rule and not
a property of the filesystem (EFBIG), and programs expect it wherever they write: open(2), rename(2), link(2) and
setxattr(2) list it.
"""

from __future__ import annotations

import errno
import logging

from overlayfs_demo.errors import printable
from overlayfs_demo.events import Action
from overlayfs_demo.linux.failure import failure
from overlayfs_demo.named_tuple import NamedTuple
from overlayfs_demo.overlay.node import Node
from overlayfs_demo.overlay.types import Caller
from overlayfs_demo.overlay.upper import Upper

_log = logging.getLogger(__name__)


class Limits(NamedTuple):
    """Limits in bytes; None means no limit. A copy-up of exactly that many bytes is within the limit."""

    most: int | None
    warn: int | None

    def check(self, upper: Upper, node: Node, layer: str, size: int, caller: Caller) -> None:
        """Check a copy-up before it starts: `size` bytes of a file, from `layer`. Raises EDQUOT."""
        if (self.most is None or size <= self.most) and (self.warn is None or size <= self.warn):
            return
        path = node.path()
        shown = f"'{printable(path)}'"
        if self.most is not None and size > self.most:
            _log.warning(
                "refused to copy up %s from %s: its %d bytes exceed copyup_max=%d:  change a smaller file, "
                "or mount with a higher copyup_max",
                shown,
                layer,
                size,
                self.most,
            )
            upper.emit(Action.REFUSE, path, caller, layer, size, f"copyup_max={self.most}")
            raise failure(errno.EDQUOT, path)
        if self.warn is not None and size > self.warn:
            _log.warning("copying up %s from %s: its %d bytes exceed copyup_warn=%d", shown, layer, size, self.warn)
            upper.emit(Action.WARN, path, caller, layer, size, f"copyup_warn={self.warn}")
