"""OpenAI's chat completions, and every vendor that speaks them (`compatible.ROWS`), over the official `openai` SDK."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

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
    ToolSpec,
)
from shared_core.errors import ErrorKind, ProviderError
from shared_core.providers import transport
from shared_core.providers.base import SdkProvider, broken, malformed
from shared_core.providers.compatible import ROWS, Row, base_url, is_loopback
from shared_core.providers.llama_cpp.stops import StopMatcher
from shared_core.providers.models import ModelFacts, facts
from shared_core.providers.registry import canonical, key_for
from shared_core.routing.capabilities import Capabilities
from shared_core.routing.target import Target

if TYPE_CHECKING:
    from shared_core.history import Change

__all__ = ["OpenAIProvider"]

_SDK_PARAMETERS = frozenset(
    {
        "audio", "frequency_penalty", "logit_bias", "logprobs", "max_completion_tokens", "max_tokens", "metadata",
        "modalities", "n", "parallel_tool_calls", "prediction", "presence_penalty", "prompt_cache_key",
        "prompt_cache_retention", "reasoning_effort", "response_format", "safety_identifier", "seed", "service_tier",
        "stop", "store", "stream_options", "temperature", "tool_choice", "tools", "top_logprobs", "top_p", "user",
        "verbosity", "web_search_options", "extra_headers", "extra_query", "extra_body",
    }
)  # fmt: skip
"""What `create` takes by name in every SDK we support; any other key goes into the body as it is."""

_MOST_STOPS = 4
"""How many stop sequences the API takes."""

_FINISH: Mapping[str, FinishReason] = {
    "stop": "stop",
    "eos": "stop",  # Together
    "end_turn": "stop",
    "stop_sequence": "stop",
    "length": "length",
    "max_tokens": "length",
    "model_length": "length",  # Mistral
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "content_filter": "content_filter",
    "insufficient_system_resource": "other",  # DeepSeek
    "error": "other",
}


class OpenAIProvider(SdkProvider):
    """One model at OpenAI, or at any endpoint that speaks its chat completions.

    Options of the target: `headers` and `query` (sent with every request), `params` (defaults for every call,
    overridden by the request), `organization`, `project`, `think_tags` (split `<think>` out of the text),
    `stream_usage` (ask for usage in streams).
    """

    sdk = "openai"
    extra = "openai"

    def __init__(self, target: Target) -> None:
        super().__init__(target)
        self.name = canonical(target.provider_name)
        self.row: Row = ROWS[self.name]
        self._tags = bool(target.options.get("think_tags", self.row.think_tags))

    # ── what it is ───────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def local(self) -> bool:  # type: ignore[override]  # the protocol's attribute, computed: the address may be elsewhere
        """An engine at a loopback address. A model that such an engine merely relays is not local."""
        if not self.row.local or re.search(r"[:-]cloud$", self.model):
            return False
        return is_loopback(base_url(self.row, self.target.base_url))

    @property
    def endpoint(self) -> str | None:
        """The address, where it is not the vendor's own."""
        url = base_url(self.row, self.target.base_url)
        return None if url == self.row.base_url else url

    @property
    def capabilities(self) -> Capabilities:
        """What the model can take: what the target says, else row and model facts."""
        if self.target.capabilities is not None:
            return self.target.capabilities
        row, known = self.row, self._facts(self.model)
        return Capabilities(
            tools=row.tools and known.tools,
            tool_choice=row.tool_choice,
            json_schema=row.json_schema and known.json_schema,
            json_mode=row.json_mode,
            images=row.images and known.images,
            image_urls=row.images and row.image_urls and known.images,
            pdfs=row.pdfs and known.images,
            audio=row.audio and (known.audio or row.name == "openrouter"),
            continuation="prefill" if self._prefill() is not None else "instructed",
            reasoning=known.reasoning,
            context_window=known.context_window,
            max_output=known.max_output,
        )

    def _facts(self, model: str) -> ModelFacts:
        return facts(self.name, model)

    def _prefill(self) -> Mapping[str, Any] | None:
        """What makes the vendor go on with the last assistant message; None when nothing does."""
        if self.name == "deepseek" and (self.target.base_url or "").endswith("/beta"):
            return {"prefix": True}
        return self.row.prefill_message

    # ── the SDK ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _build(self, *, sync: bool) -> Any:
        openai = self._module()
        http = transport.http_module(openai)
        options = self.target.options
        ours = self.row.name == "openai"
        client = (openai.OpenAI if sync else openai.AsyncOpenAI)(
            api_key=key_for(self.target) or "none",  # the SDK insists on one; engines on this machine ignore it
            base_url=base_url(self.row, self.target.base_url),
            max_retries=0,
            organization=options.get("organization"),
            project=options.get("project"),
            default_headers=dict(options.get("headers") or {}) or None,
            default_query=dict(options.get("query") or {}) or None,
            http_client=transport.http_client(http) if sync else transport.async_http_client(http),
        )
        if not ours:
            # The SDK reads OPENAI_ORG_ID and OPENAI_PROJECT_ID by itself; they are no other vendor's business.
            client.organization = options.get("organization")
            client.project = options.get("project")
        return client

    def _method(self, client: Any) -> Any:
        return client.chat.completions.with_raw_response.create

    def _listing(self, client: Any) -> Callable[..., Any]:
        found: Callable[..., Any] = client.models.with_raw_response.list
        return found

    def _fold(self, request: ChatRequest) -> _Fold:
        names = {self._wire_name(t.name): t.name for t in request.tools}
        sent = self._stops(request)
        unsent = () if len(sent) == len(request.stop) else request.stop
        return _Fold(self.name, names, think_tags=self._tags, stops=unsent, thoughts=self.row.thoughts)

    def _stops(self, request: ChatRequest) -> tuple[str, ...]:
        """The stop sequences that the vendor is told; what it would refuse is watched for on this side."""
        known = self._facts(request.model or self.model)
        return request.stop[:_MOST_STOPS] if known.stop else ()

    def _explain(self, error: ProviderError) -> None:
        super()._explain(error)
        if error.kind is ErrorKind.AUTH and error.hint is None and self.row.key_env:
            error.hint = f"check `{self.row.key_env[0]}` or api_key="

    # ── request to wire ──────────────────────────────────────────────────────────────────────────────────────────

    @property
    def _rules(self) -> Any:
        from shared_core import history

        return getattr(history, self.row.history)

    def _wire_name(self, name: str) -> str:
        from shared_core.history import wire_name

        return wire_name(name, self._rules)

    def _arguments(self, request: ChatRequest, changes: list[Change] | None = None) -> dict[str, Any]:
        from shared_core.history import prepare, with_stubs

        model = request.model or self.model
        known = self._facts(model)
        row = self.row
        prefill = self._prefill() if request.continues else None
        prepared = prepare(
            request.messages,
            origin=self._origin(request.model),
            rules=self._rules,
            keep_trailing_assistant=prefill is not None,
            changes=changes,
        )
        wire = [self._message(m, known) for m in prepared]
        if row.stand_in is not None and self._thinks_here(request):
            _stand_in(wire, row.stand_in)
        body: dict[str, Any] = {}
        if prefill is not None and wire and wire[-1]["role"] == "assistant":
            wire[-1] |= prefill
            body |= row.prefill_body
        call: dict[str, Any] = {"model": model, "messages": wire}
        tools = with_stubs(request.tools, prepared, self._rules)
        if tools:
            call["tools"] = [_tool(t) for t in tools]
            if request.tool_choice is not None:
                call["tool_choice"] = self._choice(request.tool_choice)
            if request.parallel_tool_calls is not None and row.parallel_tool_calls:
                call["parallel_tool_calls"] = request.parallel_tool_calls
        if request.output is not None:
            call["response_format"] = _response_format(request)
        if request.max_tokens is not None:
            name = row.max_tokens if row.max_tokens == "max_tokens" or known.context_window else "max_tokens"
            call[name] = request.max_tokens
        thinks = self._thinks(request, known)
        if request.temperature is not None and not thinks:
            call["temperature"] = request.temperature
        if request.top_p is not None and not thinks:
            call["top_p"] = request.top_p
        if stops := self._stops(request):
            call["stop"] = list(stops)
        if request.seed is not None and row.seed is not None:
            (call if row.seed == "seed" else body)[row.seed] = request.seed
        if request.user is not None and row.user:
            call["user"] = request.user
        if request.streaming:
            call["stream"] = True
            if self.target.options.get("stream_usage", row.stream_usage):
                call["stream_options"] = {"include_usage": True}
        given = {**(self.target.options.get("params") or {}), **self._given(request)}
        for key, value in given.items():
            (call if key in _SDK_PARAMETERS else body)[key] = value
        if body:
            call["extra_body"] = {**body, **(call.get("extra_body") or {})}
        return call

    def _given(self, request: ChatRequest) -> Mapping[str, Any]:
        """The vendor options of the request, under this provider's name or the one its target was written with."""
        for name in (self.name, self.target.provider_name):
            if name in request.extra:
                found: Mapping[str, Any] = request.extra[name]
                return found
        return {}

    def _thinks(self, request: ChatRequest, known: ModelFacts) -> bool:
        """Whether this call refuses sampling parameters."""
        effort = {**(self.target.options.get("params") or {}), **self._given(request)}.get("reasoning_effort")
        if known.reasoning and known.sampling and self.name in ("openai", "azure-openai"):
            return effort not in (None, "none")
        return not known.sampling

    def _thinks_here(self, request: ChatRequest) -> bool:
        """Whether this call thinks, so that its vendor insists on the thoughts of a running tool loop."""
        said = {**(self.target.options.get("params") or {}), **self._given(request)}.get("thinking")
        if isinstance(said, Mapping):
            return said.get("type") != "disabled"
        return re.match(self.row.thinks, (request.model or self.model).lower()) is not None

    def _choice(self, choice: str) -> Any:
        if choice in ("auto", "none"):
            return choice
        if choice == "any":
            return "any" if self.name == "mistral" else "required"
        return {"type": "function", "function": {"name": self._wire_name(choice)}}

    def _message(self, message: Message, known: ModelFacts) -> dict[str, Any]:
        """One prepared message as the wire's."""
        if message.role == "system":
            own = known.developer and self.name in ("openai", "azure-openai")
            return {"role": "developer" if own else "system", "content": message.text, **_named(message)}
        if message.role == "tool":
            result = next(p for p in message.parts if isinstance(p, ToolResult))
            return {"role": "tool", "tool_call_id": result.call_id, "content": _text_of(result.content)}
        if message.role == "assistant":
            calls = [_call(p) for p in message.tool_calls]
            # OpenAI sends null beside calls; the chat templates behind local engines break on it.
            nothing = None if calls and not self.row.local else ""
            wire: dict[str, Any] = {"role": "assistant", "content": message.text or nothing, **_named(message)}
            if calls:
                wire["tool_calls"] = calls
            if self.row.thoughts is not None and (thoughts := _thoughts(message, self.row.thoughts)):
                wire[self.row.thoughts] = thoughts
            return wire
        content: Any = message.text
        if any(not isinstance(p, Text) for p in message.parts):
            content = [self._part(p) for p in message.parts]
        return {"role": "user", "content": content, **_named(message)}

    def _part(self, part: Part) -> dict[str, Any]:
        match part:
            case Text():
                return {"type": "text", "text": part.text}
            case Image(file_id=str()):
                return {"type": "file", "file": {"file_id": part.file_id}}
            case Image():
                url = part.url or f"data:{part.media_type};base64,{part.base64}"
                detail = {"detail": part.detail} if part.detail else {}
                return {"type": "image_url", "image_url": {"url": url, **detail}}
            case File(file_id=str()):
                return {"type": "file", "file": {"file_id": part.file_id}}
            case File(data=bytes()):
                data = f"data:{part.media_type or 'application/pdf'};base64,{part.base64}"
                return {"type": "file", "file": {"filename": part.name or "document.pdf", "file_data": data}}
            case File(url=str()) if self.name == "mistral":
                return {"type": "document_url", "document_url": part.url}
            case Audio(data=bytes()):
                kind = "mp3" if "mp" in (part.media_type or "") else "wav"
                return {"type": "input_audio", "input_audio": {"data": part.base64, "format": kind}}
            case _:
                what = type(part).__name__.lower()
                raise ProviderError.of(
                    ErrorKind.INCAPABLE, f"{self.name} takes no {what} in this form",
                    hint="pass the bytes (data=) to let any target answer",
                )  # fmt: skip


def _named(message: Message) -> dict[str, str]:
    return {"name": message.name} if message.name else {}


def _thoughts(message: Message, field: str) -> Any:
    """What the model thought in this turn, in the field's own form."""
    found = [p.data[field] for p in message.parts if isinstance(p, Reasoning) and p.data.get(field)]
    if field == "reasoning_details":
        return [detail for details in found for detail in details]
    return "\n\n".join(found)


def _stand_in(wire: Sequence[dict[str, Any]], thought: str) -> None:
    """Give each turn of a tool loop a thought, where another model made the calls and nobody knows what it thought."""
    called = False
    for message in wire:
        if message["role"] == "assistant":
            calls = "tool_calls" in message
            if calls or called:
                message.setdefault("reasoning_content", thought)
            called = calls


def _text_of(content: Sequence[Part]) -> str:
    return "\n".join(p.text for p in content if isinstance(p, Text))


def _call(call: ToolCall) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _tool(tool: ToolSpec) -> dict[str, Any]:
    function: dict[str, Any] = {"name": tool.name, "parameters": dict(tool.parameters)}
    if tool.description:
        function["description"] = tool.description
    if tool.strict is not None:
        function["strict"] = tool.strict
    return {"type": "function", "function": function}


def _response_format(request: ChatRequest) -> dict[str, Any]:
    output = request.output
    if output is None or not output.schema:
        return {"type": "json_object"}
    name = re.sub(r"[^a-zA-Z0-9_-]", "_", output.name)[:64] or "answer"
    spec: dict[str, Any] = {"name": name, "schema": dict(output.schema)}
    if output.strict is not None:
        spec["strict"] = output.strict
    return {"type": "json_schema", "json_schema": spec}


# ── wire to events ───────────────────────────────────────────────────────────────────────────────────────────────────


class _Fold:
    """Reads chat completions, in chunks or whole."""

    def __init__(
        self,
        provider: str,
        names: Mapping[str, str],
        *,
        think_tags: bool,
        stops: Sequence[str] = (),
        thoughts: str | None = None,
    ) -> None:
        self.content = False
        self.complete = False
        self._provider = provider
        self._names = names
        self._tags = _ThinkTags() if think_tags else None
        self._stops = StopMatcher(stops)
        self._started = False
        self._id: str | None = None
        self._model: str | None = None
        self._reason: str | None = None
        self._usage: Usage | None = None
        self._refused = False
        self._called = False
        self._index: dict[str, int] = {}
        self._extra: dict[str, Any] = {}
        self._replayed = thoughts
        self._thought: list[str] = []
        self._details: list[dict[str, Any]] = []

    def feed(self, chunk: Any) -> Sequence[ChatEvent]:
        return list(self._stopped(self._read(chunk)))

    def _stopped(self, events: Iterable[ChatEvent]) -> Iterator[ChatEvent]:
        """The events, up to a stop sequence that the vendor was not told. What it says after one is not read."""
        for event in events:
            if self._stops.matched is not None and not isinstance(event, Started):
                continue
            if isinstance(event, TextDelta):
                text = self._stops.feed(event.text)
                if text:
                    yield TextDelta(text)
                if self._stops.matched is not None:
                    self.complete, self._reason = True, "stop"
            else:
                yield event

    def _read(self, chunk: Any) -> list[ChatEvent]:
        events: list[ChatEvent] = []
        self._envelope(chunk)
        if not self._started:
            self._started = True
            events.append(Started(self._id, self._model))
        for choice in getattr(chunk, "choices", None) or ():
            if getattr(choice, "index", 0) not in (0, None):
                continue
            delta = getattr(choice, "delta", None)
            if delta is not None:
                events += self._said(delta)
            reason = getattr(choice, "finish_reason", None)
            if reason:
                self._reason = str(reason)
                self.complete = True
                if self._reason == "error":  # OpenRouter, when the vendor behind it fails in the middle
                    self._raise(getattr(choice, "error", None) or getattr(chunk, "error", None))
        return events

    def _raise(self, body: Any) -> None:
        from shared_core.providers.classify import classify_body

        self.complete = False
        failed = body or {"message": "the provider failed in the middle of the answer"}
        error = classify_body(self._provider, None, failed)
        error.after_output = self.content
        raise error

    def _envelope(self, answer: Any) -> None:
        self._id = getattr(answer, "id", None) or self._id
        self._model = getattr(answer, "model", None) or self._model
        for name in ("system_fingerprint", "service_tier", "citations", "provider"):
            value = getattr(answer, name, None)
            if value is not None:
                self._extra[name] = value
        usage = getattr(answer, "usage", None)
        if usage is None:
            usage = getattr(getattr(answer, "x_groq", None), "usage", None)  # Groq's own place for it
        if usage is not None:
            self._usage = _usage(usage)

    def _said(self, message: Any) -> Iterator[ChatEvent]:
        """The events of a delta, or of a whole message: they have the same fields."""
        thought = getattr(message, "reasoning_content", None) or getattr(message, "reasoning", None)
        if isinstance(thought, str) and thought:
            self.content = True
            if self._replayed == "reasoning_content":
                self._thought.append(thought)
            yield ReasoningDelta(thought)
        if self._replayed == "reasoning_details":
            _join_details(self._details, getattr(message, "reasoning_details", None))
        text = _plain_text(getattr(message, "content", None))
        if text:
            self.content = True
            yield from self._thought_over()
            if self._tags is None:
                yield TextDelta(text)
            else:
                yield from self._tags.feed(text)
        refusal = getattr(message, "refusal", None)
        if refusal:
            self._refused = self.content = True
            yield TextDelta(refusal)
        if annotations := getattr(message, "annotations", None):
            self._extra.setdefault("citations", []).extend(_plain(a) for a in annotations)
        for position, call in enumerate(getattr(message, "tool_calls", None) or ()):
            self.content = self._called = True
            yield from self._thought_over()
            function = getattr(call, "function", None)
            name = getattr(function, "name", None)
            call_id = getattr(call, "id", None) or None
            yield ToolCallDelta(
                self._position(getattr(call, "index", None), call_id, position),
                call_id,
                self._names.get(name, name) if name else None,
                _arguments_text(getattr(function, "arguments", None)),
            )

    def _thought_over(self) -> Iterator[ChatEvent]:
        """The thought is complete: what the vendor wants back in a tool loop."""
        if self._thought:
            thought = "".join(self._thought)
            self._thought.clear()
            yield ReasoningDelta("", {"reasoning_content": thought})

    def _position(self, index: Any, call_id: str | None, position: int) -> int:
        """The call's index. Some vendors number every parallel call 0, or none: then the id tells them apart."""
        if call_id is None:
            return index if isinstance(index, int) else max(self._index.values(), default=position)
        if call_id not in self._index:
            taken = set(self._index.values())
            free = index if isinstance(index, int) and index not in taken else max(taken, default=-1) + 1
            self._index[call_id] = free
        return self._index[call_id]

    def end(self, facts: Mapping[str, Any]) -> Sequence[ChatEvent]:
        if not self.complete:
            raise broken("the stream ended without a finish reason")
        events: list[ChatEvent] = list(self._stopped(self._tags.flush())) if self._tags is not None else []
        if rest := self._stops.close():
            events.append(TextDelta(rest))
        events += self._thought_over()
        if self._details:
            events.append(ReasoningDelta("", {"reasoning_details": self._details}))
        reason = _FINISH.get(self._reason or "", "other")
        if self._refused:
            reason = "refusal"
        elif self._called and reason in ("stop", "other"):
            reason = "tool_calls"  # several vendors say 'stop' after a tool call
        extra = {**self._extra, **facts}
        return [*events, Finished(reason, self._reason, self._usage, self._id, self._model, extra)]

    def whole(self, response: Any, facts: Mapping[str, Any]) -> Sequence[ChatEvent]:
        if isinstance(response, (str, bytes)) or response is None:
            raise malformed("the server answered 200 with no JSON", request_id=facts.get("request_id"))
        self._envelope(response)
        self._fail_if_error(response)
        choices = getattr(response, "choices", None)
        if not isinstance(choices, (list, tuple)) or not choices:
            raise malformed("the answer has no choices", request_id=facts.get("request_id"))
        message = getattr(choices[0], "message", None)
        if not hasattr(message, "content"):
            raise malformed("the answer has no message", request_id=facts.get("request_id"))
        self._reason = getattr(choices[0], "finish_reason", None) or "stop"
        if self._reason == "error":
            self._raise(getattr(choices[0], "error", None))
        self.complete = True
        events: list[ChatEvent] = [Started(self._id, self._model), *self._stopped(self._said(message))]
        return [*events, *self.end(facts)]

    def _fail_if_error(self, response: Any) -> None:
        """Some gateways answer 200 with an error inside."""
        error = getattr(response, "error", None)
        if error and not getattr(response, "choices", None):
            self._raise({"error": error})


def _plain_text(content: Any) -> str:
    """A content that is text, or (Mistral) a list of parts of which the text counts."""
    if isinstance(content, str):
        return content
    if isinstance(content, (list, tuple)):
        texts = (p.get("text") if isinstance(p, Mapping) else getattr(p, "text", None) for p in content)
        return "".join(t for t in texts if isinstance(t, str))
    if content is not None:
        raise malformed(f"the answer's content is no text but a {type(content).__name__}")
    return ""


def _plain(value: Any) -> Any:
    dump = getattr(value, "model_dump", None)
    return dump(exclude_none=True) if dump is not None else value


_GROWING = {"reasoning.text": "text", "reasoning.summary": "summary"}


def _join_details(known: list[dict[str, Any]], more: Any) -> None:
    """OpenRouter's `reasoning_details`, which arrive in pieces and must go back whole: texts of one index are one."""
    for piece in more if isinstance(more, (list, tuple)) else ():
        detail = dict(piece) if isinstance(piece, Mapping) else _plain(piece)
        if not isinstance(detail, dict):
            continue
        kind, last = detail.get("type"), known[-1] if known else {}
        grows = _GROWING.get(str(kind))
        if grows is None or last.get("type") != kind or last.get("index") != detail.get("index"):
            known.append(detail)
            continue
        text = (last.get(grows) or "") + (detail.get(grows) or "")
        last.update({k: v for k, v in detail.items() if v is not None})
        last[grows] = text


def _arguments_text(arguments: Any) -> str:
    if arguments is None:
        return ""
    if isinstance(arguments, str):
        return arguments
    import json

    return json.dumps(arguments, ensure_ascii=False)  # some vendors send the object itself


def _count(node: Any, *path: str) -> int:
    for name in path:
        node = node.get(name) if isinstance(node, Mapping) else getattr(node, name, None)
    return node if isinstance(node, int) and not isinstance(node, bool) and node > 0 else 0


def _usage(usage: Any) -> Usage:
    """Tokens in our terms. Sub-counts never exceed their totals, whatever a vendor reports."""
    prompt, completion = _count(usage, "prompt_tokens"), _count(usage, "completion_tokens")
    cached = _count(usage, "prompt_tokens_details", "cached_tokens")
    cached = cached or _count(usage, "prompt_cache_hit_tokens")  # DeepSeek
    written = _count(usage, "prompt_tokens_details", "cache_write_tokens")
    thought = _count(usage, "completion_tokens_details", "reasoning_tokens")
    total = _count(usage, "total_tokens")
    if thought > completion and total >= prompt + completion + thought:
        completion += thought  # xAI counts reasoning beside the completion
    cached = min(cached, prompt)
    return Usage(prompt, completion, cached, min(written, prompt - cached), min(thought, completion))


class _ThinkTags:
    """Splits `<think>…</think>` out of text that arrives in pieces. Only at the beginning of an answer."""

    _OPEN, _CLOSE = "<think>", "</think>"

    def __init__(self) -> None:
        self._state = "start"
        self._held = ""

    def feed(self, text: str) -> Iterator[ChatEvent]:
        if self._state == "text":
            yield TextDelta(text)
            return
        self._held += text
        if self._state == "start":
            begun = self._held.lstrip()
            if self._OPEN.startswith(begun[: len(self._OPEN)]) and len(begun) < len(self._OPEN):
                return  # blank, or perhaps the beginning of the tag
            if not begun.startswith(self._OPEN):
                yield from self._release()
                return
            self._state, self._held = "thinking", begun[len(self._OPEN) :]
        if self._state == "thinking":
            thought, found, rest = self._held.partition(self._CLOSE)
            if found:
                if thought:
                    yield ReasoningDelta(thought)
                self._state, self._held = "after", rest
            else:
                keep = next((n for n in range(len(self._CLOSE) - 1, 0, -1) if self._held.endswith(self._CLOSE[:n])), 0)
                ready, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
                if ready:
                    yield ReasoningDelta(ready)
        if self._state == "after":
            self._held = self._held.lstrip()  # templates put blank lines between thought and answer
            if self._held:
                yield from self._release()

    def _release(self) -> Iterator[ChatEvent]:
        text, self._held, self._state = self._held, "", "text"
        if text:
            yield TextDelta(text)

    def flush(self) -> Iterator[ChatEvent]:
        """What is still held when the answer ends."""
        if self._held:
            if self._state == "thinking":
                yield ReasoningDelta(self._held)
                self._held = ""
            else:
                yield from self._release()
