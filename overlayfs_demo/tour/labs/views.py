"""Labs with a view: what the learner does in merged is judged in the upper."""

from __future__ import annotations

from overlayfs_demo.tour import checks
from overlayfs_demo.tour.building import WHITEOUT, HardLink, big
from overlayfs_demo.tour.checks import Check, entry
from overlayfs_demo.tour.lab import Lab
from overlayfs_demo.tour.labs.mistakes import also_holds, is_a, nothing_at, same_data
from overlayfs_demo.tour.scan import Kind
from overlayfs_demo.tour.stage import Stage


def _whiteouts_inside(stage: Stage) -> str:
    inside = [
        path for path, found in stage.tree("upper").items() if path.startswith("docs/") and found.kind is Kind.WHITEOUT
    ]
    if not inside:
        return ""
    return (
        f"upper/docs has whiteouts for {', '.join(path.removeprefix('docs/') for path in sorted(inside))}. Files that "
        "are deleted one by one get a whiteout each, and the directory still merges with the one below. Remove the "
        "directory itself and create it again: the new one is opaque."
    )


def _image_whiteout(stage: Stage) -> str:
    if entry(stage, "upper/.wh.notes") is None:
        return ""
    return (
        "upper/.wh.notes is how the tar of an image layer says 'deleted'. In an upper it is an ordinary file. There, "
        "a whiteout is a character device 0/0, and rm in merged creates it."
    )


def _copied_directory(stage: Stage) -> str:
    inside = [path for path in stage.tree("upper") if path.startswith("papers/")]
    if not inside:
        return ""
    return (
        f"upper/papers contains copies: {', '.join(sorted(inside))}. cp reads and writes every file; mv only renames "
        "the directory, and the overlay records in a redirect where its files are."
    )


def _answer(stage: Stage) -> str:
    answer = stage.path("answer")
    said = answer.read_text(errors="replace").strip() if answer.is_file() else ""
    if said == "docs":
        return ""
    found = f"The file answer says '{said}'" if said else "The file answer is still empty"
    return f"{found}. To read the mark: getfattr -d -m redirect upper/papers"


def _parted(stage: Stage) -> str:
    single = [path for path in ("one", "two") if getattr(entry(stage, f"upper/{path}"), "links", 2) == 1]
    if not single:
        return ""
    return (
        f"upper/{single[0]} is a file with one name. sed -i and many editors replace the old file with a new "
        "one, which separates it from its other names. Write into the file itself: echo ... >> merged/one"
    )


def _linked_copy(stage: Stage) -> bool:
    """Return whether the copy in the upper has more data than before, and is in the index.

    The index holds another name of the copy, so its link count is above 1.
    """
    copies = [copy for path, copy in stage.tree("upper").items() if path in ("one", "two")]
    return any(copy.links > 1 and copy.size > stage.before["lower"]["one"].size for copy in copies)


LABS = (
    Lab(
        name="copy-up",
        summary="change one file, and nothing else",
        task="""Change the text of motd in merged, in any way you like. In the end, the upper must contain motd with
            its new text, and nothing else.""",
        layers={"lower": {"motd": "hello\n", "notes": "leave me alone\n", "big": big(1_000_000)}},
        mistakes=(
            nothing_at("upper/motd", "Only writing through merged copies a file up; reading copies nothing."),
            also_holds(
                "motd",
                rule="""Every file that is written is copied up, and every new file stays in the
                upper. Remove the extra files from the upper itself: rm upper/...""",
            ),
            is_a(Kind.WHITEOUT, "upper/motd", "You deleted motd. Remove the whiteout from the upper, and write motd."),
            same_data(
                "lower/motd",
                "upper/motd",
                """Changing the mode or a time also copies a file up, but its text is
                still the old one: echo ... > merged/motd""",
            ),
        ),
        goals=(checks.exactly("upper", "motd"), checks.file("upper/motd")),
        hints=(
            """Where does a change go that you make in merged? Compare 'ls lower upper merged' before and after
            you write something.""",
            """The first write to a file of the lower copies it up: the upper then has the whole file, with the
            change. Reading and listing copy nothing.""",
            """Append a line to motd in merged with echo and >>, or use an editor that leaves no backup file. Then
            'ls -A upper' must show motd alone.""",
        ),
        solved="The first write copied motd up. The lower still has the old text.",
    ),
    Lab(
        name="whiteout",
        summary="make a file of the lower disappear",
        task="""Delete notes in merged. The lower must stay as it is, and the upper must contain one whiteout and
            nothing else.""",
        layers={"lower": {"motd": "hello\n", "notes": "delete me\n"}},
        mistakes=(
            _image_whiteout,
            nothing_at("upper/notes", "So notes of the lower is still visible. Delete it in merged: rm merged/notes"),
            is_a(Kind.FILE, "upper/notes", "An empty file is still a file, and visible: rm merged/notes"),
            also_holds(
                "notes",
                rule="""The task was a whiteout alone. If you renamed notes: a rename makes a copy with
                the new name, and a whiteout for the old one.""",
            ),
        ),
        goals=(checks.exactly("upper", "notes"), checks.whiteout("upper/notes")),
        hints=(
            """The lower must stay as it is. What could the upper contain, so that merged no longer shows a name
            that the lower has?""",
            """In an overlay, a deletion is a mark: a whiteout, which is a character device 0/0 with the name that
            is deleted. You need not make it yourself. The overlay makes it when a file of the lower is deleted
            in merged.""",
            """Delete the file in merged as you would delete any file. 'ls -l upper' then shows the whiteout: its
            line begins with c.""",
        ),
        solved="The whiteout, a character device 0/0, hides notes; the lower still has it. 'ls -l upper' shows it.",
    ),
    Lab(
        name="opaque",
        summary="replace a directory, so that nothing shows through",
        task="""Replace the directory docs in merged with a new one that contains one file, three. Nothing of the old
            docs may show through, and one mark must ensure that: upper/docs must be opaque.""",
        layers={"lower": {"docs/one": "1\n", "docs/two": "2\n"}},
        mistakes=(
            nothing_at("upper/docs", "Remove docs in merged, and create it again."),
            is_a(Kind.WHITEOUT, "upper/docs", "docs is deleted, but not created again yet: mkdir merged/docs"),
            _whiteouts_inside,
            nothing_at("upper/docs/three", "Create the file: echo 3 > merged/docs/three"),
        ),
        goals=(checks.opaque("upper/docs"), checks.exactly("upper", "docs", "docs/three")),
        hints=(
            """Suppose you delete the files of docs one by one. Does docs still merge with the one in the lower?
            What else could you delete?""",
            """Deleting the files only leaves a whiteout for each. But a directory that is created where one of
            the lower was removed is marked opaque: it hides everything below it.""",
            """You need three steps, all in merged: remove docs itself with all its files, create a directory with
            the same name, and write the file three into it.""",
        ),
        solved="The new docs replaced a whiteout and was marked opaque, so it merges with nothing below.",
    ),
    Lab(
        name="undelete",
        summary="bring a deleted file back, without writing it",
        task="""Someone deleted report in merged. Bring it back without writing its text: in the end, the upper must
            contain nothing for it. (If you want to work on the upper itself, overlayfs-demo umount merged unmounts
            the view.)""",
        layers={"lower": {"report": big(200_000), "motd": "hello\n"}},
        before=("rm merged/report",),
        mistakes=(
            is_a(
                Kind.WHITEOUT,
                "upper/report",
                """It still hides the report of the lower. merged does not show a
                whiteout, so remove it from the upper itself: rm upper/report""",
            ),
            is_a(
                Kind.FILE,
                "upper/report",
                """That is a new file, with its bytes stored a second time. The lower still
                has the report. Remove the new one from the upper, rm upper/report, and nothing hides it.""",
            ),
        ),
        goals=(checks.exactly("upper"),),
        hints=(
            """Is the text of report really gone? Look for it with 'ls -l lower upper'. What keeps merged from
            showing it?""",
            """The whiteout in the upper hides the report of the lower. merged never shows a whiteout, so you
            cannot remove it there. But the upper is a directory like any other.""",
            "Take away what hides the report: remove one file, in the upper itself and not in merged.",
        ),
        # overlayfs.rst, Changes to underlying filesystems: only offline changes of an upper are defined.
        solved="""The report was never gone, only hidden. Without the whiteout it is visible again. (The kernel's
            overlayfs has to be unmounted before anyone changes its upper.)""",
    ),
    Lab(
        name="rescue",
        summary="find a file that a layer deletes, in the layers below",
        task="""One of three layers deletes report, so merged does not show it. Rescue its last text: make a file
            rescued in merged with what the newest layer that has a report says. The layers must stay as they are.
            (overlayfs-demo which merged/report tells what each layer says.)""",
        layers={
            "top": {"report": WHITEOUT, "motd": "hello\n"},
            "middle": {"report": "the last text\n", "notes": "notes\n"},
            "bottom": {"report": "an early draft\n", "motd": "below\n"},
        },
        mistakes=(
            nothing_at("upper/rescued", "Copy the file from the layer that has it: cp LAYER/report merged/rescued"),
            same_data(
                "bottom/report",
                "upper/rescued",
                "That is an older one: the middle layer replaced it before the top layer deleted it.",
            ),
            also_holds("rescued", rule="Only the rescued file was asked for. Remove the others: rm upper/..."),
        ),
        goals=(checks.exactly("upper", "rescued"), checks.same("middle/report", "upper/rescued")),
        hints=(
            """A whiteout deletes nothing, it only hides. Which layers still have a report, and which of them is
            the topmost?""",
            """Each layer is an ordinary directory beside merged, and you can read all of them. 'overlayfs-demo
            which merged/report' says what each one has, the topmost first.""",
            """top deletes the report, so its newest text is in the next layer down. Copy it from there to the
            name rescued in merged.""",
        ),
        solved="A whiteout only hides: each layer below still has its own version, in an ordinary directory.",
    ),
    Lab(
        name="smallest-upper",
        summary="make a script executable, using as few bytes as possible",
        task="""Make tools/run.sh executable in merged, with as few bytes in the upper as possible.""",
        layers={
            "lower": {
                "tools/run.sh": "#!/bin/sh\necho run\n",
                "tools/data": big(1_000_000),
                "tools/library": big(1_000_000),
            }
        },
        mistakes=(
            nothing_at("upper/tools/run.sh", "The mode is stored with the file, so run.sh must be copied up: chmod +x"),
            also_holds(
                "tools",
                "tools/run.sh",
                rule="""chmod copies up every file whose mode it sets, with all its
                data, so chmod -R on a big directory is expensive. Remove the others from the upper itself, and those
                of the lower are visible again.""",
            ),
        ),
        goals=(
            checks.exactly("upper", "tools", "tools/run.sh"),
            checks.same("lower/tools/run.sh", "upper/tools/run.sh"),
            Check(
                "upper/tools/run.sh is executable",
                lambda stage: bool(getattr(entry(stage, "upper/tools/run.sh"), "mode", 0) & 0o100),
            ),
        ),
        hints=(
            """Where is the mode stored: with the name of a file, or with the file itself? So what must be copied
            up when it changes?""",
            """A change of the mode copies up the file with all its data, and makes the directories above it. So
            change the mode of that one file only.""",
            """Use chmod on one file: not on its directory, and without -R. If too much was copied up, remove the
            other files from the upper itself.""",
        ),
        solved="Only the script was copied up, with its directory: 19 bytes instead of two million.",
    ),
    Lab(
        name="rename",
        summary="move a directory, and find its redirect",
        task="""Rename docs to papers in merged, without copying its files. Then find the extended attribute of
            upper/papers that says where its files are, and write its value into the file answer, beside merged.""",
        layers={"lower": {"docs/big": big(1_000_000), "docs/small": "little\n"}},
        redirects=True,
        mistakes=(
            nothing_at("upper/papers", "Rename the directory: mv merged/docs merged/papers"),
            _copied_directory,
            _answer,
        ),
        goals=(
            checks.redirect("upper/papers", "docs"),
            checks.whiteout("upper/docs"),
            checks.exactly("upper", "docs", "papers"),
        ),
        hints=(
            """docs contains a megabyte. Must all of it be copied when docs gets another name? What could the
            upper record instead?""",
            """With redirects, a renamed directory is empty in the upper. One of its extended attributes, the
            redirect, says under which name its files are in the lower. The old name gets a whiteout.""",
            """Rename docs with mv in merged. 'getfattr -d -m redirect upper/papers' prints the attribute. Write
            what is between its quotes into the file answer.""",
        ),
        # tests/tour/test_beside_docker.py: test_in_docker_a_directory_is_copied_when_it_is_renamed
        solved="""Renaming a directory costs one mark: a lookup in papers is redirected to docs below. In Docker, where
            redirects are off, mv would have copied the files.""",
    ),
    Lab(
        name="no-trace",
        summary="undo an edit, so that the upper is empty again",
        task="""Someone wrote into motd by mistake, and it was copied up. Undo it without a trace: merged must show
            the old text, and the upper must be empty.""",
        layers={"lower": {"motd": "hello\n"}},
        before=("echo 'written by mistake' >> merged/motd",),
        mistakes=(
            is_a(
                Kind.WHITEOUT,
                "upper/motd",
                """rm in merged also hides the file of the lower. You should have removed the copy
                from the upper itself; now remove the whiteout there: rm upper/motd""",
            ),
            same_data(
                "lower/motd",
                "upper/motd",
                """The text is right again, but the copy stays in the upper, and
                would also hide the motd of a newer lower. Nothing you do in merged removes a copy: rm upper/motd""",
            ),
            is_a(Kind.FILE, "upper/motd", "The copy is still there, and hides the motd of the lower: rm upper/motd"),
        ),
        goals=(checks.exactly("upper"),),
        hints=(
            """What does the upper contain, and why does merged show that motd and not the one of the lower? 'ls
            -l lower upper' helps.""",
            """Nothing you do in merged removes a copy: deleting it leaves a whiteout, and writing the old text
            leaves a file. But the upper is a directory like any other.""",
            """The motd of the lower is visible again when the upper has nothing of that name, neither a file nor
            a whiteout. Remove it there.""",
        ),
        # overlayfs.rst, Changes to underlying filesystems: only offline changes of an upper are defined.
        solved="""A copy-up cannot be undone through merged, but the upper is a directory like any other. (The kernel's
            overlayfs has to be unmounted before anyone changes its upper.)""",
    ),
    Lab(
        name="hard-link",
        summary="write to a file with two names, so that it stays one file",
        task="""one and two are two names of one file. Append a line to it in merged, so that both names show it, and
            the file is stored once in the upper.""",
        layers={"lower": {"one": "first line\n", "two": HardLink("one")}},
        mistakes=(
            lambda stage: (
                "" if stage.tree("upper") else "The upper is empty: nothing has been written through merged yet."
            ),
            is_a(Kind.WHITEOUT, "upper/one", "one has been deleted, so it is no longer a name of the file."),
            is_a(Kind.WHITEOUT, "upper/two", "two has been deleted, so it is no longer a name of the file."),
            _parted,
        ),
        goals=(Check("the upper has one copy, recorded in the index, with one line more than before", _linked_copy),),
        hints=(
            """'ls -li lower' shows that both names have the same inode number. Which programs write into a file,
            and which make a new file with the old name?""",
            """When the file itself is written, the index in the work directory records its copy for all of its
            names. An editor or 'sed -i' may make a new file instead, which has one name.""",
            """Use echo and >> in merged, with one of the two names. Then 'cat merged/one merged/two' must show
            the new line twice.""",
        ),
        # tests/tour/test_beside_docker.py: test_in_docker_the_first_write_separates_hard_links
        solved="""The index in the work directory records the copy of that file, so its other name also leads to it. In
            Docker, where the index is off, one and two would now be two files.""",
    ),
)
