"""What do the verbs about images and containers do, and what do they print?"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import unmount_all, why_no_mounts
from tests.contract.subjects import in_child
from tests.images.builders import WHITEOUT, Entry, docker_save_many, layer, oci_archive, symlink
from tests.places import fails, run, teaching_image

BASE = layer({"etc/motd": "hello\n", "etc/passwd": "root\n", "app/run": "#!", "app/link": symlink("run"), "old": "1"})
APP = layer({"app/more": "12345", "old": WHITEOUT})
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Run]:
    """`overlayfs-demo` on a store of its own, with the images a:1 and b:1, which share a layer."""
    if problem := why_no_mounts():
        pytest.skip(problem)

    def command(*words: str | Path) -> subprocess.CompletedProcess[str]:
        return run("overlayfs-demo", words[0], "--store", tmp_path / "store", *words[1:])

    (tmp_path / "images.tar").write_bytes(docker_save_many({"a:1": [BASE, APP], "b:1": [BASE]}))
    assert command("load", tmp_path / "images.tar").returncode == 0
    yield command
    unmount_all(str(tmp_path))


def succeeds(done: subprocess.CompletedProcess[str]) -> str:
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def view(demo: Run, name: str = "c1", image: str = "a:1") -> Path:
    """A new container; where it is mounted."""
    told = succeeds(demo("create", image, "--name", name))
    assert told.split()[0] == name
    return Path(told.split()[1])


def static_busybox() -> str:
    """A program for a container that has no libraries."""
    tool = shutil.which("busybox")
    if tool is None or run("ldd", tool).returncode == 0:
        pytest.skip("needs a busybox that is linked statically")
    return tool


def test_a_container_has_a_time_machine_if_it_was_asked_for_and_keeps_it(demo: Run) -> None:
    assert not (view(demo, "plain") / ".layers").exists()
    merged = Path(succeeds(demo("create", "a:1", "--name", "past", "--timemachine")).split()[1])
    assert (merged / ".layers/2/hidden/old").read_text() == "1"
    succeeds(demo("stop", "past"))
    succeeds(demo("start", "past"))
    assert (merged / ".layers/2/hidden/old").read_text() == "1"
    assert succeeds(demo("diff", "past")) == ""


def test_a_layer_is_named_by_the_line_that_made_it(demo: Run, tmp_path: Path) -> None:
    assert demo("load", teaching_image(tmp_path / "teaching.tar")).returncode == 0
    merged = view(demo, image="overlayfs-demo/teaching:1.0")
    told = succeeds(run("overlayfs-demo", "which", merged / "etc/motd"))
    assert re.search(r"layer 1 \(ADD file:[0-9a-f]{12} in /\) +a file, 29B +visible\n", told)


# --- images ---------------------------------------------------------------------------------------


def test_load_says_what_was_there_already(demo: Run, tmp_path: Path) -> None:
    assert succeeds(demo("load", tmp_path / "images.tar")) == (
        "Already stored: 2 of 2 layers (22B)\nLoaded image: a:1\n"
        "Already stored: 1 of 1 layer (17B)\nLoaded image: b:1\n"
    )


def test_images_and_history_are_tables_or_json(demo: Run) -> None:
    table = succeeds(demo("images")).splitlines()
    assert table[0].split() == ["REPOSITORY", "TAG", "IMAGE", "ID", "CREATED", "SIZE"]
    assert [line.split()[0] for line in table[1:]] in (["a", "b"], ["b", "a"])
    rows = [json.loads(line) for line in succeeds(demo("images", "--json")).splitlines()]
    assert {row["Repository"] for row in rows} == {"a", "b"}
    assert len(succeeds(demo("images", "--quiet")).split()) == 2
    assert succeeds(demo("history", "a:1")).startswith("IMAGE ")
    assert "DIFF ID" in succeeds(demo("history", "--layers", "a:1"))
    assert all(json.loads(line) for line in succeeds(demo("history", "--json", "a:1")).splitlines())


def test_inspect_prints_a_list(demo: Run) -> None:
    first, second = json.loads(succeeds(demo("inspect", "a:1", "b:1")))
    assert (first["RepoTags"], second["RepoTags"]) == (["a:1"], ["b:1"])
    assert first["RootFS"]["Layers"][0] == second["RootFS"]["Layers"][0]


def test_layers_says_who_uses_each(demo: Run) -> None:
    rows = [json.loads(line) for line in succeeds(demo("layers", "--json")).splitlines()]
    assert [(row["Size"], row["Images"]) for row in rows] in (
        [(17, ["a:1", "b:1"]), (5, ["a:1"])],
        [(17, ["b:1", "a:1"]), (5, ["a:1"])],
    )
    assert succeeds(demo("layers")).splitlines()[0].split() == ["CHAIN", "ID", "DIFF", "ID", "SIZE", "USED", "BY"]


def test_df_explains_why_sizes_do_not_add_up(demo: Run) -> None:
    *rows, total = [json.loads(line) for line in succeeds(demo("df", "--json")).splitlines()]
    assert {(row["Image"], row["Size"], row["SharedSize"], row["UniqueSize"]) for row in rows} == {
        ("a:1", 22, 17, 5),
        ("b:1", 17, 17, 0),
    }
    assert total == {"Listed": 39, "Stored": 22, "Unused": 0}
    assert "add up to 39B, but only 22B is stored" in succeeds(demo("df"))


def test_df_does_not_compare_sizes_that_look_the_same(demo: Run, tmp_path: Path) -> None:
    (tmp_path / "large.tar").write_bytes(docker_save_many({"c:1": [layer({"large": bytes(5_000_000)})]}))
    succeeds(demo("load", tmp_path / "large.tar"))
    assert "5MB" in succeeds(demo("df")) and "add up" not in succeeds(demo("df"))


def test_an_unknown_image_is_one_line(demo: Run) -> None:
    for verb in ("history", "rmi"):
        fails(demo(verb, "nothing"), "no image nothing:latest", "overlayfs-demo images")
    fails(demo("create", "nothing"), "no image nothing:latest", "overlayfs-demo pull nothing")


def test_stdin_is_an_archive(demo: Run, tmp_path: Path) -> None:
    (tmp_path / "oci.tar").write_bytes(oci_archive([APP]))
    done = run("sh", "-c", f"overlayfs-demo load --store {tmp_path}/store < {tmp_path}/oci.tar")
    assert "Loaded image" in succeeds(done)


# --- containers -----------------------------------------------------------------------------------


def test_a_container_shows_the_image_and_keeps_its_changes(demo: Run) -> None:
    c1 = view(demo)
    assert sorted(os.listdir(c1)) == ["app", "etc"]
    (c1 / "etc/motd").write_text("changed\n")
    assert succeeds(demo("stop", "c1")) == "c1\n"
    assert os.listdir(c1) == []
    assert succeeds(demo("start", "c1")) == "c1\n"
    assert (c1 / "etc/motd").read_text() == "changed\n"


def test_containers_of_one_image_do_not_see_each_other(demo: Run) -> None:
    c1, c2 = view(demo, "c1"), view(demo, "c2")
    (c1 / "etc/motd").write_text("mine")
    (c1 / "app/run").unlink()
    assert (c2 / "etc/motd").read_text() == "hello\n"
    assert (c2 / "app/run").exists()


def test_diff_prints_dockers_letters(demo: Run) -> None:
    c1 = view(demo)
    (c1 / "etc/new").touch()
    (c1 / "etc/passwd").chmod(0o600)
    (c1 / "etc/motd").open("a").close()  # Copied up, so the layer of a commit has it.
    (c1 / "d").mkdir()
    (c1 / "app").rename(c1 / "app2")
    assert succeeds(demo("diff", "c1")).splitlines() == [
        "A /app2",
        "A /app2/link",
        "A /app2/more",
        "A /app2/run",
        "A /d",
        "C /etc",
        "C /etc/motd",
        "A /etc/new",
        "C /etc/passwd",
        "D /app",
    ]
    assert json.loads(succeeds(demo("diff", "--json", "c1")).splitlines()[0]) == {"Kind": "A", "Path": "/app2"}


def test_diff_of_a_file_that_is_now_a_directory_and_the_other_way_round(demo: Run) -> None:
    c1 = view(demo)
    run("rm", "-r", c1 / "app", c1 / "etc/motd")
    (c1 / "app").write_text("file")
    (c1 / "etc/motd").mkdir()
    (c1 / "etc/motd/x").touch()
    assert succeeds(demo("diff", "c1")).splitlines() == ["C /app", "C /etc", "C /etc/motd", "A /etc/motd/x"]


def test_diff_of_a_directory_that_was_renamed_over_another(demo: Run) -> None:
    """What it brings along is in no upper, but differs from what was there."""
    c1 = view(demo)
    (c1 / "app").rename(c1 / "x")
    (c1 / "etc").rename(c1 / "app")
    (c1 / "x").rename(c1 / "etc")
    assert succeeds(demo("diff", "c1")).splitlines() == [
        "C /app",
        "A /app/motd",
        "A /app/passwd",
        "D /app/link",
        "D /app/more",
        "D /app/run",
        "C /etc",
        "A /etc/link",
        "A /etc/more",
        "A /etc/run",
        "D /etc/motd",
        "D /etc/passwd",
    ]


def test_diff_of_a_file_that_a_renamed_directory_brought(demo: Run) -> None:
    c1 = view(demo)
    (c1 / "etc/run").write_text("another")
    demo("commit", "c1", "c:1")
    c2 = view(demo, "c2", "c:1")
    shutil.rmtree(c2 / "app")
    (c2 / "etc").rename(c2 / "app")
    told = succeeds(demo("diff", "c2")).splitlines()
    assert told == ["C /app", "A /app/motd", "A /app/passwd", "C /app/run", "D /app/link", "D /app/more", "D /etc"]


def test_an_edit_of_the_same_size_and_second_is_in_the_diff(demo: Run) -> None:
    c1 = view(demo)
    before = (c1 / "etc/motd").stat()
    (c1 / "etc/motd").write_text("HELLO\n")
    os.utime(c1 / "etc/motd", ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert succeeds(demo("diff", "c1")) == "C /etc\nC /etc/motd\n"


def test_an_unchanged_container_has_no_diff(demo: Run) -> None:
    view(demo)
    assert succeeds(demo("diff", "c1")) == ""


def test_a_tree_that_is_too_deep_is_one_line(demo: Run, tmp_path: Path) -> None:
    c1 = view(demo)

    def make() -> None:
        os.chdir(c1)
        for _ in range(1500):
            os.mkdir("d")
            os.chdir("d")

    in_child(make)
    try:
        for verb in (("diff", "c1"), ("commit", "c1", "deep:1")):
            fails(demo(*verb), "nested too deeply")
        assert os.listdir(tmp_path / "store/tmp") == []
    finally:
        # Too deep for Python's own removal, which pytest would try.
        run("rm", "-rf", c1 / "d")
    assert succeeds(demo("diff", "c1")) == ""


def test_ps_tells_of_daemon_and_upper(demo: Run) -> None:
    c1 = view(demo)
    (c1 / "new").write_text("12345")
    (c1 / "etc/motd").unlink()
    row = json.loads(succeeds(demo("ps", "--json")))
    assert (row["Name"], row["Image"], row["Upper"], row["Mountpoint"]) == ("c1", "a:1", 5, str(c1))
    assert Path(f"/proc/{row['PID']}").exists() and row["Memory"] > 0
    assert "Up " in succeeds(demo("ps"))
    demo("stop", "c1")
    assert "Stopped" in succeeds(demo("ps"))


def test_a_container_may_be_mounted_elsewhere(demo: Run, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    succeeds(demo("create", "a:1", "--name", "c1", "--at", tmp_path / "here"))
    assert (tmp_path / "here/etc/motd").exists()


def mount_words(mountpoint: Path) -> set[str]:
    """How it is mounted: the words of mount(8) that findmnt(8) shows."""
    return set(run("findmnt", "-n", "-o", "VFS-OPTIONS", mountpoint).stdout.strip().split(","))


@pytest.fixture
def here(demo: Run, tmp_path: Path) -> Path:
    """A mount point outside the store, for an image p:1 with a set-id program and a device that is always empty."""
    powerful = layer({"su": Entry(mode=0o4755), "null": Entry(b"3", mode=0o666, device=(1, 3))})
    (tmp_path / "powerful.tar").write_bytes(docker_save_many({"p:1": [powerful]}))
    succeeds(demo("load", "--quiet", tmp_path / "powerful.tar"))
    (tmp_path / "here").mkdir()
    return tmp_path / "here"


def test_a_container_elsewhere_gives_no_rights_also_when_it_is_started_again(demo: Run, here: Path) -> None:
    succeeds(demo("create", "p:1", "--name", "c1", "--at", here))
    for _ in range(2):
        assert {"nosuid", "nodev"} <= mount_words(here)
        with pytest.raises(PermissionError):
            (here / "null").read_bytes()
        succeeds(demo("stop", "c1"))
        succeeds(demo("start", "c1"))


def test_a_container_elsewhere_has_set_id_programs_and_devices_if_asked_for(demo: Run, here: Path) -> None:
    succeeds(demo("create", "p:1", "--name", "c1", "--at", here, "-o", "suid", "-o", "dev,noatime"))
    for _ in range(2):
        assert not {"nosuid", "nodev"} & mount_words(here) and "noatime" in mount_words(here)
        assert (here / "null").read_bytes() == b""
        succeeds(demo("stop", "c1"))
        succeeds(demo("start", "c1"))


def test_a_container_in_the_store_is_mounted_as_any_view_unless_asked_otherwise(demo: Run) -> None:
    assert not {"nosuid", "nodev"} & mount_words(view(demo))
    told = succeeds(demo("create", "a:1", "--name", "c2", "-o", "ro,nosuid"))
    assert {"ro", "nosuid"} <= mount_words(Path(told.split()[1]))


def test_a_container_of_a_store_under_another_name_is_still_in_the_store(demo: Run, tmp_path: Path) -> None:
    merged = view(demo)
    succeeds(demo("stop", "c1"))
    (tmp_path / "alias").symlink_to("store")
    succeeds(run("overlayfs-demo", "start", "--store", tmp_path / "alias", "c1"))
    assert not {"nosuid", "nodev"} & mount_words(merged)


def test_a_container_elsewhere_that_says_nothing_of_options_gives_no_rights(
    demo: Run, here: Path, tmp_path: Path
) -> None:
    succeeds(demo("create", "p:1", "--name", "c1", "--at", here, "-o", "suid,dev"))
    succeeds(demo("stop", "c1"))
    record = tmp_path / "store/containers/c1/container.json"
    fields = json.loads(record.read_text())
    fields["options"] = ""
    record.write_text(json.dumps(fields))
    succeeds(demo("start", "c1"))
    assert {"nosuid", "nodev"} <= mount_words(here)


def test_an_option_of_a_container_that_is_no_word_of_mount_is_named(demo: Run, here: Path) -> None:
    for word in ("lowerdir=/", "sparkle"):
        done = demo("create", "p:1", "--name", "c1", "--at", here, "-o", f"suid,{word}")
        fails(done, f"mount option '{word}'", status=2)
    assert succeeds(demo("ps", "--json")) == ""


def test_create_that_cannot_mount_leaves_no_container(demo: Run, tmp_path: Path) -> None:
    fails(demo("create", "a:1", "--name", "c1", "--at", tmp_path / "nowhere"), "nowhere", "does not exist")
    assert succeeds(demo("ps", "--json")) == ""
    view(demo)


def test_wrong_uses_of_containers_are_one_line(demo: Run) -> None:
    view(demo)
    fails(demo("create", "a:1", "--name", "c1"), "already")
    fails(demo("create", "a:1", "--name", "../c"), "not a valid container name")
    fails(demo("create", "a:1", "--name", "c"), "'c' is too short for a container's name", "two characters")
    fails(demo("stop", "c11"), "no container 'c11': did you mean 'c1'?")
    fails(demo("start", "c1"), "already mounted")
    fails(demo("rm", "c1"), "is mounted", "--force")
    fails(demo("rmi", "a:1"), "used by container c1")
    for verb in ("stop", "start", "rm", "diff", "shell"):
        fails(demo(verb, "c9"), "no container 'c9'")
    succeeds(demo("stop", "c1"))
    fails(demo("stop", "c1"), "not mounted")
    fails(demo("shell", "c1"), "not mounted")


def test_what_fails_for_one_name_is_told_and_the_others_follow(demo: Run) -> None:
    view(demo)
    view(demo, "c2", "b:1")
    for verb in ("stop", "start", "stop", "rm"):
        done = demo(verb, "c9", "c1", "c8", "c2")
        assert (done.returncode, done.stdout) == (1, "c1\nc2\n"), verb
        assert done.stderr.count("no container") == 2
    done = demo("rmi", "nope", "b:1", "a:1")
    assert done.returncode == 1
    assert "no image nope:latest" in done.stderr
    assert "Untagged: b:1" in done.stdout
    assert "Untagged: a:1" in done.stdout


def test_rm_takes_the_upper_along(demo: Run, tmp_path: Path) -> None:
    c1 = view(demo)
    (c1 / "new").touch()
    assert succeeds(demo("rm", "--force", "c1")) == "c1\n"
    assert os.listdir(tmp_path / "store/containers") == []
    assert succeeds(demo("rmi", "a:1")).startswith("Untagged: a:1\nDeleted: sha256:")


def test_shell_has_the_container_as_its_root(demo: Run) -> None:
    tool = static_busybox()
    c1 = view(demo)
    for name in ("busybox", "sh"):
        shutil.copy(tool, c1 / name)
    done = demo("shell", "c1", "/sh", "-c", "/busybox cat /etc/motd; /busybox echo in > /etc/here")
    assert succeeds(done) == "hello\n"
    assert (c1 / "etc/here").read_text() == "in\n"
    fails(demo("shell", "c1", "/bin/nothing"), "cannot run /bin/nothing", status=127)


def test_shell_gives_no_rights_where_the_view_does_not(demo: Run, here: Path) -> None:
    tool = static_busybox()
    for name, options, status in (("c1", "", 1), ("c2", "suid,dev", 0)):
        succeeds(demo("create", "p:1", "--name", name, "--at", here, "-o", options))
        shutil.copy(tool, here / "busybox")
        assert demo("shell", name, "/busybox", "cat", "/null").returncode == status
        succeeds(demo("stop", name))
