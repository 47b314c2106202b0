"""Do Docker, podman, skopeo and umoci take what is saved here, and is it the same to them?

Each test is skipped where its tool is missing.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from overlayfs_demo.images.build import build_layers
from overlayfs_demo.images.model import Platform
from overlayfs_demo.store.load import Loaded, load
from overlayfs_demo.store.save import save
from overlayfs_demo.store.store import Store
from tests import builders
from tests.conftest import unmount_all, why_no_mounts
from tests.images.builders import (
    OPAQUE,
    WHITEOUT,
    Members,
    archive,
    directory,
    docker_save,
    hard_link,
    kernel_mount,
    layer,
    lowerdir,
    oci_archive,
    symlink,
)
from tests.places import run
from tests.real_docker import succeeds, tool

BASE = layer(
    {
        "etc/": directory(),
        "etc/motd": "hello\n",
        "d/": directory(),
        "d/a": "1",
        "d/b": "2",
        "one": "linked",
        "two": hard_link("one"),
        "gone": "x",
    }
)
NAME = "demo-roundtrip:2"
PUT_BY_DOCKER = ("/etc/hostname", "/etc/hosts", "/etc/mtab", "/etc/resolv.conf")


class Image:
    """An image that was loaded, changed in a container, committed and saved."""

    def __init__(self, where: Path) -> None:
        self.where = where
        (where / "image.tar").write_bytes(docker_save([BASE], tag="demo-roundtrip:1"))
        self.ours("load", where / "image.tar")
        self.view = Path(self.ours("create", "demo-roundtrip:1", "--name", "c1").split()[1])
        (self.view / "etc/motd").write_text("changed\n")
        (self.view / "gone").unlink()
        (self.view / "d").rename(self.view / "moved")
        (self.view / "moved/b").unlink()
        with (self.view / "one").open("a") as file:
            file.write("!")
        shutil.rmtree(self.view / "etc")
        (self.view / "etc").mkdir(mode=0o750)
        (self.view / "etc/new").symlink_to("../one")
        os.setxattr(self.view / "two", "user.key", b"value")
        self.id = self.ours("commit", "c1", NAME, "-m", "a change").strip()
        self.archive = where / "saved.tar"
        self.ours("save", NAME, "-o", self.archive)

    def ours(self, *words: str | Path) -> str:
        done = run("overlayfs-demo", words[0], "--store", self.where / "store", *words[1:])
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    def diff_ids(self) -> list[str]:
        [image] = json.loads(self.ours("inspect", NAME))
        return list(image["RootFS"]["Layers"])


@pytest.fixture
def image(tmp_path: Path) -> Iterator[Image]:
    if problem := why_no_mounts():
        pytest.skip(problem)
    yield Image(tmp_path)
    unmount_all(str(tmp_path))


def seen(root: Path) -> dict[bytes, object]:
    """What a tree holds, without the times that tools round and the root's own."""
    return {path: one for path, one in builders.tree(root, times=False).items() if path}


@pytest.mark.parametrize("transport", ["docker-archive:{}:" + NAME, "oci-archive:{}:2"])
def test_skopeo_copies_it_with_the_same_layers(image: Image, transport: str) -> None:
    skopeo = tool("skopeo")
    succeeds(skopeo, "copy", "--insecure-policy", transport.format(image.archive), f"dir:{image.where / 'dir'}")
    manifest = json.loads((image.where / "dir/manifest.json").read_text())
    assert [row["digest"] for row in manifest["layers"]] == image.diff_ids()


def test_skopeo_umoci_and_podman_read_the_layout_in_a_directory(image: Image) -> None:
    layout = image.where / "layout"
    image.ours("save", "--format", "oci-dir", "-o", layout, NAME)
    told = json.loads(succeeds(tool("skopeo"), "inspect", f"oci:{layout}:2"))
    assert told["Layers"] == image.diff_ids()
    succeeds(tool("umoci"), "unpack", "--image", f"{layout}:2", image.where / "bundle")
    assert seen(image.where / "bundle/rootfs") == seen(image.view)
    image.ours("save", "--format", "oci-archive", "-o", image.where / "oci.tar", NAME)
    with tempfile.TemporaryDirectory(prefix="podman-") as short:  # podman wants a path of 50 characters at most.
        place = ("--root", image.where / "podman", "--runroot", short, "--storage-driver", "vfs")
        for source in (f"oci:{layout}:2", f"oci-archive:{image.where / 'oci.tar'}:2"):
            assert f"sha256:{succeeds(tool('podman'), *place, 'pull', '-q', source).strip()}" == image.id


def test_umoci_unpacks_the_same_tree(image: Image) -> None:
    umoci = tool("umoci")
    with tarfile.open(image.archive) as tar:
        tar.extractall(image.where / "layout", filter="data")
    succeeds(umoci, "unpack", "--image", f"{image.where / 'layout'}:2", image.where / "bundle")
    assert seen(image.where / "bundle/rootfs") == seen(image.view)


def test_podman_loads_it(image: Image) -> None:
    podman = tool("podman")
    # podman wants a path of 50 characters at most.
    with tempfile.TemporaryDirectory(prefix="podman-") as short:
        place = ("--root", image.where / "podman", "--runroot", short, "--storage-driver", "vfs")
        assert NAME in succeeds(podman, *place, "load", "-i", image.archive)
        [row] = json.loads(succeeds(podman, *place, "inspect", NAME))
    assert (f"sha256:{row['Id']}", row["RootFS"]["Layers"]) == (image.id, image.diff_ids())


def test_names_in_what_podman_and_buildah_write_are_the_familiar_ones(image: Image) -> None:
    podman, buildah = tool("podman"), tool("buildah")
    where = image.where
    with tempfile.TemporaryDirectory(prefix="podman-") as short:
        place = ("--root", where / "podman", "--runroot", short, "--storage-driver", "vfs")
        succeeds(podman, *place, "load", "-i", image.archive)
        succeeds(podman, *place, "tag", NAME, "localhost/mine:3")
        succeeds(podman, *place, "save", "-o", where / "podman-docker.tar", NAME, "localhost/mine:3")
        succeeds(podman, *place, "save", "--format", "oci-archive", "-o", where / "podman-oci.tar", NAME)
        for target in ("docker-archive", "oci-archive"):
            archive = f"{target}:{where / f'buildah-{target}.tar'}"
            succeeds(buildah, *place, "push", NAME, f"{archive}:docker.io/library/{NAME}")
    for written, names in (
        ("podman-docker.tar", [NAME, "localhost/mine:3"]),
        ("podman-oci.tar", [NAME]),
        ("buildah-docker-archive.tar", [NAME]),
        ("buildah-oci-archive.tar", [NAME]),
    ):
        [loaded] = [json.loads(line) for line in image.ours("load", "--json", where / written).splitlines()]
        assert sorted(loaded["Names"]) == sorted(names), written
        assert loaded["ID"] == image.id, written


def test_docker_loads_it_and_tells_the_same(image: Image, docker: list[str | Path]) -> None:
    assert NAME in succeeds(*docker, "load", "-i", image.archive)
    form = ("--no-trunc", "--human=false")
    told = succeeds(*docker, "history", *form, "--format", "{{json .}}", NAME)
    assert told == image.ours("history", *form, "--json", NAME)
    [theirs], [ours] = json.loads(succeeds(*docker, "inspect", NAME)), json.loads(image.ours("inspect", NAME))
    for key in ("GraphDriver", "Metadata"):  # Where it is stored, and when it was named.
        theirs.pop(key, None)
        ours.pop(key, None)
    assert theirs == ours
    succeeds(*docker, "create", "--name", "cc", NAME, "/none")
    (image.where / "tree").mkdir()
    succeeds("sh", "-c", f"{docker[0]} --host {docker[2]} export cc | tar -C {image.where / 'tree'} --xattrs -xpf -")
    made_by_docker = {
        b".dockerenv",
        b"dev",
        b"proc",
        b"sys",
        b"etc/hostname",
        b"etc/hosts",
        b"etc/resolv.conf",
        b"etc/mtab",
        b"dev/console",
        b"dev/pts",
        b"dev/shm",
    }
    exported = {
        path: one._replace(xattrs=())  # type: ignore[attr-defined]  # docker export leaves them out
        for path, one in seen(image.where / "tree").items()
        if path not in made_by_docker
    }
    shown = {path: one._replace(xattrs=()) for path, one in seen(image.view).items()}  # type: ignore[attr-defined]
    assert exported == shown


def test_what_docker_saves_has_the_same_layers(image: Image, docker: list[str | Path]) -> None:
    succeeds(*docker, "load", "-i", image.archive)
    succeeds(*docker, "save", NAME, "-o", image.where / "docker.tar")
    told = image.ours("load", image.where / "docker.tar")
    assert told.startswith("Already stored: 2 of 2 layers ") and told.endswith(f"Loaded image: {NAME}\n")


# --- what podman, buildah and skopeo write, in every form ------------------------------------------


class Foreign:
    """Images that buildah made, and a store of ours to load them into."""

    def __init__(self, where: Path, short: str) -> None:
        self.where = where
        self._place = ("--root", where / "containers", "--runroot", short, "--storage-driver", "vfs")
        self._storage = f"containers-storage:[vfs@{where / 'containers'}+{short}]localhost/"

    def tool(self, name: str, *words: str | Path) -> str:
        return succeeds(tool(name), *self._place, *words)

    def build(self, name: str, *words: str, file: str = "file") -> None:
        """An image of one file, with a label, of the name `localhost/NAME`."""
        context = self.where / "context"
        context.mkdir(exist_ok=True)
        (context / "file").write_text(f"{file}\n")
        (context / "Dockerfile").write_text("FROM scratch\nCOPY file /file\nLABEL a=b\n")
        self.tool("buildah", "bud", "--isolation", "chroot", "-q", *words, "-t", name, context)

    def copy(self, name: str, target: str, *words: str) -> None:
        self.tool("buildah", "push", "-q", *words, name, target)

    def load(self, name: str, platform: str = "", *, every_platform: bool = False) -> list[Loaded]:
        """What our store then has of an archive."""
        wanted = Platform.parse(platform) if platform else None
        outcome = load(Store(self.where / "store"), self.where / name, wanted, every_platform=every_platform)
        assert (outcome.failed, outcome.others) == ([], ())
        return outcome.images

    def manifest(self) -> None:
        """The list multi:1, of one:1 for amd64 and two:1 for arm64."""
        self.build("one:1", "--platform", "linux/amd64")
        self.build("two:1", "--platform", "linux/arm64", file="another")
        self.tool("podman", "manifest", "create", "multi:1")
        for name in ("one:1", "two:1"):
            self.tool("podman", "manifest", "add", "multi:1", self._storage + name)


@pytest.fixture
def foreign(tmp_path: Path) -> Iterator[Foreign]:
    # podman wants a path of 50 characters at most.
    with tempfile.TemporaryDirectory(prefix="podman-") as short:
        yield Foreign(tmp_path, short)


def test_every_form_that_buildah_writes_is_the_same_layer(foreign: Foreign) -> None:
    foreign.build("one:1")
    forms = {
        "archive.tar": ("docker-archive:{}:one:1",),
        "oci.tar": ("oci-archive:{}:one:1",),
        "layout": ("oci:{}:one:1",),
        "zstd.tar": ("oci-archive:{}:one:1", "--compression-format", "zstd"),
        "dir": ("dir:{}",),
    }
    found = {}
    for name, (target, *words) in forms.items():
        foreign.copy("one:1", target.format(foreign.where / name), *words)
        [loaded] = foreign.load(name)
        found[name] = (len(loaded.image.layers), len(loaded.skipped), loaded.image.size)
    assert found.pop("archive.tar") == (1, 0, 5)
    assert set(found.values()) == {(1, 1, 5)}


def test_the_tar_of_a_directory_by_skopeo_is_the_same_image(foreign: Foreign) -> None:
    foreign.build("one:1")
    where = foreign.where
    foreign.copy("one:1", f"docker-archive:{where / 'a.tar'}:one:1")
    transports = (f"docker-archive:{where / 'a.tar'}", f"dir:{where / 'd'}")
    succeeds(tool("skopeo"), "--insecure-policy", "copy", "-q", *transports)
    succeeds("tar", "-C", where / "d", "-cf", where / "d.tar", ".")
    first, second, third = (foreign.load(name)[0].image.id for name in ("a.tar", "d", "d.tar"))
    assert first == second == third


def test_a_manifest_list_by_podman_gives_one_platform_or_all(foreign: Foreign) -> None:
    foreign.manifest()
    for name, target in (("multi.tar", "oci-archive:{}:multi:1"), ("multi", "dir:{}")):
        foreign.tool("podman", "manifest", "push", "--all", "multi:1", target.format(foreign.where / name))
        [small] = foreign.load(name, "linux/arm64")
        assert (str(small.image.parsed.platform), small.image.size) == ("linux/arm64", len("another\n"))
        both = foreign.load(name, every_platform=True)
        assert sorted(str(one.image.parsed.platform) for one in both) == ["linux/amd64", "linux/arm64"]


def test_podman_saves_several_images_and_both_load(foreign: Foreign) -> None:
    foreign.build("one:1")
    foreign.build("two:1", file="another")
    foreign.tool("podman", "save", "-q", "-m", "-o", foreign.where / "many.tar", "one:1", "two:1")
    assert sorted(one.image.size for one in foreign.load("many.tar")) == [5, 8]


def test_an_image_without_layers_goes_to_podman_and_back(foreign: Foreign) -> None:
    where = foreign.where
    settings = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Labels": {"a": "b"}},
            "rootfs": {"type": "layers", "diff_ids": []},
        }
    ).encode()
    rows = json.dumps([{"Config": "c.json", "RepoTags": ["localhost/label:1"], "Layers": []}]).encode()
    (where / "ours.tar").write_bytes(archive([("c.json", settings), ("manifest.json", rows)]))
    [first] = foreign.load("ours.tar")
    with (where / "saved.tar").open("wb") as out:
        save([first.image], out)
    foreign.tool("podman", "load", "-i", where / "saved.tar")
    foreign.tool("podman", "save", "-q", "-o", where / "theirs.tar", "localhost/label:1")
    [again] = foreign.load("theirs.tar")
    assert (again.image.id, again.image.layers) == (first.image.id, ())


def test_docker_loads_an_image_without_layers_of_ours_and_says_the_same(
    tmp_path: Path, docker: list[str | Path]
) -> None:
    settings = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Labels": {"a": "b"}},
            "rootfs": {"type": "layers"},
            "history": [{"created_by": "LABEL a=b", "empty_layer": True}],
        }
    ).encode()
    rows = json.dumps([{"Config": "c.json", "RepoTags": ["label:1"], "Layers": None}]).encode()
    (tmp_path / "ours.tar").write_bytes(archive([("c.json", settings), ("manifest.json", rows)]))
    succeeds("overlayfs-demo", "load", "--store", tmp_path / "store", tmp_path / "ours.tar")
    succeeds("overlayfs-demo", "save", "--store", tmp_path / "store", "label:1", "-o", tmp_path / "saved.tar")
    succeeds(*docker, "load", "-i", tmp_path / "saved.tar")
    [theirs] = json.loads(succeeds(*docker, "inspect", "label:1"))
    [ours] = json.loads(succeeds("overlayfs-demo", "inspect", "--store", tmp_path / "store", "label:1"))
    for one in (theirs, ours):
        one.pop("Metadata", None)
        one["GraphDriver"].pop("Name")
    assert theirs == ours


def changed(view: Path) -> None:
    """Change the image's tree in each way that `docker diff` has a letter for."""
    (view / "etc/motd").write_text("changed\n")
    (view / "gone").unlink()
    (view / "new").mkdir()
    (view / "new/file").write_text("1")
    (view / "d/a").chmod(0o600)
    shutil.rmtree(view / "etc")
    (view / "etc").mkdir()
    (view / "etc/other").symlink_to("x")
    (view / "d/b").unlink()
    (view / "d/b").mkdir()


def test_diff_says_what_docker_says_of_the_same_changes(image: Image, docker: list[str | Path]) -> None:
    succeeds(*docker, "load", "-i", image.where / "image.tar")
    succeeds(*docker, "create", "--name", "cc", "demo-roundtrip:1", "/none")
    [row] = json.loads(succeeds(*docker, "inspect", "cc"))
    place = row["GraphDriver"]["Data"]
    view = image.where / "docker-view"
    view.mkdir()
    # No container need run: its upper is changed through the kernel's overlay, as Docker mounts it.
    options = f"lowerdir={place['LowerDir']},upperdir={place['UpperDir']},workdir={place['WorkDir']}"
    succeeds("mount", "-t", "overlay", "overlay", "-o", f"{options},redirect_dir=off,index=off", view)
    changed(view)
    succeeds("umount", view)
    changed(Path(image.ours("create", "demo-roundtrip:1", "--name", "c2").split()[1]))
    theirs, ours = succeeds(*docker, "diff", "cc").splitlines(), image.ours("diff", "c2").splitlines()
    # Docker lays a layer of its own, with these, between the image and the container.
    theirs = [line for line in theirs if line not in {f"D {path}" for path in PUT_BY_DOCKER}]
    assert sorted(theirs) == sorted(ours)
    # A directory comes before what is in it, in both.
    for told in (theirs, ours):
        paths = [line[2:] for line in told]
        assert all(os.path.dirname(path) in ("/", *paths[:position]) for position, path in enumerate(paths))


# --- archives whose members have names that lead about ---------------------------------------------

BELOW: Members = [("u/x", "1"), ("u/y", "2"), ("v/z", "3"), ("gone", "4"), ("lower", symlink("u"))]
WANDERING: Members = [
    ("/", directory(0o755)),
    ("/usr/bin/", directory()),
    ("./../g", "1"),
    ("b/../h", "2"),
    ("bin", symlink("usr/bin")),
    ("n/l", hard_link("../../g")),
    ("bin/sh", "3"),
    ("sbin", symlink("/bin")),
    ("sbin/d/", directory(0o700)),
    ("../sbin/d/f", "4"),
    ("climb", symlink("../../../usr")),
    ("climb/m", hard_link("/bin/sh")),
    ("u", directory()),
    ("v", directory()),
    ("to-u", symlink("/u")),
    ("to-u/x", WHITEOUT),
    ("to-v", symlink("v")),
    ("to-v", OPAQUE),
    ("to-u/s", symlink("../../x")),
    ("b/../gone", WHITEOUT),
]


def built(where: Path) -> tuple[Path, Path]:
    """The archive of two such layers, and the directory of the upper one as it is unpacked here."""
    archive = where / "wandering.tar"
    archive.write_bytes(docker_save([layer(BELOW), layer(WANDERING)], tag="wandering:1"))
    return archive, build_layers(archive, where / "built")[-1].directory


def test_docker_unpacks_such_members_to_the_same_layer(tmp_path: Path, docker: list[str | Path]) -> None:
    archive, ours = built(tmp_path)
    succeeds(*docker, "load", "-i", archive)
    [row] = json.loads(succeeds(*docker, "inspect", "wandering:1"))
    assert seen(Path(row["GraphDriver"]["Data"]["UpperDir"])) == seen(ours)


def test_podman_unpacks_such_members_to_the_same_layer(tmp_path: Path) -> None:
    podman = tool("podman")
    archive, ours = built(tmp_path)
    with tempfile.TemporaryDirectory(prefix="podman-") as short:
        place = ("--root", tmp_path / "podman", "--runroot", short, "--storage-driver", "overlay")
        succeeds(podman, *place, "load", "-i", archive)
        [row] = json.loads(succeeds(podman, *place, "inspect", "wandering:1"))
        assert seen(Path(row["GraphDriver"]["Data"]["UpperDir"])) == seen(ours)


def test_umoci_unpacks_such_members_to_the_same_tree(tmp_path: Path) -> None:
    umoci = tool("umoci")
    _, ours = built(tmp_path)
    with tarfile.open(fileobj=io.BytesIO(oci_archive([layer(BELOW), layer(WANDERING)], "plain"))) as tar:
        tar.extractall(tmp_path / "layout", filter="data")
    succeeds(umoci, "unpack", "--image", f"{tmp_path / 'layout'}:test:1", tmp_path / "bundle")
    layers = sorted(ours.parent.glob("[0-9]*"))
    with kernel_mount(lowerdir(layers), tmp_path / "view") as view:
        assert seen(tmp_path / "bundle/rootfs") == seen(view)
