"""What do names of images mean, and do they read the same on every way in?"""

from __future__ import annotations

import random

import pytest

from overlayfs_demo.errors import ImageError
from overlayfs_demo.images.model import Digest
from overlayfs_demo.images.reference import ImageName, Named, Reference, find_image

A, B = Digest.of(b"a"), Digest.of(b"b")
HASH = f"sha256:{'0' * 64}"


# As `docker tag` takes them: what people see, and what the registry is asked for.
@pytest.mark.parametrize(
    ("text", "familiar", "full"),
    [
        ("alp", "alp:latest", "docker.io/library/alp:latest"),
        ("alp:1", "alp:1", "docker.io/library/alp:1"),
        ("library/alp:1", "alp:1", "docker.io/library/alp:1"),
        ("docker.io/alp:1", "alp:1", "docker.io/library/alp:1"),
        ("docker.io/library/alp:1", "alp:1", "docker.io/library/alp:1"),
        ("index.docker.io/library/alp:1", "alp:1", "docker.io/library/alp:1"),
        ("me/alp", "me/alp:latest", "docker.io/me/alp:latest"),
        ("library/a/b", "library/a/b:latest", "docker.io/library/a/b:latest"),
        ("localhost/alp:1", "localhost/alp:1", "localhost/alp:1"),
        ("localhost:5000/alp", "localhost:5000/alp:latest", "localhost:5000/alp:latest"),
        ("example.org/a/b/c:V1.0-rc_1", "example.org/a/b/c:V1.0-rc_1", "example.org/a/b/c:V1.0-rc_1"),
        ("[::1]:5000/alp", "[::1]:5000/alp:latest", "[::1]:5000/alp:latest"),
        ("Example.org/alp", "Example.org/alp:latest", "Example.org/alp:latest"),
        ("docker.io/a.b/c", "docker.io/a.b/c:latest", "docker.io/a.b/c:latest"),
        ("docker.io/localhost/c", "docker.io/localhost/c:latest", "docker.io/localhost/c:latest"),
        ("a__b-c--d.e", "a__b-c--d.e:latest", "docker.io/library/a__b-c--d.e:latest"),
    ],
)
def test_name_is_shown_short_and_means_the_full_one(text: str, familiar: str, full: str) -> None:
    name = ImageName.parse(text)
    assert (str(name), name.full) == (familiar, full)
    assert ImageName.parse(familiar) == ImageName.parse(full) == name


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":1",
        "a:",
        "a:b:c",
        "a:-b",
        "a:.b",
        "a: b",
        "a b",
        "a\n",
        "a:1\n",
        "/a",
        "a/",
        "a//b",
        "a:x/b",
        "-a",
        "a-",
        "a..b",
        "a___b",
        "a_.b",
        "é",
        "a:é",
        "../a",
        "a@",
        "a@b",
        "a@sha256:0",
        "a\x1b[31m",
        "localhost:x/a",
        "h.:5/a",
        "\udcff",
        f"a:{'t' * 129}",
        "0" * 64,
    ],
)
def test_what_is_not_a_name_is_refused(text: str) -> None:
    with pytest.raises(ImageError, match=r"is not a valid image name|is not a digest"):
        Reference.parse(text)


@pytest.mark.parametrize("text", ["App", "App:1", "me/App", "localhost/App"])
def test_upper_case_in_a_repository_is_refused(text: str) -> None:
    with pytest.raises(ImageError, match=f"'{text}' is not a valid image name: a repository name must be lowercase"):
        ImageName.parse(text)


def test_repository_has_255_characters_at_most() -> None:
    longest = 255 - len("docker.io/library/")
    assert ImageName.parse("a" * longest)
    with pytest.raises(ImageError, match="at most 255 characters"):
        ImageName.parse("a" * (longest + 1))


def test_digest_names_contents_and_is_not_a_name_to_give() -> None:
    reference = Reference.parse(f"docker.io/library/alp:1@{HASH}")
    assert (str(reference.name), str(reference.digest)) == ("alp:1", HASH)
    assert str(reference) == f"alp:1@{HASH}"
    with pytest.raises(ImageError, match="a digest identifies content"):
        ImageName.parse(f"alp@{HASH}")


def test_what_is_shown_reads_as_the_same_name_again() -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    words = ("docker.io", "index.docker.io", "library", "localhost", "a", "b.c", "h:5", "localhost:1", "x-y", "Q.io")
    read = 0
    for _ in range(3000):
        text = "/".join(chance.choices(words, k=chance.randint(1, 4))) + chance.choice(("", ":1", ":latest"))
        try:
            name = ImageName.parse(text)
        except ImageError:
            continue
        read += 1
        assert ImageName.parse(str(name)) == ImageName.parse(name.full) == name, text
    assert read > 500


# --- which image a word means ----------------------------------------------------------------------


def named(identity: Digest, *names: str) -> Named:
    return Named(identity, tuple(map(ImageName.parse, names)))


IMAGES = (named(A, "app:1", "app:2", "localhost/tool:1"), named(B, "other:latest"))


@pytest.mark.parametrize(
    ("word", "identity", "name"),
    [
        ("app:1", A, "app:1"),
        ("library/app:2", A, "app:2"),
        ("docker.io/library/app:1", A, "app:1"),
        ("other", B, "other:latest"),
        (f"app@{A}", A, "app:1"),
        (f"app:2@{A}", A, "app:2"),
        (str(A), A, None),
        (A.encoded, A, None),
        (A.short, A, None),
        (A.encoded[:4], A, None),
        (A.encoded[:1], A, None),
        (f"sha256:{A.short}", A, None),
    ],
)
def test_image_is_found(word: str, identity: Digest, name: str | None) -> None:
    found = find_image(word, IMAGES, "", "")
    assert (found.id, None if found.name is None else str(found.name)) == (identity, name)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("app", "no image app:latest: similar names: app:1, app:2"),
        ("tool", "no image tool:latest: similar names: localhost/tool:1"),
        ("x/other:3", "no image x/other:3: similar names: other:latest"),
        ("nothing", "no image nothing:latest: look again"),
        ("0000", "no image 0000:latest, and no image ID begins with 0000: look again"),
        (f"app@{B}", f"no image app@{B}: similar names: app:1, app:2"),
        ("toool", "no image toool:latest: similar names: localhost/tool:1"),
        ("sha256:0000", "no image ID begins with 0000: look again"),
        ("0" * 64, f"no image ID begins with {'0' * 64}: look again"),
    ],
)
def test_missing_image_is_named_with_what_is_like_it(word: str, message: str) -> None:
    with pytest.raises(ImageError) as caught:
        find_image(word, IMAGES, "", "look again")
    assert str(caught.value) == message


def test_short_id_of_two_images_is_ambiguous() -> None:
    twins = (named(Digest("sha256", "abcd" + "0" * 60)), named(Digest("sha256", "abcd" + "1" * 60)))
    with pytest.raises(ImageError, match="'abcd' is ambiguous: it matches 2 images: use more digits"):
        find_image("abcd", twins, "", "")


def test_name_wins_over_an_id_that_begins_so() -> None:
    found = find_image(B.encoded[:8], (named(A, B.encoded[:8]), named(B)), "", "")
    assert found.id == A
