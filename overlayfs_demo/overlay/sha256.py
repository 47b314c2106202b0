"""SHA-256 of a few bytes, as hashlib computes it.

hashlib loads OpenSSL first, and each mount would wait for that longer than for its hashes. The module `random` of the
standard library takes its hash from the same place.
"""

from __future__ import annotations

try:
    from _sha2 import sha256  # type: ignore[import-not-found]  # since Python 3.12
except ImportError:
    try:
        from _sha256 import sha256  # type: ignore[import-not-found]
    except ImportError:  # Python can be built without its own hashes.
        from hashlib import sha256


def digest(data: bytes) -> bytes:
    """Return the 32 bytes of the hash."""
    made: bytes = sha256(data).digest()
    return made
