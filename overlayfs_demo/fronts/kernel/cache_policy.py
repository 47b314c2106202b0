"""For how long may the kernel trust what it is told?

Where changes behind the view are noticed (`overlay.behind`), for a day: `notices` makes it forget what is
no longer so. Elsewhere for a second. Whoever mounts with a timeout gets exactly that, and no notices. What the
time machine shows is not trusted at all, for it follows the upper. What the kernel caches without a time limit,
the names in a directory and the data of a file, goes by the same rule.
"""

from __future__ import annotations

from overlayfs_demo.fronts.kernel import wire
from overlayfs_demo.overlay.engine import Overlay
from overlayfs_demo.overlay.node import DirNode, Node

_DAY = 86400.0
_MOMENT = 1.0
# Whoever mounts with so long a timeout says that the layers stay as they are.
_AT_REST = 3600.0


class Trust:
    """Answers for one mount. `shortest` is in seconds. Safe to use from several threads."""

    def __init__(self, overlay: Overlay, timeout: float | None, *, notes_all_reading: bool = False) -> None:
        """`timeout` in seconds; None is as long as changes are noticed. With `notes_all_reading`, whoever reads a
        directory must ask us."""
        self._watch = overlay.behind.watch
        self._is_past = overlay.is_past
        self._at_rest = timeout is not None and timeout >= _AT_REST
        self._fixed = None if timeout is None else wire.Valid(timeout)
        self._day, self._moment, self._never = wire.Valid(_DAY), wire.Valid(_MOMENT), wire.Valid(0.0)
        # Names in a directory change its times, which is noticed only once somebody looked into it.
        self._name_only = wire.Valid(_DAY, _MOMENT)
        self.shortest = _MOMENT if timeout is None else timeout
        # May the kernel open directories without asking, and keep what they list until it is told otherwise?
        # (It can be told soon, but not at once, and the upper's past changes with every change of the view.)
        # Nor if each reading of a directory is to be noted.
        is_told = overlay.behind.started or self._at_rest
        self.keeps_listings = is_told and not overlay.has_past and not notes_all_reading

    def inside(self, directory: DirNode) -> wire.Valid:
        """For what is said of names in the directory. Call before the engine is asked about them."""
        if self._is_past(directory):
            return self._never
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
        if self._is_past(node):
            return self._never
        if self._fixed is not None:
            return self._fixed
        return self._day if self.keeps(node) else self._moment

    def keeps(self, node: Node) -> bool:
        """May the kernel keep its data, or the names in it, from one open to the next?"""
        if self._is_past(node):
            return False
        if self._fixed is not None:
            return self._at_rest
        directory = node if isinstance(node, DirNode) else node.parent
        return directory is not None and bool(directory.watched)
