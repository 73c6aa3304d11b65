"""Gemini over `google-genai`, as a `Provider`.

One call sends one request: the SDK's retries, its automatic continuation and its automatic function calling are off.
Its `HttpOptions.timeout` stays unset, since it would be a limit per read and a header besides; the guard rules.
"""

from __future__ import annotations

import base64
import binascii
import codecs
import functools
import hashlib
import json
import mimetypes
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from encodings import utf_8
from typing import Any

from shared_core.chat.answer_tool import ANSWER_TOOL, with_answer_tool
from shared_core.chat.events import (
    ChatEvent,
    Finished,
    FinishReason,
    ReasoningDelta,
    Started,
    TextDelta,
    ToolCallDelta,
    Usage,
)
from shared_core.chat.request import (
    Audio,
    ChatRequest,
    File,
    Image,
    Message,
    Part,
    Reasoning,
    Text,
    ToolCall,
    ToolResult,
)
from shared_core.errors import ErrorKind, ProviderError
from shared_core.history import GOOGLE, Change, HistoryRules, prepare, wire_name, with_stubs
from shared_core.providers import transport
from shared_core.providers.base import Fold, SdkProvider, broken, malformed
from shared_core.providers.models import gemini_generation, since_gemini_3
from shared_core.providers.registry import key_for
from shared_core.routing.capabilities import Capabilities
from shared_core.routing.target import Target

__all__ = [
    "FINISH",
    "SKIP_SIGNATURE",
    "GeminiFold",
    "GoogleProvider",
    "blob",
    "capabilities_of",
    "refuse",
    "rules_of",
    "told",
    "wanted",
]

SKIP_SIGNATURE = b"skip_thought_signature_validator"
"""Google's documented stand-in for the signature of a call that another model made."""
_VERSION = "v1beta"
"""Of the API, unless the target names another. Left alone, google-genai 3 takes v1 or GOOGLE_GENAI_API_VERSION."""
_FILES = f"https://generativelanguage.googleapis.com/{_VERSION}/"
_STOPS = 5

FINISH: Mapping[str, FinishReason] = {
    "STOP": "stop",
    "MAX_TOKENS": "length",
    "CONTINUATION": "length",
    "SAFETY": "content_filter",
    "RECITATION": "content_filter",
    "BLOCKLIST": "content_filter",
    "PROHIBITED_CONTENT": "content_filter",
    "SPII": "content_filter",
    "MODEL_ARMOR": "content_filter",
    "IMAGE_SAFETY": "content_filter",
    "IMAGE_PROHIBITED_CONTENT": "content_filter",
    "IMAGE_RECITATION": "content_filter",
}
"""Gemini's finish reasons in ours; all others are 'other'."""
_BROKEN_CALLS = frozenset({"MALFORMED_FUNCTION_CALL", "UNEXPECTED_TOOL_CALL", "TOO_MANY_TOOL_CALLS"})
"""The model wrote a call that the API could not read: there is no answer, and asking again often helps."""


# ── what is known about models ───────────────────────────────────────────────────────────────────────────────────────


def capabilities_of(model: str) -> Capabilities:
    """What a model takes, by its name. Source: ai.google.dev's model pages as commonly known in 2026."""
    name = model.lower().rpartition("/")[2]
    if name.startswith("gemma"):
        # Gemma on the Gemini API: no system instruction, no function calling, no JSON mode.
        return Capabilities(
            tools=False, json_schema=False, json_mode=False, image_urls=False, system=False, context_window=131_072,
            max_output=8_192,
        )  # fmt: skip
    generation = gemini_generation(name)
    old = generation is not None and generation < 2.5
    return Capabilities(
        image_urls=not old and name.startswith("gemini"),  # public addresses, since January 2026
        pdfs=True,
        audio=True,
        reasoning=not old and "lite" not in name,
        context_window=2_097_152 if "1.5-pro" in name else 1_048_576 if name.startswith("gemini") else None,
        max_output=None if not name.startswith("gemini") else 8_192 if old else 65_536,
    )


def rules_of(model: str, capabilities: Capabilities, *, signatures: bool = True) -> HistoryRules:
    """The history rules of a model, over an SDK that has fields for signatures and media in results, or has not."""
    rules = GOOGLE if signatures else replace(GOOGLE, reasoning=False)
    if not capabilities.system:
        rules = replace(rules, system="none")
    if not capabilities.tools:
        rules = replace(rules, tool_turns="text")
    if signatures and since_gemini_3(model):
        rules = replace(rules, result_media=frozenset({"image", "file"}))
    if capabilities.image_urls:
        rules = replace(rules, urls=frozenset({"image", "file"}))
    return rules


def refuse(request: ChatRequest, model: str) -> None:
    """Say before anything is sent what the API would refuse for reasons that another target may not share.

    Raises:
        ProviderError: kind INCAPABLE.
    """
    if len(request.stop) > _STOPS:
        raise _incapable(f"Gemini takes {_STOPS} stop sequences, not {len(request.stop)}")


def one_or_the_other(request: ChatRequest, model: str) -> ChatRequest:
    """`request`, its schema as one more tool where the model takes a schema or tools but not both (before Gemini 3)."""
    both = request.tools and request.tool_choice != "none" and request.output is not None
    return with_answer_tool(request) if both and not since_gemini_3(model) else request


def _incapable(message: str) -> ProviderError:
    return ProviderError.of(ErrorKind.INCAPABLE, message)


def wanted(request: ChatRequest, rules: HistoryRules) -> tuple[str, str | None] | None:
    """The function calling mode and the one allowed name, or None for the vendor's default."""
    if not request.tools or request.tool_choice is None:
        return None
    mode = {"auto": "AUTO", "any": "ANY", "none": "NONE"}.get(request.tool_choice)
    return (mode, None) if mode is not None else ("ANY", wire_name(request.tool_choice, rules))


# ── the provider ─────────────────────────────────────────────────────────────────────────────────────────────────────


class GoogleProvider(SdkProvider):
    """A Gemini model. Its target's options: `headers`, `api_version`, and `config`, `GenerateContentConfig` defaults.

    `ChatRequest.extra["google"]` holds further `GenerateContentConfig` fields for one call (`thinking_config`,
    `safety_settings`, `cached_content`, …).

    Raises:
        UnknownOption: the target carries another option.
    """

    name = "google"
    sdk = "google.genai"
    extra = "google"
    options: frozenset[str] = frozenset({"headers", "api_version", "config"})

    def __init__(self, target: Target) -> None:
        super().__init__(target)
        target.refuse_options_but(self.options)
        self._known = target.capabilities or capabilities_of(target.model)

    @property
    def endpoint(self) -> str | None:
        """The address, where it is not Google's own."""
        return self.target.base_url

    @property
    def capabilities(self) -> Capabilities:
        """What this model can take: what the target says, else what is known about the model."""
        return self._known

    def _capabilities(self, model: str) -> Capabilities:
        return self._known if model == self.model or self.target.capabilities else capabilities_of(model)

    def _build(self, *, sync: bool) -> Any:
        sdk = self._module()
        http = transport.http_module(sdk)
        _register_strict()
        _complete_models(sdk.types)
        given = self.target.options.get("headers")
        tls = transport.tls_context(http)
        one = transport.http_client(http, event_hooks={"request": [_arm], "response": [_keep]})
        # The SDK would build an HTTP client of its own for the colour left out. Ours opens nothing until it is used.
        other = transport.async_http_client(http, event_hooks={"request": [_aarm], "response": [_akeep]})
        client = sdk.Client(
            api_key=key_for(self.target) or "none",
            vertexai=False,  # whatever GOOGLE_GENAI_USE_VERTEXAI says: a target names its endpoint itself
            http_options=sdk.types.HttpOptions(
                base_url=self.target.base_url,
                api_version=self.target.options.get("api_version") or _VERSION,
                headers=dict(given) if given else None,
                retry_options=sdk.types.HttpRetryOptions(attempts=1),
                # Left alone, it reads the certificate store twice more per client: 70 ms, on the event loop.
                client_args={"verify": tls},
                async_client_args={"verify": tls, "ssl": tls},
                httpx_client=one,
                httpx_async_client=other,
            ),
        )
        return _Client(client.models, one) if sync else _AsyncClient(client.aio.models, other)

    def _method(self, client: Any) -> Any:
        return client.send

    def _listing(self, client: Any) -> Callable[..., Any]:
        found: Callable[..., Any] = client.listing
        return found

    def _fold(self, request: ChatRequest) -> Fold:
        model = request.model or self.model
        rules = rules_of(model, self._capabilities(model))
        return GeminiFold({wire_name(t.name, rules): t.name for t in request.tools}, request.parallel_tool_calls)

    def _arguments(self, request: ChatRequest, changes: list[Change] | None = None) -> dict[str, Any]:
        types = self._module().types
        model = request.model or self.model
        refuse(request, model)
        request = one_or_the_other(request, model)
        rules = rules_of(model, self._capabilities(model))
        messages = prepare(
            request.messages,
            origin=self._origin(model),
            rules=rules,
            keep_trailing_assistant=request.continues,
            changes=changes,
        )
        config = _config(types, request, messages, rules)
        config.update(self.target.options.get("config") or {})
        config.update(request.extra.get(self.name) or {})
        try:
            built = types.GenerateContentConfig(**config)
        except ValueError as error:  # pydantic's ValidationError is one
            raise ProviderError.of(ErrorKind.CONFIG, f"google-genai refuses the request's options: {error}") from error
        unsigned_from = _active_from(messages) if since_gemini_3(model) else len(messages)
        contents = [_content(types, m, signed=i >= unsigned_from) for i, m in enumerate(messages) if m.role != "system"]
        return {"model": model, "contents": contents, "config": built, "streaming": request.streaming}


# ── request ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _config(types: Any, request: ChatRequest, messages: Sequence[Message], rules: HistoryRules) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "system_instruction": next((m.text for m in messages if m.role == "system"), None),
        "max_output_tokens": request.max_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "stop_sequences": list(request.stop) or None,
        "seed": None if request.seed is None else request.seed % 2**31,  # the API has 32 signed bits
        "automatic_function_calling": types.AutomaticFunctionCallingConfig(disable=True),
    }
    if "automatic_continuation" in types.GenerateContentConfig.model_fields:
        fields["automatic_continuation"] = False  # else one call may send, and bill, several requests
    if request.tools:
        declared = [
            types.FunctionDeclaration(
                name=t.name, description=t.description or None, parameters_json_schema=dict(t.parameters)
            )
            for t in with_stubs(request.tools, messages, rules)
        ]
        fields["tools"] = [types.Tool(function_declarations=declared)]
        if (choice := wanted(request, rules)) is not None:
            mode, only = choice
            calling = types.FunctionCallingConfig(mode=mode, allowed_function_names=[only] if only else None)
            fields["tool_config"] = types.ToolConfig(function_calling_config=calling)
    if request.output is not None:
        fields["response_mime_type"] = "application/json"
        if request.output.schema:
            fields["response_json_schema"] = dict(request.output.schema)
    return {name: value for name, value in fields.items() if value is not None}


def _active_from(messages: Sequence[Message]) -> int:
    """Where the running tool loop begins: behind the last thing the user said."""
    return max((i for i, m in enumerate(messages) if m.role == "user"), default=0)


def _content(types: Any, message: Message, *, signed: bool) -> Any:
    if message.role == "assistant":
        return types.Content(role="model", parts=list(_model_parts(types, message, signed)))
    return types.Content(role="user", parts=[_user_part(types, part) for part in message.parts])


def _model_parts(types: Any, message: Message, signed: bool) -> Iterator[Any]:
    """The parts of a model turn, each signature on the part it came with.

    Gemini 3 refuses a running tool loop whose first call of a turn is not signed; `signed` puts the stand-in there.
    """
    pending: bytes | None = None
    first_call = True
    texts = [i for i, part in enumerate(message.parts) if isinstance(part, Text)]
    for i, part in enumerate(message.parts):
        if isinstance(part, Reasoning):
            pending = _signature(part.data) or pending
        elif isinstance(part, ToolCall):
            signature = _signature(part.data) or (SKIP_SIGNATURE if signed and first_call else None)
            first_call = False
            call = types.FunctionCall(id=part.id, name=part.name, args=part.parsed())
            yield types.Part(function_call=call, thought_signature=signature)
        elif isinstance(part, Text):
            if i == texts[-1] and pending is None:  # streamed answers are signed behind their text
                late = (_signature(p.data) for p in message.parts[i:] if isinstance(p, Reasoning))
                pending = next((s for s in late if s is not None), None)
            yield types.Part(text=part.text, thought_signature=pending)
            pending = None
        else:
            yield _user_part(types, part)


def _signature(data: Mapping[str, Any]) -> bytes | None:
    text = data.get("thought_signature") or data.get("signature")  # LangChain's own class has the shorter name
    if isinstance(text, bytes):
        return text
    try:
        return base64.b64decode(text) if isinstance(text, str) else None
    except binascii.Error:
        return None


def _user_part(types: Any, part: Part) -> Any:
    match part:
        case Text():
            return types.Part(text=part.text)
        case ToolResult():
            return types.Part(function_response=_function_response(types, part))
        case Image() | File() | Audio():
            data, uri, mime = blob(part)
            if uri is not None:
                return types.Part(file_data=types.FileData(file_uri=uri, mime_type=mime))
            return types.Part(inline_data=types.Blob(data=data, mime_type=mime))
        case _:
            raise AssertionError(f"a prepared history has no {type(part).__name__} here")


def blob(part: Image | File | Audio) -> tuple[bytes | None, str | None, str | None]:
    """Bytes or an address, and the media type."""
    uri = part.url or part.file_id
    if uri is not None and uri.startswith("files/"):
        uri = _FILES + uri
    mime = {"audio/mpeg": "audio/mp3", "audio/x-wav": "audio/wav"}.get(part.media_type or "", part.media_type)
    if mime is None and part.url is not None:
        mime = mimetypes.guess_type(part.url.partition("?")[0])[0]
    return part.data, uri, mime


def _function_response(types: Any, result: ToolResult) -> Any:
    more: dict[str, Any] = {}
    media: list[Any] = []
    for part in result.content:
        if isinstance(part, (Image, File)):
            data, uri, mime = blob(part)
            if uri is not None:
                file = types.FunctionResponseFileData(file_uri=uri, mime_type=mime)
                media.append(types.FunctionResponsePart(file_data=file))
            else:
                inline = types.FunctionResponseBlob(data=data, mime_type=mime)
                media.append(types.FunctionResponsePart(inline_data=inline))
    if media:
        more["parts"] = media
    return types.FunctionResponse(id=result.call_id, name=result.name, response=told(result), **more)


def told(result: ToolResult) -> dict[str, str]:
    """A result in Gemini's words: always a string, never typed anew, so that "42" stays text."""
    text = "".join(part.text for part in result.content if isinstance(part, Text))
    return {"error" if result.is_error else "output": text}


# ── answer ───────────────────────────────────────────────────────────────────────────────────────────────────────────


class GeminiFold:
    """Reads one answer of Gemini's, chunk by chunk or whole. No I/O.

    Reads attributes, so it serves the objects of google-genai and plain JSON behind a view; what is absent is None.
    """

    def __init__(self, names: Mapping[str, str], parallel: bool | None) -> None:
        """`names`: what the request's tools are called, by their wire names. `parallel` False: one call at most."""
        self.content = False
        self.complete = False
        self._names = names
        self._parallel = parallel
        self._started = False
        self._calls = 0
        self._candidates = False
        self._reason: str | None = None
        self._note: str | None = None
        self._id: str | None = None
        self._model: str | None = None
        self._usage: Usage | None = None
        self._extra: dict[str, Any] = {}

    def feed(self, chunk: Any) -> list[ChatEvent]:
        """The events of one chunk.

        Raises:
            ProviderError: kind POLICY; the prompt is blocked.
        """
        events: list[ChatEvent] = []
        self._id = getattr(chunk, "response_id", None) or self._id
        self._model = getattr(chunk, "model_version", None) or self._model
        if (usage := _usage(getattr(chunk, "usage_metadata", None))) is not None:
            self._usage = usage  # each chunk has the sums so far
        if not self._started:
            self._started = True
            events.append(Started(self._id, self._model))
        blocked = _word(getattr(getattr(chunk, "prompt_feedback", None), "block_reason", None))
        if blocked is not None:
            raise ProviderError.of(ErrorKind.POLICY, f"Gemini blocked the prompt: {blocked}", code=blocked)
        for candidate in (getattr(chunk, "candidates", None) or ())[:1]:
            self._candidates = True
            for part in getattr(getattr(candidate, "content", None), "parts", None) or ():
                events += self._part(part)
            if (reason := _word(getattr(candidate, "finish_reason", None))) is not None:
                self._reason = reason
                self._note = getattr(candidate, "finish_message", None)
                self.complete = True
            self._keep(candidate)
        self.content = self.content or (len(events) > 0 and not isinstance(events[-1], Started))
        return events

    def _part(self, part: Any) -> Iterator[ChatEvent]:
        signature = getattr(part, "thought_signature", None)
        if isinstance(signature, bytes):
            signature = base64.b64encode(signature).decode("ascii")
        data = {"thought_signature": signature} if signature else {}
        text = getattr(part, "text", None) or ""
        call = getattr(part, "function_call", None)
        if call is not None and call.name:
            if call.name == ANSWER_TOOL and ANSWER_TOOL not in self._names.values():
                yield TextDelta(json.dumps(call.args or {}, ensure_ascii=False))
                return
            if self._parallel is False and self._calls:
                return  # Gemini has no switch for it: the caller asked for one call and gets one
            yield ToolCallDelta(
                self._calls,
                getattr(call, "id", None) or self._minted(),
                self._names.get(call.name, call.name),
                json.dumps(call.args or {}, ensure_ascii=False),
                data,
            )
            self._calls += 1
        elif getattr(part, "thought", None):
            if text or data:
                yield ReasoningDelta(text, data)
        else:
            if text:
                yield TextDelta(text)
            if data:
                yield ReasoningDelta("", data)

    def _minted(self) -> str:
        """An id for a call that came without: unique among conversations, as frameworks expect."""
        seed = f"{self._id or uuid.uuid4().hex}:{self._calls}"
        return "call_" + hashlib.sha256(seed.encode()).hexdigest()[:24]

    def _keep(self, candidate: Any) -> None:
        for name in ("safety_ratings", "citation_metadata", "grounding_metadata"):
            value = getattr(candidate, name, None)
            if value and (name != "safety_ratings" or FINISH.get(self._reason or "") == "content_filter"):
                self._extra[name] = _dumped(value)

    def end(self, facts: Mapping[str, Any]) -> list[ChatEvent]:
        """`Finished`.

        Raises:
            ProviderError: STREAM_CUT: the stream ended without a reason; MALFORMED: it held no answer.
        """
        if self._reason is None:
            if self._started and not self._candidates:
                raise malformed("Gemini answered without a candidate", request_id=facts.get("request_id"))
            cut = broken("the stream ended without a finish reason")
            cut.after_output = self.content
            raise cut
        return [self._finished(facts)]

    def whole(self, response: Any, facts: Mapping[str, Any]) -> list[ChatEvent]:
        """The events of a whole answer.

        Raises:
            ProviderError: kind POLICY or MALFORMED.
        """
        events = self.feed(response)
        if self._reason is None:
            what = "without a finish reason" if self._candidates else "without a candidate"
            raise malformed(f"Gemini answered {what}", request_id=facts.get("request_id"))
        return [*events, self._finished(facts)]

    def _finished(self, facts: Mapping[str, Any]) -> Finished:
        raw = self._reason or ""
        if raw in _BROKEN_CALLS:
            raise malformed(f"the model's tool call could not be read: {self._note or raw}", code=raw)
        reason = FINISH.get(raw, "other")
        if reason == "stop" and self._calls:
            reason = "tool_calls"
        extra = {**facts, **self._extra}
        if self._note:
            extra["finish_message"] = self._note
        return Finished(reason, raw, self._usage, self._id, self._model, extra)


def _word(value: Any) -> str | None:
    """An enum's word; None when nothing is said."""
    word = getattr(value, "name", value)
    return None if not word or str(word).endswith("_UNSPECIFIED") else str(word)


def _usage(said: Any) -> Usage | None:
    def count(name: str) -> int:
        value = getattr(said, name, None)
        return value if isinstance(value, int) else 0

    if said is None or not (count("prompt_token_count") or count("total_token_count")):
        return None
    thoughts = count("thoughts_token_count")
    return Usage(
        input_tokens=count("prompt_token_count") + count("tool_use_prompt_token_count"),
        output_tokens=count("candidates_token_count") + thoughts,
        cached_tokens=count("cached_content_token_count"),
        reasoning_tokens=thoughts,
    )


def _dumped(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_dumped(v) for v in value]
    dump = getattr(value, "model_dump", None)
    return dump(mode="json", exclude_none=True) if dump is not None else value


# ── the SDK's methods, in the raw-response form that `SdkProvider` drives ────────────────────────────────────────────


@dataclass(slots=True)
class _Call:
    """One request on its way: what limits it, and the response that came."""

    timeout: Any
    response: Any = None


_call: ContextVar[_Call | None] = ContextVar("_call", default=None)
_STRICT = "utf-8-strict"
"""UTF-8 whose decoder raises, although the HTTP library asks it to replace."""


class _StrictDecoder(utf_8.IncrementalDecoder):
    def __init__(self, errors: str = "strict") -> None:
        super().__init__("strict")


def _strict(name: str) -> codecs.CodecInfo | None:
    if name.replace("_", "-") != _STRICT:
        return None
    return codecs.CodecInfo(utf_8.encode, codecs.utf_8_decode, incrementaldecoder=_StrictDecoder, name=_STRICT)


@functools.cache
def _register_strict() -> None:
    codecs.register(_strict)


_DEFERRED = (
    "AutomaticFunctionCallingConfig", "Candidate", "Content", "GenerateContentConfig", "GenerateContentResponse",
    "GenerateContentResponseUsageMetadata", "HttpResponse", "ModalityTokenCount", "Part", "_GenerateContentParameters",
)  # fmt: skip
"""What every call uses of the SDK's models, which are otherwise put together when they are first used: 60 ms."""


@functools.cache
def _complete_models(types: Any) -> None:
    for name in _DEFERRED:
        if (model := getattr(types, name, None)) is not None:
            model.model_rebuild()


def _arm(request: Any) -> None:
    # The SDK always passes a timeout of its own, None when it is unset; connecting would then know no limit.
    call = _call.get()
    if call is not None:
        request.extensions = {**request.extensions, "timeout": call.timeout.as_dict()}


def _keep(response: Any) -> None:
    # The SDK's streams do not give their response away, and closing them leaves it to the garbage collector.
    call = _call.get()
    if call is not None:
        call.response = response
        if response.status_code == 200 and (response.charset_encoding or "utf-8").lower() == "utf-8":
            # Left alone, the HTTP library puts U+FFFD where bytes are no text, and a mangled answer passes for whole.
            response.encoding = _STRICT


async def _aarm(request: Any) -> None:
    _arm(request)


async def _akeep(response: Any) -> None:
    _keep(response)


@dataclass(slots=True)
class _Raw:
    """A response whose headers have been seen."""

    headers: Mapping[str, str]
    status_code: int
    http_response: Any
    body: Any = field(repr=False)

    def parse(self) -> Any:
        return self.body


def _raw(call: _Call, body: Any) -> _Raw:
    response = call.response
    return _Raw(dict(response.headers), response.status_code, response, body)


@dataclass(slots=True)
class _Client:
    models: Any
    http: Any

    def send(self, *, streaming: bool, timeout: Any, **arguments: Any) -> _Raw:
        call = _Call(timeout)
        token = _call.set(call)
        try:
            if not streaming:
                return _raw(call, self.models.generate_content(**arguments))
            chunks = self.models.generate_content_stream(**arguments)
            first = list(_first(chunks))  # the request leaves with the first `next`
            return _raw(call, _chained(first, chunks))
        except BaseException:
            if call.response is not None:
                call.response.close()
            raise
        finally:
            _call.reset(token)

    def listing(self, *, timeout: Any) -> _Raw:
        call = _Call(timeout)
        token = _call.set(call)
        try:
            return _raw(call, self.models.list(config={"page_size": 1}))
        finally:
            _call.reset(token)

    def close(self) -> None:
        self.http.close()


def _first(chunks: Iterator[Any]) -> Iterator[Any]:
    for chunk in chunks:
        yield chunk
        return


def _chained(first: list[Any], rest: Iterator[Any]) -> Iterator[Any]:
    yield from first
    yield from rest


@dataclass(slots=True)
class _AsyncClient:
    models: Any
    http: Any

    async def send(self, *, streaming: bool, timeout: Any, **arguments: Any) -> _Raw:
        call = _Call(timeout)
        token = _call.set(call)
        try:
            if not streaming:
                return _raw(call, await self.models.generate_content(**arguments))
            make: Callable[..., Awaitable[AsyncIterator[Any]]] = self.models.generate_content_stream
            chunks = aiter(await make(**arguments))
            first: list[Any] = []
            async for chunk in chunks:
                first.append(chunk)
                break
            return _raw(call, _achained(first, chunks))
        except BaseException:
            if call.response is not None:
                await call.response.aclose()
            raise
        finally:
            _call.reset(token)

    async def listing(self, *, timeout: Any) -> _Raw:
        call = _Call(timeout)
        token = _call.set(call)
        try:
            return _raw(call, await self.models.list(config={"page_size": 1}))
        finally:
            _call.reset(token)

    async def close(self) -> None:
        await self.http.aclose()


async def _achained(first: list[Any], rest: AsyncIterator[Any]) -> AsyncIterator[Any]:
    for chunk in first:
        yield chunk
    async for chunk in rest:
        yield chunk
