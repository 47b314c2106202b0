"""Our own loop on /dev/fuse, which speaks the kernel's protocol (linux/fuse.h).

It may import what `fronts` may. Begin with `session`, which reads requests and writes replies; `wire` is the protocol,
`handlers` answers each request, and `node_table` remembers which nodes the kernel holds.
"""
