"""The hashes that name records, and that an upper keeps of its lowers: they are SHA-256, whoever computes them."""

from __future__ import annotations

import hashlib
import importlib
import sys

import pytest

from overlayfs_demo.overlay import sha256


@pytest.mark.parametrize("missing", [(), ("_sha2",), ("_sha2", "_sha256")], ids=len)
def test_digest_is_hashlibs(missing: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        with monkeypatch.context() as patched:
            for name in missing:
                patched.setitem(sys.modules, name, None)
            importlib.reload(sha256)
            for data in (b"", b"/srv/view", bytes(1000)):
                assert sha256.digest(data) == hashlib.sha256(data).digest()
    finally:
        importlib.reload(sha256)
