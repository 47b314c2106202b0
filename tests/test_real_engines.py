"""Do podman, buildah and Docker work on our views, and does `watch` tell what happens in their containers?

Each test is skipped where its tool is missing.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from overlayfs_demo.mounts import registry
from tests.cli.test_containers import static_busybox
from tests.conftest import unmount_all, wait_until, why_no_mounts, why_no_mounts_of_others
from tests.images.builders import Entry, directory, docker_save, layer
from tests.places import BIN, MINUTE, ROOT, fails, run
from tests.real_docker import docker_daemon, succeeds, tool

pytestmark = pytest.mark.skipif(bool(why_no_mounts()), reason=why_no_mounts())

_DOCKERFILE = """\
FROM scratch
COPY bin /bin
COPY one /one
RUN ["/bin/busybox", "sh", "-c", "echo more >>/one; echo brief >/two"]
RUN ["/bin/busybox", "rm", "/two"]
COPY d /d
CMD ["/bin/busybox"]
"""


# nobody gets further IDs, as useradd(8) would give them; only this mount namespace sees it.
_AS_NOBODY = """\
echo nobody:100000:65536 >$1/subids
mount --bind $1/subids /etc/subuid && mount --bind $1/subids /etc/subgid || exit 77
exec runuser -u nobody -- sh -e $1/rootless $1
"""

_ROOTLESS = """\
export HOME=$1 XDG_RUNTIME_DIR=$1 TMPDIR=$1
export STORAGE_DRIVER=overlay STORAGE_OPTS=overlay.mount_program=$1/bin/overlayfs-demo
cd $1
podman unshare true || exit 77
trap 'podman system migrate' EXIT
buildah bud --isolation chroot -q --layers -t five:1 $1/context
podman create --name c1 five:1
podman unshare sh -e -c '
    view=$(podman mount c1)
    echo -n new >$view/one; chown 5:5 $view/one; rm $view/d/a
    bin/overlayfs-demo which --podman c1 /one
    podman diff c1
    podman umount c1'
podman commit -q c1 six:1
podman create --name c2 six:1
podman unshare sh -c 'cd $(podman mount c2) && echo $(cat one) $(stat -c %u:%g one)'
podman rm -f c1 c2 >&2
"""


@pytest.fixture
def storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory where podman and buildah keep everything, and mount with this program."""
    # podman wants a path of 50 characters at most.
    with tempfile.TemporaryDirectory(prefix="podman-") as short:
        (tmp_path / "storage.conf").write_text(
            f"""\
            [storage]
            driver = "overlay"
            graphroot = "{tmp_path / "storage"}"
            runroot = "{short}"
            [storage.options.overlay]
            mount_program = "{BIN / "overlayfs-demo"}"
            """
        )
        monkeypatch.setenv("CONTAINERS_STORAGE_CONF", str(tmp_path / "storage.conf"))
        yield tmp_path
        unmount_all(str(tmp_path))


def context(where: Path) -> Path:
    """What is needed to build `_DOCKERFILE`."""
    context = where / "context"
    (context / "bin").mkdir(parents=True)
    shutil.copy(static_busybox(), context / "bin/busybox")
    (context / "Dockerfile").write_text(_DOCKERFILE)
    (context / "one").write_text("1\n")
    (context / "d").mkdir()
    (context / "d/a").write_text("a")
    (context / "d/b").write_text("b")
    return context


def mounted_by_podman(container: str) -> tuple[Path, int]:
    """Where podman mounts it, and the process that ends with this mount."""
    mountpoint = Path(succeeds("podman", "mount", container).strip())
    record = registry.find_record(str(mountpoint))
    assert record is not None
    return mountpoint, record.pid


def has_ended(pid: int) -> bool:
    """Whether a process is gone, or a zombie."""
    try:
        return ") Z " in Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True


def processes_that_name(path: str) -> list[int]:
    """The processes with this path in their command line."""
    found = []
    for line in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # It is gone.
            if os.fsencode(path) in line.read_bytes():
                found.append(int(line.parent.name))
    return found


@contextmanager
def watching(where: Path, *words: str) -> Iterator[Path]:
    """While `watch` runs with these words, to its end; the file with its sentences."""
    out, err = where / "sentences", where / "notes"
    with out.open("wb") as sentences, err.open("wb") as notes:
        process = subprocess.Popen([BIN / "overlayfs-demo", "watch", "--plain", *words], stdout=sentences, stderr=notes)
    try:
        wait_until(lambda: "watching" in err.read_text(), "watch has begun")
        yield out
        assert process.wait(MINUTE) == 0, err.read_text()
    finally:
        process.kill()
        process.wait()


def test_podman_and_buildah_build_change_and_commit_on_our_views(storage: Path) -> None:
    tool("podman")
    build = ("bud", "--isolation", "chroot", "--layers", "-q", "-t", "five:1", context(storage))
    first = succeeds(tool("buildah"), *build)
    assert succeeds(tool("buildah"), *build) == first
    succeeds("podman", "create", "--name", "c1", "five:1")
    fails(run("overlayfs-demo", "watch", "--podman", "c1"), "container c1 of podman is not mounted", "podman mount c1")
    view, supervisor = mounted_by_podman("c1")
    assert (view / "one").read_text() == "1\nmore\n"
    assert not (view / "two").exists()
    with watching(storage, "--podman", "c1") as sentences:
        (view / "one").write_text("new")
        (view / "d/a").unlink()
        (view / "d").rename(view / "e")
        told = succeeds("overlayfs-demo", "which", "--podman", "c1", "/one")
        assert "\nlayer 2 (COPY file:" in told and "\nlayer 4 (RUN " in told
        assert set(succeeds("podman", "diff", "c1").splitlines()) == {"C /one", "D /d", "A /e", "A /e/b"}
        succeeds("podman", "umount", "c1")
    assert "created whiteout for /d/a, hiding the one in layer 5 (COPY dir:" in sentences.read_text()
    wait_until(lambda: has_ended(supervisor), "the processes of an unmounted view have ended")
    succeeds("podman", "commit", "-q", "c1", "six:1")
    succeeds("podman", "create", "--name", "c2", "six:1")
    view, _ = mounted_by_podman("c2")
    assert (view / "one").read_text() == "new"
    assert [path.name for path in (view / "e").iterdir()] == ["b"] and not (view / "d").exists()
    succeeds("podman", "rm", "c1", "c2")


def test_a_container_that_another_program_mounts_is_refused_with_the_remedy(storage: Path) -> None:
    succeeds(tool("buildah"), "from", "--name", "b1", "scratch")
    fails(run("overlayfs-demo", "watch", "--podman", "nobody"), "podman: nobody: ", "no such container", "podman ps -a")
    (storage / "storage.conf").write_text((storage / "storage.conf").read_text().replace("mount_program", "#"))
    (storage / "image.tar").write_bytes(docker_save([layer({"a": "1"})], tag="plain:1"))
    succeeds(tool("podman"), "load", "-q", "-i", storage / "image.tar")
    succeeds("podman", "create", "--name", "c1", "plain:1", "/none")
    succeeds("podman", "mount", "c1")
    fails(run("overlayfs-demo", "which", "--podman", "c1"), "container c1 of podman is mounted as", "mount_program")


@pytest.fixture
def runtime_of_podman() -> Iterator[None]:
    """podman leaves directories there, whatever XDG_RUNTIME_DIR says."""
    runtime = Path(f"/tmp/podman-run-{pwd.getpwnam('nobody').pw_uid}")
    was_there = runtime.exists()
    yield
    if not was_there:
        shutil.rmtree(runtime, ignore_errors=True)


@pytest.mark.usefixtures("runtime_of_podman")
def test_an_ordinary_users_podman_mounts_in_its_own_namespace() -> None:
    if problem := why_no_mounts_of_others():
        pytest.skip(problem)
    for name in ("podman", "buildah", "newuidmap", "unshare"):
        tool(name)
    # Not below pytest's own, which nobody else may enter.
    with tempfile.TemporaryDirectory(prefix="podman-") as short:
        home = Path(short)
        context(home)
        ours = home / "bin/overlayfs-demo"
        ours.parent.mkdir()
        # Not the Python that runs this, which may lie where only root may go.
        ours.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec /usr/bin/python3 -m overlayfs_demo "$@"\n')
        ours.chmod(0o755)
        (home / "rootless").write_text(_ROOTLESS)
        for path in (home, *home.rglob("*")):
            shutil.chown(path, "nobody", "nogroup")
        done = run("unshare", "--mount", "--propagation", "private", "sh", "-c", _AS_NOBODY, "sh", home)
        if done.returncode == 77:
            pytest.skip(f"podman of an ordinary user does not run here: {done.stderr[-300:]}")
        assert done.returncode == 0, done.stderr
        assert "\nlayer 4 (RUN " in done.stdout and "\nC /one\n" in done.stdout
        assert done.stdout.endswith("\nnew 5:5\n")
        wait_until(lambda: not processes_that_name(short), "the daemons of the views have ended")


def test_docker_works_on_our_views_under_the_name_of_fuse_overlayfs(tmp_path: Path) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "fuse-overlayfs").symlink_to(BIN / "overlayfs-demo")
    tool("fusermount3")
    busybox = Entry(data=Path(static_busybox()).read_bytes(), mode=0o755)
    layers = [
        layer({"bin/": directory(), "bin/busybox": busybox, "one": "1\n"}),
        layer({"d/": directory(), "d/a": "a"}),
    ]
    (tmp_path / "image.tar").write_bytes(docker_save(layers, tag="two:1"))
    with docker_daemon(tmp_path, "fuse-overlayfs", programs) as docker:
        try:
            work_in_docker(tmp_path, docker)
        finally:
            run(*docker, "rm", "-f", "c1", "c2")
            unmount_all(str(tmp_path))


def work_in_docker(where: Path, docker: list[str | Path]) -> None:
    succeeds(*docker, "load", "-i", where / "image.tar")
    succeeds(*docker, "create", "--name", "c1", "two:1", "/none")
    (where / "new").write_text("new")
    succeeds(*docker, "cp", where / "new", "c1:/d/a")
    succeeds(*docker, "cp", "c1:/d/a", where / "back")
    assert (where / "back").read_text() == "new"
    assert succeeds(*docker, "diff", "c1").splitlines() == ["C /d", "C /d/a"]
    succeeds(*docker, "commit", "c1", "three:1")
    begun = run(*docker, "run", "-d", "--name", "c2", "--network", "none", "three:1", "/bin/busybox", "sleep", "600")
    if begun.returncode:
        pytest.skip(f"docker cannot start containers here: {begun.stderr[-300:]}")
    with docker_host(docker), watching(where, "--docker", "c2") as sentences:
        succeeds(*docker, "exec", "c2", "/bin/busybox", "sh", "-c", "echo more >>/one; cat /d/a; rm /d/a")
        told = succeeds("overlayfs-demo", "which", "--docker", "c2:/one")
        assert "\nlayer 4 (files that docker adds" in told and "\nlayer 1 (RUN make layer 1)" in told
        succeeds(*docker, "rm", "-f", "c2")
    assert "copied up /one (2B) from layer 1 (RUN make layer 1) to write to it" in sentences.read_text()
    assert "created whiteout for /d/a, hiding the one in layer 3 (/none)" in sentences.read_text()


@contextmanager
def docker_host(docker: list[str | Path]) -> Iterator[None]:
    """While it lasts, a `docker` that somebody else runs asks this daemon."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("DOCKER_HOST", str(docker[2]))
        yield
