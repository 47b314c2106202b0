"""The image `scratch`, which has no layers: Docker's word for an empty base.

It belongs to every store, although nothing of it is kept there.
"""

from __future__ import annotations

import functools
import json

from overlayfs_demo.images.model import Config, Digest, running_platform
from overlayfs_demo.store.stored import StoredImage

# Docker keeps this name for the empty base, so no registry has an image that is called so.
NAME = "scratch"


@functools.cache
def scratch() -> StoredImage:
    """Return the image `scratch` for this machine's platform; it is not in lists of images and cannot be removed."""
    system = running_platform()
    fields = {
        "architecture": system.architecture,
        "config": {},
        "history": [],
        "os": system.os,
        "rootfs": {"type": "layers", "diff_ids": []},
    }
    config = json.dumps(fields | ({"variant": system.variant} if system.variant else {}), sort_keys=True).encode()
    return StoredImage(Digest.of(config), config, Config.parse(config, NAME), (), ())
