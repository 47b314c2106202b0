"""Lines of mount options: reading them, and writing one that mounts the same again.

What options there are says `option_table`. Which of several lists of layers counts is the kernel's rule
(fs/overlayfs/params.c).
"""

from __future__ import annotations

from collections.abc import Iterable

from overlayfs_demo.errors import UsageError
from overlayfs_demo.linux.mount_flags import FLAG_WORDS, changed
from overlayfs_demo.mounts.option_draft import Draft, MountOptions, Word
from overlayfs_demo.mounts.option_paths import split_escaped
from overlayfs_demo.mounts.option_refusals import refusal
from overlayfs_demo.mounts.option_table import FRONTS, OPTIONS, find

__all__ = ["FRONTS", "MountOptions", "changed_flags", "option_line", "parse", "remount_flags"]


def parse(lines: Iterable[str]) -> MountOptions:
    """Read one or more `-o` arguments. Raises UsageError, naming the option."""
    draft = Draft.empty()
    for text in _words(lines):
        word = Word.of(text)
        option = find(word)
        if option is None:
            raise refusal(word)
        option.take(draft, word)
    return draft.finish()


def option_line(options: MountOptions) -> str:
    """The inverse of `parse`: what mounts the same stack in the same way again."""
    draft = Draft(options)
    return ",".join(text for option in OPTIONS for text in option.write(draft))


def remount_flags(lines: Iterable[str], flags: int) -> int | None:
    """The MS_* flags after a `remount`, which begins with `flags`; None if the lines ask for none.

    Everything else stays as it is, whatever the words say, as with the kernel's overlayfs: mount(8) repeats
    all that it finds in the list of mounts.
    """
    words = list(_words(lines))
    return changed(flags, words) if "remount" in words else None


def changed_flags(line: str, flags: int) -> int:
    """The MS_* flags that a line of mount(8)'s words, such as `ro,suid`, makes of these. Raises UsageError."""
    words = [word for word in line.split(",") if word]
    for word in words:
        if word not in FLAG_WORDS:
            raise UsageError(f"mount option '{word}'", "use options of mount(8) here: ro, suid, dev, noexec, ...")
    return changed(flags, words)


def _words(lines: Iterable[str]) -> Iterable[str]:
    return (word for line in lines for word in split_escaped(line, ",") if word)
