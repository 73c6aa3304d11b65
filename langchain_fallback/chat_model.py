"""`FallbackChatModel`: many chat models behind LangChain's one interface, each taking over when another fails."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, Self, cast
from uuid import uuid4

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
from langchain_core.messages import LC_ID_PREFIX, AIMessage, AIMessageChunk, BaseMessage
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
    bound_tools,
    mended,
    message_of,
    to_request,
)
from langchain_fallback._engine import Engine, ModelLike, ProfileOf, built, keyed, profile, recipe, shown, split
from langchain_fallback._names import target_named
from langchain_fallback._runs import OpenRuns
from langchain_fallback._whose import tags_in_config, whose
from langchain_fallback._written import dumped, plain
from langchain_fallback.errors import as_langchain
from langchain_fallback.structured import Method, Shape, spared
from shared_core.chat.events import events_of
from shared_core.chat.request import ChatRequest
from shared_core.errors import ConfigurationError, FallbackError, InvalidRequest, UnknownOption, is_number, nearest
from shared_core.resilience.retry import RetryPolicy
from shared_core.routing.target import Target

if TYPE_CHECKING:
    from shared_core.config import ConfigLike
    from shared_core.router import Router

__all__ = ["FallbackChatModel"]


@lru_cache(maxsize=1)
def _version() -> str:
    try:
        return version("llm-fallback")
    except PackageNotFoundError:  # run from a source tree that was never installed
        return "0+unknown"


_WATCHED = frozenset({"stream", "ls_structured_output_format", "structured_output_format"})
"""Keywords that mean something to LangChain's own `generate`."""


def _of_run(
    kwargs: Mapping[str, Any], run: CallbackManagerForLLMRun | AsyncCallbackManagerForLLMRun | None
) -> Mapping[str, Any]:
    """`kwargs` with what a run's tags and metadata say of whose call it is."""
    return kwargs if run is None else whose(kwargs, run.tags, run.metadata)


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
        api_key: the key of the models given by name, where these are all of one vendor. Left out, each vendor's usual
            environment variable; for several vendors give each `Target` its own.
        timeout: seconds for a whole call, all attempts and waits together.
        max_retries: retries per call beyond each target's first try, 0 or more: short for `retry=RetryPolicy(total=…)`.
        streaming: stream on the wire also for `invoke`.
        profile_of: whose capabilities `profile` tells, which agents and middleware go by: 'all', what every target can
            do (default), or 'best', what the most capable one can.

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
    profile_of: ProfileOf = "all"
    engine: Any = Field(default=None, exclude=True, repr=False)
    """Internal: holds the router. Travels between copies of one model so that they share what it has learnt."""

    def __init__(
        self,
        models: Sequence[ModelLike] | ModelLike | None = None,
        *,
        router: Router | None = None,
        **options: Any,
    ) -> None:
        if models is None:
            listed: list[Any] = []
        elif isinstance(models, (str, Target, Mapping, BaseChatModel)):
            listed = [models]
        elif isinstance(models, Iterable):
            listed = list(models)
        else:
            raise ConfigurationError(
                f"models= takes a model or several, not {type(models).__name__}\nhint: a ready Router goes to router="
            )
        if (key := options.pop("api_key", None)) is not None:
            listed = keyed(listed, key)
        ours, routers = split(type(self).model_fields, options)
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
            from shared_core.router import Router

            if not isinstance(router, Router):
                raise ConfigurationError(f"router= must be a shared_core.Router, not {type(router).__name__}")
            routers = recipe(router)
            engine = Engine(shown(router), routers, router)
            listed = list(engine.models)
        elif not (isinstance(engine, Engine) and engine.serves(listed, effective)):
            if not listed:
                raise ConfigurationError("FallbackChatModel needs at least one model: models=[…] or router=")
            if engine is not None:
                ours.pop("profile", None)  # it described the other models
            fresh = built(listed, effective)
            listed = shown(fresh, listed)
            engine = Engine(listed, effective, fresh)
        elif ours.get("profile") in (profile(engine.router, "all"), profile(engine.router, "best")):
            ours.pop("profile")  # a copy's: worked out again, for `profile_of` may differ
        if (timeout := ours.get("timeout")) is not None and not is_number(timeout, above=0):
            raise ConfigurationError(f"timeout must be a positive number of seconds, not {timeout!r}")
        fields_: dict[str, Any] = {"models": listed, "router_options": routers, "engine": engine, **ours}
        super().__init__(**fields_)

    @field_serializer("models")
    def _models_without_keys(self, models: list[Any]) -> list[Any]:
        return [dumped(model) for model in models]

    @field_serializer("router_options")
    def _options_as_data(self, options: dict[str, Any]) -> dict[str, Any]:
        return cast("dict[str, Any]", plain(options))

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

    def __str__(self) -> str:
        return repr(self)

    @classmethod
    def from_models(cls, models: Sequence[ModelLike] | ModelLike, **options: Any) -> Self:
        """A model over `models`, in order, in the names that users of `init_chat_model` write.

        'google_genai:gemini-2.5-flash', 'azure_openai:…' and 'claude-sonnet-4-5' without a vendor are understood beside
        our own names and everything else that `models=` takes. A vendor that only LangChain knows is built by
        `init_chat_model`.

        Raises:
            ConfigurationError: nobody knows whose model that is, or an option is wrong.
        """
        given = [models] if isinstance(models, (str, Target, Mapping, BaseChatModel)) else list(models)
        return cls([target_named(m) if isinstance(m, str) else m for m in given], **options)

    @classmethod
    def from_config(cls, source: ConfigLike, **options: Any) -> Self:
        """A model from a `.toml` or `.json` file, or from a mapping of what would stand in one.

        Its top level holds this class's keywords; `models` (or `targets`) lists names, as in `from_models`, and tables
        of `Target`'s keywords.
        `${NAME}` and `${NAME:-default}` in any text are read from the environment: no key need stand in a file.

        Args:
            source: the path, or the mapping.
            **options: go before what the file says.

        Raises:
            ConfigurationError: the file cannot be read, or an option is wrong; says in which line, where it can.
            MissingKey: a variable that is not set.
        """
        from shared_core.config import configured

        return configured(
            source,
            options,
            lambda models, settings: cls(**settings) if models is None else cls.from_models(models, **settings),
            instead="router",
        )

    # ── the router ───────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def router(self) -> Router:
        """The router: `model.router.health()`, `.costs()`, `.explain(request)`."""
        return self._engine.router

    @property
    def _engine(self) -> Engine:
        engine = self.engine
        seen = (self.models, self.router_options, self.max_retries)
        if isinstance(engine, Engine):
            known = engine.seen
            if known[0] is seen[0] and known[1] is seen[1] and known[2] == seen[2]:
                return engine
        if not (isinstance(engine, Engine) and engine.serves(self.models, self._effective())):
            # Someone assigned to `models` or made a copy with others.
            self.engine = engine = Engine(self.models, self._effective())
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
        if "tags" in kwargs:
            config = tags_in_config(config, kwargs)
        messages = self._unwatched(CallbackManager, input, config, kwargs)
        if messages is None:
            return super().invoke(input, config, stop=stop, **kwargs)
        engine, request = self._request(messages, stop, self._told(kwargs, config), streaming=False)
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
        if "tags" in kwargs:
            config = tags_in_config(config, kwargs)
        messages = self._unwatched(AsyncCallbackManager, input, config, kwargs)
        if messages is None:
            return await super().ainvoke(input, config, stop=stop, **kwargs)
        engine, request = self._request(messages, stop, self._told(kwargs, config), streaming=False)
        try:
            answer = await engine.router.ainvoke(request)
        except FallbackError as error:
            answer = spared(error, request)
        return _identified(message_of(answer, engine.facts.origin_of))

    def stream(
        self,
        input: LanguageModelInput,  # noqa: A002  # LangChain's name for it
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> Iterator[AIMessageChunk]:
        """The answer as it comes. LangChain tells `_stream` nothing of the config, so what it says goes along."""
        config = ensure_config(config)
        return super().stream(input, config, stop=stop, **self._told(kwargs, config))

    def astream(
        self,
        input: LanguageModelInput,  # noqa: A002  # LangChain's name for it
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[AIMessageChunk]:
        """The answer as it comes, async; the twin of `stream`."""
        config = ensure_config(config)
        return super().astream(input, config, stop=stop, **self._told(kwargs, config))

    def _told(self, kwargs: Mapping[str, Any], config: RunnableConfig) -> Mapping[str, Any]:
        """`kwargs` with what the config, and the model's own tags and metadata, say of whose call it is."""
        tags, metadata = config.get("tags"), config.get("metadata")
        if self.tags:
            tags = [*(tags or ()), *self.tags]
        if isinstance(self.metadata, Mapping) and self.metadata:
            metadata = {**self.metadata, **(metadata or {})}
        return whose(kwargs, tags, metadata)

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
    ) -> tuple[Engine, ChatRequest]:
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
        engine, request = self._request(messages, stop, _of_run(kwargs, run_manager), streaming=False)
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
        engine, request = self._request(messages, stop, _of_run(kwargs, run_manager), streaming=False)
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
        engine, request = self._request(messages, stop, _of_run(kwargs, run_manager), streaming=True)
        answering = engine.router.stream(request)
        chunks = engine.facts.chunks(answering.execution, run_manager, self.output_version)
        try:
            with answering as events:
                for event in events:
                    if (chunk := chunks.feed(event)) is not None:
                        yield chunk
            return
        except GeneratorExit as left:
            if run_manager is not None:  # a reader of content-block events walked away: nobody else would end its run
                run_manager.on_llm_error(left, response=LLMResult(generations=[[]]))
            raise
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
        engine, request = self._request(messages, stop, _of_run(kwargs, run_manager), streaming=True)
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
        for name in ("temperature", "max_tokens", "top_p", "seed", "stop", "timeout", "max_retries"):
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

    def _resolve_model_profile(self) -> ModelProfile:
        return profile(self._engine.router, self.profile_of)

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
        out: dict[str, Any] = {"models": [dumped(model) for model in self.models]}
        if self.router_options:
            out["router_options"] = plain(self.router_options)
        return out


for _method in (FallbackChatModel._generate, FallbackChatModel._agenerate):
    # LangChain asks for these signatures on every call; worked out once, the answer costs nothing.
    setattr(_method, "__signature__", inspect.signature(_method))  # noqa: B010 - functions declare no such attribute
