"""The analysis of a stored image, which several verbs show parts of."""

from __future__ import annotations

from overlayfs_demo.analysis.waste import Analysis, analyse
from overlayfs_demo.images.progress import SILENT, Progress
from overlayfs_demo.store.stored import StoredImage


def analysis_of(image: StoredImage, progress: Progress = SILENT, *, duplicates: bool = False) -> Analysis:
    """Analyse an image's layers, see `analyse`; `duplicates` also looks for equal files, which reads data.

    Raises ImageError.
    """
    return analyse(
        [layer.directory for layer in image.layers],
        image.value.titles,
        duplicates=duplicates,
        recipes=[layer.recipe for layer in image.layers],
        progress=progress,
    )
