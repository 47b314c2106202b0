"""The engine: what a union of layers answers, on disk formats that the kernel's overlayfs reads and writes.

It may import `linux`, `events` and `errors`; it knows no FUSE and no images. Begin with `engine`, whose methods are the
verbs; `factory` puts an engine together, and `merge` is the one pure decision about what layers say of a name.
"""
