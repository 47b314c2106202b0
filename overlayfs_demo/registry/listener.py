"""What a pull or a push reports while it runs."""

from __future__ import annotations

from overlayfs_demo.images.progress import SILENT, Progress


class Listener:
    """Receiver of reports on layers. This class ignores them; subclasses show them. Several threads may call it."""

    def begin(self, layer: str, action: str, size: int | None) -> Progress:
        """Report that an action on a layer begins, `size` bytes of work if known; return what gets the bytes done."""
        return SILENT

    def done(self, layer: str, outcome: str) -> None:
        """Report what became of a layer, in docker's words."""


QUIET = Listener()
