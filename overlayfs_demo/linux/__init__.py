"""Access to Linux itself: raw system calls, and the lists of mounts in /proc.

It imports nothing from the package, and only this folder may use `ctypes`. Each module is one subject of the
manual (`xattr`, `fanotify`, `file_handle`, `landlock`, `mounting`, `mountinfo`, `proc`); begin with `syscalls`, which
has the calls on files. `attributes` sets a file's owner, mode and times in the right order, and `failure` makes errors.
"""
