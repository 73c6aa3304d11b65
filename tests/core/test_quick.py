"""Frozen dataclasses made quickly are those that their own constructor makes."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, dataclass, field, fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared_core import ChatRequest, user
from shared_core.chat.events import Finished, Usage
from shared_core.chat.quick import quickly, varied
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


@given(st.fixed_dictionaries({}, optional={"a": st.integers(), "b": st.text(), "d": st.none() | st.integers()}))
def test_a_variant_made_quickly_is_that_of_the_usual_way(changes: dict[str, Any]) -> None:
    old = Sample(1, "x", [2], d=3)
    made = varied(Sample)(old, changes)
    assert type(made) is Sample
    assert made == replace(old, **changes)
    assert old == Sample(1, "x", [2], d=3)


def test_a_variant_of_a_request_is_checked_and_knows_its_fields() -> None:
    asked = ChatRequest((user("Hello"),), temperature=0.5)
    for changes in ({"cache": "refresh"}, {"constraints": {"local_only": True}}, {"messages": (user("x"),), "seed": 1}):
        assert told(asked.replace(**changes)) == told(replace(asked, **changes))
    with pytest.raises(InvalidRequest, match="temperature"):
        asked.replace(temperature=3)
    with pytest.raises(TypeError, match="tempreature"):
        asked.replace(tempreature=1)
    assert asked.temperature == 0.5


def test_a_variant_of_somebody_elses_kind_of_request_is_of_that_kind() -> None:
    class Mine(ChatRequest):
        pass

    assert type(Mine((user("Hello"),)).replace(seed=1)) is Mine
