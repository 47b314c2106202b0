"""Does a real Docker answer the same to the same words? Skipped where no Docker daemon can be started."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.conftest import unmount_all, why_no_mounts
from tests.images.builders import archive, config, hexdigest, layer
from tests.places import run

BASE, APP = layer({"etc/motd": "hello\n"}), layer({"app/run": "#!"})

Run = Callable[..., subprocess.CompletedProcess[str]]

LISTS = [
    ["images", "--format", "json"],
    ["images", "--format", "raw"],
    ["images", "--format", "raw", "-q"],
    ["images", "--format", "table"],
    ["images", "--format", "table", "-q"],
    ["images", "--format", "table {{.ID}}\\t{{.Repository}}:{{.Tag}}\\t{{upper .Size}}\\t{{.CreatedSince}}"],
    ["images", "--format", '{{range split .Repository ""}}{{.}}-{{end}}{{if eq .Tag "1"}}one{{else}}more{{end}}'],
    ["images", "-q", "--no-trunc", "--format", '{{printf "%.12s|%20s|%-9s|%q" .ID .Repository .Tag .Size}}'],
    ["images", "--format", "{{pad .Tag 2 3}}{{truncate .ID 4}}{{title .Repository}}{{json .CreatedSince}}{{len .ID}}"],
    ["images", "-a", "--filter", "dangling=true"],
    ["images", "--filter", "dangling=false", "--filter", "reference=*"],
    ["images", "--filter", "reference=*/*/app*"],
    ["images", "--filter", "reference=a*:[^3-9]"],
    ["images", "--filter", "before=app:1"],
    ["images", "--filter", "since=old:1"],
    ["images", "--filter", "label=a"],
    ["images", "--filter", "label=a=1", "--filter", "label=b"],
    ["images", "a*"],
    ["images", "--digests"],
    ["images", "--digests", "-q"],
    ["history", "-q", "app:1"],
    ["history", "--format", "json", "app:1"],
    ["history", "--format", "{{json .}} {{json .CreatedBy}}", "--no-trunc", "app:1"],
    ["history", "-H", "--format", "table {{.ID}}\\t{{.CreatedBy}}\\t{{.Size}}\\t{{.Comment}}", "app:1"],
    ["history", "--human=false", "--format", "{{.CreatedAt}} {{.CreatedSince}} {{.Size}}", "app:1"],
]
OBJECTS = [
    "{{.Id}} {{.Os}} {{.RepoTags}} {{.RootFS.Layers}} {{.Size}}",
    "{{.ID}}",
    "{{.Config.Env}} {{.Config.Labels}} {{.Config.Volumes}} {{.Config.Entrypoint}} {{.Config.Cmd}}",
    '{{json .RootFS}} {{json .Config.Env}} {{join .Config.Cmd ","}}',
    "{{range $i, $l := .RootFS.Layers}}{{$i}}={{$l}} {{else}}none{{end}}",
    '{{range $k, $v := .Config.Labels}}{{$k}}={{$v}} {{end}}{{index .Config.Labels "a"}}{{index .Config.Env 0}}',
    '{{with .Author}}x{{else}}no author{{end}} {{if and .Os (eq .Os "linux" "minix")}}L{{else if true}}B{{end}}',
    "{{- .Os -}}   x {{/* nothing */ -}}  {{$x := .Os}}{{$x = upper $x}}{{$x}}{{len .RootFS.Layers}}\\t",
    '{{println .Os 1 true}}{{print 1 2 "a" "b"}}{{slice .Os 1 3}}{{lt 1 2}}{{not .Os}}{{or .Author "nobody"}}',
    '{{range 3}}{{.}}{{end}}{{printf "%d %5d|%-5d|%05d %x %v %t %%" .Size 3 4 5 255 .RepoTags true}}',
]
WRONG = ["{{.Foo}}", "{{.Config.Foo}}", "{{.Os.Foo}}", "{{index .RootFS.Layers 99}}", "{{range .Os}}{{end}}"]
SYNTAX = ["{{.Id", "{{foo .Id}}", "{{range}}", "{{end}}", "{{if .Os}}", "{{$y}}", "{{}}", '{{"a}}', "{{.Os | 1}}"]
# What `create` and Docker's client fill in on their own: a host's name, and streams of the terminal.
FILLED_IN = ("Hostname", "AttachStdout", "AttachStderr")


def image(name: str, created: str, labels: dict[str, str] | None, layers: Sequence[bytes]) -> bytes:
    """An archive of one image, made at this time, with a command and a history."""
    settings = {"Labels": labels, "Env": ["PATH=/bin", "A=<b> && c"], "Cmd": ["/bin/sh", "-c", "a && b"]}
    steps = [{"created": created, "created_by": f'/bin/sh -c <{number}> && "x"'} for number in range(len(layers))]
    fields = json.loads(config(layers)) | {"created": created, "config": settings, "history": steps}
    data = json.dumps(fields).encode()
    members = [(f"{number}.tar", one) for number, one in enumerate(layers)]
    row = {"Config": f"{hexdigest(data)}.json", "RepoTags": [name], "Layers": [member for member, _ in members]}
    return archive([(f"{hexdigest(data)}.json", data), *members, ("manifest.json", json.dumps([row]).encode())])


@pytest.fixture
def both(tmp_path: Path, docker: list[str | Path]) -> Iterator[tuple[Run, Run]]:
    """Docker and this program, each with the images old:1, app:1 and example.com/team/app:2."""

    def theirs(*words: str | Path) -> subprocess.CompletedProcess[str]:
        return run(*docker, *words)

    def ours(*words: str | Path) -> subprocess.CompletedProcess[str]:
        return run("env", f"OVERLAYFS_DEMO_STORE={tmp_path / 'store'}", "overlayfs-demo", *words)

    for name, created, labels, layers in (
        ("old:1", "2001-01-01T00:00:00Z", None, [BASE]),
        ("app:1", "2002-01-01T00:00:00.25Z", {"a": "1", "b": ""}, [BASE, APP]),
        ("example.com/team/app:2", "2002-01-01T00:00:01.75Z", {"a": "2"}, [BASE]),
    ):
        (tmp_path / "image.tar").write_bytes(image(name, created, labels, layers))
        for command in (theirs, ours):
            assert command("load", "-q", "-i", tmp_path / "image.tar").stdout == f"Loaded image: {name}\n"
    yield theirs, ours
    unmount_all(str(tmp_path))


def test_lists_are_dockers(both: tuple[Run, Run]) -> None:
    theirs, ours = both
    differing = []
    for words in LISTS:
        wanted, found = theirs(*words), ours(*words)
        if (found.returncode, found.stdout, found.stderr) != (0, wanted.stdout, ""):
            differing.append((words, wanted.stdout, found.stdout, found.stderr))
    assert differing == []
    usage = ("system", "df", "--format", "{{.Type}} {{.TotalCount}} {{.Active}} {{.Size}} {{.Reclaimable}}")
    # Docker goes on with volumes and its build cache, which do not exist here.
    assert ours(*usage).stdout.splitlines() == theirs(*usage).stdout.splitlines()[:2]


def test_templates_of_inspect_are_dockers(both: tuple[Run, Run]) -> None:
    theirs, ours = both
    for form in OBJECTS:
        objects = ("inspect", "-f", form, "app:1", "old:1")
        assert ours(*objects).stdout == theirs(*objects).stdout, form
    for form in (*WRONG, *SYNTAX):
        wrong = ("inspect", "-f", form, "app:1")
        # Docker exits with 64 if inspect's template cannot be read, and everywhere else with 1.
        assert theirs(*wrong).returncode in (1, 64) and ours(*wrong).returncode == 1, form


def test_container_is_described_as_docker_describes_it(both: tuple[Run, Run]) -> None:
    if problem := why_no_mounts():
        pytest.skip(problem)
    theirs, ours = both
    assert theirs("create", "--name", "app", "app:1").returncode == 0
    assert ours("create", "--name", "app", "app:1").returncode == 0
    same = "{{.Name}} {{.Path}} {{json .Args}} {{.Image}} {{.Mounts}} {{.State.ExitCode}} {{.Config.Env}} {{.Platform}}"
    # A container is found before an image; `.Name` is only a container's.
    for words in (["-s", "-f", same, "app"], ["-s", "-f", "{{.SizeRw}} {{.SizeRootFs}}", "app"]):
        assert ours("inspect", *words).stdout == theirs("inspect", *words).stdout
    listed = (
        '{{.Names}} {{.Image}} {{.Command}} {{.Size}}|{{.Labels}} {{.Label "a"}} {{.LocalVolumes}}{{.Mounts}}{{.Ports}}'
    )
    for form in (listed, f"table {listed}"):
        assert ours("ps", "--format", form).stdout == theirs("ps", "-a", "--format", form).stdout
    [wanted], [found] = (json.loads(command("inspect", "-s", "app").stdout) for command in (theirs, ours))
    assert list(found["GraphDriver"]["Data"]) == list(wanted["GraphDriver"]["Data"])
    for key in FILLED_IN:
        wanted["Config"].pop(key), found["Config"].pop(key)
    assert found["Config"] == wanted["Config"]
    assert set(found) <= set(wanted) and set(found["State"]) <= set(wanted["State"])
    assert [key for key in wanted if key in found] == list(found)
