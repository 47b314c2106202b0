"""Is the output directory all of an image or none of it, and can it be built again?"""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from overlayfs_demo.analysis.special_files import powers
from overlayfs_demo.cli.build_layers import main
from overlayfs_demo.errors import ImageError
from overlayfs_demo.images import build
from overlayfs_demo.images.build import build_layers
from overlayfs_demo.mounts.option_paths import lowerdir_option
from tests.images.builders import (
    OPAQUE,
    WHITEOUT,
    Blobs,
    Entry,
    directory,
    docker_save,
    kernel_mount,
    layer,
    lowerdir,
    needs_root,
    snapshot,
)
from tests.places import ROOT

LAYERS = [layer({"a": "1", "d/x": "2"}), layer({"a": WHITEOUT}), layer({"d/y": "3"})]
Captured = pytest.CaptureFixture[str]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.tar"
    path.write_bytes(docker_save(LAYERS))
    return path


def current_umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


def inodes(out: Path) -> dict[str, int]:
    return {str(path): path.lstat().st_ino for path in out.rglob("[!.]*")}


def test_second_run_takes_up_what_is_there(image: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = build_layers(image, out)
    before = inodes(out)
    second = build_layers(image, out)
    assert inodes(out) == before
    assert [one.directory for one in first] == [one.directory for one in second]
    assert [one.size for one in first] == [one.size for one in second] == [2, 0, 1]
    assert [one.fresh for one in second] == [False, False, False]


def test_missing_layers_are_built_on_those_that_stand(image: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = build_layers(image, out)
    subprocess.run(["rm", "-r", first[1].directory], check=True)
    assert [one.fresh for one in build_layers(image, out)] == [False, True, False]


def test_images_on_one_base_share_its_directories(image: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    build_layers(image, out)
    image.write_bytes(docker_save([LAYERS[0], LAYERS[2]]))
    assert [one.fresh for one in build_layers(image, out)] == [False, True]


def test_same_layer_on_other_layers_is_not_taken_up(image: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    build_layers(image, out)
    image.write_bytes(docker_save([layer({"other": "1"}), *LAYERS[1:]]))
    with pytest.raises(ImageError, match=r"02-\w{12} is in the way"):
        build_layers(image, out)


def test_what_is_in_the_way_is_named_and_left_alone(image: Path, tmp_path: Path) -> None:
    names = [one.directory.name for one in build_layers(image, tmp_path / "names")]
    out = tmp_path / "out"
    (out / names[1]).mkdir(parents=True)
    (out / names[1] / "mine").touch()
    with pytest.raises(ImageError, match=f"{names[1]} is in the way"):
        build_layers(image, out)
    assert [str(path.relative_to(out)) for path in out.rglob("*")] == [names[1], f"{names[1]}/mine"]


def test_output_directory_that_is_a_file_is_an_error(image: Path, tmp_path: Path, capsys: Captured) -> None:
    (tmp_path / "file").touch()
    assert main([str(image), str(tmp_path / "file" / "out")]) == 1
    assert main([str(image), str(tmp_path / "file")]) == 2  # The arguments may be in the wrong order.
    assert capsys.readouterr().err.count("\n") == 2


def test_two_runs_at_once_are_refused(image: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with build._output(out), pytest.raises(ImageError, match="in use by another run"):
        build_layers(image, out)


def test_unfinished_work_of_a_killed_run_is_removed(image: Path, tmp_path: Path) -> None:
    stale = tmp_path / "out" / ".building-01-abc" / "deep"
    stale.mkdir(parents=True)
    stale.chmod(0)
    (tmp_path / "out" / ".building-record").touch()
    build_layers(image, tmp_path / "out")
    assert not [name for name in os.listdir(tmp_path / "out") if name.startswith(".building")]


@pytest.mark.parametrize("position", [0, 1, 2])
def test_failed_publishing_is_undone(
    image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, position: int
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    real, calls = os.rename, []

    def rename(*args: object, **kwargs: object) -> None:
        calls.append(args)
        if len(calls) == position + 2:
            raise OSError(28, "No space left on device")
        real(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(OSError, match="No space"):
        build_layers(image, out)
    assert os.listdir(out) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_leaves_nothing_behind(tmp_path: Path, number: signal.Signals) -> None:
    # Unpacking waits for a word that never comes, so the run is surely busy when the signal comes.
    program = (
        "import os, signal, sys\n"
        "from overlayfs_demo.cli import build_layers\n"
        "from overlayfs_demo.images import extract\n"
        "real = extract.unpack_layer\n"
        "def slow(*args):\n"
        "    done = real(*args)\n"
        "    print('busy', flush=True)\n"
        "    sys.stdin.read()\n"
        "    return done\n"
        "extract.unpack_layer = slow\n"
        "sys.exit(build_layers.main(sys.argv[1:]))\n"
    )
    (tmp_path / "image.tar").write_bytes(docker_save(LAYERS))
    run = subprocess.Popen(
        [sys.executable, "-c", program, tmp_path / "image.tar", tmp_path / "out"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert run.stdout is not None
    assert run.stdout.readline() == "busy\n"
    run.send_signal(number)
    _, errors = run.communicate(timeout=30)
    assert run.returncode == 128 + number
    assert "Traceback" not in errors
    assert os.listdir(tmp_path) == ["image.tar"]


@needs_root
def test_lowerdir_line_mounts_whatever_the_directory_is_called(tmp_path: Path, capsys: Captured) -> None:
    out = tmp_path / "a:b,c\\d e"
    (tmp_path / "image.tar").write_bytes(docker_save(LAYERS))
    assert main([str(tmp_path / "image.tar"), str(out)]) == 0
    option = os.fsencode(capsys.readouterr().out.splitlines()[-1])
    with kernel_mount(option, tmp_path / "view") as view:
        assert list(snapshot(view)) == ["d", "d/x", "d/y"]


def test_lowerdir_option_escapes_what_separates() -> None:
    assert lowerdir_option([b"/a:b", b"/c,d", b"/e\\f"]) == "lowerdir=/a\\:b:/c\\,d:/e\\\\f"


def test_command_prints_a_line_for_each_layer(image: Path, tmp_path: Path, capsys: Captured) -> None:
    assert main([str(image), str(tmp_path / "out")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert [line.split()[0] for line in lines[:3]] == ["1", "2", "3"]
    assert lines[1].endswith("0B  RUN make layer 2")
    assert lines[3] == os.fsdecode(lowerdir([tmp_path / "out" / line.split()[1] for line in lines[:3]]))


def test_second_run_says_so_and_prints_the_same_line(image: Path, tmp_path: Path, capsys: Captured) -> None:
    main([str(image), str(tmp_path / "out")])
    first = capsys.readouterr().out.splitlines()
    assert main([str(image), str(tmp_path / "out")]) == 0
    second = capsys.readouterr().out.splitlines()
    assert second == [f"{line}  (already built)" for line in first[:-1]] + first[-1:]


def test_history_cannot_write_to_the_terminal(tmp_path: Path, capsys: Captured) -> None:
    blobs = Blobs()
    entry = blobs.image(LAYERS[:1], history=[{"created_by": "\x1b[2J\nhello\ud800"}])
    (tmp_path / "image.tar").write_bytes(blobs.layout([entry]))
    assert main([str(tmp_path / "image.tar"), str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.splitlines()[0].endswith("2B  \\x1b[2J hello\ufffd")


@pytest.mark.parametrize("argv", [[], ["one"], ["--nonsense", "a", "b"]])
def test_wrong_usage_is_status_2(argv: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 2


# --- who may reach what is built -------------------------------------------------------------------

POWERFUL = {
    "bin/su": Entry(mode=0o4755),
    "bin/wall": Entry(mode=0o2755),
    "null": Entry(b"3", mode=0o666, device=(1, 3)),
    "bin/ping": Entry(mode=0o755, pax={"SCHILY.xattr.security.capability": "\x01\0\0\x02" + "\0" * 16}),
}
HARMLESS = {"bin/ls": Entry(mode=0o755), "locked": Entry(mode=0o2644), "d": directory(0o2775), "old": WHITEOUT}


@pytest.fixture
def powerful(tmp_path: Path) -> Path:
    """An image whose upper layer has only what gives no rights to anybody."""
    path = tmp_path / "powerful.tar"
    path.write_bytes(docker_save([layer({**POWERFUL, "old": "1"}), layer(HARMLESS)]))
    return path


def permissions(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_output_directory_that_is_made_is_private_and_says_why(image: Path, tmp_path: Path, capsys: Captured) -> None:
    assert main([str(image), str(tmp_path / "new" / "out")]) == 0
    assert permissions(tmp_path / "new" / "out") == 0o700
    assert permissions(tmp_path / "new") == 0o777 & ~current_umask()
    told = capsys.readouterr().err
    assert "is private (0700); --mode 0755 or chmod opens it" in told
    assert told.count("\n") == 1, "there is nothing else to be said of a harmless image"


@needs_root
def test_private_directory_names_what_gives_rights(powerful: Path, tmp_path: Path, capsys: Captured) -> None:
    assert main([str(powerful), str(tmp_path / "out")]) == 0
    told = capsys.readouterr().err
    assert "once open, its set-id programs and devices work for anyone:\n" in told
    assert re.search(r"note: \S+/bin/ping and 3 more\n", told)


def test_line_to_mount_has_the_option_that_the_layers_need(
    image: Path, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["--userxattr", str(image), str(tmp_path / "user")]) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith(",userxattr")
    assert main([str(image), str(tmp_path / "own")]) == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines()[-1].endswith(",userxattr") == (os.geteuid() != 0)
    assert "userxattr" not in printed.err


def test_every_platform_is_more_than_one_directory_takes(image: Path, tmp_path: Path, capsys: Captured) -> None:
    assert main(["--platform", "all", str(image), str(tmp_path / "out")]) == 2
    assert "choose one, such as linux/" in capsys.readouterr().err


@pytest.mark.parametrize("there", [True, False])
def test_mode_opens_the_output_directory_whatever_the_umask(
    powerful: Path, tmp_path: Path, capsys: Captured, there: bool
) -> None:
    if there:
        (tmp_path / "out").mkdir(0o700)
    before = os.umask(0o077)
    try:
        assert main(["--mode", "0755", str(powerful), str(tmp_path / "out")]) == 0
    finally:
        os.umask(before)
    assert permissions(tmp_path / "out") == 0o755
    told = capsys.readouterr().err
    assert "private" not in told and "other users" not in told


def test_mode_that_is_none_is_wrong_usage(image: Path, tmp_path: Path, capsys: Captured) -> None:
    for word in ("rwx", "0888", "4755", "-1"):
        with pytest.raises(SystemExit) as caught:
            main([f"--mode={word}", str(image), str(tmp_path / "out")])
        assert caught.value.code == 2
        assert "octal" in capsys.readouterr().err


def test_failed_build_leaves_the_output_directory_closed(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir(0o700)
    (tmp_path / "image.tar").write_bytes(docker_save([layer({".wh.": ""})]))
    with pytest.raises(ImageError):
        build_layers(tmp_path / "image.tar", tmp_path / "out", mode=0o755)
    assert permissions(tmp_path / "out") == 0o700


@needs_root
def test_what_gives_rights_is_found_among_the_files_of_layers(powerful: Path, tmp_path: Path) -> None:
    below, above = (one.directory for one in build_layers(powerful, tmp_path / "out"))
    assert powers([below]) == [below / name for name in sorted(POWERFUL)]
    assert powers([above]) == []


@needs_root
def test_open_output_directory_with_set_id_files_is_warned_of(
    powerful: Path, image: Path, tmp_path: Path, capsys: Captured
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for mode, archive, warned in ((0o755, powerful, True), (0o710, powerful, True), (0o700, powerful, False)):
        out.chmod(mode)
        assert main([str(archive), str(out)]) == 0
        told = capsys.readouterr().err
        assert permissions(out) == mode
        assert ("bin/ping and 3 more" in told and f"chmod 0700 {out}" in told) == warned
        assert bool(told) == warned
    (tmp_path / "harmless").mkdir(0o755)
    assert main([str(image), str(tmp_path / "harmless")]) == 0
    assert capsys.readouterr().err == ""


# --- errors ----------------------------------------------------------------------------------------


def test_failure_is_status_1_and_one_line(tmp_path: Path, capsys: Captured) -> None:
    assert main([str(tmp_path / "no\nwhere.tar"), str(tmp_path / "out")]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("build-layers: ")
    assert printed.err.count("\n") == 1


def test_record_that_is_damaged_is_named(image: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    build_layers(image, out)
    for damage in ("", "[]", '{"layers": [{}]}'):
        (out / ".layers.json").write_text(damage)
        with pytest.raises(ImageError, match=r"\.layers\.json"):
            build_layers(image, out)


@needs_root
def test_layers_for_another_kind_of_mount_are_not_taken_up(image: Path, tmp_path: Path) -> None:
    build_layers(image, tmp_path / "out")
    with pytest.raises(ImageError, match="a different kind of mount"):
        build_layers(image, tmp_path / "out", userxattr=True)


@needs_root
def test_userxattr_marks_opaque_directories_with_user_attributes(tmp_path: Path) -> None:
    (tmp_path / "image.tar").write_bytes(docker_save([layer({"d/x": "1"}), layer({"d": OPAQUE})]))
    top = build_layers(tmp_path / "image.tar", tmp_path / "out", userxattr=True)[1].directory
    assert os.listxattr(top / "d") == ["user.overlay.opaque"]


@needs_root
def test_ordinary_user_builds_too_and_is_told_what_is_left_out() -> None:
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o777)  # pytest's own directories are closed to others
        told, record = _build_as_nobody(Path(name))
    assert "devices, which only root may create" in told
    assert "owners" not in told
    assert "security.capability" in told
    assert "userxattr" in told
    assert [row["marks"] for row in record["layers"]] == ["user.overlay.", "user.overlay."]


def _build_as_nobody(place: Path) -> tuple[str, dict[str, list[dict[str, object]]]]:
    """Build an image with what only root can unpack, in a child; what it printed, and its record."""
    members = {
        "d": directory(0o555, owner=(7, 7)),
        "d/x": "1",
        "null": Entry(b"3", device=(1, 3)),
        "cap": Entry(pax={"SCHILY.xattr.security.capability": "\x01\0\0\x02" + "\0" * 16}),
    }
    (place / "image.tar").write_bytes(docker_save([layer(members), layer({"d": OPAQUE, "cap": WHITEOUT})]))
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
        os.dup2(writer, 1)
        os.dup2(writer, 2)
        sys.stdout = os.fdopen(1, "w")
        sys.stderr = os.fdopen(2, "w")
        status = main([str(place / "image.tar"), str(place / "out")])
        sys.stderr.flush()
        os._exit(status)
    os.close(writer)
    with os.fdopen(reader) as output:
        told = output.read()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, told
    return told, json.loads((place / "out" / ".layers.json").read_text())
