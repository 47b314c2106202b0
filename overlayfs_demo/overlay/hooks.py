"""Callbacks that a front gives to the engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from overlayfs_demo.overlay.node import Node


@dataclass(slots=True)
class Hooks:
    """Callbacks of a front, called in the thread of the caller concerned.

    `before_wait` is called before a verb copies data or waits for another caller's copy: a front that serves
    many callers with few threads can let another thread run. If it raises, so does the verb, which has made only
    complete copy-ups by then and can be called again. `changed` is called with a node whose attributes changed in a
    way that the verb's result does not show, before that verb returns: after a copy-up (links, blocks, ctime), and
    when a write cleared set-id bits.
    """

    before_wait: Callable[[], None] = lambda: None
    changed: Callable[[Node], None] = lambda _node: None
