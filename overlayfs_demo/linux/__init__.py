"""Linux itself: raw system calls, and what /proc says of mounts.

It imports nothing of the package, and only here may `ctypes` be used. Begin with `syscalls`; `mountinfo` reads
proc_pid_mountinfo(5).
"""
