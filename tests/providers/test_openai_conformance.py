"""The providers over SDKs keep the contract of a provider, as the package's own conformance check reads it."""

from __future__ import annotations

import pytest

from shared_core.providers import build
from shared_core.routing.target import Target
from shared_core.testing import FaultServer, check_provider

SPECS = ["openai:gpt-4o", "groq:llama", "ollama:llama3.2", "anthropic:claude-opus-4-6"]


@pytest.mark.parametrize("spec", SPECS)
def test_the_provider_keeps_the_contract(spec: str) -> None:
    with FaultServer() as server:
        url = server.anthropic_url if spec.startswith("anthropic") else server.openai_url
        check_provider(build(Target(spec, base_url=url, api_key="sk-test-not-a-real-key-000")))
