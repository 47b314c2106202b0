"""Do the manual page and the shells know every verb, option and name that there is?"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from overlayfs_demo.cli import main
from overlayfs_demo.cli.completion import SHELLS
from overlayfs_demo.cli.help_text import HelpFormatter
from overlayfs_demo.cli.parser import verbs_of
from tests.images.builders import docker_save_many, layer
from tests.places import Place, run

Offers = Callable[[str], list[str]]


def verbs() -> Mapping[str, argparse.ArgumentParser]:
    return verbs_of(main.parser_for([]))


def needs(program: str) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"needs {program}")


@pytest.mark.parametrize("name", verbs())
def test_help_has_an_example_that_the_parser_takes(name: str) -> None:
    """What an example says in its first words is true: the verb and the options are there."""
    epilog = verbs()[name].epilog or verbs()[name].description or ""
    examples = [line.strip() for line in epilog.partition("example:")[2].splitlines() if "overlayfs-demo" in line]
    assert examples, "no example"
    options = {option for action in verbs()[name]._actions for option in action.option_strings}
    for example in examples:
        words = example.partition("overlayfs-demo ")[2].split(" | ")[0].rstrip(")").split()
        assert words[0] == name
        if name not in ("explain", "shell"):  # What follows there is another command's.
            assert {word for word in words if word.startswith("-") and word != "-"} <= options


@pytest.mark.parametrize("columns", ["80", "200"])
def test_no_line_of_help_has_more_than_80_columns(monkeypatch: pytest.MonkeyPatch, columns: str) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    lines = [line for verb in verbs().values() for line in verb.format_help().splitlines()]
    assert [line for line in lines if len(line) > 80] == []


def test_help_wraps_prose_and_leaves_indented_lines_as_they_are() -> None:
    long, command = "word " * 30, "  overlayfs-demo " + "x" * 90
    parser = argparse.ArgumentParser(description=f"{long}\n{long}\n\n{command}", formatter_class=HelpFormatter)
    lines = parser.format_help().splitlines()
    assert command in lines
    assert sum(line.split().count("word") for line in lines) == 60
    assert max(len(line) for line in lines if line != command) <= 80


# --- the manual page -------------------------------------------------------------------------------


def test_no_line_of_the_manual_has_more_than_80_columns() -> None:
    needs("man")
    page = run("overlayfs-demo", "manual").stdout
    environment = {**os.environ, "MANWIDTH": "80", "LC_ALL": "C.UTF-8"}
    command = ["man", "-l", "-"]
    done = subprocess.run(command, input=page, env=environment, capture_output=True, text=True, check=True)
    assert [line for line in done.stdout.splitlines() if len(line) > 80] == []


def test_the_manual_names_every_verb_and_every_option() -> None:
    needs("man")
    shown = subprocess.run(
        ["man", "-l", "-"],
        input=run("overlayfs-demo", "manual").stdout,
        env={**os.environ, "MANWIDTH": "500"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for name, verb in verbs().items():
        assert f"\n   {name}\n" in shown
        told = [action for action in verb._actions if action.help != argparse.SUPPRESS]
        for action in told:
            assert all(option in shown for option in action.option_strings if option not in ("-h", "--help"))
    assert argparse.SUPPRESS not in shown
    assert r"lowerdir=TOP:...:BOTTOM" in shown and r"a colon in a path is written '\:'" in " ".join(shown.split())


def test_man_has_nothing_to_complain_of() -> None:
    needs("man")
    done = subprocess.run(
        ["man", "--warnings", "-l", "-"],
        input=run("overlayfs-demo", "manual").stdout,
        capture_output=True,
        text=True,
        env={**os.environ, "MANWIDTH": "120"},
        check=True,
    )
    assert done.stderr == ""


# --- completion ------------------------------------------------------------------------------------


def bash(line: str) -> list[str]:
    """What bash offers when Tab is pressed at the end of the line."""
    words = line.split(" ")
    script = (
        'eval "$(overlayfs-demo completion bash)"\n'
        f"COMP_LINE='{line}' COMP_POINT={len(line)} COMP_TYPE=9 "
        f"COMP_WORDS=({' '.join(words)}) COMP_CWORD={len(words) - 1}\n"
        '_python_argcomplete overlayfs-demo 2>/dev/null\nprintf "%s\\n" "${COMPREPLY[@]}"'
    )
    return [word.rstrip() for word in shell("bash", script)]


def fish(line: str) -> list[str]:
    script = f"overlayfs-demo completion fish | source; complete --do-complete '{line}'"
    return [word.partition("\t")[0].rstrip() for word in shell("fish", script)]


def shell(program: str, script: str) -> list[str]:
    needs(program)
    done = run(program, "-c", script)
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout.splitlines()


def test_a_shell_that_is_not_known_is_wrong_usage() -> None:
    assert run("overlayfs-demo", "completion", "csh").returncode == 2


@pytest.mark.parametrize("offers", [bash, fish])
def test_verbs_and_options_are_completed(offers: Offers) -> None:
    assert offers("overlayfs-demo um") == ["umount"]
    assert set(offers("overlayfs-demo analyze --max")) == {"--max-wasted"}
    assert offers("overlayfs-demo help um") == ["umount"]


@pytest.mark.parametrize("offers", [bash, fish])
def test_images_containers_and_views_are_completed(offers: Offers, place: Place) -> None:
    store = place / "store"
    (place / "images.tar").write_bytes(docker_save_many({"one:1": [layer({"a": "1"})], "other": [layer({"a": "1"})]}))
    assert run("overlayfs-demo", "load", "--store", store, place / "images.tar").returncode == 0
    assert run("overlayfs-demo", "create", "--store", store, "one:1", "--name", "mine").returncode == 0
    assert offers(f"overlayfs-demo history --store {store} ot") == ["other:latest"]
    assert offers(f"overlayfs-demo stop --store {store} m") == ["mine"]
    assert str(store / "containers/mine/merged") in offers(f"overlayfs-demo umount {store}/")


def test_asking_makes_no_store(tmp_path: Path) -> None:
    assert bash(f"overlayfs-demo history --store {tmp_path / 'none'} x") in ([], [""])
    assert not (tmp_path / "none").exists()


def test_zsh_takes_the_script() -> None:
    needs("zsh")
    done = run(
        "zsh",
        "-fc",
        "autoload -U compinit; compinit -u; source <(overlayfs-demo completion zsh); print $_comps[overlayfs-demo]",
    )
    assert done.stdout.strip() == "_python_argcomplete", done.stderr


@pytest.mark.parametrize("name", SHELLS)
def test_each_shell_has_a_script(name: str) -> None:
    assert "overlayfs-demo" in run("overlayfs-demo", "completion", name).stdout
