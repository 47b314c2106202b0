"""Access to Linux itself: raw system calls, and the lists of mounts in /proc.

It imports nothing from the package, and only this folder may use `ctypes`. Begin with `syscalls`; `mountinfo` reads
proc_pid_mountinfo(5).
"""
