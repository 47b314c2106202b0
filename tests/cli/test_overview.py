"""What the program says of itself: the list of all verbs, the help of one, and the version."""

from __future__ import annotations

import pytest

import overlayfs_demo
from overlayfs_demo.cli import main
from overlayfs_demo.cli.families import FAMILIES, SUMMARIES
from overlayfs_demo.cli.parser import verbs_of
from tests.places import fails, run

GROUPS = ["Learn", "Views", "Images", "Containers", "Analysis", "Help"]


def overview() -> str:
    done = run("overlayfs-demo")
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_the_program_alone_prints_the_help() -> None:
    assert overview() == run("overlayfs-demo", "--help").stdout == run("overlayfs-demo", "help").stdout


def test_the_help_has_a_line_for_each_verb_below_its_group() -> None:
    found: dict[str, list[str]] = {}
    group = ""
    for line in overview().splitlines():
        if line in GROUPS:
            group = line
        elif line.startswith("  "):
            found.setdefault(group, []).append(line.split()[0])
    assert list(found) == GROUPS
    assert found == {
        group: [verb for verbs in families.values() for verb in verbs] for group, families in FAMILIES.items()
    }


def test_the_help_says_what_each_verb_does() -> None:
    lines = overview().splitlines()
    for verb in verbs_of(main.parser_for([])):
        summary = SUMMARIES[verb]
        assert [line for line in lines if line.split() == [verb, *summary.split()]], verb


def test_the_help_fits_a_terminal_and_ends_with_where_to_start() -> None:
    lines = overview().splitlines()
    assert [line for line in lines if len(line) > 80] == []
    assert lines[-1] == "New here? Start with 'overlayfs-demo tour'."


@pytest.mark.parametrize("verb", ["history", "mount", "tour"])
def test_help_of_a_verb_is_what_the_verb_says(verb: str) -> None:
    assert run("overlayfs-demo", "help", verb).stdout == run("overlayfs-demo", verb, "--help").stdout


def test_help_of_a_verb_that_does_not_exist_names_the_one_meant() -> None:
    fails(run("overlayfs-demo", "help", "histroy"), "'histroy'", "'history'", status=2)


@pytest.mark.parametrize("word", ["version", "--version", "-v"])
def test_the_version_is_printed(word: str) -> None:
    assert run("overlayfs-demo", word).stdout == f"overlayfs-demo {overlayfs_demo.__version__}\n"


def test_a_verb_with_an_unknown_option_shows_its_own_usage() -> None:
    done = run("overlayfs-demo", "images", "--quite")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(verbs_of(main.parser_for(["images"]))["images"].format_usage())
    assert "unrecognized arguments: --quite: did you mean '--quiet'?" in done.stderr


def test_a_word_too_many_shows_the_usage_of_the_verb() -> None:
    done = run("overlayfs-demo", "tag", "a", "b", "c")
    assert done.returncode == 2
    assert done.stderr.startswith("usage: overlayfs-demo tag ")
    assert "unrecognized arguments: c" in done.stderr
