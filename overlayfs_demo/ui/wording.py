"""Sentences for events in a view, and for what its layers say about a path."""

from __future__ import annotations

import stat
from collections.abc import Mapping

from overlayfs_demo.errors import printable
from overlayfs_demo.events import Action, Event
from overlayfs_demo.linux import proc
from overlayfs_demo.overlay.layer_statements import Statement
from overlayfs_demo.overlay.merge import Says
from overlayfs_demo.ui.text import cut_middle, human_size

# Why a file was copied up or hidden, by the call that did it. A directory may be copied up for what is in it.
_COPY_CAUSES = {
    "open": "opened {} for writing",
    "truncate": "cut {}",
    "chmod": "changed the mode of {}",
    "chown": "changed the owner of {}",
    "utimensat": "set the times of {}",
    "setxattr": "set an attribute of {}",
    "removexattr": "removed an attribute of {}",
    "link": "gave {} another name",
    "rename": "renamed {}",
    "unlink": "removed a name of {}",
}
_WHITEOUT_CAUSES = {"unlink": "removed {}", "rmdir": "removed directory {}", "rename": "renamed {} away"}
# The call that an action is named by where that is not its own word. Another one is said beside the action.
_OWN_CALLS = {Action.UTIMENS: "utimensat"}


def who(pid: int, name: str = "") -> str:
    """The process as `name[pid]`; `kernel` for pid 0, which stands for no process. Without `name` it is looked up."""
    if pid == 0:
        return "kernel"
    # A process names itself, so its name is as little to be trusted as a file's. One that has gone, or is in another
    # PID namespace, has none.
    return f"{printable(name or proc.command_name(pid)) or 'process'}[{pid}]"


def sentence(event: Event, name: str = "", longest: int | None = None) -> str:
    """One event as one sentence: who (called `name`, if known) did what, what that meant, from which layer, how much.

    Paths longer than `longest` characters are cut.
    """
    path, detail = printable(event.path), printable(event.detail)
    if longest is not None:
        path, detail = cut_middle(path, longest), cut_middle(detail, longest)
    return f"{who(event.pid, name)} {_what(event, path, detail)}"


def _cause(causes: Mapping[str, str], event: Event, path: str) -> str:
    return causes[event.call].format(path) if event.call in causes else f"changed {path}{_aside(event)}"


def _aside(event: Event) -> str:
    usual = _OWN_CALLS.get(event.action, event.action.value)
    return f" ({printable(event.call)})" if event.call not in ("", usual) else ""


def _copied_up(event: Event, path: str, layer: str) -> str:
    if event.detail == "directory":
        return f"needed directory {path} in the upper{_aside(event)}: copied it up from {layer}, without what is in it"
    return f"{_cause(_COPY_CAUSES, event, path)}: copied {human_size(event.size)} up from {layer}"


def _what(event: Event, path: str, detail: str) -> str:
    layer = printable(event.layer)
    if event.action is Action.COPY_UP:
        return _copied_up(event, path, layer)
    if event.action is Action.WHITEOUT:
        return f"{_cause(_WHITEOUT_CAUSES, event, path)}: left a whiteout, hiding the one in {layer}"
    size = human_size(event.size)
    if event.action is Action.WARN:
        return f"{_cause(_COPY_CAUSES, event, path)}: copying {size} up from {layer} is over {detail}"
    if event.action is Action.REFUSE:
        return f"may not copy {path} up from {layer}{_aside(event)}: {size} is over {detail}"
    return _changed(event.action, path, detail, size) + _aside(event)


def _changed(action: Action, path: str, detail: str, size: str) -> str:
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
        Action.OPAQUE: f"marked {path} opaque: nothing below shows through",
        Action.REDIRECT: f"noted in {path} that its lower part is called {detail}",
        Action.WRITE: f"wrote {size} to {path} in the upper",
        Action.FALLOCATE: f"changed the allocation of {size} of {path} in the upper",
        Action.TRUNCATE: f"cut {path} to {size} in the upper",
        Action.CHMOD: f"set the mode of {path} to {detail} in the upper",
        Action.CHOWN: f"set the owner of {path} to {detail} in the upper",
        Action.UTIMENS: f"set the times of {path} in the upper",
        Action.SETXATTR: f"set {detail} of {path} in the upper",
        Action.REMOVEXATTR: f"removed {detail} of {path} in the upper",
    }
    return phrases[action]


# --- what a layer says about a path ----------------------------------------------------------------


def said(one: Statement, path: bytes) -> str:
    """What a layer says about `path`."""
    if one.says is Says.FILE and one.mode is not None:
        if stat.S_ISLNK(one.mode):
            return f"a symbolic link to {printable(one.target or b'')}"
        return f"a file, {human_size(one.size or 0)}" if stat.S_ISREG(one.mode) else "a device, fifo or socket"
    elsewhere = one.deleted_at not in (b"", path)
    return f"{one.says.value}: {printable(one.deleted_at)}" if elsewhere else one.says.value


def outcome(one: Statement, path: bytes) -> str:
    """What becomes of what a layer says about `path`: is it seen, or what hides it? "" if it says nothing."""
    if one.wins:
        return "is seen"
    if not one.hidden_by:
        return ""
    at = "" if one.hidden_at == path else f", at {printable(one.hidden_at)}"
    return f"hidden by {printable(one.hidden_by)}{at}"
