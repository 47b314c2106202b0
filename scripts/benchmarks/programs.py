"""Programs that people run on a view."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing

from benchmarks.faults import LeftOutError, expect
from benchmarks.inputs import archive_files
from benchmarks.view import View, timed


def sqlite_inserts(view: View) -> float:
    """Insert rows, each in a transaction that waits for the disk; return the seconds for one."""
    with closing(sqlite3.connect(view.path / "database", isolation_level=None)) as database:
        database.execute("PRAGMA synchronous = FULL")
        database.execute("CREATE TABLE rows (number INTEGER PRIMARY KEY, text TEXT)")

        def insert() -> None:
            for number in range(view.sizes.commits):
                database.execute("INSERT INTO rows VALUES (?, ?)", (number, f"row {number}"))

        seconds, _ = timed(insert)
    with closing(sqlite3.connect(view.upper / "database")) as database:
        [found] = database.execute("SELECT count(*), sum(number) FROM rows")
    expect("rows in the upper", found, (view.sizes.commits, sum(range(view.sizes.commits))))
    return seconds / view.sizes.commits


def _git(view: View, *words: str) -> str:
    # The layers may be another user's.
    return view.run("git", "-c", "safe.directory=*", *words, cwd=view.path / "repo")


def git_status(view: View) -> float:
    """Ask for the second time: the first writes the index, because inode numbers have changed."""
    _git(view, "status", "--porcelain")
    seconds, said = timed(lambda: _git(view, "status", "--porcelain"))
    expect("status", said, "")
    return seconds


def git_clone(view: View) -> float:
    words = ("clone", "--quiet", "--no-hardlinks", ".", "../clone")
    seconds, _ = timed(lambda: _git(view, *words))
    wanted = archive_files(view.sizes.archived)
    expect("files", {path: (view.path / "clone" / path).read_bytes() for path in wanted}, wanted)
    return seconds


def c_build(view: View) -> float:
    if shutil.which("cc") is None:
        raise LeftOutError("needs a C compiler")
    script = 'for file in *.c; do cc -c "$file" || exit; done; cc -o program *.o && ./program'
    seconds, _ = timed(lambda: view.run("sh", "-c", script, cwd=view.path / "src"))
    expect("programs", (view.upper / "src/program").is_file(), True)
    return seconds
