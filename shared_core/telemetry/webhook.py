"""Sends events to an address of yours: `WebhookHook`, an observer that signs, queues, retries and never blocks.

Deliveries follow the Standard Webhooks conventions: a JSON body, and the headers `webhook-id` (the same for every try
of one event), `webhook-timestamp` (seconds since the epoch) and `webhook-signature` (`v1,` and the base64 of an
HMAC-SHA256 over `{id}.{timestamp}.{body}`). `verify_signature` is the receiver's side. Only the standard library is
used.
"""

from __future__ import annotations

import atexit
import base64
import binascii
import hashlib
import hmac
import json
import logging
import os
import random
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from shared_core._forks import after_fork
from shared_core.errors import ConfigurationError, is_number, redact
from shared_core.telemetry._post import Undelivered, post
from shared_core.telemetry.dispatch import EventKind, kinds_of
from shared_core.telemetry.events import Event

if TYPE_CHECKING:
    import ssl

__all__ = ["WebhookHook", "sign", "verify_signature"]

_log = logging.getLogger("llm_fallback.webhook")
_LONGEST_TEXT = 500
"""Characters of a text in a payload; more is cut off."""
_LONGEST_LIST = 50
_IDLE_S = 10.0
"""How long the thread waits for more to send before it ends."""


def _key(secret: str | bytes) -> bytes:
    """The bytes of a secret. A text that begins with `whsec_` is base64 behind that, as the convention has it.

    Raises:
        ConfigurationError: it is empty, or not base64 behind `whsec_`.
    """
    if isinstance(secret, str) and secret.startswith("whsec_"):
        try:
            key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
        except (binascii.Error, ValueError):
            raise ConfigurationError("a secret that begins with 'whsec_' must go on in base64") from None
    else:
        key = secret.encode() if isinstance(secret, str) else bytes(secret)
    if not key:
        raise ConfigurationError("a webhook's secret must not be empty; leave it out to send unsigned")
    return key


def sign(secret: str | bytes, message_id: str, timestamp: int, body: bytes) -> str:
    """The value of `webhook-signature` for one delivery."""
    mac = hmac.new(_key(secret), b"%s.%d.%s" % (message_id.encode(), timestamp, body), hashlib.sha256)
    return "v1," + base64.b64encode(mac.digest()).decode()


def verify_signature(
    secret: str | bytes | Sequence[str | bytes],
    headers: Mapping[str, str],
    body: bytes | str,
    *,
    tolerance_s: float = 300.0,
    now: float | None = None,
) -> bool:
    """Whether a delivery was signed with `secret`, not long ago. For whoever receives webhooks.

    Compares in constant time. Within the window the same delivery could be sent again: remember its `webhook-id` if
    acting on it twice would hurt.

    Args:
        secret: the secret, or several while one takes the place of another.
        headers: the delivery's; names in any case.
        body: its body, byte for byte as it came.
        tolerance_s: how far its time may be from ours, in seconds, either way.
        now: our time, seconds since the epoch; the clock's when left out.
    """
    given = {str(name).lower(): str(value) for name, value in headers.items()}
    message_id, stamp = given.get("webhook-id", ""), given.get("webhook-timestamp", "")
    if not message_id or not stamp.isascii() or not stamp.isdigit() or len(stamp) > 15:
        return False
    if not abs((time.time() if now is None else now) - int(stamp)) <= tolerance_s:
        return False
    raw = body.encode() if isinstance(body, str) else bytes(body)
    secrets = [secret] if isinstance(secret, (str, bytes)) else list(secret)
    expected = [sign(one, message_id, int(stamp), raw).encode() for one in secrets]
    sent = given.get("webhook-signature", "").encode("utf-8", "replace").split(b" ")
    found = False
    for mine in expected:
        for theirs in sent:
            found |= hmac.compare_digest(mine, theirs)
    return found


@dataclass(frozen=True, slots=True)
class _Delivery:
    """One event as it will be sent."""

    id: str
    name: str
    body: bytes


class WebhookHook:
    """An observer for `Router(on_event=...)` that posts events as JSON. Nothing it does can hold up a request.

    Args:
        url: where to; `https`, or `http`.
        secret: signs each delivery (see `verify_signature`); bytes, or a text, `whsec_…` in base64. None: unsigned.
        events: kinds of event to send, classes or names such as 'circuit_changed'; all when left out.
        headers: sent along, such as an `authorization`.
        timeout_s: for one try, from connecting to the answer's status, in seconds.
        attempts: tries in all, at least 1. A refusal (a status of 3xx or 4xx but 408, 425 and 429) is not tried again.
        backoff_s: before the second try up to this long, doubled with each further one, with full jitter; seconds.
        backoff_cap_s: no longer than this; a `retry-after` of the server's counts up to this too.
        queue: so many events wait at most; then the oldest are dropped and counted.
        details: whether texts that may quote a vendor (error messages) are sent; they may quote what it was asked.
        close_s: how long closing the router waits for what is still to be sent, in seconds.
        tls: another `ssl.SSLContext`; by default certificates and names are verified against the system's store.

    Raises:
        ConfigurationError: an option is wrong.

    Of several routers each may have it. One thread sends, one event after another in their order; it starts with the
    first event and ends when there has been nothing to do. Each delivery takes at most 16 KiB of memory.
    """

    def __init__(
        self,
        url: str,
        *,
        secret: str | bytes | None = None,
        events: Iterable[EventKind] | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = 5.0,
        attempts: int = 5,
        backoff_s: float = 0.5,
        backoff_cap_s: float = 30.0,
        queue: int = 1000,
        details: bool = False,
        close_s: float = 2.0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        address: Any = url
        parts = urlsplit(address) if isinstance(address, str) else None
        if parts is None or parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigurationError("a webhook's address must be an http or https URL with a host")
        if isinstance(events, str):
            events = (events,)
        numbers: dict[str, Any] = {"timeout_s": timeout_s, "backoff_cap_s": backoff_cap_s, "attempts": attempts}
        numbers |= {"queue": queue, "backoff_s": backoff_s, "close_s": close_s}
        for name, value in numbers.items():
            _check(name, value)
        given: Mapping[Any, Any] = headers or {}
        for name, text in given.items():
            if not isinstance(name, str) or not isinstance(text, str) or any(c in name + text for c in "\r\n\0"):
                raise ConfigurationError("a webhook's headers must be single lines of text")
        if secret is not None:
            _key(secret)
        self.events = kinds_of(events or ()) or None
        """The kinds of event that are sent; None is all."""
        self._url, self._secret, self._tls = url, secret, tls
        self._where = f"{parts.scheme}://{parts.hostname}" + (f":{parts.port}" if parts.port else "")
        self._headers = dict(headers or {})
        self._timeout_s, self._attempts = float(timeout_s), attempts
        self._backoff_s, self._backoff_cap_s = float(backoff_s), float(backoff_cap_s)
        self._size, self._details, self._close_s = queue, details, float(close_s)
        self._anew()
        after_fork(self._anew)
        self.delivered = 0
        """Events that were taken."""
        self.given_up = 0
        """Events that were refused, or not taken in all their tries."""
        self.dropped = 0
        """Events that found the queue full, or were left when the program ended."""

    def _anew(self) -> None:
        self._queue: deque[_Delivery] = deque()
        self._some = threading.Condition()
        self._thread: threading.Thread | None = None
        self._hurry = False
        self._chance = random.Random(int.from_bytes(os.urandom(8), "big")).random  # processes must not try in step

    # ── as an observer ───────────────────────────────────────────────────────────────────────────────────────────────

    def __call__(self, event: Event) -> None:
        """Queue one event. Never blocks."""
        delivery = _Delivery("evt_" + os.urandom(12).hex(), event.name, _body(event, details=self._details))
        with self._some:
            self._queue.append(delivery)
            if len(self._queue) > self._size:
                # The one in front may be on its way; the next is the oldest that is not.
                del self._queue[1 if len(self._queue) > 2 else 0]
                self.dropped += 1
            self._hurry = False
            if self._thread is None:
                self._start()
            self._some.notify_all()

    def _start(self) -> None:
        _at_exit(self)
        self._thread = threading.Thread(target=self._run, name="llm-fallback-webhook", daemon=True)
        self._thread.start()

    def flush(self, timeout_s: float = 5.0) -> bool:
        """Wait until everything queued so far is delivered or given up. False when that took too long."""
        with self._some:
            return self._some.wait_for(lambda: not self._queue, timeout_s)

    def drain(self) -> bool:
        """Send what is left, without waiting between tries, for at most `close_s` seconds; then drop the rest."""
        with self._some:
            if not self._queue:
                return True
            self._hurry = True
            self._some.notify_all()
            if self._some.wait_for(lambda: not self._queue, self._close_s):
                return True
            left = len(self._queue)
            self.dropped += left
            self._queue.clear()
            self._some.notify_all()
        _log.warning("%s: %d events were not sent when the router closed", self._where, left)
        return False

    # ── the thread ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _run(self) -> None:
        while True:
            with self._some:
                if not self._some.wait_for(lambda: self._queue, _IDLE_S):
                    self._thread = None
                    return
                delivery = self._queue[0]
            taken = False
            try:
                taken = self._deliver(delivery)
            except Exception:  # noqa: BLE001  # whatever it is, the next event is tried
                _log.exception("%s: %s could not be sent", self._where, delivery.name)
            with self._some:
                if self._queue and self._queue[0] is delivery:  # else it was dropped meanwhile
                    self._queue.popleft()
                    self.delivered += taken
                    self.given_up += not taken
                self._some.notify_all()

    def _deliver(self, delivery: _Delivery) -> bool:
        for attempt in range(self._attempts):
            try:
                self._post(delivery)
            except Undelivered as failure:
                last = attempt + 1 == self._attempts
                if failure.final or last:
                    _log.warning(
                        "%s: gave up %s after %d of %d tries: %s",
                        self._where, delivery.name, attempt + 1, self._attempts, failure,
                    )  # fmt: skip
                    return False
                if not self._pause(delivery, self._wait_s(attempt, failure.retry_after_s)):
                    return False
            else:
                return True
        raise AssertionError("unreachable")

    def _post(self, delivery: _Delivery) -> None:
        stamp = int(time.time())
        headers = {
            **self._headers,
            "content-type": "application/json",
            "user-agent": "llm-fallback",
            "webhook-id": delivery.id,
            "webhook-timestamp": str(stamp),
        }
        if self._secret is not None:
            headers["webhook-signature"] = sign(self._secret, delivery.id, stamp, delivery.body)
        post(self._url, delivery.body, headers, self._timeout_s, self._tls)

    def _wait_s(self, attempt: int, retry_after_s: float | None) -> float:
        """How long to wait after a failed try, counted from 0: full jitter, and what the server asks, up to the cap."""
        full: float = min(self._backoff_cap_s, self._backoff_s * 2.0**attempt)
        return min(self._backoff_cap_s, max(retry_after_s or 0.0, full * self._chance()))

    def _pause(self, delivery: _Delivery, seconds: float) -> bool:
        """Wait, unless there is a hurry; False when the delivery was dropped meanwhile."""
        with self._some:
            self._some.wait_for(lambda: self._hurry or not self._is_first(delivery), seconds)
            return self._is_first(delivery)

    def _is_first(self, delivery: _Delivery) -> bool:
        return bool(self._queue) and self._queue[0] is delivery

    @property
    def waiting(self) -> int:
        """Events that are still to be sent."""
        return len(self._queue)

    def __repr__(self) -> str:
        # Neither the path nor the query: with many services they are the secret.
        counts = f"{self.delivered} delivered, {self.waiting} waiting, {self.given_up} given up, {self.dropped} dropped"
        return f"WebhookHook({self._where!r}, {'signed' if self._secret is not None else 'unsigned'}; {counts})"

    def __reduce__(self) -> Any:
        raise TypeError("a WebhookHook holds a secret and does not travel; build one in the other process")


def _check(name: str, value: Any) -> None:
    if name in ("attempts", "queue"):
        if not is_number(value, least=1, whole=True):
            raise ConfigurationError(f"WebhookHook.{name} must be a whole number of at least 1, not {value!r}")
    elif not is_number(value, least=0) or value >= 86_400 or (value == 0 and name in ("timeout_s", "backoff_cap_s")):
        raise ConfigurationError(f"WebhookHook.{name} must be a number of seconds, not {value!r}")


def _body(event: Event, *, details: bool) -> bytes:
    """An event as JSON: small, without keys, and without a vendor's own words unless they are wanted."""
    facts = {
        name: _plain(value)
        for name, value in event.as_dict().items()
        if details or name not in event.quoted or not isinstance(value, str)
    }
    payload = {"type": facts.pop("event"), "timestamp": facts.pop("at"), "data": facts}
    body = json.dumps(payload, ensure_ascii=True, separators=(",", ":")).encode()
    if len(body) <= 16_384:
        return body
    payload["data"] = {name: value for name, value in facts.items() if not isinstance(value, (list, dict))}
    return json.dumps(payload, ensure_ascii=True, separators=(",", ":")).encode()


def _plain(value: Any) -> Any:
    """What JSON can hold, texts without keys and cut to length."""
    match value:
        case None | bool() | int():
            return value
        case float():
            return value if abs(value) < 1e300 else None  # neither inf nor nan is JSON
        case str():
            text = redact(str(value))
            return text if len(text) <= _LONGEST_TEXT else text[: _LONGEST_TEXT - 1] + "…"
        case Mapping():
            return {str(k)[:100]: _plain(v) for k, v in list(value.items())[:_LONGEST_LIST]}
        case list() | tuple() | set() | frozenset():
            return [_plain(one) for one in list(value)[:_LONGEST_LIST]]
        case _:
            return _plain(str(value))


_left: weakref.WeakSet[WebhookHook] = weakref.WeakSet()


def _at_exit(hook: WebhookHook) -> None:
    if not _left:
        atexit.unregister(_drain_all)
        atexit.register(_drain_all)
    _left.add(hook)


def _drain_all() -> None:
    """A program that ends without closing its router: what is queued still gets its bounded time."""
    for hook in list(_left):
        hook.drain()
