"""The view of one path as each layer is laid on the layers below it.

The layers are stacked from the bottom up. At each step the merge rule (`decide`) is applied to the new layer and to
what was visible before. Nothing is read here.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence

from overlayfs_demo.analysis.inventory import Thing
from overlayfs_demo.named_tuple import NamedTuple
from overlayfs_demo.overlay.merge import Says, decide


class Why(enum.Enum):
    """Why a file is no longer visible."""

    OVERWRITTEN = "overwritten"
    METADATA_ONLY = "metadata only: overwritten by a copy with the same data"
    DELETED = "deleted by a whiteout"
    OPAQUE = "hidden by an opaque directory"


# The layers that hide everything that the layers below them have in a directory, each with its reason.
Hiding = Mapping[int, Why]


class Step(NamedTuple):
    """What one layer does to a path. `before` is the number of the layer that showed it until now; None if none did.

    `why` is the reason that it is hidden now; None if nothing was there, or if it is a directory that merges with this
    layer's.
    """

    number: int
    before: int | None
    why: Why | None


class Laid(NamedTuple):
    """What became of one path: a step for each layer that did something, in order.

    `shown` is the number of the layer that shows it in the end; None if none does. If the path is a directory, `hiding`
    applies to its contents.
    """

    steps: Sequence[Step]
    shown: int | None
    hiding: Hiding


def lay(things: Mapping[int, Thing], above: Hiding) -> Laid:
    """Stack what the layers have at a path, the lowest number first.

    `above` is the `hiding` of the directory that contains the path.
    """
    if len(things) == 1 and not above:
        # The usual case is handled first and quickly: one layer, nothing to decide.
        [(number, thing)] = things.items()
        return Laid((Step(number, None, None),), None if thing.says is Says.WHITEOUT else number, _NOTHING)
    steps = []
    shown: int | None = None
    hiding: dict[int, Why] = {}
    for number in sorted(things.keys() | above.keys()) if above else things:
        said, before = things.get(number), shown
        why = above.get(number) if before is not None else None
        if said is not None:
            below = things[before].says if before is not None and why is None else Says.ABSENT
            positions = decide((said.says, below)).positions
            if below is not Says.ABSENT and 1 not in positions:
                why = _REASONS.get(said.says, Why.OVERWRITTEN)
            shown = number if 0 in positions else None
        elif why is not None:
            shown = None
        if why is not None and before is not None and things[before].directory:
            hiding[number] = why
        steps.append(Step(number, before, why))
    return Laid(steps, shown, hiding)


_NOTHING: Hiding = {}
_REASONS = {Says.WHITEOUT: Why.DELETED, Says.OPAQUE_DIRECTORY: Why.OPAQUE}
