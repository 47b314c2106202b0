"""The experiments of the tour, in their order."""

from __future__ import annotations

from overlayfs_demo.tour.experiment import Experiment
from overlayfs_demo.tour.experiments import data, images, kernel, names, stacks

ALL: tuple[Experiment, ...] = (
    *data.EXPERIMENTS,
    *names.EXPERIMENTS,
    *stacks.EXPERIMENTS,
    *images.EXPERIMENTS,
    *kernel.EXPERIMENTS,
)
