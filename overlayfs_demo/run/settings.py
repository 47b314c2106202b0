"""The command, environment, directory and user of a process in a container: what was asked for, and the image's."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from overlayfs_demo.errors import UsageError, printable
from overlayfs_demo.images.config import Fields, settings
from overlayfs_demo.images.model import parse_json

# moby daemon: oci/defaults.go
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a person asked for; None and () leave the choice to the image. `environment` are words NAME=VALUE or NAME.

    `command` takes the place of the image's Cmd, and `entrypoint` that of its Entrypoint and Cmd ("": none).
    """

    command: tuple[str, ...]
    environment: tuple[str, ...] = ()
    directory: str | None = None
    user: str | None = None
    entrypoint: str | None = None


@dataclass(frozen=True, slots=True)
class Defaults:
    """The settings in an image's config with which a container runs, all empty if they are absent."""

    entrypoint: tuple[str, ...]
    command: tuple[str, ...]
    environment: tuple[str, ...]
    directory: str
    user: str

    @classmethod
    def of(cls, config: bytes, title: str) -> Defaults:
        """Read them from a config. Raises ImageError, which names `title`."""
        inner = Fields(parse_json(config, title), title).inner("config")
        read = settings(inner) if inner is not None else {}
        return cls(
            _texts(read.get("Entrypoint")),
            _texts(read.get("Cmd")),
            _texts(read.get("Env")),
            str(read.get("WorkingDir") or ""),
            str(read.get("User") or ""),
        )


def _texts(value: object) -> tuple[str, ...]:
    return tuple(map(str, value)) if isinstance(value, list) else ()


def command_of(wanted: Wanted, defaults: Defaults) -> tuple[str, ...]:
    """Return the words to execute, as `docker run` puts them together. Raises UsageError if there are none."""
    if wanted.entrypoint is not None:
        words = (*filter(None, (wanted.entrypoint,)), *wanted.command)
    else:
        words = (*defaults.entrypoint, *(wanted.command or defaults.command))
    if not words or not words[0]:
        raise UsageError("no command was given, and the image has none", "name one after the image")
    return words


def environment_of(wanted: Wanted, defaults: Defaults, hostname: str, *, terminal: bool) -> Mapping[str, str]:
    """Return the environment: Docker's, the image's, what was asked for; each overrides the one before.

    A bare NAME takes its value from our own environment, and is left out if it is not set there. Raises UsageError.
    """
    found = {"PATH": _PATH, "HOSTNAME": hostname} | ({"TERM": "xterm"} if terminal else {})
    for word in defaults.environment:
        name, _, value = word.partition("=")
        if not name:
            raise UsageError(f"the image's variable '{printable(word)}' has no name", "build the image again")
        found[name] = value
    for word in wanted.environment:
        name, has_value, value = word.partition("=")
        if not name:
            raise UsageError(f"'{printable(word)}' has no name", "write NAME=VALUE, or NAME to pass your own value on")
        if has_value:
            found[name] = value
        elif name in os.environ:
            found[name] = os.environ[name]
        else:
            found.pop(name, None)
    return found


def directory_of(wanted: Wanted, defaults: Defaults) -> str:
    """Return the absolute working directory. Raises UsageError."""
    directory = wanted.directory if wanted.directory is not None else defaults.directory or "/"
    if not os.path.isabs(directory):
        raise UsageError(f"the working directory '{printable(directory)}' is not absolute", "begin it with /")
    return directory
