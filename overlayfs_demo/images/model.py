"""What is an image, once it has been read?

Values only: nothing here opens a file. The words are those of the OCI image specification
(config.md, descriptor.md): a *digest* names bytes as stored, a *diff ID* names a layer's tar before
compression, a *chain ID* names a layer together with everything below it.
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from overlayfs_demo.errors import ImageError, UsageError, printable

if TYPE_CHECKING:
    from hashlib import _Hash

_HEX_DIGITS = {"sha256": 64, "sha384": 96, "sha512": 128}
_DIGEST = re.compile(r"([a-z0-9]+):([0-9a-f]+)")
# What the classic builder says of ADD and COPY.
_ADDED = re.compile(r"\b((?:file|dir|multi):[0-9a-f]{12})[0-9a-f]{52}\b")


@dataclass(frozen=True, slots=True)
class Digest:
    """The name of some bytes: an algorithm and a lower-case hexadecimal hash (descriptor.md, "Digests")."""

    algorithm: str
    encoded: str

    @classmethod
    def parse(cls, text: str, where: str) -> Digest:
        """Read `algorithm:hex`. Raises ImageError, which says `where` the text stood."""
        match = _DIGEST.fullmatch(text)
        if match is None or _HEX_DIGITS.get(match[1]) != len(match[2]):
            raise ImageError(
                f"{where}: '{printable(text)}' is not a digest",
                "write sha256, sha384 or sha512, a colon, and the hash in lower-case hexadecimal",
            )
        return cls(match[1], match[2])

    @classmethod
    def of(cls, data: bytes, algorithm: str = "sha256") -> Digest:
        """The digest of these bytes."""
        return cls(algorithm, hashlib.new(algorithm, data).hexdigest())

    def hasher(self) -> _Hash:
        """A fresh hash object of this digest's algorithm."""
        return hashlib.new(self.algorithm)

    @property
    def short(self) -> str:
        """The first 12 hexadecimal digits, which is how people know images."""
        return self.encoded[:12]

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.encoded}"


@dataclass(frozen=True, slots=True)
class Layer:
    """Where one layer of an image is kept, and what it must turn out to be.

    `diff_id` names the tar. `digest` names the stored (perhaps compressed) bytes, and is None where the
    archive's format does not say. `member` is the archive member that holds them; "" is the archive
    itself (`docker export`: one flat tree).
    """

    diff_id: Digest
    member: str
    digest: Digest | None = None
    media_type: str = ""


@dataclass(frozen=True, slots=True)
class History:
    """One step that made an image (config.md, "history"); an empty layer changed metadata only.

    `created` is RFC 3339 text, as stored.
    """

    created: str
    created_by: str
    empty_layer: bool = False
    comment: str = ""
    author: str = ""

    @property
    def instruction(self) -> str:
        """The step as its Dockerfile line: the classic builder wraps every one in a shell command.

        The hash of the files that were added is cut to as many digits as `Digest.short` shows.
        """
        text = _ADDED.sub(lambda found: found[1], " ".join(self.created_by.split()))
        if text.startswith("/bin/sh -c #(nop)"):
            return text.removeprefix("/bin/sh -c #(nop)").strip()
        if text.startswith("/bin/sh -c "):
            return "RUN " + text.removeprefix("/bin/sh -c ")
        return text.removesuffix("# buildkit").rstrip()


@dataclass(frozen=True, slots=True)
class Platform:
    """An operating system and an architecture, in Go's spelling (config.md, "architecture")."""

    os: str
    architecture: str
    variant: str = ""

    @classmethod
    def parse(cls, text: str) -> Platform:
        """Read `os/architecture` or `os/architecture/variant`, as a person writes it. Raises UsageError."""
        words = text.split("/")
        if not 2 <= len(words) <= 3 or not all(words):
            raise UsageError(
                f"'{printable(text)}' is not a platform", "write os/architecture[/variant], as in linux/arm64"
            )
        return cls(*words)

    @property
    def normal(self) -> Platform:
        """The same with the variant that is meant where none is given, or none where it says nothing.

        As containerd has it (platforms/database.go, normalizeArch).
        """
        variant = {("arm", ""): "v7", ("arm64", "v8"): "", ("amd64", "v1"): ""}.get(
            (self.architecture, self.variant), self.variant
        )
        return Platform(self.os, self.architecture, variant)

    def suits(self, other: Platform) -> int:
        """How well `other` answers a wish for this: 2 it is the same, 1 only a variant is not given, 0 not at all."""
        if self.normal == other.normal:
            return 2
        same = (self.os, self.architecture) == (other.os, other.architecture)
        return int(same and not (self.variant and other.variant))

    def __str__(self) -> str:
        return "/".join(filter(None, (self.os, self.architecture, self.variant)))


_MACHINES = {
    "x86_64": ("amd64", ""),
    "aarch64": ("arm64", ""),
    "armv7l": ("arm", "v7"),
    "armv6l": ("arm", "v6"),
    "i386": ("386", ""),
    "i686": ("386", ""),
    "loongarch64": ("loong64", ""),
}


def running_platform() -> Platform:
    """The platform of the machine we run on."""
    machine = platform.machine()
    return Platform("linux", *_MACHINES.get(machine, (machine, "")))


@dataclass(frozen=True, slots=True)
class Image:
    """An image: its config, its layers from the bottom to the top, its history, its names.

    `config` is the exact JSON that the image ID is the digest of; b"" for a flat tree, which has none. `tags` are names
    in the familiar form, each with its tag, as Docker's RepoTags (see `reference`).
    """

    config: bytes
    layers: tuple[Layer, ...]
    history: tuple[History, ...] = ()
    tags: tuple[str, ...] = ()

    @property
    def chain_ids(self) -> tuple[Digest, ...]:
        """The chain ID of each layer, from the bottom to the top."""
        return chain_ids(layer.diff_id for layer in self.layers)

    @property
    def steps(self) -> tuple[History | None, ...]:
        """The step that made each layer; all None where the history does not account for every layer."""
        made = tuple(step for step in self.history if not step.empty_layer)
        return made if len(made) == len(self.layers) else (None,) * len(self.layers)

    @property
    def titles(self) -> tuple[str, ...]:
        """What made each layer, as its Dockerfile line; "" where the history does not say."""
        return tuple(step.instruction if step is not None else "" for step in self.steps)


def chain_ids(diff_ids: Iterable[Digest]) -> tuple[Digest, ...]:
    """The chain ID of every prefix of a stack (config.md, "Layer ChainID").

    ChainID(L0) = DiffID(L0); ChainID(L0|...|Ln) = Digest(ChainID(L0|...|Ln-1) + " " + DiffID(Ln)).
    """
    chain: list[Digest] = []
    for diff_id in diff_ids:
        chain.append(Digest.of(f"{chain[-1]} {diff_id}".encode(), diff_id.algorithm) if chain else diff_id)
    return tuple(chain)


# --- JSON of which nothing may be taken for granted ------------------------------------------------


def parse_json(data: bytes, member: str) -> object:
    """The value of a JSON member. What is no Unicode in its texts becomes U+FFFD, as in Go. Raises ImageError."""
    try:
        value: object = json.loads(data.decode("utf-8", "replace"), parse_constant=_no_number, parse_float=_number)
        if b"\\u" in data:
            # An escape may be one half of a surrogate pair.
            text = json.dumps(value, ensure_ascii=False)
            value = json.loads(text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))
        return value
    except (ValueError, RecursionError) as error:
        raise ImageError(f"{printable(member)}: not JSON ({error})", "export the image again") from None


def _number(word: str) -> float:
    value = float(word)
    if math.isinf(value):
        raise ValueError(f"{word} is too large a number")
    return value


def _no_number(word: str) -> None:
    """NaN and Infinity are Python's, not JSON's."""
    raise ValueError(f"{word} is not a number")


class Document:
    """One JSON object of an archive member: every read checks the type, and names member and key if wrong.

    A key that is absent or null is the default; an archive is written by many programs. In a list null is an empty
    item. So does Go, in which most of them are written.
    """

    __slots__ = ("_fields", "_where")

    def __init__(self, value: object, where: str) -> None:
        self._where = where
        if not isinstance(value, dict):
            raise ImageError(f"{where} must be a JSON object, not {_kind(value)}", "export the image again")
        self._fields: dict[str, object] = value

    def _wrong(self, key: str, wanted: str) -> ImageError:
        value = self._fields.get(key)
        found = _kind(value)
        if isinstance(value, list) and wanted.startswith("a list"):
            found = f"one with {', '.join(dict.fromkeys(map(_kind, value)))}"
        return ImageError(f"{self._where}: {key!r} must be {wanted}, not {found}", "export the image again")

    def text(self, key: str, default: str | None = None) -> str:
        """A string; an absent one is the default, or an ImageError where there is none."""
        value = self._fields.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, str):
            raise self._wrong(key, "a string")
        return value

    def flag(self, key: str) -> bool:
        """A truth value; absent is False."""
        value = self._fields.get(key)
        if not isinstance(value, bool | None):
            raise self._wrong(key, "true or false")
        return bool(value)

    def size(self, key: str) -> int:
        """A count of bytes: a whole number, not negative."""
        value = self._fields.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 63:
            raise self._wrong(key, "a size in bytes")
        return value

    def digest(self, key: str) -> Digest:
        """A digest."""
        return Digest.parse(self.text(key), f"{self._where}: {key!r}")

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of strings; absent is empty."""
        texts = []
        for item in self._list(key):
            if not isinstance(item, str | None):
                raise self._wrong(key, "a list of strings")
            texts.append(item or "")
        return tuple(texts)

    def documents(self, key: str) -> tuple[Document, ...]:
        """A list of JSON objects; absent is empty."""
        return tuple(
            Document({} if item is None else item, f"{self._where}: {key!r}[{index}]")
            for index, item in enumerate(self._list(key))
        )

    def document(self, key: str) -> Document:
        """A JSON object; absent is empty."""
        value = self._fields.get(key)
        return Document({} if value is None else value, f"{self._where}: {key!r}")

    def _list(self, key: str) -> list[object]:
        value = self._fields.get(key)
        if value is None:
            return []
        if not isinstance(value, list):
            raise self._wrong(key, "a list")
        return value

    def __iter__(self) -> Iterator[str]:
        """The keys."""
        return iter(self._fields)

    def has(self, key: str) -> bool:
        """True if the key is there and not null."""
        return self._fields.get(key) is not None


def _kind(value: object) -> str:
    kinds = {dict: "an object", list: "a list", str: "a string", bool: "a truth value", type(None): "nothing"}
    return kinds.get(type(value), "a number")


@dataclass(frozen=True, slots=True)
class Config:
    """The parts of an image's config that every reader needs (config.md)."""

    platform: Platform
    diff_ids: tuple[Digest, ...]
    history: tuple[History, ...]

    @classmethod
    def parse(cls, data: bytes, member: str) -> Config:
        """Read a config. Raises ImageError naming the member."""
        document = Document(parse_json(data, member), printable(member))
        rootfs = document.document("rootfs")
        where = f"{printable(member)}: 'rootfs.diff_ids'"
        return cls(
            Platform(document.text("os", ""), document.text("architecture", ""), document.text("variant", "")),
            tuple(Digest.parse(text, where) for text in rootfs.texts("diff_ids")),
            tuple(
                History(
                    row.text("created", ""),
                    row.text("created_by", ""),
                    row.flag("empty_layer"),
                    row.text("comment", ""),
                    row.text("author", ""),
                )
                for row in document.documents("history")
            ),
        )
