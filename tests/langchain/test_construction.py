"""Ways to make a model: the names LangChain's users write, files, routers; and what tells two models apart."""

from __future__ import annotations

import copy
import itertools
import pickle
from typing import Any

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.language_models.fake_chat_models import FakeListChatModel
from langchain_core.load import dumps, loads
from langchain_core.runnables import ConfigurableField
from langchain_openai import ChatOpenAI

from langchain_fallback import FallbackChatModel
from langchain_fallback._names import target_named
from shared_core import (
    Capabilities,
    ConfigurationError,
    Limits,
    Price,
    RetryPolicy,
    Router,
    Target,
    Timeouts,
    UnknownOption,
)
from shared_core.errors import MissingKey
from shared_core.testing import FaultServer
from tests.langchain.cells import CLAUDE, GPT, KEY, models_of

NATIVE = "native OpenAI, native Anthropic"


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "GOOGLE_API_KEY", "MISTRAL_API_KEY", "DEEPSEEK_API_KEY"):
        monkeypatch.setenv(name, KEY)


@pytest.mark.parametrize(
    ("written", "ours"),
    [
        ("openai:gpt-5-mini", "openai:gpt-5-mini"),
        ("google_genai:gemini-2.5-flash", "google:gemini-2.5-flash"),
        ("mistralai:mistral-large-latest", "mistral:mistral-large-latest"),
        ("gpt-5-mini", "openai:gpt-5-mini"),
        ("claude-sonnet-4-5", "anthropic:claude-sonnet-4-5"),
        ("gemini-2.5-flash", "google:gemini-2.5-flash"),
        ("deepseek-chat", "deepseek:deepseek-chat"),
    ],
)
def test_the_names_of_init_chat_model_are_understood(written: str, ours: str) -> None:
    assert FallbackChatModel.from_models(written).router.targets[0].name == ours


def test_whatever_else_models_takes_may_stand_among_the_names() -> None:
    ready = FakeListChatModel(responses=["hi"])
    model = FallbackChatModel.from_models(
        ["gpt-5-mini", Target("anthropic:x", name="mine"), {"spec": "openai:y"}, ready], temperature=0.3
    )
    assert [t.name for t in model.router.targets][:3] == ["openai:gpt-5-mini", "mine", "openai:y"]
    assert model.temperature == 0.3


def test_a_vendor_that_only_langchain_knows_is_built_by_langchain() -> None:
    with pytest.raises(ImportError, match="langchain-cohere"):
        target_named("cohere:command-r")
    with pytest.raises(ConfigurationError, match="whose model is 'my-model'"):
        target_named("my-model")


def test_a_model_from_a_file_is_the_model_from_its_keywords(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BACKUP_KEY", KEY)
    path = tmp_path / "fallback.toml"
    path.write_text(
        """
        temperature = 0.2
        strategy = "round_robin"
        timeouts = { first_token = 5 }
        retry = { total = 1 }

        [[models]]
        spec = "openai:gpt-5-mini"

        [[models]]
        spec = "anthropic:claude-sonnet-4-5"
        api_key = "${BACKUP_KEY}"
        """,
        encoding="utf-8",
    )
    model = FallbackChatModel.from_config(path, max_tokens=9)
    assert [t.name for t in model.router.targets] == [f"openai:{GPT}", f"anthropic:{CLAUDE}"]
    assert (model.temperature, model.max_tokens) == (0.2, 9)
    assert model.router.options == {
        "strategy": "round_robin", "timeouts": {"first_token": 5}, "retry": {"total": 1},
    }  # fmt: skip
    assert KEY not in dumps(model) + repr(model)
    monkeypatch.delenv("BACKUP_KEY")
    with pytest.raises(MissingKey, match="BACKUP_KEY"):
        FallbackChatModel.from_config(path)


def test_a_configuration_that_is_wrong_says_where() -> None:
    with pytest.raises(ConfigurationError, match="lists no targets"):
        FallbackChatModel.from_config({"temperature": 0.1})
    with pytest.raises(UnknownOption, match="temperature"):
        FallbackChatModel.from_config({"models": ["gpt-5-mini"], "temprature": 0.1})
    with pytest.raises(UnknownOption, match="first_token"):
        FallbackChatModel.from_config({"models": ["gpt-5-mini"], "timeouts": {"first_tokn": 1}})


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"models": ["llamacpp:tiny"], "timeout": "30"}, "timeout must be a positive number of seconds, not '30'"),
        ({"models": ["llamacpp:tiny"], "timeout": True}, "timeout must be a positive number"),
        ({"router": ["llamacpp:tiny"]}, "router= must be a shared_core.Router, not list"),
        ({"models": Router("llamacpp:tiny")}, "a ready Router goes to router="),
        ({"models": ["llamacpp:tiny"], "budgets": 5}, "Router.budgets must be a Budget or a mapping, not int"),
        ({"models": ["llamacpp:tiny"], "budgets": "5"}, "Router.budgets must be a Budget or a mapping, not str"),
    ],
)
def test_an_option_of_another_type_is_refused_where_it_is_given(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        FallbackChatModel(**wrong)


def test_what_is_written_down_is_all_but_the_secrets() -> None:
    """A count of tokens is no token that lets somebody in, and limits are no less a target's than its price."""
    target = Target("llamacpp:tiny", max_tokens=3, limits=Limits(tokens_per_minute=500), tier="fast", weight=2)
    model = FallbackChatModel([target], timeouts={"first_token": 3}, limits={"tokens_per_minute": 900})
    again = loads(dumps(model), allowed_objects=[FallbackChatModel], valid_namespaces=["langchain_fallback"])
    (told,) = again.router.targets
    assert (told.limits, told.options) == (target.limits, target.options)
    assert (told.tier, told.weight) == ("fast", 2)
    assert dict(again.router.options) == dict(model.router.options)


def test_a_router_given_ready_travels_with_its_settings() -> None:
    router = Router([f"openai:{GPT}", f"anthropic:{CLAUDE}"], strategy="round_robin", retry=RetryPolicy(0, 0))
    model = FallbackChatModel(router=router, temperature=0.1)
    assert model.router is router
    woken = pickle.loads(pickle.dumps(model))
    assert dict(woken.router.options) == dict(router.options)
    assert copy.deepcopy(model).router is router
    assert model.model_copy(update={"temperature": 0.9}).router is router


def _first(request: Any, views: Any) -> Any:
    return list(views)


def test_two_models_that_could_answer_differently_never_share_a_cache_entry() -> None:
    url = "http://127.0.0.1:9/v1"
    variants: list[FallbackChatModel] = [
        FallbackChatModel(models=[f"openai:{GPT}", f"anthropic:{CLAUDE}"]),
        FallbackChatModel(models=[f"anthropic:{CLAUDE}", f"openai:{GPT}"]),
        FallbackChatModel(models=[f"openai:{GPT}"]),
        FallbackChatModel(models=[Target(f"openai:{GPT}", base_url=url)]),
        FallbackChatModel(models=[Target(f"openai:{GPT}", params={"service_tier": "flex"})]),
        FallbackChatModel(models=[Target(f"openai:{GPT}", capabilities=Capabilities(images=False))]),
        FallbackChatModel(models=[Target(f"openai:{GPT}", price=Price(1, 2))]),
        FallbackChatModel(models=[Target(f"openai:{GPT}", timeouts=Timeouts(idle=3))]),
        FallbackChatModel(models=[f"openai:{GPT}"], temperature=0.0),
        FallbackChatModel(models=[f"openai:{GPT}"], max_tokens=5),
        FallbackChatModel(models=[f"openai:{GPT}"], seed=5),
        FallbackChatModel(models=[f"openai:{GPT}"], top_p=0.5),
        FallbackChatModel(models=[f"openai:{GPT}"], stop=["x"]),
        FallbackChatModel(models=[f"openai:{GPT}"], timeout=5),
        FallbackChatModel(models=[f"openai:{GPT}"], max_retries=5),
        FallbackChatModel(models=[f"openai:{GPT}"], on_stream_break="restart"),
        FallbackChatModel(models=[f"openai:{GPT}"], strategy="round_robin"),
        FallbackChatModel(models=[f"openai:{GPT}"], strategy=_first),
        FallbackChatModel(models=[f"openai:{GPT}"], strategy=lambda request, views: list(views)),
        FallbackChatModel(models=[f"openai:{GPT}"], strategy=lambda request, views: list(views)[::-1]),
        FallbackChatModel(models=[ChatOpenAI(model="a", api_key=KEY)]),
        FallbackChatModel(models=[ChatOpenAI(model="a", temperature=0.4, api_key=KEY)]),
        FallbackChatModel(models=[ChatOpenAI(model="a", base_url=url, api_key=KEY)]),
        FallbackChatModel(router=Router([f"openai:{GPT}"], on_stream_break="raise")),
        FallbackChatModel(router=Router([f"openai:{GPT}"], timeouts=Timeouts(total=7))),
    ]
    for keys in ([m._get_llm_string(stop=None) for m in variants], [str(m._identifying_params) for m in variants]):
        same = [(a, b) for a, b in itertools.combinations(range(len(keys)), 2) if keys[a] == keys[b]]
        assert not same
        assert not [key for key in keys if " at 0x" in key or KEY in key]


def test_equal_models_do_share_one(server: FaultServer) -> None:
    cache = InMemoryCache()
    for _ in range(2):
        FallbackChatModel(models=models_of(server, NATIVE), cache=cache).invoke("Hello")
    assert server.count() == 1


TEXT_ONLY = Capabilities(images=False, tools=False, json_schema=False, context_window=8_000, max_output=1_000)
GENEROUS = Capabilities(audio=True, pdfs=True, context_window=100_000, max_output=9_000)


def test_the_profile_promises_what_everybody_can_or_on_request_what_the_best_can() -> None:
    targets = [
        Target(f"openai:{GPT}", capabilities=TEXT_ONLY),
        Target(f"anthropic:{CLAUDE}", capabilities=GENEROUS),
    ]
    every, best = (FallbackChatModel(models=targets, profile_of=of).profile for of in ("all", "best"))
    assert every is not None
    assert best is not None
    assert (every["tool_calling"], every["image_inputs"], every["max_input_tokens"]) == (False, False, 8_000)
    assert (best["tool_calling"], best["audio_inputs"], best["max_input_tokens"]) == (True, True, 100_000)
    assert every["structured_output"] is False
    assert every["max_output_tokens"] == 1_000
    small = [Target(f"openai:{GPT}", capabilities=Capabilities(context_window=1_024)), targets[1]]
    assert FallbackChatModel(models=small).profile["max_output_tokens"] == 1_024, "nobody says more than it can hold"
    assert FallbackChatModel(models=targets, profile={"max_input_tokens": 1}).profile == {"max_input_tokens": 1}


def test_a_variant_configured_later_tells_its_own_profile() -> None:
    targets = [Target(f"openai:{GPT}", capabilities=TEXT_ONLY), Target(f"anthropic:{CLAUDE}", capabilities=GENEROUS)]
    model = FallbackChatModel(models=targets).configurable_fields(profile_of=ConfigurableField(id="of"))
    variant, _ = model.prepare({"configurable": {"of": "best"}})
    assert variant.profile["audio_inputs"] is True


@pytest.mark.parametrize(
    ("option", "openai", "anthropic"),
    [
        ({"reasoning_effort": "low"}, True, False),
        ({"logprobs": True}, True, False),
        ({"prompt_cache_key": "k"}, True, False),
        ({"thinking": {"type": "disabled"}}, False, True),
        ({"cache_control": {"type": "ephemeral"}}, False, True),
        ({"top_k": 5}, False, True),
        ({"service_tier": "auto"}, True, True),
    ],
)
@pytest.mark.parametrize("mixture", [NATIVE, "ChatOpenAI, ChatAnthropic"])
def test_a_vendors_keyword_goes_to_whom_it_concerns_and_hurts_nobody_else(
    server: FaultServer, mixture: str, option: dict[str, Any], openai: bool, anthropic: bool
) -> None:
    model = FallbackChatModel(models=models_of(server, mixture), max_retries=0).bind(**option)
    (name,) = option
    model.invoke("Hello")
    server.script(GPT, 503)
    model.invoke("Hello")
    first, *_, last = server.requests
    assert (first.wire, last.wire) == ("openai", "anthropic")
    assert (name in first.body, name in str(last.body)) == (openai, anthropic)


def test_one_vendors_key_is_given_once_and_never_shown(server: FaultServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    model = FallbackChatModel(["openai:gpt-5-mini", "openai:gpt-4.1"], api_key=KEY)
    assert [t.api_key for t in model.router.targets] == [KEY, KEY]
    assert KEY not in repr(model) + dumps(model) + str(model.asdict()) + str(pickle.dumps(model))


def test_a_key_is_never_shown_to_a_vendor_it_may_not_be_of() -> None:
    with pytest.warns(UserWarning, match="of 2 .anthropic, openai.: it is not used"):
        model = FallbackChatModel([f"openai:{GPT}", f"anthropic:{CLAUDE}"], api_key="sk-somebodys-0123456789")
    assert {t.api_key for t in model.router.targets} == {None}
    with pytest.raises(ConfigurationError, match="as text"):
        FallbackChatModel(f"openai:{GPT}", api_key="")
