"""What `serve` and `browse` show: a view, if the word is a path or names a container, or else a stored image."""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass

from overlayfs_demo.cli.container_word import is_tagged
from overlayfs_demo.cli.store_options import store_of
from overlayfs_demo.cli.view_name import view_path
from overlayfs_demo.errors import ImageError, MountError, printable
from overlayfs_demo.mounts import registry
from overlayfs_demo.mounts.registry import MountRecord
from overlayfs_demo.store.stored import StoredImage


@dataclass(frozen=True, slots=True)
class MountedView:
    """A view, and the socket of its daemon."""

    record: MountRecord
    socket: str


def view_or_image(arguments: argparse.Namespace, verb: str) -> MountedView | StoredImage:
    """Return what the argument `what` names; `verb` says in messages what is to be done. Raises OverlayError."""
    try:
        word, root = arguments.what, arguments.store
        view = own_view(word if is_tagged(word, root) else view_path(word, root), verb)
    except MountError:
        # An image may have the same name as a directory here.
        if not _is_image(arguments):
            raise
        view = None
    return _image(arguments) if view is None else view


def own_view(path: str, verb: str) -> MountedView | None:
    """Return the view that a path lies in; None if there is no such path. Raises MountError.

    Only our own user's views are shown: files that another's record names would be read with more rights than theirs.
    """
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    except OSError:
        pass  # Not even root may look into another user's view.
    mountpoint, _, socket, owner = registry.place_in_view(os.fsencode(path), follow=True)
    if owner != os.geteuid():
        raise MountError(
            f"{printable(mountpoint)} was mounted by user {owner}, and only that user may {verb} its layers",
            "run this as that user, for example with runuser(1)",
        )
    record = registry.find_record(mountpoint)
    if record is None:
        raise MountError(f"{printable(mountpoint)}: its daemon has just exited", "mount it again")
    return MountedView(record, socket)


def _is_image(arguments: argparse.Namespace) -> bool:
    try:
        store_of(arguments).find(arguments.what)
    except ImageError:
        return False
    return True


def _image(arguments: argparse.Namespace) -> StoredImage:
    try:
        return store_of(arguments).find(arguments.what)
    except ImageError as error:
        raise ImageError(f"{error.problem}, and no view is mounted there", error.remedy) from None
