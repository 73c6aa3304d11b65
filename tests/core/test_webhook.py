"""Webhooks over a real server on loopback that refuses, fails, hangs, drips and resets."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import logging
import os
import pickle
import socket
import ssl
import struct
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared_core import ConfigurationError, Router, WebhookHook, verify_signature
from shared_core.errors import ErrorKind as K
from shared_core.telemetry.dispatch import Dispatcher
from shared_core.telemetry.events import (
    AttemptFailed,
    CircuitChanged,
    Event,
    RequestFailed,
    RequestSucceeded,
    TargetUnhealthy,
)
from shared_core.telemetry.webhook import _body, sign
from shared_core.testing import FaultServer, ScriptedProvider
from tests.timing import LONG_S, timed

SECRET = "whsec_" + base64.b64encode(b"a secret of thirty-two bytes ...").decode()


@dataclass
class Got:
    """One request as the receiver saw it."""

    path: str
    headers: dict[str, str]
    body: bytes
    at: float = field(default_factory=time.monotonic)

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Receiver:
    """A server that answers each request as the next step of its script says; the last step repeats."""

    def __init__(self, *script: object) -> None:
        self.script = script or (204,)
        self.got: list[Got] = []
        self.released = threading.Event()
        mine = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                mine.got.append(Got(self.path, {k.lower(): v for k, v in self.headers.items()}, body))
                mine.play(self, mine.script[min(len(mine.got), len(mine.script)) - 1])

            def log_message(self, *_: object) -> None:
                """Silence."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/hooks/PATH-SECRET?token=QUERY-SECRET"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)

    def play(self, handler: BaseHTTPRequestHandler, step: object) -> None:
        match step:
            case int():
                handler.send_response(step)
                handler.send_header("content-length", "0")
                handler.end_headers()
            case (int() as status, str() as wait):
                handler.send_response(status)
                handler.send_header("retry-after", wait)
                handler.end_headers()
            case "redirect":
                handler.send_response(307)
                handler.send_header("location", self.url)
                handler.end_headers()
            case "hang":
                self.released.wait(4 * LONG_S)
            case "drip":
                handler.wfile.write(b"HTTP/1.1 200 OK\r\nx-drip: ")
                while not self.released.wait(0.02):
                    handler.wfile.write(b".")
            case "reset":
                linger = struct.pack("ii", 1, 0)
                handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                handler.connection.close()
            case "garbage":
                handler.wfile.write(b"\x00\x01 this is no HTTP\r\n\r\n")

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.released.set()
        self.server.shutdown()
        self.server.server_close()


@contextmanager
def hook(receiver: Receiver, **options: Any) -> Iterator[WebhookHook]:
    made = WebhookHook(receiver.url, **({"backoff_s": 0.001, "timeout_s": 2.0, "close_s": 0.2} | options))
    try:
        yield made
    finally:
        made.drain()


def circuit(n: int = 0, reason: str | None = None) -> CircuitChanged:
    return CircuitChanged("", 1_700_000_000.0 + n, f"target-{n}", "circuit open", 5.0, reason)


# ── one delivery ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_event_arrives_as_signed_json():
    with Receiver() as receiver, hook(receiver, secret=SECRET, headers={"x-team": "blue"}) as one:
        one(circuit())
        assert one.flush()
        (got,) = receiver.got
        assert (one.delivered, one.given_up, one.dropped, one.waiting) == (1, 0, 0, 0)
    assert got.path == "/hooks/PATH-SECRET?token=QUERY-SECRET"
    assert got.headers["content-type"] == "application/json"
    assert got.headers["x-team"] == "blue"
    assert got.json == {
        "type": "circuit_changed",
        "timestamp": 1_700_000_000.0,
        "data": {"execution": "", "scope": "target-0", "state": "circuit open", "for_s": 5.0, "reason": None},
    }
    assert verify_signature(SECRET, got.headers, got.body)
    stamp, name = got.headers["webhook-timestamp"], got.headers["webhook-id"]
    key = base64.b64decode(SECRET.removeprefix("whsec_"))
    mac = hmac.new(key, f"{name}.{stamp}.".encode() + got.body, hashlib.sha256).digest()
    assert got.headers["webhook-signature"] == "v1," + base64.b64encode(mac).decode(), "by the book"


def test_without_a_secret_nothing_is_signed():
    with Receiver() as receiver, hook(receiver) as one:
        one(circuit())
        assert one.flush()
    assert "webhook-signature" not in receiver.got[0].headers


def test_events_arrive_in_their_order_and_once():
    with Receiver() as receiver, hook(receiver) as one:
        for n in range(40):
            one(circuit(n))
        assert one.flush()
    assert [got.json["data"]["scope"] for got in receiver.got] == [f"target-{n}" for n in range(40)]
    assert len({got.headers["webhook-id"] for got in receiver.got}) == 40


def test_only_the_kinds_that_were_asked_for_are_sent():
    with Receiver() as receiver, hook(receiver, events=["target_unhealthy", AttemptFailed]) as one:
        dispatcher = Dispatcher([one])
        dispatcher.emit(circuit())
        dispatcher.emit(TargetUnhealthy("", 1.0, "a", None))
        dispatcher.emit(AttemptFailed("1", 2.0, "a", 1, "transient", "oh", True))
        assert dispatcher.flush()
        dispatcher.close()
    assert [got.json["type"] for got in receiver.got] == ["target_unhealthy", "attempt_failed"]


# ── trouble ──────────────────────────────────────────────────────────────────────────────────────────────────────────

AGAIN: dict[str, object] = {
    "500": 500, "503": 503, "429": 429, "408": 408, "425": 425, "reset": "reset", "garbage": "garbage",
    "silence": "hang", "a header without end": "drip",
}  # fmt: skip


@pytest.mark.parametrize("trouble", AGAIN)
@timed  # two of the troubles end only with a short limit, which the good answer must keep, too
def test_what_may_pass_is_tried_again_under_the_same_id_with_a_fresh_signature(trouble):
    with (
        Receiver(AGAIN[trouble], AGAIN[trouble], 200) as receiver,
        hook(receiver, secret="plain text", timeout_s=0.15 if AGAIN[trouble] in ("hang", "drip") else LONG_S) as one,
    ):
        one(circuit())
        assert one.flush(LONG_S)
        assert (one.delivered, one.given_up) == (1, 0)
    assert len(receiver.got) == 3
    assert len({got.headers["webhook-id"] for got in receiver.got}) == 1
    assert all(verify_signature("plain text", got.headers, got.body) for got in receiver.got)


@pytest.mark.parametrize("answer", [400, 401, 404, 410, "redirect"])
def test_what_will_not_pass_is_given_up_at_once(answer, caplog):
    with Receiver(answer) as receiver, hook(receiver) as one, caplog.at_level(logging.WARNING):
        one(circuit())
        assert one.flush()
        assert (one.delivered, one.given_up, len(receiver.got)) == (0, 1, 1)
        (line,) = [record.getMessage() for record in caplog.records]
        assert "gave up circuit_changed after 1 of 5 tries" in line
        assert "SECRET" not in line


def test_it_is_given_up_after_all_its_tries_and_the_next_event_has_its_own(caplog):
    with Receiver(*[500] * 5, 200) as receiver, hook(receiver) as one:
        one(circuit(1))
        one(circuit(2))
        assert one.flush(LONG_S)
        assert (one.delivered, one.given_up, len(receiver.got)) == (1, 1, 6)
        assert "after 5 of 5 tries: HTTP 500" in caplog.text


def test_a_server_that_is_not_there_is_given_up_too(caplog):
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        one = WebhookHook(f"http://127.0.0.1:{reserved.getsockname()[1]}/", attempts=2, backoff_s=0.001)
        one(circuit())
        assert one.flush()
        assert one.given_up == 1
        assert "ConnectionRefusedError" in caplog.text


def test_a_server_that_nobody_vouches_for_is_given_nothing(caplog):
    with FaultServer(tls=True) as server:
        one = WebhookHook(server.openai_url + "/chat/completions", secret=SECRET, attempts=1)
        one(circuit())
        assert one.flush()
        assert one.given_up == 1
        assert "its certificate was refused" in caplog.text
        assert not server.requests
        trusted = WebhookHook(
            server.openai_url + "/chat/completions", attempts=1, tls=ssl.create_default_context(cadata=server.ca_pem)
        )
        trusted(circuit())
        assert trusted.flush()
        assert len(server.requests) == 1, "it arrives; that a vendor's address refuses it is another matter"
        assert trusted.given_up == 1


@given(st.integers(0, 60), st.floats(0, 0.999), st.one_of(st.none(), st.floats(0, 1e5)))
def test_waits_have_full_jitter_heed_the_server_and_know_a_cap(attempt, chance, asked):
    one = WebhookHook("https://example.com/", backoff_s=0.5, backoff_cap_s=30)
    one._chance = lambda: chance
    wait = one._wait_s(attempt, asked)
    assert 0 <= wait <= 30
    assert wait >= min(30, asked or 0)
    assert wait == min(30.0, max(asked or 0.0, chance * min(30.0, 0.5 * 2.0**attempt)))


def test_a_server_may_ask_for_a_pause():
    with Receiver((503, "0.2"), 200) as receiver, hook(receiver) as one:
        one(circuit())
        assert one.flush()
    first, second = receiver.got
    assert second.at - first.at >= 0.19


# ── never in the way ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_nobody_waits_for_a_server_that_hangs_and_memory_is_bounded():
    with Receiver("hang") as receiver, hook(receiver, queue=20, timeout_s=2 * LONG_S) as one:
        begun = time.monotonic()
        for n in range(5_000):
            one(circuit(n))
        assert time.monotonic() - begun < LONG_S, "five thousand calls, none of which waits"
        assert one.waiting == 20
        assert one.dropped == 4_980
        first, *rest = [json.loads(delivery.body)["data"]["scope"] for delivery in one._queue]
        assert rest == [f"target-{n}" for n in range(4_981, 5_000)], "the oldest go first"
        assert first in ("target-0", f"target-{4_980}"), "the one on its way stays"
        begun = time.monotonic()
        assert not one.drain()
        assert 0.15 < time.monotonic() - begun < LONG_S, "closing waits for close_s, and not for the server"
        assert one.dropped == 5_000


def test_a_request_is_not_held_up_and_a_router_that_closes_sends_what_is_left():
    with Receiver(503, 200) as receiver:
        one = WebhookHook(receiver.url, secret=SECRET, backoff_s=1_000, close_s=30, events="request_succeeded")
        one._chance = lambda: 1.0
        with Router([ScriptedProvider("ok", name="a")], on_event=one) as router:
            begun = time.monotonic()
            for _ in range(3):
                router.invoke("my prompt PROMPT-SECRET")
            assert time.monotonic() - begun < 20, "and not the thirty that the second try waits"
        assert (one.delivered, one.waiting) == (3, 0), "in a hurry now"
        assert len(receiver.got) == 4
        assert not any(b"PROMPT-SECRET" in got.body for got in receiver.got)


def test_flushing_the_routers_events_waits_for_webhooks():
    with Receiver() as receiver, hook(receiver) as one, Router([ScriptedProvider()], on_event=[one]) as router:
        router.invoke("Hi")
        assert router.flush_events()
        assert len(receiver.got) == 2


def test_its_thread_ends_when_there_is_nothing_to_do_and_begins_anew(monkeypatch):
    monkeypatch.setattr("shared_core.telemetry.webhook._IDLE_S", 0.02)
    with Receiver() as receiver, hook(receiver) as one:
        for n in range(3):
            one(circuit(n))
            assert one.flush()
            thread = one._thread
            if thread is not None:
                assert thread.daemon
                thread.join(LONG_S)
            assert one._thread is None
    assert len(receiver.got) == 3


PROGRAM = """
    import os, sys
    from shared_core import WebhookHook
    from shared_core.telemetry.events import TargetUnhealthy
    hook = WebhookHook(sys.argv[1], close_s=5)
    hook(TargetUnhealthy("", 1.0, "parent", None))
    hook.flush()
    if sys.argv[2] == "fork" and os.fork() == 0:
        hook(TargetUnhealthy("", 1.0, "child", None))
        os._exit(0 if hook.flush() else 1)
    if sys.argv[2] == "fork":
        print(os.waitstatus_to_exitcode(os.wait()[1]))
    hook(TargetUnhealthy("", 1.0, "last", None))
    # Neither closed nor flushed: the program ends.
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.parametrize("how", ["fork", "exit"])
def test_it_survives_a_fork_and_a_program_that_just_ends(how):
    with Receiver() as receiver:
        command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(PROGRAM), receiver.url, how]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert ended.returncode == 0, ended.stderr
        names = [got.json["data"]["target"] for got in receiver.got]
    assert sorted(names) == sorted(["parent", "last", *(["child"] if how == "fork" else [])])
    assert how != "fork" or ended.stdout == "0\n"


# ── what is in it ────────────────────────────────────────────────────────────────────────────────────────────────────

KEY = "sk-abcdefghijklmnopqrstuvwxyz012345"


def test_a_vendors_own_words_stay_here_unless_they_are_wanted():
    said = f"the prompt 'PROMPT' is too long for {KEY}"
    failed = AttemptFailed("1", 2.0, "a", 1, "context_overflow", said, False)
    assert b"PROMPT" not in _body(failed, details=False)
    told = json.loads(_body(failed, details=True))["data"]
    assert told["error"] == "the prompt 'PROMPT' is too long for ***"
    assert json.loads(_body(failed, details=False))["data"]["kind"] == "context_overflow"
    assert b"PROMPT" not in _body(circuit(reason=said), details=False)
    assert b"PROMPT" not in _body(RequestFailed("1", 2.0, "failed", said, 3, 0.5), details=False)


def test_a_payload_is_small_and_json_whatever_happened():
    huge = RequestSucceeded("1", float("nan"), "a" * 10_000, 3, float("inf"), True, None, ("é" * 9_000,) * 900)
    for details in (True, False):
        body = _body(huge, details=details)
        assert len(body) <= 16_384
        told = json.loads(body, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
        assert told["data"]["duration_s"] is None


def test_neither_its_secret_nor_its_address_is_shown():
    one = WebhookHook("https://user:PASSWORD@example.com:8443/PATH-SECRET?QUERY-SECRET", secret="KEY-SECRET")
    assert repr(one).startswith("WebhookHook('https://example.com:8443', signed; 0 delivered")
    assert "SECRET" not in repr(one) + str(one)
    assert "PASSWORD" not in repr(one)
    with pytest.raises(TypeError, match="does not travel"):
        pickle.dumps(one)


@pytest.mark.parametrize(
    "bad",
    [
        {"url": "example.com"}, {"url": "ftp://example.com"}, {"url": "http://"}, {"url": None}, {"secret": ""},
        {"secret": "whsec_not base64!"}, {"timeout_s": 0}, {"timeout_s": "5"}, {"attempts": 0}, {"attempts": True},
        {"backoff_s": -1}, {"backoff_cap_s": float("inf")}, {"queue": 0}, {"events": ["nothing"]},
        {"events": "circuit_chnged"}, {"headers": {"x": "a\r\ny: b"}}, {"headers": {"x": 5}}, {"close_s": float("nan")},
    ],
)  # fmt: skip
def test_options_that_make_no_sense_are_refused_when_they_are_given(bad):
    with pytest.raises(ConfigurationError) as caught:
        WebhookHook(**({"url": "https://example.com"} | bad))
    assert "whsec_not" not in str(caught.value)


# ── the receiver's side ──────────────────────────────────────────────────────────────────────────────────────────────


def delivery(secret: str | bytes = SECRET, body: bytes = b'{"type":"x"}', stamp: int = 1_000) -> dict[str, str]:
    return {
        "Webhook-Id": "evt_1",
        "webhook-timestamp": str(stamp),
        "WEBHOOK-SIGNATURE": sign(secret, "evt_1", stamp, body),
    }


def test_the_published_example_of_standard_webhooks_verifies():
    body = b'{"test": 2432232314}'
    headers = {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }
    assert verify_signature("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", headers, body, now=1614265330)


CHANGES: dict[str, Callable[[dict[str, str]], dict[str, str]]] = {
    "another id": lambda h: h | {"Webhook-Id": "evt_2"},
    "another time": lambda h: h | {"webhook-timestamp": "1001"},
    "no time": lambda h: {k: v for k, v in h.items() if k != "webhook-timestamp"},
    "a time that is none": lambda h: h | {"webhook-timestamp": "1e3"},
    "a time in other digits": lambda h: h | {"webhook-timestamp": "١٠٠٠"},
    "no id": lambda h: h | {"Webhook-Id": ""},
    "no signature": lambda h: h | {"WEBHOOK-SIGNATURE": ""},
    "another version": lambda h: h | {"WEBHOOK-SIGNATURE": h["WEBHOOK-SIGNATURE"].replace("v1", "v0")},
    "a signature cut short": lambda h: h | {"WEBHOOK-SIGNATURE": h["WEBHOOK-SIGNATURE"][:-2]},
    "a signature that is no ascii": lambda h: h | {"WEBHOOK-SIGNATURE": "v1,é"},
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_delivery_that_was_changed_is_refused(what):
    good = delivery()
    assert verify_signature(SECRET, good, b'{"type":"x"}', now=1_000)
    assert not verify_signature(SECRET, CHANGES[what](good), b'{"type":"x"}', now=1_000)


def test_a_changed_body_and_another_secret_are_refused():
    assert not verify_signature(SECRET, delivery(), b'{"type":"y"}', now=1_000)
    assert not verify_signature("other", delivery(), b'{"type":"x"}', now=1_000)
    assert verify_signature(SECRET, delivery(), '{"type":"x"}', now=1_000), "a text is its UTF-8"


def test_an_old_delivery_is_refused_and_one_from_the_future_too():
    assert verify_signature(SECRET, delivery(), b'{"type":"x"}', now=1_300)
    assert not verify_signature(SECRET, delivery(), b'{"type":"x"}', now=1_301)
    assert not verify_signature(SECRET, delivery(), b'{"type":"x"}', now=699)
    assert verify_signature(SECRET, delivery(), b'{"type":"x"}', now=4_600, tolerance_s=3_600)
    assert not verify_signature(SECRET, delivery(), b'{"type":"x"}'), "by the clock it is fifty years old"


def test_one_secret_can_take_the_place_of_another():
    headers = delivery("new")
    assert verify_signature(["old", "new"], headers, b'{"type":"x"}', now=1_000)
    both = headers | {"WEBHOOK-SIGNATURE": delivery("old")["WEBHOOK-SIGNATURE"] + " " + headers["WEBHOOK-SIGNATURE"]}
    assert verify_signature("new", both, b'{"type":"x"}', now=1_000)
    assert not verify_signature([], headers, b'{"type":"x"}', now=1_000)


@given(st.binary(max_size=200), st.text(min_size=1, max_size=20), st.integers(0, 2**40))
def test_whatever_is_signed_verifies(body, secret, stamp):
    if secret.startswith("whsec_"):
        return
    headers = {
        "webhook-id": "evt_9",
        "webhook-timestamp": str(stamp),
        "webhook-signature": sign(secret.encode(), "evt_9", stamp, body),
    }
    assert verify_signature(secret.encode(), headers, body, now=stamp)
    assert not verify_signature(secret.encode(), headers, body + b"x", now=stamp)


def test_an_observer_needs_not_be_a_router_s():
    seen: list[Event] = []
    with Receiver() as receiver, hook(receiver) as one:
        for event in (circuit(1), TargetUnhealthy("", 1.0, "a", str(K.TRANSIENT))):
            one(event)
            seen.append(event)
        assert one.flush()
    assert [got.json["type"] for got in receiver.got] == [event.name for event in seen]
