"""The lab in which sizes are predicted, judged by doing on a second view what was predicted."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from overlayfs_demo.errors import OverlayError
from overlayfs_demo.tour.building import big
from overlayfs_demo.tour.checks import Check
from overlayfs_demo.tour.lab import Lab
from overlayfs_demo.tour.scan import Kind
from overlayfs_demo.tour.stage import Stage

_TRIAL = ".trial"
# The commands, each with the rule that decides what it costs. tests/tour/test_beside_the_kernel.py has the rules, too.
_RULES = {
    "printf x >> merged/log": "Copy-up works on whole files: the old bytes are copied, and the new one is added.",
    "printf y >> merged/log": "The file is in the upper already: only what is new is added.",
    "chmod 755 merged/tool": "The mode is stored with the file, so the file is copied up with all its data.",
    "rm merged/letter": "A deletion leaves a whiteout, and a whiteout has no data.",
    "mv merged/book merged/novel": "The file is copied up under its new name; the whiteout for the old one is empty.",
    "echo new > merged/draft": "With > a file is emptied before it is written, so nothing old is copied.",
}


def _list_commands(stage: Stage) -> None:
    lines = [f"{number}  {command}\n" for number, command in enumerate(_RULES, 1)]
    stage.path("commands").write_text("".join(lines))


def _measured(stage: Stage) -> list[int]:
    """Return the number of bytes that each command adds to the files of an upper. Raises OverlayError."""
    sizes = [0]
    _run(stage, f"mkdir {_TRIAL} && cd {_TRIAL} && mkdir upper work merged")
    try:
        _run(
            stage,
            f"cd {_TRIAL} && overlayfs-demo mount -o userxattr,lowerdir=../lower,upperdir=upper,workdir=work merged",
        )
        for command in _RULES:
            _run(stage, f"cd {_TRIAL} && {command}")
            files = stage.tree(f"{_TRIAL}/upper").values()
            sizes.append(sum(file.size for file in files if file.kind is Kind.FILE))
    finally:
        stage.unmount()
        _run(stage, f"rm -r {_TRIAL}")
    return [after - before for before, after in itertools.pairwise(sizes)]


def _run(stage: Stage, command: str) -> None:
    done = stage.run(command)
    if done.status:
        raise OverlayError(f"'{command}' failed", done.output.strip())


def _answers(stage: Stage) -> Sequence[str]:
    path = stage.path("answer")
    return path.read_text(errors="replace").replace(",", "").split() if path.is_file() else ()


def _not_numbers(stage: Stage) -> str:
    answers = _answers(stage)
    if not answers:
        return f"The file answer is still empty. It needs {len(_RULES)} lines: one number for each command."
    if wrong := [answer for answer in answers if not (answer.isascii() and answer.isdigit())]:
        return f"'{wrong[0]}' in the file answer is not a number of bytes. Write digits only, as in 100000."
    if len(answers) != len(_RULES):
        return f"The file answer has {len(answers)} numbers, and there are {len(_RULES)} commands."
    return ""


def _wrong(stage: Stage) -> str:
    said = [int(answer) for answer in _answers(stage)]
    for number, (rule, ours, measured) in enumerate(zip(_RULES.items(), said, _measured(stage), strict=True), 1):
        if ours != measured:
            command, why = rule
            return f"Line {number} says {ours:,} bytes for '{command}', but it adds another number. {why}"
    return ""


LAB = Lab(
    name="predict",
    summary="say what commands will cost, before they are run",
    task="""The lower has five files: 'ls -l lower' shows their sizes. The file commands, beside merged, lists six
        commands that will be run, one after the other. How many bytes will each add to the files in the upper? Write
        six lines into the file answer, and leave the shell. The commands are then run on a new view, and the bytes are
        counted.""",
    prepare=_list_commands,
    layers={
        "lower": {
            "log": big(100_000),
            "tool": big(200_000),
            "letter": big(3_000),
            "book": big(50_000),
            "draft": big(70_000),
        }
    },
    mistakes=(_not_numbers, _wrong),
    goals=(Check("there is an answer for every command", lambda stage: len(_answers(stage)) == len(_RULES)),),
    hints=(
        """Which commands are the first to write to a file of the lower? Which write to a file that is in the
        upper already? Which write no data at all?""",
        """Copy-up works on whole files: before the first write, chmod or rename, all data of the file is copied.
        A whiteout has no data. With >, the shell empties the file first, so nothing is copied.""",
        """For each command, add two numbers: the size of the file in the lower if it is copied now, or else 0;
        and the bytes that the command itself writes. echo writes its words and a newline.""",
    ),
    solved="A first write costs the whole file, a deletion nothing, and with > nothing old is copied.",
)
