"""The files that the kernel has open, by the numbers that it was told.

The ledger has what another process needs to know of each, see `resume`. A file that no other process could open again,
because it has no name, is handed to the supervisor.
"""

from __future__ import annotations

import logging
import os
import stat

from overlayfs_demo.fronts.keeper import Keeper
from overlayfs_demo.fronts.kernel.io_modes import IoModes
from overlayfs_demo.fronts.kernel.ledger import RESENT, Ledger, NotedFile
from overlayfs_demo.fronts.kernel.node_table import NodeTable
from overlayfs_demo.fronts.kernel.request import Request
from overlayfs_demo.overlay.engine import Overlay
from overlayfs_demo.overlay.handle import Handle
from overlayfs_demo.overlay.layer import Descriptor, stale
from overlayfs_demo.overlay.node import FileNode, Node
from overlayfs_demo.overlay.types import Caller

_log = logging.getLogger(__name__)

# The owner of a file with these permissions can open it in any way.
_OPEN_TO_OWNER = stat.S_IRUSR | stat.S_IWUSR


class OpenFile:
    """A node and one of its handles."""

    __slots__ = ("handle", "node")

    def __init__(self, node: FileNode, handle: Handle) -> None:
        self.node = node
        self.handle = handle


class OpenFiles(dict[int, OpenFile]):
    """The open files of one mount. One that is missing was opened by the process before; it is opened once more.

    Safe to use from several threads. `flags` are added to those of open(2) when a file is opened again.
    """

    __slots__ = ("_flags", "_keeper", "_ledger", "_modes", "_nodes", "_overlay")

    def __init__(
        self, overlay: Overlay, nodes: NodeTable, modes: IoModes, ledger: Ledger, keeper: Keeper, flags: int
    ) -> None:
        super().__init__()
        self._overlay = overlay
        self._nodes = nodes
        self._modes = modes
        self._ledger = ledger
        self._keeper = keeper
        self._flags = flags

    def close(self) -> None:
        """Close the files that the kernel did not release (after a forced unmount)."""
        while self:
            _, opened = self.popitem()
            self._overlay.files.release(opened.node, opened.handle)

    # --- opened and released -------------------------------------------------------------------------

    def note(self, request: Request, node: FileNode, handle: Handle, flags: int, backing: int | None) -> int:
        """Note a file that was opened for a request with these flags of open(2), and return its number.

        `backing` is the id of the real file if it passes, see `io_modes`.
        """
        noted = NotedFile(
            0, node.front_id, flags, backing, request.unique, request.uid, request.gid, request.pid, handle.in_upper
        )
        number = handle.front_number = self._ledger.open(noted)
        if node.gone:
            self._keeper.keep_file(number, handle.opened.fd)
        self[number] = OpenFile(node, handle)
        return number

    def release(self, number: int) -> None:
        """Close a file, because nobody has it open any more. Raises KeyError if the kernel does not have it open."""
        file = self._ledger.file(number)
        # First: a record that stays would be for a real file that the kernel no longer has.
        self._ledger.close(number)
        self._modes.release(file.nodeid, passed=file.backing is not None)
        opened = self.pop(number, None)
        if opened is not None:  # If not, it could not be opened again, see `resume`.
            self._overlay.files.release(opened.node, opened.handle)
        self._keeper.release_file(number)

    def release_opens_of(self, request: Request) -> None:
        """Release what the process before opened to answer this request, because that answer was never sent."""
        for file in self._ledger.files():
            if file.unique | RESENT == request.unique:
                self.release(file.number)

    # --- opened by the process before ----------------------------------------------------------------

    def resume(self) -> None:
        """Open again what the process before had open."""
        noted = self._ledger.files()
        self._modes.resume((file.nodeid, file.backing) for file in noted)
        # Those without a name first: the others are found by the names of their nodes, and a node may have both.
        for file in sorted(noted, key=lambda file: file.number not in self._keeper.files):
            try:
                self._open_again(file)
            except (OSError, KeyError) as error:
                # It is tried once more when somebody uses it: it may just have been renamed.
                _log.info("cannot open a file again that the daemon before had open: %s", error)
        # The process before was killed when it had released these.
        for number, fd in self._keeper.files.items():
            os.close(fd)
            self._keeper.release_file(number)

    def __missing__(self, number: int) -> OpenFile:
        """Open a file again that could not be opened when this process began. Raises OSError, ESTALE."""
        try:
            return self._open_again(self._ledger.file(number))
        except KeyError:
            raise stale(b"") from None

    def _open_again(self, file: NotedFile) -> OpenFile:
        node, handle = self._opened_again(file)
        handle.front_number = file.number
        if file.backing is not None and handle.writable and not handle.append_only:
            maps = file.flags & os.O_ACCMODE == os.O_RDWR
            self._overlay.files.let_pass(node, handle, Caller(file.uid, file.gid, file.pid, 0, "write"), maps=maps)
        opened = self[file.number] = OpenFile(node, handle)
        return opened

    def _opened_again(self, file: NotedFile) -> tuple[FileNode, Handle]:
        kept = self._keeper.files.pop(file.number, None)
        if kept is None:
            node = self._nodes.node(file.nodeid)
            caller = Caller(file.uid, file.gid, file.pid, 0, "open")
            handle = self._overlay.open(node, file.flags & ~os.O_TRUNC | self._flags, caller)
            assert isinstance(node, FileNode)
            return node, handle
        opened = Descriptor(kept)
        try:
            node = self._nodes.node(file.nodeid)
        except OSError:  # It has no name.
            ino = self._ledger.node(file.nodeid).ino
            node = self._overlay.files.nameless(opened, ino, in_upper=file.in_upper)
            self._nodes.adopt(file.nodeid, node)
        assert isinstance(node, FileNode)
        writable = file.flags & os.O_ACCMODE != os.O_RDONLY
        return node, self._overlay.files.adopt(node, opened, writable=writable)

    # --- for the process after -----------------------------------------------------------------------

    def keep(self, node: Node) -> None:
        """Hand the open files of a node to the supervisor, because no process can open them again.

        The node is about to lose its name, or has lost it, and its data is elsewhere now.
        """
        if isinstance(node, FileNode):
            for handle in node.handles:
                if handle.front_number:
                    self._ledger.note_layer(handle.front_number, in_upper=handle.in_upper)
                    self._keeper.keep_file(handle.front_number, handle.opened.fd)

    def keep_if_closed(self, node: Node, mode: int) -> None:
        """Do the same for a file with this mode, now or soon, if an ordinary user cannot open it again."""
        if mode & _OPEN_TO_OWNER != _OPEN_TO_OWNER and os.geteuid() != 0:
            self.keep(node)
