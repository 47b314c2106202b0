"""Docker's `--format` for lists: `json`, `table …`, `raw`, or a template for each row.

The rules are those of docker/cli, cli/command/formatter. A row is a `Row` with the names that docker has for its
placeholders, sorted, because its JSON is in this order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from overlayfs_demo.errors import printable
from overlayfs_demo.ui.console import put
from overlayfs_demo.ui.go_values import Row
from overlayfs_demo.ui.table import Table
from overlayfs_demo.ui.terminal import put_table

if TYPE_CHECKING:
    from overlayfs_demo.ui.go_template import Template

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


@dataclass(frozen=True, slots=True)
class Form:
    """What `--format` asks for: a template for each row of a list, and with `is_table` a header above them."""

    listing: Listing
    template: Template
    is_table: bool

    @classmethod
    def parse(cls, listing: Listing, form: str, *, quiet: bool = False) -> Form:
        """Read the value of `--format`. Raises TemplateError."""
        from overlayfs_demo.ui.go_template import Template  # Only --format needs it.

        is_table = form.startswith(_TABLE)
        text = form.removeprefix(_TABLE).strip(" ") if is_table else form
        named = {"json": _JSON, "raw": listing.raw_quiet if quiet else listing.raw}
        return cls(listing, Template(_unescaped(named.get(text, text))), is_table)

    def put(self, rows: Sequence[Row], *, whole: bool = True) -> None:
        """Print the rows. Raises TemplateError, and prints nothing in that case.

        A table is `whole` if its user chose the columns; otherwise it fits the terminal, and each row has all cells.
        """
        lines = [self.template.execute(row) for row in rows]
        if self.is_table:
            from overlayfs_demo.ui.go_template_functions import HEADER_FUNCTIONS

            header = self.template.execute(self.listing.headers, HEADER_FUNCTIONS)
            if whole:  # The lines of a template may have fewer cells than its header, or more.
                put_table(Table((header,), [(line,) for line in lines], whole=True))
            else:
                put_table(Table(header.split("\t"), [line.split("\t") for line in lines]))
        else:
            # What a terminal would act on is escaped; the template may ask for more lines and tabs.
            put("".join(printable(line, keep="\n\t") + "\n" for line in lines))


def put_rows(listing: Listing, form: str, rows: Sequence[Row], *, quiet: bool = False, whole: bool = True) -> None:
    """Print the rows in the form that `--format` gives, as `Form.put` does."""
    Form.parse(listing, form, quiet=quiet).put(rows, whole=whole)


def label_header(name: str) -> str:
    """The header of the column `{{.Label "NAME"}}`: the last part of the label's name (formatter.SubHeaderContext)."""
    return name.rpartition(".")[2].replace("-", " ").replace("_", " ")


def _unescaped(form: str) -> str:
    r"""The template with real tabs and newlines for `\t` and `\n`, which shells leave as they are in quotes."""
    return form.replace(r"\t", "\t").replace(r"\n", "\n")
