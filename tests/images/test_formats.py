"""Does every way to export an image lead to the same layers?"""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from overlayfs_demo.errors import ImageError
from overlayfs_demo.images import select
from overlayfs_demo.images.build import build_layers
from overlayfs_demo.images.model import Platform
from tests.images.builders import (
    COMPRESSIONS,
    WHITEOUT,
    Blobs,
    config,
    digest,
    directory,
    docker_25_save,
    docker_save,
    docker_save_many,
    for_platform,
    is_whiteout,
    kernel_mount,
    layer,
    lowerdir,
    named,
    needs_root,
    oci_archive,
    podman_save,
    snapshot,
    symlink,
)

LAYERS = [
    layer({"etc": directory(), "etc/motd": "one\n", "etc/old": "x", "bin": symlink("usr/bin"), "usr/bin/su": "#!"}),
    layer({"etc/motd": "two\n", "etc/old": WHITEOUT}),
    layer({"usr": WHITEOUT, "srv/data": "3"}),
]

FLAVOURS: dict[str, Callable[[], bytes]] = {
    "docker-save": lambda: docker_save(LAYERS),
    "docker-25-gzip": lambda: docker_25_save(LAYERS),
    "docker-25-plain": lambda: docker_25_save(LAYERS, "plain"),
    "podman-save": lambda: podman_save(LAYERS),
    "oci-gzip": lambda: oci_archive(LAYERS),
    "oci-zstd": lambda: oci_archive(LAYERS, "zstd"),
    "oci-xz": lambda: oci_archive(LAYERS, "xz"),
    "oci-plain": lambda: oci_archive(LAYERS, "plain"),
    "oci-dot-slash": lambda: oci_archive(LAYERS, "zstd", prefix="./"),
}


def built(tmp_path: Path, data: bytes, **choice: object) -> list[Path]:
    path = tmp_path / "image.tar"
    path.write_bytes(data)
    return [one.directory for one in build_layers(path, tmp_path / "out", **choice)]  # type: ignore[arg-type]


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_every_flavour_builds_the_same_directories(tmp_path: Path, flavour: str) -> None:
    first, second, third = built(tmp_path, FLAVOURS[flavour]())
    assert [one.name for one in (first, second, third)] == [
        f"{number:02}-{digest(one)[7:19]}" for number, one in enumerate(LAYERS, start=1)
    ]
    assert list(snapshot(first)) == ["bin", "etc", "etc/motd", "etc/old", "usr", "usr/bin", "usr/bin/su"]
    assert (second / "etc/motd").read_text() == "two\n"
    assert is_whiteout(second / "etc/old")
    assert is_whiteout(third / "usr")


@needs_root
@pytest.mark.parametrize("flavour", FLAVOURS)
def test_every_flavour_mounts_as_the_same_tree(tmp_path: Path, flavour: str) -> None:
    option = lowerdir(built(tmp_path, FLAVOURS[flavour]()))
    with kernel_mount(option, tmp_path / "view") as view:
        assert snapshot(view) == {
            "bin": ("symlink", 0o777, "usr/bin"),
            "etc": ("directory", 0o755, ""),
            "etc/motd": ("file", 0o644, "two\n"),
            "srv": ("directory", 0o755, ""),
            "srv/data": ("file", 0o644, "3"),
        }


@pytest.mark.parametrize("compression", ["gzip", "zstd", "xz"])
@pytest.mark.parametrize("flavour", ["docker-save", "oci-gzip"])
def test_archive_may_be_compressed_as_a_whole(tmp_path: Path, flavour: str, compression: str) -> None:
    assert len(built(tmp_path, COMPRESSIONS[compression](FLAVOURS[flavour]()))) == 3


def test_exported_container_is_one_layer(tmp_path: Path) -> None:
    tree = layer({".dockerenv": "", "etc/motd": "hi", "manifest.json": '{"name": "some program"}', "index.json": "[]"})
    (only,) = built(tmp_path, tree)
    assert only.name == f"01-{digest(tree)[7:19]}"
    assert (only / "manifest.json").exists()


def test_exported_container_may_be_compressed(tmp_path: Path) -> None:
    (only,) = built(tmp_path, gzip.compress(layer({"etc/motd": "hi"})))
    assert (only / "etc/motd").read_text() == "hi"


def test_layer_at_two_positions_is_two_directories(tmp_path: Path) -> None:
    empty = layer({})
    names = built(tmp_path, docker_save([LAYERS[0], empty, LAYERS[1], empty]))
    assert len(set(names)) == 4
    assert names[1].name[3:] == names[3].name[3:]


def test_diff_ids_may_be_sha512(tmp_path: Path) -> None:
    names = [f"sha512:{hashlib.sha512(one).hexdigest()}" for one in LAYERS]
    blobs = Blobs()
    entry = blobs.image(LAYERS, "plain", rootfs={"type": "layers", "diff_ids": names})
    assert [one.name[3:] for one in built(tmp_path, blobs.layout([entry]))] == [name[7:19] for name in names]


# --- which image of several ------------------------------------------------------------------------

MANY = {"a/one:1": LAYERS[:1], "a/two:latest": LAYERS[:2]}


def test_archive_of_several_images_needs_a_choice_and_lists_them(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"--image NAME: a/one:1, a/two:latest$"):
        built(tmp_path, docker_save_many(MANY))


@pytest.mark.parametrize(("name", "count"), [("a/one:1", 1), ("a/two:latest", 2), ("a/two", 2)])
def test_chosen_image_is_built(tmp_path: Path, name: str, count: int) -> None:
    assert len(built(tmp_path, docker_save_many(MANY), name=name)) == count


def test_image_is_found_by_the_start_of_its_id(tmp_path: Path) -> None:
    start = digest(config(LAYERS[:1], comment="a/one:1"))[7:19]
    assert len(built(tmp_path, docker_save_many(MANY), name=start)) == 1


def test_unknown_image_is_refused_and_the_known_ones_listed(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"no image b:latest in .*: it contains: a/one:1, a/two:latest"):
        built(tmp_path, docker_save_many(MANY), name="b")


def test_images_without_names_are_told_apart_by_id(tmp_path: Path) -> None:
    blobs = Blobs()
    data = blobs.layout([blobs.image(LAYERS[:1]), blobs.image(LAYERS[:2])])
    with pytest.raises(ImageError, match="several images"):
        built(tmp_path, data)
    assert len(built(tmp_path, data, name=digest(config(LAYERS[:2]))[7:15])) == 2


def test_one_image_with_two_names_needs_no_choice(tmp_path: Path) -> None:
    blobs = Blobs()
    entry = blobs.image(LAYERS)
    assert len(built(tmp_path, blobs.layout([named(entry, "x:1"), named(entry, "x:2")]))) == 3


def two_platforms() -> bytes:
    """A nested index of two platforms, an attestation, and a platform whose blobs were not exported."""
    blobs = Blobs()
    small = blobs.image(LAYERS[:1], architecture="arm64")
    large = blobs.image(LAYERS, architecture="amd64")
    attestation = blobs.image(LAYERS[:2])
    missing = dict(small, digest=digest(b"elsewhere"))
    index = blobs.index(
        [
            for_platform(small, "linux", "arm64"),
            for_platform(large, "linux", "amd64"),
            for_platform(attestation, "unknown", "unknown"),
            for_platform(missing, "linux", "s390x"),
        ]
    )
    return blobs.layout([named(index, "x:1")])


@pytest.mark.parametrize(("architecture", "count"), [("arm64", 1), ("amd64", 3)])
def test_platform_of_the_running_machine_is_preferred(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, architecture: str, count: int
) -> None:
    monkeypatch.setattr(select, "running_platform", lambda: Platform("linux", architecture))
    assert len(built(tmp_path, two_platforms())) == count


def test_platform_can_be_chosen(tmp_path: Path) -> None:
    assert len(built(tmp_path, two_platforms(), platform=Platform("linux", "arm64"))) == 1


def test_missing_platform_is_refused_and_the_present_ones_listed(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"no image for linux/riscv64: .*linux/amd64, linux/arm64"):
        built(tmp_path, two_platforms(), platform=Platform("linux", "riscv64"))
