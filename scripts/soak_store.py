#!/usr/bin/env python3
"""A soak test of the store: processes load, commit, create, tag, remove and prune at once, and are killed at random.

Every image that is listed must be what was loaded, and must be mountable. Needs root, and scripts/provision --dev.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from overlayfs_demo.linux import mounting  # noqa: E402
from tests.store.stress import stress  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600, metavar="N", help="default: 600")
    parser.add_argument("--processes", type=int, default=8, metavar="N", help="default: 8")
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(4)), metavar="N", help="default: random")
    parser.add_argument("--dir", type=Path, default=Path("/var/tmp"), help="where (default: /var/tmp)")
    arguments = parser.parse_args()
    # The mounts that try the images stay in this process's own namespace.
    mounting.unshare(mounting.CLONE_NEWNS)
    mounting.mount(b"none", b"/", b"", mounting.MS_REC | mounting.MS_PRIVATE, b"")
    print(f"soak_store: seed {arguments.seed}")
    with tempfile.TemporaryDirectory(prefix="soak-store-", dir=arguments.dir) as base:
        counts = stress(Path(base), arguments.seconds, arguments.seed, arguments.processes)
    print(f"soak_store: {counts}")
    for wrong in counts.wrong:
        print(f"soak_store: {wrong}", file=sys.stderr)
    return 1 if counts.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
