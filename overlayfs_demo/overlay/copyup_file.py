"""One copy-up of a file: plan, make, publish, as the kernel does it (fs/overlayfs/copy_up.c, ovl_copy_up_ctx).

The copy is completed in the work directory (data, then owner, attributes, mode, times) and appears in the upper by one
rename. Whatever can fail comes before that.
"""

from __future__ import annotations

import os
import stat

from overlayfs_demo.events import Action
from overlayfs_demo.linux import proc
from overlayfs_demo.named_tuple import NamedTuple
from overlayfs_demo.overlay.budget import Budget
from overlayfs_demo.overlay.copy_data import copy_data
from overlayfs_demo.overlay.copy_in_progress import CopyInProgress
from overlayfs_demo.overlay.copyup_attributes import dress
from overlayfs_demo.overlay.copyup_directory import Directories
from overlayfs_demo.overlay.copyup_plan import Plan, Request, Settings
from overlayfs_demo.overlay.interruption import interrupted
from overlayfs_demo.overlay.layer import Descriptor, key_of, stale
from overlayfs_demo.overlay.node import FileNode
from overlayfs_demo.overlay.pinned import Pinned
from overlayfs_demo.overlay.tree import Tree
from overlayfs_demo.overlay.types import Caller
from overlayfs_demo.overlay.upper import Upper


class Copied(NamedTuple):
    """What one copy-up made: `copy` is the open copy of a regular file, None for any other kind.

    `cut` is the same file opened as the request's cut says; the caller owns it.
    """

    copy: Pinned | None
    cut: int | None

    def close(self) -> None:
        """Close what the caller owns."""
        if self.cut is not None:
            os.close(self.cut)

    def unless_left(self, progress: CopyInProgress) -> Copied:
        """Return this. Raises EINTR if the caller has left, so that the copy was only completed for others."""
        if progress.caller_has_left:
            self.close()
            raise interrupted()
        return self


class FileCopy:
    """The copy-up of one lower file (anything but a directory) for one caller. Only one runs for a node at a time."""

    __slots__ = ("_caller", "_directories", "_node", "_progress", "_request", "_settings", "_tree", "_upper")

    def __init__(
        self,
        node: FileNode,
        request: Request,
        caller: Caller,
        tree: Tree,
        directories: Directories,
        settings: Settings,
        progress: CopyInProgress,
    ) -> None:
        self._node = node
        self._request = request
        self._caller = caller
        self._tree = tree
        self._upper = tree.writable()
        self._directories = directories
        self._settings = settings
        self._progress = progress

    def run(self) -> Copied:
        """Copy the file up. Call without the tree's lock."""
        plan = Plan.of_file(self._node, self._request, self._tree, self._settings)
        if self._upper.takes_long(plan.size):
            # Before the first event: it may raise, and the verb is called again later.
            self._settings.hooks.before_copy()
        self._settings.limits.check(self._upper, self._node, plan.label, plan.counted, self._caller)
        with self._upper.staged() as temporary:
            with self._progress:
                copied = self._make(plan, temporary)
            try:
                self._progress.check()
                with self._tree.lock:
                    self._publish(plan, temporary, copied.copy)
            except BaseException:
                copied.close()
                raise
        return copied

    # --- make --------------------------------------------------------------------------------------

    def _make(self, plan: Plan, temporary: bytes) -> Copied:
        """Build the whole copy in the work directory."""
        copy = self._make_bare(plan, temporary)
        place = copy.place if copy else proc.path_of(self._upper.work_fd, temporary)
        cut = self._request.cut
        if cut is None:
            dress(place, plan.source, plan.status, plan.private, self._tree.xattrs)
            return Copied(copy, None)
        # Opened before `dress`, which may set a mode that does not allow it.
        fd = cut.open(temporary, self._upper.work_fd)
        try:
            keep_times = cut.keeps_times(plan.status)
            dress(place, plan.source, plan.status, plan.private, self._tree.xattrs, keep_times=keep_times)
            cut.apply(fd)
        except BaseException:
            os.close(fd)
            raise
        return Copied(copy, fd)

    def _make_bare(self, plan: Plan, temporary: bytes) -> Pinned | None:
        """Create the copy with its data, but without owner, attributes, mode and times. Return a regular file open."""
        kind, work_fd = self._node.kind, self._upper.work_fd
        if kind == stat.S_IFREG:
            return self._make_regular(plan, temporary)
        if kind == stat.S_IFLNK:
            os.symlink(plan.source.readlink(), temporary, dir_fd=work_fd)
        else:
            os.mknod(temporary, kind | 0o600, plan.status.st_rdev, dir_fd=work_fd)
        return None

    def _make_regular(self, plan: Plan, temporary: bytes) -> Pinned:
        target = new_copy(self._upper, temporary)
        if plan.size:
            if isinstance(plan.source.place, int):
                copy_data(plan.source.place, target.fd, plan.size, self._progress.check)
            else:
                copy_node_data(self._node, target.fd, plan.size, self._tree, self._progress)
            # After a power failure there must be no name without its data.
            self._upper.persist(target.fd)
        elif plan.length:
            os.ftruncate(target.fd, plan.length)
        return Pinned.opened(target)

    # --- publish -----------------------------------------------------------------------------------

    def _publish(self, plan: Plan, temporary: bytes, made: Pinned | None) -> None:
        """Let the finished copy appear, and redirect the node and its open handles to it."""
        node = self._node
        status = made.stat() if made else os.stat(temporary, dir_fd=self._upper.work_fd, follow_symlinks=False)
        # The handles of a file whose data stays below go on reading there.
        copy = reopened(self._upper, temporary) if node.handles and not plan.below else None
        try:
            self._appear(plan, temporary)
        except FileExistsError:
            raise stale(node.name) from None  # Created behind the view: the kernel's next lookup will find it.
        node.metacopy, node.data = plan.below is not None, plan.below
        node.key = key_of(status)
        self._tree.share(node, node.key)
        if not (plan.origin and self._tree.claim(node.ino, node.key)):
            node.ino = self._tree.identity(status)
            self._settings.hooks.renumbered(node)
        retarget(node, copy)
        if node.gone:
            self._settings.hooks.losing_name(node)
        self._upper.emit(Action.COPY_UP, node, self._caller, plan.label, plan.counted)
        if node.links is not None and self._request.with_name:
            assert node.parent is not None
            self._directories.name(node, node.parent, node.name, self._caller)

    def _appear(self, plan: Plan, temporary: bytes) -> None:
        """Move the copy to where it belongs: to a descriptor if the file has lost its name, to the index, or to its
        name."""
        node = self._node
        if node.gone:
            node.anchor = _nameless(self._upper, temporary, self._settings.budget)
            node.place = self._upper.root
        elif plan.links is not None and plan.origin:
            assert self._tree.index is not None
            entry = self._tree.index.take(self._upper.work_fd, temporary, plan.origin, plan.links)
            node.place, node.place_name, node.links = entry.place, entry.name, plan.links
        else:
            assert node.parent is not None
            impure = bool(plan.origin or plan.below)
            node.place = self._directories.publish(node, node.parent, temporary, impure, self._caller)
            node.place_name = node.name


def copy_node_data(node: FileNode, target: int, size: int, tree: Tree, progress: CopyInProgress) -> None:
    """Copy the first `size` bytes of a node's data to the open file `target`. Call without the tree's lock."""
    fd = tree.open(node, os.O_RDONLY)
    try:
        copy_data(fd, target, size, progress.check)
    finally:
        os.close(fd)


def retarget(node: FileNode, copy: Descriptor | None) -> None:
    """Redirect the open handles to the copy. Each read gives its offset, so all handles can share one open file."""
    if copy is not None:
        for handle in node.handles:
            handle.retarget(copy)


def new_copy(upper: Upper, name: bytes) -> Descriptor:
    """Create an empty regular file in the work directory, open for reading and writing."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    return Descriptor(os.open(name, flags, 0o600, dir_fd=upper.work_fd))


def reopened(upper: Upper, name: bytes) -> Descriptor:
    """Open a finished copy for the handles that have read the lower file until now."""
    return Descriptor(os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=upper.work_fd))


def _nameless(upper: Upper, temporary: bytes, budget: Budget) -> Descriptor:
    """Keep the copy of a file that has lost its name, by a descriptor only. ENFILE if too many files are open."""
    fd = os.open(temporary, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=upper.work_fd)
    anchor = Descriptor(budget.admitted(fd))
    upper.discard(temporary)
    return anchor
