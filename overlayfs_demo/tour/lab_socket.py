"""The socket at which a running lab gives hints and checks, to its own shell and to other terminals of its user.

It is in the user's runtime directory, and named after the lab and its process. A question is one word, an answer is one
JSON object.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path

from overlayfs_demo.errors import OverlayError
from overlayfs_demo.mounts import runtime_directory
from overlayfs_demo.tour.lab_session import Session
from overlayfs_demo.tour.nesting import LAB
from overlayfs_demo.ui.console import PROGRAM

_SUFFIX = ".lab"
# How long a client may take for its word, and how long a check may take, in seconds.
_WORD_TIMEOUT, _CHECK_TIMEOUT = 5.0, 300.0
_LONGEST_WORD = 64


class Question(Enum):
    """What can be asked of a running lab."""

    CHECK = "check"
    HINT = "hint"


@dataclass(frozen=True, slots=True)
class Answer:
    """A label in a style of rich, the text after it, and the exit status of the command that asked."""

    label: str
    style: str
    text: str
    status: int


# --- the lab's end ---------------------------------------------------------------------------------


@contextlib.contextmanager
def answering(session: Session) -> Iterator[str]:
    """Answer questions about a lab while inside; the value is the socket's name. Raises MountError, OSError."""
    name = f"{session.lab.name}-{os.getpid()}{_SUFFIX}"
    with runtime_directory.mine() as directory, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        path = _path(directory, name)
        path.unlink(missing_ok=True)
        # bind(2) gives the file this mode, so nobody else can connect.
        os.fchmod(listening.fileno(), 0o600)
        listening.bind(str(path))
        listening.listen()
        thread = threading.Thread(target=_serve, args=(listening, session), name="lab", daemon=True)
        thread.start()
        try:
            yield name
        finally:
            path.unlink(missing_ok=True)
            # This wakes the thread in accept(2); close(2) would not.
            listening.shutdown(socket.SHUT_RDWR)
            thread.join()


def _path(directory: int, name: str) -> Path:
    """Return a short path, because unix(7) allows 107 bytes for the path of a socket."""
    return Path(f"/proc/self/fd/{directory}/{name}")


def _serve(listening: socket.socket, session: Session) -> None:
    while True:
        try:
            connection = listening.accept()[0]
        except OSError:
            return
        with connection, contextlib.suppress(OSError):  # A client that goes away needs no answer.
            connection.settimeout(_WORD_TIMEOUT)
            word = connection.recv(_LONGEST_WORD).decode(errors="replace").strip()
            if word in (question.value for question in Question):
                connection.sendall(json.dumps(asdict(_answer(Question(word), session))).encode())


def _answer(question: Question, session: Session) -> Answer:
    if question is Question.HINT:
        text, number, count = session.hint()
        return Answer(f"Hint {number} of {count}.", "bold cyan", text, 0)
    try:
        mistake = session.check(working=True)
    except (OSError, OverlayError) as error:
        # The learner may have changed a file while it was read.
        return Answer("Not checked.", "bold yellow", f"{error}. Check again.", 1)
    if mistake:
        return Answer("Not yet.", "bold yellow", mistake, 1)
    return Answer("Solved.", "bold green", f"{session.lab.solved} Leave the shell with Ctrl-D.", 0)


# --- the other end ---------------------------------------------------------------------------------


def ask(question: Question, lab: str | None = None) -> Answer:
    """Ask the lab of this shell, or else the only one that runs; `lab` names one of several.

    Raises OverlayError if it cannot be found.
    """
    with _connected(lab) as connection:
        connection.settimeout(_CHECK_TIMEOUT)
        connection.sendall(question.value.encode())
        data = b"".join(iter(lambda: connection.recv(1 << 16), b""))
    if not data:
        raise OverlayError("the lab has just ended", f"'{PROGRAM} lab NAME' starts it again")
    return Answer(**json.loads(data))


@contextlib.contextmanager
def _connected(lab: str | None) -> Iterator[socket.socket]:
    with runtime_directory.mine() as directory, contextlib.ExitStack() as held:
        names = _candidates(os.listdir(directory), lab)
        running = {name: held.enter_context(found) for name in names if (found := _connect(directory, name))}
        if len(running) != 1:
            raise _not_one([_lab_of(name) for name in running], lab)
        yield next(iter(running.values()))


def _candidates(names: Iterable[str], lab: str | None) -> list[str]:
    """Return the sockets among these names that the question may be for: the lab's own shell needs no name."""
    names = sorted(name for name in names if name.endswith(_SUFFIX))
    if lab is not None:
        return [name for name in names if _lab_of(name) == lab]
    own = os.environ.get(LAB)
    return [own] if own in names else names


def _lab_of(socket_name: str) -> str:
    return socket_name.rpartition("-")[0]


def _connect(directory: int, name: str) -> socket.socket | None:
    """Connect to the lab with this socket; remove what a killed lab left, and return None for it."""
    path = _path(directory, name)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.connect(str(path))
    except FileNotFoundError:
        connection.close()
        return None
    except ConnectionRefusedError:
        connection.close()
        path.unlink(missing_ok=True)
        return None
    return connection


def _not_one(names: list[str], wanted: str | None) -> OverlayError:
    if names and wanted is None:
        return OverlayError(
            f"several labs are running: {', '.join(names)}", "name one, or ask in the shell of the lab itself"
        )
    if names:
        return OverlayError(f"lab '{wanted}' is running {len(names)} times", "ask in the shell of the lab itself")
    what = f"lab '{wanted}' is not running" if wanted else "no lab is running"
    return OverlayError(what, f"'{PROGRAM} lab {wanted or 'NAME'}' starts one")
