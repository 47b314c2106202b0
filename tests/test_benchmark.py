"""Does the benchmark compute, print, draw and judge what it claims?"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from benchmarks import faults, inputs, main, measure, peers, picture, report, rows, targets
from benchmarks.costs import total_calls
from benchmarks.peers import Peer, parse_peer
from benchmarks.results import FUSE, KERNEL, LOOPBACK, OURS, Figures, Place, Results, read_json, write_json
from tests.places import ROOT

SCRIPT = ROOT / "scripts" / "benchmark"
MEMORY, DISK = Place("tmpfs", tmpfs=True), Place("disk (ext4)", tmpfs=False)
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting and whiteouts need root")


def row(name: str) -> rows.Row:
    [found] = rows.choose([name], quick=False)
    return found


def results(*cells: tuple[Place, str, str, float]) -> Results:
    """Results with one sample for each cell: place, row, peer and microseconds (or bytes)."""
    found = Results({"system": "Linux"}, {OURS: "1", KERNEL: "2", FUSE: "3", LOOPBACK: "4"}, [MEMORY, DISK])
    for place, name, peer, value in cells:
        found.figures[place.name, name, peer] = Figures((value / row(name).unit.factor,))
    return found


# --- the inputs -------------------------------------------------------------------------------------


def test_merge_hides_what_a_whiteout_names_and_all_below_it() -> None:
    base: inputs.Plan = {"d/a": b"1", "d/b": b"1", "e/x/y": b"1", "ee": b"1"}
    top: inputs.Plan = {"d/a": None, "d/b": b"2", "e": None}
    assert inputs.merge([base, top]) == {"d/b": b"2", "ee": b"1"}


def test_the_layers_hold_every_case() -> None:
    base, middle, top = plans = inputs.package_plans(inputs.FULL.files)
    assert len(inputs.merge(plans)) > 6000
    for upper in (middle, top):
        assert any(data is None and path in base for path, data in upper.items())
        assert any(data is not None and path in base for path, data in upper.items())
    assert any(data is None and path not in base for path, data in top.items()), "no directory is whited out"
    assert plans == inputs.package_plans(inputs.FULL.files)


# --- the table of rows ------------------------------------------------------------------------------


def test_rows_have_names_of_their_own() -> None:
    names = [row.name for row in rows.ROWS]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[a-z0-9R-]+", name) for name in names)


def test_rows_are_chosen_by_patterns_in_the_order_of_the_table() -> None:
    assert [row.name for row in rows.choose(["miss-*", "stat"], quick=True)] == [
        "stat",
        "miss-1",
        "miss-20",
        "miss-100",
        "miss-500",
    ]


def test_a_quick_run_has_a_slow_row_only_if_it_is_named() -> None:
    everything, quick = rows.choose([], quick=False), rows.choose([], quick=True)
    slow = {"rss-1000000", "name-1000000"}
    assert {row.name for row in everything} - {row.name for row in quick} == slow
    assert [row.name for row in rows.choose(["rss-*", "name-1000000"], quick=True) if row.slow] == ["name-1000000"]


# --- the command line -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words", [["--only", "nope"], ["--peers", "stat"], ["--rounds", "0"], ["--on", "/nowhere"], ["--peer", "new"]]
)
def test_wrong_options_are_usage_errors(words: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main.arguments(words)


def test_a_peers_command_is_filled_in() -> None:
    peer = parse_peer("new='/opt/a b/overlay' -o l={lower},u={upper},w={work} {mnt}")
    words = peer.words(lower="a:b", upper=Path("/u"), work=Path("/w"), mnt=Path("/{lower}"), volatile=True)
    assert (peer.name, words) == ("new", ["/opt/a b/overlay", "-o", "l=a:b,u=/u,w=/w", "/{lower}"])


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("mount {lower} {mnt}", "a name"),
        ("x=mount {lower}", "{mnt}"),
        ("x=mount {lower} {mnt} {top}", "{top}"),
        ("overlayfs=mount {lower} {mnt}", "always measured"),
    ],
)
def test_a_peer_that_makes_no_sense_is_explained(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=re.escape(problem)):
        parse_peer(text)


def test_a_peer_that_is_missing_is_named_and_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert [peer.name for peer in peers.find_peers([KERNEL, FUSE, LOOPBACK], [], tmp_path)] == [KERNEL]
    said = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[:2] for line in said] == [["left out", FUSE], ["left out", LOOPBACK]]


# --- the results ------------------------------------------------------------------------------------


def test_ratio_is_the_ratio_of_the_medians() -> None:
    found = results()
    found.figures["tmpfs", "stat", OURS] = Figures((1.0, 9.0, 2.0))
    found.figures["tmpfs", "stat", FUSE] = Figures((4.0, 4.0, 100.0))
    found.figures["tmpfs", "stat", KERNEL] = Figures((1.0,), "broken")
    assert found.ratio(MEMORY, row("stat"), FUSE) == 0.5
    assert found.ratio(MEMORY, row("stat"), KERNEL) is None
    assert Figures((1.0, 2.0, 5.0)).spread == 1.5


def test_results_survive_json(tmp_path: Path) -> None:
    found = results((MEMORY, "stat", OURS, 46), (DISK, "name-1000000", OURS, 400))
    found.figures["tmpfs", "stat", FUSE] = Figures(fault="broken")
    write_json(found, tmp_path / "figures")
    assert read_json(tmp_path / "figures") == found
    (tmp_path / "figures").write_text('{"facts": {}}')
    with pytest.raises(ValueError, match="does not hold the results"):
        read_json(tmp_path / "figures")


def test_missed_targets_are_named_with_their_figures_and_the_loopbacks() -> None:
    found = results(
        (MEMORY, "create", OURS, 278),
        (MEMORY, "create", FUSE, 343),
        (MEMORY, "create", KERNEL, 50),
        (MEMORY, "create", LOOPBACK, 216),
        # 0.8 is allowed on a disk, and four times the kernel's overlayfs.
        (DISK, "create", OURS, 278),
        (DISK, "create", FUSE, 343),
        (DISK, "create", KERNEL, 50),
        (MEMORY, "name-1000000", OURS, 1000),
    )
    verdict = targets.check(found)
    assert verdict.missed == (
        "create on tmpfs: 0.81 times fuse-overlayfs, target 0.47"
        " (ours-kernel 278 µs, fuse-overlayfs 343 µs, c-loopback 216 µs)",
        "name-1000000 on tmpfs: 1,000 B, target 400 B (c-loopback -)",
        "create on disk (ext4): 5.56 times overlayfs, target 4 (ours-kernel 278 µs, overlayfs 50.0 µs, c-loopback -)",
    )
    assert not verdict.unknown


def test_a_target_is_missed_without_our_figure_and_unknown_without_the_peers() -> None:
    found = results((MEMORY, "stat", OURS, 30))
    found.figures["tmpfs", "miss", OURS] = Figures(fault="broken")
    verdict = targets.check(found)
    assert [line.split(" on ")[0] for line in verdict.unknown] == ["stat", "stat"]
    assert verdict.missed == ("miss on tmpfs: no figure of ours (broken)",) * 2


def test_every_target_reached_is_no_complaint() -> None:
    found = results((MEMORY, "stat", OURS, 30), (MEMORY, "stat", FUSE, 70), (MEMORY, "stat", KERNEL, 6))
    assert targets.check(found) == targets.Verdict((), ())


def test_the_tables_show_figures_and_why_some_are_missing() -> None:
    found = results((MEMORY, "stat", OURS, 46.12), (MEMORY, "stat", FUSE, 70), (MEMORY, "rss-10000", OURS, 3))
    found.figures["tmpfs", "stat", KERNEL] = Figures(fault="wrong sizes")
    lines = [line.split() for line in report.terminal(found).splitlines()]
    assert ["stat", "µs", "46.1", "-", "70.0", "-"] in lines
    assert ["stat", "-", "0.66", "-"] in lines
    assert ["overlayfs:", "wrong", "sizes:", "stat"] in lines


def test_the_tables_fit_a_wide_terminal() -> None:
    found = results()
    for measured in rows.ROWS:
        for peer in peers.BUILT_IN:
            found.figures["tmpfs", measured.name, peer] = Figures((0.0105, 0.0125, 0.0135))
    found.peers = dict.fromkeys(peers.BUILT_IN, "1")
    assert max(map(len, report.terminal(found).splitlines())) <= 100


def test_the_tables_replace_only_what_stands_between_the_marks(tmp_path: Path) -> None:
    document = tmp_path / "benchmarks.md"
    document.write_text(f"# Figures\n\n{report.START}\nold\n{report.END}\n\nThe end\n")
    found = results((MEMORY, "stat", OURS, 46), (MEMORY, "stat", FUSE, 70))
    for _ in range(2):
        report.write_into(document, report.markdown(found, "../p.svg"))
    text = document.read_text()
    assert text.startswith("# Figures\n") and text.endswith("\nThe end\n") and "old" not in text
    assert text.count("| stat of a file, first | µs | - | 70.0 | - | 46.0 | 0.66 | - |") == 1
    assert text.count("](../p.svg)") == 1
    document.write_text("no marks")
    with pytest.raises(ValueError, match="has no lines"):
        report.write_into(document, "new")


def test_the_picture_has_a_mark_for_each_figure_further_right_where_it_is_larger() -> None:
    found = results(
        (MEMORY, "stat", OURS, 46), (MEMORY, "stat", FUSE, 70), (MEMORY, "miss", OURS, 36), (MEMORY, "miss", FUSE, 40)
    )
    drawn = ElementTree.fromstring(picture.draw(found))
    titles = {title.text: mark for mark in drawn.iter() for title in mark if title.tag.endswith("title")}
    stat, miss = (
        titles[f"{about}, ours-kernel: {ratio}"]
        for about, ratio in (("stat of a file, first", "0.66"), ("stat of a missing name", "0.90"))
    )
    assert float(stat.attrib["cx"]) < float(miss.attrib["cx"])
    assert "prefers-color-scheme: dark" in picture.draw(found)


def test_strace_totals_are_read() -> None:
    head = "% time     seconds  usecs/call     calls    errors syscall\n"
    assert total_calls(f"{head}100.00    0.000120           1       614        12 total\n") == 614
    assert total_calls(f"{head}  0.00    0.000000           0         9           total\n") == 9
    assert total_calls("") == 0


# --- runs -------------------------------------------------------------------------------------------


def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, SCRIPT, *words], capture_output=True, text=True, check=False)


@needs_root
def test_a_quick_run_prints_the_figures_and_leaves_nothing(tmp_path: Path) -> None:
    words = ("--quick", "--rounds", "1", "--peers", KERNEL, "--only", "stat,create", "--json", tmp_path / "figures")
    done = run(*words, "--on", tmp_path)
    if f"left out: {KERNEL}" in done.stderr:
        pytest.skip(f"no overlay mount here: {done.stderr}")
    found = read_json(tmp_path / "figures")
    [place] = found.places
    assert [row.name for row in found.rows(place)] == ["stat", "create"], done.stderr
    assert all(len(figures.samples) == 1 for figures in found.figures.values())
    assert f"Linux {os.uname().release.partition('-')[0]}" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["figures"]
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()


@needs_root
def test_a_view_that_shows_only_one_layer_has_no_figures(tmp_path: Path) -> None:
    """A bind mount of the bottom layer shows the small input rightly, and must fail the rows that look closer."""
    script = 'sh -c \'exec mount --bind "$(echo "$1" | sed s/.*://)" "$2"\' sh {lower} {mnt}'
    ground = measure.Ground(tmp_path, inputs.Sizes(10, 1, 1, 10, 10, 3, 10, 100, 10, 10, 2))
    broken = parse_peer(f"broken={script}")
    assert measure.working([broken], ground) == [broken]
    chosen = rows.choose(["find-warm", "grep-warm", "untar", "copy-up", "write-4k", "rm-lower"], quick=True)
    found = Results({}, {}, [MEMORY])
    measure.measure(found, chosen, [broken], {MEMORY.name: ground}, rounds=2)
    assert [key for key, figures in found.figures.items() if not figures.fault] == []
    assert len(found.figures) == len(chosen)


@needs_root
def test_every_row_checks_out_on_the_kernels_overlayfs(tmp_path: Path) -> None:
    ground = measure.Ground(tmp_path, inputs.Sizes(10, 1, 1, 10, 10, 3, 10, 100, 10, 5, 2))
    kernel = peers.BUILT_IN[KERNEL](tmp_path)
    if not measure.working([kernel], ground):
        pytest.skip("no overlay mount here")
    # Those that count take long, those that start cold drop this machine's caches, and 20 layers show what 500 do.
    left_out = re.compile(r"(hit|miss|list)-\d00")
    chosen = [row for row in rows.ROWS if not row.once and not row.cold and not left_out.fullmatch(row.name)]
    found = Results({}, {}, [MEMORY])
    measure.measure(found, chosen, [kernel], {MEMORY.name: ground}, rounds=1)
    failed = {key[1]: figures.fault for key, figures in found.figures.items() if figures.fault}
    no_daemon = dict.fromkeys(("cpu-stat", "cpu-open-read", "cpu-create"), "has no daemon")
    assert failed == {"help": "is not a Python program", **no_daemon}
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()


@needs_root
def test_a_peer_that_cannot_mount_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ground = measure.Ground(tmp_path, inputs.QUICK)
    assert measure.working([Peer("none", ("false", "{lower}", "{mnt}"), "")], ground) == []
    assert "left out: none: false: failed" in capsys.readouterr().err


@needs_root
def test_a_peer_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "LIMIT", 0.1)
    ground = measure.Ground(tmp_path, inputs.QUICK)
    with pytest.raises(faults.WrongResultError, match="took longer than"):
        measure.sample(row("stat"), Peer("hung", ("sh", "-c", "sleep 60"), ""), ground)
