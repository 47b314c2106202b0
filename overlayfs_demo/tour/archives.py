"""Small images for experiments and labs, made on the stage, each with its history.

Their files are in the root directory, so that a layer fits in a few lines.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from overlayfs_demo.images.sample_image import LayerTar, Step, write_image
from overlayfs_demo.tour.building import big
from overlayfs_demo.tour.stage import Stage

# The time of all files: 2024-01-01T00:00:00Z, in seconds since the epoch.
_WHEN = 1_704_067_200
SHELL: Mapping[str, object] = {"Cmd": ["/bin/sh"]}


def tar() -> LayerTar:
    """Return a layer to fill."""
    return LayerTar(_WHEN)


def metadata(instruction: str) -> Step:
    """Return a step of the classic builder that makes no layer, such as `ENV COLOUR=blue`."""
    return Step(f"/bin/sh -c #(nop)  {instruction}")


def added(name: str, text: str) -> Step:
    """Return a step of the classic builder that adds one file."""
    return Step(f"/bin/sh -c #(nop) COPY file:{name} in / ", tar().file(name, text).finished())


def ran(command: str, layer: LayerTar) -> Step:
    """Return a step of the classic builder that runs a command, which leaves these changes."""
    return Step(f"/bin/sh -c {command}", layer.finished())


def base(text: str = "hello\n", tool: int = 1_000_000) -> Step:
    """Return a first layer, with the files motd, which contains this text, and tool, of this many bytes."""
    layer = tar().file("motd", text)
    if tool:
        layer.file("tool", big(tool))
    return Step("/bin/sh -c #(nop) ADD file:base in / ", layer.finished())


def write(stage: Stage, file: str, name: str, steps: Sequence[Step], settings: Mapping[str, object] = SHELL) -> None:
    """Write `file`, an archive of the image `name`. `settings` is the object `config` of the image's configuration."""
    with stage.path(file).open("wb") as out:
        write_image(out, name, steps, settings)


def images(**archives: Sequence[Step]) -> Callable[[Stage], None]:
    """Return a function that writes `NAME.tar`, an archive of the image NAME:1.0, for each of these."""

    def prepare(stage: Stage) -> None:
        for name, steps in archives.items():
            write(stage, f"{name}.tar", f"{name}:1.0", steps)

    return prepare
