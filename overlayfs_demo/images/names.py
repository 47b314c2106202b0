"""The names of the images in a store: `names.json`, which says what image ID each name stands for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from overlayfs_demo.errors import ImageError, printable
from overlayfs_demo.images.model import Digest, Document, parse_json
from overlayfs_demo.images.reference import ImageName

Names = Mapping[ImageName, Digest]


def read_names(path: Path) -> Names:
    """All names in the file; none if it is not there. Raises ImageError if it, or any row of it, is damaged."""
    problems: list[ImageError] = []
    names = read_sound_names(path, problems)
    if problems:
        raise problems[0]
    return names


def read_sound_names(path: Path, problems: list[ImageError]) -> Names:
    """The names in the file that can be read; what is damaged is added to `problems`. Raises OSError."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return {}
    where = printable(str(path))
    try:
        rows = Document(parse_json(data, where), where)
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
        f"the names of images are damaged ({error.problem})",
        f"{remedy}: the images stay, and 'overlayfs-demo tag' names them again",
    )


def names_by_image(names: Names) -> Mapping[Digest, tuple[ImageName, ...]]:
    """The names that each image has, sorted as they are shown."""
    found: dict[Digest, tuple[ImageName, ...]] = {}
    for name in sorted(names, key=str):
        found[names[name]] = (*found.get(names[name], ()), name)
    return found


def names_json(names: Names) -> bytes:
    """What the file must hold to say this."""
    rows = {str(name): str(identity) for name, identity in names.items()}
    return json.dumps(dict(sorted(rows.items())), indent=1).encode()
