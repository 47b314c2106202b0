"""Does `inspect` show a container, and are the directories of its overlay the real ones?"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import pytest

from overlayfs_demo.cli import container_rows
from overlayfs_demo.mounts import registry
from tests.conftest import unmount_all, why_no_mounts
from tests.images.builders import WHITEOUT, docker_save_many, layer, needs_root
from tests.places import run

BASE = layer({"etc/motd": "hello\n", "old": "1"})
APP = layer({"app/more": "12345", "old": WHITEOUT})
Demo = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Demo]:
    """`overlayfs-demo` on a store of its own, with the image a:1 and the container c1 of it, which is mounted."""
    if problem := why_no_mounts():
        pytest.skip(problem)

    def command(*words: str | Path) -> subprocess.CompletedProcess[str]:
        return run("overlayfs-demo", words[0], "--store", tmp_path / "store", *words[1:])

    (tmp_path / "images.tar").write_bytes(docker_save_many({"a:1": [BASE, APP]}))
    assert command("load", tmp_path / "images.tar").returncode == 0
    assert command("create", "a:1", "--name", "c1").returncode == 0
    yield command
    unmount_all(str(tmp_path))


def shown(demo: Demo, *words: str) -> dict[str, object]:
    done = demo("inspect", *words)
    assert (done.returncode, done.stderr) == (0, "")
    [found] = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


def directories(demo: Demo) -> dict[str, str]:
    done = demo("inspect", "-f", "{{json .GraphDriver.Data}}", "c1")
    assert (done.returncode, done.stderr) == (0, "")
    return dict(json.loads(done.stdout))


def test_upper_is_where_a_change_lands(demo: Demo) -> None:
    place = directories(demo)
    Path(place["MergedDir"], "etc/motd").write_text("changed\n")
    assert Path(place["UpperDir"], "etc/motd").read_text() == "changed\n"
    top, bottom = place["LowerDir"].split(":")
    assert Path(bottom, "etc/motd").read_text() == "hello\n" and Path(top, "app/more").read_text() == "12345"
    assert os.path.isdir(place["WorkDir"]) and all(map(os.path.isabs, (top, bottom, *place.values())))


@needs_root
def test_kernel_mounts_what_inspect_shows(demo: Demo, tmp_path: Path) -> None:
    place = directories(demo)
    Path(place["MergedDir"], "new").write_text("by us\n")
    assert demo("stop", "c1").returncode == 0
    (tmp_path / "view").mkdir()
    options = f"lowerdir={place['LowerDir']},upperdir={place['UpperDir']},workdir={place['WorkDir']}"
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, tmp_path / "view"], check=True)
    assert (tmp_path / "view/new").read_text() == "by us\n" and not (tmp_path / "view/old").exists()


def test_state_is_running_while_it_is_mounted(demo: Demo) -> None:
    state = shown(demo, "c1")["State"]
    assert isinstance(state, dict) and (state["Status"], state["Running"]) == ("running", True)
    assert Path(f"/proc/{state['Pid']}").is_dir()
    assert demo("stop", "c1").returncode == 0
    state = shown(demo, "c1")["State"]
    assert isinstance(state, dict) and (state["Status"], state["Running"], state["Pid"]) == ("exited", False, 0)


def test_sizes_are_counted_if_asked_for(demo: Demo) -> None:
    Path(directories(demo)["MergedDir"], "new").write_text("1234")
    found = shown(demo, "-s", "c1")
    assert (found["SizeRw"], found["SizeRootFs"]) == (4, 4 + len("hello\n" + "1" + "12345"))
    assert "SizeRw" not in shown(demo, "c1")


def test_container_is_found_before_an_image(demo: Demo) -> None:
    assert demo("tag", "a:1", "c1").returncode == 0
    assert shown(demo, "c1")["Name"] == "/c1"
    assert shown(demo, "--type", "image", "c1")["RepoTags"] == ["a:1", "c1:latest"]
    done = demo("inspect", "-f", "{{.Id}}", "c1", "a:1", "gone")
    assert (done.returncode, done.stdout.splitlines()) == (1, ["c1", str(shown(demo, "a:1")["Id"])])
    assert "no container 'gone', and no image gone:latest" in done.stderr


def test_df_counts_containers_as_docker_does(demo: Demo) -> None:
    Path(directories(demo)["MergedDir"], "new").write_text("1234")
    form = "{{.TotalCount}} {{.Active}} {{.Size}} {{.Reclaimable}}"
    assert demo("df", "--format", form).stdout == "1 1 12B 0B (0%)\n1 1 4B 0B (0%)\n"
    assert demo("stop", "c1").returncode == 0
    assert demo("df", "--format", form).stdout == "1 1 12B 0B (0%)\n1 0 4B 4B (100%)\n"
    header, row = demo("df", "-v").stdout.splitlines()[-2:]
    assert header.split("  ")[0] == "CONTAINER ID" and row.split()[:2] == ["c1", "a:1"]
    [found] = json.loads(demo("df", "-v", "--format", "json").stdout)["Containers"]
    assert (found["ID"], found["Size"], found["State"]) == ("c1", "4B", "exited")


def test_ps_walks_an_upper_only_for_its_size(demo: Demo, monkeypatch: pytest.MonkeyPatch) -> None:
    walked: list[str] = []
    monkeypatch.setattr(container_rows, "upper_size", lambda container: walked.append(container.name))
    assert demo("ps", "--format", "{{.Names}} {{$.State}} {{with .Image}}{{$.ID}}{{end}}").returncode == 0
    assert walked == []
    for form in ("{{.Size}}", "json", "{{json .}}", "{{range .}}x{{end}}", "table {{.Names}} {{$.Size | upper}}"):
        walked.clear()
        demo("ps", "--format", form)
        assert walked == ["c1"], form


def test_ps_reads_the_registry_once(demo: Demo, monkeypatch: pytest.MonkeyPatch) -> None:
    assert demo("create", "a:1", "--name", "c2").returncode == 0
    assert demo("create", "a:1", "--name", "c3").returncode == 0
    live_records = mock.Mock(side_effect=registry.live_records)
    monkeypatch.setattr(registry, "live_records", live_records)
    assert demo("ps").stdout.count("Up ") == 3
    assert live_records.call_count == 1


def test_ps_is_shaped_by_a_template(demo: Demo) -> None:
    form = "{{.ID}} {{.Names}} {{.Image}} {{.State}} {{.Size}}"
    assert demo("ps", "--format", form).stdout == "c1 c1 a:1 running 0B (virtual 12B)\n"
    assert demo("stop", "c1").returncode == 0
    said = demo("ps", "--format", "table {{.Names}}\\t{{.State}}\\t{{.Status}}").stdout
    assert said == "NAMES     STATE     STATUS\nc1        exited    Exited\n"
    assert demo("ps", "--format", "raw").stdout.startswith("container_id: c1\nimage: a:1\n")
    assert "no placeholder {{.Foo}}" in demo("ps", "--format", "{{.Foo}}").stderr
