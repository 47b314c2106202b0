"""How is what happened put into words?"""

from __future__ import annotations

import os

import psutil

from overlayfs_demo.events import Action, Event

_UNITS = ("B", "kB", "MB", "GB", "TB", "PB", "EB")


def human_size(size: float, digits: int = 3) -> str:
    """A number of bytes as docker prints it (go-units, HumanSize): three digits, powers of 1000."""
    for unit in _UNITS:
        if size < 1000 or unit == _UNITS[-1]:
            return f"{size:.{digits}g}{unit}"
        size /= 1000
    raise AssertionError("the last unit takes any size")


def who(pid: int, name: str = "") -> str:
    """The process as `name[pid]`; `kernel` for pid 0, which stands for no process. Without `name` it is looked up."""
    if pid == 0:
        return "kernel"
    if name:
        return f"{printable(os.fsencode(name))}[{pid}]"
    try:
        # A process names itself, so its name is as little to be trusted as a file's.
        return f"{printable(os.fsencode(psutil.Process(pid).name()))}[{pid}]"
    except psutil.Error:
        return f"process[{pid}]"  # Gone already, or in another PID namespace.


def sentence(event: Event, name: str = "") -> str:
    """One event as one sentence: who (called `name`, if known), which call, what happened, which layer, how much."""
    path = printable(event.path)
    return f"{who(event.pid, name)} {event.call or event.action.value}: {_what(event, path)}"


def printable(path: bytes) -> str:
    """A path as one line of text, whatever bytes it holds."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in os.fsdecode(path))


def _copied_up(event: Event, path: str, layer: str) -> str:
    if event.detail == "directory":
        return f"copied directory {path} up from {layer}, without what is in it"
    return f"copied {path} up from {layer}, {human_size(event.size)} of data"


def _what(event: Event, path: str) -> str:
    detail, layer = printable(os.fsencode(event.detail)), printable(os.fsencode(event.layer))
    phrases = {
        Action.CREATE: f"created {path} in the upper",
        Action.TMPFILE: f"made a file without a name for {path} in the upper's filesystem",
        Action.MKDIR: f"made directory {path} in the upper",
        Action.MKNOD: f"made special file {path} in the upper",
        Action.SYMLINK: f"made symbolic link {path} -> {detail} in the upper",
        Action.LINK: f"gave a file in the upper the name {path}",
        Action.UNLINK: f"removed {path}, which only the upper had",
        Action.RMDIR: f"removed directory {path}, which only the upper had",
        Action.RENAME: f"renamed {path} to {detail} in the upper",
        Action.EXCHANGE: f"exchanged {path} and {detail} in the upper",
        Action.WHITEOUT: f"left a whiteout for {path} in the upper, hiding the one in {layer}",
        Action.OPAQUE: f"marked {path} opaque: nothing below shows through",
        Action.REDIRECT: f"noted in {path} that its lower part is called {detail}",
        Action.COPY_UP: _copied_up(event, path, layer),
        Action.WRITE: f"wrote {human_size(event.size)} to {path} in the upper",
        Action.FALLOCATE: f"changed the allocation of {human_size(event.size)} of {path} in the upper",
        Action.TRUNCATE: f"cut {path} to {human_size(event.size)} in the upper",
        Action.CHMOD: f"set the mode of {path} to {detail} in the upper",
        Action.CHOWN: f"set the owner of {path} to {detail} in the upper",
        Action.UTIMENS: f"set the times of {path} in the upper",
        Action.SETXATTR: f"set {detail} of {path} in the upper",
        Action.REMOVEXATTR: f"removed {detail} of {path} in the upper",
        Action.WARN: f"copies {path} up from {layer}, {human_size(event.size)} of data, which is over {detail}",
        Action.REFUSE: f"may not copy {path} up from {layer}: {human_size(event.size)} of data is over {detail}",
    }
    return phrases[event.action]
