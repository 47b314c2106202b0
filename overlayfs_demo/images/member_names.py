"""The names of a layer's members, and which of them no file can have.

pax(1), "ustar Interchange Format"; image-spec, layer.md, "File Attributes".
"""

from __future__ import annotations

from collections.abc import Sequence

from overlayfs_demo.images.layer_tree import LONGEST_PATH

REBUILD = "build the image again"


class MemberError(Exception):
    """A member breaks a rule. The text is the rest of a sentence that begins with the member's name."""

    def __init__(self, rule: str, remedy: str = REBUILD) -> None:
        super().__init__(rule)
        self.rule = rule
        self.remedy = remedy


def member_path(name: str, verb: str = "") -> bytes:
    """Return a member's name, or a hard link's target, as a relative path without `.` and `..`; b"" is the root.

    Every name starts at the layer's root: a leading `/` is dropped, and `..` removes the part before it and stops at
    the root, as in Docker (moby, pkg/archive: filepath.Clean, then Join). Symbolic links play no part in this, see
    `LayerTree.locate`. Raises MemberError, its rule begun with `verb`, if no file can have the name.
    """
    parts = _parts(name)
    if b".." in parts:
        folded: list[bytes] = []
        for part in parts:
            if part != b"..":
                folded.append(part)
            elif folded:
                folded.pop()
        parts = folded
    return _joined(parts, verb)


def clean_path(name: str) -> bytes:
    """Return a path that a person gives, relative to the root of a view, without `.`; b"" is the root.

    Raises MemberError if no file can have the path, or if it has a `..`, which may mean another place after a symbolic
    link.
    """
    parts = _parts(name)
    if b".." in parts:
        raise MemberError("leaves the layer through '..'")
    return _joined(parts, "")


def _parts(name: str) -> list[bytes]:
    raw = name.encode("utf-8", "surrogateescape")
    return [part for part in raw.split(b"/") if part and part != b"."]


def _joined(parts: Sequence[bytes], verb: str) -> bytes:
    path = b"/".join(parts)
    if len(path) > LONGEST_PATH or b"\0" in path:
        raise MemberError(f"{verb}is not a valid file name")
    return path
