"""Callbacks that a front gives to the engine."""

from __future__ import annotations

from collections.abc import Callable

from overlayfs_demo.overlay.copy_in_progress import CopyInProgress
from overlayfs_demo.overlay.node import Node


class Hooks:
    """Callbacks of a front, called in the thread of the caller concerned.

    `before_copy` is called before a verb copies data, if that may take long: a front that serves many callers with few
    threads can let another thread run. `before_wait` is called before a verb waits for the end of another caller's
    copy: a front can call the verb again then, instead of letting it wait. If one of them raises, so does the verb,
    which has made only complete copy-ups by then and can be called again. `changed` is called with a node whose
    attributes changed in a way that the verb's result does not show, before that verb returns: after a copy-up (links,
    blocks, ctime), and when a write cleared set-id bits.

    The others are called with the tree's lock held. `moved` is called with a node that has just got another name, and
    `losing_name` with one whose name is about to be removed, `lost_name` when it is. What the front wants to do with it
    later, it does by descriptors; so `losing_name` is called again if its open files change. `renumbered` is called
    with a node that a copy-up has just given another inode number.
    """

    __slots__ = ("before_copy", "before_wait", "changed", "losing_name", "lost_name", "moved", "renumbered")

    def __init__(self) -> None:
        """Do nothing until a front sets its own."""
        self.before_copy: Callable[[], None] = lambda: None
        self.before_wait: Callable[[CopyInProgress], None] = lambda _copy: None
        self.changed: Callable[[Node], None] = lambda _node: None
        self.moved: Callable[[Node], None] = lambda _node: None
        self.losing_name: Callable[[Node], None] = lambda _node: None
        self.lost_name: Callable[[Node], None] = lambda _node: None
        self.renumbered: Callable[[Node], None] = lambda _node: None
