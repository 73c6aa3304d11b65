"""The entries of `models=`: ready LLMs as targets, and targets as data that travels without keys."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from llama_index.core.llms.llm import LLM

from llamaindex_fallback._state import MISSING, dump_llm, load_llm, plain, plain_options
from llamaindex_fallback.provider import LlamaIndexProvider
from shared_core.errors import ConfigurationError
from shared_core.routing.provider import Provider
from shared_core.routing.target import KEYWORDS, Target

_OF_A_TARGET: Final = tuple(sorted(KEYWORDS - {"api_key", "provider", "model"}))


def dump_target(target: Target) -> dict[str, Any]:
    """A target as the mapping it can be built from, without its key."""
    told: dict[str, Any] = {}
    for name in _OF_A_TARGET:
        value = getattr(target, name)
        if value is not None and (kept := plain(value)) is not MISSING:
            told[name] = kept
    if isinstance(target.provider, LlamaIndexProvider):
        return {"llm": dump_llm(target.provider.llm)} | told
    if target.provider is not None:
        raise ConfigurationError(
            f"target {target.name!r} is built around a ready {type(target.provider).__name__}, which is not plain data"
        )
    return {"provider": target.provider_name, "model": target.model} | told | plain_options(target.options)


def shown(target: Target) -> Any:
    """A target as an entry of `models=` that asks the same: a ready LLM as it is, with the settings it was given."""
    provider = target.provider
    if not isinstance(provider, LlamaIndexProvider):
        return target
    bare = target_of(provider.llm, ())
    own = {name: value for name in _OF_A_TARGET if (value := getattr(target, name)) != getattr(bare, name)}
    return {"llm": provider.llm, **own} if own else provider.llm


def pickled(target: Target) -> Any:
    """A target as it travels: as data, since a wrapped LLM and an option such as headers would take keys along."""
    known = target.provider is None or isinstance(target.provider, LlamaIndexProvider)
    return dump_target(target) if known else target


def load_model(told: Any) -> Any:
    """One entry of `models=` as it was told: wrapped LLMs are built, everything else is for the router to read."""
    if not isinstance(told, Mapping):
        return told
    model = dict(told)
    if isinstance(model.get("llm"), Mapping):
        model["llm"] = load_llm(model["llm"])
    able = model.get("capabilities")
    if isinstance(able, Mapping) and "tool_choice" in able:
        model["capabilities"] = {**able, "tool_choice": frozenset(able["tool_choice"])}  # JSON has no sets
    return model


def target_of(model: Any, taken: Sequence[str]) -> Any:
    """One entry of `models=` as the router takes it; ready LLMs become targets under a name that is not taken."""
    if isinstance(model, LLM):
        model = {"llm": model}
    if not (isinstance(model, Mapping) and "llm" in model):
        return model
    options = dict(model)
    provider = LlamaIndexProvider(options.pop("llm"))
    name = spec = f"{provider.name}:{provider.model}"
    number = 2
    while name in taken:
        name, number = f"{spec}#{number}", number + 1
    return Target(provider=provider, **{"name": name, **options})


def targets_of(models: Any) -> list[Any]:
    """`models=` as the router takes it: one entry or several; ready LLMs become targets under names of their own."""
    if isinstance(models, (str, Mapping, Target, LLM, Provider)):
        models = [models]
    elif not isinstance(models, Iterable):
        raise ConfigurationError(
            f"models= takes a model or several, not {type(models).__name__}\nhint: a ready Router goes to router="
        )
    targets: list[Any] = []
    for model in models:
        taken = [name if isinstance(name := getattr(t, "name", t), str) else "" for t in targets]
        targets.append(target_of(model, taken))
    if not targets:
        raise ConfigurationError("FallbackLLM needs at least one model\nhint: models=['openai:gpt-5-mini']")
    return targets
