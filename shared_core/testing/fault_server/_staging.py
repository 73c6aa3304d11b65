"""How a step is staged: a pure function from a request and its step to the acts a connection then performs.

Nothing here does I/O, and nothing in the server decides: a fault is a list of sends, pauses and endings.
"""

from __future__ import annotations

import dataclasses
import gzip
import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.utils import formatdate
from urllib.parse import urlencode

from shared_core.testing.fault_server._answers import Answer, Spoken, ToolCall, first_words, speak
from shared_core.testing.fault_server._faults import Fault
from shared_core.testing.fault_server._http import LAST_CHUNK, Framing, chunk, head_bytes
from shared_core.testing.fault_server._log import SeenRequest
from shared_core.testing.fault_server._script import Ready, answered, decided, label
from shared_core.testing.fault_server._wires.base import Ask, Frame, Json, VendorError, Wire, dump, plain

# ── acts ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Send:
    """One TCP write. `status` is set where the bytes begin a response."""

    data: bytes
    status: int | None = None


@dataclass(frozen=True, slots=True)
class Pause:
    seconds: float


@dataclass(frozen=True, slots=True)
class Drip:
    """Write `data` again and again until the client leaves or the server stops."""

    data: bytes
    every_s: float


@dataclass(frozen=True, slots=True)
class Hang:
    """Say nothing more until the client leaves or the server stops."""


@dataclass(frozen=True, slots=True)
class Reset:
    """Close with RST."""


@dataclass(frozen=True, slots=True)
class Close:
    """Close with FIN."""


@dataclass(frozen=True, slots=True)
class Done:
    """The response is complete; the connection may serve another request (and then, if `stale`, is reset)."""

    stale: bool = False
    close: bool = False


Act = Send | Pause | Drip | Hang | Reset | Close | Done

_DRAIN_S = 0.005
"""Between the last bytes and an RST, so that no client's kernel drops what arrived before it."""
_SPLIT_S = 0.002
"""Between the two halves of a split character, so that they are two reads."""
_WORDS = 3
"""How many words get through before a fault, unless told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One request to be served."""

    wire: Wire
    ask: Ask
    number: int
    now: float
    """Wall clock, seconds since the epoch."""
    seen: Callable[[], SeenRequest]


def stage(turn: Turn, step: Ready) -> list[Act]:
    """The acts of one step. Raises what a function of the request raises."""
    if not isinstance(step, Fault | Answer):
        step = decided(step(turn.seen()), label(step))
    if isinstance(step, Answer):
        return _answer(turn, step)
    if (reason := _unfit(turn, step)) is not None:
        return unfit(turn, reason)
    acts = _STAGES.get(step.kind, _refuse)(turn, step)
    if step.delay_s and step.kind != "slow-first-token":
        return [Pause(step.delay_s), *acts]
    return acts


def _unfit(turn: Turn, fault: Fault) -> str | None:
    """Why this fault cannot befall this request: said aloud, so that a test never passes by accident."""
    row = fault.row
    name = turn.wire.name
    if name not in row.wires:
        return f"Fault {fault.kind!r} does not exist on the {name} wire, only on {', '.join(row.wires)}."
    if turn.ask.streamed and not row.streamed:
        return f"Fault {fault.kind!r} befalls whole answers only, and this request streams."
    if not turn.ask.streamed and not row.whole:
        return f"Fault {fault.kind!r} befalls streamed answers only, and this request does not stream."
    return None


# ── good answers ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _spoken(turn: Turn, answer: Answer) -> Spoken:
    ask = turn.ask
    # Only Anthropic continues a conversation that ends with the assistant; the others begin a new message.
    prefilled = ask.prefilled and ask.wire == "anthropic"
    return speak(
        answer,
        said=ask.said,
        prefilled=prefilled,
        max_tokens=ask.max_tokens,
        stop=ask.stop,
        prompt_tokens=ask.prompt_words,
    )


def _fault_answer(turn: Turn, fault: Fault) -> Answer:
    if fault.answer is None:
        return Answer()
    if callable(fault.answer):
        return answered(fault.answer(turn.seen()), "Fault.answer")
    return answered(fault.answer, "Fault.answer")


def _answer(turn: Turn, answer: Answer, extra: Mapping[str, str] | None = None) -> list[Act]:
    if (refusal := turn.wire.check(turn.ask)) is not None:
        return _error(turn, refusal)
    spoken = _spoken(turn, answer)
    if not turn.ask.streamed:
        acts = _whole(turn, dump(turn.wire.whole(turn.ask, spoken, turn.number, int(turn.now))).encode(), extra)
        return [Pause(answer.delay_s), *acts] if answer.delay_s else acts
    return [_stream_head(turn, extra), *_paced(answer, _frames(turn, spoken)), Send(LAST_CHUNK), Done()]


def _frames(turn: Turn, spoken: Spoken) -> list[Frame]:
    return turn.wire.stream(turn.ask, spoken, turn.number, int(turn.now))


def _headers(turn: Turn, status: int = 200) -> dict[str, str]:
    return turn.wire.headers(turn.number, turn.now, throttled=status == 429)


def _whole(turn: Turn, body: bytes, extra: Mapping[str, str] | None = None, status: int = 200) -> list[Act]:
    headers = {"content-type": "application/json", **_headers(turn, status), **(extra or {})}
    head = head_bytes(status, headers, now=turn.now, length=len(body), framing="length")
    return [Send(head + body, status), Done()]


def _stream_head(turn: Turn, extra: Mapping[str, str] | None = None, framing: Framing = "chunked") -> Send:
    kind = "text/event-stream; charset=utf-8" if turn.ask.sse else "application/json; charset=UTF-8"
    headers = {"content-type": kind, "cache-control": "no-cache", **_headers(turn), **(extra or {})}
    return Send(head_bytes(200, headers, now=turn.now, length=None, framing=framing), 200)


def _partial(turn: Turn, fault: Fault, words: int | None = _WORDS) -> list[Frame]:
    """The stream's events up to the n-th word of the text."""
    spoken = _spoken(turn, _fault_answer(turn, fault))
    words = words if fault.after_words is None else fault.after_words
    if words is not None:
        spoken = dataclasses.replace(spoken, text=first_words(spoken.text, words))
    taken: list[Frame] = []
    for frame in _frames(turn, spoken):
        if frame.kind in {"close", "tool", "finish", "usage", "end"}:
            break
        taken.append(frame)
    return taken


def _begun(turn: Turn, fault: Fault) -> list[Act]:
    """A stream's head and its events up to the n-th word of the text, at the answer's own pace."""
    answer = _fault_answer(turn, fault)
    return [_stream_head(turn), *_paced(answer, _partial(turn, dataclasses.replace(fault, answer=answer)))]


def _paced(answer: Answer, frames: list[Frame]) -> list[Act]:
    """The events, with the waits of `answer` before its first content and between its pieces."""
    acts: list[Act] = []
    waited = not answer.delay_s
    for frame in frames:
        content = frame.kind in {"reasoning", "text", "tool"}
        if not waited and (content or frame.kind == "finish"):
            acts.append(Pause(answer.delay_s))
            waited = True
        elif answer.every_s and content:
            acts.append(Pause(answer.every_s))
        acts.append(Send(chunk(frame.data)))
    return acts


def _chunks(frames: list[Frame]) -> list[Act]:
    return [Send(chunk(frame.data)) for frame in frames]


def _half(turn: Turn, fault: Fault) -> Send:
    """A whole answer's head and the first half of its body."""
    body = _whole_body(turn, fault)
    headers = {"content-type": "application/json", **_headers(turn)}
    head = head_bytes(200, headers, now=turn.now, length=len(body), framing="length")
    return Send(head + body[: len(body) // 2], 200)


def _whole_body(turn: Turn, fault: Fault) -> bytes:
    spoken = _spoken(turn, _fault_answer(turn, fault))
    return dump(turn.wire.whole(turn.ask, spoken, turn.number, int(turn.now))).encode()


def _ending(fault: Fault) -> list[Act]:
    return [Close()] if fault.clean else [Pause(_DRAIN_S), Reset()]


# ── errors ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _error(turn: Turn, error: VendorError, fault: Fault | None = None) -> list[Act]:
    """An error response, with the fault's own words where it has any."""
    headers: dict[str, str] = {}
    body: bytes | None = None
    html = error.html is not None
    if fault is not None:
        changes = {
            key: value
            for key in ("status", "code", "type", "message", "retry_after")
            if (value := getattr(fault, key)) is not None
        }
        error = dataclasses.replace(error, **changes)
        body, html = _own_body(fault) if fault.body is not None else (None, html)
    if error.retry_after is not None:
        headers |= turn.wire.retry_headers(error.retry_after)
    headers |= error.headers
    if fault is not None:
        headers |= fault.headers
    if body is None:
        body = (error.html or dump(turn.wire.error_body(error, turn.ask, turn.number))).encode()
    kind = {"content-type": "text/html; charset=utf-8"} if html else {}
    return _whole(turn, body, {**kind, **headers}, error.status)


def _own_body(fault: Fault) -> tuple[bytes, bool]:
    """A body given by hand, and whether it is HTML."""
    body = fault.body
    if isinstance(body, Mapping):
        return dump(body).encode(), False
    data = body.encode() if isinstance(body, str) else bytes(body or b"")
    return data, data.lstrip()[:1] == b"<"


def _refuse(turn: Turn, fault: Fault) -> list[Act]:
    """Every kind that is a status with a body."""
    if fault.kind == "status":
        assert fault.status is not None  # checked where the fault was built
        return _error(turn, turn.wire.error_for_status(fault.status, turn.ask), fault)
    error = turn.wire.error_for(fault.kind, turn.ask)
    assert error is not None, fault.kind  # the table of faults names the wires, a test compares them
    return _error(turn, error, fault)


_DELAYS: Mapping[str, float | str | None] = {
    "rate-limit": 1.0,
    "rate-limit-zero": 0.0,
    "rate-limit-negative": -5.0,
    "rate-limit-huge": 999_999_999.0,
    "rate-limit-malformed": "soon",
    "rate-limit-bare": None,
}


def _rate_limit(turn: Turn, fault: Fault) -> list[Act]:
    error = turn.wire.error_for("rate-limit", turn.ask)
    assert error is not None
    return _error(turn, dataclasses.replace(error, retry_after=_DELAYS[fault.kind]), fault)


def _rate_limit_ms(turn: Turn, fault: Fault) -> list[Act]:
    seconds = 0.25 if fault.retry_after is None else float(fault.retry_after)
    headers = {"retry-after-ms": plain(seconds * 1000), "retry-after": str(math.ceil(seconds)), **fault.headers}
    return _throttled_by_header(turn, fault, headers)


def _rate_limit_date(turn: Turn, fault: Fault) -> list[Act]:
    skew = 3600.0 if fault.kind == "rate-limit-skewed" else 0.0
    seconds = 1.0 if fault.retry_after is None else float(fault.retry_after)
    clock = turn.now + skew
    when = {"date": formatdate(clock, usegmt=True), "retry-after": formatdate(math.ceil(clock + seconds), usegmt=True)}
    return _throttled_by_header(turn, fault, {**when, **fault.headers})


def _throttled_by_header(turn: Turn, fault: Fault, headers: Mapping[str, str]) -> list[Act]:
    error = turn.wire.error_for("rate-limit", turn.ask)
    assert error is not None
    return _error(turn, error, dataclasses.replace(fault, headers=headers, retry_after=None))


def _content_policy(turn: Turn, fault: Fault) -> list[Act]:
    spoken = _spoken(turn, _fault_answer(turn, fault))
    return _reply(turn, turn.wire.blocked(turn.ask, spoken, turn.number, int(turn.now))) or _refuse(turn, fault)


def _reject_prefill(turn: Turn, fault: Fault) -> list[Act]:
    return _refuse(turn, fault) if turn.ask.prefilled else _answer(turn, _fault_answer(turn, fault))


def _redirect(turn: Turn, fault: Fault) -> list[Act]:
    query = urlencode({**turn.ask.query, REDIRECTED: "1"})
    location = {"location": f"{turn.ask.path}?{query}", **fault.headers}
    return _whole(turn, b"", location, fault.status or 307)


REDIRECTED = "redirect-loop"
"""The query parameter of a request that comes from a redirect: it is redirected again, and takes no step."""


def _proxy_auth(turn: Turn, fault: Fault) -> list[Act]:
    page = (
        b"<html><head><title>407 Proxy Authentication Required</title></head><body>Sign in to the proxy.</body></html>"
    )
    headers = {"content-type": "text/html", "proxy-authenticate": 'Basic realm="proxy"', **fault.headers}
    return _whole(turn, page, headers, 407)


# ── around the headers ───────────────────────────────────────────────────────────────────────────────────────────────


def _just(*acts: Act) -> Callable[[Turn, Fault], list[Act]]:
    return lambda turn, fault: list(acts)


def _promise(turn: Turn) -> Send:
    """Good headers with nothing after them."""
    if turn.ask.streamed:
        return _stream_head(turn)
    headers = {"content-type": "application/json", **_headers(turn)}
    return Send(head_bytes(200, headers, now=turn.now, length=512, framing="length"), 200)


def _giant_headers(turn: Turn, fault: Fault) -> list[Act]:
    return _answer(turn, _fault_answer(turn, fault), {"x-giant": "a" * (1 << 20)})


def _stale(turn: Turn, fault: Fault) -> list[Act]:
    return [*_answer(turn, _fault_answer(turn, fault))[:-1], Done(stale=True)]


# ── the body ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _html(turn: Turn, fault: Fault) -> list[Act]:
    page = "<!doctype html>\n<html><head><title>Sign in</title></head><body><h1>Welcome</h1></body></html>\n"
    return _whole(turn, page.encode(), {"content-type": "text/html; charset=utf-8", **fault.headers})


def _truncated(turn: Turn, fault: Fault) -> list[Act]:
    if turn.ask.streamed:
        frames = _frames(turn, _spoken(turn, _fault_answer(turn, fault)))
        texts = [at for at, frame in enumerate(frames) if frame.kind == "text"]
        last = texts[len(texts) // 2] if texts else len(frames) - 1
        half = frames[last].data[: len(frames[last].data) // 2]
        return [_stream_head(turn), *_chunks([*frames[:last], Frame("text", half)]), Send(LAST_CHUNK), Done()]
    body = _whole_body(turn, fault)
    return _whole(turn, body[: len(body) // 2])


def _all_bytes(turn: Turn, fault: Fault) -> bytes:
    if not turn.ask.streamed:
        return _whole_body(turn, fault)
    return b"".join(frame.data for frame in _frames(turn, _spoken(turn, _fault_answer(turn, fault))))


def _wrong_length(turn: Turn, fault: Fault) -> list[Act]:
    body = _all_bytes(turn, fault)
    kind = "text/event-stream" if turn.ask.streamed and turn.ask.sse else "application/json"
    headers = {"content-type": kind, **_headers(turn)}
    head = head_bytes(200, headers, now=turn.now, length=len(body) + 100, framing="length")
    return [Send(head + body, 200), Close()]


def _corrupt_gzip(turn: Turn, fault: Fault) -> list[Act]:
    packed = bytearray(gzip.compress(_all_bytes(turn, fault), mtime=0))
    third = len(packed) // 3
    packed[third : 2 * third] = b"\xff" * third
    kind = "text/event-stream" if turn.ask.streamed and turn.ask.sse else "application/json"
    return _whole(turn, bytes(packed), {"content-type": kind, "content-encoding": "gzip"})


def _reply(turn: Turn, reply: Json | list[Frame] | None) -> list[Act]:
    """A reply that the wire made up whole; nothing for None."""
    if reply is None:
        return []
    if isinstance(reply, dict):
        return _whole(turn, dump(reply).encode())
    return [_stream_head(turn), *_chunks(reply), Send(LAST_CHUNK), Done()]


def _empty(turn: Turn, fault: Fault) -> list[Act]:
    return _reply(
        turn, turn.wire.empty(turn.ask, _spoken(turn, _fault_answer(turn, fault)), turn.number, int(turn.now))
    )


def _said(turn: Turn, spoken: Spoken) -> list[Act]:
    now = int(turn.now)
    if not turn.ask.streamed:
        return _whole(turn, dump(turn.wire.whole(turn.ask, spoken, turn.number, now)).encode())
    return [_stream_head(turn), *_chunks(_frames(turn, spoken)), Send(LAST_CHUNK), Done()]


def _no_usage(turn: Turn, fault: Fault) -> list[Act]:
    return _said(turn, dataclasses.replace(_spoken(turn, _fault_answer(turn, fault)), counted=False))


def _content_filter(turn: Turn, fault: Fault) -> list[Act]:
    spoken = _spoken(turn, _fault_answer(turn, fault))
    text = first_words(spoken.text, _WORDS if fault.after_words is None else fault.after_words)
    return _said(turn, dataclasses.replace(spoken, text=text, finish="content_filter"))


# ── the stream ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _slow(turn: Turn, fault: Fault) -> list[Act]:
    return _answer(turn, dataclasses.replace(_fault_answer(turn, fault), delay_s=fault.delay_s or 0.1))


def _ping_drip(turn: Turn, fault: Fault) -> list[Act]:
    sign = fault.ping.encode() if fault.ping is not None else None
    if not turn.ask.streamed:
        head = head_bytes(
            200, {"content-type": "application/json", **_headers(turn)}, now=turn.now, length=None, framing="chunked"
        )
        return [Send(head, 200), Drip(chunk(sign or b"\n"), fault.every_s)]
    sign = sign or turn.wire.ping(turn.ask)
    opening = (
        _partial(turn, dataclasses.replace(fault, after_words=0, answer=""))[:1]
        if turn.wire.name == "anthropic"
        else []
    )
    return [_stream_head(turn), *_chunks(opening), Drip(chunk(sign), fault.every_s)]


def _cut(turn: Turn, fault: Fault) -> list[Act]:
    if not turn.ask.streamed:
        return [_half(turn, fault), *_ending(fault)]
    return [*_begun(turn, fault), *_ending(fault)]


def _cut_eof(turn: Turn, fault: Fault) -> list[Act]:
    return [
        _stream_head(turn, framing="close"),
        *(Send(frame.data) for frame in _partial(turn, fault)),
        Close(),
    ]


def _stall(turn: Turn, fault: Fault) -> list[Act]:
    if not turn.ask.streamed:
        return [_half(turn, fault), Hang()]
    return [*_begun(turn, fault), Hang()]


def _cut_tool(turn: Turn, fault: Fault) -> list[Act]:
    answer = Answer("") if fault.answer is None else _fault_answer(turn, fault)
    if not answer.tool_calls:
        name = turn.ask.tools[0] if turn.ask.tools else "lookup"
        answer = dataclasses.replace(answer, tool_calls=(ToolCall(name, {"query": "opening hours of the café"}),))
    if len(answer.pieces(answer.tool_calls[0].arguments)) < 2:
        answer = dataclasses.replace(answer, chunk="char")
    frames = _frames(turn, _spoken(turn, answer))
    start = next(at for at, frame in enumerate(frames) if frame.kind == "tool")
    stop = next(at for at, frame in enumerate([*frames, Frame("end", b"")]) if at > start and frame.kind != "tool")
    calls = frames[start:stop]
    if len(calls) == 1:  # Gemini sends a call in one event: the cut goes through it
        kept = [Frame("tool", calls[0].data[: len(calls[0].data) // 2])]
    else:
        kept = calls[: (len(calls) + 1) // 2]
    return [_stream_head(turn), *_chunks(frames[:start] + kept), *_ending(fault)]


def _role_only(turn: Turn, fault: Fault) -> list[Frame]:
    return turn.wire.role_only(turn.ask, _spoken(turn, _fault_answer(turn, fault)), turn.number, int(turn.now))


def _role_only_hang(turn: Turn, fault: Fault) -> list[Act]:
    return [_stream_head(turn), *_chunks(_role_only(turn, fault)), Hang()]


def _stream_error(turn: Turn, fault: Fault, kind: str, before: list[Frame]) -> list[Act]:
    error = turn.wire.error_for(kind, turn.ask)
    assert error is not None
    if fault.status is not None:
        error = turn.wire.error_for_status(fault.status, turn.ask)
    changes = {key: value for key in ("code", "type", "message") if (value := getattr(fault, key)) is not None}
    error = dataclasses.replace(error, **changes)
    frame = turn.wire.error_frame(error, turn.ask, turn.number, later=bool(before))
    return [_stream_head(turn), *_chunks([*before, frame]), Send(LAST_CHUNK), Done()]


def _role_only_error(turn: Turn, fault: Fault) -> list[Act]:
    return _stream_error(turn, fault, "server-error", _role_only(turn, fault))


def _overload_first(turn: Turn, fault: Fault) -> list[Act]:
    return _stream_error(turn, fault, "overloaded", [])


def _overload_later(turn: Turn, fault: Fault) -> list[Act]:
    return _stream_error(turn, fault, "overloaded", _partial(turn, fault))


def _malformed(turn: Turn, fault: Fault) -> list[Act]:
    before = _partial(turn, fault)
    rest = _frames(turn, _spoken(turn, _fault_answer(turn, fault)))[len(before) :]
    return [_stream_head(turn), *_chunks([*before, turn.wire.malformed(), *rest]), Send(LAST_CHUNK), Done()]


def _missing_terminal(turn: Turn, fault: Fault) -> list[Act]:
    frames = _partial(turn, fault, None)
    closing = [] if turn.ask.sse else [Frame("end", b"]")]
    return [_stream_head(turn), *_chunks([*frames, *closing]), Send(LAST_CHUNK), Done()]


def _no_done(turn: Turn, fault: Fault) -> list[Act]:
    frames = [frame for frame in _frames(turn, _spoken(turn, _fault_answer(turn, fault))) if frame.kind != "end"]
    return [_stream_head(turn), *_chunks(frames), Send(LAST_CHUNK), Done()]


_MARK = "\ue000"


def _bad_utf8(turn: Turn, fault: Fault) -> list[Act]:
    spoken = _spoken(turn, _fault_answer(turn, fault))
    head = first_words(spoken.text, 1)
    acts = _said(turn, dataclasses.replace(spoken, text=head + _MARK + spoken.text[len(head) :]))
    # As many bytes as the mark had, so that lengths already written stay true.
    return [
        dataclasses.replace(act, data=act.data.replace(_MARK.encode(), b"\xff\xfe\xff"))
        if isinstance(act, Send)
        else act
        for act in acts
    ]


def _split_utf8(turn: Turn, fault: Fault) -> list[Act]:
    acts: list[Act] = []
    for act in _answer(turn, _fault_answer(turn, fault)):
        acts += _split(act) if isinstance(act, Send) else [act]
    return acts


def _split(send: Send, most: int = 16) -> list[Act]:
    """One write as several, each new one beginning inside a character (the first `most` characters)."""
    cuts = [at + 1 for at, byte in enumerate(send.data) if byte >= 0xC0][:most]
    edges = [0, *cuts, len(send.data)]
    acts: list[Act] = []
    for start, stop in itertools.pairwise(edges):
        if start:
            acts.append(Pause(_SPLIT_S))
        acts.append(Send(send.data[start:stop], send.status if not start else None))
    return acts


_STAGES: Mapping[str, Callable[[Turn, Fault], list[Act]]] = {
    "no-response": _just(Hang()),
    "reset-before-headers": _just(Reset()),
    "close-before-headers": _just(Close()),
    "reset-after-headers": lambda turn, fault: [_promise(turn), Pause(_DRAIN_S), Reset()],
    "hang-after-headers": lambda turn, fault: [_promise(turn), Hang()],
    "header-drip": lambda turn, fault: [Send(b"HTTP/1.1 200 OK\r\nx-drip: "), Drip(b".", fault.every_s)],
    "garbage-status-line": _just(Send(b"\x00\x01 not http at all\r\n\r\n"), Close()),
    "giant-headers": _giant_headers,
    "continue-only": _just(Send(b"HTTP/1.1 100 Continue\r\n\r\n", 100), Hang()),
    "redirect-loop": _redirect,
    "proxy-auth": _proxy_auth,
    "stale-keep-alive": _stale,
    **dict.fromkeys(_DELAYS, _rate_limit),
    "rate-limit-ms": _rate_limit_ms,
    "rate-limit-date": _rate_limit_date,
    "rate-limit-skewed": _rate_limit_date,
    "content-policy": _content_policy,
    "reject-prefill": _reject_prefill,
    "html-200": _html,
    "truncated-json": _truncated,
    "wrong-content-length": _wrong_length,
    "corrupt-gzip": _corrupt_gzip,
    "empty-choices": _empty,
    "usage-missing": _no_usage,
    "content-filter": _content_filter,
    "slow-first-token": _slow,
    "ping-drip": _ping_drip,
    "cut": _cut,
    "cut-eof": _cut_eof,
    "cut-tool": _cut_tool,
    "stall": _stall,
    "role-only-error": _role_only_error,
    "role-only-hang": _role_only_hang,
    "malformed-chunk": _malformed,
    "bad-utf8": _bad_utf8,
    "split-utf8": _split_utf8,
    "missing-terminal": _missing_terminal,
    "no-done": _no_done,
    "overload-first": _overload_first,
    "overload-later": _overload_later,
}


# ── everything that takes no step ────────────────────────────────────────────────────────────────────────────────────


def unknown(turn: Turn) -> list[Act]:
    """The vendor's 404 for an address that does not exist."""
    ask = turn.ask
    message = f"Invalid URL ({ask.method} {ask.path})" if ask.wire == "openai" else "Not found"
    error = dataclasses.replace(turn.wire.error_for_status(404, ask), message=message)
    return _error(turn, dataclasses.replace(error, code=None))


def side_answer(turn: Turn, names: list[str]) -> list[Act]:
    """The good answer to a token count or a question for models."""
    ask = turn.ask
    if ask.operation == "count":
        if (refusal := turn.wire.check(ask)) is not None:
            return _error(turn, refusal)
        return _whole(turn, dump(turn.wire.count(ask)).encode())
    body = turn.wire.models(names) if ask.operation == "models" else turn.wire.model(ask.model)
    return _whole(turn, dump(body).encode())


def unfit(turn: Turn, reason: str) -> list[Act]:
    """What the script has for this connection cannot befall it: said aloud, so that a test never passes by accident."""
    return _error(turn, VendorError(status=501, type="fault_server", message=reason))


def script_error(turn: Turn, error: Exception) -> list[Act]:
    """An answer function raised: say so, loudly."""
    message = f"FaultServer: the scripted answer raised {type(error).__name__}: {error}"
    return _error(turn, VendorError(status=500, type="fault_server", message=message))
