"""The libraries that only some verbs need, and that an installation may lack: the extras of pyproject.toml."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from overlayfs_demo.errors import OverlayError
from overlayfs_demo.ui.console import PROGRAM


@contextmanager
def needing(extra: str, who: str) -> Iterator[None]:
    """Wrap imports that need an extra. `who` begins the message if it is missing, such as "the page needs".

    Raises OverlayError, which says what to install.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        if package == "overlayfs_demo":
            raise
        raise OverlayError(f"{who} the Python package {package}", f"pip install '{PROGRAM}[{extra}]'") from None
