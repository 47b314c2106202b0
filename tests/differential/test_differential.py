"""Does a fixed share of random sequences find our overlay and the kernel's in agreement?

`scripts/fuzz` runs as many as there is time for.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.contract.conftest import why_unavailable
from tests.differential.run import report
from tests.differential.sequence import Case, Setting, run

# What each share is run with: 8 sequences of 150 operations take about 4 seconds.
SHARES = {
    "index-off": Setting(Path(), operations=150),
    "index-on": Setting(Path(), operations=150, index=True),
    "metacopy": Setting(Path(), operations=150, index=True, metacopy=True),
    "fusepy": Setting(Path(), operations=150, front="fusepy"),
}
SEEDS = 8
_SHRINKING = 20.0


@pytest.mark.parametrize("share", SHARES)
def test_same_answers_as_the_kernel(share: str, tmp_path: Path) -> None:
    setting = replace(SHARES[share], place=tmp_path)
    for kind in ("kernel", f"{setting.front}-front"):
        if problem := why_unavailable(kind):
            pytest.skip(problem)
    tmp_path.chmod(0o755)
    first = 10_000 * (1 + list(SHARES).index(share))
    for seed in range(first, first + SEEDS):
        case = Case.of(seed)
        found = run(case, setting)
        assert found is None, report(case, setting, found, _SHRINKING)


def test_a_sequence_follows_from_its_seed() -> None:
    assert Case.of(7) == Case.of(7)
    assert Case.of(7).stack != Case.of(8).stack
