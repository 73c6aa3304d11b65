"""What the LangChain tests share."""

from __future__ import annotations

import ssl
from collections.abc import Iterator

import pytest

from shared_core.testing import FaultServer


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as running:
        yield running


@pytest.fixture
def without_certificates(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that make many clients: each would read the store of certificates, though none speaks TLS here."""
    monkeypatch.setattr(ssl.SSLContext, "load_verify_locations", lambda *args, **kwargs: None)
