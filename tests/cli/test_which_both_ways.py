"""Does `which` say the same of an image as of a view that is mounted on its layers, but for the view's upper?"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from overlayfs_demo.cli import main
from overlayfs_demo.store.store import Store
from tests.conftest import unmount_all, why_no_mounts
from tests.images.builders import OPAQUE, WHITEOUT, Entry, directory, docker_save, hard_link, layer, symlink
from tests.places import run

IMAGE = "stack:1"
BOTTOM = {
    "usr/bin/sh": "1",
    "bin": symlink("usr/bin"),
    "etc/motd": "one",
    "etc/passwd": "root",
    "etc": directory(),
    "d/a": "",
    "d/b": "",
    "opaque/a": "",
    "gone/x": "",
    "old": "1",
    "hard": "12345",
    "hard2": hard_link("hard"),
    "absolute": symlink("/etc"),
    "up": symlink("../../etc"),
    "loop": symlink("loop"),
    "turns/x": "",
    "metacopy": "12345",
    "bad/x": "",
}
MIDDLE = {
    "etc/motd": "two!",
    "d/c": "",
    "opaque": OPAQUE,
    "opaque/b": "",
    "gone": WHITEOUT,
    "old": WHITEOUT,
    "turns": "a file now",
    "moved": directory(),
    "bad": directory(),
}
TOP = {"d": directory(mode=0o700), "old": "3", "turns/y": "", "fifo": Entry(b"6"), "metacopy": "", "bad": directory()}
SEEN = (
    "/",
    "/etc/passwd",
    "/etc/motd",
    "/d",
    "/d/a",
    "/opaque",
    "/opaque/b",
    "/old",
    "/hard",
    "/hard2",
    "/bin",
    "/fifo",
    "/turns",
    "/turns/y",
    "/moved",
    "/moved/a",
    "/metacopy",
    "/usr/bin/sh",
)
NOT_SEEN = ("/gone", "/gone/x", "/opaque/a", "/turns/x", "/none", "/none/such", "/etc/motd/x")
# As they are typed, and the path that is meant. (In a view an absolute link leads out of it.)
DETOURS = {
    "bin/sh": "/usr/bin/sh",
    "bin": "/bin",
    "bin/": "/usr/bin",
    "bin/.": "/usr/bin",
    "./d/../etc//motd": "/etc/motd",
    "up/motd": "/etc/motd",
    "loop/x": "/loop/x",
    "none/../d": "/d",
}


class Said(NamedTuple):
    """What a command printed, and its exit status."""

    out: str
    err: str
    status: int


class Ways:
    """Asks about a path both ways."""

    def __init__(self, base: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.view = base / "view"
        self.store = base / "store"
        self._capsys = capsys

    def image(self, path: str, *options: str) -> Said:
        return self.asked("--store", str(self.store), "--image", IMAGE, *options, path)

    def mount(self, path: str, *options: str) -> Said:
        return self.asked(*options, f"{self.view}/{path.lstrip('/')}")

    def asked(self, *words: str) -> Said:
        self._capsys.readouterr()
        status = main.main(["which", *words])
        return Said(*self._capsys.readouterr(), status)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A store with an image, which has marks that no archive brings along, and a container of it that is mounted."""
    if problem := why_no_mounts():
        pytest.skip(problem)
    where = tmp_path_factory.mktemp("both")
    (where / "image.tar").write_bytes(docker_save([layer(one) for one in (BOTTOM, MIDDLE, TOP)], IMAGE))
    for words in (("load", where / "image.tar"), ("create", IMAGE, "--name", "c1", "--at", where / "view")):
        if words[0] == "create":
            _tamper(where / "store")
            (where / "view").mkdir()
        done = run("overlayfs-demo", words[0], "--store", where / "store", *words[1:])
        assert done.returncode == 0, done.stderr
    yield where
    unmount_all(str(where))


def _tamper(store: Path) -> None:
    _, middle, top = (one.directory for one in Store(store).find(IMAGE).layers)
    os.setxattr(middle / "moved", "trusted.overlay.redirect", b"d")
    os.setxattr(top / "bad", "trusted.overlay.redirect", b"..")
    os.truncate(top / "metacopy", 5)
    os.setxattr(top / "metacopy", "trusted.overlay.metacopy", b"")


@pytest.fixture
def ways(base: Path, capsys: pytest.CaptureFixture[str]) -> Ways:
    return Ways(base, capsys)


def without_upper(said: str) -> str:
    """A text without what it says of the upper."""
    lines = (line for line in said.splitlines(keepends=True) if not line.startswith("upper "))
    return "".join(lines).replace("upper, ", "")


@pytest.mark.parametrize("path", SEEN + NOT_SEEN)
def test_the_table_is_the_same(ways: Ways, path: str) -> None:
    image, mount = ways.image(path), ways.mount(path)
    assert image == Said(without_upper(mount.out), "", int(path in NOT_SEEN))
    assert mount.status == image.status


@pytest.mark.parametrize("path", SEEN + NOT_SEEN)
def test_the_json_is_the_same(ways: Ways, path: str) -> None:
    image, mount = ways.image(path, "--json"), ways.mount(path, "--json")
    found, expected = json.loads(image.out), json.loads(mount.out)
    assert (found["path"], found["mountpoint"], found["image"]) == (path, None, IMAGE)
    assert (expected["path"], expected["mountpoint"], expected["image"]) == (path, str(ways.view), None)
    if path == "/":
        expected["why"] = expected["why"].replace("upper, ", "")
    layers = [one for one in expected["layers"] if one["layer"] != "upper"]
    assert json.dumps(found) == json.dumps({**expected, "mountpoint": None, "image": IMAGE, "layers": layers})
    assert image.status == mount.status == int(path in NOT_SEEN)


@pytest.mark.parametrize("options", [("-l",), ("-l", "--json")], ids=" ".join)
@pytest.mark.parametrize("path", [one for one in SEEN if one != "/"])
def test_the_list_is_the_same(ways: Ways, path: str, options: tuple[str, ...]) -> None:
    image, mount = ways.image(path, *options), ways.mount(path, *options)
    assert image == mount
    assert image.out and image.status == 0


@pytest.mark.parametrize("path", NOT_SEEN)
def test_what_is_not_there_cannot_be_listed(ways: Ways, path: str) -> None:
    image, mount = ways.image(path, "-l"), ways.mount(path, "-l")
    assert image == mount._replace(err=mount.err.replace(str(ways.view), ""))
    assert (image.out, image.status) == ("", 1) and (f"{path}: No such file" in image.err or path == "/etc/motd/x")


@pytest.mark.parametrize(("given", "meant"), DETOURS.items(), ids=DETOURS)
def test_a_path_leads_where_a_process_with_that_root_would_get(ways: Ways, given: str, meant: str) -> None:
    found = ways.image(given)
    assert found == ways.image(meant) and found.out.startswith(f"{meant}\n")
    if given != "up/motd":  # In a view `..` leads out of it.
        assert ways.mount(given) == ways.mount(meant)


@pytest.mark.parametrize("given", ["../../etc/motd", "/..//etc/motd", "absolute/motd", "/d/../../etc/motd"])
def test_nothing_leads_out_of_an_image(ways: Ways, given: str) -> None:
    assert ways.image(given) == ways.image("/etc/motd")


ASKED: dict[str, Callable[[Ways], Said]] = {
    "image": lambda ways: ways.image("/bad"),
    "mount": lambda ways: ways.mount("/bad"),
    "image -l": lambda ways: ways.image("/bad", "-l"),
    "mount -l": lambda ways: ways.mount("/bad", "-l"),
}


@pytest.mark.parametrize("ask", ASKED.values(), ids=ASKED)
def test_name_with_a_bad_mark_is_told_as_the_log_tells_it(ways: Ways, ask: Callable[[Ways], Said]) -> None:
    said = ask(ways)
    assert (said.out, said.status) == ("", 1)
    assert (
        "/bad: Permission denied: layer 3 (RUN make layer 3): 'bad' cannot be used because its attribute overlay."
        "redirect is wrong: '..'; correct it, or remove it\n"
    ) in said.err


def test_names_beside_one_with_a_bad_mark_are_listed(ways: Ways) -> None:
    image, mount = ways.image("/", "-l"), ways.mount("/", "-l")
    assert image.out == mount.out and image.status == mount.status == 1
    assert image.err == mount.err.replace(str(ways.view), IMAGE)
    assert image.err.startswith(f"overlayfs-demo: {IMAGE}: /bad: Permission denied: layer 3 (RUN make layer 3): 'bad' ")


def test_layers_are_numbered_from_the_bottom_and_named_by_what_made_them(ways: Ways) -> None:
    assert ways.image("/etc/motd").out.splitlines() == [
        "/etc/motd",
        "LAYER                        SAYS",
        "layer 3 (RUN make layer 3)   nothing",
        "layer 2 (RUN make layer 2)   a file, 4B   visible",
        "layer 1 (RUN make layer 1)   a file, 3B   hidden by layer 2 (RUN make layer 2)",
        "Comes from layer 2 (RUN make layer 2), the topmost layer that has it; the one in layer 1 (RUN make layer 1) "
        "is hidden.",
    ]


def test_several_paths_are_answered_one_by_one(ways: Ways) -> None:
    both = ways.asked("--store", str(ways.store), "--image", IMAGE, "/gone", "/old")
    assert both == Said(ways.image("/gone").out + ways.image("/old").out, "", 1)


def test_redirects_and_metacopies_are_followed(ways: Ways) -> None:
    def layers(path: str) -> dict[str, Any]:
        found = json.loads(ways.image(path, "--json").out)
        return {one["layer"][:7]: one for one in found["layers"]}

    assert [name for name, one in layers("/moved").items() if one["wins"]] == ["layer 2", "layer 1"]
    assert layers("/moved/a")["layer 1"]["stored_at"] == "d/a"
    assert layers("/metacopy")["layer 3"]["says"] == "a file with its data below"
