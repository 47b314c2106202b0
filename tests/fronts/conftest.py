"""How do the fronts' own tests get an engine? As the engine's tests do."""

from __future__ import annotations

from tests.overlay.conftest import overlaid

__all__ = ["overlaid"]
