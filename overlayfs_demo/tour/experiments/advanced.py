"""Advanced experiments: marks and records beyond whiteouts, readers during a copy-up, and the kernel's overlayfs."""

from __future__ import annotations

from overlayfs_demo.tour import checks
from overlayfs_demo.tour.building import HardLink, big, build
from overlayfs_demo.tour.checks import Check
from overlayfs_demo.tour.experiment import Experiment
from overlayfs_demo.tour.stage import Stage, mount_command

# In new namespaces a mount needs no root, and ends with the command.
_KERNEL_MOUNT = """unshare -Urm sh -c '
    mount -t overlay overlay \\
        -o userxattr,lowerdir={lower},upperdir={upper},workdir={work} {merged} &&
    {then}'"""
_SHOW = "(cd merged && ls -R && cat motd)"


def _missing(stage: Stage) -> str:
    """Return why this machine cannot mount the kernel's overlayfs, or "", after a trial on an empty stack."""
    names = {name: f".probe/{name}" for name in ("lower", "upper", "work", "merged")}
    for path in names.values():
        build(stage.path(path), {})
    done = stage.run(_KERNEL_MOUNT.format(**names, then="true"))
    stage.done.remove(done)
    if done.status == 0:
        return ""
    return f"this machine does not allow mounting the kernel's overlayfs in a user namespace: {done.output.strip()}"


def _other_lower(stage: Stage) -> None:
    build(stage.path("other"), {"notes": "of another image\n", "readme": "read me\n"})


EXPERIMENTS = (
    Experiment(
        name="open-reader",
        summary="an open reader sees what is written after copy-up",
        question="""A reader opens log, which is in the lower. Before it reads on, someone appends a line, and log is
            copied up. Will the reader, who opened the file in the lower, see the new line?""",
        layers={"lower": {"log": "first line\n"}},
        do=("(read line; echo 'second line' >> merged/log; cat) < merged/log",),
        checks=(
            checks.printed("second line"),
            checks.text("upper/log", "first line\nsecond line\n"),
            checks.text("lower/log", "first line\n"),
        ),
        explained="""It does, because a reader who has the file open is switched to the copy, as in the kernel's
            overlayfs since Linux 4.19. Only there, a file that was mapped into memory (mmap) before the copy-up keeps
            showing the old data.""",
        sources={
            "since Linux 4.19": "fs/overlayfs/file.c, ovl_real_file, added in 4.19 ('ovl: stack file ops'); "
            "test_a_reader_sees_the_copy_and_only_a_mapping_does_not",
            "Only there": "overlayfs_demo/docs/differences.md, a file mapped before its copy-up",
            "mapped into memory": "Documentation/filesystems/overlayfs.rst, Non-standard behavior; "
            "test_a_reader_sees_the_copy_and_only_a_mapping_does_not",
        },
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
        explained="""The copy is also recorded in an index in the work directory, so the other name leads to it.
            Both names stay one file. In Docker: containers are mounted with index=off, and the first
            write separates the names.""",
        sources={
            "an index in the work directory": "Documentation/filesystems/overlayfs.rst, Non-standard behavior, index",
            "index=off": "test_in_docker_the_first_write_separates_hard_links",
        },
    ),
    Experiment(
        name="rename-directory",
        summary="renaming a directory leaves a redirect",
        question="""You rename a directory with a big file in it. (This view is mounted without userxattr if root
            mounts it: with it, anyone who owns a directory could forge what the overlay notes there, so root's views do
            not follow such notes.) Must all files be copied up?""",
        layers={"lower": {"docs/big": big(1_000_000), "docs/small": "little\n"}},
        redirects=True,
        do=("mv merged/docs merged/papers", "ls merged/papers"),
        checks=(
            checks.redirect("upper/papers", "docs"),
            checks.whiteout("upper/docs"),
            checks.exactly("upper", "docs", "papers"),
            checks.same("lower/docs/big", "merged/papers/big"),
        ),
        explained="""Only the directory itself is created in the upper, with the mark redirect. It names the
            directory below, where a lookup continues. In Docker: redirects are off (redirect_dir=off, the kernel's
            default), so the rename fails with EXDEV, and mv copies every file.""",
        sources={
            "anyone who owns a directory could forge": "Documentation/filesystems/overlayfs.rst, User xattr; "
            "overlayfs_demo/docs/on_disk_format.md",
            "redirects are off": "test_in_docker_a_directory_is_copied_when_it_is_renamed",
        },
    ),
    Experiment(
        name="another-stack",
        summary="an upper belongs to the layers it was made for",
        question="""An upper was made over one image and contains a whiteout for notes. Now it is mounted over another
            image, which also has a file with that name. What will happen to that file?""",
        layers={"lower": {"motd": "hello\n", "notes": "old notes\n"}},
        prepare=_other_lower,
        do=("rm merged/notes", "overlayfs-demo umount merged", mount_command("other"), "ls merged"),
        look={name: name for name in ("lower", "other", "upper", "merged")},
        checks=(
            checks.printed("was last mounted over", by=2),
            checks.whiteout("upper/notes"),
            checks.absent("merged/notes"),
            checks.text("other/notes", "of another image\n"),
        ),
        explained="""Whiteouts and opaque marks apply to names, whatever is below, so they now hide files that they were
            never meant for. The upper records its layers, hence the warning; the kernel's overlayfs gives none.""",
        sources={"the kernel's overlayfs gives none": "test_the_kernel_mounts_an_upper_over_another_lower"},
    ),
    Experiment(
        name="kernel-overlayfs",
        summary="the kernel's overlayfs mounts the same upper",
        question="""overlayfs-demo is one program; the overlayfs of the Linux kernel is another. You change, delete and
            replace files in merged, mount the same upper with the kernel, and delete a file there. Will each see what
            the other did?""",
        layers={"lower": {"motd": "hello\n", "notes": "notes\n", "docs/one": "1\n", "docs/two": "2\n"}},
        missing=_missing,
        do=(
            "echo 'good morning' >> merged/motd && rm merged/notes",
            "rm -r merged/docs && mkdir merged/docs && echo 3 > merged/docs/three",
            _SHOW,
            "overlayfs-demo umount merged && ls -A merged",
            _KERNEL_MOUNT.format(
                lower="lower", upper="upper", work="work", merged="merged", then=f"{_SHOW} && rm merged/docs/three"
            ),
            mount_command("lower"),
            "ls merged merged/docs",
        ),
        checks=(
            Check("both showed the same", lambda stage: stage.done[2].output == stage.done[4].output != ""),
            Check("without a mount, merged is empty", lambda stage: stage.done[3].output == ""),
            checks.whiteout("upper/notes"),
            checks.opaque("upper/docs"),
            checks.exactly("merged", "docs", "motd"),
        ),
        explained="""Whiteouts and opaque marks are written in the kernel's format. So an upper can move from one
            program to the other, in either direction.""",
    ),
)
