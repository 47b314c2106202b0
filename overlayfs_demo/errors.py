"""The errors that the command line reports, and the one way to escape a name, and to guess one, for people.

Inside the engine every failure is an `OSError` with the errno that the kernel would return. The command line
reports an `OverlayError`: it names the thing (a layer, an archive member, an option), the rule it broke, and
what to do about it.
"""

from __future__ import annotations

from collections.abc import Iterable


def printable(text: bytes | str, keep: str = "") -> str:
    r"""A name or other text as one line, whatever bytes or characters it holds; characters of `keep` stay.

    A byte that is not UTF-8 becomes `\xff`, also if it comes as a surrogate (PEP 383). A character that is not
    printable (controls, marks that turn the direction of writing, blanks other than the space) becomes `\n`, `\x1b`
    or `\u202e`. A backslash stays as it is, as in Docker's columns.
    """
    characters = text.decode("utf-8", "surrogateescape") if isinstance(text, bytes) else text
    if characters.isprintable():
        return characters
    return "".join(char if char.isprintable() or char in keep else _escaped(char) for char in characters)


def _escaped(char: str) -> str:
    code = ord(char)
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    # Python writes U+0085 as \x85, which here is the byte.
    return f"\\u{code:04x}" if 0x80 <= code <= 0xFF else ascii(char)[1:-1]


def near(word: str, words: Iterable[str], most: int = 1) -> list[str]:
    """Return those of the words that a mistyped one may have meant, the likeliest first."""
    import difflib  # Only a mistake needs it.

    return difflib.get_close_matches(word, list(words), most)


class OverlayError(Exception):
    """A failure that a person can act on. `str()` is one line for stderr, without a traceback.

    `exit_code` is the process's exit status; 1 means that something could not be done.
    """

    exit_code = 1

    def __init__(self, problem: str, remedy: str = "") -> None:
        super().__init__(f"{problem}: {remedy}" if remedy else problem)
        self.problem = problem
        self.remedy = remedy


class UsageError(OverlayError):
    """The command line itself is wrong. Exit status 2, as in programs that use argparse or getopt(3)."""

    exit_code = 2


class ImageError(OverlayError):
    """An archive is not a valid image, or one of its layers cannot be unpacked exactly."""


class MountError(OverlayError):
    """A mount cannot be made, found or removed."""


class RegistryError(OverlayError):
    """A registry cannot be reached, refuses a request, or sends what it must not send."""
