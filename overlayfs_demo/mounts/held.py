"""What belongs to a mount as long as it lasts, whichever process serves it: its locks, and its layers."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from overlayfs_demo.errors import MountError
from overlayfs_demo.mounts.locks import lock
from overlayfs_demo.mounts.options import MountOptions
from overlayfs_demo.named_tuple import NamedTuple
from overlayfs_demo.overlay.factory import open_roots
from overlayfs_demo.overlay.private_mount import Roots


class Held(NamedTuple):
    """The descriptors of the locks, and the open directories of the stack."""

    locks: list[int]
    roots: Roots

    def close(self) -> None:
        """Let go of everything. The locks come last."""
        self.roots.close()
        for fd in self.locks:
            os.close(fd)


def hold(options: MountOptions) -> Held:
    """Take the locks of a stack, and open its directories. The caller closes them. Raises MountError."""
    stack = options.stack
    with contextlib.ExitStack() as held:
        locks = []
        for path in (stack.upper, stack.work):
            if path is not None:
                locks.append(lock(path))
                held.callback(os.close, locks[-1])
        with naming_the_layer():
            roots = open_roots(stack._replace(flags=options.flags))
        held.pop_all()
        return Held(locks, roots)


@contextlib.contextmanager
def naming_the_layer() -> Iterator[None]:
    """Turn an OSError of an overlay that is being opened into a MountError that names the faulty layer."""
    try:
        yield
    except OSError as error:
        where = os.fsdecode(error.filename) if error.filename else "the layers"
        raise MountError(f"{where}: {error.strerror}") from error
