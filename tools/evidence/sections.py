"""The sections of the evidence: what each measures and where its figures come from. Another kind is another row."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["SECTIONS", "MissingSection", "Section"]

Figures = Mapping[str, Any]


class MissingSection(LookupError):
    """What a section measures with is not in this checkout."""


@dataclass(frozen=True, slots=True)
class Section:
    """One file of docs/evidence."""

    name: str
    what: str
    source: str
    """'module:function'. The function takes `quick` and returns the figures; see `Section.measure`."""
    packages: Sequence[str] = ()
    """Distributions whose versions the figures depend on; one that is not installed is left out."""

    def measure(self, *, quick: bool) -> Figures:
        """The figures. `quick` measures less of the same, to see that it works.

        Raises:
            MissingSection: its module is not there.
        """
        module, _, function = self.source.partition(":")
        try:
            found: Callable[..., Figures] = getattr(importlib.import_module(module), function)
        except ModuleNotFoundError as error:
            if error.name is None or not module.startswith(error.name):
                raise  # it is there, and something that it needs is not
            raise MissingSection(f"{self.name}: there is no {error.name}") from error
        return found(quick=quick)


_INTEGRATIONS = tuple(f"llama-index-llms-{name}" for name in ("openai", "anthropic", "google-genai"))
_SDKS = ("openai", "anthropic", "google-genai", "google-generativeai", "httpx", "httpx2")

SECTIONS: Mapping[str, Section] = {
    section.name: section
    for section in (
        Section(
            "faults", "every fault on every wire, against the error taxonomy; how late a deadline may be",
            "tools.evidence.faults:figures", _SDKS,
        ),
        Section(
            "promises", "what is promised of routing, health and resilience, each with the figure that could break it",
            "tools.evidence.promises:figures", _SDKS,
        ),
        Section(
            "langchain_suite", "LangChain's standard suites over every model, with the primary well and failing",
            "tools.evidence.langchain_suite:figures",
            ("langchain-tests", "langchain-core", "langchain-openai", "langchain-anthropic", "langchain-google-genai",
             *_SDKS),
        ),
        Section(
            "llamaindex_matrix", "what LlamaIndex does with an LLM over every model, with the primary well and failing",
            "tools.evidence.llamaindex_matrix:figures",
            ("llama-index-core", *_INTEGRATIONS, *_SDKS),
        ),
        Section(
            "local",
            "the local model: speed, cancelling, coming back, going on exactly, schemas, bad files, many callers",
            "tools.evidence.local:figures", ("llama-cpp-python", "xllamacpp", "jsonschema", "gguf"),
        ),
        Section(
            "money", "budgets under crowds that are killed, the bill, power cuts, failing disks, a million rows",
            "tools.evidence.money:figures", ("openai", "anthropic", "google-genai"),
        ),
        Section(
            "cache", "keys, flights, stand-ins and entries of the cache under everything that could make it lie",
            "tools.evidence.cache:figures", ("openai", "hypothesis"),
        ),
        Section(
            "bench", "what the product costs on the request path, beside its peers",
            "tools.evidence.bench:figures", ("langchain-core", "genai-prices"),
        ),
        Section(
            "simulation", "every strategy and the peers' policies through the same simulated troubles; random worlds",
            "tools.evidence.simulation:figures", (),
        ),
        Section(
            "mutants", "small changes to the core, and whether its tests notice",
            "tools.evidence.mutants:figures", ("mutmut", "pytest", "hypothesis"),
        ),
    )
}  # fmt: skip
"""In the order in which they are measured and told."""
