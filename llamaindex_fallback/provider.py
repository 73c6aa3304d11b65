"""`LlamaIndexProvider`: any ready LlamaIndex `LLM` as a provider, through its own chat methods."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import gc
import inspect
import re
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any, Final, Literal

from llama_index.core.base.llms.types import CachePoint, ChatMessage, TextBlock, ThinkingBlock, ToolCallBlock
from llama_index.core.bridge.pydantic import BaseModel
from llama_index.core.llms import callbacks
from llama_index.core.llms.custom import CustomLLM
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import LLM
from llama_index.core.tools.types import BaseTool, ToolMetadata, ToolOutput
from llama_index_instrumentation.dispatcher import active_instrument_tags, instrument_tags

from llamaindex_fallback._convert import FRAMEWORK, STAMP, from_messages, peek, stamped, tool_choice
from llamaindex_fallback._reader import Reader
from llamaindex_fallback._state import dump_llm, load_llm
from shared_core.chat.events import ChatEvent
from shared_core.chat.request import ChatRequest, Origin, ToolSpec
from shared_core.errors import ConfigurationError, ErrorKind, ProviderError, redact
from shared_core.history import (
    ANTHROPIC,
    COMPATIBLE,
    GOOGLE,
    LLAMA_CPP,
    MISTRAL,
    OPENAI,
    HistoryRules,
    prepare,
    wire_name,
    with_stubs,
)
from shared_core.providers.classify import classify_error
from shared_core.resilience.deadline import Guard
from shared_core.routing.capabilities import Capabilities

__all__ = ["LlamaIndexProvider"]

INNER_TAG: Final = "llm_fallback_inner"
"""The instrumentation tag on events that a wrapped LLM sends although we asked it not to; its value is the target."""

_VENDORS: Final[Sequence[tuple[str, str, HistoryRules]]] = (
    ("openai", "openai", OPENAI),
    ("anthropic", "anthropic", ANTHROPIC),
    ("google", "google", GOOGLE),
    ("gemini", "google", GOOGLE),
    ("genai", "google", GOOGLE),
    ("mistral", "mistral", MISTRAL),
    ("llamacpp", "llamacpp", LLAMA_CPP),
)
"""What an LLM's class name begins with, the vendor's name in prices and constraints, and its rules for a history."""

_LOCAL: Final = frozenset({"llamacpp", "ollama", "huggingfacellm", "vllm"})

Method = Literal["chat", "stream_chat", "achat", "astream_chat"]


class LlamaIndexProvider:
    """A ready `LLM`, asked through `chat`, `stream_chat`, `achat` and `astream_chat`.

    Its own settings (temperature, max_tokens, …) stand unless the request sets them. Its own retries are switched off,
    on a shallow copy: the LLM passed in is not changed, and changing it later has no effect. It gets fresh messages
    with every call, so whatever an integration does to them, the caller's stay as they were.

    Args:
        llm: the LLM.
        name: the vendor's name, for prices and constraints; read from the LLM's class when left out.
        local: whether it runs on this machine; known for llama.cpp, Ollama and the like.
        capabilities: what it can take, in place of what its `metadata` says.

    Raises:
        ConfigurationError: `llm` is no LlamaIndex LLM.
    """

    interruptible = False

    def __init__(
        self,
        llm: LLM,
        *,
        name: str | None = None,
        local: bool | None = None,
        capabilities: Capabilities | Mapping[str, Any] | None = None,
    ) -> None:
        if not isinstance(llm, LLM):
            raise ConfigurationError(f"LlamaIndexProvider wraps a LlamaIndex LLM, not {type(llm).__name__}")
        kind = re.sub("[^a-z0-9]", "", llm.class_name().lower())
        vendor, self._rules = next(((v, r) for prefix, v, r in _VENDORS if kind.startswith(prefix)), (None, COMPATIBLE))
        self.name: str = name or vendor or kind.removesuffix("llm") or "llamaindex"
        self.llm: LLM = _without_retries(llm)
        self._theirs = list(_private(llm).values())
        self.model: str = llm.metadata.model_name or llm.class_name()
        self.local: bool = any(kind.startswith(word) for word in _LOCAL) if local is None else local
        self._declared = Capabilities(**capabilities) if isinstance(capabilities, Mapping) else capabilities
        self._reports_usage_when_asked = kind == "openaillm"
        self._lock = threading.Lock()
        self._copies: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, LLM] = weakref.WeakKeyDictionary()

    def __reduce__(self) -> tuple[Any, ...]:
        # As class and settings: an LLM pickled as it is would take its key along.
        return _revived, (dump_llm(self.llm), self.name, self.local, self._declared)

    def __repr__(self) -> str:
        return f"LlamaIndexProvider({type(self.llm).__name__}, model={self.model!r})"

    @property
    def capabilities(self) -> Capabilities:
        """What its `metadata` says. Structured output goes through tools, so no JSON schema of its own is claimed."""
        if self._declared is not None:
            return self._declared
        facts = self.llm.metadata
        tools = False
        choices = {"auto", "none"}
        if facts.is_function_calling_model and isinstance(self.llm, FunctionCallingLLM):
            tools = True
            accepted = _tool_options(type(self.llm))
            choices |= {"any"} if "tool_required" in accepted else set()
            choices |= {"tool"} if "tool_choice" in accepted else set()
        return Capabilities(
            tools=tools,
            tool_choice=frozenset(choices),
            json_schema=False,
            json_mode=False,
            pdfs="file" in self._rules.media,
            audio="audio" in self._rules.media,
            context_window=facts.context_window if facts.context_window > 0 else None,
            max_output=facts.num_output if facts.num_output > 0 else None,
        )

    @property
    def origin(self) -> Origin:
        """Thinking that this LLM wrote goes back to it alone: not to the same model behind a native target."""
        endpoint = peek(self.llm, "api_base") or peek(self.llm, "base_url")
        return Origin(f"{FRAMEWORK}/{self.name}", self.model, redact(endpoint) if isinstance(endpoint, str) else None)

    # ── the four ways of asking ──────────────────────────────────────────────────────────────────────────────────────

    def stream(self, request: ChatRequest, guard: Guard) -> Iterator[ChatEvent]:
        """Answer, sync. Blocks until the LLM says something: the router walks away from it when the guard expires."""
        llm, arguments, reader = self._asked(self.llm, request)
        tags = self._tags()
        try:
            with tags():
                _acquire(llm)
                answer = _method(llm, "stream_chat" if request.streaming else "chat")(**arguments)
            if not request.streaming:
                yield from reader.whole(answer)
                return
            try:
                while True:
                    with tags():
                        response = next(answer, None)
                    if response is None:
                        break
                    yield from reader.feed(response)
            finally:
                for response in _unfinished(answer):
                    response.close()
                answer.close()
            yield from reader.finish()
        except Exception as error:
            if (known := self._known(error)) is None:
                raise
            raise known from error

    async def astream(self, request: ChatRequest, guard: Guard) -> AsyncIterator[ChatEvent]:
        """Answer, async. An LLM whose async methods only call its sync ones is asked in a thread."""
        llm, arguments, reader = self._asked(self._on_this_loop(), request)
        tags = self._tags()
        try:
            if _blocks(llm):
                async for event in self._threaded(llm, arguments, reader, tags, streaming=request.streaming):
                    yield event
                return
            with tags():
                await _aacquire(llm)
                answer = await _method(llm, "astream_chat" if request.streaming else "achat")(**arguments)
            if not request.streaming:
                for event in reader.whole(answer):
                    yield event
                return
            try:
                while True:
                    with tags():
                        response = await anext(answer, None)
                    if response is None:
                        break
                    for event in reader.feed(response):
                        yield event
            finally:
                for response in _unfinished(answer):
                    await response.aclose()
                await answer.aclose()
            for event in reader.finish():
                yield event
        except Exception as error:
            if (known := self._known(error)) is None:
                raise
            raise known from error

    async def _threaded(
        self, llm: LLM, arguments: Mapping[str, Any], reader: Reader, tags: Tags, *, streaming: bool
    ) -> AsyncIterator[ChatEvent]:
        def begin() -> Any:
            _acquire(llm)
            return _method(llm, "stream_chat" if streaming else "chat")(**arguments)

        with tags():
            answer = await asyncio.to_thread(begin)
        if not streaming:
            for event in reader.whole(answer):
                yield event
            return
        try:
            while True:
                with tags():
                    response = await asyncio.to_thread(next, answer, None)
                if response is None:
                    break
                for event in reader.feed(response):
                    yield event
        finally:
            with contextlib.suppress(ValueError):  # cancelled while it runs in its thread, where it ends by itself
                answer.close()
        for event in reader.finish():
            yield event

    def close(self) -> None:
        """Close the sync clients that were opened here; the LLM's own stay as they are. Idempotent."""
        with self._lock:
            self._copies.clear()
        for client in self._opened(self.llm):
            if callable(close := peek(client, "close")) and not inspect.iscoroutinefunction(close):
                close()

    async def aclose(self) -> None:
        """Close the async clients that were opened here for the running loop, then `close`."""
        with self._lock:
            copied = self._copies.pop(asyncio.get_running_loop(), None)
        for client in self._opened(copied):
            if inspect.iscoroutinefunction(close := peek(client, "close")):
                await close()
        self.close()

    def _opened(self, llm: LLM | None) -> list[Any]:
        """The SDK clients that `llm` holds and the one we were given did not."""
        held = [one for one in _private(llm).values() if one is not None]
        return [one for one in held if not any(one is its for its in self._theirs)]

    # ── what is asked ────────────────────────────────────────────────────────────────────────────────────────────────

    def _asked(self, llm: LLM, request: ChatRequest) -> tuple[LLM, dict[str, Any], Reader]:
        """The LLM to ask, the keyword arguments of its chat method, and who reads the answer."""
        if request.model is not None and request.model != self.model:
            if "model" not in type(llm).model_fields:
                raise ProviderError.of(ErrorKind.INCAPABLE, f"{type(llm).__name__} cannot be asked for another model")
            llm = llm.model_copy(update={"model": request.model})
        messages, specs = self._history(request)
        names = {wire_name(spec.name, self._rules): spec.name for spec in request.tools}
        arguments: dict[str, Any] = {"messages": messages}
        if specs and request.tool_choice != "none":
            arguments = _with_tools(llm, specs, request, names, messages)
        for key in ("temperature", "max_tokens", "top_p", "seed"):
            if (value := getattr(request, key)) is not None:
                arguments[key] = value
        if request.stop:
            arguments["stop"] = list(request.stop)
        if self._reports_usage_when_asked and request.streaming:
            arguments.setdefault("stream_options", {"include_usage": True})
        arguments |= request.extra.get(self.name, {})
        return llm, arguments, Reader(names)

    def _history(self, request: ChatRequest) -> tuple[list[ChatMessage], Sequence[ToolSpec]]:
        """LlamaIndex's own messages where all that is opaque in them is this LLM's, else the neutral ones, prepared."""
        native = request.native
        theirs = native is not None and native.framework == FRAMEWORK and not native.added
        if native is not None and theirs and all(map(self._is_ours, native.messages)):
            return [self._copy(message) for message in native.messages], with_stubs(request.tools, (), self._rules)
        going_on = request.continues
        kept = prepare(request.messages, origin=self.origin, rules=self._rules, keep_trailing_assistant=going_on)
        return from_messages(kept), with_stubs(request.tools, kept, self._rules)

    def _is_ours(self, message: ChatMessage) -> bool:
        opaque = any(isinstance(block, (ToolCallBlock, ThinkingBlock)) for block in message.blocks)
        return (not opaque and "tool_calls" not in message.additional_kwargs) or stamped(message)[0] == self.origin

    def _copy(self, message: ChatMessage) -> ChatMessage:
        blocks = [
            block.model_copy(deep=True)
            for block in message.blocks
            if not (isinstance(block, CachePoint) and not self._rules.cache_hints)
            # An empty text beside a call makes Google's integration send the call twice.
            and not (isinstance(block, TextBlock) and not block.text and len(message.blocks) > 1)
        ]
        kwargs = {key: value for key, value in message.additional_kwargs.items() if key not in (STAMP, "tool_calls")}
        return ChatMessage(role=message.role, blocks=blocks, additional_kwargs=copy.deepcopy(kwargs))

    def _on_this_loop(self) -> LLM:
        """A copy per event loop of an LLM that keeps an async client: connections belong to the loop they began on."""
        if "_aclient" not in _private(self.llm):
            return self.llm
        with self._lock:
            loop = asyncio.get_running_loop()
            if loop not in self._copies:
                self._copies[loop] = self.llm.model_copy()
            return self._copies[loop]

    # ── what is told ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _tags(self) -> Tags:
        return lambda: instrument_tags({**active_instrument_tags.get(), INNER_TAG: f"{self.name}:{self.model}"})

    def _known(self, error: Exception) -> ProviderError | None:
        """What to raise in its place; None for a bug, which is nobody's outage, and for what is already told."""
        if isinstance(error, ProviderError):
            return None
        if _misread(error):
            return ProviderError.of(ErrorKind.MALFORMED, f"the answer is none: {type(error).__name__}: {error}")
        return classify_error(error, provider=self.name)


Tags = Callable[[], contextlib.AbstractContextManager[None]]


def _misread(error: Exception) -> bool:
    """Whether an integration stumbled over an answer that is none (an HTML page, no choices), which looks like a bug.

    Only where it reads a plain value as if it were an answer; any other `TypeError` and the like is a broken install.
    """
    match error:
        case IndexError():
            plain = True
        case AttributeError():
            plain = isinstance(error.obj, (str, bytes, list, dict, type(None)))
        case TypeError():
            plain = str(error).startswith("'NoneType' object is not")
        case _:
            return False
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return plain and trace is not None and trace.tb_frame.f_globals.get("__name__", "").startswith("llama_index.llms.")


# ── the LLM without what the router does itself ──────────────────────────────────────────────────────────────────────


def _without_retries(llm: LLM) -> LLM:
    """`llm`, or a shallow copy of it with `max_retries=0`: who retries, when and where is the router's decision.

    Only LLMs with that setting are copied, so that an LLM that keeps a state of its own stays the one you hold.
    """
    if not isinstance(peek(llm, "max_retries"), int) or "max_retries" not in type(llm).model_fields:
        return llm
    quiet = llm.model_copy(update={"max_retries": 0})
    for key, client in _private(quiet).items():
        if client is not None and peek(client, "max_retries") and callable(peek(client, "with_options")):
            setattr(quiet, key, client.with_options(max_retries=0))  # an SDK client that was built before we came
    return quiet


def _revived(
    told: Mapping[str, Any], name: str, local: bool, capabilities: Capabilities | None
) -> LlamaIndexProvider:
    return LlamaIndexProvider(load_llm(told), name=name, local=local, capabilities=capabilities)


def _private(llm: LLM | None) -> dict[str, Any]:
    """Where integrations keep their SDK clients."""
    return dict(peek(llm, "__pydantic_private__") or {})


def _method(llm: LLM, name: Method) -> Callable[..., Any]:
    """The LLM's method without LlamaIndex's callback decorator, so that one logical call stays one chain of events.

    The decorator keeps the function it wraps in its closure. Where it is not found, the public method is used as it is,
    and its events carry `INNER_TAG`.
    """
    inner = _undecorated(type(llm), name)
    return getattr(llm, name) if inner is None else partial(inner, llm)


@lru_cache(maxsize=256)
def _undecorated(cls: type[LLM], name: Method) -> Callable[..., Any] | None:
    function = inspect.getattr_static(cls, name)
    function = peek(function, "__wrapped__") or function  # the span decorator's
    if inspect.isfunction(function) and function.__globals__.get("__name__") == callbacks.__name__:
        inner = inspect.getclosurevars(function).nonlocals.get("f")
        if inspect.isfunction(inner):
            return inner
    return None


def _unfinished(answer: Any) -> list[Any]:
    """The HTTP responses that a stream has not read to their end.

    LlamaIndex's OpenAI leaves them to Python's cycle collector, so a reader who walked away would go on paying. They
    are found where the suspended generators hold them: generators on generators, and at their end the SDK's `Stream`.
    """
    found: list[Any] = []
    layer = [answer]
    for _ in range(4):
        held = [one for each in layer for one in gc.get_referents(each)]
        layer = [one for one in held if inspect.isgenerator(one) or inspect.isasyncgen(one)]
        found += [one.response for one in held if type(one).__name__ in ("Stream", "AsyncStream")]
    return found


def _acquire(llm: LLM) -> None:
    """What the decorator would have done: wait for the LLM's own rate limiter."""
    if llm.rate_limiter is not None:
        llm.rate_limiter.acquire()


async def _aacquire(llm: LLM) -> None:
    if llm.rate_limiter is not None:
        await llm.rate_limiter.async_acquire()


def _blocks(llm: LLM) -> bool:
    """Whether the LLM's async methods are LlamaIndex's stand-ins that call the sync ones on the loop."""
    mine, stand_in = (inspect.getattr_static(cls, "achat") for cls in (type(llm), CustomLLM))
    return isinstance(llm, CustomLLM) and mine is stand_in


# ── tools ────────────────────────────────────────────────────────────────────────────────────────────────────────────


class _Declared(BaseTool):
    """A tool that is only declared: integrations read its metadata, nobody calls it."""

    def __init__(self, spec: ToolSpec) -> None:
        self._metadata = _Metadata(spec.description, spec.name, _schema(spec))

    @property
    def metadata(self) -> ToolMetadata:
        return self._metadata

    def __call__(self, input: Any) -> ToolOutput:  # noqa: A002  # LlamaIndex's name for it
        raise NotImplementedError("the caller runs its own tools")


class _Metadata(ToolMetadata):
    def _sanitize_name(self, name: str | None) -> str | None:
        return name  # already in the vendor's alphabet


def _schema(spec: ToolSpec) -> type[BaseModel]:
    """A model class whose JSON schema is the tool's: some integrations ask the class, others the metadata."""
    parameters = copy.deepcopy(dict(spec.parameters))
    return type(
        spec.name,
        (BaseModel,),
        {
            "__doc__": spec.description,
            "__module__": __name__,
            "model_json_schema": classmethod(lambda cls, *args, **kwargs: copy.deepcopy(parameters)),
        },
    )


@lru_cache(maxsize=256)
def _tool_options(cls: type[FunctionCallingLLM]) -> frozenset[str]:
    """What an integration can be told about tools; older ones know neither `tool_required` nor `tool_choice`."""
    return frozenset(inspect.signature(cls._prepare_chat_with_tools).parameters)


def _with_tools(
    llm: LLM, specs: Sequence[ToolSpec], request: ChatRequest, names: Mapping[str, str], messages: list[ChatMessage]
) -> dict[str, Any]:
    """The arguments as the integration prepares them for its vendor, at the moment of the call."""
    if not isinstance(llm, FunctionCallingLLM):
        raise ProviderError.of(ErrorKind.INCAPABLE, f"{type(llm).__name__} cannot call tools")
    accepted = _tool_options(type(llm))
    options: dict[str, Any] = {}
    if "tool_required" in accepted:
        options["tool_required"] = request.tool_choice == "any"
    chosen = {theirs: wire for wire, theirs in names.items()}.get(request.tool_choice or "")
    if chosen is not None and "tool_choice" in accepted:
        options["tool_choice"] = tool_choice(chosen, specs)
    prepared = llm._prepare_chat_with_tools(
        [_Declared(spec) for spec in specs],
        chat_history=messages,
        # LlamaIndex's own default is one call at a time; ours is the vendor's, which is several.
        allow_parallel_tool_calls=request.parallel_tool_calls is not False,
        **options,
    )
    return dict(prepared)
