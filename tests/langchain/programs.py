"""The programs of docs/langchain.md, and the little world they run in: three vendors, and one model behind all of them.

    python -m tests.langchain.programs     run every program and write what it prints under it

A program is a Python block of the page behind a comment that names it; the block after it is what it prints:

    <!-- program: NAME -->
    ```python
    ...
    ```

    ```text
    ...
    ```

`(own models)` behind the name says that it builds its models itself, and does not use the page's `model`.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import re
import sys
import tempfile
import textwrap
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from langchain_fallback import FallbackChatModel
from shared_core import RetryPolicy
from shared_core.testing import Answer, Fault, FaultServer, SeenRequest, ToolCall
from shared_core.testing.fault_server import Usage, cut, cut_tool
from tests.langchain.agent_script import Read, Turn, read
from tests.langchain.cells import CLAUDE, GEMINI, GPT, KEY, wrapped

__all__ = ["MIXTURES", "PAGE", "STATES", "Program", "World", "programs", "small_model"]

PAGE = Path(__file__).parents[2] / "docs" / "langchain.md"

_PROGRAM = re.compile(
    r"^<!-- program: (?P<name>[\w-]+)(?P<own> \(own models\))? -->\n"
    r"```python\n(?P<source>.*?)^```\n\n"
    r"```text\n(?P<output>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True)
class Program:
    """One program of the page. `output` is what the page says it prints; `own` that it builds its models itself."""

    name: str
    line: int
    source: str
    output: str
    own: bool

    def run(self, model: FallbackChatModel) -> str:
        """What it prints, with `model` as the page's model. Closes that, and those it makes itself.

        Raises:
            Exception: whatever the program raises.
        """
        # Without this module's `from __future__`, which would turn the annotations of its classes into strings.
        code = compile("\n" * (self.line - 1) + self.source, str(PAGE), "exec", dont_inherit=True)
        session: dict[str, Any] = {"__name__": "program", "model": model}
        try:
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                exec(code, session)
        finally:
            for value in session.values():
                if isinstance(value, FallbackChatModel):
                    value.close()
        return printed.getvalue()


def programs() -> list[Program]:
    """Every program of the page, in order."""
    text = PAGE.read_text(encoding="utf-8")
    return [
        Program(
            found["name"],
            text.count("\n", 0, found.start("source")) + 1,
            found["source"],
            found["output"],
            found["own"] is not None,
        )
        for found in _PROGRAM.finditer(text)
    ]


# ── the world ────────────────────────────────────────────────────────────────────────────────────────────────────────

Kind = Literal["native", "wrapped"]
MIXTURES: Mapping[str, tuple[Kind, tuple[str, ...]]] = {
    "openai-anthropic-google": ("native", (GPT, CLAUDE, GEMINI)),
    "anthropic-google-openai": ("native", (CLAUDE, GEMINI, GPT)),
    "google-openai-anthropic": ("native", (GEMINI, GPT, CLAUDE)),
    "ChatOpenAI-ChatAnthropic": ("wrapped", (GPT, CLAUDE)),
    "ChatAnthropic-ChatOpenAI": ("wrapped", (CLAUDE, GPT)),
}
"""How the targets are given, and which; the first is the primary."""

State = Literal["healthy", "503", "cut"]
STATES: tuple[State, ...] = ("healthy", "503", "cut")

_IMPATIENT = RetryPolicy(base_s=0.01, overloaded_base_s=0.01)
"""Short waits, so that nobody waits for the tests."""
_SPECS = {GPT: f"openai:{GPT}", CLAUDE: f"anthropic:{CLAUDE}", GEMINI: f"google:{GEMINI}"}


class World:
    """Three vendors on loopback, behind the addresses and keys of the environment, and the files the programs read."""

    def __init__(self, mixture: str = "openai-anthropic-google", state: State = "healthy") -> None:
        self.kind, self.order = MIXTURES[mixture]
        self.primary = self.order[0]
        self.server = FaultServer()
        self.server.default = self._answer
        if state == "503":
            self.server.script(self.primary, 503)
        elif state == "cut":
            self.server.script(self.primary, self._break)
        self._open = ExitStack()

    def _answer(self, seen: SeenRequest) -> Answer | Fault:
        return small_model(seen, stubborn=seen.model == self.primary)

    def _break(self, seen: SeenRequest) -> Answer | Fault:
        """As `_answer`, but a stream is cut after its first words, or in the middle of a tool call."""
        answer = self._answer(seen)
        if isinstance(answer, Fault) or not seen.streamed:
            return answer
        return cut_tool(answer=answer) if answer.tool_calls else cut(after_words=2, answer=answer)

    def start(self) -> Self:
        """Start the vendors, and point the environment and the working directory at them."""
        self._open.enter_context(self.server)
        self._open.enter_context(_environment(self.server))
        (folder := Path(self._open.enter_context(tempfile.TemporaryDirectory()))).joinpath("tea.png").write_bytes(TEA)
        folder.joinpath("menu.pdf").write_bytes(MENU)
        self._open.enter_context(contextlib.chdir(folder))
        return self

    def stop(self) -> None:
        """Put everything back."""
        self._open.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def asked(self) -> list[SeenRequest]:
        """What the primary was asked."""
        return [seen for seen in self.server.requests if seen.model == self.primary]

    def model(self) -> FallbackChatModel:
        """The page's `model`, over this world's targets."""
        models: list[Any] = [
            _SPECS[name] if self.kind == "native" else wrapped(self.server, name) for name in self.order
        ]
        return FallbackChatModel(models=models, retry=_IMPATIENT)


@contextmanager
def _environment(server: FaultServer) -> Iterator[None]:
    names = {
        **dict.fromkeys(("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "GOOGLE_API_KEY"), KEY),
        "OPENAI_BASE_URL": server.openai_url,
        "ANTHROPIC_BASE_URL": server.anthropic_url,
        "GOOGLE_GEMINI_BASE_URL": server.google_url,
    }
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(names)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


# ── what there is to see ─────────────────────────────────────────────────────────────────────────────────────────────

_COLOURS = {(201, 130, 43): "amber", (74, 44, 24): "dark brown"}


def _png(colour: tuple[int, int, int]) -> bytes:
    """A picture of one pixel."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = (1).to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    pixel = zlib.compress(b"\0" + bytes(colour))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixel) + chunk(b"IEND", b"")


TEA = _png((201, 130, 43))
MENU = (
    b"%PDF-1.4\n1 0 obj <</Type /Catalog /Pages 2 0 R>> endobj\n"
    b"2 0 obj <</Type /Pages /Kids [3 0 R] /Count 1>> endobj\n"
    b"3 0 obj <</Type /Page /Parent 2 0 R /Contents 4 0 R>> endobj\n4 0 obj <</Length 70>> stream\n"
    b"BT (Green tea 4.20) Tj (Espresso 3.80) Tj (Cheesecake 6.50) Tj ET\nendstream endobj\ntrailer <</Root 1 0 R>>\n"
)
_ON_THE_WEB = {"https://example.com/coffee.png": _png((74, 44, 24))}


def _media(body: Any) -> list[bytes]:
    """Every picture and document in a request: sent along in base64, or fetched from where it says."""
    if isinstance(body, str):
        if body in _ON_THE_WEB:
            return [_ON_THE_WEB[body]]
        data = body.partition(";base64,")[2] or body
        if data.startswith(("iVBORw0KGgo", "JVBERi")):
            return [base64.urlsafe_b64decode(data.replace("+", "-").replace("/", "_"))]
        return []
    inner = body.values() if isinstance(body, Mapping) else body if isinstance(body, Sequence) else ()
    return [found for value in inner for found in _media(value)]


def _seen_in(media: bytes, question: str) -> str:
    if media.startswith(b"%PDF"):
        rows = [row.decode() for row in re.findall(rb"\((.*?)\) Tj", media)]
        name, price = max(rows, key=lambda row: _overlap(row, question)).rsplit(" ", 1)
        return f"{name} is {price}."
    data = media[media.index(b"IDAT") + 4 :]
    red, green, blue = zlib.decompressobj().decompress(data)[1:4]
    return f"It is {_COLOURS[red, green, blue]}."


# ── the model ────────────────────────────────────────────────────────────────────────────────────────────────────────

_TRANSLATIONS = {
    ("The tea is ready.", "French"): "Le thé est prêt.",
    ("The tea is ready.", "German"): "Der Tee ist fertig.",
    ("The tea is ready.", "Danish"): "Teen er klar.",
}
_ABOUT = {
    "green tea": "Green tea is steamed or pan-fired soon after picking. It tastes of grass and chestnuts.",
    "black tea": "Black tea is fully oxidised before it is dried. It tastes of malt and dried fruit.",
    "oolong": "Oolong is oxidised halfway and rolled by hand. It tastes of flowers, then of honey.",
}
_CITIES = ("Bern", "Lima", "Oslo")
_NUMBERS = {"a gross": 144, "one": 1, "two": 2, "three": 3, "four": 4}
_ORDER: Mapping[str, Mapping[str, Any]] = {
    "drink": {"enum": ["tea", "coffee"]},
    "cups": {"type": "integer"},
    "sugar": {"type": "boolean"},
}
_WINDOW = 120_000  # words


def small_model(seen: SeenRequest, *, stubborn: bool = False) -> Answer | Fault:
    """Answers the request itself, the same at every vendor: calls tools, fills schemas, looks at pictures, reads texts.

    It orders a gross of cups when told to, and mends that when it is shown its mistake; when `stubborn`, and the guest
    is too, it does not.
    """
    asked = read(seen)
    turns = list(asked.turns)
    usage = Usage(prompt_tokens=sum(len(turn.text.split()) for turn in turns) + len(asked.system.split()))
    resumed = "was cut off by a technical fault" in turns[-1].text
    if resumed:
        del turns[-2:]
    elif turns[-1].role == "assistant":
        del turns[-1]  # a prefill: the server itself goes on after it
    shown = "cannot be used:" in turns[-1].text or any("call was not made" in text for _, text in turns[-1].results)
    if shown:
        del turns[-2:]
    start = max(index for index, turn in enumerate(turns) if turn.role == "user" and turn.text)
    question, since = turns[start].text, turns[start + 1 :]
    results = [text for turn in since for _, text in turn.results]
    if usage.prompt_tokens is not None and usage.prompt_tokens > _WINDOW:
        return Fault("context-overflow")
    mends = shown and "gross" in question and not (stubborn and "insist" in question)

    def fill(schema: Mapping[str, Any]) -> Any:
        return _filled(schema, f"{' '.join(results)} {question}", schema, cups=12 if mends else None)

    calls = [] if _forbidden(seen.body) else _calls(asked, question, since, fill)
    if calls:
        return Answer("", tool_calls=calls[:1] if _one_at_a_time(seen.body) else calls, usage=usage)
    wanted = asked.schema if asked.schema is not None else _any_json(seen, asked, question)
    if wanted is not None:
        return Answer(json.dumps(fill(wanted), ensure_ascii=False), usage=usage, continue_from=resumed)
    said = _said(asked.system, turns[: start + 1], question, results, _media(seen.body))
    return Answer(said, usage=usage, continue_from=resumed, overlap_words=6 if resumed else 0)


def _calls(asked: Read, question: str, since: Sequence[Turn], fill: Callable[[Any], Any]) -> list[ToolCall]:
    """What it calls: the tool for cities once for each that is named; a tool it must call with what it is told."""
    cities = [city for city in _CITIES if city in question]
    done = any(turn.calls for turn in since)
    for name, schema in asked.tools.items():
        by_city = list(schema.get("properties") or {}) == ["city"]
        if by_city and cities and not done and asked.forced in (None, "any", name):
            return [ToolCall(name, {"city": city}) for city in cities]
    if asked.forced is None:
        return []
    name = list(asked.tools)[-1] if asked.forced == "any" else asked.forced
    schema = asked.tools[name]
    return [ToolCall(name, fill(schema if schema.get("properties") else _keys_named(question) or schema))]


def _forbidden(body: Mapping[str, Any]) -> bool:
    """Whether it is told to call no tool."""
    choice = body.get("tool_choice") or (body.get("toolConfig") or {}).get("functionCallingConfig") or {}
    if isinstance(choice, str):
        return choice == "none"
    return "none" in (choice.get("type"), str(choice.get("mode", "")).lower())


def _one_at_a_time(body: Mapping[str, Any]) -> bool:
    """Whether it is told to make one call at most; Gemini cannot be told."""
    choice = body.get("tool_choice")
    disabled = choice.get("disable_parallel_tool_use") if isinstance(choice, Mapping) else None
    return body.get("parallel_tool_calls") is False or bool(disabled)


def _any_json(seen: SeenRequest, asked: Read, question: str) -> Mapping[str, Any] | None:
    """For JSON without a schema: the keys that the question names."""
    config = seen.body.get("generationConfig") or {}
    told = (
        (seen.body.get("response_format") or {}).get("type") == "json_object"
        or config.get("responseMimeType") == "application/json"
        or ("JSON" in asked.system and not asked.tools)
    )
    return _keys_named(question) if told else None


def _keys_named(question: str) -> Mapping[str, Any] | None:
    named = re.search(r"keys ([\w, ]+)", question)
    return named and {"type": "object", "properties": {key: _ORDER[key] for key in re.split(r", | and ", named[1])}}


def _filled(schema: Mapping[str, Any], text: str, root: Mapping[str, Any], name: str = "", **known: Any) -> Any:
    """What `text` says, in the form of `schema`."""
    if known.get(name) is not None:
        return known[name]
    if ref := schema.get("$ref"):
        return _filled(root["$defs"][ref.rpartition("/")[2]], text, root, name, **known)
    low = text.lower()
    if "enum" in schema:
        return next((value for value in schema["enum"] if str(value) in low), schema["enum"][0])
    match str(schema.get("type") or "string").lower():
        case "object":
            inner = schema.get("properties") or {}
            return {key: _filled(value, text, root, key, **known) for key, value in inner.items()}
        case "array":
            parts = re.split(r"(?:,| and) ", text)
            return [_filled(schema.get("items") or {}, part, root, **known) for part in parts]
        case "integer" | "number":
            digits = re.search(r"\d+", text)
            return int(digits[0]) if digits else next((n for word, n in _NUMBERS.items() if word in low), 1)
        case "boolean":
            return name in low and f"no {name}" not in low and f"without {name}" not in low
        case _:
            return next((city for city in _CITIES if city in text), text.strip())


def _said(system: str, turns: Sequence[Turn], question: str, results: Sequence[str], media: Sequence[bytes]) -> str:
    if results:
        best = max(results, key=lambda text: int((re.findall(r"(-?\d+) °C", text) or ["0"])[0]))
        advice = f" I would go to {best.partition(':')[0]}." if len(results) > 1 else ""
        return " ".join(f"{text}." for text in results) + advice
    if media:
        return _seen_in(media[-1], question)
    if language := re.search(r"into (\w+)", system):
        return _TRANSLATIONS[question, language[1]]
    if "Handbook:" in system:
        lines = [line[2:] for line in system.splitlines() if line.startswith("- ")]
        return max(lines, key=lambda line: _overlap(line, question))
    if introduced := re.search(r"[Mm]y name is (\w+)", question):
        return f"Nice to meet you, {introduced[1]}."
    if "my name" in question:
        names = re.findall(r"my name is (\w+)", " ".join(turn.text for turn in turns), re.IGNORECASE)
        return f"Your name is {names[-1]}." if names else "You have not told me."
    if cities := [city for city in _CITIES if city in question]:
        return f"I have not looked at {' or '.join(cities)}."
    about = [text for what, text in _ABOUT.items() if what in question.lower()]
    if about:
        return " ".join(about)
    raise ValueError(f"the small model has nothing to say to {question!r}")


def _overlap(text: str, question: str) -> int:
    """How many words of four letters and more they share."""
    words = [set(re.findall(r"\w{4,}", one.lower())) for one in (text, question)]
    return len(words[0] & words[1])


# ── keeping the page true ────────────────────────────────────────────────────────────────────────────────────────────


def main() -> int:
    """Run every program in a healthy world and write what it prints under it."""
    text = PAGE.read_text(encoding="utf-8")
    for program in programs():
        with World() as world:
            printed = program.run(world.model())
        old = f"{program.source}```\n\n```text\n{program.output}```"
        if old not in text:
            raise ValueError(f"{program.name}: changed while it ran")
        text = text.replace(old, f"{program.source}```\n\n```text\n{printed}```")
        print(f"── {program.name}\n{textwrap.indent(printed, '   ')}", end="")
    PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
