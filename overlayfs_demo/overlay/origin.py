"""Origins: the record in a copied-up file of the lower file it came from.

The attribute `overlay.origin` holds the lower file's handle, in the kernel's format (fs/overlayfs/overlayfs.h,
struct ovl_fb). It keeps the inode number in the view constant across copy-up and remount.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Sequence

from overlayfs_demo.linux import file_handle, proc, syscalls
from overlayfs_demo.overlay.layer import Layer

_VERSION, _MAGIC, _NATIVE_ENDIAN = 0, 0xFB, 0
_HEAD = struct.Struct("=BBBBB16s")
# The flag in handles of the upper's objects.
_OF_UPPER = 4
NO_UUID = bytes(16)


class Origins:
    """Writes and reads origins for one stack of lowers."""

    __slots__ = ("_layers", "_lowers", "_uuids")

    def __init__(self, lowers: Sequence[Layer]) -> None:
        self._lowers = tuple(lowers)
        uuids = {layer.device: syscalls.filesystem_uuid(layer.root_fd) or NO_UUID for layer in lowers}
        # Filesystems with the same UUID cannot be told apart by it, so their files get no origins.
        self._uuids = {device: uuid for device, uuid in uuids.items() if [*uuids.values()].count(uuid) == 1}
        self._layers: dict[bytes, Layer] = {}
        for layer in lowers:
            if layer.device in self._uuids:
                self._layers.setdefault(self._uuids[layer.device], layer)

    def encode(self, layer: Layer, dir_fd: int, name: bytes) -> bytes | None:
        """Return the origin of a lower file, or of the directory `dir_fd` if `name` is empty.

        None where there are no file handles.
        """
        uuid = self._uuids.get(layer.device)
        return None if uuid is None else handle_of(dir_fd, name, uuid)

    def decode(self, value: bytes) -> os.stat_result | None:
        """Return the status of the lower file with the origin `value`; None if no layer has it, or it is gone."""
        fd = self._open(value)
        if fd is None:
            return None
        try:
            return os.fstat(fd)
        finally:
            os.close(fd)

    def is_lost(self, value: bytes) -> bool:
        """Whether the lower file with the origin `value` has been removed."""
        try:
            fd = self._open_or_fail(value)
        except OSError as error:
            return error.errno == errno.ESTALE
        if fd is not None:
            os.close(fd)
        return False

    def find(self, value: bytes) -> tuple[Layer, bytes] | None:
        """Return the layer that has the file with the origin `value`, and its path there; None if it is not found."""
        for layer in self._lowers:
            fd = self._open(value, layer)
            if fd is None:
                continue
            try:
                root, path = (os.readlink(proc.fd_path(opened)) for opened in (layer.root_fd, fd))
                inside = path.removeprefix(root.rstrip(b"/"))
                # On the layer's own mount, a file outside the layer has a path that leads nowhere, or to another file.
                if inside.startswith(b"/") and _is_at(layer.root_fd, inside[1:], os.fstat(fd)):
                    return layer, inside
            finally:
                os.close(fd)
        return None

    def _open(self, value: bytes, layer: Layer | None = None) -> int | None:
        """Open the lower file with O_PATH. Return None if no layer has it, it is gone, or it cannot be opened.

        It is opened on the mount of `layer`, or else of any layer on its filesystem.
        """
        try:
            return self._open_or_fail(value, layer)
        except OSError as error:
            if error.errno in (errno.ESTALE, errno.EPERM, errno.EOPNOTSUPP, errno.EINVAL):
                return None
            raise

    def _open_or_fail(self, value: bytes, layer: Layer | None = None) -> int | None:
        if not is_handle(value):
            return None
        *_, flags, kind, uuid = _HEAD.unpack_from(value)
        layer = layer or self._layers.get(uuid)
        if flags != _NATIVE_ENDIAN or layer is None or self._uuids.get(layer.device) != uuid:
            return None
        return file_handle.open_handle(layer.root_fd, kind, value[_HEAD.size :], os.O_PATH)


def _is_at(dir_fd: int, path: bytes, expected: os.stat_result) -> bool:
    try:
        found = os.stat(path, dir_fd=dir_fd, follow_symlinks=False)
    except OSError:
        return False
    return os.path.samestat(found, expected)


def is_handle(value: bytes) -> bool:
    """Return whether this has the form of a handle (ovl_check_fb_len)."""
    if len(value) < _HEAD.size:
        return False
    version, magic, length, *_ = _HEAD.unpack_from(value)
    return (version, magic, length) == (_VERSION, _MAGIC, len(value))


def handle_of(dir_fd: int, name: bytes, uuid: bytes, *, of_upper: bool = False) -> bytes | None:
    """Return the handle of a file on the filesystem `uuid`, in the format of the kernel's overlayfs
    (ovl_encode_real_fh).

    If `name` is empty, the file is the directory `dir_fd` itself. None where there are no handles.
    """
    try:
        kind, opaque = file_handle.handle_of(dir_fd, name)
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EOVERFLOW, errno.EPERM):
            return None
        raise
    flags = _NATIVE_ENDIAN | (_OF_UPPER if of_upper else 0)
    return _HEAD.pack(_VERSION, _MAGIC, _HEAD.size + len(opaque), flags, kind, uuid) + opaque
