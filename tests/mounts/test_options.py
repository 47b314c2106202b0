"""Does a line of mount options mean what it means to the kernel and to mount(8)?"""

from __future__ import annotations

import os
import random
import secrets

import pytest

from overlayfs_demo.errors import UsageError
from overlayfs_demo.linux import mounting
from overlayfs_demo.mounts.option_paths import escape_path, lowerdir_option, unescape
from overlayfs_demo.mounts.options import FRONTS, MountOptions, option_line, parse

# mount(8)'s words that set a flag, and the word that clears it again ("" where there is none).
FLAGS = {
    "ro": (mounting.MS_RDONLY, "rw"),
    "nosuid": (mounting.MS_NOSUID, "suid"),
    "nodev": (mounting.MS_NODEV, "dev"),
    "noexec": (mounting.MS_NOEXEC, "exec"),
    "sync": (mounting.MS_SYNCHRONOUS, "async"),
    "dirsync": (mounting.MS_DIRSYNC, ""),
    "noatime": (mounting.MS_NOATIME, "atime"),
    "nodiratime": (mounting.MS_NODIRATIME, "diratime"),
    "relatime": (mounting.MS_RELATIME, "norelatime"),
    "strictatime": (mounting.MS_STRICTATIME, "nostrictatime"),
    "lazytime": (mounting.MS_LAZYTIME, "nolazytime"),
}
CLEARED = [word for word, (_, opposite) in FLAGS.items() if opposite]
ALL_FLAGS = sum(flag for flag, _ in FLAGS.values())


def given(*lines: str) -> MountOptions:
    """These options, on some stack."""
    return parse(["lowerdir=/low", *lines])


def refused(*lines: str) -> UsageError:
    """The refusal of these options."""
    with pytest.raises(UsageError) as caught:
        parse(lines)
    assert caught.value.exit_code == 2
    assert caught.value.remedy
    return caught.value


# --- layers ----------------------------------------------------------------------------------------


def test_lowers_stay_in_their_order_topmost_first() -> None:
    assert parse(["lowerdir=/top:mid:/bottom"]).stack.lowers == (b"/top", b"mid", b"/bottom")


def test_lowerdir_plus_adds_one_layer_below() -> None:
    assert parse(["lowerdir+=/a,lowerdir+=/b"]).stack.lowers == (b"/a", b"/b")
    assert parse(["lowerdir+=/a,lowerdir+=/b", "datadir+=/c"]).stack.data_only == (b"/c",)


@pytest.mark.parametrize(
    ("value", "path"),
    [("/a:b", b"/a:b"), (r"/a\:b", rb"/a\:b"), (r"/a\\b", rb"/a\\b"), (r"/a\,b", b"/a,b"), ("/a\\", b"/a\\")],
)
def test_lowerdir_plus_takes_all_but_an_escaped_comma_as_it_is(value: str, path: bytes) -> None:
    assert parse([f"lowerdir+={value}"]).stack.lowers == (path,)
    assert parse([f"lowerdir+=/a,datadir+={value}"]).stack.data_only == (path,)


def test_lowerdir_takes_the_place_of_all_layers_before_it() -> None:
    assert parse(["lowerdir=/a:/b::/data", "lowerdir=/c"]).stack == parse(["lowerdir=/c"]).stack
    assert parse(["lowerdir+=/a,datadir+=/data,lowerdir=/c:/d"]).stack.lowers == (b"/c", b"/d")
    assert parse(["lowerdir=/a,lowerdir=,lowerdir+=/b"]).stack.lowers == (b"/b",)


def test_several_lines_are_one() -> None:
    options = parse(["lowerdir=/a:/b,ro", "upperdir=/u", "workdir=/w,nodev"])
    assert options.stack.lowers == (b"/a", b"/b")
    assert (options.stack.upper, options.stack.work) == (b"/u", b"/w")
    assert options.flags == mounting.MS_RDONLY | mounting.MS_NODEV


def test_later_upper_and_work_win() -> None:
    stack = given("upperdir=/u,workdir=/w", "workdir=/w2,upperdir=/u2").stack
    assert (stack.upper, stack.work) == (b"/u2", b"/w2")


def test_empty_words_between_commas_are_nothing() -> None:
    assert parse([",lowerdir=/a,,ro,", ""]) == parse(["lowerdir=/a,ro"])


def test_without_upper_the_stack_has_neither_upper_nor_work() -> None:
    stack = given().stack
    assert (stack.upper, stack.work) == (None, None)


# --- escapes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "lowers"),
    [
        (r"lowerdir=/a\:b:/c", (b"/a:b", b"/c")),
        (r"lowerdir=/a\,b:/c", (b"/a,b", b"/c")),
        (r"lowerdir=/a\\b:/c", (b"/a\\b", b"/c")),
        (r"lowerdir=/a\\:/c", (b"/a\\", b"/c")),
        (r"lowerdir=/a\\\:/c", (b"/a\\:/c",)),
        (r"lowerdir=\:a", (b":a",)),
        ("lowerdir=/a\\\nb", (b"/a\nb",)),
        ("lowerdir=/a\\", (b"/a\\",)),
        ("lowerdir=/a=b", (b"/a=b",)),
        ("lowerdir=/a\udcffb", (b"/a\xffb",)),
    ],
)
def test_backslash_makes_the_next_character_an_ordinary_one(line: str, lowers: tuple[bytes, ...]) -> None:
    assert parse([line]).stack.lowers == lowers


@pytest.mark.parametrize("lowers", [(b"/a:",), (b"/a:", b"/b"), (b"/b", b":")])
def test_path_may_end_in_an_escaped_colon(lowers: tuple[bytes, ...]) -> None:
    assert parse([lowerdir_option(lowers)]).stack.lowers == lowers


def test_path_may_end_in_an_escaped_comma() -> None:
    stack = parse([r"lowerdir=/a\,,upperdir=/u\,,workdir=/w\,"]).stack
    assert (stack.lowers, stack.upper, stack.work) == ((b"/a,",), b"/u,", b"/w,")


def test_colon_in_upper_and_work_needs_no_escape() -> None:
    stack = given(r"upperdir=/u:1,workdir=/w\:1").stack
    assert (stack.upper, stack.work) == (b"/u:1", b"/w:1")


def test_comma_in_upper_and_work_is_escaped() -> None:
    stack = given(r"upperdir=/u\,ro,workdir=/w\\,nodev").stack
    assert (stack.upper, stack.work) == (b"/u,ro", b"/w\\")


def test_colon_comma_and_backslash_are_escaped() -> None:
    assert escape_path(b"/a:b,c\\d=\n\xff") == "/a\\:b\\,c\\\\d=\n\udcff"


def test_lowerdir_option_stacks_the_topmost_first() -> None:
    assert lowerdir_option([b"/top", b"/a:b"]) == "lowerdir=/top:/a\\:b"


def random_path(chooser: random.Random) -> bytes:
    """A path of a few bytes, often such as mean something to the parser, but never NUL."""
    special = b":,\\\n=+/ \xff\xc3\xbc"
    return bytes(
        chooser.choice(special) if chooser.random() < 0.7 else chooser.randrange(1, 256)
        for _ in range(chooser.randrange(1, 12))
    )


def test_escaped_paths_are_read_back_as_they_were() -> None:
    seed = secrets.randbits(32)
    chooser = random.Random(seed)
    for _ in range(2000):
        lowers = tuple(random_path(chooser) for _ in range(chooser.randrange(1, 5)))
        upper, work = random_path(chooser), random_path(chooser)
        where = f"seed {seed}, lowers {lowers!r}, upper {upper!r}, work {work!r}"
        lines = [lowerdir_option(lowers), f"upperdir={escape_path(upper)},workdir={escape_path(work)}"]
        try:
            stack = parse(lines).stack
        except UsageError as error:
            pytest.fail(f"{where}: {error}")
        assert (stack.lowers, stack.upper, stack.work) == (lowers, upper, work), where


def test_each_escaped_path_alone_is_unescaped_to_itself() -> None:
    seed = secrets.randbits(32)
    chooser = random.Random(seed)
    for _ in range(2000):
        path = random_path(chooser)
        assert unescape(escape_path(path)) == path, f"seed {seed}"


# --- mount(8)'s words ------------------------------------------------------------------------------


@pytest.mark.parametrize("word", FLAGS)
def test_word_sets_its_flag_and_no_other(word: str) -> None:
    assert given(word).flags == FLAGS[word][0]


@pytest.mark.parametrize("word", CLEARED)
def test_opposite_clears_that_flag_and_no_other(word: str) -> None:
    flag, opposite = FLAGS[word]
    assert given(",".join(FLAGS), opposite).flags == ALL_FLAGS & ~flag
    assert given(opposite).flags == 0


@pytest.mark.parametrize("word", CLEARED)
def test_later_word_wins(word: str) -> None:
    flag, opposite = FLAGS[word]
    assert given(f"{word},{opposite}").flags == 0
    assert given(f"{opposite},{word}").flags == flag
    assert given(word, opposite, word).flags == flag


def test_no_word_sets_no_flag() -> None:
    assert given().flags == 0


@pytest.mark.parametrize(
    "word",
    [
        "defaults",
        "auto",
        "noauto",
        "nofail",
        "_netdev",
        "user",
        "nouser",
        "users",
        "owner",
        "group",
        "default_permissions",
        "x-systemd.automount",
        "x-mount.mkdir=0755",
        "X-mine",
        "comment=for later",
    ],
)
def test_words_for_other_programs_change_nothing(word: str) -> None:
    assert given(word) == given()


# --- the kernel's words ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "word",
    [
        "redirect_dir=on",
        "redirect_dir=follow",
        "nfs_export=off",
        "xino=on",
        "xino=off",
        "xino=auto",
        "uuid=on",
        "uuid=off",
        "uuid=auto",
        "uuid=null",
        "verity=off",
    ],
)
def test_kernel_word_that_says_what_is_so_anyway_is_accepted(word: str) -> None:
    assert given(word) == given()


@pytest.mark.parametrize(
    ("word", "instead"),
    [
        ("redirect_dir=off", "redirect_dir=follow, redirect_dir=on"),
        ("redirect_dir=nofollow", "redirect_dir=on"),
        ("nfs_export=on", "nfs_export=off"),
        ("xino=maybe", "xino=auto"),
        ("uuid=1", "uuid=null"),
        ("verity=require", "verity=off"),
    ],
)
def test_other_kernel_setting_is_refused_with_what_to_use_instead(word: str, instead: str) -> None:
    error = refused("lowerdir=/a", word)
    assert f"'{word}'" in error.problem
    assert "leave it out" in error.remedy
    assert instead in error.remedy


def test_index_is_on_until_turned_off() -> None:
    assert given().stack.index
    assert given("index=off,index=on").stack.index
    assert not given("index=off").stack.index
    assert "index=on and index=off" in refused("lowerdir=/a", "index").remedy


def test_metacopy_is_off_until_turned_on() -> None:
    assert not given().stack.metacopy
    assert given("metacopy=on").stack.metacopy
    assert "metacopy=on and metacopy=off" in refused("lowerdir=/a", "metacopy=yes").remedy


def test_data_only_layers_come_last_each_behind_two_colons() -> None:
    stack = parse([r"lowerdir=/a:/b::/c\:::/d"]).stack
    assert (stack.lowers, stack.data_only) == ((b"/a", b"/b"), (b"/c:", b"/d"))


def test_userxattr_and_volatile_are_off_until_asked_for() -> None:
    assert (given().stack.user_xattrs, given().stack.volatile) == (False, False)
    assert given("userxattr").stack.user_xattrs
    assert not given("userxattr").stack.volatile
    assert given("volatile").stack.volatile
    assert not given("volatile").stack.user_xattrs


# --- our own words ---------------------------------------------------------------------------------


def test_image_whiteouts_are_understood_unless_told_otherwise() -> None:
    assert given().stack.image_whiteouts
    assert given("whiteouts=kernel,whiteouts=all").stack.image_whiteouts
    assert not given("whiteouts=kernel").stack.image_whiteouts


@pytest.mark.parametrize("front", FRONTS)
def test_front_is_taken(front: str) -> None:
    assert given(f"front={front}").front == front
    assert given(f"front=auto,front={front}").front == front


def test_front_is_chosen_automatically() -> None:
    assert given().front == "auto"


@pytest.mark.parametrize(("word", "seconds"), [("0", 0.0), ("1.5", 1.5), ("3600", 3600.0)])
def test_timeout_is_in_seconds(word: str, seconds: float) -> None:
    assert given(f"timeout={word}").timeout == seconds


def test_timeout_is_the_fronts_affair_until_told_otherwise() -> None:
    assert given().timeout is None
    assert given("timeout=1,timeout=2").timeout == 2


def test_fsname_is_the_source() -> None:
    assert given().source is None
    assert given("fsname=my layers").source == "my layers"


def test_allow_other_is_undecided_until_told() -> None:
    assert given().allow_other is None
    assert given("allow_other").allow_other is True
    assert given("noallow_other").allow_other is False
    assert given("noallow_other,allow_other").allow_other is True


def test_later_noallow_other_wins() -> None:
    assert given("allow_other,noallow_other").allow_other is False


# --- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "named", "remedy"),
    [
        ("", "lowerdir=", "lowerdir=TOP"),
        ("ro", "lowerdir=", "lowerdir=TOP"),
        ("lowerdir=", "lowerdir=", "lowerdir=TOP"),
        ("lowerdir=/a,lowerdir=", "lowerdir=", "lowerdir=TOP"),
        ("lowerdir=/a,lowerdir+=/b", "lowerdir+=/b follows lowerdir=", "lowerdir+="),
        ("lowerdir=/a,datadir+=/b", "datadir+=/b follows lowerdir=", "datadir+="),
        ("datadir+=/d,lowerdir+=/a", "lowerdir+=/a follows a data-only layer", "after the last lowerdir+="),
        ("datadir+=/d", "lowerdir=", "lowerdir=TOP"),
        ("lowerdir=:/a", "lowerdir=:/a", "colon"),
        ("lowerdir=/a:", "lowerdir=/a:", "colon"),
        ("lowerdir=/a::/data:/b", "lowerdir=/a::/data:/b", "each data-only layer"),
        ("lowerdir=::/data", "lowerdir=::/data", "each data-only layer"),
        ("lowerdir=/a,upperdir=/u", "upperdir= needs workdir=", "on the upper's filesystem"),
        ("lowerdir=/a,workdir=/w", "workdir= without upperdir=", "add upperdir="),
        ("lowerdir=/a,nonsense", "'nonsense'", "--help"),
        ("lowerdir=/a,nonsense=1", "'nonsense=1'", "--help"),
        ("lowerdir", "'lowerdir'", "--help"),
        ("lowerdir=/a,upperdir", "'upperdir'", "--help"),
        ("lowerdir=/a,ro=1", "'ro=1'", "--help"),
        ("lowerdir=/a,RO", "'RO'", "--help"),
        ("lowerdir=/a,timeout=soon", "'timeout=soon'", "seconds"),
        ("lowerdir=/a,timeout=-1", "'timeout=-1'", "seconds"),
        ("lowerdir=/a,timeout=", "'timeout='", "seconds"),
        ("lowerdir=/a,timeout=nan", "'timeout=nan'", "seconds"),
        ("lowerdir=/a,timeout", "'timeout'", "seconds"),
        ("lowerdir=/a,front=back", "'front=back'", "auto, kernel, fusepy"),
        ("lowerdir=/a,whiteouts=none", "'whiteouts=none'", "whiteouts=all and whiteouts=kernel"),
    ],
)
def test_wrong_line_is_refused_with_option_and_remedy(line: str, named: str, remedy: str) -> None:
    error = refused(line)
    assert named in error.problem
    assert remedy in error.remedy


@pytest.mark.parametrize("line", ["lowerdir+=", "lowerdir=/a,upperdir=,workdir=/w", "lowerdir=/a,upperdir=/u,workdir="])
def test_empty_path_is_refused_in_every_option(line: str) -> None:
    assert "=" in refused(line).problem


# --- ids -------------------------------------------------------------------------------------------


def test_ids_are_themselves_until_told_otherwise() -> None:
    assert not given().stack.ids


def test_mappings_are_ranges_from_the_disk_to_the_view() -> None:
    ids = given("uidmapping=0:1000:1:1:110000:65536,gidmapping=5:6:7").stack.ids
    assert [ids.users.shown(one) for one in (0, 1, 65536, 65537)] == [1000, 110000, 175535, 65534]
    assert [ids.users.stored(one) for one in (1000, 110000)] == [0, 1]
    assert ids.groups.shown(5) == 6


@pytest.mark.parametrize(
    "option",
    [
        "uidmapping=",
        "uidmapping=1:2",
        "gidmapping=a:b:c",
        "uidmapping=0:0:0",
        "gidmapping=0:1:4294967295",
        "uidmapping=0:0:10:5:20:1",
        "uidmapping=0:5:1:1:5:1",
        "squash_to_uid=x",
        "squash_to_gid=",
        "squash_to_uid=-1",
        "squash_to_root=1",
        "squash_to_uid=4294967295",
        "squash_to_uid",
    ],
)
def test_bad_ids_are_refused_by_name(option: str) -> None:
    assert f"'{option}'" in str(refused("lowerdir=/a", option))


# --- limits for copy-ups ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "size"),
    [
        ("0", 0),
        ("4096", 4096),
        ("10k", 10240),
        ("10K", 10240),
        ("10M", 10 << 20),
        ("10MB", 10 << 20),
        ("10MiB", 10 << 20),
        ("1.5G", 3 << 29),
        ("2t", 2 << 40),
        ("1p", 1 << 50),
        ("7b", 7),
    ],
)
def test_a_limit_is_a_size_in_powers_of_1024(word: str, size: int) -> None:
    assert given(f"copyup_max={word}").stack.copyup_max == size
    assert given(f"copyup_warn={word}").stack.copyup_warn == size


@pytest.mark.parametrize("word", ["", "-1", "10X", "M", "1.G", "10 M", "infinite"])
def test_what_is_no_size_is_no_limit(word: str) -> None:
    assert "copyup_max" in refused("lowerdir=/low", f"copyup_max={word}").problem


def test_there_is_no_limit_unless_it_is_given() -> None:
    assert (given().stack.copyup_max, given().stack.copyup_warn) == (None, None)


# --- and back again --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        "lowerdir=/a",
        r"lowerdir=/a\:b:/c\,d:/e\\f::/data",
        "lowerdir=/l,upperdir=/u\\,v,workdir=/w",
        "lowerdir=/l,upperdir=/u,workdir=/w,userxattr,volatile,whiteouts=kernel,index=off,metacopy=on",
        "lowerdir=/l,copyup_max=10M,copyup_warn=1.5k",
        "lowerdir=/l,ro,nosuid,nodev,noatime,sync",
        "lowerdir=/l,uidmapping=0:1000:1:5:6:7,gidmapping=1:2:3",
        "lowerdir=/l,squash_to_root",
        "lowerdir=/l,squash_to_uid=5,squash_to_gid=6",
        r"lowerdir=/l,fsname=a\,b\\c,front=fusepy,timeout=1.5,allow_other",
        "lowerdir=/l,noallow_other,timeout=0.0000001",
        "lowerdir=/caf\udce9",
    ],
)
def test_a_line_made_of_options_means_the_same(line: str) -> None:
    options = parse([line])
    assert parse([option_line(options)]) == options


@pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user's mount follows redirects")
def test_redirect_dir_with_userxattr_is_refused_for_root_as_by_the_kernel() -> None:
    assert "userxattr" in str(refused("lowerdir=/low", "userxattr,redirect_dir=on"))
