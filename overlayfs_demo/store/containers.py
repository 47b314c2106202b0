"""What is a container here? An image's layers, one new upper on top of them, and a name.

STORE/containers/NAME/container.json   of which image, which layers, since when, where it is mounted
STORE/containers/NAME/upper, work      what it changed
STORE/containers/NAME/merged           where it is mounted, if not told otherwise
"""

from __future__ import annotations

import json
import os
import re
import secrets
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from overlayfs_demo.errors import ImageError, MountError, OverlayError, UsageError, printable
from overlayfs_demo.images.layer_tar import write_tree
from overlayfs_demo.images.layer_writer import remove_tree
from overlayfs_demo.images.model import Digest, Document, parse_json
from overlayfs_demo.images.progress import SILENT, Progress
from overlayfs_demo.images.reference import ImageName
from overlayfs_demo.images.upper_diff import Change, changes
from overlayfs_demo.linux import syscalls
from overlayfs_demo.mounts import mount, registry
from overlayfs_demo.mounts.layer_facts import UPPER, LayerFacts, walked
from overlayfs_demo.mounts.options import MountOptions, changed_flags
from overlayfs_demo.overlay import override_stat
from overlayfs_demo.overlay.idmap import ALL_ROOT
from overlayfs_demo.overlay.stack import Stack
from overlayfs_demo.store.commit import commit
from overlayfs_demo.store.load import Loaded
from overlayfs_demo.store.store import Store, StoredImage

# As Docker has them.
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+")
_NAME_RULE = "write at least two letters, digits, '_', '.' or '-', a letter or digit first"
_RECORD = "container.json"
_MERGED = "merged"


@dataclass(frozen=True, slots=True)
class Container:
    """A container. `created` is RFC 3339 text; `image_name` is what the image was called then; `time_machine` says
    that its view has one, see `overlay.timemachine`; `options` are mount(8)'s words that were asked for."""

    name: str
    directory: Path
    image: Digest
    image_name: str
    chain_ids: tuple[Digest, ...]
    created: str
    mountpoint: Path
    time_machine: bool = False
    options: str = ""

    @property
    def flags(self) -> int:
        """The MS_* flags that it is mounted with. Raises UsageError if its options are none.

        The store is private. Whoever may enter the view elsewhere gains nothing by what an image brings along, unless
        that was asked for.
        """
        private = os.path.realpath(self.mountpoint) == os.path.realpath(self.directory / _MERGED)
        return changed_flags(self.options, 0 if private else syscalls.MS_NOSUID | syscalls.MS_NODEV)

    @property
    def upper(self) -> Path:
        """The directory that holds what it changed."""
        return self.directory / "upper"

    @property
    def work(self) -> Path:
        """The overlay's work directory."""
        return self.directory / "work"

    @property
    def record(self) -> registry.Record | None:
        """Its mount, if it is mounted and served."""
        where = str(self.mountpoint)
        return next((one for one in registry.live_records() if one.mountpoint == where), None)

    def upper_size(self) -> int | None:
        """Bytes of the files in the upper, a file of several names once; None if it cannot be read."""
        count = walked(LayerFacts(UPPER, "", str(self.upper))).count
        return None if count is None else count.size


def _dress(upper: Path, top: Path) -> None:
    """Let a new upper's root look as the image's does: what it shows is the topmost layer's."""
    status = top.stat()
    if os.geteuid() == 0:
        os.chown(upper, status.st_uid, status.st_gid)
    elif record := override_stat.read(os.fsencode(top)):
        os.setxattr(upper, override_stat.NAME, record.encode())
    upper.chmod(stat.S_IMODE(status.st_mode))
    os.utime(upper, ns=(status.st_atime_ns, status.st_mtime_ns))


def _clear_dead(container: Container) -> bool:
    """Take away the mount that a killed daemon left; was there one? Raises MountError."""
    return mount.clear_dead(os.path.realpath(os.fsencode(container.mountpoint)))


class Containers:
    """The containers of a store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._root = store.root / "containers"

    def all(self) -> list[Container]:
        """Every container, by name."""
        if not self._root.is_dir():
            return []
        return [self.find(path.name) for path in sorted(self._root.iterdir()) if (path / _RECORD).exists()]

    def find(self, name: str) -> Container:
        """The container with this name. Raises MountError."""
        directory = self._root / name
        try:
            if not _NAME.fullmatch(name):
                raise FileNotFoundError
            data = (directory / _RECORD).read_bytes()
        except FileNotFoundError:
            raise MountError(f"no container '{printable(name)}'", self._instead_of(name)) from None
        try:
            row = Document(parse_json(data, str(directory / _RECORD)), printable(name))
            return Container(
                name,
                directory,
                row.digest("image"),
                row.text("image_name"),
                tuple(Digest.parse(one, name) for one in row.texts("layers")),
                row.text("created"),
                Path(row.text("mountpoint")),
                row.flag("time_machine"),
                row.text("options", ""),
            )
        except ImageError as error:
            raise MountError(
                f"the record of container '{name}' is damaged ({error.problem})",
                f"save what it changed, in 'upper' of {printable(str(directory))}, then remove that directory",
            ) from None

    def _instead_of(self, name: str) -> str:
        """What to do about a name that no container has."""
        try:
            self._store.identify(name)
        except ImageError:
            return "'overlayfs-demo ps' lists what there is"
        return "that is an image: 'create' makes a container of it, and 'diff IMAGE IMAGE' compares two"

    def users(self) -> Mapping[Digest, list[str]]:
        """Which containers are made of which image."""
        found: dict[Digest, list[str]] = {}
        for one in self.all():
            found.setdefault(one.image, []).append(one.name)
        return found

    def create(
        self,
        image: StoredImage,
        name: str | None = None,
        at: Path | None = None,
        *,
        time_machine: bool = False,
        options: str = "",
    ) -> Container:
        """Make a container and mount it. Raises OverlayError, and leaves nothing behind then.

        `options` are words of mount(8), such as `suid,dev`, which `start` heeds, too.
        """
        name = name or secrets.token_hex(6)
        if not _NAME.fullmatch(name):
            raise UsageError(f"'{printable(name)}' is not a valid container name", _NAME_RULE)
        directory = self._root / name
        mountpoint = (at or directory / _MERGED).absolute()
        with self._store.writing():
            self._root.mkdir(mode=0o700, exist_ok=True)
            if directory.exists():
                raise MountError(f"there is a container '{name}' already", "choose another --name, or 'rm' that one")
            staged = self._store.tmp / name
            for one in ("", "upper", "work", _MERGED):
                (staged / one).mkdir(mode=0o755)
            _dress(staged / "upper", image.layers[-1].directory if image.layers else self._store.empty_directory())
            (staged / _RECORD).write_text(
                json.dumps(
                    {
                        "image": str(image.id),
                        "image_name": image.title,
                        "layers": [str(layer.chain_id) for layer in image.layers],
                        "created": datetime.now(UTC).isoformat().replace("+00:00", "Z"),
                        "mountpoint": str(mountpoint),
                        "time_machine": time_machine,
                        "options": options,
                    }
                )
            )
            staged.rename(directory)
        container = self.find(name)
        try:
            self.start(container)
        except OverlayError:
            self._remove(container)
            raise
        return container

    def start(self, container: Container, front: str = "auto") -> None:
        """Mount it. Raises MountError."""
        if container.record is not None:
            raise MountError(f"container '{container.name}' is mounted already", f"on {container.mountpoint}")
        options = MountOptions(self.stack(container), front, container.flags, source=container.name)
        mount.mount(os.fsencode(container.mountpoint), options)

    def stop(self, container: Container, *, lazy: bool = False) -> None:
        """Unmount it; its upper stays. Raises MountError."""
        if container.record is None:
            if not _clear_dead(container):
                raise MountError(f"container '{container.name}' is not mounted", "'start' mounts it")
            return
        mount.unmount(os.fsencode(container.mountpoint), lazy=lazy)

    def remove(self, container: Container, *, force: bool = False) -> None:
        """Remove it with all that it changed. Raises MountError if it is mounted, unless `force` unmounts it first."""
        if container.record is not None:
            if not force:
                raise MountError(f"container '{container.name}' is mounted", "'stop' it first, or use --force")
            self.stop(container)
        _clear_dead(container)
        self._remove(container)

    def _remove(self, container: Container) -> None:
        with self._store.writing():
            fd = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY)
            try:
                remove_tree(fd, os.fsencode(container.name), fd)
            finally:
                os.close(fd)

    def diff(self, container: Container) -> list[Change]:
        """What it changed."""
        return changes(self._snapshot(container))

    def commit(
        self,
        container: Container,
        name: ImageName | None,
        comment: str = "",
        author: str = "",
        progress: Progress = SILENT,
    ) -> Loaded:
        """Make an image of its image and what it changed; SOURCE_DATE_EPOCH is heeded. Raises OverlayError."""
        epoch = os.environ.get("SOURCE_DATE_EPOCH")
        if epoch is not None and not epoch.isdigit():
            raise UsageError(f"SOURCE_DATE_EPOCH='{printable(epoch)}' is not a number of seconds", "see date +%s")
        return commit(
            self._store,
            self._store.image(container.image),
            self._snapshot(container),
            name,
            created_by=f"overlayfs-demo commit {container.name}",
            comment=comment,
            author=author,
            epoch=None if epoch is None else int(epoch),
            progress=progress,
        )

    def export(self, container: Container, out: BinaryIO) -> None:
        """Write the tar of its whole tree, as `docker export` does. Raises OSError."""
        write_tree(replace(self._snapshot(container), read_only=True), out)

    def _snapshot(self, container: Container) -> Stack:
        """Its stack, to be looked at as an image: what an ordinary user made is root's there. Raises MountError."""
        stack = self.stack(container)
        return stack if os.geteuid() == 0 else replace(stack, ids=ALL_ROOT)

    def stack(self, container: Container) -> Stack:
        """Its layers, its upper, and its work directory. Raises MountError if a layer is gone."""
        # In an upper `.wh.` begins ordinary names, and stored layers have none.
        return Stack(
            tuple(self._lowers(container)),
            os.fsencode(container.upper),
            os.fsencode(container.work),
            user_xattrs=self._store.marks.prefix.startswith("user."),
            image_whiteouts=False,
            titles=self._titles(container),
            time_machine=container.time_machine,
        )

    def _titles(self, container: Container) -> tuple[str, ...]:
        """What made each layer, topmost first, as its image's history says."""
        return self._store.image(container.image).layer_titles[::-1]

    def _lowers(self, container: Container) -> Iterator[bytes]:
        """The directories of its layers, topmost first; an empty one if it has none. Raises MountError: one is gone."""
        if not container.chain_ids:
            yield os.fsencode(self._store.empty_directory())
        for chain_id in reversed(container.chain_ids):
            layer = self._store.layer(chain_id)
            if layer is None:
                raise MountError(f"container '{container.name}' has lost its layer {chain_id}", "load its image again")
            yield os.fsencode(layer.directory)
