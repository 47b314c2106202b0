"""The fronts: how requests of the kernel reach the engine.

They may import `linux` and `overlay`, and hold no rule of the union. Begin with `front`, which says what a front is;
`kernel` is our own loop on /dev/fuse, `fusepy` an adapter on libfuse 2, and `select` chooses one.
"""
