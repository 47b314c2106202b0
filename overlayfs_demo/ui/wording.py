"""Sentences for events in a view, and for what its layers say about a path."""

from __future__ import annotations

import os
import stat

from overlayfs_demo.errors import printable
from overlayfs_demo.events import Action, Event
from overlayfs_demo.linux import proc
from overlayfs_demo.overlay.layer_statements import Statement
from overlayfs_demo.overlay.merge import Says
from overlayfs_demo.ui.text import cut_middle, human_size

# Why a file was copied up, by the call that needed it in the upper.
_COPY_REASONS = {
    "open": "to write to it",
    "truncate": "to truncate it",
    "chmod": "to change its mode",
    "chown": "to change its owner",
    "utimensat": "to set its times",
    "setxattr": "to set an attribute",
    "removexattr": "to remove an attribute",
    "link": "to give it another name",
    "rename": "to rename it",
    "unlink": "to remove one of its names",
}
# What a whiteout was created for, by the call that did it.
_WHITEOUT_NAMES = {"unlink": "{}", "rmdir": "directory {}", "rename": "the old name {}"}
# The call that an action is named after, where it is not the action's own word. Any other call is told beside it.
_OWN_CALLS = {Action.UTIMENS: "utimensat"}


def process_name(pid: int) -> str:
    """Return the name that a process has given itself; "" if it has exited."""
    return proc.command_name(pid)


def who(pid: int, name: str = "") -> str:
    """Return the process as `name[pid]`; `kernel` for pid 0. Without `name`, it is looked up."""
    if pid == 0:
        return "kernel"
    # A process chooses its own name, so it is escaped like a file's. One that has exited, or is in another PID
    # namespace, has none.
    return f"{printable(name or process_name(pid)) or 'process'}[{pid}]"


def sentence(event: Event, name: str = "", longest: int | None = None) -> str:
    """Return one event as one sentence: who did what, from which layer, how much, and why.

    `name` is the process's, if known. Paths longer than `longest` characters are cut.
    """
    path, detail = printable(event.path), printable(_place(event))
    if longest is not None:
        path, detail = cut_middle(path, longest), cut_middle(detail, longest)
    return f"{who(event.pid, name)} {_what(event, path, detail)}"


def _aside(event: Event) -> str:
    usual = _OWN_CALLS.get(event.action, event.action.value)
    return f" ({printable(event.call)})" if event.call not in ("", usual) else ""


def _place(event: Event) -> str:
    """Return the detail; for a redirect, the absolute path that it leads to: a bare name is one beside the path."""
    if event.action is not Action.REDIRECT:
        return event.detail
    return os.path.join(os.path.dirname(os.fsdecode(event.path)), event.detail)


def _copy(event: Event, path: str, layer: str) -> str:
    """Return a file's copy-up: which file, how much, from where and why."""
    reason = f" {_COPY_REASONS[event.call]}" if event.call in _COPY_REASONS else _aside(event)
    return f"{path} ({human_size(event.size)}) from {layer}{reason}"


def _whiteout(event: Event, path: str, layer: str) -> str:
    name = _WHITEOUT_NAMES[event.call].format(path) if event.call in _WHITEOUT_NAMES else f"{path}{_aside(event)}"
    return f"created whiteout for {name}, hiding the one in {layer}"


def _what(event: Event, path: str, detail: str) -> str:
    layer = printable(event.layer)
    if event.action is Action.COPY_UP:
        if event.detail == "directory":
            return f"copied up directory {path} (itself only) from {layer}"
        return f"copied up {_copy(event, path, layer)}"
    if event.action is Action.WHITEOUT:
        return _whiteout(event, path, layer)
    if event.action is Action.WARN:
        return f"exceeded {detail}: copy-up of {_copy(event, path, layer)}"
    if event.action is Action.REFUSE:
        return f"was refused copy-up of {_copy(event, path, layer)}: over {detail}"
    if event.action is Action.LINK and event.call in _COPY_REASONS.keys() - {"link"}:
        # The copy of a file with several names is made in the index, and each name in the upper is a link to it.
        return f"{_changed(event, path, detail)}, because it has another name"
    return _changed(event, path, detail) + _aside(event)


def _changed(event: Event, path: str, detail: str) -> str:
    size = human_size(event.size)
    phrases = {
        Action.CREATE: f"created {path} in the upper",
        Action.TMPFILE: f"created an unnamed file for {path} in the upper",
        Action.MKDIR: f"created directory {path} in the upper",
        Action.MKNOD: f"created special file {path} in the upper",
        Action.SYMLINK: f"created symbolic link {path} -> {detail} in the upper",
        Action.LINK: f"created hard link {path} in the upper",
        Action.UNLINK: f"removed {path} from the upper, no whiteout needed",
        Action.RMDIR: f"removed directory {path} from the upper, no whiteout needed",
        Action.RENAME: f"renamed {path} to {detail} in the upper",
        Action.EXCHANGE: f"exchanged {path} and {detail} in the upper",
        Action.OPAQUE: f"marked {path} opaque: nothing below shows through",
        Action.REDIRECT: f"set a redirect on {path}: its lower files are in {detail}",
        Action.WRITE: f"wrote {size} to {path} in the upper",
        Action.WRITE_THROUGH: f"wrote through to {path} in the upper",
        Action.FALLOCATE: f"changed the allocation of {path} ({size}) in the upper",
        Action.TRUNCATE: f"truncated {path} to {size}" if event.size else f"truncated {path}",
        Action.CHMOD: f"set the mode of {path} to {detail} in the upper",
        Action.CHOWN: f"set the owner of {path} to {detail} in the upper",
        Action.UTIMENS: f"set the times of {path} in the upper",
        Action.SETXATTR: f"set {detail} on {path} in the upper",
        Action.REMOVEXATTR: f"removed {detail} from {path} in the upper",
    }
    return phrases[event.action]


# --- what a layer says about a path ----------------------------------------------------------------


def said(statement: Statement, path: bytes) -> str:
    """Return what a layer says about `path`."""
    if statement.says is Says.FILE and statement.mode is not None:
        if stat.S_ISLNK(statement.mode):
            return f"a symbolic link to {printable(statement.target or b'')}"
        return (
            f"a file, {human_size(statement.size or 0)}" if stat.S_ISREG(statement.mode) else "a device, fifo or socket"
        )
    elsewhere = statement.deleted_at not in (b"", path)
    return f"{statement.says.value}: {printable(statement.deleted_at)}" if elsewhere else statement.says.value


def outcome(statement: Statement, path: bytes) -> str:
    """Return whether the object that a layer has at `path` is visible, or what hides it; "" if it has none."""
    if statement.wins:
        return "visible"
    if not statement.hidden_by:
        return ""
    at = "" if statement.hidden_at == path else f", at {printable(statement.hidden_at)}"
    return f"hidden by {printable(statement.hidden_by)}{at}"
