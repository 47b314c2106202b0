"""Docker's words, columns and JSON, exactly as Docker writes them."""

from __future__ import annotations

import json
from datetime import UTC, timedelta, timezone

import pytest

from overlayfs_demo.images.describe import Changes, HistoryRow, ImageRow, LayerNames
from overlayfs_demo.images.model import Digest
from overlayfs_demo.ui.docker_tables import (
    ago,
    extended_history_table,
    history_json,
    history_table,
    human_duration,
    images_json,
    images_table,
    inspect_text,
    rfc3339,
    short_id,
    virtual_size,
)
from overlayfs_demo.ui.table import render_text

MINUTE, HOUR = 60, 3600
DAY = 24 * HOUR
CREATED = 1_600_000_000  # 2020-09-13T12:26:40Z
NOW = CREATED + 90 * MINUTE
NEVER = -62_135_596_800
EAST = timezone(timedelta(hours=2), "EET")

DIFF = Digest("sha256", "d" * 64)
CHAIN = Digest("sha256", "c" * 64)
ID = f"sha256:{'0123456789abcdef' * 4}"


def row(created_by: str = "RUN make", **more: object) -> HistoryRow:
    fields: dict[str, object] = {"id": ID, "created": CREATED, "size": 1_234_567, "comment": "", "layer": None}
    return HistoryRow(created_by=created_by, **(fields | more))  # type: ignore[arg-type]


# --- words -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (-5, "Less than a second"),
        (0, "Less than a second"),
        (0.99, "Less than a second"),
        (1, "1 second"),
        (1.99, "1 second"),
        (2, "2 seconds"),
        (59.9, "59 seconds"),
        (MINUTE, "About a minute"),
        (119, "About a minute"),
        (2 * MINUTE, "2 minutes"),
        (59 * MINUTE + 59, "59 minutes"),
        (HOUR, "About an hour"),
        (89 * MINUTE + 59, "About an hour"),
        (90 * MINUTE, "2 hours"),
        (47 * HOUR + 29 * MINUTE, "47 hours"),
        (47 * HOUR + 30 * MINUTE, "2 days"),
        (13 * DAY, "13 days"),
        (14 * DAY - HOUR, "13 days"),
        (14 * DAY, "2 weeks"),
        (59 * DAY, "8 weeks"),
        (60 * DAY, "2 months"),
        (729 * DAY, "24 months"),
        (730 * DAY, "2 years"),
        (10 * 365 * DAY, "10 years"),
    ],
)
def test_length_of_time_is_said_as_go_units_says_it(seconds: float, words: str) -> None:
    assert human_duration(seconds) == words


def test_age_is_no_longer_than_go_can_say() -> None:
    assert ago(CREATED, CREATED + 54.7) == "54 seconds ago"
    assert ago(NEVER, CREATED) == "292 years ago"


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (0, "0B"),
        (999, "999B"),
        (1000, "1kB"),
        (1_982_395, "1.982MB"),
        (123_456_789, "123.5MB"),
        (999_999, "1000kB"),
        (9 * 10**18, "9EB"),
    ],
)
def test_virtual_size_has_four_digits(size: int, words: str) -> None:
    assert virtual_size(size) == words


@pytest.mark.parametrize(("text", "short"), [(ID, "0123456789ab"), ("<missing>", "<missing>"), ("f" * 64, "f" * 12)])
def test_id_is_cut_to_twelve_digits_without_its_algorithm(text: str, short: str) -> None:
    assert short_id(text) == short


@pytest.mark.parametrize(
    ("created", "zone", "text"),
    [
        (CREATED, UTC, "2020-09-13T12:26:40Z"),
        (CREATED, EAST, "2020-09-13T14:26:40+02:00"),
        (CREATED, timezone(-timedelta(hours=3, minutes=30)), "2020-09-13T08:56:40-03:30"),
        (-1, UTC, "1969-12-31T23:59:59Z"),
        (NEVER, UTC, "0001-01-01T00:00:00Z"),
        (NEVER, timezone(-timedelta(hours=1)), "0001-01-01T00:00:00Z"),
    ],
)
def test_time_is_shown_in_its_zone(created: int, zone: timezone, text: str) -> None:
    assert rfc3339(created, zone) == text


# --- history ---------------------------------------------------------------------------------------


def test_history_has_docker_s_columns() -> None:
    rows = [row("/bin/sh -c #(nop)  " + "x" * 40, comment="why"), row("ADD\tx", id="<missing>", size=0)]
    assert render_text(history_table(rows, NOW)) == (
        "IMAGE          CREATED       CREATED BY                                      SIZE      COMMENT\n"
        "0123456789ab   2 hours ago   /bin/sh -c #(nop)  xxxxxxxxxxxxxxxxxxxxxxxxx…   1.23MB    why\n"
        "<missing>      2 hours ago   ADD x                                           0B        \n"
    )


def test_history_for_machines_has_bytes_and_times_and_nothing_is_cut() -> None:
    assert render_text(history_table([row("x" * 50)], NOW, human=False, trunc=False, zone=EAST)) == (
        f"{'IMAGE':74}{'CREATED AT':28}{'CREATED BY':53}SIZE      COMMENT\n"
        f"{ID}   2020-09-13T14:26:40+02:00   {'x' * 50}   1234567   \n"
    )


def test_history_as_json_has_docker_s_keys_and_only_strings() -> None:
    assert history_json([row("RUN a && b > c", id="<missing>")], NOW, zone=UTC) == (
        '{"Comment":"","CreatedAt":"2020-09-13T12:26:40Z","CreatedBy":"RUN a \\u0026\\u0026 b \\u003e c",'
        '"CreatedSince":"2 hours ago","ID":"\\u003cmissing\\u003e","Size":"1.23MB"}\n'
    )


def test_history_as_json_for_machines_has_bytes_and_the_time_twice() -> None:
    found = json.loads(history_json([row()], NOW, human=False, trunc=False, zone=UTC))
    assert (found["ID"], found["Size"]) == (ID, "1234567")
    assert found["CreatedSince"] == found["CreatedAt"] == "2020-09-13T12:26:40Z"


def test_step_without_a_time_is_as_old_as_go_can_say_and_a_layer_without_a_step_has_no_age() -> None:
    assert "292 years ago" in render_text(history_table([row(created=NEVER)], NOW))
    assert json.loads(history_json([row(created=None)], NOW))["CreatedSince"] == ""


def test_extended_history_has_the_layers_and_what_they_changed() -> None:
    rows = [
        row(layer=LayerNames(DIFF, CHAIN, Changes(1, 22, 333, 4444))),
        row("ENV", layer=None, size=0, id="<missing>"),
        row("ADD", layer=LayerNames(CHAIN, DIFF, None), id="<missing>"),
    ]
    lines = render_text(extended_history_table(rows, NOW)).splitlines()
    after_size = lines[0].index("DIFF ID")
    assert [line[after_size:].rstrip() for line in lines] == [
        "DIFF ID         CHAIN ID       ADDED     CHANGED   DELETED   WHITEOUTS   COMMENT",
        "dddddddddddd    cccccccccccc   1         22        333       4444",
        "metadata only",
        "cccccccccccc    dddddddddddd   -         -         -         -",
    ]
    assert [line[:after_size] for line in lines] == [
        "IMAGE          CREATED       CREATED BY   SIZE      ",
        "0123456789ab   2 hours ago   RUN make     1.23MB    ",
        "<missing>      2 hours ago   ENV          0B        ",
        "<missing>      2 hours ago   ADD          1.23MB    ",
    ]


def test_extended_history_without_cutting_has_whole_digests() -> None:
    text = render_text(extended_history_table([row(layer=LayerNames(DIFF, CHAIN, None))], NOW, trunc=False))
    assert f"{DIFF}   {CHAIN}   -" in text


# --- images ----------------------------------------------------------------------------------------

APP = ImageRow("app", "1.0", ID, CREATED, 1_234_567)
NAMELESS = ImageRow("<none>", "<none>", ID, NEVER, 0)


def test_list_has_docker_s_columns() -> None:
    assert render_text(images_table([APP, NAMELESS], NOW)) == (
        "REPOSITORY   TAG       IMAGE ID       CREATED       SIZE\n"
        "app          1.0       0123456789ab   2 hours ago   1.23MB\n"
        "<none>       <none>    0123456789ab   N/A           0B\n"
    )


def test_list_without_cutting_has_whole_ids() -> None:
    assert render_text(images_table([APP], NOW, trunc=False)) == (
        f"REPOSITORY   TAG       {'IMAGE ID':74}CREATED       SIZE\n"
        f"app          1.0       {ID}   2 hours ago   1.23MB\n"
    )


def test_list_as_json_has_docker_s_keys_and_only_strings() -> None:
    assert images_json([APP, NAMELESS], NOW, zone=EAST) == (
        '{"Containers":"N/A","CreatedAt":"2020-09-13 14:26:40 +0200 EET","CreatedSince":"2 hours ago",'
        '"Digest":"\\u003cnone\\u003e","ID":"0123456789ab","Repository":"app","SharedSize":"N/A","Size":"1.23MB","Tag":"1.0",'
        '"UniqueSize":"N/A","VirtualSize":"1.235MB"}\n'
        '{"Containers":"N/A","CreatedAt":"0001-01-01 02:00:00 +0200 EET","CreatedSince":"",'
        '"Digest":"\\u003cnone\\u003e","ID":"0123456789ab","Repository":"\\u003cnone\\u003e","SharedSize":"N/A",'
        '"Size":"0B","Tag":"\\u003cnone\\u003e","UniqueSize":"N/A","VirtualSize":"0B"}\n'
    )


# --- JSON ------------------------------------------------------------------------------------------


def test_inspect_is_a_list_four_spaces_in_and_empty_things_stay_on_their_line() -> None:
    assert inspect_text([{"Id": "x", "RepoTags": ["a:1"], "Labels": {}, "RepoDigests": [], "Env": None}]) == (
        '[\n    {\n        "Id": "x",\n        "RepoTags": [\n            "a:1"\n        ],\n        "Labels": {},\n'
        '        "RepoDigests": [],\n        "Env": null\n    }\n]\n'
    )


def test_inspect_of_nothing_is_an_empty_list() -> None:
    assert inspect_text([]) == "[]\n"


def test_inspect_does_not_escape_for_html_and_keeps_letters() -> None:
    assert inspect_text(["a && b > <é>"]) == '[\n    "a && b > <é>"\n]\n'


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("\b\f\n\r\t\x00", r"\u0008\u000c\n\r\t\u0000"),
        (r"\b", r"\\b"),
        ("\\\b", r"\\\u0008"),
        ("\u2028", r"\u2028"),
        ("\ud800", "\ufffd"),
        ('"', r"\""),
    ],
)
def test_json_text_is_spelled_as_go_spells_it(text: str, written: str) -> None:
    assert inspect_text([text]) == f'[\n    "{written}"\n]\n'
    assert f'"Comment":"{written}"' in history_json([row(comment=text)], NOW)
