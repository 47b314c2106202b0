"""Options of fuse-overlayfs(1) that are refused, each with the reason and the remedy."""

from __future__ import annotations

from overlayfs_demo.errors import UsageError
from overlayfs_demo.mounts.option_draft import Word
from overlayfs_demo.named_tuple import NamedTuple


class _Refusal(NamedTuple):
    why: str
    remedy: str


_REFUSED = {
    "noacl": _Refusal("access control lists are part of every view", "leave it out, and set no such lists"),
    "context": _Refusal(
        "a view has no SELinux label of its own", "leave it out; podman does with --security-opt label=disable"
    ),
    "allow_root": _Refusal("a view is for you alone or for everybody", "use allow_other, or leave it out"),
    "auto_unmount": _Refusal("if the daemon dies, its supervisor starts another", "leave it out"),
    "plugins": _Refusal("it names plugins of fuse-overlayfs", "leave it out, or mount with fuse-overlayfs"),
}


def refusal(word: Word) -> UsageError:
    """The error for an option that the table of options does not have."""
    refused = _REFUSED.get(word.name)
    if refused is None:
        return word.unknown()
    return UsageError(f"mount option '{word.name}' is not supported: {refused.why}", refused.remedy)
