"""What is made of an engine's tokens, with an engine that says what it is told to: second samples, calls, limits."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest

from shared_core.providers.llama_cpp.engine import LoadError, Refused, Vocabulary
from shared_core.providers.llama_cpp.local_model import LocalModel

ADD = {
    "type": "function",
    "function": {"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}},
}
CHECKED = {"type": "string", "pattern": "^(?=y)yes$"}  # no grammar says that


class Parrot:
    """An engine whose tokens are characters. It says one script after another, whatever it is asked."""

    name = "parrot"
    n_ctx = 1000
    vocabulary = Vocabulary((), "", "", None, opens_with_blank=False)

    def __init__(self, *scripts: str, **facts: Any) -> None:
        self.abort = threading.Event()
        self.scripts = list(scripts)
        self.asked: list[Any] = []
        self.prompts: list[str] = []
        self.facts = {"devices": [], "gpu_layers": 0, "gpu_support": False, "n_ctx_train": 1000, **facts}

    def load(self, settings):
        return dict(self.facts)

    def tokenise(self, text, *, trusted, first=False):
        return [ord(c) for c in text]

    def compiles(self, grammar):
        return True

    def evaluate(self, prompt):
        return 0

    def generate(self, prompt, wanted, on_start, on_piece):
        self.asked.append(wanted)
        self.prompts.append("".join(map(chr, prompt)))
        on_start(0)
        script = wanted.forced.decode() + self.scripts.pop(0)
        for number, character in enumerate(script, 1):
            if not on_piece((ord(character),), 1, character.encode()):
                # What was not said goes on in the next phase.
                self.scripts.insert(0, script[number:])
                return "stopped"
            if number - len(wanted.forced) >= wanted.limit:
                return "limit"
        return "eos"

    def tidy(self):
        raise AssertionError("not asked for")

    def close(self):
        raise AssertionError("not asked for")


def said(engine: Parrot, **job: Any) -> list[dict[str, Any]]:
    """What comes of a job."""
    model = LocalModel(engine)
    model.load({"chat_template": "chatml"})
    out: list[dict[str, Any]] = []
    job = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 400, "temperature": 0.0, "seed": 5, **job}
    model.generate(job, out.append)
    return out


def text(events) -> str:
    return "".join(e["t"] for e in events if e["ev"] == "text")


def calls(events) -> list[tuple[str, dict]]:
    return [(e["name"], json.loads(e["arguments"])) for e in events if e["ev"] == "call"]


def spoken(body: str) -> str:
    return f"<tool_call>\n{body}\n</tool_call>"


def test_an_answer_that_fails_its_check_is_sampled_once_more_with_another_seed_and_nothing_of_it_is_let_out():
    engine = Parrot('"no"', '"yes"')
    events = said(engine, schema=CHECKED)
    assert text(events) == '"yes"'
    first, second = engine.asked
    assert (first.temperature, first.seed) == (0.0, 5)
    assert second.temperature > 0
    assert second.seed != 5
    assert events[-1]["output"] == len('"no"') + 1 + len('"yes"') + 1, "both samples were paid for"


def test_an_answer_that_fails_its_check_twice_is_refused():
    with pytest.raises(Refused, match="does not fit the schema") as caught:
        said(Parrot('"no"', '"never"'), schema=CHECKED)
    assert caught.value.kind == "malformed"


def test_what_was_let_out_is_not_sampled_anew():
    with pytest.raises(Refused) as caught:
        said(Parrot('"a'), schema={"type": "string"}, partial='"')  # an engine that does not keep to its grammar
    assert caught.value.kind == "malformed"


def test_a_call_that_does_not_fit_is_sampled_once_more_from_where_it_began():
    engine = Parrot("Well. " + spoken('{"name": "add", "arguments": {"a": "x"}}'), "ignored")
    engine.scripts = ["Well. <tool_call>", '\n{"name": "add", "arguments": {"a": "x"}}\n</tool_call>',
                      '\n{"name": "add", "arguments": {"a": 3}}\n</tool_call>', ""]  # fmt: skip
    engine.generate = _one_by_one(engine)  # type: ignore[method-assign]  # each phase has a script of its own
    events = said(engine, tools=[ADD])
    assert calls(events) == [("add", {"a": 3})]
    assert text(events) == "Well."
    assert events[-1]["reason"] == "tool_calls"
    assert engine.prompts[1] == engine.prompts[2], "the text before it is kept"
    assert engine.asked[1].grammar is not None


def _one_by_one(engine: Parrot) -> Any:
    whole = Parrot.generate

    def generate(prompt, wanted, on_start, on_piece):
        rest = engine.scripts[1:]
        end = whole(engine, prompt, wanted, on_start, on_piece)
        engine.scripts = rest
        return end

    return generate


def test_a_call_of_a_tool_that_is_not_offered_is_refused_where_no_grammar_forbids_it():
    tool = {"function": {"name": "add", "parameters": {"not": {}}}}
    with pytest.raises(Refused, match="'sub', which is not offered"):
        said(Parrot(spoken('{"name": "sub", "arguments": {}}')), tools=[tool])


def test_several_calls_are_delivered_one_by_one_and_numbered():
    body = '{"name": "add", "arguments": {"a": %d}}'
    events = said(Parrot(spoken(body % 1) + "\n" + spoken(body % 2)), tools=[ADD])
    assert calls(events) == [("add", {"a": 1}), ("add", {"a": 2})]
    assert [e["index"] for e in events if e["ev"] == "call"] == [0, 1]


def test_one_call_is_enough_where_several_are_not_wanted():
    body = '{"name": "add", "arguments": {"a": %d}}'
    events = said(Parrot(spoken(body % 1) + "\n" + spoken(body % 2)), tools=[ADD], parallel=False)
    assert calls(events) == [("add", {"a": 1})]


def test_a_call_that_a_limit_cuts_off_is_not_delivered_but_kept_for_the_record():
    events = said(Parrot(spoken('{"name": "add", "arguments": {"a": 12345}}')), tools=[ADD], max_tokens=30)
    assert calls(events) == []
    assert events[-1]["reason"] == "length"
    assert events[-1]["extra"]["unfinished_tool_call"].startswith('\n{"name"')


def test_json_may_hold_a_marker_in_a_text():
    answer = '{"a": "<tool_call>x</tool_call>"}'
    schema = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
    assert text(said(Parrot(answer), schema=schema, tools=[ADD])) == answer


def test_the_forced_beginning_is_counted_as_prompt_and_not_let_out():
    engine = Parrot("ld!")
    events = said(engine, partial="hello wor")
    assert engine.asked[0].forced == b" wor"
    assert text(events) == "ld!"
    assert engine.prompts[0].endswith("assistant\nhello")
    assert events[-1]["output"] == 4
    assert events[-1]["prompt"] == len(engine.prompts[0]) + 4


def test_a_thought_that_the_template_opened_is_closed_before_a_partial_answer_goes_on():
    template = "{% for m in messages %}{{ m.content }}{% endfor %}<think>\n"
    engine = Parrot("b")
    model = LocalModel(engine)
    model.load({"chat_template": template})
    out: list[dict[str, Any]] = []
    job = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 99, "temperature": 0.0, "seed": 5}
    model.generate({**job, "partial": "a "}, out.append)
    assert "</think>" in engine.prompts[0]
    assert text(out) == "b"
    engine.scripts = ["hm</think>yes"]
    out.clear()
    model.generate(job, out.append)
    assert text(out) == "yes"
    assert "".join(e["t"] for e in out if e["ev"] == "thought") == "hm"


@pytest.mark.parametrize(
    ("facts", "settings", "outcome"),
    [
        ({}, {"n_gpu_layers": None}, None),
        ({}, {"n_gpu_layers": 0}, None),
        ({}, {"n_gpu_layers": 3}, "built without GPU support"),
        ({"gpu_support": True, "devices": [{"name": "G0", "gpu": True}]}, {"n_gpu_layers": -1}, "none of G0 took"),
        ({"gpu_support": True, "devices": [{"name": "G0", "gpu": True}], "gpu_layers": 3}, {"n_gpu_layers": 3}, None),
    ],
)
def test_a_gpu_that_was_asked_for_and_is_not_used_is_an_error_unless_the_cpu_is_allowed(facts, settings, outcome):
    settings = {"chat_template": "chatml", **settings}
    if outcome is None:
        got = LocalModel(Parrot(**facts)).load(settings)
        assert got["gpu_offload"] is bool(facts.get("gpu_layers"))
        assert got["backend"] == ("G0" if facts.get("gpu_layers") else "CPU")
        return
    with pytest.raises(LoadError, match=outcome) as caught:
        LocalModel(Parrot(**facts)).load(settings)
    assert caught.value.what == "config"
    assert "allow_cpu=True" in str(caught.value)
    assert LocalModel(Parrot(**facts)).load({**settings, "allow_cpu": True})["warnings"]


def test_a_gpu_that_is_there_and_not_used_is_reported():
    facts = {"gpu_support": True, "devices": [{"name": "G0", "gpu": True}]}
    assert "runs on the CPU" in LocalModel(Parrot(**facts)).load({"chat_template": "chatml"})["warnings"][0]
