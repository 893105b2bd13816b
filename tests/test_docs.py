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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_examples_of_a_page_run_from_top_to_bottom(page, tmp_path, demo_results):
    for package in NEEDED.get(page.name, ()):
        pytest.importorskip(package)
    (tmp_path / "results").symlink_to(demo_results)
    program = tmp_path / f"{page.stem}.py"
    program.write_text(program_of(page), encoding="utf-8")
    environment = {"PYTHONPATH": str(ROOT / "scripts"), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, program.name], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
