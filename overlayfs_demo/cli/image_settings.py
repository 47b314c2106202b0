"""What an image's config says about the containers made from it: settings, command and labels."""

from __future__ import annotations

from overlayfs_demo.images.config import Fields, settings
from overlayfs_demo.images.model import parse_json
from overlayfs_demo.store.stored import StoredImage

_WHERE = "config"


def fields_of(image: StoredImage) -> Fields:
    """Return the image's config, to read it field by field."""
    return Fields(parse_json(image.config, _WHERE), _WHERE)


def settings_of(image: StoredImage) -> dict[str, object]:
    """Return the settings, as `inspect` shows them under Config."""
    return settings(fields_of(image).inner("config") or Fields({}, _WHERE))


def command_words(image: StoredImage) -> list[str]:
    """Return the words of the command that a container would run: the entry point and then the command."""
    found = settings_of(image)
    both = (found["Entrypoint"], found["Cmd"])
    return [str(word) for words in both if isinstance(words, list) for word in words]


def labels_of(image: StoredImage) -> dict[str, str]:
    """Return the labels, sorted by key."""
    labels = settings_of(image)["Labels"]
    return {str(key): str(value) for key, value in labels.items()} if isinstance(labels, dict) else {}
