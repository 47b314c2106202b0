"""Our own loop on /dev/fuse, in the kernel's own protocol (linux/fuse.h).

It may import what `fronts` may. Begin with `session`, which reads requests and writes replies; `wire` is the protocol,
`handlers` answers each request, and `node_table` remembers what the kernel holds.
"""
