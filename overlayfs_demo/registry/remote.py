"""One repository of a registry: its tags, manifests and blobs (distribution-spec, "Endpoints")."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from overlayfs_demo.errors import ImageError, RegistryError, printable
from overlayfs_demo.images.model import Digest, Document, parse_json
from overlayfs_demo.images.reference import Repository
from overlayfs_demo.registry.client import Client

INDEXES = ("application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json")
MANIFESTS = ("application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json")
_ACCEPT = ", ".join((*MANIFESTS, *INDEXES))
_NEXT = re.compile(r"""<([^>]*)>\s*;\s*rel="?next"?""")
_TAG = re.compile(r"\w[\w.-]{0,127}", re.ASCII)
# Of one repository; a registry could otherwise go on for ever.
_MOST_TAGS = 10_000
_MOST_PAGES = 100


@dataclass(frozen=True, slots=True)
class Manifest:
    """A manifest or an index as stored: its bytes, their digest, and what kind it is."""

    data: bytes
    digest: Digest
    media_type: str

    @property
    def is_index(self) -> bool:
        """Whether it lists other manifests."""
        return self.media_type in INDEXES


@contextmanager
def faults() -> Iterator[None]:
    """Turn an ImageError about what a registry sent, which names it, into a RegistryError."""
    try:
        yield
    except ImageError as error:
        raise RegistryError(error.problem, "push the image again, or report this to those who run it") from None


@dataclass(frozen=True, slots=True)
class Remote:
    """One repository of a registry, as `client` sees it."""

    client: Client
    repository: Repository

    @property
    def title(self) -> str:
        """Its title in messages."""
        return self.repository.full

    def path(self, rest: str) -> str:
        """Return the path of something in the repository."""
        return f"/v2/{self.repository.path}/{rest}"

    def manifest(self, reference: str, expected: Digest | None = None) -> Manifest:
        """Return the manifest with a tag or a digest; its digest must be `expected`, if given. Raises RegistryError."""
        what = f"manifest {reference} of {self.title}"
        reply = self.client.exchange("GET", self.path(f"manifests/{reference}"), what, {"Accept": _ACCEPT})
        if reply.status == 404:
            mark = "@" if ":" in reference else ":"
            raise RegistryError(
                f"{self.client.title} has no image {self.title}{mark}{reference}", "check the name and tag"
            )
        if reply.status != 200:
            raise self.client.refusal(what, reply.status, reply.body)
        promised = reply.headers.get("docker-content-digest", "")
        found = Digest.of(reply.body, expected.algorithm if expected is not None else "sha256")
        for wanted in (str(expected) if expected is not None else "", promised):
            if wanted and wanted.partition(":")[0] == found.algorithm and wanted != str(found):
                raise RegistryError(
                    f"{self.client.title}: {what} does not match its digest: expected {printable(wanted)}, "
                    f"found {found}",
                    "do not use this image, and report it to those who run the registry",
                )
        return Manifest(reply.body, found, self._media_type(reply.body, reply.headers.get("content-type", ""), what))

    def _media_type(self, data: bytes, header: str, what: str) -> str:
        """Return the kind that a manifest itself says, or else the answer's header (manifest.md, "mediaType")."""
        said = header.partition(";")[0].strip().lower()
        with faults():
            own = self.document(data, what).text("mediaType", "")
        if own and said and own != said and said in (*MANIFESTS, *INDEXES):
            raise RegistryError(
                f"{self.client.title}: {what} says that it is {printable(own)}, but the registry says {said}",
                "push the image again",
            )
        return own or said

    def document(self, data: bytes, what: str) -> Document:
        """Return the JSON object in an answer. Raises RegistryError."""
        where = f"{self.client.title}: {what}"
        with faults():
            return Document(parse_json(data, where), where)

    def tags(self) -> Sequence[str]:
        """Return all tags, as the registry sorts them. Raises RegistryError."""
        what = f"the tags of {self.title}"
        path, tags = self.path("tags/list?n=1000"), dict[str, None]()
        for _ in range(_MOST_PAGES):
            reply = self.client.exchange("GET", path, what)
            if reply.status != 200:
                raise self.client.refusal(what, reply.status, reply.body)
            with faults():
                tags.update(dict.fromkeys(filter(_TAG.fullmatch, self.document(reply.body, what).texts("tags"))))
            following = _NEXT.search(reply.headers.get("link", ""))
            if following is None or len(tags) > _MOST_TAGS:
                break
            path = self.client.resolved(reply.url, following[1], "more tags")
        else:
            raise RegistryError(f"{self.client.title}: {what} have no end", "name one tag")
        if len(tags) > _MOST_TAGS:
            raise RegistryError(f"{self.client.title}: {what} are more than {_MOST_TAGS}", "name one tag")
        return list(tags)

    def has_blob(self, digest: Digest, size: int) -> bool:
        """Return whether a blob is there. Raises RegistryError, also if it is there with another size."""
        what = f"blob {digest.short}"
        reply = self.client.exchange("HEAD", self.path(f"blobs/{digest}"), what)
        if reply.status == 404:
            return False
        if reply.status != 200:
            raise self.client.refusal(what, reply.status, reply.body)
        there = reply.headers.get("content-length", str(size))
        if there != str(size):
            raise RegistryError(
                f"{self.client.title}: {what} has {printable(there)} bytes there, but {size} here",
                "remove the damaged blob from the registry",
            )
        return True

    def put_manifest(self, tag: str, manifest: Manifest) -> None:
        """Upload a manifest, whose blobs must be there already. Raises RegistryError."""
        what = f"manifest {tag} of {self.title}"
        reply = self.client.exchange(
            "PUT",
            self.path(f"manifests/{tag}"),
            what,
            {"Content-Type": manifest.media_type},
            manifest.data,
            timeout=self.client.patience.commit,
        )
        if reply.status not in (201, 202):
            raise self.client.refusal(what, reply.status, reply.body)
        kept = reply.headers.get("docker-content-digest", str(manifest.digest))
        if kept != str(manifest.digest):
            raise RegistryError(
                f"{self.client.title}: {what} was kept as {printable(kept)}, not as {manifest.digest}",
                "report this to those who run it",
            )
