"""Certificates made at run time with nothing but the standard library: no key is kept in a file or a repository.

An authority and the certificates that it signs are ECDSA over P-256 with SHA-256 (FIPS 186-4, RFC 5280), in the few
DER types these need. Good for loopback and tests, and for nothing else: the arithmetic takes no care to hide its time.
"""

from __future__ import annotations

import atexit
import base64
import functools
import hashlib
import ipaddress
import secrets
import ssl
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Authority", "authority"]

DOMAIN = "fault-server.test"
"""Names under it are the server's own; `.test` is reserved, so that nobody else has them (RFC 6761)."""
_DAY_S = 86_400.0

# ── P-256 ────────────────────────────────────────────────────────────────────────────────────────────────────────────

_P = 0xFFFFFFFF00000001000000000000000000000000FFFFFFFFFFFFFFFFFFFFFFFF
_N = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
_G = (
    0x6B17D1F2E12C4247F8BCE6E563A440F277037D812DEB33A0F4A13945D898C296,
    0x4FE342E2FE1A7F9B8EE7EB4A7C0F9E162BCE33576B315ECECBB6406837BF51F5,
)
_Point = tuple[int, int] | None


def _add(one: _Point, other: _Point) -> _Point:
    if one is None or other is None:
        return other if one is None else one
    (x1, y1), (x2, y2) = one, other
    if x1 == x2:
        if (y1 + y2) % _P == 0:
            return None
        slope = (3 * x1 * x1 - 3) * pow(2 * y1, -1, _P)
    else:
        slope = (y2 - y1) * pow(x2 - x1, -1, _P)
    x = (slope * slope - x1 - x2) % _P
    return x, (slope * (x1 - x) - y1) % _P


def _times(scalar: int, point: _Point) -> tuple[int, int]:
    total: _Point = None
    while scalar:
        if scalar & 1:
            total = _add(total, point)
        point = _add(point, point)
        scalar >>= 1
    assert total is not None  # only a multiple of the order gives nothing
    return total


@dataclass(frozen=True, slots=True, repr=False)
class _Key:
    secret: int
    public: bytes

    @classmethod
    def make(cls) -> _Key:
        secret = 1 + secrets.randbelow(_N - 1)
        x, y = _times(secret, _G)
        return cls(secret, b"\x04" + x.to_bytes(32, "big") + y.to_bytes(32, "big"))

    def sign(self, message: bytes) -> bytes:
        digest = int.from_bytes(hashlib.sha256(message).digest(), "big")
        while True:
            nonce = 1 + secrets.randbelow(_N - 1)
            r = _times(nonce, _G)[0] % _N
            s = pow(nonce, -1, _N) * (digest + r * self.secret) % _N
            if r and s:
                return _sequence(_integer(r), _integer(s))

    @property
    def name(self) -> bytes:
        """What certificates call it by."""
        return hashlib.sha1(self.public, usedforsecurity=False).digest()

    def pem(self) -> str:
        curve = _der(0xA0, _CURVE) + _der(0xA1, _bits(self.public))
        return _pem("EC PRIVATE KEY", _sequence(_integer(1), _der(0x04, self.secret.to_bytes(32, "big")), curve))


# ── DER ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _der(tag: int, body: bytes) -> bytes:
    size = len(body)
    if size < 0x80:
        return bytes([tag, size]) + body
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(length)]) + length + body


def _sequence(*parts: bytes) -> bytes:
    return _der(0x30, b"".join(parts))


def _integer(value: int) -> bytes:
    return _der(0x02, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def _bits(data: bytes, unused: int = 0) -> bytes:
    return _der(0x03, bytes([unused]) + data)


def _oid(dotted: str) -> bytes:
    first, second, *rest = (int(part) for part in dotted.split("."))
    body = bytes([40 * first + second])
    for number in rest:
        digits = [number & 0x7F]
        while number := number >> 7:
            digits.append(0x80 | number & 0x7F)
        body += bytes(reversed(digits))
    return _der(0x06, body)


def _instant(at: float) -> bytes:
    moment = time.gmtime(at)
    if moment.tm_year < 2050:  # RFC 5280: until then years are written with two digits
        return _der(0x17, time.strftime("%y%m%d%H%M%SZ", moment).encode())
    return _der(0x18, time.strftime("%Y%m%d%H%M%SZ", moment).encode())


def _pem(what: str, data: bytes) -> str:
    text = base64.encodebytes(data).decode()
    return f"-----BEGIN {what}-----\n{text}-----END {what}-----\n"


_CURVE = _oid("1.2.840.10045.3.1.7")
_KEY_KIND = _sequence(_oid("1.2.840.10045.2.1"), _CURVE)
_SIGNED_BY = _sequence(_oid("1.2.840.10045.4.3.2"))
_CRITICAL = b"\x01\x01\xff"


def _title(name: str) -> bytes:
    return _sequence(_der(0x31, _sequence(_oid("2.5.4.3"), _der(0x0C, name.encode()))))


def _extension(oid: str, value: bytes, *, critical: bool = False) -> bytes:
    return _sequence(_oid(oid), _CRITICAL if critical else b"", _der(0x04, value))


# ── certificates ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _certificate(
    key: _Key, title: str, issuer: _Key, issuer_title: str, since: float, until: float, extensions: Sequence[bytes]
) -> str:
    known_by = (
        _extension("2.5.29.14", _der(0x04, key.name)),
        _extension("2.5.29.35", _sequence(_der(0x80, issuer.name))),
    )
    body = _sequence(
        _der(0xA0, _integer(2)),  # version 3
        _integer(1 + secrets.randbits(120)),
        _SIGNED_BY,
        _title(issuer_title),
        _sequence(_instant(since), _instant(until)),
        _title(title),
        _sequence(_KEY_KIND, _bits(key.public)),
        _der(0xA3, _sequence(*extensions, *known_by)),
    )
    return _pem("CERTIFICATE", _sequence(body, _SIGNED_BY, _bits(issuer.sign(body))))


class Authority:
    """Signs the server's certificates. `ca_pem` is what a client must trust; `ca_file` is the same as a file."""

    def __init__(self) -> None:
        now = time.time()
        self._now = now
        self._key = _Key.make()
        self._title = "FaultServer's own authority"
        basic = _extension("2.5.29.19", _sequence(b"\x01\x01\xff"), critical=True)
        usage = _extension("2.5.29.15", _bits(b"\x06", 1), critical=True)  # signs certificates and revocations
        self.ca_pem = _certificate(
            self._key, self._title, self._key, self._title, now - _DAY_S, now + 365 * _DAY_S, (basic, usage)
        )

    @functools.cached_property
    def ca_file(self) -> str:
        """A file that holds `ca_pem`, for `SSL_CERT_FILE`; it is gone when the process ends."""
        with tempfile.NamedTemporaryFile("w", prefix="fault-server-", suffix=".pem", delete=False) as file:
            file.write(self.ca_pem)
        atexit.register(Path(file.name).unlink, missing_ok=True)
        return file.name

    def _context(self, names: Sequence[str], since: float, until: float, alpn: Sequence[str]) -> ssl.SSLContext:
        key = _Key.make()
        called = b"".join(_name(name) for name in names)
        extensions = (
            _extension("2.5.29.17", _sequence(called)),
            _extension("2.5.29.37", _sequence(_oid("1.3.6.1.5.5.7.3.1"))),  # for servers
            _extension("2.5.29.15", _bits(b"\x80", 7), critical=True),
        )
        leaf = _certificate(key, names[-1], self._key, self._title, since, until, extensions)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.set_alpn_protocols(list(alpn))
        # `ssl` reads keys from files only; this one lives for as long as it takes.
        with tempfile.TemporaryDirectory(prefix="fault-server-") as folder:
            chain = Path(folder) / "chain.pem"
            chain.touch(mode=0o600)
            chain.write_text(key.pem() + leaf, encoding="ascii")
            context.load_cert_chain(chain)
        return context

    @functools.cached_property
    def good(self) -> ssl.SSLContext:
        """For loopback and the server's own names, from yesterday for a year; HTTP/1.1 only."""
        return self._context(_NAMES, self._now - _DAY_S, self._now + 365 * _DAY_S, ["http/1.1"])

    @functools.cached_property
    def http2(self) -> ssl.SSLContext:
        """The same, offering HTTP/2 too."""
        return self._context(_NAMES, self._now - _DAY_S, self._now + 365 * _DAY_S, ["h2", "http/1.1"])

    @functools.cached_property
    def expired(self) -> ssl.SSLContext:
        """Ended an hour ago."""
        return self._context(_NAMES, self._now - 30 * _DAY_S, self._now - _DAY_S / 24, ["http/1.1"])

    @functools.cached_property
    def misnamed(self) -> ssl.SSLContext:
        """Somebody else's."""
        names = (f"elsewhere.{DOMAIN}.invalid",)
        return self._context(names, self._now - _DAY_S, self._now + 365 * _DAY_S, ["http/1.1"])


_NAMES = ("127.0.0.1", "localhost", f"*.{DOMAIN}")


def _name(name: str) -> bytes:
    try:
        return _der(0x87, ipaddress.ip_address(name).packed)
    except ValueError:
        return _der(0x82, name.encode())


_lock = threading.Lock()
_made: list[Authority] = []


def authority() -> Authority:
    """This process's one authority: a client that trusts it trusts every server."""
    with _lock:  # servers and clients ask for it from threads of their own
        if not _made:
            _made.append(Authority())
        return _made[0]
