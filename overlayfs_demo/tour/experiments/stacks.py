"""Experiments with several layers: which of them decides about a name."""

from __future__ import annotations

from overlayfs_demo.tour import checks
from overlayfs_demo.tour.building import WHITEOUT
from overlayfs_demo.tour.experiment import Experiment, side_by_side

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
