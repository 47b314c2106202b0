"""The documents in the package, which `manual TOPIC` shows.

Each is a Markdown file whose first line is its title. A topic is the file's name, with hyphens and without the suffix.
"""

from __future__ import annotations

from importlib import resources

_SUFFIX = ".md"
_FOLDER = resources.files("overlayfs_demo").joinpath("docs")


def topics() -> list[str]:
    """Return all topics, sorted."""
    files = (file.name for file in _FOLDER.iterdir() if file.name.endswith(_SUFFIX))
    return sorted(name.removesuffix(_SUFFIX).replace("_", "-") for name in files)


def read(topic: str) -> str:
    """Return the document of a topic, as Markdown."""
    return _FOLDER.joinpath(topic.replace("-", "_") + _SUFFIX).read_text("utf-8")


def title(topic: str) -> str:
    """Return the title of a topic's document."""
    return read(topic).partition("\n")[0].removeprefix("# ")
