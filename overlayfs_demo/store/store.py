"""The store of the images and layers that this host keeps.

    layers/HEX         a layer's directory, named by its chain ID; it exists only when it is complete
    layers/HEX.json    the layer's record
    layers/HEX.recipe  what its tar had besides the data of its files, see `tarsplit`
    images/HEX         an image's config, byte for byte; HEX, its sha256, is the image's ID
    version            the file that makes the directory a store; it is written first
    names.json         which image each name stands for, see `names`
    empty/             an empty directory, the lower of a container whose image has no layers
    blobs.json         what layers and images were in registries, see `registry/known_blobs`
    tmp/               what is being made; the next writer sweeps leftovers
    lock               flock(2): held by a process that changes the store

A layer is found by its chain ID and not by its diff ID alone, because its directory also depends on what lies below it:
a hard link to a file of a lower layer is a copy here, and a directory that a layer does not list looks as it does
below. So the same tar on different layers makes a different directory. Docker does the same.
Readers need no lock, because each file and directory appears and changes by one rename(2). A power failure leaves the
old state or the new one, see `durable`; a layer's directory without a sound record does not count as that layer. So
what is needed is published first: layers, then the image, then its names; it is removed in the reverse order.
Directories are private (mode 0700), because layers hold set-id programs of other systems. What is read is checked, and
one damaged record does not keep the others from being used.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from overlayfs_demo.errors import ImageError, printable
from overlayfs_demo.images.config import check_config
from overlayfs_demo.images.layer_tree import remove_tree
from overlayfs_demo.images.model import Config, Digest, Document, chain_ids, parse_json
from overlayfs_demo.images.record_file import read_file
from overlayfs_demo.images.reference import Found, ImageName, Named, find_image
from overlayfs_demo.overlay.whiteout import TRUSTED, USER, PrivateXattrs
from overlayfs_demo.store import durable
from overlayfs_demo.store.names import Names, NamesByImage, names_by_image, names_json, read_names, read_sound_names
from overlayfs_demo.store.root import PARTS, VERSION, create, read_version
from overlayfs_demo.store.scratch import scratch
from overlayfs_demo.store.stored import RECIPE, RECORD, Inventory, StoredImage, StoredLayer

_LIST = "'overlayfs-demo images' lists the images"

_HASH = re.compile("[0-9a-f]{64,128}")


def _named_by_hash(directory: Path) -> list[Digest]:
    """Return the hashes that are file names in a directory, sorted. Other names are ignored: the store makes none."""
    return [Digest("sha256", path.name) for path in sorted(directory.iterdir()) if _HASH.fullmatch(path.name)]


def _words(error: ImageError | OSError) -> str:
    """Return the problem without the advice."""
    return error.problem if isinstance(error, ImageError) else error.strerror or str(error)


class Store:
    """The store in the directory `root`, which is made if it does not exist."""

    def __init__(self, root: Path) -> None:
        """Open or make the store. Raises ImageError if it cannot be made, or if the directory is not a store."""
        self.root = root.absolute()
        try:
            durable.make_directories(self.root)
            if read_version(self.root) != VERSION:
                create(self.root)
            self._require_own()
            for part in PARTS:
                durable.make_directory(self.root / part, 0o700)
                if (self.root / part).is_symlink():
                    raise NotADirectoryError(errno.ENOTDIR, f"its {part} is a symbolic link")
        except OSError as error:
            raise ImageError(
                f"the store {printable(str(self.root))}: {error.strerror}",
                "use --store or OVERLAYFS_DEMO_STORE to name a directory that you own",
            ) from None

    @classmethod
    def unchecked(cls, root: Path) -> Store:
        """Return the store in a directory whatever it holds. Nothing is made, and its version may be missing."""
        store = cls.__new__(cls)
        store.root = root.absolute()
        return store

    def _require_own(self) -> None:
        """Raise ImageError if the store belongs to another user.

        That user could lead us out of the store by links, now or later, and `tmp` is swept.
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
        """The directory for what is being made: on the store's filesystem, and swept by every writer."""
        return self.root / "tmp"

    @property
    def marks(self) -> PrivateXattrs:
        """The attributes that mark opaque directories here: those that this user can set."""
        return TRUSTED if os.geteuid() == 0 else USER

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Wait for other writers, then keep them out. Sweeps what an interrupted writer left, before and after."""
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
            # A record without its directory belongs to a layer that was not published or is half removed.
            for suffix in (RECORD, RECIPE):
                for file in self._layers.glob("*" + suffix):
                    if not file.with_suffix("").is_dir():
                        file.unlink()
        finally:
            os.close(fd)

    # --- layers ------------------------------------------------------------------------------------

    def layer(self, chain_id: Digest) -> StoredLayer | None:
        """Return the layer, or None if it is not here. Raises ImageError if its record is damaged."""
        directory = self._layers / chain_id.encoded
        if directory.is_symlink() or not directory.is_dir():
            return None
        record = directory.with_suffix(RECORD)
        try:
            row = Document(parse_json(read_file(record), str(record)), printable(str(record)))
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
                "remove the images that use it with 'overlayfs-demo rmi', then load them again",
            ) from None

    def layer_ids(self) -> list[Digest]:
        """Return the chain IDs of all layers that are here, sorted; their records may be damaged."""
        return [chain_id for chain_id in _named_by_hash(self._layers) if self.place(chain_id).is_dir()]

    def layers(self) -> list[StoredLayer]:
        """Return every layer that is not damaged, sorted by chain ID."""
        return list(self.inventory().layers)

    def whole_layer(self, chain_id: Digest) -> StoredLayer | None:
        """Return the layer, or None if it is not here, or if its record or recipe is missing or damaged."""
        try:
            layer = self.layer(chain_id)
        except ImageError:
            return None
        return layer if layer is not None and layer.recipe.is_file() else None

    def publish_layers(self, staged: Sequence[tuple[Path, StoredLayer]]) -> None:
        """Move finished directories, each with the recipe beside it, to their places. Call while `writing`.

        What is in the place of one, which is no whole layer, goes.
        """
        if not staged:
            return
        for directory, layer in staged:
            directory.with_suffix(RECORD).write_bytes(layer.record)
        durable.sync_all(self.tmp)
        for _, layer in staged:
            if os.path.lexists(layer.directory):
                layer.directory.rename(self.tmp / layer.directory.name)
        # Of each layer the directory goes last: once it is there, its record and recipe are too.
        durable.move(
            (directory.with_suffix(suffix), layer.directory.with_suffix(suffix))
            for directory, layer in staged
            for suffix in (RECORD, RECIPE, "")
        )

    def place(self, chain_id: Digest) -> Path:
        """Return the path where the layer's directory is or will be."""
        return self._layers / chain_id.encoded

    def remove_layers(self, chain_ids: Sequence[Digest]) -> None:
        """Remove layers that no image uses. Call while `writing`."""
        for chain_id in chain_ids:
            self.place(chain_id).rename(self.tmp / chain_id.encoded)
        # Before the records go, so that no layer is left without its record.
        durable.sync_directory(self._layers)
        self._sweep()

    def empty_directory(self) -> Path:
        """Return the empty directory below the upper of a container whose image has no layers."""
        path = self.root / "empty"
        if not path.exists():
            path.mkdir(exist_ok=True)
            path.chmod(0o755)  # Whatever the umask is, because the view's root looks like it.
        return path

    # --- images ------------------------------------------------------------------------------------

    def add_image(self, config: bytes) -> Digest:
        """Keep an image whose layers are all here; return its ID. Call while `writing`."""
        identity = Digest.of(config)
        path = self._images / identity.encoded
        try:
            is_here = read_file(path) == config
        except (ImageError, OSError):
            is_here = False
        if not is_here:
            self._write(path, config)
        return identity

    def remove_image(self, identity: Digest) -> None:
        """Remove an image's names, and its config if it is here; its layers stay. Call while `writing`."""
        # The names go first, so that none stands for an image that is gone.
        self.write_names({name: target for name, target in read_names(self.names_file).items() if target != identity})
        durable.remove_file(self._images / identity.encoded)

    def image(self, identity: Digest) -> StoredImage:
        """Return the image with this ID. Raises ImageError if it or one of its layers is missing or damaged."""
        if identity == scratch().id:
            return scratch()
        return self._image(identity, *self._config(identity), self.names_of(identity))

    def _image(self, identity: Digest, config: bytes, parsed: Config, names: tuple[ImageName, ...]) -> StoredImage:
        layers = []
        for chain_id in chain_ids(parsed.diff_ids):
            layer = self.layer(chain_id)
            if layer is None:
                raise ImageError(f"image {identity.short} is missing its layer {chain_id}", "load it again")
            layers.append(layer)
        return StoredImage(identity, config, parsed, tuple(layers), names)

    def _config(self, identity: Digest) -> tuple[bytes, Config]:
        path = self._images / identity.encoded
        try:
            config = read_file(path)
            if Digest.of(config) != identity:
                raise ImageError("it has changed since it was loaded")
            return config, check_config(config, str(path))
        except FileNotFoundError:
            raise ImageError(f"no image {identity}", _LIST) from None
        except ImageError as error:
            raise ImageError(
                f"the config of image {identity.short} is damaged ({_words(error)})",
                f"remove it with 'overlayfs-demo rmi {identity.short}', then load it again",
            ) from None

    def config(self, identity: Digest) -> Config:
        """Return the config of an image, whether its layers are here or not. Raises ImageError."""
        return self._config(identity)[1]

    def chain_ids_of(self, identity: Digest) -> tuple[Digest, ...]:
        """Return the chain IDs of an image's layers, bottom to top, whether they are here or not. Raises ImageError."""
        return chain_ids(self.config(identity).diff_ids)

    def images(self) -> list[StoredImage]:
        """Return every image that is not damaged, sorted by ID; `name` is the first of its names."""
        return list(self.inventory().images)

    def inventory(self) -> Inventory:
        """Return all images and layers. Raises OSError if the store itself cannot be read."""
        images: list[StoredImage] = []
        problems: list[ImageError] = []
        needed: set[Digest] = set()
        all_known = True
        layers = self._sound_layers(problems)
        names = names_by_image(read_sound_names(self.names_file, problems))
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
                f"the name {name} refers to {identity}, which does not exist",
                f"remove it with 'overlayfs-demo rmi {name}'",
            )
            for identity, given in names.items()
            if identity not in identities
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

    def find(self, word: str, remedy: str = _LIST) -> StoredImage:
        """Return the image that a name, an ID or the start of an ID means, see `find_image`. Raises ImageError."""
        names, problems = self._sound_names()
        found = self._identify(word, names, problems, remedy)
        image = self._image(found.id, *self._config(found.id), names.get(found.id, ()))
        return replace(image, name=found.name)

    def identify(self, word: str) -> Found:
        """Return the ID and name that `find` would find, even if the image is damaged. Raises ImageError."""
        return self._identify(word, *self._sound_names())

    def _identify(self, word: str, names: NamesByImage, problems: Sequence[ImageError], remedy: str = _LIST) -> Found:
        identities = dict.fromkeys([*_named_by_hash(self._images), *names])
        images = (Named(identity, names.get(identity, ())) for identity in identities)
        try:
            return find_image(word, images, "", remedy)
        except ImageError:
            if problems:
                raise problems[0] from None
            raise

    # --- names -------------------------------------------------------------------------------------

    @property
    def names_file(self) -> Path:
        """The file that holds all names."""
        return self.root / "names.json"

    def _sound_names(self) -> tuple[NamesByImage, Sequence[ImageError]]:
        """Return the names of each image that are not damaged, sorted as they are shown, and what is damaged."""
        problems: list[ImageError] = []
        return names_by_image(read_sound_names(self.names_file, problems)), problems

    def names_by_image(self) -> NamesByImage:
        """Return the names of each image that are not damaged, sorted as they are shown."""
        return self._sound_names()[0]

    def names_of(self, identity: Digest) -> tuple[ImageName, ...]:
        """Return the names of an image that are not damaged, sorted as they are shown."""
        return self.names_by_image().get(identity, ())

    def name_image(self, name: ImageName, identity: Digest) -> Digest | None:
        """Let a name stand for an image; return the different image that it stood for, if any. Call while `writing`."""
        return self.give_names([name], identity).get(name)

    def give_names(self, names: Sequence[ImageName], identity: Digest) -> Mapping[ImageName, Digest]:
        """Let names stand for an image; return those that stood for another, and for which. Call while `writing`."""
        before = read_names(self.names_file)
        self.write_names({**before, **dict.fromkeys(names, identity)})
        return {name: before[name] for name in names if before.get(name, identity) != identity}

    def remove_name(self, name: ImageName) -> None:
        """Remove a name from its image. Call while `writing`."""
        self.write_names({key: target for key, target in read_names(self.names_file).items() if key != name})

    def write_names(self, names: Names) -> None:
        """Replace all names. Call while `writing`."""
        self._write(self.names_file, names_json(names))

    def _write(self, path: Path, data: bytes) -> None:
        durable.write_file(path, data, self.tmp / f"{path.name}.new")
