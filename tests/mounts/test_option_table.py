"""Is every mount option described, read and written, all from the one table?"""

from __future__ import annotations

import os
import random
import re
import secrets

import pytest

from overlayfs_demo.cli import main, manpage
from overlayfs_demo.errors import UsageError
from overlayfs_demo.linux.mount_flags import FLAG_WORDS
from overlayfs_demo.mounts.option_kinds import MountOption
from overlayfs_demo.mounts.option_paths import escape_path, lowerdir_option
from overlayfs_demo.mounts.option_table import OPTIONS
from overlayfs_demo.mounts.options import MountOptions, option_line, parse, remount_flags

ROUNDS = 20


def help_of_options(capsys: pytest.CaptureFixture[str]) -> str:
    """The part of `mount --help` about options."""
    with pytest.raises(SystemExit):
        main.parser_for(["mount"]).parse_args(["mount", "--help"])
    text = capsys.readouterr().out
    return text.partition("\noptions (-o")[2].partition("\nexample:")[0].partition("\n")[2]


def described(text: str) -> list[str]:
    """The options in the first columns of such a text, in their order."""
    lines = [line for line in text.splitlines() if re.match(r"  \S", line)]
    headings = [re.split(r" {2,}|(?<=[^,]) (?=\S)", line.strip())[0] for line in lines]
    return [usage for heading in headings for usage in heading.rstrip(",").split(", ")]


def random_path(chooser: random.Random) -> bytes:
    return b"/" + bytes(chooser.choice(b"ab:,\\= \xff\n") for _ in range(chooser.randrange(1, 8)))


def random_ranges(chooser: random.Random) -> str:
    """A mapping of up to three ranges that do not overlap."""
    pieces = []
    for start in range(chooser.randrange(1, 4)):
        length = chooser.randrange(1, 1000)
        pieces += [start * 1000, (9 - start) * 1000, length]
    return ":".join(map(str, pieces))


def random_value(chooser: random.Random, shape: str) -> str:
    """A value that fits what the usage has behind `=`."""
    path = escape_path(random_path(chooser))
    values = {
        "": path,
        "PATH": path,
        "DIR": path,
        "TOP:...:BOTTOM": lowerdir_option([random_path(chooser) for _ in range(3)]).partition("=")[2],
        "...::DATA": f"/low::{path}::{escape_path(random_path(chooser))}",
        "SIZE": chooser.choice([str(chooser.randrange(2**50)), "0", "1.5k", "10M"]),
        "SECONDS": chooser.choice(["0", "1.5", f"{chooser.random() * 10 ** chooser.randrange(-5, 6):.20f}"]),
        "DISK:VIEW:LENGTH[:DISK:VIEW:LENGTH...]": random_ranges(chooser),
        "ID": str(chooser.randrange(2**32 - 1)),
        "N": str(chooser.randrange(-1, 100)),
        "NAME": path,
        "TEXT": path,
    }
    return values[shape] if shape in values else chooser.choice(shape.split("|"))


def random_word(chooser: random.Random, option: MountOption) -> str:
    """The option as somebody may type it."""
    name, equals, shape = option.usage.partition("=")
    if name == "uidmapping":  # Its shape stands with gidmapping, in the same entry.
        shape = "DISK:VIEW:LENGTH[:DISK:VIEW:LENGTH...]"
    return name.replace("*", "mine") + equals + (random_value(chooser, shape) if equals else "")


def line_with(chooser: random.Random, option: MountOption) -> str:
    """A whole line in which the option is, and what it needs."""
    word = random_word(chooser, option)
    partner = {"upperdir": "workdir=/w", "workdir": "upperdir=/u", "datadir+": "lowerdir+=/low"}.get(option.name, "")
    base = "" if option.name in ("lowerdir", "lowerdir+", "datadir+") else "lowerdir=/low"
    return ",".join(filter(None, [base, partner, word]))


def reads(line: str, seed: int) -> MountOptions:
    try:
        return parse([line])
    except UsageError as error:
        pytest.fail(f"seed {seed}, {line!r}: {error}")


# `remount` is no option of a mount, but the word by which there is none.
TAKEN = [option for option in OPTIONS if option.name != "remount"]


# --- the help --------------------------------------------------------------------------------------


def test_the_help_lists_every_option_in_the_order_of_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert described(help_of_options(capsys)) == [option.usage for option in OPTIONS]


def test_the_manual_page_lists_every_option() -> None:
    page = manpage.manual(main.parser_for([]))
    page = page.partition(".SS mount")[2].partition(".SS umount")[0]
    for option in OPTIONS:
        assert re.search(rf"(^|[ ,]){re.escape(manpage._text(option.usage))}($|[ ,])", page, re.MULTILINE), option.usage


def test_no_line_of_the_help_is_longer_than_the_others_may_be(capsys: pytest.CaptureFixture[str]) -> None:
    assert max(map(len, help_of_options(capsys).splitlines())) <= 92


@pytest.mark.parametrize("option", TAKEN, ids=lambda option: str(option.usage))
def test_what_the_help_lists_is_accepted(option: MountOption) -> None:
    seed = secrets.randbits(32)
    reads(line_with(random.Random(seed), option), seed)


def test_no_option_is_accepted_that_the_help_does_not_list() -> None:
    """Words of the kernel, of mount(8) and of other overlays that nobody has described are refused."""
    listed = {option.name for option in OPTIONS}
    others = "override_creds check_copy_up mand nomand silent loud bind move fast_ino noacl auto_unmount"
    for word in others.split():
        assert word not in listed
        with pytest.raises(UsageError):
            parse(["lowerdir=/low", word])


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("noacl", "access control lists"),
        ('context="system_u:object_r:container_file_t:s0:c1,c2"', "SELinux"),
        ("allow_root", "allow_other"),
        ("auto_unmount", "supervisor"),
        ("plugins=/lib/x.so", "fuse-overlayfs"),
        ("xattr_permissions=2", "force_mask"),
        ("fsync=0", "volatile"),
        ("max_idle_threads=many", "max_idle_threads=N"),
        ("static_nlink=1", "static_nlink"),
        ("threaded", "threaded=0|1"),
    ],
)
def test_an_option_of_fuse_overlayfs_is_refused_with_a_reason(word: str, reason: str) -> None:
    with pytest.raises(UsageError, match=re.escape(word.partition("=")[0])) as refused:
        parse(["lowerdir=/low", word])
    assert reason in str(refused.value)


def test_the_mappings_of_containers_storage_begin_with_a_colon() -> None:
    theirs = "lowerdir=/low,uidmapping=:0:100000:1:1:200000:65536,gidmapping=:0:100000:65536"
    assert parse([theirs]) == parse([theirs.replace("=:", "=")])
    with pytest.raises(UsageError, match="uidmapping"):
        parse(["lowerdir=/low,uidmapping=::0:100000:1"])


def test_remount_is_for_what_is_mounted() -> None:
    assert remount_flags(["remount,ro"], 0) == 1
    with pytest.raises(UsageError, match="unknown mount option 'remount'"):
        parse(["lowerdir=/low", "remount"])


def test_only_an_option_with_two_forms_is_in_the_table_twice() -> None:
    names = [option.name for option in OPTIONS]
    assert {name for name in names if names.count(name) > 1} == {"lowerdir"}
    assert set(names) >= FLAG_WORDS


# --- there and back --------------------------------------------------------------------------------


@pytest.mark.parametrize("option", TAKEN, ids=lambda option: str(option.usage))
def test_a_line_made_of_what_was_read_means_the_same(option: MountOption) -> None:
    seed = secrets.randbits(32)
    chooser = random.Random(seed)
    for _ in range(ROUNDS):
        line = line_with(chooser, option)
        options = reads(line, seed)
        written = option_line(options)
        assert reads(written, seed) == options, f"seed {seed}, {line!r} became {written!r}"
        assert option_line(parse([written])) == written, f"seed {seed}, {line!r}"


def test_many_options_together_mean_the_same() -> None:
    seed = secrets.randbits(32)
    chooser = random.Random(seed)
    alone = [option for option in TAKEN if option.name not in ("lowerdir", "lowerdir+", "datadir+")]
    for _ in range(200):
        words = [random_word(chooser, option) for option in chooser.sample(alone, chooser.randrange(1, 12))]
        line = ",".join(["lowerdir=/a:/b::/c", "upperdir=/u", "workdir=/w", *words])
        if os.geteuid() == 0 and "userxattr" in words:  # which root may not have together with redirect_dir
            line = re.sub(r",redirect_dir=\w+", "", line)
        options = reads(line, seed)
        assert reads(option_line(options), seed) == options, f"seed {seed}, {line!r}"
