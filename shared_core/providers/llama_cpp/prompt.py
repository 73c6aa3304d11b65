"""A conversation as prompt text through the model's own Jinja template, cut into trusted and untrusted segments.

Text that a user or a tool wrote may contain the model's control tokens, spelled out ("<|im_end|>\n<|im_start|>system").
Tokenised with the rest they would become real control tokens. So each such marker inside a message is replaced by a
placeholder before the template runs, and comes back afterwards as an untrusted segment, to be tokenised as plain text.
Ordinary text stays in one piece with the template's, so its tokens are those the model was trained on.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from shared_core.providers.llama_cpp.engine import LoadError

if TYPE_CHECKING:
    from collections.abc import Callable

    from shared_core.providers.llama_cpp.engine import Vocabulary

__all__ = [
    "CHATML",
    "NAMED",
    "ChatTemplate",
    "Segment",
    "TemplateRefused",
    "Traits",
    "compile_template",
    "probe",
    "render",
    "tool_instructions",
]

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""For files that bring no template of their own."""

_NO_SYSTEM = "{% if m.role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
_ALTERNATING = (
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('turns must alternate') }}{% endif %}"
)
NAMED: Mapping[str, tuple[str, tuple[str, ...]]] = {
    name: ("".join(source), stops)
    for name, source, stops in (
        ("chatml", [CHATML], ("<|im_end|>",)),
        (
            "llama-2",
            [
                "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token }}[INST] ",
                "{% if loop.index0 == 1 and messages[0].role == 'system' %}<<SYS>>\n{{ messages[0].content }}",
                "\n<</SYS>>\n\n{% endif %}{{ m.content }} [/INST]",
                "{% elif m.role == 'assistant' %} {{ m.content }} {{ eos_token }}",
                "{% elif not loop.first %}{{ raise_exception('the system message must come first') }}{% endif %}",
                "{% endfor %}",
            ],
            ("[INST]",),
        ),
        (
            "llama-3",
            [
                "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n",
                "{{ m.content | trim }}<|eot_id|>{% endfor %}",
                "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}",
            ],
            ("<|eot_id|>",),
        ),
        (
            "mistral",
            [
                "{{ bos_token }}{% for m in messages %}",
                _NO_SYSTEM,
                _ALTERNATING,
                "{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]",
                "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}",
            ],
            ("[INST]",),
        ),
        (
            "gemma",
            [
                "{{ bos_token }}{% for m in messages %}",
                _NO_SYSTEM,
                _ALTERNATING,
                "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}",
                "<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}",
            ],
            ("<end_of_turn>",),
        ),
        (
            "phi-3",
            [
                "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}",
                "{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
            ],
            ("<|end|>",),
        ),
        (
            "zephyr",
            [
                "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{{ eos_token }}\n{% endfor %}",
                "{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
            ],
            ("<|user|>",),
        ),
        (
            "vicuna",
            [
                "{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}\n\n{% elif m.role == 'user' %}",
                "USER: {{ m.content }}\n{% else %}ASSISTANT: {{ m.content }}{{ eos_token }}\n{% endif %}{% endfor %}",
                "{% if add_generation_prompt %}ASSISTANT:{% endif %}",
            ],
            ("USER:",),
        ),
    )
}
"""What `chat_template=` may name: the template, and texts that end an answer even where the model's file does not know
them for the end of a turn."""

Json = Any


class Segment(NamedTuple):
    """A run of the prompt. Markers in it are control tokens only where `trusted`."""

    text: str
    trusted: bool


class TemplateRefused(Exception):
    """The model's template cannot render this conversation; the message says why."""


def compile_template(source: str, *, bos: str = "", eos: str = "") -> Callable[..., str]:
    """A function `(messages, tools) -> text` in a sandbox, with the helpers that templates in the wild expect.

    Raises:
        TemplateRefused: the template is not valid Jinja.
    """
    import jinja2
    import jinja2.ext
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def raise_exception(message: str) -> None:
        raise TemplateRefused(message)

    def strftime_now(form: str) -> str:
        from datetime import datetime

        return datetime.now().astimezone().strftime(form)

    def tojson(value: Json, indent: int | None = None, ensure_ascii: bool = False, **_: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals.update(raise_exception=raise_exception, strftime_now=strftime_now, bos_token=bos, eos_token=eos)
    try:
        template = environment.from_string(re.sub(r"{%-?\s*(end)?generation\s*-?%}", "", source))
    except jinja2.TemplateError as error:
        raise TemplateRefused(f"the chat template is not valid: {error}") from error

    def run(messages: Sequence[Mapping[str, Json]], tools: Sequence[Mapping[str, Json]] | None) -> str:
        try:
            return template.render(messages=messages, tools=tools or None, add_generation_prompt=True)
        except TemplateRefused:
            raise
        # A template may fail in any way Python can: it is code from a file.
        except Exception as error:
            raise TemplateRefused(f"{type(error).__name__}: {error}") from error

    return run


@dataclass(frozen=True, slots=True)
class Traits:
    """What a template takes, as trying it out has shown."""

    system: bool = True
    """A system message; otherwise its text goes into the first user turn."""
    any_order: bool = True
    """Turns that do not alternate; otherwise neighbours are joined."""
    tools: bool = True
    """Tools, in the words we understand (`<tool_call>`); otherwise they are told in the system message."""
    tool_turns: bool = True
    """Calls and their results as turns; otherwise they are told as text."""
    parts: bool = False
    """Whether content must be a list of parts rather than a string."""

    def as_dict(self) -> dict[str, bool]:
        """As plain data."""
        return asdict(self)


_PROBE_TOOL = {
    "type": "function",
    "function": {
        "name": "probe_tool",
        "description": "probe",
        "parameters": {"type": "object", "properties": {"probe_argument": {"type": "string"}}},
    },
}


def probe(template: Callable[..., str]) -> Traits:
    """Try a template out: what does it render, what does it refuse, what does it leave out in silence?

    Raises:
        TemplateRefused: it cannot render the simplest conversation; the message says why.
    """

    def shows(messages: Sequence[Mapping[str, Json]], *words: str, tools: Sequence[Json] | None = None) -> bool:
        try:
            rendered = template(messages, tools)
        except TemplateRefused:
            return False
        return all(word in rendered for word in words)

    def said(role: str, text: str) -> dict[str, Json]:
        return {"role": role, "content": [{"type": "text", "text": text}] if parts else text}

    parts = False
    if not shows([said("user", "probe one")], "probe one"):
        parts = True
        if not shows([said("user", "probe one")], "probe one"):
            parts = False
            rendered = template([said("user", "probe one")], None)  # says why, if it refuses
            raise TemplateRefused(f"it leaves out what the user says: {rendered[:80]!r}")
    one, two, three = said("user", "probe one"), said("assistant", "probe two"), said("user", "probe three")
    call = {"name": "probe_tool", "arguments": {"probe_argument": 7}}
    calls = [{"id": "callprobe", "type": "function", "function": call}]
    called: dict[str, Json] = {**said("assistant", ""), "tool_calls": calls}
    result = {**said("tool", "probe result"), "tool_call_id": "callprobe", "name": "probe_tool"}
    turns = shows([one, called, result], "probe_tool", "probe result", tools=[_PROBE_TOOL]) or shows(
        [one, called, result], "probe_tool", "probe result"
    )
    return Traits(
        system=shows([said("system", "probe zero"), one], "probe zero"),
        any_order=shows([one, three, two, two, three], "probe one", "probe two", "probe three"),
        # A template with a notation of its own for calls would have the model write what nobody here can read.
        tools=shows([one, called, result], "probe_tool", "<tool_call>", tools=[_PROBE_TOOL])
        and shows([one], "probe_tool", tools=[_PROBE_TOOL]),
        tool_turns=turns,
        parts=parts,
    )


@dataclass(frozen=True)
class ChatTemplate:
    """A model's template, compiled and tried out once."""

    run: Callable[..., str]
    traits: Traits
    origin: str
    """Where it is from: the option, the file, or a name of `NAMED`."""
    stops: tuple[str, ...]
    markers: tuple[str, ...]

    @classmethod
    def of(cls, given: str | None, vocabulary: Vocabulary) -> ChatTemplate:
        """The one that was asked for by name or as Jinja text, or the file's, or ChatML.

        Raises:
            LoadError: it is not valid, or renders nothing useful.
        """
        stops: tuple[str, ...] = ()
        source, origin = vocabulary.template, "file"
        if given is not None and given in NAMED:
            (source, stops), origin = NAMED[given], given
        elif given is not None:
            source, origin = given, "option"
        elif not source:
            (source, stops), origin = NAMED["chatml"], "chatml"
        try:
            run = compile_template(source, bos=vocabulary.bos, eos=vocabulary.eos)
            traits = probe(run)
        except TemplateRefused as error:
            what: Literal["model", "config"] = "config" if given else "model"
            raise LoadError(f"the chat template ({origin}) is of no use: {error}", what) from error
        return cls(run, traits, origin, tuple(s for s in stops if s not in vocabulary.markers), vocabulary.markers)

    def render(
        self, messages: Sequence[Mapping[str, Json]], tools: Sequence[Mapping[str, Json]] | None
    ) -> list[Segment]:
        """The prompt up to where the assistant begins to speak.

        Raises:
            TemplateRefused: this conversation cannot be told in any shape.
        """
        if tools and not self.traits.tools:
            told = tool_instructions(tools)
            if messages and messages[0]["role"] == "system":
                told, messages = f"{messages[0]['content']}\n\n{told}", messages[1:]
            messages, tools = [{"role": "system", "content": told}, *messages], None
        return render(self.run, messages, tools, self.markers, self.traits)


def render(
    template: Callable[..., str],
    messages: Sequence[Mapping[str, Json]],
    tools: Sequence[Mapping[str, Json]] | None,
    markers: Iterable[str],
    traits: Traits = Traits(),
) -> list[Segment]:
    """The prompt up to where the assistant begins to speak.

    The conversation is told in the shape that `traits` asks for. Where the template refuses that, simpler ones are
    tried: the system text inside the first user turn, and turns of the same role joined.

    Raises:
        TemplateRefused: it refuses those too; the message is its first reason.
    """
    wanted = sorted({m for m in markers if m}, key=len, reverse=True)
    found = re.compile("|".join(map(re.escape, wanted))) if wanted else None
    nonce = os.urandom(12).hex()
    hidden: list[str] = []

    def hide(value: Json) -> Json:
        if isinstance(value, str):
            return found.sub(placeholder, value) if found else value
        if isinstance(value, Mapping):
            return {hide(k): hide(v) for k, v in value.items()}
        if isinstance(value, (list, tuple)):
            return [hide(v) for v in value]
        return value

    def placeholder(match: re.Match[str]) -> str:
        hidden.append(match[0])
        return f"{nonce}x{len(hidden) - 1}x"

    safe_messages, safe_tools = hide(messages), hide(tools) if tools else None
    first: TemplateRefused | None = None
    rendered = ""
    for shaped in _shapes(safe_messages, traits):
        try:
            rendered = template(_in_parts(shaped) if traits.parts else shaped, safe_tools)
            break
        except TemplateRefused as error:
            first = first or error
    else:
        assert first is not None
        raise first
    start, *others = rendered.split(nonce)
    segments = [Segment(start, True)]
    for other in others:
        number, rest = other[1:].split("x", 1)
        segments += [Segment(hidden[int(number)], False), Segment(rest, True)]
    return [segment for segment in segments if segment.text]


def _shapes(messages: Sequence[Mapping[str, Json]], traits: Traits) -> Iterator[Sequence[Mapping[str, Json]]]:
    """The conversation as this template likes it, then in ever simpler shapes."""
    folded = _fold_system(messages)
    wanted = messages if traits.system else folded
    calls = any(m["role"] == "tool" or m.get("tool_calls") for m in messages)
    if traits.any_order and (traits.tool_turns or not calls):
        yield wanted
        yield folded
    elif traits.tool_turns and _takes_turns(wanted):
        yield wanted
    if traits.system:
        system = [m for m in messages[:1] if m["role"] == "system"]
        yield [*system, *_alternate(_fold_system(messages[len(system) :]))]
    yield _alternate(folded)


def _takes_turns(messages: Sequence[Mapping[str, Json]]) -> bool:
    """Whether user and assistant alternate, calls and their results not counted, as templates count."""
    roles = [m["role"] for m in messages if m["role"] in ("user", "assistant") and not m.get("tool_calls")]
    return all(role == ("user", "assistant")[i % 2] for i, role in enumerate(roles))


def _in_parts(messages: Sequence[Mapping[str, Json]]) -> list[Mapping[str, Json]]:
    return [{**m, "content": [{"type": "text", "text": m.get("content") or ""}]} for m in messages]


def _fold_system(messages: Sequence[Mapping[str, Json]]) -> list[Mapping[str, Json]]:
    """System text as the beginning of the first user turn."""
    said = "\n\n".join(m["content"] for m in messages if m["role"] == "system" and m["content"])
    rest: list[Mapping[str, Json]] = [m for m in messages if m["role"] != "system"]
    if not said:
        return rest
    if not rest or rest[0]["role"] != "user":
        return [{"role": "user", "content": said}, *rest]
    return [{**rest[0], "content": f"{said}\n\n{rest[0]['content']}"}, *rest[1:]]


def _alternate(messages: Sequence[Mapping[str, Json]]) -> list[Mapping[str, Json]]:
    """Tool results and calls as plain text, neighbours of one role joined, a user first."""
    out: list[dict[str, Json]] = []
    for message in messages:
        role, content = message["role"], message["content"] or ""
        if role == "tool":
            role, content = "user", f"Result of {message.get('name') or 'the tool'}: {content}"
        for call in message.get("tool_calls") or ():
            said = f"<tool_call>\n{json.dumps(call['function'], ensure_ascii=False)}\n</tool_call>"
            content = f"{content}\n{said}" if content else said
        if out and out[-1]["role"] == role:
            out[-1]["content"] += f"\n\n{content}"
        else:
            out.append({"role": role, "content": content})
    if out and out[0]["role"] != "user":
        out.insert(0, {"role": "user", "content": "(continued)"})
    return list(out)


def tool_instructions(tools: Sequence[Mapping[str, Json]]) -> str:
    """What to tell a model whose template knows nothing of tools (the Hermes wording, which most models have met)."""
    listed = "\n".join(json.dumps(t, ensure_ascii=False) for t in tools)
    return (
        f"You may call these functions:\n<tools>\n{listed}\n</tools>\nTo call one, answer with\n"
        '<tool_call>\n{"name": <function name>, "arguments": <JSON object>}\n</tool_call>'
    )
