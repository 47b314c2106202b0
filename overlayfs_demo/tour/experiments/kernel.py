"""An experiment that shows an upper written here to the kernel's overlayfs."""

from __future__ import annotations

from overlayfs_demo.tour import checks
from overlayfs_demo.tour.building import build
from overlayfs_demo.tour.checks import Check
from overlayfs_demo.tour.experiment import Experiment
from overlayfs_demo.tour.stage import Stage

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


EXPERIMENTS = (
    Experiment(
        name="kernel-overlayfs",
        summary="the kernel's overlayfs mounts the same upper",
        question="""overlayfs-demo is one program; the overlayfs of the Linux kernel is another. You change, delete and
            replace files in merged, and then mount the same upper with the kernel. Will it show the same tree?""",
        layers={"lower": {"motd": "hello\n", "notes": "notes\n", "docs/one": "1\n", "docs/two": "2\n"}},
        missing=_missing,
        do=(
            "echo 'good morning' > merged/motd && rm merged/notes",
            "rm -r merged/docs && mkdir merged/docs && echo 3 > merged/docs/three",
            _SHOW,
            "overlayfs-demo umount merged",
            _KERNEL_MOUNT.format(lower="lower", upper="upper", work="work", merged="merged", then=_SHOW),
        ),
        look={"lower": "lower", "upper": "upper"},
        checks=(
            Check("both printed the same", lambda stage: stage.done[2].output == stage.done[4].output != ""),
            checks.whiteout("upper/notes"),
            checks.opaque("upper/docs"),
            checks.exactly("merged"),
        ),
        explained="""Whiteouts and opaque marks are written in the kernel's format, so an upper can move from one
            program to the other, in either direction.""",
    ),
)
