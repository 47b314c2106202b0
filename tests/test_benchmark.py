"""Does the benchmark compute, print and check what it claims?"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.places import ROOT

SCRIPT = ROOT / "scripts" / "benchmark"


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    loader = importlib.machinery.SourceFileLoader("benchmark_script", str(SCRIPT))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up by name.
    sys.modules[loader.name] = module
    # No bytecode next to the script, which has no suffix to be ignored by.
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = before
    return module


def test_merge_hides_what_a_whiteout_names_and_all_below_it(benchmark: ModuleType) -> None:
    base = {"d/a": b"1", "d/b": b"1", "e/x/y": b"1", "ee": b"1"}
    top = {"d/a": None, "d/b": b"2", "e": None}
    assert benchmark.merge([base, top]) == {"d/b": b"2", "ee": b"1"}


def test_the_layers_hold_every_case(benchmark: ModuleType) -> None:
    base, middle, top = plans = benchmark.layer_plans(1.0)
    assert len(benchmark.merge(plans)) > 6000
    for upper in (middle, top):
        assert any(data is None and path in base for path, data in upper.items())
        assert any(data is not None and path in base for path, data in upper.items())
    assert any(data is None and path not in base for path, data in top.items()), "no directory is whited out"
    assert plans == benchmark.layer_plans(1.0)


def test_ratio_is_the_ratio_of_the_medians(benchmark: ModuleType) -> None:
    found = {"a": [1.0, 9.0, 2.0], "b": [4.0, 4.0, 100.0]}
    assert benchmark.ratio(found, ("a", "b")) == 0.5
    assert benchmark.ratio(found, ("a", "c")) is None


def test_slower_rows_name_what_is_slower_or_unknown_but_no_writes(benchmark: ModuleType) -> None:
    fast = {"ours-kernel": [1.0], "fuse-overlayfs": [2.0]}
    slow = {"ours-kernel": [3.0], "fuse-overlayfs": [2.0]}
    results = {"find-cold": fast, "stat": slow, "rm": {"fuse-overlayfs": [2.0]}, "write-4k": slow}
    assert benchmark.slower_rows(results) == ["stat", "rm"]


def test_the_table_fits_a_terminal_and_shows_failures(benchmark: ModuleType) -> None:
    results = {row: {peer: [0.5, 12.5, 99.0] for peer in benchmark.PEERS} for row in benchmark.ROWS}
    del results["rm"]["ours-fusepy"]
    lines = benchmark.report(results, list(benchmark.PEERS)).splitlines()
    assert max(map(len, lines)) <= 100
    assert "12.5 [0.5-99.0]" in lines[1]
    removed = [line for line in lines if line.startswith("rm ")]
    assert "FAILED" in removed[0]
    assert removed[1].split() == ["rm", "1.00", "nan", "1.00", "nan", "1.00"]


@pytest.mark.parametrize("words", [["--rows", "nope"], ["--peers", "stat"], ["--rounds", "0"], ["--dir", "/nowhere"]])
def test_wrong_options_are_usage_errors(benchmark: ModuleType, words: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        benchmark.arguments(words)


def small_run(benchmark: ModuleType, place: Path, peer: str) -> int:
    args = benchmark.arguments(["--json", "--rounds", "1", "--peers", peer, "--dir", str(place)])
    args.scale = 0.02
    base = place / "base"
    base.mkdir()
    status = benchmark.run(args, benchmark.build_trees(base, args.scale))
    assert str(place) not in Path("/proc/self/mountinfo").read_text()
    assert isinstance(status, int)
    return status


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting and whiteouts need root")
def test_every_row_runs_and_checks_on_the_kernel_overlayfs(
    benchmark: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = small_run(benchmark, tmp_path, "overlayfs")
    output = capsys.readouterr()
    if "skipped" in output.err:
        pytest.skip(f"no overlay mount here: {output.err.strip()}")
    assert status == 0, output.err
    seconds = json.loads(output.out)["seconds"]
    assert list(seconds) == list(benchmark.ROWS)
    assert all(len(found["overlayfs"]) == 1 for found in seconds.values())


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting and whiteouts need root")
def test_a_view_that_shows_only_one_layer_is_no_peer(
    benchmark: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bind mount of the base layer has the right names in its root, and must fail the rows that look closer."""
    script = tmp_path / "mount-base"
    script.write_text(f'#!/bin/sh\nexec mount --bind {tmp_path}/base/base "$3"\n')
    script.chmod(0o755)
    monkeypatch.setitem(benchmark.PEERS, "broken", [str(script)])
    assert small_run(benchmark, tmp_path, "broken") == 1
    output = capsys.readouterr()
    if "skipped" in output.err:
        pytest.skip(f"no bind mount here: {output.err.strip()}")
    failed = [row for row, found in json.loads(output.out)["seconds"].items() if "broken" not in found]
    assert {"find-cold", "find-warm", "grep-warm", "stat", "open-read", "rm", "write-4k"} <= set(failed)
