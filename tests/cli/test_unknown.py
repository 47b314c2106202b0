"""Words that are no verb: they are answered, and never taken for a mount."""

from __future__ import annotations

import re

import pytest

from overlayfs_demo.cli import main
from overlayfs_demo.cli.groups import GROUPS
from overlayfs_demo.cli.parser import verbs_of
from overlayfs_demo.cli.unknown import INSTEAD
from tests.places import BIN, Place, fails, run

VERBS = verbs_of(main.parser_for([]))


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["histroy"], "history"),
        (["histroy", "app:1.0"], "history"),
        (["exprot", "c1", "-o", "rootfs.tar"], "export"),
        (["unmount", "view"], "umount"),
    ],
    ids=" ".join,
)
def test_a_mistyped_verb_names_the_one_meant(words: list[str], meant: str) -> None:
    done = run("overlayfs-demo", *words)
    fails(done, f"unknown command '{words[0]}': did you mean '{meant}'?", status=2)


def test_a_verb_like_no_other_leads_to_the_list() -> None:
    fails(run("overlayfs-demo", "frobnicate", "a", "b"), "'frobnicate': 'overlayfs-demo help'", status=2)


def test_an_option_before_the_verb_says_where_options_go() -> None:
    fails(run("overlayfs-demo", "--store", "x", "images"), "'--store'", "options follow the command", status=2)


def test_a_word_with_control_characters_cannot_write_to_the_terminal() -> None:
    fails(run("overlayfs-demo", "a\x1b[31m"), r"'a\x1b[31m'", status=2)


@pytest.mark.parametrize("word", INSTEAD)
def test_a_verb_of_docker_is_answered_with_what_to_use(word: str) -> None:
    fails(run("overlayfs-demo", word, "x", "y"), f"unknown command '{word}': {INSTEAD[word]}", status=2)


@pytest.mark.parametrize("word", INSTEAD)
def test_what_to_use_exists(word: str) -> None:
    assert word not in VERBS
    quoted = [words.split() for words in re.findall(r"'([^']*)'", INSTEAD[word].replace("image's", "image"))]
    assert quoted
    for first, *rest in quoted:
        if first not in ("docker", "build-layers"):
            assert first in VERBS
            options = {option for action in VERBS[first]._actions for option in action.option_strings}
            assert {part for part in rest if part.startswith("-")} <= options


def test_only_the_manner_of_mount_fuse3_is_a_mount(place: Place) -> None:
    """mount(8) makes the mount point absolute, and mount.fuse3(8) always gives options."""
    for words in (["name", str(place.view)], ["name", "view", "-o", place.options], ["name", str(place.view), "-v"]):
        fails(run("overlayfs-demo", *words, cwd=place.base), "unknown command 'name'", status=2)
        assert not place.is_mounted()
    assert run(BIN / "overlayfs-demo", "name", place.view, "-o", place.options).returncode == 0
    assert place.is_mounted()


def test_a_helper_without_options_still_mounts_nothing_quietly(place: Place) -> None:
    helper = place / "mount.fuse.overlayfs-demo"
    helper.symlink_to(BIN / "overlayfs-demo")
    fails(run(helper, "name", place.view), "no lowerdir= given", status=2)


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["image", "lss"], "did you mean 'image ls'?"),
        (["image", "list"], "did you mean 'image ls'?"),
        (["image", "remove", "x"], "did you mean 'image rm'?"),
        (["container", "ps", "-a"], "did you mean 'container ls'?"),
        (["container", "exc", "c1"], "did you mean 'container exec'?"),
        (["container", "shell", "c1"], "use 'shell'"),
        (["container", "rmi", "app:1.0"], "use 'rmi'"),
        (["image", "browse", "app:1.0"], "use 'browse'"),
        (["system", "tour"], "use 'tour'"),
        (["image", "frobnicate"], "'overlayfs-demo image' lists the commands"),
        *((["image", word], INSTEAD[word]) for word in ("search", "manifest", "build")),
        *((["container", word, "c1"], INSTEAD[word]) for word in ("logs", "top", "attach", "kill", "pause", "stats")),
        *((["system", word], INSTEAD[word]) for word in ("info", "events")),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_an_unknown_verb_of_a_group_is_answered_as_any_other(words: list[str], answer: str) -> None:
    fails(run("overlayfs-demo", *words), f"unknown command '{words[0]} {words[1]}': {answer}", status=2)


@pytest.mark.parametrize("group", ["image", "container", "system"])
def test_each_verb_of_a_group_has_one_line_in_its_help(group: str) -> None:
    listed = run("overlayfs-demo", group).stdout.partition("  COMMAND\n")[2].partition("\n\n")[0].splitlines()
    assert [line.split()[0] for line in listed] == list(GROUPS[group])


@pytest.mark.parametrize("group", ["image", "container", "system"])
def test_a_group_without_a_verb_prints_its_help(group: str) -> None:
    done = run("overlayfs-demo", group)
    assert (done.returncode, done.stderr, done.stdout) == (0, "", run("overlayfs-demo", group, "--help").stdout)
