"""Are the values of an image what the OCI specification says?"""

from __future__ import annotations

import hashlib
import json

import pytest

from overlayfs_demo.errors import ImageError, UsageError
from overlayfs_demo.images.model import Config, Digest, Document, History, Image, Layer, Platform, chain_ids

A, B, C = (Digest.of(text) for text in (b"a", b"b", b"c"))


def test_digest_reads_what_it_writes() -> None:
    assert Digest.parse(str(A), "here") == A
    assert A.short == hashlib.sha256(b"a").hexdigest()[:12]


@pytest.mark.parametrize(
    "text", ["", "sha256", "sha256:abc", f"sha256:{'A' * 64}", f"md5:{'a' * 32}", f"../{'a' * 64}"]
)
def test_text_that_is_no_digest_is_refused_and_its_place_named(text: str) -> None:
    with pytest.raises(ImageError, match=r"manifest\.json"):
        Digest.parse(text, "manifest.json")


def test_sha512_is_a_digest() -> None:
    assert Digest.parse(f"sha512:{'0' * 128}", "here").algorithm == "sha512"


def test_chain_id_of_one_layer_is_its_diff_id() -> None:
    assert chain_ids([A]) == (A,)


def test_chain_id_hashes_the_chain_below_and_the_diff_id() -> None:
    second = Digest.of(f"{A} {B}".encode())
    assert chain_ids([A, B, C]) == (A, second, Digest.of(f"{second} {C}".encode()))


def test_steps_skip_empty_layers() -> None:
    rows = (History("", "one"), History("", "metadata", empty_layer=True), History("", "two"))
    image = Image(b"{}", (Layer(A, "a"), Layer(B, "b")), rows)
    assert image.steps == (rows[0], rows[2])


def test_history_that_misses_a_layer_tells_nothing() -> None:
    image = Image(b"{}", (Layer(A, "a"), Layer(B, "b")), (History("", "one"),))
    assert image.steps == (None, None)


@pytest.mark.parametrize(
    ("created_by", "instruction"),
    [
        ('/bin/sh -c #(nop)  CMD ["sh"]', 'CMD ["sh"]'),
        ("/bin/sh -c #(nop) COPY dir:0 in /app ", "COPY dir:0 in /app"),
        ("/bin/sh -c make\t&& \\\n  make install", "RUN make && \\ make install"),
        ("RUN /bin/sh -c make # buildkit", "RUN /bin/sh -c make"),
        ("", ""),
    ],
)
def test_instruction_is_the_line_of_the_dockerfile(created_by: str, instruction: str) -> None:
    assert History("", created_by).instruction == instruction


@pytest.mark.parametrize(
    ("value", "key"),
    [
        ({"rootfs": []}, "rootfs"),
        ({"rootfs": {"diff_ids": "sha256"}}, "diff_ids"),
        ({"rootfs": {"diff_ids": [1]}}, "diff_ids"),
        ({"history": {}}, "history"),
        ({"history": ["x"]}, "history"),
        ({"history": [{"empty_layer": "yes"}]}, "empty_layer"),
        ({"os": 7}, "os"),
    ],
)
def test_config_of_a_wrong_type_names_member_and_key(value: object, key: str) -> None:
    with pytest.raises(ImageError, match=rf"config\.json: .*{key}"):
        Config.parse(json.dumps(value).encode(), "config.json")


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"9" * 5000])
def test_what_is_not_json_is_an_image_error(data: bytes) -> None:
    with pytest.raises(ImageError, match=r"config\.json"):
        Config.parse(data, "config.json")


def test_size_may_not_be_negative_or_a_truth_value() -> None:
    for value in (-1, True, "1", None, 1.5):
        with pytest.raises(ImageError, match="'size'"):
            Document({"size": value}, "m").size("size")


def test_platform_without_variant_includes_every_variant() -> None:
    assert Platform.parse("linux/arm").suits(Platform("linux", "arm", "v7")) == 2
    assert Platform.parse("linux/arm").suits(Platform("linux", "arm", "v6")) == 1
    assert Platform.parse("linux/arm64").suits(Platform("linux", "arm64", "v8")) == 2
    assert Platform.parse("linux/arm/v6").suits(Platform("linux", "arm", "v7")) == 0
    assert Platform.parse("linux/arm").suits(Platform("linux", "arm64")) == 0


@pytest.mark.parametrize("text", ["linux", "linux/", "a/b/c/d", ""])
def test_text_that_is_no_platform_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="platform"):
        Platform.parse(text)
