"""Where does what a mounted view shows come from?"""

from __future__ import annotations

import grp
import os
import pwd
import stat
import time
from collections.abc import Sequence
from typing import Any

from overlayfs_demo import docker_format, records
from overlayfs_demo.commands import note, put, put_json
from overlayfs_demo.control import Connection
from overlayfs_demo.overlay.merge import Says
from overlayfs_demo.render import human_size, printable
from overlayfs_demo.terminal import put_table


def which_in_view(paths: Sequence[str], *, as_json: bool) -> int:
    """Print what each layer says about paths in a mounted view; 1 if one of them is not seen there."""
    status = 0
    for given in paths:
        mountpoint, path, socket, owner = records.place_in_view(os.fsencode(given), follow=False)
        with Connection(socket, mountpoint, owner) as connection:
            layers, reason = connection.explain(path)
        if not any(one["wins"] for one in layers):
            status = 1
        if as_json:
            put_json([{"path": path, "mountpoint": mountpoint, "layers": layers, "why": reason}])
            continue
        put(f"{printable(path)}\n")
        rows = [(printable(one["layer"]), says(one, path), outcome(one, path)) for one in layers]
        lines = docker_format.table(("LAYER", "SAYS", ""), rows).split("\n")
        put_table("\n".join(line.rstrip() for line in lines))
        put(f"{printable(reason)}\n")
    return status


def says(one: dict[str, Any], path: str) -> str:
    """What a layer says about `path`, in words."""
    if one["says"] == Says.FILE.value:
        if stat.S_ISLNK(one["mode"]):
            return f"a symbolic link to {printable(one['target'])}"
        return f"a file, {human_size(one['size'])}" if stat.S_ISREG(one["mode"]) else "a device, fifo or socket"
    where = one["deleted_at"]
    said = printable(str(one["says"]))
    return f"{said}: {printable(where)}" if where not in (None, path) else said


def outcome(one: dict[str, Any], path: str) -> str:
    """What becomes of what a layer says about `path`: is it seen, or what hides it? "" if it says nothing."""
    if one["wins"]:
        return "is seen"
    if one["hidden_by"] is None:
        return ""
    at = "" if one["hidden_at"] == path else f", at {printable(one['hidden_at'])}"
    return f"hidden by {printable(one['hidden_by'])}{at}"


# --- which -l --------------------------------------------------------------------------------------


def list_with_layers(paths: Sequence[str], *, as_json: bool) -> int:
    """Print files, and what is in directories, as `ls -l` does, and which layers each comes from. Raises OSError.

    The exit status is 1 if a name in a directory cannot be looked up, as one with a bad mark: the others are listed.
    """
    status = 0
    for given in paths:
        mountpoint, path, socket, owner = records.place_in_view(os.fsencode(given), follow=False)
        rows: list[dict[str, Any]] = []
        is_directory = stat.S_ISDIR(os.lstat(given).st_mode)
        with Connection(socket, mountpoint, owner) as connection:
            for name in sorted(os.listdir(given)) if is_directory else [""]:
                inside = os.path.join(path, name) if name else path
                try:
                    row = _row(os.path.join(given, name) if name else given, name or os.path.basename(path))
                except OSError as error:
                    if not name:
                        raise
                    note(f"{printable(inside)}: {error.strerror}: the log of its daemon says why")
                    status = 1
                    continue
                # A name that has gone meanwhile has no row.
                if row is not None:
                    layers = connection.explain(inside).layers
                    rows.append({**row, "path": inside, "layers": [one["layer"] for one in layers if one["wins"]]})
        if as_json:
            put_json(rows)
        else:
            put_table(docker_format.table(
                ("MODE", "LINKS", "OWNER", "GROUP", "SIZE", "MODIFIED", "LAYER", "NAME"), map(_cells, rows)
            ))
    return status


def _row(path: str, name: str) -> dict[str, Any] | None:
    try:
        status = os.lstat(path)
        target = os.readlink(path) if stat.S_ISLNK(status.st_mode) else None
    except FileNotFoundError:
        return None
    return {
        "name": name, "mode": status.st_mode, "links": status.st_nlink, "uid": status.st_uid, "gid": status.st_gid,
        "size": status.st_size, "modified": status.st_mtime, "target": target,
    }


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    layers = ", ".join(map(printable, row["layers"]))
    arrow = f" -> {printable(row['target'])}" if row["target"] is not None else ""
    return (
        stat.filemode(row["mode"]), str(row["links"]), _user(row["uid"]), _group(row["gid"]), str(row["size"]),
        time.strftime("%Y-%m-%d %H:%M", time.localtime(row["modified"])),
        f"merged: {layers}" if len(row["layers"]) > 1 and stat.S_ISDIR(row["mode"]) else layers,
        printable(row["name"]) + arrow,
    )


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
