"""Do several processes run every test once, and tell of it as one does?"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.places import MINUTE, ROOT

# Another process begins with the last file.
FILES = {
    "test_a.py": """
        import os, time, warnings
        def test_waits_for_the_other():
            while not os.path.exists("began"):
                time.sleep(0.01)
        """,
    "test_b.py": """
        import os, pytest
        def test_begins():
            open("began", "w").close()
        def test_fails():
            print("what it printed")
            assert os.getpid() == 0
        def test_skipped():
            pytest.skip("the reason")
        """,
}


def several_processes(where: Path, files: dict[str, str], *options: str) -> subprocess.CompletedProcess[str]:
    for name, text in files.items():
        (where / name).parent.mkdir(exist_ok=True)
        (where / name).write_text("\n".join(line[8:] for line in text.splitlines()))
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "tests.side_by_side", "--side-by-side", *options, "."],
        cwd=where,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=MINUTE,
    )


@pytest.fixture(autouse=True)
def _namespaces() -> None:
    if os.geteuid() == 0 and subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode != 0:
        pytest.skip("needs the right to make a mount namespace, or one process runs all")


def test_there_is_one_list_of_failures_one_summary_and_one_status(tmp_path: Path) -> None:
    done = several_processes(tmp_path, FILES, "-ra")
    assert done.returncode == 1
    assert "SKIPPED [1] test_b.py:9: the reason" in done.stdout
    assert "FAILED test_b.py::test_fails" in done.stdout and "what it printed" in done.stdout
    assert "= 1 failed, 2 passed, 1 skipped in " in done.stdout.splitlines()[-1]


def test_all_that_passes_is_status_0(tmp_path: Path) -> None:
    done = several_processes(tmp_path, FILES, "-k", "begins or waits")
    assert done.returncode == 0
    assert "= 2 passed, 2 deselected in " in done.stdout.splitlines()[-1]


def test_a_first_failure_ends_both(tmp_path: Path) -> None:
    done = several_processes(tmp_path, FILES, "-x")
    assert done.returncode == 1
    assert "stopping after 1 failures" in done.stdout


def test_the_death_of_another_process_is_a_failure(tmp_path: Path) -> None:
    dies = """
        import os
        def test_dies():
            open("began", "w").close()
            os._exit(3)
        """
    done = several_processes(tmp_path, FILES | {"test_b.py": dies})
    assert done.returncode == 1
    assert "another process ended early, with status 3" in done.stdout


def test_files_of_one_folder_may_be_shared(tmp_path: Path) -> None:
    """What the folder set up is torn down with each file, whichever process has the next one."""
    ends = """
        def test_ends():
            open("folder-ended", "w").close()
        """
    passes = """
        def test_passes():
            pass
        """
    # This process gets to the second folder only after another has claimed the last files of the first.
    waits = """
        import os, time
        def test_waits():
            while not os.path.exists("folder-ended"):
                time.sleep(0.01)
        """
    slow = """
        import time
        def test_is_slow():
            time.sleep(0.3)
        """
    files = {f"p0/test_0{letter}.py": passes for letter in "abcdefghijk"} | {
        "p0/test_00.py": waits,
        "p0/test_0z.py": ends,
    }
    files |= {f"p1/test_1{letter}.py": slow for letter in "abcdefghijklm"}
    done = several_processes(tmp_path, files | {"p0/__init__.py": "", "p1/__init__.py": ""})
    assert done.returncode == 0, done.stdout
    assert "= 26 passed in " in done.stdout.splitlines()[-1]
