"""Experiments with the cost of images and containers, and with the place of their changes.

The images are made on the fly, each with its history. Their files are in the root directory, so that a layer fits in
a few lines.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from overlayfs_demo.images.sample_image import LayerTar, Step, write_image
from overlayfs_demo.tour import checks
from overlayfs_demo.tour.building import big
from overlayfs_demo.tour.checks import Check
from overlayfs_demo.tour.experiment import Experiment
from overlayfs_demo.tour.scan import Kind
from overlayfs_demo.tour.stage import Stage

_WHEN = 1_704_067_200
_BASE = "/bin/sh -c #(nop) ADD file:base in / "


def tar() -> LayerTar:
    """Return a layer to fill."""
    return LayerTar(_WHEN)


def base() -> Step:
    """Return the first layer of most images here."""
    return Step(_BASE, tar().file("motd", "hello\n").file("tool", big(1_000_000)).finished())


def images(**archives: Sequence[Step]) -> Callable[[Stage], None]:
    """Return a function that writes `NAME.tar`, an archive of the image NAME:1.0, for each of these."""

    def prepare(stage: Stage) -> None:
        for name, steps in archives.items():
            with stage.path(f"{name}.tar").open("wb") as out:
                write_image(out, f"{name}:1.0", steps, {"Cmd": ["/bin/sh"]})

    return prepare


def _upper(container: str) -> str:
    return f".store/containers/{container}/upper"


def _layers(**titles: str) -> Mapping[str, str]:
    return {title.replace("_", " "): f"layers/{start}-*" for title, start in titles.items()}


def _shipped(stage: Stage) -> int:
    """Return the number of bytes of all files in the layers that build-layers made."""
    return sum(
        entry.size
        for path, entry in stage.tree("layers").items()
        if entry.kind is Kind.FILE and not path.startswith(".")
    )


def _stored(stage: Stage, name: str) -> list[Path]:
    """Return the paths of all files in the store's layers that have this name."""
    return [path for path in stage.path(".store/layers").rglob(name) if path.is_file()]


_BUILD = "build-layers --userxattr app.tar layers > log 2>&1"
_HISTORY = "overlayfs-demo history --human false {} | cut -c 39-"
_SIZES = "find layers/0* -type f -printf '%9s  %p\\n' | sort -k 2"

EXPERIMENTS = (
    Experiment(
        name="two-containers",
        summary="two containers of one image share its layers",
        question="""Two containers are created from one image, and you change motd in the first. What will you read in
            the second?""",
        prepare=images(app=(Step(_BASE, tar().file("motd", "hello\n").finished()),)),
        do=(
            "overlayfs-demo load app.tar",
            "mkdir one two",
            "overlayfs-demo create app:1.0 --name one --at one",
            "overlayfs-demo create app:1.0 --name two --at two",
            "echo 'changed in one' > one/motd",
            "cat two/motd",
        ),
        look={"one": "one", "upper of one": _upper("one"), "two": "two", "upper of two": _upper("two")},
        checks=(
            checks.text("one/motd", "changed in one\n"),
            checks.text("two/motd", "hello\n"),
            Check("the upper of one contains motd", lambda stage: set(stage.tree(_upper("one"))) == {"motd"}),
            Check("the upper of two is empty", lambda stage: not stage.tree(_upper("two"))),
        ),
        explained="""Both share the same layers, and each has its own upper, which starts empty. That is why a container
            starts at once, and why a hundred of them need hardly more space than one.""",
    ),
    Experiment(
        name="history-sizes",
        summary="history's sizes are those of the layers on disk",
        question="""docker history prints a SIZE for every step of an image. Some steps show 0. Do they have no layer,
            or an empty one? And do the other sizes match the disk?""",
        prepare=images(
            app=(
                base(),
                Step("/bin/sh -c #(nop)  ENV COLOUR=blue"),
                Step("/bin/sh -c #(nop) COPY file:data in / ", tar().file("data", big(250_000)).finished()),
                Step("/bin/sh -c rm /motd", tar().file(".wh.motd", "").finished()),
            )
        ),
        do=("overlayfs-demo load app.tar", _HISTORY.format("app:1.0"), _BUILD, _SIZES),
        look=_layers(layer_1="01", layer_2="02", layer_3="03"),
        checks=(
            checks.printed("1000006", "250000", by=1),
            Check("four steps made three layers", lambda stage: len(list(stage.root.glob("layers/0*"))) == 3),
            Check("the layers contain 1,250,006 bytes, the sum of SIZE", lambda stage: _shipped(stage) == 1_250_006),
        ),
        explained="""SIZE is the data of the files in a step's layer: ENV creates no layer at all, and rm creates
            one with nothing but a whiteout in it. du reports more, because it counts whole blocks, and directories.""",
    ),
    Experiment(
        name="delete-does-not-shrink",
        summary="deleting in a later layer does not shrink an image",
        question="""A Dockerfile has RUN make-cache, which leaves 2 MB, and in the next line RUN rm cache. How big is
            the image?""",
        prepare=images(
            app=(
                Step(_BASE, tar().file("motd", "hello\n").finished()),
                Step("/bin/sh -c make-cache", tar().file("cache", big(2_000_000)).finished()),
                Step("/bin/sh -c rm /cache", tar().file(".wh.cache", "").finished()),
            )
        ),
        do=(
            "overlayfs-demo load app.tar",
            _HISTORY.format("app:1.0"),
            "overlayfs-demo ghosts app:1.0",
            _BUILD,
            "mkdir merged && overlayfs-demo mount \\\n"
            "    -o userxattr,lowerdir=$(ls -dr layers/* | paste -sd :) merged",
        ),
        look={**_layers(layer_1="01", layer_2="02", layer_3="03"), "merged": "merged"},
        checks=(
            checks.exactly("merged", "motd"),
            checks.printed("2MB", "/cache", by=2),
            Check("the layers ship 2,000,006 bytes", lambda stage: _shipped(stage) == 2_000_006),
        ),
        explained="""The third layer can only hide the file in the second, which is still shipped to everyone:
            anyone can read a password deleted in this way. Delete it in the same RUN line, or build in stages.""",
    ),
    Experiment(
        name="chmod-doubles",
        summary="RUN chmod doubles a file",
        question="""An image has a tool of 1 MB. The next line of its Dockerfile is RUN chmod 755 /tool. How big is the
            image now?""",
        prepare=images(
            app=(base(), Step("/bin/sh -c chmod 755 /tool", tar().file("tool", big(1_000_000), 0o755).finished()))
        ),
        do=("overlayfs-demo load app.tar", _HISTORY.format("app:1.0"), _BUILD, _SIZES),
        look=_layers(layer_1="01", layer_2="02"),
        checks=(
            checks.printed("1000000", "1000006", by=1),
            Check("the layers ship 2,000,006 bytes", lambda stage: _shipped(stage) == 2_000_006),
            Check(
                "tool is the same data in both layers",
                lambda stage: (
                    len({file.digest for path, file in stage.tree("layers").items() if path.endswith("/tool")}) == 1
                ),
            ),
        ),
        explained="""chmod copied the whole file up, so the builder put all of it into the new layer. COPY
            --chmod=755 sets the mode when the file is added, and costs nothing.""",
    ),
    Experiment(
        name="shared-layers",
        summary="layers that images share are stored once",
        question="""Two images start with the same layer of 1 MB. After both are loaded, how many megabytes are
            stored?""",
        prepare=images(
            app=(base(), Step("/bin/sh -c make-app", tar().file("app", big(200_000)).finished())),
            web=(base(), Step("/bin/sh -c make-web", tar().file("web", big(300_000)).finished())),
        ),
        do=(
            "overlayfs-demo load app.tar",
            "overlayfs-demo load web.tar",
            "overlayfs-demo layers",
            "find .store/layers -name tool | wc -l",
            "overlayfs-demo df",
        ),
        look={},
        checks=(
            Check("three layers are listed, not four", lambda stage: len(stage.done[2].output.splitlines()) == 1 + 3),
            Check("the file tool is stored once", lambda stage: len(_stored(stage, "tool")) == 1),
            Check("app and web are also stored", lambda stage: len(_stored(stage, "app") + _stored(stage, "web")) == 2),
        ),
        explained="""A layer is identified by the digest of its content, so the store already had the first layer of the
            second image. This is why the sizes of images do not add up to their size on disk.""",
    ),
    Experiment(
        name="diff-and-commit",
        summary="diff reads the upper, commit makes it a layer",
        question="""In a container you change one file, delete one and add one. What will diff print, and how many
            layers will the committed image have?""",
        prepare=images(app=(Step(_BASE, tar().file("motd", "hello\n").file("notes", "some notes\n").finished()),)),
        do=(
            "overlayfs-demo load app.tar",
            "mkdir c1",
            "overlayfs-demo create app:1.0 --name c1 --at c1",
            "echo changed > c1/motd; rm c1/notes; echo new > c1/new",
            "overlayfs-demo diff c1",
            "overlayfs-demo commit c1 app:1.1 > id",
            _HISTORY.format("app:1.1"),
            "overlayfs-demo diff app:1.0 app:1.1",
        ),
        look={"upper of c1": _upper("c1"), "c1": "c1"},
        checks=(
            Check(
                "diff printed: C /motd, D /notes, A /new",
                lambda stage: sorted(stage.done[4].output.splitlines()) == ["A /new", "C /motd", "D /notes"],
            ),
            Check(
                "the two images differ in exactly these files",
                lambda stage: sorted(stage.done[7].output.splitlines()) == ["A /new", "C /motd (6B -> 8B)", "D /notes"],
            ),
            Check(
                "the layer made by commit has 12 bytes",
                lambda stage: stage.done[6].output.splitlines()[1].split()[-2:] == ["c1", "12"],
            ),
        ),
        explained="""Everything in the upper is a change: Added, Changed or Deleted. commit packs it into one more
            layer on top of the old ones, which are not copied.""",
    ),
)
