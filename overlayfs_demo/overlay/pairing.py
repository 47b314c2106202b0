"""The check that an index, an upper and the topmost lower belong together.

The index holds copies to which names in the upper and in the lowers lead. With another upper it would
show changes that were never made there. So the index records its upper in `overlay.upper`, and the root of the upper
records its topmost lower in `overlay.origin`, both by handle (Linux fs/overlayfs/super.c, ovl_get_indexdir). The kernel
refuses a mount if either differs. Here it is refused only if the index holds anything: an empty one cannot show
wrong files, and is assigned to the present upper.
"""

from __future__ import annotations

import errno
import os

from overlayfs_demo.linux import syscalls, xattr
from overlayfs_demo.linux.failure import failure
from overlayfs_demo.named_tuple import NamedTuple
from overlayfs_demo.overlay import origin
from overlayfs_demo.overlay.layer import Descriptor
from overlayfs_demo.overlay.stack import Stack
from overlayfs_demo.overlay.whiteout import TRUSTED, USER, PrivateXattrs


class Pairing(NamedTuple):
    """The paths of one mount's topmost lower, upper and work directory, which contains the index."""

    lower: bytes
    upper: bytes
    work: bytes
    xattrs: PrivateXattrs

    @property
    def index_path(self) -> bytes:
        """The path of the index, which need not exist."""
        return os.path.join(self.work, b"index")

    def has_index(self) -> bool:
        """Whether the index exists. Raises OSError if that cannot be found out."""
        try:
            os.stat(self.index_path)
        except FileNotFoundError:
            return False
        return True

    def stranger(self) -> str:
        """Return "upper" or "lower" if the index does not belong to that one, "" if it fits both. Raises OSError."""
        try:
            if not os.listdir(self.index_path):
                return ""
        except FileNotFoundError:
            return ""
        if _differs(self.index_path, self.xattrs.upper, _handle(self.upper, of_upper=True)):
            return "upper"
        return "lower" if _differs(self.upper, self.xattrs.origin, _handle(self.lower)) else ""

    def verify(self) -> None:
        """Raise ESTALE, as mount(2) does, if the index does not belong to the upper and the lower."""
        if self.stranger():
            raise failure(errno.ESTALE, self.index_path)

    def lower_handle(self) -> bytes | None:
        """Return the handle of the topmost lower. Raises OSError."""
        return _handle(self.lower)

    def remember(self, lower: bytes | None) -> None:
        """Record on disk what belongs together; the index only if it exists. `lower` is `lower_handle`. Raises OSError.

        The lower itself is not asked, because it may keep us waiting.
        """
        _note(self.upper, self.xattrs.origin, lower)
        if self.has_index():
            _note(self.index_path, self.xattrs.upper, _handle(self.upper, of_upper=True))


def pairing_of(stack: Stack) -> Pairing | None:
    """Return the pairing of a stack, or None if it uses no index."""
    if not stack.index or stack.upper is None or stack.work is None:
        return None
    return Pairing(stack.lowers[0], stack.upper, stack.work, USER if stack.user_xattrs else TRUSTED)


def _handle(path: bytes, *, of_upper: bool = False) -> bytes | None:
    """Return the handle of a layer's root; None where the filesystem has no handles, so that nothing is indexed."""
    held = Descriptor(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
    return origin.handle_of(held.fd, b"", syscalls.filesystem_uuid(held.fd) or origin.NO_UUID, of_upper=of_upper)


def _differs(path: bytes, name: str, handle: bytes | None) -> bool:
    """Return whether the record names another object. A missing or invalid record does not count (ovl_get_fh)."""
    noted = xattr.get(path, name, follow=True)
    return noted is not None and origin.is_handle(noted) and handle is not None and noted != handle


def _note(path: bytes, name: str, handle: bytes | None) -> None:
    if handle is not None and xattr.get(path, name, follow=True) != handle:
        os.setxattr(path, name, handle)
