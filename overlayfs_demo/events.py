"""Events: notifications of changes to the upper.

Every change of the upper goes through one primitive, and each primitive emits exactly one
`Event`. Without a listener an event costs one truth test: call `emit` only after `if events.listening`.
"""

from __future__ import annotations

import enum
import os
import threading
from collections.abc import Callable

from overlayfs_demo.named_tuple import NamedTuple


class Action(enum.Enum):
    """The kinds of changes to an upper. The values are the words used in traces and `--json`."""

    CREATE = "create"
    TMPFILE = "tmpfile"
    MKDIR = "mkdir"
    MKNOD = "mknod"
    SYMLINK = "symlink"
    LINK = "link"
    UNLINK = "unlink"
    RMDIR = "rmdir"
    RENAME = "rename"
    EXCHANGE = "exchange"
    WHITEOUT = "whiteout"
    OPAQUE = "opaque"
    REDIRECT = "redirect"
    COPY_UP = "copy-up"
    WRITE = "write"
    WRITE_THROUGH = "write-through"
    FALLOCATE = "fallocate"
    TRUNCATE = "truncate"
    CHMOD = "chmod"
    CHOWN = "chown"
    UTIMENS = "utimens"
    SETXATTR = "setxattr"
    REMOVEXATTR = "removexattr"
    WARN = "warn"
    REFUSE = "refuse"


class Event(NamedTuple):
    """One change of the upper, and who caused it.

    `path` is absolute in the view; for TMPFILE it is the directory in which the unnamed file was requested.
    `pid` is the calling process (0: the kernel itself, or unknown) and `call` the verb it used, e.g. `unlink`:
    one call may cause several events (a copy-up of the parent, then a whiteout). `layer` names the lower layer
    that data came from or that is now hidden ("" if none is involved). `size` is the number of bytes copied or
    written. `detail` is text: the second path of a rename or exchange, an xattr's name, a redirect, the new mode or
    owner, or `directory` for the copy-up of a directory. WRITE_THROUGH reports, once an open file is released, that the
    kernel wrote to it without asking the daemon; nobody knows how many bytes. WARN and REFUSE are not changes: they
    report a copy-up of `size` bytes that exceeds a limit, which is the detail.
    """

    action: Action
    path: bytes
    pid: int
    uid: int
    call: str
    layer: str = ""
    size: int = 0
    detail: str = ""

    @property
    def paths(self) -> tuple[bytes, ...]:
        """The path, and for a rename or exchange also the second one."""
        if self.action in (Action.RENAME, Action.EXCHANGE):
            return self.path, os.fsencode(self.detail)
        return (self.path,)


Listener = Callable[[Event], None]


class Events:
    """Passes events to the attached listeners. Safe to use from several threads."""

    __slots__ = ("_listeners", "_lock", "listening")

    def __init__(self) -> None:
        self._listeners: tuple[Listener, ...] = ()
        self._lock = threading.Lock()
        self.listening = False

    def attach(self, listener: Listener) -> Callable[[], None]:
        """Call `listener` for every event from now on. Return a function that detaches it.

        A listener runs inside the operation that caused the event, so it must be quick and must never
        access the mount.
        """
        with self._lock:
            self._listeners = (*self._listeners, listener)
            self.listening = True

        def detach() -> None:
            with self._lock:
                self._listeners = tuple(attached for attached in self._listeners if attached is not listener)
                self.listening = bool(self._listeners)

        return detach

    def emit(self, event: Event) -> None:
        """Call every listener, in the order in which they were attached."""
        for listener in self._listeners:
            listener(event)
