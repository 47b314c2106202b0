"""A word that may name a container, or a path in one: C or C:PATH. It may also be a path, or an image's NAME:TAG."""

from __future__ import annotations

import os
import re
from pathlib import Path

from overlayfs_demo.errors import MountError, UsageError, near
from overlayfs_demo.mounts import registry
from overlayfs_demo.store import container as containers_of
from overlayfs_demo.store.container import NAME, Container, find_container
from overlayfs_demo.store.in_root import path_outside
from overlayfs_demo.store.root import default_root, read_version
from overlayfs_demo.store.store import Store

# As in `docker cp`: the first colon ends the container's name, and a word that begins with / or . is a path.
_IN_CONTAINER = re.compile(rf"({NAME.pattern}):(.*)", re.DOTALL)


def path_meant(word: str, root: Path | None = None) -> str:
    """Return the path in a view that a word means, see `view_name.view_path`. Raises UsageError, MountError."""
    store = _store(root or default_root())
    if store is None:
        return word
    names = containers_of.names(store)
    inside = _IN_CONTAINER.fullmatch(word)
    if inside is not None and (inside[1] in names or not os.path.lexists(word)):
        mountpoint = _mountpoint(find_container(store, inside[1]))
        return os.fsdecode(path_outside(os.fsencode(mountpoint), os.fsencode(inside[2])))
    if "/" in word:
        return word
    if word in names:
        if os.path.lexists(word):
            raise UsageError(
                f"'{word}' is a container, and also a file or directory here", f"write {word}:/ or ./{word}"
            )
        return _mountpoint(find_container(store, word))
    meant = near(word, names)
    if meant and not os.path.lexists(word):
        raise MountError(f"no view or container '{word}'", f"did you mean '{meant[0]}'?")
    return word


def is_tagged(word: str, root: Path | None = None) -> bool:
    """Return whether the word can only be an image's NAME:TAG, because no container has that name."""
    inside = _IN_CONTAINER.fullmatch(word)
    if inside is None or inside[2].startswith("/"):
        return False
    store = _store(root or default_root())
    return store is None or inside[1] not in containers_of.names(store)


def _store(root: Path) -> Store | None:
    """Return the store if there is one that this user may open: a command on views must not make one."""
    if not os.access(root, os.R_OK | os.X_OK) or root.stat().st_uid != os.geteuid() or read_version(root) is None:
        return None
    return Store(root)


def _mountpoint(container: Container) -> str:
    # Imported here, because a path that is not a container's needs none of this.
    from overlayfs_demo.store.container_state import record_of

    record = record_of(container)
    if record is not None:
        return record.mountpoint
    if str(container.mountpoint) in registry.mounted():  # Its daemon was killed, and `umount` removes the mount.
        return str(container.mountpoint)
    raise MountError(f"container '{container.name}' is not mounted", f"'start {container.name}' mounts it")
