"""Whole or honest: every fault x vendor x colour x shape, over real SDKs and real sockets, against the oracle."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults import matrix, oracle
from tests.timing import timed

pytestmark = pytest.mark.provider


@pytest.fixture(scope="module")
def bench() -> Iterator[matrix.Bench]:
    with matrix.Bench() as bench:
        yield bench.warm()


def test_the_oracle_speaks_of_every_fault_the_server_knows():
    """A new fault kind cannot be forgotten; `status` is met as two statuses that no row names."""
    assert oracle.uncovered() == set()


def _case(cell: matrix.Cell) -> object:
    reason = matrix.known_defect(cell)
    return pytest.param(cell, id=cell.id, marks=[pytest.mark.xfail(reason=reason, strict=True)] if reason else [])


@pytest.mark.parametrize("cell", [_case(cell) for cell in matrix.cells()])
@timed
def test_whole_or_honest(cell, bench):
    """Beside a healthy target the exact answer, once; without one a typed error that names every attempt."""
    assert matrix.run_cell(cell, bench).mismatches == ()


@pytest.mark.parametrize("case", matrix.legs(), ids=lambda case: case.id)
def test_a_stream_that_breaks_twice_is_still_one_answer(case, bench):
    """The first vendor breaks off, the second goes on and breaks off, the third ends it."""
    assert matrix.run_legs(case, bench) == []
