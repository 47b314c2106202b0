"""Do `commit --change`, `cp` and `create scratch` do what Docker does? Needs a Docker daemon that can run here."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import unmount_all, why_no_mounts
from tests.images.builders import docker_save_many, layer, symlink
from tests.places import run
from tests.real_docker import succeeds

_SETTINGS = ("Cmd", "Entrypoint", "Env", "ExposedPorts", "Healthcheck", "Labels", "OnBuild", "StopSignal", "User")
_TREE = {"etc/motd": "hello\n", "etc/conf/a": "1", "link": symlink("etc"), "file-link": symlink("etc/motd")}

_CHANGES = (
    ['CMD ["a", "b c"]'],
    ["CMD a b  c"],
    ["CMD ['a']"],
    ["CMD []"],
    ["ENTRYPOINT /run $A"],
    ["CMD x", "ENTRYPOINT /run"],
    ["ENV A=2 B=$A C='$A' D=\"x $A\""],
    ["ENV A=2", "ENV B=$A"],
    ["ENV B some words"],
    ["ENV B  $A 'x y' "],
    ["ENV B=${N:-none} C=${A:+set} D=\\$A E=a\\ b"],
    ["EXPOSE 80 53/UDP 8000-8002"],
    ["LABEL a=2 'b c'=\"d e\" f=$A"],
    ["ONBUILD RUN make"],
    ["ONBUILD ONBUILD RUN make"],
    ["STOPSIGNAL nothing"],
    ["USER bob:users"],
    ["USER a b"],
    ['VOLUME ["/a b", "/c"]'],
    ["VOLUME /a /b$A"],
    ["WORKDIR sub/../lib", "WORKDIR x"],
    ["WORKDIR /a b/"],
    ["HEALTHCHECK NONE"],
    ['HEALTHCHECK --interval=1m30s --retries=3 CMD ["a"]'],
    ["HEALTHCHECK CMD test -f /x"],
    ["HEALTHCHECK --interval=x CMD y"],
    ["HEALTHCHECK x"],
    ["RUN make"],
    ["COPY a b"],
    ["CMD"],
    ["ENV A"],
    ["ENV A=1 B"],
    ["ENV A=${B"],
    ["EXPOSE x"],
    ["EXPOSE 90-80"],
)
# Source and target; `here` is a directory of this machine.
_COPIES = (
    ("c1:/etc/motd", "here/new"),
    ("c1:/etc/motd", "here"),
    ("c1:/etc/motd", "here/none/"),
    ("c1:/etc/motd", "here/file"),
    ("c1:/etc/motd", "here/file/"),
    ("c1:/etc", "here"),
    ("c1:/etc", "here/new"),
    ("c1:/etc/", "here"),
    ("c1:/etc/.", "here"),
    ("c1:/etc", "here/file"),
    ("c1:/link", "here"),
    ("c1:/link/", "here"),
    ("c1:/file-link", "here/x"),
    ("c1:nothing", "here"),
    ("here/file", "c1:/etc"),
    ("here/file", "c1:/etc/new"),
    ("here/file", "c1:/none/"),
    ("here/file", "c1:/none/new"),
    ("here/file", "c1:/link"),
    ("here/file", "c1:/file-link"),
    ("here/dir", "c1:/etc"),
    ("here/dir/.", "c1:/etc"),
    ("here/dir", "c1:/new"),
    ("here/dir", "c1:/etc/motd"),
    ("here/mine", "c1:/"),
)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Path]:
    """A store with the image a:1, whose settings are not empty, in an archive that Docker loads too."""
    if problem := why_no_mounts():
        pytest.skip(problem)
    (tmp_path / "plain.tar").write_bytes(docker_save_many({"a:0": [layer(_TREE)]}))
    store = tmp_path / "store"
    succeeds("overlayfs-demo", "load", "--store", store, tmp_path / "plain.tar")
    succeeds("overlayfs-demo", "create", "--store", store, "a:0", "--name", "c0")
    words = ("-c", "ENV A=1", "-c", "CMD old", "-c", "WORKDIR /app", "-c", "LABEL a=1")
    succeeds("overlayfs-demo", "commit", "--store", store, *words, "c0", "a:1")
    succeeds("overlayfs-demo", "save", "--store", store, "a:1", "-o", tmp_path / "a.tar")
    yield store
    unmount_all(str(tmp_path))


def settings(told: str) -> dict[str, object]:
    config = json.loads(told)[0]["Config"]
    # Docker writes an empty list or object for some that are absent here.
    return {key: config.get(key) or None for key in (*_SETTINGS, "Volumes", "WorkingDir")}


def test_commit_follows_instructions_as_docker_does(store: Path, tmp_path: Path, docker: list[str | Path]) -> None:
    succeeds(*docker, "load", "-i", tmp_path / "a.tar")
    succeeds(*docker, "create", "--name", "c1", "a:1")
    succeeds("overlayfs-demo", "create", "--store", store, "a:1", "--name", "c1")
    differ: list[object] = []
    for instructions in _CHANGES:
        words = [word for text in instructions for word in ("--change", text)]
        theirs = run(*docker, "commit", *words, "c1", "b:1")
        ours = run("overlayfs-demo", "commit", "--store", store, *words, "c1", "b:1")
        if (theirs.returncode == 0) != (ours.returncode == 0):
            differ.append((instructions, theirs.stderr, ours.stderr))
            continue
        if theirs.returncode == 0:
            told = settings(succeeds(*docker, "inspect", "b:1"))
            made = settings(succeeds("overlayfs-demo", "inspect", "--store", store, "b:1"))
            differ += [(instructions, key, told[key], made[key]) for key in told if told[key] != made[key]]
        else:
            assert ours.stderr.count("\n") == 1 and instructions[0] in ours.stderr
    assert not differ


def fresh(tmp_path: Path) -> Path:
    """The directory `here` with a file, a directory and a link, alone in a working directory."""
    shutil.rmtree(tmp_path / "work", ignore_errors=True)
    here = tmp_path / "work/here"
    (here / "dir/sub").mkdir(parents=True)
    (here / "file").write_text("mine")
    (here / "dir/sub/x").write_text("x")
    (here / "mine").symlink_to("file")
    return here.parent


def tree(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): f"-> {os.readlink(path)}" if path.is_symlink() else path.read_text()
        for path in sorted(root.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


def test_cp_follows_dockers_rules(store: Path, tmp_path: Path, docker: list[str | Path]) -> None:
    succeeds(*docker, "load", "-i", tmp_path / "a.tar")
    ours = ("overlayfs-demo", "--store")
    differ = []
    for source, target in _COPIES:
        found = []
        succeeds(*docker, "create", "--name", "c1", "a:1")
        succeeds(ours[0], "create", *ours[1:], store, "a:1", "--name", "c1")
        for theirs in (True, False):
            work = fresh(tmp_path)
            words = [*docker, "cp"] if theirs else [ours[0], "cp", *ours[1:], store]
            done = run(*words, source, target, cwd=work)
            inside = tmp_path / "out"
            shutil.rmtree(inside, ignore_errors=True)
            inside.mkdir()
            export = [*docker, "export"] if theirs else [ours[0], "export", *ours[1:], store]
            assert run(*export, "-o", tmp_path / "out.tar", "c1").returncode == 0
            subprocess.run(["tar", "-C", inside, "-xf", tmp_path / "out.tar", "--exclude=dev/*"], check=True)
            made_by_docker = {"etc/hostname", "etc/hosts", "etc/resolv.conf", "etc/mtab", ".dockerenv"}
            there = {name: text for name, text in tree(inside).items() if name not in made_by_docker}
            copied = {name: text for name, text in tree(work).items() if f"etc/{Path(name).name}" not in made_by_docker}
            found.append((done.returncode == 0, copied, there))
        if found[0] != found[1]:
            differ.append((source, target, *found))
        succeeds(*docker, "rm", "c1")
        succeeds(ours[0], "rm", *ours[1:], store, "-f", "c1")
    assert not differ


def test_docker_loads_an_image_that_was_begun_from_scratch(
    store: Path, tmp_path: Path, docker: list[str | Path]
) -> None:
    told = succeeds("overlayfs-demo", "create", "--store", store, "scratch", "--name", "c1")
    (Path(told.split()[1]) / "motd").write_text("hello\n")
    succeeds("overlayfs-demo", "commit", "--store", store, "-c", "CMD x", "c1", "s:1")
    succeeds("overlayfs-demo", "save", "--store", store, "s:1", "-o", tmp_path / "s.tar")
    succeeds(*docker, "load", "-i", tmp_path / "s.tar")
    [theirs] = json.loads(succeeds(*docker, "inspect", "s:1"))
    [ours] = json.loads(succeeds("overlayfs-demo", "inspect", "--store", store, "s:1"))
    assert theirs["Id"] == ours["Id"] and len(theirs["RootFS"]["Layers"]) == 1
    succeeds(*docker, "create", "--name", "c2", "s:1")
    succeeds(*docker, "cp", "c2:/motd", tmp_path / "motd")
    assert (tmp_path / "motd").read_text() == "hello\n"
