"""How does a test say, in a few words, which image archive it wants?

`layer({"etc/motd": "hi", "old": WHITEOUT})` is a layer's tar; `docker_save(layers)` and its siblings are
whole archives, as bytes. Names are written as they are given, so that a test can write bad ones too.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import lzma
import os
import stat
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import zstandard

from overlayfs_demo.linux import mounting
from overlayfs_demo.mounts.option_paths import lowerdir_option

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: owners, devices, trusted xattrs or mounts")


@dataclass(frozen=True)
class Entry:
    """One member of a tar: `kind` is tarfile's type; `pax` are extended header records."""

    kind: bytes = tarfile.REGTYPE
    data: bytes = b""
    mode: int = 0o644
    target: str = ""
    owner: tuple[int, int] = (os.geteuid(), os.getegid())
    mtime: int = 1_600_000_000
    device: tuple[int, int] = (0, 0)
    pax: Mapping[str, str] = field(default_factory=dict)


WHITEOUT = Entry(mode=0)
OPAQUE = Entry(mode=0o1)


def directory(mode: int = 0o755, **more: object) -> Entry:
    return Entry(tarfile.DIRTYPE, mode=mode, **more)  # type: ignore[arg-type]


def symlink(target: str) -> Entry:
    return Entry(tarfile.SYMTYPE, mode=0o777, target=target)


def hard_link(target: str) -> Entry:
    return Entry(tarfile.LNKTYPE, target=target)


def lowerdir(directories: Sequence[Path]) -> bytes:
    """The mount option for these layer directories, from the bottom to the top."""
    return os.fsencode(lowerdir_option([os.fsencode(one) for one in reversed(directories)]))


Content = str | bytes | Entry
Members = Mapping[str, Any] | Sequence[tuple[str, Any]]  # Each a Content.
# The fixture `build`: layers, as members or as a tar's bytes; their directories, from the bottom to the top.
Build = Callable[..., list[Path]]


def layer(members: Members) -> bytes:
    """A layer's tar. WHITEOUT at a/x is the member a/.wh.x, OPAQUE at a is a/.wh..wh..opq."""
    pairs: Iterable[tuple[str, Content]] = members.items() if isinstance(members, Mapping) else members
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT, encoding="utf-8") as tar:
        for name, content in pairs:
            parent, _, last = name.rpartition("/")
            if content is WHITEOUT:
                name = f"{parent}/.wh.{last}" if parent else f".wh.{last}"
            elif content is OPAQUE:
                name = f"{name}/.wh..wh..opq" if name else ".wh..wh..opq"
            if not isinstance(content, Entry):
                content = Entry(data=content.encode() if isinstance(content, str) else content)
            info = tarfile.TarInfo(name)
            info.type, info.mode, info.mtime, info.linkname = content.kind, content.mode, content.mtime, content.target
            info.uid, info.gid = content.owner
            info.devmajor, info.devminor = content.device
            info.pax_headers, info.size = dict(content.pax), len(content.data)
            tar.addfile(info, io.BytesIO(content.data))
    return out.getvalue()


def archive(members: Sequence[tuple[str, bytes | Entry]]) -> bytes:
    """A tar of plain files (and links), named exactly so."""
    return layer(members)


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def hexdigest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def config(layers: Sequence[bytes], **more: object) -> bytes:
    history = [{"created_by": f"/bin/sh -c make layer {number}"} for number in range(1, len(layers) + 1)]
    return json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "history": history,
            "rootfs": {"type": "layers", "diff_ids": [digest(one) for one in layers]},
            **more,
        }
    ).encode()


def _docker_manifest(rows: Sequence[tuple[str, Sequence[str], str]]) -> tuple[str, bytes]:
    manifest = [
        {"Config": name, "RepoTags": [tag] if tag else None, "Layers": list(paths)} for name, paths, tag in rows
    ]
    return "manifest.json", json.dumps(manifest).encode()


def docker_save(layers: Sequence[bytes], tag: str = "test:1") -> bytes:
    """Docker before 25: `<id>/layer.tar`; the ID here is the number of the layer."""
    settings = config(layers)
    name = f"{hexdigest(settings)}.json"
    members: list[tuple[str, bytes | Entry]] = [(name, settings)]
    paths = [f"{number:064x}/layer.tar" for number in range(len(layers))]
    for path, data in zip(paths, layers, strict=True):
        members += [(path.partition("/")[0], directory()), (path, data)]
    return archive([*members, _docker_manifest([(name, paths, tag)])])


def docker_save_many(images: Mapping[str, Sequence[bytes]]) -> bytes:
    """Several images in one archive, by tag; equal layers are stored once."""
    members: dict[str, bytes] = {}
    rows = []
    for tag, layers in images.items():
        settings = config(layers, comment=tag)
        name = f"{hexdigest(settings)}.json"
        paths = [f"{hexdigest(one)}/layer.tar" for one in layers]
        members |= {name: settings} | dict(zip(paths, layers, strict=True))
        rows.append((name, paths, tag))
    return archive([*members.items(), _docker_manifest(rows)])


def podman_save(layers: Sequence[bytes]) -> bytes:
    """Podman's docker-archive: `<diff id>.tar`, and symbolic links from the places Docker has."""
    settings = config(layers)
    name = f"{hexdigest(settings)}.json"
    members: list[tuple[str, bytes | Entry]] = []
    paths = []
    for number, data in enumerate(layers):
        paths.append(f"{number:064x}/layer.tar")
        members += [(f"{hexdigest(data)}.tar", data), (paths[-1], symlink(f"../{hexdigest(data)}.tar"))]
    return archive([*members, (name, settings), _docker_manifest([(name, paths, "test:1")])])


COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "plain": lambda data: data,
    "gzip": lambda data: gzip.compress(data, mtime=0),
    "zstd": lambda data: zstandard.ZstdCompressor().compress(data),
    "xz": lzma.compress,
}


@dataclass
class Blobs:
    """The content-addressed part of an OCI layout."""

    members: dict[str, bytes] = field(default_factory=dict)

    def add(self, data: bytes, media_type: str = "", **more: object) -> dict[str, object]:
        self.members[f"blobs/sha256/{hexdigest(data)}"] = data
        return {"mediaType": media_type, "digest": digest(data), "size": len(data), **more}

    def image(self, layers: Sequence[bytes], compression: str = "gzip", **settings: object) -> dict[str, object]:
        """Add an image; its manifest's descriptor."""
        rows = [self.add(COMPRESSIONS[compression](one), "application/vnd.oci.image.layer.v1.tar") for one in layers]
        described = self.add(config(layers, **settings), "application/vnd.oci.image.config.v1+json")
        manifest = {"schemaVersion": 2, "config": described, "layers": rows}
        return self.add(json.dumps(manifest).encode(), "application/vnd.oci.image.manifest.v1+json")

    def index(self, entries: Sequence[Mapping[str, object]]) -> dict[str, object]:
        data = json.dumps({"schemaVersion": 2, "manifests": list(entries)}).encode()
        return self.add(data, "application/vnd.oci.image.index.v1+json")

    def layout(
        self, entries: Sequence[Mapping[str, object]], prefix: str = "", more: Sequence[tuple[str, bytes]] = ()
    ) -> bytes:
        """The whole archive, with these entries in index.json."""
        top = json.dumps({"schemaVersion": 2, "manifests": list(entries)}).encode()
        mark = ("oci-layout", b'{"imageLayoutVersion": "1.0.0"}')
        members = [*self.members.items(), ("index.json", top), mark, *more]
        return archive([(prefix + name, data) for name, data in members])


def annotated(entry: Mapping[str, object], annotations: Mapping[str, str]) -> dict[str, object]:
    return {**entry, "annotations": dict(annotations)}


def named(entry: Mapping[str, object], name: str) -> dict[str, object]:
    return annotated(entry, {"org.opencontainers.image.ref.name": name})


def for_platform(entry: Mapping[str, object], system: str, architecture: str) -> dict[str, object]:
    return {**entry, "platform": {"os": system, "architecture": architecture}}


def oci_archive(layers: Sequence[bytes], compression: str = "gzip", prefix: str = "") -> bytes:
    blobs = Blobs()
    return blobs.layout([named(blobs.image(layers, compression), "test:1")], prefix)


def docker_25_save(layers: Sequence[bytes], compression: str = "gzip") -> bytes:
    """Docker from 25 on: an OCI layout, and a manifest.json that names its blobs."""
    blobs = Blobs()
    entry = blobs.index([for_platform(blobs.image(layers, compression), "linux", "amd64")])
    settings = f"blobs/sha256/{hexdigest(config(layers))}"
    paths = [f"blobs/sha256/{hexdigest(COMPRESSIONS[compression](one))}" for one in layers]
    return blobs.layout([named(entry, "1")], more=[_docker_manifest([(settings, paths, "test:1")])])


# --- what came of it -------------------------------------------------------------------------------


def snapshot(top: Path) -> dict[str, tuple[str, int, str]]:
    """Every name below `top`: its kind, its permissions, and its text, link target or device number."""
    found = {}
    for path in sorted(top.rglob("*")):
        status = path.lstat()
        kind = {
            stat.S_IFDIR: "directory",
            stat.S_IFREG: "file",
            stat.S_IFLNK: "symlink",
            stat.S_IFIFO: "fifo",
            stat.S_IFCHR: "character device",
            stat.S_IFBLK: "block device",
        }[stat.S_IFMT(status.st_mode)]
        text = ""
        if kind == "file":
            text = path.read_text(errors="surrogateescape")
        elif kind == "symlink":
            text = os.readlink(path)
        elif "device" in kind:
            text = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
        found[str(path.relative_to(top))] = (kind, stat.S_IMODE(status.st_mode), text)
    return found


def is_whiteout(path: Path) -> bool:
    status = path.lstat()
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def is_opaque(path: Path) -> bool:
    namespace = "trusted" if os.geteuid() == 0 else "user"
    name = f"{namespace}.overlay.opaque"
    return name in os.listxattr(path) and os.getxattr(path, name) == b"y"


@contextmanager
def kernel_mount(lowerdir: bytes, mountpoint: Path) -> Iterator[Path]:
    """The kernel's own overlay of these layers: the judge of what was built. An empty layer makes it two."""
    empty = mountpoint.with_name(mountpoint.name + "-empty")
    for one in (mountpoint, empty):
        one.mkdir()
    # mount(8) of Debian 13 uses fsconfig(2), which takes no value of more than 255 bytes.
    mounting.mount(b"overlay", os.fsencode(mountpoint), b"overlay", 0, lowerdir + b":" + os.fsencode(empty))
    try:
        yield mountpoint
    finally:
        mounting.unmount(os.fsencode(mountpoint))
