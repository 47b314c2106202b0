"""overlayfs-demo: an overlay filesystem that people can watch."""

__version__ = "0.1.0"
