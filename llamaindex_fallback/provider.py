"""`LlamaIndexProvider`: any ready LlamaIndex `LLM` as a provider, through its own chat methods."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import inspect
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from llama_index.core.base.llms.types import (
    AudioBlock,
    CachePoint,
    ChatMessage,
    CitableBlock,
    CitationBlock,
    ContentBlock,
    DocumentBlock,
    ImageBlock,
    MessageRole,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
    VideoBlock,
)
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import LLM
from llama_index_instrumentation.dispatcher import active_instrument_tags

from llamaindex_fallback import _mould as mould
from llamaindex_fallback._asking import answer_tool, instructed
from llamaindex_fallback._cache import says_all, settings_of
from llamaindex_fallback._convert import FRAMEWORK, STAMP, block_of, from_messages, parts_of, peek, stamped
from llamaindex_fallback._dialect import Dialect, dialect_of, fetched, joined, kind_of, to_fetch
from llamaindex_fallback._reader import Reader
from llamaindex_fallback._state import dump_llm, load_llm
from llamaindex_fallback._wrapped import (
    aacquire,
    acquire,
    blocks,
    for_one_loop,
    last_chunk,
    method,
    misread,
    private,
    refused_answer,
    variant,
    without_retries,
)
from shared_core.chat.events import ChatEvent, Started
from shared_core.chat.request import Audio, ChatRequest, File, Image, Origin, Part, ToolSpec
from shared_core.errors import ConfigurationError, ErrorKind, ProviderError, redact
from shared_core.history import Change, prepare, summary, wire_name, with_stubs
from shared_core.history.media import media_for
from shared_core.providers.classify import classify_error
from shared_core.providers.models import facts
from shared_core.providers.stopped import astopped, stopped
from shared_core.providers.suspended import ahang_up, hang_up
from shared_core.providers.transport import PerLoop
from shared_core.resilience.deadline import Guard
from shared_core.routing.capabilities import Capabilities

__all__ = ["LlamaIndexProvider"]

INNER_TAG: Final = "llm_fallback_inner"
"""The instrumentation tag on events that a wrapped LLM sends although we asked it not to; its value is the target."""

_LOCAL: Final = frozenset({"llamacpp", "ollama", "huggingfacellm", "vllm"})

_MEDIA: Final = (ImageBlock, AudioBlock, VideoBlock, DocumentBlock)

_log = logging.getLogger(__name__)


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
        kind = kind_of(llm)
        self._dialect: Dialect = dialect_of(llm)
        self._rules = self._dialect.rules
        self.name: str = name or self._dialect.vendor or kind.removesuffix("llm") or "llamaindex"
        self.llm: LLM = without_retries(llm)
        self._theirs = [one for one in private(llm).values() if one is not None]
        self._declared = Capabilities(**capabilities) if isinstance(capabilities, Mapping) else capabilities
        self._told = self._declared
        self.model: str = _model_of(llm)
        self.local: bool = any(kind.startswith(word) for word in _LOCAL) if local is None else local
        endpoint = peek(llm, "api_base") or peek(llm, "base_url")
        where = redact(endpoint) if isinstance(endpoint, str) else None
        self._origin = Origin(f"{FRAMEWORK}/{self.name}", self.model, where)
        self._tag = {INNER_TAG: f"{self.name}:{self.model}"}
        self._reports_usage_when_asked = kind == "openaillm"
        self._async_client = "_aclient" in private(llm)
        self._copies: PerLoop[LLM] = PerLoop(lambda: for_one_loop(self.llm))

    def __reduce__(self) -> tuple[Any, ...]:
        # As class and settings: an LLM pickled as it is would take its key along.
        return _revived, (dump_llm(self.llm), self.name, self.local, self._told)

    def __repr__(self) -> str:
        return f"LlamaIndexProvider({type(self.llm).__name__}, model={self.model!r})"

    @property
    def capabilities(self) -> Capabilities:
        """What its `metadata` says, read once. It answers in a JSON schema by its vendor's own means where LlamaIndex
        knows them, else by a forced tool call, else because it is asked to.
        """
        if self._declared is not None:
            return self._declared
        able = Capabilities(
            tools=isinstance(self.llm, FunctionCallingLLM),
            tool_choice=self._dialect.choices(type(self.llm)),
            pdfs="file" in self._rules.media,
            audio="audio" in self._rules.media,
        )
        try:
            told = self.llm.metadata
        except Exception as error:  # noqa: BLE001  # somebody else's property; nothing is known is an answer
            _log.debug("%s does not say what it can take: %s", type(self.llm).__name__, redact(str(error)))
            if not isinstance(error, ValueError):
                return able  # some ask their server, which may be down: we ask again
            # LlamaIndex's Anthropic knows models by name, and has never heard of this one.
            known = facts(self.name, self.model)
            self._declared = replace(able, context_window=known.context_window, max_output=known.max_output)
            return self._declared
        self._declared = replace(
            able,
            tools=able.tools and told.is_function_calling_model,
            context_window=told.context_window if told.context_window > 0 else None,
            max_output=told.num_output if told.num_output > 0 else None,
        )
        return self._declared

    @property
    def origin(self) -> Origin:
        """Thinking that this LLM wrote goes back to it alone: not to the same model behind a native target."""
        return self._origin

    def identity(self, model: str | None = None) -> Any:
        """The LLM's settings that can change its answers, for the router's cache, which keeps digests only."""
        return settings_of(self.llm)

    says_all = staticmethod(says_all)
    """Whether an answer's own response holds nothing but what our events tell of it."""

    # ── the four ways of asking ──────────────────────────────────────────────────────────────────────────────────────

    def stream(self, request: ChatRequest, guard: Guard) -> Iterator[ChatEvent]:
        """Answer, sync. Blocks until the LLM says something: the router walks away from it when the guard expires."""
        events = self._stream(request, guard)
        stops = self._dialect.stops_here(request, self.model)
        return stopped(events, stops) if stops else events

    def _stream(self, request: ChatRequest, guard: Guard) -> Iterator[ChatEvent]:
        llm, arguments, reader = self._asked(self.llm, request, guard, is_async=False)
        if self._dialect.fetches and to_fetch(arguments["messages"]):
            fetched(arguments["messages"])
        tags = {**active_instrument_tags.get(), **self._tag}
        try:
            token = active_instrument_tags.set(tags)
            try:
                acquire(llm)
                answer = method(llm, "stream_chat" if request.streaming else "chat")(**arguments)
            finally:
                active_instrument_tags.reset(token)
            if not request.streaming:
                yield from reader.whole(answer)
                return
            last = last_chunk(answer) if self._dialect.tells_end else None
            try:
                feed, step = reader.feed, answer.__next__
                while True:
                    token = active_instrument_tags.set(tags)
                    try:
                        response = step()
                    except StopIteration:
                        break
                    finally:
                        active_instrument_tags.reset(token)
                    yield from feed(response)
            finally:
                hang_up(answer)
                answer.close()
            yield from self._ended(reader, request, last)
        except Exception as error:
            known = self._known(error)
            saved = self._saved(error, known, reader, request)
            if saved is None:
                if known is None:
                    raise
                raise known from error
            yield from saved

    def astream(self, request: ChatRequest, guard: Guard) -> AsyncIterator[ChatEvent]:
        """Answer, async. An LLM whose async methods only call its sync ones is asked in a thread."""
        events = self._astream(request, guard)
        stops = self._dialect.stops_here(request, self.model)
        return astopped(events, stops) if stops else events

    async def _astream(self, request: ChatRequest, guard: Guard) -> AsyncIterator[ChatEvent]:
        llm, arguments, reader = self._asked(self._on_this_loop(), request, guard, is_async=True)
        if self._dialect.fetches and to_fetch(arguments["messages"]):
            await asyncio.to_thread(fetched, arguments["messages"])
        tags = {**active_instrument_tags.get(), **self._tag}
        try:
            if blocks(type(llm)):
                async for event in self._threaded(llm, arguments, reader, tags, streaming=request.streaming):
                    yield event
                return
            token = active_instrument_tags.set(tags)
            try:
                await aacquire(llm)
                answer = await method(llm, "astream_chat" if request.streaming else "achat")(**arguments)
            finally:
                active_instrument_tags.reset(token)
            if not request.streaming:
                for event in reader.whole(answer):
                    yield event
                return
            last = last_chunk(answer) if self._dialect.tells_end else None
            try:
                feed, astep = reader.feed, answer.__anext__
                while True:
                    token = active_instrument_tags.set(tags)
                    try:
                        response = await astep()
                    except StopAsyncIteration:
                        break
                    finally:
                        active_instrument_tags.reset(token)
                    for event in feed(response):
                        yield event
            finally:
                await ahang_up(answer)
                await answer.aclose()
            for event in self._ended(reader, request, last):
                yield event
        except Exception as error:
            known = self._known(error)
            saved = self._saved(error, known, reader, request)
            if saved is None:
                if known is None:
                    raise
                raise known from error
            for event in saved:
                yield event

    async def _threaded(
        self, llm: LLM, arguments: Mapping[str, Any], reader: Reader, tags: dict[str, Any], *, streaming: bool
    ) -> AsyncIterator[ChatEvent]:
        def begin() -> Any:
            acquire(llm)
            return method(llm, "stream_chat" if streaming else "chat")(**arguments)

        answer = await self._in_thread(tags, begin)
        if not streaming:
            for event in reader.whole(answer):
                yield event
            return
        try:
            while True:
                response = await self._in_thread(tags, next, answer, None)
                if response is None:
                    break
                for event in reader.feed(response):
                    yield event
        finally:
            with contextlib.suppress(ValueError):  # cancelled while it runs in its thread, where it ends by itself
                answer.close()
        for event in reader.finish():
            yield event

    def _ended(self, reader: Reader, request: ChatRequest, last: Callable[[], Any] | None) -> Iterable[ChatEvent]:
        """What is left to tell when a stream has ended; `last` knows what the SDK read last."""
        if last is not None and (chunk := last()) is not None:
            if not reader.begun:
                return self._rest(chunk, request)
            reader.note(chunk)
        return reader.finish()

    def _saved(
        self, error: Exception, known: ProviderError | None, reader: Reader, request: ChatRequest
    ) -> Iterable[ChatEvent] | None:
        """The answer that there is in spite of `error`; None where there is none."""
        if (rest := refused_answer(error)) is not None:
            return self._rest(rest, request)
        return reader.finish() if known is not None and reader.ended and request.streaming else None

    def _rest(self, response: Any, request: ChatRequest) -> Iterator[ChatEvent]:
        """What Google's SDK has read, and LlamaIndex's class does not hand over, as it ended by its length or such."""
        from shared_core.providers.google import GeminiFold

        names = {wire_name(spec.name, self._rules): spec.name for spec in request.tools}
        for event in GeminiFold(names, request.parallel_tool_calls).whole(response, {}):
            if not isinstance(event, Started):
                yield event

    @staticmethod
    async def _in_thread(tags: dict[str, Any], call: Callable[..., Any], *arguments: Any) -> Any:
        token = active_instrument_tags.set(tags)
        try:
            return await asyncio.to_thread(call, *arguments)
        finally:
            active_instrument_tags.reset(token)

    def close(self) -> None:
        """Close the sync clients that were opened here; the LLM's own stay as they are. Idempotent."""
        self._copies.clear()
        for client in self._opened(self.llm):
            if callable(close := peek(client, "close")) and not inspect.iscoroutinefunction(close):
                close()

    async def aclose(self) -> None:
        """Close the async clients that were opened here for the running loop, then `close`."""
        copied = self._copies.pop()
        for client in self._opened(copied):
            if inspect.iscoroutinefunction(close := peek(client, "close")):
                await close()
        # Google's SDK keeps one session per event loop. It opens another should the LLM be asked on this one again.
        sessions = peek(peek(peek(self.llm, "_client"), "_api_client"), "_aiohttp_sessions") or {}
        if (session := sessions.pop(asyncio.get_running_loop(), None)) is not None:
            await session.close()
        self.close()

    def _opened(self, llm: LLM | None) -> list[Any]:
        """The SDK clients that `llm` holds, and the one we were given did not, nor shares their connections."""
        theirs = [*self._theirs, *(http for one in self._theirs if (http := peek(one, "_client")) is not None)]
        held = [one for one in private(llm).values() if one is not None]
        return [one for one in held if not any(one is its or peek(one, "_client") is its for its in theirs)]

    # ── what is asked ────────────────────────────────────────────────────────────────────────────────────────────────

    def _asked(
        self, llm: LLM, request: ChatRequest, guard: Guard, *, is_async: bool
    ) -> tuple[LLM, dict[str, Any], Reader]:
        """The LLM to ask, the keyword arguments of its chat method, and who reads the answer.

        Raises:
            ProviderError: kind INCAPABLE; the LLM takes no other model, no tools, or not what is in the conversation.
        """
        if request.model is not None and request.model != self.model:
            if "model" not in type(llm).model_fields:
                raise ProviderError.of(ErrorKind.INCAPABLE, f"{type(llm).__name__} cannot be asked for another model")
            llm = variant(llm, is_async=is_async, model=request.model)
        if request.max_tokens is not None and self._dialect.limits_itself and peek(llm, "max_tokens") is not None:
            # LlamaIndex's OpenAI lets its own setting win over the call's.
            llm = variant(llm, is_async=is_async, max_tokens=request.max_tokens)
        changes: list[Change] = []
        messages, specs = self._history(request, changes)
        if changes:
            guard.notes.extend(summary(changes))
        names: dict[str, str] = {}
        answers_by: str | None = None
        arguments: dict[str, Any] = {"messages": messages}
        if specs or request.output is not None:
            arguments, names, answers_by = self._with_tools_or_schema(llm, request, messages, specs)
        if options := self._dialect.options(llm, request, messages):
            joined(arguments, options)
        if self._reports_usage_when_asked and request.streaming:
            arguments.setdefault("stream_options", {"include_usage": True})
        if request.extra and (extra := request.extra.get(self.name)):
            self._dialect.add(arguments, extra)
        empty = not self._dialect.says_something or request.continues or messages[-1].role == MessageRole.TOOL
        reader = Reader(names, answers_by, tells_end=self._dialect.tells_end, may_be_empty=empty)
        return llm, arguments, reader

    def _with_tools_or_schema(
        self, llm: LLM, request: ChatRequest, messages: list[ChatMessage], specs: Sequence[ToolSpec]
    ) -> tuple[dict[str, Any], dict[str, str], str | None]:
        """The arguments, the request's names of the tools by those on the wire, and the tool that is the answer."""
        names = {wire_name(spec.name, self._rules): spec.name for spec in request.tools}
        chosen = {theirs: wire for wire, theirs in names.items()}.get(request.tool_choice or "", request.tool_choice)
        output, answers_by = request.output, None
        way = None if output is None else self._dialect.way(llm, request)
        free = bool(request.tools) and chosen != "none"
        tools = list(specs) if free or self._dialect.declares_always else []
        if output is not None and way == "tool":
            spec = answer_tool(output, self._rules)
            answers_by = spec.name
            # Beside tools of the caller's it is one more, and one of them must be called.
            forced = spec.name if not free else chosen if chosen in names else "any"
            chosen, tools = forced, [*tools, spec]
        elif output is not None and way == "words":
            messages = instructed(messages, output.schema)
        arguments: dict[str, Any] = {"messages": messages}
        if tools:
            arguments = self._dialect.tools(llm, tools, messages, chosen, request)
        if output is not None and way == "schema":
            joined(arguments, self._dialect.schema(output))
        return arguments, names, answers_by

    def _history(self, request: ChatRequest, changes: list[Change]) -> tuple[list[ChatMessage], Sequence[ToolSpec]]:
        """LlamaIndex's own messages where all that is opaque in them is this LLM's, else the neutral ones, prepared."""
        native, rules = request.native, self._rules
        signatures = self._dialect.signatures
        if native is not None and native.framework == FRAMEWORK and not native.added and self._is_ours(request):
            called = request.messages if rules.needs_declared_tools else ()
            tools = with_stubs(request.tools, called, rules) if request.tools or called else ()
            messages = [self._copy(message) for message in native.messages]
            return self._dialect.ready(messages, signatures(request.messages), request.model or self.model), tools
        going_on, origin = request.continues, self._origin
        if request.model is not None:
            origin = replace(origin, model=request.model)
        kept = prepare(request.messages, origin=origin, rules=rules, keep_trailing_assistant=going_on, changes=changes)
        messages = self._dialect.ready(from_messages(kept), signatures(kept), request.model or self.model)
        return messages, with_stubs(request.tools, kept, rules)

    def _is_ours(self, request: ChatRequest) -> bool:
        """Whether this LLM alone wrote what is opaque in the conversation, and every call in it has its answer."""
        origin = self._origin if request.model is None else replace(self._origin, model=request.model)
        asked: list[str | None] = []
        answered: list[str | None] = []
        assert request.native is not None  # the caller has looked
        for message in request.native.messages:
            opaque = False
            for block in message.blocks:
                if type(block) is TextBlock:
                    continue
                if isinstance(block, ToolCallBlock):
                    asked.append(block.tool_call_id)
                    opaque = True
                    if block.tool_name != wire_name(block.tool_name, self._rules):
                        return False
                elif isinstance(block, ThinkingBlock):
                    opaque = True
            if kwargs := message.additional_kwargs:
                opaque = opaque or "tool_calls" in kwargs
                if message.role in (MessageRole.TOOL, MessageRole.FUNCTION):
                    answered.append(kwargs.get("tool_call_id"))
            if opaque and stamped(message)[0] != origin:
                return False
        return asked == answered or sorted(map(str, asked)) == sorted(map(str, answered))

    def _copy(self, message: ChatMessage) -> ChatMessage:
        """A message for this LLM alone. Integrations write into what they are given."""
        kept: list[ContentBlock] = []
        for block in message.blocks:
            if type(block) is TextBlock:
                # An empty text beside a call makes Google's integration send the call twice.
                if block.text or len(message.blocks) == 1:
                    kept.append(mould.text_block(block.text))
            elif isinstance(block, _MEDIA):
                kept += [b for part in parts_of(block) if (b := block_of(self._media(part))) is not None]
            elif isinstance(block, (CitableBlock, CitationBlock)) and self.name != "anthropic":
                kept += [b for part in parts_of(block) if (b := block_of(part)) is not None]
            elif not isinstance(block, CachePoint) or self._rules.cache_hints:
                kept.append(block.model_copy(deep=True))
        kwargs = message.additional_kwargs
        if kwargs:
            kwargs = copy.deepcopy({k: v for k, v in kwargs.items() if k not in (STAMP, "tool_calls")})
        return mould.message(message.role, kept, dict(kwargs))

    def _media(self, part: Part) -> Part:
        """A picture, document, recording or film in a form that this LLM's vendor takes."""
        return media_for(part, self._rules) if isinstance(part, (Image, Audio, File)) else part

    def _on_this_loop(self) -> LLM:
        """A copy per event loop of an LLM that keeps an async client: connections belong to the loop they began on."""
        if not self._async_client:
            return self.llm
        return self._copies.get()

    # ── what is told ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _known(self, error: Exception) -> ProviderError | None:
        """What to raise in its place; None for a bug, which is nobody's outage, and for what is already told."""
        if isinstance(error, ProviderError):
            return None
        if misread(error):
            return ProviderError.of(ErrorKind.MALFORMED, f"the answer is none: {type(error).__name__}: {error}")
        return classify_error(error, provider=self.name)


def _model_of(llm: LLM) -> str:
    """The model's name. Asked of its settings first: some LLMs call their server to answer `metadata`."""
    for name in (peek(llm, "model"), peek(llm, "model_name")):
        if isinstance(name, str) and name:
            return name
    return llm.metadata.model_name or llm.class_name()


def _revived(told: Mapping[str, Any], name: str, local: bool, capabilities: Capabilities | None) -> LlamaIndexProvider:
    return LlamaIndexProvider(load_llm(told), name=name, local=local, capabilities=capabilities)
