"""Experiments with images: their history, their layers, their metadata, and what they cost."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from overlayfs_demo.images.sample_image import Step
from overlayfs_demo.tour import checks
from overlayfs_demo.tour.archives import added, base, images, metadata, ran, tar
from overlayfs_demo.tour.building import big
from overlayfs_demo.tour.checks import Check
from overlayfs_demo.tour.experiment import Experiment, Refused
from overlayfs_demo.tour.scan import Kind
from overlayfs_demo.tour.stage import Stage

BUILD = "build-layers --userxattr app.tar layers > log 2>&1"
HISTORY = "overlayfs-demo history --human false {} | cut -c 39-"
# Digests are cut to the 12 digits that docker shows.
SHORT = "sed 's/.\\{52\\}\"/\"/'"
_SIZES = "find layers/0* -type f -printf '%9s  %p\\n' | sort -k 2"


def _layers(**titles: str) -> Mapping[str, str]:
    return {title.replace("_", " "): f"layers/{start}-*" for title, start in titles.items()}


def _shipped(stage: Stage) -> int:
    """Return the number of bytes of all files in the layers that build-layers made."""
    return sum(
        entry.size
        for path, entry in stage.tree("layers").items()
        if entry.kind is Kind.FILE and not path.startswith(".")
    )


def _inspected(stage: Stage, file: str) -> Any:
    """Return the description of an image that `inspect` printed into a file."""
    return json.loads(stage.path(file).read_text())[0]


def _layers_are_the_tars(stage: Stage) -> bool:
    listed = [layer.removeprefix("sha256:") for layer in _inspected(stage, "about")["RootFS"]["Layers"]]
    return sorted(listed) == sorted(line.split()[0] for line in stage.done[3].output.splitlines())


def _id_is_the_config(stage: Stage) -> bool:
    return bool(_inspected(stage, "about")["Id"].removeprefix("sha256:") == stage.done[5].output.split()[0])


EXPERIMENTS = (
    Experiment(
        name="history-sizes",
        summary="history's sizes are those of the layers on disk",
        question="""docker history prints a SIZE for every step of an image. Some steps show 0. Do they have no layer,
            or an empty one? And do the other sizes match the disk?""",
        prepare=images(
            app=(
                base(),
                metadata("ENV COLOUR=blue"),
                added("data", big(250_000)),
                ran("rm /motd", tar().file(".wh.motd", "")),
            )
        ),
        do=("overlayfs-demo load app.tar", HISTORY.format("app:1.0"), BUILD, _SIZES),
        look=_layers(layer_1="01", layer_2="02", layer_3="03"),
        checks=(
            checks.printed("1000006", "250000", by=1),
            Check("four steps made three layers", lambda stage: len(list(stage.root.glob("layers/0*"))) == 3),
            Check("the layers contain 1,250,006 bytes, the sum of SIZE", lambda stage: _shipped(stage) == 1_250_006),
        ),
        explained="""SIZE is the data of the files in a step's layer: ENV creates no layer at all, and rm creates
            one with nothing but a whiteout in it. du reports more, because it counts whole blocks, and directories.""",
        sources={
            "docker history prints a SIZE": "test_docker_tells_the_same_of_every_image",
            "du reports more": "du(1), --apparent-size",
        },
    ),
    Experiment(
        name="metadata",
        summary="ENV, LABEL and CMD change the ID and make no layer",
        question="""app:1.0 has one layer. more:1.0 is built from it, and its Dockerfile adds ENV, LABEL and CMD. How
            many layers will the store have then? And will both images have one ID?""",
        prepare=images(
            app=(base(),),
            more=(base(), metadata("ENV COLOUR=blue"), metadata("LABEL team=red"), metadata('CMD ["/tool"]')),
        ),
        do=(
            "overlayfs-demo load app.tar && overlayfs-demo load more.tar",
            HISTORY.format("more:1.0"),
            "overlayfs-demo inspect app:1.0 > app && overlayfs-demo inspect more:1.0 > more",
            f"grep -e '\"Id\"' -e '  \"sha256' app more | {SHORT}",
            "ls .store/layers | grep -c -v '[.]'",
        ),
        look={},
        checks=(
            Check(
                "the two IDs differ", lambda stage: _inspected(stage, "app")["Id"] != _inspected(stage, "more")["Id"]
            ),
            Check(
                "both images have the same single layer",
                lambda stage: (
                    _inspected(stage, "app")["RootFS"] == _inspected(stage, "more")["RootFS"]
                    and len(_inspected(stage, "app")["RootFS"]["Layers"]) == 1
                ),
            ),
            Check("the store has one layer", lambda stage: stage.done[4].output == "1\n"),
        ),
        explained="""Such lines change only the image's config, a small JSON file with settings and history. The config
            is another, so the ID is another; not a byte of a layer is added.""",
    ),
    Experiment(
        name="inspect",
        summary="inspect lists the digests of the layers' tars",
        question="""inspect shows an image's ID, its Config and, under RootFS, its Layers: long numbers that begin with
            sha256. They are digests, but of what? And which is the bottom layer, the first or the last?""",
        prepare=images(app=(base(tool=0), metadata("ENV COLOUR=blue"), added("new", "new\n"))),
        do=(
            "overlayfs-demo load app.tar && overlayfs-demo inspect app:1.0 > about",
            f"grep -A 2 -e '\"Layers\"' -e '\"Cmd\": .$' about | {SHORT}",
            "mkdir app && tar -xf app.tar -C app",
            "sha256sum app/*/layer.tar",
            "tar -tf app/$(grep -o '[^\"]*/layer.tar' app/manifest.json | head -n 1)",
            "sha256sum app/$(grep -o '[0-9a-f]*[.]json' app/manifest.json)",
            f"grep '\"Id\"' about | {SHORT}",
        ),
        look={},
        checks=(
            Check("Layers are the SHA-256 of the layers' tars", _layers_are_the_tars),
            Check("the first layer is the bottom one, with motd", lambda stage: stage.done[4].output == "motd\n"),
            Check("the image's ID is the SHA-256 of its config", _id_is_the_config),
        ),
        explained="""Layers lists the diff IDs from the bottom up; a diff ID is the SHA-256 of a layer's tar, not
            compressed. The ID of an image is that of its config, which contains this list, so an ID stands for every
            byte. In Docker: with the containerd image store, new in 29, the ID is the digest of the manifest.""",
        sources={
            "with the containerd image store": "docs.docker.com, containerd image store with Docker Engine (the "
            "default of new installations since 29); OCI image-spec, descriptor.md"
        },
    ),
    Experiment(
        name="scratch",
        summary="FROM scratch means that there is nothing below",
        question="""A Dockerfile has two lines: FROM scratch, and COPY motd /. Is scratch an image with a layer of its
            own? What will be in a container?""",
        prepare=images(app=(added("motd", "hello\n"),)),
        do=(
            Refused("overlayfs-demo inspect scratch"),
            "overlayfs-demo load app.tar",
            HISTORY.format("app:1.0"),
            f"overlayfs-demo inspect app:1.0 | grep -A 2 '\"Layers\"' | {SHORT}",
            "mkdir merged && overlayfs-demo create app:1.0 --name c1 --at merged",
            "ls -A merged",
        ),
        look={},
        checks=(
            Check("history has one row", lambda stage: len(stage.done[2].output.splitlines()) == 1 + 1),
            Check("inspect lists one layer", lambda stage: stage.done[3].output.count("sha256:") == 1),
            checks.exactly("merged", "motd"),
        ),
        explained="""scratch is not an image: the first step that adds files makes the bottom layer. So the container
            has only the files that were copied, not even a shell. In Docker: the name is reserved, and docker pull
            scratch is refused.""",
        sources={"the name is reserved": "test_scratch_is_not_an_image_of_docker_either"},
    ),
    Experiment(
        name="delete-does-not-shrink",
        summary="deleting in a later layer does not shrink an image",
        question="""A Dockerfile has RUN make-cache, which leaves 2 MB, and in the next line RUN rm cache. How big is
            the image?""",
        prepare=images(
            app=(
                base(tool=0),
                ran("make-cache", tar().file("cache", big(2_000_000))),
                ran("rm /cache", tar().file(".wh.cache", "")),
            )
        ),
        do=(
            "overlayfs-demo load app.tar",
            HISTORY.format("app:1.0"),
            "overlayfs-demo ghosts app:1.0",
            BUILD,
            "mkdir merged && overlayfs-demo mount \\\n"
            "    -o userxattr,lowerdir=$(ls -dr layers/* | paste -sd :) merged",
            "cat layers/02*/cache | wc -c",
        ),
        look={**_layers(layer_1="01", layer_2="02", layer_3="03"), "merged": "merged"},
        checks=(
            checks.exactly("merged", "motd"),
            checks.printed("2MB", "/cache", by=2),
            checks.printed("2000000"),
            Check("the layers ship 2,000,006 bytes", lambda stage: _shipped(stage) == 2_000_006),
        ),
        explained="""The third layer can only hide the file in the second, which is still shipped to everyone:
            anyone can read a password deleted in this way. Delete it in the same RUN line, or build in stages.""",
        sources={
            "Delete it in the same RUN line": "test_in_docker_a_file_deleted_in_its_own_step_ships_nothing",
            "build in stages": "docs.docker.com, Multi-stage builds",
        },
    ),
    Experiment(
        name="chmod-doubles",
        summary="RUN chmod doubles a file",
        question="""An image has a tool of 1 MB. The next line of its Dockerfile is RUN chmod 755 /tool. How big is the
            image now?""",
        prepare=images(app=(base(), ran("chmod 755 /tool", tar().file("tool", big(1_000_000), 0o755)))),
        do=("overlayfs-demo load app.tar", HISTORY.format("app:1.0"), BUILD, _SIZES),
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
            --chmod=755 (BuildKit's) sets the mode when the file is added, and costs nothing.""",
        sources={
            "chmod copied the whole file up": "test_in_docker_run_chmod_ships_the_file_again",
            "--chmod=755": "docs.docker.com, Dockerfile reference, COPY --chmod",
        },
    ),
    Experiment(
        name="buildkit-history",
        summary="BuildKit writes the history in other words",
        question="""Docker has two builders. The classic one records RUN chmod as /bin/sh -c chmod, and everything else
            as #(nop), a shell comment. How does BuildKit, the default since Docker 23, record the same Dockerfile? Will
            the layers differ?""",
        prepare=images(
            classic=(
                added("motd", "hello\n"),
                metadata("ENV COLOUR=blue"),
                ran("chmod 600 /motd", tar().file("motd", "hello\n", 0o600)),
                metadata('CMD ["/app"]'),
            ),
            buildkit=(
                Step("COPY motd / # buildkit", tar().file("motd", "hello\n").finished(), "buildkit.dockerfile.v0"),
                Step("ENV COLOUR=blue", comment="buildkit.dockerfile.v0"),
                Step(
                    "RUN /bin/sh -c chmod 600 /motd # buildkit",
                    tar().file("motd", "hello\n", 0o600).finished(),
                    "buildkit.dockerfile.v0",
                ),
                Step('CMD ["/app"]', comment="buildkit.dockerfile.v0"),
            ),
        ),
        do=(
            "overlayfs-demo load classic.tar && overlayfs-demo load buildkit.tar",
            HISTORY.format("classic:1.0"),
            HISTORY.format("buildkit:1.0"),
            "overlayfs-demo inspect classic:1.0 > classic",
            "overlayfs-demo inspect buildkit:1.0 > buildkit",
            f"grep -h -e '\"Id\"' -e '  \"sha256' classic buildkit | {SHORT}",
        ),
        look={},
        checks=(
            checks.printed("#(nop)  ENV COLOUR=blue", "/bin/sh -c chmod", by=1),
            checks.printed("COPY motd / # buildkit", "RUN /bin/sh -c chmod", "buildkit.dockerfile.v0", by=2),
            Check(
                "both images have the same layers",
                lambda stage: _inspected(stage, "classic")["RootFS"] == _inspected(stage, "buildkit")["RootFS"],
            ),
            Check(
                "the IDs differ",
                lambda stage: _inspected(stage, "classic")["Id"] != _inspected(stage, "buildkit")["Id"],
            ),
        ),
        explained="""The words differ, and with them the configs and the IDs. Steps, sizes and layers are counted in the
            same way. In Docker: the same RUN line seldom makes the same layer twice, because the times of its files
            differ.""",
        sources={
            "The classic one records": "test_docker_writes_the_classic_history",
            "How does BuildKit": "moby/buildkit, frontend/dockerfile/dockerfile2llb/convert.go, commitToHistory",
            "the default since Docker 23": "docs.docker.com, BuildKit",
            "seldom makes the same layer twice": "docs.docker.com, Reproducible builds (SOURCE_DATE_EPOCH)",
        },
    ),
)
