"""Is a directory that another mount writes to refused, or warned of, as the kernel's overlayfs does?"""

from __future__ import annotations

import pytest

from tests.builders import directories
from tests.contract.conftest import why_unavailable
from tests.contract.raw import kernel_overlay
from tests.places import Place, fails, run

INSIDE = {
    "the upper": ("upper", "upperdir"),
    "below the upper": ("upper/in/deep", "upperdir"),
    "the workdir": ("work", "workdir"),
    "below the workdir": ("work/work", "workdir"),
}
inside = pytest.mark.parametrize("where", INSIDE)


@pytest.fixture(params=["ours", "kernel's"])
def used(place: Place, request: pytest.FixtureRequest) -> Place:
    """A place that is mounted, by us or by the kernel, with directories beside it for another mount."""
    for kind in ("kernel-front", "kernel"):
        if problem := why_unavailable(kind):
            pytest.skip(problem)
    directories(place.base, "upper/in/deep", "upper2", "work2", "view2", "other")
    if request.param == "ours":
        assert place.mount().returncode == 0
    else:
        assert run("mount", "-t", "overlay", "overlay", place.view, "-o", place.options).returncode == 0
    return place


def kernel_takes(place: Place, lower: str, *, index: str, writable: bool) -> bool:
    """Would the kernel mount it? (Of our mount it knows nothing.)"""
    options = [("lowerdir", f"{place / 'other'}:{place / lower}"), ("index", index)]
    if writable:
        options += [("upperdir", str(place / "upper2")), ("workdir", str(place / "work2"))]
    try:
        kernel_overlay(options)
    except OSError:
        return False
    return True


@inside
@pytest.mark.parametrize("index", ["on", "off"])
@pytest.mark.parametrize("writable", [True, False])
def test_lower_that_is_written_to_by_another_mount(used: Place, where: str, index: str, writable: bool) -> None:
    lower, role = INSIDE[where]
    options = f"lowerdir={used / 'other'}:{used / lower},index={index}"
    if writable:
        options += f",upperdir={used / 'upper2'},workdir={used / 'work2'}"
    done = run("overlayfs-demo", "mount", "-o", options, used / "view2")
    says = f"lower layer 2, {used / lower}, is in use as {role} {used / role[:-3]} of the mount on {used.view}"
    if writable and index == "on":
        fails(done, says, "unmount that first")
    else:
        assert done.returncode == 0
        assert says in done.stderr
        assert run("overlayfs-demo", "umount", used / "view2").returncode == 0
    if run("findmnt", "-no", "FSTYPE", used.view).stdout.strip() == "overlay":
        assert kernel_takes(used, lower, index=index, writable=writable) == (done.returncode == 0)


@pytest.mark.parametrize("index", ["on", "off"])
def test_upper_inside_anothers_upper_is_refused(used: Place, index: str) -> None:
    inner = used / "upper/in/deep"
    options = f"lowerdir={used / 'other'},upperdir={inner},workdir={used / 'work2'},index={index}"
    done = run("overlayfs-demo", "mount", "-o", options, used / "view2")
    fails(done, f"upperdir, {inner}, is in use as upperdir {used / 'upper'} of the mount on {used.view}")


def test_view_of_another_mount_is_a_lower_like_others(used: Place) -> None:
    options = f"lowerdir={used.view},upperdir={used / 'upper2'},workdir={used / 'work2'}"
    done = run("overlayfs-demo", "mount", "-o", options, used / "view2")
    assert (done.returncode, done.stderr) == (0, "")
    assert run("overlayfs-demo", "umount", used / "view2").returncode == 0
