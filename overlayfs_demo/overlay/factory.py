"""Opening an overlay: from the description of a stack to an engine that is ready.

Everything that is opened on the way belongs to one `ExitStack`, so a failure leaves nothing open, and `Overlay.close`
releases all of it.
"""

from __future__ import annotations

import os
from contextlib import ExitStack

from overlayfs_demo.events import Events
from overlayfs_demo.linux import proc
from overlayfs_demo.named_tuple import NamedTuple
from overlayfs_demo.overlay import incompat, override_stat, private_mount
from overlayfs_demo.overlay.attr_ops import AttrOps
from overlayfs_demo.overlay.budget import Budget
from overlayfs_demo.overlay.copyup import CopyUp
from overlayfs_demo.overlay.copyup_limits import Limits
from overlayfs_demo.overlay.dir_ops import DirOps
from overlayfs_demo.overlay.engine import Overlay, Parts
from overlayfs_demo.overlay.file_ops import FileOps
from overlayfs_demo.overlay.hooks import Hooks
from overlayfs_demo.overlay.index import Index
from overlayfs_demo.overlay.layer import DescriptorCache, Layer
from overlayfs_demo.overlay.layer_snapshots import LayerSnapshots
from overlayfs_demo.overlay.origin import Origins
from overlayfs_demo.overlay.ownership import IdMapped, Overridden, Ownership
from overlayfs_demo.overlay.pairing import Pairing, pairing_of
from overlayfs_demo.overlay.private_mount import Root, Roots
from overlayfs_demo.overlay.redirect import Redirects
from overlayfs_demo.overlay.rename import Rename
from overlayfs_demo.overlay.stack import Stack
from overlayfs_demo.overlay.tree import Tree
from overlayfs_demo.overlay.upper import Upper
from overlayfs_demo.overlay.whiteout import TRUSTED, USER, PrivateXattrs


def open_roots(stack: Stack) -> Roots:
    """Open the directories of a stack; the caller owns them. Raises OSError, with the layer at fault as `filename`."""
    with ExitStack() as opened:
        lowers = []
        for path in stack.lowers + stack.data_only:
            lowers.append(private_mount.open_root(path, private_mount.LOWER))
            opened.callback(os.close, lowers[-1].fd)
        upper, work = None, -1
        if stack.upper is not None and stack.work is not None:
            attributes = private_mount.LOWER if stack.read_only else private_mount.upper_attributes(stack.flags)
            upper, work = private_mount.open_upper(stack.upper, stack.work, attributes)
        opened.pop_all()
        return Roots(tuple(lowers), upper, work)


def open_overlay(stack: Stack, events: Events | None = None, roots: Roots | None = None) -> Overlay:
    """Open the overlay of a stack. Raises OSError, with the layer at fault as its `filename`.

    The caller keeps `roots` open as long as the overlay, and then the paths of the stack may lead elsewhere, or
    nowhere. By default they are opened here, and closed with the overlay.
    """
    with ExitStack() as resources:
        if roots is None:
            roots = open_roots(stack)
            resources.callback(roots.close)
        opening = _Opening(stack, roots, events or Events(), resources)
        return Overlay(opening.parts(), resources.pop_all())


def _at(stack: Stack, roots: Roots) -> Stack:
    """Return the stack with paths that lead to the open directories, wherever they are now."""
    lowers = [proc.fd_path(root.fd) for root in roots.lowers]
    return stack._replace(
        lowers=tuple(lowers[: len(stack.lowers)]),
        data_only=tuple(lowers[len(stack.lowers) :]),
        upper=proc.fd_path(roots.upper.fd) if roots.upper else None,
        work=proc.fd_path(roots.work) if roots.upper else None,
    )


def _ownership_of(stack: Stack) -> Ownership:
    """Return the strategy for the owners of a stack's files. Raises OSError."""
    layers = stack.lowers if stack.upper is None else (*stack.lowers, stack.upper)
    # Root can really change owners. And overrides would be dangerous for root: any owner of a file may write one.
    if os.geteuid() != 0 and any(override_stat.kept_by(layer) for layer in layers):
        return Overridden(stack.ids)
    return IdMapped(stack.ids) if stack.ids else Ownership()


class _Opened(NamedTuple):
    """The layers of a stack, open. `lowers` are searched for names; `data_layers` are below them."""

    lowers: list[Layer]
    data_layers: list[Layer]
    upper: Upper | None
    index: Index | None  # type: ignore[assignment]  # hides tuple.index
    origins: Origins


class _Opening:
    """An overlay that is being opened. What it opens belongs to `resources`."""

    def __init__(self, stack: Stack, roots: Roots, events: Events, resources: ExitStack) -> None:
        self._stack = stack
        self._roots = roots
        self._events = events
        self._budget = Budget.of_process()
        self._resources = resources
        self._xattrs: PrivateXattrs = USER if stack.user_xattrs else TRUSTED
        self._cache = DescriptorCache(self._budget.directories)

    def parts(self) -> Parts:
        """Open the layers and assemble the engine's parts. Raises OSError."""
        at = _at(self._stack, self._roots)
        pairing = pairing_of(at)
        if pairing is not None:
            pairing.verify()
        stack, opened = self._stack, self._layers(pairing)
        # Before the layers are closed: the cache holds descriptors of directories in them.
        self._resources.callback(self._cache.close)
        hooks = Hooks()
        tree = Tree(
            opened.lowers,
            opened.data_layers,
            opened.upper,
            self._xattrs,
            opened.origins,
            opened.index,
            _ownership_of(at),
            hooks,
        )
        limits = Limits(stack.copyup_max, stack.copyup_warn)
        copy_up = CopyUp(tree, stack.metacopy, hooks, limits, self._budget, stack.rehearsal)
        redirects = Redirects(tree, stack.metacopy)
        dir_ops = DirOps(tree, copy_up, redirects, self._budget)
        attr_ops = AttrOps(tree, copy_up, hooks)
        searched = [*([opened.upper.layer] if opened.upper else []), *opened.lowers]
        return Parts(
            events=self._events,
            hooks=hooks,
            tree=tree,
            layers=[*opened.lowers, *opened.data_layers],
            copy_up=copy_up,
            attr_ops=attr_ops,
            files=FileOps(tree, copy_up, attr_ops, self._budget),
            redirects=redirects,
            dir_ops=dir_ops,
            rename=Rename(tree, copy_up, dir_ops, redirects),
            past=LayerSnapshots(tree, searched, opened.data_layers) if stack.time_machine else None,
        )

    def _layers(self, pairing: Pairing | None) -> _Opened:
        stack = self._stack
        paths = stack.lowers + stack.data_only
        layers = [
            self._layer(
                path,
                root,
                depth,
                label,
                # In an upper, names that begin with `.wh.` are ordinary ones.
                image_dialect=stack.image_whiteouts and not (stack.rehearsal and depth == 1),
                last=depth == len(paths),
            )
            for depth, (path, root, label) in enumerate(zip(paths, self._roots.lowers, stack.labels(), strict=True), 1)
        ]
        lowers, data_layers = layers[: len(stack.lowers)], layers[len(stack.lowers) :]
        origins = Origins(lowers)
        if stack.upper is None or self._roots.upper is None:
            return _Opened(lowers, data_layers, None, None, origins)
        layer, upper = self._layer(stack.upper, self._roots.upper, 0, "upper", image_dialect=False, last=False), None
        if not stack.read_only:
            # Before the index, which counts the names of its copies: one may still be in the work directory.
            upper = Upper(layer, proc.fd_path(self._roots.work), self._xattrs, self._events, stack.volatile)
            self._resources.callback(upper.close)
            if stack.volatile:
                incompat.mark_volatile(upper.work_fd)
        index = None if pairing is None else Index(layer, pairing, origins, stack.read_only)
        return _Opened(lowers if upper else [layer, *lowers], data_layers, upper, index, origins)

    def _layer(self, path: bytes, root: Root, depth: int, label: str, *, image_dialect: bool, last: bool) -> Layer:
        metacopies = self._stack.metacopy or bool(self._stack.data_only)
        return Layer(
            path,
            root,
            depth,
            label,
            self._xattrs,
            self._cache,
            image_dialect=image_dialect,
            last=last,
            metacopies=metacopies,
        )
