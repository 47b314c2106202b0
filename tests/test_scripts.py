"""Do the scripts that install, demonstrate and check do what they say?"""

from __future__ import annotations

import ctypes.util
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.places import ROOT

SCRIPTS = [*sorted(path for path in (ROOT / "scripts").iterdir() if path.is_file()), ROOT / ".ci" / "run"]
SHELLS = [script for script in SCRIPTS if script.read_text().startswith(("#!/bin/sh", "#!/bin/bash"))]

can_mount = pytest.mark.skipif(
    os.geteuid() != 0 or not Path("/dev/fuse").exists(), reason="mounting needs root and /dev/fuse"
)


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
        write_script(self.venv / "bin" / "python", f'case $2 in pip) echo "$*" >>{self.calls} ;; esac')

    def provision(self, *options: str) -> list[str]:
        """Run it; the result is how pip was called."""
        self.calls.write_text("")
        done = run(self.root / "scripts" / "provision", "--python-only", *options, OVERLAYFS_DEMO_VENV=self.venv)
        assert done.returncode == 0, done.stdout
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
    assert plain.endswith("--editable .[web]")
    assert dev.endswith("--editable .[web,dev]")
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
    assert len(MOTD) <= 10
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
def test_the_demonstration_fits_a_projector(tmp_path: Path) -> None:
    lines = run(ROOT / "scripts" / "demo", TMPDIR=tmp_path).stdout.splitlines()
    assert [line for line in lines if len(line) > 80] == []


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
