"""What happened to the upper, to whom is it told?

Every mutation of the upper passes through one primitive, and each primitive emits exactly one
`Event`. With no listener an event costs one truth test: call `emit` only behind `if events.listening`.
"""

from __future__ import annotations

import enum
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass


class Action(enum.Enum):
    """The kinds of change an upper knows. The values are the words used in traces and `--json`."""

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
    FALLOCATE = "fallocate"
    TRUNCATE = "truncate"
    CHMOD = "chmod"
    CHOWN = "chown"
    UTIMENS = "utimens"
    SETXATTR = "setxattr"
    REMOVEXATTR = "removexattr"
    WARN = "warn"
    REFUSE = "refuse"


@dataclass(frozen=True, slots=True)
class Event:
    """One mutation of the upper, and who caused it.

    `path` is absolute in the view; of TMPFILE it is the directory that a file without a name was asked for in.
    `pid` is the calling process (0: the kernel itself, or unknown) and `call` the verb it used, e.g. `unlink`:
    one call may cause several events (a copy-up of the parent, then a whiteout). `layer` names the lower layer
    that data came from or that is now hidden ("" where none is involved). `size` is bytes copied or written.
    `detail` holds the second name of a rename or exchange, an xattr's name, a redirect, or the new mode or owner, as
    text; of a copy-up `directory`, if it was one. WARN and REFUSE are no changes: they tell of a copy-up of `size`
    bytes that is over a limit, which is the detail.
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
        """Its path; of what has changed its place, the other one, too."""
        if self.action in (Action.RENAME, Action.EXCHANGE):
            return self.path, os.fsencode(self.detail)
        return (self.path,)


Listener = Callable[[Event], None]


class Events:
    """The one place listeners attach to. Safe to use from several threads."""

    __slots__ = ("_listeners", "_lock", "listening")

    def __init__(self) -> None:
        self._listeners: tuple[Listener, ...] = ()
        self._lock = threading.Lock()
        self.listening = False

    def attach(self, listener: Listener) -> Callable[[], None]:
        """Call `listener` for every event from now on; the result detaches it again.

        A listener runs inside the operation that caused the event, so it must be quick and must never
        touch the mount.
        """
        with self._lock:
            self._listeners = (*self._listeners, listener)
            self.listening = True

        def detach() -> None:
            with self._lock:
                self._listeners = tuple(one for one in self._listeners if one is not listener)
                self.listening = bool(self._listeners)

        return detach

    def emit(self, event: Event) -> None:
        """Tell every listener, in the order they attached."""
        for listener in self._listeners:
            listener(event)
