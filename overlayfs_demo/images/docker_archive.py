"""Writer of an image as the archive that `docker save` writes.

The format is that of Docker before 25 (Docker, image/spec/v1.2.md, "Combined Image JSON + Filesystem Changeset
Format"), which every `docker load`, podman and skopeo can read. Member names, their order, their contents and the
legacy layer IDs are those that Docker 20.10 writes for the same image.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import BinaryIO

from overlayfs_demo.errors import ImageError, printable
from overlayfs_demo.images.go_json import go_json
from overlayfs_demo.images.model import Digest, Document, Image, parse_json

# Only the image's last legacy layer has a config of its own; for the others Go writes out an empty one.
_NO_CONFIG: Mapping[str, object] = {
    "Hostname": "",
    "Domainname": "",
    "User": "",
    "AttachStdin": False,
    "AttachStdout": False,
    "AttachStderr": False,
    "Tty": False,
    "OpenStdin": False,
    "StdinOnce": False,
    "Env": None,
    "Cmd": None,
    "Image": "",
    "Volumes": None,
    "WorkingDir": "",
    "Entrypoint": None,
    "OnBuild": None,
    "Labels": None,
}
# The keys that the last legacy layer takes from the image's config, in Docker's order.
_LEGACY_KEYS = (
    "comment",
    "created",
    "container",
    "container_config",
    "docker_version",
    "author",
    "config",
    "architecture",
    "variant",
    "os",
)
_EPOCH = "1970-01-01T00:00:00Z"


@dataclass(frozen=True, slots=True)
class LayerSource:
    """A layer's uncompressed tar: its size in bytes, and a function that opens it at its start."""

    size: int
    open: Callable[[], BinaryIO]


def legacy_ids(image: Image) -> tuple[str, ...]:
    """Return the hexadecimal IDs of the layers' directories, from the bottom up (Docker, image/v1/imagev1.go).

    An ID is the hash of the layer's legacy JSON with its chain ID and its parent added, keys sorted.
    """
    ids: list[str] = []
    for index, chain_id in enumerate(image.chain_ids):
        fields = _legacy_fields(image, index) | {"layer_id": str(chain_id)}
        if ids:
            fields["parent"] = f"sha256:{ids[-1]}"
        ids.append(hashlib.sha256(go_json(dict(sorted(fields.items())))).hexdigest())
    return tuple(ids)


def _legacy_fields(image: Image, index: int) -> dict[str, object]:
    if index < len(image.layers) - 1:
        return {"created": _EPOCH, "container_config": _NO_CONFIG}
    config = parse_json(image.config, "config")
    assert isinstance(config, dict)
    return {key: config[key] for key in _LEGACY_KEYS if key in config}


def _legacy_json(image: Image, index: int, ids: Sequence[str]) -> bytes:
    config = Document(parse_json(image.config, "config"), "config")
    parent = {"parent": ids[index - 1]} if index else {}
    fields = {"id": ids[index]} | parent | _legacy_fields(image, index) | {"os": config.text("os", "linux")}
    return go_json(fields)


def write_archive(out: BinaryIO, image: Image, layers: Sequence[LayerSource]) -> None:
    """Write the archive of one image; `layers` are given from the bottom up. Raises ImageError or OSError.

    `out` is written forward only; the caller keeps ownership of it.
    """
    image_id = Digest.of(image.config).encoded
    ids = legacy_ids(image)
    when = _seconds(Document(parse_json(image.config, "config"), "config").text("created", _EPOCH))
    parts: dict[str, Callable[[_Writer], None]] = {
        f"{image_id}.json": lambda writer: writer.file(f"{image_id}.json", image.config, when)
    }
    first_place: dict[Digest, str] = {}
    for index, (layer, source) in enumerate(zip(image.layers, layers, strict=True)):
        same = first_place.setdefault(layer.diff_id, ids[index])
        parts[ids[index]] = _layer_part(image, index, ids, source, when, same)
    with tarfile.open(fileobj=out, mode="w|", format=tarfile.USTAR_FORMAT) as tar:
        writer = _Writer(tar)
        for name in sorted(parts):
            parts[name](writer)
        rows = [
            {
                "Config": f"{image_id}.json",
                "RepoTags": list(image.tags) or None,
                "Layers": [f"{legacy_id}/layer.tar" for legacy_id in ids],
            }
        ]
        writer.file("manifest.json", go_json(rows) + b"\n", 0)
        if image.tags and ids:
            writer.file("repositories", go_json(_repositories(image.tags, ids[-1])) + b"\n", 0)


def _layer_part(
    image: Image, index: int, ids: Sequence[str], source: LayerSource, when: int, same: str
) -> Callable[[_Writer], None]:
    """Return a function that writes one layer's directory.

    A layer whose tar already has a place in the archive becomes a link to it.
    """

    def write(writer: _Writer) -> None:
        name = ids[index]
        writer.directory(name, when)
        writer.file(f"{name}/VERSION", b"1.0", when)
        writer.file(f"{name}/json", _legacy_json(image, index, ids), when)
        if same != name:
            writer.symlink(f"{name}/layer.tar", f"../{same}/layer.tar", when)
            return
        with source.open() as data:
            writer.stream(f"{name}/layer.tar", data, source.size, when)

    return write


def _repositories(tags: Sequence[str], top: str) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for name in tags:
        repository, _, tag = name.rpartition(":")
        found.setdefault(repository, {})[tag] = top
    return found


def _seconds(created: str) -> int:
    try:
        return int(datetime.fromisoformat(created).astimezone(UTC).timestamp())
    except ValueError:
        raise ImageError(f"config: 'created' is not an RFC 3339 time: '{printable(created)}'") from None


class _Writer:
    """Writer of the kinds of member that such an archive has, all owned by root."""

    def __init__(self, tar: tarfile.TarFile) -> None:
        self._tar = tar

    def _info(self, name: str, kind: bytes, mode: int, when: int) -> tarfile.TarInfo:
        info = tarfile.TarInfo(name)
        info.type, info.mode, info.mtime = kind, mode, when
        info.uname = info.gname = "root"
        return info

    def directory(self, name: str, when: int) -> None:
        self._tar.addfile(self._info(name, tarfile.DIRTYPE, 0o755, when))

    def symlink(self, name: str, target: str, when: int) -> None:
        info = self._info(name, tarfile.SYMTYPE, 0o777, when)
        info.linkname = target
        self._tar.addfile(info)

    def file(self, name: str, data: bytes, when: int) -> None:
        self.stream(name, io.BytesIO(data), len(data), when)

    def stream(self, name: str, data: BinaryIO, size: int, when: int) -> None:
        info = self._info(name, tarfile.REGTYPE, 0o644, when)
        info.size = size
        self._tar.addfile(info, data)
