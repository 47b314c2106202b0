"""Experiments with the data and the mode of a file that is written through the overlay."""

from __future__ import annotations

from overlayfs_demo.tour import checks
from overlayfs_demo.tour.building import big
from overlayfs_demo.tour.experiment import Experiment

_MB = 1_000_000

EXPERIMENTS = (
    Experiment(
        name="new-file",
        summary="a new file goes to the upper",
        question="""An overlay shows several directories as one, called merged. Here it is made of two: lower, which is
            only read, and upper, which takes all changes. You create a new file in merged. Where will it be?""",
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
    ),
    Experiment(
        name="edit",
        summary="the first write copies a file up",
        question="""motd and notes are in the lower, which must not change. You write to motd. What will be in the lower
            afterwards, and what in the upper?""",
        layers={"lower": {"motd": "hello\n", "notes": "do not touch me\n"}},
        do=("echo 'good morning' > merged/motd", "cat merged/motd", "cat lower/motd"),
        checks=(
            checks.text("upper/motd", "good morning\n"),
            checks.text("lower/motd", "hello\n"),
            checks.exactly("upper", "motd"),
        ),
        explained="""Before the first write, a file of the lower is copied into the upper. This is called copy-up; from
            then on the copy is visible. notes was not written, so it was not copied.""",
    ),
    Experiment(
        name="append",
        summary="one appended byte copies the whole file",
        question="""big has a million bytes and is in the lower. You append one byte. How many bytes will the upper
            have?""",
        layers={"lower": {"big": big(_MB), "small": "little\n"}},
        do=("printf x >> merged/big", "wc -c upper/big"),
        checks=(
            checks.size("upper/big", _MB + 1),
            checks.size("lower/big", _MB),
            checks.absent("upper/small"),
            checks.printed("1000001"),
        ),
        explained="""Copy-up works on whole files, not on blocks: a single byte costs a million. This is why databases
            and logs belong in a volume, not in a container's layer.""",
    ),
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
    ),
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
        explained="""Here it does: a reader who has the file open is switched to the copy, because it is the same
            file to them. The kernel's overlayfs would leave such a reader with the old file in the lower.""",
    ),
)
