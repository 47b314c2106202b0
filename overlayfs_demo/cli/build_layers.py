"""The command line of `scripts/build-layers`."""

from __future__ import annotations

import argparse
import os
import re
import signal
import stat
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from overlayfs_demo.analysis.special_files import powers
from overlayfs_demo.cli.command import guarded
from overlayfs_demo.cli.help_text import HelpFormatter
from overlayfs_demo.cli.streams import open_missing_streams
from overlayfs_demo.errors import ImageError, UsageError, printable
from overlayfs_demo.images.build import BuiltLayer, build_layers
from overlayfs_demo.images.model import Platform, running_platform
from overlayfs_demo.mounts.option_paths import lowerdir_option
from overlayfs_demo.ui.console import PROGRAM
from overlayfs_demo.ui.terminal import width
from overlayfs_demo.ui.text import cut_end, human_size, plural

_PROGRAM = "build-layers"
_LONGEST_INSTRUCTION = 100


def _line(number: int, layer: BuiltLayer, width: int | None) -> str:
    """Return the line of a layer; `width` is that of the terminal, None without one."""
    digest, size = f"{layer.diff_id.algorithm}:{layer.diff_id.short}", human_size(layer.size)
    begin = f"{number:>3}  {layer.directory.name}  {digest}  {size:>7}  "
    end = "" if layer.fresh else "  (already built)"
    room = _LONGEST_INSTRUCTION if width is None else min(_LONGEST_INSTRUCTION, width - len(begin) - len(end))
    made = cut_end(printable(layer.instruction), max(room, 1))
    return f"{begin}{made}".rstrip() + end


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=_PROGRAM,
        formatter_class=HelpFormatter,
        description="Build one directory per layer from an image archive, and print the lowerdir= line to mount them.",
    )
    parser.add_argument(
        "archive",
        type=Path,
        metavar="IMAGE.tar",
        help="an archive from docker save, podman save, skopeo (OCI) or docker export; may be compressed",
    )
    parser.add_argument("outdir", type=Path, metavar="OUTDIR", help="the directory for the layer directories")
    parser.add_argument("--image", metavar="NAME", help="the image to build, if the archive contains several")
    parser.add_argument("--platform", metavar="OS/ARCH", help="the platform to build, if not this machine's")
    parser.add_argument(
        "--userxattr",
        action="store_true",
        default=None,
        help="build for mounts with userxattr, which is then in the printed line (the default if not root)",
    )
    parser.add_argument(
        "--mode",
        type=_mode,
        metavar="MODE",
        help="OUTDIR's permissions, such as 0755 (default: 0700 for a new directory, otherwise unchanged)",
    )
    return parser.parse_args(argv)


def _mode(word: str) -> int:
    if not re.fullmatch("0?[0-7]{3}", word):
        raise argparse.ArgumentTypeError("write permissions in octal, such as 0755")
    return int(word, 8)


def _stop(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 0, 1 (with one line on stderr), or 2 for wrong usage."""
    open_missing_streams()
    arguments = _arguments(argv)
    signal.signal(signal.SIGHUP, _stop)
    return guarded(_PROGRAM, lambda: _build(arguments))


def _build(arguments: argparse.Namespace) -> int:
    if arguments.platform == "all":
        raise UsageError(
            "--platform all: OUTDIR takes the layers of one platform",
            f"choose one, such as {running_platform()}; '{PROGRAM} load --platform all' loads every platform",
        )
    platform = Platform.parse(arguments.platform) if arguments.platform else None
    new = not arguments.outdir.exists()
    if not new and not arguments.outdir.is_dir():
        raise UsageError(
            f"{printable(str(arguments.outdir))} is not a directory",
            "name the archive first, then a directory for the layers",
        )
    layers = build_layers(
        arguments.archive,
        arguments.outdir,
        name=arguments.image,
        platform=platform,
        userxattr=arguments.userxattr,
        mode=arguments.mode,
    )
    _report(layers, arguments.userxattr or os.geteuid() != 0)
    if arguments.mode is None:
        _tell_who_may_enter(arguments.outdir, layers, new)
    return 0


def _report(layers: Sequence[BuiltLayer], userxattr: bool) -> None:
    out = sys.stdout.buffer
    for number, layer in enumerate(layers, start=1):
        out.write(_line(number, layer, width()).encode("utf-8", "backslashreplace") + b"\n")
    options = lowerdir_option([os.fsencode(layer.directory) for layer in reversed(layers)])
    # Without it, neither an ordinary user nor the kernel would see which directories are opaque.
    out.write(os.fsencode(f"{options},userxattr" if userxattr else options) + b"\n")
    out.flush()
    left_out: Counter[str] = Counter()
    for layer in layers:
        left_out.update(layer.left_out)
    for reason, count in sorted(left_out.items()):
        _say(f"note: skipped in {plural(count, 'member')}: {reason}")


def _tell_who_may_enter(outdir: Path, layers: Sequence[BuiltLayer], new: bool) -> None:
    """Report whether other users may reach the layers' files, and what that means; `new`: we made the directory."""
    name = printable(str(outdir))
    mode = stat.S_IMODE(outdir.stat().st_mode)
    if new:
        _say(f"note: {name} is private (0700); --mode 0755 or chmod opens it")
    elif not mode & 0o011:
        return
    try:
        found = powers([layer.directory for layer in layers])
    except ImageError as error:
        _say(f"warning: {name} cannot be searched for set-id programs and devices: {error}")
        return
    if not found:
        return
    more = f" and {len(found) - 1} more" if len(found) > 1 else ""
    example = f"{printable(str(found[0]))}{more}"
    if new:
        # Two short lines, because demonstrations show them on a projector.
        _say("note: once open, its set-id programs and devices work for anyone:")
        _say(f"note: {printable(os.path.relpath(found[0], outdir))}{more}")
        return
    _say(
        f"warning: other users may enter {name} (mode {mode:04o}) and use the image's set-id programs or devices: "
        f"{example}; 'chmod 0700 {name}' keeps them out"
    )


def _say(text: str) -> None:
    print(f"{_PROGRAM}: {text}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
