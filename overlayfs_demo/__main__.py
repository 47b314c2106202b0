"""`python -m overlayfs_demo` is the command `overlayfs-demo`."""

import sys

from overlayfs_demo.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
