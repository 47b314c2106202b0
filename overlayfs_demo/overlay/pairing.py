"""Do an index, an upper and the topmost lower belong together?

What stands in the index are copies that names in the upper and in the lowers lead to. Beside another upper it would
show changes that were never made there. So the index remembers its upper, in `overlay.upper`, and the root of the upper
its topmost lower, in `overlay.origin`, both by handle (Linux fs/overlayfs/super.c, ovl_get_indexdir). The kernel
refuses a mount where either is another one. Here it is refused if anything stands in the index: an empty one can show
nothing wrong, and is given to the upper at hand.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass

from overlayfs_demo.linux import syscalls
from overlayfs_demo.overlay import origin
from overlayfs_demo.overlay.layer import Descriptor
from overlayfs_demo.overlay.stack import Stack
from overlayfs_demo.overlay.whiteout import TRUSTED, USER, PrivateXattrs


@dataclass(frozen=True, slots=True)
class Pairing:
    """One mount's topmost lower, upper and work directory, by path. The index stands in the work directory."""

    lower: bytes
    upper: bytes
    work: bytes
    xattrs: PrivateXattrs

    @property
    def index(self) -> bytes:
        """Where the index is, or would be."""
        return os.path.join(self.work, b"index")

    def stranger(self) -> str:
        """Which of the others the index does not belong to, "upper" or "lower"; "" if to both. Raises OSError."""
        try:
            if not os.listdir(self.index):
                return ""
        except FileNotFoundError:
            return ""
        if _differs(self.index, self.xattrs.upper, _handle(self.upper, of_upper=True)):
            return "upper"
        return "lower" if _differs(self.upper, self.xattrs.origin, _handle(self.lower)) else ""

    def verify(self) -> None:
        """Raise ESTALE, as the kernel's mount(2), if the index does not belong to the others."""
        if self.stranger():
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), self.index)

    def remember(self) -> None:
        """Note on disk what belongs together, as far as it is there. Raises OSError."""
        _note(self.upper, self.xattrs.origin, _handle(self.lower))
        if os.path.isdir(self.index):
            _note(self.index, self.xattrs.upper, _handle(self.upper, of_upper=True))


def pairing_of(stack: Stack) -> Pairing | None:
    """What must belong together in a stack, if it has an index."""
    if not stack.index or stack.upper is None or stack.work is None:
        return None
    return Pairing(stack.lowers[0], stack.upper, stack.work, USER if stack.user_xattrs else TRUSTED)


def _handle(path: bytes, *, of_upper: bool = False) -> bytes | None:
    """The handle of a layer's root; None where the filesystem has no handles, and so nothing is indexed."""
    held = Descriptor(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
    return origin.handle_of(held.fd, b"", syscalls.filesystem_uuid(held.fd) or origin.NO_UUID, of_upper=of_upper)


def _differs(path: bytes, name: str, handle: bytes | None) -> bool:
    """Does the note name something else? One that is missing, or no handle at all, says nothing (ovl_get_fh)."""
    noted = syscalls.get_xattr(path, name, follow=True)
    return noted is not None and origin.is_handle(noted) and handle is not None and noted != handle


def _note(path: bytes, name: str, handle: bytes | None) -> None:
    if handle is not None and syscalls.get_xattr(path, name, follow=True) != handle:
        os.setxattr(path, name, handle)
