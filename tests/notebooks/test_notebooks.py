"""The notebooks run from top to bottom, offline, and are committed with the outputs of such a run."""

from __future__ import annotations

from itertools import groupby

import nbformat
import pytest

from tests.house import snippets
from tests.timing import timed
from tools.docs import notebooks

BOOKS = sorted(notebooks.FOLDER.glob("*.ipynb"))

OFFLINE = snippets._PRELUDE  # the same guard that examples in Markdown run under


def outputs(book):
    """What kinds of output each code cell has, in order. In how many pieces it printed is the machine's to say."""
    kinds = [
        [sorted(output.get("data", {})) or [output.output_type] for output in cell.outputs]
        for cell in book.cells
        if cell.cell_type == "code"
    ]
    return [[kind for kind, _ in groupby(cell)] for cell in kinds]


def texts(book):
    """Everything a cell printed, in one piece, or returned as plain text."""
    for cell in book.cells:
        for kind, group in groupby(cell.get("outputs", ()), lambda output: output.output_type):
            found = [output.get("text") or output.get("data", {}).get("text/plain", "") for output in group]
            yield from ["".join(found)] if kind == "stream" else found


def test_there_is_a_quick_start():
    """Without it the tests below would pass by having nothing to do."""
    assert "01_quickstart.ipynb" in [book.name for book in BOOKS]


@pytest.mark.slow
@pytest.mark.parametrize("path", BOOKS, ids=lambda path: path.stem)
@timed  # several show what happens when time runs out
def test_a_notebook_runs_in_a_fresh_kernel_and_comes_out_as_it_is_committed(path):
    """No cell raises, no address but this machine's is reached, and the committed outputs are of the same kinds."""
    fresh = notebooks.execute(path, before=OFFLINE)
    assert outputs(fresh) == outputs(nbformat.read(path, as_version=4)), "run python -m tools.docs.notebooks"
    assert not any("Traceback" in text or "Warning" in text for text in texts(fresh))
    if path.stem == "01_quickstart":
        assert "'100% of the requests got the right answer'" in list(texts(fresh))
        assert list(texts(fresh)).count("True") == 1, "the continued stream is the whole text"
    if path.stem == "02_langchain":
        said = list(texts(fresh))
        assert said.count("True") == 2, "three answers of the chain, and the continued stream"
        assert "['Bern', 'Oslo']" in said, "each tool ran once"
        assert "(Order(drink='tea', cups=12), Order(drink='tea', cups=12))" in said
    if path.stem == "04_local_model":
        said = list(texts(fresh))
        assert "True" in said, "the answer whose process was killed is the uncut one"
        assert any(" | " in text and text.startswith("A circuit breaker") for text in said), "and it was cut"
        assert "41 of 41 cuts went on exactly as the uncut answer does\n" in said
        assert "12" in said, "every caller was served"
        assert "{'name': 'Uma', 'age': 44, 'city': 'Hanoi'}" in said
        assert "get_weather {'city': 'Lima'}\nIt is 21 degrees and sunny in Lima.\n" in said
    if path.stem == "05_strategies":
        said = list(texts(fresh))
        assert any(text.endswith("'with a limit': 0}") for text in said), "the vendor never had to say 429"
        assert "()" in said, "a strategy of one's own broke no promise"
    if path.stem == "06_watch_a_breaker":
        said = "".join(texts(fresh))
        assert "most at one moment: 1\n" in said, "a herd of fifty sends one probe"
        assert ", True)" in said, "the second vendor stepped in"
        assert "held open: anthropic:claude-haiku-4-5 serves; after reset: openai:gpt-5-mini\n" in said
    if path.stem == "07_costs_budgets_cache":
        said = list(texts(fresh))
        assert any(text.endswith("of $0.05: never more\n") for text in said), "the hard budget held"
        assert any("again: 0 corrections\n" in text for text in said), "importing the bill twice changes nothing"
        assert any(" answers from the cache: " in text for text in said)
    if path.stem == "03_llamaindex":
        said = list(texts(fresh))
        assert sum("".join(said).count(word) for word in ("Helsinki", "BlueKite", "every 6 hours")) >= 3
        assert "True" in said, "the continued answer stands in the handbook"
        assert any(" | " in text and "Outside the opening hours" in text for text in said)
        assert "['price', 'stock']" in said, "each tool ran once"
        assert "Shipping(standard_days=3, express_euros=12, free_over=50, carrier='BlueKite')" in said


@pytest.mark.parametrize("path", BOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_committed_with_tables_and_a_plot(path):
    """Whoever only looks at it sees what it is about."""
    kinds = {kind for cell in outputs(nbformat.read(path, as_version=4)) for output in cell for kind in output}
    assert {"image/png", "text/html"} <= kinds
