"""Docker's `--format` for lists: `json`, `table …`, `raw`, or a template for each row.

The rules are those of docker/cli, cli/command/formatter. A row is a `Row` with the names that docker has for its
placeholders, sorted, because its JSON is in this order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from overlayfs_demo.errors import printable
from overlayfs_demo.ui.console import put
from overlayfs_demo.ui.go_values import Row
from overlayfs_demo.ui.table import Table
from overlayfs_demo.ui.terminal import put_table

_JSON = "{{json .}}"
_TABLE = "table"


@dataclass(frozen=True, slots=True)
class Listing:
    """One of docker's lists: the header of each placeholder's column, and the templates of `--format raw`, if any.

    `raw_quiet` is the one with `--quiet`.
    """

    headers: Mapping[str, object]
    raw: str = "raw"
    raw_quiet: str = "raw"


def put_rows(listing: Listing, form: str, rows: Sequence[Row], *, quiet: bool = False) -> None:
    """Print the rows in the form that `--format` gives. Raises TemplateError, and prints nothing in that case."""
    # Imported here, because only --format needs them, and the verbs that have it are started often without.
    from overlayfs_demo.ui.go_template import Template
    from overlayfs_demo.ui.go_template_functions import HEADER_FUNCTIONS

    table = form.startswith(_TABLE)
    text = form.removeprefix(_TABLE).strip(" ") if table else form
    template = Template(_unescaped({"json": _JSON, "raw": listing.raw_quiet if quiet else listing.raw}.get(text, text)))
    lines = [template.execute(row) for row in rows]
    if table:
        header = template.execute(listing.headers, HEADER_FUNCTIONS)
        put_table(Table((header,), [(line,) for line in lines], whole=True))
    else:
        # What a terminal would act on is escaped; the template may ask for more lines and tabs.
        put("".join(printable(line, keep="\n\t") + "\n" for line in lines))


def label_header(name: str) -> str:
    """The header of the column `{{.Label "NAME"}}`: the last part of the label's name (formatter.SubHeaderContext)."""
    return name.rpartition(".")[2].replace("-", " ").replace("_", " ")


def _unescaped(form: str) -> str:
    r"""The template with real tabs and newlines for `\t` and `\n`, which shells leave as they are in quotes."""
    return form.replace(r"\t", "\t").replace(r"\n", "\n")
