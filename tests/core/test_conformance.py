"""The contract of a provider, checked by the check we ship; the check itself, by providers that break each rule."""

from __future__ import annotations

import pytest

from shared_core import Continued, ErrorKind, Finished, Restarted, Started, TextDelta, ToolCall
from shared_core.testing import ContractBroken, ScriptedProvider, check_provider


def test_a_scripted_provider_keeps_the_contract():
    provider = ScriptedProvider("one two three")
    check_provider(provider)
    assert provider.calls == 6
    assert provider.open == 0


def test_the_sync_face_alone_can_be_checked():
    provider = ScriptedProvider([ToolCall("1", "look"), Finished("tool_calls")])
    check_provider(provider, is_async=False)
    assert provider.calls == 3


@pytest.mark.parametrize(
    ("script", "violation"),
    [
        ([TextDelta("x")], "sync, whole: it ended without Finished"),
        ([TextDelta("x"), Finished(), Finished()], "Finished must come once, and last"),
        ([Finished(), TextDelta("x")], "Finished must come once, and last"),
        ([TextDelta(""), TextDelta("x"), Finished()], "an empty TextDelta"),
        ([Started(), Finished()], "the answer is empty"),
        ([TextDelta("x"), Continued("t", 1), Finished()], "Continued is the router's to say"),
        ([Restarted("t"), TextDelta("x"), Finished()], "Restarted is the router's to say"),
        (["text", Finished()], "'text' is not a ChatEvent"),
        (ErrorKind.TRANSIENT, "async, streamed: it raised"),
    ],
)
def test_every_rule_that_is_broken_is_named(script, violation):
    with pytest.raises(ContractBroken, match="breaks its contract") as caught:
        check_provider(ScriptedProvider(script))
    assert violation in str(caught.value)
    assert len(caught.value.violations) >= 4, "each face is judged"


def test_attributes_closing_and_mutation_are_judged_too():
    class Odd(ScriptedProvider):
        local = "yes"
        origin = None

    with pytest.raises(ContractBroken) as caught:
        check_provider(Odd())
    assert caught.value.violations == ("local must be a bool", "origin must be an Origin")

    class Unclosable(ScriptedProvider):
        def stream(self, request, guard):
            return iter(list(super().stream(request, guard)))

        def close(self):
            raise OSError("stuck")

    with pytest.raises(ContractBroken) as caught:
        check_provider(Unclosable())
    assert caught.value.violations == (
        "sync: its iterator cannot be closed",
        "close raised OSError('stuck')",
        "a second close raised OSError('stuck')",
    )

    class Meddling(ScriptedProvider):
        def stream(self, request, guard):
            object.__setattr__(request, "messages", ())
            yield from super().stream(request, guard)

    with pytest.raises(ContractBroken, match="messages were changed"):
        check_provider(Meddling("x"), is_async=False)
