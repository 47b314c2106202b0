"""What does `scripts/build-layers` take, and what does it print?"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from overlayfs_demo.commands import guarded
from overlayfs_demo.images.build import BuiltLayer, build_layers
from overlayfs_demo.images.model import Platform, shown
from overlayfs_demo.mount_options import lowerdir_option
from overlayfs_demo.render import human_size

_PROGRAM = "build-layers"
_LONGEST_INSTRUCTION = 100


def _line(number: int, layer: BuiltLayer) -> str:
    made = shown(layer.instruction)
    if len(made) > _LONGEST_INSTRUCTION:
        made = made[: _LONGEST_INSTRUCTION - 1] + "…"
    size = human_size(layer.size)
    text = f"{number:>3}  {layer.directory.name}  {layer.diff_id.algorithm}:{layer.diff_id.short}  {size:>7}  {made}"
    return text.rstrip() if layer.fresh else f"{text.rstrip()}  (already built)"


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=_PROGRAM,
        description="Build one directory a layer from an image archive, and print the lowerdir= line to mount them.",
    )
    parser.add_argument("archive", type=Path, metavar="IMAGE.tar",
                        help="from docker save, podman save, skopeo (OCI) or docker export; may be compressed")
    parser.add_argument("outdir", type=Path, metavar="OUTDIR", help="where the layer directories go")
    parser.add_argument("--image", metavar="NAME", help="which image, if the archive holds several")
    parser.add_argument("--platform", metavar="OS/ARCH", help="which platform, if not this machine's")
    parser.add_argument("--userxattr", action="store_true", default=None,
                        help="mark opaque directories for mounts with userxattr (the default if not root)")
    return parser.parse_args(argv)


def _stop(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command: exit status 0, 1 (with one line on stderr), or 2 for wrong usage."""
    arguments = _arguments(argv)
    signal.signal(signal.SIGHUP, _stop)
    return guarded(_PROGRAM, lambda: _build(arguments))


def _build(arguments: argparse.Namespace) -> int:
    platform = Platform.parse(arguments.platform) if arguments.platform else None
    layers = build_layers(
        arguments.archive, arguments.outdir, name=arguments.image, platform=platform, userxattr=arguments.userxattr
    )
    _report(layers, arguments.userxattr or os.geteuid() != 0)
    return 0


def _report(layers: Sequence[BuiltLayer], userxattr: bool) -> None:
    out = sys.stdout.buffer
    for number, layer in enumerate(layers, start=1):
        out.write(_line(number, layer).encode("utf-8", "backslashreplace") + b"\n")
    out.write(os.fsencode(lowerdir_option([os.fsencode(layer.directory) for layer in reversed(layers)])) + b"\n")
    out.flush()
    left_out: Counter[str] = Counter()
    for layer in layers:
        left_out.update(layer.left_out)
    for what, count in sorted(left_out.items()):
        print(f"{_PROGRAM}: note: left out in {count} members: {what}", file=sys.stderr)
    if userxattr:
        print(f"{_PROGRAM}: note: mount these with the option userxattr", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
