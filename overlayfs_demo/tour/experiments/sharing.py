"""Experiments with what images and containers share: layers by their digests, and a new upper for each container."""

from __future__ import annotations

import hashlib
from pathlib import Path

from overlayfs_demo.tour import checks
from overlayfs_demo.tour.archives import added, base, images, ran, tar, write
from overlayfs_demo.tour.building import big
from overlayfs_demo.tour.checks import Check
from overlayfs_demo.tour.experiment import Experiment
from overlayfs_demo.tour.experiments.images import HISTORY, SHORT
from overlayfs_demo.tour.stage import Stage


def _upper(container: str) -> str:
    return f".store/containers/{container}/upper"


def _stored(stage: Stage, name: str) -> list[Path]:
    """Return the paths of all files in the store's layers that have this name."""
    return [path for path in stage.path(".store/layers").rglob(name) if path.is_file()]


def _rows(stage: Stage, command: int) -> list[list[str]]:
    """Return the columns of each row of a table that a command printed, without its heading."""
    return [line.split() for line in stage.done[command].output.splitlines()[1:]]


def _versions(stage: Stage) -> None:
    for version in ("1.0", "1.1"):
        steps = (base(), ran("apt-get install library", tar().file("library", big(300_000))), added("app", version))
        write(stage, f"{version}.tar", f"app:{version}", steps)


def _chain(stage: Stage) -> bool:
    """Return whether a chain ID is the digest of the chain ID below and the layer's diff ID."""
    below, diff_id = (f"sha256:{line}" for line in stage.path("digests").read_text().split())
    chain_id = hashlib.sha256(f"{below} {diff_id}".encode()).hexdigest()
    return chain_id == stage.done[3].output.split()[0] and stage.path(f".store/layers/{chain_id}").is_dir()


EXPERIMENTS = (
    Experiment(
        name="shared-layers",
        summary="layers that images share are stored once",
        question="""Two images start with the same layer of 1 MB. layers lists what is stored, with two digests each:
            the DIFF ID of the layer's own tar, and the CHAIN ID, which also covers the layers below it. For a bottom
            layer they are the same. After both images are loaded, how many megabytes are stored?""",
        prepare=images(
            app=(base(), ran("make-app", tar().file("app", big(200_000)))),
            web=(base(), ran("make-web", tar().file("web", big(300_000)))),
        ),
        do=(
            "overlayfs-demo load app.tar && overlayfs-demo load web.tar",
            "overlayfs-demo layers",
            "ls .store/layers | grep -v '[.]' | cut -c -12",
            "overlayfs-demo df",
        ),
        look={},
        checks=(
            Check("three layers are listed, not four", lambda stage: len(_rows(stage, 1)) == 3),
            Check("three directories are stored", lambda stage: len(stage.done[2].output.splitlines()) == 3),
            Check("the file tool is stored once", lambda stage: len(_stored(stage, "tool")) == 1),
            Check("app and web are also stored", lambda stage: len(_stored(stage, "app") + _stored(stage, "web")) == 2),
            Check(
                "for one layer, both digests are the same",
                lambda stage: sum(row[0] == row[1] for row in _rows(stage, 1)) == 1,
            ),
        ),
        explained="""A layer is stored in a directory that is named by its chain ID, so the store already had the first
            layer of the second image. This is why the sizes of images do not add up to their size on disk. In Docker:
            the store is also organised by chain IDs, and docker system df -v shows SHARED SIZE.""",
        sources={
            "the store is also organised by chain IDs": "test_docker_stores_layers_by_their_chain_ids",
            "SHARED SIZE": "test_docker_stores_layers_by_their_chain_ids",
        },
    ),
    Experiment(
        name="chain-id",
        summary="the same tar on another base is another layer",
        question="""one:1.0 and two:1.0 have different bottom layers. On top, both have exactly the same tar, so the
            same diff ID. Will that layer be stored once?""",
        prepare=images(
            one=(base("base one\n", 0), added("app", "the same\n")),
            two=(base("base two\n", 0), added("app", "the same\n")),
        ),
        do=(
            "overlayfs-demo load one.tar && overlayfs-demo load two.tar",
            "overlayfs-demo layers",
            "overlayfs-demo inspect one:1.0 | grep '  \"sha256' | cut -c 25-88 > digests",
            "(printf 'sha256:%s' $(head -n 1 digests)\n printf ' sha256:%s' $(tail -n 1 digests)) | sha256sum",
        ),
        look={},
        checks=(
            Check(
                "the store has four layers, with three diff IDs",
                lambda stage: (
                    len({row[0] for row in _rows(stage, 1)}) == 4 and len({row[1] for row in _rows(stage, 1)}) == 3
                ),
            ),
            Check("the last digest is the name of a stored layer: its chain ID", _chain),
        ),
        explained="""A chain ID is the SHA-256 of the chain ID below, a space, and the diff ID. It stands for a whole
            stack, because what a layer hides depends on what is below.""",
        sources={"A chain ID is": "OCI image-spec, config.md, Layer ChainID"},
    ),
    Experiment(
        name="push-and-pull",
        summary="push and pull send only the layers that are missing",
        question="""app:1.0 was pushed to a registry. For app:1.1, only the last line of the Dockerfile changed. Of its
            three layers, 1.3 MB, what must be sent?""",
        prepare=_versions,
        do=(
            "overlayfs-demo load 1.0.tar && overlayfs-demo load 1.1.tar",
            "layers() { overlayfs-demo inspect app:$1 | grep '  \"sha256' | cut -c 25-36; }\n"
            "layers 1.0 > registry; layers 1.1 > image",
            'while read layer; do\n    grep -q "$layer" registry && echo "$layer: Layer already exists" ||\n'
            '        echo "$layer: Pushed"\ndone < image',
            HISTORY.format("app:1.1"),
        ),
        look={},
        checks=(
            Check("two layers exist already", lambda stage: stage.done[2].output.count("Layer already exists") == 2),
            Check("the last one is sent", lambda stage: stage.done[2].output.splitlines()[-1].endswith(": Pushed")),
            Check("it has three bytes", lambda stage: _rows(stage, 3)[0][-1] == "3"),
        ),
        explained="""Each layer is asked for by its digest, and only what the other side does not have is sent. So put
            what changes often into the last lines of a Dockerfile. In Docker: push and pull say so for each layer, by
            the digests of the compressed tars; docker save always writes all layers.""",
        sources={
            "into the last lines": "docs.docker.com, Optimize cache usage in builds, Order your layers",
            "push and pull say so": "test_docker_pushes_only_the_layers_that_are_missing",
            "by the digests of the compressed tars": "OCI distribution-spec, Pushing blobs; image-spec, manifest.md",
            "docker save always writes all layers": "test_docker_pushes_only_the_layers_that_are_missing",
        },
    ),
    Experiment(
        name="two-containers",
        summary="two containers of one image share its layers",
        question="""Two containers are created from one image, and you change motd in the first. What will you read in
            the second?""",
        prepare=images(app=(base(tool=0),)),
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
        explained="""Both share the same layers, and each has its own upper, which starts empty. So creating a container
            copies nothing, and a hundred of them need hardly more space than one.""",
    ),
    Experiment(
        name="container-directories",
        summary="a container is a new upper on the image's layers",
        question="""inspect also says where things are, under GraphDriver: for an image, its topmost layer as UpperDir
            and the others as LowerDir. Where will a file be that you create in a container? In that UpperDir?""",
        prepare=images(app=(base(tool=0), added("app", "app\n"))),
        do=(
            "overlayfs-demo load app.tar",
            f'overlayfs-demo inspect app:1.0 |\n    grep -o \'"[A-Za-z]*Dir": "[./].*\' | {SHORT}',
            "mkdir c1 && overlayfs-demo create app:1.0 --name c1 --at c1",
            "echo new > c1/new",
            "find .store/containers/c1 -mindepth 1 -maxdepth 2 | grep -v json | sort",
        ),
        look={"upper of c1": _upper("c1"), "c1": "c1"},
        checks=(
            checks.printed("LowerDir", "UpperDir", ".store/layers/", by=1),
            checks.text(f"{_upper('c1')}/new", "new\n"),
            Check("no layer has the file", lambda stage: not _stored(stage, "new")),
            checks.exactly("c1", "app", "motd", "new"),
        ),
        explained="""All layers of the image are lowers of the container, which adds an upper and a work directory of
            its own. The four are the options of its mount: lowerdir=, upperdir=, workdir=, and where it is mounted. In
            Docker: docker inspect c1 shows them as LowerDir, UpperDir, WorkDir and MergedDir, with one more lower,
            NAME-init, for files such as /etc/hosts.""",
        sources={
            "docker inspect c1 shows them": "test_docker_shows_the_four_directories_of_a_container",
            "NAME-init": "test_docker_shows_the_four_directories_of_a_container",
        },
    ),
    Experiment(
        name="diff-and-commit",
        summary="diff reads the upper, commit makes it a layer",
        question="""In a container you change one file, delete one and add one. What will diff print, and how many
            layers will the committed image have?""",
        prepare=images(app=(added("motd", "hello\n"), added("notes", "some notes\n"))),
        do=(
            "overlayfs-demo load app.tar",
            "mkdir c1",
            "overlayfs-demo create app:1.0 --name c1 --at c1",
            "echo changed > c1/motd; rm c1/notes; echo new > c1/new",
            "overlayfs-demo diff c1",
            "overlayfs-demo commit c1 app:1.1 > id",
            HISTORY.format("app:1.1"),
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
            Check("the store has three layers", lambda stage: len(list(stage.root.glob(".store/layers/*.json"))) == 3),
        ),
        explained="""Everything in the upper is a change: Added, Changed or Deleted. commit packs it into one more
            layer on top of the old ones, which are not copied.""",
    ),
)
