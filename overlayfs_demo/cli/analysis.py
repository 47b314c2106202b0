"""The verbs that account for the bytes of an image, and the comparison of two images."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from overlayfs_demo.analysis.accounts import Hidden
from overlayfs_demo.analysis.ghosts import extract_ghosts
from overlayfs_demo.analysis.image_diff import PathChange, diff_trees
from overlayfs_demo.analysis.waste import Analysis
from overlayfs_demo.cli.command import Verbs
from overlayfs_demo.cli.image_analysis import analysis_of
from overlayfs_demo.cli.store_options import add_json, add_verb, store_of
from overlayfs_demo.errors import ImageError, printable
from overlayfs_demo.images.lowers import Lowers
from overlayfs_demo.linux import proc
from overlayfs_demo.store.store import Store
from overlayfs_demo.store.stored import StoredImage
from overlayfs_demo.ui.console import note, put, put_json
from overlayfs_demo.ui.table import Table
from overlayfs_demo.ui.terminal import progress, put_changes, put_prose, put_table
from overlayfs_demo.ui.text import human_size, percentage, plural
from overlayfs_demo.ui.text_diff import text_lines, unified

# A text with more bytes than this is not compared line by line.
_LONGEST_TEXT = 1 << 20
_MOST_FILES = 10
_WASTE = {"WASTED": "red"}


def add_verbs(verbs: Verbs[argparse.ArgumentParser]) -> None:
    """Add the verbs of this module."""
    verb = add_verb(verbs, "analyze", "analyze app:1.0 --max-wasted 10%", _analyze)
    verb.add_argument("image", metavar="IMAGE")
    verb.add_argument("--max-wasted", type=_limit, metavar="P%|BYTES", help="exit with status 1 if more is wasted")
    verb.add_argument("--all", "-a", action="store_true", help="list every hidden file, not only the largest")
    add_json(verb)
    verb = add_verb(verbs, "ghosts", "ghosts app:1.0", _ghosts)
    verb.add_argument("image", metavar="IMAGE")
    verb.add_argument("--extract", type=Path, metavar="DIR", help="copy the files into this new or empty directory")
    add_json(verb)


def _limit(word: str) -> tuple[float, bool]:
    """Return a number, and whether it is a percentage."""
    try:
        number = float(word.removesuffix("%"))
    except ValueError:
        number = -1
    if number < 0:
        raise argparse.ArgumentTypeError("use a percentage such as 10%, or a number of bytes")
    return number, word.endswith("%")


# --- analyze ---------------------------------------------------------------------------------------


def _analyze(arguments: argparse.Namespace) -> int:
    image = store_of(arguments).find(arguments.image)
    with progress() as told:
        analysis = analysis_of(image, told, duplicates=True)
    if arguments.json:
        put_json([_analysis_json(image, analysis)])
    else:
        put_table(_layers_table(analysis))
        put_prose("\n" + _summary(image, analysis))
        _put_hidden(analysis, None if arguments.all else _MOST_FILES)
    if arguments.max_wasted is None:
        return 0
    number, percent = arguments.max_wasted
    allowed = analysis.shipped * number / 100 if percent else number
    if analysis.wasted <= allowed:
        return 0
    limit = f"{number:g}%" if percent else human_size(number)
    wasted = f"{human_size(analysis.wasted)}{_share(analysis)}"
    note(f"{printable(image.title)} wastes {wasted}, more than the {limit} allowed")
    return 1


def _share(analysis: Analysis) -> str:
    return f" ({percentage(analysis.wasted, analysis.shipped)})" if analysis.shipped else ""


def _layers_table(analysis: Analysis) -> Table:
    header = ("LAYER", "ADDED", "CHANGED", "DELETED", "SHIPPED", "LIVE", "WASTED", "MADE BY")
    return Table(
        header,
        [
            (
                str(report.number),
                str(report.added.paths),
                str(report.changed.paths),
                str(report.deleted.paths),
                *(human_size(size) for size in (report.shipped, report.live, report.wasted)),
                printable(report.title),
            )
            for report in analysis.layers
        ],
        _WASTE,
    )


def _summary(image: StoredImage, analysis: Analysis) -> str:
    # A hidden copy is already counted as waste.
    seen = [(duplicate.size, sum(copy.live for copy in duplicate.copies)) for duplicate in analysis.duplicates]
    repeated = [(size, number - 1) for size, number in seen if number > 1]
    lines = [
        f"{printable(image.title)} ships {human_size(analysis.shipped)} of files: "
        f"{human_size(analysis.live)} visible, "
        f"{human_size(analysis.wasted)}{_share(analysis)} hidden by later layers.",
        f"dive's efficiency score: {percentage(analysis.dive_score, 1, digits=2)}; {analysis.dive_reason}",
    ]
    if repeated:
        copies, files = sum(size * number for size, number in repeated), plural(len(repeated), "file")
        lines.append(
            f"Not counted as waste: {human_size(copies)} in {files} whose data appears in the image more than once."
        )
    return "".join(line + "\n" for line in lines)


def _put_hidden(analysis: Analysis, most: int | None) -> None:
    hidden = sorted(analysis.hidden, key=lambda file: (-file.wasted, file.path))
    if not hidden:
        return
    rows = [
        (
            human_size(file.wasted),
            str(file.shipped_by),
            f"{file.hidden_by} ({file.why.value})",
            printable(b"/" + file.path),
        )
        for file in hidden[:most]
    ]
    put("\n")
    put_table(Table(("WASTED", "SHIPPED BY", "HIDDEN BY", "FILE"), rows, _WASTE))
    if left := len(hidden) - len(rows):
        put(f"... and {left} more (use --all to show them)\n")


def _analysis_json(image: StoredImage, analysis: Analysis) -> dict[str, object]:
    return {
        "Image": image.title,
        "ID": str(image.id),
        "Shipped": analysis.shipped,
        "Live": analysis.live,
        "Wasted": analysis.wasted,
        "DiveScore": analysis.dive_score,
        "Layers": [
            {
                "Number": report.number,
                "ChainID": str(layer.chain_id),
                "MadeBy": report.title,
                "Added": report.added.paths,
                "Changed": report.changed.paths,
                "Deleted": report.deleted.paths,
                "Whiteouts": report.whiteouts,
                "OpaqueDirectories": report.opaque,
                "Shipped": report.shipped,
                "Live": report.live,
                "Wasted": report.wasted,
            }
            for report, layer in zip(analysis.layers, image.layers, strict=True)
        ],
        "Hidden": [_hidden_json(file) for file in analysis.hidden],
        "Duplicates": [
            {"Size": duplicate.size, "Paths": [os.fsdecode(b"/" + copy.path) for copy in duplicate.copies]}
            for duplicate in analysis.duplicates
        ],
    }


def _hidden_json(file: Hidden) -> dict[str, object]:
    return {
        "Path": os.fsdecode(b"/" + file.path),
        "ShippedBy": file.shipped_by,
        "HiddenBy": file.hidden_by,
        "Why": file.why.value,
        "Size": file.size,
        "Wasted": file.wasted,
    }


# --- ghosts ----------------------------------------------------------------------------------------


def _ghosts(arguments: argparse.Namespace) -> int:
    image = store_of(arguments).find(arguments.image)
    with progress() as told:
        found = analysis_of(image, told).ghosts
    ghosts = sorted(found, key=lambda ghost: (-ghost.size, ghost.path, ghost.shipped_by))
    if arguments.extract is not None:
        extract_ghosts(ghosts, [layer.directory for layer in image.layers], arguments.extract)
    if arguments.json:
        put_json([_hidden_json(ghost) for ghost in ghosts])
    else:
        put_table(
            Table(
                ("SIZE", "SHIPPED BY", "DELETED BY", "FILE"),
                [
                    (human_size(ghost.size), str(ghost.shipped_by), str(ghost.hidden_by), printable(b"/" + ghost.path))
                    for ghost in ghosts
                ],
                {"SIZE": "red"},
            )
        )
    return 0


# --- diff of images --------------------------------------------------------------------------------


def diff_images(store: Store, first: str, second: str, *, content: bool, as_json: bool) -> int:
    """Print how two images, or their lowest layers, differ."""
    before, after = _some_layers(store, first), _some_layers(store, second)
    found = diff_trees(before, after)
    rows = [
        (letter, change)
        for letter, changes in (("A", found.added), ("C", found.changed), ("D", found.deleted))
        for change in changes
    ]
    rows.sort(key=lambda row: row[1].path)
    if as_json:
        put_json(
            [
                {
                    "Kind": letter,
                    "Path": os.fsdecode(b"/" + change.path),
                    "What": change.change.value,
                    "SizeBefore": change.size_before,
                    "SizeAfter": change.size_after,
                }
                for letter, change in rows
            ]
        )
        return 0
    with Lowers(before, store.marks) as old, Lowers(after, store.marks) as new:
        for letter, change in rows:
            put_changes([(letter, f"{printable(b'/' + change.path)}{_growth(change)}")])
            if content:
                put("".join(_lines(old, new, change)))
    return 0


def _some_layers(store: Store, word: str) -> list[Path]:
    """Return the layers' directories of IMAGE, or the N lowest of IMAGE@N. Raises ImageError."""
    name, _, number = word.rpartition("@")
    if not name or ":" in number:  # The @ of a digest is followed by its algorithm.
        return [layer.directory for layer in store.find(word).layers]
    layers = store.find(name).layers
    if not number.isdigit() or not 1 <= int(number) <= len(layers):
        raise ImageError(
            f"'{printable(word)}': there is no layer {printable(number)}",
            f"{name} has {f'1 to {len(layers)}' if layers else 'none'}",
        )
    return [layer.directory for layer in layers[: int(number)]]


def _growth(change: PathChange) -> str:
    if change.size_before is None or change.size_after is None or change.size_before == change.size_after:
        return ""
    return f" ({human_size(change.size_before)} -> {human_size(change.size_after)})"


def _lines(old: Lowers, new: Lowers, change: PathChange) -> Sequence[str]:
    """Return the lines that differ, as diff -u shows them; nothing if one is not a text."""
    before, after = _text(old, change.path), _text(new, change.path)
    return [] if before is None or after is None else unified(before, after, "before", "after")


def _text(view: Lowers, path: bytes) -> Sequence[str] | None:
    """Return the lines of a text: none if the file does not exist, None if it is not a text."""
    found = view.open(path)
    if found is None:
        return []
    try:
        status = os.fstat(found)
        if not os.path.isfile(proc.fd_path(found)) or status.st_size > _LONGEST_TEXT:
            return None
        return text_lines(Path(os.fsdecode(proc.fd_path(found))).read_bytes())
    finally:
        os.close(found)
