"""What is kept of other conversations, and how the text of a fast model is passed on; both without a model."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared_core.providers.llama_cpp.kv_store import SavedState, StateStore, common_prefix
from shared_core.providers.llama_cpp.worker import Teller

TOKENS = st.lists(st.integers(0, 2), max_size=12)


@given(TOKENS, TOKENS)
def test_the_common_beginning_is_the_longest_there_is(a, b):
    same = common_prefix(a, b)
    assert a[:same] == b[:same]
    assert same == min(len(a), len(b)) or a[same] != b[same]


@pytest.mark.parametrize("seed", range(5))
def test_a_store_finds_the_best_and_never_outgrows_its_limit(seed):
    rng = random.Random(seed)
    store, kept = StateStore(100), []
    for _ in range(60):
        tokens = [rng.randrange(2) for _ in range(rng.randrange(1, 9))]
        state = SavedState(tokens, None, rng.randrange(1, 120))
        store.put(state)
        kept = [s for s in [*kept, state] if s in store._states]
        assert store.size == sum(s.size for s in kept) <= 100
        wanted = [rng.randrange(2) for _ in range(8)]
        found, longest = store.best(wanted)
        assert longest == max((common_prefix(s.tokens, wanted) for s in kept), default=0)
        assert (found is None) == (longest == 0)


def test_what_was_not_used_for_longest_goes_first_and_a_longer_talk_takes_its_own_place():
    store = StateStore(30)
    for first in (1, 2, 3):
        store.put(SavedState([first, 0], None, 10))
    assert store.best([1, 0, 5])[1] == 2  # used
    store.put(SavedState([4, 0], None, 10))
    assert [store.best([first, 0])[1] for first in (1, 2, 3, 4)] == [2, 0, 2, 2]
    store.put(SavedState([4, 0, 7], None, 10))
    assert len(store) == 3


def told(*steps: tuple[float, str]) -> list[dict]:
    """What a teller sends for texts that come after so many milliseconds each, and the end."""
    sent: list[dict] = []
    now = [0.0]
    teller = Teller(7, sent.append, clock=lambda: now[0])
    teller({"ev": "start"})
    for after_ms, piece in steps:
        now[0] += after_ms / 1000
        teller({"ev": "text", "t": piece})
    teller({"ev": "done"})
    assert all(message["id"] == 7 for message in sent)
    return [message.get("t", message["ev"]) for message in sent]


def test_the_text_of_a_slow_model_is_sent_as_it_comes():
    assert told((5, "a"), (5, "b"), (4.1, "c")) == ["start", "a", "b", "c", "done"]


def test_the_text_of_a_fast_model_comes_in_larger_pieces_the_first_at_once_and_nothing_is_lost():
    assert told((1, "a"), (1, "b"), (1, "c"), (1, "d"), (2, "e"), (1, "f")) == [
        "start", "a", "bcde", "f", "done",
    ]  # fmt: skip
