"""A random model for mechanics and the toy model for sense; one worker of each for the whole session."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared_core.providers.llama_cpp import LlamaCppProvider
from shared_core.routing.target import Target

ENGINES = ("llama-cpp-python", "xllamacpp")
"""What the conformance tests run on."""
NO_LOCAL = os.environ.get("LLM_FALLBACK_NO_LOCAL") == "1"


@pytest.fixture(scope="session", autouse=True)
def _llama_cpp():
    if NO_LOCAL:
        return
    if importlib.util.find_spec("llama_cpp") is None:
        pytest.fail(
            "llama-cpp-python is not installed. hint: pip install 'llm-fallback[local]', or set LLM_FALLBACK_NO_LOCAL=1"
        )


@pytest.fixture(scope="session")
def random_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GGUF of random weights: it loads, and answers with noise."""
    if NO_LOCAL:
        pytest.skip("LLM_FALLBACK_NO_LOCAL=1")
    from shared_core.testing.random_gguf import write_random_gguf

    return write_random_gguf(tmp_path_factory.mktemp("models") / "random.gguf", seed=1)


@pytest.fixture
def own(random_gguf: Path) -> Iterator:
    """Makes providers over the random model that share a worker with nobody; closes them afterwards."""
    made: list[LlamaCppProvider] = []

    def make(**options) -> LlamaCppProvider:
        # Options are part of what is shared: a queue length of its own makes a worker of its own.
        options.setdefault("queue", 100 + len(made) + 1000 * (next(_serial)))
        provider = LlamaCppProvider(Target(f"llamacpp:{random_gguf}", **options))
        made.append(provider)
        return provider

    yield make
    for provider in made:
        provider.close()


def _count() -> Iterator[int]:
    n = 0
    while True:
        n += 1
        yield n


_serial = _count()


@pytest.fixture(scope="session")
def noise(random_gguf: Path) -> Iterator[LlamaCppProvider]:
    """The random model with a warm worker, shared by tests that do not hurt it."""
    provider = LlamaCppProvider(Target(f"llamacpp:{random_gguf}", n_ctx=512, queue=64))
    provider.warm()
    yield provider
    provider.close()


@pytest.fixture(scope="session")
def tiny() -> Iterator[LlamaCppProvider]:
    """The toy model that ships with the package, warm."""
    if NO_LOCAL:
        pytest.skip("LLM_FALLBACK_NO_LOCAL=1")
    provider = LlamaCppProvider(Target("llamacpp:tiny"))
    provider.warm()
    yield provider
    provider.close()
