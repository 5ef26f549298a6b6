"""What holds for all tests: no deadlines, and no real data where there is none."""

import os

import pytest
from hypothesis import settings

# A shared machine may stop a process for longer than any deadline: tests do not time.
settings.register_profile("quantfleet", deadline=None, max_examples=60)
settings.load_profile("quantfleet")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests of real data, saying why, where QUANTFLEET_DATA does not name its folder."""
    if os.environ.get("QUANTFLEET_DATA"):
        return
    skip = pytest.mark.skip(reason="needs real data: QUANTFLEET_DATA is not set")
    for item in items:
        if item.get_closest_marker("data") is not None:
            item.add_marker(skip)
