"""How does a test unpack a layer, keep its recipe, and put its tar together again?"""

from __future__ import annotations

import contextlib
import io
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from overlayfs_demo.images.lowers import Lowers
from overlayfs_demo.images.tarsplit import assemble, recording
from overlayfs_demo.images.tarstream import TarStream
from overlayfs_demo.images.unpack import unpack_layer
from overlayfs_demo.overlay.whiteout import TRUSTED, USER

LABEL = "image.tar: layer 01"


@dataclass(frozen=True)
class Split:
    """An unpacked layer and its recipe."""

    top: Path
    recipe: bytes

    def assembled(self) -> bytes:
        out = bytearray()
        fd = os.open(self.top, os.O_RDONLY)
        try:
            assemble(io.BytesIO(self.recipe), fd, out.extend, LABEL)
        finally:
            os.close(fd)
        return bytes(out)


def split_stream(
    source: BinaryIO, top: Path, below: Sequence[Path] = (), finish: Callable[[], None] = lambda: None
) -> Split:
    """Unpack a layer into the new directory `top`, and record it."""
    root = os.geteuid() == 0
    marks = TRUSTED if root else USER
    top.mkdir()
    recipe = io.BytesIO()
    with contextlib.ExitStack() as stack:
        fd, spare_fd = os.open(top, os.O_RDONLY), os.open(top.parent, os.O_RDONLY)
        stack.callback(os.close, fd)
        stack.callback(os.close, spare_fd)
        lowers = stack.enter_context(Lowers(below, marks))
        recorder = stack.enter_context(recording(source, fd, top.parent, LABEL))
        tar = TarStream(recorder.tar, LABEL, marked_end=False)
        unpack_layer(tar, LABEL, fd, spare_fd, lowers, marks, root, recorder)
        recorder.finish(recipe)
        finish()
    return Split(top, recipe.getvalue())


def unlike(size: int, seed: int = 0) -> bytes:
    """Data that no compression makes smaller."""
    return random.Random(seed).randbytes(size)


SplitTar = Callable[..., Split]
