"""Do our overlay and the kernel's answer alike, whatever is done to them?

Random stacks, random operations, on both: every answer and the resulting trees are compared. In the end each
mounts what the other wrote. What is found is shrunk and printed with its seed; the exit status is then 1.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tests.conftest import why_no_mounts
from tests.differential.sequence import Case, DivergedError, Setting, run
from tests.differential.shrink import Shrinker


def main(words: Sequence[str] | None = None) -> int:
    arguments = _arguments(words)
    if problem := why_no_mounts():
        print(f"fuzz: {problem}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="overlayfs-demo-fuzz-", dir=arguments.dir) as place:
        os.chmod(place, 0o755)
        setting = Setting(
            Path(place),
            arguments.front,
            arguments.index,
            arguments.metacopy,
            arguments.operations,
            tuple(arguments.ignore),
        )
        return _fuzz(arguments, setting)


def _arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="fuzz", description=__doc__)
    add = parser.add_argument
    add("--seconds", type=float, default=60.0, metavar="N", help="start no new sequence after N seconds (default: 60)")
    add("--sequences", type=int, metavar="N", help="run at most N sequences")
    add("--operations", type=int, default=300, metavar="N", help="in each sequence (default: 300)")
    add("--seed", type=int, default=1, metavar="S", help="of the first sequence; the next has S+1 (default: 1)")
    add("--front", choices=("kernel", "fusepy"), default="kernel", help="default: kernel")
    add("--index", action="store_true", help="keep hard links together (index=on)")
    add("--metacopy", action="store_true", help="copy up only metadata (metacopy=on)")
    add("--shrink", type=float, default=60.0, metavar="N", help="seconds to spend on each reproducer (default: 60)")
    add("--ignore", action="append", default=[], metavar="WHAT", help="ignore a signature, a field or a verb")
    add("--each", type=int, default=1, metavar="N", help="shrink N cases of each kind (default: 1)")
    add("--dir", type=Path, metavar="DIR", help="where to make the trees (default: $TMPDIR or /tmp)")
    return parser.parse_args(words)


def _fuzz(arguments: argparse.Namespace, setting: Setting) -> int:
    deadline = time.monotonic() + arguments.seconds
    kinds: Counter[str] = Counter()
    count = 0
    while time.monotonic() < deadline and (arguments.sequences is None or count < arguments.sequences):
        case = Case.of(arguments.seed + count)
        count += 1
        found = run(case, setting)
        if found is None:
            continue
        kinds[found.signature] += 1
        print(f"seed {case.seed}: {found.signature}", flush=True)
        if kinds[found.signature] <= arguments.each:
            print(report(case, setting, found, arguments.shrink), flush=True)
    print(f"{count} sequences, {kinds.total()} diverged")
    for signature, number in kinds.most_common():
        print(f"{number:6} {signature}")
    return 1 if kinds else 0


def report(case: Case, setting: Setting, found: DivergedError, seconds: float) -> str:
    """The divergence, and the smallest way to it that was found in `seconds`."""
    shrinker = Shrinker(setting, found, seconds)
    small = shrinker.shrunk(case)
    operations = "\n".join(f"    {operation}" for operation in small.operations or ())
    return f"  seed {case.seed}, layers from bottom to top:\n{small.stack}\n{operations}\n{shrinker.found.text}\n"


if __name__ == "__main__":
    sys.exit(main())
