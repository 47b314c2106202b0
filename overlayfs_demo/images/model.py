"""Values that describe an image once it has been read.

Nothing here opens a file. The words are those of the OCI image specification (config.md, descriptor.md): a *digest*
names bytes as stored, a *diff ID* names a layer's tar before compression, a *chain ID* names a layer together with
everything below it.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from overlayfs_demo.errors import ImageError, UsageError, printable

if TYPE_CHECKING:
    from hashlib import _Hash

_HEX_DIGITS = {"sha256": 64, "sha384": 96, "sha512": 128}
_DIGEST = re.compile(r"([a-z0-9]+):([0-9a-f]+)")
# How the classic builder writes the source of ADD and COPY.
_ADDED = re.compile(r"\b((?:file|dir|multi):[0-9a-f]{12})[0-9a-f]{52}\b")


@dataclass(frozen=True, slots=True)
class Digest:
    """The name of some bytes: an algorithm and a lower-case hexadecimal hash (descriptor.md, "Digests")."""

    algorithm: str
    encoded: str

    @classmethod
    def parse(cls, text: str, where: str) -> Digest:
        """Read `algorithm:hex`. Raises ImageError; `where` says in the error where the text is."""
        match = _DIGEST.fullmatch(text)
        if match is None or _HEX_DIGITS.get(match[1]) != len(match[2]):
            raise ImageError(
                f"{where}: '{printable(text)}' is not a digest",
                "write sha256, sha384 or sha512, a colon, and the hash in lower-case hexadecimal",
            )
        return cls(match[1], match[2])

    @classmethod
    def of(cls, data: bytes, algorithm: str = "sha256") -> Digest:
        """Return the digest of these bytes."""
        return cls(algorithm, hashlib.new(algorithm, data).hexdigest())

    def hasher(self) -> _Hash:
        """Return a new hash object of this digest's algorithm."""
        return hashlib.new(self.algorithm)

    @property
    def short(self) -> str:
        """The first 12 hexadecimal digits, by which people know images."""
        return self.encoded[:12]

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.encoded}"


@dataclass(frozen=True, slots=True)
class Layer:
    """Where one layer of an image is kept, and the digests that it must match.

    `diff_id` names the tar. `digest` names the stored (perhaps compressed) bytes, and is None if the archive's format
    does not give it. `member` is the archive member that holds them; "" is the archive itself (`docker export`: one
    flat tree).
    """

    diff_id: Digest
    member: str
    digest: Digest | None = None
    media_type: str = ""


@dataclass(frozen=True, slots=True)
class History:
    """One step that made an image (config.md, "history"); a step with an empty layer changed metadata only.

    `created` is RFC 3339 text, as stored.
    """

    created: str
    created_by: str
    empty_layer: bool = False
    comment: str = ""
    author: str = ""

    @property
    def instruction(self) -> str:
        """The step as its Dockerfile line, without the shell command that the classic builder wraps around it.

        The hash of added files is cut to as many digits as `Digest.short` shows.
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
        """The same platform with its default variant filled in, or with a redundant variant removed.

        The rules are containerd's (platforms/database.go, normalizeArch).
        """
        variant = {("arm", ""): "v7", ("arm64", "v8"): "", ("amd64", "v1"): ""}.get(
            (self.architecture, self.variant), self.variant
        )
        return Platform(self.os, self.architecture, variant)

    def suits(self, other: Platform) -> int:
        """Return how well `other` fits a request for this: 2 the same, 1 if only a variant is missing, 0 not at all."""
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
    """Return the platform of the machine that we run on."""
    machine = os.uname().machine
    return Platform("linux", *_MACHINES.get(machine, (machine, "")))


@dataclass(frozen=True, slots=True)
class Image:
    """An image: its config, its layers from the bottom up, its history, its names.

    `config` is the exact JSON whose digest is the image ID; b"" for a flat tree, which has none. `tags` are names in
    the familiar form, each with its tag, like Docker's RepoTags (see `reference`).
    """

    config: bytes
    layers: tuple[Layer, ...]
    history: tuple[History, ...] = ()
    tags: tuple[str, ...] = ()

    @property
    def chain_ids(self) -> tuple[Digest, ...]:
        """The chain ID of each layer, from the bottom up."""
        return chain_ids(layer.diff_id for layer in self.layers)

    @property
    def steps(self) -> tuple[History | None, ...]:
        """The step that made each layer; all None if the history does not account for every layer."""
        made = tuple(step for step in self.history if not step.empty_layer)
        return made if len(made) == len(self.layers) else (None,) * len(self.layers)

    @property
    def titles(self) -> tuple[str, ...]:
        """The Dockerfile line that made each layer; "" where the history does not say."""
        return tuple(step.instruction if step is not None else "" for step in self.steps)


def chain_ids(diff_ids: Iterable[Digest]) -> tuple[Digest, ...]:
    """Return the chain ID of every prefix of a stack (config.md, "Layer ChainID").

    ChainID(L0) = DiffID(L0); ChainID(L0|...|Ln) = Digest(ChainID(L0|...|Ln-1) + " " + DiffID(Ln)).
    """
    chain: list[Digest] = []
    for diff_id in diff_ids:
        chain.append(Digest.of(f"{chain[-1]} {diff_id}".encode(), diff_id.algorithm) if chain else diff_id)
    return tuple(chain)


# --- untrusted JSON --------------------------------------------------------------------------------


def parse_json(data: bytes, member: str) -> object:
    """Return the value of a JSON member. Invalid Unicode in its texts becomes U+FFFD, as in Go. Raises ImageError."""
    try:
        value: object = json.loads(data.decode("utf-8", "replace"), parse_constant=_no_number, parse_float=_number)
        if b"\\u" in data:
            # An escape may be one half of a surrogate pair, which only this round trip replaces.
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
    """Reject NaN and Infinity, which Python accepts but JSON does not have."""
    raise ValueError(f"{word} is not a number")


class Document:
    """One JSON object of an archive member. Every read checks the type; the ImageError names member and key.

    An absent or null key gives the default, because many programs write archives. In a list, null is an empty item. Go,
    in which most of these programs are written, reads JSON in the same way.
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
        """Return a string; if absent, the default. Raises ImageError if it is absent and there is no default."""
        value = self._fields.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, str):
            raise self._wrong(key, "a string")
        return value

    def flag(self, key: str) -> bool:
        """Return a truth value; False if absent."""
        value = self._fields.get(key)
        if not isinstance(value, bool | None):
            raise self._wrong(key, "true or false")
        return bool(value)

    def size(self, key: str) -> int:
        """Return a count of bytes: a whole number, not negative."""
        value = self._fields.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 63:
            raise self._wrong(key, "a size in bytes")
        return value

    def digest(self, key: str) -> Digest:
        """Return a digest."""
        return Digest.parse(self.text(key), f"{self._where}: {key!r}")

    def texts(self, key: str) -> tuple[str, ...]:
        """Return a list of strings; empty if absent."""
        texts = []
        for item in self._list(key):
            if not isinstance(item, str | None):
                raise self._wrong(key, "a list of strings")
            texts.append(item or "")
        return tuple(texts)

    def documents(self, key: str) -> tuple[Document, ...]:
        """Return a list of JSON objects; empty if absent."""
        return tuple(
            Document({} if item is None else item, f"{self._where}: {key!r}[{index}]")
            for index, item in enumerate(self._list(key))
        )

    def document(self, key: str) -> Document:
        """Return a JSON object; empty if absent."""
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
        """Iterate over the keys."""
        return iter(self._fields)

    def has(self, key: str) -> bool:
        """Return True if the key is there and not null."""
        return self._fields.get(key) is not None


def _kind(value: object) -> str:
    kinds = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "nothing"}
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
        where = printable(member)
        return cls.of(Document(parse_json(data, member), where), where)

    @classmethod
    def of(cls, document: Document, where: str) -> Config:
        """Take the parts from a config that is parsed already. Raises ImageError, which begins with `where`."""
        rootfs = document.document("rootfs")
        diff_ids = f"{where}: 'rootfs.diff_ids'"
        return cls(
            Platform(document.text("os", ""), document.text("architecture", ""), document.text("variant", "")),
            tuple(Digest.parse(text, diff_ids) for text in rootfs.texts("diff_ids")),
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
