"""Is a container's name a view everywhere, and can it be renamed, listed and removed as in Docker?"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from overlayfs_demo.mounts import registry
from tests.conftest import unmount_all, why_no_mounts
from tests.images.builders import docker_save_many, layer, symlink
from tests.places import BIN, at_terminal, fails, run

Run = Callable[..., subprocess.CompletedProcess[str]]
_BASE = layer({"etc/motd": "hello\n", "absolute": symlink("/etc")})


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Run]:
    """`overlayfs-demo` on a store with the images a:1 and b:1, which is above it, and the container c1 of a:1."""
    if problem := why_no_mounts():
        pytest.skip(problem)
    (tmp_path / "here").mkdir()

    def command(*words: str | Path) -> subprocess.CompletedProcess[str]:
        return run("overlayfs-demo", words[0], "--store", tmp_path / "store", *words[1:], cwd=tmp_path / "here")

    images = {"a:1": [_BASE], "b:1": [_BASE, layer({"more": "1"})]}
    (tmp_path / "images.tar").write_bytes(docker_save_many(images))
    assert command("load", "-q", tmp_path / "images.tar").returncode == 0
    assert command("create", "a:1", "--name", "c1").returncode == 0
    yield command
    unmount_all(str(tmp_path))


def says(done: subprocess.CompletedProcess[str]) -> str:
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def merged(tmp_path: Path, name: str = "c1") -> Path:
    return tmp_path / "store/containers" / name / "merged"


def test_which_and_explain_take_the_name_of_a_container(demo: Run, tmp_path: Path) -> None:
    assert says(demo("which", "c1:/etc/motd")).startswith("/etc/motd\n")
    assert says(demo("which", "c1")).startswith("/\n")
    # A link in the container leads to the container's directory, and not to that of this machine.
    assert says(demo("which", "c1:/absolute/motd")).startswith("/etc/motd\n")
    told = demo("explain", "--on", "c1", "touch", merged(tmp_path) / "new").stdout
    assert "would create 1 file" in told


def test_which_takes_a_name_and_a_path_in_two_words(demo: Run, tmp_path: Path) -> None:
    assert says(demo("which", "c1", "/etc/motd")) == says(demo("which", "c1:/etc/motd"))
    assert says(demo("which", "c1", "/etc/motd", "/absolute")).count("LAYER") == 2
    # A path that lies in a view means that.
    assert says(demo("which", "c1", merged(tmp_path) / "etc")).startswith("/\n")
    assert "nowhere is not in a view" in demo("which", "c1", "nowhere").stderr


def test_a_name_that_is_also_a_file_here_is_not_guessed(demo: Run, tmp_path: Path) -> None:
    (tmp_path / "here/c1").mkdir()
    fails(demo("which", "c1"), "'c1' is a container, and also a file", status=2)
    assert says(demo("which", "c1:/")).startswith("/\n")
    fails(demo("which", "./c1"), "not in a view")


def test_a_wrong_name_is_answered_with_those_that_are_near(demo: Run) -> None:
    says(demo("create", "a:1", "--name", "webserver"))
    for words in (("stop", "webservr"), ("watch", "webservr"), ("which", "webservr:/x"), ("umount", "webservr")):
        fails(demo(*words), "webservr", "webserver")


def test_umount_takes_a_name_and_a_stopped_container_says_what_to_do(demo: Run) -> None:
    says(demo("umount", "c1"))
    fails(demo("umount", "c1"), "container 'c1' is not mounted", "'start c1'")
    assert says(demo("ps", "-q", "--filter", "status=exited")) == "c1\n"


def test_umount_is_not_kept_by_its_own_working_directory(demo: Run, tmp_path: Path) -> None:
    """A shell that becomes the command, as with `exec`, is the only process there."""
    words = ("overlayfs-demo", "umount", "--store", str(tmp_path / "store"), "c1")
    done = subprocess.run(
        words,
        cwd=merged(tmp_path) / "etc",
        env={**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("words", [("watch", "--plain", "c1"), ("serve", "--port", "0", "c1")])
def test_the_death_of_a_daemon_is_told(demo: Run, tmp_path: Path, words: tuple[str, ...]) -> None:
    command = ["overlayfs-demo", words[0], "--store", str(tmp_path / "store"), *words[1:]]
    with subprocess.Popen(
        command,
        cwd=tmp_path / "here",
        env={**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"},
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        assert "until it is unmounted" in process.stderr.readline()
        record = registry.find_record(str(merged(tmp_path)))
        assert record is not None
        os.kill(record.pid, signal.SIGKILL)
        assert process.wait(60) == 1
        assert f"the daemon of {merged(tmp_path)} died" in process.stderr.read()
    says(demo("umount", "c1"))
    says(demo("start", "c1"))


def test_a_mounted_container_is_renamed_with_its_changes(demo: Run, tmp_path: Path) -> None:
    (merged(tmp_path) / "new").write_text("1")
    says(demo("rename", "c1", "web"))
    assert (merged(tmp_path, "web") / "new").read_text() == "1"
    assert says(demo("ps", "-q", "--filter", "status=running")) == "web\n"
    says(demo("stop", "web"))
    says(demo("rename", "web", "again"))
    says(demo("start", "again"))
    assert says(demo("diff", "again")) == "A /new\n"


def test_a_rename_that_cannot_be_leaves_all_as_it_was(demo: Run, tmp_path: Path) -> None:
    says(demo("create", "a:1", "--name", "c2"))
    fails(demo("rename", "c1", "c2"), "container 'c2' already exists")
    fails(demo("rename", "c1", "../c"), "not a valid container name")
    with (merged(tmp_path) / "open").open("w"):
        fails(demo("rename", "c1", "c3"), "is busy")
    assert says(demo("ps", "-q", "--filter", "status=running")) == "c1\nc2\n"


def test_a_container_elsewhere_keeps_its_mount_point_when_it_is_renamed(demo: Run, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    says(demo("create", "a:1", "--name", "c2", "--at", tmp_path / "there"))
    says(demo("rename", "c2", "c3"))
    assert (tmp_path / "there/etc/motd").exists()
    row = json.loads(says(demo("ps", "--json", "--filter", "name=c3")))
    assert row["Mountpoint"] == str(tmp_path / "there") and row["PID"]


def test_renames_and_starts_at_once_leave_one_container_that_works(demo: Run, tmp_path: Path) -> None:
    says(demo("stop", "c1"))
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "OVERLAYFS_DEMO_STORE": str(tmp_path / "store")}
    words = [("start", "c1"), ("rename", "c1", "c2"), ("start", "c1"), ("rename", "c1", "c3"), ("stop", "c1")]
    with (tmp_path / "log").open("w") as log:
        running = [
            subprocess.Popen(["overlayfs-demo", *word], env=environment, stdout=log, stderr=log) for word in words
        ]
        for process in running:
            process.wait(60)
    assert "Traceback" not in (tmp_path / "log").read_text()
    [name] = says(demo("ps", "-q")).split()
    demo("start", name)
    assert (merged(tmp_path, name) / "etc/motd").read_text() == "hello\n"
    says(demo("rm", "-f", name))


def test_the_mount_point_of_another_container_is_refused_truthfully(demo: Run, tmp_path: Path) -> None:
    fails(demo("create", "a:1", "--name", "c2", "--at", merged(tmp_path)), "is the mount point of another view")
    assert says(demo("ps", "-q")) == "c1\n"


def test_ps_chooses(demo: Run) -> None:
    says(demo("create", "b:1", "--name", "web1"))
    says(demo("create", "b:1", "--name", "web2"))
    says(demo("stop", "web2"))
    for words, names in (
        (("-a",), "c1 web1 web2"),
        (("--filter", "name=web"), "web1 web2"),
        (("--filter", "name=^web1$"), "web1"),
        (("--filter", "status=exited"), "web2"),
        (("--filter", "status=exited", "--filter", "status=running"), "c1 web1 web2"),
        (("--filter", "status=running", "--filter", "name=web"), "web1"),
        (("--filter", "ancestor=a:1"), "c1 web1 web2"),
        (("--filter", "ancestor=b:1"), "web1 web2"),
        (("--filter", "status=paused"), ""),
        (("-n", "2"), "web1 web2"),
        (("-l",), "web2"),
    ):
        assert says(demo("ps", "-q", *words)).split() == names.split(), words
    [row] = says(demo("ps", "--no-trunc", "--filter", "name=c1")).splitlines()[1:]
    assert "sha256:" in row
    for wrong in ("color=red", "status=happy", "name=", "name=("):
        done = demo("ps", "--filter", wrong)
        assert done.returncode == 2 and done.stderr.count("\n") == 1, wrong
    fails(demo("ps", "--filter", "ancestor=none"), "no image none")


def test_container_has_dockers_longer_names(demo: Run, tmp_path: Path) -> None:
    store = ("--store", tmp_path / "store")
    assert says(run("overlayfs-demo", "container", "ls", *store, "-q")) == "c1\n"
    says(run("overlayfs-demo", "container", "rename", *store, "c1", "c2"))
    says(demo("create", "a:1", "--name", "c3"))
    says(demo("stop", "c2"))
    assert says(run("overlayfs-demo", "container", "prune", "-f", *store)) == "Deleted: c2\nTotal reclaimed space: 0B\n"
    assert says(demo("ps", "-q")) == "c3\n"


def test_prune_asks_at_a_terminal(demo: Run, tmp_path: Path) -> None:
    says(demo("stop", "c1"))
    words = ("container", "prune", "--store", str(tmp_path / "store"))
    assert "Total reclaimed space: 0B" in at_terminal("n\n", *words)
    assert says(demo("ps", "-q")) == "c1\n"
    assert "Deleted: c1" in at_terminal("y\n", *words)


def test_scratch_is_an_empty_base(demo: Run, tmp_path: Path) -> None:
    before = says(demo("images", "-q"))
    says(demo("create", "scratch", "--name", "c2"))
    assert os.listdir(merged(tmp_path, "c2")) == []
    assert says(demo("images", "-q")) == before
    (merged(tmp_path, "c2") / "motd").write_text("hello\n")
    says(demo("commit", "-c", 'CMD ["/x"]', "c2", "s:1"))
    [image] = json.loads(says(demo("inspect", "s:1")))
    assert len(image["RootFS"]["Layers"]) == 1 and image["Config"]["Cmd"] == ["/x"]
    says(demo("save", "s:1", "-o", tmp_path / "s.tar"))
    says(demo("rm", "-f", "c2"))
    says(demo("rmi", "s:1"))
    assert says(demo("load", tmp_path / "s.tar")) == "Loaded image: s:1\n"
    assert "overlayfs-demo commit c2" in says(demo("history", "--no-trunc", "s:1"))


def test_a_wrong_instruction_of_a_commit_is_one_line(demo: Run) -> None:
    fails(demo("commit", "-c", "RUN make", "c1", "x:1"), "--change 'RUN make'", "CMD, ENTRYPOINT", status=2)
    fails(demo("commit", "-p", "-c", "EXPOSE x", "c1", "x:1"), "'x' is not a port", status=2)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("create", "-it", "a:1"), "-i: create runs nothing here: 'run' and 'exec' take this option"),
        (("create", "-p", "80:80", "a:1"), "-p: a command in a container has no network here"),
        (("create", "a:1", "sh"), "create runs nothing here, not even 'sh': use 'run IMAGE COMMAND'"),
        (("start", "-ai", "c1"), "-a: nothing runs in a container by itself here: 'shell C'"),
        (("prune", "--filter", "until=24h"), "--filter: prune takes all that is unused here"),
        (("run", "--env-file", "vars", "a:1"), "--env-file: give each variable with -e NAME=VALUE"),
        (("run", "--read-only", "a:1"), "--read-only: a container can always be written to here"),
        (("run", "--pull=never", "a:1"), "--pull: there is no registry here"),
        (("run", "-l", "a=b", "a:1"), "-l: a container has no labels here"),
    ],
    ids=str,
)
def test_an_option_that_can_mean_nothing_is_answered_in_one_line(demo: Run, words: tuple[str, ...], said: str) -> None:
    done = demo(*words)
    fails(done, said, status=2)
    assert done.stderr.count("\n") == 1
    assert says(demo("ps", "-q")) == "c1\n"


def test_options_that_docker_needs_and_nothing_here_does_are_accepted(demo: Run) -> None:
    assert says(demo("ps", "-as", "-q")) == "c1\n"
    says(demo("stop", "-t", "0", "c1"))
    says(demo("start", "c1"))
    says(demo("rm", "-fv", "c1"))
    says(demo("prune", "--force", "--volumes"))


def test_an_option_takes_docker_s_true_and_false(demo: Run) -> None:
    says(demo("commit", "--pause=false", "c1", "a:2"))
    fails(demo("rm", "--force=false", "c1"), "c1")
    says(demo("rm", "--force=true", "c1"))
    # What comes after the image is the command's.
    fails(demo("run", "--rm=true", "a:1", "nowhere", "--rm=false"), "cannot run nowhere", status=127)
    assert says(demo("ps", "-q")) == ""


def test_import_takes_a_comment_and_instructions(demo: Run, tmp_path: Path) -> None:
    says(demo("export", "c1", "-o", tmp_path / "flat.tar"))
    says(demo("import", "-m", "by hand", "-c", "CMD sh", "--change", "ENV A=1", tmp_path / "flat.tar", "a:flat"))
    told = says(demo("inspect", "-f", "{{json .Config.Cmd}} {{json .Config.Env}} {{.Comment}}", "a:flat"))
    assert told == '["/bin/sh","-c","sh"] ["A=1"] by hand\n'
    fails(demo("import", "-c", "FROB", tmp_path / "flat.tar", "a:bad"), "--change 'FROB'", status=2)
