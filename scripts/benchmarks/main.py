"""The command line of `scripts/benchmark`."""

from __future__ import annotations

import argparse
import contextlib
import os
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks import measure, picture, report, targets
from benchmarks.inputs import FULL, QUICK, Sizes, filesystem
from benchmarks.peers import BUILT_IN, find_peers, kernel, parse_peer
from benchmarks.results import FUSEPY, Place, Results, read_json, write_json
from benchmarks.rows import ROWS, Row, choose

ABOUT = """\
Measure views of our fronts against the kernel's overlayfs, fuse-overlayfs, and a loopback in C as FUSE's limit.

Every measurement has a mount of its own, and checks its results. It all happens in a mount namespace of its own.
Only root can drop the kernel's caches, without which rows that start cold on a disk are left out; for everyone else
it runs in a user namespace, too. The time of the tools themselves (find, tar, a loop in Python) is the same for every
peer and is not subtracted, so the mounts alone differ more than the ratios say.
"""
_NAMESPACE = "OVERLAYFS_DEMO_BENCHMARK_NAMESPACE"


def arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/benchmark", description=ABOUT, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--quick", action="store_true", help=f"less of everything, in 3 rounds; without the slowest rows and {FUSEPY}")
    add("--only", metavar="ROW,...", help="measure these rows (shell patterns); --list names all")
    add("--list", action="store_true", help="print the rows with what each does, and measure nothing")
    add("--on", nargs="+", type=Path, metavar="DIR", help="where (default: a tmpfs made for this, and /var/tmp)")
    add("--rounds", type=int, metavar="N", help="default: 5")
    add("--peers", metavar="NAME,...", help=f"default: {','.join(BUILT_IN)}")
    add(
        "--peer",
        action="append",
        default=[],
        metavar="NAME='COMMAND'",
        help="also measure what this command mounts, in which {lower}, {upper}, {work} and {mnt} stand for the paths",
    )
    add("--json", type=Path, metavar="F", help="write every figure to this file")
    add("--read", type=Path, metavar="F", help="read the figures that --json wrote, and measure nothing")
    add("--plot", type=Path, metavar="F.svg", help="draw the figures")
    add("--markdown", type=Path, metavar="F.md", help=f"write the tables into this document, between {report.START} …")
    add("--check", action="store_true", help="name the rows that miss a target, and exit with 1 if any does")
    args = parser.parse_args(words)
    try:
        _complete(args)
    except ValueError as error:
        parser.error(str(error))
    return args


def _complete(args: argparse.Namespace) -> None:
    """Check the arguments, and turn names into what they name. Raises ValueError."""
    args.rows = choose(args.only.split(",") if args.only else (), quick=args.quick)
    # That front takes ten times as long as all the others together.
    everything = [name for name in BUILT_IN if not (args.quick and name == FUSEPY)]
    args.peers = args.peers.split(",") if args.peers else everything
    if unknown := {*args.peers} - BUILT_IN.keys():
        raise ValueError(f"no peer is named {min(unknown)!r}; the peers are {', '.join(BUILT_IN)}")
    args.peer = [parse_peer(text) for text in args.peer]
    if args.rounds is None:
        args.rounds = 3 if args.quick else 5
    if args.rounds < 1:
        raise ValueError("--rounds must be at least 1")
    for directory in args.on or ():
        if not directory.is_dir() or set(",:\\ ") & set(str(directory.resolve())):
            raise ValueError(f"--on {directory}: use a directory whose path has no , : \\ or space")


def enter_namespace() -> None:
    """Run this program again in a mount namespace of its own; for an ordinary user, in a user namespace, too."""
    if os.environ.get(_NAMESPACE) == str(os.getpid()):
        return
    # Without a fork, so that the process is still the one that the variable names.
    words = ["unshare", "--mount", "--propagation", "private"]
    words += [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    os.environ[_NAMESPACE] = str(os.getpid())
    os.execvp(words[0], [*words, sys.executable, *sys.argv])


@contextlib.contextmanager
def grounds(args: argparse.Namespace) -> Iterator[list[tuple[Place, measure.Ground]]]:
    """Make a directory at each place, and remove it at the end."""
    sizes = QUICK if args.quick else FULL
    with contextlib.ExitStack() as held:
        directories = args.on
        if not directories:
            memory = held.enter_context(tempfile.TemporaryDirectory(prefix="overlayfs-demo-benchmark-"))
            subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755,nr_inodes=0", "tmpfs", memory], check=True)
            held.callback(subprocess.run, ["umount", "--lazy", memory], check=False)
            # /tmp may be a tmpfs.
            directories = [Path(memory), Path("/var/tmp")]
        made: list[tuple[Place, measure.Ground]] = []
        for parent in directories:
            made.append(_ground(held, parent.resolve(), sizes, [place.name for place, _ in made]))
        yield made


def _ground(
    held: contextlib.ExitStack, parent: Path, sizes: Sizes, taken: Sequence[str]
) -> tuple[Place, measure.Ground]:
    directory = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="overlayfs-demo-benchmark-", dir=parent)))
    directory.chmod(0o755)
    kind = filesystem(directory)
    name = "tmpfs" if kind == "tmpfs" else f"disk ({kind})"
    place = Place(name if name not in taken else f"{name}, {parent}", tmpfs=kind == "tmpfs")
    return place, measure.Ground(directory, sizes)


def run(args: argparse.Namespace) -> Results:
    """Measure, as the arguments say."""
    with grounds(args) as made:
        first = made[0][1]
        found = find_peers(args.peers, args.peer, first.directory)
        peers = measure.working(found, first)
        if not peers:
            raise ValueError("no peer can be measured here")
        facts = {
            "system": f"{kernel()}, {os.cpu_count()} processors",
            "size": f"{'quick' if args.quick else 'full'}, {args.rounds} rounds",
        }
        results = Results(facts, {peer.name: peer.version for peer in peers}, [place for place, _ in made])
        measure.measure(results, args.rows, peers, {place.name: ground for place, ground in made}, args.rounds)
    return results


def stop(number: int, _frame: object) -> None:
    signal.signal(number, signal.SIG_IGN)  # A second Ctrl-C must not interrupt the cleanup.
    sys.exit(128 + number)


def print_rows(rows: Sequence[Row]) -> None:
    for row in rows:
        print(f"{row.name:<22} {row.about}")


def tell(args: argparse.Namespace, results: Results) -> int:
    """Print and write the results as the arguments say, and return the exit status."""
    print(report.terminal(results))
    if args.json:
        write_json(results, args.json)
    if args.plot:
        args.plot.write_text(picture.draw(results))
    if args.markdown:
        picture_here = os.path.relpath(args.plot, args.markdown.parent) if args.plot else ""
        report.write_into(args.markdown, report.markdown(results, picture_here))
    if not args.check:
        return 0
    verdict = targets.check(results)
    print()
    for line in verdict.unknown:
        print(f"UNKNOWN {line}")
    for line in verdict.missed:
        print(f"MISSED  {line}")
    print(f"{len(verdict.missed)} targets are missed" if verdict.missed else "every target is reached")
    return 1 if verdict.missed else 0


def main(words: Sequence[str] | None = None) -> int:
    args = arguments(words)
    if args.list:
        print_rows(args.rows if args.only else ROWS)
        return 0
    try:
        if args.read:
            return tell(args, read_json(args.read))
        enter_namespace()
        # passthrough_ll keeps a descriptor for each name that it knows.
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, stop)  # An exception, so that the mounts are cleaned up.
        return tell(args, run(args))
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        print(f"benchmark: {error}", file=sys.stderr)
        return 2
