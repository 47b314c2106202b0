"""The choice of the kind of overlay for a stack."""

from __future__ import annotations

import os

from overlayfs_demo.events import Events
from overlayfs_demo.overlay import override_stat
from overlayfs_demo.overlay.engine import Overlay
from overlayfs_demo.overlay.idmapped import MappedOverlay
from overlayfs_demo.overlay.override_stat_overlay import RecordedOverlay
from overlayfs_demo.overlay.stack import Stack


def open_overlay(stack: Stack, events: Events | None = None) -> Overlay:
    """Open the overlay of a stack. Raises OSError, with the layer at fault as its `filename`."""
    layers = stack.lowers if stack.upper is None else (*stack.lowers, stack.upper)
    # Root can really change owners. And records would be dangerous for root: any owner of a file may write one.
    if os.geteuid() != 0 and any(override_stat.kept_by(layer) for layer in layers):
        return RecordedOverlay(stack, events)
    return MappedOverlay(stack, events) if stack.ids else Overlay(stack, events)
