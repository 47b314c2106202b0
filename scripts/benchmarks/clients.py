"""One of several processes that work on a view at the same time, and the two operations that it repeats.

usage: clients.py DIRECTORY FIRST COUNT

It says `ready`, waits until its input ends, reads the files f<FIRST>, … and creates new<FIRST>, …, and says `done`.
"""

from __future__ import annotations

import os
import sys

CONTENT = b"hello"


def read(path: str) -> bytes:
    """Open, read and close a file of at most 1 MiB."""
    fd = os.open(path, os.O_RDONLY)
    data = os.read(fd, 1 << 20)
    os.close(fd)
    return data


def create(path: str) -> None:
    """Create a file with 5 bytes."""
    fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    os.write(fd, CONTENT)
    os.close(fd)


def main() -> None:
    directory, first, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    print("ready", flush=True)
    sys.stdin.read()
    for number in range(first, first + count):
        if read(f"{directory}/f{number}") != CONTENT:
            sys.exit(f"wrong content of f{number}")
        create(f"{directory}/new{number}")
    print("done", flush=True)


if __name__ == "__main__":
    main()
