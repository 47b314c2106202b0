"""The verb `which`: what each layer says about a path in a view or an image, and why the path is seen or not."""

from __future__ import annotations

import argparse
import grp
import os
import pwd
import stat
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from overlayfs_demo.cli.command import Verbs
from overlayfs_demo.cli.foreign_containers import Engine, add_engines, view_of
from overlayfs_demo.cli.store_options import add_json, add_verb, store_of
from overlayfs_demo.cli.view_name import view_path
from overlayfs_demo.cli.which_subject import Question, Subject, questions_about_image, questions_about_views
from overlayfs_demo.errors import MountError, OverlayError, printable
from overlayfs_demo.mounts import registry
from overlayfs_demo.mounts.control.protocol import provenance_to_json
from overlayfs_demo.overlay.types import Attrs
from overlayfs_demo.store.in_root import path_outside
from overlayfs_demo.ui.console import note, put, put_json
from overlayfs_demo.ui.table import Table
from overlayfs_demo.ui.terminal import put_prose, put_table
from overlayfs_demo.ui.wording import outcome, said

_BILLION = 10**9


def add_verbs(verbs: Verbs[argparse.ArgumentParser]) -> None:
    """Add the verbs of this module."""
    verb = add_verb(
        verbs,
        "which",
        "which view/etc/passwd\nwhich c1:/etc/passwd\nwhich -l view/etc\n"
        "which --image app:1.0 /etc/passwd\nwhich --image app:1.0 -l /etc\nwhich --podman c1 /etc/passwd",
        _which,
    )
    verb.add_argument("paths", nargs="+", metavar="PATH", help="a path in a view, a container, or C:PATH")
    add_engines(verb).add_argument("--image", metavar="IMAGE", help="look in this image instead of a mounted view")
    verb.add_argument(
        "-l", dest="long", action="store_true", help="list a directory like ls -l, with the layers of each name"
    )
    add_json(verb)


def _which(arguments: argparse.Namespace) -> int:
    """Answer for each path; return 1 if any of them is not seen or cannot be looked up."""
    answer = _list if arguments.long else _explain
    if arguments.engine is not None:
        questions = _questions_about_foreign(arguments.engine, arguments.paths)
    elif arguments.image is None:
        words = _in_container(arguments.paths, arguments.store)
        questions = questions_about_views(view_path(word, arguments.store) for word in words)
    else:
        questions = questions_about_image(store_of(arguments), arguments.image, arguments.paths)
    return max(answer(question, as_json=arguments.json) for question in questions)


def _questions_about_foreign(engine: Engine, words: Sequence[str]) -> Iterator[Question]:
    """Return questions about paths in another engine's container: C PATH..., C:PATH, or C alone for its root."""
    name, colon, inside = words[0].partition(":")
    paths = [inside, *words[1:]] if colon else words[1:] or ["/"]
    view = view_of(engine, name)
    root = os.fsencode(view.path)
    places = (os.fsdecode(path_outside(root, os.fsencode(path))) for path in paths)
    return questions_about_views(places, view.titles)


def _in_container(words: Sequence[str], root: Path | None) -> Sequence[str]:
    """Return the words, or C:PATH for each path if they are the name of a container and paths that are in no view."""
    name, *paths = words
    is_name = "/" not in name and view_path(name, root) != name
    if paths and is_name and not any(map(_may_be_in_view, paths)):
        return [f"{name}:{path}" for path in paths]
    return words


def _may_be_in_view(word: str) -> bool:
    """Return whether a word is more than an absolute path that lies in no view."""
    if not word.startswith("/"):
        return True
    try:
        registry.place_in_view(os.fsencode(word), follow=False)
    except MountError:
        return False
    return True


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
                    **provenance_to_json(explained),
                }
            ]
        )
    else:
        put(f"{printable(path)}\n")
        rows = [
            (printable(statement.layer), said(statement, path), outcome(statement, path))
            for statement in explained.statements
        ]
        put_table(Table(("LAYER", "SAYS", ""), rows, trim=True))
        put_prose(f"{printable(explained.why)}\n")
    return 0 if explained.seen_from else 1


# --- which -l --------------------------------------------------------------------------------------


def _list(question: Question, *, as_json: bool) -> int:
    """List a file, or the contents of a directory. Print a note for a name that cannot be looked up (a bad mark)."""
    subject, top, given = question
    subject.which(top)  # If the path cannot be looked up, this says why; a system call could not.
    try:
        names = _listed(subject, top)
    except OSError as error:
        raise OSError(error.errno, error.strerror, given) from error
    status, rows = 0, []
    for name in names:
        path = os.path.join(top, name) if name else top
        try:
            rows.append(_Row.of(subject, path))
        except FileNotFoundError:
            continue  # It was removed meanwhile.
        except (OSError, OverlayError) as error:
            note(_reason(subject, path, error))
            status = 1
    if as_json:
        put_json([row.json() for row in rows])
    else:
        header = ("MODE", "LINKS", "OWNER", "GROUP", "SIZE", "MODIFIED", "LAYER", "NAME")
        put_table(Table(header, [row.cells() for row in rows]))
    return status


def _listed(subject: Subject, path: bytes) -> list[bytes]:
    """Return the names in a directory; for another file, b"" alone."""
    if not stat.S_ISDIR(subject.attrs(path).mode):
        return [b""]
    return sorted(subject.names(path), key=os.fsdecode)


def _reason(subject: Subject, path: bytes, error: OSError | OverlayError) -> str:
    """Return why a name that exists cannot be looked up."""
    if isinstance(error, OverlayError):
        return str(error)
    try:
        subject.which(path)
    except OverlayError as told:
        return str(told)
    return f"{printable(path)}: {error.strerror}"


@dataclass(frozen=True, slots=True)
class _Row:
    """A file in the list: `target` is that of a symbolic link, `layers` are those that it is seen from."""

    path: bytes
    attrs: Attrs
    target: bytes | None
    layers: Sequence[str]

    @classmethod
    def of(cls, subject: Subject, path: bytes) -> _Row:
        """Ask about a path. Raises OSError, OverlayError."""
        attrs = subject.attrs(path)
        target = subject.readlink(path) if stat.S_ISLNK(attrs.mode) else None
        return cls(path, attrs, target, subject.which(path).seen_from)

    @property
    def name(self) -> bytes:
        """The last part of the path."""
        return os.path.basename(self.path)

    @property
    def modified(self) -> float:
        """The time of the last change of its data, in seconds since 1970."""
        seconds, rest = divmod(self.attrs.mtime_ns, _BILLION)
        return seconds + 1e-9 * rest

    def cells(self) -> tuple[str, ...]:
        """Return the row of the table."""
        attrs = self.attrs
        layers = ", ".join(map(printable, self.layers))
        return (
            stat.filemode(attrs.mode),
            str(attrs.nlink),
            _user(attrs.uid),
            _group(attrs.gid),
            str(attrs.size),
            time.strftime("%Y-%m-%d %H:%M", time.localtime(self.modified)),
            f"merged: {layers}" if len(self.layers) > 1 and stat.S_ISDIR(attrs.mode) else layers,
            printable(self.name) + ("" if self.target is None else f" -> {printable(self.target)}"),
        )

    def json(self) -> dict[str, object]:
        """Return the object for machines."""
        return {
            "name": os.fsdecode(self.name),
            "mode": self.attrs.mode,
            "links": self.attrs.nlink,
            "uid": self.attrs.uid,
            "gid": self.attrs.gid,
            "size": self.attrs.size,
            "modified": self.modified,
            "target": None if self.target is None else os.fsdecode(self.target),
            "path": os.fsdecode(self.path),
            "layers": self.layers,
        }


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
