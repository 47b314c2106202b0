"""The messages between a view's daemon and its clients, and their JSON.

They go over a unix stream socket, each as one line of JSON. A client sends requests:

- `WhichRequest` asks about a path. One `WhichAnswer` follows, and the client may send another request.
- `WatchRequest` asks for events. `Attached` follows, and then updates until either side closes: a `Happened` for each
  event, a `Dropped` where events came too fast and, if asked for, the `Counters` once a second while they change, and
  once at the end.

`Refused` answers a request that the daemon does not grant. Paths are text, with surrogates for bytes that are not
valid in the locale's encoding, as os.fsdecode writes them.

Either end may be an attacker's program. So decoding checks the type and the range of every field, and raises
ProtocolError for anything that `encode` would not write.
"""

from __future__ import annotations

import enum
import json
import os
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

from overlayfs_demo.events import Action, Event
from overlayfs_demo.named_tuple import NamedTuple
from overlayfs_demo.overlay.layer_statements import Statement
from overlayfs_demo.overlay.merge import Says
from overlayfs_demo.overlay.provenance import Provenance

# Numbers are below these limits: those of the kernel's types.
_PIDS = _UIDS = 1 << 32
_MODES = 1 << 16
_SIZES = 1 << 63
# Seconds since the epoch. localtime(3) knows a year for each that is below.
_TIMES = 1 << 37
# How many characters of an unknown word an error quotes.
_QUOTED = 40

_Word = TypeVar("_Word", bound=enum.Enum)


class ProtocolError(ValueError):
    """A line is not a message. The text may quote the line, and so may hold any character."""


# --- the messages ----------------------------------------------------------------------------------


class WhichRequest(NamedTuple):
    """Asks what each layer says about a path of the view."""

    path: bytes


class WatchRequest(NamedTuple):
    """Asks for every event from now on and, with `counters`, for the number of requests that the view answers."""

    counters: bool = False


class WhichAnswer(NamedTuple):
    """What each layer says about `path`, which is absolute and normalized."""

    path: bytes
    provenance: Provenance


class Attached(NamedTuple):
    """The client gets every event from now on."""


class Refused(NamedTuple):
    """The daemon does not grant the request, and says why."""

    problem: str


class Happened(NamedTuple):
    """An event, its time in seconds since the epoch, and what the process that caused it is called."""

    time: float
    event: Event
    who: str


class Dropped(NamedTuple):
    """So many events are missing here, because the client did not read fast enough."""

    count: int  # type: ignore[assignment]  # hides tuple.count


class Restarted(NamedTuple):
    """Another daemon serves the view now. No daemon sends this: a client finds out, see `client`."""


class Counters(NamedTuple):
    """How many requests of each kind the view has answered since the client attached."""

    counts: Mapping[str, int]


Request = WhichRequest | WatchRequest
Update = Happened | Dropped | Counters
Answer = WhichAnswer | Attached | Refused | Update
# What a watcher gets to see.
Seen = Update | Restarted


# --- encoding --------------------------------------------------------------------------------------


def encode(message: Request | Answer) -> bytes:
    """The message as one line of JSON."""
    return json.dumps(to_json(message)).encode() + b"\n"


def to_json(message: Request | Answer | Restarted) -> dict[str, object]:
    """The message as a JSON object, which is also what `watch --json` prints."""
    match message:
        case WhichRequest(path):
            return {"verb": "explain", "path": os.fsdecode(path)}
        case WatchRequest(counters):
            return {"verb": "events", "counters": counters}
        case WhichAnswer(path, provenance):
            return {"path": os.fsdecode(path), **provenance_to_json(provenance)}
        case Attached():
            return {"attached": True}
        case Refused(problem):
            return {"error": problem}
        case Happened():
            return _happened_to_json(message)
        case Dropped(count):
            return {"dropped": count}
        case Restarted():
            return {"restarted": True}
        case Counters(counts):
            return {"counters": dict(counts)}


def provenance_to_json(provenance: Provenance) -> dict[str, object]:
    """The fields of a provenance, which are also what `which --json` prints. None stands for what does not apply."""
    return {"layers": [_statement_to_json(statement) for statement in provenance.statements], "why": provenance.why}


def _statement_to_json(statement: Statement) -> dict[str, object]:
    return {
        "layer": statement.layer,
        "says": statement.says.value,
        "wins": statement.wins,
        "mode": statement.mode,
        "size": statement.size,
        "target": None if statement.target is None else os.fsdecode(statement.target),
        "hidden_by": statement.hidden_by or None,
        "hidden_at": os.fsdecode(statement.hidden_at) or None,
        "deleted_at": os.fsdecode(statement.deleted_at) or None,
        "stored_at": None if statement.mode is None else os.fsdecode(statement.stored_at),
    }


def _happened_to_json(happened: Happened) -> dict[str, object]:
    event = happened.event
    return {
        "time": happened.time,
        "action": event.action.value,
        "path": os.fsdecode(event.path),
        "pid": event.pid,
        "who": happened.who,
        "uid": event.uid,
        "call": event.call,
        "layer": event.layer,
        "size": event.size,
        "detail": event.detail,
    }


# --- decoding --------------------------------------------------------------------------------------


def decode_request(line: bytes) -> Request:
    """The request that a client sent. Raises ProtocolError."""
    fields = _parse(line)
    verb = fields.text("verb")
    if verb == "events":
        return WatchRequest(counters="counters" in fields and fields.flag("counters"))
    if verb == "explain":
        return WhichRequest(fields.path("path"))
    raise ProtocolError("the verbs are events and explain")


def decode_answer(line: bytes) -> Answer:
    """What a daemon answered. Raises ProtocolError."""
    fields = _parse(line)
    for name, decode in _ANSWERS.items():
        if name in fields:
            return decode(fields)
    raise ProtocolError("it is not a known answer")


def _parse(line: bytes) -> _Fields:
    try:
        return _Fields(json.loads(line))
    except RecursionError as error:  # Thousands of brackets.
        raise ProtocolError("it is nested too deeply") from error
    except ProtocolError:
        raise
    except ValueError as error:
        raise ProtocolError(str(error)) from error


class _Fields:
    """The fields of a JSON object, each checked when it is read. Raises ProtocolError for one that is not as asked."""

    def __init__(self, parsed: object) -> None:
        if not isinstance(parsed, dict):
            raise ProtocolError("it is not an object")
        self._values: dict[str, object] = parsed

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def value(self, name: str) -> object:
        """A field of any type."""
        if name not in self._values:
            raise ProtocolError(f"{name} is missing")
        return self._values[name]

    def has(self, name: str) -> bool:
        """Whether a field, which must be there, is not null."""
        return self.value(name) is not None

    def flag(self, name: str) -> bool:
        value = self.value(name)
        if not isinstance(value, bool):
            raise ProtocolError(f"{name} is not true or false")
        return value

    def number(self, name: str, limit: int) -> int:
        """An integer from 0 to below `limit`."""
        value = self.value(name)
        # To Python, true is the number 1.
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < limit:
            raise ProtocolError(f"{name} is not a valid number")
        return value

    def seconds(self, name: str) -> float:
        """A time since the epoch."""
        value = self.value(name)
        # JSON as Python reads it has NaN, which compares as false.
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < _TIMES:
            raise ProtocolError(f"{name} is not a valid time")
        return value

    def text(self, name: str) -> str:
        value = self.value(name)
        if not isinstance(value, str):
            raise ProtocolError(f"{name} is not text")
        return value

    def word(self, name: str, words: type[_Word]) -> _Word:
        """One of an enumeration's values."""
        text = self.text(name)
        try:
            return words(text)
        except ValueError as error:
            raise ProtocolError(f"{name} is {text[:_QUOTED]!r}, which is unknown") from error

    def path(self, name: str) -> bytes:
        """A path, or another name that system calls take."""
        try:
            path = os.fsencode(self.text(name))
        except UnicodeEncodeError as error:  # A surrogate that stands for no byte.
            raise ProtocolError(f"{name} is not a valid path") from error
        if b"\0" in path:
            raise ProtocolError(f"{name} contains a null byte")
        return path

    def items(self, name: str) -> list[object]:
        value = self.value(name)
        if not isinstance(value, list):
            raise ProtocolError(f"{name} is not a list")
        return value


def _decode_refused(fields: _Fields) -> Refused:
    return Refused(fields.text("error"))


def _decode_attached(fields: _Fields) -> Attached:
    if not fields.flag("attached"):
        raise ProtocolError("attached is not true")
    return Attached()


def _decode_happened(fields: _Fields) -> Happened:
    event = Event(
        fields.word("action", Action),
        fields.path("path"),
        fields.number("pid", _PIDS),
        fields.number("uid", _UIDS),
        fields.text("call"),
        fields.text("layer"),
        fields.number("size", _SIZES),
        # Of a rename it is a path: see Event.paths.
        os.fsdecode(fields.path("detail")),
    )
    return Happened(fields.seconds("time"), event, fields.text("who"))


def _decode_dropped(fields: _Fields) -> Dropped:
    return Dropped(fields.number("dropped", _SIZES))


def _decode_counters(fields: _Fields) -> Counters:
    counts = _Fields(fields.value("counters"))
    return Counters({name: counts.number(name, _SIZES) for name in counts})


def _decode_which_answer(fields: _Fields) -> WhichAnswer:
    return WhichAnswer(
        fields.path("path"), Provenance(tuple(_decode_statement(_Fields(layer)) for layer in fields.items("layers")))
    )


def _decode_statement(fields: _Fields) -> Statement:
    says = fields.word("says", Says)
    mode = fields.number("mode", _MODES) if fields.has("mode") else None
    # What a file is shown as depends on its mode.
    if mode is None and says in (Says.FILE, Says.METACOPY):
        raise ProtocolError("mode is missing for a file")
    return Statement(
        fields.text("layer"),
        says,
        fields.flag("wins"),
        mode,
        None if mode is None else fields.number("size", _SIZES),
        fields.path("target") if fields.has("target") else None,
        fields.text("hidden_by") if fields.has("hidden_by") else "",
        fields.path("hidden_at") if fields.has("hidden_at") else b"",
        fields.path("deleted_at") if fields.has("deleted_at") else b"",
        fields.path("stored_at") if fields.has("stored_at") else b"",
    )


# The decoder of each answer, by a field that no other has.
_ANSWERS: dict[str, Callable[[_Fields], Answer]] = {
    "error": _decode_refused,
    "attached": _decode_attached,
    "action": _decode_happened,
    "dropped": _decode_dropped,
    "counters": _decode_counters,
    "layers": _decode_which_answer,
}
