"""The error of a Go template."""

from __future__ import annotations

from overlayfs_demo.errors import OverlayError


class TemplateError(OverlayError):
    """A template is not valid, or its values lack what it asks for. Docker also exits with 1 then."""

    def __init__(self, problem: str, remedy: str = "") -> None:
        super().__init__(f"template: {problem}", remedy)
