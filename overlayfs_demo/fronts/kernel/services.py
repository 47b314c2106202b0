"""What a session does for the handlers of its requests."""

from __future__ import annotations

from collections.abc import Callable

from overlayfs_demo.fronts.kernel.io_modes import IoModes
from overlayfs_demo.named_tuple import NamedTuple
from overlayfs_demo.overlay.copy_in_progress import CopyInProgress
from overlayfs_demo.overlay.node import Node


class Services(NamedTuple):
    """The services of one session. They may be used from several threads.

    `pass_on` is called before a request that may take long, see `turns.Turns.pass_on`, and `any_long` tells whether one
    is in progress. `postpone` is called before a request waits for another one's copy-up, see `in_flight`. `store` puts
    the beginning of a file, given by its node id, into the kernel's cache. `refresh` makes the kernel ask again for a
    node's attributes before this call returns, and `distrust` makes it forget soon whatever it has cached of a node id.
    `io_modes` knows the files that are open.
    """

    pass_on: Callable[[], None]
    any_long: Callable[[], bool]
    postpone: Callable[[CopyInProgress], None]
    store: Callable[[int, memoryview], None]
    refresh: Callable[[Node], None]
    distrust: Callable[[int], None]
    io_modes: IoModes
