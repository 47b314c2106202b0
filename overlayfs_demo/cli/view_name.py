"""The word that names a view: a path in it, the name of a container, or C:PATH for a path in a container."""

from __future__ import annotations

from pathlib import Path


def view_path(word: str, root: Path | None = None) -> str:
    """Return the path that a word for a view means. `root` is the store (None: the default one); it is not made.

    A word without a slash means the container that is called so, wherever it is mounted. If anything here has the
    same name, that is wrong usage: `./NAME` means what is here, and `NAME:/` the container. Any other word is a path,
    and stays as it is. Raises UsageError, and MountError if the container does not exist or is not mounted.
    """
    if "/" in word.partition(":")[0] or word in ("", ".", ".."):
        return word
    # Imported only here, because a word that can only be a path needs no store.
    from overlayfs_demo.cli.container_word import path_meant

    return path_meant(word, root)
