"""What both Google providers send for a request, and what they make of an answer."""

from __future__ import annotations

import base64
import json
import pickle
import re
from collections.abc import Iterator
from typing import Any

import pytest

from shared_core.chat.events import Answer as Collected
from shared_core.chat.events import Finished, ReasoningDelta, Started, collect
from shared_core.chat.request import (
    Audio,
    ChatRequest,
    File,
    Image,
    OutputSchema,
    Part,
    Reasoning,
    Text,
    ToolCall,
    ToolSpec,
    assistant,
    system,
    tool,
    user,
)
from shared_core.errors import ErrorKind, MissingKey, ProviderError, UnknownOption
from shared_core.providers.google import GoogleProvider
from shared_core.providers.google_legacy import GoogleLegacyProvider
from shared_core.routing.provider import Provider
from shared_core.routing.target import Target
from shared_core.testing import CANONICAL, FaultServer, check_provider
from shared_core.testing.fault_server import Answer, Usage
from shared_core.testing.fault_server import ToolCall as Said
from tests.providers.wire import COLOURS, Colour, ask, call, fail, guard

KEY = "AIza-test-not-a-real-key-000000"
CLASSES = {"google": GoogleProvider, "google-legacy": GoogleLegacyProvider}
both = pytest.mark.parametrize("name", CLASSES)
shapes = pytest.mark.parametrize("streaming", [False, True], ids=["whole", "stream"])
colours = pytest.mark.parametrize("colour", COLOURS)
WEATHER = ToolSpec(
    "get_weather",
    "Weather of a city",
    {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": ["integer", "null"]}},
        "required": ["city"],
    },
)


@pytest.fixture(scope="module")
def running() -> Iterator[FaultServer]:
    with FaultServer() as server:
        yield server


_made: list[Any] = []


@pytest.fixture
def server(running: FaultServer) -> Iterator[FaultServer]:
    running.clear()
    for model in ("gemini-2.5-flash", "gemini-3-pro", "gemma-3-27b-it"):
        running.script(model, "ok")
    yield running
    while _made:
        _made.pop().close()


def make(server: FaultServer, name: str, model: str = "gemini-2.5-flash", **options: Any) -> Any:
    _made.append(CLASSES[name](Target(f"{name}:{model}", base_url=server.google_url, api_key=KEY, **options)))
    return _made[-1]


def camel(value: Any) -> Any:
    """Keys in camel case: google-genai mixes both spellings, and the API takes both."""
    if isinstance(value, dict):
        return {re.sub("_([a-z])", lambda found: found[1].upper(), key): camel(item) for key, item in value.items()}
    return [camel(item) for item in value] if isinstance(value, list) else value


def sent(server: FaultServer, name: str, request: ChatRequest, model: str = "gemini-2.5-flash", **options: Any) -> Any:
    """The body of the one request that leaves."""
    call(make(server, name, model, **options), request)
    assert server.count() == 1
    return camel(server.requests[-1].body)


def get(server: FaultServer, name: str, request: ChatRequest, colour: Colour = "sync") -> Collected:
    return collect(call(make(server, name), request, colour))


# ── answers ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@both
@colours
@shapes
def test_an_answer_arrives_whole_with_usage_and_model(server: FaultServer, name: str, colour: Colour, streaming: bool):
    usage = Usage(prompt_tokens=100, completion_tokens=50, cached_tokens=40, reasoning_tokens=20)
    server.script("gemini-2.5-flash", Answer(usage=usage, reasoning="let me think"))
    events = call(provider := make(server, name), ask(streaming=streaming), colour)
    answer = collect(events)
    assert answer.text == CANONICAL
    assert (answer.finish_reason, answer.raw_finish_reason) == ("stop", "STOP")
    assert [r.text for r in answer.reasoning] == ["let me think"]
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (100, 50)
    assert (answer.usage.cached_tokens, answer.usage.reasoning_tokens) == (40, 20)
    assert answer.model == "gemini-2.5-flash"
    assert answer.response_id
    assert isinstance(events[0], Started)
    assert isinstance(events[-1], Finished)
    assert isinstance(provider, Provider)
    assert server.count() == 1


@both
@colours
@shapes
def test_parallel_calls_of_one_tool_keep_their_ids_and_order(
    server: FaultServer, name: str, colour: Colour, streaming: bool
):
    calls = [Said("get_weather", {"city": "Oslo", "days": 2}, id="a"), Said("get_weather", {"city": "Rome"}, id="b")]
    server.script("gemini-2.5-flash", Answer("", tool_calls=calls))
    answer = get(server, name, ask(tools=(WEATHER,), streaming=streaming), colour)
    assert [(c.id, c.name, c.parsed()) for c in answer.tool_calls] == [
        ("a", "get_weather", {"city": "Oslo", "days": 2}),
        ("b", "get_weather", {"city": "Rome"}),
    ]
    assert answer.finish_reason == "tool_calls"


@both
def test_calls_without_ids_get_ids_that_no_other_answer_has(server: FaultServer, name: str):
    """The Gemini API may leave them out; frameworks pair results by id across the whole conversation."""
    server.script("gemini-2.5-flash", Answer("", tool_calls=[Said("get_weather", {}), Said("get_weather", {})]))
    first = get(server, name, ask(tools=(WEATHER,)))
    second = get(server, name, ask(tools=(WEATHER,)))
    assert len({c.id for c in (*first.tool_calls, *second.tool_calls)}) == 4


@both
@shapes
def test_one_call_at_most_when_parallel_calls_are_not_wanted(server: FaultServer, name: str, streaming: bool):
    server.script("gemini-2.5-flash", Answer("", tool_calls=[Said("get_weather", {}), Said("get_weather", {})]))
    answer = get(server, name, ask(tools=(WEATHER,), parallel_tool_calls=False, streaming=streaming))
    assert len(answer.tool_calls) == 1


@both
@shapes
@pytest.mark.parametrize(
    ("said", "reason"),
    [("length", "length"), ("content_filter", "content_filter"), ("RECITATION", "content_filter"), ("OTHER", "other")],
)
def test_finish_reasons_are_told_in_our_words(server: FaultServer, name: str, streaming: bool, said: str, reason: str):
    server.script("gemini-2.5-flash", Answer("a few words", finish=said))
    assert get(server, name, ask(streaming=streaming)).finish_reason == reason


@both
@shapes
def test_a_malformed_function_call_is_no_answer(server: FaultServer, name: str, streaming: bool):
    server.script("gemini-2.5-flash", Answer("", finish="MALFORMED_FUNCTION_CALL"))
    error = fail(make(server, name), ask(tools=(WEATHER,), streaming=streaming))
    assert (error.kind, error.code) == (ErrorKind.MALFORMED, "MALFORMED_FUNCTION_CALL")


@both
def test_a_tool_whose_name_gemini_refuses_comes_back_under_its_own(server: FaultServer, name: str):
    odd = ToolSpec("9lives")
    server.script("gemini-2.5-flash", lambda seen: Answer("", tool_calls=[Said(seen.tools[0], {}, id="a")]))
    answer = get(server, name, ask(tools=(odd,), tool_choice="9lives"))
    assert answer.tool_calls[0].name == "9lives"
    allowed = server.requests[-1].body["toolConfig"]["functionCallingConfig"]["allowedFunctionNames"]
    assert allowed == list(server.requests[-1].tools) != ["9lives"]


# ── requests ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@both
def test_limits_and_sampling_reach_the_wire(server: FaultServer, name: str):
    request = ask(max_tokens=64, temperature=0.5, top_p=0.25, stop=("END",), seed=2**31 + 7)
    config = sent(server, name, request)["generationConfig"]
    assert config["maxOutputTokens"] == 64
    assert (config["temperature"], config["topP"], config["stopSequences"]) == (0.5, 0.25, ["END"])
    assert config.get("seed") == (7 if name == "google" else None)


@both
@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ("auto", {"mode": "AUTO"}),
        ("any", {"mode": "ANY"}),
        ("none", {"mode": "NONE"}),
        ("get_weather", {"mode": "ANY", "allowedFunctionNames": ["get_weather"]}),
    ],
)
def test_tool_choice_is_said_the_vendors_way(server: FaultServer, name: str, choice: str, expected: dict[str, Any]):
    body = sent(server, name, ask(tools=(WEATHER,), tool_choice=choice))
    said = {k: v for k, v in body["toolConfig"]["functionCallingConfig"].items() if v}
    mode = said["mode"]
    said["mode"] = {1: "AUTO", 2: "ANY", 3: "NONE"}.get(mode, mode)
    assert said == expected
    assert server.requests[-1].tools == ("get_weather",)


@both
def test_a_conversation_with_tools_is_told_in_turns(server: FaultServer, name: str):
    """Results in call order whatever order they came in, never typed anew, errors flagged, late system text kept."""
    request = ChatRequest(
        (
            system("be brief"),
            user("weather?"),
            assistant([Text("one moment"), ToolCall("a", "get_weather", '{"n": 1}'), ToolCall("b", "get_weather")]),
            tool("b", "gone", is_error=True),
            tool("a", "42"),
            system("in French"),
        ),
        tools=(WEATHER,),
    )
    body = sent(server, name, request)
    assert [p["text"] for p in body["systemInstruction"]["parts"]] == ["be brief\n\nin French"]
    asked, said, answered = body["contents"]
    assert (asked["role"], said["role"], answered["role"]) == ("user", "model", "user")
    assert said["parts"][0] == {"text": "one moment"}
    assert [(p["functionCall"]["id"], p["functionCall"].get("args") or {}) for p in said["parts"][1:]] == [
        ("a", {"n": 1}),
        ("b", {}),
    ]
    assert [p["functionResponse"] for p in answered["parts"]] == [
        {"id": "a", "name": "get_weather", "response": {"output": "42"}},
        {"id": "b", "name": "get_weather", "response": {"error": "gone"}},
    ]


@both
def test_pictures_documents_and_sound_go_inline(server: FaultServer, name: str):
    media: list[Part] = [Image(data=b"\x89PNG"), File(data=b"%PDF-"), Audio(data=b"ID3x"), File(file_id="files/abc")]
    body = sent(server, name, ChatRequest((user([Text("look"), *media]),)))
    parts = body["contents"][0]["parts"]
    inline = [(p["inlineData"]["mimeType"], base64.b64decode(p["inlineData"]["data"])) for p in parts[1:4]]
    assert inline == [("image/png", b"\x89PNG"), ("application/pdf", b"%PDF-"), ("audio/mp3", b"ID3x")]
    assert parts[4]["fileData"]["fileUri"] == "https://generativelanguage.googleapis.com/v1beta/files/abc"


@both
def test_what_is_public_goes_by_its_address(server: FaultServer, name: str):
    """Gemini fetches it, and wants to be told what it is. Models before 2.5 do not: see the next test."""
    media: list[Part] = [Image(url="https://example.org/x.png?y=1"), File(url="https://example.org/z.pdf"),
                         Image(url="https://example.org/w", media_type="image/webp")]  # fmt: skip
    body = sent(server, name, ChatRequest((user([Text("look"), *media]),)))
    files = [p["fileData"] for p in body["contents"][0]["parts"][1:]]
    assert [(f["fileUri"], f["mimeType"]) for f in files] == [
        ("https://example.org/x.png?y=1", "image/png"),
        ("https://example.org/z.pdf", "application/pdf"),
        ("https://example.org/w", "image/webp"),
    ]
    old = make(server, name, model="gemini-2.0-flash")
    assert fail(old, ChatRequest((user(media[0]),))).kind is ErrorKind.INCAPABLE


@both
def test_a_schema_beside_tools_is_one_more_tool_before_gemini_3(server: FaultServer, name: str):
    """Those models take one or the other. The call of that tool is the answer; a call of another one is a call."""
    schema = OutputSchema({"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]})
    request = ask(tools=(WEATHER,), output=schema)
    server.script("gemini-2.5-flash", [
        Answer("", tool_calls=[Said("answer_in_schema", {"city": "Bern"})]),
        Answer("", tool_calls=[Said(WEATHER.name, {"city": "Bern"})]),
    ])  # fmt: skip
    answered = get(server, name, request)
    assert (json.loads(answered.text), answered.tool_calls, answered.finish_reason) == ({"city": "Bern"}, (), "stop")
    body = server.requests[-1].body
    assert [f["name"] for f in body["tools"][0]["functionDeclarations"]] == [WEATHER.name, "answer_in_schema"]
    assert body["toolConfig"]["functionCallingConfig"]["mode"] in ("ANY", 2)  # the old SDK writes the number
    assert "responseMimeType" not in body.get("generationConfig", {})
    called = get(server, name, request)
    assert [c.name for c in called.tool_calls] == [WEATHER.name]
    assert called.text == ""


@both
@pytest.mark.parametrize(
    "request_",
    [
        ChatRequest((user(File(file_id="file-of-openai")),)),
        ask(stop=tuple("abcdef")),
    ],
    ids=["foreign file", "six stops"],
)
def test_what_gemini_cannot_do_is_said_before_anything_is_sent(server: FaultServer, name: str, request_: ChatRequest):
    error = fail(make(server, name), request_)
    assert error.kind is ErrorKind.INCAPABLE
    assert server.count() == 0


@both
def test_a_json_schema_reaches_the_wire(server: FaultServer, name: str):
    schema = {
        "type": "object",
        "properties": {"city": {"$ref": "#/$defs/City"}, "n": {"anyOf": [{"type": "integer"}, {"type": "null"}]}},
        "required": ["city"],
        "$defs": {"City": {"type": "string", "enum": ["Oslo", "Rome"]}},
    }
    config = sent(server, name, ask(output=OutputSchema(schema)))["generationConfig"]
    assert config["responseMimeType"] == "application/json"
    if name == "google":
        assert config["responseJsonSchema"] == schema
    else:
        said = config["responseSchema"]["properties"]
        assert said["city"]["enum"] == ["Oslo", "Rome"]
        assert said["n"]["nullable"] is True


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {"x": {"anyOf": [{"type": "string"}, {"type": "integer"}]}}},
        {"type": "object", "properties": {"x": {"type": ["string", "integer"]}}},
        {"$ref": "#/$defs/A", "$defs": {"A": {"type": "object", "properties": {"a": {"$ref": "#/$defs/A"}}}}},
    ],
)
def test_the_legacy_sdk_says_which_schemas_it_cannot_express(server: FaultServer, schema: dict[str, Any]):
    error = fail(make(server, "google-legacy"), ask(output=OutputSchema(schema)))
    assert error.kind is ErrorKind.INCAPABLE
    assert server.count() == 0


@both
def test_gemma_gets_no_system_instruction_and_no_tool_turns(server: FaultServer, name: str):
    provider = make(server, name, "gemma-3-27b-it")
    assert not provider.capabilities.tools
    history = (
        system("be brief"),
        user("hi"),
        assistant(ToolCall("a", "f")),
        tool("a", "1"),
        assistant("ok"),
        user("?"),
    )
    call(provider, ChatRequest(history))
    body = camel(server.requests[-1].body)
    assert "systemInstruction" not in body
    assert [list(p) for c in body["contents"] for p in c["parts"]] == [["text"]] * 5


@both
def test_the_model_of_one_call_may_differ(server: FaultServer, name: str):
    provider = make(server, name)
    call(provider, ask(model="gemini-3-pro"))
    assert server.requests[-1].model == "gemini-3-pro"
    assert provider.model == "gemini-2.5-flash"


# ── reasoning ────────────────────────────────────────────────────────────────────────────────────────────────────────


def signature_parts(body: Any) -> list[Any]:
    return [p.get("thoughtSignature") for c in body["contents"] for p in c["parts"]]


def test_a_signature_goes_back_to_the_part_it_came_with(server: FaultServer):
    provider = make(server, "google")
    thought = Reasoning("hm", {"thought_signature": base64.b64encode(b"one").decode()})
    call_ = ToolCall("a", "f", data={"thought_signature": base64.b64encode(b"two").decode()})
    history = [user("u"), assistant([thought, Text("t"), call_], origin=provider.origin), tool("a", "r")]
    call(provider, ChatRequest(tuple(history)))
    sent_back = [base64.urlsafe_b64decode(s) if s else None for s in signature_parts(camel(server.requests[-1].body))]
    assert sent_back == [None, b"one", b"two", None]


def test_a_foreign_call_in_the_running_loop_gets_the_stand_in_where_gemini_3_wants_one(server: FaultServer):
    """Else: 400, function call is missing a thought_signature. Older turns need none, nor do older models."""
    turn = [assistant([ToolCall("a", "f"), ToolCall("b", "f")]), tool("a", "r"), tool("b", "r")]
    history = ChatRequest((user("u"), *turn, user("v"), *turn))
    signatures = signature_parts(sent(server, "google", history, "gemini-3-pro"))
    assert [base64.urlsafe_b64decode(s) for s in signatures if s] == [b"skip_thought_signature_validator"]
    assert signatures.index(next(s for s in signatures if s)) == 6
    server.clear()
    assert not any(signature_parts(sent(server, "google", history)))


def test_signatures_are_kept_opaque_and_come_with_what_they_sign():
    from types import SimpleNamespace as N

    from shared_core.providers.google import GeminiFold

    fold = GeminiFold({}, None)
    parts = [
        N(text="hm", thought=True, thought_signature=None, function_call=None),
        N(text="t", thought=None, thought_signature=b"one", function_call=None),
        N(text=None, thought=None, thought_signature=b"two", function_call=N(name="f", id=None, args={"ü": 1})),
    ]
    chunk = N(candidates=[N(content=N(parts=parts), finish_reason="STOP")])
    answer = collect([*fold.feed(chunk), *fold.end({})])
    assert answer.text == "t"
    assert answer.reasoning == (Reasoning("hm", {"thought_signature": "b25l"}),)
    assert answer.tool_calls[0].data == {"thought_signature": "dHdv"}
    assert answer.tool_calls[0].arguments == '{"ü": 1}'
    assert ReasoningDelta("", {"thought_signature": "b25l"}) in GeminiFold({}, None).feed(chunk)


# ── targets ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@both
def test_an_unknown_option_is_refused_with_the_nearest(server: FaultServer, name: str):
    with pytest.raises(UnknownOption, match="headers"):
        make(server, name, header={})


@both
def test_headers_of_the_target_are_sent(server: FaultServer, name: str):
    sent(server, name, ask(), headers={"x-team": "blue"})
    assert server.requests[-1].headers["x-team"] == "blue"


@both
def test_a_target_without_a_key_says_where_one_comes_from(name: str, monkeypatch: pytest.MonkeyPatch):
    for variable in ("GEMINI_API_KEY", "GOOGLE_API_KEY"):
        monkeypatch.delenv(variable, raising=False)
    provider: Any = CLASSES[name](Target(f"{name}:gemini-2.5-flash"))
    with pytest.raises(MissingKey, match="GEMINI_API_KEY"):
        list(provider.stream(ask(), guard(streaming=False)))


@pytest.mark.parametrize("variable", ["GEMINI_API_KEY", "GOOGLE_API_KEY"])
@both
def test_the_key_comes_from_the_environment(
    server: FaultServer, name: str, variable: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("GEMINI_API_KEY", raising=False)
    monkeypatch.delenv("GOOGLE_API_KEY", raising=False)
    monkeypatch.setenv(variable, "from-the-environment-ZZZZ")
    monkeypatch.setenv("GOOGLE_GENAI_USE_VERTEXAI", "true")  # must not send a Gemini target elsewhere
    monkeypatch.setenv("GOOGLE_GENAI_API_VERSION", "v1")  # nor may this: one target, one address, whatever the SDK
    provider: Any = CLASSES[name](Target(f"{name}:gemini-2.5-flash", base_url=server.google_url))
    call(provider, ask())
    provider.close()
    assert server.requests[-1].headers["x-goog-api-key"].endswith("ZZZZ")
    assert server.requests[-1].path.startswith("/v1beta/models/gemini")


def test_further_fields_go_through_and_wrong_ones_fall_over(server: FaultServer):
    extra = {"google": {"thinking_config": {"thinking_budget": 0}}}
    config = {"top_k": 5}
    body = sent(server, "google", ask(extra=extra), config=config)["generationConfig"]
    assert (body["thinkingConfig"], body["topK"]) == ({"thinkingBudget": 0}, 5)
    with pytest.raises(ProviderError) as caught:
        call(make(server, "google"), ask(extra={"google": {"no_such_field": 1}}))
    assert caught.value.kind is ErrorKind.CONFIG


@both
def test_a_provider_travels_without_its_key(server: FaultServer, name: str):
    provider = make(server, name)
    assert KEY.encode() not in pickle.dumps(provider)
    assert KEY not in repr(provider)


def test_importing_the_providers_imports_no_sdk():
    import subprocess
    import sys

    sdks = ("google.genai", "google.ai", "google.generativeai", "google.api_core", "httpx", "requests")
    code = (
        "import sys, shared_core.providers.google, shared_core.providers.google_legacy;"
        f"sys.exit(any(m.startswith({sdks!r}) for m in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_legacy_provider_leaves_the_sdks_global_state_and_its_warning_alone(server: FaultServer):
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        call(make(server, "google-legacy"), ask())


@both
def test_the_public_conformance_check_passes(server: FaultServer, name: str):
    check_provider(make(server, name))
