"""LangChain's own standard suites, with the primary well and with it answering 503 to everything."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from langchain_core.load import load as langchain_load
from langchain_core.messages import AIMessage
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests

from langchain_fallback import FallbackChatModel
from shared_core.routing.target import Target
from shared_core.testing import FaultServer
from tests.langchain.cells import CLAUDE, GPT, MIXTURES, like_a_model, models_of, names_of

# The smallest PNG there is; the suite fetches its pictures, documents and sounds from the internet.
PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="
)


class Offers:
    """What every mixture of these two models can do. Neither takes sound, nor a PDF in a tool's answer."""

    chat_model_class = FallbackChatModel
    has_tool_choice = True
    supports_json_mode = True
    supports_image_inputs = True
    supports_image_urls = True
    supports_pdf_inputs = True
    supports_anthropic_inputs = True
    supports_image_tool_message = True
    model_override_value = "another-model"

    @property
    def standard_chat_model_params(self) -> dict[str, Any]:
        # The unit suite adds one `api_key` for the whole model; here a key belongs to one target.
        params = super().standard_chat_model_params
        return {name: value for name, value in params.items() if name != "api_key"}


class TestUnit(Offers, ChatModelUnitTests):
    """The ten tests that need no answer."""

    @property
    def chat_model_params(self) -> dict[str, Any]:
        # Fixed addresses, so that what `test_serdes` writes down is always the same.
        return {
            "models": [
                Target(f"openai:{GPT}", base_url="http://127.0.0.1:9/v1", api_key="test"),
                Target(f"anthropic:{CLAUDE}", base_url="http://127.0.0.1:9", api_key="test"),
            ]
        }

    @property
    def init_from_env_params(self) -> tuple[dict[str, str], dict[str, Any], dict[str, Any]]:
        keys = {"OPENAI_API_KEY": "test", "ANTHROPIC_API_KEY": "test"}
        return keys, {"models": [f"openai:{GPT}", f"anthropic:{CLAUDE}"], "temperature": 0.0}, {"temperature": 0.0}

    @pytest.fixture(autouse=True)
    def registered(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """`load(allowed_objects="all")` knows LangChain's own classes only; docs/langchain.md says how to add ours."""
        module = __import__("langchain_core.load.load", fromlist=["ALL_SERIALIZABLE_MAPPINGS"])
        ours = tuple(FallbackChatModel.lc_id())
        monkeypatch.setitem(module.ALL_SERIALIZABLE_MAPPINGS, ours, ours)
        assert callable(langchain_load)


FAULTS = {"well": None, "answering 503": 503}
SERVERS: dict[tuple[str, str], FaultServer] = {}


@pytest.fixture(scope="module", autouse=True)
def servers() -> Iterator[None]:
    """One server per cell of the matrix."""
    for mixture in MIXTURES:
        for fault, step in FAULTS.items():
            server = FaultServer(default=like_a_model).start()
            if step is not None:
                server.script(names_of(mixture)[0], step)
            SERVERS[mixture, fault] = server
    yield
    while SERVERS:
        SERVERS.popitem()[1].stop()


class Cell(Offers, ChatModelIntegrationTests):
    """One mixture of models in one state of the world."""

    mixture: str
    fault: str

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"models": models_of(SERVERS[self.mixture, self.fault], self.mixture), "max_retries": 0}

    @property
    def model_override_value(self) -> str:
        return "another-model" if self.fault == "well" else names_of(self.mixture)[1]

    @property
    def supported_usage_metadata_details(self) -> dict[str, list[str]]:
        return {"invoke": ["cache_read_input"], "stream": ["cache_read_input"]}

    def invoke_with_cache_read_input(self, *, stream: bool = False) -> AIMessage:
        model = FallbackChatModel(**self.chat_model_params)
        if not stream:
            return model.invoke("Hello")
        chunks = list(model.stream("Hello"))
        return sum(chunks[1:], start=chunks[0])

    @pytest.fixture(autouse=True)
    def no_internet(self, monkeypatch: pytest.MonkeyPatch) -> None:
        reply = httpx.Response(200, content=PIXEL)
        monkeypatch.setattr(httpx, "get", lambda *args, **kwargs: reply)
        monkeypatch.setenv("LANGCHAIN_TESTS_USER_AGENT", "llm-fallback")


def _name(mixture: str, fault: str) -> str:
    words = mixture.replace("native ", "Native").replace(", ", " Then ").replace("ChatOpenAI", "Chatopenai").split()
    return "Test" + "".join(words) + "".join(word.capitalize() for word in f"primary {fault}".split())


for _mixture in MIXTURES:
    for _fault in FAULTS:
        _cell = type(_name(_mixture, _fault), (Cell,), {"mixture": _mixture, "fault": _fault, "__module__": __name__})
        globals()[_cell.__name__] = _cell
del Cell, _cell  # type: ignore[name-defined]  # bound by the loop; only its subclasses are to be collected
