"""Addresses that a registry names: of tokens, redirects, uploads and further pages."""

from __future__ import annotations

import re
from urllib.parse import SplitResult, urlsplit

from overlayfs_demo.errors import RegistryError, printable

# RFC 3986 has no other characters; the length is what servers accept.
_CHARACTERS = re.compile(r"[!-~]{1,8192}")
_SHOWN = 200


def require_url(url: str, domain: str, purpose: str, *, secure: bool) -> SplitResult:
    """Return the parts of an absolute URL. Raises RegistryError unless it is http or https; with `secure`, only https.

    `domain` is the registry that named it, and `purpose` what it named it for.
    """
    schemes = ("https",) if secure else ("https", "http")
    try:
        if not _CHARACTERS.fullmatch(url):
            raise ValueError
        parts = urlsplit(url)
        _ = parts.port
        if parts.scheme not in schemes or not parts.hostname or "@" in parts.netloc:
            raise ValueError
    except ValueError:
        shown = printable(url[:_SHOWN]) + "…" * (len(url) > _SHOWN)
        raise RegistryError(
            f"registry {printable(domain)} names an address for {purpose} that is not {' or '.join(schemes)}: {shown}",
            "do not use this registry, or report this to those who run it",
        ) from None
    return parts


def origin(parts: SplitResult) -> tuple[str, str, int]:
    """Return what says whether two URLs are of one server (RFC 6454): scheme, host and port."""
    return parts.scheme, parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
