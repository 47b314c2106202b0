"""Runs the tests in two processes, for two processors: `pytest --side-by-side`.

A second pytest, the helper, begins with the last file while this one begins with the first. Each claims a file before
it runs the tests in it, so both end at about the same time. The helper writes its reports to a file, from which this
process shows and counts them like its own: there is one list of failures, one summary and one exit status.

Some tests change what the whole machine sees: the mounts, the records in /run, and in /sbin what mount(8) calls. The
helper therefore has a mount namespace with a /run and a /usr/sbin of its own. Root can make that; for an ordinary user
the tests that would need it are skipped.

Root's temporary files are in memory, see `memory`; to have them on a disk, run pytest without `--side-by-side`.
"""

from __future__ import annotations

import ast
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.memory import Memory

_TIMEOUT = 30.0

# Both are changed in the helper's namespace only. Its /run is as empty as after a boot.
_ISOLATE = """
set -e
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/usr-sbin/upper /run/usr-sbin/work
mount -t overlay -o lowerdir=/usr/sbin,upperdir=/run/usr-sbin/upper,workdir=/run/usr-sbin/work overlay /usr/sbin
exec "$@"
"""
_IN_NAMESPACE = ("unshare", "--mount", "--propagation", "private", "sh", "-c", _ISOLATE, "sh")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("overlayfs-demo")
    group.addoption("--side-by-side", action="store_true", help="run the tests in two processes")
    group.addoption("--helper-of", metavar="DIR", help="be the second process, of the one that made DIR")


def pytest_configure(config: pytest.Config) -> None:
    if shared := config.getoption("--helper-of"):
        config.pluginmanager.register(_Helper(config, Path(shared)))
    elif config.getoption("--side-by-side") and not config.getoption("--collect-only"):
        config.pluginmanager.register(_Leader(config))


def _claim(shared: Path, item: pytest.Item) -> bool:
    """Return whether the file of this test is newly claimed by this call."""
    try:
        (shared / "claimed" / quote(item.nodeid.partition("::")[0], safe="")).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


class _Sharer:
    """What both processes do: run only the tests of files that they have claimed."""

    def __init__(self, shared: Path) -> None:
        self.shared = shared
        self._mine: dict[Path, bool] = {}

    def is_mine(self, item: pytest.Item) -> bool:
        if item.path not in self._mine:
            self._mine[item.path] = _claim(self.shared, item)
        return self._mine[item.path]


class _Helper:
    """The second process."""

    def __init__(self, config: pytest.Config, shared: Path) -> None:
        self._config = config
        self._leader = os.getppid()
        self._files = _Sharer(shared)
        self._reports = (shared / "reports").open("a", encoding="ascii")

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Let the last file come first; the order within a file stays, for its fixtures."""
        order = {path: number for number, path in enumerate(dict.fromkeys(item.path for item in items))}
        items.sort(key=lambda item: -order[item.path])

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> bool | None:
        if os.getppid() != self._leader:
            pytest.exit("the first process is gone")
        return None if self._files.is_mine(item) else True  # True: it has been dealt with.

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        data = self._config.hook.pytest_report_to_serializable(config=self._config, report=report)
        self._write(data)

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        """Say that this is the end, unless it is one before all tests have run."""
        if exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.NO_TESTS_COLLECTED):
            self._write(None)

    def _write(self, data: dict[str, object] | None) -> None:
        print(ascii(data), file=self._reports, flush=True)  # Unlike JSON, this keeps tuples.


class _Leader:
    """The first process, which starts the second and tells of both."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._memory: Memory | None = None
        self._alone = False
        if os.geteuid() == 0:
            try:
                self._memory = Memory(config)
            except OSError:
                self._alone = True
        self._shared = Path(tempfile.mkdtemp(prefix="overlayfs-demo-tests-"))
        (self._shared / "claimed").mkdir()
        (self._shared / "reports").touch()
        self._files = _Sharer(self._shared)
        self._read = 0
        self._ended = False
        self._helper: subprocess.Popen[bytes] | None = None

    def pytest_sessionstart(self) -> None:
        if self._alone:
            self._say("one process runs all tests: the second cannot get a mount namespace of its own")
            return
        isolated = _IN_NAMESPACE if self._memory else ()
        command = [sys.executable, "-m", "pytest", *self._config.invocation_params.args]
        command += [f"--helper-of={self._shared}", "-p", "no:cacheprovider"]
        if self._config.getoption("xmlpath"):
            command.append(f"--junitxml={self._shared}/junit.xml")
        if base := self._config.getoption("basetemp"):
            command.append(f"--basetemp={base}-helper")
        with (self._shared / "output").open("wb") as output:
            self._helper = subprocess.Popen(
                [*isolated, *command],
                cwd=self._config.invocation_params.dir,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # A terminal's SIGINT is for this process, which passes it on once.
            )

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> bool | None:
        self._show_reports()
        return None if self._files.is_mine(item) else True  # True: it has been dealt with.

    @pytest.hookimpl(wrapper=True)
    def pytest_runtestloop(self, session: pytest.Session) -> Generator[None, Any, Any]:
        reporter = self._config.pluginmanager.getplugin("terminalreporter")
        if reporter is not None:
            reporter.showfspath = False  # Results of two files come in turns.
        result = yield
        while self._helper is not None and not self._ended:
            status = self._helper.poll()
            self._show_reports()
            if session.shouldfail:
                raise session.Failed(session.shouldfail)
            if status is not None and not self._ended:
                self._say((self._shared / "output").read_text(errors="replace"))
                session.shouldfail = f"the second process ended early, with status {status}: see above what it said"
                raise session.Failed(session.shouldfail)
            time.sleep(0.05)
        return result

    def pytest_unconfigure(self) -> None:
        if self._helper is not None:
            if not self._ended:
                self._helper.send_signal(signal.SIGINT)  # It takes down what its tests have mounted.
            try:
                self._helper.wait(_TIMEOUT)
            except subprocess.TimeoutExpired:
                self._helper.kill()
                self._helper.wait()
        shutil.rmtree(self._shared)
        if self._memory is not None:
            self._memory.close()

    def _say(self, text: str) -> None:
        if reporter := self._config.pluginmanager.getplugin("terminalreporter"):
            reporter.write_line(text)

    def _show_reports(self) -> None:
        """Pass on what the helper has reported since the last call."""
        with (self._shared / "reports").open("rb") as file:
            file.seek(self._read)
            written = file.read()
        whole = written[: written.rfind(b"\n") + 1]
        self._read += len(whole)
        for line in whole.splitlines():
            data = ast.literal_eval(line.decode())
            if data is None:
                self._ended = True
                return
            report = self._config.hook.pytest_report_from_serializable(config=self._config, data=data)
            self._config.hook.pytest_runtest_logreport(report=report)
