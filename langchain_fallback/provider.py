"""`LangChainProvider`: any ready `BaseChatModel` as a target of the router.

The model is called by its own `_generate` and `_stream`, not by `invoke` and `stream`: those would open a second run,
count every token twice and print every streamed word twice in LangGraph. What they would have honoured is honoured
here: the model's `rate_limiter`, `disable_streaming`, and tools bound in its own dialect.
"""

from __future__ import annotations

import copy
import inspect
import json
import re
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    SystemMessage,
    message_chunk_to_message,
)
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.utils.function_calling import convert_to_openai_tool

from langchain_fallback._cache import says_all, settings_of
from langchain_fallback._convert import FRAMEWORK, BoundTools, provider_of, usage_of
from langchain_fallback._convert.tools import finds_tools, runs_on_servers
from langchain_fallback._quiet import Quiet, address_of, families
from shared_core.chat.answer_tool import ANSWER_TOOL, answer_tool, asked, with_answer_tool
from shared_core.chat.events import (
    ChatEvent,
    Finished,
    FinishReason,
    ReasoningDelta,
    Started,
    TextDelta,
    ToolCallDelta,
)
from shared_core.chat.request import ChatRequest, Origin, OutputSchema, ToolCall
from shared_core.errors import ErrorKind, ProviderError, redact
from shared_core.history import Change, summary
from shared_core.providers.suspended import ahang_up, hang_up
from shared_core.resilience.deadline import Guard
from shared_core.routing.capabilities import Capabilities

if TYPE_CHECKING:
    from shared_core.providers.models import ModelFacts

__all__ = ["LangChainProvider"]

_ENGINES_HERE = frozenset({"ollama", "llamacpp", "llama-cpp", "huggingface", "mlx", "gpt4all"})
"""LangChain's names of engines that run on this machine unless told to call another."""
_LOOPBACK = ("http://127.", "http://localhost", "http://[::1]", "https://127.", "https://localhost", "https://[::1]")

_REASONS: Mapping[str, FinishReason] = {
    **dict.fromkeys(("stop", "end_turn", "stop_sequence", "completed", "eos", "eos_token"), "stop"),
    **dict.fromkeys(("length", "max_tokens", "max_output_tokens", "model_context_window_exceeded"), "length"),
    **dict.fromkeys(("tool_calls", "tool_use", "function_call"), "tool_calls"),
    **dict.fromkeys(("content_filter", "safety", "blocklist", "prohibited_content", "recitation"), "content_filter"),
    "refusal": "refusal",
}
_DATED = re.compile(r"_20\d{6}$")
"""How Anthropic names the tools of its servers: 'web_search_20250305'."""
_REASON_KEYS = ("finish_reason", "stop_reason", "done_reason", "stopReason")

_INTEGRITY = ("langchain_openai", "langchain_anthropic", "langchain_google_genai")
"""Integrations that always say how an answer ended. They report a truncated stream as a whole answer; we do not."""

_FROM_ANSWER = re.compile(r"_?(?:convert_responses_chunk|construct_lc_result|create_chat_result)\w*")
"""Where ChatOpenAI reads an answer: what it raises there the server said."""
_SAID = re.compile(
    r"(?:ResponseError\(code='(?P<kind>\w+)', message=)?(?:(?P<code>[a-z]\w+): )?(?P<message>.*)", re.DOTALL
)


def _facts(model: BaseChatModel) -> tuple[str, str]:
    """The vendor and the model's name, from what the integration tells its tracer."""
    params: Mapping[str, Any] = {}
    with suppress(Exception):  # a tracing hook of somebody else's; there are other ways to learn a name
        params = cast("Mapping[str, Any]", model._get_ls_params())
    name = params.get("ls_model_name")
    for attribute in ("model_name", "model", "model_id"):
        value = name or getattr(model, attribute, None)
        name = value if isinstance(value, str) and value else None
    return provider_of(str(params.get("ls_provider") or "langchain")), str(name or type(model).__name__)


_AT_HOME = frozenset(
    {"https://api.openai.com/v1", "https://api.anthropic.com", "https://generativelanguage.googleapis.com"}
)


def _endpoint(model: BaseChatModel) -> str | None:
    """Where the model is asked, if not at its vendor's own address: part of the scope of its opaque blocks."""
    url = address_of(model)
    return None if url is None or url.rstrip("/") in _AT_HOME else redact(url.rstrip("/"))


@dataclass(slots=True)
class _Call:
    """One request in a model's own dialect."""

    inner: BaseChatModel
    messages: list[BaseMessage]
    kwargs: dict[str, Any]
    answer: str | None
    """The tool whose arguments are the answer, where JSON has to be had that way."""
    stops: tuple[str, ...]
    """Stop sequences that the model is not told."""


class LangChainProvider:
    """A `BaseChatModel` as a `Provider`. It shows the router the model's vendor and name, and never changes the model.

    Args:
        model: any chat model; it stays the caller's, and is not closed here.
        local: whether it runs on this machine; left out, known for Ollama, llama.cpp and the like on loopback.
        capabilities: what it can take; left out, read from the model's own `profile`.
    """

    interruptible = False

    def __init__(
        self, model: BaseChatModel, *, local: bool | None = None, capabilities: Capabilities | None = None
    ) -> None:
        self.chat_model = model
        """The model as it was given."""
        self.name, self.model = _facts(model)
        self.local = self._runs_here() if local is None else local
        self._capabilities = capabilities or _capabilities(model)
        self._quiet = Quiet(model)
        packages = families(model)
        self._openai = "langchain_openai" in packages
        self._google = "langchain_google_genai" in packages
        self._anthropic = "langchain_anthropic" in packages
        self._origin = Origin(self.name, self.model, _endpoint(model))
        from langchain_fallback._convert.dialect import dialect_of  # with the rules of history: not on import

        self._dialect = dialect_of(model)
        self._over_responses = dialect_of(model, responses=True)
        self._sure_of_end = not packages.isdisjoint(_INTEGRITY)
        self._streams = type(model)._stream is not BaseChatModel._stream
        self._astreams = self._streams or type(model)._astream is not BaseChatModel._astream
        self._asks_usage = (
            "stream_usage" in getattr(type(model), "model_fields", {}) and "stream_usage" not in model.model_fields_set
        )

    def __repr__(self) -> str:
        return f"LangChainProvider({type(self.chat_model).__name__}, {self.name}:{self.model})"

    def __deepcopy__(self, memo: dict[int, Any]) -> LangChainProvider:
        return self  # it holds no state, and many chat models cannot be copied

    def _runs_here(self) -> bool:
        if not (self.name in _ENGINES_HERE or type(self.chat_model).__module__.partition(".")[0] == "langchain_ollama"):
            return False
        url = getattr(self.chat_model, "base_url", None)
        return url is None or str(url).startswith(_LOOPBACK)

    @property
    def capabilities(self) -> Capabilities:
        """What the model says it can take."""
        return self._capabilities

    @property
    def origin(self) -> Origin:
        """The scope of its opaque blocks: the integration itself decides which of them to replay."""
        return self._origin

    def settings(self) -> Any:
        """The model's settings that can change its answers, for the router's cache; asked each time: they may change.

        Keys are among them. The cache keeps digests only.
        """
        return settings_of(self.chat_model)

    says_all = staticmethod(says_all)
    """Whether an answer's own message holds nothing but what our events tell of it."""

    def close(self) -> None:
        """Nothing: the model belongs to the caller."""

    async def aclose(self) -> None:
        """Nothing: the model belongs to the caller."""

    # ── one call ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def stream(self, request: ChatRequest, guard: Guard) -> Iterator[ChatEvent]:
        """Answer, sync."""
        try:
            changes: list[Change] = []
            call = self._call(request, changes)
            if changes:
                guard.notes.extend(summary(changes))
            inner, messages, kwargs = call.inner, call.messages, call.kwargs
            if inner.rate_limiter is not None:
                inner.rate_limiter.acquire(blocking=True)
            stop = kwargs.pop("stop", None)
            ended = _ender(call.stops)
            if not self._to_stream(inner, request, kwargs, native=self._streams):
                yield from ended(self._whole(inner._generate(messages, stop=stop, **kwargs), call.answer))
                return
            reader = _Reader(self, call.answer)
            chunks = inner._stream(messages, stop=stop, **self._streaming(inner, kwargs))
            with _closing(chunks):
                for chunk in chunks:
                    yield from ended(reader.feed(chunk))
            yield from ended(reader.finish())
        except Exception as error:
            problem = self._problem(error)
            if problem is None or problem is error:
                raise
            raise problem from error

    async def astream(self, request: ChatRequest, guard: Guard) -> AsyncIterator[ChatEvent]:
        """Answer, async."""
        try:
            changes: list[Change] = []
            call = self._call(request, changes, self._quiet.on_loop())
            if changes:
                guard.notes.extend(summary(changes))
            inner, messages, kwargs = call.inner, call.messages, call.kwargs
            if inner.rate_limiter is not None:
                await inner.rate_limiter.aacquire(blocking=True)
            stop = kwargs.pop("stop", None)
            ended = _ender(call.stops)
            if not self._to_stream(inner, request, kwargs, native=self._astreams):
                for event in ended(self._whole(await inner._agenerate(messages, stop=stop, **kwargs), call.answer)):
                    yield event
                return
            reader = _Reader(self, call.answer)
            chunks = inner._astream(messages, stop=stop, **self._streaming(inner, kwargs))
            async with _aclosing(chunks):
                async for chunk in chunks:
                    for event in ended(reader.feed(chunk)):
                        yield event
            for event in ended(reader.finish()):
                yield event
        except Exception as error:
            problem = self._problem(error)
            if problem is None or problem is error:
                raise
            raise problem from error

    def _call(
        self, request: ChatRequest, changes: list[Change] | None = None, inner: BaseChatModel | None = None
    ) -> _Call:
        """One request in the model's own dialect, to `inner` or, left out, the copy for threads.

        What of the conversation did not travel as it was is noted in `changes`.
        """
        from langchain_fallback._convert.dialect import spoken

        inner = inner or self._quiet.in_thread()
        native = request.native if request.native is not None and request.native.framework == FRAMEWORK else None
        options: Mapping[str, Any] = {} if native is None else native.options
        own: Mapping[str, Any] = request.extra.get(self.name) or {}
        kwargs: dict[str, Any] = {}
        if request.max_tokens is not None:
            kwargs["max_output_tokens" if self._google else "max_tokens"] = request.max_tokens
        if self._google:
            kwargs["max_retries"] = 1  # attempts in all; its client is asked per call
        if request.tools or options.get("tools"):
            kwargs.update(self._tools(inner, request, options))
        responses = self._openai and _by_responses(inner, {**kwargs, **own})
        stops = self._sampled(inner, request, own, kwargs, responses=responses)
        messages = spoken(
            request,
            () if native is None else native.messages,
            origin=self.origin if request.model is None else replace(self.origin, model=request.model),
            dialect=self._over_responses if responses else self._dialect,
            changes=changes,
        )
        answer: str | None = None
        if request.output is not None:
            if self._google and "tools" in kwargs and _is_gemini_before_3(inner):
                answer = ANSWER_TOOL
                kwargs |= self._tools(inner, with_answer_tool(request), {})
            elif not self._anthropic or (self._has_schemas(inner) and _sdk_takes(request.output.schema)):
                kwargs["response_format"] = _response_format(request)
            elif self._thinks(inner, request):
                messages = _asked_for_json(messages, request.output.schema)
            else:
                answer = ANSWER_TOOL
                kwargs |= _with_answer_tool(kwargs, request.output)
        if request.model is not None and request.model != self.model:
            if self._google:
                inner = inner.model_copy(update={"model": request.model})
            else:
                kwargs["model"] = request.model
        if own:
            kwargs.update(own)
            if self._google:
                kwargs.update(kwargs.pop("thinking_config", {}))
        if self._anthropic:
            inner = self._fit_to_history(inner, messages, kwargs)
        return _Call(inner, messages, kwargs, answer, stops)

    def _sampled(
        self,
        inner: BaseChatModel,
        request: ChatRequest,
        own: Mapping[str, Any],
        kwargs: dict[str, Any],
        *,
        responses: bool,
    ) -> tuple[str, ...]:
        """Add how to sample and where to stop, as far as the model takes it: what it does not, its API refuses.

        Returns the stop sequences that the model is not told, to be looked for on this side.
        """
        if request.seed is not None and not (self._anthropic or responses):  # neither has one
            kwargs["seed"] = request.seed
        if request.temperature is None and request.top_p is None and not request.stop:
            return ()
        from shared_core.providers.models import facts

        known = facts("azure-openai" if self.name == "azure" else self.name, request.model or self.model)
        if self._takes_sampling(inner, request, own, known):
            if request.temperature is not None:  # Anthropic's range ends at 1, and of the two it takes one
                kwargs["temperature"] = min(request.temperature, 1.0) if self._anthropic else request.temperature
            if request.top_p is not None and not (self._anthropic and request.temperature is not None):
                kwargs["top_p"] = request.top_p
        if responses or not known.stop:
            return request.stop
        if request.stop:
            kwargs["stop"] = list(request.stop)
        return ()

    def _takes_sampling(
        self, inner: BaseChatModel, request: ChatRequest, own: Mapping[str, Any], known: ModelFacts
    ) -> bool:
        if request.model in (None, self.model) and (inner.profile or {}).get("temperature") is False:
            return False
        if self._openai and known.reasoning and known.sampling:  # as long as it is not told to think
            reasoning = own.get("reasoning") or getattr(inner, "reasoning", None) or {}
            effort = own.get("reasoning_effort") or getattr(inner, "reasoning_effort", None) or reasoning.get("effort")
            return effort in (None, "none")
        return known.sampling

    def _fit_to_history(
        self, inner: BaseChatModel, messages: Sequence[BaseMessage], kwargs: dict[str, Any]
    ) -> BaseChatModel:
        """What Claude asks of a request for the sake of its history: tools it called, thoughts in a running turn."""
        from langchain_fallback._convert.dialect import stubs, thoughtless

        tools = kwargs.get("tools") or []
        if missing := stubs(messages, [str(tool.get("name")) for tool in tools if isinstance(tool, dict)]):
            kwargs["tools"] = [*tools, *missing]
            if not tools:
                kwargs["tool_choice"] = {"type": "none"}
        thinking = kwargs.get("thinking") or getattr(inner, "thinking", None) or {}
        if thinking.get("type") == "enabled" and thoughtless(messages):
            # Another model began the turn: this one request goes without. Claude that adapts its thinking minds not.
            kwargs.pop("thinking", None)
            inner = inner.model_copy(update={"thinking": None})
        return inner

    def _has_schemas(self, inner: BaseChatModel) -> bool:
        """Whether this Claude holds to a JSON schema by itself."""
        from shared_core.providers.models import facts

        told = (inner.profile or {}).get("structured_output")
        return facts("anthropic", self.model).json_schema if told is None else bool(told)

    def _thinks(self, inner: BaseChatModel, request: ChatRequest) -> bool:
        """Whether this Claude is told to think; then no tool can be forced on it."""
        thinking = request.extra.get(self.name, {}).get("thinking") or getattr(inner, "thinking", None) or {}
        return thinking.get("type") in ("enabled", "adaptive")

    def _tools(self, inner: BaseChatModel, request: ChatRequest, options: Mapping[str, Any]) -> Mapping[str, Any]:
        """The keywords that `bind_tools` of this model would bind. Kept with the tools: they are compiled once."""
        tools: Sequence[Any] = options.get("tools") or [
            {
                "type": "function",
                "function": {
                    "name": t.name,
                    "description": t.description,
                    "parameters": dict(t.parameters),
                    **({"strict": t.strict} if t.strict is not None else {}),
                },
            }
            for t in request.tools
        ]
        strict = self._openai and request.output is not None and not getattr(inner, "use_responses_api", False)
        key = (id(self), request.tool_choice, request.parallel_tool_calls, strict)
        if isinstance(tools, BoundTools) and (kept := tools.compiled.get(key)) is not None:
            return cast("Mapping[str, Any]", kept[1])
        own = self._own_tools(tools)
        if strict:  # its SDK parses such an answer itself, and refuses to beside a tool that is not strict
            own = [_strict(tool) for tool in own]
        choice: Any = request.tool_choice
        if choice == "none" and self._anthropic:
            choice = {"type": "none"}  # a bare name would be taken for a tool's
        # Copies: ChatGoogleGenerativeAI takes schemas apart where they lie, and the next target needs them whole.
        given = [copy.deepcopy(tool) if isinstance(tool, dict) else tool for tool in own]
        asked: dict[str, Any] = {} if choice is None else {"tool_choice": choice}
        if request.parallel_tool_calls is not None and "parallel_tool_calls" in _parameters(type(inner)):
            asked["parallel_tool_calls"] = request.parallel_tool_calls
        try:
            bound = inner.bind_tools(given, **asked)
        except NotImplementedError as error:
            raise ProviderError.of(
                ErrorKind.INCAPABLE, f"{type(self.chat_model).__name__} cannot bind tools"
            ) from error
        kwargs = {
            k: v for k, v in getattr(bound, "kwargs", {}).items() if not k.startswith(("ls_", "structured_output"))
        }
        if isinstance(tools, BoundTools):
            tools.compiled[key] = (self, kwargs)  # with the provider itself, so that its id stays its own
        return kwargs

    def _own_tools(self, tools: Sequence[Any]) -> list[Any]:
        """`tools` without what is of other vendors' servers.

        Raises:
            ProviderError: kind INCAPABLE; one of them does what no function of the caller's does.
        """
        family = "openai" if self._openai else "anthropic" if self._anthropic else "google" if self._google else None
        own = []
        for index, tool in enumerate(tools):
            home = _home(tool)
            if family is None or home in (None, family):
                # What a tool says to Claude alone (where to cache, what to load later) its OpenAI form cannot hold.
                full = tools.full(index) if self._anthropic and isinstance(tools, BoundTools) else None
                own.append(tool if full is None else full)
            elif not finds_tools(tool):
                # Given it all the same, one integration breaks, and another takes it for a function of the caller's.
                raise ProviderError.of(ErrorKind.INCAPABLE, f"a tool among these runs on the servers of {home}")
        return own

    def _to_stream(
        self, inner: BaseChatModel, request: ChatRequest, kwargs: Mapping[str, Any], *, native: bool
    ) -> bool:
        return request.streaming and native and not inner._streaming_disabled(**kwargs)

    def _streaming(self, inner: BaseChatModel, kwargs: dict[str, Any]) -> dict[str, Any]:
        """`kwargs` with usage asked for: that is off by default behind a `base_url`, and nobody knows what was spent.

        Over the Responses API usage always comes, and ChatOpenAI would hand the keyword on to an SDK that has none.
        """
        if self._asks_usage and not (self._openai and _by_responses(inner, kwargs)):
            kwargs["stream_usage"] = True
        return kwargs

    # ── what came back ───────────────────────────────────────────────────────────────────────────────────────────────

    def _whole(self, result: ChatResult, answer: str | None) -> Iterator[ChatEvent]:
        """The events of a whole answer. Arguments of the tool `answer` are its text."""
        if not result.generations:
            raise ProviderError.of(ErrorKind.MALFORMED, "the model returned no generations")
        generation = result.generations[0]
        message = generation.message
        if not isinstance(message, AIMessage):
            message = AIMessage(content=message.content, id=message.id)
        metadata = {**(result.llm_output or {}), **(generation.generation_info or {}), **message.response_metadata}
        if self._google:
            _there_is_one(metadata)
        if metadata != message.response_metadata:
            message = message.model_copy(update={"response_metadata": metadata})
        yield from _content_events(message)
        if answer is not None and (
            said := "".join(_dumped(c["args"]) for c in message.tool_calls if c["name"] == answer)
        ):
            yield TextDelta(said)
            message = _as_text(message, answer, said)
        for call in message.tool_calls:
            yield ToolCall(call.get("id") or "", call["name"], _dumped(call["args"]))
        for bad in message.invalid_tool_calls:
            yield ToolCall(bad.get("id") or "", bad.get("name") or "", bad.get("args") or "{}")
        yield self._finished(message)

    def _finished(self, message: AIMessage) -> Finished:
        metadata = message.response_metadata
        raw = next((str(metadata[k]) for k in _REASON_KEYS if metadata.get(k)), None)
        reason: FinishReason = "stop" if raw is None else _REASONS.get(raw.lower(), "other")
        calls = bool(message.tool_calls or message.invalid_tool_calls)
        if reason in ("stop", "tool_calls"):  # Gemini has no word of its own for it; a call may have been the answer
            reason = "tool_calls" if calls else "stop"
        return Finished(
            reason=reason,
            raw_reason=raw,
            usage=usage_of(message.usage_metadata),
            response_id=_text(metadata.get("id")),
            model=_text(metadata.get("model_name")) or _text(metadata.get("model")) or self.model,
            native=message,
        )

    def _problem(self, error: Exception) -> ProviderError | None:
        """What a failure of the model means; None for a bug, which surfaces as the bug it is."""
        from shared_core.providers.classify import classify_body, classify_error, is_bug

        if isinstance(error, ProviderError):
            return error
        if self._openai and type(error) is ValueError and _of_the_answer(error):
            return classify_body(self.name, None, _told_by(error))
        problem = classify_error(error, provider=self.name)
        if problem is None and is_bug(error):
            if loop := next((e for e in _causes(error) if "loop" in str(e) and isinstance(e, RuntimeError)), None):
                # The integration calls it a lost connection. Nobody is down: its sockets are of a loop that has ended.
                raise RuntimeError(
                    f"{loop}: {type(self.chat_model).__name__} keeps connections of an event loop that is gone\n"
                    f"hint: stay in one event loop, or name the model by its spec ('{self.name}:{self.model}')"
                ) from error
        elif problem is None:
            # A model of somebody else's may fail in words of its own; what it says is about itself.
            problem = ProviderError.of(ErrorKind.UNKNOWN, f"{type(error).__name__}: {error}")
        return problem


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The causes of `error`, nearest first, without itself."""
    cause = error.__cause__ or error.__context__
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


# ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class _Reader:
    """Reads the chunks of one streamed answer as events, and at the end knows whether it was whole."""

    __slots__ = ("_answer", "_answering", "_chunks", "_indices", "_provider", "_rich", "_said", "_texts")

    def __init__(self, provider: LangChainProvider, answer: str | None) -> None:
        self._provider = provider
        self._answer = answer
        """The tool whose arguments are the answer's text."""
        self._answering: set[Any] = set()
        """The indices of its calls."""
        self._said = ""
        self._chunks: list[ChatGenerationChunk] = []
        self._rich: list[ChatGenerationChunk] = []
        """Those that are more than a piece of text: with the texts joined, they are the whole answer."""
        self._texts: list[str] | None = []
        """All pieces of text, as long as there is nothing but strings."""
        self._indices: dict[Any, int] = {}

    def feed(self, chunk: ChatGenerationChunk) -> Sequence[ChatEvent]:
        """The events of one chunk."""
        message = chunk.message
        content = message.content
        first = not self._chunks
        self._chunks.append(chunk)
        if (
            type(content) is str and type(message) is AIMessageChunk and not message.additional_kwargs
        ):  # by far the most
            if self._texts is not None:
                self._texts.append(content)
            if not (
                first
                or message.tool_call_chunks
                or message.response_metadata
                or message.usage_metadata
                or message.chunk_position
                or chunk.generation_info
            ):
                return (TextDelta(content),) if content else ()
        elif type(content) is not str:
            self._texts = None
        elif self._texts is not None:
            self._texts.append(content)
        self._rich.append(chunk)
        events: list[ChatEvent] = [Started()] if first else []
        events += _content_events(message)
        if isinstance(message, AIMessageChunk):
            for part in message.tool_call_chunks:
                index = part.get("index")
                if self._answer is not None and (part.get("name") == self._answer or index in self._answering):
                    self._answering.add(index)
                    if text := part.get("args"):
                        self._said += text
                        events.append(TextDelta(text))
                    continue
                # A fragment without an index is a call of its own; LangChain never merges those.
                key = ("index", index) if index is not None else ("alone", len(self._indices))
                at = self._indices.setdefault(key, len(self._indices))
                events.append(ToolCallDelta(at, part.get("id"), part.get("name"), part.get("args") or ""))
        return events

    def finish(self) -> Iterator[ChatEvent]:
        """The last event.

        Raises:
            ProviderError: the answer is not whole.
        """
        if not self._chunks:
            raise ProviderError.of(ErrorKind.MALFORMED, "the model streamed nothing at all")
        chunks = self._chunks if self._texts is None else self._rich
        whole = chunks[0] if len(chunks) == 1 else chunks[0] + chunks[1:]
        merged = whole.message
        metadata = {**(whole.generation_info or {}), **merged.response_metadata}
        if self._provider._google and not merged.content:
            _there_is_one(metadata)
        if self._provider._sure_of_end and not (
            getattr(merged, "chunk_position", None) == "last" or any(metadata.get(k) for k in _REASON_KEYS)
        ):
            raise ProviderError.of(ErrorKind.STREAM_CUT, "the stream ended without saying why")
        message = message_chunk_to_message(merged)
        if self._texts is not None:
            message.content = "".join(self._texts)
        if not isinstance(message, AIMessage):
            message = AIMessage(content=message.content)
        message.response_metadata = metadata
        if self._answer is not None and self._said:
            message = _as_text(message, self._answer, self._said)
        yield self._provider._finished(message)


def _there_is_one(metadata: Mapping[str, Any]) -> None:
    """Whether Gemini has answered at all: its class makes an empty message of a blocked prompt, and of no candidate.

    Raises:
        ProviderError: POLICY: the prompt was blocked; MALFORMED: nothing in the answer says why it ended.
    """
    blocked = (metadata.get("prompt_feedback") or {}).get("block_reason")
    if blocked is not None:
        blocked = str(getattr(blocked, "value", blocked))
        raise ProviderError.of(ErrorKind.POLICY, f"Gemini blocked the prompt: {blocked}", code=blocked)
    if not any(metadata.get(k) for k in _REASON_KEYS):
        raise ProviderError.of(ErrorKind.MALFORMED, "Gemini answered without a finish reason")


def _all_of(events: Iterable[ChatEvent]) -> Iterable[ChatEvent]:
    return events


def _cut_short(event: Finished, said: str) -> Finished:
    """The end of an answer that was stopped behind `said`."""
    if not isinstance(event.native, AIMessage):
        return event
    left = {"content": said, "tool_calls": [], "invalid_tool_calls": []}
    return replace(event, native=event.native.model_copy(update=left))


def _ender(stops: Sequence[str]) -> Callable[[Iterable[ChatEvent]], Iterable[ChatEvent]]:
    """What of the events goes on to the caller: all of them, or those before the first of `stops`."""
    if not stops:
        return _all_of
    from shared_core.providers.stopped import Stops

    return Stops(stops, _cut_short).feed


def _content_events(message: BaseMessage) -> Iterator[ChatEvent]:
    """Thinking and text of a message or chunk, in the dialects the integrations speak."""
    thoughts = message.additional_kwargs.get("reasoning_content")
    if isinstance(thoughts, str) and thoughts:
        yield ReasoningDelta(thoughts)
    content = message.content
    if isinstance(content, str):
        if content:
            yield TextDelta(content)
        return
    for block in content:
        if isinstance(block, str):
            if block:
                yield TextDelta(block)
            continue
        kind = block.get("type")
        if kind in ("text", "refusal"):
            if text := block.get(kind):
                yield TextDelta(text)
        elif _is_opaque(block):
            text = block.get("thinking") or block.get("reasoning") or ""
            for summary in block.get("summary") or ():
                text += summary.get("text", "") if isinstance(summary, dict) else ""
            data = {k: v for k, v in block.items() if k in ("signature", "data", "id", "encrypted_content") and v}
            data |= {k: v for k, v in (block.get("extras") or {}).items() if v}
            if text or data:
                yield ReasoningDelta(str(text), data)


def _is_opaque(block: Any) -> bool:
    return isinstance(block, dict) and block.get("type") in ("thinking", "redacted_thinking", "reasoning")


def _by_responses(model: BaseChatModel, kwargs: Mapping[str, Any]) -> bool:
    """Whether ChatOpenAI answers this call by the Responses API."""
    decides = getattr(model, "_use_responses_api", None)
    return bool(decides is not None and decides({**getattr(model, "model_kwargs", {}), **kwargs}))


def _dumped(arguments: Any) -> str:
    return json.dumps(arguments, ensure_ascii=False)


def _as_text(message: AIMessage, tool: str, said: str) -> AIMessage:
    """`message` with the calls of `tool` as the text that they were."""
    return message.model_copy(
        update={
            "content": message.text + said,
            "tool_calls": [c for c in message.tool_calls if c["name"] != tool],
            "invalid_tool_calls": [c for c in message.invalid_tool_calls if c["name"] != tool],
        }
    )


def _of_the_answer(error: Exception) -> bool:
    """Whether ChatOpenAI raised this when it read what the server said, and not before it sent anything."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and _FROM_ANSWER.fullmatch(trace.tb_frame.f_code.co_name) is not None


def _told_by(error: Exception) -> dict[str, Any]:
    """The server's error in a bare `ValueError` of ChatOpenAI: an object, a mapping, or nothing but text."""
    told = error.args[0] if error.args else ""
    if isinstance(told, Mapping):
        return {"error": dict(told)}
    if (message := getattr(told, "message", None)) is not None:
        return {"error": {"code": getattr(told, "code", None), "message": message}}
    found = _SAID.fullmatch(str(told))
    assert found is not None  # its last group takes anything
    return {"error": {"code": found["kind"] or found["code"], "message": found["message"]}}


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _response_format(request: ChatRequest) -> dict[str, Any]:
    output = request.output
    assert output is not None
    if not output.schema:
        return {"type": "json_object"}
    schema: dict[str, Any] = {"name": output.name, "schema": dict(output.schema)}
    if output.strict is not None:
        schema["strict"] = output.strict
    return {"type": "json_schema", "json_schema": schema}


def _home(tool: Any) -> str | None:
    """On whose servers `tool` runs; None for a function of the caller's."""
    if not runs_on_servers(tool):
        return None
    kind = tool.get("type")
    if not isinstance(kind, str):
        return "google"  # {"google_search": {}}
    return "anthropic" if _DATED.search(kind) or kind == "mcp_toolset" else "openai"


def _strict(tool: Any) -> Any:
    """`tool`, in OpenAI's form, held to its schema; where it says for itself whether it is, it stays as it is."""
    function = tool.get("function")
    if not isinstance(function, Mapping) or function.get("strict") is not None:
        return tool
    return convert_to_openai_tool({"parameters": {"type": "object", "properties": {}}, **function}, strict=True)


def _sdk_takes(schema: Mapping[str, Any]) -> bool:
    """Whether Anthropic's SDK, by which ChatAnthropic sends schemas, can tell it. Before 1 it insists on types."""
    if not schema:
        return False
    from anthropic import transform_schema

    try:
        transform_schema(copy.deepcopy(dict(schema)))
    except ValueError:
        return False
    return True


def _asked_for_json(messages: list[BaseMessage], schema: Mapping[str, Any]) -> list[BaseMessage]:
    first, wish = messages[0], asked(schema)
    if isinstance(first, SystemMessage) and isinstance(first.content, str):
        return [SystemMessage(content=f"{first.content}\n\n{wish}", name=first.name), *messages[1:]]
    return [SystemMessage(content=wish), *messages]


def _with_answer_tool(kwargs: Mapping[str, Any], output: OutputSchema) -> dict[str, Any]:
    """Keywords that make ChatAnthropic answer by calling a tool of that schema, or call one of the others first."""
    answer = answer_tool(output)
    tool = {"name": answer.name, "description": answer.description, "input_schema": dict(answer.parameters)}
    tools = list(kwargs.get("tools") or ())
    if not tools:  # one answer is wanted, and not several after each other
        choice: dict[str, Any] = {"type": "tool", "name": ANSWER_TOOL, "disable_parallel_tool_use": True}
        return {"tools": [tool], "tool_choice": choice}
    choice = {"type": "any"}
    before = kwargs.get("tool_choice")
    if isinstance(before, dict) and "disable_parallel_tool_use" in before:
        choice["disable_parallel_tool_use"] = before["disable_parallel_tool_use"]
    return {"tools": [*tools, tool], "tool_choice": choice}


def _capabilities(model: BaseChatModel) -> Capabilities:
    """What the model's `profile` says; without one, what LangChain itself assumes of a chat model."""
    profile: Mapping[str, Any] = model.profile or {}
    tools = type(model).bind_tools is not BaseChatModel.bind_tools
    # Of Claude an answer in a schema can always be had, by a tool.
    schema = tools if _is_claude(model) else bool(profile.get("structured_output", tools))
    return Capabilities(
        tools=tools and bool(profile.get("tool_calling", True)),
        json_schema=schema,
        json_mode=tools,
        images=bool(profile.get("image_inputs", True)),
        image_urls=bool(profile.get("image_url_inputs", True)),
        # Unknown means: let it try. It refuses before anything is sent, and then the next one is asked.
        pdfs=bool(profile.get("pdf_inputs", True)),
        audio=bool(profile.get("audio_inputs", True)),
        reasoning=bool(profile.get("reasoning_output", False)),
        context_window=profile.get("max_input_tokens") or None,
        max_output=profile.get("max_output_tokens") or None,
    )


def _is_gemini_before_3(model: BaseChatModel) -> bool:
    from shared_core.providers.models import gemini_generation

    generation = gemini_generation(str(getattr(model, "model", "")))
    return generation is not None and generation < 3.0


def _is_claude(model: BaseChatModel) -> bool:
    return "langchain_anthropic" in families(model)


_SIGNATURES: dict[type, frozenset[str]] = {}


def _parameters(cls: type[BaseChatModel]) -> frozenset[str]:
    """The named parameters of the class's `bind_tools`."""
    if cls not in _SIGNATURES:
        _SIGNATURES[cls] = frozenset(inspect.signature(cls.bind_tools).parameters)
    return _SIGNATURES[cls]


@contextmanager
def _closing(chunks: Any) -> Iterator[None]:
    """Hang up on whoever is still talking: integrations leave that to Python's garbage collector."""
    try:
        yield
    finally:
        hang_up(chunks)
        if hasattr(chunks, "close"):
            chunks.close()


@asynccontextmanager
async def _aclosing(chunks: Any) -> AsyncIterator[None]:
    """The same, async."""
    try:
        yield
    finally:
        await ahang_up(chunks)
        if hasattr(chunks, "aclose"):
            await chunks.aclose()
