"""The verb `df`: how much space images and containers take, and how much they share."""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from overlayfs_demo.cli.command import Verbs
from overlayfs_demo.cli.container_rows import ContainerUsage, container_fields, usages_of
from overlayfs_demo.cli.format_option import add_format, form_of
from overlayfs_demo.cli.image_lists import image_rows, inventory
from overlayfs_demo.cli.store_options import add_json, add_verb, store_of
from overlayfs_demo.errors import UsageError
from overlayfs_demo.images.model import Digest
from overlayfs_demo.store.container import all_containers
from overlayfs_demo.store.stored import Inventory, StoredImage
from overlayfs_demo.ui import docker_tables
from overlayfs_demo.ui.console import put, put_json
from overlayfs_demo.ui.docker_format import put_rows
from overlayfs_demo.ui.docker_listings import CONTAINERS, DISK_USAGE, IMAGES
from overlayfs_demo.ui.go_values import Row, to_json
from overlayfs_demo.ui.table import Table
from overlayfs_demo.ui.terminal import put_prose, put_table
from overlayfs_demo.ui.text import human_size

# The tables of `docker system df -v` (docker/cli, cli/command/formatter/disk_usage.go), without volumes and the cache.
_VERBOSE_IMAGES = (
    "table {{.Repository}}\t{{.Tag}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}\t{{.SharedSize}}\t{{.UniqueSize}}\t"
    "{{.Containers}}"
)
_VERBOSE_CONTAINERS = (
    "table {{.ID}}\t{{.Image}}\t{{.Command}}\t{{.LocalVolumes}}\t{{.Size}}\t{{.RunningFor}}\t{{.Status}}\t{{.Names}}"
)


def add_verbs(verbs: Verbs[argparse.ArgumentParser]) -> None:
    """Add the verbs of this module."""
    verb = add_verb(verbs, "df", "df\ndf --verbose\ndf --format '{{.Type}}: {{.Size}}'", _df)
    verb.add_argument("--verbose", "-v", action="store_true", help="docker's tables of all images and containers")
    add_format(verb)
    add_json(verb)


@dataclass(frozen=True, slots=True)
class _Usage:
    """The space that an image takes, in bytes: `shared` is that of the layers that other images have, too."""

    image: StoredImage
    shared: int

    @property
    def unique(self) -> int:
        """The bytes of the layers that only this image has."""
        return self.image.size - self.shared

    def cells(self) -> tuple[str, ...]:
        """Return the row of the table."""
        sizes = (self.image.size, self.shared, self.unique)
        return self.image.title, self.image.id.short, *map(human_size, sizes)

    def json(self) -> dict[str, object]:
        """Return the object for machines."""
        return {
            "Image": self.image.title,
            "ID": str(self.image.id),
            "Size": self.image.size,
            "SharedSize": self.shared,
            "UniqueSize": self.unique,
        }


def _df(arguments: argparse.Namespace) -> int:
    """Print how much space the images take, and how much less is stored because they share layers."""
    form = form_of(arguments)
    store = store_of(arguments)
    found = inventory(store)
    uses = _uses(found)
    usages = _usages(found, uses)
    if form or arguments.verbose:
        containers = usages_of(store, all_containers(store))
        if not arguments.verbose:
            return _put_totals(found, usages, containers, str(form))
        return _put_verbose(usages, containers, "json" if arguments.json else form)
    stored = sum(layer.size for layer in found.layers)
    listed = sum(image.size for image in found.images)
    unused = sum(layer.size for layer in found.layers if not uses[layer.chain_id] and not found.may_need(layer))
    if arguments.json:
        put_json([usage.json() for usage in usages] + [{"Listed": listed, "Stored": stored, "Unused": unused}])
        return 0
    put_table(Table(("IMAGE", "IMAGE ID", "SIZE", "SHARED SIZE", "UNIQUE SIZE"), [usage.cells() for usage in usages]))
    told, used = [], stored - unused
    # Less than the sizes show is not worth a sentence that says "6MB, but only 6MB".
    if listed > used and human_size(listed) != human_size(used):
        told.append(
            f"The sizes add up to {human_size(listed)}, but only {human_size(used)} is stored: a layer "
            "shared by several images is stored once."
        )
    if unused:
        told.append(f"{human_size(unused)} is in layers that no image uses: 'prune' removes them.")
    if told:
        put_prose("\n" + "".join(line + "\n" for line in told))
    return 0


def _usages(found: Inventory, uses: Counter[Digest]) -> list[_Usage]:
    return [
        _Usage(image, sum(layer.size for layer in image.layers if uses[layer.chain_id] > 1)) for image in found.images
    ]


def _uses(found: Inventory) -> Counter[Digest]:
    """Return how many images have each layer, by its chain ID."""
    return Counter(layer.chain_id for image in found.images for layer in set(image.layers))


# --- as docker has it ------------------------------------------------------------------------------


def _put_totals(found: Inventory, usages: Sequence[_Usage], containers: Sequence[ContainerUsage], form: str) -> int:
    put_rows(DISK_USAGE, form, [_images_total(found, usages, containers), _containers_total(containers)])
    return 0


def _put_verbose(usages: Sequence[_Usage], containers: Sequence[ContainerUsage], form: str | None) -> int:
    now, in_json = time.time(), form == "json"
    images = _image_rows(usages, containers, now, trunc=not in_json)
    # `docker ps` also says the size of the whole tree, and this table does not.
    rows = [Row(container_fields(usage, now, trunc=not in_json), Size=human_size(usage.size)) for usage in containers]
    if in_json:
        put(to_json(Row(Images=images, Containers=rows)) + "\n")
        return 0
    if form:
        raise UsageError("--verbose has two tables, and one --format cannot shape both", "use --format json")
    put("Images space usage:\n\n")
    put_rows(IMAGES, _VERBOSE_IMAGES, images, whole=False)
    put("\nContainers space usage:\n\n")
    put_rows(CONTAINERS, _VERBOSE_CONTAINERS, rows, whole=False)
    return 0


def _images_total(found: Inventory, usages: Sequence[_Usage], containers: Sequence[ContainerUsage]) -> Row:
    """Return the row of all images: what no container's image needs alone could be reclaimed (disk_usage.go)."""
    used_by_containers = {usage.container.image for usage in containers}
    stored = sum(layer.size for layer in found.layers)
    reclaimable = stored - sum(usage.unique for usage in usages if usage.image.id in used_by_containers)
    active = sum(usage.image.id in used_by_containers for usage in usages)
    return _total("Images", len(usages), active, stored, reclaimable)


def _containers_total(containers: Sequence[ContainerUsage]) -> Row:
    """Return the row of all containers: the uppers of those that are not mounted could be reclaimed."""
    size = sum(usage.size for usage in containers)
    reclaimable = sum(usage.size for usage in containers if usage.record is None)
    active = sum(usage.record is not None for usage in containers)
    return _total("Containers", len(containers), active, size, reclaimable)


def _total(kind: str, count: int, active: int, size: int, reclaimable: int) -> Row:
    share = f" ({reclaimable * 100 // size}%)" if size else ""
    return Row(
        Active=str(active),
        Reclaimable=docker_tables.virtual_size(reclaimable) + share,
        Size=docker_tables.virtual_size(size),
        TotalCount=str(count),
        Type=kind,
    )


def _image_rows(
    usages: Sequence[_Usage], containers: Sequence[ContainerUsage], now: float, *, trunc: bool
) -> list[Row]:
    """Return the rows of the images, with what docker counts for `df` only."""
    by_id = {str(usage.image.id): usage for usage in usages}
    made = Counter(str(usage.container.image) for usage in containers)
    return [
        Row(
            docker_tables.image_fields(row, now, trunc),
            Containers=str(made[row.id]),
            SharedSize=human_size(by_id[row.id].shared),
            UniqueSize=human_size(by_id[row.id].unique),
        )
        for row in image_rows(usage.image for usage in usages)
    ]
