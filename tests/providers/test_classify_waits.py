"""How long a server asks to wait: every dialect, its order of precedence, and figures that are not believed."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared_core.providers.classify import classify_body, retry_after_s

DATE = "Fri, 20 Nov 2026 10:00:00 GMT"
NOW = 1_000_000_000.0  # our own clock, far off, so that a test fails if it is read

CASES: list[tuple[str, dict[str, str], Any, float | None]] = [
    ("milliseconds", {"retry-after-ms": "1500", "retry-after": "9"}, None, 1.5),
    ("seconds", {"Retry-After": "7"}, None, 7.0),
    ("fractions", {"retry-after": "0.25"}, None, 0.25),
    ("zero", {"retry-after": "0"}, None, 0.0),
    ("a date, by the server's clock", {"retry-after": "Fri, 20 Nov 2026 10:00:42 GMT", "date": DATE}, None, 42.0),
    ("a date in the past", {"retry-after": "Fri, 20 Nov 2026 09:00:00 GMT", "date": DATE}, None, None),
    ("nonsense", {"retry-after": "soon"}, None, None),
    ("NaN", {"retry-after": "nan"}, None, None),
    ("infinity", {"retry-after": "inf"}, None, None),
    ("negative", {"retry-after": "-5"}, None, None),
    ("more than a week", {"retry-after": "604801"}, None, None),
    ("exactly a week", {"retry-after": "604800"}, None, 604800.0),
    ("bad milliseconds give way", {"retry-after-ms": "nan", "retry-after": "3"}, None, 3.0),
    ("a bad header gives way to the text", {"retry-after": "-1"}, {"error": {"message": "try again in 41.7s"}}, 41.7),
    ("Gemini", {}, {"error": {"details": [{"@type": "x/google.rpc.RetryInfo", "retryDelay": "37.5s"}]}}, 37.5),
    (
        "an exhausted dimension of OpenAI",
        {
            "x-ratelimit-remaining-requests": "0",
            "x-ratelimit-reset-requests": "6m0s",
            "x-ratelimit-remaining-tokens": "10",
            "x-ratelimit-reset-tokens": "9h",
        },
        None,
        360.0,
    ),
    (
        "the later of two",
        {
            "x-ratelimit-remaining-requests": "0",
            "x-ratelimit-reset-requests": "120ms",
            "x-ratelimit-remaining-tokens": "0",
            "x-ratelimit-reset-tokens": "1m2.5s",
        },
        None,
        62.5,
    ),
    (
        "an exhausted dimension of Anthropic",
        {
            "anthropic-ratelimit-tokens-remaining": "0",
            "anthropic-ratelimit-tokens-reset": "2026-11-20T10:00:09Z",
            "date": DATE,
        },
        None,
        9.0,
    ),
    ("nothing exhausted", {"x-ratelimit-remaining-requests": "3", "x-ratelimit-reset-requests": "6m0s"}, None, None),
    ("an epoch", {"x-ratelimit-remaining": "0", "x-ratelimit-reset": "1795168810", "date": DATE}, None, 10.0),
    (
        "an epoch in milliseconds",
        {"x-ratelimit-remaining": "0", "x-ratelimit-reset": "1795168805000", "date": DATE},
        None,
        5.0,
    ),
    ("text in milliseconds", {}, {"error": {"message": "Please try again in 120ms."}}, 0.12),
    ("text with minutes", {}, {"error": {"message": "Please try again in 7m12s."}}, 432.0),
    ("text at the end of a sentence", {}, {"error": {"message": "Please try again in 20s. Visit us."}}, 20.0),
    ("text in words", {}, {"error": {"message": "retry after 5 seconds"}}, 5.0),
    ("nothing", {}, {"error": {"message": "slow down"}}, None),
    ("no body", {}, None, None),
]


@pytest.mark.parametrize(("headers", "body", "wait"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_a_wait_is_read_from_wherever_the_server_says_it(
    headers: dict[str, str], body: Any, wait: float | None
) -> None:
    assert retry_after_s(headers, body, now=NOW) == (None if wait is None else pytest.approx(wait))


def test_without_a_date_of_the_servers_ours_is_taken() -> None:
    assert retry_after_s({"retry-after": "Sun, 09 Sep 2001 01:46:50 GMT"}, now=NOW) == 10.0


def test_an_overload_reports_its_header_but_not_the_rate_limits() -> None:
    """A window that happens to be empty says nothing about when capacity returns."""
    headers = {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "6m0s"}
    body = {"error": {"message": "x", "code": "server_is_overloaded"}}
    assert classify_body("openai", 503, body, headers).retry_after_s is None
    assert classify_body("openai", 503, body, {**headers, "retry-after": "4"}).retry_after_s == 4.0


@given(st.text(max_size=40), st.text(max_size=40), st.text(max_size=80))
def test_no_header_or_text_can_make_it_fail_or_lie(millis: str, seconds: str, message: str) -> None:
    """Whatever a server sends, the wait is none or a finite number of seconds within a week."""
    headers = {
        "retry-after-ms": millis,
        "retry-after": seconds,
        "x-ratelimit-remaining": "0",
        "x-ratelimit-reset": message,
    }
    wait = retry_after_s(headers, {"error": {"message": f"try again in {message}"}}, now=NOW)
    assert wait is None or (math.isfinite(wait) and 0 <= wait <= 604_800)
