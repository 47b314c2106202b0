"""The table of mount options: how each is read, written and described.

Parsing, `option_line`, `mount --help` and the manual page are all made from OPTIONS. The options are those of the
kernel's overlayfs (overlayfs.rst, fs/overlayfs/params.c), mount(8), mount.fuse(8) and fuse-overlayfs(1), and our own.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

from overlayfs_demo.errors import UsageError
from overlayfs_demo.linux.mount_flags import MOUNT_FLAGS, changed
from overlayfs_demo.mounts import option_kinds as kinds
from overlayfs_demo.mounts import option_values as values
from overlayfs_demo.mounts.option_draft import Draft, Word
from overlayfs_demo.mounts.option_kinds import MountOption, Owner
from overlayfs_demo.mounts.option_paths import escape_path, lowerdir_option

FRONTS = ("auto", "kernel", "fusepy")


def _flag_options() -> Iterator[MountOption]:
    """For each flag of mount(2) the word that sets it, and the one that clears it."""
    for flag in MOUNT_FLAGS:
        yield _flag_option(flag.word, sets=flag.bit)
        if flag.opposite:
            yield _flag_option(flag.opposite, sets=0)


def _flag_option(word: str, sets: int) -> MountOption:
    def act(draft: Draft) -> None:
        draft.flags = changed(draft.flags, [word])

    # No word is needed for a flag that is not set: a line begins with none.
    return MountOption(word, Owner.MOUNT, _FLAGS, kinds.bare(act), lambda draft: [word] if draft.flags & sets else [])


# --- layers, and options that share a field --------------------------------------------------------


def _take_lowers(draft: Draft, word: Word) -> None:
    """The list takes the place of all layers named before it; an empty one leaves none."""
    if word.value is None:
        raise word.unknown()
    draft.lowers, draft.data_only = values.layers(word.value)
    draft.layers_listed = bool(word.value)


def _write_lowers(draft: Draft) -> Iterable[str]:
    yield lowerdir_option(draft.lowers) + "".join(f"::{escape_path(path)}" for path in draft.data_only)


def _add_lower(draft: Draft, word: Word) -> None:
    """One more layer below those named before."""
    path = _next_layer(draft, word)
    if draft.data_only:
        raise UsageError(f"{word.text} follows a data-only layer", "put every datadir+= after the last lowerdir+=")
    draft.lowers += (path,)


def _add_data_only(draft: Draft, word: Word) -> None:
    draft.data_only += (_next_layer(draft, word),)


def _next_layer(draft: Draft, word: Word) -> bytes:
    path = values.nonempty(word)
    if draft.layers_listed:
        raise UsageError(
            f"{word.text} follows lowerdir=, which names all layers at once",
            "put all layers into lowerdir=, or name each with lowerdir+= and datadir+=",
        )
    # Unlike in a list, a colon separates nothing here, so only the comma has an escape.
    return os.fsencode(path.replace(r"\,", ","))


def _squash_to_root(draft: Draft, word: Word) -> None:
    if word.value is not None:
        raise word.wrong("it takes no value")
    draft.squash_root = True


def _take_remount(_draft: Draft, word: Word) -> None:
    """A remount reads its words otherwise, see `remount_flags`; where something is mounted it is out of place."""
    raise word.unknown()


# --- the table -------------------------------------------------------------------------------------

# Help of options that are described together.
_ADDED = (
    "instead of lowerdir=: add one more layer below, or one that only provides data; only a comma needs a backslash"
)
_UPPER = "where changes go, both on one filesystem; without them the view is read-only and every write fails with EROFS"
_MAPPING = "map owners on disk to owners in the view"
_SQUASH = "show all files as owned by one user or group"
_FLAGS = "as in mount(8)"

# In the order of the help. `option_line` writes its words in this order, too.
OPTIONS = (
    MountOption(
        "lowerdir=TOP:...:BOTTOM",
        Owner.KERNEL,
        r"the read-only layers (a colon in a path is written '\:')",
        _take_lowers,
        _write_lowers,
    ),
    MountOption(
        "lowerdir=...::DATA", Owner.KERNEL, "a layer that only provides data for metacopies above it", _take_lowers
    ),
    MountOption("lowerdir+=", Owner.KERNEL, _ADDED, _add_lower),
    MountOption("datadir+=PATH", Owner.KERNEL, _ADDED, _add_data_only),
    kinds.value("upperdir=DIR", Owner.KERNEL, "upper", _UPPER, values.path, escape_path),
    kinds.value("workdir=DIR", Owner.KERNEL, "work", _UPPER, values.path, escape_path),
    kinds.switch(
        "userxattr", Owner.KERNEL, "user_xattrs", "keep the overlay's marks in user.* attributes (no root needed)"
    ),
    kinds.switch(
        "volatile",
        Owner.KERNEL,
        "volatile",
        "never wait for data to reach the disk; this marks the upper, "
        "and it cannot be mounted again until the mark is removed",
    ),
    kinds.choice(
        "whiteouts",
        Owner.OURS,
        "image_whiteouts",
        {"all": True, "kernel": False},
        "also understand the image format's .wh. files in lowers (the default), or only the kernel's whiteouts",
    ),
    kinds.choice(
        "index",
        Owner.KERNEL,
        "index",
        {"on": True, "off": False},
        "keep the names of a hard-linked lower file together when it is copied up (the default), or not",
    ),
    kinds.choice(
        "metacopy",
        Owner.KERNEL,
        "metacopy",
        {"on": True, "off": False},
        "copy up only metadata on chmod, chown and so on, or also the "
        "data (the default); existing metacopies are always read, "
        "except by root with userxattr",
    ),
    kinds.same_here("redirect_dir", "on", "follow"),
    kinds.same_here("nfs_export", "off"),
    kinds.same_here("xino", "on", "off", "auto"),
    kinds.same_here("uuid", "on", "off", "auto", "null"),
    kinds.same_here("verity", "off"),
    kinds.switch(
        "timemachine",
        Owner.OURS,
        "time_machine",
        "add a hidden directory .layers that shows each layer N "
        "alone (N/only), with those below it (N/upto), and what it "
        "hides (N/hidden); 'ls' and 'find' do not list it",
    ),
    kinds.value(
        "copyup_max=SIZE",
        Owner.OURS,
        "copyup_max",
        'refuse to copy up more data than this (EDQUOT, "Disk quota '
        'exceeded"); SIZE is in bytes, or 10M, 1.5G (powers of 1024)',
        values.size,
        str,
    ),
    kinds.value(
        "copyup_warn=SIZE",
        Owner.OURS,
        "copyup_warn",
        "warn about copying up more data than this, in the log and in watch",
        values.size,
        str,
    ),
    kinds.value(
        "timeout=SECONDS",
        Owner.OURS,
        "timeout",
        "how long the kernel may cache names and attributes; without "
        "it, the layers are watched and changes show at once",
        values.seconds,
        "{:.30f}".format,
    ),
    kinds.choice(
        "passthrough",
        Owner.OURS,
        "passthrough",
        {"on": True, "off": False},
        "let the kernel read and write files of the upper by itself (the default for root since Linux 6.9), or "
        "ask the daemon for their data",
    ),
    kinds.choice(
        "polling",
        Owner.OURS,
        "polling",
        {"on": True, "off": False},
        "while requests come closely, look for the next one for 40 microseconds before sleeping (the default), or "
        "always sleep at once",
    ),
    kinds.value("uidmapping=", Owner.FUSE_OVERLAYFS, "uid_ranges", _MAPPING, values.ranges, values.show_ranges),
    kinds.value(
        "gidmapping=DISK:VIEW:LENGTH[:DISK:VIEW:LENGTH...]",
        Owner.FUSE_OVERLAYFS,
        "gid_ranges",
        _MAPPING,
        values.ranges,
        values.show_ranges,
    ),
    MountOption("squash_to_root", Owner.FUSE_OVERLAYFS, _SQUASH, _squash_to_root),
    kinds.value("squash_to_uid=ID", Owner.FUSE_OVERLAYFS, "squash_uid", _SQUASH, values.identity, str),
    kinds.value("squash_to_gid=ID", Owner.FUSE_OVERLAYFS, "squash_gid", _SQUASH, values.identity, str),
    *map(kinds.without_effect, ("static_nlink", "clone_fd", "max_idle_threads=N", "max_threads=N", "threaded=0|1")),
    kinds.without_effect("fsync=1", "use 'volatile' instead of fsync=0"),
    kinds.without_effect(
        "xattr_permissions=0",
        "the kernel would check access by modes that the files do not have: leave it out, and force_mask in "
        "containers-storage.conf(5), which asks for it",
    ),
    kinds.choice(
        "front",
        Owner.OURS,
        "front",
        {front: front for front in FRONTS},
        "as --front",
        f"the fronts are {', '.join(FRONTS)}",
    ),
    kinds.value("fsname=NAME", Owner.FUSE, "source", "", values.text, values.escape_text),
    kinds.switch("allow_other", Owner.FUSE, "allow_other", ""),
    kinds.switch("noallow_other", Owner.OURS, "allow_other", "", value=False),
    *_flag_options(),
    MountOption("remount", Owner.MOUNT, "change these flags on a mounted view", _take_remount),
    *map(
        kinds.ignored, ("defaults", "auto", "noauto", "nofail", "_netdev", "user", "nouser", "users", "owner", "group")
    ),
    kinds.ignored("default_permissions", Owner.KERNEL),
    *map(kinds.ignored, ("comment=TEXT", "x-*", "X-*")),
)

_BY_NAME = {option.name: option for option in OPTIONS}


def find(word: Word) -> MountOption | None:
    """The option that a word names; None if there is none."""
    is_private = word.name.startswith(("x-", "X-"))
    return _BY_NAME.get(f"{word.name[:2]}*" if is_private else word.name)
