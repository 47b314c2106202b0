"""Experiments with names that are removed, made again, moved and linked."""

from __future__ import annotations

from overlayfs_demo.tour import checks
from overlayfs_demo.tour.building import HardLink, Symlink, big
from overlayfs_demo.tour.experiment import Experiment, Refused

EXPERIMENTS = (
    Experiment(
        name="delete",
        summary="deleting leaves a whiteout",
        question="""You delete motd. It lies in the lower, which must not change: how can it be gone in merged?""",
        layers={"lower": {"motd": "hello\n", "notes": "still here\n"}},
        do=("rm merged/motd", Refused("cat merged/motd")),
        checks=(
            checks.whiteout("upper/motd"),
            checks.text("lower/motd", "hello\n"),
            checks.absent("merged/motd"),
            checks.printed("No such file"),
        ),
        explained="""The upper now has a whiteout, a character device with the number 0/0, which hides the name in all
            layers below. The file itself is still there, so deleting frees no space.""",
    ),
    Experiment(
        name="re-create",
        summary="a new file takes the place of the whiteout",
        question="""You delete motd and then make a new file of that name. Will the whiteout stay? Will the old text
            come back?""",
        layers={"lower": {"motd": "the old text\n"}},
        do=("rm merged/motd", "echo 'the new text' > merged/motd", "cat merged/motd"),
        checks=(
            checks.text("upper/motd", "the new text\n"),
            checks.exactly("upper", "motd"),
            checks.printed("the new text"),
        ),
        explained="""The new file replaces the whiteout in one step. A file hides what is below it all by itself, so
            nothing else is needed.""",
    ),
    Experiment(
        name="remove-directory",
        summary="a directory that is made anew is opaque",
        question="""You remove the directory docs with all that is in it, and make a new one of that name. The lower
            still has docs with two files: what keeps them from showing through?""",
        layers={"lower": {"docs/one": "1\n", "docs/two": "2\n"}},
        do=("rm -r merged/docs", "mkdir merged/docs", "echo 3 > merged/docs/three", "ls merged/docs"),
        checks=(
            checks.opaque("upper/docs"),
            checks.exactly("merged", "docs", "docs/three"),
            checks.absent("upper/docs/one"),
        ),
        explained="""Directories of the same name are merged, so the new one is marked opaque: nothing below it shows
            through. One mark does for all its names, and no whiteouts are needed in it.""",
    ),
    Experiment(
        name="rename-file",
        summary="renaming a file copies it up and leaves a whiteout",
        question="""You rename a file of the lower. Elsewhere only a name would change: what will the upper have
            here?""",
        layers={"lower": {"old": big(100_000)}},
        do=("mv merged/old merged/new",),
        checks=(checks.same("lower/old", "upper/new"), checks.whiteout("upper/old"), checks.exactly("merged", "new")),
        explained="""The whole file is copied up, gets its new name there, and a whiteout hides the old one. Moving a
            big file of an image therefore costs its size again.""",
    ),
    Experiment(
        name="rename-directory",
        summary="renaming a directory leaves a redirect",
        question="""You rename a directory with a big file in it. Must all that is in it be copied up now?""",
        layers={"lower": {"docs/big": big(1_000_000), "docs/small": "little\n"}},
        redirects=True,
        do=("mv merged/docs merged/papers", "ls merged/papers"),
        checks=(
            checks.redirect("upper/papers", "docs"),
            checks.whiteout("upper/docs"),
            checks.exactly("upper", "docs", "papers"),
            checks.same("lower/docs/big", "merged/papers/big"),
        ),
        explained="""Only the directory itself is made in the upper, with the mark redirect, which says what it is
            called below. With the option userxattr whoever owns a directory can set such marks, so where root mounts
            with it none are followed, and no directory of a lower can be renamed.""",
    ),
    Experiment(
        name="hard-link",
        summary="two names of one file stay together",
        question="""one and far/off/two are hard links: two names of one file. You write through the name one. What
            will you read under the other?""",
        # The names are in different directories. If the kernel already knew both, it would not say which one was used.
        layers={"lower": {"one": "before\n", "far/off/two": HardLink("one")}},
        do=("echo after >> merged/one", "cat merged/far/off/two"),
        checks=(
            checks.printed("before\nafter"),
            checks.one_file("merged/one", "merged/far/off/two"),
            checks.exactly("upper", "one"),
            checks.text("lower/far/off/two", "before\n"),
        ),
        explained="""The copy is also noted in an index in the work directory, so the other name leads to it, too, and
            both stay one file. With index=off, which is what the kernel's overlayfs does unless told otherwise, they
            would part.""",
    ),
    Experiment(
        name="symlink",
        summary="writing through a symbolic link changes its target",
        question="""current is a symbolic link to version-1. You write to current: which of the two will be copied
            up?""",
        layers={"lower": {"current": Symlink("version-1"), "version-1": "one\n"}},
        do=("echo 'one and a half' > merged/current",),
        checks=(
            checks.text("upper/version-1", "one and a half\n"),
            checks.exactly("upper", "version-1"),
            checks.symlink("merged/current", "version-1"),
        ),
        explained="""The link only says where to go on, and is not written itself. The file it leads to in merged is
            copied up, the link stays in the lower.""",
    ),
)
