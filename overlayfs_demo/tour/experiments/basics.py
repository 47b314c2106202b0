"""The first experiments: what a new file, a write, a deletion and a rename do to the upper."""

from __future__ import annotations

from overlayfs_demo.tour import checks
from overlayfs_demo.tour.building import big
from overlayfs_demo.tour.experiment import Experiment, Refused

_MB = 1_000_000

EXPERIMENTS = (
    Experiment(
        name="new-file",
        summary="a new file goes to the upper",
        question="""An overlay shows several directories as one, called merged. Here it is made of two: lower, which is
            only read, and upper, which takes all changes. workdir= names a directory where the overlay prepares a
            change before it appears in the upper, and userxattr makes it keep its notes in attributes that need no
            root. You create a new file in merged. Where will it be?""",
        layers={"lower": {"motd": "hello\n"}},
        mounted=False,
        do=(
            "overlayfs-demo mount \\\n    -o userxattr,lowerdir=lower,upperdir=upper,workdir=work merged",
            "ls merged",
            "echo 'I am new' > merged/new",
        ),
        checks=(checks.text("upper/new", "I am new\n"), checks.exactly("upper", "new")),
        explained="""The lower is never written: a new file is created in the upper. merged itself stores nothing;
            it only shows what the layers contain.""",
        sources={
            "workdir= names a directory": "Documentation/filesystems/overlayfs.rst, Upper and Lower",
            "userxattr": "Documentation/filesystems/overlayfs.rst, User xattr",
            "merged itself stores nothing": "the experiment kernel-overlayfs looks at merged when it is not mounted",
        },
    ),
    Experiment(
        name="edit",
        summary="the first write copies a file up",
        question="""motd and notes are in the lower, which must not change. You add a line to motd. What will be in the
            lower afterwards, and what in the upper?""",
        layers={"lower": {"motd": "hello\n", "notes": "do not touch me\n"}},
        do=("echo 'good morning' >> merged/motd", "cat merged/motd", "cat lower/motd"),
        checks=(
            checks.text("upper/motd", "hello\ngood morning\n"),
            checks.text("lower/motd", "hello\n"),
            checks.exactly("upper", "motd"),
        ),
        explained="""Before the first write, a file of the lower is copied into the upper, which is called copy-up; the
            line was added to the copy. notes was not written, so it was not copied.""",
    ),
    Experiment(
        name="append",
        summary="the first appended byte copies the whole file",
        question="""big has a million bytes and is in the lower. You append one byte, and then another. How many bytes
            will the upper have, and what will the second byte cost?""",
        layers={"lower": {"big": big(_MB), "small": "little\n"}},
        do=(
            "printf x >> merged/big && wc -c upper/big",
            "ln upper/big first-copy",
            "printf y >> merged/big && wc -c upper/big",
        ),
        checks=(
            checks.size("upper/big", _MB + 2),
            checks.one_file("first-copy", "upper/big"),
            checks.size("lower/big", _MB),
            checks.absent("upper/small"),
            checks.printed("1000001", by=0),
        ),
        explained="""Copy-up works on whole files, not on blocks, so the first byte cost a million. The price is paid
            once: the second byte went into the same copy. In Docker: databases and logs belong in a volume, which is
            not part of the layers.""",
        sources={
            "databases and logs belong in a volume": "docs.docker.com, OverlayFS storage driver, Use volumes for "
            "write-heavy workloads"
        },
    ),
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
        sources={"in one step": "fs/overlayfs/dir.c, ovl_create_over_whiteout: prepared in the workdir, then renamed"},
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
)
