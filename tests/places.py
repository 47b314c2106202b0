"""How do tests run commands, and where do they mount?"""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from overlayfs_demo.images.sample_image import write_teaching_image
from overlayfs_demo.mounts import registry
from overlayfs_demo.ui.console import PROGRAM
from tests import builders
from tests.command import call, started

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
MINUTE = 60

_STYLE = re.compile(r"\x1b\[[0-9;]*m")

# What `scripts/provision --system` makes.
_INSTALLED = {
    Path("/sbin/mount.fuse.overlayfs-demo"): BIN / "overlayfs-demo",
    Path("/sbin/umount.fuse.overlayfs-demo"): BIN / "overlayfs-demo",
    Path("/sbin/umount.fuse"): ROOT / "scripts/umount.fuse",
}


def run(*words: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command that is given a minute; `overlayfs-demo`, this project's own, starts no interpreter for it."""
    command = [str(word) for word in words]
    settings = {"PATH": f"{BIN}:{os.environ['PATH']}", "LC_ALL": "C.UTF-8"}
    if command[0] == PROGRAM:
        return call(command[1:], settings, MINUTE, cwd)
    return subprocess.run(
        command, capture_output=True, text=True, timeout=MINUTE, cwd=cwd, env={**os.environ, **settings}
    )


def at_terminal(typed: str, *words: str) -> str:
    """What `overlayfs-demo` shows to somebody who types this."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "TERM": "xterm-256color", "SHELL": "/bin/sh"}
    with started(words, environment, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        os.write(ours, typed.encode())
        written = bytearray()
        try:
            while data := os.read(ours, 1 << 16):
                written += data
        except OSError:
            pass  # EIO: nobody has the terminal any more.
        os.close(ours)
        written += b"\nstatus %d" % process.wait(MINUTE)
    return _STYLE.sub("", written.decode()).replace("\r\n", "\n")


@dataclass(frozen=True)
class Place:
    """Directories to mount: two lowers, an upper, a work directory and a mount point."""

    base: Path

    def __truediv__(self, name: str) -> Path:
        return self.base / name

    @property
    def options(self) -> str:
        return f"lowerdir={self / 'top'}:{self / 'bottom'},upperdir={self / 'upper'},workdir={self / 'work'}"

    @property
    def view(self) -> Path:
        return self / "view"

    def mount(self, *words: str, options: str | None = None) -> subprocess.CompletedProcess[str]:
        return run("overlayfs-demo", "mount", *words, "-o", self.options if options is None else options, self.view)

    def umount(self, *words: str) -> subprocess.CompletedProcess[str]:
        return run("overlayfs-demo", "umount", *words, self.view)

    def is_mounted(self) -> bool:
        return f" {self.view} " in Path("/proc/self/mountinfo").read_text()

    def daemon(self) -> int:
        """The process that serves the view."""
        return self._record().daemon

    def supervisor(self) -> int:
        """The process that ends with the mount."""
        return self._record().pid

    def _record(self) -> registry.MountRecord:
        record = registry.find_record(str(self.view))
        assert record is not None
        return record


def teaching_image(path: Path) -> Path:
    """Write the archive with the image overlayfs-demo/teaching:1.0; its path."""
    with path.open("wb") as out:
        write_teaching_image(out)
    return path


def set_up(where: Path) -> Place:
    """Make the directories."""
    builders.directories(where, "top", "bottom", "upper", "work", "view")
    builders.fill(os.fsencode(where / "top"), {"motd": "hello\n"})
    builders.fill(os.fsencode(where / "bottom"), {"motd": "below\n", "d/deep": "deep\n"})
    return Place(where)


def fails(done: subprocess.CompletedProcess[str], *said: str, status: int = 1) -> None:
    """The command failed as it should: one line on stderr that says all of this, and no traceback."""
    assert done.returncode == status, done.stderr
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    for words in said:
        assert words in done.stderr


def why_no_mount_8() -> str:
    """Why mount(8) cannot be made to find this program for its type, or ""."""
    if not Path("/sbin/mount.fuse").exists():
        return "needs the package fuse3, whose mount.fuse calls the helper"
    for path in _INSTALLED:
        if os.path.lexists(path):
            return f"mount(8) and umount(8) would call what is installed as {path}"
    return ""


@contextmanager
def found_by_mount_8() -> Iterator[None]:
    """For a while mount(8) and umount(8) find this program: only in these directories, for mount clears PATH."""
    for path, program in _INSTALLED.items():
        path.symlink_to(program)
    try:
        yield
    finally:
        for path in _INSTALLED:
            path.unlink()
