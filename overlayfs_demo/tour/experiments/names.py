"""Experiments with names that are removed, made again, moved and linked."""

from __future__ import annotations

from overlayfs_demo.tour import checks
from overlayfs_demo.tour.building import HardLink, Symlink, big
from overlayfs_demo.tour.experiment import Experiment, Refused

EXPERIMENTS = (
    Experiment(
        name="delete",
        summary="deleting leaves a whiteout",
        question="""You delete motd. It is in the lower, which must not change. How can it disappear from
            merged?""",
        layers={"lower": {"motd": "hello\n", "notes": "still here\n"}},
        do=("rm merged/motd", Refused("cat merged/motd")),
        checks=(
            checks.whiteout("upper/motd"),
            checks.text("lower/motd", "hello\n"),
            checks.absent("merged/motd"),
            checks.printed("No such file"),
        ),
        explained="""The upper now has a whiteout: a character device with the number 0/0, which hides the name in all
            layers below. The file itself is still in the lower, so deleting it frees no space.""",
    ),
    Experiment(
        name="re-create",
        summary="a new file replaces the whiteout",
        question="""You delete motd and then create a new file with that name. Will the whiteout stay? Will the old text
            come back?""",
        layers={"lower": {"motd": "the old text\n"}},
        do=("rm merged/motd", "echo 'the new text' > merged/motd", "cat merged/motd"),
        checks=(
            checks.text("upper/motd", "the new text\n"),
            checks.exactly("upper", "motd"),
            checks.printed("the new text"),
        ),
        explained="""The new file replaces the whiteout in one step. A file hides everything below it, so
            nothing else is needed.""",
    ),
    Experiment(
        name="remove-directory",
        summary="a directory that is created again is opaque",
        question="""You remove the directory docs with all its files, and create a new one with that name. The lower
            still has docs with two files. What keeps them from showing through?""",
        layers={"lower": {"docs/one": "1\n", "docs/two": "2\n"}},
        do=("rm -r merged/docs", "mkdir merged/docs", "echo 3 > merged/docs/three", "ls merged/docs"),
        checks=(
            checks.opaque("upper/docs"),
            checks.exactly("merged", "docs", "docs/three"),
            checks.absent("upper/docs/one"),
        ),
        explained="""Directories with the same name are merged, so the new one is marked opaque: nothing below it shows
            through. One mark covers all its names, so it needs no whiteouts inside.""",
    ),
    Experiment(
        name="rename-file",
        summary="renaming a file copies it up and leaves a whiteout",
        question="""You rename a file of the lower. On an ordinary filesystem only a name would change. What will the
            upper have?""",
        layers={"lower": {"old": big(100_000)}},
        do=("mv merged/old merged/new",),
        checks=(checks.same("lower/old", "upper/new"), checks.whiteout("upper/old"), checks.exactly("merged", "new")),
        explained="""The whole file is copied up and gets its new name there, and a whiteout hides the old name. So
            moving a big file of an image costs its size again.""",
    ),
    Experiment(
        name="rename-directory",
        summary="renaming a directory leaves a redirect",
        question="""You rename a directory with a big file in it. Must all its files be copied up?""",
        layers={"lower": {"docs/big": big(1_000_000), "docs/small": "little\n"}},
        redirects=True,
        do=("mv merged/docs merged/papers", "ls merged/papers"),
        checks=(
            checks.redirect("upper/papers", "docs"),
            checks.whiteout("upper/docs"),
            checks.exactly("upper", "docs", "papers"),
            checks.same("lower/docs/big", "merged/papers/big"),
        ),
        explained="""Only the directory itself is created in the upper, with the mark redirect, which names the
            directory below. With the option userxattr, anyone who owns a directory can set such marks. So when root
            mounts with userxattr, redirects are not followed and directories of a lower cannot be renamed.""",
    ),
    Experiment(
        name="hard-link",
        summary="two names of one file stay together",
        question="""one and far/off/two are hard links: two names of one file. You write to the file one. What will you
            read from far/off/two?""",
        # The names are in different directories. If the kernel already knew both, it would not say which one was used.
        layers={"lower": {"one": "before\n", "far/off/two": HardLink("one")}},
        do=("echo after >> merged/one", "cat merged/far/off/two"),
        checks=(
            checks.printed("before\nafter"),
            checks.one_file("merged/one", "merged/far/off/two"),
            checks.exactly("upper", "one"),
            checks.text("lower/far/off/two", "before\n"),
        ),
        explained="""The copy is also recorded in an index in the work directory, so the other name leads to it, and
            both stay one file. With index=off, the default of the kernel's overlayfs, they would become two files.""",
    ),
    Experiment(
        name="symlink",
        summary="writing through a symbolic link changes its target",
        question="""current is a symbolic link to version-1. You write to current. Which of the two will be copied
            up?""",
        layers={"lower": {"current": Symlink("version-1"), "version-1": "one\n"}},
        do=("echo 'one and a half' > merged/current",),
        checks=(
            checks.text("upper/version-1", "one and a half\n"),
            checks.exactly("upper", "version-1"),
            checks.symlink("merged/current", "version-1"),
        ),
        explained="""The link only names another file, and is not written itself. The file it leads to in merged is
            copied up; the link stays in the lower.""",
    ),
)
