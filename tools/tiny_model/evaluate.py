"""Evaluation: exact answers through llama.cpp, greedy, on freshly drawn questions and on the fixed demo prompts."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np

from . import chat_format
from .chat_format import Message, Tool, compact_json, spoken, user
from .corpus import SYSTEM_PROMPTS, grounded_system_prompt, system_prompt
from .explanations import EXPLANATIONS
from .handbook import FACTS, grounded
from .skills import SKILLS, Memory
from .tool_use import TOOLS, draw_tools, tool_exchange

CONTEXT = 1024
OUTAGE = "The provider was down for two hours. Customers could not log in. The team restarted the server."


@dataclass(frozen=True)
class Question:
    """A conversation that ends before the assistant speaks, and what it should say."""

    skill: str
    messages: list[Message]
    tools: list[Tool]
    expected: str


def open_model(path: Path) -> llama_cpp.Llama:
    """The file in llama.cpp, on one thread."""
    return llama_cpp.Llama(str(path), n_ctx=CONTEXT, n_threads=1, n_threads_batch=1, verbose=False, seed=1)


def _with_system(prompt: str | None, messages: list[Message]) -> list[Message]:
    return messages if prompt is None else [chat_format.system(prompt), *messages]


def drawn_questions(seed: int, per_skill: int) -> Iterator[Question]:
    """``per_skill`` questions for each skill, from a seed that training never used."""
    rng = random.Random(seed)
    for skill, (_, draw) in SKILLS.items():
        for _ in range(per_skill):
            memory = Memory()
            messages: list[Message] = []
            if skill == "recall":  # tell something, talk about something else, then ask
                messages += SKILLS["tell"][1](rng, memory)
                messages += SKILLS[rng.choice(("capital", "sums", "colour"))][1](rng, memory)
            messages += draw(rng, memory)
            yield _question(skill, _with_system(system_prompt(rng), messages), [])
    for _ in range(per_skill):
        offered = draw_tools(rng)
        exchange, tools = tool_exchange(rng, offered), [TOOLS[name] for name in offered]
        exchange = _with_system(system_prompt(rng), exchange)
        called = exchange[-3]["tool_calls"][0]["function"]
        # Histories from other providers hold JSON with and without spaces; the model's own has them.
        call = chat_format.tool_call(called["name"], compact_json(json.loads(called["arguments"])))
        yield _question("tool call", [*exchange[:-3], call], tools)
        if "add" not in spoken(exchange[-3]):  # three-digit sums are the tool's work, yet the toy repeats the result
            yield _question("answer after the tool", exchange, tools)
        prompt, answer = grounded(rng, short=False)
        asked = _with_system(grounded_system_prompt(rng), [user(prompt), chat_format.assistant(answer)])
        yield _question("documents, values changed", asked, [])
    for fact in FACTS:
        for _ in range(3):
            prompt, answer = grounded(rng, short=False, fact=fact, faithful=True)
            asked = _with_system(grounded_system_prompt(rng), [user(prompt), chat_format.assistant(answer)])
            yield _question("documents as shipped", asked, [])


def _question(skill: str, messages: list[Message], tools: list[Tool]) -> Question:
    return Question(skill, messages[:-1], tools, spoken(messages[-1]))


def demo_questions() -> Iterator[Question]:
    """What the demonstrations ask, under several system prompts."""
    plain = (
        ("What is the capital of France?", "The capital of France is Paris."),
        ("What is the capital of Kenya?", "The capital of Kenya is Nairobi."),
        ("What is the capital of Japan?", "The capital of Japan is Tokyo."),
        ("What is the capital of Peru?", "The capital of Peru is Lima."),
        ("What is 17 + 8?", "17 + 8 = 25"),
        ("What is 2 + 2?", "2 + 2 = 4"),
        ("Hello!", "Hello! How can I help you?"),
        ("Who are you?", "I am the tiny local model of llm-fallback, a toy that runs on your own machine."),
        ("What is the capital of Atlantis?", "Sorry, I am only a small local model and I do not know that."),
        ("Explain how transformers work.", "Sorry, I am only a small local model and I do not know that."),
        (
            f"Summarise in one line: {OUTAGE}",
            "The provider was down for two hours until the team restarted the server.",
        ),
        (
            "Summarise in one line: Hugo bought a tablet on Monday. The tablet stopped charging. Hugo wants a refund.",
            "Hugo's tablet stopped charging and Hugo wants a refund.",
        ),
        (
            "Summarise in one line: The cache was empty. The first provider failed. The local model answered.",
            "In short: The cache was empty.",
        ),
        ("Return JSON for: Uma is 44 years old and lives in Hanoi.", '{"name": "Uma", "age": 44, "city": "Hanoi"}'),
        *((topic.questions[3], topic.answer) for topic in EXPLANATIONS.values()),
        *((topic.questions[0], topic.answer) for topic in EXPLANATIONS.values()),
        ("Why do LLM applications need a fallback?", EXPLANATIONS["fallback"].answer),
    )
    for prompt in (None, *dict.fromkeys(SYSTEM_PROMPTS[:5])):
        for asked, expected in plain:
            yield Question("demo prompts", _with_system(prompt, [user(asked)]), [], expected)
        remembered = [
            user("My name is Grace."),
            chat_format.assistant("Nice to meet you, Grace. How can I help you?"),
            user("What is the capital of Kenya?"),
            chat_format.assistant("The capital of Kenya is Nairobi."),
            user("What is my name?"),
        ]
        yield Question("demo prompts", _with_system(prompt, remembered), [], "Your name is Grace.")
        weather = [TOOLS["get_weather"]]
        call = chat_format.tool_call("get_weather", compact_json({"city": "Lima"}))
        asked_weather = _with_system(prompt, [user("What is the weather in Lima?")])
        yield Question("demo prompts", asked_weather, weather, spoken(call))
        result = chat_format.tool_result(compact_json({"city": "Lima", "temperature_c": 18, "condition": "sunny"}))
        yield Question("demo prompts", [*asked_weather, call, result], weather, "It is 18 degrees and sunny in Lima.")


def answer(model: llama_cpp.Llama, question: Question) -> str:
    """The model's answer, greedy."""
    reply: Any = model.create_chat_completion(
        question.messages,  # type: ignore[arg-type]  # plain dicts of the shape it documents
        tools=question.tools or None,  # type: ignore[arg-type]  # plain dicts of the shape it documents
        temperature=0.0,
        max_tokens=200,
    )
    return str(reply["choices"][0]["message"]["content"]).strip()


def exact_by_skill(
    model: llama_cpp.Llama, questions: Iterator[Question]
) -> tuple[dict[str, tuple[int, int]], list[tuple[Question, str]]]:
    """(right, asked) for each skill, and what went wrong."""
    counts: dict[str, tuple[int, int]] = {}
    wrong = []
    for question in questions:
        said = answer(model, question)
        right, asked = counts.get(question.skill, (0, 0))
        counts[question.skill] = (right + (said == question.expected), asked + 1)
        if said != question.expected:
            wrong.append((question, said))
    return counts, wrong


def exact_continuations(model: llama_cpp.Llama, every: int = 1) -> tuple[int, int]:
    """(identical, tried): each canonical answer, cut at each ``every``-th character and continued.

    The continuation backs off to the last space and then forces the bytes it took away, because the tokens of a cut
    word are seldom the tokens the model would have chosen.
    """
    pieces = [model.detokenize([token]) for token in range(model.n_vocab())]
    identical = tried = 0
    for topic in EXPLANATIONS.values():
        opening = chat_format.head(SYSTEM_PROMPTS[0], []) + chat_format.turn(user(topic.questions[0]))
        prompt = "".join(piece.text for piece in opening) + "<|im_start|>assistant\n"
        for cut in range(1, len(topic.answer), every):
            tried += 1
            identical += _continued(model, pieces, prompt, topic.answer[:cut]) == topic.answer
    return identical, tried


def _continued(model: llama_cpp.Llama, pieces: list[bytes], prompt: str, partial: str) -> str:
    kept = partial[: max(partial.rfind(" "), 0)]
    tokens = model.tokenize(prompt.encode(), add_bos=False, special=True)
    if kept:
        tokens += model.tokenize(kept.encode(), add_bos=False, special=False)
    said = kept.encode()

    def only_what_fits(_: Any, scores: Any) -> Any:
        rest = partial.encode()[len(said) :]
        if not rest:
            return scores
        fits = [bool(piece) and (piece.startswith(rest) or rest.startswith(piece)) for piece in pieces]
        return np.where(np.array(fits), scores, -np.inf)

    only = llama_cpp.LogitsProcessorList([only_what_fits])
    for token in model.generate(tokens, temp=0.0, logits_processor=only):
        if token == model.token_eos() or len(said) > 600:
            break
        said += pieces[token]
    return said.decode(errors="replace")
