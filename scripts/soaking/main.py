"""The command line of `scripts/soak`."""

from __future__ import annotations

import argparse
import contextlib
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from soaking import load, store, takeover
from soaking.figures import LEAST, Figures, growing
from soaking.served import Served, served

ABOUT = """\
view: use a view in many ways at a time (files, renames, copy-ups, listings, killed programs, changes behind the view,
watchers that come and go), print what its daemon takes, and exit with 1 if that does not level off.

takeover: kill the daemon of a view again and again, while tar, git, sqlite and rsync use it, and exit with 1 if one of
them notices.

store: load, commit, create, tag, remove and prune in many processes at a time that are killed at random, and exit with
1 if an image that is listed is not whole.
"""
_INTERVAL = 60.0
_SAMPLES = 12


def main(words: Sequence[str] | None = None) -> int:
    """Run the command, and return its exit status."""
    parser = argparse.ArgumentParser(
        prog="scripts/soak", description=ABOUT, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="?", choices=("view", "takeover", "store"), default="view")
    parser.add_argument("--minutes", type=float, default=60.0, metavar="N", help="how long (default: 60)")
    parser.add_argument("--seed", type=int, default=None, metavar="N", help="repeat the random choices of another run")
    parser.add_argument(
        "--directory", type=Path, default=None, metavar="DIR", help="where the layers are (default: /tmp)"
    )
    arguments = parser.parse_args(words)
    seed = random.randrange(1 << 32) if arguments.seed is None else arguments.seed
    print(f"seed {seed}", flush=True)
    base = Path(tempfile.mkdtemp(prefix="soak-", dir=arguments.directory))
    if arguments.what == "view":
        return _soak_view(base, 60 * arguments.minutes, seed)
    try:
        soak = takeover.soak if arguments.what == "takeover" else store.soak
        problems = soak(base, 60 * arguments.minutes, seed)
    finally:
        shutil.rmtree(base, ignore_errors=True)
    return _told(problems)


def _soak_view(base: Path, seconds: float, seed: int) -> int:
    try:
        lowers = [base / "top", base / "bottom"]
        load.fill(lowers)
        with served(base, lowers) as view:
            samples, failed = _soak(view, seconds, seed)
    finally:
        with contextlib.suppress(OSError):
            (base / "view").rmdir()  # A view that is still mounted must not be emptied.
            shutil.rmtree(base)
    return _judge(samples, failed)


def _soak(view: Served, seconds: float, seed: int) -> tuple[list[Figures], list[str]]:
    """Return the samples, and the kinds of use that failed."""
    interval = min(_INTERVAL, seconds / _SAMPLES)
    samples: list[Figures] = []
    began = time.monotonic()
    with load.loaded(view, seed) as failed:
        while time.monotonic() - began < seconds or len(samples) < LEAST:
            time.sleep(interval)
            samples.append(view.figures())
            print(f"{(time.monotonic() - began) / 60:6.2f} min  {samples[-1]}", flush=True)
            if failed():
                break
        return samples, failed()


def _judge(samples: Sequence[Figures], failed: Sequence[str]) -> int:
    problems = [f"failed: {kind}" for kind in failed]
    if len(samples) >= LEAST:
        problems += [f"does not level off: {name}" for name in growing(samples)]
    return _told(problems)


def _told(problems: Sequence[str]) -> int:
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
