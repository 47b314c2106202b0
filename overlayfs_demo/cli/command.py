"""What all commands share: how a verb is added, and how a failure becomes a line and an exit status."""

from __future__ import annotations

import argparse
import errno
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType

from overlayfs_demo.cli.families import SUMMARIES
from overlayfs_demo.cli.help_text import HelpFormatter
from overlayfs_demo.cli.streams import abandon_output
from overlayfs_demo.errors import OverlayError, printable
from overlayfs_demo.ui.console import note, put_error

Verbs = argparse._SubParsersAction


def new_verb(
    verbs: Verbs[argparse.ArgumentParser],
    name: str,
    examples: str,
    run: Callable[[argparse.Namespace], int],
    description: str = "",
) -> argparse.ArgumentParser:
    """Add a verb. Its help shows the examples, one per line, each a whole command line.

    Its summary serves as the description if there is no other.
    """
    summary = SUMMARIES[name]
    verb = verbs.add_parser(
        name,
        help=summary,
        description=description or summary[0].upper() + summary[1:] + ".",
        epilog="example:" + "".join(f"\n  {line}" for line in examples.splitlines()),
        formatter_class=HelpFormatter,
    )
    verb.set_defaults(run=run)
    return verb


class _Terminated(BaseException):
    """SIGTERM came. Like KeyboardInterrupt, this is not an error that code in between should handle."""


def _terminate(_number: int, _frame: FrameType | None) -> None:
    raise _Terminated


@contextmanager
def _raising_sigterm() -> Iterator[None]:
    """Let SIGTERM raise _Terminated, so that unfinished files are removed. A mount's daemon sets its own handler."""
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def guarded(program: str, action: Callable[[], int]) -> int:
    """Run a command and return its exit status. A failure is one line on stderr.

    The status of a failure is 1, or 2 for wrong usage, 130 if interrupted, 143 if terminated.
    """
    try:
        with _raising_sigterm():
            return action()
    except BrokenPipeError:
        abandon_output()  # The reader has gone.
        return 1
    except OverlayError as error:
        return _fail(program, one_line(error), error.exit_code)
    except OSError as error:
        return _fail(program, one_line(error), 1)
    except RecursionError:
        # Commands walk trees by recursion; the mounts do not.
        return _fail(program, "directories are nested too deeply for this command", 1)
    except KeyboardInterrupt:
        return _fail(program, "interrupted", 130)
    except _Terminated:
        return _fail(program, "terminated", 143)


def for_each(words: Iterable[str], act: Callable[[str], None]) -> int:
    """Act on each word, and return the exit status. As in docker, what fails for one is told, and the others follow."""
    status = 0
    for word in words:
        try:
            act(word)
        except OverlayError as error:
            note(one_line(error))
            status = error.exit_code
    return status


def one_line(error: OverlayError | OSError) -> str:
    """Return an error as one line for a person."""
    if isinstance(error, OverlayError):
        return " ".join(str(error).splitlines())
    if error.errno == errno.EBADF and not error.filename:
        return "standard input or output is closed"
    # A call on a descriptor has its number there.
    where = f"{printable(error.filename)}: " if error.filename and not isinstance(error.filename, int) else ""
    return f"{where}{error.strerror or error}"


def _fail(program: str, problem: str, status: int) -> int:
    put_error(f"{program}: {problem}")
    try:
        sys.stdout.flush()
    except OSError:
        abandon_output()
    return status
