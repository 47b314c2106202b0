"""The verb `inspect`: all details of images and containers, as docker shows them."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from typing import Any

from overlayfs_demo.cli.command import Verbs, one_line
from overlayfs_demo.cli.container_details import container_details
from overlayfs_demo.cli.format_option import add_format
from overlayfs_demo.cli.store_options import add_verb, store_of
from overlayfs_demo.errors import ImageError, OverlayError, UsageError, printable
from overlayfs_demo.images import describe
from overlayfs_demo.store.container import find_container, is_container
from overlayfs_demo.store.store import Store
from overlayfs_demo.store.stored import StoredImage
from overlayfs_demo.ui import docker_tables
from overlayfs_demo.ui.console import PROGRAM, note, put
from overlayfs_demo.ui.go_template import Template
from overlayfs_demo.ui.go_values import NIL_LIST, NIL_MAP, to_json

_Details = dict[str, object]

IMAGE, CONTAINER = "image", "container"
# What Docker has, and this program does not.
_ELSEWHERE = ("config", "network", "node", "plugin", "secret", "service", "task", "volume")
# The keys whose value is a list or a map in Go, which print differently from null when they are empty.
_NIL = {
    **dict.fromkeys(("Cmd", "Entrypoint", "Env", "OnBuild", "Shell"), NIL_LIST),
    **dict.fromkeys(("ExposedPorts", "Labels", "Volumes"), NIL_MAP),
}


def add_verbs(verbs: Verbs[argparse.ArgumentParser]) -> None:
    """Add the verbs of this module."""
    verb = add_verb(
        verbs, "inspect", "inspect app:1.0\ninspect c1\ninspect --format '{{.GraphDriver.Data.UpperDir}}' c1", _inspect
    )
    verb.add_argument("names", nargs="+", metavar="C|IMAGE", help="a container, or else an image")
    add_format(verb, lists=False)
    verb.add_argument("--type", metavar="image|container", help="show only what is of this type")
    verb.add_argument("--size", "-s", action="store_true", help="also show a container's sizes: SizeRw and SizeRootFs")


def _inspect(arguments: argparse.Namespace) -> int:
    """Print all details; return 1 if one of the names is not found."""
    if arguments.type in _ELSEWHERE:
        raise UsageError(f"--type {arguments.type}: there are only images and containers here", "leave --type out")
    if arguments.type not in (None, IMAGE, CONTAINER):
        raise UsageError(f"--type {printable(arguments.type)} is unknown", "use image or container")
    write = _writer(arguments.format)
    store = store_of(arguments)
    found, status = [], 0
    for name in arguments.names:
        try:
            found.append(_details(store, name, arguments))
        except OverlayError as error:
            note(one_line(error))
            status = 1
    put(write(found))
    return status


def _writer(form: str | None) -> Callable[[list[_Details]], str]:
    """Return what makes the text of all details, by the value of --format. Raises TemplateError."""
    if not form:
        return docker_tables.inspect_text
    if form == "json":
        return lambda found: to_json(found) + "\n"
    template = Template(form)
    return lambda found: "".join(printable(template.execute(_values(details)), keep="\n\t") + "\n" for details in found)


class _Object(dict[str, Any]):
    """The details for a template, in which Docker's `.ID` is the same as the `.Id` of the JSON."""

    def __missing__(self, key: str) -> object:
        if key == "ID":
            return self["Id"]
        raise KeyError(key)


def _values(details: Mapping[str, object]) -> Mapping[str, object]:
    """Return the details with Go's empty lists and maps in the place of null."""
    return _Object({key: _value(key, value) for key, value in details.items()})


def _value(key: str, value: object) -> object:
    if isinstance(value, dict):
        return {name: _value(name, inner) for name, inner in value.items()}
    return _NIL.get(key) if value is None else value


def _details(store: Store, name: str, arguments: argparse.Namespace) -> _Details:
    """Return what is known of the container or, if there is none, of the image of this name. Raises OverlayError."""
    if arguments.type == CONTAINER or (arguments.type is None and is_container(store, name)):
        return container_details(store, find_container(store, name), sizes=arguments.size)
    try:
        details = _image_details(store.find(name))
    except ImageError as error:
        if arguments.type == IMAGE:
            raise
        raise ImageError(f"no container '{printable(name)}', and {error.problem}", error.remedy) from None
    if arguments.size:
        note("note: --size is for containers: an image's size is always shown")
    return details


def _image_details(image: StoredImage) -> _Details:
    facts = [describe.LayerFacts(layer.size) for layer in image.layers]
    place = None
    if image.layers:
        top, *below = (str(layer.directory) for layer in reversed(image.layers))
        place = {"LowerDir": ":".join(below), "UpperDir": top}
    return describe.inspect(image.value, facts, describe.GraphDriver(PROGRAM, place))
