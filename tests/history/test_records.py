"""What could not travel as it was is on record: by the translation, by the provider, and in the answer's metadata."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage

from langchain_fallback import FallbackChatModel
from shared_core.chat.request import (
    Audio,
    File,
    Image,
    Message,
    Origin,
    Reasoning,
    Text,
    ToolCall,
    ToolResult,
    assistant,
    system,
    tool,
    user,
)
from shared_core.errors import ErrorKind, ProviderError
from shared_core.history import (
    ANTHROPIC,
    COMPATIBLE,
    GOOGLE,
    LLAMA_CPP,
    MISTRAL,
    OPENAI,
    Change,
    ChangeKind,
    HistoryRules,
    prepare,
    summary,
)
from shared_core.routing.target import Target
from shared_core.testing import FaultServer
from tests.history.checks import check
from tests.history.histories import HISTORIES, PDF
from tests.history.origins import FORMS, KEY, PNG, Said, chat_anthropic, chat_openai
from tests.history.targets import TARGETS
from tests.langchain.cells import CLAUDE, GPT, wrapped

ME, OTHER = Origin("me", "m"), Origin("other", "m")
CALLED = assistant(ToolCall("c", "f"))

ROWS: list[tuple[HistoryRules, tuple[Message, ...], list[Change]]] = [
    (OPENAI, (user("u"), assistant([Reasoning("hm", {"signature": "s"}), Text("a")], origin=OTHER)),
     [Change("reasoning", 1)]),
    (ANTHROPIC, (user("u"), assistant([Reasoning("hm", {"signature": "s"}), Text("a")], origin=ME)), []),
    (ANTHROPIC, (user("u"), assistant("<think>hm</think>a")), [Change("reasoning", 1)]),
    (OPENAI, (user("u"), assistant([Reasoning("", {"type": "web_search_call"}), Text("a")])),
     [Change("server block", 1, "web_search_call")]),
    (OPENAI, (user("u"), assistant([Text("a"), Reasoning("", {"type": "citations", "citations": [{"title": "B"}]})])),
     [Change("citation", 1, "B")]),
    (OPENAI, (user("u"), tool("c9", "r")), [Change("orphan result", 1, "c9")]),
    (OPENAI, (user("u"), CALLED, tool("c", "1"), tool("c", "2")), [Change("older result", 2, "c")]),
    (OPENAI, (user("u"), assistant("Model call failed after 2 attempts with E: x"), user("v")),
     [Change("failure notice", 1)]),
    (OPENAI, (user("u"), Message("assistant", (Text("a"),), name="Ann B.")), [Change("name", 1, "Ann B.")]),
    (ANTHROPIC, (Message("user", (Text("a"),), name="Ann"),), []),
    (ANTHROPIC, (user("u"), system("s")), [Change("late system")]),
    (OPENAI, (user("u"), system("s")), []),
    (OPENAI, (user("u"), CALLED, Message("tool", (ToolResult("c", (Image(data=PNG),)),))),
     [Change("moved media", 2, "1 image")]),
    (ANTHROPIC, (user("u"), assistant([Text("a"), Image(data=PNG)])), [Change("moved media", 1, "1 image")]),
    (ANTHROPIC, (system([Text("s"), Image(data=PNG)]), user("u")), [Change("moved media", 0, "1 image")]),
    (OPENAI, (user("u"), CALLED, user("v")), [Change("unanswered call", 1, "f")]),
    (OPENAI, (user("u"), assistant(ToolCall("c", "f", "{oops")), tool("c", "r")), [Change("broken arguments", 1, "f")]),
    (OPENAI, (user(File(data=b"words", media_type="text/plain", name="n.txt")),), [Change("file as text", 0, "n.txt")]),
]  # fmt: skip


@pytest.mark.parametrize(("rules", "messages", "expected"), ROWS)
def test_each_kind_of_change_is_recorded_where_it_happened(
    rules: HistoryRules, messages: tuple[Message, ...], expected: list[Change]
) -> None:
    changes: list[Change] = []
    told = prepare(messages, origin=ME, rules=rules, changes=changes)
    assert changes == expected
    assert prepare(messages, origin=ME, rules=rules) == told, "whether anybody reads the record changes nothing"


def test_every_kind_has_its_row_and_its_words() -> None:
    seen = {change.kind for _, _, expected in ROWS for change in expected}
    assert seen == set(ChangeKind.__args__)  # type: ignore[attr-defined]  # the names in a Literal
    for kind in seen:
        assert str(Change(kind, 3, "x")).startswith("1 ")


def test_a_summary_says_how_often_and_where() -> None:
    changes = [Change("orphan result", 3, "a"), Change("orphan result", 1, "b"), Change("late system")]
    assert summary(changes) == (
        "2 tool results left out: no such call (messages 1, 3: a, b)",
        "1 late system message moved",
    )
    many = [Change("reasoning", n) for n in range(9)]
    assert summary(many) == ("9 thoughts of another model left out (messages 0, 1, 2, 3, 4, …)",)
    assert summary([Change("name", 0, "n" * 99)])[0].endswith("n…)")
    assert summary([]) == ()


def test_what_was_said_is_told_even_when_its_author_is_unknown() -> None:
    """A search that cited pages: the pages are told as links, a drawn picture as a picture."""
    drawn = Reasoning("", {"type": "image_generation_call", "result": "iVBORw0KGgo="})
    links = Reasoning(
        "", {"type": "citations", "citations": [{"url": "https://a/b", "title": "A"}, {"url": "https://c"}]}
    )
    out = prepare((user("u"), assistant([Text("So."), drawn, links]), user("v")), origin=ME, rules=OPENAI)
    assert out[1].text == "So.\n\nSources:\n- A: https://a/b\n- https://c"
    assert [type(p) for p in out[2].parts] == [Text, Image]


# ── media ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("rules", [OPENAI, COMPATIBLE, MISTRAL, LLAMA_CPP])
def test_a_text_file_is_told_where_files_of_its_type_are_not_taken(rules: HistoryRules) -> None:
    part = File(data="Zwölf".encode(), media_type="text/markdown", name="n.md")
    [message] = prepare((user([Text("Read:"), part]),), origin=ME, rules=rules)
    assert message.text == "Read:\n[file n.md]\nZwölf\n"


@pytest.mark.parametrize("rules", [ANTHROPIC, GOOGLE])
def test_a_text_file_stays_a_file_where_it_may(rules: HistoryRules) -> None:
    part = File(data=b"x", media_type="text/plain")
    assert prepare((user(part),), origin=ME, rules=rules)[0].parts == (part,)


@pytest.mark.parametrize(
    ("rules", "part"),
    [
        (GOOGLE, Image(data=b"GIF89a")),
        (OPENAI, Image(data=b"x", media_type="image/heic")),
        (ANTHROPIC, Image(data=b"x", media_type="image/tiff")),
        (OPENAI, Audio(data=b"x", media_type="audio/ogg")),
        (OPENAI, File(data=b"x", media_type="application/zip")),
        (OPENAI, File(data=b"\xff", media_type="text/plain")),
        (ANTHROPIC, File(data=b"x", media_type="video/mp4")),
        (LLAMA_CPP, File(data=b"%PDF", media_type="application/pdf")),
    ],
)
def test_what_a_wire_does_not_carry_makes_the_target_incapable(rules: HistoryRules, part: Any) -> None:
    with pytest.raises(ProviderError) as caught:
        prepare((user(part),), origin=ME, rules=rules)
    assert caught.value.kind is ErrorKind.INCAPABLE


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        (Image(data=b"\xff\xd8\xff", media_type="image/png"), Image(data=b"\xff\xd8\xff", media_type="image/jpeg")),
        (Image(data=b"x", media_type="image/jpg"), Image(data=b"x", media_type="image/jpeg")),
        (File(data=PNG, media_type="image/png"), Image(data=PNG, media_type="image/png")),
        (File(data=b"ID3", media_type="audio/mpeg"), Audio(data=b"ID3", media_type="audio/mpeg")),
        (File(data=b"x", media_type="video/mp4"), File(data=b"x", media_type="video/mp4")),
        (File(data=PDF), File(data=PDF, media_type="application/pdf")),
    ],
)
def test_a_file_goes_as_what_it_is(given: Any, sent: Any) -> None:
    assert prepare((user(given),), origin=ME, rules=GOOGLE)[0].parts == (sent,)


def test_a_failed_result_is_text_and_says_something_for_anthropic() -> None:
    """It refuses an error without content, and one with a picture."""
    results = (ToolResult("c", (Image(data=PNG),), is_error=True), ToolResult("c", (), is_error=True))
    for result in results:
        out = prepare((user("u"), CALLED, Message("tool", (result,))), origin=ME, rules=ANTHROPIC)
        [sent] = [p for m in out for p in m.parts if isinstance(p, ToolResult)]
        assert sent.is_error
        assert [type(p) for p in sent.content] == [Text]


# ── where a user finds it ────────────────────────────────────────────────────────────────────────────────────────────

ODD: list[BaseMessage] = [
    HumanMessage("Weather?"),
    AIMessage("", tool_calls=[{"id": "call_1", "name": "weather", "args": {}}]),
    ToolMessage("whose?", tool_call_id="call_9"),
    HumanMessage("Never mind."),
]
TOLD = [
    "1 tool result left out: no such call (message 2: call_9)",
    "1 tool call without a result told as cancelled (message 1: weather)",
]


def models(server: FaultServer) -> Iterator[tuple[str, Any]]:
    yield "native", Target(f"openai:{GPT}", base_url=server.openai_url, api_key=KEY)
    yield "native", Target(f"anthropic:{CLAUDE}", base_url=server.anthropic_url, api_key=KEY)
    yield "native", Target("google:gemini-2.5-flash", base_url=server.google_url, api_key=KEY)
    yield "wrapped", wrapped(server, GPT)
    yield "wrapped", wrapped(server, CLAUDE)


@pytest.mark.parametrize("sync", [True, False])
@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("at", range(5))
async def test_the_answers_metadata_says_what_did_not_travel(
    server: FaultServer, at: int, streaming: bool, sync: bool
) -> None:
    _, target = list(models(server))[at]
    model = FallbackChatModel(models=[target])
    for history, expected in ((ODD, TOLD), ([HumanMessage("Hello")], None)):
        whole: Any = None
        if streaming and sync:
            for chunk in model.stream(history):
                whole = chunk if whole is None else whole + chunk
        elif streaming:
            async for chunk in model.astream(history):
                whole = chunk if whole is None else whole + chunk
        else:
            whole = model.invoke(history) if sync else await model.ainvoke(history)
        [attempt] = whole.response_metadata["fallback"]["attempts"]
        assert attempt.get("history") == expected


def test_each_attempt_tells_its_own_story(server: FaultServer) -> None:
    """What one vendor takes as it is, the next one is told in another place."""
    server.script(GPT, 500)
    history = [HumanMessage("u"), AIMessage("a"), SystemMessage("Be brief."), HumanMessage("v")]
    first = Target(f"openai:{GPT}", base_url=server.openai_url, api_key=KEY)
    model = FallbackChatModel(models=[first, wrapped(server, CLAUDE)], max_retries=0)
    attempts = model.invoke(history).response_metadata["fallback"]["attempts"]
    assert [a.get("history") for a in attempts] == [None, ["1 late system message moved"]]


def test_a_conversation_that_needs_nothing_is_not_touched() -> None:
    """The caller's own message objects reach the integration: nothing was copied, so nothing can be lost."""
    from langchain_fallback import LangChainProvider
    from tests.history.targets import request_of

    history = HISTORIES["tool_loop"](FORMS["openai"])
    changes: list[Change] = []
    messages = LangChainProvider(chat_openai())._call(request_of(history), changes).messages
    assert not changes
    assert [a is b for a, b in zip(messages, history, strict=True)] == [True] * len(history)


# ── what only one integration understands ────────────────────────────────────────────────────────────────────────────


def test_a_block_nobody_could_read_travels_with_the_callers_own_messages() -> None:
    """It was made for one integration; what another vendor thought in the same conversation still stays behind."""
    from langchain_fallback import LangChainProvider
    from langchain_fallback._convert import FRAMEWORK
    from langchain_fallback._convert.request import to_request

    odd = HumanMessage([{"type": "container_upload", "file_id": "file_1"}, {"type": "text", "text": "Look."}])
    history = [odd, FORMS["google"](Said("Yes.", "«secret»")), HumanMessage("Go on.", additional_kwargs={"mine": 1})]
    options = {"streaming": False, "providers": frozenset({"anthropic"}), "foreign": frozenset({"openai"})}
    request = to_request(history, None, {}, {}, wrapped=True, **options)  # type: ignore[arg-type]  # keywords in a dict
    assert request.native is not None
    assert request.native.framework == FRAMEWORK
    messages = LangChainProvider(chat_anthropic())._call(request).messages
    assert messages[0] is odd
    assert messages[1].content == "Yes."
    assert messages[2] is history[2]


@pytest.mark.parametrize(
    ("target", "message", "sent"),
    [
        ("ChatOpenAI", HumanMessage("u", additional_kwargs={"name": "Bob B."}), {"content": "Bob B.: u"}),
        ("ChatOpenAI", HumanMessage("u", additional_kwargs={"name": "bob"}), {"content": "u", "name": "bob"}),
        ("ChatOpenAI", HumanMessage("u", additional_kwargs={"cache_control": {"type": "ephemeral"}}), {"content": "u"}),
        (
            "ChatAnthropic",
            HumanMessage("u", additional_kwargs={"cache_control": {"type": "ephemeral"}}),
            {"content": [{"type": "text", "text": "u", "cache_control": {"type": "ephemeral"}}]},
        ),
    ],
)
def test_what_stands_beside_the_content_is_said_the_targets_way(
    target: str, message: HumanMessage, sent: dict[str, Any]
) -> None:
    body = check([message], TARGETS[target])
    assert body is not None
    assert body["messages"] == [{"role": "user", **sent}]


def test_the_local_model_is_told_names_it_can_speak_and_answers_with_the_callers() -> None:
    pytest.importorskip("llama_cpp", reason="the local model is left out")
    from shared_core.chat.events import ToolCallDelta
    from shared_core.chat.request import ChatRequest, ToolSpec
    from shared_core.providers.llama_cpp.provider import _Reading
    from shared_core.resilience.deadline import Guard
    from tests.history.targets import TINY, provider

    local = provider(f"llamacpp:{TINY}")
    request = ChatRequest(
        (user("u"), assistant(ToolCall("c", "files.read")), tool("c9", "r"), user("v")),
        tools=(ToolSpec("files.read"),),
        tool_choice="files.read",
    )
    changes: list[Change] = []
    job = local._job(request, local.model, changes)
    spoken = job["messages"][1]["tool_calls"][0]["function"]["name"]
    assert spoken == job["tools"][0]["function"]["name"] == job["tool_choice"] != "files.read"
    assert [c.kind for c in changes] == ["orphan result", "unanswered call"]
    reading = _Reading(local, request, Guard(lambda: 0.0, streaming=True))
    [event] = reading.events({"ev": "call", "index": 0, "name": spoken, "arguments": "{}"})
    assert isinstance(event, ToolCallDelta)
    assert event.name == "files.read"
