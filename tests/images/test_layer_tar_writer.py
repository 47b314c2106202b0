"""Is a committed layer what the upper says, in the words of an image, and does it give the same view again?"""

from __future__ import annotations

import io
import os
import shutil
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from overlayfs_demo.errors import ImageError
from overlayfs_demo.images.reference import ImageName
from overlayfs_demo.store.container import Container
from overlayfs_demo.store.containers import Containers
from overlayfs_demo.store.load import import_tree, load
from overlayfs_demo.store.save import save
from overlayfs_demo.store.store import Store
from overlayfs_demo.store.stored import StoredImage
from tests import builders
from tests.conftest import unmount_all, why_no_mounts
from tests.images.builders import directory, docker_save, hard_link, layer

BASE = layer(
    {
        "d/": directory(),
        "d/a": "1",
        "d/b": "2",
        "d/sub/": directory(),
        "d/sub/c": "3",
        "one": "linked",
        "two": hard_link("one"),
        "gone": "x",
        "link": "text",
    }
)


CAPABILITY = bytes.fromhex("0000000201000000000000000000000000000000")  # v2, CAP_CHOWN


class Home:
    """A store with an image and a container of it, mounted."""

    def __init__(self, where: Path, archive: bytes | None = None) -> None:
        self.where = where
        self.store = Store(where / "store")
        (where / "image.tar").write_bytes(archive or docker_save([BASE]))
        [loaded] = load(self.store, where / "image.tar")
        self.image = loaded.image
        self.containers = Containers(self.store)
        self.container = self.create("c1", self.image)

    def create(self, name: str, image: StoredImage) -> Container:
        return self.containers.create(image, name)

    @property
    def view(self) -> Path:
        return self.container.mountpoint

    def commit(self) -> StoredImage:
        return self.containers.commit(self.container, ImageName.parse("new")).image

    def members(self) -> list[tarfile.TarInfo]:
        """The members of the layer that a commit makes."""
        out = io.BytesIO()
        save([self.commit()], out)
        out.seek(0)
        with tarfile.open(fileobj=out) as archive:
            blob = archive.extractfile(f"blobs/sha256/{self.store.find('new').layers[-1].diff_id.encoded}")
            assert blob
            with tarfile.open(fileobj=io.BytesIO(blob.read())) as tar:
                return tar.getmembers()

    def names(self) -> list[str]:
        return [member.name for member in self.members()]


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    if problem := why_no_mounts():
        pytest.skip(problem)
    yield Home(tmp_path)
    unmount_all(str(tmp_path))


def test_nothing_changed_is_an_empty_layer(home: Home) -> None:
    assert home.members() == []


def test_deletion_is_a_whiteout_before_the_names_beside_it(home: Home) -> None:
    (home.view / "d/b").unlink()
    (home.view / "d/0").touch()
    assert home.names() == ["d", "d/.wh.b", "d/0"]


def test_whiteouts_of_one_inode_are_no_hard_links(home: Home) -> None:
    for name in ("d/a", "d/b", "gone"):
        (home.view / name).unlink()
    found = {member.name: member.type for member in home.members()}
    assert found == {
        "d": tarfile.DIRTYPE,
        "d/.wh.a": tarfile.REGTYPE,
        "d/.wh.b": tarfile.REGTYPE,
        ".wh.gone": tarfile.REGTYPE,
    }


def test_a_directory_made_anew_is_opaque(home: Home) -> None:
    shutil.rmtree(home.view / "d")
    (home.view / "d").mkdir()
    (home.view / "d/new").touch()
    assert home.names() == ["d", "d/.wh..wh..opq", "d/new"]


def test_a_renamed_directory_brings_all_that_was_in_it(home: Home) -> None:
    (home.view / "d").rename(home.view / "e")
    assert home.names() == [".wh.d", "e", "e/a", "e/b", "e/sub", "e/sub/c"]


def test_a_directory_renamed_over_a_deleted_one_hides_what_that_had(home: Home) -> None:
    (home.view / "other").mkdir()
    (home.view / "d/sub").rename(home.view / "s")
    shutil.rmtree(home.view / "d")
    (home.view / "s").rename(home.view / "d")
    assert home.names() == ["d", "d/.wh..wh..opq", "d/c", "other"]


def test_names_of_one_file_stay_one_file(home: Home) -> None:
    with (home.view / "one").open("a") as file:
        file.write(" more")
    first, second = home.members()
    assert (first.name, first.size) == ("one", len("linked more"))
    assert (second.name, second.type, second.linkname) == ("two", tarfile.LNKTYPE, "one")


def test_an_edit_of_the_same_size_in_the_same_instant_is_kept(home: Home) -> None:
    before = (home.view / "link").stat()
    (home.view / "link").write_text("TEXT")
    os.utime(home.view / "link", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert home.names() == ["link"]


def test_attributes_are_kept(home: Home) -> None:
    os.setxattr(home.view / "link", "user.key", b"\xff\0bytes")
    os.setxattr(home.view / "link", "security.capability", CAPABILITY)
    os.chown(home.view / "link", 12, 34)
    os.chmod(home.view / "link", 0o4755)
    os.utime(home.view / "link", ns=(1, 1_234_567_890_123_456_789))
    again = home.create("c2", home.commit())
    status = (again.mountpoint / "link").stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o7777) == (12, 34, 0o4755)
    assert status.st_mtime_ns == 1_234_567_890_123_456_789
    assert os.getxattr(again.mountpoint / "link", "user.key") == b"\xff\0bytes"


def test_the_overlays_own_attributes_are_not_in_the_layer(home: Home) -> None:
    (home.view / "d").rename(home.view / "e")
    (home.view / "new").mkdir()
    assert not any("overlay" in key for member in home.members() for key in member.pax_headers)


def test_a_name_that_would_delete_another_is_refused(home: Home) -> None:
    (home.view / ".wh.d").touch()
    with pytest.raises(ImageError, match=r"/\.wh\.d.*rename it"):
        home.commit()
    assert len(home.store.images()) == 1
    assert os.listdir(home.store.tmp) == []


def changes(view: Path) -> None:
    """A bit of everything."""
    (view / "d").rename(view / "moved")
    (view / "moved/sub/c").write_text("changed")
    (view / "moved/a").unlink()
    (view / "gone").unlink()
    (view / "gone").mkdir()
    (view / "gone/in").write_text("it")
    (view / "three").hardlink_to(view / "two")
    with (view / "two").open("a") as file:
        file.write("!")
    (view / "sym").symlink_to("moved/b")
    os.mkfifo(view / "fifo")
    (view / "odd\nname\udcff").write_text("x" * 5000)
    (view / ("long" * 50)).mkdir()


def seen(view: Path) -> dict[bytes, builders.Seen]:
    """All that a view shows, but for the time of its root, which no layer has."""
    tree = builders.tree(view)
    return {**tree, b"": tree[b""]._replace(mtime_ns=0)}


def test_a_container_of_the_new_image_shows_what_the_old_one_did(home: Home) -> None:
    changes(home.view)
    image = home.commit()
    again = home.create("c2", image)
    assert seen(again.mountpoint) == seen(home.view)
    assert home.containers.diff(again) == []


def test_the_same_upper_gives_the_same_bytes(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    changes(home.view)
    first = home.commit()
    home.containers.stop(home.container)
    home.containers.start(home.container)
    assert home.commit().id == first.id
    assert all(member.mtime <= 1_700_000_000 for member in home.members())


def test_history_gains_a_row_and_the_rest_of_the_config_stays(home: Home) -> None:
    image = home.commit()
    assert image.parsed.history[:-1] == home.image.parsed.history
    assert image.parsed.history[-1].created_by == "overlayfs-demo commit c1"
    assert image.layers[:-1] == home.image.layers


def test_a_saved_image_is_byte_for_byte_what_was_loaded(home: Home) -> None:
    out = io.BytesIO()
    save([home.image], out)
    out.seek(0)
    with tarfile.open(fileobj=out) as archive:
        blob = archive.extractfile(f"blobs/sha256/{home.image.layers[0].diff_id.encoded}")
        assert blob and blob.read() == BASE


def test_what_is_saved_can_be_loaded_elsewhere(home: Home) -> None:
    changes(home.view)
    image = home.commit()
    with (home.where / "saved.tar").open("wb") as file:
        save([image, home.image], file)
    other = Store(home.where / "other")
    assert [one.image.id for one in load(other, home.where / "saved.tar")] == [image.id, home.image.id]
    assert len(other.layers()) == 2


def test_a_layer_that_was_tampered_with_is_not_saved(home: Home) -> None:
    (home.image.layers[0].directory / "gone").write_text("y")
    with pytest.raises(ImageError, match="gone"):
        save([home.image], io.BytesIO())


def test_export_is_the_whole_tree(home: Home) -> None:
    changes(home.view)
    home.view.chmod(0o711)
    with (home.where / "tree.tar").open("wb") as file:
        home.containers.export(home.container, file)
    flat = import_tree(home.store, home.where / "tree.tar", ImageName.parse("flat")).image
    again = home.create("c2", flat)
    assert seen(again.mountpoint) == seen(home.view)


RACES: dict[str, Callable[[Path], object]] = {
    "append": lambda view: (view / "link").open("a").write("x" * 100),
    "create": lambda view: (view / f"new{time.monotonic_ns()}").touch(),
}


@pytest.mark.parametrize("race", RACES)
def test_a_container_can_be_committed_while_it_is_in_use(home: Home, race: str) -> None:
    with (home.view / "one").open("a") as writer:
        writer.write("begun")
        writer.flush()
        RACES[race](home.view)
        assert "one" in home.names()
        writer.write(" and ended")
    assert (home.view / "two").read_text() == "linkedbegun and ended"
