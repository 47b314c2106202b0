"""What do all commands have in common?"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from overlayfs_demo.errors import OverlayError, printable

Verbs = argparse._SubParsersAction


def new_verb(
    verbs: Verbs[argparse.ArgumentParser],
    name: str,
    summary: str,
    examples: str,
    run: Callable[[argparse.Namespace], int],
    description: str = "",
) -> argparse.ArgumentParser:
    """A verb with examples (one a line, each the whole of what is typed) in its help; without a description of its own
    the summary is that."""
    verb = verbs.add_parser(
        name,
        help=summary,
        description=description or summary[0].upper() + summary[1:] + ".",
        epilog="example:" + "".join(f"\n  {line}" for line in examples.splitlines()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verb.set_defaults(run=run)
    return verb


class _Terminated(BaseException):
    """SIGTERM came: like KeyboardInterrupt, no error that anybody in between should handle."""


def _terminate(_number: int, _frame: FrameType | None) -> None:
    raise _Terminated


@contextmanager
def _raising_sigterm() -> Iterator[None]:
    """Let SIGTERM raise _Terminated, so that what is unfinished is removed. A mount's daemon sets its own handler."""
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def guarded(program: str, action: Callable[[], int]) -> int:
    """The exit status of a command, whose failure is one line on stderr.

    1, or 2 for wrong usage, 130 interrupted, 143 terminated.
    """
    try:
        with _raising_sigterm():
            return action()
    except BrokenPipeError:
        # Whoever read has gone. Python flushes once more at exit, and must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OverlayError as error:
        return _fail(program, one_line(error), error.exit_code)
    except OSError as error:
        return _fail(program, one_line(error), 1)
    except RecursionError:
        # What walks trees here goes down by calls; the mounts do not.
        return _fail(program, "directories are nested too deeply for this command", 1)
    except KeyboardInterrupt:
        return _fail(program, "interrupted", 130)
    except _Terminated:
        return _fail(program, "terminated", 143)


def one_line(error: OverlayError | OSError) -> str:
    """What a person is told of an error."""
    if isinstance(error, OverlayError):
        return " ".join(str(error).splitlines())
    where = f"{printable(error.filename)}: " if error.filename else ""
    return f"{where}{error.strerror or error}"


def _fail(program: str, problem: str, status: int) -> int:
    print(f"{program}: {problem}", file=sys.stderr)
    return status
