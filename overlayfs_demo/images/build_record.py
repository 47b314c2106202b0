"""The record of what was built in a directory of layers, kept there in `.layers.json`."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from overlayfs_demo.errors import printable
from overlayfs_demo.images.layer_tree import BUILDING
from overlayfs_demo.images.model import Document, parse_json
from overlayfs_demo.images.record_file import LAYERS_RECORD, read_file


@dataclass(frozen=True, slots=True)
class RecordedLayer:
    """What `.layers.json` says about a directory. The same layer on different layers is a different directory.

    `marks` names the attributes that mark opaque directories, `owners` says whether owners were kept, `made_by` is the
    Dockerfile line ("" if unknown), and `size` the bytes of the files.
    """

    diff_id: str
    chain_id: str
    marks: str
    owners: bool
    made_by: str
    size: int

    def same_layer(self, other: RecordedLayer) -> bool:
        """Return whether both describe the same files, so that either can be used in a mount."""
        return (self.chain_id, self.marks, self.owners) == (other.chain_id, other.marks, other.owners)


def read_record(outdir: Path) -> dict[str, RecordedLayer]:
    """Return what was built, keyed by the directory's name; empty without a record. Raises ImageError or OSError."""
    path = outdir / LAYERS_RECORD
    try:
        data = read_file(path)
    except FileNotFoundError:
        return {}
    record = Document(parse_json(data, str(path)), printable(str(path)))
    return {
        row.text("directory"): RecordedLayer(
            row.text("diff_id"),
            row.text("chain_id"),
            row.text("marks"),
            row.flag("owners"),
            row.text("made_by"),
            row.size("size"),
        )
        for row in record.documents("layers")
    }


def write_record(out_fd: int, record: Mapping[str, RecordedLayer]) -> None:
    """Write the record into the directory `out_fd`, atomically for readers. Raises OSError."""
    rows = [
        {
            "directory": name,
            "diff_id": entry.diff_id,
            "chain_id": entry.chain_id,
            "marks": entry.marks,
            "owners": entry.owners,
            "made_by": entry.made_by,
            "size": entry.size,
        }
        for name, entry in sorted(record.items())
    ]
    unfinished = os.fsdecode(BUILDING) + LAYERS_RECORD
    fd = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644, dir_fd=out_fd)
    with os.fdopen(fd, "w", encoding="utf-8") as file:
        json.dump({"layers": rows}, file, indent=1)
        file.write("\n")
    os.rename(unfinished, LAYERS_RECORD, src_dir_fd=out_fd, dst_dir_fd=out_fd)


def built_titles(directories: Sequence[bytes]) -> tuple[str, ...]:
    """Return what made each of these directories; "" for one without a record. Raises ImageError or OSError."""
    paths = [Path(os.fsdecode(directory)) for directory in directories]
    records = {parent: read_record(parent) for parent in {path.parent for path in paths}}
    found = [records[path.parent].get(path.name) for path in paths]
    return tuple(entry.made_by if entry else "" for entry in found)
