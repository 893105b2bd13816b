"""Fixtures shared by the tests."""

from pathlib import Path

import pytest
from stores import EVERY_FORMAT
from workspace import Workspace

ROOT = Path(__file__).resolve().parents[1]


def pytest_collection_modifyitems(items):
    """Tests of a file share a worker, and so do all that look at the demo cohort, which takes long to make."""
    for item in items:
        group = "demo" if "demo_results" in item.fixturenames else item.path.name
        item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture(scope="session")
def real_data():
    """The folder of real scans beside the repository; tests that need it are skipped where it is absent."""
    folder = ROOT.parent / "shared" / "real-data"
    if not folder.is_dir():
        pytest.skip("the real scans (../shared/real-data) are not here")
    return folder


@pytest.fixture(scope="session")
def demo_results(tmp_path_factory):
    """The results of the demo cohort, in every format: not to be written to."""
    workspace = Workspace(tmp_path_factory.mktemp("demo"))
    workspace.run(pack=EVERY_FORMAT)
    assert "Nothing to be done" in workspace.run(pack=EVERY_FORMAT).text
    return workspace.results
