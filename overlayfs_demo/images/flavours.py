"""Which image does this archive hold, and in whose format?

Four formats exist, told apart by what they contain: `manifest.json` (docker save, podman's
docker-archive; Docker 25 and later put OCI blobs beside it), `oci-layout` with `index.json` (OCI
image-layout.md), and a plain tree (docker export). Digests are proved on the way: index to manifest to
config to diff IDs; the layers themselves are proved when they are read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from overlayfs_demo.errors import ImageError
from overlayfs_demo.images.archive import Archive
from overlayfs_demo.images.model import (
    Config,
    Digest,
    Document,
    Image,
    Layer,
    Platform,
    parse_json,
    running_platform,
    shown,
)
from overlayfs_demo.images.reference import ImageName, Named, Reference, find_image

_INDEXES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
_MANIFESTS = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
_CONFIGS = (
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.docker.container.image.v1+json",
)
# containerd keeps the full name in an annotation of its own. OCI's is then the tag alone (annotations.md); podman and
# skopeo, which know no other, write the name with its tag there.
_FULL_NAME, _REF_NAME = "io.containerd.image.name", "org.opencontainers.image.ref.name"

# Directories of which every root filesystem has one at its top (hier(7)).
_ROOT_DIRECTORIES = ("etc", "usr", "bin", "dev", "proc", "lib", "sbin", "var", "root", "home")

_BLOB = re.compile(r"blobs/([a-z0-9]+)/([0-9a-f]+)")
_CONFIG_NAME = re.compile(r"(?:sha256:)?([0-9a-f]{64})(?:\.json)?")

_MAX_NESTING = 8


@dataclass(frozen=True, slots=True)
class Names:
    """What an archive calls an image: its `full` names; or only a `tag`, which is a name within this archive alone."""

    full: tuple[ImageName, ...] = ()
    tag: str = ""

    def __bool__(self) -> bool:
        return bool(self.full or self.tag)

    def __str__(self) -> str:
        return " ".join(map(str, self.full)) or shown(self.tag)


@dataclass(frozen=True, slots=True)
class Candidate:
    """One image of an archive, not read yet: its names, its platform if known, and how to read it."""

    names: Names
    identity: Digest | None
    platform: Platform | None
    read: Callable[[], Image]

    @property
    def title(self) -> str:
        """What to call it in a list."""
        if self.names:
            return str(self.names)
        return f"{self.identity.short} (no name)" if self.identity else "(no name)"


def select_images(archive: Archive, platform: Platform | None = None) -> list[Image]:
    """Every image of the archive, each for the platform that `select_image` would take. Raises ImageError."""
    candidates = _candidates(archive)
    groups: dict[object, list[Candidate]] = {}
    for one in candidates:
        groups.setdefault(one.names or one.identity, []).append(one)
    return [_of_platform(archive, group, platform).read() for group in groups.values()]


def select_image(archive: Archive, name: str | None = None, platform: Platform | None = None) -> Image:
    """The one image of the archive that is meant.

    An archive with several needs a `name`; of several platforms the running machine's is preferred, or
    `platform` is required. Raises ImageError: no image, none that fits, or more than one.
    """
    candidates = _candidates(archive)
    listed = ", ".join(dict.fromkeys(one.title for one in candidates))
    several = ImageError(f"{archive.label} holds several images", f"choose one of them with --image NAME: {listed}")
    if name is not None:
        candidates = _meant(archive, candidates, name, f"it has: {listed}")
    if len({one.names for one in candidates}) > 1 and len({one.identity for one in candidates}) > 1:
        raise several
    chosen = _of_platform(archive, candidates, platform)
    if any(one.platform == chosen.platform and one.identity != chosen.identity for one in candidates):
        raise several
    return chosen.read()


def _meant(archive: Archive, candidates: Sequence[Candidate], word: str, remedy: str) -> list[Candidate]:
    """The image that a word means, once for each platform. Raises ImageError, with this remedy, if there is none."""
    if same_tag := [one for one in candidates if one.names.tag == word]:
        return same_tag
    images = (Named(one.identity, one.names.full) for one in candidates if one.identity is not None)
    found = find_image(word, images, f" in {archive.label}", remedy)
    if found.name is None:
        return [one for one in candidates if one.identity == found.id]
    return [one for one in candidates if found.name in one.names.full]


def _of_platform(archive: Archive, found: Sequence[Candidate], wanted: Platform | None) -> Candidate:
    """Of one image's platforms the wanted one, or the running machine's, or the only one there is."""
    fitting = [
        one for one in found
        if one.platform is not None and (wanted or running_platform()).includes(one.platform)
    ]
    if fitting:
        return fitting[0]
    if len({one.identity for one in found}) == 1 and (wanted is None or found[0].platform is None):
        return found[0]
    raise ImageError(
        f"{archive.label} has nothing for {wanted or running_platform()}",
        f"choose with --platform: {', '.join(sorted({str(one.platform) for one in found}))}",
    )


def _candidates(archive: Archive) -> list[Candidate]:
    looks_like_root = not archive.top_directories.isdisjoint(_ROOT_DIRECTORIES)
    if "manifest.json" in archive and not (looks_like_root and _is_plain_file(archive)):
        return _docker_candidates(archive)
    if "oci-layout" in archive and "index.json" in archive:
        return _oci_candidates(archive)
    if looks_like_root:
        return [Candidate(Names(), None, None, lambda: _flat_image(archive))]
    raise ImageError(
        f"{archive.label} is no image: it has neither manifest.json (docker save), nor oci-layout and "
        "index.json (OCI), nor the directories of a root filesystem (docker export)",
        "export one with docker save, podman save or skopeo copy",
    )


def _is_plain_file(archive: Archive) -> bool:
    """True for a manifest.json that is merely some program's file in a root filesystem."""
    try:
        rows = parse_json(archive.document("manifest.json"), "manifest.json")
    except ImageError:
        return True
    return not (isinstance(rows, list) and rows and isinstance(rows[0], dict) and "Layers" in rows[0])


def _flat_image(archive: Archive) -> Image:
    return Image(b"", (Layer(archive.whole_digest(), ""),))


def _image(archive: Archive, config: bytes, member: str, layers: list[tuple[str, Digest | None, str]],
           names: Names) -> Image:
    """Put together a config and the (member, digest, media type) of each of its layers."""
    parsed = Config.parse(config, f"{archive.label}: member {member}")
    if len(parsed.diff_ids) != len(layers):
        raise archive.bad(
            member,
            "has another number of layers than its manifest: "
            f"{len(parsed.diff_ids)} (rootfs.diff_ids), not {len(layers)}",
        )
    if not layers:
        raise archive.bad(member, "describes an image without a layer")
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


def _docker_candidates(archive: Archive) -> list[Candidate]:
    """The rows of manifest.json (Docker, image/spec/spec.md, "Combined Image JSON + Filesystem Changeset")."""
    rows = parse_json(archive.document("manifest.json"), f"{archive.label}: member manifest.json")
    if not isinstance(rows, list) or not rows:
        raise archive.bad("manifest.json", "is no list of images")
    return [
        _docker_candidate(archive, Document(row, f"{archive.label}: member manifest.json[{index}]"), len(rows) > 1)
        for index, row in enumerate(rows)
    ]


def _docker_candidate(archive: Archive, row: Document, one_of_many: bool) -> Candidate:
    """The image of one row. Its platform is asked for only if there is something to choose from."""
    member = row.text("Config").removeprefix("./")
    identity = _name_digest(member)
    names = Names(tuple(name for text in row.texts("RepoTags") for name in _names(archive, "manifest.json", text)))
    paths = [path.removeprefix("./") for path in row.texts("Layers")]

    def read() -> Image:
        config = archive.document(member, identity)
        for path in paths:
            archive.stored_size(path)
        return _image(archive, config, member, [(path, _blob_digest(path), "") for path in paths], names)

    platform = Config.parse(archive.document(member, identity), member).platform if one_of_many else None
    return Candidate(names, identity or Digest.of(archive.document(member)), platform, read)


def _names(archive: Archive, member: str, text: str) -> tuple[ImageName, ...]:
    """The name in a reference; none where only a digest follows the repository, which is not a name of ours."""
    try:
        reference = Reference.parse(text)
    except ImageError as error:
        raise archive.bad(member, error.problem) from None
    return () if reference.tag is None and reference.digest is not None else (reference.name,)


def _blob_digest(path: str) -> Digest | None:
    """The digest a member's name claims, where the name is an OCI blob's (image-layout.md, "Blobs")."""
    match = _BLOB.fullmatch(path)
    return Digest.parse(f"{match[1]}:{match[2]}", path) if match else None


def _name_digest(path: str) -> Digest | None:
    match = _CONFIG_NAME.fullmatch(path)
    return Digest("sha256", match[1]) if match else _blob_digest(path)


# --- OCI layout ------------------------------------------------------------------------------------


def _oci_candidates(archive: Archive) -> list[Candidate]:
    layout = Document(
        parse_json(archive.document("oci-layout"), "oci-layout"), f"{archive.label}: member oci-layout"
    )
    version = layout.text("imageLayoutVersion")
    if not version.startswith("1."):
        raise archive.bad("oci-layout", f"is of version {shown(version)}; this program reads 1.x")
    found = _oci_index(archive, archive.document("index.json"), "index.json", Names(), 0)
    if not found:
        raise archive.bad("index.json", "lists no image for any platform")
    return found


def _oci_index(
    archive: Archive, data: bytes, member: str, names: Names, depth: int
) -> list[Candidate]:
    """The images of an index and of the indexes inside it (image-index.md); attestations are none."""
    index = Document(parse_json(data, member), f"{archive.label}: member {shown(member)}")
    found: list[Candidate] = []
    for entry in index.documents("manifests"):
        digest = entry.digest("digest")
        kind = entry.text("mediaType")
        annotations = entry.document("annotations")
        own = _annotated_names(archive, member, annotations) or names
        if kind in _INDEXES:
            if depth >= _MAX_NESTING:
                raise archive.bad(member, "nests indexes too deeply")
            blob = _blob(digest)
            found += _oci_index(archive, archive.document(blob, digest), blob, own, depth + 1)
        elif kind in _MANIFESTS and not annotations.has("vnd.docker.reference.type"):
            found += _oci_candidate(archive, entry, digest, own)
    return found


def _annotated_names(archive: Archive, member: str, annotations: Document) -> Names:
    """The name in a descriptor's annotations."""
    if full := annotations.text(_FULL_NAME, ""):
        return Names(_names(archive, member, full))
    tag = annotations.text(_REF_NAME, "")
    if set(":/").isdisjoint(tag):
        return Names(tag=tag)
    try:
        return Names((Reference.parse(tag).name,))
    except ImageError:
        return Names(tag=tag)  # Not a name: OCI allows more characters here.


def _oci_candidate(
    archive: Archive, entry: Document, digest: Digest, names: Names
) -> list[Candidate]:
    """The image a manifest's descriptor leads to; none, if it is for no platform or not in the archive."""
    place = entry.document("platform")
    platform = None
    if entry.has("platform"):
        platform = Platform(place.text("os"), place.text("architecture"), place.text("variant", ""))
    if platform is not None and platform.os == "unknown":
        return []
    blob = _blob(digest)
    if entry.has("platform") and blob not in archive:
        # docker save of one platform keeps the index of all, without the others' blobs.
        return []
    manifest = Document(
        parse_json(archive.document(blob, digest), blob), f"{archive.label}: member {blob}"
    )
    config = manifest.document("config")
    if config.text("mediaType") not in _CONFIGS:
        return []
    identity = config.digest("digest")
    if platform is None:
        platform = Config.parse(archive.document(_blob(identity), identity), _blob(identity)).platform
    return [Candidate(names, identity, platform, lambda: _oci_image(archive, manifest, identity, names))]


def _oci_image(archive: Archive, manifest: Document, identity: Digest, names: Names) -> Image:
    layers: list[tuple[str, Digest | None, str]] = []
    for row in manifest.documents("layers"):
        digest, kind = row.digest("digest"), row.text("mediaType")
        if kind.endswith("+encrypted"):
            raise archive.bad(_blob(digest), "is an encrypted layer; decrypt the image first")
        stored, promised = archive.stored_size(_blob(digest)), row.size("size")
        if stored != promised:
            raise archive.bad(_blob(digest), f"has {stored} bytes, but the manifest promises {promised}")
        layers.append((_blob(digest), digest, kind))
    config = archive.document(_blob(identity), identity)
    return _image(archive, config, _blob(identity), layers, names)


def _blob(digest: Digest) -> str:
    return f"blobs/{digest.algorithm}/{digest.encoded}"
