"""What FallbackLLM is built from, what it says of itself, and how it travels."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys
import threading
from typing import Any

import pytest
from llama_index.core import Settings
from llama_index.core.base.llms.base import BaseLLM
from llama_index.core.base.llms.types import ChatMessage, ChatResponse, TextBlock, ToolCallBlock
from llama_index.core.callbacks import CallbackManager, LlamaDebugHandler
from llama_index.core.constants import DEFAULT_CONTEXT_WINDOW
from llama_index.core.llms import MockLLM
from llama_index.core.llms.llm import ToolSelection

from llamaindex_fallback import FallbackLLM
from shared_core import (
    Capabilities,
    ConfigurationError,
    InvalidRequest,
    Limits,
    MissingKey,
    Price,
    Router,
    Target,
    UnknownOption,
)
from shared_core.errors import UnknownProvider
from shared_core.router import router_options
from shared_core.testing import ScriptedProvider
from tests.llamaindex.world import KEY, PRIMARY, SECONDARY, claude, fallback_llm, fallback_of, native, wrapped

SECRET = "hunter2, which looks like no vendor's key"
EXTRA = {"service_tier": "flex", "extra_headers": {"X-Team": SECRET}}


def scripted(*script: Any, **capabilities: Any) -> Target:
    model = f"m{len(script)}{len(str(capabilities))}"
    return Target(provider=ScriptedProvider(*script, model=model, capabilities=Capabilities(**capabilities)))


# ── building ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_it_is_a_llamaindex_llm(server):
    """Settings and everything else take it as it is."""
    llm = fallback_llm(server)
    assert isinstance(llm, BaseLLM)
    assert llm.class_name() == "fallback_llm"
    manager = Settings.callback_manager
    Settings.llm = llm
    try:
        assert Settings.llm is llm
        assert Settings.llm.callback_manager is manager
    finally:
        Settings._llm = None


def test_models_are_strings_targets_mappings_providers_and_llms(server, monkeypatch):
    """Mixed freely, in order."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    models = [
        "openai:gpt-4.1",
        native(server, PRIMARY),
        {"spec": "openai:gpt-5", "name": "big"},
        ScriptedProvider(),
        MockLLM(),
        {"llm": MockLLM(), "name": "mock"},
    ]
    names = [t.name for t in FallbackLLM(models).router.targets]
    assert names == ["openai:gpt-4.1", f"openai:{PRIMARY}", "big", "scripted:script", "mock:unknown", "mock"]


@pytest.mark.parametrize("one", [lambda: scripted("hi"), lambda: ScriptedProvider("hi"), lambda: MockLLM()])
def test_one_model_needs_no_list(one):
    """A single entry is a list of one."""
    assert len(FallbackLLM(one()).router.targets) == 1


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({}, ConfigurationError, "needs models"),
        ({"models": []}, ConfigurationError, "at least one model"),
        ({"models": [ScriptedProvider()], "strategi": "priority"}, UnknownOption, "Did you mean 'strategy'"),
        ({"models": [ScriptedProvider()], "temprature": 1}, UnknownOption, "Did you mean 'temperature'"),
        ({"models": [ScriptedProvider()], "sytem_prompt": "x"}, UnknownOption, "Did you mean 'system_prompt'"),
        ({"models": ["opnai:gpt-5"]}, UnknownProvider, "openai"),
        ({"models": ["openai:gpt-5"]}, MissingKey, "OPENAI_API_KEY"),
        ({"models": [3]}, ConfigurationError, "not int"),
        ({"router": Router([ScriptedProvider()]), "models": ["x"]}, ConfigurationError, "models"),
        ({"router": Router([ScriptedProvider()]), "strategy": "priority"}, ConfigurationError, "strategy"),
        ({"router": "openai:gpt-5"}, ConfigurationError, "Router"),
        ({"models": [{"llm": "gpt-5"}]}, ConfigurationError, "LlamaIndex LLM"),
    ],
)
def test_a_wrong_construction_says_what_to_do(arguments, error, words, monkeypatch):
    """Raised where it is built; the message names the fix."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(error, match=words):
        FallbackLLM(**arguments)


def test_every_keyword_of_the_router_is_one_here():
    """Read from its signature, so that none is forgotten."""
    assert {"strategy", "retry", "timeouts", "breaker", "on_stream_break"} <= set(router_options())
    seen: list[Any] = []
    llm = FallbackLLM([ScriptedProvider("hi")], on_event=seen.append, strategy="round_robin", metadata=False, seed=1)
    assert llm.complete("x").additional_kwargs["fallback"] == {}
    assert llm.router.flush_events()
    assert seen
    assert "round_robin" in repr(llm)


def test_one_router_may_serve_several():
    """Shared breakers, one ledger; closing the LLM leaves the router to its owner."""
    with Router([ScriptedProvider("hi")]) as router:
        one, two = FallbackLLM(router=router), FallbackLLM(router=router)
        one.complete("x")
        one.close()
        assert two.complete("x").text == "hi"
        assert router.costs() is not None
        assert one.router is two.router is router


def test_llamaindexs_own_options_are_taken():
    """system_prompt and the prompt functions do what they do elsewhere."""
    provider = ScriptedProvider("hi")
    llm = FallbackLLM([provider], system_prompt="Be brief.", completion_to_prompt=lambda p: f"<{p}>")
    llm.complete("x")
    llm.complete("x", formatted=True)
    llm.predict(llm_prompt("Say {word}"), word="y")
    said = [[(m.role, m.text) for m in request.messages] for request in provider.requests]
    assert said == [[("user", "<x>")], [("user", "x")], [("system", "Be brief."), ("user", "Say y")]]


def llm_prompt(text: str) -> Any:
    from llama_index.core.prompts import PromptTemplate

    return PromptTemplate(text)


# ── what it says of itself ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("targets", "options", "window", "output", "tools"),
    [
        ([{"context_window": 8000, "max_output": 1000}, {"context_window": 4000}], {}, 4000, 1000, True),
        ([{"context_window": 8000, "max_output": 8000}], {}, 8000, 2000, True),
        ([{}, {"tools": False}], {}, DEFAULT_CONTEXT_WINDOW, -1, False),
        ([{"context_window": 8000}], {"max_tokens": 300}, 8000, 300, True),
        ([{"context_window": 8000}], {"context_window": 100_000, "num_output": 500}, 100_000, 500, True),
    ],
)
def test_metadata_is_what_every_target_can_do(targets, options, window, output, tools):
    """The smallest window and output, leaving room for a prompt; tools only if all have them; overrides win."""
    facts = FallbackLLM([scripted(*["x"] * i, **c) for i, c in enumerate(targets)], **options).metadata
    assert (facts.context_window, facts.num_output, facts.is_function_calling_model) == (window, output, tools)
    assert facts.is_chat_model


def test_another_llms_limits_may_be_passed_on_as_they_are():
    """-1 is LlamaIndex's word for an unknown length, and its OpenAI's for most models."""
    assert FallbackLLM([ScriptedProvider("Hi")], num_output=-1).metadata.num_output == -1
    assert FallbackLLM([ScriptedProvider("Hi")], num_output=-1, max_tokens=200).metadata.num_output == 200


def test_a_disabled_target_does_not_count():
    """Only who may serve is asked what it can do."""
    small = Target(provider=ScriptedProvider(model="s", capabilities=Capabilities(context_window=10)), enabled=False)
    assert FallbackLLM([scripted("x", context_window=8000), small]).metadata.context_window == 8000


def test_payloads_tell_the_model_and_no_key(server):
    """They go out with every event."""
    payload = fallback_llm(server, "wrapped", temperature=0.3).to_payload()
    assert payload["class_name"] == "fallback_llm"
    assert payload["temperature"] == 0.3
    assert PRIMARY in payload["model"]
    assert SECONDARY in payload["model"]
    assert KEY not in json.dumps(payload)


# ── as data ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def mixed(server):
    theirs = wrapped(server, SECONDARY, default_headers={"X-Team": SECRET}, additional_kwargs=EXTRA)
    models = [
        native(server, PRIMARY, weight=2.0, price={"input": 1, "output": 2}, headers={"X-Team": SECRET}),
        claude(server, timeouts={"first_token": 3.0}, capabilities={"tool_choice": frozenset({"auto", "any"})}),
        {"llm": theirs, "name": "mine"},
    ]
    own = {"temperature": 0.2, "system_prompt": "Be brief."}
    return fallback_llm(server, models, strategy="round_robin", timeouts={"idle": 5.0}, **own)


def same(a: FallbackLLM, b: FallbackLLM) -> bool:
    return repr(a) == repr(b) and a.to_dict() == b.to_dict() and a.metadata == b.metadata


def keyed(monkeypatch):
    for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY"):
        monkeypatch.setenv(name, KEY)


def test_it_is_revived_from_plain_data(server, mixed, monkeypatch):
    """JSON there and back; the keys come from the environment; the data is not changed."""
    keyed(monkeypatch)
    data = json.loads(mixed.to_json())
    assert KEY not in json.dumps(data)
    assert SECRET not in json.dumps(data)
    assert data["models"][2]["llm"]["settings"]["additional_kwargs"] == {"service_tier": "flex"}
    before = copy.deepcopy(data)
    revived = FallbackLLM.from_dict(data)
    assert data == before
    assert same(revived, mixed)
    assert revived.router.targets[0].price == mixed.router.targets[0].price
    assert revived.router.targets[1].timeouts == mixed.router.targets[1].timeouts
    assert revived.complete("hi").text
    revived.close()


def test_everything_that_a_target_was_told_travels():
    """Limits too: without them another process would ask as fast as it can."""
    target = Target("llamacpp:tiny", max_tokens=3, limits=Limits(tokens_per_minute=500), tier="fast", weight=2)
    llm = FallbackLLM([target])
    for revived in (FallbackLLM.from_dict(json.loads(llm.to_json())), pickle.loads(pickle.dumps(llm))):
        (told,) = revived.router.targets
        assert (told.limits, told.tier, told.weight, told.options) == (target.limits, "fast", 2, target.options)


def test_a_router_in_place_of_models_is_told_where_it_belongs():
    with pytest.raises(ConfigurationError, match="a ready Router goes to router="):
        FallbackLLM(Router([ScriptedProvider()]))


def test_it_is_pickled_without_a_key(server, mixed, monkeypatch):
    """Native and wrapped targets; the other side's environment has the keys."""
    mixed.callback_manager = CallbackManager([LlamaDebugHandler(print_trace_on_end=False)])
    mixed.rate_limiter = threading.Lock()  # neither travels, and this one could not
    data = pickle.dumps(mixed)
    mixed.rate_limiter = None
    assert KEY.encode() not in data
    assert SECRET.encode() not in data
    keyed(monkeypatch)
    revived = pickle.loads(data)
    assert same(revived, mixed)
    assert revived.complete("hi").text
    revived.close()


def test_a_shared_router_is_not_told_and_does_not_travel(server):
    """It would come back as another; so it must be passed again."""
    router = Router([ScriptedProvider("hi")])
    llm = FallbackLLM(router=router, temperature=0.2)
    with pytest.raises(ConfigurationError, match="shared router"):
        pickle.dumps(llm)
    data = llm.to_dict()
    assert "models" not in data
    revived = FallbackLLM.from_dict(data, router=router)
    assert revived.temperature == 0.2
    assert revived.complete("x").text == "hi"


def test_a_ready_provider_is_no_data():
    """Told plainly, instead of coming back as something else."""
    with pytest.raises(ConfigurationError, match="ScriptedProvider"):
        FallbackLLM([ScriptedProvider()]).to_dict()


def test_from_dict_builds_llms_only():
    """A dump is data: it cannot make us build anything else, or import what we do not know."""
    for module in ("subprocess:Popen", "llama_index.core.schema:TextNode", "no.such.module:X", "llama_index.none:X"):
        with pytest.raises(ConfigurationError):
            FallbackLLM.from_dict({"models": [{"llm": {"class": module, "settings": {}}}]})
    with pytest.raises(ConfigurationError, match="import antigravity before"):
        FallbackLLM.from_dict({"models": [{"llm": {"class": "antigravity:fly", "settings": {}}}]})


def test_copies_ask_the_same_router(server):
    """LlamaIndex copies LLMs here and there; sockets are not copied."""
    llm = fallback_llm(server)
    assert copy.copy(llm).router is copy.deepcopy(llm).router is llm.router


def test_no_key_is_shown(server, mixed):
    """Not in repr, str, or dumps."""
    for told in (repr(mixed), str(mixed), mixed.model_dump_json(), repr(mixed.to_payload()), repr(mixed.router)):
        assert KEY not in told


# ── tool calls of a response ─────────────────────────────────────────────────────────────────────────────────────────

BLOCK = ToolCallBlock(tool_call_id="c1", tool_name="f", tool_kwargs={"x": 1})
PARTIAL = ToolCallBlock(tool_call_id="c1", tool_name="f", tool_kwargs='{"x": 1')
OPENAI = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
SELECTION = ToolSelection(tool_id="c1", tool_name="f", tool_kwargs={"x": 1})


@pytest.mark.parametrize(
    ("blocks", "kwargs"),
    [
        ([BLOCK], {}),
        ([PARTIAL], {}),
        ([TextBlock(text="a"), BLOCK], {"tool_calls": [OPENAI]}),
        ([], {"tool_calls": [OPENAI]}),
        ([], {"tool_calls": [SELECTION]}),
    ],
    ids=["block", "partial block", "both", "legacy dict", "legacy selection"],
)
def test_tool_calls_are_found_wherever_they_are(blocks, kwargs):
    """As blocks, or where older parts of LlamaIndex and its tests put them."""
    response = ChatResponse(message=ChatMessage(role="assistant", blocks=blocks, additional_kwargs=kwargs))
    assert FallbackLLM([ScriptedProvider()]).get_tool_calls_from_response(response) == [SELECTION]


def test_no_tool_call_is_an_error_only_when_asked():
    """As everywhere in LlamaIndex."""
    llm, response = FallbackLLM([ScriptedProvider()]), ChatResponse(message=ChatMessage(content="no"))
    assert llm.get_tool_calls_from_response(response, error_on_no_tool_call=False) == []
    with pytest.raises(ValueError, match="at least one tool call"):
        llm.get_tool_calls_from_response(response)


def test_metadata_of_an_answer_is_plain_data(server):
    """It can be logged and stored."""
    response = fallback_llm(server).complete("hi")
    assert json.loads(json.dumps(response.raw)) == response.raw
    assert fallback_of(response)["attempts"][0]["outcome"] == "answered"


def test_importing_it_loads_no_vendor():
    """SDKs are loaded by the first request that needs one."""
    code = "import sys, llamaindex_fallback; print(sorted({'openai','anthropic','llama_cpp'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "[]"


async def test_a_chain_is_chosen_per_call():
    """By a keyword of every face; engines pass keywords on."""
    dear = Target(provider=ScriptedProvider("dear"), name="dear", price=Price(5, 5))
    cheap = Target(provider=ScriptedProvider("cheap"), name="cheap", price=Price(1, 1))
    llm = FallbackLLM([dear, cheap], chains={"two": {"targets": ["cheap"]}})
    assert llm.complete("Hi").text == "dear"
    for chain in ("low-cost", "two"):
        assert llm.complete("Hi", chain=chain).text == (await llm.acomplete("Hi", chain=chain)).text == "cheap"
        assert [r.text for r in llm.stream_complete("Hi", chain=chain)][-1] == "cheap"
    with pytest.raises(InvalidRequest, match="no chain is named"):
        llm.complete("Hi", chain="cheapest")


def test_models_are_whom_it_asks_and_make_another_llm_that_asks_the_same():
    ready, priced = MockLLM(max_tokens=3), MockLLM(max_tokens=4)
    a = Target(provider=ScriptedProvider("from a", name="a"), name="a")
    llm = FallbackLLM([a, ready, {"llm": priced, "name": "mine", "weight": 3}])
    assert llm.models[0] is a
    assert llm.models[1] is ready
    assert llm.models[2] == {"llm": priced, "name": "mine", "weight": 3}
    again = FallbackLLM(llm.models, strategy="round_robin")
    assert [t.name for t in again.router.targets] == [t.name for t in llm.router.targets]
    assert again.router.targets[2].weight == 3
    llm.router.disable("mine")
    llm.router.remove("a")
    assert llm.models == [ready, {"llm": priced, "name": "mine", "weight": 3, "enabled": False}]
    assert FallbackLLM(router=llm.router).models == llm.models


def test_both_wrappers_have_the_same_members_but_for_their_frameworks_words():
    from langchain_core.language_models.chat_models import BaseChatModel
    from llama_index.core.llms.function_calling import FunctionCallingLLM

    from langchain_fallback import FallbackChatModel

    def own(cls, base):
        names = {*dir(cls), *cls.model_fields} - {*dir(base), *base.model_fields}
        return {name for name in names if not name.startswith("_")}

    langchains, llamaindexes = own(FallbackChatModel, BaseChatModel), own(FallbackLLM, FunctionCallingLLM)
    assert langchains & llamaindexes == {
        "aclose", "close", "from_config", "max_tokens", "models", "router", "temperature", "timeout",
    }  # fmt: skip
    # A chat model's words, names of `init_chat_model`, the model's copies and its profile.
    assert langchains - llamaindexes == {
        "engine", "from_models", "max_retries", "profile_of", "router_options", "seed", "stop", "streaming", "top_p",
    }  # fmt: skip
    assert llamaindexes - langchains == {"context_window", "metadata_of", "num_output"}  # what `metadata` tells
