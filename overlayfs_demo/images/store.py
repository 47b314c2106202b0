"""Which images and layers does this host keep, and where?

    layers/HEX         a layer's directory, named by its chain ID; it is there only when it is whole
    layers/HEX.json    what is known of it
    layers/HEX.recipe  what its tar had besides the data of its files, see `tarsplit`
    images/HEX         an image's config, byte for byte; HEX, its sha256, is the image's ID
    version            what makes the directory a store; it is written first
    names.json         which image a name stands for
    tmp/               what is being made; leftovers are swept by the next writer
    lock               flock(2): held by whoever changes something

A layer is found by its chain ID and not by its diff ID alone: a directory also depends on what lies below it
(a hard link to a file of a lower layer is a copy here, and a directory that a layer does not list looks as
it does below), so the same tar on other layers is another directory. Docker does so as well.
Readers need no lock: each file and directory appears and changes by one rename(2). But for the version, nothing
is flushed to the disk: after a power failure, load again what was loaded last. Directories are private (mode
0700), because layers hold set-id programs of other systems.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from overlayfs_demo.errors import ImageError
from overlayfs_demo.images.model import Config, Digest, Document, Image, Layer, chain_ids, parse_json, shown
from overlayfs_demo.images.reference import ImageName, Named, find_image
from overlayfs_demo.images.tree import remove_tree
from overlayfs_demo.overlay.whiteout import TRUSTED, USER, PrivateXattrs

_VERSION_FILE, _VERSION = "version", b"overlayfs-demo store 1\n"
_RECORD, RECIPE = ".json", ".recipe"


def default_root() -> Path:
    """Where the store is if nobody says otherwise: of the whole machine for root, one's own for others."""
    if chosen := os.environ.get("OVERLAYFS_DEMO_STORE"):
        return Path(chosen)
    if os.geteuid() == 0:
        return Path("/var/lib/overlayfs-demo")
    home = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share"
    return Path(home) / "overlayfs-demo"


@dataclass(frozen=True, slots=True)
class StoredLayer:
    """A layer's directory and what it holds: `size` bytes of file data and link targets.

    `marks` is the prefix of the attributes that mark its opaque directories; `owners`: were owners kept?
    """

    chain_id: Digest
    diff_id: Digest
    directory: Path
    size: int
    marks: str
    owners: bool

    @property
    def recipe(self) -> Path:
        """The file from which, with the directory, the layer's tar can be put together again."""
        return self.directory.with_suffix(RECIPE)


@dataclass(frozen=True, slots=True)
class StoredImage:
    """An image: its config, its layers from the bottom to the top, its names (sorted).

    `name` is the one that it was asked for by, or that a list shows first; None if it was asked for by ID, or has none.
    """

    id: Digest
    config: bytes
    parsed: Config
    layers: tuple[StoredLayer, ...]
    names: tuple[ImageName, ...]
    name: ImageName | None = None

    @property
    def size(self) -> int:
        """Bytes of all its layers, as `docker images` counts them: shared ones too, and what is hidden."""
        return sum(layer.size for layer in self.layers)

    @property
    def title(self) -> str:
        """What to call it: `name`, or the beginning of its ID."""
        return str(self.name) if self.name is not None else self.id.short

    @property
    def value(self) -> Image:
        """The image as a value, apart from where it is kept."""
        return Image(
            self.config, tuple(Layer(layer.diff_id, "") for layer in self.layers), self.parsed.history,
            tuple(map(str, self.names)),
        )


def _version(root: Path) -> bytes | None:
    """What a store's directory says it is; None if it says nothing."""
    try:
        return (root / _VERSION_FILE).read_bytes()
    except FileNotFoundError:
        return None


def _create(root: Path) -> None:
    """Make an empty directory a store, by its version. Raises ImageError for a directory with something else in it.

    Several processes may come here at once. The first to lock the directory writes the version, and the others find
    it written. Whoever is killed in between leaves the beginning of the version, which the next one completes.
    """
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        version = _version(root)
        if version == _VERSION:
            return
        if version is not None and not _VERSION.startswith(version):
            raise ImageError(f"{shown(str(root))} is a store of another version", "choose another --store")
        if set(os.listdir(fd)) - {_VERSION_FILE}:
            raise ImageError(f"{shown(str(root))} is not a store, and not empty", "choose another --store")
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(_VERSION_FILE, flags, 0o644, dir_fd=fd), "wb") as file:
            file.write(_VERSION)
            file.flush()
            # A store whose version was lost in a power failure would be refused.
            os.fsync(file.fileno())
    finally:
        os.close(fd)


class Store:
    """The store in the directory `root`, which is made if need be."""

    def __init__(self, root: Path) -> None:
        """Raises ImageError if it cannot be made, or is something else."""
        self.root = root.absolute()
        try:
            self.root.mkdir(mode=0o755, parents=True, exist_ok=True)
            if _version(self.root) != _VERSION:
                _create(self.root)
            for directory in (self._layers, self._images, self.tmp):
                directory.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise ImageError(
                f"the store {shown(str(self.root))}: {error.strerror}",
                "name a directory of yours with --store or OVERLAYFS_DEMO_STORE",
            ) from None

    @property
    def _layers(self) -> Path:
        return self.root / "layers"

    @property
    def _images(self) -> Path:
        return self.root / "images"

    @property
    def tmp(self) -> Path:
        """For what is being made: on the store's filesystem, and swept."""
        return self.root / "tmp"

    @property
    def marks(self) -> PrivateXattrs:
        """The attributes that mark opaque directories here: what this user can set."""
        return TRUSTED if os.geteuid() == 0 else USER

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Be the only writer; waits for another one. What an interrupted one left is swept, before and after."""
        fd = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            self._sweep()
            try:
                yield
            finally:
                self._sweep()
        finally:
            os.close(fd)

    def _sweep(self) -> None:
        fd = os.open(self.tmp, os.O_RDONLY | os.O_DIRECTORY)
        try:
            for entry in list(os.scandir(fd)):
                name = os.fsencode(entry.name)
                if entry.is_dir(follow_symlinks=False):
                    remove_tree(fd, name, fd)
                else:
                    os.unlink(name, dir_fd=fd)
            # A record without its directory is of a layer that was not published, or is half removed.
            for suffix in (_RECORD, RECIPE):
                for file in self._layers.glob("*" + suffix):
                    if not file.with_suffix("").is_dir():
                        file.unlink()
        finally:
            os.close(fd)

    # --- layers ------------------------------------------------------------------------------------

    def layer(self, chain_id: Digest) -> StoredLayer | None:
        """The layer, if it is here."""
        directory = self._layers / chain_id.encoded
        if not directory.is_dir():
            return None
        record = directory.with_suffix(_RECORD)
        row = Document(parse_json(record.read_bytes(), str(record)), shown(str(record)))
        return StoredLayer(
            row.digest("chain_id"), row.digest("diff_id"), directory, row.size("size"), row.text("marks"),
            row.flag("owners"),
        )

    def layers(self) -> list[StoredLayer]:
        """Every layer, by chain ID."""
        found = (self.layer(Digest("sha256", path.stem)) for path in sorted(self._layers.glob("*" + _RECORD)))
        return [layer for layer in found if layer is not None]

    def publish_layer(self, staged: Path, layer: StoredLayer) -> None:
        """Give a finished directory, and the recipe beside it, their places. Call while `writing`."""
        record = {
            "chain_id": str(layer.chain_id), "diff_id": str(layer.diff_id), "size": layer.size, "marks": layer.marks,
            "owners": layer.owners,
        }
        self._write(layer.directory.with_suffix(_RECORD), json.dumps(record).encode())
        staged.with_suffix(RECIPE).rename(layer.recipe)
        staged.rename(layer.directory)

    def place(self, chain_id: Digest) -> Path:
        """Where the layer's directory is, or will be."""
        return self._layers / chain_id.encoded

    def remove_layer(self, layer: StoredLayer) -> None:
        """Remove a layer that no image uses. Call while `writing`."""
        layer.directory.rename(self.tmp / layer.directory.name)
        self._sweep()

    # --- images ------------------------------------------------------------------------------------

    def add_image(self, config: bytes) -> Digest:
        """Keep an image whose layers are all here; its ID. Call while `writing`."""
        identity = Digest.of(config)
        path = self._images / identity.encoded
        if not path.exists():
            self._write(path, config)
        return identity

    def remove_image(self, image: StoredImage) -> None:
        """Remove an image's config and names; its layers stay. Call while `writing`."""
        self._change_names({name: target for name, target in self._names().items() if target != image.id})
        (self._images / image.id.encoded).unlink()

    def image(self, identity: Digest) -> StoredImage:
        """The image with this ID. Raises ImageError if it, or a layer of it, is not here."""
        path = self._images / identity.encoded
        try:
            config = path.read_bytes()
        except FileNotFoundError:
            raise ImageError(f"no image {identity}", "'overlayfs-demo images' lists what there is") from None
        parsed = Config.parse(config, str(path))
        layers = []
        for chain_id in chain_ids(parsed.diff_ids):
            layer = self.layer(chain_id)
            if layer is None:
                raise ImageError(f"image {identity.short} has lost its layer {chain_id}", "load it again")
            layers.append(layer)
        return StoredImage(identity, config, parsed, tuple(layers), self._names_of(identity))

    def images(self) -> list[StoredImage]:
        """Every image, by ID."""
        found = [self.image(identity) for identity in self._identities()]
        return [replace(image, name=image.names[0]) if image.names else image for image in found]

    def _identities(self) -> list[Digest]:
        return [Digest("sha256", path.name) for path in sorted(self._images.iterdir())]

    def find(self, word: str) -> StoredImage:
        """The image that a name, an ID or the first digits of one mean, see `find_image`. Raises ImageError."""
        found = find_image(
            word, (Named(identity, self._names_of(identity)) for identity in self._identities()), "",
            "'overlayfs-demo images' lists what there is",
        )
        return replace(self.image(found.id), name=found.name)

    # --- names -------------------------------------------------------------------------------------

    def _names(self) -> Mapping[ImageName, Digest]:
        path = self.root / "names.json"
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return {}
        row = Document(parse_json(data, str(path)), shown(str(path)))
        return {ImageName.parse(name): row.digest(name) for name in row}

    def _names_of(self, identity: Digest) -> tuple[ImageName, ...]:
        return tuple(sorted((name for name, target in self._names().items() if target == identity), key=str))

    def name_image(self, name: ImageName, identity: Digest) -> Digest | None:
        """Let a name stand for an image; the one that it stood for before, if another. Call while `writing`."""
        names = self._names()
        self._change_names({**names, name: identity})
        before = names.get(name)
        return before if before != identity else None

    def remove_name(self, name: ImageName) -> None:
        """Let a name stand for nothing. Call while `writing`."""
        self._change_names({one: target for one, target in self._names().items() if one != name})

    def _change_names(self, names: Mapping[ImageName, Digest]) -> None:
        rows = {str(name): str(target) for name, target in names.items()}
        self._write(self.root / "names.json", json.dumps(dict(sorted(rows.items())), indent=1).encode())

    def _write(self, path: Path, data: bytes) -> None:
        """Replace a file by one rename."""
        unfinished = self.tmp / f"{path.name}.new"
        unfinished.write_bytes(data)
        unfinished.rename(path)
