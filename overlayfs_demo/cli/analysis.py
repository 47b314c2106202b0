"""What can be asked about the bytes of an image: where did they go, and in what do two images differ?"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from overlayfs_demo.analysis.accounts import Hidden, LayerReport
from overlayfs_demo.analysis.ghosts import extract_ghosts
from overlayfs_demo.analysis.image_diff import PathChange, diff_trees
from overlayfs_demo.analysis.waste import Analysis, analyse
from overlayfs_demo.cli.command import Verbs
from overlayfs_demo.cli.store_options import add_json, add_verb, store_of
from overlayfs_demo.errors import UsageError, printable
from overlayfs_demo.images.lowers import Lowers
from overlayfs_demo.linux import syscalls
from overlayfs_demo.store.store import Store, StoredImage
from overlayfs_demo.ui.console import note, put, put_json
from overlayfs_demo.ui.table import Table
from overlayfs_demo.ui.terminal import progress, put_changes, put_table
from overlayfs_demo.ui.text import cut_end, human_size, percentage, plural
from overlayfs_demo.ui.text_diff import text_lines, unified

# A text longer than that is not compared line by line.
_LONGEST_TEXT = 1 << 20
_LONGEST_TITLE = 60
_MOST_FILES = 10
_WASTE = {"WASTED": "red"}


def add_analysis_verbs(verbs: Verbs[argparse.ArgumentParser]) -> None:
    """The verbs of this module."""
    verb = add_verb(verbs, "analyze", "show where an image's bytes went", "analyze app:1.0 --max-wasted 10%", _analyze)
    verb.add_argument("image", metavar="IMAGE")
    verb.add_argument("--max-wasted", type=_limit, metavar="P%|BYTES", help="exit with status 1 if more is wasted")
    verb.add_argument("--all", "-a", action="store_true", help="list every hidden file, not only the largest")
    add_json(verb)
    verb = add_verb(verbs, "ghosts", "list files that were deleted but still ship", "ghosts app:1.0", _ghosts)
    verb.add_argument("image", metavar="IMAGE")
    verb.add_argument("--extract", type=Path, metavar="DIR", help="copy the files into this new or empty directory")
    add_json(verb)


def _limit(word: str) -> tuple[float, bool]:
    """A number, and whether it is one of percent."""
    try:
        number = float(word.removesuffix("%"))
    except ValueError:
        number = -1
    if number < 0:
        raise argparse.ArgumentTypeError("use a percentage such as 10%, or a number of bytes")
    return number, word.endswith("%")


def _analysed(image: StoredImage, *, duplicates: bool = True) -> Analysis:
    with progress() as told:
        return analyse(
            [layer.directory for layer in image.layers],
            image.value.titles,
            duplicates=duplicates,
            recipes=[layer.recipe for layer in image.layers],
            progress=told,
        )


# --- analyze ---------------------------------------------------------------------------------------


def _analyze(arguments: argparse.Namespace) -> int:
    image = store_of(arguments).find(arguments.image)
    analysis = _analysed(image)
    if arguments.json:
        put_json([_analysis_json(image, analysis)])
    else:
        put_table(_layers_table(analysis))
        put("\n" + _summary(image, analysis))
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


def _title(report: LayerReport) -> str:
    return cut_end(printable(report.title), _LONGEST_TITLE)


def _layers_table(analysis: Analysis) -> Table:
    header = ("LAYER", "ADDED", "CHANGED", "DELETED", "SHIPPED", "LIVE", "WASTED", "MADE BY")
    return Table(
        header,
        [
            (
                str(one.number),
                str(one.added.paths),
                str(one.changed.paths),
                str(one.deleted.paths),
                *(human_size(size) for size in (one.shipped, one.live, one.wasted)),
                _title(one),
            )
            for one in analysis.layers
        ],
        _WASTE,
    )


def _summary(image: StoredImage, analysis: Analysis) -> str:
    # A copy that is hidden is waste, and counted as that.
    seen = [(one.size, sum(copy.live for copy in one.copies)) for one in analysis.duplicates]
    repeated = [(size, number - 1) for size, number in seen if number > 1]
    lines = [
        f"{printable(image.title)} ships {human_size(analysis.shipped)} of files: "
        f"{human_size(analysis.live)} visible, "
        f"{human_size(analysis.wasted)}{_share(analysis)} hidden by later layers.",
        f"dive's efficiency score: {percentage(analysis.dive_score, 1, digits=2)}",
    ]
    if repeated:
        copies, files = sum(size * number for size, number in repeated), plural(len(repeated), "file")
        lines.append(
            f"Not counted as waste: {human_size(copies)} in {files} whose data appears in the image more than once."
        )
    return "".join(line + "\n" for line in lines)


def _put_hidden(analysis: Analysis, most: int | None) -> None:
    hidden = sorted(analysis.hidden, key=lambda one: (-one.wasted, one.path))
    if not hidden:
        return
    rows = [
        (human_size(one.wasted), str(one.shipped_by), f"{one.hidden_by} ({one.why.value})", printable(b"/" + one.path))
        for one in hidden[:most]
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
                "Number": one.number,
                "ChainID": str(layer.chain_id),
                "MadeBy": one.title,
                "Added": one.added.paths,
                "Changed": one.changed.paths,
                "Deleted": one.deleted.paths,
                "Whiteouts": one.whiteouts,
                "Shipped": one.shipped,
                "Live": one.live,
                "Wasted": one.wasted,
            }
            for one, layer in zip(analysis.layers, image.layers, strict=True)
        ],
        "Hidden": [_hidden_json(one) for one in analysis.hidden],
        "Duplicates": [
            {"Size": one.size, "Paths": [os.fsdecode(b"/" + copy.path) for copy in one.copies]}
            for one in analysis.duplicates
        ],
    }


def _hidden_json(one: Hidden) -> dict[str, object]:
    return {
        "Path": os.fsdecode(b"/" + one.path),
        "ShippedBy": one.shipped_by,
        "HiddenBy": one.hidden_by,
        "Why": one.why.value,
        "Size": one.size,
        "Wasted": one.wasted,
    }


# --- ghosts ----------------------------------------------------------------------------------------


def _ghosts(arguments: argparse.Namespace) -> int:
    image = store_of(arguments).find(arguments.image)
    found = _analysed(image, duplicates=False).ghosts
    ghosts = sorted(found, key=lambda one: (-one.size, one.path, one.shipped_by))
    if arguments.extract is not None:
        extract_ghosts(ghosts, [layer.directory for layer in image.layers], arguments.extract)
    if arguments.json:
        put_json([_hidden_json(one) for one in ghosts])
    else:
        put_table(
            Table(
                ("SIZE", "SHIPPED BY", "DELETED BY", "FILE"),
                [
                    (human_size(one.size), str(one.shipped_by), str(one.hidden_by), printable(b"/" + one.path))
                    for one in ghosts
                ],
                {"SIZE": "red"},
            )
        )
    return 0


# --- diff of images --------------------------------------------------------------------------------


def diff_images(store: Store, first: str, second: str, *, content: bool, as_json: bool) -> int:
    """Print in what two images, or the first layers of them, differ."""
    before, after = _some_layers(store, first), _some_layers(store, second)
    found = diff_trees(before, after)
    rows = [
        (letter, one)
        for letter, ones in (("A", found.added), ("C", found.changed), ("D", found.deleted))
        for one in ones
    ]
    rows.sort(key=lambda row: row[1].path)
    if as_json:
        put_json(
            [
                {
                    "Kind": letter,
                    "Path": os.fsdecode(b"/" + one.path),
                    "What": one.change.value,
                    "SizeBefore": one.size_before,
                    "SizeAfter": one.size_after,
                }
                for letter, one in rows
            ]
        )
        return 0
    with Lowers(before, store.marks) as old, Lowers(after, store.marks) as new:
        for letter, one in rows:
            put_changes([(letter, f"{printable(b'/' + one.path)}{_growth(one)}")])
            if content:
                put("".join(_lines(old, new, one)))
    return 0


def _some_layers(store: Store, word: str) -> list[Path]:
    """The layers' directories of IMAGE, or of IMAGE@N the N lowest."""
    name, _, number = word.rpartition("@")
    if not name or ":" in number:  # The @ of a digest is followed by its algorithm.
        return [layer.directory for layer in store.find(word).layers]
    layers = store.find(name).layers
    if not number.isdigit() or not 1 <= int(number) <= len(layers):
        raise UsageError(
            f"'{printable(word)}': there is no layer {printable(number)}",
            f"{name} has {f'1 to {len(layers)}' if layers else 'none'}",
        )
    return [layer.directory for layer in layers[: int(number)]]


def _growth(one: PathChange) -> str:
    if one.size_before is None or one.size_after is None or one.size_before == one.size_after:
        return ""
    return f" ({human_size(one.size_before)} -> {human_size(one.size_after)})"


def _lines(old: Lowers, new: Lowers, one: PathChange) -> Sequence[str]:
    """The lines that differ, as diff -u shows them; nothing for what is no text."""
    before, after = _text(old, one.path), _text(new, one.path)
    return [] if before is None or after is None else unified(before, after, "before", "after")


def _text(view: Lowers, path: bytes) -> Sequence[str] | None:
    """The lines of a text; none for a file that is not there, None for what is no text."""
    found = view.open(path)
    if found is None:
        return []
    try:
        status = os.fstat(found)
        if not os.path.isfile(syscalls.fd_path(found)) or status.st_size > _LONGEST_TEXT:
            return None
        return text_lines(Path(os.fsdecode(syscalls.fd_path(found))).read_bytes())
    finally:
        os.close(found)
