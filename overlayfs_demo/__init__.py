"""overlayfs-demo: an overlay filesystem that people can watch."""
