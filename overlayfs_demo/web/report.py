"""The report: the whole page of an image in one file, which needs neither a server nor a network.

The file holds the image's names up to a number, and the stories of its files (see `content`) up to a number of bytes:
first the files that several layers have, then the others. The page says how many did not fit.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

from markupsafe import Markup

from overlayfs_demo.ui.text import plural
from overlayfs_demo.web.browse import Row, listing
from overlayfs_demo.web.content import story
from overlayfs_demo.web.model import Page
from overlayfs_demo.web.pages import html, static
from overlayfs_demo.web.subject import Ask, Subject

MOST_NAMES = 20_000
# How many bytes all stories together may have.
MOST_STORIES = 4_000_000
# The share of them from which on no more stories are made.
_FULL = 0.99


@dataclass(frozen=True, slots=True)
class Embedded:
    """What the file holds besides the page: the rows of directories and the stories' HTML, each by its key."""

    trees: dict[str, list[dict[str, object]]]
    stories: dict[str, str]
    names_left_out: int
    stories_left_out: int

    @property
    def note(self) -> str:
        """A sentence about what was left out; "" if nothing was."""
        parts = []
        if self.names_left_out:
            parts.append(f"at least {plural(self.names_left_out, 'name')} beyond the first {MOST_NAMES}")
        if self.stories_left_out:
            files = plural(self.stories_left_out, "file")
            parts.append(f"the content of {files}, beyond {MOST_STORIES // 1_000_000} MB in total")
        return f"Not in this file: {' and '.join(parts)}." if parts else ""


def embedded(subject: Subject, ask: Ask) -> Embedded:
    """Return the part of the files that goes into the report. Raises OverlayError, OSError."""
    trees: dict[str, list[dict[str, object]]] = {}
    files: list[Row] = []
    names, left_out = 0, 0
    pending = ["/"]
    while pending:
        key = pending.pop(0)
        if names >= MOST_NAMES:
            left_out += 1
            continue
        found = listing(subject, ask, unquote_to_bytes(key))
        names += len(found.rows)
        left_out += found.left_out
        trees[key] = [row._asdict() for row in found.rows]
        pending += [row.key for row in found.rows if row.kind == "directory"]
        files += found.rows
    stories, stories_left_out = _stories(subject, ask, files)
    return Embedded(trees, stories, left_out, stories_left_out)


def _stories(subject: Subject, ask: Ask, files: list[Row]) -> tuple[dict[str, str], int]:
    stories: dict[str, str] = {}
    size = left_out = 0
    # Files that several layers have teach most.
    for row in sorted(files, key=lambda row: (row.said < 2 and row.hidden_by is None, row.kind == "directory")):
        # Thousands of stories that are made only to see that they do not fit would take minutes.
        if size < MOST_STORIES * _FULL:
            text = html("story.html", story=story(subject, ask, unquote_to_bytes(row.key)))
            if size + len(text) <= MOST_STORIES:
                stories[row.key] = text
                size += len(text)
                continue
        left_out += 1
    return stories, left_out


def report(page: Page, held: Embedded) -> str:
    """Return the file: HTML that contains its style, its script and its data, and may load nothing from anywhere."""
    style, script = static("page.css"), static("page.js")
    policy = (
        f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; img-src data:; base-uri 'none'; "
        "form-action 'none'"
    )
    return html(
        "page.html",
        page=page,
        policy=policy,
        style=Markup(style),
        script=Markup(script),
        embedded={"trees": held.trees, "stories": held.stories, "note": held.note},
    )


def _hash(text: str) -> str:
    """Return the name of an inline text in a content security policy: CSP level 3, "hash-source"."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
