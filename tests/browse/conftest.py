"""What every test of the browser may ask for: a store and images in it."""

from __future__ import annotations

from tests.images.stored import MakeImage, image, store

__all__ = ["MakeImage", "image", "store"]
