"""The wires, and which of them a request is for."""

from __future__ import annotations

from collections.abc import Mapping

from shared_core.testing.fault_server._faults import WireName
from shared_core.testing.fault_server._wires.anthropic import AnthropicWire
from shared_core.testing.fault_server._wires.base import Ask, Frame, VendorError, Wire
from shared_core.testing.fault_server._wires.google import GoogleWire
from shared_core.testing.fault_server._wires.openai import OpenAIWire

WIRE_BY_NAME: Mapping[WireName, Wire] = {"openai": OpenAIWire(), "anthropic": AnthropicWire(), "google": GoogleWire()}


def wire_for(path: str, headers: Mapping[str, str]) -> Wire:
    """The wire of a request, told by its path; where two share one (`/v1/models`), by the vendor's headers."""
    if path.endswith("/chat/completions"):
        return WIRE_BY_NAME["openai"]
    if path.endswith(("/messages", "/messages/count_tokens")):
        return WIRE_BY_NAME["anthropic"]
    if path.rsplit(":", 1)[-1] in {"generateContent", "streamGenerateContent", "countTokens"}:
        return WIRE_BY_NAME["google"]
    if "anthropic-version" in headers:
        return WIRE_BY_NAME["anthropic"]
    if "x-goog-api-key" in headers or path.startswith(("/v1beta/", "/v1alpha/")):
        return WIRE_BY_NAME["google"]
    return WIRE_BY_NAME["openai"]


__all__ = ["WIRE_BY_NAME", "Ask", "Frame", "VendorError", "Wire", "wire_for"]
