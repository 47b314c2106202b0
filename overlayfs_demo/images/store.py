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
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from overlayfs_demo.errors import ImageError
from overlayfs_demo.images.model import Config, Digest, Document, Image, Layer, chain_ids, known_name, parse_json, shown
from overlayfs_demo.images.tree import remove_tree
from overlayfs_demo.overlay.whiteout import TRUSTED, USER, PrivateXattrs

_VERSION_FILE, _VERSION = "version", b"overlayfs-demo store 1\n"
_RECORD, RECIPE = ".json", ".recipe"

# What Docker takes for a name (distribution reference): components, then a tag.
_PART = r"[a-zA-Z0-9](?:[a-zA-Z0-9._-]*[a-zA-Z0-9])?"
_NAME = re.compile(rf"{_PART}(?::[0-9]+(?=/))?(?:/{_PART})*(?::[a-zA-Z0-9_][a-zA-Z0-9._-]{{0,127}})?")
_LEAST_DIGITS = 4


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
    """An image: its config, its layers from the bottom to the top, the names it goes by (sorted)."""

    id: Digest
    config: bytes
    parsed: Config
    layers: tuple[StoredLayer, ...]
    names: tuple[str, ...]

    @property
    def size(self) -> int:
        """Bytes of all its layers, as `docker images` counts them: shared ones too, and what is hidden."""
        return sum(layer.size for layer in self.layers)

    @property
    def title(self) -> str:
        """A name of it, or the beginning of its ID."""
        return self.names[0] if self.names else self.id.short

    @property
    def value(self) -> Image:
        """The image as a value, apart from where it is kept."""
        return Image(
            self.config, tuple(Layer(layer.diff_id, "") for layer in self.layers), self.parsed.history, self.names
        )


def normal_name(name: str) -> str:
    """A name with its tag, `:latest` if it has none. Raises ImageError for what is no name."""
    if not _NAME.fullmatch(name):
        raise ImageError(f"'{shown(name)}' is no image name", "write NAME[:TAG], as in app:1.0")
    return name if ":" in name.rpartition("/")[2] else f"{name}:latest"


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
        self._change_names(lambda names: {name: one for name, one in names.items() if one != str(image.id)})
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
        names = sorted(name for name, one in self._names().items() if one == str(identity))
        return StoredImage(identity, config, parsed, tuple(layers), tuple(names))

    def images(self) -> list[StoredImage]:
        """Every image, by ID."""
        return [self.image(Digest("sha256", path.name)) for path in sorted(self._images.iterdir())]

    def find(self, name: str) -> StoredImage:
        """The image that goes by this name (`:latest` may be left out), or whose ID begins so. Raises ImageError."""
        names = self._names()
        if known := known_name(name, names):
            return self.image(Digest.parse(names[known], str(self.root / "names.json")))
        start = name.removeprefix("sha256:")
        found = []
        if len(start) >= _LEAST_DIGITS and re.fullmatch("[0-9a-f]+", start):
            found = [path.name for path in self._images.iterdir() if path.name.startswith(start)]
        if len(found) > 1:
            raise ImageError(f"'{shown(name)}' begins the IDs of {len(found)} images", "give more digits")
        if not found:
            raise ImageError(f"no image '{shown(name)}'", "'overlayfs-demo images' lists what there is")
        return self.image(Digest("sha256", found[0]))

    # --- names -------------------------------------------------------------------------------------

    def _names(self) -> Mapping[str, str]:
        path = self.root / "names.json"
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return {}
        row = Document(parse_json(data, str(path)), shown(str(path)))
        return {name: row.text(name) for name in row}

    def name_image(self, name: str, identity: Digest) -> Digest | None:
        """Let a name stand for an image; the one that it stood for before, if another. Call while `writing`."""
        name = normal_name(name)
        before = self._names().get(name)
        self._change_names(lambda names: {**names, name: str(identity)})
        return Digest.parse(before, name) if before not in (None, str(identity)) else None

    def remove_name(self, name: str) -> None:
        """Let a name stand for nothing. Call while `writing`."""
        self._change_names(lambda names: {one: target for one, target in names.items() if one != name})

    def _change_names(self, change: Callable[[Mapping[str, str]], Mapping[str, str]]) -> None:
        names = change(self._names())
        self._write(self.root / "names.json", json.dumps(dict(sorted(names.items())), indent=1).encode())

    def _write(self, path: Path, data: bytes) -> None:
        """Replace a file by one rename."""
        unfinished = self.tmp / f"{path.name}.new"
        unfinished.write_bytes(data)
        unfinished.rename(path)
