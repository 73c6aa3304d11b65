"""There and back: a conversation that returns to where it began reads as if it had never been away."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage

from langchain_fallback._convert import from_langchain, to_langchain
from shared_core import history as rules_by_name
from shared_core.chat.request import Message, Origin, Text, ToolCall, ToolResult, assistant, system, tool, user
from shared_core.history import HistoryRules, prepare
from tests.history.checks import check, said
from tests.history.origins import FORMS, SIGNATURE, Call, Said, ours
from tests.history.targets import TARGETS

RULES: dict[str, HistoryRules] = {
    name: getattr(rules_by_name, name)
    for name in ("OPENAI", "OPENAI_RESPONSES", "ANTHROPIC", "GOOGLE", "LLAMA_CPP", "MISTRAL", "COMPATIBLE", "DEEPSEEK",
                 "OPENROUTER")
}  # fmt: skip
ME = Origin("me", "model")


def neutral(chance: random.Random, *, ids: Sequence[str] = ()) -> tuple[Message, ...]:
    """Text and tool loops that every vendor takes as they are; or with odd `ids`, which some must mint anew."""
    turns: list[Message] = [system("Be kind.")] if chance.random() < 0.5 else []
    for _ in range(chance.randint(1, 6)):
        turns.append(user(f"u{chance.randrange(99)}"))
        while chance.random() < 0.4:
            calls = [
                ToolCall(
                    chance.choice(ids) if ids else f"{chance.randrange(10**9):09d}", f"f{chance.randrange(3)}",
                    json.dumps({"n": chance.randrange(9)}),
                )
                for _ in range(chance.choice([1, 1, 2]))
            ]  # fmt: skip
            words = [Text("Let me see.")] if chance.random() < 0.5 else []
            turns.append(assistant([*words, *calls]))
            turns += [tool(call.id, f"r{chance.randrange(99)}", name=call.name) for call in calls]
        turns.append(assistant(f"a{chance.randrange(99)}"))
    turns.append(user("and?"))
    return tuple(turns)


def apart(messages: Sequence[Message]) -> list[Any]:
    """What is said, in order, whatever the ids and however results are grouped in messages."""
    told: list[Any] = []
    order: dict[str, int] = {}
    for message in messages:
        for part in message.parts:
            if isinstance(part, ToolCall):
                order[part.id] = len(order)
                told.append(("call", order[part.id], part.name, part.arguments))
            elif isinstance(part, ToolResult):
                told.append(("result", order[part.call_id], part.content))
            else:
                told.append((message.role, part))
    return told


@pytest.mark.parametrize("there", RULES)
@pytest.mark.parametrize("home", RULES)
def test_neutral_content_comes_back_as_it_went(home: str, there: str) -> None:
    """Eighty conversations for each of 81 pairs: exactly the same messages, ids included."""
    a, b = RULES[home], RULES[there]
    for seed in range(80):
        made = neutral(random.Random(seed))
        straight = prepare(made, origin=ME, rules=a)
        assert prepare(prepare(made, origin=ME, rules=b), origin=ME, rules=a) == straight
        assert prepare(straight, origin=ME, rules=a) == straight


@pytest.mark.parametrize("there", RULES)
@pytest.mark.parametrize("home", RULES)
def test_odd_ids_come_back_with_other_names_for_the_same_calls(home: str, there: str) -> None:
    a, b = RULES[home], RULES[there]
    odd = ["", "functions.f:0", "x" * 70, "call_1", "ü"]
    for seed in range(25):
        made = neutral(random.Random(seed), ids=odd)
        straight = prepare(made, origin=ME, rules=a)
        returned = prepare(prepare(made, origin=ME, rules=b), origin=ME, rules=a)
        if a.user_after_tool == b.user_after_tool:
            assert apart(returned) == apart(straight)
        assert [len(m.tool_calls) for m in returned if m.role == "assistant" and m.tool_calls] == [
            len(m.tool_calls) for m in straight if m.role == "assistant" and m.tool_calls
        ]


@pytest.mark.parametrize("name", RULES)
def test_neutral_content_survives_langchains_own_objects(name: str) -> None:
    for seed in range(40):
        straight = prepare(neutral(random.Random(seed)), origin=ME, rules=RULES[name])
        again = prepare(from_langchain(to_langchain(straight)), origin=ME, rules=RULES[name])
        assert apart(again) == apart(straight)


# ── what is opaque ───────────────────────────────────────────────────────────────────────────────────────────────────

RETURNS = {
    "anthropic:claude-sonnet-4-5": "anthropic",
    "google:gemini-2.5-flash": "google",
    "deepseek:deepseek-reasoner": "deepseek",
    "ChatOpenAI, Responses": "responses",
    "ChatAnthropic": "anthropic",
    "ChatGoogleGenerativeAI": "google",
}
"""Targets that are shown their own thoughts again, and in whose form these are kept."""


def away_and_back(form: str, foreign: str | None = "foreign thought «secret»") -> list[BaseMessage]:
    """The vendor begins a tool loop, the others answer in between, and the vendor is asked again."""
    turn = FORMS[form]
    others = [f for f in ("openai", "anthropic", "google", "deepseek", "llamacpp") if f != form.partition(",")[0]]
    turns: list[BaseMessage] = [
        HumanMessage("Weather? «u1»"),
        turn(Said("Let me see. «a1»", "own thought «own»", (Call("call_1", args={"city": "Oslo"}),))),
        ToolMessage("4 °C «r1»", tool_call_id="call_1"),
    ]
    for other in others:
        turns.append(FORMS[other](Said(f"I am {other}. «{other}»", foreign)))
        turns.append(HumanMessage(f"Thanks. «u{other}»"))
    return turns


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("target", "form"),
    [
        (target, f"{vendor}{form}")
        for target, vendor in RETURNS.items()
        for form in ("", ", v1", ", ours")
        if f"{vendor}{form}" in FORMS
    ],
)
def test_thoughts_are_restored_when_the_conversation_returns_to_who_had_them(target: str, form: str) -> None:
    if target not in TARGETS:
        pytest.skip("LangChain's Google class accepts google-genai<3 only")
    turns = away_and_back(form)
    body = check(turns, TARGETS[target])
    assert body is not None
    text = said(body)
    assert "«secret»" not in text
    if RETURNS[target] == "deepseek":
        assert "own thought «own»" in text
    elif RETURNS[target] == "google":  # Gemini's thoughts are summaries; what it wants back is its signature
        assert SIGNATURE in text
    else:
        assert "own thought «own»" in text
        assert SIGNATURE in text


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("vendor", ["anthropic", "google", "responses", "deepseek"])
def test_on_the_way_nobody_else_sees_them(vendor: str, target: str) -> None:
    to = TARGETS[target]
    body = check(away_and_back(vendor, foreign=None), to)
    assert body is not None
    seen = "«own»" in said(body) or SIGNATURE in re.sub("skip_thought_signature_validator", "", said(body))
    assert seen is (vendor == to.vendor)


@pytest.mark.parametrize(
    "scope",
    [
        Origin("anthropic", "claude-opus-4-1"),
        Origin("anthropic", "claude-sonnet-4-5-20250929", "https://proxy.example"),
        Origin("bedrock", "claude-sonnet-4-5"),
        Origin("anthropic", "claude-sonnet-4-5-mini"),
    ],
)
@pytest.mark.parametrize("target", ["anthropic:claude-sonnet-4-5", "ChatAnthropic"])
def test_another_model_or_address_of_the_same_vendor_is_somebody_else(target: str, scope: Origin) -> None:
    turn = ours("anthropic", scope)
    turns = [
        HumanMessage("?"),
        turn(Said("x", "own «own»", (Call("call_1"),))),
        ToolMessage("r", tool_call_id="call_1"),
    ]
    body = check(turns, TARGETS[target])
    assert "«own»" not in said(body)


@pytest.mark.parametrize("model", ["claude-sonnet-4-5", "claude-sonnet-4-5-20250929"])
@pytest.mark.parametrize("target", ["anthropic:claude-sonnet-4-5", "ChatAnthropic"])
def test_an_alias_and_its_release_are_one_model(target: str, model: str) -> None:
    turn = ours("anthropic", Origin("anthropic", model))
    body = check([HumanMessage("?"), turn(Said("x", "own «own»")), HumanMessage("and?")], TARGETS[target])
    assert "«own»" in said(body)


def test_the_turn_that_is_restored_reads_as_the_model_wrote_it() -> None:
    """Byte for byte: signatures are made over what was said."""
    turn = FORMS["anthropic"]
    words = "  Two blanks, a tab\tand «ü»  "
    body = check(
        [HumanMessage("?"), turn(Said(words, "hm")), HumanMessage("!")], TARGETS["anthropic:claude-sonnet-4-5"]
    )
    assert body is not None
    blocks = body["messages"][1]["content"]
    assert blocks[0] == {"type": "thinking", "thinking": "hm", "signature": SIGNATURE}
    assert blocks[-1] == {"type": "text", "text": words}


def test_a_message_nobody_signed_is_nobodys() -> None:
    """Old checkpoints: opaque blocks without a name on them go to nobody."""
    anonymous = AIMessage([{"type": "thinking", "thinking": "«own»", "signature": "S"}, {"type": "text", "text": "x"}])
    for name in ("anthropic:claude-sonnet-4-5", "ChatAnthropic"):
        body = check([HumanMessage("?"), anonymous, HumanMessage("!")], TARGETS[name])
        assert "«own»" not in said(body)


def test_a_changed_address_makes_a_wrapped_model_another(monkeypatch: pytest.MonkeyPatch) -> None:
    from langchain_anthropic import ChatAnthropic

    from langchain_fallback import LangChainProvider

    settings: dict[str, Any] = {"model": "claude-sonnet-4-5", "api_key": "k"}
    home = LangChainProvider(ChatAnthropic(**settings)).origin
    away = LangChainProvider(ChatAnthropic(**settings, base_url="https://u:p@proxy.example/v1/")).origin
    assert home == Origin("anthropic", "claude-sonnet-4-5")
    assert away == replace(home, endpoint=away.endpoint)
    assert away.endpoint is not None
    assert "u:p" not in away.endpoint, "an origin is written into messages, and holds no password"


def test_a_turn_that_was_a_drawing_and_nothing_else_stays_in_the_conversation() -> None:
    """OpenAI knows it by its id; everybody else is shown the picture, and told whose it is."""
    turns = [HumanMessage("Draw."), FORMS["responses"](Said("", picture=True)), HumanMessage("Bluer.")]
    own = check(turns, TARGETS["ChatOpenAI, Responses"])
    assert own is not None
    assert {"type": "image_generation_call", "id": "ig_1"} in own["input"]
    for name in ("ChatAnthropic", "openai:gpt-5-mini"):
        assert "1 image from your previous message" in said(check(turns, TARGETS[name]))


@pytest.mark.parametrize("form", ["google", "google, v1", "google, ours"])
@pytest.mark.parametrize("target", ["google:gemini-2.5-flash", "ChatGoogleGenerativeAI"])
def test_the_signature_of_a_call_stands_on_the_call(target: str, form: str) -> None:
    if target not in TARGETS:
        pytest.skip("LangChain's Google class accepts google-genai<3 only")
    made = FORMS[form](Said("", "hm", (Call("call_1"), Call("call_2"))))
    turns = [HumanMessage("?"), made, *(ToolMessage("r", tool_call_id=f"call_{n}") for n in (1, 2))]
    body = check(turns, TARGETS[target])
    assert body is not None
    calls = [part for part in body["contents"][1]["parts"] if "function_call" in part]
    assert [part.get("thought_signature") for part in calls] == [b"signed by its vendor", None]


@pytest.mark.parametrize("target", ["anthropic:claude-sonnet-4-5", "ChatAnthropic"])
def test_no_more_than_four_cache_marks_reach_anthropic(target: str) -> None:
    """The last ones: what was cached before is found by them as well."""
    turns: list[BaseMessage] = []
    for n in range(6):
        turns.append(HumanMessage([{"type": "text", "text": f"u{n}", "cache_control": {"type": "ephemeral"}}]))
        turns.append(AIMessage(f"a{n}"))
    body = check([*turns, HumanMessage("and?")], TARGETS[target])
    assert body is not None
    marked = [m["content"][0]["text"] for m in body["messages"] if "cache_control" in said(m)]
    assert marked == ["u2", "u3", "u4", "u5"]


@pytest.mark.parametrize("spec", ["anthropic:claude-sonnet-4-5", "ChatAnthropic"])
def test_a_call_that_names_another_model_is_another_models(spec: str) -> None:
    """Its thoughts are those of the model that the call names, not of the target's usual one."""
    from tests.history.targets import request_of

    turns = [HumanMessage("?"), FORMS["anthropic"](Said("x", "own «own»")), HumanMessage("!")]
    for model, shown in (("claude-opus-4-1", False), ("claude-sonnet-4-5", True), (None, True)):
        body = TARGETS[spec].make(request_of(turns, model=model), [])
        assert ("«own»" in said(body)) is shown
