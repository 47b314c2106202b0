"""Docker's words, columns and JSON for images and their history.

Docker 20.10's: docker/cli cli/command/formatter and cli/command/image/formatter_history.go, docker/go-units
for sizes and ages, Go's encoding/json for JSON. JSON text ends with a newline, or is empty. Only what a
terminal would act on differs: Docker prints it, here it is escaped.

`now` is in seconds since 1970. `zone` is the zone that times are shown in, None the machine's own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, tzinfo

from overlayfs_demo.images.describe import NONE, Changes, HistoryRow, ImageRow
from overlayfs_demo.images.model import History
from overlayfs_demo.ui.fitting import BY_TITLE, Fit
from overlayfs_demo.ui.go_spelling import go_spelling
from overlayfs_demo.ui.go_values import Row, to_json
from overlayfs_demo.ui.table import Table
from overlayfs_demo.ui.text import columns, cut_end, human_size

_ID_DIGITS = 12
_CREATED_BY_WIDTH = 45

# Go's time.Duration holds no more; time.Sub stops there.
_LONGEST = (2**63 - 1) / 10**9
# The second of Go's zero time, 0001-01-01T00:00:00Z.
_NEVER = -62_135_596_800


# --- words -----------------------------------------------------------------------------------------


def human_duration(seconds: float) -> str:
    """A length of time as go-units' HumanDuration says it; less than a second is all that is below."""
    minutes, hours = int(seconds / 60), int(seconds / 3600 + 0.5)
    whole = int(seconds)
    steps = (
        (whole < 1, "Less than a second"),
        (whole == 1, "1 second"),
        (whole < 60, f"{whole} seconds"),
        (minutes == 1, "About a minute"),
        (minutes < 60, f"{minutes} minutes"),
        (hours == 1, "About an hour"),
        (hours < 48, f"{hours} hours"),
        (hours < 24 * 7 * 2, f"{hours // 24} days"),
        (hours < 24 * 30 * 2, f"{hours // 24 // 7} weeks"),
        (hours < 24 * 365 * 2, f"{hours // 24 // 30} months"),
    )
    return next((words for holds, words in steps if holds), f"{int(seconds / 3600) // 24 // 365} years")


def ago(created: int, now: float) -> str:
    """The age of what was made at `created`, in seconds since 1970: `54 seconds ago`."""
    return human_duration(min(now - created, _LONGEST)) + " ago"


def virtual_size(size: int) -> str:
    """A size in bytes with four digits (go-units' HumanSize), as docker prints its deprecated VirtualSize."""
    return human_size(size, digits=4)


def short_id(text: str) -> str:
    """An ID without its algorithm, the first 12 characters (moby pkg/stringid, TruncateID)."""
    return text[text.find(":") + 1 :][:_ID_DIGITS]


def rfc3339(created: int, zone: tzinfo | None = None) -> str:
    """A time as `2006-01-02T15:04:05Z` (Go's time.RFC3339)."""
    moment = _moment(created, zone)
    offset = moment.strftime("%z")[:5]
    return moment.strftime(f"{moment.year:04}-%m-%dT%H:%M:%S") + (
        "Z" if offset == "+0000" else f"{offset[:3]}:{offset[3:]}"
    )


def _moment(created: int, zone: tzinfo | None) -> datetime:
    moment = datetime.fromtimestamp(created, UTC)
    try:
        return moment.astimezone(zone)
    except (OverflowError, ValueError):
        return moment  # Go's zero time, west of Greenwich: before Python's first day.


# The image's ID says least in a history: all rows but the first have none.
_HISTORY_FITS = {**BY_TITLE, "IMAGE": Fit(2)}

# --- history ---------------------------------------------------------------------------------------


class _Words:
    """The cells of a history row, by the options of the command."""

    def __init__(self, now: float, human: bool, trunc: bool, zone: tzinfo | None) -> None:
        self._now = now
        self._zone = zone
        self._human = human
        self._trunc = trunc

    def id(self, text: str) -> str:
        return short_id(text) if self._trunc else text

    def at(self, created: int | None) -> str:
        return "" if created is None else rfc3339(created, self._zone)

    def since(self, created: int | None) -> str:
        return ago(created, self._now) if self._human and created is not None else self.at(created)

    def created_by(self, row: HistoryRow) -> str:
        text = _step(row)
        return cut_end(text, _CREATED_BY_WIDTH) if self._trunc else text

    def size(self, size: int) -> str:
        return human_size(size) if self._human else str(size)

    def cells(self, row: HistoryRow) -> list[str]:
        """The cells of the table, in which the step is whole: the table cuts it."""
        return [self.id(row.id), self.since(row.created), _step(row), self.size(row.size)]

    def longest(self) -> dict[str, int]:
        """How much of a step docker prints. A terminal that has room for more shows more."""
        return {"CREATED BY": _CREATED_BY_WIDTH} if self._trunc else {}


def _step(row: HistoryRow) -> str:
    return row.created_by.replace("\t", " ")


def _created_header(human: bool) -> str:
    return "CREATED" if human else "CREATED AT"


def history_table(
    rows: Iterable[HistoryRow], now: float, human: bool = True, trunc: bool = True, zone: tzinfo | None = None
) -> Table:
    """`docker history`; `human` False is `--human=false`, `trunc` False is `--no-trunc`."""
    words = _Words(now, human, trunc, zone)
    cells = [[*words.cells(row), row.comment] for row in rows]
    return Table(history_header(human), cells, fits=_HISTORY_FITS, whole=not trunc, longest=words.longest())


def history_header(human: bool = True) -> tuple[str, ...]:
    """The names of the columns of `docker history`."""
    return ("IMAGE", _created_header(human), "CREATED BY", "SIZE", "COMMENT")


def history_cells(row: HistoryRow, now: float) -> list[str]:
    """One row of `docker history --no-trunc`."""
    return [*_Words(now, human=True, trunc=False, zone=None).cells(row), row.comment]


def history_fields(
    row: HistoryRow, now: float, human: bool = True, trunc: bool = True, zone: tzinfo | None = None
) -> Row:
    """One row of `docker history` under the names that `--format` has; every value is a string."""
    words = _Words(now, human, trunc, zone)
    return Row(
        Comment=row.comment,
        CreatedAt=words.at(row.created),
        CreatedBy=words.created_by(row),
        CreatedSince=words.since(row.created),
        ID=words.id(row.id),
        Size=words.size(row.size),
    )


def step_fields(
    row: HistoryRow,
    now: float,
    human: bool = True,
    trunc: bool = True,
    zone: tzinfo | None = None,
    *,
    layer: bool = False,
) -> Row:
    """A step under docker's names; with `layer`, also the layer that it made, under names of our own."""
    fields = history_fields(row, now, human, trunc, zone)
    return Row(fields | layer_fields(row, trunc)) if layer else fields


def history_json(
    rows: Iterable[HistoryRow],
    now: float,
    human: bool = True,
    trunc: bool = True,
    zone: tzinfo | None = None,
    *,
    layers: bool = False,
) -> str:
    """`docker history --format '{{json .}}'`: an object a line. With `layers`, each step's layer is in it too."""
    return "".join(to_json(step_fields(row, now, human, trunc, zone, layer=layers)) + "\n" for row in rows)


def _cut_step(text: str, width: int) -> str:
    """A step in so many columns: what the classic builder wraps around every instruction goes first."""
    return text if columns(text) <= width else cut_end(History("", text).instruction, width)


_EXTENDED_FITS = {**_HISTORY_FITS, "CREATED BY": Fit(9, _cut_step, 20)}


def extended_history_table(
    rows: Iterable[HistoryRow], now: float, human: bool = True, trunc: bool = True, zone: tzinfo | None = None
) -> Table:
    """`docker history`, and what it leaves out: the layer that each step made, and what that changed.

    A step without a layer is "metadata only"; what was not counted is "-".
    """
    words = _Words(now, human, trunc, zone)
    header = (
        "IMAGE",
        _created_header(human),
        "CREATED BY",
        "SIZE",
        "DIFF ID",
        "CHAIN ID",
        "ADDED",
        "CHANGED",
        "DELETED",
        "WHITEOUTS",
        "COMMENT",
    )
    cells = [[*words.cells(row), *_layer_cells(row, words.id), row.comment] for row in rows]
    return Table(header, cells, fits=_EXTENDED_FITS, whole=not trunc, longest=words.longest())


def layer_fields(row: HistoryRow, trunc: bool = True) -> Row:
    """The layer of a step under names for `--format`; every value is a string, "" if the step made no layer."""
    cells = _layer_cells(row, short_id if trunc else str) if row.layer is not None else [""] * 6
    return Row(zip(("DiffID", "ChainID", "Added", "Changed", "Deleted", "Whiteouts"), cells, strict=True))


def _layer_cells(row: HistoryRow, id_words: Callable[[str], str]) -> list[str]:
    if row.layer is None:
        return ["metadata only", "", "", "", "", ""]
    counts = ["-"] * 4 if row.layer.changes is None else _counts(row.layer.changes)
    return [id_words(str(row.layer.diff_id)), id_words(str(row.layer.chain_id)), *counts]


def _counts(changes: Changes) -> list[str]:
    return [str(count) for count in (changes.added, changes.changed, changes.deleted, changes.whiteouts)]


# --- images ----------------------------------------------------------------------------------------


def images_table(rows: Iterable[ImageRow], now: float, trunc: bool = True) -> Table:
    """`docker images`; `trunc` False is `--no-trunc`."""
    header = ("REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE")
    return Table(
        header,
        [
            [
                row.repository,
                row.tag,
                short_id(row.id) if trunc else row.id,
                _image_age(row, now) or "N/A",
                human_size(row.size),
            ]
            for row in rows
        ],
        whole=not trunc,
    )


def image_fields(row: ImageRow, now: float, trunc: bool = True, zone: tzinfo | None = None) -> Row:
    """One row of `docker images` under the names that `--format` has; every value is a string.

    What Docker counts for `docker system df` only is "N/A", as it is there.
    """
    unknown = "N/A"
    return Row(
        Containers=unknown,
        CreatedAt=go_time(row.created, zone),
        CreatedSince=_image_age(row, now),
        Digest=NONE,
        ID=short_id(row.id) if trunc else row.id,
        Repository=row.repository,
        SharedSize=unknown,
        Size=human_size(row.size),
        Tag=row.tag,
        UniqueSize=unknown,
        VirtualSize=virtual_size(row.size),
    )


def images_json(rows: Iterable[ImageRow], now: float, trunc: bool = True, zone: tzinfo | None = None) -> str:
    """`docker images --format '{{json .}}'`: an object a line."""
    return "".join(to_json(image_fields(row, now, trunc, zone)) + "\n" for row in rows)


def _image_age(row: ImageRow, now: float) -> str:
    """The age; "" where the config says no time (`docker history` says 292 years then, the longest it knows)."""
    return "" if row.created == _NEVER else ago(row.created, now)


def go_time(created: int, zone: tzinfo | None = None) -> str:
    """A time as Go's time.Time.String has it: `2006-01-02 15:04:05 -0700 MST`."""
    moment = _moment(created, zone)
    return moment.strftime(f"{moment.year:04}-%m-%d %H:%M:%S ") + moment.strftime("%z")[:5] + moment.strftime(" %Z")


# --- JSON ------------------------------------------------------------------------------------------


def inspect_text(objects: Sequence[object]) -> str:
    """`docker inspect`: a list of objects, each level four spaces further in."""
    return go_spelling(json.dumps(list(objects), indent=4, ensure_ascii=False)) + "\n"
