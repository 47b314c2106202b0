"""Which tasks are there for a learner, how is one judged, and what do typical mistakes show?

Judged is what lies on the disk, never what is seen in merged.
"""
from __future__ import annotations
LABS=()
