"""How does a copied-up file remember the lower file it came from?

By the lower file's handle, in the kernel's own format (fs/overlayfs/overlayfs.h, struct ovl_fb), in the
attribute `overlay.origin`. It keeps the inode number of the view constant over copy-up and remount.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Sequence

from overlayfs_demo.linux import syscalls
from overlayfs_demo.overlay.layer import Layer

_VERSION, _MAGIC, _NATIVE_ENDIAN = 0, 0xFB, 0
_HEAD = struct.Struct("=BBBBB16s")
# The flag of handles of the upper's objects.
_OF_UPPER = 4
NO_UUID = bytes(16)


class Origins:
    """Writes and reads origins for one stack of lowers."""

    __slots__ = ("_layers", "_lowers", "_uuids")

    def __init__(self, lowers: Sequence[Layer]) -> None:
        self._lowers = tuple(lowers)
        uuids = {layer.device: syscalls.filesystem_uuid(layer.root_fd) or NO_UUID for layer in lowers}
        # Two filesystems of one name cannot be told apart by it: their files have no origins.
        self._uuids = {device: uuid for device, uuid in uuids.items() if [*uuids.values()].count(uuid) == 1}
        self._layers: dict[bytes, Layer] = {}
        for layer in lowers:
            if layer.device in self._uuids:
                self._layers.setdefault(self._uuids[layer.device], layer)

    def encode(self, layer: Layer, dir_fd: int, name: bytes) -> bytes | None:
        """The origin of a lower file (`name` empty: of the directory `dir_fd`); None where there are no handles."""
        uuid = self._uuids.get(layer.device)
        return None if uuid is None else handle_of(dir_fd, name, uuid)

    def decode(self, value: bytes) -> os.stat_result | None:
        """The status of the lower file that `value` names; None if it is of no layer here, or gone."""
        fd = self._open(value)
        if fd is None:
            return None
        try:
            return os.fstat(fd)
        finally:
            os.close(fd)

    def find(self, value: bytes) -> tuple[Layer, bytes] | None:
        """The layer that has the file which `value` names, and where in it; None where that cannot be told."""
        for layer in self._lowers:
            fd = self._open(value, layer)
            if fd is None:
                continue
            try:
                root, path = (os.readlink(syscalls.fd_path(one)) for one in (layer.root_fd, fd))
                inside = path.removeprefix(root.rstrip(b"/"))
                # On the layer's own mount, a file outside the layer has a path that is another file's, or nobody's.
                if inside.startswith(b"/") and _is_at(layer.root_fd, inside[1:], os.fstat(fd)):
                    return layer, inside
            finally:
                os.close(fd)
        return None

    def _open(self, value: bytes, layer: Layer | None = None) -> int | None:
        """A descriptor (O_PATH) of the lower file; None if it is of no layer here, or gone, or not to be had.

        It is opened on the mount of `layer`, or of any that is on its filesystem.
        """
        if not is_handle(value):
            return None
        *_, flags, kind, uuid = _HEAD.unpack_from(value)
        layer = layer or self._layers.get(uuid)
        if flags != _NATIVE_ENDIAN or layer is None or self._uuids.get(layer.device) != uuid:
            return None
        try:
            return syscalls.open_file_handle(layer.root_fd, kind, value[_HEAD.size :], os.O_PATH)
        except OSError as error:
            if error.errno in (errno.ESTALE, errno.EPERM, errno.EOPNOTSUPP, errno.EINVAL):
                return None
            raise


def _is_at(dir_fd: int, path: bytes, expected: os.stat_result) -> bool:
    try:
        found = os.stat(path, dir_fd=dir_fd, follow_symlinks=False)
    except OSError:
        return False
    return os.path.samestat(found, expected)


def is_handle(value: bytes) -> bool:
    """Could this be a handle, of any file (ovl_check_fb_len)?"""
    if len(value) < _HEAD.size:
        return False
    version, magic, length, *_ = _HEAD.unpack_from(value)
    return (version, magic, length) == (_VERSION, _MAGIC, len(value))


def handle_of(dir_fd: int, name: bytes, uuid: bytes, *, of_upper: bool = False) -> bytes | None:
    """The handle of a file on the filesystem `uuid`, as the kernel's overlayfs writes it down (ovl_encode_real_fh).

    `name` empty: of the directory `dir_fd` itself. None where there are no handles.
    """
    try:
        kind, opaque = syscalls.file_handle(dir_fd, name)
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EOVERFLOW, errno.EPERM):
            return None
        raise
    flags = _NATIVE_ENDIAN | (_OF_UPPER if of_upper else 0)
    return _HEAD.pack(_VERSION, _MAGIC, _HEAD.size + len(opaque), flags, kind, uuid) + opaque
