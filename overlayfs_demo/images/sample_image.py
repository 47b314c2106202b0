"""A sample image that is small enough to show whole, with one of everything worth showing.

It is the image of the teaching Dockerfile below, made in code: no Docker, no network, no binaries, and the same bytes
every time. `write_teaching_image` writes it as a real `docker save` archive.

    FROM base
    LABEL org.opencontainers.image.title="overlayfs-demo teaching image"
    ENV HOME=/root
    COPY app /app
    RUN mkdir -p $HOME/.cache && ./app/build.sh
    RUN rm -r $HOME/.cache
    CMD ["/bin/sh", "/app/run.sh"]
"""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import BinaryIO

from overlayfs_demo.images.docker_archive import LayerSource, write_archive
from overlayfs_demo.images.go_json import go_json
from overlayfs_demo.images.model import Digest, Image, Layer

TAG = "overlayfs-demo/teaching:1.0"

_TITLE = "overlayfs-demo teaching image"
_COMMAND = ["/bin/sh", "/app/run.sh"]
_WHEN = 1704067200  # 2024-01-01T00:00:00Z, in seconds since the epoch
_CACHE_SIZE = 3_000_000


class LayerTar:
    """Builder of a layer's tar; `when` is the mtime of every member, in seconds. `finished` returns its bytes."""

    def __init__(self, when: int) -> None:
        self._when = when
        self._members: list[tuple[tarfile.TarInfo, bytes]] = []

    def _add(self, path: str, kind: bytes, mode: int, target: str = "", data: bytes = b"") -> LayerTar:
        info = tarfile.TarInfo(path)
        info.type, info.mode, info.mtime = kind, mode, self._when
        info.linkname, info.size = target, len(data)
        info.uname = info.gname = "root"
        self._members.append((info, data))
        return self

    def directory(self, *paths: str, mode: int = 0o755) -> LayerTar:
        for path in paths:
            self._add(path, tarfile.DIRTYPE, mode)
        return self

    def file(self, path: str, data: str | bytes, mode: int = 0o644) -> LayerTar:
        return self._add(path, tarfile.REGTYPE, mode, data=data.encode() if isinstance(data, str) else data)

    def symlink(self, path: str, target: str) -> LayerTar:
        return self._add(path, tarfile.SYMTYPE, 0o777, target)

    def hard_link(self, path: str, target: str) -> LayerTar:
        return self._add(path, tarfile.LNKTYPE, 0o755, target)

    def finished(self) -> bytes:
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for info, data in self._members:
                tar.addfile(info, io.BytesIO(data))
        return out.getvalue()


def _base(when: int) -> bytes:
    tar = LayerTar(when)
    tar.directory("bin").file("bin/hello", "#!/bin/sh\necho hello from the base layer\n", 0o755)
    tar.hard_link("bin/greet", "bin/hello")
    tar.file("bin/become", "#!/bin/sh\n# Set-user-ID: copy-up must keep the mode 4755.\nid\n", 0o4755)
    tar.directory("etc").file("etc/group", "root:x:0:\nstaff:x:50:\n").file("etc/hostname", "teaching\n")
    tar.file("etc/motd", "Welcome to the bottom layer.\n")
    tar.file("etc/os-release", f'ID=teaching\nNAME="{_TITLE}"\n')
    tar.file("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n").file("etc/shadow", "root:*:19723::::::\n", 0o640)
    tar.directory("home", "home/student").file("home/student/notes.txt", "Layers are read-only.\n")
    tar.directory("root", mode=0o700).directory("tmp", mode=0o1777)
    tar.directory("usr", "usr/lib").file("usr/lib/library.txt", "shared by every image on this base\n")
    tar.directory("usr/share", "usr/share/doc")
    for name in ("README", "changelog", "copyright"):
        tar.file(f"usr/share/doc/{name}", f"{name} of the base layer\n")
    tar.directory("var", "var/log").file("var/log/install.log", "installed\n", 0o640)
    tar.symlink("lib", "usr/lib")
    return tar.finished()


def _copied(when: int) -> bytes:
    tar = LayerTar(when).directory("app")
    tar.file("app/build.sh", "#!/bin/sh\n# Compiles app.bin and leaves its downloads in $HOME/.cache.\n", 0o755)
    tar.file("app/config.ini", "[app]\ncolour = blue\n")
    return tar.file("app/run.sh", "#!/bin/sh\nexec /app/app.bin\n", 0o755).finished()


def _built(when: int) -> bytes:
    downloads = hashlib.shake_256(b"downloads").digest(_CACHE_SIZE)
    half = _CACHE_SIZE // 2
    tar = LayerTar(when).directory("app").file("app/app.bin", "#!/bin/sh\necho the application runs\n", 0o755)
    tar.directory("root", mode=0o700).directory("root/.cache")
    tar.file("root/.cache/packages.bin", downloads[:half]).file("root/.cache/sources.bin", downloads[half:])
    return tar.finished()


def _cleaned(when: int) -> bytes:
    """Return a layer that removes a lower directory: one empty file says so (OCI layer.md, "Whiteouts")."""
    return LayerTar(when).directory("root", mode=0o700).file("root/.wh..cache", "", 0o600).finished()


@dataclass(frozen=True, slots=True)
class Step:
    """A line of the history, with its layer (None if it changed metadata only) and the builder's comment."""

    created_by: str
    tar: bytes | None = None
    comment: str = ""


def _steps() -> tuple[Step, ...]:
    base, copied = _base(_WHEN), _copied(_WHEN + 3)
    command = " ".join(f'"{word}"' for word in _COMMAND)
    return (
        Step(f"/bin/sh -c #(nop) ADD file:{Digest.of(base).encoded} in / ", base),
        Step(f"/bin/sh -c #(nop)  LABEL org.opencontainers.image.title={_TITLE}"),
        Step("/bin/sh -c #(nop)  ENV HOME=/root"),
        Step(f"/bin/sh -c #(nop) COPY dir:{Digest.of(copied).encoded} in /app ", copied),
        Step("/bin/sh -c mkdir -p $HOME/.cache && ./app/build.sh", _built(_WHEN + 4)),
        Step("/bin/sh -c rm -r $HOME/.cache", _cleaned(_WHEN + 5)),
        Step(f"/bin/sh -c #(nop)  CMD [{command}]"),
    )


def _config(steps: Sequence[Step], settings: Mapping[str, object]) -> bytes:
    history = []
    for second, step in enumerate(steps):
        row: dict[str, object] = {"created": _created(second), "created_by": step.created_by}
        if step.comment:
            row["comment"] = step.comment
        history.append(row if step.tar is not None else row | {"empty_layer": True})
    diff_ids = [str(Digest.of(step.tar)) for step in steps if step.tar is not None]
    return go_json(
        {
            "architecture": "amd64",
            "config": settings,
            "created": _created(len(steps) - 1),
            "docker_version": "20.10.24",
            "history": history,
            "os": "linux",
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        }
    )


def _created(second: int) -> str:
    when = datetime.fromtimestamp(_WHEN + second, UTC)
    return when.strftime("%Y-%m-%dT%H:%M:%SZ")


def write_image(out: BinaryIO, tag: str, steps: Sequence[Step], settings: Mapping[str, object]) -> Image:
    """Write an image as a `docker save` archive to `out`, and return the image. The caller keeps ownership of `out`.

    `settings` is the `config` object of the image's configuration.
    """
    tars = [step.tar for step in steps if step.tar is not None]
    image = Image(_config(steps, settings), tuple(Layer(Digest.of(tar), "") for tar in tars), tags=(tag,))
    write_archive(out, image, [LayerSource(len(tar), partial(io.BytesIO, tar)) for tar in tars])
    return image


def write_teaching_image(out: BinaryIO) -> Image:
    """Write the archive to `out`, and return the image. The caller keeps ownership of `out`."""
    return write_image(
        out,
        TAG,
        _steps(),
        {
            "Env": ["HOME=/root"],
            "Cmd": _COMMAND,
            "WorkingDir": "/",
            "Labels": {"org.opencontainers.image.title": _TITLE},
        },
    )
