"""Which of the images in an archive are meant: by name, and by platform?

Candidates of one name, or without a name in one index, are one image for several platforms, where their platforms
differ. Where they do not, they are images of their own, and the last one has the name.
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
    """The candidates in groups of one name, or one index; each without either is one of its own."""
    groups: dict[object, list[Candidate]] = {}
    for one in candidates:
        groups.setdefault(one.names or one.index or one.identity or id(one), []).append(one)
    return list(groups.values())


def of_platform(archive: Archive, group: Sequence[Candidate], wanted: Platform | None) -> list[Candidate]:
    """Of a group those for the wanted platform, or the running machine's, or the only one there is.

    The same platform is preferred to one whose variant is not given. Raises ImageError: there is none.
    """
    fits = [_fit(one, wanted or running_platform()) for one in group]
    best = max(fits)
    if best:
        first = group[fits.index(best)].platform
        return [one for one, fit in zip(group, fits, strict=True) if fit == best and one.platform == first]
    if wanted is None and len({one.platform for one in group}) == 1:
        return list(group)
    raise ImageError(
        f"{archive.label} has no image for {wanted or running_platform()}",
        f"choose with --platform: {', '.join(sorted({str(one.platform) for one in group}))}",
    )


def _fit(candidate: Candidate, wanted: Platform) -> int:
    """As `Platform.suits`; what does not say its platform is worth a try."""
    return wanted.suits(candidate.platform) if candidate.platform is not None else 1


def nameless_but(group: Sequence[Candidate], named: Sequence[Candidate]) -> list[Candidate]:
    """The group, each image once; those that are not among `named` have no name."""
    seen: dict[object, Candidate] = {}
    for one in group:
        seen.setdefault(one.identity or id(one), one if one in named else _without_name(one))
    return list(seen.values())


def _without_name(candidate: Candidate) -> Candidate:
    return replace(candidate, names=Names(), read=lambda: replace(candidate.read(), tags=()))


def select_image(archive: Archive, name: str | None = None, platform: Platform | None = None) -> Image:
    """The one image of the archive that is meant.

    An archive with several needs a `name`, which the last one of that name has; of several platforms the running
    machine's is preferred, or `platform` is required. Raises ImageError: no image, none that fits, or more than one.
    """
    candidates: Sequence[Candidate] = contents(archive).candidates
    listed = ", ".join(dict.fromkeys(one.title for one in candidates))
    several = ImageError(f"{archive.label} holds several images", f"choose one of them with --image NAME: {listed}")
    if name is not None:
        candidates = _meant(archive, candidates, name, f"it has: {listed}")
    if len({one.names for one in candidates}) > 1 and len({one.identity for one in candidates}) > 1:
        raise several
    chosen = of_platform(archive, candidates, platform)
    if len({one.identity for one in chosen}) > 1 and not chosen[0].names:
        raise several
    return chosen[-1].read()


def _meant(archive: Archive, candidates: Sequence[Candidate], word: str, remedy: str) -> list[Candidate]:
    """The image that a word means, once for each platform. Raises ImageError, with this remedy, if there is none."""
    if same_tag := [one for one in candidates if one.names.tag == word]:
        return same_tag
    images = (Named(one.identity, one.names.full) for one in candidates if one.identity is not None)
    found = find_image(word, images, f" in {archive.label}", remedy)
    if found.name is None:
        return [one for one in candidates if one.identity == found.id]
    return [one for one in candidates if found.name in one.names.full]
