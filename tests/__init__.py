"""The tests of overlayfs-demo; their folders mirror the package's."""

import os
import sys

# Tests start this program hundreds of times. From bytecode it starts in a third of the time, but an environment may
# forbid to write it. This comes before all other imports, so that what they compile is there for every process.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
