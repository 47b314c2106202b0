"""What a directory that is in many layers costs."""

from __future__ import annotations

import os

from benchmarks.clients import CONTENT
from benchmarks.faults import expect
from benchmarks.operations import is_missing
from benchmarks.view import View, timed


def hit(view: View) -> float:
    """Look up names that only the bottom layer has; return the seconds for one."""
    paths = [f"{view.path}/d/base{number}" for number in range(view.sizes.layer_names)]
    seconds, sizes = timed(lambda: [os.stat(path).st_size for path in paths])
    expect("sizes", set(sizes), {len(CONTENT)})
    return seconds / len(paths)


def miss(view: View) -> float:
    """Look up names that no layer has; return the seconds for one."""
    paths = [f"{view.path}/d/missing{number}" for number in range(view.sizes.layer_names)]
    seconds, missing = timed(lambda: [is_missing(path) for path in paths])
    expect("answers", set(missing), {True})
    return seconds / len(paths)


def listing(view: View) -> float:
    """List the directory for the first time; return the seconds."""
    seconds, found = timed(lambda: os.listdir(view.path / "d"))
    own = {f"own{number}" for number in range(len(view.input.lowers))}
    expect("names", set(found), own | {f"base{number}" for number in range(view.sizes.layer_names)})
    return seconds
