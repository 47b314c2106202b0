"""The two sources of answers for `which`: the daemon of a mounted view, and the layers of an image.

Both give the engine's answers. For an image, an engine in this process opens the layers read-only; nothing is mounted.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

from overlayfs_demo.errors import ImageError, printable
from overlayfs_demo.images.view_compare import opened
from overlayfs_demo.linux.failure import failure
from overlayfs_demo.mounts import registry
from overlayfs_demo.mounts.control.client import Connection
from overlayfs_demo.named_tuple import NamedTuple
from overlayfs_demo.overlay.engine import Overlay
from overlayfs_demo.overlay.node import DirNode
from overlayfs_demo.overlay.provenance import Provenance
from overlayfs_demo.overlay.types import Attrs
from overlayfs_demo.store.image_view import image_stack, resolve
from overlayfs_demo.store.store import Store


class Subject(Protocol):
    """A source of answers. Paths are absolute, without `.` and `..`; a symbolic link at the end is not followed."""

    @property
    def mountpoint(self) -> str | None:
        """Where the view is mounted; None for an image."""

    @property
    def image(self) -> str | None:
        """The name that the image was given by; None for a mounted view."""

    def which(self, path: bytes) -> Provenance:
        """What each layer says about a path. Raises OverlayError."""

    def attrs(self, path: bytes) -> Attrs:
        """What stat(2) shows. Raises OSError."""

    def readlink(self, path: bytes) -> bytes:
        """A symbolic link's target. Raises OSError."""

    def names(self, path: bytes) -> list[bytes]:
        """The names in a directory, in any order. Raises OSError."""


class Question(NamedTuple):
    """A path, as it was typed and as it is in the view, and who is asked about it."""

    subject: Subject
    path: bytes
    given: str


class _View:
    """A mounted view. Its daemon is asked which layers win; the rest is read through the mount."""

    image = None

    def __init__(self, mountpoint: str, connection: Connection) -> None:
        self.mountpoint = mountpoint
        self.which = connection.which

    def attrs(self, path: bytes) -> Attrs:
        status = os.lstat(self._real(path))
        return Attrs.of(status, status.st_ino, status.st_nlink)

    def readlink(self, path: bytes) -> bytes:
        return os.readlink(self._real(path))

    def names(self, path: bytes) -> list[bytes]:
        return os.listdir(self._real(path))

    def _real(self, path: bytes) -> bytes:
        return os.path.join(os.fsencode(self.mountpoint), path[1:])


class _Image:
    """An image."""

    mountpoint = None

    def __init__(self, image: str, overlay: Overlay) -> None:
        self.image = image
        self._overlay = overlay

    def which(self, path: bytes) -> Provenance:
        try:
            return self._overlay.which(path)
        except OSError as error:
            raise ImageError(f"{printable(self.image)}: {printable(path)}: {error.strerror}") from error

    def attrs(self, path: bytes) -> Attrs:
        return self._overlay.attrs(self._overlay.walk(path))

    def readlink(self, path: bytes) -> bytes:
        return self._overlay.readlink(self._overlay.walk(path))

    def names(self, path: bytes) -> list[bytes]:
        directory = self._overlay.walk(path)
        if not isinstance(directory, DirNode):
            raise failure(errno.ENOTDIR, path)
        return list(self._overlay.names(directory).names)


def questions_about_views(paths: Iterable[str], titles: Sequence[str] = ()) -> Iterator[Question]:
    """Questions about paths of this process, each in some mounted view. Raises MountError.

    `titles` are those of the layers, see `control.titles`.
    """
    for given in paths:
        place = registry.place_in_view(os.fsencode(given), follow=False)
        with Connection(place.socket, place.mountpoint, place.owner, titles) as connection:
            yield Question(_View(place.mountpoint, connection), os.fsencode(place.path), given)


def questions_about_image(store: Store, name: str, paths: Iterable[str]) -> Iterator[Question]:
    """Questions about paths from an image's root. Raises ImageError, OSError."""
    image = store.find(name)
    with opened(image_stack(store, image)) as overlay:
        for given in paths:
            yield Question(_Image(image.title, overlay), resolve(overlay, os.fsencode(given)), given)
