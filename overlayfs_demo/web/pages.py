"""The templates, which make HTML of the page's values and escape everything that is put into them."""

from __future__ import annotations

import functools
from importlib import resources

from jinja2 import Environment, PackageLoader, StrictUndefined

from overlayfs_demo.ui.text import plural

_HERE = "overlayfs_demo.web"
STATIC = {"page.css": "text/css", "page.js": "text/javascript"}


@functools.cache
def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    made.filters["plural"] = plural
    return made


def html(template: str, **values: object) -> str:
    """Return the template, filled in with these values."""
    return _environment().get_template(template).render(values)


@functools.cache
def static(name: str) -> str:
    """Return the text of one of the STATIC files."""
    return resources.files(_HERE).joinpath("static", name).read_text("utf-8")
