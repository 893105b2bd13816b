"""Fixtures shared by the tests."""

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def real_data():
    """The folder of real scans beside the repository; tests that need it are skipped where it is absent."""
    folder = ROOT.parent / "shared" / "real-data"
    if not folder.is_dir():
        pytest.skip("the real scans (../shared/real-data) are not here")
    return folder
