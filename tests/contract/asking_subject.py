"""An engine whose lowers may stop to answer: it must not ask them anything while it holds the tree's lock."""

from __future__ import annotations

import os
import re
import traceback
from collections.abc import Callable
from functools import wraps
from typing import Any

from overlayfs_demo.linux import file_handle, syscalls
from overlayfs_demo.overlay import questions
from overlayfs_demo.overlay.engine import Overlay
from overlayfs_demo.overlay.factory import open_overlay
from tests.contract.engine_subject import Engine
from tests.contract.subjects import Layers

_BY_DESCRIPTOR = re.compile(rb"/proc/self/fd/(\d+)")
# The functions by which a layer is asked for something.
_FUNCTIONS: list[tuple[Any, str]] = [
    *((os, name) for name in ("stat", "fstat", "open", "scandir", "listdir", "readlink", "getxattr", "listxattr")),
    *((syscalls, name) for name in ("statx", "open_beneath", "filesystem_magic")),
    *((file_handle, name) for name in ("handle_of", "open_handle")),
]


class Watch:
    """Notes each call into a lower that a thread makes with the tree's lock held."""

    def __init__(self, overlay: Overlay, layers: Layers) -> None:
        self.wrong: list[str] = []
        self._lock = overlay._lock
        self._fstat = os.fstat
        self._lowers: set[tuple[int, int]] = set()
        for lower in (*layers.lowers, *layers.data_only):
            for above, directories, files in os.walk(lower):
                self._lowers.update(map(_key, (above, *(os.path.join(above, name) for name in directories + files))))
        self._originals = [(module, name, getattr(module, name)) for module, name in _FUNCTIONS]
        for module, name, function in self._originals:
            setattr(module, name, self._watched(name, function))

    def end(self) -> None:
        """Watch no longer."""
        for module, name, function in self._originals:
            setattr(module, name, function)

    def _watched(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def call(*words: Any, **options: Any) -> Any:
            is_owned: bool = self._lock._is_owned()  # type: ignore[attr-defined]
            # The kernel itself knows the handle of what is open.
            is_question = name != "handle_of" or words[1]
            if is_owned and is_question and self._is_lower(options.get("dir_fd"), *words[:1]):
                callers = (frame.name for frame in traceback.extract_stack(limit=8)[:-1])
                self.wrong.append(f"{name}{words} in {' > '.join(callers)}")
            return function(*words, **options)

        return call

    def _is_lower(self, *places: Any) -> bool:
        for place in places:
            if isinstance(place, bytes | str):
                found = _BY_DESCRIPTOR.match(os.fsencode(place))
                place = int(found[1]) if found else None
            if isinstance(place, int):
                status = self._fstat(place)
                if (status.st_dev, status.st_ino) in self._lowers:
                    return True
        return False


def _key(path: str | os.PathLike[str]) -> tuple[int, int]:
    status = os.lstat(path)
    return status.st_dev, status.st_ino


class _Patient:
    """Calls the verbs of an engine, or of its files, as a front does that gets answers first."""

    def __init__(self, of: Any) -> None:
        self._of = of

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._of, name)
        if name == "files":
            return _Patient(found)
        if not callable(found) or name in {"close", "external_changes"}:
            return found

        @wraps(found)
        def verb(*words: Any, **options: Any) -> Any:
            questions.begin()
            try:
                while True:
                    try:
                        return found(*words, **options)
                    except questions.AskFirstError as first:
                        first.get_answers()
            finally:
                questions.end()

        return verb


class EngineAskingFirst(Engine):
    """The verbs, called by a front that gets answers before it needs them."""

    def start(self) -> None:
        overlay = open_overlay(self.layers.stack())
        overlay._tree.may_stall = True
        for layer in overlay._layers:
            layer.may_stall = True
        self.watch = Watch(overlay, self.layers)
        self.overlay = _Patient(overlay)  # type: ignore[assignment]
        self._umask = os.umask(0)

    def stop(self) -> None:
        self.watch.end()
        super().stop()
        assert self.watch.wrong == [], "\n".join(self.watch.wrong)
