"""The vendors' own SDKs read what the fault server says: text, tools, usage, errors, whole and streamed."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pytest

from shared_core.testing.fault_server import (
    CANONICAL,
    Answer,
    Fault,
    FaultServer,
    ToolCall,
    Usage,
    cut,
    cut_tool,
    hang,
    overload,
    status,
)
from tests.timing import timed

openai = pytest.importorskip("openai")
anthropic = pytest.importorskip("anthropic")
genai = pytest.importorskip("google.genai")
httpx = pytest.importorskip("httpx")

WIRES = ["openai", "anthropic", "google"]
SHAPES = ["whole", "streamed"]
TOOL = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city"],
}


@dataclass
class Got:
    """An answer as an SDK told it."""

    text: str = ""
    reasoning: str = ""
    calls: list[tuple[str, Any]] = field(default_factory=list)
    finish: str | None = None
    usage: tuple[int, int] | None = None
    """Prompt and completion tokens, in the vendor's own fields."""
    cached: int | None = None


@pytest.fixture(scope="module")
def module_server() -> Iterator[FaultServer]:
    with FaultServer() as server:
        yield server
        for make in (openai_client, anthropic_client, google_client):
            make(server.url).close()
            make.cache_clear()


# One client of each kind for all tests: making one costs more than a hundred requests.


@cache
def openai_client(url: str) -> Any:
    return openai.OpenAI(base_url=url + "/v1", api_key="sk-test-0000-1234", max_retries=0, timeout=30)


@cache
def anthropic_client(url: str) -> Any:
    return anthropic.Anthropic(base_url=url, api_key="k-test-1234", max_retries=0, timeout=30)


@cache
def google_client(url: str) -> Any:
    return genai.Client(api_key="AIza-test-1234", http_options=genai.types.HttpOptions(base_url=url, timeout=30_000))


@pytest.fixture
def server(module_server: FaultServer) -> FaultServer:
    module_server.clear()
    module_server.script("*", "ok")
    return module_server


def openai_ask(server: FaultServer, streamed: bool, model: str = "m", **more: Any) -> Got:
    client = openai_client(server.url)
    request = {"model": model, "messages": [{"role": "user", "content": "two words"}], **more}
    if "tools" in request:
        request["tools"] = [{"type": "function", "function": {"name": "weather", "parameters": TOOL}}]
    got = Got()
    if not streamed:
        done = client.chat.completions.create(**request)
        choice = done.choices[0]
        got.text = choice.message.content or ""
        got.reasoning = getattr(choice.message, "reasoning_content", "")
        got.calls = [(c.function.name, json.loads(c.function.arguments)) for c in choice.message.tool_calls or []]
        got.finish = choice.finish_reason
        usage = done.usage
    else:
        parts: dict[int, list[str]] = {}
        usage = None
        for chunk in client.chat.completions.create(stream=True, stream_options={"include_usage": True}, **request):
            usage = chunk.usage or usage
            for choice in chunk.choices:
                got.text += choice.delta.content or ""
                got.reasoning += getattr(choice.delta, "reasoning_content", None) or ""
                got.finish = choice.finish_reason or got.finish
                for call in choice.delta.tool_calls or []:
                    if call.id:
                        assert call.id.startswith("call_")
                        parts[call.index] = [call.function.name, ""]
                    parts[call.index][1] += call.function.arguments
        got.calls = [(name, json.loads(args)) for name, args in parts.values()]
    if usage is not None:
        got.usage = (usage.prompt_tokens, usage.completion_tokens)
        got.cached = usage.prompt_tokens_details.cached_tokens
    return got


def anthropic_ask(server: FaultServer, streamed: bool, model: str = "m", **more: Any) -> Got:
    client = anthropic_client(server.url)
    request = {"model": model, "max_tokens": 500, "messages": [{"role": "user", "content": "two words"}], **more}
    if "tools" in request:
        request["tools"] = [{"name": "weather", "input_schema": TOOL}]
    if streamed:
        with client.messages.stream(**request) as stream:
            message = stream.get_final_message()
    else:
        message = client.messages.create(**request)
    return Got(
        text="".join(block.text for block in message.content if block.type == "text"),
        reasoning="".join(block.thinking for block in message.content if block.type == "thinking"),
        calls=[(block.name, block.input) for block in message.content if block.type == "tool_use"],
        finish=message.stop_reason,
        usage=(message.usage.input_tokens, message.usage.output_tokens),
        cached=message.usage.cache_read_input_tokens,
    )


def google_ask(server: FaultServer, streamed: bool, model: str = "m", **more: Any) -> Got:
    client = google_client(server.url)
    request: dict[str, Any] = {"model": model, "contents": "two words", **more}
    if request.pop("tools", None):
        request["config"] = {
            "tools": [{"function_declarations": [{"name": "weather", "parameters": TOOL}]}],
            "automatic_function_calling": {"disable": True},
        }
    if streamed:
        replies = list(client.models.generate_content_stream(**request))
    else:
        replies = [client.models.generate_content(**request)]
    got = Got()
    for reply in replies:
        for candidate in reply.candidates or []:
            for part in (candidate.content.parts if candidate.content else None) or []:
                if part.function_call:
                    got.calls.append((part.function_call.name, part.function_call.args))
                elif part.thought:
                    got.reasoning += part.text or ""
                else:
                    got.text += part.text or ""
            if candidate.finish_reason:
                got.finish = candidate.finish_reason.value
        usage = reply.usage_metadata
        if usage is not None:
            got.usage = (usage.prompt_token_count, usage.candidates_token_count)
            got.cached = usage.cached_content_token_count
    return got


ASK: dict[str, Callable[..., Got]] = {"openai": openai_ask, "anthropic": anthropic_ask, "google": google_ask}
each_wire = pytest.mark.parametrize("wire", WIRES)
each_shape = pytest.mark.parametrize("streamed", [False, True], ids=SHAPES)


# ── good answers ─────────────────────────────────────────────────────────────────────────────────────────────────────


@each_wire
@each_shape
@pytest.mark.parametrize("chunk", ["word", "char", 7])
def test_the_exact_text_arrives(server, wire, streamed, chunk):
    """Accents, dashes and emoji included, however it is cut."""
    server.script("*", Answer(chunk=chunk))
    got = ASK[wire](server, streamed)
    assert got.text == CANONICAL
    assert got.usage == (2, len(CANONICAL.split()))
    assert got.finish == {"openai": "stop", "anthropic": "end_turn", "google": "STOP"}[wire]


@each_wire
@each_shape
def test_tool_calls_arrive(server, wire, streamed):
    """Two calls after some text, with their arguments."""
    calls = [ToolCall("weather", {"city": "Orléans", "days": 2}), ToolCall("weather", {"city": "Nîmes"})]
    server.script("*", Answer("Let me look.", tool_calls=calls))
    got = ASK[wire](server, streamed, tools=True)
    assert got.text == "Let me look."
    assert got.calls == [("weather", {"city": "Orléans", "days": 2}), ("weather", {"city": "Nîmes"})]
    assert got.finish == {"openai": "tool_calls", "anthropic": "tool_use", "google": "STOP"}[wire]
    assert server.requests[-1].tools == ("weather",)


@each_wire
@each_shape
def test_a_tool_call_alone_arrives(server, wire, streamed):
    """No text block is made up for it."""
    server.script("*", Answer("", tool_calls=[ToolCall("weather", {})]))
    got = ASK[wire](server, streamed, tools=True)
    assert (got.text, got.calls) == ("", [("weather", {})])


@each_wire
@each_shape
def test_reasoning_and_usage_details_arrive(server, wire, streamed):
    """Each vendor counts its own way: Anthropic's input excludes the cache, Gemini's candidates exclude thoughts."""
    usage = Usage(prompt_tokens=100, completion_tokens=50, cached_tokens=30, reasoning_tokens=20)
    server.script("*", Answer("Seven.", reasoning="It opens at seven, so: seven.", usage=usage))
    got = ASK[wire](server, streamed)
    assert got.text == "Seven."
    assert got.reasoning == "It opens at seven, so: seven."
    assert got.usage == {"openai": (100, 50), "anthropic": (70, 50), "google": (100, 30)}[wire]
    assert got.cached == 30


@each_wire
@each_shape
def test_limits_are_honoured(server, wire, streamed):
    """A token limit and a stop sequence cut the answer and name the reason."""
    limit: dict[str, dict[str, Any]] = {
        "openai": {"max_completion_tokens": 3},
        "anthropic": {"max_tokens": 3},
        "google": {"config": {"max_output_tokens": 3}},
    }
    got = ASK[wire](server, streamed, **limit[wire])
    assert got.text == "The café on"
    assert got.finish == {"openai": "length", "anthropic": "max_tokens", "google": "MAX_TOKENS"}[wire]
    stop: dict[str, dict[str, Any]] = {
        "openai": {"stop": [" at "]},
        "anthropic": {"stop_sequences": [" at "]},
        "google": {"config": {"stop_sequences": [" at "]}},
    }
    got = ASK[wire](server, streamed, **stop[wire])
    assert got.text == "The café on the corner opens"
    assert got.finish == {"openai": "stop", "anthropic": "stop_sequence", "google": "STOP"}[wire]


@each_wire
def test_harmless_faults_change_nothing(server, wire):
    """A character split over two reads, a late first token and huge headers are no errors."""
    for streamed in (False, True):
        for step in ("split-utf8", Fault("slow-first-token", delay_s=0.02)):
            server.script("*", step)
            assert ASK[wire](server, streamed).text == CANONICAL, step


async def test_async_clients_are_served(server):
    """The three async faces, streamed."""
    client = openai.AsyncOpenAI(base_url=server.openai_url, api_key="k", max_retries=0)
    messages = [{"role": "user", "content": "hi"}]
    stream = await client.chat.completions.create(model="m", messages=messages, stream=True)
    assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream]) == CANONICAL
    await client.close()
    async with anthropic.AsyncAnthropic(base_url=server.anthropic_url, api_key="k", max_retries=0) as other:
        async with other.messages.stream(model="m", max_tokens=99, messages=messages) as texts:
            assert "".join([text async for text in texts.text_stream]) == CANONICAL
    google = genai.Client(api_key="k", http_options=genai.types.HttpOptions(base_url=server.google_url))
    replies = await google.aio.models.generate_content_stream(model="m", contents="hi")
    assert "".join([reply.text or "" async for reply in replies]) == CANONICAL
    await google.aio.aclose()


def test_models_and_token_counts(server):
    """The questions that health checks ask."""
    server.script("gpt-x", "ok")
    client = openai_client(server.url)
    assert "gpt-x" in [model.id for model in client.models.list()]
    assert client.models.retrieve("gpt-x").id == "gpt-x"
    other = anthropic_client(server.url)
    assert "gpt-x" in [model.id for model in other.models.list()]
    counted = other.messages.count_tokens(model="m", messages=[{"role": "user", "content": "one two three"}])
    assert counted.input_tokens == 3
    google = google_client(server.url)
    assert "models/gpt-x" in [model.name for model in google.models.list()]
    assert google.models.count_tokens(model="m", contents="one two three").total_tokens == 3


# ── errors ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def failure(wire: str, server: FaultServer, streamed: bool = False, **more: Any) -> Any:
    with pytest.raises(Exception) as caught:
        ASK[wire](server, streamed, **more)
    return caught.value


@each_shape
@pytest.mark.parametrize(
    ("step", "kind", "type_", "code"),
    [
        (401, "AuthenticationError", "invalid_request_error", "invalid_api_key"),
        (404, "NotFoundError", "invalid_request_error", "model_not_found"),
        (429, "RateLimitError", "requests", "rate_limit_exceeded"),
        (500, "InternalServerError", "server_error", None),
        ("billing", "RateLimitError", "insufficient_quota", "insufficient_quota"),
        ("context-overflow", "BadRequestError", "invalid_request_error", "context_length_exceeded"),
        ("content-policy", "BadRequestError", "invalid_request_error", "content_filter"),
        ("overloaded", "InternalServerError", "service_unavailable_error", "server_is_overloaded"),
        ("region", "PermissionDeniedError", "request_forbidden", "unsupported_country_region_territory"),
    ],
)
def test_openai_raises_its_own_classes(server, streamed, step, kind, type_, code):
    """Class, type and code as documented, with the request id."""
    server.script("*", step)
    error = failure("openai", server, streamed)
    assert type(error).__name__ == kind
    assert (error.type, error.code) == (type_, code)
    assert error.request_id.startswith("req_")


@each_shape
@pytest.mark.parametrize(
    ("step", "kind", "type_"),
    [
        (401, "AuthenticationError", "authentication_error"),
        (404, "NotFoundError", "not_found_error"),
        (413, None, "request_too_large"),
        (429, "RateLimitError", "rate_limit_error"),
        (500, None, "api_error"),
        (529, None, "overloaded_error"),
        ("billing", None, "rate_limit_error"),
        ("spend-limit", "BadRequestError", "invalid_request_error"),
    ],
)
def test_anthropic_raises_its_own_classes(server, streamed, step, kind, type_):
    """Class and type as documented, with the request id."""
    server.script("*", step)
    error = failure("anthropic", server, streamed)
    assert isinstance(error, anthropic.APIStatusError)
    assert kind is None or type(error).__name__ == kind
    assert error.body["error"]["type"] == type_
    assert error.request_id.startswith("req_")


def test_anthropic_tells_a_spend_limit_by_its_code(server):
    """A 429 that no waiting helps: no retry-after, and the code in the details."""
    server.script("*", "billing")
    error = failure("anthropic", server)
    assert error.body["error"]["details"]["error_code"] == "enforced_spend_limit_reached"
    assert "retry-after" not in error.response.headers


@each_shape
@pytest.mark.parametrize(
    ("step", "code", "word"),
    [
        ("key-invalid", 400, "INVALID_ARGUMENT"),
        (429, 429, "RESOURCE_EXHAUSTED"),
        ("billing", 402, "RESOURCE_EXHAUSTED"),
        (500, 500, "INTERNAL"),
        (503, 503, "UNAVAILABLE"),
        ("region", 400, "FAILED_PRECONDITION"),
    ],
)
def test_google_raises_its_own_classes(server, streamed, step, code, word):
    """Code and status as documented."""
    server.script("*", step)
    error = failure("google", server, streamed)
    assert isinstance(error, genai.errors.ClientError if code < 500 else genai.errors.ServerError)
    assert (error.code, error.status) == (code, word)


def test_google_quota_details(server):
    """A limit of zero is no entitlement; the day's quota names the day; RetryInfo says when."""
    server.script("*", ["quota-zero", "quota-day", status(429, retry_after=2.5)])
    zero, day, minute = (failure("google", server).details["error"] for _ in range(3))
    assert "limit: 0," in zero["message"]
    assert "PerDay" in day["details"][0]["violations"][0]["quotaId"]
    assert day["details"][0]["violations"][0]["quotaDimensions"]["model"] == "m"
    assert "PerMinute" in minute["details"][0]["violations"][0]["quotaId"]
    assert minute["details"][-1] == {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "2.5s"}


# ── broken streams ───────────────────────────────────────────────────────────────────────────────────────────────────


def said_before(wire: str, server: FaultServer) -> tuple[str, BaseException | None]:
    """The text a streaming client got, and what ended it."""
    text = ""
    try:
        if wire == "openai":
            client = openai_client(server.url)
            request = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": True}
            for chunk in client.chat.completions.create(**request):
                text += (chunk.choices[0].delta.content or "") if chunk.choices else ""
        elif wire == "anthropic":
            client = anthropic_client(server.url)
            request = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 99}
            with client.messages.stream(**request) as stream:
                for piece in stream.text_stream:
                    text += piece
        else:
            for reply in google_client(server.url).models.generate_content_stream(model="m", contents="hi"):
                text += reply.text or ""
    except Exception as error:
        return text, error
    return text, None


@each_wire
@pytest.mark.parametrize("step", [cut(after_words=3), cut(after_words=3, clean=True)], ids=["rst", "fin"])
def test_a_cut_stream_gives_its_words_and_an_error(server, wire, step):
    """Exactly the words that were let through, then the SDK's own error."""
    server.script("*", step)
    text, error = said_before(wire, server)
    assert text == "The café on"
    assert error is not None
    server.wait_idle()
    assert server.requests[-1].outcome == ("closed" if step.clean else "reset")


@each_wire
@pytest.mark.parametrize("step", ["cut-eof", "missing-terminal"])
def test_a_stream_may_end_early_and_look_well(server, wire, step):
    """No SDK of the three raises: whoever reads must miss the finish reason."""
    server.script("*", Fault(step, after_words=3))
    assert said_before(wire, server) == ("The café on", None)


@each_wire
def test_an_overload_inside_a_stream_is_raised(server, wire):
    """Before the first token and after some words."""
    server.script("*", [overload(), overload(after_words=2)])
    text, error = said_before(wire, server)
    assert text == ""
    assert "overloaded" in str(error).lower()
    text, error = said_before(wire, server)
    assert text == "The café"
    assert "overloaded" in str(error).lower()


@each_wire
@pytest.mark.parametrize("step", ["malformed-chunk", "role-only-error"])
def test_broken_events_are_raised(server, wire, step):
    """An event that is not JSON, and an error after an empty beginning."""
    server.script("*", step)
    text, error = said_before(wire, server)
    assert text == ("The café on" if step == "malformed-chunk" else "")
    assert error is not None


@each_wire
def test_a_stream_cut_inside_a_tool_call_is_raised(server, wire):
    """The client never gets the complete call."""
    server.script("*", cut_tool())
    assert failure(wire, server, streamed=True, tools=True)


@each_wire
@each_shape
@pytest.mark.parametrize("step", ["reset", "close", "reset-after-headers", "garbage-status-line", "corrupt-gzip"])
def test_a_broken_connection_is_raised(server, wire, streamed, step):
    """Each in the SDK's own words."""
    server.script("*", step)
    assert failure(wire, server, streamed)


@each_wire
@each_shape
def test_a_prompt_refused_by_policy(server, wire, streamed):
    """An error, or Gemini's 200 without candidates."""
    server.script("*", "content-policy")
    if wire == "google":
        assert google_ask(server, streamed).text == ""
    else:
        assert failure(wire, server, streamed).status_code == 400


@each_wire
@each_shape
def test_an_answer_stopped_by_the_filter(server, wire, streamed):
    """Some words, and the vendor's word for it."""
    server.script("*", "content-filter")
    got = ASK[wire](server, streamed)
    assert got.text == "The café on"
    assert got.finish == {"openai": "content_filter", "anthropic": "refusal", "google": "SAFETY"}[wire]


@each_wire
@each_shape
def test_an_answer_without_choices_or_usage(server, wire, streamed):
    """Empty answers reach the caller as such."""
    server.script("*", "empty-choices")
    if wire == "openai" and not streamed:
        assert isinstance(failure(wire, server), IndexError)
    else:
        assert ASK[wire](server, streamed).text == ""


@timed
def test_a_read_timeout_leaves_a_trace(server):
    """A client that gives up on a hanging request is seen leaving."""
    server.script("*", hang())
    client = openai_client(server.url).with_options(timeout=0.05)
    with pytest.raises(openai.APITimeoutError):
        client.chat.completions.create(model="m", messages=[{"role": "user", "content": "hi"}])
    server.wait_idle()
    seen = server.requests[-1]
    assert seen.outcome == "client-closed"
    assert seen.client_closed_at is not None
    assert seen.client_closed_at - seen.received_at < 1


# ── conversations ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_anthropic_continues_a_prefill(server):
    """The answer goes on where the prefill ends; a prefill it does not begin with is answered whole."""
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "The café on"}]
    assert "The café on" + anthropic_ask(server, False, messages=messages).text == CANONICAL
    messages[-1]["content"] = "Something else"
    assert anthropic_ask(server, False, messages=messages).text == CANONICAL


def test_anthropic_refuses_a_prefill(server):
    """Trailing white space always, any prefill where the model is scripted so."""
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "The café "}]
    assert "trailing whitespace" in str(failure("anthropic", server, messages=messages))
    messages[-1]["content"] = "The café"
    server.script("*", "reject-prefill")
    assert "prefill" in str(failure("anthropic", server, messages=messages))
    assert anthropic_ask(server, False).text == CANONICAL


@each_shape
@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ({"continue_from": True}, " three four"),
        ({"continue_from": True, "overlap_words": 1}, " two three four"),
        ({"continue_from": True, "repeat_whole": True}, "one two three four"),
        ({}, "one two three four"),
    ],
)
def test_an_instructed_continuation(server, streamed, option, expected):
    """For seams: only the rest, the rest with an overlap, or everything again."""
    server.script("*", Answer("one two three four", **option))
    messages = [
        {"role": "user", "content": "count"},
        {"role": "assistant", "content": "one two"},
        {"role": "user", "content": "go on"},
    ]
    assert openai_ask(server, streamed, messages=messages).text == expected


# ── the legacy Google SDK, and plain HTTP ────────────────────────────────────────────────────────────────────────────


def test_the_legacy_google_sdk_over_rest(server):
    """Its streams are JSON arrays; text, tools, usage and errors arrive."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        legacy = pytest.importorskip("google.generativeai")
        from google.api_core import exceptions
    legacy.configure(api_key="k", transport="rest", client_options={"api_endpoint": server.google_url})
    once = {"retry": None, "timeout": 5}
    model = legacy.GenerativeModel("gemini-old")
    whole = model.generate_content("two words", request_options=once)
    assert whole.text == CANONICAL
    assert whole.usage_metadata.prompt_token_count == 2
    assert "".join(part.text for part in model.generate_content("hi", stream=True, request_options=once)) == CANONICAL
    server.script("gemini-old", Answer("", tool_calls=[ToolCall("weather", {"city": "Orléans"})]))
    for streamed in (False, True):
        reply = model.generate_content("hi", stream=streamed, request_options=once)
        (call,) = [
            part.function_call
            for chunk in (reply if streamed else [reply])
            for part in chunk.parts
            if part.function_call
        ]
        assert (call.name, dict(call.args)) == ("weather", {"city": "Orléans"})
    server.script("gemini-old", [503, 429, 503, "overload-first", "cut"])
    with pytest.raises(exceptions.ServiceUnavailable):
        model.generate_content("hi", request_options=once)
    with pytest.raises(exceptions.TooManyRequests):
        model.generate_content("hi", request_options=once)
    # It cannot read the array that a refused stream is answered with, and says so.
    with pytest.raises(exceptions.BadRequest, match="retry with `stream=False`"):
        model.generate_content("hi", stream=True, request_options=once)
    # An error inside the array is an unknown field to it: a reply without candidates, and no exception.
    assert [list(reply.candidates) for reply in model.generate_content("hi", stream=True, request_options=once)] == [[]]
    with pytest.raises((ValueError, OSError)):  # what `requests` raises; the SDK wraps nothing here
        list(model.generate_content("hi", stream=True, request_options=once))
    assert {seen.wire for seen in server.requests} == {"google"}


def test_httpx_is_served(server):
    """Keep-alive, streaming and compatible vendors' paths."""
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    with httpx.Client() as client:
        for path in ("/v1/chat/completions", "/chat/completions", "/openai/v1/chat/completions"):
            reply = client.post(server.url + path, json=body)
            assert reply.json()["choices"][0]["message"]["content"] == CANONICAL
        with client.stream("POST", server.openai_url + "/chat/completions", json={**body, "stream": True}) as stream:
            assert stream.headers["content-type"].startswith("text/event-stream")
            assert list(stream.iter_lines())[-2] == "data: [DONE]"
        assert {seen.connection for seen in server.requests} == {1}
        server.script("*", "redirect-loop")
        with pytest.raises(httpx.TooManyRedirects):
            client.post(server.openai_url + "/chat/completions", json=body, follow_redirects=True)
