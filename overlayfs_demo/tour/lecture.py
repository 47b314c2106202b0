"""A lecture in one terminal: a shell beside a fresh view, and `watch` beside the shell.

The view is on `merged` in a stage, where the shell starts, and `upper` there shows what it changes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from overlayfs_demo.mounts import mount
from overlayfs_demo.mounts.options import parse
from overlayfs_demo.store.containers import Containers
from overlayfs_demo.store.store import Store
from overlayfs_demo.tour.nesting import LECTURE
from overlayfs_demo.tour.shell import prompting
from overlayfs_demo.tour.split_terminal import Side, show
from overlayfs_demo.tour.stage import PLACES, Stage, stage, undisturbed
from overlayfs_demo.ui.console import PROGRAM

_NAME = "lecture"
_HINT = " to end: exit, or q on the right   other side: F2 or mouse"
# At most half of 80 columns wide.
_WELCOME = """\
merged is the view, upper its changes.
Try: echo hello > merged/new
     ls -l upper
"""
# A small stack to begin with, the topmost layer first.
_LAYERS = {
    "app": {"app/run.sh": "echo running\n", "etc/motd": "welcome to the app\n"},
    "base": {
        "etc/motd": "welcome\n",
        "etc/hosts": "127.0.0.1 localhost\n",
        "docs/one": "1\n",
        "docs/two": "2\n",
        "readme": "the base\n",
    },
}
# An error would disappear with its side.
_KEEPS_ERROR = '"$@" || { printf "\\nPress Enter to end the lecture. "; read -r _; }'

# Mounts the view of a lecture on a stage. What it makes elsewhere, it removes afterwards.
View = Callable[[Stage], AbstractContextManager[None]]


def give(view: View, store: Path) -> None:
    """Show a shell and `watch` side by side until one of them ends; nothing is left behind. Raises OverlayError.

    Commands in the shell use the store in the directory `store`, which may not exist yet.
    """
    with stage() as made, view(made):
        shell = prompting(_NAME, made.programs)
        welcome = made.programs / "welcome"
        welcome.write_text(_WELCOME)
        environment = {**made.environment(), "OVERLAYFS_DEMO_STORE": str(store.absolute()), LECTURE: str(made.root)}
        left = ("sh", "-c", 'cat "$0"; exec "$@"', str(welcome), *shell.words)
        right = ("sh", "-c", _KEEPS_ERROR, "sh", str(made.programs / PROGRAM), "watch", str(made.path("merged")))
        show(
            Side(left, {**shell.environment, **environment}),
            Side(right, environment),
            room=made.programs,
            start_in=made.root,
            hint=_HINT,
        )


@contextmanager
def small_stack(made: Stage) -> Iterator[None]:
    """Mount a view of a small stack, whose layers are also on the stage."""
    made.layers(_LAYERS)
    made.mount(redirects=True)
    yield


def options(lines: Sequence[str]) -> View:
    """Return what mounts a view with these options. Its changes go to the stage, unless they name an upper."""

    @contextmanager
    def view(made: Stage) -> Iterator[None]:
        wanted = parse(lines)
        for name in PLACES:
            made.path(name).mkdir()
        stack = wanted.stack
        if stack.upper is None:
            upper, work = (os.fsencode(made.path(name)) for name in ("upper", "work"))
            wanted = wanted._replace(stack=stack._replace(upper=upper, work=work))
        else:
            made.path("upper").rmdir()
            made.path("upper").symlink_to(os.fsdecode(os.path.abspath(stack.upper)))
        mount.mount(os.fsencode(made.path("merged")), wanted)
        yield

    return view


def image(store: Store, name: str) -> View:
    """Return what mounts a new container of an image, which is removed after the lecture."""

    @contextmanager
    def view(made: Stage) -> Iterator[None]:
        containers, found, merged = Containers(store), store.find(name), made.path("merged")
        taken = {container.name for container in containers.all()}
        merged.mkdir()
        try:
            container = containers.create(found, f"{_NAME}-{os.getpid()}" if _NAME in taken else _NAME, merged)
            made.path("upper").symlink_to(container.upper)
            yield
        finally:
            with undisturbed():
                # Also if a process of the lecture still uses it.
                made.unmount()
                for container in containers.all():
                    # An interruption may come before `create` returns, and nobody else has a container here.
                    if container.mountpoint == merged:
                        containers.remove(container)

    return view
