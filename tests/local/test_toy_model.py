"""The toy model that ships with the package: it makes sense, and goes on with an answer from any character."""

from __future__ import annotations

import pytest

from shared_core.chat.request import OutputSchema, ToolSpec, assistant, user
from shared_core.providers.llama_cpp import LlamaCppProvider
from shared_core.routing.target import Target
from tests.local.conftest import ENGINES, NO_LOCAL
from tests.local.support import aanswer, answer


@pytest.fixture(scope="module", params=ENGINES)
def tiny(request):
    """The toy model with a warm worker, on either engine."""
    if NO_LOCAL:
        pytest.skip("LLM_FALLBACK_NO_LOCAL=1")
    provider = LlamaCppProvider(Target("llamacpp:tiny", engine=request.param))
    provider.warm()
    yield provider
    provider.close()


QUESTION = "Explain what a circuit breaker does."


def test_it_knows_a_capital(tiny):
    assert answer(tiny, "What is the capital of France?").text == "The capital of France is Paris."


async def test_it_knows_it_on_an_event_loop(tiny):
    assert (await aanswer(tiny, "What is the capital of Kenya?")).text == "The capital of Kenya is Nairobi."


def test_it_calls_a_tool_when_it_chooses_to(tiny):
    city = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    got = answer(tiny, "What is the weather in Lima?", tools=(ToolSpec("get_weather", "", city),))
    assert got.finish_reason == "tool_calls"
    assert got.tool_calls[0].name == "get_weather"
    assert "city" in got.tool_calls[0].parsed()
    assert got.text == ""


def test_it_answers_in_a_schema(tiny):
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string"}, "age": {"type": "integer"}, "city": {"type": "string"}},
        "required": ["name", "age", "city"],
        "additionalProperties": False,
    }
    got = answer(tiny, "Return JSON for: Uma is 44 years old and lives in Hanoi.", output=OutputSchema(schema))
    assert got.finish_reason == "stop"
    assert got.text.startswith('{"name": "')


@pytest.fixture(scope="module")
def explained(tiny):
    return answer(tiny, QUESTION).text


@pytest.mark.parametrize("phase", range(24))
def test_an_answer_cut_at_any_character_goes_on_exactly(tiny, explained, phase):
    """Every cut from the first character to the last but one; in parts, so that none takes long."""
    assert len(explained) > 200
    for cut in range(1 + phase, len(explained), 24):
        rest = answer(tiny, user(QUESTION), assistant(explained[:cut]), continues=True)
        assert rest.text == explained[cut:], f"cut at {cut}"
        assert rest.finish_reason == "stop"


def test_a_continuation_obeys_a_stop_sequence_that_began_before_it(tiny, explained):
    cut = explained.index("provider") + 4
    got = answer(tiny, user(QUESTION), assistant(explained[:cut]), continues=True, stop=("provider",))
    assert (got.text, got.raw_finish_reason) == ("", "stop_sequence")


def test_json_cut_at_any_character_goes_on_within_its_schema(tiny):
    properties = {"name": {"type": "string"}, "age": {"type": "integer"}}
    wanted = {"type": "object", "properties": properties, "required": ["name", "age"], "additionalProperties": False}
    schema = OutputSchema(wanted)
    question = "Return JSON for: Uma is 44 years old and lives in Hanoi."
    whole = answer(tiny, question, output=schema).text
    for cut in range(1, len(whole)):
        rest = answer(tiny, user(question), assistant(whole[:cut]), continues=True, output=schema)
        assert whole[:cut] + rest.text == whole, f"cut at {cut}"
