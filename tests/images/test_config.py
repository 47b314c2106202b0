"""Does a config that Docker would refuse stay out of the store, and does all that is in it show?"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from overlayfs_demo.cli import main
from overlayfs_demo.errors import ImageError
from overlayfs_demo.store.load import Outcome, load
from overlayfs_demo.store.store import Store
from tests.images.builders import archive, digest, layer

BASE = layer({"etc/motd": "hello\n"})
WHEN = "2020-01-01T00:00:00Z"
# Every field that something here reads.
WHOLE: dict[str, object] = {
    "created": WHEN,
    "author": "me",
    "architecture": "amd64",
    "os": "linux",
    "variant": "v2",
    "os.version": "1",
    "comment": "why",
    "container": "abc",
    "docker_version": "20.10",
    "config": {
        "Hostname": "h",
        "Domainname": "d",
        "User": "u",
        "AttachStdin": True,
        "AttachStdout": True,
        "AttachStderr": True,
        "ExposedPorts": {"80/tcp": {}},
        "Tty": True,
        "OpenStdin": True,
        "StdinOnce": True,
        "Env": ["A=b"],
        "Cmd": ["sh"],
        "Healthcheck": {"Test": ["CMD", "true"], "Interval": 1, "Timeout": 2, "StartPeriod": 3, "Retries": 4},
        "ArgsEscaped": True,
        "Image": "i",
        "Volumes": {"/data": {}},
        "WorkingDir": "/",
        "Entrypoint": ["e"],
        "NetworkDisabled": True,
        "MacAddress": "m",
        "OnBuild": ["RUN x"],
        "Labels": {"a": "b"},
        "StopSignal": "9",
        "StopTimeout": 5,
        "Shell": ["sh"],
    },
    "container_config": {"Env": ["A=b"]},
    "rootfs": {"type": "layers", "diff_ids": [digest(BASE)]},
    "history": [
        {"created": WHEN, "created_by": "ADD", "comment": "c", "author": "me"},
        {"created": WHEN, "created_by": "ENV", "empty_layer": True},
    ],
}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def loaded(store: Store, config: object) -> Outcome:
    """Load an image of one layer that has this config, given as a value or as bytes."""
    data = config if isinstance(config, bytes) else json.dumps(config).encode()
    rows = [{"Config": "c.json", "RepoTags": ["test:1"], "Layers": ["layer"]}]
    path = store.root.parent / "image.tar"
    path.write_bytes(archive([("c.json", data), ("layer", BASE), ("manifest.json", json.dumps(rows).encode())]))
    return load(store, path)


def with_config(**settings: object) -> dict[str, object]:
    return {**WHOLE, "config": settings}


# Each with the field that the error names. Docker 20.10 refuses them all.
REFUSED: dict[str, tuple[object, str]] = {
    "created-no-time": ({**WHOLE, "created": "x"}, "'created'"),
    "created-no-zone": ({**WHOLE, "created": "2020-01-01T00:00:00"}, "'created'"),
    "created-no-such-day": ({**WHOLE, "created": "2020-02-30T00:00:00Z"}, "'created'"),
    "created-number": ({**WHOLE, "created": 5}, "'created'"),
    "config-list": (with_config() | {"config": []}, "'config'"),
    "list": ([WHOLE], "must be a JSON object"),
    "null": (None, "must be a JSON object"),
    "env-text": (with_config(Env="A=b"), "'Env' must be a list"),
    "env-number": (with_config(Env=["A=b", 1]), "'Env' must be a list of strings, not one with a string, a number"),
    "cmd": (with_config(Cmd={}), "'Cmd'"),
    "entrypoint": (with_config(Entrypoint=[1]), "'Entrypoint'"),
    "labels-list": (with_config(Labels=[]), "'Labels'"),
    "labels-number": (with_config(Labels={"a": 1}), "'Labels'.*'a'"),
    "ports": (with_config(ExposedPorts=["80"]), "'ExposedPorts'"),
    "ports-value": (with_config(ExposedPorts={"80": 1}), "'ExposedPorts'.*'80'"),
    "volumes": (with_config(Volumes=["/data"]), "'Volumes'"),
    "user": (with_config(User=0), "'User'"),
    "working-directory": (with_config(WorkingDir=[]), "'WorkingDir'"),
    "stop-timeout": (with_config(StopTimeout=1.5), "'StopTimeout'"),
    "health": (with_config(Healthcheck={"Interval": "1s"}), "'Interval'"),
    "history-object": ({**WHOLE, "history": {}}, "'history'"),
    "history-text": ({**WHOLE, "history": ["ADD"]}, r"'history'\[0\]"),
    "history-time": ({**WHOLE, "history": [{"created": "noon"}]}, r"'history'\[0\]: 'created'"),
    "history-flag": ({**WHOLE, "history": [{"empty_layer": "yes"}]}, "'empty_layer'"),
    "history-too-long": ({**WHOLE, "history": [{}, {}]}, "2 steps that create a layer, but 'rootfs' lists only 1"),
    "rootfs-missing": ({**WHOLE, "rootfs": None}, "'rootfs' is missing"),
    "rootfs-type": ({**WHOLE, "rootfs": {"type": 5, "diff_ids": [digest(BASE)]}}, "'type'"),
    "not-a-number": (b'{"x": NaN}', "NaN"),
    "utf-16": (json.dumps(WHOLE).encode("utf-16"), "not JSON"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_config_that_docker_refuses_is_refused_by_member_and_field(store: Store, case: str) -> None:
    config, words = REFUSED[case]
    with pytest.raises(ImageError, match=words) as error:
        loaded(store, config)
    assert "c.json" in str(error.value)
    assert (store.images(), store.layers()) == ([], [])


# Docker 20.10 loads them all.
ACCEPTED: dict[str, object] = {
    "whole": WHOLE,
    "no-time": {**WHOLE, "created": None},
    "zero-time": {**WHOLE, "created": "0001-01-01T00:00:00Z"},
    "nanoseconds": {**WHOLE, "created": "2020-01-01T00:00:00.123456789Z"},
    "zone": {**WHOLE, "created": "2020-01-01T00:00:00.5+02:00"},
    "no-config": {**WHOLE, "config": None},
    "nulls": with_config(Env=None, Cmd=None, Labels=None, ExposedPorts=None, Volumes=None, User=None, Healthcheck=None),
    "null-inside": with_config(Env=[None], Labels={"a": None}, ExposedPorts={"80": None}, Volumes={"/a": None}),
    "one-word": with_config(Cmd="sh", Entrypoint="e", Shell="s"),
    "no-history": {**WHOLE, "history": None},
    "short-history": {**WHOLE, "history": []},
    "null-history": {**WHOLE, "history": [None]},
    "history-without-layers": {**WHOLE, "history": [{"empty_layer": True}]},
    "least": {"rootfs": {"diff_ids": [digest(BASE)]}},
    "half-a-pair": {**WHOLE, "author": "\ud800", "config": {"Labels": {"\udc00": "\ud800"}, "Env": ["\ud83d\ude00"]}},
    "bad-utf-8": json.dumps(WHOLE).encode().replace(b'"why"', b'"\xff"'),
}


def shows_everything(store: Store) -> None:
    """Every verb that reads the config of test:1 succeeds."""
    place = ["--store", str(store.root)]
    out = str(store.root.parent / "saved.tar")
    for words in (
        ["images"],
        ["images", "--json"],
        ["history", "test:1"],
        ["history", "--json", "--human=false", "test:1"],
        ["inspect", "test:1"],
        ["df"],
        ["layers"],
        ["save", "-o", out, "test:1"],
    ):
        assert main.main([words[0], *place, *words[1:]]) == 0, words


@pytest.mark.parametrize("case", ACCEPTED)
def test_a_config_that_docker_takes_is_taken_and_shown(
    store: Store, case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert [one.image.value.tags for one in loaded(store, ACCEPTED[case])] == [("test:1",)]
    shows_everything(store)
    assert capsys.readouterr().err == ""


def test_what_is_no_unicode_is_shown_as_go_shows_it(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    loaded(store, ACCEPTED["half-a-pair"])
    main.main(["inspect", "--store", str(store.root), "test:1"])
    [image] = json.loads(capsys.readouterr().out)
    assert (image["Author"], image["Config"]["Labels"], image["Config"]["Env"]) == (
        "\ufffd",
        {"\ufffd": "\ufffd"},
        ["\U0001f600"],
    )


# --- every field, of every wrong kind ---------------------------------------------------------------

WRONG: tuple[object, ...] = (
    None,
    True,
    7,
    -1,
    1.5,
    10**30,
    "",
    "x",
    "\ud800\x1b",
    [],
    ["x"],
    [1],
    [None],
    {},
    {"x": 1},
    {"x": "y"},
    {"x": None},
    [[]],
    [{}],
)
Place = tuple[str | int, ...]


def fields(value: object, path: Place = ()) -> Iterator[Place]:
    """Where everything in a JSON value stands."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from fields(inner, (*path, key))


def mutated(path: Place, wrong: object) -> object:
    if not path:
        return wrong
    copy = json.loads(json.dumps(WHOLE))
    at = copy
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = wrong
    return copy


@pytest.mark.parametrize("number", range(4))
def test_any_mutation_is_refused_by_its_field_or_shows(store: Store, number: int) -> None:
    seed = random.randrange(1 << 30)
    print(f"seed {seed}, part {number}")
    cases = [(path, wrong) for path in fields(WHOLE) for wrong in WRONG][number::4]
    for path, wrong in random.Random(seed).sample(cases, 15):
        try:
            loaded(store, mutated(path, wrong))
        except ImageError as error:
            named = [part for part in path if isinstance(part, str)]
            assert not named or any(part in str(error) for part in named), (path, wrong, str(error))
        else:
            shows_everything(store)
