"""The question before a verb removes much."""

from __future__ import annotations

import sys


def confirmed(warning: str) -> bool:
    """Ask as docker does, and return whether the answer is yes. In a pipe, the answer is the next line of stdin.

    No answer means no. The question is on stderr, so that it is not in output for machines.
    """
    print(f"WARNING! {warning}\nAre you sure you want to continue? [y/N] ", end="", file=sys.stderr, flush=True)
    answer = sys.stdin.readline()
    if not answer.endswith("\n") or not sys.stdin.isatty():
        print(file=sys.stderr)  # The terminal shows the Enter of the person who answers.
    return answer.strip().lower() == "y"
