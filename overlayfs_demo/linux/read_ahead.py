"""How much of a file the kernel reads ahead: Documentation/ABI/testing/sysfs-class-bdi."""

from __future__ import annotations


def set_read_ahead(device: str, size: int) -> None:
    """Let the kernel read up to `size` bytes ahead in files of a filesystem, given by its device (`major:minor`).

    Only root may do this. Raises OSError.
    """
    with open(f"/sys/class/bdi/{device}/read_ahead_kb", "w") as file:  # noqa: PTH123
        file.write(str(size // 1024))
