"""Processes in a container: a command whose root is the container's view, and which can reach nothing else.

It may import `explain` for its filter of system calls, `images` for the image's settings, `linux` and `errors`; it
knows no store. Begin with `start`. `launch` and then `inside` are the life of the new process, and `relay` carries its
standard streams.
"""
