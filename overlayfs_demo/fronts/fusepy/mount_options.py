"""The options with which libfuse mounts a view.

This needs neither fusepy nor libfuse to be installed.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from overlayfs_demo.fronts.front import LIBFUSE_FLAGS, SUBTYPE, View, escape_value

# fusepy turns the kernel's bytes into text and back. Names are any bytes, and in this encoding each byte
# is one character, so nothing is lost or refused on the way.
ENCODING = "latin-1"

# The largest piece of a file in one request: what libfuse 2's buffers hold.
_LARGEST = 131072

# Seconds. libfuse 2 cannot make the kernel forget a name, so whoever edits layers mounts with a shorter one.
_DAY = 86400.0


def mount_options(view: View) -> dict[str, Any]:
    """What stands behind `-o` when libfuse mounts. True is a word alone; False leaves it out."""
    root = os.geteuid() == 0
    timeout = _DAY if view.timeout is None else view.timeout
    # The time machine looks into the upper, too, where names come and go without the kernel being told.
    if view.overlay.has_past:
        timeout = 0
    options: dict[str, Any] = {
        # Who asks is checked by the kernel, by owner and mode, before it asks us.
        "default_permissions": view.checked,
        # Show the engine's inode numbers, not libfuse's own count.
        "use_ino": True,
        # O_TRUNC comes with open(), not as a truncate() before it, which would copy up once more.
        "atomic_o_trunc": True,
        "big_writes": True,
        "max_write": _LARGEST,
        "max_read": _LARGEST,
        # Names are only changed through this mount; attributes also through another name of the same file.
        "entry_timeout": timeout,
        "negative_timeout": timeout,
        "attr_timeout": 0,
        # libfuse insists on an empty mount point otherwise; mount(2) does not. fusermount3 knows no such word.
        "nonempty": root,
        "allow_other": view.allow_other,
        "fsname": escape_value(os.fsencode(view.source).decode(ENCODING)),
        "subtype": SUBTYPE,
    }
    for flag in LIBFUSE_FLAGS:
        if view.flags & flag.bit:
            options[flag.word] = True
        # Unless told otherwise, libfuse mounts with nosuid and nodev.
        elif root and flag.opposite:
            options[flag.opposite] = True
    return options


@contextmanager
def default_signals() -> Iterator[None]:
    """Let go of the signals that end a daemon, for libfuse only handles those that nobody else does.

    Python's own handlers would never run: they wait for the main thread, which is inside libfuse.
    """
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = {number: signal.signal(number, signal.SIG_DFL) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
