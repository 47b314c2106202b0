"""Experiments with several layers, with other layers, and without an upper."""

from __future__ import annotations

from overlayfs_demo.tour import checks
from overlayfs_demo.tour.building import WHITEOUT, build
from overlayfs_demo.tour.experiment import Experiment, Refused, side_by_side
from overlayfs_demo.tour.stage import Stage, mount_command


def _other_lower(stage: Stage) -> None:
    build(stage.path("other"), {"notes": "of another image\n", "readme": "read me\n"})


EXPERIMENTS = (
    Experiment(
        name="three-layers",
        summary="the topmost layer that has a file wins",
        question="""Three lowers have a file called name, and two have a directory called conf. What will merged show
            for each?""",
        layers={
            "top": {"name": "top\n"},
            "middle": {"name": "middle\n", "conf/b": "b of the middle\n"},
            "bottom": {"name": "bottom\n", "conf/a": "a of the bottom\n", "conf/b": "b of the bottom\n"},
        },
        do=("cat merged/name", "cat merged/conf/a merged/conf/b", "overlayfs-demo which merged/name"),
        look=side_by_side("top", "middle", "bottom"),
        checks=(
            checks.text("merged/name", "top\n"),
            checks.text("merged/conf/a", "a of the bottom\n"),
            checks.text("merged/conf/b", "b of the middle\n"),
            checks.exactly("upper"),
        ),
        explained="""Only the topmost file is visible; it hides those below. Directories are merged: each name in
            them is looked up from the top down.""",
    ),
    Experiment(
        name="middle-whiteout",
        summary="a whiteout only affects the layers below it",
        question="""The middle layer has whiteouts for a and b. The bottom has both files, and the top has b again.
            Which of them will you see?""",
        layers={
            "top": {"b": "b again\n"},
            "middle": {"a": WHITEOUT, "b": WHITEOUT},
            "bottom": {"a": "a\n", "b": "b\n", "c": "c\n"},
        },
        do=("ls merged", "cat merged/b", "overlayfs-demo which merged/a || true"),
        look=side_by_side("top", "middle", "bottom"),
        checks=(
            checks.exactly("merged", "b", "c"),
            checks.text("merged/b", "b again\n"),
            checks.printed("deleted in layer 2"),
        ),
        explained="""A whiteout hides a name in the layers below it, and does not affect those above. So a later
            layer may bring back what an earlier one deleted.""",
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
        explained="""All changes are in the upper, so throwing it away undoes them. That is what happens to a
            container's changes when it is removed: docker rm.""",
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
            never meant for. The upper records its layers, which is why there was a warning.""",
    ),
    Experiment(
        name="lowers-reversed",
        summary="the order of the lowers decides",
        question="""The same two layers are mounted in one order and then in the other. What will change?""",
        layers={
            "app": {"config": "colour = blue\n", "sound": WHITEOUT},
            "base": {"config": "colour = grey\n", "sound": "beep\n"},
        },
        mounted=False,
        do=(
            "overlayfs-demo mount -o userxattr,lowerdir=app:base merged",
            "ls merged && cat merged/config",
            "overlayfs-demo umount merged",
            "overlayfs-demo mount -o userxattr,lowerdir=base:app merged",
            "ls merged && cat merged/config",
        ),
        look={"app": "app", "base": "base", "merged (base:app)": "merged"},
        checks=(
            checks.printed("colour = blue", by=1),
            checks.printed("colour = grey", "sound", by=4),
            checks.exactly("merged", "config", "sound"),
        ),
        explained="""lowerdir= names the topmost layer first, and that one wins. In reverse order the old file comes
            back, and the whiteout at the bottom has nothing left to hide.""",
    ),
)
