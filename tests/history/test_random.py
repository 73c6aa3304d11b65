"""Conversations by chance, from a fixed seed: more than ten thousand pairs of a history and a target."""

from __future__ import annotations

import pytest

from tests.history.judge import Score, judge
from tests.history.targets import TARGETS

HISTORIES = 840
PIECES = 8
"""The run is cut in pieces, so that none takes long and a failure names its own."""


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("piece", range(PIECES))
def test_any_history_goes_on_at_any_target(piece: int) -> None:
    """Valid on the wire, whole, the same when made again, and the caller's messages stay as they were."""
    score = Score()
    for seed in range(piece, HISTORIES, PIECES):
        judge(seed, score)
    assert score.cases == score.histories * len(TARGETS) == HISTORIES // PIECES * len(TARGETS)
    assert score.incapable < score.cases // 20, "most conversations can go anywhere"


def test_the_run_is_as_long_as_it_says() -> None:
    """Ten thousand cases at least, also where a world leaves an integration out."""
    assert len(TARGETS) * HISTORIES >= 10_000
