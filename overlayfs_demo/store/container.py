"""The record of a container, and where it is kept.

STORE/containers/NAME/container.json   its image, its layers, its time of creation and its mount point
STORE/containers/NAME/upper, work      what it changed
STORE/containers/NAME/merged           its mount point by default

Nothing here mounts anything: that is in `containers`.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from overlayfs_demo.errors import ImageError, MountError, printable
from overlayfs_demo.images.model import Digest, Document, parse_json
from overlayfs_demo.images.record_file import read_file
from overlayfs_demo.store import durable
from overlayfs_demo.store.store import Store

# The names that Docker allows.
NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+")
_NAME_RULE = "use letters, digits, '_', '.' and '-', and begin with a letter or digit"
MERGED = "merged"
_RECORD = "container.json"


@dataclass(frozen=True, slots=True)
class Container:
    """A container.

    `created` is RFC 3339 text; `image_name` is the name that the image had then; `time_machine` says whether its view
    has one, see `overlay.layer_snapshots`; `options` are the requested options in mount(8)'s words.
    """

    name: str
    directory: Path
    image: Digest
    image_name: str
    chain_ids: tuple[Digest, ...]
    created: str
    mountpoint: Path
    time_machine: bool
    options: str

    @property
    def upper(self) -> Path:
        """The directory that holds its changes."""
        return self.directory / "upper"

    @property
    def work(self) -> Path:
        """The overlay's work directory."""
        return self.directory / "work"

    def write(self, staged: Path) -> None:
        """Write its record into a directory that has or will have its place. Raises OSError.

        The default mount point is written relative to the directory, so a rename of that needs no other record.
        """
        fields = {
            "image": str(self.image),
            "image_name": self.image_name,
            "layers": list(map(str, self.chain_ids)),
            "created": self.created,
            "mountpoint": MERGED if self.mountpoint == self.directory / MERGED else str(self.mountpoint),
            "time_machine": self.time_machine,
            "options": self.options,
        }
        durable.write_file(staged / _RECORD, json.dumps(fields).encode(), staged / f"{_RECORD}.new")


def check_name(name: str) -> None:
    """Raise MountError if a container cannot have this name."""
    if NAME.fullmatch(name):
        return
    if NAME.fullmatch(name + "_"):
        raise MountError(f"'{name}' is too short for a container's name", "use at least two characters")
    raise MountError(f"'{printable(name)}' is not a valid container name", _NAME_RULE)


def directory_of(store: Store) -> Path:
    """Return the directory that holds those of the containers; it may not exist."""
    return store.root / "containers"


def names(store: Store) -> list[str]:
    """Return the names of all containers, sorted; their records may be damaged."""
    root = directory_of(store)
    if not root.is_dir():
        return []
    return [path.name for path in sorted(root.iterdir()) if (path / _RECORD).exists()]


def all_containers(store: Store) -> list[Container]:
    """Return every container, sorted by name. Raises MountError."""
    return [find_container(store, name) for name in names(store)]


def users(store: Store) -> Mapping[Digest, list[str]]:
    """Return the names of the containers made from each image. Raises MountError."""
    found: dict[Digest, list[str]] = {}
    for container in all_containers(store):
        found.setdefault(container.image, []).append(container.name)
    return found


def is_container(store: Store, name: str) -> bool:
    """Return whether there is a container with this name, even if its record is damaged."""
    return NAME.fullmatch(name) is not None and (directory_of(store) / name / _RECORD).exists()


def find_container(store: Store, name: str) -> Container:
    """Return the container with this name. Raises MountError."""
    directory = directory_of(store) / name
    try:
        if not NAME.fullmatch(name):
            raise FileNotFoundError
        data = read_file(directory / _RECORD)
        row = Document(parse_json(data, str(directory / _RECORD)), printable(name))
        return Container(
            name,
            directory,
            row.digest("image"),
            row.text("image_name"),
            tuple(Digest.parse(text, name) for text in row.texts("layers")),
            row.text("created"),
            directory / row.text("mountpoint"),
            row.flag("time_machine"),
            row.text("options"),
        )
    except FileNotFoundError:
        raise MountError(f"no container '{printable(name)}'", _instead_of(store, name)) from None
    except ImageError as error:
        raise MountError(
            f"the record of container '{name}' is damaged ({error.problem})",
            f"save its changes from 'upper' in {printable(str(directory))}, then remove that directory",
        ) from None


def _instead_of(store: Store, name: str) -> str:
    """Return the advice for a name that no container has."""
    try:
        store.identify(name)
    except ImageError:
        near = difflib.get_close_matches(name, names(store), 1)
        return f"did you mean '{near[0]}'?" if near else "'overlayfs-demo ps' lists the containers"
    return "that is an image: 'create' makes a container from it, and 'diff IMAGE IMAGE' compares two images"
