"""Runs the tests in several processes: `pytest --side-by-side`.

Half of the time, a test waits: for a daemon, a terminal, a clock. So there are more processes than processors. This one
begins with the first file, and each of the others, the helpers, somewhere later. Each claims a file before it runs the
tests in it, so all end at about the same time. A helper writes its reports to a file, from which this process shows and
counts them like its own: there is one list of failures, one summary and one exit status.

Some tests change what the whole machine sees: the mounts, the records in /run, and in /sbin what mount(8) calls. Each
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
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.memory import Memory

_TIMEOUT = 30.0

# Both are changed in a helper's namespace only. Its /run is as empty as after a boot.
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
    group.addoption("--side-by-side", action="store_true", help="run the tests in several processes")
    group.addoption("--helper-of", metavar="DIR", help="be one of the other processes: DIR is its own")


def pytest_configure(config: pytest.Config) -> None:
    if shared := config.getoption("--helper-of"):
        config.pluginmanager.register(_Helper(config, Path(shared)))
    elif config.getoption("--side-by-side") and not config.getoption("--collect-only"):
        config.pluginmanager.register(_Leader(config))


def _processes() -> int:
    return len(os.sched_getaffinity(0)) * 3 // 2 + 1


def _claim(shared: Path, item: pytest.Item) -> bool:
    """Return whether the file of this test is newly claimed by this call."""
    try:
        (shared / quote(item.nodeid.partition("::")[0], safe="")).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


class _Sharer:
    """What all processes do: run only the tests of files that they have claimed, in a directory for claims."""

    def __init__(self, claimed: Path) -> None:
        self._claimed = claimed
        self._mine: dict[Path, bool] = {}

    def run(self, item: pytest.Item, following: pytest.Item | None) -> bool | None:
        """What a `pytest_runtest_protocol` returns: None if pytest is to run the item, True if it has been dealt with.

        After the last item of a file, all fixtures but the session's are torn down, because whether the next file is
        ours shows only when it is claimed.
        """
        if item.path not in self._mine:
            self._mine[item.path] = _claim(self._claimed, item)
        if not self._mine[item.path]:
            return True
        if following is None or isinstance(following, pytest.Session) or following.path == item.path:
            return None
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=item.session)
        return True


class _Helper:
    """One of the other processes. Its directory is named by its number and the number of all, as in `1-of-4`."""

    def __init__(self, config: pytest.Config, own: Path) -> None:
        self._config = config
        self._leader = os.getppid()
        self._files = _Sharer(own.parent / "claimed")
        self._reports = (own / "reports").open("a", encoding="ascii")
        number, _, count = own.name.split("-")
        self._part = int(number) / int(count)

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Begin with another file than the others do; the order within a file stays, for its fixtures."""
        paths = list(dict.fromkeys(item.path for item in items))
        first = int(len(paths) * self._part)
        order = {path: number for number, path in enumerate(paths[first:] + paths[:first])}
        items.sort(key=lambda item: order[item.path])

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
        if os.getppid() != self._leader:
            pytest.exit("the first process is gone")
        return self._files.run(item, nextitem)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        data = self._config.hook.pytest_report_to_serializable(config=self._config, report=report)
        self._write(data)

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        """Say that this is the end, unless it is one before all tests have run."""
        if exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.NO_TESTS_COLLECTED):
            self._write(None)

    def _write(self, data: dict[str, object] | None) -> None:
        print(ascii(data), file=self._reports, flush=True)  # Unlike JSON, this keeps tuples.


class _Started:
    """A helper as the first process sees it."""

    def __init__(self, config: pytest.Config, own: Path, isolated: Sequence[str]) -> None:
        own.mkdir()
        self._own = own
        (own / "reports").touch()
        self._read = 0
        self.has_reported_all = False
        command = [sys.executable, "-m", "pytest", *config.invocation_params.args]
        command += [f"--helper-of={own}", "-p", "no:cacheprovider"]
        if config.getoption("xmlpath"):
            command.append(f"--junitxml={own}/junit.xml")
        if base := config.getoption("basetemp"):
            command.append(f"--basetemp={base}-{own.name[0]}")
        with (own / "output").open("wb") as output:
            self._process = subprocess.Popen(
                [*isolated, *command],
                cwd=config.invocation_params.dir,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # A terminal's SIGINT is for the first process, which passes it on once.
            )

    def status(self) -> int | None:
        """Return how it ended, or None if it still runs."""
        return self._process.poll()

    def output(self) -> str:
        """Return what it said beside its reports."""
        return (self._own / "output").read_text(errors="replace")

    def new_reports(self) -> Iterator[dict[str, Any]]:
        """Yield what it has reported since the last call."""
        with (self._own / "reports").open("rb") as file:
            file.seek(self._read)
            written = file.read()
        whole = written[: written.rfind(b"\n") + 1]
        self._read += len(whole)
        for line in whole.splitlines():
            data = ast.literal_eval(line.decode())
            if data is None:
                self.has_reported_all = True
                return
            yield data

    def end(self) -> None:
        if not self.has_reported_all:
            self._process.send_signal(signal.SIGINT)  # It takes down what its tests have mounted.
        try:
            self._process.wait(_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class _Leader:
    """The first process, which starts the others and tells of all."""

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
        self._files = _Sharer(self._shared / "claimed")
        self._helpers: list[_Started] = []

    def pytest_sessionstart(self) -> None:
        if self._alone:
            self._say("one process runs all tests: the others cannot get mount namespaces of their own")
            return
        isolated = _IN_NAMESPACE if self._memory else ()
        count = _processes()
        for number in range(1, count):
            self._helpers.append(_Started(self._config, self._shared / f"{number}-of-{count}", isolated))

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
        self._show_reports()
        return self._files.run(item, nextitem)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtestloop(self, session: pytest.Session) -> Generator[None, Any, Any]:
        reporter = self._config.pluginmanager.getplugin("terminalreporter")
        if reporter is not None:
            reporter.showfspath = False  # Results of several files come in turns.
        result = yield
        while True:
            # Before the reports are read, so that none is missed of a helper that has ended.
            statuses = [helper.status() for helper in self._helpers]
            self._show_reports()
            for helper, status in zip(self._helpers, statuses, strict=True):
                if status is not None and not helper.has_reported_all:
                    self._say(helper.output())
                    session.shouldfail = f"another process ended early, with status {status}: see above what it said"
            if session.shouldfail:
                raise session.Failed(session.shouldfail)
            if all(helper.has_reported_all for helper in self._helpers):
                return result
            time.sleep(0.05)

    def pytest_unconfigure(self) -> None:
        for helper in self._helpers:
            helper.end()
        shutil.rmtree(self._shared)
        if self._memory is not None:
            self._memory.close()

    def _say(self, text: str) -> None:
        if reporter := self._config.pluginmanager.getplugin("terminalreporter"):
            reporter.write_line(text)

    def _show_reports(self) -> None:
        """Pass on what the helpers have reported since the last call."""
        for helper in self._helpers:
            for data in helper.new_reports():
                report = self._config.hook.pytest_report_from_serializable(config=self._config, data=data)
                self._config.hook.pytest_runtest_logreport(report=report)
