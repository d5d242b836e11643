"""What several test files need."""

import os
from pathlib import Path

import pytest

from smoothlab.__main__ import QUIET_THREADS
from tests.second_tier import KEPT

for name, value in QUIET_THREADS.items():  # before torch is imported: threads that spin make tests wait for each other
    os.environ.setdefault(name, value)
# Workers share the cores: a second thread in each makes all of them slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with the project's data sets beside the checkout; a test that asks for it is skipped without."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("needs the data sets of ../shared/data beside the checkout")
    return folder


@pytest.hookimpl(tryfirst=True)  # before markers select
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the cases that second_tier.py leaves to `make check`."""
    for item in items:
        name, _, case = item.nodeid.partition("[")
        if name in KEPT and case.rstrip("]") not in KEPT[name]:
            item.add_marker("check")
