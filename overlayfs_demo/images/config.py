"""An image's config, read field by field as Docker reads it.

The rules are those of Go's encoding/json for moby's image.Image and container.Config (api/types/container/config.go):
an absent or null field is empty, a field of another type is an error, an unknown field is ignored. `check_config`
reads every field that any command here shows, so whatever was loaded can be shown.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

from overlayfs_demo.errors import ImageError, printable
from overlayfs_demo.images.model import Config, Document, parse_json

# Go's zero time.Time, which an absent time becomes.
_ZERO_TIME = "0001-01-01T00:00:00Z"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_RFC3339 = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(\.\d+)?(Z|[+-]\d\d:\d\d)", re.ASCII)
_ADVICE = "export the image again"


def check_config(data: bytes, member: str) -> Config:
    """Read a whole config. Raises ImageError naming `member` and the field; Docker also refuses such a config."""
    where = printable(member)
    fields = Fields(parse_json(data, member), where)
    if fields.inner("rootfs") is None:
        raise ImageError(f"{where}: 'rootfs' is missing", _ADVICE)
    config = Config.of(fields.document, where)
    creation_time(fields)
    for key in _TEXTS:
        fields.text(key)
    fields.document.document("rootfs").text("type", "")
    for key in ("config", "container_config"):
        inner = fields.inner(key)
        if inner is not None:
            settings(inner)
    for number, step in enumerate(config.history):
        read_time(step.created, f"{where}: 'history'[{number}]")
    made = sum(not step.empty_layer for step in config.history)
    if made > len(config.diff_ids):
        raise ImageError(
            f"{where}: 'history' has {made} steps that create a layer, but 'rootfs' lists only {len(config.diff_ids)}",
            _ADVICE,
        )
    return config


def creation_time(fields: Fields) -> tuple[int, str]:
    """Return when an image was made, as `read_time` does."""
    return read_time(fields.document.text("created", ""), fields.where)


def read_time(text: str, where: str) -> tuple[int, str]:
    """Return an RFC 3339 time in seconds since 1970, and as Go writes it (time.RFC3339Nano: no trailing zeros).

    "" is Go's zero time, in the year 1. Raises ImageError; `where` says in the error where the text is.
    """
    match = _RFC3339.fullmatch(text or _ZERO_TIME)
    try:
        if match is None:
            raise ValueError
        clock, fraction, zone = match[1], (match[2] or "")[:10].rstrip("0").rstrip("."), match[3]
        zone = "Z" if zone[1:] == "00:00" else zone
        moment = datetime.fromisoformat(clock + zone).astimezone(UTC)
        return int((moment - _EPOCH).total_seconds()), clock + fraction + zone
    except (ValueError, OverflowError):
        raise ImageError(
            f"{where}: 'created' is not an RFC 3339 time: '{printable(text)}'", "write it as 2006-01-02T15:04:05Z"
        ) from None


class Fields:
    """A JSON object of the config, read as Go reads it into a struct. Every method raises ImageError."""

    def __init__(self, value: object, where: str) -> None:
        self.document = Document(value, where)
        self.where = where
        self._raw: Mapping[str, object] = value if isinstance(value, dict) else {}

    def inner(self, key: str) -> Fields | None:
        """Return the object at `key`; None if it is absent or null."""
        return Fields(self._raw[key], f"{self.where}: {key!r}") if self.document.has(key) else None

    def text(self, key: str) -> object:
        """Return a string; "" if absent."""
        return self.document.text(key, "")

    def flag(self, key: str) -> object:
        """Return a truth value; False if absent."""
        return self.document.flag(key)

    def texts(self, key: str) -> object:
        """Return a list of strings; None if absent."""
        return list(self.document.texts(key)) if self.document.has(key) else None

    def words(self, key: str) -> object:
        """Return the words of a command, which may be one string (moby api/types/strslice); None if absent."""
        value = self._raw.get(key)
        return [value] if isinstance(value, str) else self.texts(key)

    def number(self, key: str) -> object:
        """Return a whole number; None if absent."""
        value = self._raw.get(key)
        if isinstance(value, bool) or not isinstance(value, int | None):
            raise ImageError(f"{self.where}: {key!r} must be a whole number", _ADVICE)
        return value

    def names(self, key: str) -> object:
        """Return a set: an object whose values are objects or null. Keys are sorted, as Go sorts those of a map."""
        inner = self.inner(key)
        if inner is None:
            return None
        for name in inner._raw:
            inner.document.document(name)
        return {name: {} for name in sorted(inner._raw)}

    def labels(self, key: str) -> object:
        """Return an object of strings, sorted by key; None if absent."""
        inner = self.inner(key)
        return None if inner is None else {name: inner.document.text(name, "") for name in sorted(inner._raw)}

    def health(self, key: str) -> object:
        """Return a health check without its zero and empty values; None if absent. Times are in nanoseconds."""
        inner = self.inner(key)
        if inner is None:
            return None
        numbers = {name: inner.number(name) for name in ("Interval", "Timeout", "StartPeriod", "Retries")}
        return {name: value for name, value in ({"Test": inner.texts("Test")} | numbers).items() if value}


# The top-level texts of the config that `inspect` shows.
_TEXTS = ("comment", "container", "docker_version", "author", "architecture", "variant", "os", "os.version")

_Read = Callable[[Fields, str], object]
# moby api/types/container/config.go, in its order. A Go struct has no place for an unknown key, so `inspect` does not
# show such a key, although the config keeps it.
_SETTINGS: tuple[tuple[str, _Read], ...] = (
    ("Hostname", Fields.text),
    ("Domainname", Fields.text),
    ("User", Fields.text),
    ("AttachStdin", Fields.flag),
    ("AttachStdout", Fields.flag),
    ("AttachStderr", Fields.flag),
    ("ExposedPorts", Fields.names),
    ("Tty", Fields.flag),
    ("OpenStdin", Fields.flag),
    ("StdinOnce", Fields.flag),
    ("Env", Fields.texts),
    ("Cmd", Fields.words),
    ("Healthcheck", Fields.health),
    ("ArgsEscaped", Fields.flag),
    ("Image", Fields.text),
    ("Volumes", Fields.names),
    ("WorkingDir", Fields.text),
    ("Entrypoint", Fields.words),
    ("NetworkDisabled", Fields.flag),
    ("MacAddress", Fields.text),
    ("OnBuild", Fields.texts),
    ("Labels", Fields.labels),
    ("StopSignal", Fields.text),
    ("StopTimeout", Fields.number),
    ("Shell", Fields.words),
)
# Left out if empty ("omitempty"); the two that are pointers in Go are left out only if they are absent.
_OMIT_EMPTY = {"ExposedPorts", "ArgsEscaped", "NetworkDisabled", "MacAddress", "StopSignal", "Shell"}
_OMIT_ABSENT = {"Healthcheck", "StopTimeout"}


def settings(fields: Fields) -> dict[str, object]:
    """Return the settings with which a container runs, keys in Docker's order. Raises ImageError."""
    read = {key: reader(fields, key) for key, reader in _SETTINGS}
    return {
        key: value
        for key, value in read.items()
        if value or not (key in _OMIT_EMPTY or (key in _OMIT_ABSENT and value is None))
    }
