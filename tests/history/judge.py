"""One random conversation at every target: the property that `make test` and `make soak` try."""

from __future__ import annotations

import copy
import random
from dataclasses import dataclass

from tests.history.checks import look, said
from tests.history.random_histories import History, history
from tests.history.targets import TARGETS, To, request_of

TYPED_EVERY, TWICE_EVERY = 8, 4
"""How often a body is also held against the SDK's types, and made a second time: both cost more than the rest."""


@dataclass
class Score:
    """What was tried."""

    histories: int = 0
    cases: int = 0
    """Pairs of a history and a target."""
    incapable: int = 0
    """Cases whose target said that it cannot take a file."""


class Broken(AssertionError):
    """A rule did not hold; the message says for which seed and target."""


def judge(seed: int, score: Score) -> None:
    """Make the conversation of `seed`, and send it nowhere, to every target.

    Raises:
        Broken: something did not hold.
    """
    made = history(random.Random(seed))
    before = copy.deepcopy(made.messages)
    request = request_of(made.messages)
    score.histories += 1
    for to in TARGETS.values():
        score.cases += 1
        try:
            body = look(made.messages, request, to, typed=seed % TYPED_EVERY == 0, twice=seed % TWICE_EVERY == 0)
            if body is None:
                score.incapable += 1
            else:
                _thoughts_stay(made, said(body), to)
        except Exception as error:
            raise Broken(f"seed {seed}, target {to.name}: {type(error).__name__}: {error}") from error
    if made.messages != before:
        raise Broken(f"seed {seed}: the caller's messages were changed")


def _thoughts_stay(made: History, text: str, to: To) -> None:
    """A thought is shown to the model that had it, at the address where it had it, and to nobody else."""
    for mark, writer in made.thoughts.items():
        if mark in text:
            assert writer.partition(",")[0] == to.vendor, f"{mark}, a thought of {writer}, is shown to {to.name}"
    for address in made.sources:
        assert address in text, f"the source {address} is lost at {to.name}"
