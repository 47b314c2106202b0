"""What the checks of a store share: the store, and where damaged things are put."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from overlayfs_demo.errors import ImageError, printable
from overlayfs_demo.fsck.work_check import LOST_AND_FOUND, set_aside
from overlayfs_demo.images.model import Digest, chain_ids
from overlayfs_demo.store import durable
from overlayfs_demo.store.container import directory_of
from overlayfs_demo.store.scratch import scratch
from overlayfs_demo.store.store import Store


@dataclass(frozen=True, slots=True)
class Parts:
    """A store that nobody else changes, and perhaps damaged."""

    store: Store

    @property
    def lost(self) -> Path:
        """Where things go that only a person can judge."""
        return self.store.root / LOST_AND_FOUND

    def set_aside(self, *paths: Path) -> None:
        """Move what exists of these paths, in order, to `lost`. Raises OSError."""
        durable.make_directory(self.lost, 0o700)
        for path in paths:
            if path.exists() or path.is_symlink():
                set_aside(path, self.lost)
                durable.sync_directory(path.parent)
        durable.sync_directory(self.lost)

    def files(self, part: str) -> list[Path]:
        """Return what is in one of the store's directories, sorted; nothing if that does not exist."""
        directory = self.store.root / part
        return sorted(directory.iterdir()) if directory.is_dir() else []

    def diff_ids(self) -> dict[Digest, Digest]:
        """Return the diff ID of each layer, by its chain ID, as the configs of the images say."""
        found: dict[Digest, Digest] = {}
        for path in self.files("images"):
            try:
                diff_ids = self.store.config(Digest("sha256", path.name)).diff_ids
            except (ImageError, OSError):
                continue  # It is another finding.
            found.update(zip(chain_ids(diff_ids), diff_ids, strict=True))
        return found

    def missing_layers(self, identity: Digest) -> tuple[Digest, ...] | None:
        """Return the layers of an image that are not here; None if its config is missing or damaged.

        A damaged layer is another finding.
        """
        if identity == scratch().id:
            return ()
        try:
            needed = self.store.chain_ids_of(identity)
        except (ImageError, OSError):
            return None
        return tuple(chain_id for chain_id in needed if not self.store.place(chain_id).is_dir())

    def container_directories(self) -> list[Path]:
        """Return the directories of all containers; their records may be damaged."""
        return self.files(directory_of(self.store).name)


def shown(path: Path) -> str:
    """Return a path for people."""
    return printable(str(path))
