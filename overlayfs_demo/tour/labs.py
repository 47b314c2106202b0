"""The labs, with the answers to typical mistakes.

They are judged by the files on the disk, never by what merged shows.
"""

from __future__ import annotations

from collections.abc import Iterator

from overlayfs_demo.images.sample_image import LayerTar, Step, write_image
from overlayfs_demo.store.store import Store
from overlayfs_demo.store.stored import StoredImage
from overlayfs_demo.tour import checks
from overlayfs_demo.tour.building import HardLink, big
from overlayfs_demo.tour.checks import Check, entry
from overlayfs_demo.tour.lab import Lab, Mistake
from overlayfs_demo.tour.scan import Kind, scan
from overlayfs_demo.tour.stage import Stage
from overlayfs_demo.ui.text import human_size


def nothing_at(path: str, rule: str) -> Mistake:
    """The mistake that nothing exists at this path."""
    return lambda stage: "" if entry(stage, path) else f"{path} does not exist. {rule}"


def also_holds(*expected: str, rule: str) -> Mistake:
    """The mistake that the upper holds more than these paths."""

    def mistake(stage: Stage) -> str:
        upper = stage.tree("upper")
        others = sorted(set(upper) - set(expected))
        if not others:
            return ""
        size = human_size(sum(upper[path].size for path in others))
        return f"The upper also contains {', '.join(others)} ({size}). {rule}"

    return mistake


def is_a(kind: Kind, path: str, rule: str) -> Mistake:
    """The mistake that the path is of this kind."""

    def mistake(stage: Stage) -> str:
        found = entry(stage, path)
        return f"{path} is a {kind.value}. {rule}" if found is not None and found.kind is kind else ""

    return mistake


def same_data(first: str, second: str, rule: str) -> Mistake:
    """The mistake that the copy still has its old data, or has it again."""
    check = checks.same(first, second)
    return lambda stage: f"{check.says}. {rule}" if check.holds(stage) else ""


# --- mistakes and goals of single labs -------------------------------------------------------------


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


_SECRET = "password"


def _secret_image(stage: Stage) -> None:
    def tar() -> LayerTar:
        return LayerTar(1_704_067_200)

    steps = (
        Step("/bin/sh -c #(nop) ADD file:base in / ", tar().file("motd", "hello\n").finished()),
        Step("/bin/sh -c #(nop) COPY file:password in / ", tar().file(_SECRET, "correct horse\n").finished()),
        Step("/bin/sh -c ./deploy && rm /password", tar().file(f".wh.{_SECRET}", "").finished()),
    )
    with stage.path("app.tar").open("wb") as out:
        write_image(out, "app:1.0", steps, {"Cmd": ["/bin/sh"]})


def _clean_image(stage: Stage) -> StoredImage | None:
    images = Store(stage.path(".store")).images()
    return next((image for image in images if "app:clean" in map(str, image.names)), None)


def _no_clean_image(stage: Stage) -> str:
    if _clean_image(stage) is not None:
        return ""
    return "There is no image app:clean yet. 'overlayfs-demo images' lists the images."


def _layers_with(stage: Stage, name: str) -> Iterator[int]:
    """Return the numbers of the layers of app:clean, counted from the bottom, that have a file of this name."""
    image = _clean_image(stage)
    for number, layer in enumerate(image.layers if image else (), 1):
        found = scan(layer.directory).get(name)
        if found is not None and found.kind is Kind.FILE:
            yield number


def _ships_secret(stage: Stage) -> str:
    number = next(_layers_with(stage, _SECRET), None)
    if number is None:
        return ""
    return (
        f"Layer {number} of app:clean still has the file {_SECRET}. A file in a lower layer is shipped even if "
        "a later layer hides it. Make an image that is not built on that layer: export a container of app:1.0, and "
        "import the tar."
    )


LABS: tuple[Lab, ...] = (
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
        solved="The report was never gone, only hidden. Without the whiteout it is visible again.",
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
        solved="Renaming a directory costs one mark: a lookup in papers is redirected to docs below.",
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
            is_a(Kind.FILE, "upper/motd", "The copy is still there, and hides the motd of the lower."),
        ),
        goals=(checks.exactly("upper"),),
        solved="A copy-up cannot be undone through merged, but the upper is a directory like any other.",
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
        solved="The index in the work directory records the copy of that file, so its other name also leads to it.",
    ),
    Lab(
        name="shrink",
        summary="make an image that does not ship a deleted password",
        task="""The image app:1.0 is loaded. One of its layers adds the file password, and a later one deletes it, so
            it still ships: overlayfs-demo ghosts app:1.0 shows it. Make an image app:clean that looks the same and
            does not ship it. (overlayfs-demo create, commit, export and import may help; see their --help.)""",
        prepare=_secret_image,
        before=("overlayfs-demo load app.tar",),
        mistakes=(_no_clean_image, _ships_secret),
        goals=(Check("app:clean has the file motd", lambda stage: any(_layers_with(stage, "motd"))),),
        solved="An exported container is one flat tree, without the files that layers hide and without the history.",
    ),
)
