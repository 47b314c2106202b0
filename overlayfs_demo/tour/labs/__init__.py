"""The labs, with the answers to typical mistakes.

They are judged by the files on the disk, never by what merged shows.
"""

from __future__ import annotations

from overlayfs_demo.tour.lab import Lab
from overlayfs_demo.tour.labs import dockerfile, images, prediction, views

LABS: tuple[Lab, ...] = (*views.LABS, prediction.LAB, images.MATCH, images.FIND, images.SHRINK, dockerfile.LAB)
