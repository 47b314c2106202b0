"""Containers: an image's layers, one new upper on top of them, and a name; made, mounted, and read.

What is known of a container that is not mounted, and where it is kept, is in `container`.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from overlayfs_demo.errors import MountError, OverlayError, UsageError, printable
from overlayfs_demo.images.layer_tar_writer import write_tree
from overlayfs_demo.images.progress import SILENT, Progress
from overlayfs_demo.images.reference import ImageName
from overlayfs_demo.images.upper_diff import Change, changes
from overlayfs_demo.linux import attributes, mountinfo, mounting, syscalls
from overlayfs_demo.linux.attributes import Attributes
from overlayfs_demo.mounts import mount, umount
from overlayfs_demo.mounts.options import MountOptions, changed_flags
from overlayfs_demo.overlay import override_stat
from overlayfs_demo.overlay.idmap import ALL_ROOT
from overlayfs_demo.overlay.stack import Stack
from overlayfs_demo.store import durable
from overlayfs_demo.store.commit import commit
from overlayfs_demo.store.container import MERGED, Container, all_containers, check_name, directory_of, find_container
from overlayfs_demo.store.container_state import record_of, served_at
from overlayfs_demo.store.load import Loaded
from overlayfs_demo.store.scratch import NAME as SCRATCH
from overlayfs_demo.store.scratch import scratch
from overlayfs_demo.store.store import Store
from overlayfs_demo.store.stored import StoredImage


def _dress(upper: Path, top: Path) -> None:
    """Give a new upper's root the metadata of the image's root, which is that of the topmost layer's."""
    given = Attributes.of(top.stat())
    if os.geteuid() != 0:
        record = override_stat.read(os.fsencode(top))
        given = given._replace(owner=None, xattrs=[(override_stat.NAME, record.encode())] if record else [])
    attributes.apply(given, os.fsencode(upper))


@contextmanager
def _alone(container: Container) -> Iterator[None]:
    """Keep others from starting, stopping, renaming or removing a container. Raises MountError if it is gone.

    The lock is on the container's directory and not the store's, so that nobody waits here for a long load. If both
    locks are needed, this one comes first.
    """
    gone = MountError(f"container '{container.name}' was renamed or removed in the meantime", "see 'overlayfs-demo ps'")
    try:
        fd = os.open(container.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise gone from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        try:
            same = os.path.samestat(os.fstat(fd), container.directory.stat())
        except FileNotFoundError:
            same = False
        if not same:
            raise gone
        yield
    finally:
        os.close(fd)


def _flags(container: Container) -> int:
    """Return the MS_* flags of its mount. Raises UsageError if its options are not valid.

    The store is private. Outside it, other users may enter the view, so the mount is nosuid and nodev: nobody
    gains rights by what an image brings along, unless the options ask for that.
    """
    private = os.path.realpath(container.mountpoint) == os.path.realpath(container.directory / MERGED)
    return changed_flags(container.options, 0 if private else mounting.MS_NOSUID | mounting.MS_NODEV)


def _clear_dead(container: Container) -> bool:
    """Remove the mount that a killed daemon left; return True if there was one. Raises MountError."""
    return mount.clear_dead(os.path.realpath(os.fsencode(container.mountpoint)))


class Containers:
    """The containers of a store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._root = directory_of(store)

    def all(self) -> list[Container]:
        """Return every container, sorted by name. Raises MountError."""
        return all_containers(self._store)

    def find(self, name: str) -> Container:
        """Return the container with this name. Raises MountError."""
        return find_container(self._store, name)

    def create(
        self,
        image: StoredImage,
        name: str | None = None,
        at: Path | None = None,
        *,
        time_machine: bool = False,
        options: str = "",
    ) -> Container:
        """Make a container and mount it. Raises OverlayError, and leaves nothing behind in that case.

        `options` are words of mount(8), such as `suid,dev`; `start` also heeds them.
        """
        name = name or os.urandom(6).hex()
        check_name(name)
        directory = self._root / name
        container = Container(
            name,
            directory,
            image.id,
            SCRATCH if image.id == scratch().id else image.title,
            tuple(layer.chain_id for layer in image.layers),
            datetime.now(UTC).isoformat().replace("+00:00", "Z"),
            (at or directory / MERGED).absolute(),
            time_machine,
            options,
        )
        with self._store.writing():
            self._store.image(image.id)  # Again, because only now nobody can remove it.
            durable.make_directory(self._root, 0o700)
            if os.path.lexists(directory):
                raise self._taken(name)
            staged = self._store.tmp / name
            for directory_name in ("", "upper", "work", MERGED):
                (staged / directory_name).mkdir(mode=0o755)
            _dress(staged / "upper", image.layers[-1].directory if image.layers else self._store.empty_directory())
            for directory_name in ("upper", "work", MERGED):
                durable.sync_directory(staged / directory_name)
            container.write(staged)  # It syncs `staged` itself.
            # Last: a container exists once its directory has its name.
            durable.move([(staged, directory)])
        try:
            self.start(container)
        except OverlayError:
            self._remove(container)
            raise
        return container

    def base(self, word: str) -> StoredImage:
        """Return the image that a container is to be made from: one of the store, or `scratch`. Raises ImageError."""
        if word == SCRATCH:
            return scratch()
        return self._store.find(word, f"pull it with 'overlayfs-demo pull {printable(word)}', or load it")

    def start(self, container: Container, front: str = "auto") -> None:
        """Mount the container. Raises MountError."""
        with _alone(container):
            self._start(container, front)

    def _start(self, container: Container, front: str = "auto") -> None:
        if record_of(container) is not None:
            raise MountError(f"container '{container.name}' is already mounted", f"on {container.mountpoint}")
        if served_at(container) is not None:
            raise MountError(
                f"{printable(str(container.mountpoint))} is the mount point of another view",
                "unmount that first, or use another directory with --at",
            )
        options = MountOptions(self.stack(container), front, _flags(container), source=container.name)
        mount.mount(os.fsencode(container.mountpoint), options)

    def stop(self, container: Container, *, lazy: bool = False) -> None:
        """Unmount the container; its upper stays. Raises MountError."""
        with _alone(container):
            self._stop(container, lazy=lazy)

    def _stop(self, container: Container, *, lazy: bool = False) -> None:
        if record_of(container) is None:
            if not _clear_dead(container):
                raise MountError(f"container '{container.name}' is not mounted", "'start' mounts it")
            return
        umount.unmount(os.fsencode(container.mountpoint), lazy=lazy)

    def remove(self, container: Container, *, force: bool = False) -> None:
        """Remove the container and its changes. Raises MountError if it is mounted, unless `force` unmounts it."""
        with _alone(container):
            if record_of(container) is not None:
                if not force:
                    raise MountError(f"container '{container.name}' is mounted", "'stop' it first, or use --force")
                self._stop(container)
            _clear_dead(container)
            self._remove(container)

    def rename(self, container: Container, name: str) -> Container:
        """Give the container another name, and return it. A mounted one is unmounted for a moment.

        Raises UsageError if the name is not valid, and MountError if it is taken or the container is busy; the
        container is then as it was.
        """
        check_name(name)
        with _alone(container):
            is_mounted = record_of(container) is not None
            is_default = container.mountpoint == container.directory / MERGED
            directory = self._root / name
            mountpoint = directory / MERGED if is_default else container.mountpoint
            renamed = replace(container, name=name, directory=directory, mountpoint=mountpoint)
            if os.path.lexists(directory):
                raise self._taken(name)
            # The daemon's record, and its socket, are found by the mount point; so it is mounted again afterwards.
            if is_mounted:
                self._stop(container)
            else:
                _clear_dead(container)
            try:
                with self._store.writing():
                    container.write(container.directory)  # An older record has the mount point as an absolute path.
                    self._move(container.name, name)
            except BaseException:
                if is_mounted:
                    self._start(container)
                raise
            if is_mounted:
                self._start(renamed)
            return renamed

    def _move(self, name: str, other: str) -> None:
        fd = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            syscalls.rename(fd, os.fsencode(name), fd, os.fsencode(other), syscalls.RENAME_NOREPLACE)
        except OSError as error:
            if error.errno != errno.EEXIST:
                raise
            raise self._taken(other) from None
        else:
            os.fsync(fd)
        finally:
            os.close(fd)

    def _taken(self, name: str) -> MountError:
        return MountError(
            f"container '{name}' already exists", "choose another name, or remove that container with 'rm'"
        )

    @contextmanager
    def mounted(self, container: Container) -> Iterator[Path]:
        """Give the root of the container's tree. A container that is not mounted is mounted meanwhile.

        Raises MountError.
        """
        if record_of(container) is not None:
            yield container.mountpoint
            return
        self.start(container)
        try:
            yield container.mountpoint
        finally:
            self.stop(container)

    def _remove(self, container: Container) -> None:
        # Once the directory is moved away, every writer would try to remove it, and fail.
        inside = mountinfo.below(os.path.realpath(os.fsencode(container.directory)))
        if inside:
            shown = printable(inside[0])
            raise MountError(f"something is mounted on {shown}", f"unmount it first: umount {shown}")
        with self._store.writing():  # Its end sweeps what is moved away here.
            container.directory.rename(self._store.tmp / container.name)
            durable.sync_directory(self._root)

    def diff(self, container: Container) -> list[Change]:
        """Return the changes that the container made to its image. Raises MountError or OSError."""
        return changes(self._snapshot(container))

    def commit(
        self,
        container: Container,
        name: ImageName | None,
        comment: str = "",
        author: str = "",
        progress: Progress = SILENT,
        *,
        changes: Sequence[str] = (),
    ) -> Loaded:
        """Make an image of its image and its changes; SOURCE_DATE_EPOCH is heeded. Raises OverlayError.

        `changes` are Dockerfile instructions for the image's settings.
        """
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
            changes=changes,
            epoch=None if epoch is None else int(epoch),
            progress=progress,
        )

    def export(self, container: Container, out: BinaryIO) -> None:
        """Write the tar of the container's whole tree, as `docker export` does. Raises MountError or OSError."""
        write_tree(self._snapshot(container)._replace(read_only=True), out)

    def _snapshot(self, container: Container) -> Stack:
        """Return its stack as an image shows it: what an ordinary user made belongs to root. Raises MountError."""
        stack = self.stack(container)
        return stack if os.geteuid() == 0 else stack._replace(ids=ALL_ROOT)

    def stack(self, container: Container) -> Stack:
        """Return the stack of its layers, its upper, and its work directory. Raises MountError if a layer is gone."""
        # No image whiteouts: in an upper, names that begin with `.wh.` are ordinary, and stored layers have none.
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
        """Return the step that made each layer, topmost first, from its image's history."""
        return self._store.image(container.image).layer_titles[::-1]

    def _lowers(self, container: Container) -> Iterator[bytes]:
        """Yield its layers' directories, topmost first; an empty one if it has none. Raises MountError: one is gone."""
        if not container.chain_ids:
            yield os.fsencode(self._store.empty_directory())
        for chain_id in reversed(container.chain_ids):
            layer = self._store.layer(chain_id)
            if layer is None:
                raise MountError(
                    f"container '{container.name}' is missing its layer {chain_id}", "load its image again"
                )
            yield os.fsencode(layer.directory)
