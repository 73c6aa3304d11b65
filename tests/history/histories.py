"""Twelve conversations, each as any vendor's integration would have left it. Marks «like this» must not get lost."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, ChatMessage, HumanMessage, SystemMessage, ToolMessage

from tests.history.origins import PNG, Call, Said, Turn

PDF = b"%PDF-1.7 a document"
_PNG64, _PDF64 = base64.b64encode(PNG).decode(), base64.b64encode(PDF).decode()
LONG_ID = "call__0_weather_cmpl-" + "1234567890abcdef" * 4
"""What LangChain's class for llama.cpp makes: longer than OpenAI and Anthropic take."""


def plain(turn: Turn) -> list[BaseMessage]:
    return [
        SystemMessage("Be kind. «s»"),
        HumanMessage("Hello «u1»"),
        turn(Said("Hello! «a1»")),
        HumanMessage("How are you? «u2»"),
        turn(Said("Well. «a2»", "he asks «secret»")),
        HumanMessage("Good. «u3»"),
    ]


def tool_loop(turn: Turn) -> list[BaseMessage]:
    return [
        HumanMessage("Weather in Oslo? «u1»"),
        turn(Said("Let me see. «a1»", "I need a tool «secret»", (Call("call_1", args={"city": "Oslo «c1»"}),))),
        ToolMessage("4 °C «r1»", tool_call_id="call_1", name="weather"),
        turn(Said("It is 4 °C. «a2»", "easy «secret»")),
        HumanMessage("And tomorrow? «u2»"),
    ]


def running_loop(turn: Turn) -> list[BaseMessage]:
    """The conversation changes vendors between a result and the answer."""
    return [
        HumanMessage("Weather in Oslo and Rome? «u1»"),
        turn(Said("", "two calls «secret»", (Call("call_1", args={"city": "Oslo"}),))),
        ToolMessage("4 °C «r1»", tool_call_id="call_1"),
        turn(Said("", "one more «secret»", (Call("call_2", args={"city": "Rome"}),))),
        ToolMessage("21 °C «r2»", tool_call_id="call_2"),
    ]


def parallel(turn: Turn) -> list[BaseMessage]:
    """Two calls of one tool, whose results came in the other order; a number stays the text that it is."""
    return [
        HumanMessage("Compare. «u1»"),
        turn(Said("Both. «a1»", None, (Call("call_a", args={"n": 1}), Call("call_b", args={"n": 2})))),
        ToolMessage("42", tool_call_id="call_b"),
        ToolMessage('{"of": "a «r1»"}', tool_call_id="call_a"),
        HumanMessage("So? «u2»"),
    ]


def dangling(turn: Turn) -> list[BaseMessage]:
    """A call nobody answered, a result nobody asked for, two results to one call."""
    return [
        HumanMessage("Try. «u1»"),
        turn(Said("", None, (Call("call_1"), Call("call_2")))),
        ToolMessage("older «old»", tool_call_id="call_1"),
        ToolMessage("newer «r1»", tool_call_id="call_1"),
        HumanMessage("Never mind. «u2»"),
        ToolMessage("whose? «orphan»", tool_call_id="call_9"),
        turn(Said("Fine. «a1»")),
        HumanMessage("Go on. «u3»"),
    ]


def odd_ids(turn: Turn) -> list[BaseMessage]:
    """Ids that are too long, hold what others refuse, are empty, or were used before."""
    return [
        HumanMessage("Try. «u1»"),
        turn(Said("", None, (Call(LONG_ID), Call("functions.weather:0")))),
        ToolMessage("long «r1»", tool_call_id=LONG_ID),
        ToolMessage("odd «r2»", tool_call_id="functions.weather:0"),
        turn(Said("", None, (Call("functions.weather:0"), Call("", "files.read")))),
        ToolMessage("again «r3»", tool_call_id="functions.weather:0"),
        ToolMessage("empty «r4»", tool_call_id=""),
        HumanMessage("And? «u2»"),
    ]


def broken_arguments(turn: Turn) -> list[BaseMessage]:
    return [
        HumanMessage("Try. «u1»"),
        turn(Said("So. «a1»", None, (Call("call_1", raw='{"city": "Os'), Call("call_2", args={"x": 1})))),
        ToolMessage("fine «r2»", tool_call_id="call_2"),
        ToolMessage("no JSON «r1»", tool_call_id="call_1", status="error"),
        HumanMessage("Again. «u2»"),
    ]


def server_tools(turn: Turn) -> list[BaseMessage]:
    """The vendor searched on its own servers, and cites what it found."""
    source = ("https://example.org/page", "A page")
    return [
        HumanMessage("Search. «u1»"),
        turn(Said("It says so. «a1»", "search first «secret»", (), source)),
        HumanMessage("Where does it say that? «u2»"),
    ]


def pictures(turn: Turn) -> list[BaseMessage]:
    """A picture and a document from the user, a picture in a tool's result, one that the model drew."""
    picture: dict[str, Any] = {"type": "image", "base64": _PNG64, "mime_type": "image/png"}
    pdf: dict[str, Any] = {"type": "file", "base64": _PDF64, "mime_type": "application/pdf", "filename": "a.pdf"}
    return [
        HumanMessage([{"type": "text", "text": "Look. «u1»"}, picture, pdf]),
        turn(Said("Drawn. «a1»", None, (Call("call_1", "plot"),), None, picture=True)),
        ToolMessage([{"type": "text", "text": "a plot «r1»"}, picture], tool_call_id="call_1"),
        HumanMessage([{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{_PNG64}"}}]),
    ]


def late_system(turn: Turn) -> list[BaseMessage]:
    """System messages where they may not be, with marks of one vendor's cache."""
    marked = {"type": "text", "text": "One. «s1»", "cache_control": {"type": "ephemeral"}}
    return [
        SystemMessage([marked]),
        SystemMessage("Two. «s2»"),
        HumanMessage([{"type": "text", "text": "Hello «u1»", "cache_control": {"type": "ephemeral"}}]),
        turn(Said("Hello! «a1»")),
        SystemMessage("Be brief now. «s3»"),
        HumanMessage("Who are you? «u2»"),
        ChatMessage(content="I am the critic. «u3»", role="critic"),
    ]


def odd_turns(turn: Turn) -> list[BaseMessage]:
    """Begins and ends with the assistant, turns that say nothing, speakers with names."""
    return [
        turn(Said("Welcome. «a1»")),
        turn(Said("What can I do? «a2»")),
        HumanMessage("Hi «u1»", name="Ann"),
        HumanMessage("and hi «u2»", name="Bob B."),
        turn(Said("")),
        HumanMessage("   "),
        turn(Said("Trailing blanks «a3»  \n")),
    ]


def failures(turn: Turn) -> list[BaseMessage]:
    """A failed tool, one that failed without a word, a refusal, and what a retry middleware wrote."""
    return [
        HumanMessage("Try. «u1»"),
        turn(Said("", "hm «secret»", (Call("call_1"), Call("call_2")))),
        ToolMessage("no such city «r1»", tool_call_id="call_1", status="error"),
        ToolMessage("", tool_call_id="call_2", status="error"),
        turn(Said("I will not. «a1»", None, (), None, refusal=True)),
        HumanMessage("Please. «u2»"),
        AIMessage("Model call failed after 3 attempts with APIError: «notice»"),
        HumanMessage("Once more. «u3»"),
    ]


HISTORIES: dict[str, Callable[[Turn], list[BaseMessage]]] = {
    f.__name__: f
    for f in (
        plain, tool_loop, running_loop, parallel, dangling, odd_ids, broken_arguments, server_tools, pictures,
        late_system, odd_turns, failures,
    )
}  # fmt: skip

DROPPED = {"«secret»", "«old»", "«orphan»", "«notice»"}
"""Marks that must not travel, or need not: foreign thoughts, results without a call, a middleware's notice."""
