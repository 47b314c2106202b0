"""The state of a watcher: what it knows about a view, and the part that is shown."""

from __future__ import annotations

import enum
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from overlayfs_demo.events import Action, Event
from overlayfs_demo.mounts.control.protocol import Counters, Dropped, Happened, Restarted, Seen
from overlayfs_demo.mounts.layer_facts import UPPER, LayerFacts, number_of
from overlayfs_demo.ui.text import human_size, plural
from overlayfs_demo.ui.wording import sentence

# How many sentences are kept, and for how many seconds a touched layer stays lit.
_KEPT = 1000
LIT = 1.5

# Kinds of questions, which change nothing, and the fronts' requests that ask them.
_QUESTIONS = {
    "lookup": ("lookup",),
    "stat": ("getattr",),
    "directory read": ("readdir", "readdirplus"),
    "open": ("open",),
    "read": ("read",),
    "link read": ("readlink",),
    "attribute read": ("getxattr", "listxattr"),
}


def counted(asked: Mapping[str, int]) -> str:
    """Return the numbers of answered questions by kind, such as `120 lookups, 14 stats`; "" if there were none."""
    numbers = {word: sum(asked.get(name, 0) for name in names) for word, names in _QUESTIONS.items()}
    return ", ".join(plural(number, word) for word, number in numbers.items() if number)


class Choice(enum.Enum):
    """Which sentences are shown; the values are the words for it."""

    ALL = "all"
    COPY_ON_WRITE = "copy-ups and whiteouts"
    NO_WRITES = "all but writes"

    def takes(self, line: Line) -> bool:
        """Return whether a line is shown."""
        if line.event is None or self is Choice.ALL:
            return True
        wanted = line.event.action in (Action.COPY_UP, Action.WHITEOUT)
        return wanted if self is Choice.COPY_ON_WRITE else not line.is_write

    def following(self) -> Choice:
        """Return the next choice; the first follows the last."""
        choices = list(Choice)
        return choices[(choices.index(self) + 1) % len(choices)]


@dataclass(frozen=True, slots=True)
class Line:
    """One sentence: an event and its process's name, or (`event` is None) a `note` about what is not shown.

    The event happened so many `times`; of writes, the event has the bytes of all.
    """

    event: Event | None
    who: str = ""
    note: str = ""
    times: int = 1

    @classmethod
    def of(cls, update: Happened | Dropped | Restarted) -> Line:
        """Return the line for an update."""
        if isinstance(update, Dropped):
            return cls(None, note=f"{plural(update.count, 'more event')} came faster than they could be shown")
        if isinstance(update, Restarted):
            return cls(None, note="another daemon serves the view now; events of that moment may be missing")
        return cls(update.event, update.who)

    @property
    def is_write(self) -> bool:
        """Whether the event is a write."""
        return self.event is not None and self.event.action is Action.WRITE

    def words(self, longest: int | None = None, *, brief: bool = False) -> str:
        """Return the sentence. Paths longer than `longest` columns are cut in the middle.

        `brief` names layers by their numbers alone, for a reader who has the stack in view.
        """
        if self.event is None:
            return self.note
        event = self.event._replace(layer=number_of(self.event.layer)) if brief else self.event
        times = f" ({self.times} times)" if self.times > 1 and not self.is_write else ""
        return sentence(event, self.who, longest) + times

    def joined(self, later: Line) -> Line | None:
        """Return one line for both if they are equal, or writes of one process to one file, else None."""
        earlier, event = self.event, later.event
        if earlier is None or event is None:
            return None
        times = self.times + later.times
        if earlier == event and not self.is_write:
            return replace(later, times=times)
        if self.is_write and later.is_write and (earlier.path, earlier.pid) == (event.path, event.pid):
            return replace(later, event=event._replace(size=earlier.size + event.size), times=times)
        return None


@dataclass(frozen=True, slots=True)
class Totals:
    """What copy-on-write has cost since somebody began to watch, or to count; `size` is the bytes copied up."""

    copy_ups: int = 0
    size: int = 0
    whiteouts: int = 0

    def plus(self, event: Event) -> Totals:
        """Return the totals after one more event."""
        copied, hidden = event.action is Action.COPY_UP, event.action is Action.WHITEOUT
        return Totals(self.copy_ups + copied, self.size + event.size * copied, self.whiteouts + hidden)

    def words(self) -> str:
        """Return the text for the line of counters."""
        copies = plural(self.copy_ups, "copy-up")
        return f"{copies} ({human_size(self.size)}), {plural(self.whiteouts, 'whiteout')}"


@dataclass(frozen=True, slots=True)
class Scene:
    """Everything that one picture shows.

    `boxes` are the layers from the top down, and `lit` the labels of those just touched; `lines` end with the newest.
    `unseen` is how many lines came since the pause; None without a pause.
    """

    mountpoint: str
    boxes: Sequence[LayerFacts]
    lit: frozenset[str] = frozenset()
    lines: Sequence[Line] = ()
    asked: str = ""
    totals: Totals = Totals()
    choice: Choice = Choice.ALL
    unseen: int | None = None
    has_keys: bool = True


class State:
    """The growing state of a watcher. Not thread-safe."""

    def __init__(self, mountpoint: str, *, has_keys: bool) -> None:
        self._mountpoint = mountpoint
        self._has_keys = has_keys
        self._lines: deque[Line] = deque(maxlen=_KEPT)
        self._paused: tuple[Line, ...] | None = None
        self._unseen = 0
        self._touched: dict[str, float] = {}
        self._totals = Totals()
        self._choice = Choice.ALL
        self.asked: Mapping[str, int] = {}

    def take(self, update: Seen, *, shown: bool) -> None:
        """Take in an update; if `shown`, an event also becomes a sentence."""
        if isinstance(update, Counters):
            self.asked = update.counts
            return
        line = Line.of(update)
        if line.event is not None:
            self._totals = self._totals.plus(line.event)
            # Every event is a change of the upper.
            self._touched.update(dict.fromkeys((UPPER, line.event.layer), time.monotonic()))
        if shown:
            self._show(line)

    def _show(self, line: Line) -> None:
        joined = self._lines[-1].joined(line) if self._lines else None
        if joined is not None:
            self._lines[-1] = joined
            return
        self._lines.append(line)
        self._unseen += self._choice.takes(line)

    def press(self, key: str) -> None:
        """Act on one of the keys that `screen` names."""
        if key in ("p", " "):
            self._paused = tuple(self._lines) if self._paused is None else None
            self._unseen = 0
        elif key == "f":
            self._choice = self._choice.following()
        elif key == "c":
            self._lines.clear()
            self._totals = Totals()
            if self._paused is not None:
                self._paused, self._unseen = (), 0

    def scene(self, boxes: Sequence[LayerFacts]) -> Scene:
        """Return the scene to show now."""
        now = time.monotonic()
        lines = self._lines if self._paused is None else self._paused
        return Scene(
            self._mountpoint,
            boxes,
            frozenset(label for label, when in self._touched.items() if now < when + LIT),
            tuple(filter(self._choice.takes, lines)),
            counted(self.asked),
            self._totals,
            self._choice,
            None if self._paused is None else self._unseen,
            self._has_keys,
        )
