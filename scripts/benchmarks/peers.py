"""The peers: what each is called, and the command that mounts it.

A command returns when the view is ready, as mount(8) does, and may leave a daemon behind.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
VENV = Path(os.environ.get("OVERLAYFS_DEMO_VENV") or PROJECT / ".venv")
PROGRAM = str(VENV / "bin/overlayfs-demo")
_OPTIONS = "lowerdir={lower},upperdir={upper},workdir={work}"
_PLACEHOLDERS = ("{lower}", "{upper}", "{work}", "{mnt}")


@dataclass(frozen=True, slots=True)
class Peer:
    """One thing that is measured.

    In `command`, {lower}, {upper}, {work} and {mnt} stand for the paths, and {volatile} for the option in rows that
    want it. A peer that is not `layered` mirrors the upper alone, into which what the layers show is copied first.
    """

    name: str
    command: tuple[str, ...]
    version: str
    layered: bool = True

    def words(self, *, lower: str, upper: Path, work: Path, mnt: Path, volatile: bool) -> list[str]:
        """Return the command for these paths."""
        values = {"{lower}": lower, "{upper}": str(upper), "{work}": str(work), "{mnt}": str(mnt)}
        values["{volatile}"] = ",volatile" if volatile else ""
        return [re.sub("|".join(map(re.escape, values)), lambda found: values[found[0]], word) for word in self.command]


class MissingError(Exception):
    """A peer is not on this machine; the text says what it needs."""


def parse_peer(text: str) -> Peer:
    """Return the peer that NAME='COMMAND ...' describes. Raises ValueError, which says what is wrong."""
    name, separator, command = text.partition("=")
    if not separator or not re.fullmatch(r"[\w.-]+", name):
        raise ValueError(f"{text!r} does not begin with a name and '='")
    if name in BUILT_IN:
        raise ValueError(f"{name!r} is the name of a peer that is always measured; choose another")
    words = tuple(shlex.split(command))
    if missing := [word for word in ("{lower}", "{mnt}") if word not in command]:
        raise ValueError(f"the command of {name!r} does not contain {' and '.join(missing)}")
    if unknown := set(re.findall(r"\{\w*\}", command)) - {*_PLACEHOLDERS, "{volatile}"}:
        raise ValueError(f"the command of {name!r} contains {min(unknown)}; known are {', '.join(_PLACEHOLDERS)}")
    return Peer(name, words, " ".join(words))


def _first_line(*words: str, containing: str = "") -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    lines = (done.stdout + done.stderr).splitlines()
    return next((line.strip() for line in lines if containing in line), "version unknown")


def _ours(front: str) -> Peer:
    if not Path(PROGRAM).exists():
        raise MissingError(f"{PROGRAM} does not exist; run scripts/provision")
    # As pip does for what it installs. Without this, every start would compile what it imports.
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    words = [str(VENV / "bin/python"), "-m", "compileall", "-q", str(PROJECT / "overlayfs_demo")]
    subprocess.run(words, env=env, check=False, capture_output=True)
    options = ("-o", f"{_OPTIONS}{{volatile}}", "{mnt}")
    return Peer(f"ours-{front}", (PROGRAM, "mount", "--front", front, *options), _first_line(PROGRAM, "--version"))


def _fuse_overlayfs() -> Peer:
    program = shutil.which("fuse-overlayfs")
    if program is None:
        raise MissingError("it is not installed (apt: fuse-overlayfs)")
    version = _first_line(program, "--version", containing="fuse-overlayfs")
    return Peer("fuse-overlayfs", (program, "-o", _OPTIONS, "{mnt}"), version)


def kernel() -> str:
    """Return which Linux this is, without what a distribution adds to its version."""
    return f"Linux {os.uname().release.partition('-')[0]}"


def _kernel() -> Peer:
    command = ("mount", "-t", "overlay", "overlay", "-o", f"{_OPTIONS}{{volatile}}", "{mnt}")
    return Peer("overlayfs", command, kernel())


def _loopback(place: Path) -> Peer:
    """Compile libfuse's example of a loopback in `place`. It caches for ever, so that it shows the limit of FUSE."""
    compiler = shutil.which("cc")
    sources = sorted(Path("/usr/share/doc").glob("*fuse3*/example*/passthrough_ll.c"))
    if compiler is None or not sources:
        raise MissingError("passthrough_ll.c cannot be compiled (apt: libfuse3-dev gcc pkg-config)")
    flags = subprocess.run(["pkg-config", "--cflags", "--libs", "fuse3"], capture_output=True, text=True, check=False)
    program = place / "passthrough_ll"
    words = [compiler, "-O2", "-o", str(program), str(sources[0]), *flags.stdout.split()]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise MissingError(f"{sources[0]} cannot be compiled: {(done.stderr.strip() or 'failed').splitlines()[-1]}")
    version = f"libfuse's passthrough_ll.c, {_first_line(str(program), '--version', containing='FUSE library')}"
    return Peer("c-loopback", (str(program), "-o", "source={upper},cache=always", "{mnt}"), version, layered=False)


# In the order of the columns. The argument is a directory for what has to be made first.
BUILT_IN: dict[str, Callable[[Path], Peer]] = {
    "ours-kernel": lambda place: _ours("kernel"),
    "overlayfs": lambda place: _kernel(),
    "fuse-overlayfs": lambda place: _fuse_overlayfs(),
    "c-loopback": _loopback,
    "ours-fusepy": lambda place: _ours("fusepy"),
}


def find_peers(names: list[str], more: list[Peer], place: Path) -> list[Peer]:
    """Return the built-in peers of these names, and `more`. Those that are missing are named on stderr."""
    found = []
    for name in names:
        try:
            found.append(BUILT_IN[name](place))
        except (MissingError, OSError) as error:
            print(f"left out: {name}: {error}", file=sys.stderr)
    return found + more
