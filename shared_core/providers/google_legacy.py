"""Gemini over `google-generativeai` 0.8, the SDK that Google has given up, as a `Provider`.

It is used for what it can be trusted with: its protocol classes build the request, its generated REST client sends it.
The client belongs to this provider, so two keys can live in one process: `genai.configure` and its global are not
touched, nor is the package imported that announces its own end at import.

The answer is read from the response's JSON, because the SDK's frozen classes lose what newer models say: thoughts turn
into text, their tokens and the response's id vanish, an error inside a stream reads as an empty answer, and an error
before it (a JSON array) raises `AttributeError`. Sync REST only; async runs it in a thread that ends when its caller
leaves.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import io
import json
import math
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from shared_core._lane import run_guarded
from shared_core.chat.events import ChatEvent
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
from shared_core.history import Change, HistoryRules, prepare, wire_name, with_stubs
from shared_core.providers.base import Fold, SdkProvider, malformed, response_facts
from shared_core.providers.classify import classify_body
from shared_core.providers.google import (
    GeminiFold,
    blob,
    capabilities_of,
    one_or_the_other,
    refuse,
    rules_of,
    told,
    wanted,
)
from shared_core.providers.registry import key_for
from shared_core.resilience.deadline import Guard
from shared_core.routing.capabilities import Capabilities
from shared_core.routing.target import Target

__all__ = ["GoogleLegacyProvider"]

_POOL = 100
_SHORTEST_S = 0.001  # a socket timeout of zero would mean 'do not block'


class GoogleLegacyProvider(SdkProvider):
    """A Gemini model over the legacy SDK. Its target's option: `headers`. Seeds are not sent: it has no field for one.

    Raises:
        UnknownOption: the target carries another option.
    """

    name = "google-legacy"
    sdk = "google.ai.generativelanguage"  # what google-generativeai itself is built on, and ships with
    extra = "google-legacy"
    loop_clients = False
    options: frozenset[str] = frozenset({"headers"})

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

    def _build(self, *, sync: bool) -> Any:
        glm = self._module()
        options: dict[str, Any] = {"api_key": key_for(self.target) or "none"}
        if self.target.base_url:
            options["api_endpoint"] = self.target.base_url
        client = glm.GenerativeServiceClient(client_options=options, transport="rest")
        session = client.transport._session
        session.hooks["response"].append(_answered)
        session.headers.update(self.target.options.get("headers") or {})
        # Its own would look for a .netrc; the environment's proxies still apply.
        for scheme in ("https://", "http://"):
            session.mount(scheme, _adapter())
        return _Client(client, session)

    def _method(self, client: Any) -> Any:
        return client.send

    def _fold(self, request: ChatRequest) -> Fold:
        rules = self._rules(request)
        return GeminiFold({wire_name(t.name, rules): t.name for t in request.tools}, request.parallel_tool_calls)

    def _rules(self, request: ChatRequest) -> HistoryRules:
        model = request.model or self.model
        known = self._known if model == self.model or self.target.capabilities else capabilities_of(model)
        return rules_of(model, known, signatures=False)

    def _arguments(self, request: ChatRequest, changes: list[Change] | None = None) -> dict[str, Any]:
        glm = self._module()
        model = request.model or self.model
        refuse(request, model)
        request = one_or_the_other(request, model)
        rules = self._rules(request)
        messages = prepare(
            request.messages,
            origin=self._origin(model),
            rules=rules,
            keep_trailing_assistant=request.continues,
            changes=changes,
        )
        asked: dict[str, Any] = {
            "model": model if "/" in model else f"models/{model}",
            "contents": [_content(glm, m) for m in messages if m.role != "system"],
            "generation_config": _generation(glm, request),
        }
        instruction = next((m.text for m in messages if m.role == "system"), None)
        if instruction is not None:
            asked["system_instruction"] = glm.Content(parts=[glm.Part(text=instruction)])
        if request.tools:
            asked["tools"] = [glm.Tool(function_declarations=list(_declared(glm, request, messages, rules)))]
            if (choice := wanted(request, rules)) is not None:
                mode, only = choice
                calling = glm.FunctionCallingConfig(mode=mode, allowed_function_names=[only] if only else [])
                asked["tool_config"] = glm.ToolConfig(function_calling_config=calling)
        asked.update(request.extra.get(self.name) or {})
        try:
            return {"request": glm.GenerateContentRequest(asked), "streaming": request.streaming}
        except (TypeError, ValueError) as error:
            text = f"google-generativeai refuses the request's options: {error}"
            raise ProviderError.of(ErrorKind.CONFIG, text) from error

    # ── sync ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def stream(self, request: ChatRequest, guard: Guard) -> Iterator[ChatEvent]:
        """Answer, sync. Nothing is sent before the first `next()`."""
        yield from self._answer(request, guard, _Call(guard), self._post_aside)

    def _post(self, call: _Call, arguments: Mapping[str, Any]) -> Any:
        return self._clients.sync().send(call, **arguments)

    def _post_aside(self, call: _Call, arguments: Mapping[str, Any]) -> Any:
        """Send in a thread one can walk away from: names are resolved and TLS agreed on under no limit of ours.

        What is read afterwards obeys the guard by itself, and is read by the caller, whose leaving closes the socket.
        """
        call.aside = True

        def post() -> Iterator[Any]:
            try:
                return iter((self._post(call, arguments),))
            finally:
                call.came_back()

        try:
            return next(run_guarded(post, call.guard))
        except BaseException:
            call.desert()
            raise

    def _answer(
        self, request: ChatRequest, guard: Guard, call: _Call, send: Callable[[_Call, Mapping[str, Any]], Any]
    ) -> Iterator[ChatEvent]:
        fold = self._fold(request)
        arguments = self._told(request, guard)
        try:
            with self._failures(guard, fold):
                response = send(call, arguments)
            facts = response_facts(response.headers)
            if request.streaming:
                chunks = _chunks(response)
                elements = _Elements()
                while not elements.closed:
                    with self._failures(guard, fold):
                        data = next(chunks, None)
                    if data is None:
                        break
                    for element in elements.feed(data):
                        if "error" in element:
                            error = classify_body(self.name, None, element, response.headers, response=response)
                            error.after_output = fold.content
                            raise error
                        yield from fold.feed(_Json(element))
                yield from fold.end(facts)
            else:
                with self._failures(guard, fold):
                    body = _body(response)
                yield from fold.whole(_Json(body), facts)
        finally:
            call.close()

    # ── async: the same in a thread ──────────────────────────────────────────────────────────────────────────────

    async def astream(self, request: ChatRequest, guard: Guard) -> AsyncIterator[ChatEvent]:
        """Answer, async: the sync call in a thread of its own. Leaving closes the connection and so ends the thread."""
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[ChatEvent | BaseException | None] = asyncio.Queue()
        call = _Call(guard)

        def put(item: ChatEvent | BaseException | None) -> None:
            if not call.left:
                with contextlib.suppress(RuntimeError):  # the loop was closed under us: nobody is listening
                    loop.call_soon_threadsafe(queue.put_nowait, item)

        def work() -> None:
            try:
                for event in self._answer(request, guard, call, self._post):
                    put(event)
                    if call.left:
                        return
                put(None)
            except BaseException as error:  # noqa: BLE001 - carried to the task that waits, and raised there
                put(error)

        # Not the loop's executor: a thread stuck in a socket would keep the loop from shutting down.
        threading.Thread(target=work, name="google-legacy", daemon=True).start()
        try:
            while (item := await queue.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            call.leave()


# ── request ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _generation(glm: Any, request: ChatRequest) -> Any:
    fields: dict[str, Any] = {
        "max_output_tokens": request.max_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "stop_sequences": list(request.stop) or None,
    }
    if request.output is not None:
        fields["response_mime_type"] = "application/json"
        if request.output.schema:
            fields["response_schema"] = _schema(glm, request.output.schema, request.output.schema)
    return glm.GenerationConfig({name: value for name, value in fields.items() if value is not None})


def _declared(glm: Any, request: ChatRequest, messages: Sequence[Message], rules: HistoryRules) -> Iterator[Any]:
    for spec in with_stubs(request.tools, messages, rules):
        # An object without properties is refused; a function without parameters is not.
        schema = _schema(glm, spec.parameters, spec.parameters) if spec.parameters.get("properties") else None
        yield glm.FunctionDeclaration(name=spec.name, description=spec.description, parameters=schema)


def _schema(glm: Any, node: Any, root: Mapping[str, Any], depth: int = 0) -> Any:
    """A JSON schema in the SDK's subset of OpenAPI.

    Raises:
        ProviderError: kind INCAPABLE; it says something that the subset cannot.
    """
    if depth > 32:
        raise _incapable("a recursive schema")
    if not isinstance(node, Mapping):
        raise _incapable("a schema that is true or false")
    ref = node.get("$ref")
    if isinstance(ref, str):
        found: Any = root
        for step in ref.removeprefix("#/").split("/"):
            found = found.get(step.replace("~1", "/").replace("~0", "~")) if isinstance(found, Mapping) else None
        more = {k: v for k, v in node.items() if k != "$ref"}
        return _schema(glm, {**(found or {}), **more}, root, depth + 1)
    nullable = bool(node.get("nullable"))
    choices = node.get("anyOf") or node.get("oneOf")
    if choices:
        some = [c for c in choices if not (isinstance(c, Mapping) and c.get("type") == "null")]
        if len(some) != 1:
            raise _incapable("a schema with several alternatives")
        more = {k: v for k, v in node.items() if k not in ("anyOf", "oneOf")}
        return _schema(glm, {**some[0], **more, "nullable": nullable or len(some) < len(choices)}, root, depth + 1)
    kinds = node.get("type")
    if isinstance(kinds, (list, tuple)):
        some_kinds = [k for k in kinds if k != "null"]
        if len(some_kinds) != 1:
            raise _incapable("a schema with several types")
        nullable = nullable or len(some_kinds) < len(kinds)
        kinds = some_kinds[0]
    enum = node.get("enum") or ([node["const"]] if "const" in node else None)
    if kinds is None:
        kinds = "object" if "properties" in node else "array" if "items" in node else "string"
    fields: dict[str, Any] = {"type_": str(kinds).upper(), "description": node.get("description"), "nullable": nullable}
    if enum and all(isinstance(value, str) for value in enum):
        fields |= {"enum": list(enum), "format_": "enum"}
    elif node.get("format") in ("float", "double", "int32", "int64", "date-time"):
        fields["format_"] = node["format"]
    if kinds == "object":
        properties = node.get("properties") or {}
        fields["properties"] = {name: _schema(glm, child, root, depth + 1) for name, child in properties.items()}
        fields["required"] = [name for name in node.get("required") or () if name in properties]
    elif kinds == "array":
        fields["items"] = _schema(glm, node.get("items") or {"type": "string"}, root, depth + 1)
        fields |= {"min_items": node.get("minItems"), "max_items": node.get("maxItems")}
    return glm.Schema({name: value for name, value in fields.items() if value not in (None, [], {}, False)})


def _incapable(what: str) -> ProviderError:
    return ProviderError.of(ErrorKind.INCAPABLE, f"google-generativeai cannot express {what}")


def _content(glm: Any, message: Message) -> Any:
    role = "model" if message.role == "assistant" else "user"
    return glm.Content(role=role, parts=[_part(glm, part) for part in message.parts])


def _part(glm: Any, part: Part) -> Any:
    match part:
        case Text():
            return glm.Part(text=part.text)
        case ToolCall():
            return glm.Part(function_call=glm.FunctionCall(id=part.id, name=part.name, args=part.parsed()))
        case ToolResult():
            return glm.Part(
                function_response=glm.FunctionResponse(id=part.call_id, name=part.name, response=told(part))
            )
        case Image() | File() | Audio():
            data, uri, mime = blob(part)
            if uri is not None:
                return glm.Part(file_data=glm.FileData(file_uri=uri, mime_type=mime or ""))
            return glm.Part(inline_data=glm.Blob(data=data, mime_type=mime))
        case Reasoning():
            raise AssertionError("the legacy SDK has no field for a signature, so its rules let none through")


# ── answer ───────────────────────────────────────────────────────────────────────────────────────────────────────────


class _Json:
    """A JSON object as attributes in snake case, the way the newer SDK spells them; what is not there is None."""

    __slots__ = ("_raw",)

    def __init__(self, raw: Mapping[str, Any]) -> None:
        self._raw = raw

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name == "name":
            # `name` is asked of enums, which are plain words here, and of function calls, which have one.
            if name == "name" and "name" in self._raw:
                return self._raw["name"]
            raise AttributeError(name)
        head, *tail = name.split("_")
        value = self._raw.get(head + "".join(word.capitalize() for word in tail))
        return value if name == "args" else _view(value)

    def model_dump(self, **_: Any) -> Mapping[str, Any]:
        """The object as it came."""
        return self._raw


def _view(value: Any) -> Any:
    if isinstance(value, Mapping):
        return _Json(value)
    return [_view(item) for item in value] if isinstance(value, list) else value


def _body(response: Any) -> Mapping[str, Any]:
    try:
        body = json.loads(response.content)
    except ValueError as error:
        raise malformed("the answer is not JSON", status=response.status_code, response=response) from error
    if not isinstance(body, Mapping):
        raise malformed("the answer is not a JSON object", status=response.status_code, response=response)
    return body


def _chunks(response: Any) -> Iterator[bytes]:
    """The body as it arrives. `iter_content` would wait for the end of a body that is not sent in HTTP chunks."""
    raw = response.raw
    if raw.chunked or not hasattr(raw, "read1"):
        yield from response.iter_content(None)
        return
    from urllib3.exceptions import DecodeError, ProtocolError

    try:
        while data := raw.read1(65_536, decode_content=True):
            yield data
    except DecodeError as error:
        raise malformed(f"the answer cannot be decoded: {error}", response=response) from error
    except ProtocolError as error:  # requests would have said so in its own words
        raise ConnectionError(str(error)) from error


class _Elements:
    """Cuts the bytes of a JSON array, as they come, into its objects. Blanks between them are keep-alives."""

    def __init__(self) -> None:
        self.closed = False
        self._opened = False
        self._text = b""

    def feed(self, data: bytes) -> Iterator[Mapping[str, Any]]:
        """The objects that `data` completes.

        Raises:
            ProviderError: kind MALFORMED; this is no array of objects.
        """
        self._text += data
        while text := self._text.lstrip():
            if not self._opened:
                if text[:1] != b"[":
                    raise malformed("expected a JSON array of answers")
                self._opened, self._text = True, text[1:]
            elif text[:1] == b",":
                self._text = text[1:]
            elif text[:1] == b"]":
                self.closed = True
                return
            elif (end := _end_of_object(text)) is None:
                self._text = text
                return
            else:
                self._text = text[end:]
                yield _object(text[:end])


def _object(text: bytes) -> Mapping[str, Any]:
    try:
        value = json.loads(text.decode("utf-8"))  # strictly: a mangled answer must not pass for whole
    except ValueError as error:
        raise malformed("an element of the stream is not JSON") from error
    if not isinstance(value, Mapping):
        raise malformed("an element of the stream is not a JSON object")
    return value


def _end_of_object(text: bytes) -> int | None:
    """Where the object that `text` begins with ends; None when the rest of it is still to come."""
    if text[:1] != b"{":
        raise malformed("an element of the stream is not a JSON object")
    depth = 0
    quoted = escaped = False
    for at, byte in enumerate(text):
        if escaped:
            escaped = False
        elif quoted:
            escaped, quoted = byte == 0x5C, byte != 0x22
        elif byte == 0x22:
            quoted = True
        elif byte == 0x7B:
            depth += 1
        elif byte == 0x7D:
            depth -= 1
            if depth == 0:
                return at + 1
    return None


# ── one request on its way ───────────────────────────────────────────────────────────────────────────────────────────


@dataclass(slots=True)
class _Call:
    """What limits a request, the socket it went out on, and the response that came."""

    guard: Guard
    sock: Any = None
    response: Any = None
    aside: bool = False
    """A thread is sending it that may be left behind. Until it comes back, the connection is that thread's alone."""
    left: bool = False
    """The caller is gone."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def timeouts(self) -> tuple[float | None, float | None]:
        """For connecting and for each read, in seconds; None is no limit."""
        left = max(self.guard.remaining(), _SHORTEST_S)
        connect = min(left, self.guard.connect_s)
        return (None if math.isinf(connect) else connect), (None if math.isinf(left) else left)

    def arm(self) -> None:
        """Before each read of the socket: the guard has the last word, also over a server that only drips.

        Raises:
            TimeoutError: the guard has run out.
        """
        if self.guard.expired:
            raise TimeoutError("the attempt's time is up")
        self.sock.settimeout(self.timeouts()[1])

    def close(self) -> None:
        """The answer was read, or will not be."""
        with self.lock:
            if self.aside:
                return  # two that close one connection may give it to the pool twice, and so to two calls at once
            self.sock = None  # it may be another call's by now, which a late `leave` must not cut off
        if self.response is not None:
            self.response.close()

    def came_back(self) -> None:
        """In the thread that was sending: what came is the caller's to read, or, when nobody waits for it, gone."""
        with self.lock:
            self.aside = False
            deserted = self.left
        if deserted:
            self.close()

    def desert(self) -> None:
        """Leave the thread that is still sending behind, if it is."""
        with self.lock:
            if self.aside:
                self._leave()

    def leave(self) -> None:
        """From another thread: nobody wants the answer. A thread that waits for it is woken."""
        with self.lock:
            self._leave()

    def _leave(self) -> None:
        if not self.left:
            self.left = True
            if self.sock is not None:
                with contextlib.suppress(OSError):
                    self.sock.shutdown(socket.SHUT_RDWR)


_call: ContextVar[_Call | None] = ContextVar("_call", default=None)


@dataclass(slots=True)
class _Client:
    sdk: Any
    session: Any

    def send(self, call: _Call, *, request: Any, streaming: bool) -> Any:
        """The response, its status known to be good; the body of a stream still to be read."""
        from google.protobuf.json_format import ParseError

        method = self.sdk.stream_generate_content if streaming else self.sdk.generate_content
        token = _call.set(call)
        try:
            method(request=request, retry=None, timeout=call.timeouts()[1])
        except ParseError as error:
            raise malformed("the answer is not what the API describes", response=call.response) from error
        except OSError as error:  # as all of requests' errors are
            if call.guard.expired and not isinstance(error, TimeoutError):
                # A limit that runs out while the request is being sent reads as 'connection aborted'.
                raise TimeoutError("the attempt's time is up") from error
            raise
        finally:
            _call.reset(token)
        return call.response

    def close(self) -> None:
        self.session.close()


def _answered(response: Any, **_: Any) -> None:
    """Called by requests for every response. Anything but 200 is an error, redirects included."""
    call = _call.get()
    if call is not None:
        call.response = response
    if response.status_code != 200:
        raise classify_body(
            "google-legacy", response.status_code, response.content, response.headers, response=response
        )


class _Reads(io.RawIOBase):
    """A socket's bytes, each read of them under the guard: requests' own timeout is per read and would be stretched."""

    def __init__(self, inner: Any, call: _Call) -> None:
        self._inner = inner
        self._limits = call

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._limits.arm()
        read: int | None = self._inner.readinto(buffer)
        return read

    def close(self) -> None:
        if not self.closed:
            self._inner.close()
        super().close()


def _adapter() -> Any:
    """A requests adapter that obeys the guard, never retries, and remembers which socket a call went out on."""
    from requests.adapters import HTTPAdapter
    from urllib3.connection import HTTPConnection, HTTPSConnection
    from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

    def remember(connection: Any) -> None:
        call = _call.get()
        if call is not None:
            with call.lock:
                call.sock = connection.sock
            if call.left:
                connection.close()

    class Response(http.client.HTTPResponse):
        def __init__(self, sock: Any, *args: Any, **kwargs: Any) -> None:
            super().__init__(sock, *args, **kwargs)
            call = _call.get()
            if call is not None:
                self.fp.close()
                self.fp = io.BufferedReader(_Reads(sock.makefile("rb", buffering=0), call))

    def arm(connection: Any) -> None:
        # urllib3 sends under the connect timeout, all of a block within it: a slow upload is no dead server.
        call = _call.get()
        if call is not None and connection.sock is not None:
            connection.sock.settimeout(call.timeouts()[1])

    class Plain(HTTPConnection):
        response_class = Response

        def send(self, data: Any) -> None:
            arm(self)
            super().send(data)

        def getresponse(self) -> Any:
            remember(self)
            return super().getresponse()

    class Secure(Plain, HTTPSConnection):
        """The same over TLS."""

    class PlainPool(HTTPConnectionPool):
        ConnectionCls = Plain

    class SecurePool(HTTPSConnectionPool):
        ConnectionCls = Secure

    class Adapter(HTTPAdapter):
        def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
            super().init_poolmanager(*args, **kwargs)
            self.poolmanager.pool_classes_by_scheme = {"http": PlainPool, "https": SecurePool}

        def send(self, request: Any, *args: Any, **kwargs: Any) -> Any:
            call = _call.get()
            if call is not None:
                kwargs["timeout"] = call.timeouts()
            return super().send(request, *args, **kwargs)

    return Adapter(pool_connections=4, pool_maxsize=_POOL, max_retries=0)
