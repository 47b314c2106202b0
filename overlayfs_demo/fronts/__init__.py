"""The fronts, which carry requests from the kernel to the engine.

They may import `linux` and `overlay`, and contain no rule of the union. Begin with `front`, which says what a front is;
`kernel` is our own loop on /dev/fuse, `fusepy` is an adapter for libfuse 2, and `select` chooses between them.
"""
