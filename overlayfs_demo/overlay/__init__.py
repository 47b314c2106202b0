"""The engine: a union of layers, in the on-disk formats that the kernel's overlayfs reads and writes.

It may import `linux`, `events` and `errors`; it knows no FUSE and no images. Start with `engine`, whose methods are the
verbs; `factory` opens the layers and puts it together, and `merge` holds the pure rule that decides which layer wins.
"""
