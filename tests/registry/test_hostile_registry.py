"""Does a registry that lies, floods, stalls, or sends us elsewhere get one clear error, and leave nothing behind?"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from overlayfs_demo.errors import ImageError, OverlayError, RegistryError
from overlayfs_demo.images.reference import Reference
from overlayfs_demo.registry.session import Ways, remote
from overlayfs_demo.store.store import Store
from tests.images.builders import Blobs, config, layer
from tests.registry.fake import INDEX, MANIFEST, QUICK, Call, Fake, digest, pulled, serving

BASE, APP = layer({"etc/motd": "hello\n"}), layer({"app/run": "#!" + "x" * 50_000})


@pytest.fixture
def blobs(fake: Fake) -> Blobs:
    """The blobs of an image that the registry has as app:1. The last layer is not compressed."""
    blobs = Blobs()
    fake.put("app", "1", blobs, blobs.image([BASE, APP], "plain"))
    return blobs


def refused(fake: Fake, store: Store, match: str, kind: type[OverlayError] = RegistryError) -> None:
    """Assert that a pull fails with one line that names the registry, and that nothing of it is in the store."""
    with pytest.raises(kind, match=match) as caught:
        pulled(fake, store)
    assert fake.domain in str(caught.value)
    assert str(caught.value).isprintable()
    assert (store.images(), store.layers(), list(store.tmp.iterdir())) == ([], [], [])
    assert not (store.root / "names.json").exists()


def change_manifest(fake: Fake, change: Callable[[dict[str, Any]], object]) -> None:
    value = json.loads(fake.manifests["app", "1"][0])
    change(value)
    fake.keep_manifest("app", "1", json.dumps(value).encode())


def for_blob(data: bytes, answer: Callable[[Call], bool]) -> Callable[[Call], bool]:
    return lambda call: call.path.endswith(f"/blobs/{digest(data)}") and answer(call)


# --- lies about bytes ------------------------------------------------------------------------------


def test_other_bytes_of_the_same_size(fake: Fake, store: Store, blobs: Blobs) -> None:
    fake.trap = for_blob(APP, lambda call: call.answer(200, APP[:-1] + b"!"))
    refused(fake, store, r"layer 2 of 2 \(\w{12}\) of .* does not match its digest: expected sha256:\w+, found sha256:")


def test_size_in_the_manifest_that_is_too_small(fake: Fake, store: Store, blobs: Blobs) -> None:
    change_manifest(fake, lambda value: value["layers"][1].update(size=len(APP) - 1))
    refused(fake, store, rf"layer 2 of 2 .* has {len(APP) - 1} bytes in the manifest, but the registry offers")


def test_size_in_the_manifest_that_no_disk_has(fake: Fake, store: Store, blobs: Blobs) -> None:
    change_manifest(fake, lambda value: value["layers"][1].update(size=(1 << 63) - 1))
    refused(fake, store, r"layer 2 of 2 .* but the store has room for \d+: make room")
    assert not [path for path in fake.paths("GET") if path.endswith(digest(APP))]


@pytest.mark.parametrize("size", [-1, 1.5, "12", True, 1 << 64, None])
def test_size_that_is_not_one(fake: Fake, store: Store, blobs: Blobs, size: object) -> None:
    change_manifest(fake, lambda value: value["layers"][1].update(size=size))
    refused(fake, store, r"'size' must be a size in bytes")


def test_body_without_an_end(fake: Fake, store: Store, blobs: Blobs) -> None:
    def endless(call: Call) -> bool:
        call.send_response(200)
        call.send_header("Transfer-Encoding", "chunked")
        call.end_headers()
        while True:  # Until the client closes the connection.
            call.wfile.write(b"8000\r\n" + bytes(0x8000) + b"\r\n")

    fake.trap = for_blob(APP, endless)
    refused(fake, store, rf"has {len(APP)} bytes in the manifest, but the registry sends more")


def test_body_that_ends_early_again_and_again(fake: Fake, store: Store, blobs: Blobs) -> None:
    def short(call: Call) -> bool:
        call.send_response(200)
        call.send_header("Transfer-Encoding", "chunked")
        call.end_headers()
        call.wfile.write(b"4\r\nabcd\r\n0\r\n\r\n")
        return True

    fake.trap = for_blob(APP, short)
    refused(fake, store, rf"the answer ended after 4 of {len(APP)} bytes")


def test_range_that_was_not_requested(fake: Fake, store: Store, blobs: Blobs) -> None:
    fake.trap = for_blob(APP, lambda call: call.answer(206, APP[1:], Content_Range=f"bytes 1-{len(APP)}/{len(APP)}"))
    refused(fake, store, "was requested from byte 0, but the registry answers with bytes 1-")


def test_compressed_answer_is_counted_and_hashed_as_it_is(fake: Fake, store: Store, blobs: Blobs) -> None:
    fake.trap = for_blob(APP, lambda call: call.answer(200, APP, Content_Encoding="gzip"))
    pulled(fake, store)


def test_blob_that_is_missing(fake: Fake, store: Store, blobs: Blobs) -> None:
    del fake.blobs[digest(APP)]
    refused(fake, store, "layer 2 of 2 .* is not there, although the manifest names it")


def test_layer_that_is_not_the_one_in_the_config(fake: Fake, store: Store, blobs: Blobs) -> None:
    other = blobs.add(layer({"evil": "x"}), "application/vnd.oci.image.layer.v1.tar")
    fake.blobs[str(other["digest"])] = layer({"evil": "x"})
    change_manifest(fake, lambda value: value["layers"].__setitem__(1, other))
    refused(fake, store, "layer 2 .* does not match its diff ID in the config", ImageError)


def test_config_that_is_too_large(fake: Fake, store: Store, blobs: Blobs) -> None:
    change_manifest(fake, lambda value: value["config"].update(size=5 << 20))
    refused(fake, store, "config of .* has more than 4194304 bytes")


# --- bad manifests ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "match"),
    [
        (b"", "not JSON"),
        (b"<html>Sign in to this hotel</html>", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "must be a JSON object, not a list"),
        (b'{"schemaVersion": 2, "mediaType": 7}', "'mediaType' must be a string"),
        (b'{"schemaVersion": 1, "fsLayers": []}', "no image|schema 1|not an image|'mediaType'"),
        (b'{"config": {"digest": "sha256:../../etc/passwd", "size": 1}, "layers": []}', "is not a digest"),
        (b'{"config": {"digest": "sha256:' + b"0" * 64 + b'", "size": 1}, "layers": [7]}', "must be a JSON object"),
        (b"x" * (5 << 20), "the answer has more than 4194304 bytes"),
    ],
)
def test_manifest_that_is_not_one(fake: Fake, store: Store, body: bytes, match: str) -> None:
    fake.keep_manifest("app", "1", body)
    refused(fake, store, match)


def test_manifest_with_another_digest_than_was_requested(fake: Fake, store: Store, blobs: Blobs) -> None:
    data, kind = fake.manifests["app", "1"]
    wanted = digest(b"another")
    fake.manifests["app", wanted] = data, kind
    fake.trap = lambda call: "/manifests/" in call.path and call.answer(200, data, Content_Type=kind)
    with pytest.raises(RegistryError, match=f"does not match its digest: expected {wanted}, found {digest(data)}"):
        pulled(fake, store, f"app@{wanted}")


def test_manifest_that_is_not_what_the_registry_says_it_is(fake: Fake, store: Store, blobs: Blobs) -> None:
    data = json.dumps({"schemaVersion": 2, "mediaType": MANIFEST, "manifests": []}).encode()
    fake.keep_manifest("app", "1", data, INDEX)
    refused(fake, store, "says that it is .*manifest.v1.json, but the registry says .*index.v1.json")


def test_index_that_contains_itself_in_spirit(fake: Fake, store: Store) -> None:
    data = b'{"manifests": []}'
    for _ in range(8):
        fake.keep_manifest("app", "1", data, INDEX)
        entry = {"mediaType": INDEX, "digest": digest(data), "size": len(data)}
        data = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]}).encode()
    fake.keep_manifest("app", "1", data, INDEX)
    refused(fake, store, "nests indexes too deeply")


def test_artifact_is_not_an_image(fake: Fake, store: Store) -> None:
    blobs = Blobs()
    described = blobs.add(b"{}", "application/vnd.oci.empty.v1+json")
    rows = [blobs.add(b"chart", "application/vnd.cncf.helm.chart.content.v1.tar+gzip")]
    entry = blobs.add(json.dumps({"schemaVersion": 2, "config": described, "layers": rows}).encode(), MANIFEST)
    fake.put("app", "1", blobs, entry)
    refused(fake, store, "contains no image, only 1 manifest of other kinds")


def test_more_layers_in_the_manifest_than_in_the_config(fake: Fake, store: Store) -> None:
    blobs = Blobs()
    described = blobs.add(config([BASE]), "application/vnd.oci.image.config.v1+json")
    rows = [blobs.add(data, "application/vnd.oci.image.layer.v1.tar") for data in (BASE, APP)]
    manifest = json.dumps({"schemaVersion": 2, "config": described, "layers": rows}).encode()
    fake.put("app", "1", blobs, blobs.add(manifest, MANIFEST))
    refused(fake, store, "different number of layers")


# --- redirects -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "match"),
    [
        ("file:///etc/passwd", "names an address for a redirect that is not https or http: file:///etc/passwd"),
        ("http://169.254.169.254/latest/meta-data/", "sends us to 169.254.169.254, whose address is private"),
        ("http://[fd00:ec2::254]/", "sends us to fd00:ec2::254, whose address is private"),
        ("http://[::ffff:169.254.169.254]/", "whose address is private"),
        ("http://0.0.0.0/", "sends us to 0.0.0.0, whose address is private"),
        ("http://user:word@127.0.0.1/", "names an address for a redirect"),
        ("http://127.0.0.1:99999/", "names an address for a redirect"),
        ("http://[::1/", "names an address for a redirect"),
        ("gopher://127.0.0.1/", "names an address for a redirect"),
        ("/" + "x" * 9000, "names an address for a redirect"),
        ("", "redirects more than 5 times"),
    ],
)
def test_redirect_to_where_it_must_not_lead(fake: Fake, store: Store, blobs: Blobs, place: str, match: str) -> None:
    fake.trap = for_blob(APP, lambda call: call.answer(307, Location=place))
    refused(fake, store, match)


def test_redirect_to_another_host_carries_no_authorization(fake: Fake, store: Store, blobs: Blobs) -> None:
    with serving(Fake(blobs=fake.blobs), "127.0.0.2") as storage:

        def trap(call: Call) -> bool:
            if "Authorization" not in call.headers:
                return (
                    call.answer(401, WWW_Authenticate=f'Bearer realm="http://{fake.domain}/token"')
                    if "/token" not in call.path
                    else call.answer(200, b'{"token": "secret"}')
                )
            return "/blobs/" in call.path and call.answer(307, Location=f"http://{storage.domain}{call.path}")

        fake.trap = trap
        pulled(fake, store)
        assert len(storage.seen) == 3
        assert not [request for request in storage.seen if "Authorization" in request.headers]
    assert [request for request in fake.seen if request.headers.get("Authorization") == "Bearer secret"]


# --- slowness, and floods of headers -----------------------------------------------------------------


def test_answer_that_trickles_is_a_broken_connection(fake: Fake, store: Store, blobs: Blobs) -> None:
    def trickle(call: Call) -> bool:
        call.send_response(200)
        call.send_header("Content-Length", str(len(APP)))
        call.end_headers()
        for byte in APP:
            call.wfile.write(bytes([byte]))
            if fake.over.wait(0.02):
                break
        return True

    fake.trap = for_blob(APP, trickle)
    patience = replace(QUICK, attempts=2, window=0.2, least_rate=1 << 20)
    with pytest.raises(RegistryError, match=r"layer 2 of 2 .* is too slow \(it sent \d+ bytes in \d+ seconds\)"):
        pulled(fake, store, patience=patience)


def test_headers_that_trickle_are_a_broken_connection(fake: Fake, store: Store, blobs: Blobs) -> None:
    def trickle(call: Call) -> bool:
        call.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
        while not fake.over.wait(0.02):
            call.wfile.write(b"x")
        return True

    fake.trap = for_blob(APP, trickle)
    with pytest.raises(RegistryError, match=r"layer 2 of 2 .* is too slow"):
        pulled(fake, store, patience=replace(QUICK, attempts=2, window=0.2, least_rate=1 << 20))


def test_registry_that_never_answers_times_out(fake: Fake, store: Store, blobs: Blobs) -> None:
    fake.trap = for_blob(APP, lambda _call: fake.over.wait())
    with pytest.raises(RegistryError, match=r"layer 2 of 2 .* is too slow"):
        pulled(fake, store, patience=replace(QUICK, attempts=2, read=0.3))


def test_headers_without_an_end(fake: Fake, store: Store, blobs: Blobs) -> None:
    def flood(call: Call) -> bool:
        call.wfile.write(b"HTTP/1.1 200 OK\r\n")
        while True:  # Until the client closes the connection.
            call.wfile.write(b"X-Filler: " + b"x" * 8000 + b"\r\n")

    fake.trap = for_blob(APP, flood)
    refused(fake, store, "layer 2 of 2 .* the connection to .* broke")


def test_terminal_codes_in_what_a_registry_says_are_escaped(fake: Fake, store: Store) -> None:
    message = json.dumps({"errors": [{"code": "X", "message": "\x1b[2Jgotcha\nsecond line"}]}).encode()
    fake.trap = lambda call: "/manifests/" in call.path and call.answer(418, message)
    refused(fake, store, r"it answers with status 418 \(\\x1b\[2Jgotcha\\nsecond line\)")


def test_tags_without_an_end(fake: Fake) -> None:
    fake.trap = lambda call: (
        "/tags/list" in call.path and call.answer(200, b'{"tags": ["a"]}', Link='</v2/app/tags/list?again>; rel="next"')
    )
    repository = Reference.parse(f"{fake.domain}/app").repository
    with (
        remote(repository, "pull", Ways(patience=QUICK)) as there,
        pytest.raises(RegistryError, match=r"the tags of .* have no end"),
    ):
        there.tags()
