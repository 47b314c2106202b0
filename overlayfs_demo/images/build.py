"""Builder of layer directories that can be mounted, from an image archive.

Each layer becomes one directory below one output directory; all of them are built, or none. Each is built under a name
that begins with `.building-`, and gets its own name only when every layer has matched its digests. What was built is
recorded in `.layers.json` beside the directories, so that a later run can use it. A run that is killed leaves at most
`.building-` names, which the next run removes. Nothing is flushed to the disk: after a power failure, remove the output
directory and build again.

An output directory made here is accessible only to its owner, because the layers keep the set-id programs and the
devices of their image, and any user who could reach them could use them.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from overlayfs_demo.errors import ImageError, printable
from overlayfs_demo.images.archive import Archive, open_archive
from overlayfs_demo.images.build_record import RecordedLayer, read_record, write_record
from overlayfs_demo.images.extract import extract_layer
from overlayfs_demo.images.layer_tree import BUILDING, remove_tree
from overlayfs_demo.images.model import Digest, Image, Layer, Platform
from overlayfs_demo.images.record_file import LAYERS_RECORD
from overlayfs_demo.images.select import select_image
from overlayfs_demo.overlay.whiteout import TRUSTED, USER


@dataclass(frozen=True, slots=True)
class BuiltLayer:
    """One layer in the output directory.

    `size` is the bytes of its files; `instruction` is the Dockerfile line that made it, "" if unknown; `fresh` is False
    if an earlier run built it; `left_out` says what could not be kept, and in how many members.
    """

    directory: Path
    diff_id: Digest
    size: int
    instruction: str
    fresh: bool
    left_out: Mapping[str, int] = field(default_factory=dict)


def build_layers(
    archive_path: Path,
    outdir: Path,
    *,
    name: str | None = None,
    platform: Platform | None = None,
    userxattr: bool | None = None,
    mode: int | None = None,
) -> list[BuiltLayer]:
    """Build the image's layers below `outdir`, and return them from the bottom up.

    `mode` sets the permissions of `outdir`; without it they are 0700 if `outdir` is new, and unchanged otherwise.
    `name` and `platform` choose among several images. `userxattr` marks opaque directories with `user.` attributes, for
    mounts with that option; by default it is True if we are not root. Raises ImageError, or OSError if `outdir` itself
    fails; `outdir` is then as it was before, or gone if it is new.
    """
    root = os.geteuid() == 0
    outdir = outdir.resolve()
    with _output(outdir) as out_fd, open_archive(archive_path, scratch=outdir) as archive:
        image = select_image(archive, name, platform)
        if not image.layers:
            raise ImageError(f"{archive.label}: the image has no layers", "there is nothing to build")
        work = _Build(archive, image, outdir, out_fd, userxattr if userxattr is not None else not root, root, mode)
        return work.run()


class _Build:
    """One run of `build_layers`, in the output directory that it has locked."""

    def __init__(
        self, archive: Archive, image: Image, outdir: Path, out_fd: int, userxattr: bool, owners: bool, mode: int | None
    ) -> None:
        self._archive = archive
        self._image = image
        self._outdir = outdir
        self._out_fd = out_fd
        self._marks = USER if userxattr else TRUSTED
        self._owners = owners
        self._mode = mode
        self._record = read_record(outdir)
        # Directories built by this run, keyed by their final names; until `_publish` they have `.building-` names.
        self._staged: dict[str, RecordedLayer] = {}

    def run(self) -> list[BuiltLayer]:
        built = []
        below: list[Path] = []
        width = max(2, len(str(len(self._image.layers))))
        together = zip(self._image.layers, self._image.chain_ids, self._image.titles, strict=True)
        for number, (layer, chain_id, made_by) in enumerate(together, start=1):
            name = f"{number:0{width}}-{layer.diff_id.short}"
            entry = RecordedLayer(str(layer.diff_id), str(chain_id), self._marks.prefix, self._owners, made_by, 0)
            left_out: Mapping[str, int] = {}
            known = self._standing(name, entry)
            if known is None:
                size, left_out = self._unpack(name, layer, below)
                self._staged[name] = known = replace(entry, size=size)
            below.append(self._outdir / (_building(name) if name in self._staged else name))
            built.append(
                BuiltLayer(self._outdir / name, layer.diff_id, known.size, made_by, name in self._staged, left_out)
            )
        self._publish()
        return built

    def _standing(self, name: str, wanted: RecordedLayer) -> RecordedLayer | None:
        """Return the record of a directory that is already there and is the right one; None if there is no directory.

        Raises ImageError if something else is in its place.
        """
        try:
            status = os.stat(name, dir_fd=self._out_fd, follow_symlinks=False)
        except FileNotFoundError:
            return None
        found = self._record.get(name)
        if found is not None and found.same_layer(wanted) and stat.S_ISDIR(status.st_mode):
            return found
        why = (
            "was built on different layers or for a different kind of mount"
            if found
            else "was not built by this program"
        )
        raise ImageError(
            f"{printable(str(self._outdir / name))} is in the way: it {why}", "remove it, or choose another directory"
        )

    def _unpack(self, name: str, layer: Layer, below: Sequence[Path]) -> tuple[int, Mapping[str, int]]:
        staged = os.fsencode(_building(name))
        os.mkdir(staged, 0o700, dir_fd=self._out_fd)
        fd = os.open(staged, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=self._out_fd)
        try:
            done = extract_layer(self._archive, layer, name, fd, self._out_fd, below, self._marks, self._owners)
        finally:
            os.close(fd)
        return done.size, done.left_out

    def _publish(self) -> None:
        """Give every staged directory its final name.

        The record is written first, because it lists what may be here, not what is here. The output directory's mode is
        set last, so that other users see nothing until everything is there.
        """
        moved: list[str] = []
        with _no_signals():
            try:
                write_record(self._out_fd, self._record | self._staged)
                for name in self._staged:
                    os.rename(_building(name), name, src_dir_fd=self._out_fd, dst_dir_fd=self._out_fd)
                    moved.append(name)
                if self._mode is not None:
                    os.fchmod(self._out_fd, self._mode)
            except OSError:
                for name in moved:
                    os.rename(name, _building(name), src_dir_fd=self._out_fd, dst_dir_fd=self._out_fd)
                if self._record:
                    write_record(self._out_fd, self._record)
                else:
                    (self._outdir / LAYERS_RECORD).unlink(missing_ok=True)
                raise


def _building(name: str) -> str:
    return os.fsdecode(BUILDING) + name


@contextmanager
def _no_signals() -> Iterator[None]:
    """Block the signals that end a program: pthread_sigmask(3)."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# --- the output directory --------------------------------------------------------------------------


@contextmanager
def _output(outdir: Path) -> Iterator[int]:
    """Make the output directory if it is missing, lock it, and remove what is unfinished, before and after."""
    made: list[Path] = []
    try:
        _make_directories(outdir, made)
        fd = os.open(outdir, os.O_RDONLY | os.O_DIRECTORY)
        try:
            _lock(fd, outdir)
            _remove_unfinished(fd)
            try:
                yield fd
            finally:
                with _no_signals():
                    _remove_unfinished(fd)
        finally:
            os.close(fd)
    except BaseException:
        for directory in reversed(made):
            try:
                directory.rmdir()
            except OSError as error:
                # The directory is no longer ours alone: somebody has put something there or removed it.
                if error.errno not in (errno.ENOTEMPTY, errno.ENOENT):
                    raise
        raise


def _make_directories(path: Path, made: list[Path]) -> None:
    """Make a private directory and its parents; each new one is added to `made`, the outermost first."""
    missing = [directory for directory in (path, *path.parents) if not directory.exists()]
    for directory in reversed(missing):
        directory.mkdir(0o700 if directory == path else 0o777)
        made.append(directory)


def _lock(fd: int, outdir: Path) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ImageError(
            f"{printable(str(outdir))} is in use by another run of this program", "wait for it to finish"
        ) from None


def _remove_unfinished(fd: int) -> None:
    for entry in os.listdir(fd):
        name = os.fsencode(entry)
        if not name.startswith(BUILDING):
            continue
        if stat.S_ISDIR(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode):
            remove_tree(fd, name, fd)
        else:
            os.unlink(name, dir_fd=fd)
