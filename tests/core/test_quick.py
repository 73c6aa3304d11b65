"""Frozen dataclasses made quickly are those that their own constructor makes."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, dataclass, field, fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared_core import ChatRequest, user
from shared_core.chat.events import Finished, Usage
from shared_core.chat.quick import quickly
from shared_core.errors import InvalidRequest
from shared_core.ledger.entry import EntryStatus, LedgerEntry
from shared_core.routing.planner import Plan

ARGUMENTS: dict[type, tuple[Any, ...]] = {
    ChatRequest: ((user("Hello"),),),
    LedgerEntry: ("x-1", 1, "a", "p", "m", 1.5, "answered", EntryStatus.POSTED, Usage(1, 2), 3),
    Finished: ("stop", None, Usage(1, 2)),
    Plan: ((), (("a", "disabled"),), "cost"),
}


def told(value: Any) -> dict[str, Any]:
    return {f.name: getattr(value, f.name) for f in fields(value)}


@pytest.mark.parametrize("cls", ARGUMENTS, ids=lambda cls: cls.__name__)
def test_a_value_made_quickly_is_the_same_and_is_frozen(cls: Any) -> None:
    made, usual = quickly(cls)(*ARGUMENTS[cls]), cls(*ARGUMENTS[cls])
    assert type(made) is cls
    assert told(made) == told(usual)
    assert repr(made) == repr(usual)
    with pytest.raises(FrozenInstanceError):
        setattr(made, fields(cls)[0].name, None)


@dataclass(frozen=True, slots=True)
class Sample:
    a: int
    b: str = "b"
    c: list[int] = field(default_factory=list)
    d: int | None = field(default=None, kw_only=True)


@given(st.integers(), st.none() | st.text(), st.none() | st.lists(st.integers()), st.none() | st.integers())
def test_defaults_factories_and_keywords_are_those_of_the_class(a: int, b: Any, c: Any, d: Any) -> None:
    given_ = {name: value for name, value in (("b", b), ("c", c), ("d", d)) if value is not None}
    assert quickly(Sample)(a, **given_) == Sample(a, **given_)
    assert quickly(Sample)(a).c is not quickly(Sample)(a).c


def test_what_the_class_refuses_is_refused() -> None:
    with pytest.raises(InvalidRequest):
        quickly(ChatRequest)(())
    with pytest.raises(TypeError):
        quickly(Sample)()  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        quickly(Sample)(1, e=2)  # type: ignore[call-arg]
