"""Names of images, as people write them and as archives carry them.

The grammar is that of distribution (github.com/distribution/reference): `[DOMAIN/]PATH[:TAG][@DIGEST]`. A name
without a domain is Docker Hub's, and one without a slash is an official image there, so `alpine`, `library/alpine`
and `docker.io/library/alpine` are one repository. People see the shortest of these (the *familiar* form);
archives and other programs get the longest (the *full* form).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from overlayfs_demo.errors import ImageError, near, printable
from overlayfs_demo.images.model import Digest

_HUB, _OFFICIAL = "docker.io", "library"
_OLD_HUB = "index.docker.io"
_LATEST = "latest"
_MOST_CHARACTERS = 255
_MOST_SUGGESTIONS = 5
# A word with fewer hexadecimal digits is probably meant as a name.
_LIKELY_ID = 4

_LABEL = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?"
_DOMAIN = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?")
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_PATH = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_TAG = re.compile(r"\w[\w.-]{0,127}", re.ASCII)
_ID = re.compile("[0-9a-f]{64}")
_SHORT_ID = re.compile("[0-9a-f]{1,64}")


@dataclass(frozen=True, slots=True, order=True)
class Repository:
    """What the tags of one repository share: the registry's `domain`, and the `path` there."""

    domain: str
    path: str

    @property
    def full(self) -> str:
        """The name with its domain."""
        return f"{self.domain}/{self.path}"

    def __str__(self) -> str:
        """The familiar form: the shortest text that is read as this repository again."""
        short = self.path.removeprefix(f"{_OFFICIAL}/") if self.path.count("/") == 1 else self.path
        for text in (short, self.path):
            if _split_domain(text) == (self.domain, self.path):
                return text
        return self.full


def _repository(text: str, whole: str) -> Repository:
    """Read `[DOMAIN/]PATH`, a part of `whole`. Raises ImageError."""
    domain, path = _split_domain(text)
    if _ID.fullmatch(text):
        raise _invalid(whole, "64 hexadecimal digits would be an image ID")
    if (domain, path) == (_HUB, f"{_OFFICIAL}/sha256"):
        # Docker's reference store has this rule, because such a name would be taken for another image's ID.
        raise _invalid(whole, "'sha256:' begins an image ID")
    if path != path.lower():
        raise _invalid(whole, "a repository name must be lowercase")
    if not _DOMAIN.fullmatch(domain) or not _PATH.fullmatch(path):
        raise _invalid(whole)
    if len(domain) + 1 + len(path) > _MOST_CHARACTERS:
        raise _invalid(whole, f"a repository name has at most {_MOST_CHARACTERS} characters")
    return Repository(domain, path)


def _split_domain(text: str) -> tuple[str, str]:
    """Return the domain and the path. The first component is a domain if it has a dot or a port, or is `localhost`."""
    first, slash, rest = text.partition("/")
    if not slash or (first != "localhost" and set(".:").isdisjoint(first)):
        first, rest = _HUB, text
    if first == _OLD_HUB:
        first = _HUB
    if first == _HUB and "/" not in rest:
        rest = f"{_OFFICIAL}/{rest}"
    return first, rest


@dataclass(frozen=True, slots=True, order=True)
class ImageName:
    """A name of an image: a repository and a tag."""

    repository: Repository
    tag: str

    @classmethod
    def parse(cls, text: str) -> ImageName:
        """Read `NAME[:TAG]`; without a tag, the tag is `latest`. Raises ImageError."""
        reference = Reference.parse(text)
        if reference.digest is not None:
            raise _invalid(text, "a digest identifies content and cannot be used as a name")
        return reference.name

    @property
    def full(self) -> str:
        """The name with its domain, as containerd and podman keep it."""
        return f"{self.repository.full}:{self.tag}"

    def __str__(self) -> str:
        """The familiar form, with its tag."""
        return f"{self.repository}:{self.tag}"


@dataclass(frozen=True, slots=True)
class Reference:
    """An image name as a person writes it: a repository, and a tag or a digest if given."""

    repository: Repository
    tag: str | None
    digest: Digest | None

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Read `NAME[:TAG][@DIGEST]`. Raises ImageError."""
        named, at, digest = text.partition("@")
        name, colon, tag = named.rpartition(":")
        if not colon or "/" in tag:
            name, tag = named, ""
        elif not _TAG.fullmatch(tag):
            raise _invalid(text, "a tag is 1 to 128 letters, digits, '_', '.' and '-', and does not begin with . or -")
        return cls(_repository(name, text), tag or None, Digest.parse(digest, f"'{printable(text)}'") if at else None)

    @property
    def name(self) -> ImageName:
        """The full meaning of the reference as a name; its tag is `latest` if none is given."""
        return ImageName(self.repository, self.tag or _LATEST)

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else "" if self.digest else f":{_LATEST}"
        return f"{self.repository}{tag}{f'@{self.digest}' if self.digest else ''}"


def _invalid(text: str, rule: str = "") -> ImageError:
    reason = f": {rule}" if rule else ""
    return ImageError(
        f"'{printable(text)}' is not a valid image name{reason}", "write [DOMAIN[:PORT]/]PATH[:TAG], as in app:1.0"
    )


# --- which image is meant --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Named:
    """One of the images that a word may mean: its ID and its names."""

    id: Digest
    names: tuple[ImageName, ...]


@dataclass(frozen=True, slots=True)
class Found:
    """The image that a word means; `name` is the name that the word gives, None if it is an ID."""

    id: Digest
    name: ImageName | None


def find_image(word: str, images: Iterable[Named], place: str, remedy: str) -> Found:
    """Return the image that a person means by a name, an ID, or the first digits of an ID.

    A name wins over an ID that begins the same way, as with docker. `NAME@DIGEST` is an image of this repository with
    this ID. In errors, `place` says where the images are ("" for a store), and `remedy` what to do if no image has a
    similar name. Raises ImageError.
    """
    images = tuple(images)
    digits = word.removeprefix("sha256:")
    is_id = _SHORT_ID.fullmatch(digits) is not None
    try:
        reference = Reference.parse(word)
    except ImageError:
        if not is_id:
            raise
        reference = None
    if reference is not None and (found := _by_name(reference, images)):
        return found
    matches = {image.id for image in images if is_id and image.id.encoded.startswith(digits)}
    if len(matches) > 1:
        raise ImageError(
            f"'{printable(word)}' is ambiguous{place}: it matches {len(matches)} images", "use more digits"
        )
    if matches:
        return Found(matches.pop(), None)
    if reference is None:
        raise ImageError(f"no image ID begins with {digits}{place}", remedy)
    raise _missing(reference, digits if is_id and len(digits) >= _LIKELY_ID else "", images, place, remedy)


def _by_name(reference: Reference, images: Iterable[Named]) -> Found | None:
    for image in images:
        for name in image.names:
            if reference.digest is None:
                meant = name == reference.name
            else:
                meant = (
                    image.id == reference.digest
                    and name.repository == reference.repository
                    and reference.tag in (None, name.tag)
                )
            if meant:
                return Found(image.id, name)
    return None


def _missing(reference: Reference, digits: str, images: Iterable[Named], place: str, remedy: str) -> ImageError:
    """Return the error for a name that no image has.

    It suggests the names of the same repository, or of one whose path ends the same way or nearly so.
    """
    alike = _alike(reference.repository, sorted(name for image in images for name in image.names))
    problem = f"no image {reference}{f', and no image ID begins with {digits}' if digits else ''}{place}"
    if not alike:
        return ImageError(problem, remedy)
    more = f" and {len(alike) - _MOST_SUGGESTIONS} more" if len(alike) > _MOST_SUGGESTIONS else ""
    return ImageError(problem, f"similar names: {', '.join(map(str, alike[:_MOST_SUGGESTIONS]))}{more}")


def _alike(wanted: Repository, names: Sequence[ImageName]) -> list[ImageName]:
    """Return the names in the repository; if there are none, those whose path ends the same way, or nearly so."""
    if same := [name for name in names if name.repository == wanted]:
        return same
    ends = {name: name.repository.path.rpartition("/")[2] for name in names}
    last = wanted.path.rpartition("/")[2]
    if same := [name for name, end in ends.items() if end == last]:
        return same
    meant = near(last, ends.values(), len(ends) or 1)
    return [name for name, end in ends.items() if end in meant]
