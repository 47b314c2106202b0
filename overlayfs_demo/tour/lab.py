"""Labs, which are tasks for a learner: how they are set up, worked on, and judged."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from overlayfs_demo.errors import OverlayError
from overlayfs_demo.tour.building import Content, build
from overlayfs_demo.tour.checks import Check
from overlayfs_demo.tour.shell import Shell
from overlayfs_demo.tour.stage import PLACES, Stage
from overlayfs_demo.ui.console import PROGRAM

# Returns what is wrong, and the rule behind it; "" if this mistake was not made.
Mistake = Callable[[Stage], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lab:
    """A task for a learner. All texts are for the learner.

    `layers` are mounted on `merged`, the topmost first, with `redirects` passed to `Stage.mount`; then the commands
    `before` are run. `mistakes` are checked in this order, before the `goals`, all of which must hold when nothing
    is mounted. `hints` are given one by one, the vaguest first. `solved` says what was learnt.
    """

    name: str
    summary: str
    task: str
    layers: Mapping[str, Content] = field(default_factory=dict)
    redirects: bool = False
    prepare: Callable[[Stage], None] = lambda stage: None
    before: tuple[str, ...] = ()
    mistakes: tuple[Mistake, ...]
    goals: tuple[Check, ...]
    hints: tuple[str, ...] = ()
    solved: str

    def all_hints(self) -> tuple[str, ...]:
        """Return the hints. The last one says what the goals are."""
        goals = "; ".join(check.says for check in self.goals)
        return *self.hints, f"When the lab is solved, this is true on the disk: {goals}."


def set_up(lab: Lab, stage: Stage) -> None:
    """Make the directories, and bring them into the state in which the task begins. Raises OverlayError.

    The view stays mounted.
    """
    lab.prepare(stage)
    if lab.layers:
        stage.layers(lab.layers)
        stage.mount(lab.redirects)
    for command in lab.before:
        done = stage.run(command)
        if done.status:
            raise OverlayError(f"'{command}' failed", done.output.strip())
    stage.begin()


def work(lab: Lab, stage: Stage, shell: Shell, environment: Mapping[str, str]) -> None:
    """Let the learner work in the shell, which has our stdin and stdout, and then unmount everything.

    `environment` is added to that of the stage. Raises OverlayError.
    """
    merged = stage.path("merged")
    if lab.layers and not os.path.ismount(merged):
        stage.mount(lab.redirects)
    whole = {**os.environ, **stage.environment(), **shell.environment, **environment}
    try:
        subprocess.run(shell.words, cwd=stage.root, env=whole, check=False)
    except OSError as error:
        raise OverlayError(f"{shell.words[0]}: {error.strerror}", "set SHELL to an existing shell") from error
    stage.unmount()


def judge(lab: Lab, stage: Stage, *, restore: bool) -> str:
    """Return what is wrong on the disk, in a text for the learner; "" if the task is done.

    With `restore`, a directory that was removed, or a lower that was changed, is put back, so that the learner can try
    again. Nothing may then be mounted.
    """
    gone = [name for name in PLACES if lab.layers and not stage.path(name).is_dir()]
    removed = f"The directory {gone[0]} was removed" if gone else ""
    rule = "You may remove only what is in it."
    if gone and not restore:
        return f"{removed}; it will be back, but empty, when you leave the shell. {rule}"
    for name in gone:
        stage.path(name).mkdir()
    wrong = _wrong(lab, stage, restore)
    return f"{removed}; it is back, but empty. {rule}" if wrong and gone else wrong


def _wrong(lab: Lab, stage: Stage, restore: bool) -> str:
    """Return what is wrong, as `judge` does, when all directories exist."""
    return (
        _nothing_done(stage)
        or _written_below(lab, stage, restore)
        or next((found for mistake in lab.mistakes if (found := mistake(stage))), "")
        or _missing(lab, stage)
    )


def _nothing_done(stage: Stage) -> str:
    """Return that nothing is done yet: what is missing then is no mistake, and to explain it would be a hint."""
    if not stage.is_untouched():
        return ""
    return f"Nothing has changed yet. In the shell of the lab, '{PROGRAM} lab --hint' says how to begin."


def _written_below(lab: Lab, stage: Stage, restore: bool) -> str:
    for name, content in lab.layers.items():
        if changed := _changed(stage, name):
            if restore:
                if stage.path(name).is_dir():
                    shutil.rmtree(stage.path(name))
                build(stage.path(name), content)
            back = "has been restored" if restore else "is restored when you leave the shell"
            return (
                f"{name}/{changed} was changed in the lower itself. An overlay never writes to a lower, because other "
                f"mounts may use it. Work in merged, so that the change goes to the upper. {name} {back}."
            )
    return ""


def _missing(lab: Lab, stage: Stage) -> str:
    missing = [check.says for check in lab.goals if not check.holds(stage)]
    if not missing:
        return ""
    return f"On the disk, this is not true: {'; '.join(missing)}. 'find upper -ls' shows what is there."


def _changed(stage: Stage, name: str) -> str:
    """Return a path of the layer that has changed, or "" if there is none."""
    before, now = stage.before[name], stage.tree(name) if stage.path(name).is_dir() else {}
    return next((path for path in sorted({*before, *now}) if before.get(path) != now.get(path)), "")
