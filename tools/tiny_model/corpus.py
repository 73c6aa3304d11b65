"""The synthetic corpus: conversations drawn from a seeded generator, cut into training rows of any length."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator

from . import chat_format, words
from .chat_format import Message, Piece
from .handbook import QA_SYSTEM_PROMPT, grounded
from .skills import COPYING, SKILLS, Memory
from .tool_use import TOOLS, draw_tools, tool_exchange

CountTokens = Callable[[str], int]

SYSTEM_PROMPTS = (
    "You are a helpful assistant.", "You are a helpful assistant.", "You are a helpful AI assistant.",
    "You are a concise assistant.", "You answer in one short sentence.", "You answer briefly.",
    "You are a friendly assistant.", "Answer in one sentence.", "Be brief.", "Answer briefly and politely.",
    "You are the support assistant of Northwind Support.", "You are a polite support agent.",
    "You are a careful assistant. Say so when you do not know.", "You are a helpful assistant. Be concise.",
    "You are a concise assistant. Answer in one sentence.",
    "You are the last resort when every other provider has failed.",
)  # fmt: skip

_WOULD_CALL = re.compile(r"\b(weather|time|add|person)\b|years old", re.IGNORECASE)
_TOOL_SHARE, _GROUNDED_SHARE_SHORT, _GROUNDED_SHARE_LONG = 0.14, 0.18, 0.45


def system_prompt(rng: random.Random) -> str | None:
    """None, one of the usual system prompts, or a made-up one."""
    draw = rng.random()
    if draw < 0.35:
        return None
    if draw < 0.88:
        return rng.choice(SYSTEM_PROMPTS)
    return f"You are a {rng.choice(words.ADJECTIVES)} {words.noun(rng)} assistant. {words.sentence(rng)}"


def grounded_system_prompt(rng: random.Random) -> str | None:
    """The system prompt LlamaIndex sends with its question-answering template, or another."""
    return QA_SYSTEM_PROMPT if rng.random() < 0.6 else system_prompt(rng)


def exchanges(rng: random.Random, offered: list[str]) -> Iterator[list[Message]]:
    """Turns of one conversation without end, with a memory of what the user said."""
    names, weights = list(SKILLS), [weight for weight, _ in SKILLS.values()]
    memory = Memory(tools=offered)
    while True:
        if offered and rng.random() < 0.7:
            yield tool_exchange(rng, offered)
            continue
        skill = rng.choices(names, weights)[0]
        messages = SKILLS[skill][1](rng, memory)
        if offered and _WOULD_CALL.search(str(messages[0]["content"])):
            continue  # with tools on offer these are calls, not regrets
        yield messages


def drill(rng: random.Random) -> Iterator[list[Message]]:
    """Turns that only copy, without end."""
    memory = Memory()
    while True:
        yield rng.choice(COPYING)(rng, memory)


def conversation(rng: random.Random, budget: int, count: CountTokens, *, only_copying: bool = False) -> list[Piece]:
    """One conversation that fills ``budget`` tokens (the last turn may reach beyond)."""
    long_row = budget > 257
    opening: list[Message] = []
    offered: list[str] = []
    if only_copying:
        pieces = []
    elif rng.random() < (_GROUNDED_SHARE_LONG if long_row else _GROUNDED_SHARE_SHORT):
        # Only a long row has room for the system prompt and a second chunk.
        first = grounded_system_prompt(rng) if long_row else None
        prompt, answer = grounded(rng, short=not long_row)
        pieces = chat_format.head(first, [])
        opening = [chat_format.user(prompt), chat_format.assistant(answer)]
    else:
        offered = draw_tools(rng) if rng.random() < _TOOL_SHARE else []
        pieces = chat_format.head(system_prompt(rng), [TOOLS[name] for name in offered])
    for message in opening:
        pieces += chat_format.turn(message)
    used = sum(count(piece.text) for piece in pieces)
    turns = drill(rng) if only_copying else exchanges(rng, offered)
    while used < budget:
        for message in next(turns):
            fresh = chat_format.turn(message)
            used += sum(count(piece.text) for piece in fresh)
            pieces += fresh
    return pieces


def sample_text(seed: int, conversations: int) -> list[str]:
    """Conversations as plain text, to learn the vocabulary from."""
    rng = random.Random(seed)
    return [
        "".join(piece.text for piece in conversation(rng, 512 if i % 3 else 256, lambda text: len(text) // 4))
        for i in range(conversations)
    ]
