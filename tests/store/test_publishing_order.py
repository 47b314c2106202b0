"""Does every verb sync what it publishes, then rename it, then sync the directory, before the next change relies on it?

The calls are recorded: nothing is mounted, and no power fails, see `test_power_failure`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from overlayfs_demo.images.reference import ImageName
from overlayfs_demo.linux import syscalls
from overlayfs_demo.store.containers import Containers
from overlayfs_demo.store.load import import_tree, load
from overlayfs_demo.store.remove import prune, remove_image, tag
from overlayfs_demo.store.store import Store
from tests.images.builders import docker_save_many, layer

BASE, APP = layer({"etc/motd": "hello\n", "d/e/f": "x"}), layer({"app/run": "#!", "etc/motd": "changed"})


class Recorder:
    """Checks each change of names in the store `root` when it is made, and collects what is wrong."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._root = root
        # The time of the last change of each file and directory that was synced, by its inode number.
        self._synced: dict[int, int] = {}
        # Directories whose names have changed since they were synced.
        self.pending: set[Path] = set()
        self.wrong: list[str] = []
        self.changes = 0
        for module, name, before in (
            (os, "rename", self._rename),
            (os, "mkdir", self._mkdir),
            (os, "unlink", self._unlink),
            (os, "fsync", self._fsync),
            (syscalls, "sync_filesystem", self._sync_filesystem),
            (syscalls, "rename", self._rename_below),
        ):
            self._patch(monkeypatch, module, name, before)

    @staticmethod
    def _patch(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, before: Callable[..., None]) -> None:
        real = getattr(module, name)

        def call(*words: Any, **more: Any) -> Any:
            before(*words, **more)
            return real(*words, **more)

        monkeypatch.setattr(module, name, call)

    def _is_kept(self, path: Path) -> bool:
        return path.is_relative_to(self._root) and not path.is_relative_to(self._root / "tmp")

    def _rename(self, source: Any, target: Any, **below: int) -> None:
        if below:
            return  # In a layer that is made, or taken apart.
        source, target = Path(source), Path(target)
        for path in (source, target):
            if self._is_kept(path):
                self._change(path)
        if self._is_kept(target):
            for path in (source, *source.rglob("*")):
                status = path.lstat()
                if self._synced.get(status.st_ino) != status.st_mtime_ns:
                    self.wrong.append(f"{path} becomes {target} before it was synced")

    def _rename_below(self, old_fd: int, old: bytes, new_fd: int, new: bytes, flags: int = 0) -> None:
        above = Path(os.readlink(f"/proc/self/fd/{new_fd}"))
        if self._is_kept(above):
            self._change(above / os.fsdecode(new))

    def _mkdir(self, path: Any, _mode: int = 0, **below: int) -> None:
        if not below and self._is_kept(Path(path)) and not Path(path).exists():
            self._change(Path(path))

    def _unlink(self, path: Any, **below: int) -> None:
        if below or not self._is_kept(Path(path)):
            return
        # A record without its layer does no harm, but a layer without its record does.
        if Path(path).parent.name == "layers":
            self._rely(set())
        else:
            self._change(Path(path))

    def _change(self, path: Path) -> None:
        self.changes += 1
        self._rely({path.parent})
        self.pending.add(path.parent)

    def _rely(self, allowed: set[Path]) -> None:
        if early := self.pending - allowed:
            self.wrong.append(f"the next change comes before {early} was synced")

    def _fsync(self, fd: int) -> None:
        status = os.fstat(fd)
        self._synced[status.st_ino] = status.st_mtime_ns
        self.pending.discard(Path(os.readlink(f"/proc/self/fd/{fd}")))

    def _sync_filesystem(self, _fd: int) -> None:
        for path in self._root.rglob("*"):
            self._synced[path.lstat().st_ino] = path.lstat().st_mtime_ns


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store with the images a:1 and b:1, which share a layer, and the container c1."""
    monkeypatch.setattr(Containers, "start", lambda self, container: None)
    (tmp_path / "images.tar").write_bytes(docker_save_many({"a:1": [BASE, APP], "b:1": [BASE]}))
    (tmp_path / "more.tar").write_bytes(docker_save_many({"c:1": [APP], "d:1": [APP, BASE]}))
    (tmp_path / "tree.tar").write_bytes(layer({"tree": "1"}))
    store = Store(tmp_path / "store")
    load(store, tmp_path / "images.tar")
    Containers(store).create(store.find("b:1"), "c1")
    return store


def damage(store: Store) -> None:
    """Take the record of a layer away, so that the next load of it publishes it again."""
    stored = store.find("a:1").layers[-1]
    stored.directory.with_suffix(".json").unlink()
    load(store, store.root.parent / "images.tar")


def commit(store: Store) -> None:
    containers = Containers(store)
    (containers.find("c1").upper / "new").write_text("new\n")
    containers.commit(containers.find("c1"), ImageName.parse("made:1"))


VERBS: dict[str, Callable[[Store], object]] = {
    "first use": lambda store: Store(store.root / "deep/er"),
    "load": lambda store: load(store, store.root.parent / "more.tar"),
    "load of a damaged layer": damage,
    "import": lambda store: import_tree(store, store.root.parent / "tree.tar", ImageName.parse("tree:1")),
    "commit": commit,
    "create": lambda store: Containers(store).create(store.find("a:1"), "c2"),
    "rename": lambda store: Containers(store).rename(Containers(store).find("c1"), "c3"),
    "rm": lambda store: Containers(store).remove(Containers(store).find("c1")),
    "tag": lambda store: tag(store, "a:1", ImageName.parse("other:1")),
    "rmi": lambda store: remove_image(store, "a:1"),
    "rmi that keeps layers": lambda store: remove_image(store, "a:1", keep_layers=True),
    "prune": lambda store: prune(store, every=True),
}


@pytest.mark.parametrize("verb", VERBS)
def test_what_is_published_is_synced_before_and_its_name_after(
    store: Store, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    recorder = Recorder(store.root, monkeypatch)
    VERBS[verb](store)
    assert (recorder.wrong, recorder.pending) == ([], set())
    assert recorder.changes
