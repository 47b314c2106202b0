"""The experiments of the tour, in their order: one module a chapter, and the advanced ones last."""

from __future__ import annotations

from overlayfs_demo.tour.experiment import Experiment
from overlayfs_demo.tour.experiments import advanced, basics, details, images, sharing, stacks

ALL: tuple[Experiment, ...] = (
    *basics.EXPERIMENTS,
    *stacks.EXPERIMENTS,
    *images.EXPERIMENTS,
    *sharing.EXPERIMENTS,
    *details.EXPERIMENTS,
    *advanced.EXPERIMENTS,
)
