"""Does a pulled image become what a loaded one is, and does a broken connection not matter?"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from overlayfs_demo.errors import ImageError, RegistryError
from overlayfs_demo.images.model import Platform, running_platform
from overlayfs_demo.images.reference import Reference
from overlayfs_demo.registry.pull import pull
from overlayfs_demo.registry.session import Ways, remote
from overlayfs_demo.store.load import load
from overlayfs_demo.store.store import Store
from tests.images.builders import Blobs, for_platform, layer, oci_archive
from tests.registry.fake import QUICK, Call, Fake, digest, pulled

BASE, APP = layer({"etc/motd": "hello\n"}), layer({"app/run": os.urandom(100_000).hex()})


def put_app(fake: Fake, tag: str = "1", compression: str = "gzip") -> Blobs:
    blobs = Blobs()
    fake.put("app", tag, blobs, blobs.image([BASE, APP], compression))
    return blobs


@pytest.mark.parametrize("compression", ["plain", "gzip", "zstd"])
def test_pulled_image_is_what_load_makes_of_the_same_image(
    fake: Fake, store: Store, tmp_path: Path, compression: str
) -> None:
    put_app(fake, compression=compression)
    got = pulled(fake, store)
    (tmp_path / "image.tar").write_bytes(oci_archive([BASE, APP], compression))
    [loaded] = load(Store(tmp_path / "other"), tmp_path / "image.tar")
    assert (got.image.id, [each.chain_id for each in got.image.layers]) == (
        loaded.image.id,
        [each.chain_id for each in loaded.image.layers],
    )
    assert list(map(str, got.image.names)) == [f"{fake.domain}/app:1"]
    assert (got.image.layers[0].directory / "etc/motd").read_text() == "hello\n"


def test_layer_that_is_here_is_not_transferred(fake: Fake, store: Store) -> None:
    blobs = Blobs()
    fake.put("base", "1", blobs, blobs.image([BASE]))
    put_app(fake)
    pulled(fake, store, "base:1")
    fake.seen.clear()
    got = pulled(fake, store)
    assert (got.moved.layers, got.moved.spared) == (2, 1)
    assert got.moved.bytes_spared == len(blobs.members[next(iter(blobs.members))])
    assert len([path for path in fake.paths("GET") if "/blobs/" in path]) == 2, "the config, and one layer"


def test_second_pull_transfers_the_manifest_and_config_only(fake: Fake, store: Store) -> None:
    put_app(fake)
    assert pulled(fake, store).newer
    again = pulled(fake, store)
    assert (again.newer, again.moved.spared, again.moved.bytes) == (False, 2, 0)


def test_pull_by_digest_gives_no_name(fake: Fake, store: Store) -> None:
    put_app(fake)
    data, _ = fake.manifests["app", "1"]
    got = pulled(fake, store, f"app@{digest(data)}")
    assert (got.image.names, str(got.digest)) == ((), digest(data))


def test_index_gives_the_platform_of_this_machine_or_the_wanted_one(fake: Fake, store: Store) -> None:
    blobs = Blobs()
    here = running_platform()
    entries = [
        for_platform(blobs.image([BASE], architecture="s390x"), "linux", "s390x"),
        for_platform(blobs.image([APP], architecture=here.architecture), here.os, here.architecture),
    ]
    fake.put("app", "1", blobs, blobs.index(entries))
    assert pulled(fake, store).image.parsed.platform.architecture == here.architecture
    assert len(fake.paths("GET")) == 5, "the probe, the index, one manifest, its config and its layer"
    reference = Reference.parse(f"{fake.domain}/app:1")
    with remote(reference.repository, "pull", Ways(patience=QUICK)) as there:
        other = pull(store, there, reference, Platform.parse("linux/s390x"))
        assert other.image.parsed.platform.architecture == "s390x"
        with pytest.raises(ImageError, match=r"no image for linux/mips.*--platform: linux/.*, linux/s390x"):
            pull(store, there, reference, Platform.parse("linux/mips"))


def test_same_layer_twice_is_transferred_once(fake: Fake, store: Store) -> None:
    blobs = Blobs()
    fake.put("app", "1", blobs, blobs.image([BASE, APP, BASE]))
    got = pulled(fake, store)
    assert (got.moved.layers, len(got.image.layers)) == (3, 3)
    assert len([path for path in fake.paths("GET") if "/blobs/" in path]) == 3


def test_tags_come_page_by_page(fake: Fake) -> None:
    def pages(call: Call) -> bool:
        if "/tags/list" not in call.path:
            return False
        if "last=b" in call.path:
            return call.answer(200, b'{"tags": ["c", "bad/tag"]}')
        return call.answer(200, b'{"tags": ["a", "b"]}', Link='</v2/app/tags/list?n=2&last=b>; rel="next"')

    fake.trap = pages
    with remote(Reference.parse(f"{fake.domain}/app").repository, "pull", Ways(patience=QUICK)) as there:
        assert there.tags() == ["a", "b", "c"]


def test_store_is_free_for_others_while_blobs_arrive(fake: Fake, store: Store) -> None:
    put_app(fake)
    free: list[bool] = []

    def trap(call: Call) -> bool:
        if "/blobs/" in call.path:
            with (store.root / "lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
                free.append(True)
        return False

    with store.writing():
        pass  # Now the lock's file is there.
    fake.trap = trap
    pulled(fake, store)
    assert free


# --- connections that break ------------------------------------------------------------------------


def breaking(fake: Fake, after: int, times: int) -> None:
    """Break the first connections for the largest blob after so many bytes."""
    largest = max(fake.blobs.values(), key=len)
    left = [times]

    def trap(call: Call) -> bool:
        if call.command != "GET" or not call.path.endswith(digest(largest)) or not left[0]:
            return False
        left[0] -= 1
        start = int(call.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
        call.send_response(206 if start else 200)
        if start:
            call.send_header("Content-Range", f"bytes {start}-{len(largest) - 1}/{len(largest)}")
        call.send_header("Content-Length", str(len(largest) - start))
        call.end_headers()
        call.wfile.write(largest[start : start + after])
        call.wfile.flush()
        call.close_connection = True
        return True

    fake.trap = trap


def test_broken_connection_is_resumed_where_it_broke(fake: Fake, store: Store) -> None:
    put_app(fake, compression="plain")
    breaking(fake, 70_000, 2)
    assert pulled(fake, store).moved.bytes > 200_000
    ranges = [request.headers["Range"] for request in fake.seen if "Range" in request.headers]
    assert ranges == ["bytes=70000-", "bytes=140000-"]


def test_registry_that_knows_no_ranges_sends_the_blob_again(fake: Fake, store: Store) -> None:
    put_app(fake, compression="plain")
    breaking(fake, 70_000, 1)
    inner = fake.trap

    def trap(call: Call) -> bool:
        if call.path.startswith("/v2/app/blobs/") and "Range" in call.headers:
            return call.answer(200, fake.blobs[call.path.rpartition("/")[2]])
        return inner(call)

    fake.trap = trap
    pulled(fake, store)
    assert [request.headers["Range"] for request in fake.seen if "Range" in request.headers] == ["bytes=70000-"]


def test_connection_that_breaks_again_and_again_is_an_error_and_nothing_stays(fake: Fake, store: Store) -> None:
    put_app(fake, compression="plain")
    breaking(fake, 1000, 1000)
    with pytest.raises(RegistryError, match=rf"registry {fake.domain}: layer 2 of 2 \(\w+\) of .*/app:1: .* broke"):
        pulled(fake, store)
    assert (store.images(), store.layers(), list(store.tmp.iterdir())) == ([], [], [])


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_busy_registry_is_asked_again(fake: Fake, store: Store, status: int) -> None:
    put_app(fake)
    fake.trap = lambda call: len(fake.seen) % 2 == 0 and call.answer(status)
    pulled(fake, store)


def test_busy_registry_is_asked_again_after_the_time_it_names(fake: Fake, store: Store) -> None:
    put_app(fake)
    times: list[float] = []

    def trap(call: Call) -> bool:
        if "/manifests/" not in call.path:
            return False
        times.append(time.monotonic())
        return len(times) == 1 and call.answer(429, Retry_After="1")

    fake.trap = trap
    pulled(fake, store)
    assert times[1] - times[0] >= 1


def test_registry_that_asks_for_too_long_a_wait_is_an_error_that_says_how_long(fake: Fake, store: Store) -> None:
    put_app(fake)
    fake.trap = lambda call: (
        "/manifests/" in call.path
        and call.answer(
            429, b'{"errors":[{"code":"TOOMANYREQUESTS","message":"You have reached your limit"}]}', Retry_After="21600"
        )
    )
    with pytest.raises(RegistryError, match=r"status 429 .You have reached your limit.: try again in 21600 seconds"):
        pulled(fake, store)


def test_registry_that_is_down_is_an_error_at_once(store: Store, fake: Fake) -> None:
    fake.domain = "127.0.0.1:1"
    with pytest.raises(RegistryError, match=r"registry 127.0.0.1:1: .*Connection refused"):
        pulled(fake, store)


def test_missing_image_is_named(fake: Fake, store: Store) -> None:
    with pytest.raises(RegistryError, match=f"registry {fake.domain} has no image {fake.domain}/app:1"):
        pulled(fake, store)


def test_proxy_of_the_environment_is_asked(fake: Fake, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    put_app(fake)

    def as_proxy(call: Call) -> bool:
        call.path = urlsplit(call.path).path
        return False

    fake.trap = as_proxy
    monkeypatch.setenv("http_proxy", f"http://{fake.domain}")
    reference = Reference.parse("registry.example/app:1")
    with remote(reference.repository, "pull", Ways(plain_http=True, patience=QUICK)) as there:
        assert str(pull(store, there, reference).name) == "registry.example/app:1"
    assert fake.paths("GET")[0] == "http://registry.example/v2/app/manifests/1"
