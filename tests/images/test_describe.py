"""Do the rows of an image hold what Docker says of it, and only that?"""

from __future__ import annotations

import json
import re
import tarfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from overlayfs_demo.errors import ImageError
from overlayfs_demo.images.archive import open_archive
from overlayfs_demo.images.config import read_time
from overlayfs_demo.images.describe import (
    Changes,
    GraphDriver,
    LayerFacts,
    Summary,
    history_rows,
    image_id,
    image_rows,
    inspect,
    summarize,
)
from overlayfs_demo.images.model import Config, Digest, Image, Layer
from overlayfs_demo.images.select import select_image
from overlayfs_demo.ui.docker_tables import history_json, history_table, images_table, inspect_text
from overlayfs_demo.ui.table import render_text
from tests.images.test_real_archives import real_archive

A, B = (Digest.of(text) for text in (b"a", b"b"))
CREATED = "2020-09-13T12:26:40Z"
SECOND = 1_600_000_000


def image(
    *steps: dict[str, object], diff_ids: tuple[Digest, ...] = (A, B), tags: tuple[str, ...] = (), **more: object
) -> Image:
    """An image of these layers and steps; `more` are other keys of its config."""
    rootfs = {"type": "layers", "diff_ids": [str(one) for one in diff_ids]}
    config = json.dumps({"created": CREATED, "rootfs": rootfs, "history": list(steps), **more}).encode()
    parsed = Config.parse(config, "config")
    return Image(config, tuple(Layer(one, "") for one in diff_ids), parsed.history, tags)


def step(created_by: str, **more: object) -> dict[str, object]:
    return {"created": CREATED, "created_by": created_by, **more}


FACTS = (LayerFacts(10), LayerFacts(200, Changes(1, 2, 3, 4)))
STEPS = (step("ADD"), step("ENV", empty_layer=True), step("RUN", comment="why"))


# --- history ---------------------------------------------------------------------------------------


def test_newest_step_is_the_first_row() -> None:
    assert [row.created_by for row in history_rows(image(*STEPS), FACTS)] == ["RUN", "ENV", "ADD"]


def test_only_the_top_row_of_a_loaded_image_has_an_id() -> None:
    made = image(*STEPS)
    assert [row.id for row in history_rows(made, FACTS)] == [str(Digest.of(made.config)), "<missing>", "<missing>"]


def test_each_step_has_the_size_of_its_layer_and_a_step_without_one_has_none() -> None:
    assert [row.size for row in history_rows(image(*STEPS), FACTS)] == [200, 0, 10]


def test_row_has_time_and_comment_of_its_step() -> None:
    top = history_rows(image(*STEPS), FACTS)[0]
    assert (top.created, top.comment) == (SECOND, "why")


def test_row_names_its_layer_and_what_that_changes() -> None:
    top, metadata, bottom = history_rows(image(*STEPS), FACTS)
    assert metadata.layer is None
    assert top.layer and bottom.layer
    assert (bottom.layer.diff_id, bottom.layer.chain_id, bottom.layer.changes) == (A, A, None)
    assert (top.layer.diff_id, top.layer.chain_id) == (B, Digest.of(f"{A} {B}".encode()))
    assert top.layer.changes == Changes(1, 2, 3, 4)


def test_layers_without_a_step_are_left_out_as_docker_does() -> None:
    assert [row.created_by for row in history_rows(image(step("ADD")), FACTS)] == ["ADD"]
    assert history_rows(image(), FACTS) == ()


def test_layers_without_a_step_are_rows_if_asked_for() -> None:
    top, bottom = history_rows(image(step("ADD")), FACTS, every_layer=True)
    assert (top.created, top.created_by, top.size, top.layer and top.layer.diff_id) == (None, "", 200, B)
    assert (bottom.id, bottom.created_by) == ("<missing>", "ADD")


def test_more_steps_with_a_layer_than_layers_are_an_error_that_names_the_step() -> None:
    with pytest.raises(ImageError, match=r"'history'\[2\].* only 2: export"):
        history_rows(image(step("1"), step("2"), step("3")), FACTS)


def test_step_whose_time_is_none_is_an_error_that_names_it() -> None:
    with pytest.raises(ImageError, match=r"'history'\[0\].*'yesterday'"):
        history_rows(image(step("1", created="yesterday")), FACTS)


def test_flat_tree_has_no_id() -> None:
    with pytest.raises(ImageError, match="docker import"):
        image_id(Image(b"", (Layer(A, ""),)))


def test_facts_of_too_few_layers_are_refused() -> None:
    for read in (history_rows, summarize, inspect):
        with pytest.raises(ValueError, match="shorter"):
            read(image(*STEPS), FACTS[:1])


@pytest.mark.parametrize(
    ("text", "seconds", "as_go_writes"),
    [
        (CREATED, SECOND, CREATED),
        ("2020-09-13T12:26:40.120000000Z", SECOND, "2020-09-13T12:26:40.12Z"),
        ("2020-09-13T12:26:40.000Z", SECOND, CREATED),
        ("2020-09-13T12:26:40.1234567899Z", SECOND, "2020-09-13T12:26:40.123456789Z"),
        ("2020-09-13T14:26:40+02:00", SECOND, "2020-09-13T14:26:40+02:00"),
        ("2020-09-13T12:26:40+00:00", SECOND, CREATED),
        ("1969-12-31T23:59:59.9Z", -1, "1969-12-31T23:59:59.9Z"),
        ("", -62_135_596_800, "0001-01-01T00:00:00Z"),
    ],
)
def test_time_is_read_and_written_as_go_does(text: str, seconds: int, as_go_writes: str) -> None:
    assert read_time(text, "here") == (seconds, as_go_writes)


@pytest.mark.parametrize(
    "text",
    [
        "now",
        "2020-09-13",
        "2020-09-13 12:26:40Z",
        "2020-13-13T12:26:40Z",
        "2020\x1b[31m",
        "0001-01-01T00:00:00+01:00",
        "9999-12-31T23:59:59-01:00",
        "0000-01-01T00:00:00Z",
        "2020-09-13T12:26:40+99:00",
    ],
)
def test_what_is_no_time_is_refused_and_shown_without_control_characters(text: str) -> None:
    with pytest.raises(ImageError, match="here: 'created' is not an RFC 3339 time") as error:
        read_time(text, "here")
    assert str(error.value).isprintable()


# --- images ----------------------------------------------------------------------------------------


def names(summary: Summary) -> list[tuple[str, str]]:
    return [(row.repository, row.tag) for row in image_rows([summary])]


def test_size_of_an_image_is_that_of_its_layers() -> None:
    summary = summarize(image(), FACTS)
    assert (summary.size, summary.created) == (210, SECOND)


@pytest.mark.parametrize(
    ("tag", "row"),
    [
        ("app:1.0", ("app", "1.0")),
        ("docker.io/library/app:1.0", ("app", "1.0")),
        ("index.docker.io/library/app:1.0", ("app", "1.0")),
        ("docker.io/me/app:1.0", ("me/app", "1.0")),
        ("docker.io/library/me/app:1.0", ("library/me/app", "1.0")),
        ("localhost/app:1.0", ("localhost/app", "1.0")),
        ("registry:5000/app:1.0", ("registry:5000/app", "1.0")),
        ("quay.io/me/app", ("quay.io/me/app", "latest")),
        ("app", ("app", "latest")),
    ],
)
def test_name_is_shown_as_docker_shortens_it(tag: str, row: tuple[str, str]) -> None:
    assert names(summarize(image(tags=(tag,)), FACTS)) == [row]


def test_every_tag_is_a_row_sorted_by_its_long_name() -> None:
    summary = summarize(image(tags=("b:1", "a:2", "a:1", "quay.io/x:1", "docker.io/library/a:1")), FACTS)
    assert names(summary) == [("a", "1"), ("a", "2"), ("b", "1"), ("quay.io/x", "1")]


def test_image_without_a_name_is_a_row_of_none() -> None:
    assert names(summarize(image(), FACTS)) == [("<none>", "<none>")]


def test_newest_image_is_first_and_equals_keep_their_order() -> None:
    made = [
        summarize(image(tags=(f"{name}:1",), created=f"{year}-01-01T00:00:00Z"), FACTS)
        for name, year in (("old", 2001), ("first", 2020), ("second", 2020), ("new", 2021))
    ]
    assert [row.repository for row in image_rows(made)] == ["new", "first", "second", "old"]


# --- inspect ---------------------------------------------------------------------------------------

EMPTY_SETTINGS = {
    "Hostname": "",
    "Domainname": "",
    "User": "",
    "AttachStdin": False,
    "AttachStdout": False,
    "AttachStderr": False,
    "Tty": False,
    "OpenStdin": False,
    "StdinOnce": False,
    "Env": None,
    "Cmd": None,
    "Image": "",
    "Volumes": None,
    "WorkingDir": "",
    "Entrypoint": None,
    "OnBuild": None,
    "Labels": None,
}


def settings(**config: object) -> object:
    return inspect(image(config=config), FACTS)["Config"]


def test_inspect_of_the_barest_config_has_every_key_in_docker_s_order() -> None:
    made = image()
    assert list(inspect(made, FACTS).items()) == list(
        {
            "Id": str(Digest.of(made.config)),
            "RepoTags": [],
            "RepoDigests": [],
            "Parent": "",
            "Comment": "",
            "Created": CREATED,
            "Container": "",
            "ContainerConfig": EMPTY_SETTINGS,
            "DockerVersion": "",
            "Author": "",
            "Config": None,
            "Architecture": "",
            "Os": "linux",
            "Size": 210,
            "VirtualSize": 210,
            "RootFS": {"Type": "layers", "Layers": [str(A), str(B)]},
        }.items()
    )


def test_inspect_has_the_places_of_the_layers_where_they_are_given() -> None:
    found = inspect(image(), FACTS, GraphDriver("overlay2", {"UpperDir": "/u", "MergedDir": "/m"}))
    assert list(found)[-2:] == ["GraphDriver", "RootFS"]
    assert json.dumps(found["GraphDriver"]) == '{"Data": {"MergedDir": "/m", "UpperDir": "/u"}, "Name": "overlay2"}'


def test_variant_and_os_version_stand_behind_what_they_qualify() -> None:
    more: dict[str, Any] = {"architecture": "arm", "variant": "v7", "os": "windows", "os.version": "10"}
    keys = list(inspect(image(**more), FACTS))
    assert keys[keys.index("Architecture") :][:4] == ["Architecture", "Variant", "Os", "OsVersion"]


def test_comment_of_the_last_step_stands_in_for_the_image_s() -> None:
    assert inspect(image(*STEPS), FACTS)["Comment"] == "why"
    assert inspect(image(*STEPS, comment="own"), FACTS)["Comment"] == "own"


def test_key_unknown_to_docker_stays_in_the_config_and_out_of_inspect() -> None:
    assert settings(Cmd=["sh"], Memory=1) == EMPTY_SETTINGS | {"Cmd": ["sh"]}


def test_settings_docker_leaves_out_if_empty_appear_at_their_place() -> None:
    more = {"StopSignal": "SIGINT", "StopTimeout": 0, "Shell": ["sh", "-c"]}
    ports: dict[str, object] = {"80/tcp": {}, "22/tcp": {}}
    found = settings(**more, ExposedPorts=ports, Healthcheck={"Test": ["NONE"], "Retries": 0, "Interval": 10**9})
    assert isinstance(found, dict)
    assert list(found)[6] == "ExposedPorts" and list(found["ExposedPorts"]) == ["22/tcp", "80/tcp"]
    assert list(found)[-3:] == ["StopSignal", "StopTimeout", "Shell"] and found["StopTimeout"] == 0
    assert found["Healthcheck"] == {"Test": ["NONE"], "Interval": 10**9}
    assert settings(ExposedPorts={}, StopSignal="", StopTimeout=None, Shell=[]) == EMPTY_SETTINGS


def test_empty_list_is_not_null_and_labels_are_sorted() -> None:
    found = settings(Env=[], OnBuild=[], Labels={"b": "2", "a": "1"}, Volumes={"/data": {}})
    assert isinstance(found, dict)
    assert (found["Env"], found["OnBuild"], found["Volumes"]) == ([], [], {"/data": {}})
    assert list(found["Labels"].items()) == [("a", "1"), ("b", "2")]


def test_command_may_be_one_string() -> None:
    assert settings(Entrypoint="/run") == EMPTY_SETTINGS | {"Entrypoint": ["/run"]}


@pytest.mark.parametrize(
    "wrong",
    [
        {"Env": "A=1"},
        {"Labels": {"a": 1}},
        {"Volumes": []},
        {"StopTimeout": "10"},
        {"StopTimeout": True},
        {"Tty": "no"},
        {"Healthcheck": {"Retries": 1.5}},
    ],
)
def test_setting_of_a_wrong_type_is_an_error_that_names_it(wrong: dict[str, object]) -> None:
    with pytest.raises(ImageError, match=rf"config: 'config'.*{next(iter(wrong))}"):
        settings(**wrong)


# --- the real image --------------------------------------------------------------------------------

NAME = "layer-demo.docker-20.10-save.tar"
NOW = datetime(2026, 11, 23, 23, 38, 51, 700_000, UTC).timestamp()


def disk_size(tar: BinaryIO) -> int:
    """What lstat(2) says of a layer's files together: hard links and directories have nothing of their own."""
    with tarfile.open(fileobj=tar, mode="r|") as members:
        return sum(len(one.linkname) if one.issym() else one.size for one in members)


def real_image() -> tuple[Image, list[LayerFacts]]:
    with open_archive(real_archive(NAME)) as archive:
        found = select_image(archive)
        return found, [LayerFacts(disk_size(archive.open_layer(one).tar)) for one in found.layers]


def golden(name: str) -> str:
    return real_archive(f"golden/{name}").read_text(encoding="utf-8")


def without_parents(name: str) -> str:
    """What Docker said on the machine where the image was built, as it would say it where the image was loaded.

    It names the images that it built on the way to this one there, which the archive does not hold.
    """
    text = golden(name)
    for line in golden("docker-history.jsonl").splitlines()[1:]:
        whole = json.loads(line)["ID"]
        short = whole.partition(":")[2][:12] + r"\b"
        text = text.replace(f'"ID":"{whole}"', r'"ID":"\u003cmissing\u003e"')
        text = text.replace(f'"Parent": "{whole}"', '"Parent": ""')
        text = re.sub(short, f"{'<missing>':12}", text)
    return text


def test_history_of_the_real_image_is_docker_s() -> None:
    rows = history_rows(*real_image())
    assert history_json(rows, NOW, human=False, trunc=False, zone=UTC) == without_parents("docker-history.jsonl")
    assert render_text(history_table(rows, NOW)) == without_parents("docker-history.txt")


def test_list_with_the_real_image_is_docker_s() -> None:
    assert render_text(images_table(image_rows([summarize(*real_image())]), NOW)) == golden("docker-images.txt")


def test_inspect_of_the_real_image_is_docker_s() -> None:
    assert inspect_text([inspect(*real_image())]) == without_parents("docker-inspect.json").rstrip() + "\n"


@pytest.mark.parametrize("name", [NAME, "layer-demo.podman-docker-archive.tar", "layer-demo.oci-archive.tar"])
def test_every_export_of_the_real_image_has_the_same_steps_and_only_one_id(name: str) -> None:
    path: Path = real_archive(name)
    with open_archive(path) as archive:
        found = select_image(archive)
    rows = history_rows(found, [LayerFacts(0)] * len(found.layers))
    wanted = [json.loads(line)["CreatedBy"] for line in golden("docker-history.jsonl").splitlines()]
    assert [row.created_by for row in rows] == wanted
    assert {row.id for row in rows[1:]} == {"<missing>"}
