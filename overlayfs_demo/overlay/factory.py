"""Which kind of overlay does a stack want?"""

from __future__ import annotations

import os

from overlayfs_demo.events import Events
from overlayfs_demo.overlay import override_stat
from overlayfs_demo.overlay.engine import Overlay
from overlayfs_demo.overlay.idmapped import MappedOverlay
from overlayfs_demo.overlay.override_stat_overlay import RecordedOverlay
from overlayfs_demo.overlay.stack import Stack


def open_overlay(stack: Stack, events: Events | None = None) -> Overlay:
    """The overlay of a stack; raises OSError, with `filename` the layer at fault."""
    layers = stack.lowers if stack.upper is None else (*stack.lowers, stack.upper)
    # Root gives files away for real. And for root a record would be dangerous: whoever owns a file may write one.
    if os.geteuid() != 0 and any(override_stat.kept_by(layer) for layer in layers):
        return RecordedOverlay(stack, events)
    return MappedOverlay(stack, events) if stack.ids else Overlay(stack, events)
