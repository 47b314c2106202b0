"""Do the scripts that install, demonstrate and check do what they say?"""

from __future__ import annotations

import ctypes.util
import io
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

import pytest

import overlayfs_demo
from tests.conftest import unmount_all, why_no_mounts_of_others
from tests.places import MINUTE, ROOT

SCRIPTS = [*sorted(path for path in (ROOT / "scripts").iterdir() if path.is_file()), ROOT / ".ci" / "run"]
SHELLS = [script for script in SCRIPTS if script.read_text().startswith(("#!/bin/sh", "#!/bin/bash"))]

can_mount = pytest.mark.skipif(
    os.geteuid() != 0 or not Path("/dev/fuse").exists(), reason="mounting needs root and /dev/fuse"
)


@pytest.fixture(autouse=True)
def commands(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory into which provision puts links to the commands, instead of one of this machine."""
    directory = tmp_path_factory.mktemp("commands") / "bin"
    monkeypatch.setenv("OVERLAYFS_DEMO_BIN", str(directory))
    return directory


def run(*command: str | Path, **environment: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a command with these variables besides our own; stderr is part of the output."""
    return subprocess.run(
        command,
        env={**os.environ, **{name: str(value) for name, value in environment.items()}},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def write_script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


# --- all of them ------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_a_script_can_be_executed_and_says_what_it_is_for(script: Path) -> None:
    assert os.access(script, os.X_OK)
    shebang, about, *_ = script.read_text().splitlines()
    assert shebang.startswith("#!/")
    assert about.strip(' #"')


@pytest.mark.parametrize("script", SHELLS, ids=lambda script: script.name)
def test_a_shell_script_parses(script: Path) -> None:
    shell = script.read_text().splitlines()[0].removeprefix("#!")
    assert run(shell, "-n", script).stdout == ""


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not installed")
@pytest.mark.parametrize("script", SHELLS, ids=lambda script: script.name)
def test_shellcheck_has_nothing_to_say(script: Path) -> None:
    assert run("shellcheck", script).stdout == ""


@pytest.mark.parametrize("name", ["provision", "demo"])
def test_help_is_given_and_an_unknown_option_refused(name: str) -> None:
    asked = run(ROOT / "scripts" / name, "--help")
    unknown = run(ROOT / "scripts" / name, "--no-such-option")
    assert (asked.returncode, unknown.returncode) == (0, 2)
    assert f"usage: scripts/{name}" in asked.stdout
    assert asked.stdout == unknown.stdout


@pytest.mark.skipif(not shutil.which("vagrant"), reason="vagrant is not installed")
def test_vagrant_finds_the_vagrantfile_valid(tmp_path: Path) -> None:
    shutil.copy(ROOT / "Vagrantfile", tmp_path)
    done = run("vagrant", "validate", VAGRANT_CWD=tmp_path, VAGRANT_HOME=tmp_path / "home")
    assert done.returncode == 0, done.stdout


# --- provision --------------------------------------------------------------------------------------


class Project:
    """A copy of what provision reads, and an environment whose Python only notes how pip is called."""

    def __init__(self, base: Path) -> None:
        self.root = base / "project"
        self.venv = base / "venv"
        self.calls = base / "calls"
        self.calls.touch()
        (self.root / "scripts").mkdir(parents=True)
        shutil.copytree(ROOT / ".ci", self.root / ".ci")
        shutil.copytree(ROOT / "overlayfs_demo" / "docs", self.root / "overlayfs_demo" / "docs")
        shutil.copy(ROOT / "pyproject.toml", self.root)
        shutil.copy(ROOT / "scripts" / "provision", self.root / "scripts")
        write_script(self.venv / "bin" / "overlayfs-demo", 'echo "$*"')
        write_script(self.venv / "bin" / "build-layers", 'echo "$*"')
        write_script(self.venv / "bin" / "python", f'case $2 in pip) echo "$*" >>{self.calls} ;; esac')

    @property
    def script(self) -> Path:
        return self.root / "scripts" / "provision"

    def said(self, *options: str, **environment: str | Path) -> str:
        """Run it; the result is all that it printed."""
        environment = {"OVERLAYFS_DEMO_VENV": self.venv, **environment}
        done = run(self.script, "--python-only", *options, **environment)
        assert done.returncode == 0, done.stdout
        return done.stdout

    def provision(self, *options: str) -> list[str]:
        """Run it; the result is how pip was called."""
        self.calls.write_text("")
        self.said(*options)
        return self.calls.read_text().splitlines()


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def test_a_second_provision_installs_nothing(project: Project) -> None:
    assert len(project.provision()) == 1
    assert project.provision() == []


def test_the_tools_for_tests_come_with_dev_only(project: Project) -> None:
    [plain] = project.provision()
    [dev] = project.provision("--dev")
    assert plain.endswith("--editable .[web,browse,registry]")
    assert dev.endswith("--editable .[web,browse,registry,dev]")
    assert project.provision() == project.provision("--dev") == []


def test_a_changed_project_description_is_installed_again(project: Project) -> None:
    project.provision()
    with (project.root / "pyproject.toml").open("a") as description:
        description.write("# changed\n")
    assert len(project.provision()) == 1


def test_a_directory_of_something_else_is_not_made_the_environment(tmp_path: Path) -> None:
    letter = tmp_path / "letter"
    letter.write_text("dear diary")
    done = run(ROOT / "scripts" / "provision", "--python-only", OVERLAYFS_DEMO_VENV=tmp_path)
    assert done.returncode == 1
    assert f"{tmp_path} contains something else" in done.stdout
    assert letter.read_text() == "dear diary"


def test_a_python_that_is_too_old_is_refused_with_the_version_needed(tmp_path: Path) -> None:
    old = write_script(tmp_path / "python3.10", "exit 1")
    done = run(ROOT / "scripts" / "provision", "--python-only", OVERLAYFS_DEMO_VENV=tmp_path / "venv", PYTHON=old)
    assert done.returncode == 1
    assert "no Python here is version 3.11 or newer" in done.stdout


def test_another_distribution_is_told_what_to_install(project: Project, tmp_path: Path) -> None:
    for tool in ("cat", "dirname", "grep", "id"):
        found = shutil.which(tool)
        assert found
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / tool).symlink_to(found)
    shell = shutil.which("sh")
    assert shell
    done = run(shell, project.root / "scripts" / "provision", OVERLAYFS_DEMO_VENV=project.venv, PATH=tmp_path / "bin")
    assert done.returncode == 1
    assert "install their packages by hand: fuse3" in done.stdout


def user_without_sudo(place: Path, *tools: str) -> Path:
    """Make a directory of programs, to be all of PATH: these, and an id(1) that tells of an ordinary user."""
    write_script(place / "id", "echo 1000")
    for tool in tools:
        found = shutil.which(tool)
        assert found, tool
        (place / tool).symlink_to(found)
    return place


def test_an_ordinary_user_without_sudo_is_told_what_root_must_type(project: Project, tmp_path: Path) -> None:
    tools = user_without_sudo(tmp_path / "tools", "sh", "cat", "dirname", "grep", "sed")
    write_script(tools / "apt-get", "exit 1")
    done = run(project.script, OVERLAYFS_DEMO_VENV=project.venv, PATH=tools)
    assert done.returncode == 1
    assert re.search("As root, run 'apt-get install fuse3 [a-z0-9 ]+', then run this again\n$", done.stdout)
    assert done.stdout.count("\n") == 1, done.stdout


# --- the commands on PATH -----------------------------------------------------------------------------


def next_step(said: str) -> list[str]:
    """The lines to type that provision, or the demonstration, ends with."""
    lines = said.partition("\nNext:\n")[2].splitlines()
    assert all(line.startswith("  ") for line in lines)
    return [line.strip() for line in lines]


def typed(lines: list[str]) -> str:
    return run("sh", "-c", "\n".join(lines)).stdout


def test_provision_links_the_commands_and_says_what_to_type(project: Project, commands: Path) -> None:
    step = next_step(project.said())
    assert step == [f'export PATH="{commands}:$PATH"', "overlayfs-demo tour"]
    assert typed(step) == "tour\n"
    assert typed([step[0], "build-layers here"]) == "here\n"
    assert {path.readlink() for path in commands.iterdir()} == {
        project.venv / "bin" / "overlayfs-demo",
        project.venv / "bin" / "build-layers",
    }


def test_what_is_on_path_needs_no_line_for_it(project: Project, commands: Path) -> None:
    said = project.said(PATH=f"{commands}:{os.environ['PATH']}")
    assert next_step(said) == ["overlayfs-demo tour"]


def test_the_default_for_an_ordinary_user_is_in_the_home_directory(project: Project, tmp_path: Path) -> None:
    user = user_without_sudo(tmp_path / "tools")
    said = project.said(OVERLAYFS_DEMO_BIN="", HOME=tmp_path, PATH=f"{user}:{os.environ['PATH']}")
    assert next_step(said)[0] == f'export PATH="{tmp_path}/.local/bin:$PATH"'
    assert (tmp_path / ".local/bin/overlayfs-demo").readlink() == project.venv / "bin/overlayfs-demo"


def test_a_command_of_another_installation_stays(project: Project, commands: Path, tmp_path: Path) -> None:
    other = write_script(tmp_path / "other" / "overlayfs-demo", "echo other")
    commands.mkdir()
    (commands / "overlayfs-demo").symlink_to(other)
    said = project.said(PATH=f"{commands}:{os.environ['PATH']}")
    assert f"{commands}/overlayfs-demo belongs to another installation ({other}) and stays" in said
    assert (commands / "overlayfs-demo").readlink() == other
    assert next_step(said) == [f'export PATH="{project.venv}/bin:$PATH"', "overlayfs-demo tour"]
    assert typed(next_step(said)) == "tour\n"


def test_a_link_of_a_copy_that_is_gone_is_replaced(project: Project, commands: Path, tmp_path: Path) -> None:
    commands.mkdir()
    (commands / "overlayfs-demo").symlink_to(tmp_path / "gone")
    project.said()
    assert (commands / "overlayfs-demo").readlink() == project.venv / "bin/overlayfs-demo"


def test_a_directory_that_cannot_be_written_is_done_without(project: Project, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    step = next_step(project.said(OVERLAYFS_DEMO_BIN=tmp_path / "file"))
    assert step[0] == f'export PATH="{project.venv}/bin:$PATH"'
    assert typed(step) == "tour\n"


def test_an_environment_for_tests_puts_nothing_on_path(project: Project, commands: Path) -> None:
    assert "Next:" not in project.said("--dev")
    assert not commands.exists()


# --- the message of the day ---------------------------------------------------------------------------

MOTD = (ROOT / "scripts" / "provision").read_text().split("'END'\n")[1].split("END\n")[0].splitlines()
HOME = "/opt/overlayfs-demo"  # where the message says everything is

# The machine's own tree as root directory, where what is written lands in a tmpfs and goes with the namespace.
# usage: sh -c SCRATCH_ROOT sh SCRATCH VISIBLE COMMAND...; the directory VISIBLE is the real one
SCRATCH_ROOT = """
set -e
scratch=$1 visible=$2
shift 2
mount -t tmpfs scratch "$scratch"
mkdir "$scratch/upper" "$scratch/work" "$scratch/root"
mount -t overlay -o "lowerdir=/,upperdir=$scratch/upper,workdir=$scratch/work" scratch "$scratch/root"
mkdir -p "$scratch/root$visible"
mount --bind "$visible" "$scratch/root$visible"
mount --rbind /dev "$scratch/root/dev"
exec chroot "$scratch/root" "$@"
"""


def named_in_motd() -> list[list[str]]:
    """The commands it tells to type, as words: they are indented, with what they do behind two blanks."""
    return [line.strip().split("  ")[0].split() for line in MOTD if line.startswith("  ")]


def test_the_message_of_the_day_is_short_and_fits_a_terminal() -> None:
    assert len(MOTD) <= 12
    assert [line for line in MOTD if len(line) > 80] == []
    assert ["overlayfs-demo", "tour"] in named_in_motd()


@pytest.mark.parametrize("words", named_in_motd(), ids=" ".join)
def test_what_the_message_of_the_day_tells_to_type_exists(words: list[str]) -> None:
    here = [word.replace(HOME, str(ROOT)) for word in words]
    if words[0] == "less":
        assert Path(here[1]).is_file()
        return
    if words[0] == "overlayfs-demo":
        here[0] = str(Path(sys.executable).parent / words[0])
    done = run(*here, *([] if words[-1].startswith("--") else ["--help"]))
    assert done.returncode == 0, done.stdout


def test_a_message_of_the_day_that_would_name_nothing_installed_is_refused(project: Project) -> None:
    done = run(project.root / "scripts" / "provision", "--python-only", "--motd", OVERLAYFS_DEMO_VENV=project.venv)
    assert done.returncode == 1
    assert "--motd needs --system" in done.stdout
    assert project.calls.read_text() == ""


@can_mount
@pytest.mark.parametrize("asked", [["--motd"], []], ids=["asked", "not-asked"])
def test_the_message_of_the_day_is_shown_where_it_was_asked_for(
    asked: list[str], project: Project, tmp_path: Path
) -> None:
    (tmp_path / "scratch").mkdir()
    install = f"{project.root}/scripts/provision --system --python-only {' '.join(asked)}"
    done = run(
        "unshare",
        "--mount",
        "sh",
        "-c",
        SCRATCH_ROOT,
        "sh",
        tmp_path / "scratch",
        tmp_path,
        "sh",
        "-c",
        f"{install} && echo installed && cat /etc/motd.d/overlayfs-demo",
        OVERLAYFS_DEMO_VENV=project.venv,
    )
    shown = done.stdout.partition("installed\n")[2]
    if asked:
        assert shown.splitlines() == MOTD, done.stdout
    else:
        assert "No such file" in shown, done.stdout


@can_mount
def test_a_system_without_mtab_gets_it_because_fusermount3_reads_it(project: Project, tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    install = f"rm /etc/mtab && {project.root}/scripts/provision && readlink /etc/mtab"
    words = ("unshare", "--mount", "sh", "-c", SCRATCH_ROOT, "sh", tmp_path / "scratch", tmp_path, "sh", "-c", install)
    done = run(*words, OVERLAYFS_DEMO_VENV=project.venv)
    assert done.returncode == 0, done.stdout
    assert "linking /etc/mtab" in done.stdout
    assert "\n../proc/self/mounts\n" in done.stdout


# --- demo -------------------------------------------------------------------------------------------


@can_mount
@pytest.mark.parametrize("front", ["kernel", "fusepy"])
def test_the_demonstration_holds_what_it_claims_and_leaves_nothing_behind(front: str, tmp_path: Path) -> None:
    if front == "fusepy" and not ctypes.util.find_library("fuse"):
        pytest.skip("the fusepy front needs libfuse 2")
    done = run(ROOT / "scripts" / "demo", "--front", front, TMPDIR=tmp_path)
    assert done.returncode == 0, done.stdout
    assert "skipped" not in done.stdout
    assert list(tmp_path.iterdir()) == []


@can_mount
def test_the_demonstration_fits_a_projector_and_ends_with_what_to_type(tmp_path: Path, commands: Path) -> None:
    said = run(ROOT / "scripts" / "demo", TMPDIR=tmp_path, PATH=f"{commands}:{os.environ['PATH']}").stdout
    story = said[said.index("=== The image") :]
    assert [line for line in story.splitlines() if len(line) > 80] == []
    assert next_step(said) == ["overlayfs-demo tour"]


@can_mount
def test_the_demonstration_spells_the_size_of_the_deleted_files_one_way(tmp_path: Path) -> None:
    said = run(ROOT / "scripts" / "demo", TMPDIR=tmp_path).stdout
    assert re.search(r"^  3  03-\w+  \S+ +3MB ", said, re.MULTILINE)
    assert re.search(r"mkdir -p \$HOME/.cache .* 3MB *$", said, re.MULTILINE)
    assert "Yet its 3MB are still in 03-" in said
    assert not re.search("3000000|2[.]9M|3[.]0M", said)


@can_mount
def test_the_demonstration_takes_a_tree_of_files_too(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "rootfs.tar", "w") as tar:
        for name in ("etc/motd", "etc/passwd", "etc/group"):
            member = tarfile.TarInfo(name)
            member.size = 6
            tar.addfile(member, io.BytesIO(b"hello\n"))
    done = run(ROOT / "scripts" / "demo", tmp_path / "rootfs.tar", TMPDIR=tmp_path)
    assert done.returncode == 0, done.stdout
    assert "$ overlayfs-demo import image.tar demo\n" in done.stdout
    assert "RootFS.Layers has the digest of each layer" in done.stdout


AS_NOBODY = ("runuser", "--user=nobody", "--")
PACKAGES = f"{ROOT}:{sysconfig.get_path('purelib')}"


def python_of_others() -> str:
    """A Python of this version that every user may start; "" if there is none."""
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    for python in (os.path.realpath(sys.executable), f"/usr/bin/{version}"):
        if run(*AS_NOBODY, python, "-c", f"import {overlayfs_demo.__name__}", PYTHONPATH=PACKAGES).returncode == 0:
            return python
    return ""


@can_mount
def test_an_ordinary_user_is_shown_the_story_too() -> None:
    if problem := why_no_mounts_of_others():
        pytest.skip(problem)
    if not (python := python_of_others()):
        pytest.skip("needs a Python, and this project, where every user may read them")
    # Not below pytest's own, which nobody else may enter.
    home = Path(tempfile.mkdtemp(prefix="overlayfs-demo-test-"))
    try:
        venv, tmp = home / "venv", home / "tmp"
        write_script(
            venv / "bin/python",
            f'case $2 in pip | "import pip,"*) ;; *) PYTHONPATH={PACKAGES} exec {python} "$@" ;; esac',
        )
        write_script(venv / "bin/overlayfs-demo", f'exec {venv}/bin/python -m overlayfs_demo "$@"')
        write_script(venv / "bin/build-layers", f'exec {venv}/bin/python -m overlayfs_demo.cli.build_layers "$@"')
        tmp.mkdir()
        for path in (home, *home.rglob("*")):
            shutil.chown(path, "nobody", "nogroup")
        places = {"HOME": home, "TMPDIR": tmp, "XDG_RUNTIME_DIR": home, "OVERLAYFS_DEMO_BIN": home / "bin"}
        done = run(*AS_NOBODY, ROOT / "scripts/demo", OVERLAYFS_DEMO_VENV=venv, **places)
        assert done.returncode == 0, done.stdout
        assert "skipped" not in done.stdout
        assert "getfattr --name user.overlay.opaque" in done.stdout
        assert list(tmp.iterdir()) == []
    finally:
        unmount_all(str(home))
        shutil.rmtree(home)


# --- demo, step by step -----------------------------------------------------------------------------


def test_steps_need_a_terminal() -> None:
    done = run(ROOT / "scripts" / "demo", "--step")
    assert done.returncode == 2
    assert "--step waits for Enter: run it in a terminal" in done.stdout


@can_mount
def test_each_step_waits_for_enter_and_q_ends_the_story(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [ROOT / "scripts" / "demo", "--step"],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        bufsize=0,
    ) as demo:
        os.close(theirs)
        output = demo.stdout
        assert output
        seen = _until(output, b"$ overlayfs-demo sample image.tar")
        assert b"Enter runs each command" in seen
        _type(ours, b"\n", lambda: bool(select.select([output], [], [], 0.5)[0]))
        assert b"image.tar: overlayfs-demo/teaching:1.0" in _until(output, b"$ tar -tf image.tar")
        _type(ours, b"q", lambda: demo.poll() is not None)
        assert b"manifest.json" not in output.read()
    os.close(ours)
    assert demo.returncode == 130
    assert list(tmp_path.iterdir()) == []


def _type(terminal: int, key: bytes, has_effect: Callable[[], bool]) -> None:
    """Press a key until it has an effect: what is typed before the demonstration waits for it does not count."""
    deadline = time.monotonic() + MINUTE
    while not has_effect():
        assert time.monotonic() < deadline, f"{key!r} has no effect"
        os.write(terminal, key)
        time.sleep(0.2)


def _until(stream: IO[bytes], end: bytes) -> bytes:
    """Read until this, and no further."""
    seen = b""
    while not seen.endswith(end):
        assert select.select([stream], [], [], MINUTE)[0], seen
        byte = stream.read(1)
        assert byte, seen
        seen += byte
    return seen


@can_mount
def test_a_claim_that_does_not_hold_fails_the_demonstration(tmp_path: Path) -> None:
    """Here every unmount leaves a stray file in the upper."""
    venv, tmp = tmp_path / "venv", tmp_path / "tmp"
    tmp.mkdir()
    real = Path(sys.executable).parent
    write_script(venv / "bin" / "python", f'[ "$2" = pip ] || exec {real}/python "$@"')
    write_script(
        venv / "bin" / "overlayfs-demo",
        f'{real}/overlayfs-demo "$@"; [ "$1" = mount ] || for upper in {tmp}/*/upper; do >"$upper/stray"; done',
    )
    done = run(ROOT / "scripts" / "demo", TMPDIR=tmp, OVERLAYFS_DEMO_VENV=venv)
    assert done.returncode == 1
    assert "[FAIL] The upper contains only the differences" in done.stdout
    assert "+stray" in done.stdout


@can_mount
def test_an_interrupted_demonstration_takes_its_mount_away(tmp_path: Path) -> None:
    with subprocess.Popen(
        [ROOT / "scripts" / "demo"],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as demo:
        deadline = time.monotonic() + 60
        while str(tmp_path) not in Path("/proc/self/mounts").read_text():
            assert demo.poll() is None and time.monotonic() < deadline, "it never mounted"
            time.sleep(0.01)
        demo.send_signal(signal.SIGTERM)
    assert demo.returncode == 130
    assert str(tmp_path) not in Path("/proc/self/mounts").read_text()
    assert list(tmp_path.iterdir()) == []


@can_mount
def test_a_reader_who_has_seen_enough_leaves_no_mount_behind(tmp_path: Path) -> None:
    """As in `scripts/demo | head`."""
    with subprocess.Popen(
        [ROOT / "scripts" / "demo"],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as demo:
        assert demo.stdout
        while b"=== The view" not in demo.stdout.readline():
            assert demo.poll() is None
        demo.stdout.close()
    assert demo.returncode == 130
    assert str(tmp_path) not in Path("/proc/self/mounts").read_text()
    assert list(tmp_path.iterdir()) == []
