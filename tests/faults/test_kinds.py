"""The sixty-four kinds of fault over TLS, one wire in every way a call can be made: the gate of every change."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from shared_core.testing import FAULTS
from tests.faults import kinds, matrix, oracle

pytestmark = pytest.mark.provider

GATE = tuple(os.environ.get("FAULT_WIRES", "openai").split(","))
"""The wire of the gate; `FAULT_WIRES=openai,anthropic,google` runs all 768 cells."""


@pytest.fixture(scope="module")
def bench() -> Iterator[matrix.Bench]:
    with matrix.Bench(tls=True) as bench:
        yield bench.warm()


def test_there_are_sixty_four_in_seven_hundred_and_sixty_eight_cells():
    """Each has its number and lines of the oracle that exist; every cell is run, or says why not."""
    assert [kind.number for kind in kinds.KINDS] == list(range(1, 65))
    assert len({kind.title for kind in kinds.KINDS}) == 64
    cells = kinds.cells()
    assert len(cells) == 768
    assert all(bool(cell.lines) is not bool(cell.why_not) for cell in cells)
    named = [cell for cell in cells if cell.why_not]
    assert len(named) == 22, "18 of whole answers, that have no events, and 4 of a limit that Gemini does not have"
    for cell in cells:
        for line in cell.lines:
            assert line.fault in oracle.ORACLE
            row = FAULTS[oracle.kind_name(line.fault)]
            assert matrix.VENDORS[cell.vendor].wire in row.wires, cell.id
            assert row.whole if cell.shape == "whole" else row.streamed, cell.id


@pytest.mark.parametrize("cell", [cell for cell in kinds.cells(*GATE) if not cell.why_not], ids=lambda cell: cell.id)
def test_every_kind_is_as_the_error_table_has_it(cell, bench):
    """Class, packets on the wire, waits, what breaker and locks have learned, and what the ledger says was spent."""
    assert kinds.run(cell, bench) == []
