"""What both engines must do alike: go on exactly, also within JSON and calls; hold to schemas; remember talks."""

from __future__ import annotations

import json
import os
import signal

import jsonschema
import pytest

from shared_core.chat.events import TextDelta, collect
from shared_core.chat.request import OutputSchema, ToolSpec, assistant, system, user
from shared_core.errors import ErrorKind, InvalidRequest, MissingDependency, ProviderError, UnknownOption
from shared_core.providers.llama_cpp import LlamaCppProvider
from shared_core.providers.llama_cpp.options import cpu_budget
from shared_core.routing.target import Target
from tests.local.conftest import ENGINES, NO_LOCAL
from tests.local.schemas import SCHEMAS
from tests.local.support import answer, ask, guard

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}, "city": {"type": "string"}},
    "required": ["name", "age", "city"],
    "additionalProperties": False,
}
WEATHER = ToolSpec(
    "get_weather", "", {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
)
ALARM = {
    "type": "object",
    "properties": {
        "at": {"type": "string", "pattern": "^[0-2][0-9]:[0-5][0-9]$"},
        "days": {"type": "array", "items": {"enum": ["Mon", "Tue", "Wed"]}, "uniqueItems": True, "minItems": 1},
        "volume": {"type": "number", "minimum": 0, "maximum": 1},
    },
    "required": ["at", "days", "volume"],
    "additionalProperties": False,
}
ASKED = "What is the weather in Lima?"


@pytest.fixture(scope="module", params=ENGINES)
def tiny(request):
    """The toy model, warm, on either engine."""
    if NO_LOCAL:
        pytest.skip("LLM_FALLBACK_NO_LOCAL=1")
    provider = LlamaCppProvider(Target("llamacpp:tiny", engine=request.param, queue=8))
    provider.warm()
    yield provider
    provider.close()


def test_the_facts_name_the_engine_and_what_it_runs_on(tiny):
    facts = tiny.facts
    assert facts["engine"] == tiny.options.engine
    assert facts["backend"] == "CPU"
    assert facts["gpu_layers"] == 0
    assert any(device["name"] == "CPU" and not device["gpu"] for device in facts["devices"])
    assert facts["template"] == {
        "system": True, "any_order": True, "tools": True, "tool_turns": True, "parts": False,
    }  # fmt: skip


# ── going on within JSON and calls ───────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def call(tiny):
    """The arguments that the model chooses, and the text in which it says so."""
    got = answer(tiny, ASKED, tools=(WEATHER,))
    (only,) = got.tool_calls
    return only.arguments, f'<tool_call>\n{{"name": "get_weather", "arguments": {only.arguments}}}\n</tool_call>'


@pytest.mark.parametrize("choice", ["auto", "any", "get_weather"])
def test_a_call_cut_at_any_character_goes_on_to_the_same_call(tiny, call, choice):
    arguments, raw = call
    for cut in range(1, len(raw) - len("</tool_call>")):
        fields = {"tools": (WEATHER,), "tool_choice": choice, "parallel_tool_calls": False}
        got = answer(tiny, user(ASKED), assistant(raw[:cut]), continues=True, **fields)
        if choice != "auto" and cut < len("<tool_call>"):
            assert len(got.tool_calls) == 1  # a call begins anew: what looked like its beginning is text by now
            continue
        assert [(c.name, c.arguments) for c in got.tool_calls] == [("get_weather", arguments)], f"cut at {cut}"
        assert (got.text, got.finish_reason) == ("", "tool_calls"), f"cut at {cut}"


def test_json_cut_at_any_character_goes_on_as_it_would_have(tiny):
    question, schema = "Return JSON for: Uma is 44 years old and lives in Hanoi.", OutputSchema(PERSON)
    whole = answer(tiny, question, output=schema).text
    assert json.loads(whole)["age"]
    for cut in range(1, len(whole)):
        rest = answer(tiny, user(question), assistant(whole[:cut]), continues=True, output=schema)
        assert whole[:cut] + rest.text == whole, f"cut at {cut}"


def test_a_partial_answer_that_another_model_laid_out_differently_is_completed_within_the_schema(tiny):
    begun = '{\n  "name": "Uma",\n  "age"'
    got = answer(tiny, user("x"), assistant(begun), continues=True, output=OutputSchema(PERSON))
    assert set(json.loads(begun + got.text)) == {"name", "age", "city"}


# ── calls ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_with_a_schema_and_tools_the_model_may_do_either(tiny):
    called = answer(tiny, ASKED, tools=(WEATHER,), output=OutputSchema(PERSON))
    assert called.tool_calls or json.loads(called.text)
    said = answer(tiny, ASKED, tools=(WEATHER,), tool_choice="none", output=OutputSchema(PERSON))
    assert set(json.loads(said.text)) == {"name", "age", "city"}


def test_a_forced_call_of_several_may_be_followed_by_others_and_ends_by_itself(tiny):
    got = answer(tiny, ASKED, tools=(WEATHER,), tool_choice="any")
    assert got.finish_reason == "tool_calls"
    assert {c.name for c in got.tool_calls} == {"get_weather"}
    assert all(isinstance(c.parsed()["city"], str) for c in got.tool_calls)


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("choice", ["auto", "any", "get_weather"])
def test_a_call_that_the_model_begins_itself_is_held_to_the_schema_as_well(tiny, choice, streaming):
    city = {"type": "object", "properties": {"city": {"enum": ["Oslo", "Rome"]}}, "required": ["city"]}
    got = answer(
        tiny, ASKED, tools=(ToolSpec("get_weather", "", city),), tool_choice=choice, streaming=streaming,
        parallel_tool_calls=False,
    )  # fmt: skip
    assert [c.parsed()["city"] in ("Oslo", "Rome") for c in got.tool_calls] == [True]


# ── conversations ────────────────────────────────────────────────────────────────────────────────────────────────────

TALKS = [
    (system(f"{name} asks. " + "Be brief. " * 12), user(f"My name is {name}."), assistant(f"Nice to meet you, {name}."))
    for name in ("Grace", "Hugo", "Uma")
]


def test_conversations_that_take_turns_are_remembered_and_answered_as_if_they_were_not(tiny):
    alone = LlamaCppProvider(Target("llamacpp:tiny", engine=tiny.options.engine, kv_cache_mb=0, queue=9))
    try:
        question = user("What is my name?")
        for talk in TALKS:
            answer(tiny, *talk[:2])
        for talk in TALKS:
            got = answer(tiny, *talk, question)
            alone_got = answer(alone, *talk, question)
            assert got.text == alone_got.text
            known = tiny.count_tokens(ask(*talk[:2]))
            assert got.usage.cached_tokens >= known, "the talk itself is remembered, not its opening alone"
            assert alone_got.usage.cached_tokens < known
    finally:
        alone.close()


def test_nothing_is_left_on_disk_not_even_by_a_worker_that_was_killed(random_gguf, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    provider = LlamaCppProvider(Target(f"llamacpp:{random_gguf}", engine="xllamacpp", queue=31))
    try:
        provider.warm()
        assert len(list(tmp_path.iterdir())) == 1
        assert all(folder.stat().st_mode & 0o077 == 0 for folder in tmp_path.iterdir()), "nobody else may enter"
        assert provider.pid is not None
        os.kill(provider.pid, signal.SIGKILL)
        assert answer(provider, "x", max_tokens=2).usage.output_tokens == 2
        assert len(list(tmp_path.iterdir())) == 1, "the new one has swept up"
    finally:
        provider.close()
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_engine_is_refused():
    with pytest.raises((UnknownOption, ValueError), match="xllamacpp"):
        LlamaCppProvider(Target("llamacpp:tiny", engine="llama.cpp"))


def test_an_engine_that_is_not_installed_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(MissingDependency, match=r"pip install 'llm-fallback\[xllamacpp\]'"):
        LlamaCppProvider(Target("llamacpp:tiny", engine="xllamacpp"))


@pytest.mark.parametrize("engine", ENGINES)
def test_damaged_weights_are_found_when_the_model_is_loaded(tmp_path, engine):
    from shared_core.providers.llama_cpp.model_file import TINY

    if NO_LOCAL:
        pytest.skip("LLM_FALLBACK_NO_LOCAL=1")
    data = bytearray(TINY.read_bytes())
    data[-400_000:] = b"\xff\x7f" * 200_000  # NaN in 16 bits
    path = tmp_path / "damaged.gguf"
    path.write_bytes(data)
    provider = LlamaCppProvider(Target(f"llamacpp:{path}", engine=engine))
    try:
        with pytest.raises(ProviderError, match="NaN or infinity") as caught:
            provider.warm()
        assert caught.value.kind is ErrorKind.CONFIG
    finally:
        provider.close()


# ── schemas ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module", params=ENGINES)
def noise(request, random_gguf):
    """Random weights, warm, on either engine: what they write fits only because it must."""
    provider = LlamaCppProvider(Target(f"llamacpp:{random_gguf}", engine=request.param, n_ctx=1024, queue=8))
    provider.warm()
    yield provider
    provider.close()


REFUSED = ("not", "if and then", "names by a pattern", "a definition that is elsewhere")


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_answer_fits_its_schema_or_the_schema_is_refused_before_anything_is_written(noise, name):
    judge = jsonschema.Draft202012Validator(SCHEMAS[name], format_checker=jsonschema.FormatChecker())
    for seed in range(4):
        events = noise.stream(ask("x", output=OutputSchema(SCHEMAS[name]), temperature=1.0, seed=seed), guard())
        try:
            got = collect(events)
        except InvalidRequest:
            kind = ErrorKind.INCAPABLE  # nobody could answer in it, whoever is asked
        except ProviderError as error:
            kind = error.kind
        else:
            kind = None
            assert got.finish_reason == "stop"
            judge.validate(json.loads(got.text))
        assert kind is (ErrorKind.INCAPABLE if name in REFUSED else None)


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("choice", ["any", "get_weather", "set_alarm"])
def test_forced_calls_of_random_weights_fit_their_tools(noise, choice, streaming):
    place = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 9}}, "required": ["city"]}
    tools = {"get_weather": ToolSpec("get_weather", "", place), "set_alarm": ToolSpec("set_alarm", "", ALARM)}
    for seed in range(4):
        got = answer(
            noise, "x", tools=tuple(tools.values()), tool_choice=choice, parallel_tool_calls=False, temperature=1.0,
            seed=seed, streaming=streaming,
        )  # fmt: skip
        (call,) = got.tool_calls
        assert choice in ("any", call.name)
        jsonschema.validate(call.parsed(), tools[call.name].parameters)
        assert (got.text, got.finish_reason) == ("", "tool_calls")


def test_what_only_a_check_can_see_is_sampled_twice_and_then_refused(noise):
    schema = OutputSchema({"type": "string", "maxLength": 2, "pattern": "^(?=never)this$"})
    events = []
    with pytest.raises(ProviderError, match="does not fit the schema") as caught:
        events.extend(noise.stream(ask("x", output=schema, max_tokens=50), guard()))
    assert caught.value.kind is ErrorKind.MALFORMED
    assert not any(isinstance(e, TextDelta) for e in events)


BAD_GRAMMARS = {
    "a rule that is not there": "root ::= nosuch",
    "an open text": 'root ::= "a',
    "an open class": "root ::= [a",
    "no root": 'x ::= "a"',
    "a rule that begins with itself": 'root ::= root "a" | "b"',
    "nothing": " ",
    "half a count": 'root ::= "a"{2',
    "an unknown escape": 'root ::= "\\q"',
    "no grammar": "please answer in French",
    "a NUL": "root ::= \x00",
    "endless nesting": "root ::= " + "(" * 50_000 + '"a"' + ")" * 50_000,
    "endless nesting of counts": 'root ::= "a"' + "*" * 20_000 + "{1000}{1000}{1000}",
}


@pytest.mark.parametrize("name", BAD_GRAMMARS)
def test_a_grammar_that_is_none_is_refused_and_nobody_dies_of_it(noise, name):
    pid = noise.pid
    with pytest.raises(ProviderError) as caught:
        answer(noise, "x", extra={"llamacpp": {"grammar": BAD_GRAMMARS[name]}}, max_tokens=20)
    assert caught.value.kind is ErrorKind.INCAPABLE
    assert noise.pid == pid
    assert answer(noise, "x", max_tokens=2).usage.output_tokens == 2


def test_an_answer_may_be_held_to_a_grammar(noise):
    got = answer(noise, "x", extra={"llamacpp": {"grammar": 'root ::= ("yes" | "no") "!"'}}, temperature=1.0)
    assert got.text in ("yes!", "no!")
    rest = answer(noise, "x", assistant("ye"), continues=True, extra={"llamacpp": {"grammar": 'root ::= "yes" "!"'}})
    assert rest.text == "s!"


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({"sys/fs/cgroup/cpu.max": "50000 100000"}, 1),
        ({"sys/fs/cgroup/cpu.max": "max 100000"}, None),
        ({"proc/self/cgroup": "0::/pod/box\n", "sys/fs/cgroup/pod/cpu.max": "100000 100000"}, 1),
        ({"proc/self/cgroup": "0::/pod/box\n", "sys/fs/cgroup/other/cpu.max": "100000 100000"}, None),
        ({"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "150000", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}, 1),
        ({"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}, None),
        (
            {
                "proc/self/cgroup": "4:cpu,cpuacct:/box\n",
                "sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_quota_us": "100000",
                "sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_period_us": "100000",
            },
            1,
        ),
        ({"proc/self/cgroup": "nonsense"}, None),
    ],
)  # fmt: skip
def test_the_cpu_quota_of_control_groups_of_both_versions_is_respected(tmp_path, files, cpus, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(16)), raising=False)
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    assert cpu_budget(tmp_path) == (cpus or 16)
