"""Does `which` say of a mounted view what each layer says about a path, and why one of them wins?"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from overlayfs_demo.images.build import build_layers
from overlayfs_demo.images.sample_image import write_teaching_image
from tests.places import Place, fails, run

TOP, MIDDLE, BOTTOM = "layer 3 (top)", "layer 2 (middle)", "layer 1 (bottom)"


@pytest.fixture
def view(front: str, place: Place) -> Path:
    """A view of three lowers that speak of the same names."""
    for name in ("top/opaque", "middle/opaque", "middle/d", "bottom/opaque"):
        (place / name).mkdir(parents=True)
    os.setxattr(place / "top/opaque", "trusted.overlay.opaque", b"y")
    for name in ("top/opaque/t", "middle/opaque/m", "bottom/gone", "bottom/same", "middle/same", "top/same"):
        (place / name).write_text(name)
    os.mknod(place / "middle/gone", 0o020000, 0)
    (place / "bottom/link").symlink_to("motd")
    lowers = ":".join(str(place / name) for name in ("top", "middle", "bottom"))
    options = f"lowerdir={lowers},upperdir={place / 'upper'},workdir={place / 'work'}"
    done = place.mount("--front", front, options=options)
    assert (done.returncode, done.stderr) == (0, "")
    return place.view


def which(path: Path, status: int = 0) -> tuple[dict[str, dict[str, Any]], str]:
    """What each layer says, by its label, and why."""
    done = run("overlayfs-demo", "which", "--json", path)
    assert (done.returncode, done.stderr) == (status, "")
    answer = json.loads(done.stdout)
    return {one["layer"]: one for one in answer["layers"]}, answer["why"]


def winners(layers: dict[str, dict[str, Any]]) -> list[str]:
    return [label for label, one in layers.items() if one["wins"]]


def test_a_lower_file_is_seen_from_its_layer(view: Path) -> None:
    layers, why = which(view / "link")
    assert list(layers) == ["upper", TOP, MIDDLE, BOTTOM]
    assert winners(layers) == [BOTTOM] and layers[BOTTOM]["target"] == "motd"
    assert [layers[label]["says"] for label in ("upper", TOP, MIDDLE)] == ["nothing"] * 3
    assert why == f"Comes from {BOTTOM}, the topmost layer that has it."


def test_a_copied_up_file_hides_those_below(view: Path) -> None:
    with (view / "motd").open("a") as file:
        file.write("more")
    layers, why = which(view / "motd")
    assert winners(layers) == ["upper"]
    assert (layers["upper"]["size"], layers[TOP]["size"], layers[BOTTOM]["size"]) == (10, 6, 6)
    assert layers[TOP]["hidden_by"] == layers[BOTTOM]["hidden_by"] == "upper"
    assert why == f"Comes from upper, the topmost layer that has it; those in {TOP} and {BOTTOM} are hidden."


def test_a_name_in_three_layers_is_the_topmosts(view: Path) -> None:
    layers, _ = which(view / "same")
    assert winners(layers) == [TOP]
    assert [layers[label]["hidden_by"] for label in (MIDDLE, BOTTOM)] == [TOP, TOP]


def test_a_whiteout_in_the_middle_hides_what_is_below_it(view: Path) -> None:
    layers, why = which(view / "gone", status=1)
    assert winners(layers) == [] and layers[MIDDLE]["says"] == "deleted"
    assert layers[BOTTOM]["hidden_by"] == MIDDLE
    assert why == f"Not visible: /gone is deleted in {MIDDLE}; the one in {BOTTOM} is hidden."


def test_what_is_removed_in_the_view_is_deleted_in_the_upper(view: Path) -> None:
    (view / "same").unlink()
    layers, why = which(view / "same", status=1)
    assert layers["upper"]["says"] == "deleted"
    assert {layers[label]["hidden_by"] for label in (TOP, MIDDLE, BOTTOM)} == {"upper"}
    assert why.startswith("Not visible: /same is deleted in upper; ")


def test_an_opaque_directory_hides_names_below_it(view: Path) -> None:
    layers, why = which(view / "opaque")
    assert winners(layers) == [TOP] and "hides everything below it" in why
    layers, why = which(view / "opaque/m", status=1)
    assert (layers[MIDDLE]["hidden_by"], layers[MIDDLE]["hidden_at"]) == (TOP, "/opaque")
    assert why == f"Not visible: /opaque in {TOP} hides everything below it; the one in {MIDDLE} is hidden."


def test_directories_are_merged(view: Path) -> None:
    layers, why = which(view / "d")
    assert winners(layers) == [MIDDLE, BOTTOM]
    assert why == f"Merged from {MIDDLE} and {BOTTOM}, whose entries appear together."


def test_every_layer_has_the_root(view: Path) -> None:
    layers, _ = which(view)
    assert winners(layers) == ["upper", TOP, MIDDLE, BOTTOM]


def test_what_no_layer_has_is_absent_everywhere(view: Path) -> None:
    layers, why = which(view / "none/such", status=1)
    assert {one["says"] for one in layers.values()} == {"nothing"}
    assert why == "Not visible: no layer has it."


def test_below_a_deleted_directory_its_whiteout_is_named(view: Path) -> None:
    (view / "d/deep").unlink()
    (view / "d").rmdir()
    layers, why = which(view / "d/deep", status=1)
    assert layers["upper"]["deleted_at"] == layers[BOTTOM]["hidden_at"] == "/d"
    assert why == f"Not visible: /d is deleted in upper; the one in {BOTTOM} is hidden."


def test_a_renamed_directory_is_found_where_the_layer_has_it(view: Path) -> None:
    os.rename(view / "d", view / "moved")
    assert winners(which(view / "moved")[0]) == ["upper", MIDDLE, BOTTOM]
    assert winners(which(view / "moved/deep")[0]) == [BOTTOM]


def test_the_table_has_a_line_for_each_layer_and_says_why(view: Path) -> None:
    done = run("overlayfs-demo", "which", view / "gone", view / "link")
    assert done.returncode == 1
    assert done.stdout.splitlines() == [
        "/gone",
        "LAYER              SAYS",
        "upper              nothing",
        "layer 3 (top)      nothing",
        "layer 2 (middle)   deleted",
        "layer 1 (bottom)   a file, 11B   hidden by layer 2 (middle)",
        "Not visible: /gone is deleted in layer 2 (middle); the one in layer 1 (bottom) is hidden.",
        "/link",
        "LAYER              SAYS",
        "upper              nothing",
        "layer 3 (top)      nothing",
        "layer 2 (middle)   nothing",
        "layer 1 (bottom)   a symbolic link to motd   visible",
        "Comes from layer 1 (bottom), the topmost layer that has it.",
    ]


def test_a_directory_is_listed_with_the_layers_of_its_names(view: Path) -> None:
    (view / "new").write_text("1")
    done = run("overlayfs-demo", "which", "-l", view)
    assert (done.returncode, done.stderr) == (0, "")
    found = {line.split()[-1]: line for line in done.stdout.splitlines()}
    assert "upper" in found["new"] and f"merged: {MIDDLE}, {BOTTOM}" in found["d"] and TOP in found["opaque"]
    rows = [json.loads(line) for line in run("overlayfs-demo", "which", "-l", "--json", view).stdout.splitlines()]
    assert [row["name"] for row in rows] == sorted(os.listdir(view))
    assert {row["name"]: row["layers"] for row in rows}["same"] == [TOP]


def test_wrong_words_are_one_line(view: Path) -> None:
    fails(run("overlayfs-demo", "which", view.parent / "top"), "is not in a view")
    fails(run("overlayfs-demo", "which", "-l", view / "none"), "No such file")


# --- what made a layer ----------------------------------------------------------------------------


def test_layers_that_were_built_of_an_image_are_named_by_its_history(place: Place) -> None:
    with (place / "image.tar").open("wb") as out:
        write_teaching_image(out)
    layers = [one.directory for one in build_layers(place / "image.tar", place / "layers")]
    assert place.mount(options=f"lowerdir={':'.join(map(str, reversed(layers)))}").returncode == 0
    told = run("overlayfs-demo", "which", place.view / "etc/motd").stdout
    assert "layer 1 (ADD file:" in told and "layer 2 (COPY dir:" in told
    assert "…)" in told, "a long line is cut"


def test_a_record_that_cannot_be_read_leaves_the_directories_names(place: Place) -> None:
    (place / ".layers.json").write_text("{")
    done = place.mount()
    assert done.returncode == 0
    assert "cannot read what made the layers" in done.stderr
    assert "layer 2 (top)" in run("overlayfs-demo", "which", place.view / "motd").stdout


def test_name_with_a_bad_mark_is_told_and_the_others_are_listed(place: Place) -> None:
    for name in ("top/e", "bottom/e"):
        (place / name).mkdir()
    os.setxattr(place / "top/e", "trusted.overlay.redirect", b"..")
    assert place.mount().returncode == 0
    done = run("overlayfs-demo", "which", "-l", place.view)
    assert done.returncode == 1
    assert "motd" in done.stdout
    assert (
        "/e: Permission denied: layer 2 (top): 'e' cannot be used because its attribute overlay.redirect" in done.stderr
    )
