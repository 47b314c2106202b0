"""Do the documents show up, hold together, and name only verbs and options that exist?"""

from __future__ import annotations

import argparse
import fnmatch
import itertools
import re
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest

import overlayfs_demo
from overlayfs_demo.cli import documents, main
from overlayfs_demo.tour import experiments
from overlayfs_demo.tour.labs import LABS
from tests.cli.test_terminal import on_terminal
from tests.places import ROOT, fails, run
from tests.tour.test_labs import SOLUTIONS

DOCS = ROOT / "overlayfs_demo/docs"
SHARE = DOCS / "share"
PAGE = SHARE / "man/man1/overlayfs-demo.1"
ALL = [ROOT / "README.md", *sorted(DOCS.glob("*.md")), *sorted((ROOT / ".github").glob("*.md"))]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
STYLE = re.compile(r"\x1b\[[0-9;]*m")


def verbs() -> dict[str, argparse.ArgumentParser]:
    [found] = [action for action in main.parser_for([])._actions if isinstance(action, argparse._SubParsersAction)]
    return dict(found.choices)


def headings(document: Path) -> set[str]:
    """The fragments by which a link can name a heading."""
    found = re.findall(r"^#+ (.*)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in found}


# --- manual TOPIC ----------------------------------------------------------------------------------


def test_every_document_is_a_topic_with_a_title() -> None:
    listed = run("overlayfs-demo", "manual", "--list").stdout.splitlines()
    assert [line.split()[0] for line in listed] == documents.topics()
    assert {topic.replace("-", "_") for topic in documents.topics()} == {path.stem for path in DOCS.glob("*.md")}
    for topic in documents.topics():
        assert documents.read(topic).startswith("# ")


@pytest.mark.parametrize("topic", ["on-disk-format", "architecture"])
def test_a_pipe_gets_the_document_as_it_is(topic: str) -> None:
    assert run("overlayfs-demo", "manual", topic).stdout == (DOCS / f"{topic.replace('-', '_')}.md").read_text()


@pytest.mark.parametrize("columns", [40, 200])
def test_a_terminal_gets_it_formatted(columns: int) -> None:
    shown = on_terminal("overlayfs-demo", "manual", "security", columns=columns)
    plain = STYLE.sub("", shown)
    assert plain != shown
    assert "**" not in plain and "\n## " not in plain and "```" not in plain
    assert max(map(len, plain.splitlines())) <= min(columns, 80)
    assert "bubblewrap" in plain


def test_a_topic_that_is_not_there_is_named_with_the_topics() -> None:
    fails(run("overlayfs-demo", "manual", "nonsense"), "no document 'nonsense'", *documents.topics())


def test_the_manual_page_stays_what_is_shown_without_a_topic() -> None:
    assert run("overlayfs-demo", "manual").stdout.startswith(".TH OVERLAYFS-DEMO 1")


# --- what they say ---------------------------------------------------------------------------------


@pytest.mark.parametrize("document", ALL, ids=lambda path: path.name)
def test_links_lead_to_files_and_headings(document: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        if target.startswith("https://"):
            continue
        name, _, fragment = target.partition("#")
        there = document.parent / name if name else document
        assert there.is_file(), target
        assert not fragment or fragment in headings(there), target


@pytest.mark.parametrize("document", ALL, ids=lambda path: path.name)
def test_commands_have_a_verb_and_options_that_exist(document: Path) -> None:
    known = verbs()
    for name, rest in re.findall(r"overlayfs-demo ([a-z]+)\b([^\n`|#]*)", document.read_text()):
        if name not in known:
            continue  # A sentence about the program.
        options = {option for action in known[name]._actions for option in action.option_strings}
        if name not in ("explain", "shell", "mount"):  # What follows there may be another command's.
            assert {word for word in rest.split() if re.fullmatch(r"--?[a-z-]+", word)} <= options, (name, rest)


@pytest.mark.parametrize("document", ALL, ids=lambda path: path.name)
def test_scripts_and_modules_exist(document: Path) -> None:
    text = document.read_text()
    for script in re.findall(r"scripts/([a-z-]+)\b(?![./])", text):
        assert (ROOT / "scripts" / script).is_file(), script
    for test in re.findall(r"\btests/[\w/]+\.py", text):
        assert (ROOT / test).is_file(), test
    for module in re.findall(r"`((?:\w+/)+\w+\.py)`", text):
        assert (ROOT / module).is_file() or (ROOT / "overlayfs_demo" / module).is_file(), module


def test_the_readme_is_short_and_counts_the_experiments() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 200
    assert f"{len(experiments.ALL)} classic experiments" in text


def test_the_lecturers_table_has_every_experiment_and_lab() -> None:
    table = (DOCS / "teaching.md").read_text().partition("## Aims")[2].partition("\n## ")[0]
    rows = [row.split("|")[1:-1] for row in table.splitlines() if row.startswith("| ")][1:]
    told, tasks = (re.findall(r"`([a-z-]+)`", " ".join(row[column] for row in rows)) for column in (1, 3))
    assert sorted(told) == sorted(experiment.name for experiment in experiments.ALL)
    assert sorted(tasks) == sorted(lab.name for lab in LABS)
    assert all(bool(row[column].strip()) == row[column + 1].strip().isdigit() for row in rows for column in (1, 3))


@pytest.mark.parametrize("minutes", [45, 90])
def test_a_plan_takes_the_time_in_its_heading_and_names_what_exists(minutes: int) -> None:
    plan = (DOCS / "teaching.md").read_text().partition(f"## A plan of {minutes} minutes")[2].partition("\n## ")[0]
    assert sum(map(int, re.findall(r"^\| (\d+) \|", plan, re.MULTILINE))) == minutes
    tasks = re.findall(r"lab `([a-z-]+)`", plan)
    told = re.findall(r"(?<!lab )`([a-z-]+)`", plan.replace("labs `hard-link` and `rename`", ""))
    assert tasks and set(tasks) <= {lab.name for lab in LABS}
    assert told and set(told) <= {experiment.name for experiment in experiments.ALL}


def test_the_lecturers_solutions_are_those_that_are_tested() -> None:
    text = (DOCS / "teaching.md").read_text().partition("## Solutions")[2].partition("\n## ")[0]
    found = re.findall(r"^- `([a-z-]+)`.*\n\n {6}(.*)$", text, re.MULTILINE)
    assert [name for name, _ in found] == [lab.name for lab in LABS]
    assert [solution for solution in found if solution not in SOLUTIONS] == []


def test_the_readme_links_every_document() -> None:
    text = (ROOT / "README.md").read_text()
    assert [path.name for path in DOCS.glob("*.md") if f"(overlayfs_demo/docs/{path.name})" not in text] == []


def test_the_architecture_names_only_modules_that_exist() -> None:
    """In the list of folders, a word in backquotes is a module or a folder of that folder."""
    folders = (DOCS / "architecture.md").read_text().partition("## The folders")[2].partition("\n## ")[0]
    for item in re.split(r"\n- ", folders)[1:]:
        folder = re.match(r"\*\*`([a-z]+)/`\*\*", item)
        assert folder, item
        base = ROOT / "overlayfs_demo" / folder[1]
        assert base.is_dir(), base
        for name in re.findall(r"`([a-z_]+)`", item[folder.end() :]):
            found = [*base.rglob(f"{name}.py"), *(path for path in base.rglob(name) if path.is_dir())]
            assert found or name in ("ctypes", "report", "stat"), f"{folder[1]}: {name}"


# --- what an installation brings -------------------------------------------------------------------


def test_the_page_that_is_installed_is_what_the_verbs_say() -> None:
    store = "OVERLAYFS_DEMO_STORE=/var/lib/overlayfs-demo"  # root's, whoever runs the test
    assert run("env", store, "overlayfs-demo", "manual").stdout == PAGE.read_text(), (
        f"write it again: {store} overlayfs-demo manual >{PAGE.relative_to(ROOT)}"
    )


@pytest.mark.parametrize(
    ("shell", "file"),
    [
        ("bash", "bash-completion/completions/overlayfs-demo"),
        ("zsh", "zsh/site-functions/_overlayfs-demo"),
        ("fish", "fish/vendor_completions.d/overlayfs-demo.fish"),
    ],
)
def test_each_shell_can_read_its_completion(shell: str, file: str) -> None:
    # The text is argcomplete's, and another in each of its versions.
    assert "overlayfs-demo" in (SHARE / file).read_text()
    if shutil.which(shell) is None:
        pytest.skip(f"needs {shell}")
    assert run(shell, "-n", SHARE / file).returncode == 0


def test_topics_are_completed_by_the_file_that_is_installed() -> None:
    line = "overlayfs-demo manual on-d"
    script = (
        f"source {SHARE / 'bash-completion/completions/overlayfs-demo'}\n"
        f"COMP_LINE='{line}' COMP_POINT={len(line)} COMP_TYPE=9 COMP_WORDS=({line}) COMP_CWORD=2\n"
        '_python_argcomplete overlayfs-demo 2>/dev/null\nprintf "%s\\n" "${COMPREPLY[@]}"'
    )
    assert run("bash", "-c", script).stdout.split() == ["on-disk-format"]


def test_the_documents_and_the_shared_files_are_installed() -> None:
    setuptools = PROJECT["tool"]["setuptools"]
    for path in DOCS.glob("*.md"):
        assert any(fnmatch.fnmatch(f"docs/{path.name}", glob) for glob in setuptools["package-data"]["overlayfs_demo"])
    for path in (path for path in SHARE.rglob("*") if path.is_file()):
        globs = setuptools["data-files"][f"share/{path.parent.relative_to(SHARE)}"]
        assert any(fnmatch.fnmatch(str(path.relative_to(ROOT)), glob) for glob in globs), path


# --- one version, and one list of Pythons ----------------------------------------------------------


def test_the_version_is_said_once() -> None:
    assert "version" not in PROJECT["project"] and PROJECT["project"]["dynamic"] == ["version"]
    assert PROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "overlayfs_demo.__version__"}
    assert run("overlayfs-demo", "--version").stdout == f"overlayfs-demo {overlayfs_demo.__version__}\n"
    assert f"\n## {overlayfs_demo.__version__}" in (DOCS / "changelog.md").read_text()


def test_every_python_that_is_promised_is_tested() -> None:
    workflow = (ROOT / ".github/workflows/ci.yml").read_text()
    [tested] = re.findall(r"^ +python: \[(.*)\]$", workflow, re.MULTILINE)
    promised = [name.rpartition(" ")[2] for name in PROJECT["project"]["classifiers"] if re.search(r":: 3\.\d+$", name)]
    assert re.findall(r'"([^"]+)"', tested) == promised
    assert PROJECT["project"]["requires-python"] == f">={promised[0]}"


def test_every_package_that_is_needed_is_explained() -> None:
    text = (DOCS / "dependencies.md").read_text()
    project = PROJECT["project"]
    for needed in itertools.chain(project["dependencies"], *project["optional-dependencies"].values()):
        assert re.split("[><=]", needed)[0] in text, needed
