"""A front on fusepy and libfuse 2, for machines where the other cannot run, and to read.

It may import what `fronts` may; only `callbacks` may import `fuse`. Begin there: it explains call by call what a
FUSE daemon does.
"""
