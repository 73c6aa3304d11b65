"""ChatML as the model sees it: messages in the OpenAI shape, rendered into pieces with a learning weight.

The same layout stands once more as ``chat_template.jinja``, which travels inside the GGUF; :func:`check_template`
proves that both say the same, and the pipeline calls it before it trains.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

Message = dict[str, Any]
Tool = dict[str, Any]

START, END = "<|im_start|>", "<|im_end|>"
CALL, CALL_END = "<tool_call>", "</tool_call>"
SPECIAL_TOKENS = ("<|endoftext|>", START, END, CALL, CALL_END)

TEMPLATE_FILE = Path(__file__).with_name("chat_template.jinja")


class Piece(NamedTuple):
    """A run of text; ``learn`` is true where the assistant speaks."""

    text: str
    learn: bool


def user(text: str) -> Message:
    """A user message."""
    return {"role": "user", "content": text}


def assistant(text: str) -> Message:
    """An assistant message."""
    return {"role": "assistant", "content": text}


def system(text: str) -> Message:
    """A system message."""
    return {"role": "system", "content": text}


def tool_result(text: str) -> Message:
    """What a tool gave back."""
    return {"role": "tool", "tool_call_id": "call_1", "content": text}


def tool_call(function: str, arguments: str) -> Message:
    """An assistant message that calls one tool; ``arguments`` is JSON text."""
    call = {"id": "call_1", "type": "function", "function": {"name": function, "arguments": arguments}}
    return {"role": "assistant", "content": None, "tool_calls": [call]}


def function_tool(name: str, description: str, /, **parameters: str) -> Tool:
    """A tool definition in the OpenAI shape; ``parameters`` maps names to JSON types."""
    schema = {
        "type": "object",
        "properties": {key: {"type": kind} for key, kind in parameters.items()},
        "required": list(parameters),
    }
    return {"type": "function", "function": {"name": name, "description": description, "parameters": schema}}


def spoken(message: Message) -> str:
    """The text of an assistant message, tool calls included, as the model writes it."""
    calls = [
        f'{CALL}\n{{"name": "{c["function"]["name"]}", "arguments": {c["function"]["arguments"]}}}\n{CALL_END}'
        for c in message.get("tool_calls") or ()
    ]
    return "\n".join(filter(None, [message["content"], *calls]))


def head(first_system: str | None, tools: list[Tool]) -> list[Piece]:
    """The opening of a conversation: the system message and the list of tools, if there are any."""
    if not tools:
        return [] if first_system is None else [Piece(f"{START}system\n{first_system}{END}\n", False)]
    listed = "".join(
        f"{t['function']['name']}({', '.join(t['function']['parameters']['properties'])})\n" for t in tools
    )
    spoken_first = "" if first_system is None else f"{first_system}\n\n"
    return [Piece(f"{START}system\n{spoken_first}Tools:\n{listed}{END}\n", False)]


def turn(message: Message) -> list[Piece]:
    """One message after the opening. The end marker is part of what the assistant learns to say."""
    role = message["role"]
    if role == "assistant":
        return [Piece(f"{START}assistant\n", False), Piece(spoken(message) + END, True), Piece("\n", False)]
    return [Piece(f"{START}{role}\n{message['content']}{END}\n", False)]


def chat_template() -> str:
    """The Jinja template that goes into the GGUF."""
    return TEMPLATE_FILE.read_text(encoding="utf-8").strip()


def check_template(messages: list[Message], tools: list[Tool]) -> None:
    """Raise ``AssertionError`` unless the Jinja template renders what :func:`head` and :func:`turn` render."""
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    rendered = environment.from_string(chat_template()).render(
        messages=messages, tools=tools or None, add_generation_prompt=False
    )
    first = messages[0]["content"] if messages[0]["role"] == "system" else None
    rest = messages[1:] if first is not None else messages
    expected = "".join(p.text for p in head(first, tools) + [p for m in rest for p in turn(m)])
    assert rendered == expected, f"template and trainer disagree:\n{rendered!r}\n{expected!r}"
    assert len(chat_template().encode()) != 1024, "llama-cpp-python cuts a template of exactly 1024 bytes"


def compact_json(value: Any, *, spaces: bool = True) -> str:
    """JSON on one line, as providers write arguments: with or without spaces."""
    return json.dumps(value, ensure_ascii=False, separators=(", ", ": ") if spaces else (",", ":"))
