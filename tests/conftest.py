"""What holds for every test."""

from __future__ import annotations

import os
from pathlib import Path

import pluggy
import pytest
from hypothesis import HealthCheck, settings

# Every run draws the same examples, so a failure repeats; `HYPOTHESIS_PROFILE=explore` looks for new ones.
settings.register_profile("repeatable", derandomize=True, deadline=None, print_blob=True)
settings.register_profile(
    "explore", deadline=None, max_examples=2000, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))

HERE = Path(__file__).parent

# The test runner's own frames stand between a failure and its reader; `--tb=native` does not leave them out by itself.
RUNNER = (str(Path(pluggy.__file__).parent), str(Path(pytest.__file__).parent.parent / "_pytest"))

# Whose every test carries a marker: (folder or file, marker).
MARKED = [("providers", "provider"), ("faults/test_fault_server_sdks.py", "provider"), ("local", "local")]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for place, marker in MARKED:
            if item.path.is_relative_to(HERE / place):
                item.add_marker(marker)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> None:
    if call.excinfo is None:
        return
    first = call.excinfo.tb
    while first.tb_next is not None and first.tb_frame.f_code.co_filename.startswith(RUNNER):
        first = first.tb_next
    call.excinfo = pytest.ExceptionInfo.from_exc_info((call.excinfo.type, call.excinfo.value, first))
