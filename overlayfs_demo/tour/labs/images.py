"""Labs with images: their history, the secrets in them, and what they ship."""

from __future__ import annotations

from collections.abc import Iterator

from overlayfs_demo.store.store import Store
from overlayfs_demo.store.stored import StoredImage
from overlayfs_demo.tour.archives import added, base, images, metadata, ran, tar
from overlayfs_demo.tour.building import big
from overlayfs_demo.tour.checks import Check
from overlayfs_demo.tour.lab import Lab
from overlayfs_demo.tour.scan import Kind, scan
from overlayfs_demo.tour.stage import Stage


def _image(stage: Stage, name: str) -> StoredImage | None:
    return next((image for image in Store(stage.path(".store")).images() if name in map(str, image.names)), None)


def _answer(stage: Stage) -> str:
    path = stage.path("answer")
    return path.read_text(errors="replace").strip() if path.is_file() else ""


# --- match-history ---------------------------------------------------------------------------------


def _rows(stage: Stage) -> list[str]:
    """Return the steps of app:1.0 that made a layer by their numbers, from the oldest; "" for the others."""
    image = _image(stage, "app:1.0")
    return [] if image is None else ["" if row.empty_layer else row.created_by for row in image.parsed.history]


def _matching(stage: Stage) -> list[int]:
    """Return the numbers of the rows that made the layers, from the bottom layer up."""
    return [number for number, step in enumerate(_rows(stage), 1) if step]


def _no_rows(stage: Stage) -> str:
    words = _answer(stage).split()
    if not words:
        return "The file answer is still empty. It needs a number for each layer that inspect lists under RootFS."
    rows = len(_rows(stage))
    if wrong := [word for word in words if not (word.isascii() and word.isdigit() and 1 <= int(word) <= rows)]:
        return f"'{wrong[0]}' in the file answer is not the number of a row. Write numbers from 1 to {rows}."
    return ""


def _wrong_rows(stage: Stage) -> str:
    said, right = [int(word) for word in _answer(stage).split()], _matching(stage)
    rows = len(_rows(stage))
    if said == right:
        return ""
    if sorted(rows + 1 - number for number in said) == right:
        return "You counted from the newest row, which history prints first. Row 1 is the last line that it prints."
    if sorted(said) == right:
        return "Those are the right rows, but in another order: inspect lists the bottom layer first."
    if extra := [number for number in said if number not in right]:
        return (
            f"Row {extra[0]} only changed the image's config, and has no layer. In this history, such rows begin with "
            "#(nop) and name a setting: ENV, LABEL or CMD."
        )
    missing = next(number for number in right if number not in said)
    return (
        f"Row {missing} is missing. A SIZE of 0B does not mean that there is no layer: a whiteout has no data, but "
        "needs a layer. 'overlayfs-demo inspect app:1.0' lists as many layers as there must be rows."
    )


MATCH = Lab(
    name="match-history",
    summary="find the row of history that made each layer of inspect",
    task="""The image app:1.0 is loaded. overlayfs-demo history app:1.0 prints seven rows, the newest first, but
        overlayfs-demo inspect app:1.0 lists fewer Layers under RootFS, the bottom one first. Number the rows from the
        oldest, 1, to the newest, 7. For each layer of inspect, in that order, write the number of the row that made it
        into the file answer.""",
    prepare=images(
        app=(
            base(tool=0),
            metadata("ENV COLOUR=blue"),
            added("app", big(200_000)),
            ran("make-cache", tar().file("cache", big(500_000))),
            metadata("LABEL team=red"),
            ran("rm /cache", tar().file(".wh.cache", "")),
            metadata('CMD ["/app"]'),
        )
    ),
    before=("overlayfs-demo load app.tar",),
    mistakes=(_no_rows, _wrong_rows),
    goals=(Check("every layer has its row", lambda stage: len(_answer(stage).split()) == len(_matching(stage))),),
    hints=(
        """history has more rows than inspect has layers. Which steps change files, and which only change a
        setting of the image?""",
        """ENV, LABEL and CMD only change the config, and make no layer. ADD, COPY and RUN make one each, even one
        of 0B: a whiteout has no data.""",
        """'overlayfs-demo history --layers app:1.0' shows the layer of each row, or says 'metadata only'. Row 1
        is the last line: count upwards from it, and write down the rows that have a layer.""",
    ),
    solved="""Layers belong to the rows that change files, in the same order, even if a row has 0B: history --layers
        shows them side by side.""",
)

# --- find-secret and shrink ------------------------------------------------------------------------

_SECRET, _TEXT = "password", "correct horse"
_SHIPS_A_SECRET = images(
    app=(
        base(tool=0),
        added(_SECRET, f"{_TEXT}\n"),
        ran(f"./deploy && rm /{_SECRET}", tar().file(f".wh.{_SECRET}", "")),
    )
)


def _not_the_secret(stage: Stage) -> str:
    said = _answer(stage)
    if said == _TEXT:
        return ""
    if not said:
        return "The file answer is still empty. 'overlayfs-demo ghosts app:1.0' names the file, and the layer it is in."
    if _SECRET in said:
        return f"{_SECRET} is the name of the file. What does it contain? Look into the layer that ships it."
    return (
        f"The answer says '{said[:40]}', and that is not the text of the file. "
        "'build-layers --userxattr app.tar layers' makes a directory of each layer: look into the one from ghosts."
    )


FIND = Lab(
    name="find-secret",
    summary="read a password that was deleted from an image",
    task="""The image app:1.0 is loaded from app.tar. A file was added to it by mistake and deleted in a later step, so
        a container does not show it. Find that file, read it, and write its text into the file answer.
        (overlayfs-demo ghosts, which --image, and build-layers may help.)""",
    prepare=_SHIPS_A_SECRET,
    before=("overlayfs-demo load app.tar",),
    mistakes=(_not_the_secret,),
    goals=(Check("the file answer has one line", lambda stage: len(_answer(stage).splitlines()) == 1),),
    hints=(
        """The later step only hides the file: the layer that has it is still shipped. Which file is it, and which
        layer has it?""",
        """'overlayfs-demo ghosts app:1.0' names the file and the layer that ships it, counted from the bottom. A
        container does not show the file, so you must look into that layer itself.""",
        """build-layers takes app.tar apart, into a directory for each layer: 'build-layers --help' says how. Find
        the directory with the number that ghosts printed, and write the text of the file in it into answer.""",
    ),
    solved="Whoever has the image has all its layers, and so each file that a layer only hides. Change that password.",
)


def _no_clean_image(stage: Stage) -> str:
    if _image(stage, "app:clean") is not None:
        return ""
    return "There is no image app:clean yet. 'overlayfs-demo images' lists the images."


def _layers_with(stage: Stage, name: str) -> Iterator[int]:
    """Return the numbers of the layers of app:clean, counted from the bottom, that have a file of this name."""
    image = _image(stage, "app:clean")
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


SHRINK = Lab(
    name="shrink",
    summary="make an image that does not ship a deleted password",
    task="""The image app:1.0 is loaded. One of its layers adds the file password, and a later one deletes it, so
        it still ships: overlayfs-demo ghosts app:1.0 shows it. Make an image app:clean that looks the same and
        does not ship it. (overlayfs-demo create, commit, export and import may help; see their --help.)""",
    prepare=_SHIPS_A_SECRET,
    before=("overlayfs-demo load app.tar",),
    mistakes=(_no_clean_image, _ships_secret),
    goals=(Check("app:clean has the file motd", lambda stage: any(_layers_with(stage, "motd"))),),
    hints=(
        """An image that is built on the layers of app:1.0 ships all of them. How do you get an image that is not
        built on them?""",
        """commit adds a layer on top of the old ones, so it does not help. export writes one tar of all the files
        that a container shows, and a deleted file is not one of them.""",
        """Create a container of app:1.0, export it into a tar, and import that tar as app:clean. The --help of
        each of the three commands has an example.""",
    ),
    solved="An exported container is one flat tree, without hidden files, history, or settings such as CMD.",
)
