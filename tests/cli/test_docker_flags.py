"""Do the verbs about images take docker's options, and answer as docker does?"""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from overlayfs_demo.cli import groups
from overlayfs_demo.cli import main as cli
from overlayfs_demo.store.store import Store
from tests.images.builders import archive, config, docker_save_many, hexdigest, layer

BASE, APP = layer({"etc/motd": "hello\n"}), layer({"app/run": "#!"})

Said = tuple[int, str, str]
Demo = Callable[..., Said]


def dated(name: str, created: str, labels: dict[str, str] | None = None) -> bytes:
    """An archive of one image of one layer, made at this time."""
    fields = json.loads(config([BASE])) | {"created": created, "config": {"Labels": labels}}
    data = json.dumps(fields).encode()
    rows = [{"Config": f"{hexdigest(data)}.json", "RepoTags": [name], "Layers": ["a.tar"]}]
    members = [(f"{hexdigest(data)}.json", data), ("a.tar", BASE), ("manifest.json", json.dumps(rows).encode())]
    return archive(members)


@pytest.fixture
def demo(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Demo:
    """Run a command line on a store of its own: its exit status, and what it printed on stdout and stderr.

    The store holds old:1 (2001, no label), app:1 (2002) and example.com/team/app:2 (half a second later), of one layer.
    """
    monkeypatch.setenv("OVERLAYFS_DEMO_STORE", str(tmp_path / "store"))

    def run(*words: str | Path) -> Said:
        capfd.readouterr()
        try:
            status = cli.main([*map(str, words)])
        except SystemExit as error:
            status = int(str(error.code))
        return status, *capfd.readouterr()

    for number, data in enumerate(
        (
            dated("old:1", "2001-01-01T00:00:00Z"),
            dated("app:1", "2002-01-01T00:00:00.25Z", {"a": "1", "b": ""}),
            dated("example.com/team/app:2", "2002-01-01T00:00:00.75Z", {"a": "2"}),
        )
    ):
        (tmp_path / f"{number}.tar").write_bytes(data)
        assert run("load", "-i", tmp_path / f"{number}.tar")[0] == 0
    return run


def listed(said: Said) -> str:
    assert (said[0], said[2]) == (0, "")
    return said[1]


NAMES = "{{.Repository}}:{{.Tag}}"
ALL = ["example.com/team/app:2", "app:1", "old:1"]


# --- images ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["-a"], ALL),
        (["--filter", "reference=app"], ["app:1"]),
        (["--filter", "reference=*"], ["app:1", "old:1"]),
        (["-f", "reference=*/*/app"], ["example.com/team/app:2"]),
        (["-f", "reference=*:1"], ["app:1", "old:1"]),
        (["-f", "reference=[a-b]??:[^2]"], ["app:1"]),
        (["-f", "reference=app", "-f", "reference=old"], ["app:1", "old:1"]),
        (["--filter", "since=old:1"], ["example.com/team/app:2", "app:1"]),
        (["--filter", "before=app:1"], ["old:1"]),
        (["--filter", "since=app:1"], ["example.com/team/app:2"]),
        (["--filter", "label=a"], ["example.com/team/app:2", "app:1"]),
        (["--filter", "label=a=1"], ["app:1"]),
        (["--filter", "label=b="], ["app:1"]),
        (["--filter", "label=a", "--filter", "label=b"], ["app:1"]),
        (["--filter", "dangling=true"], []),
        (["--filter", "dangling=FALSE"], ALL),
        (["o*"], ["old:1"]),
        (["app"], ["app:1"]),
    ],
)
def test_images_are_chosen_as_docker_chooses_them(demo: Demo, words: list[str], names: list[str]) -> None:
    found = listed(demo("images", "--format", NAMES, *words)).splitlines()
    assert sorted(found) == sorted(names)


def test_image_without_a_name_is_dangling(demo: Demo) -> None:
    assert demo("tag", "app:1", "old:1")[0] == 0
    assert listed(demo("images", "--filter", "dangling=true", "--format", NAMES)) == "<none>:<none>\n"
    assert "<none>" not in listed(demo("images", "--filter", "dangling=false", "--format", NAMES))
    assert "<none>" not in listed(demo("images", "--filter", "reference=*", "--format", NAMES))


@pytest.mark.parametrize("word", ["dangling", "dangling=x", "foo=bar", "reference=", "reference=[a", "reference=[z-a]"])
def test_bad_filter_is_wrong_usage(demo: Demo, word: str) -> None:
    status, out, err = demo("images", "--filter", word)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert word.partition("=")[2] in err


def test_filter_names_an_image_that_is_missing(demo: Demo) -> None:
    assert demo("images", "--filter", "since=gone")[:2] == (1, "")


def test_format_raw_is_dockers(demo: Demo) -> None:
    [image] = [image for image in Store(Path(os.environ["OVERLAYFS_DEMO_STORE"])).images() if image.title == "app:1"]
    said = listed(demo("images", "--format", "raw", "app:1")).splitlines()
    assert said[:3] == ["repository: app", "tag: 1", f"image_id: {image.id.encoded[:12]}"]
    assert said[3].startswith("created_at: 2002-01-01 ") and said[4:] == ["virtual_size: 6B", ""]


def test_table_has_dockers_headers(demo: Demo) -> None:
    form = "table {{.Tag}}\\t{{upper .Repository}}\\t{{.Size}}"
    assert listed(demo("images", "--format", form, "old")) == "TAG       REPOSITORY   SIZE\n1         OLD          6B\n"


def test_table_alone_is_the_usual_one(demo: Demo) -> None:
    usual = listed(demo("images"))
    assert listed(demo("images", "--format", "table")) == listed(demo("images", "--format", "")) == usual
    assert listed(demo("images", "-q", "--format", "table")) == listed(demo("images", "-q"))


def test_format_json_is_what_the_option_json_prints(demo: Demo) -> None:
    assert listed(demo("images", "--format", "json")) == listed(demo("images", "--json"))
    assert listed(demo("history", "--format", "json", "app:1")) == listed(demo("history", "--json", "app:1"))
    status, _, err = demo("images", "--format", "json", "--json")
    assert (status, err) == (2, "overlayfs-demo: --json and --format were both given: choose one\n")


@pytest.mark.parametrize("verb", [["images"], ["history", "app:1"], ["df"], ["inspect", "app:1"]])
def test_wrong_placeholder_is_one_line_that_lists_the_right_ones(demo: Demo, verb: list[str]) -> None:
    status, out, err = demo(*verb, "--format", "{{.Wrong}}")
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert err.startswith("overlayfs-demo: template: there is no placeholder {{.Wrong}}: use one of .")


# --- history and inspect ---------------------------------------------------------------------------


def test_history_takes_dockers_short_options(demo: Demo, tmp_path: Path) -> None:
    (tmp_path / "two.tar").write_bytes(docker_save_many({"two:1": [BASE, APP]}))
    assert demo("load", tmp_path / "two.tar")[0] == 0
    first, *rest = listed(demo("history", "-q", "two:1")).splitlines()
    assert len(first) == 12 and rest == ["<missing>"] * len(rest)
    assert listed(demo("history", "-q", "--no-trunc", "two:1")).splitlines()[0].startswith(f"sha256:{first}")
    assert listed(demo("history", "-H", "two:1")) == listed(demo("history", "two:1"))
    assert listed(demo("history", "--format", "table {{.Size}}", "two:1")).splitlines()[0] == "SIZE"


def test_history_with_layers_has_placeholders_for_them(demo: Demo) -> None:
    [image] = json.loads(listed(demo("inspect", "app:1")))
    form = "table {{.DiffID}}\\t{{.Added}}"
    header, *rows = listed(demo("history", "--layers", "--no-trunc", "--format", form, "app:1")).splitlines()
    assert header.split("  ")[0] == "DIFF ID"
    assert [row.split() for row in rows] == [[diff_id, "2"] for diff_id in image["RootFS"]["Layers"]]
    assert "there is no placeholder {{.DiffID}}" in demo("history", "--format", form, "app:1")[2]


def test_inspect_executes_a_template_for_each_image(demo: Demo) -> None:
    [first], [second] = (json.loads(listed(demo("inspect", name))) for name in ("app:1", "old:1"))
    said = listed(demo("inspect", "-f", "{{.ID}} {{.Config.Env}} {{.Config.Volumes}}", "app:1", "old:1"))
    assert said == f"{first['Id']} [] map[]\n{second['Id']} [] map[]\n"
    assert json.loads(listed(demo("inspect", "--format", "json", "app:1", "old:1"))) == [first, second]
    assert listed(demo("inspect", "--format", "{{json .Config.Labels}}", "app:1")) == '{"a":"1","b":""}\n'


def test_inspect_by_type(demo: Demo) -> None:
    assert demo("inspect", "--type", "image", "app:1")[0] == 0
    assert demo("image", "inspect", "app:1") == demo("inspect", "app:1")
    status, out, err = demo("inspect", "--type", "container", "app:1")
    assert (status, out) == (1, "[]\n") and "no container 'app:1': that is an image" in err
    assert "only images and containers" in demo("inspect", "--type", "volume", "app:1")[2]
    assert demo("inspect", "--type", "cheese", "app:1")[0] == 2
    assert "is always shown" in demo("inspect", "-s", "app:1")[2]


# --- df --------------------------------------------------------------------------------------------


def test_df_in_dockers_words(demo: Demo) -> None:
    form = "{{.Type}} {{.TotalCount}} {{.Active}} {{.Size}} {{.Reclaimable}}"
    assert listed(demo("df", "--format", form)) == "Images 3 0 6B 6B (100%)\nContainers 0 0 0B 0B\n"
    both = json.loads(listed(demo("df", "-v", "--format", "json")))
    assert json.loads(listed(demo("df", "-v", "--json"))) == both
    assert [row["SharedSize"] for row in both["Images"]] == ["6B"] * 3 and both["Containers"] == []
    said = listed(demo("system", "df", "-v")).splitlines()
    assert said[0] == "Images space usage:" and "SHARED SIZE   UNIQUE SIZE   CONTAINERS" in said[2]
    assert demo("df", "-v", "--format", "{{.ID}}")[0] == 2


# --- save, rmi and the groups ----------------------------------------------------------------------


def members(where: Path) -> list[str]:
    if where.is_dir():
        return os.listdir(where)
    with tarfile.open(where) as tar:
        return tar.getnames()


def test_save_writes_each_form_and_load_reads_it(demo: Demo, tmp_path: Path) -> None:
    image = listed(demo("images", "-q", "--no-trunc", "app:1")).strip()
    for form in ("docker-archive", "oci-archive", "oci-dir"):
        where = tmp_path / form
        assert demo("save", "-q", "--format", form, "-o", where, "app:1") == (0, "", "")
        names = members(where)
        assert ("manifest.json" in names) == (form == "docker-archive") and "index.json" in names
        assert demo("rmi", "app:1")[0] == 0
        assert listed(demo("load", "-q", "-i", where)) == "Loaded image: app:1\n"
        assert listed(demo("images", "-q", "--no-trunc", "app:1")).strip() == image


def test_directory_that_holds_something_is_not_written_over(demo: Demo, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/canary").touch()
    (tmp_path / "empty").mkdir()
    status, _, err = demo("save", "--format", "oci-dir", "-o", tmp_path / "full", "app:1")
    assert status == 1 and "Directory not empty: choose an --output that is new or an empty directory" in err
    assert os.listdir(tmp_path / "full") == ["canary"]
    assert demo("save", "--format", "oci-dir", "-o", tmp_path / "empty", "app:1")[0] == 0
    for target in (".", "/", tmp_path / "no/such"):
        assert demo("save", "--format", "oci-dir", "-o", target, "app:1")[0] == 1
    assert not [name for name in os.listdir(tmp_path) if "unfinished" in name]
    assert demo("save", "--format", "oci-dir", "app:1")[0] == 2


def test_layers_stay_if_they_are_not_to_be_pruned(demo: Demo) -> None:
    for name in ("example.com/team/app:2", "app:1", "old:1"):
        assert "Deleted: sha256:" in listed(demo("rmi", "--no-prune", name))
    assert "nothing" in listed(demo("layers"))
    assert listed(demo("prune")).endswith("Total reclaimed space: 6B\n")


# `container prune` is the one verb that only a group has.
ALIASES = [
    (group, name) for group, names in groups.GROUPS.items() for name in names if (group, name) != ("container", "prune")
]


@pytest.mark.parametrize(("group", "name"), ALIASES)
def test_verb_of_a_group_is_the_verb(demo: Demo, group: str, name: str) -> None:
    verb = groups.GROUPS[group][name]
    told, same = demo(group, name, "--help"), demo(verb, "--help")
    assert told[0] == 0
    assert told[1].split("options:")[1].split("example:")[0] == same[1].split("options:")[1].split("example:")[0]
    assert f"overlayfs-demo {group} {name} " in told[1]


def test_groups_do_what_their_verbs_do(demo: Demo) -> None:
    assert demo("image", "ls") == demo("images")
    assert demo("image", "history", "app:1") == demo("history", "app:1")
    assert demo("system", "df") == demo("df")
    assert demo("image", "tag", "app:1", "new:1")[0] == 0
    assert demo("image", "rm", "new:1") == (0, "Untagged: new:1\n", "")
    assert demo("image", "cheese")[0] == 2


def test_import_reads_standard_input_in_a_group_too(demo: Demo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(APP)))
    assert listed(demo("image", "import", "-")).startswith("sha256:")
