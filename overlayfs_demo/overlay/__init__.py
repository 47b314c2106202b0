"""The engine: a union of layers, in the on-disk formats that the kernel's overlayfs reads and writes.

It may import `linux` and `events`, and knows nothing of FUSE or images. Start with `engine`, whose methods are the
verbs; `factory` chooses and opens an engine, and `merge` holds the pure rule that decides which layer wins a name.
"""
