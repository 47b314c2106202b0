"""Does the trace say in words, safely, all that an event holds?"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import psutil
import pytest

from overlayfs_demo.errors import printable
from overlayfs_demo.events import Action, Event
from overlayfs_demo.ui.text import human_size
from overlayfs_demo.ui.wording import sentence, who
from tests.conftest import wait_until

LAYER = "layer 1 (layer1)"
DETAIL = "a second thing"
SIZE = 1_234_567

# What an event of each action holds besides its path.
SIZED = {Action.WARN, Action.REFUSE, Action.COPY_UP, Action.WRITE, Action.FALLOCATE, Action.TRUNCATE}
LAYERED = {Action.COPY_UP, Action.WHITEOUT, Action.WARN, Action.REFUSE}
DETAILED = {
    Action.SYMLINK,
    Action.RENAME,
    Action.EXCHANGE,
    Action.REDIRECT,
    Action.CHMOD,
    Action.CHOWN,
    Action.SETXATTR,
    Action.REMOVEXATTR,
    Action.WARN,
    Action.REFUSE,
}


def event(action: Action, path: bytes = b"/etc/motd", *, pid: int = 0, call: str = "verb", detail: str = "") -> Event:
    """An event that holds what the engine tells of this action, and no more."""
    return Event(
        action,
        path,
        pid,
        0,
        call,
        layer=LAYER if action in LAYERED else "",
        size=SIZE if action in SIZED else 0,
        detail=detail or (DETAIL if action in DETAILED else ""),
    )


# --- sizes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (0, "0B"),
        (1, "1B"),
        (999, "999B"),
        (1000, "1kB"),
        (1234, "1.23kB"),
        (12_345, "12.3kB"),
        (123_456, "123kB"),
        (10**6, "1MB"),
        (10**9, "1GB"),
        (10**12, "1TB"),
        (10**15, "1PB"),
        (10**18, "1EB"),
        (999_999, "1e+03kB"),  # Docker writes it so, too.
    ],
)
def test_size_has_three_digits_and_a_decimal_unit(size: int, words: str) -> None:
    assert human_size(size) == words


# --- paths -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        (b"/a\nb", r"/a\nb"),
        (b"/a\tb", r"/a\tb"),
        (b"/\x1b[31m", r"/\x1b[31m"),
        (b"/\x7f\x00", r"/\x7f\x00"),
        (b"/\xff", r"/\xff"),
        (b"/\x85", r"/\x85"),
        ("/\x85".encode(), r"/\u0085"),
        ("/\xa0\xad".encode(), r"/\u00a0\u00ad"),
        (b"/\xed\xa0\x80", r"/\xed\xa0\x80"),
        ("/\U000e0001".encode(), r"/\U000e0001"),
        ("/\u202e".encode(), r"/\u202e"),
        ("/\u2028".encode(), r"/\u2028"),
    ],
)
def test_control_characters_and_undecodable_bytes_are_escaped(path: bytes, shown: str) -> None:
    assert printable(path) == printable(path.decode("utf-8", "surrogateescape")) == shown


def test_half_a_surrogate_pair_is_escaped() -> None:
    assert printable("\ud800") == r"\ud800"


def test_characters_to_keep_are_not_escaped() -> None:
    assert printable("\ta\x1b\n", keep="\t\n") == "\ta\\x1b\n"


@pytest.mark.parametrize("path", ["/ünï", "/日本", "/with blank", '/it\'s "quoted"', ""])
def test_ordinary_characters_are_left_alone(path: str) -> None:
    assert printable(path.encode()) == path


# --- sentences -------------------------------------------------------------------------------------


@pytest.mark.parametrize("action", Action)
def test_sentence_names_who_and_path_and_an_unusual_call(action: Action) -> None:
    words = sentence(event(action))
    assert words.startswith("kernel ")
    assert "/etc/motd" in words and "(verb)" in words


@pytest.mark.parametrize("action", Action)
def test_sentence_names_what_the_event_holds(action: Action) -> None:
    words = sentence(event(action))
    assert (LAYER in words) == (action in LAYERED)
    assert ("1.23MB" in words) == (action in SIZED)
    assert (DETAIL in words) == (action in DETAILED)


def test_directory_copied_up_is_told_with_its_layer_and_without_a_size() -> None:
    words = sentence(Event(Action.COPY_UP, b"/etc", 0, 0, "unlink", layer=LAYER, detail="directory"))
    assert words == f"kernel copied up directory /etc (itself only) from {LAYER}"


def test_no_two_actions_have_the_same_words() -> None:
    said = [sentence(event(action)) for action in Action]
    assert sorted(set(said)) == sorted(said)


@pytest.mark.parametrize("action", Action)
def test_a_call_that_says_nothing_new_is_left_out(action: Action) -> None:
    own = "utimensat" if action is Action.UTIMENS else action.value
    assert sentence(event(action, call="")) == sentence(event(action, call=own))
    assert "(" not in sentence(event(action, call=own)).replace(LAYER, "").replace("(1.23MB)", "")


@pytest.mark.parametrize(
    ("action", "call", "words"),
    [
        (Action.COPY_UP, "open", f"kernel copied up /etc/motd (1.23MB) from {LAYER} to write to it"),
        (Action.COPY_UP, "chmod", f"kernel copied up /etc/motd (1.23MB) from {LAYER} to change its mode"),
        (Action.COPY_UP, "unlink", f"kernel copied up /etc/motd (1.23MB) from {LAYER} to remove one of its names"),
        (Action.WHITEOUT, "unlink", f"kernel created whiteout for /etc/motd, hiding the one in {LAYER}"),
        (Action.LINK, "link", "kernel created hard link /etc/motd in the upper"),
        (Action.LINK, "chmod", "kernel created hard link /etc/motd in the upper, because it has another name"),
        (Action.WHITEOUT, "rename", f"kernel created whiteout for the old name /etc/motd, hiding the one in {LAYER}"),
        (Action.WHITEOUT, "rmdir", f"kernel created whiteout for directory /etc/motd, hiding the one in {LAYER}"),
        (Action.TRUNCATE, "open", "kernel truncated /etc/motd to 1.23MB (open)"),
    ],
)
def test_the_call_says_why(action: Action, call: str, words: str) -> None:
    assert sentence(event(action, call=call)) == words


@pytest.mark.parametrize("action", Action)
def test_sentence_is_one_printable_line(action: Action) -> None:
    words = sentence(event(action, b"/a\n\x1b\xff", detail="b\r\udcfe"))
    assert words.isprintable()
    assert r"/a\n\x1b\xff" in words
    assert (r"b\r\xfe" in words) == (action in DETAILED)


def test_layer_name_cannot_write_to_the_terminal() -> None:
    assert sentence(Event(Action.WHITEOUT, b"/a", 0, 0, "unlink", layer="layer 1 (\x1b]0;evil\x07)")).isprintable()


# --- processes -------------------------------------------------------------------------------------


def test_pid_zero_is_the_kernel() -> None:
    assert who(0) == "kernel"


def test_process_has_its_name_and_number() -> None:
    assert who(os.getpid()) == f"{psutil.Process().name()}[{os.getpid()}]"


def test_process_that_does_not_exist_is_a_number() -> None:
    beyond = int(Path("/proc/sys/kernel/pid_max").read_text())  # No process ever gets this one.
    assert who(beyond) == f"process[{beyond}]"


def test_sentence_begins_with_the_process() -> None:
    assert sentence(event(Action.CREATE, pid=os.getpid())).startswith(f"{who(os.getpid())} created ")


def test_process_name_cannot_write_to_the_terminal(tmp_path: Path) -> None:
    program = tmp_path / "\x1b]0;evil\x07"
    program.symlink_to("/bin/cat")
    with subprocess.Popen([program], stdin=subprocess.PIPE) as process:
        # Popen returns when execve(2) has closed its pipe, which is just before the process gets its new name.
        wait_until(lambda: "evil" in who(process.pid), "the name")
        assert who(process.pid).isprintable()
        process.communicate()
