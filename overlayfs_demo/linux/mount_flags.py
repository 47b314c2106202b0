"""The MS_* flags of mount(2), with mount(8)'s word for each."""

from __future__ import annotations

from collections.abc import Iterable

from overlayfs_demo.linux import mounting
from overlayfs_demo.named_tuple import NamedTuple


class MountFlag(NamedTuple):
    """A flag, the word that sets it, and the word that clears it ("": there is none)."""

    bit: int
    word: str
    opposite: str


MOUNT_FLAGS = (
    MountFlag(mounting.MS_RDONLY, "ro", "rw"),
    MountFlag(mounting.MS_NOSUID, "nosuid", "suid"),
    MountFlag(mounting.MS_NODEV, "nodev", "dev"),
    MountFlag(mounting.MS_NOEXEC, "noexec", "exec"),
    MountFlag(mounting.MS_SYNCHRONOUS, "sync", "async"),
    MountFlag(mounting.MS_DIRSYNC, "dirsync", ""),
    MountFlag(mounting.MS_NOATIME, "noatime", "atime"),
    MountFlag(mounting.MS_NODIRATIME, "nodiratime", "diratime"),
    MountFlag(mounting.MS_RELATIME, "relatime", "norelatime"),
    MountFlag(mounting.MS_STRICTATIME, "strictatime", "nostrictatime"),
    MountFlag(mounting.MS_LAZYTIME, "lazytime", "nolazytime"),
)
_SET = {flag.word: flag.bit for flag in MOUNT_FLAGS}
_CLEAR = {flag.opposite: flag.bit for flag in MOUNT_FLAGS if flag.opposite}
FLAG_WORDS = frozenset(_SET) | frozenset(_CLEAR)


def changed(flags: int, words: Iterable[str]) -> int:
    """The flags after these words, of which the last counts. Words that are not in FLAG_WORDS change nothing."""
    for word in words:
        flags = (flags | _SET.get(word, 0)) & ~_CLEAR.get(word, 0)
    return flags
