"""Titles of layers that a client knows and the daemon does not, such as those of another engine's image.

Titles are listed from the bottom up, as an image lists its layers; "" where none is known.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from overlayfs_demo.mounts.control.protocol import Answer, Happened, WhichAnswer
from overlayfs_demo.mounts.registry import MountRecord
from overlayfs_demo.overlay.layer_statements import Statement
from overlayfs_demo.overlay.provenance import Provenance
from overlayfs_demo.overlay.stack import label

_NUMBERED = re.compile(r"layer ([1-9]\d{0,8}) \(.*\)", re.DOTALL)


def relabelled(given: str, titles: Sequence[str]) -> str:
    """Return the label of a layer with its title in it. Any other text, and a layer without a title, stay the same."""
    found = _NUMBERED.fullmatch(given)
    number = int(found[1]) if found else 0
    title = titles[number - 1] if 0 < number <= len(titles) else ""
    return label(number, title) if title else given


def titled(answer: Answer, titles: Sequence[str]) -> Answer:
    """Return what a daemon answered, with the titles in the labels of its layers."""
    if isinstance(answer, Happened):
        return answer._replace(event=answer.event._replace(layer=relabelled(answer.event.layer, titles)))
    if isinstance(answer, WhichAnswer):
        statements = (_titled_statement(statement, titles) for statement in answer.provenance.statements)
        return answer._replace(provenance=Provenance(tuple(statements)))
    return answer


def _titled_statement(statement: Statement, titles: Sequence[str]) -> Statement:
    return statement._replace(
        layer=relabelled(statement.layer, titles), hidden_by=relabelled(statement.hidden_by, titles)
    )


def titled_record(record: MountRecord, titles: Sequence[str]) -> MountRecord:
    """Return a view's record with the titles of its lowers, and with labels that show them."""
    known = [*titles, *[""] * len(record.lowers)][: len(record.lowers)]
    before = record.titles or [""] * len(record.lowers)
    return record._replace(
        titles=[title or given for title, given in zip(reversed(known), before, strict=True)],
        labels=[relabelled(given, titles) for given in record.labels],
    )
