"""Which images and layers does this host keep, and where?

    layers/HEX         a layer's directory, named by its chain ID; it is there only when it is whole
    layers/HEX.json    what is known of it
    layers/HEX.recipe  what its tar had besides the data of its files, see `tarsplit`
    images/HEX         an image's config, byte for byte; HEX, its sha256, is the image's ID
    version            what makes the directory a store; it is written first
    names.json         which image a name stands for, see `names`
    empty/             an empty directory, the lower of a container whose image has no layers
    tmp/               what is being made; leftovers are swept by the next writer
    lock               flock(2): held by whoever changes something

A layer is found by its chain ID and not by its diff ID alone: a directory also depends on what lies below it
(a hard link to a file of a lower layer is a copy here, and a directory that a layer does not list looks as
it does below), so the same tar on other layers is another directory. Docker does so as well.
Readers need no lock: each file and directory appears and changes by one rename(2). But for the version, nothing
is flushed to the disk: after a power failure, load again what was loaded last. Directories are private (mode
0700), because layers hold set-id programs of other systems. What is read is checked, and one damaged record does
not keep the others from being used.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from overlayfs_demo.errors import ImageError, printable
from overlayfs_demo.images.config import check_config
from overlayfs_demo.images.layer_writer import remove_tree
from overlayfs_demo.images.model import Config, Digest, Document, Image, Layer, chain_ids, parse_json
from overlayfs_demo.images.names import Names, names_by_image, names_json, read_names, read_sound_names
from overlayfs_demo.images.reference import Found, ImageName, Named, find_image
from overlayfs_demo.overlay.whiteout import TRUSTED, USER, PrivateXattrs

_VERSION_FILE, _VERSION = "version", b"overlayfs-demo store 1\n"
_RECORD, RECIPE = ".json", ".recipe"

_HASH = re.compile("[0-9a-f]{64,128}")


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
    def layer_titles(self) -> tuple[str, ...]:
        """What to call each layer: the step that made it, or the beginning of its diff ID."""
        return tuple(title or layer.diff_id.short for title, layer in zip(self.value.titles, self.layers, strict=True))

    @property
    def value(self) -> Image:
        """The image as a value, apart from where it is kept."""
        return Image(
            self.config,
            tuple(Layer(layer.diff_id, "") for layer in self.layers),
            self.parsed.history,
            tuple(map(str, self.names)),
        )


@dataclass(frozen=True, slots=True)
class Inventory:
    """All that a store keeps: images by ID, layers by chain ID, and for whatever is damaged what to do about it.

    `needed` are the chain IDs of the images' layers, also of those that have lost a layer; None if that is not known.
    """

    images: tuple[StoredImage, ...]
    layers: tuple[StoredLayer, ...]
    problems: tuple[ImageError, ...]
    needed: frozenset[Digest] | None

    def may_need(self, layer: StoredLayer) -> bool:
        """True unless it is sure that no image has this layer, not even a damaged one."""
        return self.needed is None or layer.chain_id in self.needed


def _named_by_hash(directory: Path) -> list[Digest]:
    """The hashes that files in a directory have for names, sorted; of other names nobody here is the author."""
    return [Digest("sha256", path.name) for path in sorted(directory.iterdir()) if _HASH.fullmatch(path.name)]


def _words(error: ImageError | OSError) -> str:
    """What is wrong, without advice."""
    return error.problem if isinstance(error, ImageError) else error.strerror or str(error)


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
            raise ImageError(f"{printable(str(root))} is a store of another version", "choose another --store")
        if set(os.listdir(fd)) - {_VERSION_FILE}:
            raise ImageError(f"{printable(str(root))} is not a store, and not empty", "choose another --store")
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
            self._require_own()
            for directory in (self._layers, self._images, self.tmp):
                directory.mkdir(mode=0o700, exist_ok=True)
                if directory.is_symlink():
                    raise NotADirectoryError(errno.ENOTDIR, f"its {directory.name} is a symbolic link")
        except OSError as error:
            raise ImageError(
                f"the store {printable(str(self.root))}: {error.strerror}",
                "name a directory of yours with --store or OVERLAYFS_DEMO_STORE",
            ) from None

    def _require_own(self) -> None:
        """Raises ImageError for a store of another user.

        They could lead us out of it by links, also later; and `tmp` is swept.
        """
        owner = self.root.stat().st_uid
        if owner != os.geteuid():
            raise ImageError(
                f"the store {printable(str(self.root))} belongs to another user (uid {owner})",
                "use a store of your own: --store, or OVERLAYFS_DEMO_STORE",
            )

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
        """The layer, if it is here. Raises ImageError if what is known of it is damaged."""
        directory = self._layers / chain_id.encoded
        if directory.is_symlink() or not directory.is_dir():
            return None
        record = directory.with_suffix(_RECORD)
        try:
            row = Document(parse_json(record.read_bytes(), str(record)), printable(str(record)))
            return StoredLayer(
                row.digest("chain_id"),
                row.digest("diff_id"),
                directory,
                row.size("size"),
                row.text("marks"),
                row.flag("owners"),
            )
        except (ImageError, OSError) as error:
            raise ImageError(
                f"the record of layer {chain_id.short} is damaged ({_words(error)})",
                "remove the images that have it with 'overlayfs-demo rmi', then load them again",
            ) from None

    def layer_ids(self) -> list[Digest]:
        """The chain IDs of all layers that are here, sorted; their records may be damaged."""
        return [one for one in _named_by_hash(self._layers) if self.place(one).is_dir()]

    def layers(self) -> list[StoredLayer]:
        """Every layer that is not damaged, by chain ID."""
        return list(self.inventory().layers)

    def publish_layer(self, staged: Path, layer: StoredLayer) -> None:
        """Give a finished directory, and the recipe beside it, their places. Call while `writing`."""
        record = {
            "chain_id": str(layer.chain_id),
            "diff_id": str(layer.diff_id),
            "size": layer.size,
            "marks": layer.marks,
            "owners": layer.owners,
        }
        self._write(layer.directory.with_suffix(_RECORD), json.dumps(record).encode())
        staged.with_suffix(RECIPE).rename(layer.recipe)
        staged.rename(layer.directory)

    def place(self, chain_id: Digest) -> Path:
        """Where the layer's directory is, or will be."""
        return self._layers / chain_id.encoded

    def remove_layer(self, chain_id: Digest) -> None:
        """Remove a layer that no image uses. Call while `writing`."""
        self.place(chain_id).rename(self.tmp / chain_id.encoded)
        self._sweep()

    def empty_directory(self) -> Path:
        """What lies below the upper of a container whose image has no layers."""
        path = self.root / "empty"
        if not path.exists():
            path.mkdir(exist_ok=True)
            path.chmod(0o755)  # Whatever the umask says: the view's root looks like it.
        return path

    # --- images ------------------------------------------------------------------------------------

    def add_image(self, config: bytes) -> Digest:
        """Keep an image whose layers are all here; its ID. Call while `writing`."""
        identity = Digest.of(config)
        path = self._images / identity.encoded
        if not path.exists():
            self._write(path, config)
        return identity

    def remove_image(self, identity: Digest) -> None:
        """Remove an image's config, if it is here, and names; its layers stay. Call while `writing`."""
        self._write_names({name: one for name, one in read_names(self._names_file).items() if one != identity})
        (self._images / identity.encoded).unlink(missing_ok=True)

    def image(self, identity: Digest) -> StoredImage:
        """The image with this ID. Raises ImageError if it, or a layer of it, is not here, or is damaged."""
        return self._image(identity, *self._config(identity), self.names_of(identity))

    def _image(self, identity: Digest, config: bytes, parsed: Config, names: tuple[ImageName, ...]) -> StoredImage:
        layers = []
        for chain_id in chain_ids(parsed.diff_ids):
            layer = self.layer(chain_id)
            if layer is None:
                raise ImageError(f"image {identity.short} has lost its layer {chain_id}", "load it again")
            layers.append(layer)
        return StoredImage(identity, config, parsed, tuple(layers), names)

    def _config(self, identity: Digest) -> tuple[bytes, Config]:
        path = self._images / identity.encoded
        try:
            config = path.read_bytes()
        except FileNotFoundError:
            raise ImageError(f"no image {identity}", "'overlayfs-demo images' lists what there is") from None
        try:
            if Digest.of(config) != identity:
                raise ImageError("it is not what was loaded")
            return config, check_config(config, str(path))
        except ImageError as error:
            raise ImageError(
                f"the config of image {identity.short} is damaged ({_words(error)})",
                f"remove it with 'overlayfs-demo rmi {identity.short}', then load it again",
            ) from None

    def chain_ids_of(self, identity: Digest) -> tuple[Digest, ...]:
        """The chain IDs of an image's layers, bottom to top, whether or not they are here. Raises ImageError."""
        return chain_ids(self._config(identity)[1].diff_ids)

    def images(self) -> list[StoredImage]:
        """Every image that is not damaged, by ID, called by the first of its names."""
        return list(self.inventory().images)

    def inventory(self) -> Inventory:
        """All images and layers. Raises OSError if the store itself cannot be read."""
        images: list[StoredImage] = []
        problems: list[ImageError] = []
        needed: set[Digest] = set()
        all_known = True
        layers = self._sound_layers(problems)
        names = names_by_image(read_sound_names(self._names_file, problems))
        identities = _named_by_hash(self._images)
        for identity in identities:
            try:
                config, parsed = self._config(identity)
            except ImageError as error:
                all_known = False
                problems.append(error)
                continue
            needed.update(chain_ids(parsed.diff_ids))
            try:
                image = self._image(identity, config, parsed, names.get(identity, ()))
                images.append(replace(image, name=image.names[0]) if image.names else image)
            except ImageError as error:
                problems.append(error)
        problems += [
            ImageError(
                f"the name {name} stands for {one}, which is not here", f"remove it with 'overlayfs-demo rmi {name}'"
            )
            for one, given in names.items()
            if one not in identities
            for name in given
        ]
        return Inventory(tuple(images), tuple(layers), tuple(problems), frozenset(needed) if all_known else None)

    def _sound_layers(self, problems: list[ImageError]) -> list[StoredLayer]:
        layers = []
        for chain_id in self.layer_ids():
            try:
                layer = self.layer(chain_id)
            except ImageError as error:
                problems.append(error)
                continue
            if layer is not None:
                layers.append(layer)
        return layers

    def find(self, word: str) -> StoredImage:
        """The image that a name, an ID or the first digits of one mean, see `find_image`. Raises ImageError."""
        found = self.identify(word)
        return replace(self.image(found.id), name=found.name)

    def identify(self, word: str) -> Found:
        """What `find` would find, even if it is damaged. Raises ImageError."""
        problems: list[ImageError] = []
        names = names_by_image(read_sound_names(self._names_file, problems))
        identities = dict.fromkeys([*_named_by_hash(self._images), *names])
        images = (Named(one, names.get(one, ())) for one in identities)
        try:
            return find_image(word, images, "", "'overlayfs-demo images' lists what there is")
        except ImageError:
            if problems:
                raise problems[0] from None
            raise

    # --- names -------------------------------------------------------------------------------------

    @property
    def _names_file(self) -> Path:
        return self.root / "names.json"

    def names_of(self, identity: Digest) -> tuple[ImageName, ...]:
        """The names of an image, sorted as they are shown, but for damaged ones."""
        return names_by_image(read_sound_names(self._names_file, [])).get(identity, ())

    def name_image(self, name: ImageName, identity: Digest) -> Digest | None:
        """Let a name stand for an image; the one that it stood for before, if another. Call while `writing`."""
        return self.give_names([name], identity).get(name)

    def give_names(self, names: Sequence[ImageName], identity: Digest) -> Mapping[ImageName, Digest]:
        """Let names stand for an image; those that stood for another before, and for which. Call while `writing`."""
        before = read_names(self._names_file)
        self._write_names({**before, **dict.fromkeys(names, identity)})
        return {name: before[name] for name in names if before.get(name, identity) != identity}

    def remove_name(self, name: ImageName) -> None:
        """Let a name stand for nothing. Call while `writing`."""
        self._write_names({one: target for one, target in read_names(self._names_file).items() if one != name})

    def _write_names(self, names: Names) -> None:
        self._write(self._names_file, names_json(names))

    def _write(self, path: Path, data: bytes) -> None:
        """Replace a file by one rename."""
        unfinished = self.tmp / f"{path.name}.new"
        unfinished.write_bytes(data)
        unfinished.rename(path)
