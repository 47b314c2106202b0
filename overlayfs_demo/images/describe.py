"""The values that `docker images`, `docker history` and `docker inspect` show of an image.

They are in Docker's order and under Docker's keys; `ui.docker_tables` turns them into lines. The rules are those of
Docker 20.10: moby daemon/images/image_history.go, images.go and image_inspect.go, and docker/cli
cli/command/formatter/image.go. Sizes are in bytes, times in seconds since 1970.

An archive does not hold what belongs to one machine's Docker: an image's parents there, the digests by which it was
pulled, the places of its layers, the time when it was tagged. What is shown is what Docker shows of an image that it
has loaded from an archive; the caller may give the places of the layers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from overlayfs_demo.errors import ImageError
from overlayfs_demo.images.config import Fields, creation_time, read_time, settings
from overlayfs_demo.images.model import Digest, Image, parse_json

MISSING = "<missing>"
NONE = "<none>"


@dataclass(frozen=True, slots=True)
class Changes:
    """How many files a layer adds to, changes in and deletes from the layers below, and its whiteouts."""

    added: int
    changed: int
    deleted: int
    whiteouts: int


@dataclass(frozen=True, slots=True)
class LayerFacts:
    """What the caller counted in one layer.

    `size` is what Docker calls the layer's DiffSize, in bytes, see `overlay.layer_size`.
    """

    size: int
    changes: Changes | None = None


@dataclass(frozen=True, slots=True)
class LayerNames:
    """The layer that a step made, and its changes if the caller counted them."""

    diff_id: Digest
    chain_id: Digest
    changes: Changes | None


@dataclass(frozen=True, slots=True)
class HistoryRow:
    """One row of `docker history`: `size` in bytes, `created` in seconds since 1970 (None if no step says it).

    `layer`, which Docker leaves out, is None if the step changed metadata only.
    """

    id: str
    created: int | None
    created_by: str
    size: int
    comment: str
    layer: LayerNames | None


@dataclass(frozen=True, slots=True)
class Summary:
    """An image as in Docker's list: `created` in seconds since 1970, `size` in bytes, names sorted."""

    id: str
    created: int
    size: int
    tags: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ImageRow:
    """One row of `docker images`: one name of an image, with `<none>` for missing parts."""

    repository: str
    tag: str
    id: str
    created: int
    size: int


@dataclass(frozen=True, slots=True)
class GraphDriver:
    """What stores an image's layers, and where they are: `data` is None if the image has none."""

    name: str
    data: Mapping[str, str] | None


def image_id(image: Image) -> Digest:
    """Return the image ID, the digest of the config. Raises ImageError for a flat tree, which has no config."""
    if not image.config:
        raise ImageError("a flat tree is not an image: it has no config", "turn it into one with docker import")
    return Digest.of(image.config)


def _fields(image: Image) -> Fields:
    image_id(image)
    return Fields(parse_json(image.config, "config"), "config")


# --- history ---------------------------------------------------------------------------------------


def history_rows(image: Image, layers: Sequence[LayerFacts], every_layer: bool = False) -> tuple[HistoryRow, ...]:
    """Return the rows of `docker history`, the newest first.

    `layers` are given from the bottom up. The images from which this one was built are not here, so all rows except the
    top one are `<missing>`. With `every_layer`, layers that the history does not reach also get rows; Docker leaves
    them out. Raises ImageError if there is no config, if more steps made a layer than there are layers, or if a time is
    not valid; ValueError unless there are facts for every layer.
    """
    named = [
        (LayerNames(layer.diff_id, chain_id, facts.changes), facts.size)
        for layer, chain_id, facts in zip(image.layers, image.chain_ids, layers, strict=True)
    ]
    rows, used = [], 0
    for number, step in enumerate(image.history):
        where = f"config: 'history'[{number}]"
        names, size = None, 0
        if not step.empty_layer:
            if used == len(named):
                raise ImageError(f"{where}: creates a layer, but the image has only {used}", "export the image again")
            names, size = named[used]
            used += 1
        seconds, _ = read_time(step.created, where)
        rows.append(HistoryRow(MISSING, seconds, step.created_by, size, step.comment, names))
    if every_layer:
        rows += [HistoryRow(MISSING, None, "", size, "", names) for names, size in named[used:]]
    rows.reverse()
    identity = str(image_id(image))
    return tuple(replace(row, id=row.id if number else identity) for number, row in enumerate(rows))


# --- images ----------------------------------------------------------------------------------------


def summarize(image: Image, layers: Sequence[LayerFacts]) -> Summary:
    """Return an image's entry for the list; `layers` as for `history_rows`.

    Raises ImageError if there is no config or its time is not valid; ValueError unless there are facts for every layer.
    """
    created, _ = creation_time(_fields(image))
    return Summary(str(image_id(image)), created, _size(image, layers), _sorted(image.tags))


def image_rows(summaries: Iterable[Summary]) -> tuple[ImageRow, ...]:
    """Return the rows of `docker images`, the newest image first: one per tag, or `<none>` for an image without tags.

    The names of one image are sorted; Docker has them in the random order of a Go map.
    """
    return tuple(
        ImageRow(*name, image.id, image.created, image.size)
        for image in sorted(summaries, key=lambda summary: summary.created, reverse=True)
        for name in _repositories_and_tags(image)
    )


def _repositories_and_tags(summary: Summary) -> list[tuple[str, str]]:
    named = [reference.rpartition(":") for reference in summary.tags]
    return [(repository, tag) for repository, _, tag in named] or [(NONE, NONE)]


def _size(image: Image, layers: Sequence[LayerFacts]) -> int:
    return sum(facts.size for _, facts in zip(image.layers, layers, strict=True))


def _sorted(references: Iterable[str]) -> tuple[str, ...]:
    """Return references in their short form, sorted by their long form (moby reference/store.go, References)."""
    return tuple(short for _, short in sorted(set(map(_reference, references))))


def _reference(text: str) -> tuple[str, str]:
    """Return a reference as Docker sorts it, and as it shows it (distribution reference/normalize.go).

    A name without a registry is Docker Hub's, one without a slash is in its `library`, and one without a tag
    is `latest`.
    """
    host, slash, path = text.partition("/")
    if not slash or not (re.search("[.:]", host) or host == "localhost" or host != host.lower()):
        host, path = "docker.io", text
    host = "docker.io" if host == "index.docker.io" else host
    if "@" not in path and ":" not in path:
        path += ":latest"
    if host != "docker.io":
        return f"{host}/{path}", f"{host}/{path}"
    if path.startswith("library/") and path.count("/") == 1:
        path = path.removeprefix("library/")
    return f"{host}/{path}" if "/" in path else f"{host}/library/{path}", path


# --- inspect ---------------------------------------------------------------------------------------


def inspect(image: Image, layers: Sequence[LayerFacts], driver: GraphDriver | None = None) -> dict[str, object]:
    """Return the object that `docker inspect` prints, keys in Docker's order (moby api/types/types.go, ImageInspect).

    Without a `driver`, its key is left out. Raises ImageError if there is no config, or if a part of it has the wrong
    type; ValueError unless there are facts for every layer.
    """
    fields = _fields(image)
    size = _size(image, layers)
    last = image.history[-1].comment if image.history else ""
    found: dict[str, object] = {
        "Id": str(image_id(image)),
        "RepoTags": list(_sorted(image.tags)),
        "RepoDigests": [],
        "Parent": "",
        "Comment": fields.text("comment") or last,
        "Created": creation_time(fields)[1],
        "Container": fields.text("container"),
        "ContainerConfig": settings(fields.inner("container_config") or Fields({}, "config")),
        "DockerVersion": fields.text("docker_version"),
        "Author": fields.text("author"),
        "Config": None if (config := fields.inner("config")) is None else settings(config),
        "Architecture": fields.text("architecture"),
        **_unless_empty("Variant", fields.text("variant")),
        "Os": fields.text("os") or "linux",
        **_unless_empty("OsVersion", fields.text("os.version")),
        "Size": size,
        "VirtualSize": size,
    }
    if driver is not None:
        found["GraphDriver"] = {"Data": driver.data and dict(sorted(driver.data.items())), "Name": driver.name}
    rootfs = fields.inner("rootfs") or Fields({}, "config")
    diff_ids = [str(layer.diff_id) for layer in image.layers]
    found["RootFS"] = {"Type": rootfs.text("type"), **_unless_empty("Layers", diff_ids)}
    return found


def _unless_empty(key: str, value: object) -> dict[str, object]:
    return {key: value} if value else {}
