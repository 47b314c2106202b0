"""How do the engine's own tests get an engine?"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import builders
from tests.conftest import unmount_all, why_no_mounts
from tests.contract.engine_subject import Engine
from tests.contract.subjects import Kernel, Layers

Make = Callable[..., Engine]


@pytest.fixture
def overlaid(tmp_path: Path) -> Iterator[Make]:
    """`overlaid({...}, {...})`: an engine on these lowers, bottom to top, with an upper."""
    if os.geteuid() != 0:
        pytest.skip("needs root: owners, devices, trusted xattrs")
    made: list[Engine] = []

    def make(
        *contents: builders.Content,
        upper: builders.Content | None = None,
        metacopy: bool = False,
        index: bool = True,
        user_xattrs: bool = False,
    ) -> Engine:
        above = tmp_path / f"stack{len(made)}"
        builders.directories(above, "upper", "work", "merged")
        builders.fill(os.fsencode(above / "upper"), upper or {})
        lowers = builders.layers(above, *contents)
        subject = Engine(
            Layers(
                lowers,
                above / "upper",
                above / "work",
                above / "merged",
                metacopy=metacopy,
                index=index,
                user_xattrs=user_xattrs,
            )
        )
        subject.start()
        made.append(subject)
        return subject

    yield make
    # In this order each gives back the umask that it found.
    for subject in reversed(made):
        subject.stop()


@pytest.fixture
def beside(tmp_path: Path) -> Iterator[Callable[[Engine], Kernel]]:
    """`beside(engine)`: the kernel's overlay of the same lowers, with an upper of its own."""
    if problem := why_no_mounts():
        pytest.skip(problem)
    made: list[Kernel] = []

    def make(engine: Engine) -> Kernel:
        above = tmp_path / f"kernel{len(made)}"
        builders.directories(above, "upper", "work", "merged")
        subject = Kernel(Layers(engine.layers.lowers, above / "upper", above / "work", above / "merged"))
        subject.start()
        made.append(subject)
        return subject

    try:
        yield make
    finally:
        unmount_all(str(tmp_path))
