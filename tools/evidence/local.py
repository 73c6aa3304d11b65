"""The local model: its speed beside llama.cpp itself, how it lets go and comes back, what it holds to and survives.

python -m tools.evidence local --out docs/evidence
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jsonschema

from benchmarks import local as speed
from shared_core.chat.events import Answer, collect
from shared_core.chat.request import ChatRequest, OutputSchema, ToolSpec, assistant, user
from shared_core.errors import ErrorKind, InvalidRequest, ProviderError
from shared_core.providers.llama_cpp import LlamaCppProvider
from shared_core.resilience.deadline import Guard
from shared_core.routing.target import Target
from shared_core.testing.random_gguf import write_random_gguf
from tests.local import bad_files
from tests.local.schemas import AWKWARD, EVERYDAY
from tools import local_soak, local_trials
from tools.tiny_model.explanations import EXPLANATIONS

__all__ = ["ENGINES", "figures"]

Figures = dict[str, Any]
ENGINES = ("llama-cpp-python", "xllamacpp")

TOPICS = 6
"""Of the toy model's long answers, those that are cut at every character."""
SAMPLES = 6
"""Answers for each schema, each from a seed of its own."""
CANCELS = 50
"""For each face of each engine. Each takes some seconds of reading a prompt; `tools.local_trials` does 150."""


def figures(*, quick: bool = False) -> Figures:
    """Everything, in some twenty minutes; `quick` measures a part of it in about four."""
    cancels = 15 if quick else CANCELS
    return {
        "speed": [row.as_dict() for row in _said("speed", speed.measure(3 if quick else 5))],
        "cancel": {e: _said(f"cancel, {e}", local_trials.cancel(engine=e, times=cancels)) for e in ENGINES},
        "restart": {e: _said(f"restart, {e}", local_trials.restart(engine=e, quick=quick)) for e in ENGINES},
        "prefill": _said("prefill", local_trials.prefill(quick=quick)),
        "continuation": _said("continuation", continuation(quick=quick)),
        "schemas": _said("schemas", schemas(quick=quick)),
        "tool_choices": _said("tool choices", tool_choices(quick=quick)),
        "bad_files": _said("bad files", files(quick=quick)),
        "soak": _said("soak", local_soak.soak(seconds=5 if quick else 60)),
    }


def _said(what: str, found: Any) -> Any:
    """Tells that a part is done: the whole takes minutes."""
    print(f"local: {what} is measured", file=sys.stderr, flush=True)
    return found


@contextmanager
def _model(spec: str, engine: str, **options: Any) -> Iterator[LlamaCppProvider]:
    provider = LlamaCppProvider(Target(f"llamacpp:{spec}", engine=engine, **options))
    try:
        provider.warm()
        yield provider
    finally:
        provider.close()


def _answer(provider: LlamaCppProvider, request: ChatRequest) -> Answer:
    until = time.monotonic() + 120
    guard = Guard(time.monotonic, streaming=request.streaming, first_s=60, idle_s=60, deadline=until)
    return collect(provider.stream(request, guard))


# ── going on with an answer ──────────────────────────────────────────────────────────────────────────────────────────


def continuation(*, quick: bool = False) -> list[Figures]:
    """The toy model's own answers, cut at every character and gone on with: how many end as the uncut one did."""
    found = []
    for engine in ENGINES:
        with _model("tiny", engine) as provider:
            questions = [explained.questions[0] for explained in list(EXPLANATIONS.values())[: 1 if quick else TOPICS]]
            texts = [(q, _answer(provider, ChatRequest((user(q),))).text, None) for q in questions]
            found.append({"engine": engine, "what": "text", **_cut_everywhere(provider, texts)})
            person = OutputSchema(_PERSON)
            asked = [f"Return JSON for: {who}." for who in ("Uma is 44 years old and lives in Hanoi",
                                                            "Hugo is 31 years old and lives in Lima")]  # fmt: skip
            objects = [(q, _answer(provider, ChatRequest((user(q),), output=person)).text, person) for q in asked]
            found.append({"engine": engine, "what": "JSON", **_cut_everywhere(provider, objects)})
            found.append({"engine": engine, "what": "a tool call", **_call_cut_everywhere(provider)})
    return found


_PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}, "city": {"type": "string"}},
    "required": ["name", "age", "city"],
    "additionalProperties": False,
}


def _cut_everywhere(
    provider: LlamaCppProvider, answers: Sequence[tuple[str, str, OutputSchema | None]]
) -> dict[str, int]:
    cuts = exact = 0
    for question, whole, output in answers:
        for cut in range(1, len(whole)):
            request = ChatRequest((user(question), assistant(whole[:cut])), continues=True, output=output)
            cuts += 1
            exact += whole[:cut] + _answer(provider, request).text == whole
    return {"answers": len(answers), "cuts": cuts, "exact": exact}


def _call_cut_everywhere(provider: LlamaCppProvider) -> dict[str, int]:
    question = user("What is the weather in Lima?")
    (only,) = _answer(provider, ChatRequest((question,), tools=(_WEATHER,))).tool_calls
    raw = f'<tool_call>\n{{"name": "get_weather", "arguments": {only.arguments}}}\n</tool_call>'
    cuts = exact = 0
    for cut in range(1, len(raw) - len("</tool_call>")):
        request = ChatRequest((question, assistant(raw[:cut])), continues=True, tools=(_WEATHER,))
        calls = _answer(provider, request).tool_calls
        cuts += 1
        exact += [(c.name, c.arguments) for c in calls] == [("get_weather", only.arguments)]
    return {"answers": 1, "cuts": cuts, "exact": exact}


# ── holding to what was asked ────────────────────────────────────────────────────────────────────────────────────────

_WEATHER = ToolSpec(
    "get_weather", "Get the weather of a city.",
    {"type": "object", "properties": {"city": {"enum": ["Lima", "Oslo"]}}, "required": ["city"],
     "additionalProperties": False},
)  # fmt: skip
_TIME = ToolSpec(
    "get_time", "Get the time in a zone.",
    {"type": "object", "properties": {"zone": {"enum": ["UTC", "CET"]}, "seconds": {"type": "boolean"}},
     "required": ["zone"], "additionalProperties": False},
)  # fmt: skip


def schemas(*, quick: bool = False) -> list[Figures]:
    """Every schema, some samples each, from a model of random weights and from the toy one, judged by `jsonschema`."""
    found = []
    for which, provider in _noisy_and_trained():
        for kind, chosen in (("everyday", EVERYDAY), ("awkward", AWKWARD)):
            outcomes, by_schema = _samples(provider, chosen, 2 if quick else SAMPLES)
            sizes = {"schemas": len(chosen), "samples": outcomes.total()}
            counted = {outcome: outcomes[outcome] for outcome in _OUTCOMES}
            found.append({**which, "kind": kind, **sizes, **counted, "not_valid": by_schema})
    return found


def _noisy_and_trained() -> Iterator[tuple[Figures, LlamaCppProvider]]:
    """A model of random weights and the toy one on each engine, loaded while it is looked at, and what it is."""
    with tempfile.TemporaryDirectory() as folder:
        noise = write_random_gguf(Path(folder) / "random.gguf", seed=1)
        for engine in ENGINES:
            for model, spec in (("random weights", str(noise)), ("toy model", "tiny")):
                with _model(spec, engine, n_ctx=1024) as provider:
                    yield {"engine": engine, "model": model}, provider


_OUTCOMES = ("valid", "refused_before", "refused_after_check", "cut_by_limit", "invalid", "untyped")


def _samples(
    provider: LlamaCppProvider, schemas: Mapping[str, Figures], samples: int
) -> tuple[Counter[str], dict[str, dict[str, int]]]:
    """Outcomes over all schemas, and by schema for those with any that are not valid answers."""
    counts: Counter[str] = Counter()
    by_schema: dict[str, dict[str, int]] = {}
    for name, schema in schemas.items():
        mine = Counter(_in_schema(provider, schema, seed) for seed in range(samples))
        counts.update(mine)
        if set(mine) != {"valid"}:
            by_schema[name] = dict(mine)
    return counts, by_schema


def _in_schema(provider: LlamaCppProvider, schema: Figures, seed: int) -> str:
    """What came of one sample. 'refused_after_check': nothing had been let out, and the caller got a typed error."""
    try:
        request = ChatRequest(
            (user("Answer."),), output=OutputSchema(schema), temperature=1.0, seed=seed, max_tokens=400
        )
        got = _answer(provider, request)
    except InvalidRequest:
        return "refused_before"
    except ProviderError as error:
        refused = {ErrorKind.INCAPABLE: "refused_before", ErrorKind.MALFORMED: "refused_after_check",
                   ErrorKind.INVALID_OUTPUT: "refused_after_check"}  # fmt: skip
        return refused.get(error.kind, "untyped")
    if got.finish_reason == "length":
        return "cut_by_limit"
    try:
        jsonschema.validate(json.loads(got.text), schema, format_checker=jsonschema.FormatChecker())
    except (ValueError, jsonschema.ValidationError):
        return "invalid"
    return "valid"


def tool_choices(*, quick: bool = False) -> list[Figures]:
    """Each kind of tool choice, streamed and whole: calls that are calls of a tool with arguments that fit."""
    found = []
    for which, provider in _noisy_and_trained():
        for choice in ("auto", "any", "get_weather", "none"):
            for streaming in (True, False):
                asked = _calls(provider, choice, streaming, 2 if quick else SAMPLES)
                found.append({**which, "choice": choice, "streaming": streaming, **asked})
    return found


def _calls(provider: LlamaCppProvider, choice: str, streaming: bool, samples: int) -> Figures:
    tools = {tool.name: tool for tool in (_WEATHER, _TIME)}
    asked = as_it_should = calls = refused = 0
    for seed in range(samples):
        request = ChatRequest(
            (user("What is the weather in Lima?"),),
            tools=tuple(tools.values()),
            tool_choice=choice,
            parallel_tool_calls=False,
            streaming=streaming,
            temperature=1.0,
            seed=seed,
            max_tokens=300,
        )
        asked += 1
        try:
            got = _answer(provider, request)
        except ProviderError as error:
            if error.kind is not ErrorKind.MALFORMED:
                raise
            refused += 1
            continue
        calls += len(got.tool_calls)
        fit = all(call.name in tools and _fits(call.parsed(), tools[call.name]) for call in got.tool_calls)
        match choice:
            case "none":
                fit = fit and not got.tool_calls
            case "auto":
                fit = fit and len({call.id for call in got.tool_calls}) == len(got.tool_calls)
            case "any":
                fit = fit and len(got.tool_calls) == 1
            case name:
                fit = fit and [call.name for call in got.tool_calls] == [name]
        as_it_should += fit
    return {"samples": asked, "calls": calls, "as_it_should": as_it_should, "refused_after_check": refused}


def _fits(arguments: Any, tool: ToolSpec) -> bool:
    return bool(jsonschema.Draft202012Validator(dict(tool.parameters)).is_valid(arguments))


# ── surviving ────────────────────────────────────────────────────────────────────────────────────────────────────────


def files(*, quick: bool = False) -> Figures:
    """Every bad file of the table and 300 damaged headers, each loaded and asked: what came of it."""
    with tempfile.TemporaryDirectory() as folder:
        whole = write_random_gguf(Path(folder) / "random.gguf", seed=1).read_bytes()
        path = Path(folder) / "bad.gguf"
        rows = {}
        for name, (data, how, reason) in bad_files.table(whole).items():
            path.unlink(missing_ok=True)
            if data is not None:
                path.write_bytes(data)
            met = bad_files.meet(path)
            told = met.reason.partition("\n")[0].strip("': ")
            rows[name] = {"met": met.how, "as_expected": bad_files.matches(met, how, reason), "said": told[:160]}
        counts: Counter[str] = Counter()
        died = 0
        without_reason = 0
        for number, data in enumerate(bad_files.mutants(whole)):
            if quick and number % 10:
                continue
            path.write_bytes(data)
            met = bad_files.meet(path)
            counts[met.how] += 1
            died += "died with signal" in met.said
            without_reason += met.how in ("refused", "load", "answer") and len(met.reason.strip("': ")) < 10
    return {
        "table": rows,
        "mutants": counts.total(),
        "refused_by_the_reader": counts["refused"],
        "refused_by_llama_cpp": counts["load"] - died,
        "killed_its_process": died,
        "failed_when_asked": counts["answer"],
        "loaded_and_answered": counts["answered"],
        "untyped_errors": counts["bug"],
        "errors_without_a_reason": without_reason,
    }
