"""What does a line of mount options ask for?

The words are the kernel overlayfs's own and mount(8)'s, with the kernel's escapes: in a value `\\,` is a
comma, and in `lowerdir` `\\:` is a colon inside a path. In `lowerdir+` and `datadir+` any other backslash is part of
the path. Which of several lists of layers counts is the kernel's rule, too (fs/overlayfs/params.c).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from overlayfs_demo.errors import UsageError
from overlayfs_demo.linux import syscalls
from overlayfs_demo.overlay.idmap import IdMap, Ids, Range, parse_ranges
from overlayfs_demo.overlay.stack import Stack
from overlayfs_demo.overlay.whiteout import USER

FRONTS = ("auto", "kernel", "fusepy")

# mount(8)'s words: which flag each sets, or clears.
_SET = {
    "ro": syscalls.MS_RDONLY,
    "nosuid": syscalls.MS_NOSUID,
    "nodev": syscalls.MS_NODEV,
    "noexec": syscalls.MS_NOEXEC,
    "sync": syscalls.MS_SYNCHRONOUS,
    "dirsync": syscalls.MS_DIRSYNC,
    "noatime": syscalls.MS_NOATIME,
    "nodiratime": syscalls.MS_NODIRATIME,
    "relatime": syscalls.MS_RELATIME,
    "strictatime": syscalls.MS_STRICTATIME,
    "lazytime": syscalls.MS_LAZYTIME,
}
_CLEAR = {
    "rw": syscalls.MS_RDONLY,
    "suid": syscalls.MS_NOSUID,
    "dev": syscalls.MS_NODEV,
    "exec": syscalls.MS_NOEXEC,
    "async": syscalls.MS_SYNCHRONOUS,
    "atime": syscalls.MS_NOATIME,
    "diratime": syscalls.MS_NODIRATIME,
    "norelatime": syscalls.MS_RELATIME,
    "nostrictatime": syscalls.MS_STRICTATIME,
    "nolazytime": syscalls.MS_LAZYTIME,
}
# Words of fstab(5) that concern other programs.
_BOOKKEEPING = {
    "defaults",
    "auto",
    "noauto",
    "nofail",
    "_netdev",
    "user",
    "nouser",
    "users",
    "owner",
    "group",
    "default_permissions",
}
# Settings of the kernel's overlayfs that say what is done here anyway.
_ALREADY_SO = {
    "redirect_dir": {"on", "follow"},
    "nfs_export": {"off"},
    "xino": {"on", "off", "auto"},
    "uuid": {"on", "off", "auto", "null"},
    "verity": {"off"},
}
_ID_SETTINGS = ("uidmapping", "gidmapping", "squash_to_uid", "squash_to_gid", "squash_to_root")
# Settings with two choices: the field of Stack, and what each word makes of it.
_CHOICES = {
    "whiteouts": ("image_whiteouts", {"all": True, "kernel": False}),
    "index": ("index", {"on": True, "off": False}),
    "metacopy": ("metacopy", {"on": True, "off": False}),
}
_LIMITS = ("copyup_max", "copyup_warn")
# Powers of 1024, as docker's flags and tmpfs(5) have them.
_SIZE = re.compile(r"(\d+(?:\.\d+)?)([kmgtp]?)(?:i?b)?", re.IGNORECASE)
_BOOLEANS = {"userxattr": "user_xattrs", "volatile": "volatile", "timemachine": "time_machine"}


@dataclass(frozen=True, slots=True)
class MountOptions:
    """The stack to mount, and how. `flags` are MS_* flags of mount(2); `timeout` is in seconds; None: not given."""

    stack: Stack
    front: str = "auto"
    flags: int = 0
    timeout: float | None = None
    allow_other: bool | None = None
    source: str | None = None


@dataclass(slots=True)
class _Draft:
    lowers: list[bytes] = field(default_factory=list)
    data_only: list[bytes] = field(default_factory=list)
    listed: bool = False
    paths: dict[str, bytes] = field(default_factory=dict)
    booleans: dict[str, bool] = field(default_factory=dict)
    other: dict[str, str] = field(default_factory=dict)
    squashes: dict[str, int] = field(default_factory=dict)
    mappings: dict[str, tuple[Range, ...]] = field(default_factory=dict)
    limits: dict[str, int] = field(default_factory=dict)
    flags: int = 0
    allow_other: bool | None = None


def parse(lines: Iterable[str]) -> MountOptions:
    """Read one or more `-o` arguments. Raises UsageError, naming the option."""
    draft = _Draft()
    for line in lines:
        for option in split_escaped(line, ","):
            if option:
                _take(draft, option)
    return _finish(draft)


def remount_flags(lines: Iterable[str], flags: int) -> int | None:
    """The MS_* flags after a `remount`, which begins with `flags`; None if it is none.

    Everything else is left as it is, whatever the words say, as the kernel's overlayfs does: mount(8) repeats
    all that it finds in the list of mounts.
    """
    words = [word for line in lines for word in split_escaped(line, ",")]
    return _changed(words, flags) if "remount" in words else None


def changed_flags(line: str, flags: int) -> int:
    """The MS_* flags that a line of mount(8)'s words, such as `ro,suid`, makes of these. Raises UsageError."""
    words = [word for word in line.split(",") if word]
    for word in words:
        if word not in _SET and word not in _CLEAR:
            raise UsageError(f"mount option '{word}'", "those of mount(8) are meant here: ro, suid, dev, noexec, ...")
    return _changed(words, flags)


def _changed(words: Iterable[str], flags: int) -> int:
    for word in words:
        flags = (flags | _SET.get(word, 0)) & ~_CLEAR.get(word, 0)
    return flags


def split_escaped(text: str, separator: str) -> list[str]:
    """Split at each separator (one character, or twice the same) that no backslash escapes; the escapes stay."""
    parts = [""]
    for token in re.findall(rf"\\.|{re.escape(separator)}|.", text, re.DOTALL):
        if token == separator:
            parts.append("")
        else:
            parts[-1] += token
    return parts


def unescape(text: str) -> bytes:
    """The path that is meant: a backslash makes the next character an ordinary one."""
    return os.fsencode(re.sub(r"\\(.)", r"\1", text, flags=re.DOTALL))


def escape_path(path: bytes) -> str:
    """The inverse, for a path that is to stand in a `lowerdir=` list."""
    return re.sub(r"([\\:,])", r"\\\1", os.fsdecode(path))


def lowerdir_option(directories: Iterable[bytes]) -> str:
    """The mount option that stacks these directories, the topmost first.

    The kernel's overlayfs understands it, too (overlayfs.rst, "Multiple lower layers").
    """
    return "lowerdir=" + ":".join(map(escape_path, directories))


def option_line(options: MountOptions) -> str:
    """The inverse of `parse`: what mounts the same stack in the same way again."""
    stack = options.stack
    words = [lowerdir_option(stack.lowers) + "".join(f"::{escape_path(path)}" for path in stack.data_only)]
    paths = (("upperdir", stack.upper), ("workdir", stack.work))
    words += [f"{name}={escape_path(path)}" for name, path in paths if path is not None]
    words += [word for word, setting in _BOOLEANS.items() if getattr(stack, setting)]
    for name, (setting, choices) in _CHOICES.items():
        words += [f"{name}={word}" for word, value in choices.items() if value == getattr(stack, setting)]
    words += [f"{name}={getattr(stack, name)}" for name in _LIMITS if getattr(stack, name) is not None]
    for kind, ids in (("uid", stack.ids.users), ("gid", stack.ids.groups)):
        if ids.ranges:
            words.append(f"{kind}mapping={':'.join(str(number) for one in ids.ranges for number in one)}")
        if ids.squash is not None:
            words.append(f"squash_to_{kind}={ids.squash}")
    words += [word for word, flag in _SET.items() if options.flags & flag]
    words.append(f"front={options.front}")
    if options.timeout is not None:
        words.append(f"timeout={options.timeout:.30f}")
    if options.allow_other is not None:
        words.append("allow_other" if options.allow_other else "noallow_other")
    if options.source is not None:
        words.append(f"fsname={escape_path(os.fsencode(options.source))}")
    return ",".join(words)


def _take(draft: _Draft, option: str) -> None:
    name, equals, value = option.partition("=")
    if option in _SET:
        draft.flags |= _SET[option]
    elif option in _CLEAR:
        draft.flags &= ~_CLEAR[option]
    elif option in _BOOKKEEPING or name.startswith(("x-", "X-")) or name == "comment":
        return
    elif option in _BOOLEANS:
        draft.booleans[_BOOLEANS[option]] = True
    elif name == "lowerdir" and equals:
        _take_lowers(draft, value)
    elif name in _LIMITS:
        draft.limits[name] = _bytes(option, value)
    elif name in ("lowerdir+", "datadir+", "upperdir", "workdir") and equals:
        if not value:
            raise UsageError(f"{option} has an empty path", "name a directory")
        if name.endswith("+"):
            _add_layer(draft, option, name, value)
        else:
            draft.paths[name] = unescape(value)
    else:
        _take_setting(draft, option, name, value)


def _take_setting(draft: _Draft, option: str, name: str, value: str) -> None:
    if name in _ALREADY_SO:
        if value not in _ALREADY_SO[name]:
            allowed = ", ".join(f"{name}={word}" for word in sorted(_ALREADY_SO[name]))
            raise UsageError(f"mount option '{option}' is not supported", f"leave it out, or use {allowed}")
        draft.other[name] = value
    elif name in _CHOICES:
        setting, choices = _CHOICES[name]
        if value not in choices:
            allowed = " and ".join(f"{name}={word}" for word in choices)
            raise UsageError(f"mount option '{option}'", f"the choices are {allowed}")
        draft.booleans[setting] = choices[value]
    elif name == "front":
        if value not in FRONTS:
            raise UsageError(f"mount option '{option}'", f"the fronts are {', '.join(FRONTS)}")
        draft.other["front"] = value
    elif name == "timeout":
        if not re.fullmatch(r"\d+(\.\d+)?", value):
            raise UsageError(f"mount option '{option}'", "timeout= takes seconds, such as timeout=1.5")
        draft.other["timeout"] = value
    elif name in _ID_SETTINGS:
        _take_ids(draft, option, name, value)
    elif name == "fsname":
        draft.other[name] = os.fsdecode(unescape(value))
    elif option in ("allow_other", "noallow_other"):
        draft.allow_other = option == "allow_other"
    else:
        raise UsageError(f"unknown mount option '{option}'", "see 'overlayfs-demo mount --help'")


def _bytes(option: str, value: str) -> int:
    match = _SIZE.fullmatch(value)
    if match is None:
        raise UsageError(f"mount option '{option}'", "the value is a size, such as 4096, 10M or 1.5G (of 1024s)")
    return int(float(match[1]) * 1024 ** ("", *"kmgtp").index(match[2].lower()))


def _take_ids(draft: _Draft, option: str, name: str, value: str) -> None:
    """fuse-overlayfs's options that say who owns the files in the view."""
    try:
        if name == "squash_to_root" and option == name:
            draft.squashes.update(dict.fromkeys(("root_uid", "root_gid"), 0))
        elif name in ("uidmapping", "gidmapping"):
            draft.mappings[name] = parse_ranges(value)
        elif name == "squash_to_root":
            raise ValueError("it takes no value")
        elif value.isascii() and value.isdigit() and int(value) < 2**32 - 1:
            draft.squashes[name.removeprefix("squash_to_")] = int(value)
        else:
            raise ValueError("the value is an id")
    except ValueError as error:
        raise UsageError(f"mount option '{option}'", str(error)) from None


def _ids(draft: _Draft) -> Ids:
    """A single id to squash to is stronger than squash_to_root, wherever it stands."""
    squashes, mappings = draft.squashes, draft.mappings
    return Ids(
        IdMap(mappings.get("uidmapping", ()), squashes.get("uid", squashes.get("root_uid"))),
        IdMap(mappings.get("gidmapping", ()), squashes.get("gid", squashes.get("root_gid"))),
    )


def _take_lowers(draft: _Draft, value: str) -> None:
    """Layers are separated by one colon, and data-only ones, which come last, are preceded by two.

    The list takes the place of all layers named before it; an empty one leaves none.
    """
    before_data, *data = split_escaped(value, "::")
    layers = split_escaped(before_data, ":")
    if value and ("" in layers + data or any(len(split_escaped(path, ":")) > 1 for path in data)):
        raise UsageError(
            f"lowerdir={value} has an empty path, or a layer after a data-only one",
            r"separate layers by one colon, put :: before each data-only layer, write \: for a colon in a path",
        )
    draft.lowers = [unescape(path) for path in layers if path]
    draft.data_only = [unescape(path) for path in data]
    draft.listed = bool(value)


def _add_layer(draft: _Draft, option: str, name: str, value: str) -> None:
    """One more layer below those that `lowerdir+` and `datadir+` named before."""
    if draft.listed:
        raise UsageError(
            f"{option} follows lowerdir=, which names all layers at once",
            "put all layers into lowerdir=, or name each with lowerdir+= and datadir+=",
        )
    if name == "lowerdir+" and draft.data_only:
        raise UsageError(f"{option} follows a data-only layer", "put every datadir+= behind the last lowerdir+=")
    (draft.lowers if name == "lowerdir+" else draft.data_only).append(os.fsencode(value.replace(r"\,", ",")))


def _finish(draft: _Draft) -> MountOptions:
    if not draft.lowers:
        raise UsageError("no lowerdir= given", "name the layers, topmost first: -o lowerdir=TOP:...:BOTTOM")
    upper, work = draft.paths.get("upperdir"), draft.paths.get("workdir")
    if upper is not None and work is None:
        raise UsageError("upperdir= needs workdir=", "name an empty directory on the upper's filesystem")
    if work is not None and upper is None:
        raise UsageError("workdir= without upperdir=", "leave it out for a read-only view, or add upperdir=")
    stack = Stack(tuple(draft.lowers), upper, work, data_only=tuple(draft.data_only), ids=_ids(draft))
    for name, value in draft.booleans.items():
        stack = replace(stack, **{name: value})  # type: ignore[arg-type]  # the names are fields of Stack
    stack = replace(stack, copyup_max=draft.limits.get("copyup_max"), copyup_warn=draft.limits.get("copyup_warn"))
    if stack.user_xattrs and not USER.follows and "redirect_dir" in draft.other:
        raise UsageError(
            f"redirect_dir={draft.other['redirect_dir']} cannot be had by root with 'userxattr'",
            "leave it out, or leave out 'userxattr'",
        )
    options = MountOptions(stack, flags=draft.flags, source=draft.other.get("fsname"))
    if "front" in draft.other:
        options = replace(options, front=draft.other["front"])
    if "timeout" in draft.other:
        options = replace(options, timeout=float(draft.other["timeout"]))
    return replace(options, allow_other=draft.allow_other)
