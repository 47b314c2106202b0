"""What does each layer say about a path in a mounted view or in an image, and why is it seen or not?"""

from __future__ import annotations

import argparse
import grp
import os
import pwd
import stat
import time
from typing import Any

from overlayfs_demo.cli.command import Verbs
from overlayfs_demo.cli.store_options import add_json, add_verb, store_of
from overlayfs_demo.cli.which_subject import Question, Subject, questions_about_image, questions_about_views
from overlayfs_demo.errors import OverlayError, printable
from overlayfs_demo.mounts.control.protocol import explanation_to_json
from overlayfs_demo.ui.console import note, put, put_json
from overlayfs_demo.ui.table import Table
from overlayfs_demo.ui.terminal import put_table
from overlayfs_demo.ui.wording import outcome, said

_BILLION = 10**9


def add_which_verb(verbs: Verbs[argparse.ArgumentParser]) -> None:
    """The verb of this module."""
    verb = add_verb(
        verbs,
        "which",
        "show what each layer says about a path in a mounted view or an image",
        "which view/etc/passwd\nwhich -l view/etc\nwhich --image app:1.0 /etc/passwd\nwhich --image app:1.0 -l /etc",
        _which,
    )
    verb.add_argument("paths", nargs="+", metavar="PATH")
    verb.add_argument("--image", metavar="IMAGE", help="look in this image instead of a mounted view")
    verb.add_argument(
        "-l", dest="long", action="store_true", help="list a directory like ls -l, with the layers of each name"
    )
    add_json(verb)


def _which(arguments: argparse.Namespace) -> int:
    """The exit status is 1 if one of the paths is not seen, or cannot be looked up."""
    answer = _list if arguments.long else _explain
    if arguments.image is None:
        questions = questions_about_views(arguments.paths)
    else:
        questions = questions_about_image(store_of(arguments), arguments.image, arguments.paths)
    return max(answer(question, as_json=arguments.json) for question in questions)


def _explain(question: Question, *, as_json: bool) -> int:
    subject, path, _ = question
    explained = subject.which(path)
    if as_json:
        put_json(
            [
                {
                    "path": os.fsdecode(path),
                    "mountpoint": subject.mountpoint,
                    "image": subject.image,
                    **explanation_to_json(explained),
                }
            ]
        )
    else:
        put(f"{printable(path)}\n")
        rows = [(printable(one.layer), said(one, path), outcome(one, path)) for one in explained.statements]
        put_table(Table(("LAYER", "SAYS", ""), rows, trim=True))
        put(f"{printable(explained.why)}\n")
    return 0 if explained.seen_from else 1


# --- which -l --------------------------------------------------------------------------------------


def _list(question: Question, *, as_json: bool) -> int:
    """List a file, or what is in a directory. A name that cannot be looked up, as one with a bad mark, is told of."""
    subject, top, given = question
    subject.which(top)  # If it cannot be looked up, this says why, and a system call could not.
    try:
        names = _listed(subject, top)
    except OSError as error:
        raise OSError(error.errno, error.strerror, given) from error
    status, rows = 0, []
    for name in names:
        path = os.path.join(top, name) if name else top
        try:
            rows.append(_row(subject, path))
        except FileNotFoundError:
            continue  # It has gone meanwhile.
        except (OSError, OverlayError) as error:
            note(_reason(subject, path, error))
            status = 1
    if as_json:
        put_json(rows)
    else:
        header = ("MODE", "LINKS", "OWNER", "GROUP", "SIZE", "MODIFIED", "LAYER", "NAME")
        put_table(Table(header, [_cells(row) for row in rows]))
    return status


def _listed(subject: Subject, path: bytes) -> list[bytes]:
    """The names in a directory; b"" for the file itself that is none."""
    if not stat.S_ISDIR(subject.attrs(path).mode):
        return [b""]
    return sorted(subject.names(path), key=os.fsdecode)


def _reason(subject: Subject, path: bytes, error: OSError | OverlayError) -> str:
    """Why a name that is there cannot be looked up."""
    if isinstance(error, OverlayError):
        return str(error)
    try:
        subject.which(path)
    except OverlayError as told:
        return str(told)
    return f"{printable(path)}: {error.strerror}"


def _row(subject: Subject, path: bytes) -> dict[str, Any]:
    attrs = subject.attrs(path)
    seconds, rest = divmod(attrs.mtime_ns, _BILLION)
    target = os.fsdecode(subject.readlink(path)) if stat.S_ISLNK(attrs.mode) else None
    return {
        "name": os.fsdecode(os.path.basename(path)),
        "mode": attrs.mode,
        "links": attrs.nlink,
        "uid": attrs.uid,
        "gid": attrs.gid,
        "size": attrs.size,
        "modified": seconds + 1e-9 * rest,
        "target": target,
        "path": os.fsdecode(path),
        "layers": subject.which(path).seen_from,
    }


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    layers = ", ".join(map(printable, row["layers"]))
    arrow = f" -> {printable(row['target'])}" if row["target"] is not None else ""
    return (
        stat.filemode(row["mode"]),
        str(row["links"]),
        _user(row["uid"]),
        _group(row["gid"]),
        str(row["size"]),
        time.strftime("%Y-%m-%d %H:%M", time.localtime(row["modified"])),
        f"merged: {layers}" if len(row["layers"]) > 1 and stat.S_ISDIR(row["mode"]) else layers,
        printable(row["name"]) + arrow,
    )


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
