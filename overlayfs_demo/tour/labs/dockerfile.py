"""The lab in which a Dockerfile is mended, judged by the rules that a builder follows, because nothing is built here.

The source of the instructions is the Dockerfile reference: comments, continued lines, stages, RUN --mount, COPY --from.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from overlayfs_demo.tour.archives import added, base, metadata, ran, tar, write
from overlayfs_demo.tour.building import big
from overlayfs_demo.tour.checks import Check
from overlayfs_demo.tour.lab import Lab
from overlayfs_demo.tour.stage import Stage

_DOCKERFILE = """FROM scratch
COPY rootfs /
COPY source.c /
RUN chmod 600 /motd
RUN make-app /app
RUN rm -r /cache
CMD ["/app"]
"""
_MAKE, _REMOVE = "make-app /app", re.compile(r"\brm\b.*/cache\b")
_CACHE_IS_ELSEWHERE = re.compile(r"--mount=type=(?:cache|tmpfs)\S*(?:target|dst|destination)=/cache\b")


@dataclass(frozen=True, slots=True)
class _Instruction:
    """A line of a Dockerfile, with its continuations."""

    word: str
    rest: str

    @property
    def commands(self) -> list[str]:
        """The shell commands of a RUN line, in their order."""
        return re.split(r"&&|;|\|\||\n", self.rest)


def _last_stage(text: str) -> list[_Instruction]:
    """Return the instructions of the stage whose layers are shipped."""
    lines = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    found: list[_Instruction] = []
    for line in re.sub(r"\\\s*\n", " ", lines).splitlines():
        word, _, rest = line.strip().partition(" ")
        if word.upper() == "FROM":
            found = []
        elif word:
            found.append(_Instruction(word.upper(), rest.strip()))
    return found


def _prepare(stage: Stage) -> None:
    stage.path("Dockerfile").write_text(_DOCKERFILE)
    steps = (
        base(tool=1_000_000),
        added("source.c", big(20_000)),
        ran("chmod 600 /motd", tar().file("motd", "hello\n", 0o600)),
        ran(_MAKE, tar().directory("cache").file("cache/objects", big(3_000_000)).file("app", big(200_000), 0o755)),
        ran("rm -r /cache", tar().file(".wh.cache", "")),
        metadata('CMD ["/app"]'),
    )
    write(stage, "app.tar", "app:1.0", steps)


def _shipped(stage: Stage) -> list[_Instruction]:
    path = stage.path("Dockerfile")
    return _last_stage(path.read_text(errors="replace")) if path.is_file() else []


def _unchanged(stage: Stage) -> str:
    path = stage.path("Dockerfile")
    if not path.is_file():
        return "The file Dockerfile is gone. Write it again, without the step that costs 3 MB for nothing."
    if _last_stage(path.read_text(errors="replace")) != _last_stage(_DOCKERFILE):
        return ""
    return (
        "The Dockerfile still has the same instructions. 'overlayfs-demo history app:1.0' shows what each step costs, "
        "and 'overlayfs-demo analyze app:1.0' how much of it nobody can see."
    )


def _lost(stage: Stage) -> str:
    """The mistake that something is no longer in the image."""
    shipped = _shipped(stage)
    made = any(_MAKE in line.rest for line in shipped if line.word == "RUN")
    copied = any("--from=" in line.rest and "/app" in line.rest for line in shipped if line.word == "COPY")
    needed = {
        "the app, made by 'make-app /app'": made or copied,
        "the files of 'COPY rootfs /'": any(line.word == "COPY" and "rootfs" in line.rest for line in shipped),
        "the file of 'COPY source.c /'": any(line.word == "COPY" and "source.c" in line.rest for line in shipped),
        "the mode 600 of motd": any(re.search("chmod[ =]0?600", line.rest) for line in shipped),
        "the setting 'CMD [\"/app\"]'": any(line.word == "CMD" and "/app" in line.rest for line in shipped),
    }
    lost = [what for what, there in needed.items() if not there]
    return f"The image would no longer have {lost[0]}. Only the cache is useless." if lost else ""


def _cleans_up(line: _Instruction) -> bool:
    """Return whether a RUN line that makes the app leaves no cache in its layer."""
    if _CACHE_IS_ELSEWHERE.search(line.rest):
        return True
    after = line.commands[next(index for index, command in enumerate(line.commands) if _MAKE in command) :]
    return any(_REMOVE.search(command) for command in after)


def _ships_the_cache(stage: Stage) -> str:
    shipped = [line for line in _shipped(stage) if line.word == "RUN"]
    making = [line for line in shipped if _MAKE in line.rest]
    if all(map(_cleans_up, making)):
        return ""
    if any(_REMOVE.search(line.rest) for line in making):
        return "The cache is removed before make-app fills it. Commands of one RUN line run from left to right."
    if any(_REMOVE.search(line.rest) for line in shipped):
        return (
            "The cache is still removed by a step of its own. The layer of the step before is complete by then, and "
            "ships 3 MB. Whatever makes a file must also remove it, in the same RUN line: ... && rm -r /cache"
        )
    return "Nobody removes the cache now: the image still ships it, and shows it as well."


def _removes_twice(stage: Stage) -> str:
    extra = [line for line in _shipped(stage) if line.word == "RUN" and _MAKE not in line.rest]
    if not any(_REMOVE.search(line.rest) and "rm -rf" not in line.rest for line in extra):
        return ""
    return "When 'RUN rm -r /cache' runs, nothing is left to remove: rm fails, and so does the build. Delete that line."


LAB = Lab(
    name="mend-dockerfile",
    summary="find the step that costs most for nothing, and mend it",
    task="""The image app:1.0 was built from the file Dockerfile. It ships 3 MB that nobody can see. Find the step that
        ships them, and edit the Dockerfile so that it does not: everything else that the image has must stay.
        (history and analyze of overlayfs-demo tell what each step costs. make-app leaves objects in /cache. The image
        need not be built again.)""",
    prepare=_prepare,
    before=("overlayfs-demo load app.tar",),
    mistakes=(_unchanged, _lost, _ships_the_cache, _removes_twice),
    goals=(Check("the Dockerfile has instructions", lambda stage: bool(_shipped(stage))),),
    hints=(
        """Which step makes files that a later step deletes? Compare what 'overlayfs-demo history app:1.0' and
        'overlayfs-demo ghosts app:1.0' say.""",
        """The layer of a RUN line is complete when the line ends. A later line can hide its files, but they are
        shipped all the same. Only the line that makes a file can keep it out of the layer.""",
        """Two RUN lines are about /cache. Make them one, with && between the commands, so that the cache is
        removed before the layer is complete. Leave all the other lines as they are.""",
    ),
    solved="What is removed in the step that made it never gets into a layer: 1.2 MB are shipped, not 4.2 MB.",
)
