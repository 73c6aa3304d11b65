"""LangChain's own standard suites over every way to build the model, in every state of the world.

Each class is one cell of a matrix: who is the primary, who the fallback, how they are given, and what the primary does
to every request (`cells.FAULTS`). All flags of the suite are on, so no test is skipped. What no live target of a cell
can serve is named in `UNSERVED` with its reason; the test runs all the same, and must end in `AllTargetsFailed`.
A pass of ours says more than the suite asks: after each test the server's log must show that the primary failed as
it was told to, that nobody else was asked without need, and that what was sent along arrived (`Integration.conduct`).

Run here is a quarter of the matrix, chosen so that every pair of vendors meets every fault, and every mix of native
and wrapped meets every pair and every fault. ``LANGCHAIN_MATRIX=full`` runs all of it. So does
``make evidence ARGS="langchain_suite"``, which writes docs/evidence/langchain_suite.json.
"""

from __future__ import annotations

import base64
import importlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_tests.conftest import base_vcr_config
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests
from vcr import VCR

from langchain_fallback import FallbackChatModel, LangChainProvider
from shared_core.errors import AllTargetsFailed
from shared_core.router import Router
from shared_core.testing import FaultServer, SeenRequest
from tests.langchain.cells import FAULTS, MIXES, MODELS, PAIRS, Cell, Vendor, covering_cells, every_cell

FULL = os.environ.get("LANGCHAIN_MATRIX") == "full"

UNSERVED: Mapping[tuple[Vendor, str], str] = {
    ("anthropic", "test_audio_inputs"): "Claude takes no sound, and whoever does is down",
}
"""By the only vendor left alive and test: why nobody can serve what it asks."""

TOLD: Mapping[Vendor, Sequence[str]] = {
    "openai": ("cache_read_input", "cache_creation_input", "reasoning_output"),
    "anthropic": ("cache_read_input", "cache_creation_input", "reasoning_output"),
    "google": ("cache_read_input", "reasoning_output"),
}
"""The details of usage that a vendor's wire reports. Of sound the fault server's wires report none."""

# What the suite finds on the internet. Nothing in it looks different in base64 for URLs.
FOUND: Mapping[str, bytes] = {
    ".png": base64.b64decode(
        "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="
    ),
    ".pdf": b"%PDF-1.4 a document",
    ".wav": b"RIFF    WAVEfmt a flicker",
}
GOOD = frozenset({"ok", "answer", "like_a_model"})
"""Steps of the server that are answers."""
SENT: Mapping[str, str] = {
    "test_pdf_inputs": ".pdf",
    "test_pdf_tool_message": ".pdf",
    "test_audio_inputs": ".wav",
    "test_image_inputs": ".png",
    "test_image_tool_message": ".png",
}
"""What goes along with every request of a test."""


class Offers:
    """Everything that some target can do. `supports_video_inputs` is the one flag without a test."""

    chat_model_class = FallbackChatModel
    has_tool_choice = True
    supports_json_mode = True
    supports_image_inputs = True
    supports_image_urls = True
    supports_pdf_inputs = True
    supports_audio_inputs = True
    supports_anthropic_inputs = True
    supports_image_tool_message = True
    supports_pdf_tool_message = True
    enable_vcr_tests = True


# ── the ten tests that need no answer ────────────────────────────────────────────────────────────────────────────────


class Unit(Offers, ChatModelUnitTests):
    """For every pair of vendors, given in every way. Nobody is asked, so nobody can fail."""

    cell: Cell
    ready: dict[str, BaseChatModel]
    registers = True

    @property
    def standard_chat_model_params(self) -> dict[str, Any]:
        # The suite adds one `api_key` for the whole model; here a key belongs to one target.
        return {name: value for name, value in super().standard_chat_model_params.items() if name != "api_key"}

    @property
    def chat_model_params(self) -> dict[str, Any]:
        # Fixed addresses, so that what `test_serdes` writes down is always the same.
        nowhere: Any = SimpleNamespace(
            openai_url="http://127.0.0.1:9/v1", anthropic_url="http://127.0.0.1:9", google_url="http://127.0.0.1:9"
        )
        return {"models": self.cell.models(nowhere, ready=self.ready)}

    @property
    def init_from_env_params(self) -> tuple[dict[str, str], dict[str, Any], dict[str, Any]]:
        keys = dict.fromkeys(("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "GOOGLE_API_KEY"), "test")
        models = [f"{vendor}:{MODELS[vendor]}" for vendor in (self.cell.primary, self.cell.fallback)]
        return keys, {"models": models, "temperature": 0.0}, {"temperature": 0.0}

    @pytest.fixture(autouse=True)
    def registered(self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
        """`load(allowed_objects="all")` knows LangChain's own classes only; docs/langchain.md says how to add ours."""
        module = importlib.import_module("langchain_core.load.load")
        # It remembers what it may load; nothing of that is to reach the next test.
        monkeypatch.setattr(module, "_default_class_paths_cache", {}, raising=False)
        if self.registers:
            ours = tuple(FallbackChatModel.lc_id())
            monkeypatch.setitem(module.ALL_SERIALIZABLE_MAPPINGS, ours, ours)
        elif request.node.originalname == "test_serdes":
            reason = "LangChain loads a class of somebody else's only where it is told of it"
            request.applymarker(pytest.mark.xfail(reason=reason, raises=ValueError, strict=True))


def _add(base: type, name: str, cell: Cell, **more: Any) -> None:
    globals()[name] = type(name, (base,), {"cell": cell, "ready": {}, "__module__": __name__, **more})


for _primary, _fallback in PAIRS:
    for _mix in MIXES:
        _cell = Cell(_primary, _fallback, _mix, "well")
        _add(Unit, _cell.name.replace("Test", "TestUnit").removesuffix("PrimaryWell"), _cell)
_add(Unit, "TestUnitUnregistered", Cell("openai", "anthropic", "native", "well"), registers=False)
del Unit  # only its subclasses are to be collected


# ── the fifty that ask ───────────────────────────────────────────────────────────────────────────────────────────────


class Integration(Offers, ChatModelIntegrationTests):
    """In one cell of the matrix."""

    cell: Cell
    server: FaultServer
    ready: dict[str, BaseChatModel]
    test = ""

    @property
    def chat_model_params(self) -> dict[str, Any]:
        models = self.cell.models(self.server, sound=self.test == "test_audio_inputs", ready=self.ready)
        if self.cell.shape == "router=":
            ready = [LangChainProvider(m) if isinstance(m, BaseChatModel) else m for m in models]
            return {"router": Router(ready, retry={"total": 0})}
        params: dict[str, Any] = {"models": models, "max_retries": 0}
        if self.cell.shape == "output_version v1":
            params["output_version"] = "v1"
        return params

    @property
    def model_override_value(self) -> str:
        # Another model of the primary's vendor goes down with it: who names a model then names the fallback's.
        return "another-model" if self.cell.fault == "well" else MODELS[self.cell.fallback]

    @property
    def supported_usage_metadata_details(self) -> dict[Any, Any]:
        told = list(TOLD[self.cell.serving])
        return {"invoke": told, "stream": told}

    def _hello(self, *, stream: bool = False) -> AIMessage:
        model = FallbackChatModel(**self.chat_model_params)
        if not stream:
            return model.invoke("Hello")
        chunks = list(model.stream("Hello"))
        return sum(chunks[1:], start=chunks[0])

    invoke_with_cache_read_input = invoke_with_cache_creation_input = invoke_with_reasoning_output = _hello

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def running(cls) -> Iterator[None]:
        """One server for the cell."""
        cls.server = cls.cell.start()
        try:
            cls.cell.models(cls.server, ready=cls.ready)  # skips the cell where LangChain's Google class is left out
            yield
        finally:
            cls.server.stop()

    @pytest.fixture(autouse=True)
    def conduct(self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        """No internet before the test; after it, the server saw what it should have seen."""
        self.test = request.node.originalname
        monkeypatch.setattr(httpx, "get", lambda url, **more: httpx.Response(200, content=FOUND[url[-4:]]))
        with suppress(ImportError):  # ChatGoogleGenerativeAI fetches pictures by itself
            page = SimpleNamespace(ok=True, content=FOUND[".png"])
            monkeypatch.setattr(importlib.import_module("requests"), "get", lambda url, **more: page)
        monkeypatch.setenv("LANGCHAIN_TESTS_USER_AGENT", "llm-fallback")
        self.server.clear()
        alone = None if self.cell.fault == "well" else self.cell.fallback
        unserved = None if alone is None else UNSERVED.get((alone, self.test))
        if unserved is not None:
            request.applymarker(pytest.mark.xfail(reason=unserved, raises=AllTargetsFailed, strict=True))
        yield
        if unserved is None:
            self._asked_the_right_ones(self.server.requests)
            self._arrived([seen for seen in self.server.requests if seen.step in GOOD])

    def _asked_the_right_ones(self, seen: Sequence[SeenRequest]) -> None:
        """Who is well answers; a primary that fails is asked first, and fails."""
        asked = [(request.wire, request.step in GOOD) for request in seen]
        cell = self.cell
        unable = self.test == "test_audio_inputs" and cell.primary == "anthropic"
        named = "model_override" in self.test  # by the caller: the model named is asked first
        if self.test == "test_stream_time":
            assert (cell.serving, True) not in asked, "it was to be replayed, not asked"
        elif cell.fault == "well":
            assert {wire for wire, _ in asked} <= {cell.fallback if unable else cell.primary}
        else:
            assert (cell.primary, True) not in asked, "the primary answered, though it was to fail"
            # On a busy machine one that says nothing may be given up before it has read the request.
            if asked and not unable and not named and cell.fault != "says nothing":
                assert asked[0] == (cell.primary, False)

    def _arrived(self, answered: Sequence[SeenRequest]) -> None:
        """Pictures, documents and sounds were sent on, or their addresses."""
        ending = SENT.get(self.test)
        if ending is not None:
            assert answered
            wanted = base64.b64encode(FOUND[ending]).decode().rstrip("=")
            bodies = [json.dumps(request.body) for request in answered]
            assert all(wanted in body or f'{ending}"' in body for body in bodies)

    @pytest.fixture
    def vcr_config(self, tmp_path: Path) -> dict[str, Any]:
        # A failure is no answer and cannot be recorded: the primary fails anew while the fallback is replayed.
        mode = "none" if self.cell.fault == "well" else "new_episodes"
        return {**base_vcr_config(), "cassette_library_dir": str(tmp_path), "record_mode": mode}

    @pytest.fixture
    def vcr_cassette_dir(
        self, conduct: None, tmp_path: Path, default_cassette_name: str, vcr_config: dict[str, Any]
    ) -> str:
        """For `test_stream_time`, the one test that replays: the same call, recorded just before."""
        if self.test == "test_stream_time":
            with VCR().use_cassette(default_cassette_name, **{**vcr_config, "record_mode": "once"}) as cassette:
                list(FallbackChatModel(**self.chat_model_params).stream("Write a story about a cat."))
                assert cassette.responses
            self.server.clear()
        return str(tmp_path)


for _cell in every_cell() if FULL else covering_cells():
    _add(Integration, _cell.name, _cell)
del Integration, _cell


def test_every_part_of_the_matrix_stands_in_the_quarter_that_runs_here():
    """Each pair with each fault, each mix with each pair and each fault, each shape; and nothing that is not in it."""
    cells = list(covering_cells())
    assert {(c.primary, c.fallback, c.fault) for c in cells} == {(*pair, fault) for pair in PAIRS for fault in FAULTS}
    assert {(c.mix, c.primary, c.fallback) for c in cells} == {(mix, *pair) for mix in MIXES for pair in PAIRS}
    assert {(c.mix, c.fault) for c in cells} == {(mix, fault) for mix in MIXES for fault in FAULTS}
    full = list(every_cell())
    assert {c.shape for c in cells} == {c.shape for c in full}
    assert set(cells) < set(full)
    assert len({c.name for c in full}) == len(full)
