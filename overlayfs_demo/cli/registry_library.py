"""The library that registries need, which an installation may lack."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from overlayfs_demo.errors import OverlayError
from overlayfs_demo.ui.console import PROGRAM


@contextmanager
def library() -> Iterator[None]:
    """Wrap the imports of what needs the extra `registry`. Raises OverlayError if its package is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        if package == "overlayfs_demo":
            raise
        raise OverlayError(
            f"registries need the Python package {package}", f"pip install '{PROGRAM}[registry]'"
        ) from None
