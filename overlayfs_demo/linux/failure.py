"""The OSError that a failing system call would raise."""

from __future__ import annotations

import functools
import os

# Most failures are a name that does not exist, and there are many of them.
_message = functools.cache(os.strerror)


def failure(code: int, name: str | bytes | None = None) -> OSError:
    """Return the OSError for an errno; Python chooses the subclass, such as FileNotFoundError.

    `name` is the file at fault, which messages name.
    """
    return OSError(code, _message(code), name)
