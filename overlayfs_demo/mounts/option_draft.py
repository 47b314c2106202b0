"""The values of an option line: while it is read, and when it is complete."""

from __future__ import annotations

from overlayfs_demo.errors import UsageError
from overlayfs_demo.named_tuple import NamedTuple
from overlayfs_demo.overlay.idmap import IdMap, Ids
from overlayfs_demo.overlay.stack import Stack
from overlayfs_demo.overlay.whiteout import USER


class MountOptions(NamedTuple):
    """The stack to mount, and how. `flags` are MS_* flags of mount(2); `timeout` is in seconds; None: not given."""

    stack: Stack
    front: str = "auto"
    flags: int = 0
    timeout: float | None = None
    allow_other: bool | None = None
    source: str | None = None
    passthrough: bool = True
    polling: bool = True


class Word(NamedTuple):
    """One option as it stands in a line, such as `index=on`. `value` is None if there is no `=`."""

    text: str
    name: str
    value: str | None

    @classmethod
    def of(cls, text: str) -> Word:
        """Split the option at its first `=`."""
        name, equals, value = text.partition("=")
        return cls(text, name, value if equals else None)

    def unknown(self) -> UsageError:
        """The error for an option that does not exist in this form."""
        return UsageError(f"unknown mount option '{self.text}'", "see 'overlayfs-demo mount --help'")

    def wrong(self, remedy: str) -> UsageError:
        """The error for an option with a value that it cannot take."""
        return UsageError(f"mount option '{self.text}'", remedy)


class Draft:
    """All values of an option line, side by side: what `MountOption` reads into and writes from.

    Most are those of Stack, IdMap and MountOptions, which say what they mean.
    """

    def __init__(self, options: MountOptions) -> None:
        """Begin with the values of complete options: the inverse of `finish`."""
        stack = options.stack
        users, groups = stack.ids.users, stack.ids.groups
        self.lowers = stack.lowers
        self.data_only = stack.data_only
        self.upper = stack.upper
        self.work = stack.work
        self.user_xattrs = stack.user_xattrs
        self.volatile = stack.volatile
        self.image_whiteouts = stack.image_whiteouts
        self.index = stack.index
        self.metacopy = stack.metacopy
        self.time_machine = stack.time_machine
        self.copyup_max = stack.copyup_max
        self.copyup_warn = stack.copyup_warn
        self.uid_ranges = users.ranges
        self.gid_ranges = groups.ranges
        self.squash_uid = users.squash
        self.squash_gid = groups.squash
        self.front = options.front
        self.flags = options.flags
        self.timeout = options.timeout
        self.allow_other = options.allow_other
        self.source = options.source
        self.passthrough = options.passthrough
        self.polling = options.polling
        # These only matter while a line is read: whether one lowerdir= named all layers, whether squash_to_root was
        # there, and the settings of the kernel's overlayfs that change nothing here, by their names.
        self.layers_listed = False
        self.squash_root = False
        self.kernel_settings: dict[str, str] = {}

    @classmethod
    def empty(cls) -> Draft:
        """What holds before the first option."""
        return cls(MountOptions(Stack(())))

    def finish(self) -> MountOptions:
        """The options that the words make together. Raises UsageError if they contradict each other."""
        self._check()
        stack = Stack(
            self.lowers,
            self.upper,
            self.work,
            user_xattrs=self.user_xattrs,
            image_whiteouts=self.image_whiteouts,
            volatile=self.volatile,
            index=self.index,
            metacopy=self.metacopy,
            data_only=self.data_only,
            ids=self._ids(),
            time_machine=self.time_machine,
            copyup_max=self.copyup_max,
            copyup_warn=self.copyup_warn,
        )
        return MountOptions(
            stack, self.front, self.flags, self.timeout, self.allow_other, self.source, self.passthrough, self.polling
        )

    def _check(self) -> None:
        if not self.lowers:
            raise UsageError("no lowerdir= given", "name the layers, topmost first: -o lowerdir=TOP:...:BOTTOM")
        if self.upper is not None and self.work is None:
            raise UsageError("upperdir= needs workdir=", "name an empty directory on the upper's filesystem")
        if self.work is not None and self.upper is None:
            raise UsageError("workdir= without upperdir=", "leave it out for a read-only view, or add upperdir=")
        # The kernel refuses the same (ovl_fs_params_verify): root must not follow what a file's owner can forge.
        redirect_dir = self.kernel_settings.get("redirect_dir")
        if self.user_xattrs and not USER.follows and redirect_dir is not None:
            raise UsageError(
                f"root cannot use redirect_dir={redirect_dir} with 'userxattr'",
                "leave it out, or leave out 'userxattr'",
            )

    def _ids(self) -> Ids:
        """A single id to squash to is stronger than squash_to_root, wherever it stands in the line."""
        root = 0 if self.squash_root else None
        return Ids(
            IdMap(self.uid_ranges, root if self.squash_uid is None else self.squash_uid),
            IdMap(self.gid_ranges, root if self.squash_gid is None else self.squash_gid),
        )
