"""Many callers at once, two kills: a few seconds of `python -m tools.local_soak`, whose minute is in the evidence."""

from __future__ import annotations

from tools.local_soak import soak


def test_every_answer_is_whole_and_right_or_a_typed_error_and_nothing_is_left_behind(tiny):
    """Sixteen threads and sixteen tasks ask for five seconds; some walk away, some are in a hurry; two kill -9s."""
    found = soak(seconds=5.0, callers=32, kills=2, seed=7)
    assert found["faults"] == []
    assert found["right"] > 20
    assert found["cancelled"] > 0
    assert len(found["killed_at_s"]) == 2
