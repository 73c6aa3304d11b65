"""`FallbackChatModel`: many chat models behind LangChain's one interface, each taking over when another fails."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, fields, is_dataclass
from functools import lru_cache, partial
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, Self, cast
from uuid import uuid4

from langchain_core.caches import BaseCache
from langchain_core.callbacks import (
    AsyncCallbackManager,
    AsyncCallbackManagerForLLMRun,
    CallbackManager,
    CallbackManagerForLLMRun,
    Callbacks,
)
from langchain_core.globals import get_llm_cache
from langchain_core.language_models import LanguageModelInput
from langchain_core.language_models.base import LangSmithParams
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.language_models.model_profile import ModelProfile
from langchain_core.messages import LC_ID_PREFIX, AIMessage, BaseMessage
from langchain_core.messages.utils import count_tokens_approximately
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult, LLMResult
from langchain_core.runnables import Runnable, RunnableConfig, ensure_config
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import BaseModel, Field, field_serializer, model_validator

from langchain_fallback._convert import (
    CALL_OPTIONS,
    LOOSE,
    RESTARTED,
    Chunks,
    attribution,
    bound_tools,
    ls_provider,
    mended,
    message_of,
    to_request,
)
from langchain_fallback._runs import OpenRuns
from langchain_fallback.errors import as_langchain
from langchain_fallback.provider import LangChainProvider
from langchain_fallback.structured import Method, Shape, spared
from shared_core.chat.events import Answer, Finished, events_of
from shared_core.chat.request import ChatRequest, Origin
from shared_core.errors import ConfigurationError, FallbackError, InvalidRequest, UnknownOption, nearest, redact
from shared_core.resilience.retry import RetryPolicy
from shared_core.routing.execution import Execution
from shared_core.routing.provider import Provider
from shared_core.routing.target import Target

if TYPE_CHECKING:
    from shared_core.router import Router

__all__ = ["FallbackChatModel"]

ModelLike = str | Target | Mapping[str, Any] | BaseChatModel
"""What `models=` takes: a spec such as 'openai:gpt-5-mini', a `Target`, a mapping of its keywords, a ready model."""

_SECRET = ("key", "token", "secret", "password", "credential", "header", "auth")


@lru_cache(maxsize=1)
def _router_keywords() -> frozenset[str]:
    """Every keyword of `Router`, from its signature. `seed` is sampling's here, as in every chat model."""
    from shared_core.router import router_options

    return frozenset(router_options()) - {"seed"}


@lru_cache(maxsize=1)
def _version() -> str:
    try:
        return version("llm-fallback")
    except PackageNotFoundError:  # run from a source tree that was never installed
        return "0+unknown"


class _Engine:
    """The router behind a model: built when needed, shared by every copy of the model that is configured alike."""

    def __init__(self, models: Sequence[ModelLike], options: Mapping[str, Any], router: Router | None = None) -> None:
        self.models = tuple(models)
        self.options = dict(options)
        self._router = router
        self._lock = threading.Lock()
        self._facts: _Facts | None = None
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
                    self._router = _build(self.models, self.options)
        return self._router

    @property
    def facts(self) -> _Facts:
        """What calls need to know about the router's targets."""
        targets = self.router.targets
        facts = self._facts
        if facts is None or facts.targets != targets:
            facts = self._facts = _Facts(targets, self.router.providers, self.options)
        return facts

    def __deepcopy__(self, memo: dict[int, Any]) -> _Engine:
        return self  # health, breakers and costs are of the targets, and there is one of each of those

    def __getstate__(self) -> dict[str, Any]:
        # Sockets, locks and threads stay here; the other side builds its own router from the same recipe.
        return {"models": self.models, "options": self.options}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__init__(state["models"], state["options"])  # type: ignore[misc]  # the one way to make it whole again


class _Facts:
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
        self.identity: dict[str, Any] = {"models": [_identity(t) for t in targets]}
        if options:
            self.identity["router"] = _plain(options)

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


def _build(models: Sequence[ModelLike], options: Mapping[str, Any]) -> Router:
    from shared_core.router import Router

    given: list[Any] = []
    names = {name for model in models if (name := _name(model)) is not None}
    for model in models:
        if not isinstance(model, BaseChatModel):
            given.append(model)
            continue
        provider = LangChainProvider(model)
        name = plain = f"{provider.name}:{provider.model}"
        count = 1
        while name in names:
            count += 1
            name = f"{plain}#{count}"
        names.add(name)
        given.append(Target(provider=provider, name=name))
    return Router(given, **options)


def _name(model: ModelLike) -> str | None:
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


def _shown(router: Router, given: Sequence[Any] | None = None) -> list[Any]:
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


def _plain(value: Any) -> Any:
    """`value` as something JSON can hold, or None: what cannot be dumped is left out, not shown by its address."""
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    if is_dataclass(value) and not isinstance(value, type):
        return {k: p for k, v in asdict(value).items() if (p := _plain(v)) is not None}
    if isinstance(value, Mapping):
        return {
            str(k): p
            for k, v in value.items()
            if not any(word in str(k).lower() for word in _SECRET) and (p := _plain(v)) is not None
        }
    if isinstance(value, (list, tuple, set, frozenset)):
        items = sorted(value, key=str) if isinstance(value, (set, frozenset)) else value
        return [_plain(v) for v in items]
    return str(value) if type(value).__module__ == "decimal" else None


def _dumped(model: Any) -> Any:
    """One of `models`, without its key."""
    if not isinstance(model, Target):
        return model
    if model.provider is not None:
        return model.provider.chat_model if isinstance(model.provider, LangChainProvider) else model.name
    out: dict[str, Any] = {"spec": model.spec}
    defaults = {f.name: f.default for f in fields(Target)}
    for name in ("name", "base_url", "price", "capabilities", "timeouts", "retry", "weight", "tier", "enabled"):
        value = getattr(model, name)
        if value is not None and value != defaults.get(name) and not (name == "name" and value == model.spec):
            out[name] = redact(value) if name == "base_url" else _plain(value)
    out.update(_plain(model.options) or {})
    return out if len(out) > 1 else model.spec


_WATCHED = frozenset({"stream", "ls_structured_output_format", "structured_output_format"})
"""Keywords that mean something to LangChain's own `generate`."""


def _mended(result: ChatResult) -> ChatResult:
    """A whole answer that LangChain has merged of chunks for somebody who listens: without what restarts discarded."""
    for index, generation in enumerate(result.generations):
        message = generation.message
        if isinstance(message, AIMessage) and RESTARTED in message.response_metadata:
            result.generations[index] = ChatGeneration(
                message=mended(message), generation_info=generation.generation_info
            )
    return result


def _identified(message: AIMessage) -> AIMessage:
    """`message` with an id, made as LangChain makes them."""
    if message.id is None:
        message.id = f"{LC_ID_PREFIX}-{uuid4()}-0"
    return message


class FallbackChatModel(BaseChatModel):
    """A chat model that asks several, in order, until one answers.

        model = FallbackChatModel(models=["openai:gpt-5-mini", "anthropic:claude-sonnet-4-5", ChatOpenAI(...)])
        model.invoke("Hello").response_metadata["fallback"]     # who served, attempts, errors, cost

    Every keyword of `shared_core.Router` is a keyword here (`strategy`, `retry`, `timeouts`, `breaker`,
    `on_stream_break`, `on_event`, `ledger`, …). `cache` and `metadata` belong to both: `metadata=True` or `False` and a
    cache that is not LangChain's are the router's, everything else is LangChain's.

    Args:
        models: whom to ask, in order: specs, `Target`s, mappings, ready chat models, mixed.
        router: a ready router in place of `models` and of all its keywords; may be shared with other models.
        temperature, max_tokens, top_p, seed, stop: sampling, where a call does not say otherwise. A ready chat model
            keeps its own settings where these are left out.
        timeout: seconds for a whole call, all attempts and waits together.
        max_retries: retries per call beyond each target's first try, 0 or more: short for `retry=RetryPolicy(total=…)`.
        streaming: stream on the wire also for `invoke`.

    Raises:
        ConfigurationError: no models, or an option out of range.
        UnknownOption: a keyword that nobody knows; names the nearest.
    """

    models: list[Any] = Field(default_factory=list)
    """Whom to ask, in order."""
    router_options: dict[str, Any] = Field(default_factory=dict, repr=False)
    """The router's keywords, as given."""
    temperature: float | None = None
    max_tokens: int | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: list[str] | None = None
    timeout: float | None = None
    max_retries: int | None = None
    streaming: bool = False
    engine: Any = Field(default=None, exclude=True, repr=False)
    """Internal: holds the router. Travels between copies of one model so that they share what it has learnt."""

    def __init__(
        self,
        models: Sequence[ModelLike] | ModelLike | None = None,
        *,
        router: Router | None = None,
        **options: Any,
    ) -> None:
        listed: list[Any] = (
            []
            if models is None
            else [models]
            if isinstance(models, (str, Target, Mapping, BaseChatModel))
            else list(models)
        )
        ours, routers = _splits(type(self), options)
        routers = {**ours.pop("router_options", {}), **routers}
        if (retries := ours.get("max_retries")) is not None:
            if isinstance(retries, bool) or not isinstance(retries, int) or retries < 0:
                raise ConfigurationError(f"max_retries must be a whole number >= 0, not {retries!r}")
            if "retry" in routers:
                raise ConfigurationError("give either retry= or max_retries=, not both")
        engine = ours.pop("engine", None)
        effective = routers if retries is None else {**routers, "retry": RetryPolicy(min(retries, 1), retries)}
        if router is not None:
            given = [name for name, value in (("models", listed), *effective.items()) if value]
            if given:
                raise ConfigurationError(f"{given[0]}= belongs to a router of our own; a ready router= has its own")
            engine = _Engine(_shown(router), {}, router)
            listed = list(engine.models)
        elif not (isinstance(engine, _Engine) and engine.serves(listed, effective)):
            if not listed:
                raise ConfigurationError("FallbackChatModel needs at least one model: models=[…] or router=")
            if engine is not None:
                ours.pop("profile", None)  # it described the other models
            built = _build(listed, effective)
            listed = _shown(built, listed)
            engine = _Engine(listed, effective, built)
        if (timeout := ours.get("timeout")) is not None and not timeout > 0:
            raise ConfigurationError(f"timeout must be a positive number of seconds, not {timeout!r}")
        fields_: dict[str, Any] = {"models": listed, "router_options": routers, "engine": engine, **ours}
        super().__init__(**fields_)
        if self.profile is None:
            self.profile = _profile(engine.router)

    @field_serializer("models")
    def _models_without_keys(self, models: list[Any]) -> list[Any]:
        return [_dumped(model) for model in models]

    @field_serializer("router_options")
    def _options_as_data(self, options: dict[str, Any]) -> dict[str, Any]:
        return cast("dict[str, Any]", _plain(options))

    @model_validator(mode="after")
    def _set_langchain_fallback_version(self) -> Self:
        self._add_version("llm-fallback", _version())
        return self

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        # A second model over the same targets: their health, limits and keys are what they are, whoever asks.
        copied = self.model_copy()
        copied.metadata = dict(self.metadata) if self.metadata is not None else None
        copied.tags = list(self.tags) if self.tags is not None else None
        copied.stop = list(self.stop) if self.stop is not None else None
        return copied

    def __repr__(self) -> str:
        names = [target.name for target in self.router.targets]
        set_ = [
            f"{name}={value!r}"
            for name in ("temperature", "max_tokens", "top_p", "seed", "stop", "timeout", "max_retries")
            if (value := getattr(self, name)) is not None
        ]
        return f"FallbackChatModel({', '.join([repr(names), *set_])})"

    # ── the router ───────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def router(self) -> Router:
        """The router: `model.router.health()`, `.costs()`, `.explain(request)`."""
        return self._engine.router

    @property
    def _engine(self) -> _Engine:
        engine = self.engine
        seen = (self.models, self.router_options, self.max_retries)
        if isinstance(engine, _Engine):
            known = engine.seen
            if known[0] is seen[0] and known[1] is seen[1] and known[2] == seen[2]:
                return engine
        if not (isinstance(engine, _Engine) and engine.serves(self.models, self._effective())):
            # Someone assigned to `models` or made a copy with others.
            self.engine = engine = _Engine(self.models, self._effective())
        engine.seen = seen
        return engine

    def _effective(self) -> dict[str, Any]:
        if self.max_retries is None:
            return self.router_options
        return {**self.router_options, "retry": RetryPolicy(min(self.max_retries, 1), self.max_retries)}

    def close(self) -> None:
        """Close the router's connections and processes. A ready chat model among the targets stays the caller's."""
        self.router.close()

    async def aclose(self) -> None:
        """The same, for what belongs to the running event loop too."""
        await self.router.aclose()

    # ── when nobody watches ──────────────────────────────────────────────────────────────────────────────────────────

    def invoke(
        self,
        input: LanguageModelInput,  # noqa: A002  # LangChain's name for it
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> AIMessage:
        """The whole answer. Goes round the bookkeeping for callbacks, caches and limiters when there are none."""
        config = ensure_config(config)
        messages = self._unwatched(CallbackManager, input, config, kwargs)
        if messages is None:
            return super().invoke(input, config, stop=stop, **kwargs)
        engine, request = self._request(messages, stop, kwargs, streaming=False)
        try:
            answer = engine.router.invoke(request)
        except FallbackError as error:
            answer = spared(error, request)
        return _identified(message_of(answer, engine.facts.origin_of))

    async def ainvoke(
        self,
        input: LanguageModelInput,  # noqa: A002  # LangChain's name for it
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> AIMessage:
        """The whole answer, async; the twin of `invoke`."""
        config = ensure_config(config)
        messages = self._unwatched(AsyncCallbackManager, input, config, kwargs)
        if messages is None:
            return await super().ainvoke(input, config, stop=stop, **kwargs)
        engine, request = self._request(messages, stop, kwargs, streaming=False)
        try:
            answer = await engine.router.ainvoke(request)
        except FallbackError as error:
            answer = spared(error, request)
        return _identified(message_of(answer, engine.facts.origin_of))

    def _unwatched(
        self,
        manager: type[CallbackManager | AsyncCallbackManager],
        given: LanguageModelInput,
        config: RunnableConfig,
        kwargs: Mapping[str, Any],
    ) -> list[BaseMessage] | None:
        """The messages to answer, when nothing but the answer itself would come of LangChain's longer way; else None.

        That way tells callbacks and tracers, asks caches and rate limiters, and streams under the hood for those who
        listen. Its other work, on content blocks, is left to it.
        """
        if (
            self.cache is not None
            or self.rate_limiter is not None
            or self.output_version is not None
            or self.streaming
            or get_llm_cache() is not None
            or config.get("run_id") is not None
            or not _WATCHED.isdisjoint(kwargs)
            or type(self)._generate is not FallbackChatModel._generate
            or type(self)._agenerate is not FallbackChatModel._agenerate
            or manager.configure(config.get("callbacks"), self.callbacks, self.verbose).handlers
        ):
            return None
        messages = self._convert_input(given).to_messages()
        return messages if all(isinstance(m.content, str) for m in messages) else None

    # ── around the four faces ────────────────────────────────────────────────────────────────────────────────────────

    async def agenerate(
        self,
        messages: list[list[BaseMessage]],
        stop: list[str] | None = None,
        callbacks: Callbacks = None,
        **kwargs: Any,
    ) -> LLMResult:
        """As LangChain's own, and ends the runs of a call that is cancelled, with the `CancelledError`."""
        runs = OpenRuns()
        try:
            return await super().agenerate(messages, stop, runs.beside(callbacks), **kwargs)
        except asyncio.CancelledError as error:
            await runs.close(error)
            raise

    def _generate_with_cache(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return _mended(super()._generate_with_cache(messages, stop=stop, run_manager=run_manager, **kwargs))

    def _agenerate_with_cache(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Coroutine[Any, Any, ChatResult]:
        OpenRuns.note(run_manager)  # at once: a task that is cancelled before its first step never runs
        return self._agenerate_and_mend(messages, stop, run_manager, **kwargs)

    async def _agenerate_and_mend(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None,
        run_manager: AsyncCallbackManagerForLLMRun | None,
        **kwargs: Any,
    ) -> ChatResult:
        return _mended(await super()._agenerate_with_cache(messages, stop=stop, run_manager=run_manager, **kwargs))

    # ── the four faces ───────────────────────────────────────────────────────────────────────────────────────────────

    def _request(
        self, messages: list[BaseMessage], stop: list[str] | None, kwargs: Mapping[str, Any], *, streaming: bool
    ) -> tuple[_Engine, ChatRequest]:
        engine = self._engine
        facts = engine.facts
        defaults = {
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
            "top_p": self.top_p,
            "seed": self.seed,
            "stop": tuple(self.stop or ()),
            "timeout": self.timeout,
        }
        try:
            request = to_request(
                messages,
                stop,
                kwargs,
                defaults,
                streaming=streaming,
                providers=facts.providers,
                foreign=facts.foreign,
                wrapped=facts.wrapped,
            )
        except InvalidRequest as error:
            raise as_langchain(error) from None
        return engine, request

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        engine, request = self._request(messages, stop, kwargs, streaming=False)
        try:
            answer = engine.router.invoke(request)
        except FallbackError as error:
            answer = spared(error, request)
        return ChatResult(generations=[engine.facts.generation(request, answer)])

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        engine, request = self._request(messages, stop, kwargs, streaming=False)
        try:
            answer = await engine.router.ainvoke(request)
        except FallbackError as error:
            answer = spared(error, request)
        return ChatResult(generations=[engine.facts.generation(request, answer)])

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        engine, request = self._request(messages, stop, kwargs, streaming=True)
        answering = engine.router.stream(request)
        chunks = engine.facts.chunks(answering.execution, run_manager, self.output_version)
        try:
            with answering as events:
                for event in events:
                    if (chunk := chunks.feed(event)) is not None:
                        yield chunk
            return
        except FallbackError as error:
            answer = spared(error, request)
        for event in events_of(answer):
            if (chunk := chunks.feed(event)) is not None:
                yield chunk

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        engine, request = self._request(messages, stop, kwargs, streaming=True)
        answering = engine.router.astream(request)
        chunks = engine.facts.chunks(answering.execution, run_manager, self.output_version)
        try:
            async with answering as events:
                async for event in events:
                    if (chunk := chunks.feed(event)) is not None:
                        yield chunk
            return
        except FallbackError as error:
            answer = spared(error, request)
        for event in events_of(answer):
            if (chunk := chunks.feed(event)) is not None:
                yield chunk

    # ── tools and structured output ──────────────────────────────────────────────────────────────────────────────────

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: Any = None,
        strict: bool | None = None,
        parallel_tool_calls: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Bind tools once, for every target: each gets them in its own dialect when it is asked.

        Args:
            tools: functions, Pydantic models, `BaseTool`s, or schemas in OpenAI's or Anthropic's form.
            tool_choice: 'auto', 'any' (also 'required' and True), 'none', a tool's name, or a vendor's dict of these.
            strict: hold the model to the schema where a target can.
            parallel_tool_calls: False allows one call at a time, where a target can be told so.
        """
        if tool_choice is not None:
            kwargs["tool_choice"] = tool_choice
        if parallel_tool_calls is not None:
            kwargs["parallel_tool_calls"] = parallel_tool_calls
        if strict is not None:
            kwargs["strict"] = strict
        return self.bind(tools=bound_tools(tools, strict=strict), **kwargs)

    def with_structured_output(
        self,
        schema: dict[str, Any] | type | None = None,
        *,
        include_raw: bool = False,
        method: Method = "function_calling",
        strict: bool | None = None,
        validate: bool = True,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, dict[str, Any] | BaseModel]:
        """Answers in the shape of `schema`: a Pydantic object for a Pydantic class, else a dict.

        An answer that does not parse or validate is put back to its target once, with what is wrong; then the next
        target is asked. A stream therefore shows nothing before the whole answer is valid.

        Args:
            schema: a Pydantic class, a `TypedDict`, or a JSON or OpenAI schema; may be left out for 'json_mode'.
            include_raw: return ``{"raw", "parsed", "parsing_error"}`` and never raise for an answer that does not fit:
                where nobody's did, `raw` is the last one.
            method: 'function_calling' (every target with tools), 'json_schema' or 'json_mode' (where a target can).
            strict: hold the model to the schema where a target can.
            validate: False takes the first answer as it is, and streams it as it comes.
            **kwargs: bound to every call, as by `bind`.

        Raises:
            OutputNotValid: when called: nobody's answer was valid, and `include_raw` is off. It is an
                `OutputParserException` and an `AllTargetsFailed`.
            ConfigurationError: an unknown method, or no schema where one is needed.
            UnknownOption: a keyword that nobody knows; names the nearest.
        """
        for name in kwargs:
            if name not in CALL_OPTIONS and name not in LOOSE and name not in self._engine.facts.providers:
                known = ("include_raw", "method", "strict", "validate", *CALL_OPTIONS, *LOOSE)
                raise UnknownOption(f"with_structured_output has no option {name!r}. {nearest(name, known)}")
        shape = Shape(schema, method, strict=strict, include_raw=include_raw, validate=validate)
        if not validate:
            kwargs["validate"] = False
        llm: Runnable[LanguageModelInput, AIMessage]
        if method == "function_calling":
            if strict is not None:
                kwargs["strict"] = strict
            tools = bound_tools([schema], strict=strict, check=shape.check)
            llm = self.bind(tools=tools, tool_choice="any", ls_structured_output_format=shape.traced, **kwargs)
        else:
            llm = self.bind(response_format=shape.response_format, ls_structured_output_format=shape.traced, **kwargs)
        return shape.after(llm)

    # ── what LangChain asks about a model ────────────────────────────────────────────────────────────────────────────

    @property
    def _llm_type(self) -> str:
        return "llm-fallback"

    @property
    def _identifying_params(self) -> Mapping[str, Any]:
        """What tells this model from another: its targets, their order, and how they are asked. No secrets."""
        out = dict(self._engine.facts.identity)
        for name in ("temperature", "max_tokens", "top_p", "seed", "stop"):
            if (value := getattr(self, name)) is not None:
                out[name] = value
        return out

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        # A run's metadata is fixed before anybody has answered: it names the first target.
        facts = self._engine.facts
        model = kwargs.get("model")
        params = LangSmithParams(
            ls_provider=facts.provider,
            ls_model_name=model if isinstance(model, str) else facts.model,
            ls_model_type="chat",
        )
        temperature, max_tokens = kwargs.get("temperature", self.temperature), kwargs.get("max_tokens", self.max_tokens)
        if temperature is not None:
            params["ls_temperature"] = temperature
        if max_tokens is not None:
            params["ls_max_tokens"] = max_tokens
        if stops := stop or self.stop:
            params["ls_stop"] = stops
        return params

    def get_num_tokens(self, text: str) -> int:
        """About how many tokens `text` is: four characters each. Nothing is downloaded."""
        if self.custom_get_token_ids is not None:
            return len(self.custom_get_token_ids(text))
        return -(-len(text) // 4)

    def get_num_tokens_from_messages(self, messages: list[BaseMessage], tools: Sequence[Any] | None = None) -> int:
        """About how many tokens `messages` are, tool schemas included. Nothing is downloaded."""
        converted: list[Any] | None = None if tools is None else [convert_to_openai_tool(tool) for tool in tools]
        return count_tokens_approximately(messages, tools=converted)

    # ── being written down ───────────────────────────────────────────────────────────────────────────────────────────

    @classmethod
    def is_lc_serializable(cls) -> bool:
        """`dumps` writes a model down, without keys; `loads` needs the class in `allowed_objects`."""
        return True

    @property
    def lc_attributes(self) -> dict[str, Any]:
        """What `dumps` writes in place of the fields."""
        out: dict[str, Any] = {"models": [_dumped(model) for model in self.models]}
        if self.router_options:
            out["router_options"] = _plain(self.router_options)
        return out


for _method in (FallbackChatModel._generate, FallbackChatModel._agenerate):
    # LangChain asks for these signatures on every call; worked out once, the answer costs nothing.
    setattr(_method, "__signature__", inspect.signature(_method))  # noqa: B010 - functions declare no such attribute


def _splits(cls: type[FallbackChatModel], options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The keywords of the model and those of the router.

    Raises:
        UnknownOption: a keyword of neither.
    """
    own = cls.model_fields
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
            hint = (
                "\nhint: a key belongs to one target: Target('openai:gpt-5-mini', api_key=…)"
                if name == "api_key"
                else ""
            )
            known = [n for n in (*own, *theirs, "router") if n not in ("engine", "router_options")]
            raise UnknownOption(f"FallbackChatModel has no option {name!r}. {nearest(name, known)}{hint}")
    return ours, routers


def _identity(target: Target) -> str:
    where = f" at {redact(target.base_url)}" if target.base_url else ""
    provider = target.provider
    inner = ""
    if isinstance(provider, LangChainProvider):
        with suppress(Exception):  # somebody else's property; without it the name has to do
            inner = f" {sorted(provider.chat_model._identifying_params.items())}"
    return f"{target.spec}{where}{inner}"


def _profile(router: Router) -> ModelProfile:
    """What every target can do: a promise that holds whoever answers."""
    can = router.capabilities()
    profile = ModelProfile(
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
        profile["max_input_tokens"] = can.context_window
    if can.max_output is not None:
        profile["max_output_tokens"] = can.max_output
    return profile
