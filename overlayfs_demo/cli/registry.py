"""The verbs `pull` and `push`: images from a registry, and to one."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from overlayfs_demo.cli.command import Verbs
from overlayfs_demo.cli.extras import needing
from overlayfs_demo.cli.image_load import note_left_out
from overlayfs_demo.cli.store_options import add_verb, store_of
from overlayfs_demo.errors import UsageError, printable
from overlayfs_demo.images.model import Platform
from overlayfs_demo.images.progress import Progress
from overlayfs_demo.images.reference import ImageName, Reference
from overlayfs_demo.registry.listener import QUIET, Listener
from overlayfs_demo.store.store import Store
from overlayfs_demo.ui.console import put
from overlayfs_demo.ui.terminal import Bars, several
from overlayfs_demo.ui.text import human_size, plural

if TYPE_CHECKING:
    from overlayfs_demo.registry.moved import Moved
    from overlayfs_demo.registry.remote import Remote
    from overlayfs_demo.registry.session import Ways


def add_verbs(verbs: Verbs[argparse.ArgumentParser]) -> None:
    """Add the verbs of this module."""
    verb = add_verb(verbs, "pull", "pull ubuntu\npull localhost:5000/app:1.0", _pull)
    verb.add_argument(
        "name", metavar="NAME[:TAG|@DIGEST]", help="a name without a domain is Docker Hub's; the tag is latest if none"
    )
    verb.add_argument("--all-tags", "-a", action="store_true", help="pull every tag of the repository")
    verb.add_argument(
        "--platform", type=Platform.parse, metavar="OS/ARCH", help="pull this platform instead of this machine's"
    )
    _add_options(verb)
    verb = add_verb(verbs, "push", "push localhost:5000/app:1.0\npush --all-tags localhost:5000/app", _push)
    verb.add_argument("name", metavar="NAME[:TAG]")
    verb.add_argument("--all-tags", "-a", action="store_true", help="push every tag of the repository that is here")
    _add_options(verb)


def _add_options(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--quiet", "-q", action="store_true", help="print only the name")
    add_plain_http(verb)


def add_plain_http(verb: argparse.ArgumentParser) -> None:
    """Give the verb the option --plain-http."""
    verb.add_argument(
        "--plain-http",
        action="store_true",
        help="speak http without TLS; for a registry on this machine (localhost, 127.0.0.0/8) that needs no option",
    )


def _ways(arguments: argparse.Namespace) -> Ways:
    from overlayfs_demo.registry.session import Ways

    return Ways(arguments.plain_http)


class _Shown(Listener):
    """Shows a pull or a push to a person, a line for each layer."""

    def __init__(self, bars: Bars) -> None:
        self._bars = bars

    def begin(self, layer: str, action: str, size: int | None) -> Progress:
        return self._bars.bar(layer, action, size)

    def done(self, layer: str, outcome: str) -> None:
        self._bars.put(f"{layer}: {outcome}", layer)


@contextmanager
def _listening(quiet: bool) -> Iterator[Listener]:
    if quiet:
        yield QUIET
        return
    with several() as bars:
        yield _Shown(bars)


def _require_no_tag(arguments: argparse.Namespace, reference: Reference) -> None:
    if arguments.all_tags and (reference.tag is not None or reference.digest is not None):
        raise UsageError("a tag or digest cannot be used with --all-tags", "name only the repository")


def _tell_default(arguments: argparse.Namespace, reference: Reference) -> None:
    if not (arguments.quiet or arguments.all_tags or reference.tag or reference.digest):
        put(f"Using default tag: {reference.name.tag}\n")


# --- pull ------------------------------------------------------------------------------------------


def _pull(arguments: argparse.Namespace) -> int:
    with needing("registry", "registries need"):
        from overlayfs_demo.registry.session import remote
    reference = Reference.parse(arguments.name)
    _require_no_tag(arguments, reference)
    _tell_default(arguments, reference)
    store = store_of(arguments)
    with remote(reference.repository, "pull", _ways(arguments)) as there:
        if not arguments.all_tags:
            _pull_one(arguments, store, there, reference)
            return 0
        for tag in there.tags():
            _pull_one(arguments, store, there, Reference(reference.repository, tag, None))
    return 0


def _pull_one(arguments: argparse.Namespace, store: Store, there: Remote, reference: Reference) -> None:
    from overlayfs_demo.registry.pull import pull

    full = f"{reference.repository.full}@{reference.digest}" if reference.digest else reference.name.full
    if not arguments.quiet:
        put(f"{reference.digest or reference.name.tag}: Pulling from {reference.repository.path}\n")
    with _listening(arguments.quiet) as listener:
        pulled = pull(store, there, reference, arguments.platform, listener)
    if not arguments.quiet:
        shown = f"{reference.repository}@{reference.digest}" if reference.digest else reference.name
        status = "Downloaded newer image" if pulled.newer else "Image is up to date"
        put(f"Digest: {pulled.digest}\nStatus: {status} for {shown}\n")
        if pulled.name is None:
            put(f"Image ID: {pulled.image.id}\n")
    put(f"{full}\n")
    note_left_out(pulled.left_out)
    if not arguments.quiet:
        put(f"{_sum('pulled', 'here', 'came', pulled.moved)}\n")


def _sum(verb: str, place: str, other: str, moved: Moved) -> str:
    """Return the sentence that shows what layers are good for."""
    layers, rest = plural(moved.layers, "layer"), moved.layers - moved.spared
    if not moved.spared:
        return f"{verb} {layers}: none {'was' if rest == 1 else 'were'} {place} ({human_size(moved.bytes)} transferred)"
    spared = "all" if not rest and moved.spared > 1 else str(moved.spared)
    were = "was" if moved.spared == 1 else "were"
    text = f"{verb} {layers}: {spared} {were} {place} ({human_size(moved.bytes_spared)} not transferred)"
    return f"{text}, {rest} {other} ({human_size(moved.bytes)})" if rest else text


# --- push ------------------------------------------------------------------------------------------


def _push(arguments: argparse.Namespace) -> int:
    with needing("registry", "registries need"):
        from overlayfs_demo.registry.push import sources
        from overlayfs_demo.registry.session import remote
    reference = Reference.parse(arguments.name)
    _require_no_tag(arguments, reference)
    store = store_of(arguments)
    names = _names_to_push(arguments, store, reference)
    repository = reference.repository
    others = [path for name in names for path in sources(store, store.find(str(name)), repository)]
    _tell_default(arguments, reference)
    if not arguments.quiet:
        put(f"The push refers to repository [{repository.full}]\n")
    with remote(repository, "pull,push", _ways(arguments), list(dict.fromkeys(others))) as there:
        for name in names:
            _push_one(arguments, store, there, name)
    return 0


def _names_to_push(arguments: argparse.Namespace, store: Store, reference: Reference) -> list[ImageName]:
    if reference.digest is not None:
        raise UsageError("an image cannot be pushed by a digest", "name it with its tag")
    if not arguments.all_tags:
        if store.find(arguments.name).name is None:
            raise UsageError(
                f"'{printable(arguments.name)}' is an image ID, which does not say where to push",
                "give the image a name first: overlayfs-demo tag ID DOMAIN/PATH:TAG",
            )
        return [reference.name]
    names = sorted(
        name for given in store.names_by_image().values() for name in given if name.repository == reference.repository
    )
    if not names:
        raise UsageError(f"no image here is named {reference.repository}", "'overlayfs-demo images' lists the images")
    return names


def _push_one(arguments: argparse.Namespace, store: Store, there: Remote, name: ImageName) -> None:
    from overlayfs_demo.registry.push import push

    with _listening(arguments.quiet) as listener:
        pushed = push(store, there, store.find(str(name)), name.tag, listener)
    if arguments.quiet:
        put(f"{name.full}\n")
        return
    put(f"{name.tag}: digest: {pushed.digest} size: {pushed.size}\n")
    if pushed.compressed:
        layers = plural(pushed.compressed, "layer")
        put(f"compressed {layers} here, so the digest may differ from that of another program's push\n")
    put(f"{_sum('pushed', 'there', 'sent', pushed.moved)}\n")
