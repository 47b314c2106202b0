"""Processes that all change one store at once, and are killed at random; afterwards everything listed must be whole.

`scripts/soak store` does this for as long as it is told.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import signal
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from overlayfs_demo.errors import OverlayError
from overlayfs_demo.fsck.store_check import check_store
from overlayfs_demo.images.reference import ImageName
from overlayfs_demo.linux import mounting
from overlayfs_demo.mounts.option_paths import lowerdir_option
from overlayfs_demo.overlay.factory import open_overlay
from overlayfs_demo.store.containers import Containers
from overlayfs_demo.store.image_view import image_stack
from overlayfs_demo.store.layer_tar import verify
from overlayfs_demo.store.load import load
from overlayfs_demo.store.remove import prune, remove_image, tag
from overlayfs_demo.store.store import Store
from overlayfs_demo.store.stored import StoredImage
from tests.images.builders import docker_save_many, layer

_FORK = multiprocessing.get_context("fork")
_ARCHIVES = 4
_LAYERS = [layer({f"d{number}/{file}": f"{number} {file}\n" * 50 for file in range(20)}) for number in range(6)]


@dataclass
class Counts:
    """How much was done."""

    kills: int = 0
    checks: int = 0
    images: int = 0
    wrong: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.kills} kills, {self.checks} checks of {self.images} images in all, {len(self.wrong)} wrong"


def write_archives(base: Path, chance: random.Random) -> None:
    """Write archives of images that share layers."""
    for number in range(_ARCHIVES):
        images = {
            f"image{number}:{tag}": [*_LAYERS[: chance.randint(1, len(_LAYERS))], layer({f"own{number}": str(tag)})]
            for tag in range(2)
        }
        (base / f"archive{number}.tar").write_bytes(docker_save_many(images))


class Worker:
    """One process's changes of the store. Its containers are its own."""

    def __init__(self, base: Path, number: int, seed: int) -> None:
        self._base = base
        self._number = number
        self._chance = random.Random(seed)
        self._store = Store(base / "store")
        self._containers = Containers(self._store)
        self._acts = (
            *(self._load, self._load, self._create, self._commit, self._commit, self._remove_container),
            *(self._remove_image, self._remove_image, self._tag, self._prune),
        )

    def run(self, said: Path) -> None:
        """Act until killed. What nobody should see is added to the file `said`."""
        while True:
            act = self._chance.choice(self._acts)
            try:
                act()
            except OverlayError:
                pass  # Another process was faster.
            except Exception:  # noqa: BLE001  # Whatever it is, it is wrong.
                with said.open("a") as file:
                    file.write(f"{act.__name__}: {traceback.format_exc()}\n")

    def _image(self) -> str:
        images = self._store.images()
        return str(self._chance.choice(images).id) if images else "none"

    def _load(self) -> None:
        load(self._store, self._base / f"archive{self._chance.randrange(_ARCHIVES)}.tar")

    def _name(self) -> str:
        return f"c{self._number}-{self._chance.randrange(3)}"

    def _create(self) -> None:
        container = self._containers.create(self._store.find(self._image()), self._name())
        (container.upper / "new").write_text("new\n" * 100)

    def _commit(self) -> None:
        name = ImageName.parse(f"made:{self._number}-{self._chance.randrange(3)}")
        self._containers.commit(self._containers.find(self._name()), name)

    def _remove_container(self) -> None:
        self._containers.remove(self._containers.find(self._name()))

    def _remove_image(self) -> None:
        remove_image(self._store, self._image(), force=True)

    def _tag(self) -> None:
        tag(self._store, self._image(), ImageName.parse(f"tag:{self._chance.randrange(5)}"))

    def _prune(self) -> None:
        prune(self._store, every=self._chance.random() < 0.2)


def _work(base: Path, number: int, seed: int) -> None:
    # Containers are made, but not mounted.
    Containers.start = lambda self, container, front="auto": None  # type: ignore[method-assign]
    Worker(base, number, seed).run(_said(base))


def _said(base: Path) -> Path:
    return base / "said"


@contextmanager
def _workers(base: Path, count: int, chance: random.Random) -> Iterator[list[Any]]:
    running: list[Any] = []
    try:
        for number in range(count):
            running.append(_started(base, number, chance))
        yield running
    finally:
        for process in running:
            process.kill()
            process.join()


def _started(base: Path, number: int, chance: random.Random) -> Any:
    process: Any = _FORK.Process(target=_work, args=(base, number, chance.getrandbits(32)), daemon=True)
    process.start()
    return process


def stress(base: Path, seconds: float, seed: int, processes: int = 4) -> Counts:
    """Let processes change a new store below `base`, kill one after the other, and check it again and again."""
    chance, counts = random.Random(seed), Counts()
    write_archives(base, chance)
    store = Store(base / "store")
    end = time.monotonic() + seconds
    with _workers(base, processes, chance) as running:
        while time.monotonic() < end and not counts.wrong and not _said(base).exists():
            time.sleep(chance.uniform(0, 0.15))
            victim = chance.randrange(processes)
            os.kill(running[victim].pid, signal.SIGKILL)
            running[victim].join()
            counts.kills += 1
            running[victim] = _started(base, victim, chance)
            if counts.kills % 10 == 0:
                check(store, base, counts)
    if _said(base).exists():
        counts.wrong.append(_said(base).read_text())
    check(store, base, counts)
    counts.wrong += [f"{finding.kind}: {finding.path}" for finding in check_store(store.root)]
    return counts


def check(store: Store, base: Path, counts: Counts) -> None:
    """Check, while nobody changes the store, that all images listed are what they were, and can be mounted."""
    with store.writing():
        counts.checks += 1
        inventory = store.inventory()
        counts.wrong += map(str, inventory.problems)
        for image in inventory.images:
            counts.images += 1
            try:
                for stored in image.layers:
                    verify(stored)
                _mount(store, image, base / "view")
            except (OverlayError, OSError, AssertionError) as error:
                counts.wrong.append(f"{image.title}: {error}")


def _mount(store: Store, image: StoredImage, where: Path) -> None:
    """Compare the names in the root of our view with those of the kernel's, if that can be mounted here."""
    stack = image_stack(store, image)
    view = open_overlay(stack)
    names = {entry.name for entry in view.entries(view.root)}
    view.close()
    assert names
    where.mkdir(exist_ok=True)
    empty = os.fsencode(store.empty_directory())
    options = lowerdir_option([*stack.lowers, empty]).encode()
    if os.geteuid():
        return
    mounting.mount(b"overlay", os.fsencode(where), b"overlay", mounting.MS_RDONLY, options)
    try:
        assert set(map(os.fsencode, os.listdir(where))) == names
    finally:
        with contextlib.suppress(OSError):
            mounting.unmount(os.fsencode(where), mounting.MNT_DETACH)
