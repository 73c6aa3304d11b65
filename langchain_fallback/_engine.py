"""The router behind a chat model: built from the model's settings, and shared by every copy of the model."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Literal

from langchain_core.caches import BaseCache
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.language_models.model_profile import ModelProfile
from langchain_core.outputs import ChatGeneration
from pydantic import SecretStr

from langchain_fallback._convert import Chunks, attribution, ls_provider, message_of
from langchain_fallback._written import identity, plain
from langchain_fallback.provider import LangChainProvider
from shared_core.chat.events import Answer, Finished
from shared_core.chat.request import ChatRequest, Origin
from shared_core.errors import ConfigurationError, UnknownOption, nearest
from shared_core.routing.execution import Execution
from shared_core.routing.provider import Provider
from shared_core.routing.target import Target

if TYPE_CHECKING:
    from shared_core.router import Router

__all__ = ["Engine", "ModelLike", "ProfileOf", "built", "keyed", "profile", "recipe", "shown", "split"]

ModelLike = str | Target | Mapping[str, Any] | BaseChatModel
"""What `models=` takes: a spec such as 'openai:gpt-5-mini', a `Target`, a mapping of its keywords, a ready model."""
ProfileOf = Literal["all", "best"]
"""Whose capabilities a model's `profile` tells: what every target can do, or what the most capable one can."""
_OWN = frozenset({"ledger", "clock", "on_event"})
"""Options that are of one router in one process, and no part of what it answers."""


@lru_cache(maxsize=1)
def _router_keywords() -> frozenset[str]:
    """Every keyword of `Router`, from its signature. `seed` is sampling's here, as in every chat model."""
    from shared_core.router import router_options

    return frozenset(router_options()) - {"seed"}


class Engine:
    """The router behind a model: built when needed, shared by every copy of the model that is configured alike."""

    def __init__(self, models: Sequence[ModelLike], options: Mapping[str, Any], router: Router | None = None) -> None:
        self.models = tuple(models)
        self.options = dict(options)
        self._router = router
        self._lock = threading.Lock()
        self._facts: Facts | None = None
        self.seen: tuple[Any, Any, Any] = (None, None, None)
        """The very objects of the model that were last found to match, so that a call compares nothing."""

    def serves(self, models: Sequence[Any], options: Mapping[str, Any]) -> bool:
        """Whether a model with these settings may share this router and all it has learnt."""
        return (
            len(models) == len(self.models)
            and all(a is b or (isinstance(a, str) and a == b) for a, b in zip(models, self.models, strict=True))
            and dict(options) == self.options
        )

    @property
    def router(self) -> Router:
        """The router; built on first use, and again after unpickling."""
        if self._router is None:
            with self._lock:
                if self._router is None:
                    self._router = built(self.models, self.options)
        return self._router

    @property
    def facts(self) -> Facts:
        """What calls need to know about the router's targets."""
        targets = self.router.targets
        facts = self._facts
        if facts is None or facts.targets != targets:
            facts = self._facts = Facts(targets, self.router.providers, self.options)
        return facts

    def __deepcopy__(self, memo: dict[int, Any]) -> Engine:
        return self  # health, breakers and costs are of the targets, and there is one of each of those

    def __getstate__(self) -> dict[str, Any]:
        # Sockets, locks and threads stay here; the other side builds its own router from the same recipe.
        return {"models": self.models, "options": self.options}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__init__(state["models"], state["options"])  # type: ignore[misc]  # the one way to make it whole again


def recipe(router: Router) -> dict[str, Any]:
    """The options from which a router like this one can be built, here or in another process."""
    return {name: value for name, value in router.options.items() if name not in _OWN}


class Facts:
    """What a call needs to know about the targets, worked out once per set of targets."""

    def __init__(
        self, targets: tuple[Target, ...], providers: tuple[Provider, ...], options: Mapping[str, Any]
    ) -> None:
        self.targets = targets
        self.providers = frozenset(t.provider_name for t in targets)
        self.foreign = frozenset(t.name for t in targets if not isinstance(t.provider, LangChainProvider))
        self.wrapped = len(self.foreign) < len(targets)
        self._origins = {target.name: provider.origin for target, provider in zip(targets, providers, strict=True)}
        self._names = {target.name: (ls_provider(target.provider_name), target.model) for target in targets}
        self.provider, self.model = self._names[targets[0].name]
        self.identity: dict[str, Any] = {"models": [identity(t) for t in targets]}
        if options:
            self.identity["router"] = plain(options)

    def origin_of(self, target: str | None) -> Origin | None:
        """Who may be shown again what is opaque in an answer of `target`."""
        return None if target is None else self._origins.get(target)

    def chunks(self, journal: Execution, run_manager: object, output_version: str | None) -> Chunks:
        """What turns one answer's events into chunks. LangChain hands over a run only for content-block events."""
        request = journal.request
        return Chunks(
            self.origin_of,
            journal=journal,
            tools=bool(request.tools),
            blocks=output_version == "v1",
            protocol=run_manager is not None,
            served_by=partial(self.served, request),
        )

    def generation(self, request: ChatRequest, answer: Answer) -> ChatGeneration:
        """The whole answer, with what tracers are told about it."""
        message = message_of(answer, self.origin_of)
        return ChatGeneration(message=message, generation_info=attribution(self.served(request, answer)))

    def served(self, request: ChatRequest, answer: Answer | Finished) -> tuple[str, str] | None:
        """The vendor and the model that served, where the run has begun with other names; see `_get_ls_params`."""
        names = self._names.get(answer.target or "")
        if names is None or (request.model is None and answer.target == self.targets[0].name):
            return None
        return names if request.model is None else (names[0], answer.model or names[1])


def built(models: Sequence[ModelLike], options: Mapping[str, Any]) -> Router:
    """A router over `models`; ready chat models become targets named after their vendor and model."""
    from shared_core.router import Router

    given: list[Any] = []
    names = {name for model in models if (name := _named(model)) is not None}
    for model in models:
        if not isinstance(model, BaseChatModel):
            given.append(model)
            continue
        provider = LangChainProvider(model)
        name = bare = f"{provider.name}:{provider.model}"
        count = 1
        while name in names:
            count += 1
            name = f"{bare}#{count}"
        names.add(name)
        given.append(Target(provider=provider, name=name))
    return Router(given, **options)


def _named(model: ModelLike) -> str | None:
    """What the router will call a target; None for a ready model, which is named around the others."""
    match model:
        case str():
            return model
        case Target():
            return model.name
        case Mapping():
            spec = model.get("spec") or model.get("target") or f"{model.get('provider')}:{model.get('model')}"
            return str(model.get("name") or spec)
        case _:
            return None


def shown(router: Router, given: Sequence[Any] | None = None) -> list[Any]:
    """`models` as the model shows, dumps and pickles them: no mapping, so that no key lies about in one."""
    shown: list[Any] = []
    for index, target in enumerate(router.targets):
        if given is not None and isinstance(given[index], (str, Target, BaseChatModel)):
            shown.append(given[index])
        elif isinstance(target.provider, LangChainProvider) and target.spec == target.name:
            shown.append(target.provider.chat_model)
        else:
            shown.append(target)
    return shown


def keyed(models: Sequence[ModelLike], api_key: str | SecretStr) -> list[ModelLike]:
    """`models`, those that are given by name with `api_key` for their key, where they are all of one vendor.

    A key is never shown to a vendor it may not be of: with several vendors it is used for none, and a warning says so.
    """
    key = api_key.get_secret_value() if isinstance(api_key, SecretStr) else api_key
    if not key.strip():
        raise ConfigurationError("api_key must be a key, as text")
    vendors = {model.partition(":")[0] for model in models if isinstance(model, str)}
    hosted = vendors - {"llamacpp"}
    if len(hosted) > 1:
        warnings.warn(
            f"api_key= is one vendor's, and these models are of {len(hosted)} ({', '.join(sorted(hosted))}): it is not "
            "used. hint: Target('openai:gpt-5-mini', api_key=…), or the vendors' environment variables",
            stacklevel=4,
        )
        return list(models)
    return [
        Target(model, api_key=key) if isinstance(model, str) and not model.startswith("llamacpp:") else model
        for model in models
    ]


def split(own: Mapping[str, Any], options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The keywords of the model and those of the router.

    Raises:
        UnknownOption: a keyword of neither.
    """
    theirs = _router_keywords()
    ours: dict[str, Any] = {}
    routers: dict[str, Any] = {}
    for name, value in options.items():
        if name in own and name in theirs:
            langchains = (
                value is None
                or (name == "cache" and isinstance(value, (bool, BaseCache)))
                or (name == "metadata" and isinstance(value, Mapping))
                or name not in ("cache", "metadata")
            )
            (ours if langchains else routers)[name] = value
        elif name in own:
            ours[name] = value
        elif name in theirs:
            routers[name] = value
        else:
            known = [n for n in (*own, *theirs, "router") if n not in ("engine", "router_options")]
            raise UnknownOption(f"FallbackChatModel has no option {name!r}. {nearest(name, known)}")
    return ours, routers


def profile(router: Router, of: ProfileOf = "all") -> ModelProfile:
    """What every target can do: a promise that holds whoever answers."""
    can = router.capabilities(of)
    found = ModelProfile(
        tool_calling=can.tools,
        tool_choice="any" in can.tool_choice,
        structured_output=can.json_schema,
        image_inputs=can.images,
        image_url_inputs=can.images and can.image_urls,
        pdf_inputs=can.pdfs,
        audio_inputs=can.audio,
        reasoning_output=can.reasoning,
    )
    if can.context_window is not None:
        found["max_input_tokens"] = can.context_window
    if can.max_output is not None:
        found["max_output_tokens"] = can.max_output
    return found
