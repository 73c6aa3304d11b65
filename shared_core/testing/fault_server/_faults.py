"""Everything that can go wrong, as data: the table of fault kinds, and `Fault`, one of them with its parameters."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from shared_core.testing.fault_server._answers import Answer

if TYPE_CHECKING:
    from shared_core.testing.fault_server._log import SeenRequest

WireName = Literal["openai", "anthropic", "google"]
WIRES: tuple[WireName, ...] = ("openai", "anthropic", "google")

Place = Literal["request", "accept", "address"]
"""Where a fault is put: in a model's script, in the accept script, or at an address of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultKind:
    """One row of the table `FAULTS`."""

    name: str
    what: str
    family: str
    place: Place = "request"
    whole: bool = True
    """Whether it can befall a whole (not streamed) answer."""
    streamed: bool = True
    """Whether it can befall a streamed answer."""
    wires: tuple[WireName, ...] = WIRES
    harmless: bool = False
    """A correct client gets the exact answer in spite of it."""
    tls: bool = False
    """It takes a server with `tls=True`."""

    @property
    def shapes(self) -> str:
        return "both" if self.whole and self.streamed else "whole" if self.whole else "streamed"


def _table(*kinds: FaultKind) -> dict[str, FaultKind]:
    return {kind.name: kind for kind in kinds}


def _family(family: str, rows: Mapping[str, str], **common: Any) -> list[FaultKind]:
    return [FaultKind(name=name, what=what, family=family, **common) for name, what in rows.items()]


_NOT_GOOGLE: tuple[WireName, ...] = ("openai", "anthropic")

FAULTS: Mapping[str, FaultKind] = _table(
    # ── before any request ───────────────────────────────────────────────────────────────────────────────────────
    *_family(
        "connect",
        {
            "refused": "nothing listens: use `server.refused_url(wire)`",
            "black-hole": "connecting never completes: use `server.black_hole_url(wire)` (Linux)",
            "nxdomain": "the host name does not exist: use `server.nxdomain_url(wire)`",
            "dns-slow": "looking the name up takes `delay_s` seconds: use `server.dns_slow_url(wire, delay_s)`",
        },
        place="address",
    ),
    FaultKind(
        name="dns-flap",
        what="every other look-up of the name fails, the first one too: use `server.dns_flap_url(wire)`",
        family="connect",
        place="address",
        harmless=True,
    ),
    *_family(
        "connect",
        {
            "close-on-accept": "accepts the connection and closes it",
            "reset-on-accept": "accepts the connection and resets it",
            "hang-on-accept": "accepts the connection, reads, and never says a byte",
            "reset-mid-upload": "resets the connection while the request's body is being sent",
            "never-read": "accepts the connection and never reads from it (a large upload stalls)",
        },
        place="accept",
    ),
    FaultKind(
        name="slow-read",
        what="reads the request in small sips, one every `every_s` seconds, and answers well",
        family="connect",
        place="accept",
        harmless=True,
    ),
    *_family(
        "tls",
        {
            "tls-handshake-fail": "answers the client's hello with a fatal alert (`tls=True`)",
            "tls-expired": "shows a certificate that has expired (`tls=True`)",
            "tls-wrong-host": "shows a certificate for another host (`tls=True`)",
            "tls-stall": "takes the client's hello and says nothing (`tls=True`)",
            "h2-goaway": "to an HTTP/2 client: GOAWAY, nothing was worked on (`tls=True`)",
            "h2-refused-stream": "to an HTTP/2 client: RST_STREAM with REFUSED_STREAM (`tls=True`)",
        },
        place="accept",
        tls=True,
    ),
    # ── instead of headers, or around them ───────────────────────────────────────────────────────────────────────
    *_family(
        "headers",
        {
            "no-response": "reads the request and stays silent until the client leaves",
            "reset-before-headers": "reads the request and resets the connection (RST)",
            "close-before-headers": "reads the request and closes the connection (FIN)",
            "reset-after-headers": "sends 200 and the headers, then resets the connection",
            "hang-after-headers": "sends 200 and the headers, then stays silent",
            "header-drip": "sends one endless header, a byte at a time",
            "garbage-status-line": "answers something that is not HTTP",
            "giant-headers": "answers with 1 MiB of headers",
            "continue-only": "answers `100 Continue` and nothing more",
            "redirect-loop": "307 to itself, for ever (following it consumes no steps)",
            "proxy-auth": "407 from a proxy, with HTML",
        },
    ),
    FaultKind(
        name="stale-keep-alive",
        what="answers well, promises keep-alive, and resets the connection when it is used again",
        family="headers",
    ),
    # ── statuses ─────────────────────────────────────────────────────────────────────────────────────────────────
    *_family(
        "status",
        {
            "status": "any HTTP status, with the vendor's own body and headers: `Fault('status', status=418)`",
            "bad-request": "400: the request is malformed",
            "context-overflow": "400: the prompt is longer than the context window",
            "content-policy": "the prompt is refused by policy (OpenAI, Anthropic 400; Gemini 200 with blockReason)",
            "key-invalid": "the API key is not valid (401; Gemini: 400 with reason API_KEY_INVALID)",
            "unauthorized": "401",
            "payment-required": "402: the prepaid balance is empty",
            "billing": "out of money, by code: no wait helps (OpenAI, Anthropic 429; Gemini 402)",
            "spend-limit": "your own spend limit (OpenAI project 429; Anthropic 400 by text; Gemini rolling 429)",
            "billing-inactive": "the account is not active (OpenAI 429; Anthropic 403 on hold; Gemini 400)",
            "forbidden": "403: no access to this model",
            "region": "the country is not supported (403; Gemini 400 FAILED_PRECONDITION)",
            "model-not-found": "404: no such model",
            "request-timeout": "408",
            "conflict": "409",
            "too-large": "413: the request body is too large",
            "unprocessable": "422",
            "server-error": "500",
            "bad-gateway": "502 from the edge, with HTML",
            "unavailable": "503",
            "gateway-timeout": "504",
            "edge-520": "520 from the edge, with HTML",
            "overloaded": "overloaded, the vendor's way (OpenAI 503, Anthropic 529, Gemini 503)",
        },
    ),
    FaultKind(name="cancelled", what="499 CANCELLED", family="status", wires=("google",)),
    FaultKind(name="no-retry", what="500 with `x-should-retry: false`", family="status", wires=_NOT_GOOGLE),
    # ── 429, in all its dialects ─────────────────────────────────────────────────────────────────────────────────
    *_family(
        "throttled",
        {
            "rate-limit": "429, come back in `retry_after` seconds (1; Gemini: RetryInfo)",
            "rate-limit-zero": "429, come back in 0 seconds",
            "rate-limit-negative": "429, come back in -5 seconds",
            "rate-limit-huge": "429, come back in 999,999,999 seconds",
            "rate-limit-malformed": "429 with a delay that is no number",
            "rate-limit-bare": "429 with no delay at all",
            "rate-limit-date": "429, come back at an HTTP date `retry_after` seconds ahead",
            "rate-limit-skewed": "the same, from a server whose clock (`Date`) is an hour ahead",
        },
    ),
    FaultKind(
        name="rate-limit-ms",
        what="429 with `retry-after-ms`, and a coarser retry-after",
        family="throttled",
        wires=_NOT_GOOGLE,
    ),
    FaultKind(name="ramp", what="429 slow_down / ramp_limit_exceeded", family="throttled", wires=_NOT_GOOGLE),
    FaultKind(
        name="quota-day", what="429: the quota of the day is used up", family="throttled", wires=("openai", "google")
    ),
    FaultKind(
        name="quota-zero",
        what="429 with `limit: 0`: no entitlement; waiting is useless",
        family="throttled",
        wires=("google",),
    ),
    FaultKind(
        name="tpm-too-large",
        what="429: this one request is larger than the whole minute's tokens",
        family="throttled",
        wires=("openai",),
    ),
    # ── the body ─────────────────────────────────────────────────────────────────────────────────────────────────
    *_family(
        "body",
        {
            "html-200": "200 with an HTML page",
            "truncated-json": "200 with half of the JSON (streamed: the stream ends in the middle of an event)",
            "wrong-content-length": "promises more bytes than it sends, then closes",
            "corrupt-gzip": "a gzip body with a broken middle",
            "empty-choices": "200 with no choices / content / candidates",
            "usage-missing": "a good answer without usage",
            "content-filter": "200, `after_words` words, then stopped by the filter (content_filter, refusal, SAFETY)",
        },
    ),
    # ── the stream ───────────────────────────────────────────────────────────────────────────────────────────────
    FaultKind(
        name="slow-first-token", what="the first token comes after `delay_s` seconds", family="stream", harmless=True
    ),
    FaultKind(name="ping-drip", what="keep-alive signs for ever, never a token (whole: blank lines)", family="stream"),
    FaultKind(name="cut", what="reset after `after_words` words (`clean=True`: FIN)", family="stream"),
    FaultKind(name="stall", what="silence after `after_words` words", family="stream"),
    FaultKind(name="bad-utf8", what="bytes that are not UTF-8 inside the text", family="stream"),
    FaultKind(
        name="split-utf8",
        what="every character of several bytes is split over two TCP writes; nothing is wrong",
        family="stream",
        harmless=True,
    ),
    *_family(
        "stream",
        {
            "cut-eof": "the stream ends after `after_words` words and HTTP sees nothing wrong (close-delimited body)",
            "cut-tool": "reset in the middle of a tool call",
            "role-only-error": "a role-only frame, then an in-stream error",
            "role-only-hang": "a role-only frame, then silence",
            "malformed-chunk": "after `after_words` words, an event that is not JSON; then the rest",
            "missing-terminal": "the stream ends in good order, without finish reason or terminal event",
            "overload-first": "an in-stream overload error before the first token",
            "overload-later": "an in-stream overload error after `after_words` words",
        },
        whole=False,
    ),
    FaultKind(name="no-done", what="finish reason, but no `[DONE]`", family="stream", whole=False, wires=("openai",)),
    # ── conversations ────────────────────────────────────────────────────────────────────────────────────────────
    FaultKind(
        name="reject-prefill",
        what="400 if the conversation ends with an assistant message, otherwise a good answer",
        family="conversation",
    ),
)
"""Every fault kind by name. `kind.place` says where it can be scripted, `kind.shapes` which answers it can befall."""

ALIASES: Mapping[str, str] = {
    "hang": "no-response",
    "reset": "reset-before-headers",
    "close": "close-before-headers",
}


AnswerLike = Answer | str
AnswerFunction = Callable[["SeenRequest"], AnswerLike]


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault kind with its parameters; the ones a kind has no use for are ignored.

    * `delay_s`: seconds before it begins (for `slow-first-token`: before the first token).
    * `after_words`: words of the answer that get through first. `None`: the kind's own default.
    * `clean`: close with FIN instead of RST.
    * `status`, `code`, `type`, `message`, `headers`, `body`: override the vendor's error; `body` replaces all of it.
    * `retry_after`: seconds in the vendor's way of saying them; a `str` goes out verbatim.
    * `every_s`: seconds between two signs of a drip. `ping`: the sign itself, instead of the wire's own.
    * `answer`: what would have been said; default the canonical answer.
    """

    kind: str
    status: int | None = field(default=None, kw_only=True)
    code: str | None = field(default=None, kw_only=True)
    type: str | None = field(default=None, kw_only=True)
    message: str | None = field(default=None, kw_only=True)
    headers: Mapping[str, str] = field(default_factory=dict, kw_only=True, hash=False)
    body: str | bytes | Mapping[str, Any] | None = field(default=None, kw_only=True, hash=False)
    retry_after: float | str | None = field(default=None, kw_only=True)
    delay_s: float = field(default=0.0, kw_only=True)
    every_s: float = field(default=0.01, kw_only=True)
    ping: str | None = field(default=None, kw_only=True)
    after_words: int | None = field(default=None, kw_only=True)
    clean: bool = field(default=False, kw_only=True)
    answer: AnswerLike | AnswerFunction | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        kind = ALIASES.get(self.kind, self.kind)
        if kind not in FAULTS:
            raise ValueError(f"Fault {self.kind!r} is unknown. hint: {nearest(self.kind)}; all of them are in FAULTS.")
        object.__setattr__(self, "kind", kind)
        if kind == "status" and self.status is None:
            raise ValueError("Fault('status') needs status=..., for example Fault('status', status=503).")
        if self.status is not None and not 200 <= self.status <= 999:
            raise ValueError(f"Fault(status={self.status}) is no HTTP status; it must be from 200 to 999.")
        if self.delay_s < 0 or self.every_s <= 0 or (self.after_words or 0) < 0:
            raise ValueError("Fault: delay_s and after_words cannot be negative, every_s must be positive.")

    @property
    def row(self) -> FaultKind:
        return FAULTS[self.kind]

    def __str__(self) -> str:
        return str(self.status) if self.kind == "status" else self.kind


def nearest(name: str) -> str:
    """A hint that names the fault kinds nearest to a misspelt one."""
    close = difflib.get_close_matches(name, [*FAULTS, *ALIASES, "ok"], n=3, cutoff=0.5)
    return "did you mean " + " or ".join(repr(one) for one in close) + "?" if close else "say 'ok' or a fault's name"


# ── constructors for the common ones ─────────────────────────────────────────────────────────────────────────────────


def status(
    code: int,
    *,
    retry_after: float | str | None = None,
    error_code: str | None = None,
    message: str | None = None,
    headers: Mapping[str, str] | None = None,
    body: str | bytes | Mapping[str, Any] | None = None,
    delay_s: float = 0.0,
) -> Fault:
    """An HTTP status with the vendor's own body: ``status(429, retry_after=2)``."""
    return Fault(
        "status", status=code, retry_after=retry_after, code=error_code, message=message, headers=headers or {},
        body=body, delay_s=delay_s,
    )  # fmt: skip


def hang(*, delay_s: float = 0.0) -> Fault:
    """Read the request and say nothing until the client leaves."""
    return Fault("no-response", delay_s=delay_s)


def reset(*, after_headers: bool = False, delay_s: float = 0.0) -> Fault:
    """Reset the connection before (or right after) the headers."""
    return Fault("reset-after-headers" if after_headers else "reset-before-headers", delay_s=delay_s)


def slow(delay_s: float, answer: AnswerLike | AnswerFunction | None = None) -> Fault:
    """A good answer whose first token comes after `delay_s` seconds."""
    return Fault("slow-first-token", delay_s=delay_s, answer=answer)


def cut(
    *, after_words: int = 3, clean: bool = False, eof: bool = False, answer: AnswerLike | AnswerFunction | None = None
) -> Fault:
    """Lose the connection after some words: RST, FIN (`clean`), or an end that HTTP takes for a good one (`eof`)."""
    return Fault("cut-eof" if eof else "cut", after_words=after_words, clean=clean, answer=answer)


def cut_tool(*, answer: AnswerLike | AnswerFunction | None = None, clean: bool = False) -> Fault:
    """Lose the connection in the middle of a tool call."""
    return Fault("cut-tool", answer=answer, clean=clean)


def stall(*, after_words: int = 3, answer: AnswerLike | AnswerFunction | None = None) -> Fault:
    """Go silent after some words, until the client leaves."""
    return Fault("stall", after_words=after_words, answer=answer)


def drip(*, every_s: float = 0.01, ping: str | None = None) -> Fault:
    """Keep-alive signs, never a token, until the client leaves."""
    return Fault("ping-drip", every_s=every_s, ping=ping)


def overload(*, after_words: int = 0, answer: AnswerLike | AnswerFunction | None = None) -> Fault:
    """An overload error inside a stream that began with 200; before the first token unless `after_words` is given."""
    if after_words:
        return Fault("overload-later", after_words=after_words, answer=answer)
    return Fault("overload-first", answer=answer)
