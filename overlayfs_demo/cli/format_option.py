"""The option --format, by which docker's lists are shaped."""

from __future__ import annotations

import argparse

from overlayfs_demo.errors import UsageError

_LISTS = (
    "as in docker: 'json', or a Go template for each line, such as '{{.ID}} {{.Size}}'; after the word 'table', with "
    r"a header: 'table {{.ID}}\t{{.Size}}'"
)
_OBJECTS = "as in docker: 'json', or a Go template for each object, such as '{{.Id}}'"


def add_format(verb: argparse.ArgumentParser, *, lists: bool = True) -> None:
    """Give the verb the option --format; without `lists`, the verb shows objects, and knows no 'table'."""
    if lists:
        verb.add_argument("--format", metavar="TEMPLATE", help=_LISTS)
    else:
        verb.add_argument("--format", "-f", metavar="TEMPLATE", help=_OBJECTS)


def form_of(arguments: argparse.Namespace) -> str | None:
    """Return the value of --format; None for the usual table, which `table` alone also means. Raises UsageError."""
    form: str = arguments.format or "table"
    if form.strip() == "table":
        return None
    if arguments.json:
        raise UsageError("--json and --format were both given", "choose one")
    return form
