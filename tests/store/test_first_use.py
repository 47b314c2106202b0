"""Can several processes use a store for the first time at once, and what does one leave that is killed meanwhile?"""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from overlayfs_demo.errors import ImageError, OverlayError
from overlayfs_demo.images.reference import ImageName
from overlayfs_demo.store import root as root_module
from overlayfs_demo.store.load import load
from overlayfs_demo.store.remove import tag
from overlayfs_demo.store.store import Store
from tests.images.builders import docker_save, layer

PROCESSES = 8
ROUNDS = 20
_PATIENCE = 60
FORK = multiprocessing.get_context("fork")
BASE = layer({"a": "1"})


def at_once(act: Callable[[int], object], rounds: int = 1) -> list[str]:
    """Let several processes do the same at once, so many times; what they complain of. `act` is given the round."""
    barrier, said = FORK.Barrier(PROCESSES), FORK.Queue()

    def run(number: int) -> None:
        problems = []
        for one in range(rounds):
            barrier.wait(_PATIENCE)
            try:
                act(one * PROCESSES + number)
            except (OverlayError, OSError) as error:
                problems.append(f"{type(error).__name__}: {error}")
        said.put(problems)

    started: list[Any] = [FORK.Process(target=run, args=(number,)) for number in range(PROCESSES)]
    for one in started:
        one.start()
    found = [problem for _ in started for problem in said.get(timeout=_PATIENCE)]
    for one in started:
        one.join(_PATIENCE)
    return found


def test_processes_that_use_a_new_store_at_once_all_succeed(tmp_path: Path) -> None:
    assert at_once(lambda number: Store(tmp_path / f"new{number // PROCESSES}/store").images(), ROUNDS) == []


def test_an_empty_directory_becomes_a_store_for_all_who_use_it_at_once(tmp_path: Path) -> None:
    for number in range(ROUNDS):
        (tmp_path / str(number)).mkdir(0o700)
    assert at_once(lambda number: Store(tmp_path / str(number // PROCESSES)).layers(), ROUNDS) == []
    assert (tmp_path / "0").stat().st_mode & 0o777 == 0o700


def test_the_first_loads_into_a_new_store_may_come_at_once(tmp_path: Path) -> None:
    (tmp_path / "image.tar").write_bytes(docker_save([BASE]))
    assert at_once(lambda _: load(Store(tmp_path / "store"), tmp_path / "image.tar")) == []
    store = Store(tmp_path / "store")
    assert (len(store.images()), len(store.layers()), os.listdir(store.tmp)) == (1, 1, [])


def test_names_given_at_once_are_all_kept(tmp_path: Path) -> None:
    (tmp_path / "image.tar").write_bytes(docker_save([BASE]))
    [loaded] = load(Store(tmp_path / "store"), tmp_path / "image.tar")
    word = loaded.image.id.encoded
    assert at_once(lambda number: tag(Store(tmp_path / "store"), word, ImageName.parse(f"name:{number}")), 4) == []
    names = json.loads((tmp_path / "store/names.json").read_text())
    assert {f"name:{number}" for number in range(4 * PROCESSES)} <= {name.rpartition("/")[2] for name in names}


@pytest.mark.parametrize("written", [None, 0, 1, 10, len(root_module.VERSION)])
def test_who_is_killed_while_making_a_store_leaves_what_the_next_one_completes(
    tmp_path: Path, written: int | None
) -> None:
    root = tmp_path / "store"
    root.mkdir()
    if written is not None:
        (root / "version").write_bytes(root_module.VERSION[:written])
    assert at_once(lambda _: Store(root).images()) == []
    assert (root / "version").read_bytes() == root_module.VERSION
    assert sorted(os.listdir(root)) == ["images", "layers", "tmp", "version"]


def killed_at(call: str, number: int, act: Callable[[], object]) -> bool:
    """Do something in a process that kills itself before the call of that number (from 0); was it killed?"""
    module: Any = fcntl if call == "flock" else os
    real, left = getattr(module, call), number

    def counting(*words: Any, **more: Any) -> Any:
        nonlocal left
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1
        return real(*words, **more)

    def run() -> None:
        setattr(module, call, counting)
        act()

    process: Any = FORK.Process(target=run)
    process.start()
    process.join(_PATIENCE)
    assert process.exitcode in (0, -signal.SIGKILL)
    return bool(process.exitcode)


@pytest.mark.parametrize("call", ["mkdir", "flock", "listdir", "fsync"])
def test_a_store_whose_maker_was_killed_at_a_call_can_be_used(tmp_path: Path, call: str) -> None:
    for number in range(20):
        root = tmp_path / str(number)
        if not killed_at(call, number, partial(Store, root)):
            break
        assert Store(root).images() == []
    assert 0 < number < 19


@pytest.mark.parametrize("present", [["file"], ["tmp"], ["images", "layers", "tmp"], ["version"]])
def test_a_directory_of_something_else_is_refused_and_left_alone(tmp_path: Path, present: list[str]) -> None:
    for name in present:
        (tmp_path / name).write_text("something else")
    with pytest.raises(ImageError, match=r"not empty and not a store|different version"):
        Store(tmp_path)
    assert sorted(os.listdir(tmp_path)) == present
    assert {(tmp_path / name).read_text() for name in present} == {"something else"}


def test_a_version_is_not_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store/version.new").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ImageError, match="symbolic links"):
        Store(tmp_path / "store")
    (tmp_path / "store/version.new").rename(tmp_path / "store/version")
    Store(tmp_path / "store")
    assert not (tmp_path / "elsewhere").exists()


def test_a_store_without_its_whole_version_is_refused_with_the_remedy(tmp_path: Path) -> None:
    Store(tmp_path)
    for version in (b"", root_module.VERSION[:5], None):
        (tmp_path / "version").unlink(missing_ok=True)
        if version is not None:
            (tmp_path / "version").write_bytes(version)
        with pytest.raises(ImageError, match=r"cut off.*'overlayfs-demo fsck --repair --store "):
            Store(tmp_path)
        assert (tmp_path / "version").exists() == (version is not None)


def test_the_beginning_of_a_version_beside_other_files_makes_no_store(tmp_path: Path) -> None:
    (tmp_path / "version").touch()
    (tmp_path / "file").touch()
    with pytest.raises(ImageError, match="not empty and not a store"):
        Store(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["file", "version"]
