"""For how long may the kernel trust what it is told?

Where changes behind the view are noticed (`overlay.behind`), for a day: `notices` makes it forget what is
no longer so. Elsewhere for a second. Whoever mounts with a timeout gets exactly that, and no notices.
"""

from __future__ import annotations

from overlayfs_demo.fronts import wire
from overlayfs_demo.overlay.engine import Overlay
from overlayfs_demo.overlay.node import DirNode, Node

_DAY = 86400.0
_MOMENT = 1.0


class Trust:
    """Answers for one mount. `shortest` is in seconds. Safe to use from several threads."""

    def __init__(self, overlay: Overlay, timeout: float | None) -> None:
        """`timeout` in seconds; None is as long as changes are noticed."""
        self._watch = overlay.behind.watch
        self._fixed = None if timeout is None else wire.Valid(timeout)
        self._day, self._moment = wire.Valid(_DAY), wire.Valid(_MOMENT)
        # Names in a directory change its times, which is noticed only once somebody looked into it.
        self._name_only = wire.Valid(_DAY, _MOMENT)
        self.shortest = _MOMENT if timeout is None else timeout

    def inside(self, directory: DirNode) -> wire.Valid:
        """For what is said of names in the directory. Call before the engine is asked about them."""
        if self._fixed is not None:
            return self._fixed
        return self._day if directory.watched or self._watch(directory) else self._moment

    def entry(self, inside: wire.Valid, node: Node) -> wire.Valid:
        """For a name together with the attributes of what it is; `inside` is what holds in its directory."""
        if inside is self._day and isinstance(node, DirNode) and not node.watched:
            return self._name_only
        return inside

    def attributes(self, node: Node) -> wire.Valid:
        """For the attributes of a node."""
        if self._fixed is not None:
            return self._fixed
        return self._day if self.is_followed(node) else self._moment

    def is_followed(self, node: Node) -> bool:
        """Are changes of its attributes and data noticed?"""
        directory = node if isinstance(node, DirNode) else node.parent
        return self._fixed is None and directory is not None and bool(directory.watched)
