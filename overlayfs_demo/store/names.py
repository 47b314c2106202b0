"""The names of the images in a store: `names.json`, which gives the image ID that each name stands for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from overlayfs_demo.errors import ImageError, printable
from overlayfs_demo.images.model import Digest, Document, parse_json
from overlayfs_demo.images.record_file import read_file
from overlayfs_demo.images.reference import ImageName

Names = Mapping[ImageName, Digest]
NamesByImage = Mapping[Digest, tuple[ImageName, ...]]


def read_names(path: Path) -> Names:
    """Return all names in the file; none if it does not exist. Raises ImageError if any part of it is damaged."""
    problems: list[ImageError] = []
    names = read_sound_names(path, problems)
    if problems:
        raise problems[0]
    return names


def read_sound_names(path: Path, problems: list[ImageError]) -> Names:
    """Return the names in the file that can be read; damaged parts are added to `problems`. Raises OSError."""
    where = printable(str(path))
    try:
        rows = Document(parse_json(read_file(path), where), where)
    except FileNotFoundError:
        return {}
    except ImageError as error:
        problems.append(_damaged(error, "remove that file"))
        return {}
    names = {}
    for row in rows:
        try:
            names[ImageName.parse(row)] = rows.digest(row)
        except ImageError as error:
            problems.append(_damaged(error, f"remove the row '{printable(row)}' from {where}"))
    return names


def _damaged(error: ImageError, remedy: str) -> ImageError:
    return ImageError(
        f"the list of image names is damaged ({error.problem})",
        f"{remedy}: the images stay, and 'overlayfs-demo tag' names them again",
    )


def names_by_image(names: Names) -> NamesByImage:
    """Return the names of each image, sorted as they are shown."""
    found: dict[Digest, tuple[ImageName, ...]] = {}
    for name in sorted(names, key=str):
        found[names[name]] = (*found.get(names[name], ()), name)
    return found


def names_json(names: Names) -> bytes:
    """Return the contents of the file for these names."""
    rows = {str(name): str(identity) for name, identity in names.items()}
    return json.dumps(dict(sorted(rows.items())), indent=1).encode()
