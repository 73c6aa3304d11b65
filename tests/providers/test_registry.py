"""Names, keys and options of targets: what is refused before anything is imported or sent, and in which words."""

from __future__ import annotations

import subprocess
import sys

import pytest

from shared_core.errors import ConfigurationError, MissingDependency, MissingKey, UnknownOption, UnknownProvider
from shared_core.providers import build, check, compatible, provider_names, registry
from shared_core.providers.compatible import ROWS
from shared_core.routing.target import Target

HOSTED_NAMES = {
    "openai",
    "anthropic",
    "google",
    "google-legacy",
    "openrouter",
    "groq",
    "together",
    "deepseek",
    "mistral",
}
LOCAL_NAMES = {"llamacpp", "ollama", "lmstudio", "vllm", "llama-server"}
REQUIRED = HOSTED_NAMES | LOCAL_NAMES | {"xai", "cloudflare", "azure-openai"}


@pytest.fixture(autouse=True)
def _no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for row in ROWS.values():
        for name in (*row.key_env, *row.url_env):
            monkeypatch.delenv(name, raising=False)
    for name in (
        "ANTHROPIC_API_KEY",
        "GEMINI_API_KEY",
        "GOOGLE_API_KEY",
        "CLOUDFLARE_ACCOUNT_ID",
        "AZURE_OPENAI_ENDPOINT",
    ):
        monkeypatch.delenv(name, raising=False)


def test_every_promised_provider_is_there() -> None:
    assert set(provider_names()) >= REQUIRED
    assert list(provider_names()) == sorted(set(provider_names()))


@pytest.mark.parametrize(("wrong", "right"), [("opnai", "openai"), ("antropic", "anthropic"), ("olama", "ollama")])
def test_a_misspelt_provider_is_told_the_nearest(wrong: str, right: str) -> None:
    with pytest.raises(UnknownProvider) as caught:
        check(Target(f"{wrong}:m"))
    assert str(caught.value) == f"unknown provider {wrong!r}. Did you mean {right!r}?"


def test_a_provider_like_no_other_is_told_the_list() -> None:
    with pytest.raises(UnknownProvider, match=r"Valid: anthropic, azure-openai, .*xai\."):
        check(Target("zzzzqqqq:m"))


@pytest.mark.parametrize(("alias", "name"), sorted(registry.ALIASES.items()))
def test_every_alias_leads_to_a_provider(alias: str, name: str) -> None:
    assert registry.canonical(alias) == name
    assert name in provider_names()
    assert alias not in provider_names()


def test_a_missing_key_names_the_target_and_the_variable() -> None:
    with pytest.raises(MissingKey) as caught:
        check(Target("anthropic:claude-sonnet-4-5"))
    assert str(caught.value) == (
        "Target 'anthropic:claude-sonnet-4-5' has no key.\nhint: set `ANTHROPIC_API_KEY` or pass api_key="
    )


HOSTED = [row.name for row in ROWS.values() if row.needs_key]


@pytest.mark.parametrize("name", HOSTED)
def test_a_hosted_vendor_takes_its_key_from_its_usual_variable(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    target = Target(f"{name}:m")
    with pytest.raises(MissingKey, match=ROWS[name].key_env[0]):
        check(target)
    monkeypatch.setenv(ROWS[name].key_env[0], " key-from-environment ")
    assert registry.key_for(target) == "key-from-environment"
    assert registry.key_for(Target(f"{name}:m", api_key="given")) == "given"


@pytest.mark.parametrize("name", [row.name for row in ROWS.values() if row.local])
def test_an_engine_on_this_machine_needs_no_key_and_is_local(name: str) -> None:
    target = Target(f"{name}:m")
    check(target)
    assert build(target).local
    assert not build(Target(f"{name}:m", base_url="http://gpu.example:8000/v1")).local


def test_a_model_that_a_local_engine_only_relays_is_not_local() -> None:
    """Failing closed: 'local only' must not let a prompt leave the machine."""
    assert not build(Target("ollama:gpt-oss:120b-cloud")).local
    assert build(Target("ollama:gpt-oss:20b")).local


def test_a_server_of_ones_own_may_do_without_a_key() -> None:
    check(Target("openai:m", base_url="http://127.0.0.1:9/v1"))
    with pytest.raises(MissingKey):
        check(Target("openai:m", base_url="https://elsewhere.example/v1"))


def test_an_unknown_option_is_told_the_nearest() -> None:
    with pytest.raises(UnknownOption, match=r"has no option 'haeders'\. Did you mean 'headers'\?"):
        check(Target("openai:m", api_key="k", haeders={}))
    with pytest.raises(UnknownOption, match="organization"):
        check(Target("openai:m", api_key="k", organisation="o"))


def test_a_missing_sdk_is_told_by_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_installed", lambda module: False)
    with pytest.raises(MissingDependency, match=r'pip install "llm-fallback\[anthropic\]"'):
        check(Target("anthropic:m", api_key="k"))


ADDRESSES = [
    ("ollama", None, {}, "http://127.0.0.1:11434/v1"),
    ("ollama", None, {"OLLAMA_HOST": "0.0.0.0"}, "http://127.0.0.1:11434/v1"),
    ("ollama", None, {"OLLAMA_HOST": "gpu:9999"}, "http://gpu:9999/v1"),
    ("ollama", None, {"OLLAMA_HOST": "https://gpu.example/"}, "https://gpu.example:443/v1"),
    ("ollama", "http://other:1/v1", {"OLLAMA_HOST": "gpu"}, "http://other:1/v1"),
    ("openai", None, {"OPENAI_BASE_URL": "https://proxy.example/v1/"}, "https://proxy.example/v1"),
    (
        "azure-openai",
        None,
        {"AZURE_OPENAI_ENDPOINT": "https://me.openai.azure.com/"},
        "https://me.openai.azure.com/openai/v1",
    ),
    ("cloudflare", None, {"CLOUDFLARE_ACCOUNT_ID": "abc"}, "https://api.cloudflare.com/client/v4/accounts/abc/ai/v1"),
    ("vllm", None, {"VLLM_BASE_URL": "http://h:1/v1"}, "http://h:1/v1"),
]


@pytest.mark.parametrize(("name", "given", "environment", "url"), ADDRESSES)
def test_an_address_comes_from_the_target_the_environment_or_the_table(
    name: str, given: str | None, environment: dict[str, str], url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    assert compatible.base_url(ROWS[name], given) == url


@pytest.mark.parametrize(
    ("spec", "variable"), [("azure-openai:m", "AZURE_OPENAI_ENDPOINT"), ("cloudflare:m", "CLOUDFLARE_ACCOUNT_ID")]
)
def test_an_address_that_lacks_a_variable_names_it(spec: str, variable: str) -> None:
    with pytest.raises(ConfigurationError, match=variable):
        check(Target(spec, api_key="k"))


def test_a_generic_endpoint_needs_an_address() -> None:
    with pytest.raises(ConfigurationError, match="base_url"):
        check(Target("openai-compatible:m"))


def test_checking_and_building_imports_no_sdk() -> None:
    """Nor an HTTP library, nor the price table: a chain with five targets costs nothing until it is used."""
    program = (
        "import sys\n"
        "from shared_core.providers import build, check\n"
        "from shared_core.routing.target import Target\n"
        "for spec in ('openai:gpt-5', 'anthropic:claude-sonnet-4-5', 'groq:m', 'ollama:m'):\n"
        "    target = Target(spec, api_key='k'); check(target); build(target)\n"
        "heavy = {'openai', 'anthropic', 'httpx', 'httpx2', 'httpcore', 'genai_prices', 'pydantic', 'asyncio.events'}\n"
        "print(sorted(heavy & set(sys.modules) - {'asyncio.events'}))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("spec", "url", "good"),
    [
        ("openai:m", "https://ann:hush-hush@", False),
        ("openai:m", "ftp://ann:hush-hush@host", False),
        ("openai:m", "http://ann:hush-hush@host:99999/v1", False),
        ("openai:m", "http://host:0", False),
        ("openai:m", "http://[::1/v1", False),
        ("anthropic:m", "localhost:8080", False),
        ("anthropic:m", "http://localhost:8080", True),
        ("google:m", "https://[::1]:8443/x", True),
        ("vllm:m", "localhost:8000", True),
        ("ollama:m", "0.0.0.0", True),
    ],
)
def test_an_address_that_no_request_can_go_to_is_refused(spec: str, url: str, good: bool) -> None:
    """Where it is built, and without repeating it: it may hold a password. A server of one's own may do without http://."""
    target = Target(spec, base_url=url, api_key="any")
    if good:
        check(target)
        return
    with pytest.raises(ConfigurationError, match="base_url is no address") as caught:
        check(target)
    assert "hush-hush" not in str(caught.value)


@pytest.mark.parametrize("option", ["headers", "query", "params"])
def test_an_option_of_names_and_values_that_is_none_is_refused(option: str) -> None:
    """Without repeating what it is instead."""
    with pytest.raises(ConfigurationError, match=f"{option} must be a mapping") as caught:
        check(Target("openai:m", api_key="any", **{option: ["authorization: hush-hush"]}))
    assert "hush-hush" not in str(caught.value)
