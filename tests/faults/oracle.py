"""What each fault must become: its error kind, and what follows from it. Written from the taxonomy, not from the code.

The taxonomy has one row per signal, with columns R (retry the same target), F (fall over), B (counts for the breaker),
W (wait honoured) and O (what is locked). `EFFECTS` says the columns once per kind; `ORACLE` says which kind a fault is.
The rows are quoted beside the lines. Vendors differ where their own pages differ: `EXCEPTIONS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from shared_core import ErrorKind as K
from shared_core.ledger.entry import EntryStatus
from shared_core.testing import CANONICAL
from shared_core.testing.fault_server import FAULTS, Fault

Wait = Literal["none", "short", "long"]
"""Whether the server names a wait, and whether it is longer than the matrix lets a call wait (`matrix.MAX_WAIT_S`)."""


@dataclass(frozen=True, kw_only=True)
class Effect:
    """The columns R, F, B and O of one error class."""

    alone: int
    """Requests to a target that keeps failing so, when no other is left: 2 where R is 1."""
    beside: int
    """Requests to it while another target is free: fewer where falling over is preferred."""
    second: bool = True
    """Column F: whether the next target is asked."""
    trips: bool = False
    """Column B."""
    lock: Literal["account locked", "locked", "parked"] | None = None
    """Column O: closed until somebody does something about it, or for a wait with an end."""


_ONCE = Effect(alone=1, beside=1)
_TWICE = Effect(alone=2, beside=2)

EFFECTS: Mapping[K, Effect] = {
    # "transient: R 1, F yes, B yes"; the same for "DNS, connect refused/timeout" and for "200 HTML / truncated JSON".
    K.TRANSIENT: replace(_TWICE, trips=True),
    K.CONNECT: replace(_TWICE, trips=True),
    K.MALFORMED: replace(_TWICE, trips=True),
    K.STREAM_CUT: replace(_TWICE, trips=True),
    # "overloaded: R 1 after wait, F yes, preferred, B yes"
    K.OVERLOADED: Effect(alone=2, beside=1, trips=True),
    # "conflict: R 1, F yes, B no"
    K.CONFLICT: _TWICE,
    # "throttled / ramp: R after wait if short, F yes, B no, O park"
    K.THROTTLED: _TWICE,
    K.RAMP: _TWICE,
    # "per day: R no, F yes, B no, O park, long"
    K.QUOTA_DAY: replace(_ONCE, lock="parked"),
    # "limit: 0: never, F yes, B no, O account x model"
    K.NO_ENTITLEMENT: replace(_ONCE, lock="locked"),
    # "billing: R never, F yes, at once, B no, O account locked"
    K.BILLING: replace(_ONCE, lock="account locked"),
    # "401: R no, F yes, B no, O account until changed"
    K.AUTH: replace(_ONCE, lock="account locked"),
    # "403 / 404: R no, F yes, B no, O account x model / model"
    K.FORBIDDEN: replace(_ONCE, lock="locked"),
    K.NOT_FOUND: replace(_ONCE, lock="locked"),
    # "bad_request / policy: R no, F no, B no"
    K.BAD_REQUEST: replace(_ONCE, second=False),
    K.POLICY: replace(_ONCE, second=False),
    # "context: R no, F only to a larger-context target, B no"; "too_large: larger target"
    K.CONTEXT_OVERFLOW: _ONCE,
    K.TOO_LARGE: _ONCE,
    # "3xx, 407 proxy: config: R no, F yes, B no"; "499: cancelled: R no, F yes if not ours, B no"
    K.CONFIG: _ONCE,
    K.CANCELLED: _ONCE,
    # "a target that cannot serve the request is incapable, not sick"
    K.INCAPABLE: _ONCE,
    # "our deadline / target exceeded its own first-token or idle limit: R no, F yes, B yes"
    K.TIMEOUT: replace(_ONCE, trips=True),
}


BOOKS: Mapping[K, EntryStatus] = {
    # "DNS, connect, TLS: void"; "refused by the provider with an error body: 4xx, 429, 503 overloaded, 529: void"
    **dict.fromkeys(
        (
            K.CONNECT, K.OVERLOADED, K.CONFLICT, K.THROTTLED, K.RAMP, K.QUOTA_DAY, K.NO_ENTITLEMENT, K.BILLING, K.AUTH,
            K.FORBIDDEN, K.NOT_FOUND, K.BAD_REQUEST, K.CONTEXT_OVERFLOW, K.TOO_LARGE, K.CONFIG, K.INCAPABLE, K.POLICY,
        ),
        EntryStatus.VOID,
    ),
    # "timeout, reset, 500/502/504, cancelled, malformed, cut: unknown at the full bound"
    **dict.fromkeys((K.TRANSIENT, K.TIMEOUT, K.MALFORMED, K.STREAM_CUT, K.CANCELLED), EntryStatus.UNKNOWN),
}  # fmt: skip
"""Column $: nothing was spent, or it may have been billed. An answer is posted, or estimated where it told no usage."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One row: which kind a fault is, and what is peculiar to it."""

    whole: K | None = None
    """Kind of a whole answer's failure; None: the answer arrives in spite of the fault."""
    streamed: K | None = None
    """The same of a streamed answer."""
    or_else: K | None = None
    """Another kind of the same effect that is as right: the network decides which of them is seen."""
    wait: Wait = "none"
    never: bool = False
    """The server said `x-should-retry: false`, or the vendor advises against it."""
    words: int = 0
    """Streamed: how many words have reached the caller when it strikes."""
    text: str = CANONICAL
    """What an answer that arrives says."""
    finish: str = "stop"
    books: EntryStatus | None = None
    """Column $ where it is not that of the kind (of an answer: posted)."""
    window: bool = False
    """Its headers tell of a window that is empty for longer than it asks to wait: as long as that lasts and another
    target is free, it gets no second packet."""
    pause_s: float = 0.0
    """`wait="short"`: the wait that the server names, at least."""


def _both(kind: K | None, **more: object) -> Line:
    return Line(whole=kind, streamed=kind, **more)  # type: ignore[arg-type]  # passed through by name


_ALL = len(CANONICAL.split())

ORACLE: Mapping[str, Line] = {
    # ── "DNS, connect refused/timeout, TLS failure: no byte left: transient, transparent" ────────────────────────
    "refused": _both(K.CONNECT),
    "black-hole": _both(K.CONNECT),
    "nxdomain": _both(K.CONNECT),
    "dns-slow": _both(K.CONNECT),
    "tls-handshake-fail": _both(K.CONNECT),
    "tls-expired": _both(K.CONNECT),
    "tls-wrong-host": _both(K.CONNECT),
    "tls-stall": _both(K.CONNECT),
    # No SDK offers HTTP/2 as it is built here, and the server says so; one that did would meet "GOAWAY/REFUSED_STREAM"
    "h2-goaway": _both(K.INCAPABLE),
    "h2-refused-stream": _both(K.INCAPABLE),
    # ── "reset before any response byte: transient, R 1, F yes, B yes" ───────────────────────────────────────────
    "close-on-accept": _both(K.TRANSIENT, or_else=K.CONNECT),  # over TLS it is the handshake that does not happen
    "reset-on-accept": _both(K.TRANSIENT, or_else=K.CONNECT),  # the reset may find the client still connecting
    "reset-mid-upload": _both(K.TRANSIENT),
    "reset-before-headers": _both(K.TRANSIENT),
    "close-before-headers": _both(K.TRANSIENT),
    "garbage-status-line": _both(K.TRANSIENT),
    "giant-headers": _both(K.TRANSIENT),
    # "reset / cut mid-body (non-stream)", "stream cut before first token: transient"
    "reset-after-headers": _both(K.TRANSIENT),
    "cut:first": _both(K.TRANSIENT, or_else=K.STREAM_CUT),
    # ── silence: "target exceeded its own first-token/idle limit" ────────────────────────────────────────────────
    "hang-on-accept": _both(K.TIMEOUT),
    "never-read": _both(K.TIMEOUT),
    "no-response": _both(K.TIMEOUT),
    "hang-after-headers": _both(K.TIMEOUT),
    "header-drip": _both(K.TIMEOUT),
    "continue-only": _both(K.TIMEOUT),
    "ping-drip": _both(K.TIMEOUT),
    "role-only-hang": Line(streamed=K.TIMEOUT),
    "stall": _both(K.TIMEOUT, words=3),
    # ── "3xx, 407 proxy: config" ─────────────────────────────────────────────────────────────────────────────────
    "redirect-loop": _both(K.CONFIG),
    "proxy-auth": _both(K.CONFIG),
    # ── statuses, by their rows ──────────────────────────────────────────────────────────────────────────────────
    "bad-request": _both(K.BAD_REQUEST),
    "unprocessable": _both(K.BAD_REQUEST),
    "context-overflow": _both(K.CONTEXT_OVERFLOW),
    "content-policy": _both(K.POLICY),
    "key-invalid": _both(K.AUTH),
    "unauthorized": _both(K.AUTH),
    "payment-required": _both(K.BILLING),
    "billing": _both(K.BILLING),
    "spend-limit": _both(K.BILLING),
    "billing-inactive": _both(K.BILLING),
    "forbidden": _both(K.FORBIDDEN),
    "region": _both(K.FORBIDDEN),
    "model-not-found": _both(K.NOT_FOUND),
    "request-timeout": _both(K.TRANSIENT),
    "conflict": _both(K.CONFLICT),
    "too-large": _both(K.TOO_LARGE),
    "server-error": _both(K.TRANSIENT),
    "bad-gateway": _both(K.TRANSIENT),
    "gateway-timeout": _both(K.TRANSIENT),
    "edge-520": _both(K.TRANSIENT),
    "unavailable": _both(K.OVERLOADED),
    "overloaded": _both(K.OVERLOADED),
    "cancelled": _both(K.CANCELLED),
    "no-retry": _both(K.TRANSIENT, never=True),
    # "unknown codes fall back to the status row": no row at all is the caller's fault below 500, the server's above
    "status:418": _both(K.BAD_REQUEST),
    "status:523": _both(K.TRANSIENT),
    # the same statuses at vendors that do not document them: gateways and proxies speak with everybody's voice
    "status:499": _both(K.CANCELLED),
    "status:529": _both(K.OVERLOADED),
    # a 400 that is none: "classify by type, code and text first"
    "status:400-spend": _both(K.BILLING),
    "status:400-key": _both(K.AUTH),
    # 429s that only their words tell apart
    "rate-limit:day": _both(K.QUOTA_DAY),
    "rate-limit:none": _both(K.NO_ENTITLEMENT),
    # ── 429: "throttled: after wait if short"; waits are read in one fixed order ──────────────────────────────────
    "rate-limit": _both(K.THROTTLED, wait="long"),
    "rate-limit:short": _both(K.THROTTLED, wait="short", pause_s=0.05, window=True),
    "rate-limit-zero": _both(K.THROTTLED, window=True),
    # no sane wait of its own: OpenAI's reset of the exhausted dimension says 120 ms
    "rate-limit-negative": _both(K.THROTTLED, wait="short"),
    "rate-limit-huge": _both(K.THROTTLED, wait="short"),
    "rate-limit-malformed": _both(K.THROTTLED, wait="short"),
    "rate-limit-bare": _both(K.THROTTLED, wait="short"),
    "rate-limit-date": _both(K.THROTTLED, wait="long"),
    "rate-limit-skewed": _both(K.THROTTLED, wait="long"),
    "rate-limit-ms": _both(K.THROTTLED, wait="short", pause_s=0.05, window=True),
    "ramp": _both(K.RAMP, wait="long"),
    "quota-day": _both(K.QUOTA_DAY),
    "quota-zero": _both(K.NO_ENTITLEMENT),
    "tpm-too-large": _both(K.TOO_LARGE, window=True),  # "Request too large: too_large, R no, F yes"
    # ── "200 HTML / truncated JSON / empty choices: malformed, R 1, F yes, B yes" ─────────────────────────────────
    "html-200": _both(K.MALFORMED),
    "truncated-json": Line(whole=K.MALFORMED, streamed=K.STREAM_CUT, or_else=K.MALFORMED, words=3),
    "corrupt-gzip": _both(K.MALFORMED),
    "empty-choices": _both(K.MALFORMED, or_else=K.STREAM_CUT),
    "bad-utf8": _both(K.MALFORMED),
    # whole: cut mid-body; streamed: every event has arrived, so the answer is whole
    "wrong-content-length": Line(whole=K.TRANSIENT),
    # ── streams: "cut / error after the first token: stream_broken, B yes"; `on_stream_break` says who goes on ───────
    "cut": Line(whole=K.TRANSIENT, streamed=K.STREAM_CUT, words=3),
    "cut:clean": Line(whole=K.TRANSIENT, streamed=K.STREAM_CUT, words=3),
    "cut:late": Line(whole=K.TRANSIENT, streamed=K.STREAM_CUT, words=_ALL - 1),
    "cut-eof": Line(streamed=K.STREAM_CUT, words=3),
    "missing-terminal": Line(streamed=K.STREAM_CUT, words=_ALL),
    "malformed-chunk": Line(streamed=K.MALFORMED, words=3),
    "overload-later": Line(streamed=K.OVERLOADED, words=3, books=EntryStatus.UNKNOWN),
    # nothing visible yet: "as its code, F yes"
    "overload-first": Line(
        streamed=K.OVERLOADED, books=EntryStatus.UNKNOWN
    ),  # "SSE error before the first token: unknown"
    "role-only-error": Line(streamed=K.TRANSIENT),
    "cut-tool": Line(streamed=K.STREAM_CUT, or_else=K.TRANSIENT),
    # ── nothing a caller need notice ─────────────────────────────────────────────────────────────────────────────
    "stale-keep-alive": Line(),
    "usage-missing": Line(books=EntryStatus.ESTIMATED),  # "success without usage: our own count, flagged"
    "slow-read": Line(),
    "dns-flap": Line(),
    "slow-first-token": Line(),
    "split-utf8": Line(),
    "no-done": Line(),
    "reject-prefill": Line(),
    # "content_filter, finishReason SAFETY: policy, F opt-in": the vendor's answer, labelled as stopped
    "content-filter": Line(text=" ".join(CANONICAL.split()[:3]), finish="content_filter"),
}

_BARE_SECOND = {
    # Anthropic's resets are dates in whole seconds: the soonest is one second away.
    name: _both(K.THROTTLED, wait="long")
    for name in ("rate-limit-negative", "rate-limit-huge", "rate-limit-malformed", "rate-limit-bare")
}
_BARE_NONE = {
    # Gemini says it in RetryInfo or not at all, and nothing of windows.
    "rate-limit:short": _both(K.THROTTLED, wait="short", pause_s=0.05),
    "rate-limit-zero": _both(K.THROTTLED),
} | {
    name: _both(K.THROTTLED)
    for name in ("rate-limit-negative", "rate-limit-huge", "rate-limit-malformed", "rate-limit-bare")
}

EXCEPTIONS: Mapping[str, Mapping[str, Line]] = {
    "anthropic": {
        **_BARE_SECOND,
        "billing-inactive": _both(K.FORBIDDEN),  # "403 organization_on_hold: forbidden"
        "gateway-timeout": _both(K.TRANSIENT, never=True),  # "504 timeout_error: transient, R 0 (use streaming)"
        "content-filter": Line(text=" ".join(CANONICAL.split()[:3]), finish="refusal"),  # "stop_reason: refusal"
    },
    "google": {
        **_BARE_NONE,
        # "200 with promptFeedback.blockReason: actual", of which this answer says nothing
        "content-policy": _both(K.POLICY, books=EntryStatus.UNKNOWN),
        "spend-limit": _both(K.THROTTLED, wait="long"),  # "429 spend-based (rolling 10 min): throttled"
        "gateway-timeout": _both(K.TIMEOUT),  # "504 DEADLINE_EXCEEDED: timeout, R 0"
        "request-timeout": _both(K.TIMEOUT),  # "classify by error.type first": it says DEADLINE_EXCEEDED with its 408
    },
    # Built on requests, whose limit on connecting covers neither name nor handshake: the attempt's own limit ends it.
    "google-legacy": dict.fromkeys(("dns-slow", "tls-stall"), _both(K.TIMEOUT)),
}

STEPS: Mapping[str, Fault] = {
    "status:418": Fault("status", status=418),
    "status:523": Fault("status", status=523),
    "status:499": Fault("status", status=499),
    "status:529": Fault("status", status=529),
    "status:400-spend": Fault("status", status=400, message="Your organization has reached its spending limit."),
    "status:400-key": Fault("status", status=400, message="API key not valid. Please pass a valid API key."),
    "rate-limit:day": Fault("rate-limit", message="You have reached your daily limit of requests."),
    "rate-limit:none": Fault("rate-limit", message="Quota exceeded for this model, limit: 0."),
    "slow-read": Fault("slow-read", every_s=0.002),
    "rate-limit:short": Fault("rate-limit", retry_after=0.05),
    "rate-limit-ms": Fault("rate-limit-ms", retry_after=0.05),
    "slow-first-token": Fault("slow-first-token", delay_s=0.03),
    "cut:first": Fault("cut", after_words=0),
    "cut:clean": Fault("cut", clean=True),
    "cut:late": Fault("cut", after_words=_ALL - 1),
}
"""Lines that are a fault with parameters; every other line is the fault of its name as it is."""

ONLY: Mapping[str, tuple[str, ...]] = {
    "rate-limit:day": ("anthropic",),
    "rate-limit:none": ("openai", "anthropic"),
}
"""Lines that stand in for a fault that some vendor has no code for, and the wires where they do."""

SILENT = frozenset(
    {
        "black-hole", "dns-slow", "tls-stall", "hang-on-accept", "never-read", "no-response", "hang-after-headers",
        "header-drip", "continue-only", "ping-drip", "role-only-hang", "stall",
    }
)  # fmt: skip
"""Faults that end only when a limit of ours does."""


def step_of(name: str) -> Fault:
    """The fault that a line scripts."""
    return STEPS.get(name) or Fault(name)


def kind_name(name: str) -> str:
    """The fault kind of a line: 'cut' of 'cut:late'."""
    return name.partition(":")[0]


def line(name: str, wire: str, vendor: str = "") -> Line:
    """The row that holds for a fault on a wire, met with a vendor's SDK."""
    return EXCEPTIONS.get(vendor, {}).get(name) or EXCEPTIONS.get(wire, {}).get(name) or ORACLE[name]


def uncovered() -> set[str]:
    """Fault kinds that no line speaks of."""
    return set(FAULTS) - {kind_name(name) for name in ORACLE}
