"""How does a fact of the contract get an overlay to be checked on?

Every test that asks for `mounted` runs once for each subject. `@differs("kernel", "what it does
instead")` marks a subject that is known to answer otherwise: the fact then asserts that answer, behind
`if subject.differs`.
"""

from __future__ import annotations

import errno
import os
import signal
import threading
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from overlayfs_demo.errors import MountError
from overlayfs_demo.fronts import select
from overlayfs_demo.linux import fanotify, mounting
from tests import builders
from tests.conftest import unmount_all, why_no_mounts
from tests.contract.asking_subject import EngineAskingFirst
from tests.contract.engine_subject import Engine, EngineWithTables
from tests.contract.marks import CACHED, HAS_PASSTHROUGH, SUBJECTS, kernel_version
from tests.contract.subjects import Fronted, Kernel, Layers, Subject

# A mount that stopped answering would keep the test waiting for ever: then its daemon is killed.
_LIMIT = 60.0

Mount = Callable[..., Any]


@cache
def why_unavailable(kind: str) -> str:
    """Why this subject cannot be had on this machine, or ""."""
    if problem := why_no_mounts():
        return problem
    if kind == "engine-with-tables":
        try:
            os.close(fanotify.new_group())
        except OSError as error:
            return f"fanotify_init: {error.strerror}"
    if kind.endswith("-front"):
        try:
            select.front(kind.removesuffix("-front").removeprefix("cached-"))
        except (MountError, ImportError) as error:
            return str(error)
    if kind == "kernel" and not _has_overlayfs():
        return "needs the kernel's overlayfs"
    return ""


def _has_overlayfs() -> bool:
    """Ask for a mount of it, which without layers must fail: this loads the module that it may be in."""
    try:
        mounting.mount(b"overlay", b"/", b"overlay", 0, b"")
    except OSError as error:
        return error.errno != errno.ENODEV
    raise AssertionError("an overlay without layers was mounted")


def make_subject(kind: str, layers: Layers) -> Subject:
    """The subject of that kind, not yet mounted."""
    if kind == "engine":
        return Engine(layers)
    if kind == "engine-with-tables":
        return EngineWithTables(layers)
    if kind == "engine-asking-first":
        return EngineAskingFirst(layers)
    if kind == "kernel":
        return Kernel(layers)
    if kind == CACHED:
        return Fronted(layers, "kernel", passthrough=False)
    return Fronted(layers, kind.removesuffix("-front"))


@pytest.fixture(params=SUBJECTS)
def kind(request: pytest.FixtureRequest) -> str:
    """Which subject the test runs on."""
    name = str(request.param)
    if problem := why_unavailable(name):
        pytest.skip(problem)
    for mark in request.node.iter_markers("kernel_since"):
        since, reason = mark.args
        if name == "kernel" and kernel_version() < since:
            pytest.skip(reason)
    return name


@pytest.fixture
def mounted(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Mount]:
    """`mounted({...}, {...})`: an overlay of these lowers, bottom to top, and an upper.

    `upper` is what the upper holds already; `writable=False` is a mount without one; `data_only` is a layer
    below all, of which only the data of metacopies is used; `metacopy` lets changes of metadata copy no data;
    without `index` the names of a hard-linked lower file part. `flags` are mount(2)'s, `user_xattrs` is the option
    userxattr, and `limits` are copyup_max and copyup_warn.
    """
    started: list[Subject] = []

    def mount(
        *contents: builders.Content,
        upper: builders.Content | None = None,
        writable: bool = True,
        data_only: builders.Content | None = None,
        metacopy: bool = False,
        index: bool = True,
        flags: int = 0,
        user_xattrs: bool = False,
        **limits: Any,
    ) -> Subject:
        builders.directories(tmp_path, "upper", "work", "merged")
        builders.fill(os.fsencode(tmp_path / "upper"), upper or {})
        if not writable:
            contents = ({}, *contents)  # The kernel takes no single layer without an upper.
        lowers = builders.layers(tmp_path, *contents)
        data = builders.layers(tmp_path / "data", data_only) if data_only else []
        stack = Layers(
            lowers,
            tmp_path / "upper" if writable else None,
            tmp_path / "work" if writable else None,
            tmp_path / "merged",
            tuple(data),
            metacopy,
            index,
            flags=flags,
            user_xattrs=user_xattrs,
            **limits,
        )
        subject = make_subject(kind, stack)
        marks = {mark.args[0] for mark in request.node.iter_markers("differs")}
        subject.differs = kind in marks or (kind == "kernel-front" and CACHED in marks and not HAS_PASSTHROUGH)
        subject.start()
        started.append(subject)
        return subject

    with _guarded(started, tmp_path):
        yield mount


class _guarded:
    """Stops what was started, also after a failure, and never waits for a dead mount."""

    def __init__(self, started: list[Subject], below: Path) -> None:
        self._started = started
        self._below = below
        self._watchdog = threading.Timer(_LIMIT, self._kill)
        self._watchdog.daemon = True

    def _kill(self) -> None:
        for subject in self._started:
            if isinstance(subject, Fronted):
                os.kill(subject.daemon(), signal.SIGKILL)

    def __enter__(self) -> None:
        self._watchdog.start()

    def __exit__(self, *_: object) -> None:
        self._watchdog.cancel()
        try:
            for subject in self._started:
                subject.stop()
        finally:
            unmount_all(str(self._below))
