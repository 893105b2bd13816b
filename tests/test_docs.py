"""Every Python example of the README and of docs/, run as it stands there, page by page."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [path for path in sorted((ROOT / "docs").glob("*.md")) if "```python" in path.read_text(encoding="utf-8")]
FENCE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NEEDED = {"frameworks.md": ("torch", "batchgenerators", "dask"), "training-arrays.md": ("bcolz",)}


def program_of(page):
    """The examples of a page as one program whose line numbers are those of the page."""
    text = page.read_text(encoding="utf-8")
    lines = []
    for found in FENCE.finditer(text):
        start = text.count("\n", 0, found.start(1))
        lines += [""] * (start - len(lines)) + found[1].splitlines()
    return "\n".join(lines) + "\n"


def run_page(page, folder, results):
    (folder / "results").symlink_to(results)
    program = folder / f"{page.stem}.py"
    program.write_text(program_of(page), encoding="utf-8")
    environment = {"PYTHONPATH": str(ROOT / "scripts"), "PATH": "/usr/bin:/bin", "HOME": str(folder)}
    command = [sys.executable, program.name]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_the_training_example_of_the_readme_runs(tmp_path, demo_results):
    first = next(found for found in FENCE.finditer((ROOT / "README.md").read_text("utf-8")) if "DataFlow" in found[1])
    (tmp_path / "README.md").write_text(first[0], encoding="utf-8")
    run_page(tmp_path / "README.md", tmp_path, demo_results)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_examples_of_a_page_run_from_top_to_bottom(page, tmp_path, demo_results):
    for package in NEEDED.get(page.name, ()):
        pytest.importorskip(package)
    run_page(page, tmp_path, demo_results)
