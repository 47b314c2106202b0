"""Selection among the images of an archive, by name and by platform.

Candidates with the same name, or without a name in the same index, are one image for several platforms if their
platforms differ. Otherwise they are separate images, and the last one has the name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from overlayfs_demo.errors import ImageError
from overlayfs_demo.images.archive import Archive
from overlayfs_demo.images.formats import Candidate, Names, contents
from overlayfs_demo.images.model import Image, Platform, running_platform
from overlayfs_demo.images.reference import Named, find_image


def by_name(candidates: Sequence[Candidate]) -> list[list[Candidate]]:
    """Return the candidates grouped by name or index; a candidate without either is a group of its own."""
    groups: dict[object, list[Candidate]] = {}
    for image in candidates:
        groups.setdefault(image.names or image.index or image.identity or id(image), []).append(image)
    return list(groups.values())


def of_platform(archive: Archive, group: Sequence[Candidate], wanted: Platform | None) -> list[Candidate]:
    """Return a group's candidates for the wanted platform, or the running machine's, or the only one there is.

    The same platform is preferred to one without a variant. Raises ImageError if there is none.
    """
    fits = [_fit(candidate, wanted or running_platform()) for candidate in group]
    best = max(fits)
    if best:
        first = group[fits.index(best)].platform
        return [
            candidate for candidate, fit in zip(group, fits, strict=True) if fit == best and candidate.platform == first
        ]
    if wanted is None and len({candidate.platform for candidate in group}) == 1:
        return list(group)
    raise ImageError(
        f"{archive.label} has no image for {wanted or running_platform()}",
        f"choose one with --platform: {', '.join(sorted({str(candidate.platform) for candidate in group}))}",
    )


def _fit(candidate: Candidate, wanted: Platform) -> int:
    """Return `Platform.suits`; a candidate that does not say its platform is worth a try."""
    return wanted.suits(candidate.platform) if candidate.platform is not None else 1


def nameless_but(group: Sequence[Candidate], named: Sequence[Candidate]) -> list[Candidate]:
    """Return the group, each image once; those that are not among `named` lose their names."""
    seen: dict[object, Candidate] = {}
    for image in group:
        seen.setdefault(image.identity or id(image), image if image in named else _without_name(image))
    return list(seen.values())


def _without_name(candidate: Candidate) -> Candidate:
    return replace(candidate, names=Names(), read=lambda: replace(candidate.read(), tags=()))


def select_image(archive: Archive, name: str | None = None, platform: Platform | None = None) -> Image:
    """Return the one image of the archive that is meant.

    An archive with several images needs a `name`; of several images with that name, the last one has it. Of several
    platforms, `platform` is required if given, otherwise the running machine's is preferred. Raises ImageError if there
    is no image, if none fits, or if more than one does.
    """
    candidates: Sequence[Candidate] = contents(archive).candidates
    listed = ", ".join(dict.fromkeys(candidate.title for candidate in candidates))
    several = ImageError(f"{archive.label} contains several images", f"choose one with --image NAME: {listed}")
    if name is not None:
        candidates = _meant(archive, candidates, name, f"it contains: {listed}")
    if len({image.names for image in candidates}) > 1 and len({image.identity for image in candidates}) > 1:
        raise several
    chosen = of_platform(archive, candidates, platform)
    if len({candidate.identity for candidate in chosen}) > 1 and not chosen[0].names:
        raise several
    return chosen[-1].read()


def _meant(archive: Archive, candidates: Sequence[Candidate], word: str, remedy: str) -> list[Candidate]:
    """Return the image that a word means, once for each platform. Raises ImageError with this remedy if none does."""
    if same_tag := [candidate for candidate in candidates if candidate.names.tag == word]:
        return same_tag
    images = (
        Named(candidate.identity, candidate.names.full) for candidate in candidates if candidate.identity is not None
    )
    found = find_image(word, images, f" in {archive.label}", remedy)
    if found.name is None:
        return [candidate for candidate in candidates if candidate.identity == found.id]
    return [candidate for candidate in candidates if found.name in candidate.names.full]
