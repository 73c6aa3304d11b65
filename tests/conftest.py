"""What holds for every test."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Generator, Iterator
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

# What a world leaves out on purpose (requirements/): a test file that needs it is skipped there, with this reason.
LEFT_OUT = {
    "newest": {
        "llama_index.llms": "LlamaIndex's OpenAI class accepts openai<3 only",
        "langchain_google_genai": "LangChain's Google class accepts google-genai<3 only",
    },
}


@pytest.fixture(autouse=True)
def log_as_it_was() -> Iterator[None]:
    """A test that turns the log on (`preset="development"` does) turns it on for itself only."""
    log = logging.getLogger("llm_fallback")
    level, handlers = log.level, list(log.handlers)
    yield
    log.setLevel(level)
    log.handlers[:] = handlers


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for place, marker in MARKED:
            if item.path.is_relative_to(HERE / place):
                item.add_marker(marker)


class LeftOutSkips:
    """Turns the ImportError of what this world leaves out into a skip with its reason.

    A plugin of its own, because the hooks of a conftest are not asked when another conftest fails to import.
    """

    def __init__(self, left_out: dict[str, str]) -> None:
        self.left_out = left_out

    @pytest.hookimpl(wrapper=True)
    def pytest_make_collect_report(
        self, collector: pytest.Collector
    ) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
        report = yield
        if report.failed and (missing := re.search(r"No module named '([\w.]+)'", str(report.longrepr))):
            for module, reason in self.left_out.items():
                if f"{missing[1]}.".startswith(f"{module}."):
                    report.outcome = "skipped"
                    report.longrepr = (str(collector.path), 0, f"Skipped: {reason}")
        return report


def pytest_configure(config: pytest.Config) -> None:
    world = os.environ.get("LLM_FALLBACK_WORLD", "stable")
    config.pluginmanager.register(LeftOutSkips(LEFT_OUT.get(world, {})), "left-out-skips")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> None:
    if call.excinfo is None:
        return
    first = call.excinfo.tb
    while first.tb_next is not None and first.tb_frame.f_code.co_filename.startswith(RUNNER):
        first = first.tb_next
    call.excinfo = pytest.ExceptionInfo.from_exc_info((call.excinfo.type, call.excinfo.value, first))
