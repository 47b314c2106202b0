"""The stack that a word or an option line means: an upper, its lowers, and its work directory."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from overlayfs_demo.errors import MountError, UsageError, printable
from overlayfs_demo.fsck.store_check import is_store
from overlayfs_demo.linux import xattr
from overlayfs_demo.mounts import preflight
from overlayfs_demo.mounts.option_paths import escape_path
from overlayfs_demo.mounts.options import parse
from overlayfs_demo.overlay.stack import Stack
from overlayfs_demo.overlay.whiteout import TRUSTED, USER
from overlayfs_demo.store.container import find_container, is_container
from overlayfs_demo.store.containers import Containers
from overlayfs_demo.store.store import Store

_NAME_LOWERS = "name them: -o lowerdir=LOWER[:LOWER...],workdir=WORK"


def stack_of(word: str | None, lines: Sequence[str], root: Path) -> Stack:
    """Return the stack to check, with absolute paths. `root` is the store in which a container is looked for.

    `word` is a container's name or the path of an upper; `lines` are option lines as of `mount`, which may name the
    upper, too. Without them, the lowers are those in the record that the upper has of its last mount. Raises
    OverlayError, OSError.
    """
    if lines:
        return _of_options(word, lines)
    assert word is not None
    if "/" not in word and is_store(root) and is_container(store := Store.unchecked(root), word):
        return preflight.absolute(Containers(store).stack(find_container(store, word)))
    return _of_record(word)


def _of_options(word: str | None, lines: Sequence[str]) -> Stack:
    if word is not None:
        lines = [*lines, f"upperdir={escape_path(os.fsencode(word))}"]
    stack = parse(lines).stack
    if stack.upper is None:
        raise UsageError("nothing to check: there is no upperdir=", "add it to -o, or name the upper")
    return _present(preflight.absolute(stack))


def _of_record(word: str) -> Stack:
    """Return the stack of an upper from its own record, without a work directory."""
    upper = os.path.abspath(os.fsencode(word))
    if not os.path.isdir(upper):
        raise MountError(f"no upper directory or container '{printable(word)}'", "'overlayfs-demo ps' lists containers")
    for marks in (TRUSTED, USER):
        value = xattr.get(upper, marks.lowers, follow=True)
        if value is not None:
            lowers = _recorded(value)
            return _present(Stack(lowers, upper, None, user_xattrs=marks is USER))
    raise MountError(f"{printable(upper)} does not say which layers are below it", _NAME_LOWERS)


def _recorded(value: bytes) -> tuple[bytes, ...]:
    """Return the lowers in the record, topmost first. Raises MountError if it is damaged, or does not hold them all."""
    try:
        names = str(json.loads(value)["names"])
    except (ValueError, TypeError, KeyError):
        names = ""
    lowers = tuple(os.fsencode(path) for path in names.split(":"))
    if not all(os.path.isdir(path) for path in lowers):
        raise MountError(f"the upper was last mounted over {printable(names) or 'unknown layers'}", _NAME_LOWERS)
    return lowers


def _present(stack: Stack) -> Stack:
    """Return the stack if its directories exist. Raises MountError."""
    for path in (*stack.lowers, *stack.data_only, *filter(None, (stack.upper, stack.work))):
        if not os.path.isdir(path):
            raise MountError(f"{printable(path)} is not a directory", "check the path")
    return stack
