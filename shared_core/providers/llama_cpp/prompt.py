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
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["CHATML", "Segment", "TemplateRefused", "compile_template", "render", "tool_instructions"]

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""For files that bring no template of their own."""

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


def render(
    template: Callable[..., str],
    messages: Sequence[Mapping[str, Json]],
    tools: Sequence[Mapping[str, Json]] | None,
    markers: Iterable[str],
) -> list[Segment]:
    """The prompt up to where the assistant begins to speak.

    Where the template refuses, the conversation is told in simpler shapes: the system text inside the first user turn,
    and turns of the same role joined.

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
    for simpler in (lambda m: m, _fold_system, lambda m: _alternate(_fold_system(m))):
        try:
            rendered = template(simpler(safe_messages), safe_tools)
            break
        except TemplateRefused as error:
            first = first or error
    else:
        assert first is not None
        raise first
    segments: list[Segment] = []
    at = 0
    for match in re.finditer(rf"{nonce}x(\d+)x", rendered):
        segments += [Segment(rendered[at : match.start()], True), Segment(hidden[int(match[1])], False)]
        at = match.end()
    segments.append(Segment(rendered[at:], True))
    return [s for s in segments if s.text]


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
