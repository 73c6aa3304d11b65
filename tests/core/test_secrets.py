"""Credentials that users put into headers, query parameters and URLs stay where they are needed."""

from __future__ import annotations

import asyncio
import copy
import logging
import pickle
import traceback
from collections.abc import Iterator
from typing import Any

import pytest

from shared_core import RetryPolicy, Router, Target
from shared_core.errors import AllTargetsFailed, ConfigurationError, is_secret, redact
from shared_core.testing import Fault, FaultServer

TEAM = "hunter2-which-looks-like-no-key"
PASSWORD = "correct-horse-battery"
KEY = "key-of-no-vendors-shape"
WIRES = ("openai", "anthropic", "google")

HEADERS = {
    "Authorization": f"Basic {TEAM}",
    "X-Api-Key": TEAM,
    "cf-access-token": TEAM,
    "Cookie": f"session={TEAM}",
    "X-Client-Secret": TEAM,
    "Proxy-Password": TEAM,
    "X-Team": "blue",
    "HTTP-Referer": "https://app.example",
}
KEPT = {"X-Team": "blue", "HTTP-Referer": "https://app.example"}


def test_names_that_speak_of_secrets_are_told_from_those_that_count_tokens() -> None:
    secret = ("api_key", "apiKey", "x-api-key", "key", "client_secret", "password", "token", "auth_token", "authToken")
    assert [name for name in (*secret, "default_headers", "Authorization", "credentials") if not is_secret(name)] == []
    plain = ("max_tokens", "first_token", "tokens_per_minute", "top_k", "keyword", "author", "monkey", "tokenizer")
    assert [name for name in plain if is_secret(name)] == []


def test_a_pickled_target_carries_no_credential() -> None:
    """The other side reads its environment. What is not secret arrives."""
    params = {"max_completion_tokens": 9, "extra_headers": {"Authorization": TEAM, "X-Team": "blue"}}
    target = Target(
        "openai:m",
        api_key=KEY,
        base_url=f"https://me:{PASSWORD}@gateway.example/v1",
        headers=HEADERS,
        query={"api-key": TEAM, "api-version": "1"},
        params=params,
    )
    data = pickle.dumps(target)
    for secret in (KEY, TEAM, PASSWORD):
        assert secret.encode() not in data
    arrived = pickle.loads(data)
    assert arrived.api_key is None
    assert arrived.base_url == "https://gateway.example/v1"
    assert arrived.options == {
        "headers": KEPT,
        "query": {"api-version": "1"},
        "params": {"max_completion_tokens": 9, "extra_headers": {"X-Team": "blue"}},
    }
    assert target.options["headers"] == HEADERS, "the target itself keeps what it needs"


def test_within_one_process_a_copy_keeps_its_credentials() -> None:
    target = Target("openai:m", api_key=KEY, headers=HEADERS)
    for twin in (copy.copy(target), copy.deepcopy(target)):
        assert twin.api_key == KEY
        assert twin.options["headers"] == HEADERS
    assert copy.deepcopy(target).options is not target.options


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("https://me:secret@gateway.example/v1", "https://***@gateway.example/v1"),
        ("https://me:se@cr@et@gateway.example/v1", "https://***@gateway.example/v1"),
        ("https://sk-aaaaaaaaaaaaaaaaaaaa:rest@gateway.example", "https://***@gateway.example"),
        ("redis://:secret@cache:6379/0", "redis://***@cache:6379/0"),
        ("Illegal header value b'a\\'b c'; sorry", "Illegal header value ***; sorry"),
        ('reserved character(s) in header value: "it\'s"', "reserved character(s) in header value: ***"),
        ("connecting to http://token@host failed (http://token@host)", None),
        ("https://gateway.example/v1?mail=me@example.org", "https://gateway.example/v1?mail=me@example.org"),
        ("see https://gateway.example or ask me@example.org", "see https://gateway.example or ask me@example.org"),
    ],
)
def test_who_logs_in_with_which_password_is_cut_out_of_urls(said: str, shown: str | None) -> None:
    assert redact(said) == shown or (shown is None and "token" not in redact(said))


@pytest.fixture(scope="module")
def server() -> Iterator[FaultServer]:
    with FaultServer() as running:
        yield running


def targets(server: FaultServer, headers: dict[str, str]) -> list[Target]:
    """One on each wire, with a password in the URL and secrets in headers."""
    made = []
    for wire in WIRES:
        url = getattr(server, f"{wire}_url").replace("://", f"://me:{PASSWORD}@")
        made.append(Target(f"{wire}:m", base_url=url, api_key=KEY, headers=headers))
    return made


@pytest.mark.parametrize("streaming", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize(
    "fault", ["ok", "bad-request", "unauthorized", "server-error", "reset-before-headers", "html-200"]
)
def test_nothing_that_is_shown_written_or_told_has_a_credential(
    server: FaultServer, fault: str, streaming: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="llm_fallback")
    server.script("m", fault if fault == "ok" else Fault(fault))
    told: list[Any] = []
    with Router(targets(server, {"X-Team": TEAM}), retry=RetryPolicy(0, 0), on_event=told.append) as router:
        shown = look(router, streaming)
        router.flush_events()
        shown += [repr(told), *(str(event.as_dict()) for event in told)]
    shown += [record.getMessage() for record in caplog.records if record.name.startswith("llm_fallback")]
    assert server.requests[-1].headers["x-team"] == TEAM, "the test is about something that is sent"
    for text in shown:
        for secret in (TEAM, PASSWORD, KEY):
            assert secret not in text


@pytest.mark.parametrize("colour", ["sync", "async"])
def test_a_header_that_cannot_be_sent_is_not_recited(
    server: FaultServer, colour: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HTTP libraries quote the value that they refuse. Here one has got past our own check."""
    monkeypatch.setattr("shared_core.providers.registry.check", lambda target: None)
    server.script("m", "ok")
    for target in targets(server, {"X-Team": f"{TEAM}\n"}):
        with Router([target], retry=RetryPolicy(0, 0)) as router:
            for text in look(router, False, colour):
                assert TEAM not in text


@pytest.mark.parametrize("value", [f"{TEAM}\n", f" {TEAM}", f"{TEAM}\r\nX-Other: 1", f"{TEAM}\0"])
def test_a_header_that_cannot_be_sent_is_refused_by_its_name(value: str) -> None:
    with pytest.raises(ConfigurationError, match="header 'X-Team'") as caught:
        Router([Target("openai:m", api_key=KEY, headers={"X-Team": value})])
    assert TEAM not in str(caught.value)


@pytest.mark.parametrize("wire", WIRES)
def test_a_key_that_was_read_from_a_file_works(server: FaultServer, wire: str) -> None:
    """It ends with a line break, which no header can carry."""
    server.script("m", "ok")
    with Router([Target(f"{wire}:m", api_key=f"{KEY}\n", base_url=getattr(server, f"{wire}_url"))]) as router:
        assert router.invoke("Hello").text


def look(router: Router, streaming: bool, colour: str = "sync") -> list[str]:
    """Make a call; everything of it that somebody may print, log or store."""
    seen: list[Any] = []
    try:
        if colour == "async":
            seen.append(asyncio.run(router.ainvoke("Hello")))
        else:
            seen += list(router.stream("Hello")) if streaming else [router.invoke("Hello")]
    except AllTargetsFailed as failure:
        seen += [failure, failure.fallback, *failure.errors, *(vars(error) for error in failure.errors)]
        seen.append("".join(traceback.format_exception_only(failure)))
    seen += [getattr(item, "fallback", None) for item in seen]
    seen += [
        router,
        router.targets,
        router.providers,
        router.explain("Hi"),
        router.health(),
        router.costs(),
        router.last,
    ]
    seen += [provider.origin for provider in router.providers]
    seen += [vars(item) for item in (router.explain("Hi"), *router.explain("Hi").routes) if hasattr(item, "__dict__")]
    return [text for item in seen for text in (repr(item), str(item))]
