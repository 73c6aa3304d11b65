"""Twelve conversations begun at each of six vendors, in every form LangChain leaves them, go on at each target."""

from __future__ import annotations

import pytest
from langchain_core.messages import AIMessage

from tests.history.checks import check, said
from tests.history.histories import HISTORIES
from tests.history.origins import FORMS, ORIGINS, SIGNATURE, Said, Turn
from tests.history.targets import TARGETS


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("form", FORMS)
def test_every_history_of_every_origin_goes_on_at_every_target(form: str, target: str) -> None:
    """The body obeys the wire, nothing said is lost without a record, and the caller's messages stay as they were."""
    to = TARGETS[target]
    vendor = form.partition(",")[0]
    served = 0
    for name, build in HISTORIES.items():
        body = check(build(FORMS[form]), to)
        if body is None:
            assert name == "pictures", name
            continue
        served += 1
        if vendor != to.vendor and not (vendor == "openai" and to.vendor == "responses"):
            assert "«secret»" not in said(body), f"{name}: a foreign thought"
            assert SIGNATURE not in said(body), f"{name}: a foreign signature"
    assert served >= len(HISTORIES) - 1


def _roundtrip(turn: Turn) -> AIMessage:
    return turn(Said("x"))


def test_the_forms_are_what_langchain_leaves() -> None:
    """Not our idea of them: each comes out of the integration's own parser."""
    for name, turn in ORIGINS.items():
        message = _roundtrip(turn)
        assert message.text == "x"
        if name != "llamacpp":
            assert message.response_metadata["model_provider"], name
