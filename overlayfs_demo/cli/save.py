"""The verb `save`: images as an archive or a directory that other programs can read."""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from overlayfs_demo.cli.command import Verbs
from overlayfs_demo.cli.output import add_output, output
from overlayfs_demo.cli.store_options import add_verb, store_of
from overlayfs_demo.errors import ImageError, UsageError, printable
from overlayfs_demo.images.progress import SILENT
from overlayfs_demo.store.save import write_layout
from overlayfs_demo.store.save_sink import DirectorySink, Sink, TarSink
from overlayfs_demo.ui.terminal import progress

_DOCKER, _OCI, _DIRECTORY = "docker-archive", "oci-archive", "oci-dir"


def add_verbs(verbs: Verbs[argparse.ArgumentParser]) -> None:
    """Add the verbs of this module."""
    verb = add_verb(verbs, "save", "save app:1.0 -o app.tar\nsave --format oci-dir -o app app:1.0", _save)
    verb.add_argument("images", nargs="+", metavar="IMAGE")
    verb.add_argument(
        "--format",
        choices=(_DOCKER, _OCI, _DIRECTORY),
        default=_DOCKER,
        help="what to write, as in podman: an archive for docker load (the default; it is an OCI layout too), an OCI "
        "layout alone, or that as a new directory",
    )
    verb.add_argument("--quiet", "-q", action="store_true", help="show no progress")
    add_output(verb)


def _save(arguments: argparse.Namespace) -> int:
    store = store_of(arguments)
    images = [store.find(word) for word in arguments.images]
    quiet = contextlib.nullcontext(SILENT) if arguments.quiet else progress()
    with _sink(arguments) as out, quiet as told:
        write_layout(images, out, told, docker=arguments.format == _DOCKER)
    return 0


@contextmanager
def _sink(arguments: argparse.Namespace) -> Iterator[Sink]:
    if arguments.format == _DIRECTORY:
        if arguments.output is None:
            raise UsageError(f"--format {_DIRECTORY} needs a directory", "name a new one with --output")
        with _new_directory(arguments.output) as directory:
            yield DirectorySink(directory)
    else:
        with output(arguments.output) as stream:
            yield TarSink(stream)


@contextmanager
def _new_directory(path: Path) -> Iterator[Path]:
    """Give a directory to fill, which appears at `path` when it is complete. Raises ImageError."""
    unfinished = path.absolute().parent / f".overlayfs-demo-{os.urandom(8).hex()}.unfinished"
    try:
        unfinished.mkdir()
        yield unfinished
        # Only an empty directory may be there already: rename(2).
        unfinished.rename(path)
    except OSError as error:
        raise ImageError(
            f"{printable(os.fspath(path))}: {error.strerror}", "choose an --output that is new or an empty directory"
        ) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
