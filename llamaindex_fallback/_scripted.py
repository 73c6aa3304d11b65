"""A scripted model that reads: it answers LlamaIndex's prompts, tools and schemas from what stands in the request.

It knows nothing: whatever it says was in the prompt. So an engine that loses the context, a tool's result or the
schema on the way gets a wrong answer from it, as it would from a real model.
"""

from __future__ import annotations

import ast
import base64
import json
import re
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from shared_core.testing import Answer, SeenRequest, ToolCall

__all__ = ["UNKNOWN", "read_and_answer"]

UNKNOWN = "The documents do not say."
"""What it answers when nothing in the request bears on the question."""

Json = Mapping[str, Any]


def read_and_answer(request: SeenRequest) -> Answer:
    """The answer to any request, on the wire of any vendor: a step for `FaultServer`.

    Where the conversation ends in the beginning of this very answer, only the rest of it is given.
    """
    talk = _Talk.of(request.body)
    if talk.schema is not None:
        return Answer(json.dumps(_filled(talk.schema, talk.question, talk.material), ensure_ascii=False))
    if calls := talk.calls():
        return Answer("", tool_calls=calls)
    return Answer(talk.words(), continue_from=True)


# ── reading the request ──────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class _Turn:
    role: str
    """'user' or 'assistant'; tool results are the user's."""
    text: str
    calls: tuple[tuple[str, Json], ...] = ()
    results: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Tool:
    name: str
    description: str
    schema: Json


_CONTINUE = "Your previous answer was cut off"
_TOOL_SCHEMAS = ("parameters", "input_schema", "parametersJsonSchema", "parameters_json_schema")


@dataclass(frozen=True, slots=True)
class _Talk:
    """A conversation, whatever wire it came on."""

    system: str
    turns: Sequence[_Turn]
    tools: Mapping[str, _Tool] = field(default_factory=dict)
    forced: str | None = None
    """A tool's name, 'any', or None."""
    several: bool = True
    """Whether it may call more than one tool at once."""
    schema: Json | None = None
    pictures: Sequence[bytes] = ()

    @classmethod
    def of(cls, body: Json) -> _Talk:
        system, turns = _turns(body)
        tools = {tool.name: tool for tool in _tools(body)}
        told = "\n".join([system, *(turn.text for turn in turns)])
        options = body.get("tool_choice")
        alone = body.get("parallel_tool_calls") is False or (
            isinstance(options, Mapping) and options.get("disable_parallel_tool_use") is True
        )
        schema = _schema(body)
        if schema is None and not tools and (asked := re.search(r"JSON schema[^\n]*:\s*(\{.*\})", told, re.DOTALL)):
            schema = _first_object(asked[1])
        return cls(system, turns, tools, _forced(body), not alone, schema, _pictures(body))

    @property
    def question(self) -> str:
        """What the user last said, apart from being asked to go on."""
        said = [t.text for t in self.turns if t.role == "user" and t.text and not t.text.startswith(_CONTINUE)]
        return said[-1] if said else ""

    @property
    def material(self) -> str:
        """All that was said, but for schemas and instructions."""
        told = [self.system, *(part for turn in self.turns for part in (turn.text, *turn.results))]
        kept = (re.split(r"Answer with one JSON object|Here's a JSON schema|You are an expert Q&A", t)[0] for t in told)
        return "\n".join(kept)

    @property
    def called(self) -> list[tuple[str, str]]:
        """The calls made so far and what came of them."""
        names = [name for turn in self.turns for name, _ in turn.calls]
        results = [result for turn in self.turns for result in turn.results]
        return list(zip(names, results, strict=False))

    # ── tools ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def calls(self) -> list[ToolCall]:
        """The tools to call now."""
        if not self.tools:
            return []
        if self.forced is not None and not (self.called and self.forced == "any"):
            tool = self.tools.get(self.forced) or self._fitting() or next(iter(self.tools.values()))
            return [ToolCall(tool.name, self._arguments(tool, forced=True))]
        done = {name for name, _ in self.called}
        wanted = [
            tool for tool in self.tools.values() if tool.name not in done and _mentioned(tool.name, self.question)
        ]
        if not wanted and not done and (handoff := self.tools.get("handoff")) is not None:
            return [ToolCall("handoff", {"to_agent": _agent(handoff.description, self.question), "reason": "It can."})]
        calls = [ToolCall(tool.name, self._arguments(tool)) for tool in wanted]
        return calls if self.several else calls[:1]

    def _fitting(self) -> _Tool | None:
        return next((tool for tool in self.tools.values() if _mentioned(tool.name, self.question)), None)

    def _arguments(self, tool: _Tool, *, forced: bool = False) -> dict[str, Any]:
        place = _mentioned(tool.name, self.question)
        told = _told(tool.schema, self.question, place)
        if not told.keys() >= set(tool.schema.get("required") or ()) or (forced and not place):
            filled = _filled(tool.schema, self.question, self.material)
            return filled if isinstance(filled, dict) else {}
        return told

    # ── words ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def words(self) -> str:
        """The answer in words, in the format that is asked for."""
        if "Action Input:" in self.system:
            return self._react()
        if "<execute>" in self.system:
            return self._code()
        question = self.question
        if self.pictures and "picture" in question:
            return f"The picture is {_colour(self.pictures[-1])}."
        if "passages above" in question:
            return self._permutation()
        for opening, answer in _FORMATS:
            if opening in question:
                return answer(question)
        if done := [(name, result) for name, result in self.called if name != "handoff"]:
            return "The results: " + ", ".join(f"{name} gave {result}" for name, result in done) + "."
        return _from(self.material, question)

    def _react(self) -> str:
        """The next step of a ReAct agent."""
        told = re.findall(r"> Tool Name: (\S+)\n.*?Tool Args: (\{.*?\})\n", self.system + "\n", re.DOTALL)
        tools = [_Tool(name, "", json.loads(schema)) for name, schema in told]
        said = "\n".join(turn.text for turn in self.turns)
        done = re.findall(r"Action: (\S+)", said)
        results = re.findall(r"Observation: (.+)", said)
        asked = next(turn.text for turn in self.turns if turn.role == "user")
        for tool in tools:
            if tool.name not in done and (place := _mentioned(tool.name, asked)):
                arguments = json.dumps(_told(tool.schema, asked, place))
                return f"Thought: I need to use a tool to help me.\nAction: {tool.name}\nAction Input: {arguments}"
        told_so = ", ".join(f"{name} gave {result}" for name, result in zip(done, results, strict=False))
        return f"Thought: I can answer without using any more tools.\nAnswer: The results: {told_so or 'none'}."

    def _code(self) -> str:
        """The next step of a CodeAct agent."""
        said = "\n".join(turn.text for turn in self.turns)
        if printed := re.findall(r"^\w+ gave \S+$", said.rpartition("Result of executing")[2], re.MULTILINE):
            return f"The results: {', '.join(printed)}."
        asked = next(turn.text for turn in self.turns if turn.role == "user")
        lines = []
        given = self.system.rpartition("you can use")[2]
        for name, parameters in re.findall(r"^def (\w+)\((.*?)\)", given, re.MULTILINE):
            if place := _mentioned(name, asked):
                told = {word: {"type": "integer"} for word in re.findall(r"(\w+):", parameters)}
                values = ", ".join(str(value) for value in _told({"properties": told}, asked, place).values())
                lines.append(f'print("{name} gave", {name}({values}))')
        return "\n".join(["<execute>", *lines, "</execute>"])

    def _permutation(self) -> str:
        """The passages of the conversation in the order of what they share with the query."""
        passages = [found for turn in self.turns for found in re.findall(r"^\[(\d+)\] (.+)$", turn.text, re.MULTILINE)]
        wanted = _stems(_between(self.question, "Search Query:", "\nRank"))
        passages.sort(key=lambda passage: -len(_stems(passage[1]) & wanted))
        return " > ".join(f"[{number}]" for number, _ in passages)


def _pictures(body: Json) -> list[bytes]:
    """The pictures of the conversation."""
    found = []
    for message in body.get("messages") or body.get("contents") or ():
        content = message.get("parts") or message.get("content") or ()
        for block in content if not isinstance(content, str) else ():
            told = (block.get("image_url") or {}).get("url", "").partition("base64,")[2]
            told = told or (block.get("source") or {}).get("data") or (block.get("inlineData") or {}).get("data")
            if told:
                found.append(base64.b64decode(told + "=" * (-len(told) % 4), altchars=b"-_" if "_" in told else None))
    return found


def _colour(picture: bytes) -> str:
    """The colour of the first dot of a PNG in true colour."""
    data, at = b"", 8
    while at < len(picture):
        size, kind = struct.unpack_from(">I4s", picture, at)
        data += picture[at + 8 : at + 8 + size] if kind == b"IDAT" else b""
        at += size + 12
    red, green, blue = zlib.decompress(data)[1:4]
    return "red" if red > max(green, blue) else "green" if green > blue else "blue"


def _turns(body: Json) -> tuple[str, list[_Turn]]:
    """The system's words, and the turns."""
    system = [_text(body.get("system")), _text((body.get("systemInstruction") or {}).get("parts"))]
    turns: list[_Turn] = []
    for message in body.get("messages") or body.get("contents") or ():
        role, content = message.get("role"), message.get("content")
        if role in ("system", "developer"):
            system.append(_text(content))
            continue
        blocks = [b for b in (message.get("parts") or content or ()) if isinstance(b, Mapping)]
        calls = [
            (c["function"]["name"], _arguments(c["function"]["arguments"])) for c in message.get("tool_calls") or ()
        ]
        calls += [(b["name"], b["input"]) for b in blocks if b.get("type") == "tool_use"]
        calls += [
            (b["functionCall"]["name"], b["functionCall"].get("args") or {}) for b in blocks if "functionCall" in b
        ]
        if role == "tool":
            turns.append(_Turn("user", "", results=(_text(content),)))
            continue
        results = [_text(b.get("content")) for b in blocks if b.get("type") == "tool_result"]
        results += [_response(b["functionResponse"]["response"]) for b in blocks if "functionResponse" in b]
        text = _text(blocks if not isinstance(content, str) else content)
        turns.append(_Turn("user" if role == "user" else "assistant", text, tuple(calls), tuple(results)))
    return "\n".join(filter(None, system)), turns


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "".join(block["text"] for block in content or () if isinstance(block, Mapping) and "text" in block)


def _response(value: Json) -> str:
    """Gemini's tool results are objects; a plain one has a single member."""
    return str(next(iter(value.values()))) if len(value) == 1 else json.dumps(value)


def _arguments(text: str) -> Json:
    return json.loads(text) if text else {}


def _tools(body: Json) -> Iterator[_Tool]:
    for tool in body.get("tools") or ():
        for told in tool.get("functionDeclarations") or [tool.get("function") or tool]:
            schema: Json = next((told[name] for name in _TOOL_SCHEMAS if name in told), {})
            yield _Tool(told["name"], told.get("description") or "", schema)


def _forced(body: Json) -> str | None:
    choice = body.get("tool_choice") or (body.get("toolConfig") or {}).get("functionCallingConfig") or {}
    if choice in ("required", "any"):
        return "any"
    if isinstance(choice, str):
        return None
    if choice.get("type") == "any" or choice.get("mode") == "ANY":
        return str(next(iter(choice.get("allowedFunctionNames") or ("any",))))
    if choice.get("type") in ("function", "tool"):
        return str((choice.get("function") or choice)["name"])
    return None


def _schema(body: Json) -> Json | None:
    config = body.get("generationConfig") or {}
    if config.get("responseMimeType") == "application/json":
        wanted: Json = config.get("responseJsonSchema") or config.get("responseSchema") or {}
        return wanted
    asked = body.get("response_format") or (body.get("output_config") or {}).get("format")
    if not asked:
        return None
    told: Json = (asked.get("json_schema") or asked).get("schema") or {}
    return told


def _first_object(text: str) -> Json | None:
    try:
        value, _ = json.JSONDecoder().raw_decode(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


# ── understanding it ─────────────────────────────────────────────────────────────────────────────────────────────────

_COMMON = frozenset(
    re.findall(
        r"\w+",
        "a an and are as at be by can could did do does for from give has have how i in is it its long many me much my "
        "no of on or please say tell that the their them then there they this to was what when where which who will "
        "with would you your query question answer",
    )
)
_NUMBERS = {
    "zero": 0, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9,
    "ten": 10, "eleven": 11, "twelve": 12,
}  # fmt: skip
_NUMBER = r"(?:\d+|" + "|".join(_NUMBERS) + r")\b"


def _stems(text: str) -> set[str]:
    return {w.removesuffix("s")[:5] for w in re.findall(r"[^\W_]+", text.lower()) if w not in _COMMON and len(w) > 1}


def _number(word: str) -> int:
    return _NUMBERS[word.lower()] if word.lower() in _NUMBERS else int(word)


def _sentences(text: str) -> list[str]:
    """Sentences, without the marks of lists and headings and the names that engines put in front."""
    found = []
    for line in re.split(r"(?<=[.!?])\s+|\n+", text):
        line = re.sub(r"^(?:Response|Original Answer|New Context|[#*>\-\s]+):?\s*", "", line.strip())
        if re.match(r"(?:Sub question|Query|Question|file_path|page_label)\b", line) or line.endswith(("?", ":")):
            continue
        if len(line.split()) > 2 and line.endswith((".", "!")):
            found.append(line)
    return found


def _parts(question: str) -> list[str]:
    """Its clauses: each is answered by itself."""
    found = [part.strip() for part in re.split(r"\band\b|[,;?]", question) if _stems(part)]
    return found or [question]


def _best(material: str, question: str) -> tuple[int, str]:
    """The sentence that shares most with the question, and how much."""
    scored = [(len(_stems(one) & _stems(question)), one) for one in _sentences(material)]
    return max(scored, key=lambda pair: pair[0], default=(0, ""))


def _from(material: str, question: str) -> str:
    """What the material says to each part of the question."""
    found = dict.fromkeys(one for score, one in (_best(material, part) for part in _parts(question)) if score)
    return " ".join(found) or UNKNOWN


def _mentioned(name: str, text: str) -> int:
    """Where the text speaks of what has this name, counted from 1; 0 if it does not."""
    for word in re.split(r"[_\W]+", name):
        if word.lower() not in _COMMON and (found := re.search(rf"\b{re.escape(word)}", text, re.IGNORECASE)):
            return found.start() + 1
    return 0


def _told(schema: Json, question: str, place: int) -> dict[str, Any]:
    """A call's arguments: the numbers and names that follow where the question speaks of the tool."""
    rest = question[place:]
    numbers = iter(re.findall(_NUMBER, rest, re.IGNORECASE))
    names = iter(re.findall(r"\b[A-Z]\w+", rest))
    arguments: dict[str, Any] = {}
    for name, inner in (schema.get("properties") or {}).items():
        kind = str(inner.get("type", "string")).lower()
        value = next(numbers, None) if kind in ("integer", "number") else next(names, question)
        if value is not None:
            arguments[name] = _number(value) if kind in ("integer", "number") else value
    return arguments


def _agent(description: str, question: str) -> str:
    """Of the agents that a hand-off names, the one whose description fits the question best."""
    named = re.search(r"\{.*\}", description, re.DOTALL)
    agents: dict[str, str] = ast.literal_eval(named[0]) if named else {}
    return max(agents, key=lambda name: len(_stems(agents[name]) & _stems(question)), default="")


def _filled(schema: Json, question: str, material: str, *, name: str = "", root: Json | None = None) -> Any:
    """A value of the schema, taken from the material."""
    root = schema if root is None else root
    if "$ref" in schema:
        target: Any = root
        for key in schema["$ref"].removeprefix("#/").split("/"):
            target = target[key]
        return _filled(target, question, material, name=name, root=root)
    if "anyOf" in schema:
        schema = {**schema, **next(s for s in schema["anyOf"] if s.get("type") != "null")}
        return _filled({k: v for k, v in schema.items() if k != "anyOf"}, question, material, name=name, root=root)
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        fits = [v for v in schema["enum"] if str(v).lower() in material.lower() or _mentioned(str(v), material)]
        return [*fits, *schema["enum"]][0]
    about = f"{name} {schema.get('description', '')}"
    match str(schema.get("type", "object" if "properties" in schema else "string")).lower():
        case "object":
            properties = schema.get("properties") or {}
            return {n: _filled(s, question, material, name=n, root=root) for n, s in properties.items()}
        case "integer" | "number":
            if (choice := _choice(question)) and name == "index":
                return choice[0]
            return _figure(name, about, material)
        case "boolean":
            return bool(_stems(about) & _stems(material))
        case "array":
            inner = schema.get("items") or {}
            if name == "triplets":
                return [_triplet(one, inner, root) for one in _sentences(material.split("-------")[1])]
            if name == "documents":
                scored = _relevant(question)
                return [{"document_number": int(number), "relevance": score} for score, number in scored]
            if (choice := _choice(question)) and name == "selections":
                return [_filled(inner, question, material, root=root)]
            sentences = [one for one in _sentences(material) if re.search(_NUMBER, one)] or _sentences(material)
            return [_filled(inner, question, one, name=name, root=root) for one in sentences[:3]]
        case _:
            if (choice := _choice(question)) and name == "reason":
                return choice[1]
            return _best(material, about)[1] or _from(material, question)


def _triplet(sentence: str, schema: Json, root: Json) -> dict[str, Any]:
    """Subject, relation and object of a sentence, in the schema of a graph."""
    said = dict(zip(("subject", "relation", "object"), _parsed(sentence), strict=True))
    filled: dict[str, Any] = _filled(schema, "", sentence, root=root)
    for part, told in filled.items():
        if "name" in told:
            told["name"] = said[part]
    return filled


def _parsed(sentence: str) -> tuple[str, str, str]:
    """Its subject, what it says of it, and its last word."""
    words = re.sub(r"^The ", "", sentence).strip(".!").split()
    return words[0], " ".join(words[1:-1]), words[-1]


def _figure(name: str, about: str, material: str) -> int:
    """The number that the material last gives for this name, for its description, or at all."""
    for word in re.findall(r"[^\W_]+", f"{name} {about}".lower()):
        stem = re.escape(word.removesuffix("s")[:5])
        if word in _COMMON or len(word) < 3:
            continue
        if found := re.findall(rf"\b{stem}[^.?!\n]*?\b({_NUMBER})", material, re.IGNORECASE):
            return _number(found[-1])
    found = re.findall(rf"\b{_NUMBER}", material, re.IGNORECASE)
    return _number(found[0]) if found else 0


# ── LlamaIndex's own formats ─────────────────────────────────────────────────────────────────────────────────────────


def _choice(prompt: str) -> tuple[int, str] | None:
    """Of numbered choices the best, and why; None if the prompt has none."""
    if "Some choices are given below" not in prompt:
        return None
    choices = re.findall(r"^\((\d+)\) (.+)$", prompt, re.MULTILINE)
    asked = re.search(r"question: '(.*)'", prompt)
    wanted = _stems(asked[1] if asked else "")
    number, text = max(choices, key=lambda choice: len(_stems(choice[1]) & wanted))
    return int(number), f"It is about {text[0].lower()}{text[1:]}".rstrip(".")


def _chosen(prompt: str) -> str:
    number, why = _choice(prompt) or (1, "")
    return json.dumps([{"choice": number, "reason": why}])


def _between(text: str, start: str, end: str = "") -> str:
    """What stands after the last `start` and before the `end` that follows it."""
    rest = text.rpartition(start)[2]
    return (rest.partition(end)[0] if end else rest).strip()


def _asked(prompt: str) -> str:
    return _from(_between(prompt, "is below.\n", "Given the "), _between(prompt, "Query: ", "Answer:"))


def _asked_of_several(prompt: str) -> str:
    return _from(_between(prompt, "sources is below.\n", "Given the "), _between(prompt, "Query: ", "Answer:"))


def _refined(prompt: str) -> str:
    """The old answer, and what the new context adds to it, part by part of the question."""
    question = _between(prompt, "Query: ", "Original Answer:")
    old = _between(prompt, "Original Answer:", "New Answer:")
    new = _between(prompt, "New Context:", "Query: ")
    known = "" if old == UNKNOWN else old
    told = _from(f"{known}\n{new}", question)
    return told if told != UNKNOWN else old


def _reranked(prompt: str) -> str:
    ranked = _relevant(prompt)
    return "\n".join(f"Doc: {number}, Relevance: {score}" for score, number in ranked) or "None."


def _relevant(prompt: str) -> list[tuple[int, str]]:
    """How much each numbered document has to do with the question, the best first; those that do not are left out."""
    question = _between(prompt, "Question: ", "Answer:")
    told = _between(prompt, "Let's try this now:", "Question:")
    documents = re.findall(r"Document (\d+):\s*(.*?)(?=\nDocument \d+:|\Z)", told, re.DOTALL)
    scored = [(min(10, 3 * len(_stems(text) & _stems(question))), number) for number, text in documents]
    return sorted((pair for pair in scored if pair[0]), reverse=True)


def _triplets(prompt: str) -> str:
    told = _between(prompt, "\nText: ", "\nTriplets:")
    return "\n".join(f"({', '.join(_parsed(one))})" for one in _sentences(told))


def _typed_triplets(prompt: str) -> str:
    found = [_parsed(one) for one in _sentences(_between(prompt, "\nText: ", "\nOutput:"))]
    keys = ("head", "head_type", "relation", "tail", "tail_type")
    return json.dumps([dict(zip(keys, (s, "THING", r, o, "THING"), strict=True)) for s, r, o in found])


def _situated(prompt: str) -> str:
    told = _sentences(_between(prompt, "<chunk>", "</chunk>"))
    return f"It says what is known about {' '.join(told[0].split()[:2]) if told else 'nothing'}."


def _standalone(prompt: str) -> str:
    """The follow-up question with the thing it is about in place of 'it'."""
    if "<Follow Up Message>" in prompt:
        follow = _between(prompt, "<Follow Up Message>\n", "<Standalone question>")
        history = _between(prompt, "<Chat History>", "<Follow Up Message>")
    else:
        follow = _between(prompt, "Follow Up Input:", "Standalone question:")
        history = _between(prompt, "Chat History:", "Follow Up Input:")
    follow = re.sub(r"^And (\w)", lambda m: m[1].upper(), follow)
    thing = re.search(r"\bthe (\w+)", history, re.IGNORECASE)
    return re.sub(r"\bit\b", f"the {thing[1]}", follow) if thing else follow


def _sub_questions(prompt: str) -> str:
    tools: dict[str, str] = json.loads(_between(prompt, "<Tools>\n```json\n", "```"))
    question = _between(prompt, "<User Question>\n", "<Output>")
    items = []
    for name, description in tools.items():
        parts = sorted(_parts(question), key=lambda part: -len(_stems(part) & _stems(description)))
        if parts and _stems(parts[0]) & _stems(description):
            items.append({"sub_question": f"{parts[0][0].upper()}{parts[0][1:]}?", "tool_name": name})
    return f"```json\n{json.dumps({'items': items}, indent=4)}\n```"


def _keywords(prompt: str) -> str:
    asked = re.search(r"Give (\d+) unique keywords", prompt)
    words = dict.fromkeys(re.findall(r"[^\W\d_]{4,}", prompt.partition(". Give ")[0]))
    return ", ".join(sorted(words, key=len, reverse=True)[: int(asked[1]) if asked else 5])


def _title(prompt: str) -> str:
    told = _sentences(_between(prompt, "Context:", "Give a title"))
    words = re.findall(r"\w{4,}", told[0] if told else prompt)
    return "On " + " ".join(word.capitalize() for word in words[:3])


def _title_of_titles(prompt: str) -> str:
    return prompt.partition(". Based on the above")[0].split(", ")[0]


def _questions(prompt: str) -> str:
    asked = re.search(r"generate (\d+) questions", prompt)
    told = _sentences(_between(prompt, "Here is the context:", "Given the contextual"))[: int(asked[1]) if asked else 1]
    subjects = (" ".join(one.rstrip(".").split()[:3]) for one in told)
    return "\n".join(f"{number}. What is said about {what!r}?" for number, what in enumerate(subjects, 1))


def _summary(prompt: str) -> str:
    told = _sentences(_between(prompt, "content of the section:", "Summarize"))
    return told[0] if told else UNKNOWN


_FORMATS = (
    ("Some choices are given below", _chosen),
    ("a list of relevant sub-questions", _sub_questions),
    ("Let's try this now:", _reranked),
    ("tandalone question", _standalone),
    ("unique keywords", _keywords),
    ("Based on the above candidate titles", _title_of_titles),
    ("Give a title that summarizes", _title),
    ("this context can provide", _questions),
    ("Summarize the key topics", _summary),
    ("knowledge triplets in the form of", _triplets),
    ("knowledge triplets from the given text", _typed_triplets),
    ("situate within the whole document", _situated),
    ("Original Answer:", _refined),
    ("from multiple sources is below", _asked_of_several),
    ("Context information is below", _asked),
)
"""What a prompt of LlamaIndex's is known by, and how it is answered."""
