"""The model as an object: how it is built, what it refuses, what it says of itself, and how it travels."""

from __future__ import annotations

import asyncio
import copy
import json
import pickle
import subprocess
import sys
from typing import Any

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler, get_usage_metadata_callback
from langchain_core.language_models.fake_chat_models import FakeListChatModel
from langchain_core.load import dumps, loads
from langchain_core.messages import HumanMessage
from langchain_core.runnables import ConfigurableField
from langchain_openai import ChatOpenAI

from langchain_fallback import FallbackChatModel, LangChainProvider
from shared_core.errors import AllTargetsFailed, ConfigurationError, InvalidRequest, UnknownOption, UnknownProvider
from shared_core.router import Router
from shared_core.routing.price import Price
from shared_core.routing.target import Target
from shared_core.testing import CANONICAL, Answer, FaultServer, ScriptedProvider
from shared_core.testing.fault_server import Usage
from tests.langchain.cells import CLAUDE, GPT, KEY, MIXTURES, models_of, native, wrapped
from tests.langchain.test_faces import chunks_of, faces_and_mixtures


def fake(*answers: str) -> FakeListChatModel:
    return FakeListChatModel(responses=list(answers) or ["hello"])


# ── building ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("nothing", [{}, {"models": []}, {"models": None}])
def test_no_models_is_a_configuration_error(nothing: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="at least one model"):
        FallbackChatModel(**nothing)


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("temprature", "temperature"),
        ("strateggy", "strategy"),
        ("modles", "models"),
        ("time_outs", "timeouts"),
        ("routr", "router"),
    ],
)
def test_an_unknown_keyword_names_the_nearest(wrong: str, right: str) -> None:
    with pytest.raises(UnknownOption, match=f"'{right}'"):
        FallbackChatModel(models=[fake()], **{wrong: 1})


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_retries": -1}, {"max_retries": 1.5}, {"max_retries": True}, {"max_retries": 1, "retry": {"total": 2}},
        {"timeout": 0}, {"timeout": -1.0}, {"strategy": "best"}, {"on_stream_break": "pray"}, {"retry": {"totl": 1}},
    ],
)  # fmt: skip
def test_options_are_checked_where_they_are_built(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        FallbackChatModel(models=[fake()], **wrong)


def test_a_spec_with_an_unknown_provider_is_refused_at_once() -> None:
    with pytest.raises(UnknownProvider, match="openai"):
        FallbackChatModel(models=["opnai:gpt-5-mini"])


def test_every_keyword_of_the_router_is_a_keyword_here() -> None:
    events: list[Any] = []
    model = FallbackChatModel(
        models=[fake()], strategy="round_robin", retry={"total": 0}, timeouts={"total": 9.0}, breaker={},
        on_stream_break="raise", route_around_policy=True, on_event=events.append, metadata=False,
    )  # fmt: skip
    message = model.invoke("Hello")
    assert "fallback" not in message.response_metadata
    model.router.flush_events()
    assert events
    assert model.metadata is not None, "LangChain's own metadata are another thing"
    assert "llm-fallback" in model.metadata["lc_versions"]


def test_metadata_given_as_a_dict_are_langchains() -> None:
    model = FallbackChatModel(models=[fake()], metadata={"team": "a"})
    assert model.metadata is not None
    assert model.metadata["team"] == "a"
    assert "fallback" in model.invoke("Hello").response_metadata


def test_models_may_be_of_every_kind_in_one_list(server: FaultServer) -> None:
    server.script("a", 503)
    server.script("b", 503)
    server.script("c", 503)
    model = FallbackChatModel(
        models=[
            Target("openai:a", base_url=server.openai_url, api_key=KEY),
            {"spec": "anthropic:b", "base_url": server.anthropic_url, "api_key": KEY},
            ChatOpenAI(model="c", base_url=server.openai_url, api_key=KEY),
            fake("last resort"),
        ],
        max_retries=0,
    )
    assert model.invoke("Hello").text == "last resort"
    assert [seen.model for seen in server.requests] == ["a", "b", "c"]


def test_two_ready_models_of_one_name_are_two_targets() -> None:
    model = FallbackChatModel(models=[fake("a"), fake("b")])
    assert len({t.name for t in model.router.targets}) == 2


def test_a_ready_router_can_be_shared_and_owns_its_options(server: FaultServer) -> None:
    router = Router([native(server, GPT), native(server, CLAUDE)])
    one, two = FallbackChatModel(router=router), FallbackChatModel(router=router, temperature=0.5)
    assert one.router is two.router is router
    assert one.invoke("Hello").content == CANONICAL
    with pytest.raises(ConfigurationError, match="strategy"):
        FallbackChatModel(router=router, strategy="round_robin")
    with pytest.raises(ConfigurationError, match="models"):
        FallbackChatModel(router=router, models=[fake()])


def test_max_retries_counts_what_comes_after_the_first_tries(server: FaultServer) -> None:
    server.default = 500
    for retries, requests in ((0, 1), (1, 2)):
        server.clear()
        model = FallbackChatModel(models=[native(server, GPT)], max_retries=retries)
        with pytest.raises(AllTargetsFailed):
            model.invoke("Hello")
        assert server.count() == requests


# ── calling ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("mixture", MIXTURES)
def test_settings_of_the_model_and_of_the_call_reach_the_wire(server: FaultServer, mixture: str) -> None:
    model = FallbackChatModel(models=models_of(server, mixture)[:1], temperature=0.25, max_tokens=50, stop=["END"])
    model.invoke("Hello")
    model.invoke("Hello", temperature=0.75, max_tokens=60, stop=["STOP"])
    for seen, temperature, most, stop in zip(server.requests, (0.25, 0.75), (50, 60), ("END", "STOP"), strict=True):
        body = seen.body
        assert body.get("max_tokens", body.get("max_completion_tokens")) == most
        # A reasoning model takes neither of these, and our own provider sends it none.
        assert body.get("temperature", temperature) == temperature
        assert stop in (body.get("stop") or body.get("stop_sequences") or [stop])
        if seen.wire == "anthropic":
            assert body["temperature"] == temperature
            assert body["stop_sequences"] == [stop]


async def test_a_call_may_name_another_model(server: FaultServer) -> None:
    for mixture in MIXTURES:
        model = FallbackChatModel(models=models_of(server, mixture))
        assert model.invoke("Hello", model="another").response_metadata["model_name"] == "another"
        assert (await model.ainvoke("Hello", model="another")).response_metadata["model_name"] == "another"


def test_an_impossible_request_is_refused_before_anything_is_sent(server: FaultServer) -> None:
    model = FallbackChatModel(models=[native(server, GPT)])
    with pytest.raises(InvalidRequest):
        model.invoke("Hello", temperature=9)
    with pytest.raises(UnknownOption):
        model.invoke("Hello", temprature=1)
    assert server.count() == 0


def test_what_one_vendor_understands_is_told_to_that_vendor_alone(server: FaultServer) -> None:
    server.script(GPT, 503)
    for mixture in ("native OpenAI, native Anthropic", "ChatOpenAI, ChatAnthropic"):
        server.clear()
        model = FallbackChatModel(models=models_of(server, mixture), max_retries=0)
        model.invoke("Hello", openai={"service_tier": "flex"})
        assert [seen.body.get("service_tier") for seen in server.requests] == ["flex", None]


@faces_and_mixtures()
async def test_usage_is_counted_once_by_callbacks(server: FaultServer, mixture: str, face: str) -> None:
    server.default = Answer(usage=Usage(prompt_tokens=50, completion_tokens=30))
    model = FallbackChatModel(models=models_of(server, mixture))
    with get_usage_metadata_callback() as counted:
        await chunks_of(model, face)
    assert [(u["input_tokens"], u["output_tokens"]) for u in counted.usage_metadata.values()] == [(50, 30)]


async def test_a_call_is_one_run_whatever_happens_inside(server: FaultServer) -> None:
    class Counter(BaseCallbackHandler):
        def __init__(self) -> None:
            self.seen: list[str] = []

        def on_chat_model_start(self, *args: Any, **kwargs: Any) -> None:
            self.seen.append("start")

        def on_llm_end(self, *args: Any, **kwargs: Any) -> None:
            self.seen.append("end")

        def on_llm_error(self, *args: Any, **kwargs: Any) -> None:
            self.seen.append("error")

    server.script(GPT, 503)
    for mixture in ("native OpenAI, native Anthropic", "ChatOpenAI, ChatAnthropic"):
        model = FallbackChatModel(models=models_of(server, mixture), max_retries=0)
        for face in ("invoke", "stream", "ainvoke", "astream"):
            counter = Counter()
            await chunks_of(model, face, config={"callbacks": [counter]})
            assert counter.seen == ["start", "end"]


def test_many_threads_may_share_one_model(server: FaultServer) -> None:
    model = FallbackChatModel(models=models_of(server, "native OpenAI, ChatAnthropic"))
    assert {m.content for m in model.batch(["Hello"] * 24, config={"max_concurrency": 8})} == {CANONICAL}


def test_many_event_loops_may_share_one_model_of_native_targets(server: FaultServer) -> None:
    server.script(GPT, 503)
    model = FallbackChatModel(models=models_of(server, "native OpenAI, native Anthropic"), max_retries=0)

    def run() -> str:
        return str(asyncio.run(model.ainvoke("Hello")).content)

    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool:  # this thread has a loop already
        assert [pool.submit(run).result() for _ in range(3)] == [CANONICAL] * 3


# ── what it says of itself ───────────────────────────────────────────────────────────────────────────────────────────


def test_tracers_see_the_primary_and_no_secret(server: FaultServer) -> None:
    model = FallbackChatModel(
        models=models_of(server, "native Anthropic, native OpenAI"), temperature=0.5, max_tokens=9
    )
    params = model._get_ls_params(stop=["x"])
    assert params == {
        "ls_provider": "anthropic", "ls_model_name": CLAUDE, "ls_model_type": "chat", "ls_temperature": 0.5,
        "ls_max_tokens": 9, "ls_stop": ["x"],
    }  # fmt: skip
    assert model._llm_type == "llm-fallback"


@pytest.mark.parametrize("mixture", MIXTURES)
def test_no_key_is_ever_shown(server: FaultServer, mixture: str) -> None:
    secretive = Target("openai:y", base_url=server.openai_url, api_key=KEY, headers={"x-gateway": KEY})
    with_password = server.openai_url.replace("://", f"://me:{KEY}@")
    mapping = {"spec": "openai:x", "base_url": with_password, "api_key": KEY}
    model = FallbackChatModel(models=[*models_of(server, mixture), mapping, secretive])
    shown = [repr(model), str(model), dumps(model), json.dumps(model.asdict(), default=str), str(model.model_dump())]
    shown += [str(model._get_llm_string()), repr(model.router), repr(model.bind_tools([]))]
    for text in shown:
        assert KEY not in text
    if "Chat" not in mixture:  # ChatOpenAI holds locks and cannot be pickled by anybody
        without_headers = FallbackChatModel(models=[*models_of(server, mixture), mapping])
        assert KEY.encode() not in pickle.dumps(without_headers)


def test_the_profile_is_what_every_target_can_do(server: FaultServer) -> None:
    both = FallbackChatModel(models=[native(server, GPT), fake()])
    alone = FallbackChatModel(models=[native(server, GPT)])
    assert alone.profile is not None
    assert both.profile is not None
    assert alone.profile["tool_calling"]
    assert not both.profile["tool_calling"]
    assert not both.profile["structured_output"]
    assert FallbackChatModel(models=[fake()], profile={"max_input_tokens": 5}).profile == {"max_input_tokens": 5}


def test_counting_tokens_downloads_nothing() -> None:
    model = FallbackChatModel(models=[fake()])
    assert model.get_num_tokens("four letters make a token") == 7
    assert model.get_num_tokens_from_messages([HumanMessage("Hello")]) > 0
    assert FallbackChatModel(models=[fake()], custom_get_token_ids=lambda t: [1, 2]).get_num_tokens("x") == 2


def test_two_models_configured_differently_never_share_a_cache_entry() -> None:
    cache = InMemoryCache()
    models = [
        FallbackChatModel(models=[fake("a")], cache=cache),
        FallbackChatModel(models=[fake("b")], cache=cache),
        FallbackChatModel(models=[fake("c")], cache=cache, temperature=0.5),
        FallbackChatModel(models=[fake("d"), fake("e")], cache=cache),
    ]
    assert [m.invoke("Hello").text for m in models] == ["a", "b", "c", "d"]
    assert [m.invoke("Hello").text for m in models] == ["a", "b", "c", "d"]


# ── travelling ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_pickled_model_answers_at_the_other_end_without_its_keys(
    server: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "from-the-environment")
    model = FallbackChatModel(
        models=models_of(server, "native OpenAI, native Anthropic"),
        strategy="round_robin",
        temperature=0.5,
        max_retries=0,
    )
    model.invoke("Hello")
    again = pickle.loads(pickle.dumps(model))
    assert again.invoke("Hello").content == CANONICAL
    assert (again.temperature, again.router_options, again.max_retries) == (0.5, {"strategy": "round_robin"}, 0)
    assert again.router is not model.router
    again.invoke("Hello")
    sent = [
        s.headers.get("authorization", s.headers.get("x-api-key", "")) for s in server.requests if s.wire == "anthropic"
    ]
    assert [key[-4:] for key in sent] == ["ment"], "the key of the place it woke up in"


@pytest.mark.parametrize("mixture", MIXTURES)
def test_a_deep_copy_shares_what_the_router_has_learnt(server: FaultServer, mixture: str) -> None:
    model = FallbackChatModel(models=models_of(server, mixture), tags=["a"])
    twin = copy.deepcopy(model)
    assert twin.router is model.router
    assert twin.tags is not model.tags
    assert twin.invoke("Hello").content == CANONICAL


def test_what_a_value_has_worked_out_for_itself_is_not_written_down() -> None:
    from langchain_fallback._written import plain

    options = plain(Price(1, 2))
    assert Price(**options) == Price(1, 2)


def test_a_dumped_model_can_be_loaded_again(server: FaultServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    model = FallbackChatModel(
        models=[
            native(server, GPT),
            wrapped(server, GPT),
            Target("anthropic:x", name="spare", base_url=server.anthropic_url, api_key=KEY),
        ],
        strategy="round_robin", retry={"total": 0}, temperature=0.5,
    )  # fmt: skip
    text = dumps(model)
    again = loads(
        text,
        allowed_objects=[FallbackChatModel, ChatOpenAI],
        valid_namespaces=["langchain_fallback"],
        secrets_from_env=True,
    )
    assert isinstance(again, FallbackChatModel)
    assert again.asdict() == model.asdict()
    assert [t.name for t in again.router.targets] == [t.name for t in model.router.targets]
    assert again.invoke("Hello").content == CANONICAL


def test_reconfigured_copies_share_the_router_unless_the_models_change(server: FaultServer) -> None:
    model = FallbackChatModel(models=[native(server, GPT)])
    configurable = model.configurable_fields(
        temperature=ConfigurableField(id="temperature"), models=ConfigurableField(id="models")
    )
    assert configurable.invoke("Hello").content == CANONICAL
    router = model.router
    warm = configurable.with_config(configurable={"temperature": 0.5})
    assert warm.invoke("Hello").content == CANONICAL
    assert model.router is router
    assert router.health()[f"openai:{GPT}"].calls == 2, "one router has seen both calls"
    other = configurable.with_config(configurable={"models": [fake("another")]})
    assert other.invoke("Hello").text == "another"
    assert router.health()[f"openai:{GPT}"].calls == 2


def test_assigning_models_makes_a_router_for_them() -> None:
    model = FallbackChatModel(models=[fake("a")])
    before = model.router
    model.models = [fake("b")]
    assert model.invoke("Hello").text == "b"
    assert model.router is not before
    assert model.model_copy(update={"models": [fake("c")]}).invoke("Hello").text == "c"
    assert model.invoke("Hello").text == "b"


def test_importing_costs_little_more_than_langchain_itself() -> None:
    # Counts modules, not milliseconds, so that a busy machine cannot fail it: no SDK is among them.
    code = (
        "import sys, langchain_core.language_models.chat_models; before = set(sys.modules); import langchain_fallback;"
        "print(*sorted({m.partition('.')[0] for m in set(sys.modules) - before}))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {
        "openai",
        "anthropic",
        "google",
        "httpx",
        "httpx2",
        "langchain_openai",
        "llama_cpp",
        "genai_prices",
        "numpy",
    }
    assert not heavy & set(out.stdout.split())


def test_the_provider_is_public() -> None:
    provider = LangChainProvider(fake())
    assert FallbackChatModel(router=Router([provider])).invoke("Hello").text == "hello"


def test_repr_is_one_line_that_names_the_targets_and_what_was_set() -> None:
    model = FallbackChatModel(
        models=[Target("openai:gpt-5-mini", api_key="sk-verysecretverysecret"), "llamacpp:tiny"],
        temperature=0.5,
        stop=["x"],
    )
    assert repr(model) == "FallbackChatModel(['openai:gpt-5-mini', 'llamacpp:tiny'], temperature=0.5, stop=['x'])"


async def test_a_chain_is_chosen_per_call() -> None:
    """By `bind` or as a keyword of the call, whole or streamed."""
    dear = Target(provider=ScriptedProvider("dear"), name="dear", price=Price(5, 5))
    cheap = Target(provider=ScriptedProvider("cheap"), name="cheap", price=Price(1, 1))
    model = FallbackChatModel(models=[dear, cheap], chains={"two": {"targets": ["cheap"]}})
    assert model.invoke("Hi").content == "dear"
    for chain in ("low-cost", "two"):
        bound = model.bind(chain=chain)
        assert bound.invoke("Hi").content == (await bound.ainvoke("Hi")).content == "cheap"
        assert "".join(chunk.text for chunk in bound.stream("Hi")) == "cheap"
        assert bound.invoke("Hi").response_metadata["fallback"]["chain"] == chain
    with pytest.raises(InvalidRequest, match="no chain is named"):
        model.invoke("Hi", chain="cheapest")
