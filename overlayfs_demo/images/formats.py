"""The formats of image archives, and the images that an archive holds.

Four formats exist, distinguished by their contents: a list in `manifest.json` (docker save, podman's docker-archive;
Docker 25 and later put OCI blobs beside it), `oci-layout` with `index.json` (OCI image-layout.md), a manifest in
`manifest.json` (skopeo's `dir:`), and a plain tree (docker export). Digests are checked on the way, from index to
manifest to config to diff IDs; the layers themselves are checked when they are read. A fault in one image is reported
when that image is read, so the other images of the archive can still be used.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from overlayfs_demo.errors import ImageError, printable
from overlayfs_demo.images.archive import Archive
from overlayfs_demo.images.config import check_config
from overlayfs_demo.images.model import Config, Digest, Document, Image, Layer, Platform, parse_json
from overlayfs_demo.images.reference import ImageName, Reference

_INDEXES = ("application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json")
_MANIFESTS = ("application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json")
_CONFIGS = ("application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json")
_SCHEMA_1 = (
    "application/vnd.docker.distribution.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v1+prettyjws",
)
# The prefixes of the media types of layers that are tars (OCI layer.md; Docker, image-manifest-v2-2.md).
_LAYERS = ("application/vnd.oci.image.layer.", "application/vnd.docker.image.rootfs.")
# containerd keeps the full name in an annotation of its own. OCI's annotation is then only the tag (annotations.md);
# podman and skopeo, which have no other annotation, write the name with its tag there.
_FULL_NAME, _REF_NAME = "io.containerd.image.name", "org.opencontainers.image.ref.name"

# Every root filesystem has at least one of these directories at its top (hier(7)).
_ROOT_DIRECTORIES = ("etc", "usr", "bin", "dev", "proc", "lib", "sbin", "var", "root", "home")

_BLOB = re.compile(r"blobs/([a-z0-9]+)/([0-9a-f]+)")
_CONFIG_NAME = re.compile(r"(?:sha256:)?([0-9a-f]{64})(?:\.json)?")

_MAX_NESTING = 8
# Docker stops at about 125, and the kernel's overlayfs at 500.
_MAX_LAYERS = 1000
# In all indexes of an archive together. Indexes that list each other several times would multiply without limit.
_MAX_ENTRIES = 10_000


@dataclass(frozen=True, slots=True)
class Names:
    """The names of an image in an archive: its `full` names, or only a `tag`, which means nothing elsewhere."""

    full: tuple[ImageName, ...] = ()
    tag: str = ""

    def __bool__(self) -> bool:
        return bool(self.full or self.tag)

    def __str__(self) -> str:
        return " ".join(map(str, self.full)) or printable(self.tag)


@dataclass(frozen=True, slots=True)
class Candidate:
    """One image of an archive, not read yet: its names, its platform if known, and a function that reads it.

    `index` is the index that lists it among other platforms of one image, if there is one.
    """

    names: Names
    identity: Digest | None
    platform: Platform | None
    read: Callable[[], Image]
    index: Digest | None = None

    @property
    def title(self) -> str:
        """The candidate's title in a list."""
        if self.names:
            return str(self.names)
        return f"{self.identity.short} (no name)" if self.identity else "(no name)"


@dataclass(frozen=True, slots=True)
class NotAnImage:
    """A manifest of something else: a signature, an SBOM, an attestation. `kind` is its type, or that of its data."""

    digest: Digest
    kind: str

    def __str__(self) -> str:
        return f"{self.digest.short} ({printable(self.kind)})"


@dataclass(frozen=True, slots=True)
class Contents:
    """The contents of an archive: at least one image, and manifests of other things."""

    candidates: tuple[Candidate, ...]
    others: tuple[NotAnImage, ...] = ()


def contents(archive: Archive) -> Contents:
    """Return the images of an archive, in its order. Raises ImageError if it has none or is not an image archive."""
    looks_like_root = not archive.top_directories.isdisjoint(_ROOT_DIRECTORIES)
    if "manifest.json" in archive and not (looks_like_root and _is_plain_file(archive)):
        return _of_manifest(archive)
    if "oci-layout" in archive and "index.json" in archive:
        return _of_layout(archive)
    if looks_like_root:
        return Contents((Candidate(Names(), None, None, lambda: _flat_image(archive)),))
    if "repositories" in archive:
        raise ImageError(
            f"{archive.label} comes from Docker before 1.10 and has no manifest.json",
            "load it into a newer Docker, and save it again",
        )
    raise ImageError(
        f"{archive.label} is not an image: it has neither manifest.json (docker save), nor oci-layout and "
        "index.json (OCI), nor the directories of a root filesystem (docker export)",
        "export one with docker save, podman save or skopeo copy",
    )


def _bad_image(names: Names, error: ImageError) -> Candidate:
    """Return a candidate for an image that cannot be read; reading it raises `error`."""

    def read() -> Image:
        raise error

    return Candidate(names, None, None, read)


def _is_plain_file(archive: Archive) -> bool:
    """Return True for a manifest.json that is only some program's file in a root filesystem."""
    try:
        rows = parse_json(archive.document("manifest.json"), "manifest.json")
    except ImageError:
        return True
    return not (isinstance(rows, list) and rows and isinstance(rows[0], dict) and "Layers" in rows[0])


def _flat_image(archive: Archive) -> Image:
    return Image(b"", (Layer(archive.whole_digest(), ""),))


def _platform(config: bytes, member: str) -> Platform | None:
    """Return the platform in a config; None if the config does not say it or cannot be read."""
    try:
        found = Config.parse(config, member).platform
    except ImageError:
        return None
    return found if found.os and found.architecture else None


def _image(
    archive: Archive, config: bytes, member: str, layers: list[tuple[str, Digest | None, str]], names: Names
) -> Image:
    """Make an image of a config and the (member, digest, media type) of each of its layers. Raises ImageError."""
    if len(layers) > _MAX_LAYERS:
        raise archive.bad(member, f"belongs to an image with {len(layers)} layers; this program accepts {_MAX_LAYERS}")
    parsed = check_config(config, f"{archive.label}: member {member}")
    if len(parsed.diff_ids) != len(layers):
        raise archive.bad(
            member,
            "has a different number of layers than its manifest: "
            f"{len(parsed.diff_ids)} (rootfs.diff_ids), not {len(layers)}",
        )
    return Image(
        config,
        tuple(
            Layer(diff_id, name, digest, kind)
            for diff_id, (name, digest, kind) in zip(parsed.diff_ids, layers, strict=True)
        ),
        parsed.history,
        tuple(map(str, names.full)),
    )


# --- docker save -----------------------------------------------------------------------------------


def _of_manifest(archive: Archive) -> Contents:
    """Return the contents that `manifest.json` lists.

    A list is Docker's (image/spec/spec.md, "Combined Image JSON + Filesystem Changeset"), an object is `dir:`'s.
    """
    data = archive.document("manifest.json")
    rows = parse_json(data, f"{archive.label}: member manifest.json")
    if isinstance(rows, dict):
        return _of_directory(archive, data, rows)
    if not isinstance(rows, list) or not rows:
        raise archive.bad("manifest.json", "is not a list of images")
    known: dict[str, tuple[Digest, Platform | None]] = {}
    return Contents(
        tuple(
            _docker_candidate(archive, row, f"{archive.label}: member manifest.json[{index}]", known)
            for index, row in enumerate(rows)
        )
    )


def _docker_candidate(
    archive: Archive, value: object, where: str, known: dict[str, tuple[Digest, Platform | None]]
) -> Candidate:
    """Return the image of one row. `known` has the ID and the platform of each config that was already read."""
    names = Names()
    # The config is not kept but read again with the image, because an archive may list one large config many times.
    try:
        row = Document(value, where)
        names = Names(tuple(name for text in row.texts("RepoTags") for name in _names(archive, "manifest.json", text)))
        member = row.text("Config").removeprefix("./")
        identity = _name_digest(member)
        paths = [path.removeprefix("./") for path in row.texts("Layers")]
        if member not in known:
            config = archive.document(member, identity)
            known[member] = identity or Digest.of(config), _platform(config, member)
    except ImageError as error:
        return _bad_image(names, error)

    def read() -> Image:
        for path in paths:
            archive.stored_size(path)
        config = archive.document(member, identity)
        return _image(archive, config, member, [(path, _blob_digest(path), "") for path in paths], names)

    return Candidate(names, *known[member], read)


def _names(archive: Archive, member: str, text: str) -> tuple[ImageName, ...]:
    """Return the name in a reference; none if only a digest follows the repository, which is not a name here."""
    try:
        reference = Reference.parse(text)
    except ImageError as error:
        raise archive.bad(member, f"has a bad name: {error.problem}") from None
    return () if reference.tag is None and reference.digest is not None else (reference.name,)


def _blob_digest(path: str) -> Digest | None:
    """Return the digest in a member's name if it is that of an OCI blob (image-layout.md, "Blobs"), otherwise None."""
    match = _BLOB.fullmatch(path)
    return Digest.parse(f"{match[1]}:{match[2]}", path) if match else None


def _name_digest(path: str) -> Digest | None:
    match = _CONFIG_NAME.fullmatch(path)
    return Digest("sha256", match[1]) if match else _blob_digest(path)


# --- OCI layout, and dir: ---------------------------------------------------------------------------


class _TooManyError(ImageError):
    """The archive as a whole cannot be used; other errors concern one image."""


@dataclass(frozen=True, slots=True)
class _Blobs:
    """The places of blobs by digest, and the manifests found that are not images."""

    archive: Archive
    place: Callable[[Digest], str]
    manifest_place: Callable[[Digest], str]
    others: list[NotAnImage] = field(default_factory=list)
    # The manifests that were visited, each with its names; one that is listed again adds nothing.
    seen: set[tuple[Digest, Names]] = field(default_factory=set)

    def is_new(self, member: str, digest: Digest, names: Names) -> bool:
        """Record a visit; return False if it is a repetition. Raises _TooManyError."""
        if (digest, names) in self.seen:
            return False
        if len(self.seen) >= _MAX_ENTRIES:
            bad = self.archive.bad(member, f"and the other indexes list more than {_MAX_ENTRIES} manifests")
            raise _TooManyError(bad.problem, bad.remedy)
        self.seen.add((digest, names))
        return True

    def contents(self, member: str, found: list[Candidate]) -> Contents:
        if not found and self.others:
            count = len(self.others)
            raise ImageError(
                f"{self.archive.label} contains no image, only {count} manifest{'s' * (count > 1)} of other kinds: "
                f"{', '.join(map(str, self.others))}",
                "export the image that they describe",
            )
        if not found:
            raise self.archive.bad(member, "lists no image for any platform")
        return Contents(tuple(found), tuple(self.others))


def _of_layout(archive: Archive) -> Contents:
    layout = Document(parse_json(archive.document("oci-layout"), "oci-layout"), f"{archive.label}: member oci-layout")
    version = layout.text("imageLayoutVersion")
    if not version.startswith("1."):
        raise archive.bad("oci-layout", f"has version {printable(version)}; this program reads 1.x")
    blobs = _Blobs(archive, _blob, _blob)
    return blobs.contents("index.json", _oci_index(blobs, archive.document("index.json"), "index.json", Names(), 0))


def _of_directory(archive: Archive, data: bytes, value: object) -> Contents:
    """Read skopeo's `dir:` (containers-transports(5)): a manifest or an index, and blobs named by their bare hashes.

    `value` is what its `manifest.json`, with the bytes `data`, holds.
    """
    member = "manifest.json"
    document = Document(value, f"{archive.label}: member {member}")
    blobs = _Blobs(archive, lambda digest: digest.encoded, lambda digest: f"{digest.encoded}.manifest.json")
    if document.has("manifests"):
        found = _oci_index(blobs, data, member, Names(), 0)
        return blobs.contents(member, [replace(candidate, index=Digest.of(data)) for candidate in found])
    if not document.has("config"):
        if document.has("fsLayers"):
            raise _schema_1(archive, member)
        raise archive.bad(member, "is not an image manifest")
    return blobs.contents(member, _manifest(blobs, document, Digest.of(data), Names(), None))


def _schema_1(archive: Archive, member: str) -> ImageError:
    return ImageError(
        f"{archive.label}: member '{printable(member)}' is a manifest of Docker's schema 1, which has no diff IDs",
        "convert the image: skopeo copy --format v2s2",
    )


def _oci_index(blobs: _Blobs, data: bytes, member: str, names: Names, depth: int) -> list[Candidate]:
    """Return the images of an index and of the indexes inside it (image-index.md)."""
    archive = blobs.archive
    index = Document(parse_json(data, member), f"{archive.label}: member {printable(member)}")
    found: list[Candidate] = []
    for entry in index.documents("manifests"):
        annotations = entry.document("annotations")
        own = Names()
        try:
            own = _annotated_names(archive, member, annotations) or names
            digest = entry.digest("digest")
            kind = entry.text("mediaType")
            if not blobs.is_new(member, digest, own):
                continue
            if kind in _INDEXES:
                if depth >= _MAX_NESTING:
                    raise archive.bad(member, "nests indexes too deeply")
                place = blobs.manifest_place(digest)
                inside = _oci_index(blobs, archive.document(place, digest), place, own, depth + 1)
                found += [replace(candidate, index=digest) for candidate in inside]
            elif kind in _SCHEMA_1:
                raise _schema_1(archive, blobs.manifest_place(digest))
            elif kind not in _MANIFESTS:
                blobs.others.append(NotAnImage(digest, kind))
            else:
                found += _oci_candidate(blobs, entry, digest, own)
        except _TooManyError:
            raise
        except ImageError as error:
            found.append(_bad_image(own, error))
    return found


def _annotated_names(archive: Archive, member: str, annotations: Document) -> Names:
    """Return the name in a descriptor's annotations."""
    if full := annotations.text(_FULL_NAME, ""):
        return Names(_names(archive, member, full))
    tag = annotations.text(_REF_NAME, "")
    if set(":/").isdisjoint(tag):
        return Names(tag=tag)
    try:
        return Names((Reference.parse(tag).name,))
    except ImageError:
        return Names(tag=tag)  # Not a valid name: OCI allows more characters here.


def _oci_candidate(blobs: _Blobs, entry: Document, digest: Digest, names: Names) -> list[Candidate]:
    """Return the image of a manifest's descriptor; none if the manifest is not an image's or not in the archive."""
    place = entry.document("platform")
    platform = None
    if entry.has("platform"):
        platform = Platform(place.text("os"), place.text("architecture"), place.text("variant", ""))
    kind = entry.document("annotations").text("vnd.docker.reference.type", "")
    if kind or (platform is not None and platform.os == "unknown"):
        # BuildKit's attestations (docs/attestations/attestation-storage.md).
        blobs.others.append(NotAnImage(digest, kind or "unknown/unknown"))
        return []
    member = blobs.manifest_place(digest)
    if platform is not None and member not in blobs.archive:
        # docker save of one platform keeps the index of all platforms, without the blobs of the others.
        return []
    data = blobs.archive.document(member, digest)
    document = Document(parse_json(data, member), f"{blobs.archive.label}: member {member}")
    return _manifest(blobs, document, digest, names, platform)


def _manifest(
    blobs: _Blobs, manifest: Document, digest: Digest, names: Names, platform: Platform | None
) -> list[Candidate]:
    """Return the image of a manifest (manifest.md); none if the manifest is of something else."""
    config = manifest.document("config")
    if kind := _other_kind(manifest, config):
        blobs.others.append(NotAnImage(digest, kind))
        return []
    identity = config.digest("digest")
    member = blobs.place(identity)
    if platform is None:
        platform = _platform(blobs.archive.document(member, identity), member)
    return [Candidate(names, identity, platform, lambda: _oci_image(blobs, manifest, identity, names))]


def _other_kind(manifest: Document, config: Document) -> str:
    """Return the kind of a manifest that is not an image's, else "" (manifest.md, "Guidelines for Artifact Usage").

    cosign's signatures have the config of an image, but no layer that is a tar.
    """
    if kind := manifest.text("artifactType", ""):
        return kind
    if (kind := config.text("mediaType")) not in _CONFIGS:
        return kind
    kinds = [row.text("mediaType") for row in manifest.documents("layers")]
    if any(kind.startswith(_LAYERS) for kind in kinds):
        return ""
    if kinds:
        return kinds[0]
    return "refers to another manifest" if manifest.has("subject") else ""


def _oci_image(blobs: _Blobs, manifest: Document, identity: Digest, names: Names) -> Image:
    layers: list[tuple[str, Digest | None, str]] = []
    archive = blobs.archive
    for row in manifest.documents("layers"):
        digest, kind = row.digest("digest"), row.text("mediaType")
        member = blobs.place(digest)
        if kind.endswith("+encrypted"):
            raise archive.bad(member, "is an encrypted layer; decrypt the image first")
        stored, promised = archive.stored_size(member), row.size("size")
        if stored != promised:
            raise archive.bad(member, f"has {stored} bytes, but the manifest says {promised}")
        layers.append((member, digest, kind))
    member = blobs.place(identity)
    return _image(archive, archive.document(member, identity), member, layers, names)


def _blob(digest: Digest) -> str:
    return f"blobs/{digest.algorithm}/{digest.encoded}"
