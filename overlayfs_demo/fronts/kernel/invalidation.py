"""Notices that make the kernel forget what it has cached.

They are messages that answer no request: FUSE_NOTIFY_INVAL_ENTRY, FUSE_NOTIFY_INVAL_INODE and
FUSE_NOTIFY_INC_EPOCH. To forget a name the kernel takes the lock of its directory, and to forget a page
it waits until the page is filled. A caller who waits for an answer of ours may hold up both. So a separate
thread sends the notices, which holds no lock and answers no request.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import select
import threading
import time
from collections import deque

from overlayfs_demo.fronts.kernel import wire
from overlayfs_demo.fronts.kernel.node_table import NodeTable
from overlayfs_demo.fronts.kernel.readdir import Directories
from overlayfs_demo.overlay.external_changes import Changes, ExternalChanges

_log = logging.getLogger(__name__)

# Seconds. The thread rests after each look at the changes, so that many changes cost little.
_REST = 0.05
# Seconds. An answer that was on its way during a change may arrive after the notice, so the notice is sent again.
_AGAIN = 0.05
# How long the thread may take to end, in seconds.
_TIMEOUT = 2.0


class Notices:
    """A thread that tells the kernel of changes behind the view, until `close`."""

    def __init__(
        self, device: int, external_changes: ExternalChanges, nodes: NodeTable, directories: Directories
    ) -> None:
        self._device = device
        self._external_changes = external_changes
        self._nodes = nodes
        self._directories = directories
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._stopping = False
        self._taken_over = False
        self._distrusted: deque[int] = deque()
        self._thread = threading.Thread(target=self._run, name="notices", daemon=True)

    def start(self, *, taken_over: bool = False) -> None:
        """Start the thread. `taken_over`: before, nobody may have noticed changes for a moment."""
        self._taken_over = taken_over
        self._thread.start()

    def close(self) -> None:
        """End the thread and wait for it, but not for ever: the kernel may hold it until the device is closed."""
        self._stopping = True
        os.eventfd_write(self._wake, 1)
        if self._thread.is_alive():
            self._thread.join(_TIMEOUT)
        if not self._thread.is_alive():
            os.close(self._wake)

    def distrust(self, nodeid: int) -> None:
        """Make the kernel forget soon what it has cached of a node, because changes of that would go unnoticed."""
        self._distrusted.append(nodeid)
        os.eventfd_write(self._wake, 1)

    def _run(self) -> None:
        poll = select.poll()
        for queue in self._external_changes.fds:
            poll.register(queue, select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        sent = Changes()
        if self._taken_over:
            self._ask_again()
        while True:
            ready = [fd for fd, _ in poll.poll(_AGAIN * 1000 if sent else None)]
            if self._stopping:
                return
            try:
                self._send_distrust()
                changes = self._external_changes.read()
                # Again what was sent in the last round, see _AGAIN.
                self._send(sent)
                self._send(changes)
            except Exception:  # noqa: BLE001 - later changes must still be told
                _log.exception("cannot tell the kernel what changed behind the view")
                changes = Changes(everything=True)
            sent = changes
            if ready:
                time.sleep(_REST)

    def _send_distrust(self) -> None:
        # Reset the event before taking the ids: an id that is added in between then wakes this thread again.
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wake)
        for nodeid in {self._distrusted.popleft() for _ in range(len(self._distrusted))}:
            self._forget_node(nodeid)

    def _send(self, changes: Changes) -> None:
        if not changes:
            return
        self._directories.forget_ahead()
        for node in changes.nodes:
            nodeid = self._nodes.id_of(node)
            if nodeid is not None:
                self._forget_node(nodeid)
        for parent, name in changes.names:
            nodeid = self._nodes.id_of(parent)
            if nodeid is not None:
                self._notify(wire.NOTIFY_INVAL_ENTRY, wire.inval_entry(nodeid, name))
        if changes.everything:
            self._forget_everything()

    def _forget_node(self, nodeid: int) -> None:
        self._nodes.forget_stored(nodeid)
        self._notify(wire.NOTIFY_INVAL_INODE, wire.inval_inode(nodeid))

    def _ask_again(self) -> None:
        """Make the kernel ask again for all that exists.

        It must not forget names, because something may be mounted below them: /proc in a container, for example.
        """
        for nodeid in self._nodes.ids():
            self._forget_node(nodeid)
        for nodeid, name in self._nodes.names():
            self._notify(wire.NOTIFY_INVAL_ENTRY, wire.inval_entry(nodeid, name, expire=True))

    def _forget_everything(self) -> None:
        for nodeid in self._nodes.ids():
            self._forget_node(nodeid)
        if not self._notify(wire.NOTIFY_INC_EPOCH, b""):
            # Before Linux 6.16 names are forgotten one by one. That leaves out cached names that do not exist.
            for nodeid, name in self._nodes.names():
                self._notify(wire.NOTIFY_INVAL_ENTRY, wire.inval_entry(nodeid, name))

    def _notify(self, code: int, body: bytes) -> bool:
        """Send one message; return False if the kernel does not understand it."""
        try:
            os.write(self._device, wire.notice_head(code, len(body)) + body)
        except OSError as error:
            # ENOENT: the kernel has not cached it, or no longer. ENODEV: the view was unmounted in the meantime.
            if error.errno not in (errno.ENOENT, errno.ENODEV, errno.ENOTDIR):
                return False
        return True
