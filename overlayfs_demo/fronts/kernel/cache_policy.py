"""How long the kernel may trust the answers it gets.

Where changes behind the view are noticed (`overlay.external_changes`), the kernel may trust an answer for a day,
because `invalidation` makes it forget what is no longer true. Elsewhere it may trust an answer for a second. A mount
with a timeout gets exactly that timeout, and no notices. The kernel never trusts what the time machine shows, because
that follows the upper. The same rule decides about what the kernel caches without a time limit: the names in a
directory and the data of a file.
"""

from __future__ import annotations

import stat

from overlayfs_demo.fronts.front import is_at_rest
from overlayfs_demo.fronts.kernel import wire
from overlayfs_demo.overlay.engine import Overlay
from overlayfs_demo.overlay.node import DirNode, FileNode, Node
from overlayfs_demo.overlay.types import Attrs

SET_ID = stat.S_ISUID | stat.S_ISGID

_DAY = 86400.0
_MOMENT = 1.0


class Trust:
    """The cache policy of one mount. Safe to use from several threads.

    `shortest` is the shortest time, in seconds, for which an answer outside the time machine is valid.
    """

    def __init__(self, overlay: Overlay, timeout: float | None, *, notes_all_reading: bool = False) -> None:
        """Set up the policy of one mount.

        `timeout` is in seconds; None means as long as changes are noticed. With `notes_all_reading` every reader
        of a directory must ask us.
        """
        self._watch = overlay.external_changes.watch
        self._is_past = overlay.is_past
        self._at_rest = is_at_rest(timeout)
        self._fixed = None if timeout is None else wire.Valid(timeout)
        self._day, self._moment, self._never = wire.Valid(_DAY), wire.Valid(_MOMENT), wire.Valid(0.0)
        # A new or removed name changes its directory's times, which is noticed only once somebody has looked inside.
        self._name_only = wire.Valid(_DAY, _MOMENT)
        # See `_changes_unseen`.
        times = {self._never: 0.0, self._moment: _MOMENT, self._day: _DAY}
        if self._fixed is not None and timeout is not None:
            times[self._fixed] = timeout
        self._without_attributes = {valid: wire.Valid(seconds, 0.0) for valid, seconds in times.items()}
        self.shortest = _MOMENT if timeout is None else timeout
        # Whether the kernel may open directories without asking, and keep their listings until it is told otherwise.
        # It can be told soon, but not at once, so it may not with a time machine: the upper's past changes with every
        # change of the view. It may not either if each reading of a directory must be noted.
        is_told = overlay.external_changes.started or self._at_rest
        self.keeps_listings = is_told and not overlay.has_past and not notes_all_reading

    def inside(self, directory: DirNode) -> wire.Valid:
        """Return how long answers about names in the directory are valid. Call it before asking the engine for them.

        That way the directory is already watched when the answer is made, and no change in between is missed.
        """
        if self._is_past(directory):
            return self._never
        if self._fixed is not None:
            return self._fixed
        return self._day if directory.watched or self._watch(directory) else self._moment

    def entry(self, inside: wire.Valid, node: Node, attrs: Attrs) -> wire.Valid:
        """Return how long a name and its node's attributes are valid; `inside` is the result for its directory."""
        if isinstance(node, DirNode):
            return self._name_only if inside is self._day and not node.watched else inside
        return self._without_attributes[inside] if _changes_unseen(node, attrs) else inside

    def attributes(self, node: Node, attrs: Attrs) -> wire.Valid:
        """Return how long these attributes of a node are valid."""
        if self._is_past(node) or _changes_unseen(node, attrs):
            return self._never
        if self._fixed is not None:
            return self._fixed
        return self._day if self.keeps(node) else self._moment

    def keeps(self, node: Node) -> bool:
        """Return whether the kernel may keep a node's data, or the names in it, from one open to the next."""
        if self._is_past(node):
            return False
        if self._fixed is not None:
            return self._at_rest
        directory = node if isinstance(node, DirNode) else node.parent
        return directory is not None and bool(directory.watched)


def _changes_unseen(node: Node, attrs: Attrs) -> bool:
    """Whether a caller may change these attributes without the kernel's or our knowledge.

    A write past us may take set-id bits away, and one through a mapping sets the times. What other writes change, the
    kernel knows to be out of date.
    """
    if not isinstance(node, FileNode):
        return False
    return node.mapped_past or (bool(attrs.mode & SET_ID) and node.written_past)
