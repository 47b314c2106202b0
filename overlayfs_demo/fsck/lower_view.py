"""The lowers of an upper as one tree: what the upper's marks refer to."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import ExitStack

from overlayfs_demo.linux import syscalls
from overlayfs_demo.overlay.factory import open_overlay
from overlayfs_demo.overlay.layer import DescriptorCache, Layer
from overlayfs_demo.overlay.lower_fingerprint import last_stack
from overlayfs_demo.overlay.node import DirNode, Node
from overlayfs_demo.overlay.origin import Origins
from overlayfs_demo.overlay.private_mount import Root
from overlayfs_demo.overlay.stack import Stack
from overlayfs_demo.overlay.whiteout import TRUSTED, USER, PrivateXattrs

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_OPEN_DIRECTORIES = 64


class LowerView:
    """The merged lowers of a stack, and its data-only layers. The caller closes it.

    `view` is the merged tree, `layers` are the lowers, topmost first, and `origins` finds their files by origin.
    Methods raise OSError if a layer cannot be read: what lies below is then unknown, and nothing may be concluded.
    """

    def __init__(self, stack: Stack) -> None:
        with ExitStack() as resources:
            self.view = open_overlay(stack._replace(upper=None, work=None, volatile=False, time_machine=False))
            resources.callback(self.view.close)
            self.layers = [open_layer(path, depth, stack, resources) for depth, path in enumerate(stack.lowers, 1)]
            self.origins = Origins(self.layers)
            self._data = [open_layer(path, 0, stack, resources) for path in stack.data_only]
            self._resources = resources.pop_all()

    def close(self) -> None:
        """Close the layers."""
        self._resources.close()

    @property
    def root(self) -> DirNode:
        """The root of the merged lowers."""
        return self.view.root

    def child(self, directory: DirNode | None, name: bytes) -> Node | None:
        """Return what a merged directory has under a name; None if nothing, or if there is no such directory."""
        if directory is None:
            return None
        try:
            return self.view.lookup(directory, name)[0]
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENAMETOOLONG):
                raise
            return None

    def at(self, path: bytes) -> Node | None:
        """Return what is at an absolute path; None if nothing is."""
        node: Node | None = self.root
        for name in filter(None, path.split(b"/")):
            node = self.child(node if isinstance(node, DirNode) else None, name)
        return node

    def has_data(self, path: bytes) -> bool:
        """Return whether a data-only layer has a regular file at an absolute path."""
        for layer in self._data:
            try:
                fd = syscalls.open_beneath(layer.root_fd, path.lstrip(b"/"), os.O_PATH | os.O_NOFOLLOW)
            except OSError:
                continue
            try:
                if stat.S_ISREG(os.fstat(fd).st_mode):
                    return True
            finally:
                os.close(fd)
        return False

    def knows_origins(self) -> bool:
        """Return whether the file of an origin can be found here at all.

        It takes a filesystem with file handles, and CAP_DAC_READ_SEARCH.
        """
        layer = self.layers[0]
        own = self.origins.encode(layer, layer.root_fd, b"")
        return own is not None and self.origins.decode(own) is not None

    def other_stack(self, upper: Layer) -> str:
        """Return the names of the lowers over which the upper was last mounted if they are not these, else ""."""
        return last_stack(upper, self.layers, upper.xattrs)


def xattrs_of(stack: Stack) -> PrivateXattrs:
    """Return the names of a stack's marks."""
    return USER if stack.user_xattrs else TRUSTED


def open_layer(path: bytes, depth: int, stack: Stack, resources: ExitStack) -> Layer:
    """Open one layer of a stack, which `resources` closes; depth 0 is the upper. Raises OSError."""
    cache = DescriptorCache(_OPEN_DIRECTORIES)
    root = Root(os.open(path, _DIRECTORY), True)
    resources.callback(os.close, root.fd)
    resources.callback(cache.close)
    return Layer(path, root, depth, "", xattrs_of(stack), cache, image_dialect=False, last=False)
