"""What does each layer say about one path, and which of them wins?

Nothing is walked: each layer is asked about the directories on the way and about the path itself, and the
merge rule (`decide`) about each of these in turn.
"""

from __future__ import annotations

import enum
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from overlayfs_demo import syscalls
from overlayfs_demo.errors import UsageError
from overlayfs_demo.images.member import MemberError, clean_path
from overlayfs_demo.images.model import shown
from overlayfs_demo.images.survey import Thing, as_thing, is_opaque, opened, unreadable
from overlayfs_demo.images.tree import prefixes
from overlayfs_demo.overlay.merge import Says, decide


class Word(enum.Enum):
    """What one layer says about a path; the last three say it of a directory on the way."""

    ABSENT = "nothing"
    FILE = "a file"
    DIRECTORY = "a directory"
    SYMLINK = "a symbolic link"
    SPECIAL = "a device, fifo or socket"
    WHITEOUT = "deleted"
    OPAQUE_DIRECTORY = "a directory that hides all below"
    PARENT_WHITEOUT = "a parent directory is deleted"
    PARENT_OPAQUE = "not in a parent directory that hides all below"
    PARENT_NOT_DIRECTORY = "a parent is no directory here"


@dataclass(frozen=True, slots=True)
class LayerWord:
    """One layer's word. `number` is 1 for the bottom.

    `parent` is the directory that a PARENT_ word is about, else None. `wins`: this layer is (a part of) what is
    seen; of a directory several may be. `hidden_by`: the number of the layer above that makes the word void,
    None if there is none, or the word is that there is nothing.
    """

    number: int
    word: Word
    parent: bytes | None
    wins: bool
    hidden_by: int | None


def layer_words(directories: Sequence[Path], path: str) -> tuple[LayerWord, ...]:
    """What each layer directory, from the bottom to the top, says about `path`, an absolute path of the view.

    Raises UsageError for a path that cannot be one, ImageError when a layer cannot be read.
    """
    try:
        clean = clean_path(path.lstrip("/"))
    except MemberError as error:
        raise UsageError(f"'{shown(path)}' {error.rule}", "write a path as it is seen in the image") from None
    with opened(directories) as layers:
        chains = [_chain(label, fd, clean) for label, fd in layers]
    winners, hidden_by = _contest(chains, clean)
    words = []
    for number, chain in enumerate(chains, start=1):
        word, parent = _word(chain, clean)
        void = hidden_by.get(number) if word is not Word.ABSENT else None
        words.append(LayerWord(number, word, parent, number in winners, void))
    return tuple(words)


# What a layer says about the directories on the way and the path itself, as far as there is something to say.
_Chain = dict[bytes, Thing]


def _chain(label: str, root_fd: int, path: bytes) -> _Chain:
    chain = {}
    for prefix in prefixes(path):
        try:
            fd = syscalls.open_beneath(root_fd, prefix, os.O_PATH | os.O_NOFOLLOW)
            try:
                thing = as_thing(os.fstat(fd))
                if thing.directory and is_opaque(syscalls.fd_path(fd)):
                    thing = thing._replace(says=Says.OPAQUE_DIRECTORY)
            finally:
                os.close(fd)
        except FileNotFoundError:
            break
        except OSError as error:
            raise unreadable(label, prefix, error) from None
        chain[prefix] = thing
        if not thing.directory:
            break
    return chain


def _contest(chains: Sequence[_Chain], path: bytes) -> tuple[set[int], dict[int, int]]:
    """The numbers of the layers that are seen at `path`; and of those that are void, with what hides them."""
    taking_part = list(range(len(chains), 0, -1))  # from the top down, as `decide` wants them
    hidden_by: dict[int, int] = {}
    for prefix in prefixes(path):
        says = [chains[number - 1][prefix].says if prefix in chains[number - 1] else Says.ABSENT
                for number in taking_part]
        verdict = decide(says)
        winners = [taking_part[position] for position in verdict.positions]
        if verdict.decided_by is not None:
            decider = taking_part[verdict.decided_by]
            hidden_by |= dict.fromkeys(taking_part[verdict.decided_by + 1 :], decider)
            if says[verdict.decided_by] is Says.FILE and decider not in winners:
                # A file below directories: it ends the merge, and is itself hidden by the lowest of them.
                hidden_by[decider] = winners[-1]
        taking_part = winners
    return set(taking_part), hidden_by


def _word(chain: _Chain, path: bytes) -> tuple[Word, bytes | None]:
    """One layer's word, and the parent that it is about."""
    if not path:
        return Word.DIRECTORY, None
    if path in chain:
        return _word_of(chain[path]), None
    for prefix, thing in chain.items():
        if not thing.directory:
            return Word.PARENT_WHITEOUT if thing.says is Says.WHITEOUT else Word.PARENT_NOT_DIRECTORY, prefix
    opaque = [prefix for prefix, thing in chain.items() if thing.says is Says.OPAQUE_DIRECTORY]
    return (Word.PARENT_OPAQUE, opaque[-1]) if opaque else (Word.ABSENT, None)


def _word_of(thing: Thing) -> Word:
    if thing.says is Says.FILE:
        return Word.FILE if thing.regular else Word.SYMLINK if stat.S_ISLNK(thing.mode) else Word.SPECIAL
    return {
        Says.WHITEOUT: Word.WHITEOUT, Says.DIRECTORY: Word.DIRECTORY, Says.OPAQUE_DIRECTORY: Word.OPAQUE_DIRECTORY,
    }[thing.says]
