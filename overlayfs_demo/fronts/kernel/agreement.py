"""What both sides agree on in INIT, the first request."""

from __future__ import annotations

from overlayfs_demo.errors import MountError
from overlayfs_demo.fronts.kernel import wire

WANTED = (
    wire.ASYNC_READ
    | wire.ATOMIC_O_TRUNC
    | wire.BIG_WRITES
    | wire.DONT_MASK
    | wire.DO_READDIRPLUS
    | wire.READDIRPLUS_AUTO
    | wire.PARALLEL_DIROPS
    | wire.POSIX_ACL
    | wire.MAX_PAGES
    | wire.CACHE_SYMLINKS
    | wire.HANDLE_KILLPRIV_V2
    | wire.SETXATTR_EXT
    | wire.INIT_EXT
    | wire.PASSTHROUGH
    | wire.HAS_RESEND
)
# Without these the engine's answers would be wrong, not just slow.
_NEEDED = wire.ATOMIC_O_TRUNC | wire.DONT_MASK | wire.POSIX_ACL | wire.HANDLE_KILLPRIV_V2 | wire.SETXATTR_EXT


def agree(body: memoryview, wanted: int) -> wire.Protocol:
    """Return the protocol to speak, with the `wanted` features that this kernel has.

    Raises MountError if the kernel lacks a needed one.
    """
    major, minor, readahead, flags = wire.INIT_IN.unpack_from(body)
    if major != wire.MAJOR or minor < wire.OLDEST_MINOR:
        needed = f"the kernel front needs {wire.MAJOR}.{wire.OLDEST_MINOR} or later"
        raise MountError(f"the kernel speaks FUSE {major}.{minor}", needed)
    if flags & wire.INIT_EXT:
        (flags2,) = wire.INIT_FLAGS2_IN.unpack_from(body)
        flags |= flags2 << 32
    missing = _NEEDED & ~flags
    if missing:
        remedy = "use --front fusepy, or Linux 5.15 or later"
        raise MountError(f"the kernel's FUSE lacks required features ({missing:#x})", remedy)
    return wire.Protocol(min(minor, wire.MINOR), readahead, flags & wanted)
