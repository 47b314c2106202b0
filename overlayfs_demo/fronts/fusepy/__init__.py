"""A front on fusepy and libfuse 2, for machines where the kernel front cannot run, and for readers.

It may import what `fronts` may; only `callbacks` may import `fuse`. Begin there: it explains, call by call, what a
FUSE daemon does.
"""
