"""The fault server at the wire: scripts, faults, the log, and its own life."""

from __future__ import annotations

import asyncio
import gzip
import http.client
import json
import socket
import ssl
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, get_args

import pytest

from shared_core.testing import fault_server
from shared_core.testing.fault_server import (
    CANONICAL,
    FAULTS,
    Answer,
    Fault,
    FaultServer,
    SeenRequest,
    ToolCall,
    _http2,
    cut,
    drip,
    hang,
    reset,
    slow,
    stall,
    status,
)
from shared_core.testing.fault_server import __main__ as cli
from shared_core.testing.fault_server._faults import ALIASES, Place
from shared_core.testing.fault_server._script import _WHERE
from shared_core.testing.fault_server._staging import _STAGES
from shared_core.testing.fault_server._wires import WIRE_BY_NAME
from tests.timing import timed

WIRES = ["openai", "anthropic", "google"]
each_wire = pytest.mark.parametrize("wire", WIRES)
each_shape = pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer(wall_clock=lambda: 1_800_000_000.25) as server:
        yield server


def request_for(wire: str, model: str = "m", streamed: bool = False, prompt: str = "hi there") -> tuple[str, str]:
    """Path and body of a plain request."""
    if wire == "google":
        method = "streamGenerateContent?alt=sse" if streamed else "generateContent"
        body: dict[str, Any] = {"contents": [{"role": "user", "parts": [{"text": prompt}]}]}
        return f"/v1beta/models/{model}:{method}", json.dumps(body)
    body = {"model": model, "messages": [{"role": "user", "content": prompt}], "stream": streamed}
    if wire == "anthropic":
        return "/v1/messages", json.dumps({**body, "max_tokens": 100})
    return "/v1/chat/completions", json.dumps(body)


class Reply:
    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.headers = response.headers
        self.body = response.read()

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def text(self) -> str:
        return text_of(self.json)


def text_of(data: Any) -> str:
    if "choices" in data:
        return data["choices"][0]["message"]["content"]
    if "content" in data:
        return "".join(block["text"] for block in data["content"])
    return "".join(part["text"] for part in data["candidates"][0]["content"]["parts"])


def post(server: FaultServer, wire: str = "openai", model: str = "m", streamed: bool = False, **headers: str) -> Reply:
    path, body = request_for(wire, model, streamed)
    return send(server, "POST", path, body, **headers)


def send(server: FaultServer, method: str, path: str, body: str | None = None, **headers: str) -> Reply:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    try:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body, {"content-type": "application/json", **named})
        return Reply(connection.getresponse())
    finally:
        connection.close()


def dial(server: FaultServer, wire: str = "openai", streamed: bool = False, model: str = "m") -> socket.socket:
    """A raw connection on which a request was sent."""
    path, body = request_for(wire, model, streamed)
    sock = socket.create_connection(("127.0.0.1", server.port), timeout=30)
    data = body.encode()
    sock.sendall(f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(data)}\r\n\r\n".encode() + data)
    return sock


def read_all(sock: socket.socket) -> tuple[bytes, str]:
    """What came, and how it ended: fin, rst or silence."""
    got = b""
    while True:
        try:
            data = sock.recv(65536)
        except ConnectionResetError:
            return got, "rst"
        except TimeoutError:
            return got, "silence"
        if not data:
            return got, "fin"
        got += data


def events(body: bytes) -> list[Any]:
    """The JSON of a stream's events."""
    lines = body.decode().splitlines()
    return [json.loads(line[6:]) for line in lines if line.startswith("data: {")]


# ── the requirement's own example ────────────────────────────────────────────────────────────────────────────────────


@each_wire
def test_a_script_is_served_step_by_step(wire):
    """Two failures, then the answer, and the answer again."""
    with FaultServer() as s:
        s.script("gpt-x", [503, 503, "ok"])
        replies = [post(s, wire, "gpt-x") for _ in range(4)]
        assert [reply.status for reply in replies] == [503, 503, 200, 200]
        assert replies[-1].text == CANONICAL
        assert [seen.step for seen in s.requests] == ["503", "503", "ok", "ok"]
        assert s.count("gpt-x") == s.count() == 4


# ── scripts ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_models_have_their_own_queues(server):
    """A model's own script comes before `*`, `*` before the default."""
    server.script("a", [500]).script("*", [404], loop_last=False)
    assert [post(server, model=m).status for m in ("a", "b", "b", "a")] == [500, 404, 200, 500]


def test_a_queue_that_does_not_loop_ends(server):
    """Then the default step takes over."""
    server.script("m", [500, 502], loop_last=False)
    assert [post(server).status for _ in range(4)] == [500, 502, 200, 200]
    server.default = 429
    assert post(server).status == 429


def test_one_step_needs_no_list(server):
    """Any kind of step."""
    for step, expected in (
        (503, 503),
        ("503", 503),
        ("server-error", 500),
        (Answer("x"), 200),
        (lambda seen: "x", 200),
    ):
        server.script("m", step)
        assert post(server).status == expected


def test_a_function_answers_by_prompt(server):
    """It is handed the request as the log shows it."""

    def echo(seen: SeenRequest) -> Answer:
        return Answer(f"{seen.model} heard: {seen.prompt}")

    server.script("*", echo)
    assert post(server, model="m7").text == "m7 heard: hi there"
    server.script("*", Fault("content-filter", answer=lambda seen: seen.prompt * 2, after_words=1))
    assert post(server).text == "hi"


def test_a_function_may_choose_a_fault(server):
    """By what it sees: a fault that befalls streams only, and its like for whole answers."""
    server.script("*", lambda seen: Fault("overload-first") if seen.streamed else Fault("overloaded"))
    assert post(server).status == 503
    reply = post(server, streamed=True)
    assert reply.status == 200
    assert b"overloaded" in reply.body


@pytest.mark.parametrize("bad", [lambda seen: 1 / 0, lambda seen: 7, lambda seen: Fault("refused")])
def test_a_function_that_fails_is_heard(server, bad):
    """A 500 that says why, and an outcome of its own."""
    server.script("*", bad)
    reply = post(server)
    assert reply.status == 500
    assert "FaultServer" in reply.json["error"]["message"]
    assert server.requests[0].outcome == "script-error"


@pytest.mark.parametrize(
    ("make", "hint"),
    [
        (lambda s: s.script("m", ["hnag"]), "'hang'"),
        (lambda s: s.script("m", ["Hello there"]), r"Answer\('Hello there'\)"),
        (lambda s: s.script("m", []), "at least one step"),
        (lambda s: s.script("m", ["refused"]), "refused_url"),
        (lambda s: s.script("m", ["close-on-accept"]), "script_accept"),
        (lambda s: s.script_accept(["hang"]), "script\\(model"),
        (lambda s: Fault("cutt"), "'cut'"),
        (lambda s: Fault("status"), "status=503"),
        (lambda s: Fault("status", status=42), "no HTTP status"),
        (lambda s: Fault("cut", delay_s=-1), "negative"),
        (lambda s: Answer(chunk="sentence"), "'word'"),  # type: ignore[arg-type]  # on purpose
        (lambda s: Answer(chunk=0), "from 1 up"),
        (lambda s: Answer(delay_s=-1), "negative"),
    ],
)
def test_mistakes_are_told_when_they_are_made(make, hint):
    """With what to write instead."""
    with pytest.raises(ValueError, match=hint):
        make(FaultServer())


def test_steps_of_a_wrong_type_are_refused():
    """A bool is an int in Python, and a status in nobody's mind."""
    for wrong in (True, 1.5, None):
        with pytest.raises(TypeError, match="hint"):
            FaultServer().script("m", [wrong])  # type: ignore[list-item]  # on purpose


def test_side_questions_take_no_steps_of_a_model(server):
    """Lists of models and token counts have scripts of their own."""
    server.script("*", [500]).script("gpt-x", ["ok"])
    assert [m["id"] for m in send(server, "GET", "/v1/models").json["data"]] == ["gpt-x"]
    server.script("@models", [503, "ok"]).script("@count_tokens", [429])
    assert [send(server, "GET", "/v1/models").status for _ in range(2)] == [503, 200]
    assert send(server, "POST", "/v1/messages/count_tokens", request_for("anthropic")[1]).status == 429
    assert post(server).status == 500


# ── the table of faults ──────────────────────────────────────────────────────────────────────────────────────────────


def test_every_kind_can_be_staged():
    """By a function, or as an error on each wire it names; and nothing is staged that is not in the table."""
    for kind in FAULTS.values():
        if kind.place == "request" and kind.name not in {"status", *_STAGES}:
            missing = [wire for wire in kind.wires if WIRE_BY_NAME[wire].error_for(kind.name, None) is None]  # type: ignore[arg-type]
            assert missing == [], kind.name
    assert set(_STAGES) <= set(FAULTS)
    assert set(ALIASES.values()) <= set(FAULTS)
    assert set(_WHERE) == set(get_args(Place))
    assert all(kind.what and kind.family for kind in FAULTS.values())


REQUEST_KINDS = [kind for kind in FAULTS.values() if kind.place == "request" and kind.name != "status"]
ENDLESS = {"no-response", "hang-after-headers", "header-drip", "continue-only", "ping-drip", "stall", "role-only-hang"}
DRIPS = {"header-drip", "ping-drip"}
CUT = {
    "reset-before-headers": "rst", "reset-after-headers": "rst", "cut": "rst", "cut-tool": "rst",
    "close-before-headers": "fin", "garbage-status-line": "fin", "wrong-content-length": "fin", "cut-eof": "fin",
}  # fmt: skip


@each_wire
@each_shape
@pytest.mark.parametrize("kind", REQUEST_KINDS, ids=lambda kind: kind.name)
def test_every_kind_on_every_wire(module_server, kind, wire, streamed):
    """What cannot befall a request is refused aloud; the rest ends the way its name says."""
    module_server.clear()
    module_server.script("m", [kind.name])
    fits = wire in kind.wires and (kind.streamed if streamed else kind.whole)
    with dial(module_server, wire, streamed) as sock:
        if not fits:
            assert sock.recv(65536).startswith(b"HTTP/1.1 501 ")
            return
        if kind.name in DRIPS:
            assert all(sock.recv(65536) for _ in range(3))
        elif kind.name in ENDLESS:
            module_server.wait_for(lambda s: s.in_flight == 1)
            sock.settimeout(0.02)
            assert read_all(sock)[1] == "silence"
        elif kind.name in CUT:
            assert read_all(sock)[1] == CUT[kind.name]
        else:
            module_server.wait_for(lambda s: [seen.outcome for seen in s.requests] == ["answered"])
    module_server.wait_idle()
    (seen,) = module_server.requests
    expected = (
        "client-closed" if kind.name in ENDLESS else {"rst": "reset", "fin": "closed"}.get(CUT.get(kind.name, ""))
    )
    assert seen.outcome == (expected or "answered")
    assert seen.step == kind.name
    assert (seen.client_closed_at is not None) == (kind.name in ENDLESS)


@pytest.fixture(scope="module")
def module_server() -> Iterator[FaultServer]:
    with FaultServer() as server:
        yield server


@pytest.mark.parametrize(
    "code", [400, 401, 402, 403, 404, 408, 409, 413, 418, 422, 429, 499, 500, 502, 503, 504, 520, 529]
)
@each_wire
def test_every_status_has_the_vendors_body(module_server, wire, code):
    """JSON of the vendor's shape, HTML where the edge answers; always the vendor's headers."""
    module_server.script("m", [code])
    reply = post(module_server, wire)
    assert reply.status == code
    if reply.headers["content-type"].startswith("text/html"):
        assert code in {502, 504, 520}
        return
    error = reply.json["error"]
    assert error["message"]
    if wire == "openai":
        assert set(error) == {"message", "type", "param", "code"}
        assert reply.headers["x-request-id"]
    elif wire == "anthropic":
        assert reply.json["type"] == "error"
        assert error["type"]
        assert reply.json["request_id"] == reply.headers["request-id"]
    else:
        assert error["code"] == code
        assert error["status"].isupper()


def test_the_model_is_named_in_the_error(server):
    """Where the vendor names it."""
    server.script("*", [404])
    for wire in WIRES:
        assert "some-model" in post(server, wire, "some-model").json["error"]["message"]


def test_statuses_take_overrides(server):
    """Code, message, headers, and a body of one's own."""
    server.script(
        "m",
        [
            status(429, retry_after=2, error_code="custom_code", message="Slow down", headers={"X-Extra": "1"}),
            status(503, body={"detail": "mine"}),
            status(503, body="<html>mine</html>"),
            status(503, body=b""),
            Fault("billing", code="organization_spend_limit_exceeded"),
        ],
    )
    first, second, third, fourth, fifth = (post(server) for _ in range(5))
    assert (first.headers["retry-after"], first.headers["x-extra"]) == ("2", "1")
    assert first.json["error"]["code"] == "custom_code"
    assert first.json["error"]["message"] == "Slow down"
    assert second.json == {"detail": "mine"}
    assert third.headers["content-type"].startswith("text/html")
    assert fourth.body == b""
    assert fifth.json["error"]["code"] == "organization_spend_limit_exceeded"


@pytest.mark.parametrize("wire", ["openai", "anthropic"])
@pytest.mark.parametrize(
    ("step", "expected"),
    [
        ("rate-limit", "1"),
        ("rate-limit-zero", "0"),
        ("rate-limit-negative", "-5"),
        ("rate-limit-huge", "999999999"),
        ("rate-limit-malformed", "soon"),
        ("rate-limit-bare", None),
        (429, None),
        (status(429, retry_after=0.25), "0.25"),
        (status(429, retry_after="nan"), "nan"),
    ],
)
def test_retry_after_in_all_its_dialects(module_server, wire, step, expected):
    """Seconds, nonsense, nothing."""
    module_server.script("m", [step])
    reply = post(module_server, wire)
    assert reply.status == 429
    assert reply.headers["retry-after"] == expected


def test_retry_after_in_milliseconds_and_dates(server):
    """Rounded up to what the header can say; skewed by the server's clock, not ours."""
    server.script(
        "m", ["rate-limit-ms", Fault("rate-limit-date", retry_after=3), Fault("rate-limit-skewed", retry_after=3)]
    )
    ms, date, skewed = (post(server) for _ in range(3))
    assert (ms.headers["retry-after-ms"], ms.headers["retry-after"]) == ("250", "1")
    for reply, skew in ((date, 0), (skewed, 3600)):
        now = parsedate_to_datetime(reply.headers["date"]).timestamp()
        assert now == 1_800_000_000 + skew
        assert parsedate_to_datetime(reply.headers["retry-after"]).timestamp() - now == 4


@pytest.mark.parametrize(
    ("step", "delay"),
    [
        ("rate-limit", "1s"),
        ("rate-limit-zero", "0s"),
        ("rate-limit-huge", "999999999s"),
        ("rate-limit-malformed", "soon"),
    ],
)
def test_google_says_when_in_the_body(server, step, delay):
    """google.rpc.RetryInfo, and no header."""
    server.script("m", [step])
    reply = post(server, "google")
    assert reply.json["error"]["details"][-1]["retryDelay"] == delay
    assert reply.headers["retry-after"] is None


def test_rate_limit_headers(server):
    """Room left in a good answer, none in a 429."""
    server.script("m", ["ok", 429])
    assert [post(server).headers["x-ratelimit-remaining-requests"] for _ in range(2)] == ["499", "0"]
    server.script("m", ["ok", 429])
    name = "anthropic-ratelimit-requests-remaining"
    assert [post(server, "anthropic").headers[name] for _ in range(2)] == ["49", "0"]


def test_broken_bodies(server):
    """HTML, half of the JSON, a broken gzip, a lie about the length."""
    server.script("m", ["html-200", "truncated-json", "corrupt-gzip", "wrong-content-length"])
    page, half, packed = post(server), post(server), post(server)
    assert (page.status, page.body[:9]) == (200, b"<!doctype")
    with pytest.raises(json.JSONDecodeError):
        _ = half.json
    assert packed.headers["content-encoding"] == "gzip"
    with pytest.raises((zlib.error, gzip.BadGzipFile, EOFError)):
        gzip.decompress(packed.body)
    with pytest.raises(http.client.IncompleteRead):
        post(server)


@each_wire
@each_shape
def test_usage_may_be_missing(server, wire, streamed):
    """Nowhere in the answer."""
    server.script("m", ["usage-missing", "ok"])
    without, with_ = post(server, wire, streamed=streamed), post(server, wire, streamed=streamed)
    assert b"usage" not in without.body
    assert (b"usage" in with_.body) != (wire == "openai" and streamed)  # OpenAI streams it only when asked


@each_wire
def test_split_characters_come_in_two_reads(server, wire):
    """Some read ends inside a character, and the whole is exact."""
    server.script("m", ["split-utf8"])
    with dial(server, wire, streamed=True) as sock:
        reads = []
        while b"0\r\n\r\n" not in (data := sock.recv(65536)):
            reads.append(data)
    assert any(not decodes(data) for data in reads)


def decodes(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


@each_shape
def test_bad_utf8(server, streamed):
    """Bytes that no decoder takes, in an otherwise good answer."""
    server.script("m", ["bad-utf8"])
    body = post(server, streamed=streamed).body
    assert not decodes(body)
    assert "The cafÃ©".encode("latin-1") not in body
    assert body.decode(errors="ignore").count("café")


def test_no_done_and_missing_terminal(server):
    """A finish reason without `[DONE]`, and neither."""
    server.script("m", ["no-done", "missing-terminal", "ok"])
    no_done, neither, good = (post(server, streamed=True).body for _ in range(3))
    assert b'"finish_reason":"stop"' in no_done
    assert b"[DONE]" not in no_done
    assert b'"finish_reason":"stop"' not in neither
    assert b"ten." in neither
    assert good.endswith(b"data: [DONE]\n\n")


@each_wire
def test_pings_carry_nothing(server, wire):
    """The wire's own sign of life, or one of one's own; for a whole answer, blank lines."""
    signs = {"openai": b": ping\n\n", "anthropic": b'event: ping\ndata: {"type":"ping"}\n\n', "google": b"\r\n"}
    for step, streamed, sign in (
        (drip(every_s=0.001), True, signs[wire]),
        (drip(every_s=0.001, ping=": hold\n\n"), True, b": hold\n\n"),
        (drip(every_s=0.001), False, b"\n"),
    ):
        server.script("m", [step])
        with dial(server, wire, streamed) as sock:
            got = b""
            while got.count(b"\r\n" + sign + b"\r\n") < 5:
                got += sock.recv(65536)
        server.wait_idle()


@each_wire
def test_a_cut_tool_call_is_begun_and_not_finished(server, wire):
    """Its name has come, its end has not."""
    call = ToolCall("weather", {"city": "Orléans", "days": 2})
    server.script("m", [fault_server.cut_tool(answer=Answer("Wait.", tool_calls=[call]))])
    with dial(server, wire, streamed=True) as sock:
        got, end = read_all(sock)
    assert end == "rst"
    assert (b"weather" in got) or wire == "google"
    assert b"functionCall" in got or wire != "google"
    assert b'2}"' not in got


@each_wire
def test_stalls_say_their_words_and_wait(server, wire):
    """The words are there before the silence."""
    server.script("m", [stall(after_words=2)])
    with dial(server, wire, streamed=True) as sock:
        got = b""
        while "café".encode() not in got:
            got += sock.recv(65536)
        sock.settimeout(0.03)
        rest, end = read_all(sock)
        got += rest
    assert end == "silence"
    assert b" on" not in got.split("café".encode())[1]


def test_giant_headers_are_a_mebibyte(server):
    """Most clients refuse them."""
    server.script("m", ["giant-headers"])
    with pytest.raises(http.client.LineTooLong):
        post(server)


def test_a_stale_connection_is_reset_when_used_again(server):
    """The first answer is good; the second request on the same connection gets an RST and takes no step."""
    server.script("m", ["stale-keep-alive", "ok"])
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    path, body = request_for("openai")
    connection.request("POST", path, body)
    assert connection.getresponse().read()
    with pytest.raises(ConnectionError):
        connection.request("POST", path, body)
        connection.getresponse()
    connection.close()
    assert post(server).status == 200
    assert [seen.step for seen in server.requests] == ["stale-keep-alive", "ok"]


def test_redirects_take_no_steps(server):
    """Each hop is logged; the next step waits."""
    server.script("m", ["redirect-loop", "ok"])
    first = post(server)
    assert first.status == 307
    again = send(server, "POST", first.headers["location"], request_for("openai")[1])
    assert (again.status, again.headers["location"]) == (307, first.headers["location"])
    assert post(server).status == 200


def test_delays_compose(server):
    """`delay_s` comes before any fault; a slow first token comes after the headers of a stream."""
    server.script("m", [status(503, delay_s=0.03), reset(delay_s=0.03), slow(0.03)])
    started = time.monotonic()
    assert post(server).status == 503
    with pytest.raises(ConnectionError):
        post(server)
    assert time.monotonic() - started >= 0.06
    with dial(server, streamed=True) as sock:
        first = sock.recv(65536)
        assert first.startswith(b"HTTP/1.1 200")
        assert b"content-type: text/event-stream" in first
        assert b"caf" not in first
    server.script("m", [Answer("a b c", every_s=0.01)])
    started = time.monotonic()
    post(server, streamed=True)
    assert time.monotonic() - started >= 0.03


def test_a_stream_that_is_cut_begins_at_its_answers_own_pace(server):
    """The waits before the first word and between words are those of the answer that would have been given."""
    server.script("m", cut(after_words=2, answer=Answer("a b c", delay_s=0.02, every_s=0.01)))
    started = time.monotonic()
    with pytest.raises((ConnectionError, http.client.IncompleteRead)):
        post(server, streamed=True)
    assert time.monotonic() - started >= 0.03


# ── before any request ───────────────────────────────────────────────────────────────────────────────────────────────


def test_addresses_that_do_not_answer(server):
    """Refused at once, or never connected."""
    for wire in WIRES:
        port = int(server.refused_url(wire).split(":")[2].split("/")[0])
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=30)
    assert server.refused_url("openai").endswith("/v1")


@pytest.mark.skipif(sys.platform != "linux", reason="other kernels answer for a full queue in other ways")
def test_a_black_hole_never_connects(server):
    """Connecting takes as long as the client waits."""
    port = int(server.black_hole_url("google").rsplit(":", 1)[1])
    with pytest.raises(TimeoutError):
        socket.create_connection(("127.0.0.1", port), timeout=0.05)


def test_connections_have_a_script_of_their_own(server):
    """One step for each connection; then all is well."""
    server.script_accept(
        ["close-on-accept", "reset-on-accept", "ok", "hang-on-accept", "reset-mid-upload", "never-read"]
    )
    for _ in range(2):
        with pytest.raises((ConnectionError, http.client.RemoteDisconnected)):
            post(server)
    assert post(server).status == 200
    with dial(server) as sock:
        sock.settimeout(0.02)
        assert read_all(sock) == (b"", "silence")
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as sock:
        sock.sendall(b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: 1000\r\n\r\n{")
        assert read_all(sock) == (b"", "rst")
    with dial(server) as sock:
        sock.settimeout(0.02)
        assert read_all(sock) == (b"", "silence")
    assert post(server).status == 200
    assert server.count() == 2
    assert server.connections == 7


def test_a_request_may_be_read_in_sips(server):
    """The answer comes when all of it has been read, which takes a while."""
    server.script_accept([Fault("slow-read", every_s=0.02)])
    started = time.monotonic()
    path, _ = request_for("openai")
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "x" * 1_000_000}]})
    assert send(server, "POST", path, body).text == CANONICAL
    assert time.monotonic() - started >= 0.08, "a megabyte is more than four sips"


# ── names ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def host_of(url: str) -> str:
    return url.split("//")[1].split(":", maxsplit=1)[0]


def test_names_that_fail_are_known_while_the_server_runs(server):
    """One does not exist, of one every other look-up fails, one takes its time; the process is left as it was."""
    real = socket.getaddrinfo
    try:
        nowhere, flapping, slow_name = (
            host_of(url) for url in (server.nxdomain_url(), server.dns_flap_url(), server.dns_slow_url(delay_s=0.03))
        )
        assert server.dns_flap_url("openai").endswith(f":{server.port}/v1")
        for _ in range(2):
            with pytest.raises(socket.gaierror, match="not known"):
                socket.create_connection((nowhere, server.port), timeout=30)
        for _ in range(2):
            with pytest.raises(socket.gaierror, match="Temporary failure"):
                socket.create_connection((flapping, server.port), timeout=30)
            socket.create_connection((flapping.upper(), server.port), timeout=30).close()
        started = time.monotonic()
        socket.create_connection((slow_name, server.port), timeout=30).close()
        assert time.monotonic() - started >= 0.03
        assert socket.getaddrinfo("127.0.0.1", 1) == real("127.0.0.1", 1)
    finally:
        server.stop()
    assert socket.getaddrinfo is real


def test_stopping_ends_a_slow_look_up():
    """Nobody waits a minute for a server that is gone, and two servers do not undo each other's names."""
    real = socket.getaddrinfo
    failures: list[Exception] = []
    with FaultServer() as other:
        name = host_of(other.nxdomain_url())
        with FaultServer() as server:
            slow_name = host_of(server.dns_slow_url())

            def look() -> None:
                try:
                    socket.getaddrinfo(slow_name, 80)
                except OSError as error:
                    failures.append(error)

            thread = threading.Thread(target=look)
            thread.start()
        thread.join(30)
        assert [type(error) for error in failures] == [socket.gaierror]
        with pytest.raises(socket.gaierror, match="not known"):
            socket.getaddrinfo(name, 80)
    assert socket.getaddrinfo is real


# ── TLS ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def tls_server() -> Iterator[FaultServer]:
    with FaultServer(tls=True) as server:
        yield server


def trusting(server: FaultServer) -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=server.ca_pem)
    context.verify_flags |= ssl.VERIFY_X509_STRICT  # the default from Python 3.13 on
    return context


def shake(server: FaultServer, host: str = "127.0.0.1", alpn: list[str] | None = None) -> ssl.SSLSocket:
    context = trusting(server)
    if alpn:
        context.set_alpn_protocols(alpn)
    raw = socket.create_connection((host, server.port), timeout=30)
    return context.wrap_socket(raw, server_hostname=host, suppress_ragged_eofs=False)


@each_wire
@each_shape
def test_answers_over_tls(tls_server, wire, streamed):
    """Whole and streamed, kept alive, to a client that trusts the authority, and by each of its names."""
    name = host_of(tls_server.dns_slow_url(delay_s=0))
    for host in ("127.0.0.1", name):
        connection = http.client.HTTPSConnection(host, tls_server.port, context=trusting(tls_server), timeout=30)
        for _ in range(2):
            connection.request("POST", *request_for(wire, streamed=streamed))
            got = connection.getresponse().read()
            assert b"caf" in got
        connection.close()
    assert tls_server.url == f"https://127.0.0.1:{tls_server.port}"
    assert tls_server.connections == 2
    assert Path(tls_server.ca_file).read_text() == tls_server.ca_pem


def test_nobody_trusts_it_by_itself(tls_server):
    """And a client that leaves in the middle of the handshake does not hurt the next one."""
    plain = ssl.create_default_context()
    with (
        socket.create_connection(("127.0.0.1", tls_server.port), timeout=30) as raw,
        pytest.raises(ssl.SSLCertVerificationError),
    ):
        plain.wrap_socket(raw, server_hostname="127.0.0.1")
    with socket.create_connection(("127.0.0.1", tls_server.port), timeout=30) as raw:
        raw.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert b"HTTP" not in read_all(raw)[0]
    shake(tls_server).close()


def test_handshakes_fail_as_they_are_told_to(tls_server):
    """By an alert, by a certificate that ended or is another's, or by silence."""
    tls_server.script_accept(["tls-handshake-fail", "tls-expired", "tls-wrong-host", "tls-stall"])
    with pytest.raises(ssl.SSLError, match=r"(?i)handshake.failure"):
        shake(tls_server)
    with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
        shake(tls_server)
    with pytest.raises(ssl.SSLCertVerificationError, match="not valid for"):
        shake(tls_server)
    with socket.create_connection(("127.0.0.1", tls_server.port), timeout=0.05) as raw, pytest.raises(TimeoutError):
        trusting(tls_server).wrap_socket(raw, server_hostname="127.0.0.1")
    shake(tls_server).close()


@pytest.mark.parametrize("step", ["never-read", "hang-on-accept", "reset-on-accept", "reset-mid-upload"])
def test_what_befalls_connections_befalls_them_over_tls_too(tls_server, step):
    """Before the handshake or after it."""
    tls_server.script_accept([step])
    with pytest.raises((OSError, TimeoutError)), shake(tls_server) as sock:
        sock.settimeout(0.05)
        sock.sendall(b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: 1000\r\n\r\n{")
        if not sock.recv(100):
            raise ConnectionError("closed")


@each_wire
@pytest.mark.parametrize("step", ["reset-before-headers", "cut", "close-before-headers", "header-drip"])
def test_what_befalls_requests_befalls_them_over_tls_too(tls_server, wire, step):
    """A reset is a reset and not a good-bye."""
    tls_server.script("m", step)
    path, body = request_for(wire)
    with shake(tls_server) as sock:
        sock.sendall(f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n{body}".encode())
        if step == "header-drip":
            assert all(sock.recv(65536) for _ in range(3))
            return
        if step == "close-before-headers":
            assert read_all(sock) == (b"", "fin")
        else:
            with pytest.raises((ssl.SSLEOFError, ConnectionResetError)):
                while sock.recv(65536):
                    pass


def test_tls_faults_need_tls():
    """Said where they are scripted."""
    with pytest.raises(ValueError, match="tls=True"):
        FaultServer().script_accept(["ok", "tls-stall"])


def frames_of(sock: ssl.SSLSocket) -> Iterator[tuple[int, int, int, bytes]]:
    data = b""
    while True:
        while len(data) >= 9 and len(data) >= 9 + int.from_bytes(data[:3], "big"):
            size = int.from_bytes(data[:3], "big")
            yield data[3], data[4], int.from_bytes(data[5:9], "big"), data[9 : 9 + size]
            data = data[9 + size :]
        got = sock.recv(65536)
        if not got:
            return
        data += got


def test_http2_is_turned_away(tls_server):
    """A stream refused leaves the connection, GOAWAY ends it; both say that nothing was done."""
    tls_server.script_accept(["h2-refused-stream", "h2-goaway", "h2-goaway"])
    get = bytes([0x82, 0x87, 0x84])  # GET, https, /: from HPACK's static table
    with shake(tls_server, alpn=["h2", "http/1.1"]) as sock:
        assert sock.selected_alpn_protocol() == "h2"
        hello = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _http2.frame(4)
        sock.sendall(hello[:10])
        sock.sendall(hello[10:] + _http2.frame(6, b"12345678") + _http2.frame(1, get, flags=5, stream=1))
        seen = frames_of(sock)
        assert [next(seen) for _ in range(4)] == [
            (4, 0, 0, b""), (4, 1, 0, b""), (6, 1, 0, b"12345678"), (3, 0, 1, b"\0\0\0\7"),
        ]  # fmt: skip
        sock.sendall(_http2.frame(1, get, flags=5, stream=3))
        assert next(seen) == (3, 0, 3, b"\0\0\0\7")
    with shake(tls_server, alpn=["h2"]) as sock:
        sock.sendall(hello + _http2.frame(1, get, flags=5, stream=1))
        assert [kind for kind, *_ in frames_of(sock)] == [4, 4, 7]
    connection = http.client.HTTPSConnection("127.0.0.1", tls_server.port, context=trusting(tls_server), timeout=30)
    connection.request("POST", *request_for("openai"))
    response = connection.getresponse()
    assert (response.status, b"does not speak" in response.read()) == (501, True)
    connection.close()
    assert [seen.step for seen in tls_server.requests] == ["unfit"]


# ── HTTP ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_connections_are_kept_alive(server):
    """Whole and streamed answers, one after the other on one connection; `close` is obeyed."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    for streamed in (False, True, False):
        connection.request("POST", *request_for("openai", streamed=streamed))
        assert connection.getresponse().read()
    assert server.connections == server.open_connections == 1
    connection.request("POST", *request_for("openai"), {"connection": "close"})
    assert connection.getresponse().read()
    server.wait_for(lambda s: s.open_connections == 0)
    connection.close()


def test_pipelined_and_piecemeal_requests(server):
    """Two requests in one write, and one in single bytes."""
    path, body = request_for("openai")
    raw = f"POST {path} HTTP/1.1\r\ncontent-length: {len(body)}\r\n\r\n{body}".encode()
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as sock:
        sock.sendall(raw * 2)
        server.wait_for(lambda s: s.count() == 2)
        for at in range(len(raw)):
            sock.sendall(raw[at : at + 1])
        server.wait_for(lambda s: s.count() == 3 and s.in_flight == 0)
    assert [seen.outcome for seen in server.requests] == ["answered"] * 3


def test_chunked_uploads_and_expectations(server):
    """A body in chunks, and one that waits to be asked for."""
    path, body = request_for("openai")
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    connection.request("POST", path, iter([body[:5].encode(), body[5:].encode()]), encode_chunked=True)
    assert text_of(json.loads(connection.getresponse().read())) == CANONICAL
    connection.close()
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as sock:
        head = f"POST {path} HTTP/1.1\r\nexpect: 100-continue\r\ncontent-length: {len(body)}\r\n\r\n"
        sock.sendall(head.encode())
        assert sock.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(body.encode())
        assert sock.recv(65536).startswith(b"HTTP/1.1 200 OK")


@pytest.mark.parametrize(
    "raw", [b"nonsense\r\n\r\n", b"GET / HTTP/2\r\n\r\n", b"POST / HTTP/1.1\r\ncontent-length: x\r\n\r\n"]
)
def test_nonsense_is_refused(server, raw):
    """And does not hurt the next client."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as sock:
        sock.sendall(raw)
        got, end = read_all(sock)
    assert got.startswith(b"HTTP/1.1 400")
    assert end == "fin"
    assert post(server).status == 200


def test_tls_at_the_plain_port_fails_at_once(server):
    """An https URL for this server is a failing handshake."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as sock:
        sock.sendall(b"\x16\x03\x01\x02\x00\x01")
        assert read_all(sock) == (b"", "rst")


@each_wire
def test_bad_requests_get_the_vendors_400(server, wire):
    """No JSON, no messages; Anthropic wants max_tokens."""
    path, _ = request_for(wire)
    for body in ("{", "[]", "{}", '{"model": "m"}', '{"model": "m", "messages": [], "contents": []}'):
        assert send(server, "POST", path, body).status == 400
    no_limit = json.dumps({"model": "m", "messages": [{"role": "user", "content": "hi"}]})
    assert "max_tokens" in send(server, "POST", "/v1/messages", no_limit).json["error"]["message"]


def test_unknown_paths_get_the_vendors_404(server):
    """And are logged."""
    assert send(server, "POST", "/v1/fine_tunes", "{}").json["error"]["message"] == "Invalid URL (POST /v1/fine_tunes)"
    assert send(server, "POST", "/v1/x", "{}", anthropic_version="2023-06-01").json["type"] == "error"
    assert send(server, "POST", "/v1beta/x", "{}").json["error"]["status"] == "NOT_FOUND"
    assert [seen.step for seen in server.requests] == ["unknown-path"] * 3
    assert [seen.wire for seen in server.requests] == WIRES


def test_google_streams_an_array_without_alt_sse(server):
    """What its legacy SDK reads over REST; its errors are arrays too."""
    server.script("m", ["ok", 503, "overload-first", "overload-later", "missing-terminal", "empty-choices"])
    path = "/v1beta/models/m:streamGenerateContent?$alt=json;enum-encoding=int"
    _, body = request_for("google")
    good, refused, *broken = (send(server, "POST", path, body) for _ in range(6))
    assert "".join(text_of(part) for part in good.json) == CANONICAL
    assert refused.json[0]["error"]["code"] == 503
    assert all(isinstance(reply.json, list) for reply in broken)


def test_google_counts_as_it_goes(server):
    """Each event has the usage so far."""
    usage = [
        event["usageMetadata"]["candidatesTokenCount"] for event in events(post(server, "google", streamed=True).body)
    ]
    total = len(CANONICAL.split())
    assert usage == [*range(1, total + 1), total]


def test_answers_are_deterministic():
    """Two servers with one clock say the same bytes, ids included."""
    said = []
    for _ in range(2):
        with FaultServer(wall_clock=lambda: 1e9) as server:
            said.append([post(server, wire, streamed=streamed).body for wire in WIRES for streamed in (False, True)])
    assert said[0] == said[1]


# ── the log ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_log_tells_everything_and_no_secret(server):
    """Keys are cut to their last four characters, wherever the vendor puts them."""
    post(server, authorization="Bearer sk-secret-abcd")
    post(server, "anthropic", x_api_key="short")
    path, body = request_for("google", "gemini-x")
    send(server, "POST", path + "?key=AIzaSecretKey9876", body, x_goog_api_key="AIzaSecretKey9876")
    first, second, third = server.requests
    assert first.headers["authorization"] == "…abcd"
    assert second.headers["x-api-key"] == "…"
    assert third.headers["x-goog-api-key"] == "…9876"
    assert third.path == path + "?key=…9876"
    assert "ecret" not in repr(server.requests) + repr(server) + server._repr_html_()
    assert (third.wire, third.model, third.method, third.operation) == ("google", "gemini-x", "POST", "chat")
    assert (first.prompt, first.said, first.streamed, first.status) == ("hi there", "", False, 200)
    assert [seen.index for seen in server.requests] == [0, 1, 2]
    assert first.body["messages"][0]["content"] == "hi there"
    assert first.finished_at is not None
    assert first.finished_at >= first.received_at
    assert first.bytes_sent > len(CANONICAL)
    with pytest.raises(AttributeError):
        first.status = 500  # type: ignore[misc]  # frozen on purpose


def test_the_log_shows_itself(server):
    """As a line, and as a table in a notebook."""
    server.script("<gpt>", [503])
    post(server, model="<gpt>")
    assert "<gpt>: 503 → answered" in repr(server)
    assert "&lt;gpt&gt;" in server._repr_html_()
    assert server._repr_html_().count("<tr>") == 2


@each_wire
@each_shape
@pytest.mark.parametrize("step", ["ok", "503", "cut", "close", "missing-terminal"])
def test_the_log_knows_before_the_client(module_server, wire, streamed, step):
    """A client that has its answer, or its error, finds the request settled; no waiting is needed."""
    module_server.clear()
    module_server.script("m", ["ok" if step == "missing-terminal" and not streamed else step])
    for _ in range(10):
        with dial(module_server, wire, streamed) as sock:
            while True:
                try:
                    data = sock.recv(65536)
                except ConnectionResetError:
                    break
                if not data or (step != "cut" and (b"ten." in data or b"503" in data)):
                    break
            assert module_server.requests[-1].outcome in {"answered", "closed", "reset"}


def test_the_log_is_cleared_and_scripts_stay(server):
    """Counting begins again; the script goes on."""
    server.script("m", [500, 502])
    post(server)
    server.clear()
    assert (server.count(), server.connections, server.requests) == (0, 0, [])
    assert post(server).status == 502
    assert server.requests[0].index == 1


def test_what_was_sent_before_the_log_is_cleared_is_not_in_the_new_one(server):
    """However busy the server's thread is: what a client sent and gave up is behind it."""
    server.script("given up", hang())
    for _ in range(20):
        dial(server, model="given up").close()
        server.clear()
        assert post(server).status == 200
        assert [seen.model for seen in server.requests] == ["m"]
        dial(server, model="given up").close()
        server.wait_idle()
        assert [seen.model for seen in server.requests] == ["m", "given up"]


@pytest.mark.parametrize("step", [hang(), stall(), drip(), "hang-after-headers", "header-drip", "role-only-hang"])
def test_a_client_that_leaves_is_noticed(server, step):
    """At once, with the time; nothing stays open."""
    server.script("m", [step])
    sock = dial(server, streamed=True)
    server.wait_for(lambda s: s.in_flight == 1)
    assert server.requests[0].outcome == "pending"
    left = time.monotonic()
    sock.close()
    server.wait_idle()
    server.wait_for(lambda s: s.open_connections == 0)
    seen = server.requests[0]
    assert seen.outcome == "client-closed"
    assert seen.client_closed_at is not None
    assert seen.client_closed_at >= left


async def test_a_cancelled_task_closes_its_connection(server):
    """What cancellation tests of a client look for."""
    server.script("m", [hang()])

    async def wait_for_ever() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        try:
            path, body = request_for("openai")
            writer.write(f"POST {path} HTTP/1.1\r\ncontent-length: {len(body)}\r\n\r\n{body}".encode())
            await reader.read()
        finally:
            writer.close()

    task = asyncio.create_task(wait_for_ever())
    await asyncio.to_thread(server.wait_for, lambda s: s.in_flight == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.to_thread(server.wait_idle)
    assert server.requests[0].outcome == "client-closed"


def test_waiting_has_an_end(server):
    """And says what the log looked like."""
    with pytest.raises(TimeoutError, match="requests=0"):
        server.wait_for(lambda s: s.count() == 1, timeout=0.01)


def test_every_request_is_reported():
    """`on_request` is called when it is over."""
    seen: list[SeenRequest] = []
    with FaultServer({"m": [503]}, on_request=seen.append) as server:
        post(server)
    assert [(one.status, one.outcome) for one in seen] == [(503, "answered")]


def test_many_threads(server):
    """Nothing is lost or mixed up."""
    server.script("*", lambda seen: seen.model)
    wrong: list[object] = []

    def work(name: str) -> None:
        for at in range(20):
            reply = post(server, WIRES[at % 3], name)
            if reply.text != name:
                wrong.append(reply.body)

    threads = [threading.Thread(target=work, args=(f"model-{at}",)) for at in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert server.count() == 160
    assert server.count("model-3") == 20


# ── its own life ─────────────────────────────────────────────────────────────────────────────────────────────────────


@timed
def test_stopping_is_quick_and_complete():
    """Hanging clients are let go, the thread is gone, the port is free."""
    before = set(threading.enumerate())
    server = FaultServer({"*": [hang()]}).start()
    server.refused_url()
    clients = [dial(server) for _ in range(20)]
    server.wait_for(lambda s: s.in_flight == 20)
    started = time.monotonic()
    server.stop()
    assert time.monotonic() - started < 0.3
    assert not set(threading.enumerate()) - before
    assert {seen.outcome for seen in server.requests} == {"stopped"}
    assert server.open_connections == 0
    for client in clients:
        assert read_all(client)[1] in {"fin", "rst"}
        client.close()
    server.stop()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", server.port), timeout=30)


def test_a_stopped_server_comes_back_at_the_same_address():
    """An outage: refused while stopped, well again after `start`."""
    server = FaultServer({"m": [500, "ok"]}).start()
    url = server.url
    assert post(server).status == 500
    server.stop()
    with pytest.raises(ConnectionRefusedError):
        post(server)
    with server:
        assert server.url == url
        assert post(server).status == 200
        assert server.start() is server
    assert server.count() == 2


async def test_async_with():
    """The same server, in a coroutine."""
    async with FaultServer() as server:
        assert (await asyncio.to_thread(post, server)).status == 200
    assert "stopped" in repr(server)


def test_a_server_that_never_ran_says_so():
    """With what to do."""
    server = FaultServer()
    for use in (lambda: server.url, lambda: server.refused_url(), lambda: server.black_hole_url()):
        with pytest.raises(RuntimeError, match="with FaultServer"):
            use()
    server.stop()


def test_urls(server):
    """Each SDK's base URL."""
    assert server.openai_url == server.url_for("openai") == server.url + "/v1"
    assert server.anthropic_url == server.google_url == server.url_for("google") == server.url
    assert server.url.startswith("http://127.0.0.1:")


@timed
def test_an_answer_takes_less_than_a_millisecond(server):
    """Of the server's own time; the quickest, so that a busy machine does not decide."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    path, body = request_for("openai")
    for _ in range(200):
        connection.request("POST", path, body)
        connection.getresponse().read()
    connection.close()
    server.wait_idle()
    times = sorted((seen.finished_at or 0) - seen.received_at for seen in server.requests)
    assert times[5] < 0.001


# ── the command line ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_command_line_serves_and_reports(capsys):
    """URLs first, then one line for each request."""
    stop = threading.Event()
    thread = threading.Thread(
        target=cli.main, args=(["--port", "0", "--script", "gpt-x=503,ok"],), kwargs={"until": stop}, daemon=True
    )
    thread.start()
    out = ""
    while "google" not in out:
        out += capsys.readouterr().out
    port = int(out.split("127.0.0.1:")[1].split("/")[0])
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    for _ in range(2):
        connection.request("POST", *request_for("openai", "gpt-x"))
        connection.getresponse().read()
    connection.close()
    stop.set()
    thread.join()
    lines = (out + capsys.readouterr().out).splitlines()
    assert [line.split()[0] for line in lines] == ["openai", "anthropic", "google", "#0", "#1"]
    assert "503 → answered" in lines[3]
    assert "ok → answered" in lines[4]


def test_the_command_line_serves_https_and_says_whom_to_trust(capsys):
    """Addresses with https, and a file that holds the authority's certificate."""
    stop = threading.Event()
    stop.set()
    assert cli.main(["--port", "0", "--tls"], until=stop) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("openai     https://127.0.0.1:")
    assert Path(lines[3].removeprefix("authority  ")).read_text().startswith("-----BEGIN CERTIFICATE-----")


@pytest.mark.parametrize("argv", [["--script", "gpt-x"], ["--script", "gpt-x=oops"], ["--default", "nope"]])
def test_the_command_line_refuses_nonsense(argv, capsys):
    """With a hint, and exit status 2."""
    with pytest.raises(SystemExit) as caught:
        cli.main(["--port", "0", *argv])
    assert caught.value.code == 2
    assert "hint" in capsys.readouterr().err


def test_the_module_runs():
    """`python -m shared_core.testing.fault_server --faults` lists the table."""
    done = subprocess.run(
        [sys.executable, "-m", "shared_core.testing.fault_server", "--faults"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert [line.split()[0] for line in done.stdout.splitlines()] == list(FAULTS)


def test_the_public_names():
    """All of them are importable from `shared_core.testing.fault_server`, the core ones from `shared_core.testing`."""
    from shared_core import testing

    assert all(hasattr(fault_server, name) for name in fault_server.__all__)
    assert testing.FaultServer is FaultServer
    assert set(testing.__all__) <= set(dir(testing))
    with pytest.raises(AttributeError):
        _ = testing.NoSuchThing  # type: ignore[attr-defined]  # on purpose
    assert cut().kind == "cut"


def test_the_page_has_the_whole_table():
    """docs/fault-server.md shows each fault as the table has it."""
    page = (Path(__file__).parents[2] / "docs" / "fault-server.md").read_text(encoding="utf-8")
    for kind in FAULTS.values():
        shape = {"accept": "connection", "address": "address"}.get(kind.place, kind.shapes)
        wires = "all" if len(kind.wires) == 3 else ", ".join(kind.wires)
        assert f"| `{kind.name}` | {shape} | {wires} | {kind.what} |\n" in page
    assert page.split("## Faults")[1].split("Parameters of")[0].count("\n| `") == len(FAULTS)
