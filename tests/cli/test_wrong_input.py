"""What a person typed wrongly is named, with what mends it; a missing thing is status 1, wrong usage 2."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.places import Place, fails, run, teaching_image


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("lowerdir=bottom,upperdir=noup,workdir=work", "upperdir, {base}/noup: No such file or directory: create it "),
        ("lowerdir=bottom,upperdir=noup,workdir=work", "create it with 'mkdir noup'"),
        ("lowerdir=bottom,upperdir=upper,workdir=a/b", "create it with 'mkdir -p a/b'"),
        ("lowerdir=bottom,upperdir=upper,workdir=my work", "create it with mkdir 'my work'"),
        ("lowerdir=botom,upperdir=upper,workdir=work", "lower layer 1 of 1 (counted from the top), {base}/botom"),
        ("lowerdir=botom,upperdir=upper,workdir=work", "check the path"),
    ],
)
def test_a_missing_directory_is_named_with_the_command_that_makes_it(place: Place, options: str, said: str) -> None:
    done = run("overlayfs-demo", "mount", "-o", options, "view", cwd=place.base)
    fails(done, said.format(base=place.base))


def test_a_missing_mount_point_is_named_with_the_command_that_makes_it(place: Place) -> None:
    fails(run("overlayfs-demo", "mount", "-o", place.options, "vew", cwd=place.base), "create it with 'mkdir vew'")


@pytest.mark.parametrize(
    ("verb", "missing"), [("create", "IMAGE"), ("run", "IMAGE"), ("exec", "C"), ("explain", "COMMAND")]
)
def test_only_arguments_that_must_be_given_are_missing(verb: str, missing: str) -> None:
    done = run("overlayfs-demo", verb)
    assert done.returncode == 2
    assert done.stderr.endswith(f"error: the following arguments are required: {missing}\n")


def test_build_layers_says_which_argument_comes_first(tmp_path: Path) -> None:
    archive = teaching_image(tmp_path / "image.tar")
    done = run("build-layers", tmp_path / "layers", archive)
    fails(done, f"{archive} is not a directory: name the archive first, then a directory", status=2)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("store")
    assert run("overlayfs-demo", "load", "--store", where, teaching_image(where.with_suffix(".tar"))).returncode == 0
    return where


@pytest.mark.parametrize(
    "words",
    [
        ["history", "teachng"],
        ["inspect", "teachng"],
        ["save", "teachng"],
        ["tag", "teachng", "other"],
        ["rmi", "teachng"],
        ["create", "teachng"],
        ["analyze", "teachng"],
        ["ghosts", "teachng"],
        ["diff", "teachng", "teaching"],
        ["which", "--image", "teachng", "/"],
        ["report", "teachng", "-o", "/nowhere/page"],
        ["serve", "teachng"],
    ],
    ids=lambda words: words[0],
)
def test_a_missing_image_lists_the_near_ones(store: Path, words: list[str]) -> None:
    done = run("overlayfs-demo", words[0], "--store", store, *words[1:])
    assert done.returncode == 1
    assert "no image teachng:latest" in done.stderr
    assert "similar names: overlayfs-demo/teaching:1.0" in done.stderr
