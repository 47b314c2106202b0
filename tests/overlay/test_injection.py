"""Do the lists of system calls contain every call that the engine makes?"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import overlayfs_demo
from tests.overlay.injection import OPENING, READING, WRITING

_PACKAGE = Path(overlayfs_demo.__file__).parent
_FILES = [
    *sorted((_PACKAGE / "overlay").glob("*.py")),
    *(_PACKAGE / "linux" / name for name in ("attributes.py", "xattr.py", "proc.py", "failure.py")),
]
# Calls that ask for no file, or only for what is in memory; and those whose failure cannot be handled.
_HARMLESS = {
    "os": {
        *("fsencode", "fsdecode", "strerror", "geteuid", "getegid", "getpid", "urandom", "close", "fstatvfs", "path"),
        # Of open files, by handles: a read that fails changes nothing.
        *("preadv", "read"),
    },
    "syscalls": {"page_size", "filesystem_uuid", "filesystem_magic", "folds_case", "is_answered_elsewhere"},
    "fcntl": set[str](),
}


def calls(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Yield the module and the name of each function that the code uses of the modules with system calls."""
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)):
            continue
        is_call = node.attr.islower() and not node.attr.endswith("_result")  # Not a constant, nor a type.
        if is_call and node.value.id in _HARMLESS:
            yield node.value.id, node.attr


def test_every_system_call_of_the_engine_can_fail_or_be_the_last() -> None:
    known = {
        (module.__name__.rpartition(".")[2], name)
        for kind in (WRITING, OPENING, READING)
        for module, names in kind.items()
        for name in names
    }
    used = {call for path in _FILES for call in calls(ast.parse(path.read_text()))}
    assert not {(module, name) for module, name in used - known if name not in _HARMLESS[module]}
