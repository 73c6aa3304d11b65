"""What the agent tests share: targets, states of the world, tools that count, and a script that works like a model.

The script is the same model at every vendor: whoever answers, the same conversation gets the same answer. So an agent
whose model was swapped, or whose vendors take turns, must come to the same end as one with a single healthy model.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

from langchain.agents import create_agent
from langchain_anthropic import ChatAnthropic
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI
from pydantic import SecretStr

from langchain_fallback import FallbackChatModel, LangChainProvider
from shared_core import Timeouts
from shared_core.routing.target import Target
from shared_core.testing import Answer, Fault, FaultServer, SeenRequest, ToolCall
from shared_core.testing.fault_server import cut, cut_tool, hang, overload

__all__ = [
    "BROKEN",
    "CLAUDE",
    "DONE",
    "DOWN",
    "FACES",
    "GEMINI",
    "GPT",
    "HALF_CALL",
    "MIXTURES",
    "OVERLOADED",
    "QUICK",
    "SAID",
    "SILENT",
    "STATES",
    "TASK",
    "WELL",
    "Tools",
    "World",
    "agent_of",
    "check_pairs",
    "check_wire",
    "final",
    "like_an_agent",
    "make",
    "named",
    "read",
    "run",
    "streamed",
    "task",
]

GPT = "gpt-5-mini"
CLAUDE = "claude-sonnet-4-5"
GEMINI = "gemini-2.5-flash"
KEY = "sk-test-0123456789abcdef"
FACES = ("invoke", "stream", "ainvoke", "astream")


# ── targets ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def make(server: FaultServer, kind: str, **limits: Any) -> Target | BaseChatModel:
    """A target by its short name: 'gpt', 'claude', 'gemini' natively, 'ChatOpenAI' and so on as ready models.

    `limits` are those of a target; a ready model takes none.
    """
    match kind:
        case "gpt":
            return Target(f"openai:{GPT}", base_url=server.openai_url, api_key=KEY, **limits)
        case "claude":
            return Target(f"anthropic:{CLAUDE}", base_url=server.anthropic_url, api_key=KEY, **limits)
        case "gemini":
            return Target(f"google:{GEMINI}", base_url=server.google_url, api_key=KEY, **limits)
        case "ChatOpenAI":
            return ChatOpenAI(model=GPT, base_url=server.openai_url, api_key=SecretStr(KEY))
        case "ChatAnthropic":
            return ChatAnthropic(
                model_name=CLAUDE, base_url=server.anthropic_url, api_key=SecretStr(KEY), timeout=None, stop=None
            )
        case "ChatGoogle":
            from langchain_google_genai import ChatGoogleGenerativeAI

            return ChatGoogleGenerativeAI(model=GEMINI, base_url=server.google_url, api_key=SecretStr(KEY))
    raise ValueError(kind)


MODEL_OF = {
    "gpt": GPT,
    "claude": CLAUDE,
    "gemini": GEMINI,
    "ChatOpenAI": GPT,
    "ChatAnthropic": CLAUDE,
    "ChatGoogle": GEMINI,
}
MIXTURES = tuple(
    mixture
    for mixture in (
        "gpt, claude",
        "gemini, gpt",
        "ChatAnthropic, ChatOpenAI",
        "ChatGoogle, claude",
        "claude, ChatGoogle",
    )
    if "ChatGoogle" not in mixture or find_spec("langchain_google_genai")  # the newest SDKs leave it out
)
"""Primary and fallback: every kind of target is once the one that breaks or the one that takes over."""

WELL, DOWN, SILENT, OVERLOADED, BROKEN, HALF_CALL = "well", "503", "silent", "overloaded", "cut", "cut in a call"
STATES = (WELL, DOWN, SILENT, OVERLOADED, BROKEN, HALF_CALL)

QUICK = Timeouts(first_token=0.25, reasoning_first_token=0.25, idle=0.25, attempt=0.25)
"""Limits of a silent primary. What answers on loopback does so in a few milliseconds, on a busy machine in more; the
backup, which answers for those that come too late, has the usual time."""


def _troubles(state: str, streamed: bool, script: Callable[[SeenRequest], Any]) -> Any:
    """What the primary's script says in `state`. What cannot befall a whole answer has a nearest relation there."""
    match state:
        case "well":
            return script
        case "503":
            return 503
        case "silent":
            return [script, hang(), script]  # once, in the middle of the task: each silence costs real time
        case "overloaded":
            return overload(answer=script) if streamed else "overloaded"
        case "cut":
            return cut(after_words=3, answer=script)
        case "cut in a call":
            half = cut_tool(answer=script) if streamed else Fault("truncated-json", answer=script)
            return [half, half, script]
    raise ValueError(state)


@dataclass
class World:
    """A fault server, a model over two targets on it, and the way in which the first of them is broken."""

    server: FaultServer
    mixture: str = MIXTURES[0]
    state: str = WELL
    face: str = "invoke"
    options: dict[str, Any] = field(default_factory=dict)
    script: Callable[[SeenRequest], Any] | None = None

    def __post_init__(self) -> None:
        kinds = self.mixture.split(", ")
        self.primary, self.backup = (MODEL_OF[kind] for kind in kinds)
        self.answers = self.script or like_an_agent
        self.server.default = self.answers
        self.server.script(self.primary, _troubles(self.state, "stream" in self.face, self.answers))
        limits: dict[str, Any] = {"timeouts": QUICK} if self.state == SILENT else {}
        first, second = make(self.server, kinds[0], **limits), make(self.server, kinds[1])
        if limits and not isinstance(first, Target):
            first = Target(provider=LangChainProvider(first), **limits)
        models = [first, second]
        self.model = FallbackChatModel(models=models, **{"max_retries": 0, **self.options})

    def flip_flop(self, calls: int = 12) -> None:
        """From now on the primary answers every other request and is down for the rest."""
        self.server.script(self.primary, [self.answers, 503] * (calls // 2))


def named(value: object) -> str:
    """A parameter in a test's name."""
    return str(value).replace(", ", "-").replace(" ", "_")


# ── tools that count ─────────────────────────────────────────────────────────────────────────────────────────────────


class Tools:
    """Two tools, and a note of every time one of them ran."""

    def __init__(self) -> None:
        self.ran: list[str] = []

    def functions(self) -> list[Callable[..., str]]:
        """The tools, as plain functions."""

        def get_weather(city: str) -> str:
            """Get the weather of a city."""
            self.ran.append(f"get_weather({city})")
            return f"{city} is sunny"

        def send_mail(to: str) -> str:
            """Send somebody the result."""
            self.ran.append(f"send_mail({to})")
            return f"sent to {to}"

        return [get_weather, send_mail]

    @property
    def times(self) -> Counter[str]:
        """How often each call was executed."""
        return Counter(self.ran)


TASK = "get_weather(Bern) get_weather(Oslo) then send_mail(Ann)"
"""A task in the script's own language: two calls side by side, then a third, then an answer in words."""
DONE = Counter({"get_weather(Bern)": 1, "get_weather(Oslo)": 1, "send_mail(Ann)": 1})
SAID = "All of it is done for you: Bern is sunny, Oslo is sunny, sent to Ann."
"""What every vendor says at the end of `TASK`."""


def agent_of(model: Any, tools: Any = None, **options: Any) -> Any:
    """`create_agent`, whose many overloads would otherwise have to be told apart at every call."""
    return create_agent(model, tools, **options)


def task(text: str = TASK) -> dict[str, Any]:
    """What an agent is asked."""
    return {"messages": [HumanMessage(text)]}


def streamed(face: str) -> dict[str, Any]:
    """The keywords that make a streamed face give `final` what it needs."""
    return {"stream_mode": ["values", "messages"]} if "stream" in face else {}


def final(face: str, out: Any) -> dict[str, Any]:
    """The last state, whole or streamed; in a stream, the tokens under each message's id add up to the message."""
    if "stream" not in face:
        state: dict[str, Any] = out
        return state
    state = [value for mode, value in out if mode == "values"][-1]
    tokens: dict[Any, str] = {}
    for mode, value in out:
        if mode == "messages" and isinstance(value[0], AIMessage):
            tokens[value[0].id] = tokens.get(value[0].id, "") + value[0].text
    said = {m.id: m.text for m in state["messages"] if isinstance(m, AIMessage)}
    assert tokens == {id_: text for id_, text in said.items() if id_ in tokens}, "each token once"
    assert list(tokens) == list(said)[-len(tokens) :], "each message under an id of its own, and none left out"
    return state


# ── running ──────────────────────────────────────────────────────────────────────────────────────────────────────────


async def run(graph: Any, face: str, given: Any, config: Any = None, **kwargs: Any) -> Any:
    """The final state; streamed faces drain `stream_mode="values"` or the one asked for, and return all items."""
    if face == "invoke":
        return graph.invoke(given, config, **kwargs)
    if face == "ainvoke":
        return await graph.ainvoke(given, config, **kwargs)
    if face == "stream":
        return list(graph.stream(given, config, **kwargs))
    return [item async for item in graph.astream(given, config, **kwargs)]


# ── what the wire saw ────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Turn:
    """One turn of a conversation, read from any wire."""

    role: str
    text: str = ""
    calls: list[tuple[str, str]] = field(default_factory=list)
    """Id (or name, where the wire has no ids) and name."""
    results: list[tuple[str, str]] = field(default_factory=list)
    """Id (or name) and text."""


@dataclass
class Read:
    """A request in nobody's dialect."""

    turns: list[Turn]
    system: str
    tools: dict[str, Mapping[str, Any]]
    forced: str | None
    """'any', a tool's name, or None."""
    schema: Mapping[str, Any] | None


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    parts = [p if isinstance(p, str) else p.get("text") or "" for p in content or ()]
    return "".join(parts)


def _openai(body: Mapping[str, Any]) -> Read:
    turns: list[Turn] = []
    system = ""
    for message in body["messages"]:
        role = message["role"]
        if role in ("system", "developer"):
            system += _text(message["content"])
        elif role == "tool":
            turns.append(Turn("tool", results=[(message["tool_call_id"], _text(message["content"]))]))
        else:
            calls = [(c["id"], c["function"]["name"]) for c in message.get("tool_calls") or ()]
            turns.append(Turn(role, _text(message.get("content")), calls))
    tools = {t["function"]["name"]: t["function"].get("parameters") or {} for t in body.get("tools") or ()}
    choice = body.get("tool_choice")
    forced = "any" if choice == "required" else choice["function"]["name"] if isinstance(choice, Mapping) else None
    asked = body.get("response_format") or {}
    schema = (asked.get("json_schema") or {}).get("schema") if asked.get("type") == "json_schema" else None
    return Read(turns, system, tools, forced, schema)


def _anthropic(body: Mapping[str, Any]) -> Read:
    turns: list[Turn] = []
    for message in body["messages"]:
        turn = Turn(message["role"])
        content = message["content"]
        for block in [{"type": "text", "text": content}] if isinstance(content, str) else content:
            if block["type"] == "text":
                turn.text += block["text"]
            elif block["type"] == "tool_use":
                turn.calls.append((block["id"], block["name"]))
            elif block["type"] == "tool_result":
                turn.results.append((block["tool_use_id"], _text(block.get("content"))))
        if turn.results and not turn.text:
            turn.role = "tool"
        turns.append(turn)
    tools = {t["name"]: t.get("input_schema") or {} for t in body.get("tools") or ()}
    choice = body.get("tool_choice") or {}
    forced = "any" if choice.get("type") == "any" else choice.get("name")
    schema = ((body.get("output_config") or {}).get("format") or {}).get("schema")
    return Read(turns, _text(body.get("system")), tools, forced, schema)


def _google(body: Mapping[str, Any]) -> Read:
    turns: list[Turn] = []
    for content in body["contents"]:
        turn = Turn({"model": "assistant"}.get(content.get("role"), "user"))
        for part in content["parts"]:
            turn.text += part.get("text") or ""
            if call := part.get("functionCall"):
                turn.calls.append((call.get("id") or call["name"], call["name"]))
            if answer := part.get("functionResponse"):
                said = answer["response"]
                text = said.get("output", said.get("result", said)) if isinstance(said, Mapping) else said
                turn.results.append((answer.get("id") or answer["name"], text if isinstance(text, str) else str(text)))
        if turn.results and not turn.text:
            turn.role = "tool"
        turns.append(turn)
    tools: dict[str, Any] = {}
    for tool in body.get("tools") or ():
        for one in tool.get("functionDeclarations") or ():
            keys = ("parameters_json_schema", "parametersJsonSchema", "parameters")
            tools[one["name"]] = next((one[k] for k in keys if one.get(k)), {})
    calling = (body.get("toolConfig") or {}).get("functionCallingConfig") or {}
    names: list[str] = calling.get("allowedFunctionNames") or []
    forced = (names[0] if len(names) == 1 else "any") if calling.get("mode") == "ANY" else None
    config = body.get("generationConfig") or {}
    schema = next(
        (config[k] for k in ("responseJsonSchema", "response_json_schema", "responseSchema") if k in config), None
    )
    system = _text((body.get("systemInstruction") or {}).get("parts"))
    return Read(turns, system, tools, forced, schema)


_READERS = {"openai": _openai, "anthropic": _anthropic, "google": _google}


def read(seen: SeenRequest) -> Read:
    """The request a fault server saw, in nobody's dialect."""
    return _READERS[seen.wire](seen.body)


# ── the model ────────────────────────────────────────────────────────────────────────────────────────────────────────

_RESUMED = "was cut off by a technical fault"
_CALL = re.compile(r"(\w+)\(([^()]*)\)")


def like_an_agent(seen: SeenRequest) -> Answer:
    """Works through the last task: makes its calls round by round, then says or fills in what came of them."""
    asked = read(seen)
    turns = list(asked.turns)
    resumed = _RESUMED in turns[-1].text
    if resumed:
        turns = turns[:-2]
    elif turns[-1].role == "assistant":
        turns = turns[:-1]  # a prefill: the server itself goes on after it
    start = max(i for i, turn in enumerate(turns) if turn.role == "user")
    wanted, since = turns[start].text, turns[start + 1 :]
    results = [text for turn in since for _, text in turn.results]
    rounds = [[call for call in _CALL.findall(part) if call[0] in asked.tools] for part in wanted.split(" then ")]
    rounds = [calls for calls in rounds if calls]
    made = sum(bool(turn.calls) for turn in since)
    if made < len(rounds):
        calls = [ToolCall(name, _one_argument(asked.tools[name], value)) for name, value in rounds[made]]
        return Answer(f"Let me do step {made + 1} for you.", tool_calls=calls, continue_from=resumed)
    if asked.forced is not None and asked.tools:
        named = {name for calls in rounds for name, _ in calls} | {"get_weather", "send_mail"}
        others = [name for name in asked.tools if name not in named] or list(asked.tools)
        name = others[0] if asked.forced == "any" else asked.forced
        return Answer("", tool_calls=[ToolCall(name, example(asked.tools[name], wanted))])
    if asked.schema is not None:
        return Answer(json.dumps(example(asked.schema, wanted), ensure_ascii=False), continue_from=resumed)
    done = (
        f"All of it is done for you: {', '.join(results)}." if results else f"You said to me that {wanted!r}, no more."
    )
    return Answer(done, continue_from=resumed)


def _one_argument(schema: Mapping[str, Any], value: str) -> dict[str, Any]:
    names = list(schema.get("properties") or {})
    return {names[0]: value} if names else {}


def example(schema: Mapping[str, Any], task: str, root: Mapping[str, Any] | None = None) -> Any:
    """Something that fits `schema`; out of a list of choices, those that the task names."""
    root = root or schema
    if ref := schema.get("$ref"):
        found: Any = root
        for step in ref.removeprefix("#/").split("/"):
            found = found[step]
        return example(found, task, root)
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return next((v for v in schema["enum"] if str(v) in task), schema["enum"][0])
    if choices := schema.get("anyOf") or schema.get("oneOf"):
        named = [c for c in choices if "const" in c and str(c["const"]) in task]
        return example((named or choices)[0], task, root)
    kind = str(schema.get("type") or "string").lower()
    if kind == "object":
        return {name: example(inner, task, root) for name, inner in (schema.get("properties") or {}).items()}
    if kind == "array":
        items = schema.get("items") or {}
        if found := str(items.get("type")).lower() == "string" and _CALL.findall(task):
            return [found[0][0]]  # ChatGoogleGenerativeAI leaves the choices out; the task says what is meant
        return [example(items, task, root)]
    if kind in ("integer", "number"):
        return 7
    if kind == "boolean":
        return True
    return "sunny all day, they say"


# ── invariants ───────────────────────────────────────────────────────────────────────────────────────────────────────


def check_wire(server: FaultServer) -> None:
    """Every request that was sent is one the vendor would take: calls and results pair up, ids are unique, no marks."""
    for seen in server.requests:
        turns = read(seen).turns
        assert turns, "an empty conversation"
        ids: list[str] = []
        waiting: list[str] = []
        for turn in turns:
            if turn.role == "tool" or turn.results:
                for key, _ in turn.results:
                    assert key in waiting, f"{seen.wire}: a result for {key!r}, which nobody asked for"
                    waiting.remove(key)
            else:
                assert not waiting, f"{seen.wire}: {waiting} never answered before a {turn.role} turn"
            if turn.calls:
                waiting = [key for key, _ in turn.calls]
                if seen.wire != "google":  # where an id may be left out, the name stands in for it
                    ids += waiting
        assert not waiting, f"{seen.wire}: {waiting} never answered"
        assert len(ids) == len(set(ids)), f"{seen.wire}: call ids repeat: {ids}"
        if seen.wire == "anthropic":
            assert all(re.fullmatch(r"[A-Za-z0-9_-]+", key) for key in ids), ids
            roles = [m["role"] for m in seen.body["messages"]]
            assert roles[0] == "user", roles
        else:
            assert "cache_control" not in json.dumps(seen.body), f"{seen.wire} was sent Anthropic's cache marks"


def check_pairs(messages: Sequence[BaseMessage]) -> None:
    """In a state's messages each call has one id of its own and exactly one result."""
    calls = [call["id"] for m in messages if isinstance(m, AIMessage) for call in m.tool_calls]
    results = [m.tool_call_id for m in messages if isinstance(m, ToolMessage)]
    assert len(calls) == len(set(calls)), f"call ids repeat: {calls}"
    assert sorted(map(str, calls)) == sorted(results), f"calls {calls}, results {results}"
    assert not any(m.invalid_tool_calls for m in messages if isinstance(m, AIMessage)), "half a tool call"
    ids = [m.id for m in messages]
    assert len(ids) == len(set(ids)), "message ids repeat"
