"""Do the imports run one way?

Every module's imports are read, those inside functions too, and held against the order of the house. A
complaint names the file, the line and the import, so that the fix is clear: move the code, not the rule.
"""

from __future__ import annotations

import ast
import graphlib
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.places import ROOT, Place

PACKAGE = "overlayfs_demo"
SOURCES = ROOT / PACKAGE

# What each folder may import, and does: neither more nor less. They stand from the ground up, and within a folder
# anything goes that is not a circle.
MAY_IMPORT: dict[str, frozenset[str]] = {
    folder: frozenset(others.split())
    for folder, others in {
        "": "",  # the package's own __init__
        "errors": "",
        "named_tuple": "",
        "events": "named_tuple",
        "linux": "named_tuple",
        "overlay": "errors events linux named_tuple",
        "images": "errors linux overlay named_tuple",
        "fronts": "errors linux overlay named_tuple",
        "ui": "errors events linux overlay images",
        "analysis": "errors linux overlay images named_tuple",
        "mounts": "errors events linux overlay images fronts named_tuple",
        "store": "errors linux overlay images mounts",
        "explain": "errors linux overlay images fronts mounts named_tuple",
        "fsck": "errors images linux mounts overlay store",
        "run": "errors explain images linux",
        "registry": "errors images store",
        "browse": "errors linux overlay images analysis mounts store ui named_tuple",
        "watch": "errors events mounts ui",
        "tour": "errors linux overlay images mounts store ui",
        "web": "errors linux overlay images analysis mounts store ui watch named_tuple",
        "cli": "errors events linux overlay images analysis mounts store explain fsck run registry browse watch tour "
        "web ui named_tuple",
        "__main__": "cli",
    }.items()
}

# Libraries that only one folder or module may know.
ONLY_IN = {
    "ctypes": f"{PACKAGE}.linux",
    "fuse": f"{PACKAGE}.fronts.fusepy.callbacks",
    "httpcore": f"{PACKAGE}.registry",
}

# The engine may know fuse-overlayfs, whose marks it reads from disk, and may say that it knows no FUSE.
FUSE = re.compile(r"(?<!no )(?<![a-z])fuse(?![-_]?overlayfs)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Import:
    """One module named by an import statement of another."""

    importer: str
    line: int
    imported: str

    def __str__(self) -> str:
        return f"{self.importer}, line {self.line}, imports {self.imported}"


def read_package() -> dict[str, str]:
    """The source of every module of the package, by the module's full name."""
    sources = {}
    for path in sorted(SOURCES.rglob("*.py")):
        parts = path.relative_to(SOURCES.parent).with_suffix("").parts
        sources[".".join(parts).removesuffix(".__init__")] = path.read_text("utf-8")
    return sources


def part_of(module: str) -> str:
    """The part of the house a module belongs to: `overlay` for `overlayfs_demo.overlay.merge`."""
    return f"{module}..".split(".")[1]


def statements(module: str, source: str) -> Iterator[tuple[int, str, str]]:
    """Each import statement's line, module, and name taken from it ("" for a plain import)."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name, ""
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module}, line {node.lineno}: write the whole name, no relative import"
            assert node.module
            for alias in node.names:
                yield node.lineno, node.module, alias.name


def imports(sources: Mapping[str, str]) -> Iterator[Import]:
    """Every import in the sources; `from package import module` counts as importing the module."""
    for importer, source in sources.items():
        for line, imported, name in statements(importer, source):
            member = f"{imported}.{name}"
            yield Import(importer, line, member if member in sources else imported)


def inner(found: Iterable[Import]) -> Iterator[Import]:
    """Those imports that name a module of the package."""
    return (one for one in found if one.imported.split(".")[0] == PACKAGE)


def back_edges(sources: Mapping[str, str]) -> list[str]:
    """The imports that run against the order of the house."""
    complaints = []
    for one in inner(imports(sources)):
        here, there = part_of(one.importer), part_of(one.imported)
        if here not in MAY_IMPORT:
            complaints.append(f"{one.importer}: {here} has no place in the order of MAY_IMPORT")
        # Any import loads the package's own __init__ first, so all may name it.
        elif there and here != there and there not in MAY_IMPORT[here]:
            allowed = ", ".join(sorted(filter(None, MAY_IMPORT[here]))) or "nothing of the package"
            complaints.append(f"{one}; {here or 'the package itself'} may import {allowed}")
    return list(dict.fromkeys(complaints))


def unused(sources: Mapping[str, str]) -> list[str]:
    """What MAY_IMPORT allows, and nothing needs."""
    used = {(part_of(one.importer), part_of(one.imported)) for one in inner(imports(sources))}
    return [
        f"{folder} need not import {other}"
        for folder, others in MAY_IMPORT.items()
        for other in sorted(others)
        if (folder, other) not in used
    ]


def cycles(sources: Mapping[str, str]) -> list[str]:
    """One cycle among the modules, if there is any."""
    graph: dict[str, set[str]] = {}
    for one in inner(imports(sources)):
        graph.setdefault(one.importer, set()).add(one.imported)
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return [" is imported by ".join(error.args[1])]
    return []


def strangers(sources: Mapping[str, str]) -> list[str]:
    """The imports of a library outside the one folder or module that may know it."""
    return [
        f"{one}; only {ONLY_IN[library]} may"
        for one in imports(sources)
        if (library := one.imported.split(".")[0]) in ONLY_IN
        and not f"{one.importer}.".startswith(f"{ONLY_IN[library]}.")
    ]


def fuse_in_engine(sources: Mapping[str, str]) -> list[str]:
    """The lines of the engine that speak of FUSE."""
    return [
        f"{module}, line {number}: {line.strip()}"
        for module, source in sources.items()
        if part_of(module) == "overlay"
        for number, line in enumerate(source.splitlines(), 1)
        if FUSE.search(line)
    ]


def import_table() -> str:
    """MAY_IMPORT as the architecture document has it, in Markdown."""
    rows = [("folder or module", "may import")]
    rows += [(f"`{folder}`", ", ".join(sorted(others)) or "nothing") for folder, others in MAY_IMPORT.items() if folder]
    lines = [f"| {folder} | {others} |\n" for folder, others in rows]
    return lines[0] + "|---|---|\n" + "".join(lines[1:])


def assert_none(complaints: list[str]) -> None:
    assert not complaints, "\n" + "\n".join(complaints)


def test_imports_run_one_way() -> None:
    assert_none(back_edges(read_package()))


def test_the_table_allows_only_what_is_needed() -> None:
    assert_none(unused(read_package()))


def test_the_table_stands_from_the_ground_up() -> None:
    order = list(MAY_IMPORT)
    for folder, others in MAY_IMPORT.items():
        assert all(order.index(other) < order.index(folder) for other in others), folder


def test_the_architecture_document_prints_the_table() -> None:
    document = (SOURCES / "docs/architecture.md").read_text("utf-8")
    assert import_table() in document, f"docs/architecture.md must hold this table:\n\n{import_table()}"


def test_every_folder_says_what_it_is() -> None:
    for name, source in read_package().items():
        if (SOURCES.parent / name.replace(".", "/")).is_dir():
            text = ast.get_docstring(ast.parse(source)) or ""
            assert len(re.findall(r"[.!?](?=\s|$)", text)) >= (3 if name.count(".") == 1 else 1), f"{name}: {text!r}"


def test_no_module_imports_itself_in_a_circle() -> None:
    assert_none(cycles(read_package()))


def test_ctypes_is_known_to_one_folder_and_fusepy_to_one_module() -> None:
    assert_none(strangers(read_package()))


def test_the_engine_knows_no_fuse() -> None:
    assert_none(fuse_in_engine(read_package()))


def test_the_command_line_loads_without_libfuse() -> None:
    """fusepy looks for libfuse as soon as it is imported, and a machine may lack it."""
    script = f"import sys, {PACKAGE}.cli.main; sys.exit('fuse' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], cwd=SOURCES.parent, check=True)


# What a command line must not import, because only other verbs or rarer options need it. With `DATACLASSES`, because a
# dataclass takes a millisecond to define, and the module `dataclasses` imports what takes several.
DATACLASSES = ("dataclasses", "inspect")
OPENSSL = ("secrets", "hmac", "random")
HASHLIB = ("hashlib", "_hashlib")
PATHLIB = ("pathlib", "urllib")
TARFILE = ("tarfile", "shutil", "bz2", "lzma")
IMAGES = (f"{PACKAGE}.images.model", f"{PACKAGE}.images.build_record", f"{PACKAGE}.store.store")
HEAVY = ("rich", "textual", "jinja2", "psutil", "argcomplete", "zstandard", "subprocess")
ENGINE = (f"{PACKAGE}.overlay.engine", f"{PACKAGE}.fronts.kernel", f"{PACKAGE}.fronts.fusepy")
ANALYSIS = (f"{PACKAGE}.analysis", f"{PACKAGE}.ui.go_template", f"{PACKAGE}.images.tarsplit")
MOUNTING = (f"{PACKAGE}.overlay.forecast", "tempfile", *IMAGES, *DATACLASSES, *HASHLIB, *OPENSSL, *TARFILE, *HEAVY)
UNNEEDED: dict[str, tuple[str, ...]] = {
    "--version": (
        f"{PACKAGE}.overlay",
        f"{PACKAGE}.store",
        "logging",
        "json",
        *PATHLIB,
        *DATACLASSES,
        *OPENSSL,
        *HEAVY,
    ),
    "--help": (f"{PACKAGE}.overlay", f"{PACKAGE}.store", "logging", "json", *PATHLIB, *DATACLASSES, *OPENSSL, *HEAVY),
    "help images": (f"{PACKAGE}.mounts", *ENGINE, *ANALYSIS, *OPENSSL, *HEAVY),
    "mount /nowhere -o lowerdir=/nowhere": MOUNTING,
    "umount ./nowhere": (*ENGINE, *MOUNTING),
    "images": (f"{PACKAGE}.mounts", *ENGINE, *ANALYSIS, *OPENSSL, *TARFILE, "platform", *HEAVY),
    "history nothing": (f"{PACKAGE}.mounts", *ENGINE, *ANALYSIS, *OPENSSL, *TARFILE, "platform", *HEAVY),
    "ps": (*ENGINE, *ANALYSIS, *OPENSSL, *HEAVY),
}


@pytest.mark.parametrize("words", UNNEEDED)
def test_verb_waits_for_no_import_that_only_others_need(words: str, tmp_path: Path) -> None:
    assert_not_imported(words.split(), UNNEEDED[words], tmp_path)


def test_mount_waits_for_no_import_that_only_others_need(place: Place) -> None:
    """Unlike a mount that is refused, this one goes all the way, and begins a daemon."""
    assert_not_imported(["mount", "-o", place.options, str(place.view)], (*MOUNTING, *PATHLIB), place.view.parent)
    assert place.is_mounted()


def assert_not_imported(words: Sequence[str], unneeded: Sequence[str], directory: Path) -> None:
    """Assert that a command line does not import these modules. Its store is in the directory."""
    script = (
        f"from {PACKAGE}.cli import main as cli\nimport sys\n"
        f"try:\n    cli.main({words})\nexcept SystemExit:\n    pass\n"
        f"print([name for name in sys.modules if f'{{name}}.'.startswith({tuple(f'{name}.' for name in unneeded)})])"
    )
    settings = {**os.environ, "OVERLAYFS_DEMO_STORE": str(directory / "store")}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=SOURCES.parent, capture_output=True, text=True, env=settings)
    assert done.stdout.splitlines()[-1:] == ["[]"], done.stdout + done.stderr


# --- and would the reader notice? -------------------------------------------------------------------


def package(**modules: str) -> dict[str, str]:
    """Sources by full name; in a keyword `__` stands for a dot."""
    return {f"{PACKAGE}.{name.replace('__', '.')}": source for name, source in modules.items()}


def test_a_back_edge_is_named_with_its_line() -> None:
    sources = package(overlay__engine="import os\nfrom overlayfs_demo.fronts import front\n", fronts__front="")
    [complaint] = back_edges(sources)
    assert complaint.startswith("overlayfs_demo.overlay.engine, line 2, imports overlayfs_demo.fronts.front;")


def test_an_import_inside_a_function_counts() -> None:
    assert back_edges(package(events="def f():\n    import overlayfs_demo.errors\n"))


def test_the_modules_at_the_bottom_import_nothing_of_each_other() -> None:
    assert back_edges(package(events="from overlayfs_demo.errors import OverlayError\n", errors=""))


def test_fronts_may_not_import_images() -> None:
    assert back_edges(package(fronts__front="from overlayfs_demo.images import model\n", images__model=""))


def test_a_new_part_of_the_house_must_be_given_its_place() -> None:
    [complaint] = back_edges(package(attic="import overlayfs_demo.errors\n"))
    assert "attic has no place" in complaint


def test_the_order_itself_is_no_complaint() -> None:
    sources = package(
        errors="",
        images__a="from overlayfs_demo.errors import OverlayError\nfrom overlayfs_demo.images import b\n",
        images__b="",
        cli="from overlayfs_demo.images.a import A\n",
    )
    assert not back_edges(sources) + cycles(sources)


def test_a_cycle_inside_a_subpackage_is_named() -> None:
    sources = package(
        images__a="from overlayfs_demo.images.b import B\n",
        images__b="def f():\n    from overlayfs_demo.images import a\n",
    )
    [complaint] = cycles(sources)
    assert "overlayfs_demo.images.a is imported by overlayfs_demo.images.b" in complaint


def test_ctypes_elsewhere_is_named() -> None:
    sources = package(fronts__front="from ctypes import util\n", linux__syscalls="import ctypes\n")
    assert strangers(sources) == ["overlayfs_demo.fronts.front, line 1, imports ctypes; only overlayfs_demo.linux may"]


def test_the_engine_may_name_fuse_overlayfs_but_not_fuse() -> None:
    sources = package(overlay__a="# fuse-overlayfs, user.fuseoverlayfs.opaque, refuse, no FUSE\n# FUSE\n")
    assert fuse_in_engine(sources) == ["overlayfs_demo.overlay.a, line 2: # FUSE"]
