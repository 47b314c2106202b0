"""Is every stack that cannot work refused, with the layer, the rule and the remedy?"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from overlayfs_demo.errors import MountError
from overlayfs_demo.linux import mounting, syscalls
from overlayfs_demo.mounts import preflight
from overlayfs_demo.mounts.preflight import Stack, checked
from overlayfs_demo.overlay.factory import open_overlay
from overlayfs_demo.overlay.types import AttrChange, Caller
from tests.builders import directories
from tests.conftest import unmount_all, why_no_mounts

Refused = Callable[[Stack], MountError]
Mount = Callable[..., Path]

MS_BIND = 0x1000


def stack(where: Path, *lowers: str, upper: str = "upper", work: str = "work") -> Stack:
    """A stack of directories below `where`, marked as this user can."""
    paths = tuple(os.fsencode(where / name) for name in lowers or ("top", "bottom"))
    user_xattrs = os.geteuid() != 0
    return Stack(paths, os.fsencode(where / upper), os.fsencode(where / work), user_xattrs=user_xattrs)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Directories that make a good stack."""
    directories(tmp_path, "top", "bottom", "upper", "work")
    return tmp_path


@pytest.fixture
def refused(tmp_path: Path) -> Refused:
    """Check the stack, which must be refused and leave no trace; the refusal."""

    def run(bad: Stack) -> MountError:
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(MountError) as caught:
            checked(bad)
        assert sorted(tmp_path.rglob("*")) == before
        assert caught.value.exit_code == 1
        return caught.value

    return run


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    """`mount("tmpfs", "name")`: a filesystem below `tmp_path`, until the test is over."""
    if problem := why_no_mounts():
        pytest.skip(problem)

    def run(kind: str, name: str, data: str = "", flags: int = 0, source: Path | str = "none") -> Path:
        if kind not in Path("/proc/filesystems").read_text():
            pytest.skip(f"needs the kernel's {kind}")
        where = tmp_path / name
        where.mkdir(exist_ok=True)
        mounting.mount(os.fsencode(source), os.fsencode(where), kind.encode(), flags, os.fsencode(data))
        return where

    try:
        yield run
    finally:
        unmount_all(str(tmp_path))


# --- what is good ----------------------------------------------------------------------------------


def test_good_stack_comes_back_with_absolute_paths(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place / "top")
    absolute = stack(place)
    relative = absolute._replace(lowers=(b".", b"../bottom"), upper=b"../upper/", work=b"../work")
    assert checked(relative) == absolute
    assert os.listdir(place / "work") == []
    assert os.listdir(place / "upper") == []


def test_stack_without_upper_is_good(place: Path) -> None:
    view = stack(place)._replace(upper=None, work=None)
    assert checked(view) == view


def test_everything_but_the_paths_stays(place: Path) -> None:
    unusual = stack(place)._replace(user_xattrs=True, image_whiteouts=False, volatile=True)
    assert checked(unusual) == unusual


def test_similar_names_do_not_overlap(place: Path) -> None:
    directories(place, "upper2", "upper/../upper-work", "upper.low")
    good = stack(place, "upper2", "upper.low", work="upper-work")
    assert checked(good) == good


def test_what_stands_in_the_work_directory_is_left_alone(place: Path) -> None:
    (place / "work/#probe").touch()
    checked(stack(place))
    assert os.listdir(place / "work") == ["#probe"]


# --- what is missing -------------------------------------------------------------------------------


def test_missing_lower_is_named_with_its_position(place: Path, refused: Refused) -> None:
    error = refused(stack(place, "top", "nowhere", "bottom"))
    assert error.problem.startswith(f"lower layer 2 of 3 (counted from the top), {place / 'nowhere'}: ")
    assert error.problem.endswith(os.strerror(errno.ENOENT))
    assert error.remedy.startswith("check the path")
    assert r"'\:'" in error.remedy


def test_lower_that_is_a_file_is_named(place: Path, refused: Refused) -> None:
    (place / "file").touch()
    error = refused(stack(place, "file"))
    assert error.problem.startswith(f"lower layer 1 of 1 (counted from the top), {place / 'file'}: ")
    assert error.problem.endswith(os.strerror(errno.ENOTDIR))


def test_lower_that_is_a_file_has_a_remedy(place: Path, refused: Refused) -> None:
    (place / "file").touch()
    assert refused(stack(place, "file")).remedy


@pytest.mark.parametrize("role", ["upper", "work"])
def test_missing_upper_or_work_is_named(place: Path, refused: Refused, role: str) -> None:
    (place / role).rmdir()
    error = refused(stack(place))
    assert error.problem == f"{role}dir, {place / role}: {os.strerror(errno.ENOENT)}"
    assert error.remedy == f"create it with 'mkdir {place / role}'"


@pytest.mark.parametrize("role", ["upper", "work"])
def test_upper_or_work_that_is_a_file_is_named(place: Path, refused: Refused, role: str) -> None:
    (place / role).rmdir()
    (place / role).touch()
    assert refused(stack(place)).problem == f"{role}dir, {place / role}: {os.strerror(errno.ENOTDIR)}"


# --- what must be apart ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("upper", "work"), [("upper", "upper/in"), ("work/in", "work"), ("upper", "upper"), ("upper", "link/in")]
)
def test_upper_and_work_must_not_contain_one_another(place: Path, refused: Refused, upper: str, work: str) -> None:
    directories(place, "upper/in", "work/in")
    (place / "link").symlink_to("upper")
    error = refused(stack(place, upper=upper, work=work))
    assert f"upperdir {place / upper} and workdir {place / work} must not contain each other" in error.problem
    assert error.remedy == "make them two directories side by side"


@pytest.mark.parametrize(
    ("role", "lower", "upper", "work"),
    [
        ("upperdir", "bottom", "bottom/in", "work"),
        ("upperdir", "upper/in", "upper", "work"),
        ("upperdir", "upper", "upper", "work"),
        ("upperdir", "link", "upper", "work"),
        ("workdir", "bottom", "upper", "bottom/in"),
        ("workdir", "work/in", "upper", "work"),
    ],
)
def test_lower_must_be_apart_from_upper_and_work(
    place: Path, refused: Refused, role: str, lower: str, upper: str, work: str
) -> None:
    directories(place, "bottom/in", "upper/in", "work/in")
    (place / "link").symlink_to("upper")
    error = refused(stack(place, "top", lower, upper=upper, work=work))
    path = place / (upper if role == "upperdir" else work)
    assert error.problem == f"{role} {path} overlaps lower layer 2, {place / lower}"
    assert error.remedy.endswith("keep them apart")


@pytest.mark.parametrize("again", ["top", "link"])
def test_lower_named_twice_is_refused(place: Path, refused: Refused, again: str) -> None:
    (place / "link").symlink_to("top")
    error = refused(stack(place, "top", "bottom", again))
    assert error.problem == f"lower layer 3, {place / again}, is the same directory as lower layer 1"
    assert error.remedy == "name each layer once in lowerdir="


@pytest.mark.parametrize(
    ("lowers", "inner", "outer"),
    [(("top", "top/in"), 2, 1), (("bottom/in", "top", "bottom"), 1, 3), (("top", "link/in/deep"), 2, 1)],
)
def test_lower_inside_another_is_refused(
    place: Path, refused: Refused, lowers: tuple[str, ...], inner: int, outer: int
) -> None:
    directories(place, "top/in/deep", "bottom/in")
    (place / "link").symlink_to("top")
    error = refused(stack(place, *lowers))
    assert error.problem == (
        f"lower layer {inner}, {place / lowers[inner - 1]}, is inside lower layer {outer}, {place / lowers[outer - 1]}"
    )
    assert error.remedy.endswith("use directories that do not contain each other")


def test_data_only_layer_must_be_apart_too(place: Path, refused: Refused) -> None:
    directories(place, "data", "top/in")
    assert checked(stack(place)._replace(data_only=(bytes(place / "data"),))).data_only
    for path, says in (("top", "is the same directory as lower layer 1"), ("top/in", "is inside lower layer 1")):
        error = refused(stack(place)._replace(data_only=(bytes(place / "data"), bytes(place / path))))
        assert error.problem.startswith(f"data-only layer 2, {place / path}, {says}")


def test_bound_directory_is_the_same_wherever_it_is_mounted(place: Path, refused: Refused, mount: Mount) -> None:
    directories(place, "top/in")
    bound = mount("", "bound", flags=MS_BIND, source=place / "top/in")
    assert f"{bound}, is inside lower layer 1" in refused(stack(place, "top", "bound")).problem
    assert f"overlaps lower layer 1, {bound}" in refused(stack(place, "bound", upper="top")).problem


# --- filesystems -----------------------------------------------------------------------------------


def test_upper_and_work_on_two_filesystems_are_refused(place: Path, refused: Refused, mount: Mount) -> None:
    other = mount("tmpfs", "other")
    error = refused(stack(place, work="other"))
    assert error.problem == f"upperdir {place / 'upper'} and workdir {other} are on different filesystems"
    assert error.remedy.endswith("put both on one")


def test_upper_and_work_on_two_mounts_of_one_filesystem_are_refused(
    place: Path, refused: Refused, mount: Mount
) -> None:
    bound = mount("", "bound", flags=MS_BIND, source=place / "work")
    assert str(bound) in refused(stack(place, work="bound")).problem


@pytest.mark.parametrize("name", ["upper", "up:per ünï", "up,per", "up\\per"])
def test_upper_that_the_kernel_has_mounted_is_refused(place: Path, refused: Refused, mount: Mount, name: str) -> None:
    directories(place, "kernel-work", "merged", *{name} - {"upper"})
    escaped = re.sub(r"([,\\])", r"\\\1", str(place / name))
    merged = mount("overlay", "merged", f"lowerdir={place}/top,upperdir={escaped},workdir={place}/kernel-work")
    error = refused(stack(place, upper=name))
    assert error.problem == f"upperdir {place / name} is in use by the kernel's overlayfs on {merged}"
    assert error.remedy == "unmount that first"


def test_other_mounts_of_the_kernel_do_not_matter(place: Path, mount: Mount) -> None:
    directories(place, "kernel-upper", "kernel-work", "merged")
    mount("overlay", "merged", f"lowerdir={place}/top,upperdir={place}/kernel-upper,workdir={place}/kernel-work")
    assert checked(stack(place)) == stack(place)


def test_read_only_filesystem_is_refused(place: Path, refused: Refused, mount: Mount) -> None:
    where = mount("tmpfs", "other")
    directories(where, "upper", "work")
    mount("tmpfs", "other", flags=mounting.MS_REMOUNT | mounting.MS_RDONLY)
    error = refused(stack(place, upper="other/upper", work="other/work"))
    reason = os.strerror(errno.EROFS)
    assert error.problem == f"workdir {where / 'work'}: cannot create a directory there: {reason}"
    assert error.remedy == "upper and work must be writable"


@pytest.mark.parametrize(("user_xattrs", "attribute"), [(False, "trusted"), (True, "user")])
def test_filesystem_without_attributes_is_refused(
    place: Path, refused: Refused, mount: Mount, user_xattrs: bool, attribute: str
) -> None:
    where = mount("ramfs", "other")
    directories(where, "upper", "work")
    error = refused(stack(place, upper="other/upper", work="other/work")._replace(user_xattrs=user_xattrs))
    doing = f"cannot set the attribute {attribute}.overlay.opaque there"
    assert error.problem == f"workdir {where / 'work'}: {doing}: {os.strerror(errno.EOPNOTSUPP)}"
    assert error.remedy.startswith("put upper and work on a filesystem such as")


# --- abilities -------------------------------------------------------------------------------------


def failing(code: int, when: Callable[..., bool] = lambda *_: True, real: Callable[..., Any] | None = None) -> Any:
    """A function that fails with this errno, but is `real` unless `when` its arguments say so."""

    def run(*arguments: Any, **named: Any) -> Any:
        if not when(*arguments):
            assert real is not None
            return real(*arguments, **named)
        raise OSError(code, os.strerror(code))

    return run


def failing_rename(flag: int) -> Any:
    return failing(errno.EINVAL, lambda *arguments: arguments[-1] == flag, syscalls.rename)


ABILITIES: dict[str, tuple[object, str, Any]] = {
    "create a directory": (os, "mkdir", failing(errno.EINVAL)),
    "set the attribute": (os, "setxattr", failing(errno.EINVAL)),
    "create a whiteout": (preflight, "make_whiteout", failing(errno.EINVAL)),
    "create a hard link": (os, "link", failing(errno.EINVAL)),
    "rename without replacing": (syscalls, "rename", failing_rename(syscalls.RENAME_NOREPLACE)),
    "exchange two names": (syscalls, "rename", failing_rename(syscalls.RENAME_EXCHANGE)),
}


@pytest.mark.parametrize("ability", ABILITIES)
def test_ability_that_the_filesystem_lacks_is_named(
    place: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch, ability: str
) -> None:
    monkeypatch.setattr(*ABILITIES[ability])
    error = refused(stack(place))
    assert error.problem.startswith(f"workdir {place / 'work'}: cannot {ability}")
    assert error.problem.endswith(os.strerror(errno.EINVAL))
    assert error.remedy.startswith("put upper and work on a filesystem such as")


@pytest.mark.parametrize("what", ["metacopy=on", "a data-only layer"])
def test_what_user_marks_would_lead_to_is_refused_for_root(
    place: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    data = os.fsencode(place / "data")
    os.mkdir(data)
    asked = stack(place)._replace(user_xattrs=True)
    asked = asked._replace(metacopy=True) if what == "metacopy=on" else asked._replace(data_only=(data,))
    error = refused(asked)
    assert what in error.problem and "userxattr" in error.problem and "userxattr" in error.remedy
    checked(asked._replace(user_xattrs=False))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    checked(asked)


@pytest.mark.parametrize("code", [errno.EPERM, errno.EACCES])
def test_remedy_for_attributes_that_only_root_may_set_is_userxattr(
    place: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    monkeypatch.setattr(os, "setxattr", failing(code))
    trusted = refused(stack(place)._replace(user_xattrs=False))
    assert "trusted.overlay.opaque" in trusted.problem
    assert trusted.remedy == "mount as root, or with -o userxattr"
    assert "userxattr" not in refused(stack(place)._replace(user_xattrs=True)).remedy


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_remedy_for_a_full_or_read_only_filesystem_is_room_to_write(
    place: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    monkeypatch.setattr(os, "mkdir", failing(code))
    assert refused(stack(place)).remedy == "upper and work must be writable"


# --- the index ------------------------------------------------------------------------------------------


@pytest.fixture
def indexed(place: Path) -> Path:
    """A hard-linked file of the topmost lower was changed: its copy stands in the index."""
    (place / "top/a").write_text("old")
    (place / "top/b").hardlink_to(place / "top/a")
    overlay = open_overlay(stack(place))
    overlay.set_attrs(overlay.walk(b"/a"), AttrChange(mode=0o600), Caller(os.geteuid(), os.getegid()))
    overlay.close()
    assert os.listdir(place / "work/index")
    return place


def test_index_goes_with_its_upper_and_topmost_lower(indexed: Path) -> None:
    checked(stack(indexed))
    checked(stack(indexed, "top"))


def test_index_of_another_upper_is_refused(indexed: Path, refused: Refused) -> None:
    directories(indexed, "fresh", "empty")
    other = stack(indexed, upper="fresh")
    error = refused(other)
    assert str(indexed / "fresh") in error.problem and str(indexed / "work") in error.problem
    assert "index=off" in error.remedy and "workdir" in error.remedy
    checked(other._replace(index=False))
    checked(stack(indexed, upper="fresh", work="empty"))


def test_index_of_another_lowers_files_is_refused(indexed: Path, refused: Refused) -> None:
    error = refused(stack(indexed, "bottom", "top"))
    for name in ("upper", "bottom", "work"):
        assert str(indexed / name) in error.problem
    assert "index=off" in error.remedy
    checked(stack(indexed, "bottom", "top")._replace(index=False))


def test_index_that_somebody_else_marked_says_nothing(indexed: Path) -> None:
    prefix = "trusted" if os.geteuid() == 0 else "user"
    os.setxattr(indexed / "work/index", f"{prefix}.overlay.upper", b"nonsense")
    os.removexattr(indexed / "upper", f"{prefix}.overlay.origin")
    checked(stack(indexed))
