"""Experiments with modes, links, names of several kinds, and views without an upper or with a new one."""

from __future__ import annotations

from overlayfs_demo.tour import checks
from overlayfs_demo.tour.building import Symlink, big
from overlayfs_demo.tour.experiment import Experiment, Refused, side_by_side
from overlayfs_demo.tour.stage import mount_command

_MB = 1_000_000

EXPERIMENTS = (
    Experiment(
        name="chmod",
        summary="a mode change also copies the whole file",
        question="""You make a big file executable. Not a byte of its data changes. Will the data be copied
            anyway?""",
        layers={"lower": {"tool": big(_MB)}},
        do=("chmod 755 merged/tool", "stat -c '%a %s %n' lower/tool upper/tool"),
        checks=(
            checks.mode("upper/tool", 0o755),
            checks.mode("lower/tool", 0o644),
            checks.same("lower/tool", "upper/tool"),
        ),
        explained="""The mode is stored with the file, so the file must be in the upper, with all its data. The option
            metacopy=on copies only the metadata and leaves the data below; it is off by default.""",
        sources={
            "metacopy=on": "Documentation/filesystems/overlayfs.rst, Metadata only copy up; "
            "test_metacopy_copies_no_data_and_is_off_by_default"
        },
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
    Experiment(
        name="file-over-directory",
        summary="a file hides a directory below it",
        question="""In the bottom layer, thing is a directory with a file in it; in the top layer it is a file. What
            will merged show?""",
        layers={"top": {"thing": "a file\n"}, "bottom": {"thing/inside": "hidden\n"}},
        do=("cat merged/thing", Refused("cat merged/thing/inside")),
        look=side_by_side("top", "bottom"),
        checks=(checks.exactly("merged", "thing"), checks.text("merged/thing", "a file\n")),
        explained="""Only directories merge: anything else hides everything below its name. The whole directory in the
            bottom layer is hidden, without any whiteout.""",
    ),
    Experiment(
        name="directory-over-file",
        summary="a directory over a file does not let it through",
        question="""Now the other way round: in the bottom layer thing is a file, and you replace it with a directory.
            Does the directory need an opaque mark to be empty?""",
        layers={"bottom": {"thing": "a file\n"}},
        do=("rm merged/thing", "mkdir merged/thing", "ls -A merged/thing"),
        look=side_by_side("bottom"),
        checks=(checks.exactly("merged", "thing"), checks.exactly("upper", "thing")),
        explained="""A directory can only merge with directories, so the search ends at the file. The upper contains the
            new directory; whether it is also marked opaque makes no visible difference.""",
        sources={"makes no visible difference": "Documentation/filesystems/overlayfs.rst, Directories"},
    ),
    Experiment(
        name="read-only",
        summary="without an upper, nothing can be changed",
        question="""A view can be mounted from lowers alone, without an upper. You try to create a file and to delete
            one. What will the kernel say?""",
        layers={"top": {"motd": "from the top\n"}, "bottom": {"motd": "below\n", "notes": "notes\n"}},
        mounted=False,
        do=(
            "overlayfs-demo mount -o userxattr,lowerdir=top:bottom merged",
            Refused("touch merged/new"),
            Refused("rm -f merged/notes"),
            "cat merged/motd",
        ),
        look={name: name for name in ("bottom", "top", "merged")},
        checks=(
            checks.printed("Read-only file system", by=1),
            checks.printed("Read-only file system", by=2),
            checks.exactly("merged", "motd", "notes"),
        ),
        explained="""Without a place for changes, the whole mount is read-only, and every change fails with EROFS. An
            image alone is such a stack: an upper on top makes it a container.""",
        sources={"an upper on top makes it a container": "the experiment container-directories"},
    ),
    Experiment(
        name="discard-upper",
        summary="an empty upper restores the original state",
        question="""You make a mess in merged: one file deleted, one changed, one added. How do you undo all of that at
            once?""",
        layers={"lower": {"motd": "hello\n", "notes": "notes\n"}},
        do=(
            "rm merged/motd",
            "echo mess > merged/notes",
            "echo mess > merged/new",
            "overlayfs-demo umount merged",
            "rm -r upper work && mkdir upper work",
            mount_command("lower"),
            "cat merged/motd merged/notes",
        ),
        checks=(
            checks.exactly("upper"),
            checks.exactly("merged", "motd", "notes"),
            checks.text("merged/notes", "notes\n"),
        ),
        explained="""All changes are in the upper, so throwing it away undoes them. The lower was never changed, so
            nothing has to be repaired. In Docker: docker rm throws the container's upper away.""",
        sources={"docker rm": "test_docker_rm_removes_the_upper"},
    ),
)
