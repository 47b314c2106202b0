"""Does a registry get exactly what it lacks, the manifest last, and nothing of a push that fails?"""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pytest

from overlayfs_demo.errors import ImageError, RegistryError
from overlayfs_demo.images.reference import ImageName
from overlayfs_demo.store.load import load
from overlayfs_demo.store.store import Store
from tests.images.builders import Blobs, docker_save, layer
from tests.registry.fake import MANIFEST, Call, Fake, digest, pulled, pushed

BASE, APP = layer({"etc/motd": "hello\n"}), layer({"app/run": os.urandom(400_000).hex()})


@pytest.fixture
def app(fake: Fake, store: Store, tmp_path: Path) -> Fake:
    """An empty registry, and an image in the store with a name there."""
    (tmp_path / "image.tar").write_bytes(docker_save([BASE, APP], f"{fake.domain}/app:1"))
    load(store, tmp_path / "image.tar")
    return fake


def layers_of(fake: Fake, repository: str = "app", tag: str = "1") -> list[bytes]:
    manifest = json.loads(fake.manifests[repository, tag][0])
    return [fake.blobs[row["digest"]] for row in manifest["layers"]]


def named(store: Store, fake: Fake, old: str, new: str) -> None:
    with store.writing():
        store.name_image(ImageName.parse(f"{fake.domain}/{new}"), store.find(f"{fake.domain}/{old}").id)


def test_pushed_layers_are_the_tars_that_were_loaded(app: Fake, store: Store, tmp_path: Path) -> None:
    done = pushed(app, store)
    assert [gzip.decompress(data) for data in layers_of(app)] == [BASE, APP]
    assert (done.compressed, done.moved.spared, done.moved.layers) == (2, 0, 2)
    assert str(done.digest) == digest(app.manifests["app", "1"][0])
    again = pulled(app, Store(tmp_path / "other"))
    assert again.image.id == store.find(f"{app.domain}/app:1").id
    assert not app.uploads


def test_manifest_is_the_last_request(app: Fake, store: Store) -> None:
    pushed(app, store)
    assert app.paths("PUT")[-1] == app.seen[-1].path == "/v2/app/manifests/1"


def test_same_image_gives_the_same_bytes(app: Fake, store: Store) -> None:
    first = pushed(app, store)
    (store.root / "blobs.json").unlink()
    app.blobs.clear()
    assert pushed(app, store).digest == first.digest


def test_second_push_sends_nothing_and_compresses_nothing(app: Fake, store: Store) -> None:
    pushed(app, store)
    app.seen.clear()
    done = pushed(app, store)
    assert (done.compressed, done.moved.spared, done.moved.bytes) == (0, 2, 0)
    assert not app.paths("POST")


def test_pulled_image_keeps_its_manifest_where_its_layers_are_known(fake: Fake, store: Store) -> None:
    blobs = Blobs()
    fake.put("base", "1", blobs, blobs.image([BASE, APP], "zstd"))
    pulled(fake, store, "base:1")
    named(store, fake, "base:1", "copy:1")
    done = pushed(fake, store, "copy:1")
    assert (done.compressed, done.moved.bytes) == (0, 0)
    assert fake.manifests["base", "1"] == fake.manifests["copy", "1"]


def test_manifest_of_other_blobs_is_not_used_again(fake: Fake, store: Store, tmp_path: Path) -> None:
    blobs = Blobs()
    fake.put("base", "1", blobs, blobs.image([BASE, APP], "zstd"))
    pulled(fake, store, "base:1")
    named(store, fake, "base:1", "copy:1")
    for data in [data for data in fake.blobs.values() if data.startswith(b"\x28\xb5\x2f\xfd")]:
        del fake.blobs[digest(data)]
    done = pushed(fake, store, "copy:1")
    assert done.compressed == 2
    assert [gzip.decompress(data) for data in layers_of(fake, "copy")] == [BASE, APP]


def test_layer_is_mounted_from_another_repository(app: Fake, store: Store) -> None:
    pushed(app, store)
    named(store, app, "app:1", "team/other:2")
    app.mountable.add("app")
    mine = set(app.blobs)

    def separate(call: Call) -> bool:
        """As in a real registry, a blob is only in the repositories that have it."""
        return call.command == "HEAD" and "/team/other/" in call.path and call.answer(404)

    app.trap = separate
    done = pushed(app, store, "team/other:2")
    assert [path for path in app.paths("POST") if "from=app" in path]
    assert (done.moved.spared, done.moved.bytes, set(app.blobs)) == (2, 0, mine)


def test_mount_that_is_not_possible_becomes_an_upload(app: Fake, store: Store) -> None:
    pushed(app, store)
    named(store, app, "app:1", "team/other:2")
    app.blobs.clear()
    done = pushed(app, store, "team/other:2")
    assert (done.moved.spared, len(layers_of(app, "team/other", "2")), app.uploads) == (0, 2, {})


def test_broken_upload_is_continued_where_it_broke(app: Fake, store: Store) -> None:
    left = [1]

    def trap(call: Call) -> bool:
        length = int(call.headers.get("Content-Length", 0))
        if call.command != "PATCH" or length < 200_000 or not left[0]:
            return False
        left[0] = 0
        session = call.path.rpartition("/")[2]
        app.uploads[session] += call.rfile.read(100_000)
        call.close_connection = True
        call.connection.close()
        return True

    app.trap = trap
    pushed(app, store)
    assert [gzip.decompress(data) for data in layers_of(app)] == [BASE, APP]
    [range_] = [seen.headers["Content-Range"] for seen in app.seen if "Content-Range" in seen.headers]
    assert range_.startswith("100000-")


def test_upload_that_the_registry_has_forgotten_begins_again(app: Fake, store: Store) -> None:
    left = [1]

    def trap(call: Call) -> bool:
        if call.command != "PATCH" or not left[0]:
            return False
        left[0] = 0
        app.uploads.pop(call.path.rpartition("/")[2])
        return False

    app.trap = trap
    pushed(app, store)
    assert len(layers_of(app)) == 2


def test_registry_without_room_is_an_error_and_the_tag_stays_what_it_was(app: Fake, store: Store) -> None:
    app.keep_manifest("app", "1", b"before")
    app.trap = lambda call: (
        call.command == "PATCH"
        and bool(call.body() or True)
        and call.answer(413, b'{"errors":[{"code":"DENIED","message":"quota exceeded"}]}')
    )
    with pytest.raises(
        RegistryError, match=rf"registry {app.domain}: (layer \d|config).*status 413 \(quota exceeded\)"
    ):
        pushed(app, store)
    assert app.manifests["app", "1"][0] == b"before"
    assert not app.uploads, "every upload that began is cancelled"


def test_layer_that_has_changed_on_disk_is_not_pushed(app: Fake, store: Store) -> None:
    image = store.find(f"{app.domain}/app:1")
    (image.layers[0].directory / "etc/motd").write_text("HELLO\n")
    with pytest.raises(ImageError, match=r"layer \w+: .* has been changed since it was unpacked"):
        pushed(app, store)
    assert ("app", "1") not in app.manifests


def test_blob_of_another_size_in_the_registry_is_an_error(app: Fake, store: Store) -> None:
    app.trap = lambda call: call.command == "HEAD" and call.answer(200, Content_Length="7")
    with pytest.raises(RegistryError, match=r"blob \w+ has 7 bytes there, but \d+ here"):
        pushed(app, store)


@pytest.mark.parametrize("place", ["file:///etc/passwd", "http://169.254.169.254/up", ""])
def test_upload_location_where_nothing_may_go(app: Fake, store: Store, place: str) -> None:
    app.trap = lambda call: call.command == "POST" and (call.answer(202, Location=place) if place else call.answer(202))
    match = "names an address for an upload" if place.startswith("file") else "sends us to|where to upload"
    with pytest.raises(RegistryError, match=match):
        pushed(app, store)


def test_damaged_record_of_blobs_only_costs_work(app: Fake, store: Store) -> None:
    pushed(app, store)
    (store.root / "blobs.json").write_text('{"layers": {"sha256:00": 7}}')
    assert pushed(app, store).compressed == 2


def test_record_of_blobs_forgets_layers_that_are_gone(app: Fake, store: Store) -> None:
    pushed(app, store)
    kept = json.loads((store.root / "blobs.json").read_text())
    image = store.find(f"{app.domain}/app:1")
    assert set(kept["layers"]) == {str(layer.diff_id) for layer in image.layers}
    assert set(kept["manifests"]) == {str(image.id)}
    with store.writing():
        store.remove_image(image.id)
        store.remove_layers(store.layer_ids())
    blobs = Blobs()
    app.put("small", "1", blobs, blobs.image([layer({"x": "y"})]))
    pulled(app, store, "small:1")
    kept = json.loads((store.root / "blobs.json").read_text())
    assert (len(kept["layers"]), len(kept["manifests"])) == (1, 1)


def test_registry_that_lies_about_layers_that_are_here_is_not_believed_in_a_push(app: Fake, store: Store) -> None:
    """Nothing of such layers is transferred, so nothing proves that a blob of this registry holds one of them."""
    evil = layer({"evil": "x"})
    blobs = Blobs()
    entry = blobs.image([evil, evil])
    manifest = json.loads(blobs.members[f"blobs/sha256/{str(entry['digest']).removeprefix('sha256:')}"])
    described = blobs.add(store.find(f"{app.domain}/app:1").config, manifest["config"]["mediaType"])
    lie = blobs.add(json.dumps({**manifest, "config": described}).encode(), MANIFEST)
    app.put("lie", "1", blobs, lie)
    assert pulled(app, store, "lie:1").moved.spared == 2
    assert pushed(app, store).compressed == 2
    assert [gzip.decompress(data) for data in layers_of(app)] == [BASE, APP]
