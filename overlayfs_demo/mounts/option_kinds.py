"""The kinds of mount options: what a table of options is made of.

Each kind reads a word of an option line into a draft, and writes the words that say what a draft says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from typing import TypeVar

from overlayfs_demo.errors import UsageError
from overlayfs_demo.mounts.option_draft import Draft, Word
from overlayfs_demo.named_tuple import NamedTuple

T = TypeVar("T")
Take = Callable[[Draft, Word], None]
Write = Callable[[Draft], Iterable[str]]


class Owner(Enum):
    """Whose option it is: who decides what it means."""

    KERNEL = "the kernel's overlayfs"
    MOUNT = "mount(8) and fstab(5)"
    FUSE = "mount.fuse(8)"
    FUSE_OVERLAYFS = "fuse-overlayfs(1)"
    OURS = "overlayfs-demo"


def _write_nothing(_draft: Draft) -> Iterable[str]:
    return ()


class MountOption(NamedTuple):
    """One form of one option.

    `usage` is what to type: a bare word, or `NAME=` and the values it takes. `take` reads such a word into the draft,
    and raises UsageError; `write` returns the words that say what the draft says. Forms that stand
    side by side and have the same help are described together.
    """

    usage: str
    owner: Owner
    help: str
    take: Take
    write: Write = _write_nothing

    @property
    def name(self) -> str:
        """The option without its value. It ends in `*` if it stands for every name that begins like that."""
        return self.usage.partition("=")[0]


# Help of options that are described together.
_SAME_HERE = "accepted for compatibility, without effect; the kernel's other values are refused"
_WITHOUT_EFFECT = "accepted for compatibility, without effect; a merged directory always has one link"
_IGNORED = "ignored: these are for other programs, see fstab(5)"


def bare(act: Callable[[Draft], None]) -> Take:
    """Take the option only without a value."""

    def take(draft: Draft, word: Word) -> None:
        if word.value is not None:
            raise word.unknown()
        act(draft)

    return take


def switch(name: str, owner: Owner, field: str, help: str, value: bool = True) -> MountOption:
    """A bare word that gives the field this value."""
    return MountOption(
        name,
        owner,
        help,
        take=bare(lambda draft: setattr(draft, field, value)),
        write=lambda draft: [name] if getattr(draft, field) is value else [],
    )


def choice(
    name: str, owner: Owner, field: str, choices: Mapping[str, object], help: str, remedy: str = ""
) -> MountOption:
    """One word of several, each with the value that it gives to the field."""
    remedy = remedy or "the choices are " + " and ".join(f"{name}={choice}" for choice in choices)

    def take(draft: Draft, word: Word) -> None:
        if word.value is None or word.value not in choices:
            raise word.wrong(remedy)
        setattr(draft, field, choices[word.value])

    def write(draft: Draft) -> Iterable[str]:
        return [f"{name}={choice}" for choice, value in choices.items() if value == getattr(draft, field)]

    return MountOption(f"{name}={'|'.join(choices)}", owner, help, take, write)


def value(
    usage: str, owner: Owner, field: str, help: str, read: Callable[[Word], T], show: Callable[[T], str]
) -> MountOption:
    """A value that `read` makes of the word, or raises UsageError. None or () in the field: it was not given."""
    name = usage.partition("=")[0]

    def take(draft: Draft, word: Word) -> None:
        setattr(draft, field, read(word))

    def write(draft: Draft) -> Iterable[str]:
        value = getattr(draft, field)
        return [] if value is None or value == () else [f"{name}={show(value)}"]

    return MountOption(usage, owner, help, take, write)


def same_here(name: str, *choices: str) -> MountOption:
    """A setting of the kernel's overlayfs, with those of its values that change nothing here."""

    def take(draft: Draft, word: Word) -> None:
        if word.value is None or word.value not in choices:
            allowed = ", ".join(f"{name}={choice}" for choice in sorted(choices))
            raise UsageError(f"mount option '{word.text}' is not supported", f"leave it out, or use {allowed}")
        draft.kernel_settings[name] = word.value

    return MountOption(f"{name}={'|'.join(choices)}", Owner.KERNEL, _SAME_HERE, take)


def ignored(usage: str, owner: Owner = Owner.MOUNT) -> MountOption:
    """An option that concerns other programs. A usage with `=` or `*` stands for any form of the word."""
    any_form = usage.endswith("*") or "=" in usage
    return MountOption(usage, owner, _IGNORED, _ignore if any_form else bare(lambda _draft: None))


def _ignore(_draft: Draft, _word: Word) -> None:
    pass


def without_effect(usage: str, remedy: str = "") -> MountOption:
    """An option of fuse-overlayfs, with those of its values that change nothing here; N stands for any number."""
    shape = usage.partition("=")[2]

    def take(_draft: Draft, word: Word) -> None:
        if word.value is None:
            fits = not shape
        elif shape == "N":
            fits = word.value.removeprefix("-").isdecimal()
        else:
            fits = word.value in shape.split("|") and bool(shape)
        if not fits:
            raise word.wrong(remedy or f"use {usage}, or leave it out")

    return MountOption(usage, Owner.FUSE_OVERLAYFS, _WITHOUT_EFFECT, take)
