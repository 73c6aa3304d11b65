"""The counting of mutants: what is a kill, what explains a survivor, and when the count is good."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tools.mutants.run import FILES, LOOP, ROOT, TESTS
from tools.mutants.survivors import Explanation, Mutant, Report, change, explanations, function, status

WHY = Explanation("a.py", "f", "x = 1", "x = 2", "nobody reads x")


def mutants(killed=0, *others):
    return [*(Mutant("a.py", "f", "killed") for _ in range(killed)), *others]


ALIVE = Mutant("a.py", "f", "survived", "x = 1", "x = 2")


@pytest.mark.parametrize(
    ("exit_code", "expected"),
    [
        *[(1, "killed"), (3, "killed"), (-24, "timeout"), (36, "timeout")],
        *[(0, "survived"), (33, "survived"), (5, "survived")],
        *[(None, "unknown"), (-9, "unknown"), (2, "unknown"), (77, "unknown")],
    ],
)
def test_only_a_failed_test_or_a_test_without_end_is_a_kill(exit_code, expected):
    assert status(exit_code) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("shared_core.routing.flow.x_flow__mutmut_31", "flow"),
        ("shared_core.routing.flow.x__mine__mutmut_1", "_mine"),
        ("shared_core.routing.seam.xǁSeamǁ_may_overlap__mutmut_3", "Seam._may_overlap"),
        ("shared_core.resilience.retry.xǁRetryPolicyǁ__post_init____mutmut_2", "RetryPolicy.__post_init__"),
    ],
)
def test_a_function_is_called_what_its_author_called_it(name, expected):
    assert function(name) == expected


def test_a_change_is_its_lines_without_numbers_and_indentation():
    diff = "--- a.py\n+++ a.py\n@@ -3,4 +3,3 @@\n def f():\n-    if x:\n-        return -1\n+    return +1\n     y"
    assert change(diff) == ("if x:\nreturn -1", "return +1")


def test_an_explanation_is_found_by_file_function_and_line_wherever_the_line_stands():
    report = Report(mutants(99, ALIVE), [WHY])
    assert report.unexplained == []
    assert report.good
    for other in (
        Mutant("b.py", "f", "survived", "x = 1", "x = 2"),
        Mutant("a.py", "g", "survived", "x = 1", "x = 2"),
        Mutant("a.py", "f", "survived", "x = 1", "x = 3"),
    ):
        assert Report(mutants(99, other), [WHY]).unexplained == [other]


def test_it_is_good_from_ninety_eight_per_cent_on_and_only_with_everything_explained():
    assert Report(mutants(49, ALIVE), [WHY]).good
    assert not Report(mutants(48, ALIVE), [WHY]).good, "explained ones count as alive"
    assert not Report(mutants(99, ALIVE), []).good
    assert not Report([], []).good, "nothing counted is nothing shown"


def test_what_never_ran_cannot_be_explained_away():
    never = Mutant("a.py", "f", "unknown", "x = 1", "x = 2")
    assert Report(mutants(99, never), [WHY]).unexplained == [never]


def test_an_explanation_of_what_is_dead_is_stale_and_one_of_a_file_not_looked_at_is_not():
    elsewhere = Explanation("b.py", "f", "x = 1", "x = 2", "…")
    assert Report(mutants(1), [WHY, elsewhere]).stale == [WHY]


def test_the_table_and_the_facts_count_the_same():
    other = Mutant("b.py", "g", "timeout")
    report = Report(mutants(2, ALIVE, other), [WHY])
    assert [line.split() for line in report.table().splitlines()] == [
        ["file", "mutants", "killed", "survived", "explained", "unexplained", "killed", "%"],
        ["a.py", "3", "2", "1", "1", "0", "66.7"],
        ["b.py", "1", "1", "0", "0", "0", "100.0"],
        ["all", "4", "3", "1", "1", "0", "75.0"],
    ]
    facts = report.facts()
    assert (facts["total"], facts["killed"], facts["killed_by_time_limit"], facts["killed_percent"]) == (4, 3, 1, 75.0)
    assert facts["survivors"] == [
        {"file": "a.py", "function": "f", "was": "x = 1", "now": "x = 2", "why": "nobody reads x"}
    ]


def test_an_explanation_may_cover_several_changes_of_a_line_and_must_give_a_reason(tmp_path):
    page = tmp_path / "survivors.toml"
    entry = '[[survivor]]\nfile = "a.py"\nfunction = "f"\nwas = "x = 1"\nnow = ["x = 2", "x = None"]\nwhy = "{}"\n'
    page.write_text(entry.format("so"))
    assert [(e.now, e.why) for e in explanations(page)] == [("x = 2", "so"), ("x = None", "so")]
    page.write_text(entry.format(" "))
    with pytest.raises(ValueError, match="why"):
        explanations(page)
    page.write_text(entry.format("so").replace("was", "What"))
    with pytest.raises(ValueError, match="an entry is"):
        explanations(page)


def test_what_is_written_about_survivors_is_about_lines_that_are_there():
    """So that an explanation does not outlive its line."""
    for e in explanations():
        assert e.file in FILES
        lines = {line.strip() for line in (ROOT / e.file).read_text(encoding="utf-8").splitlines()}
        assert set(e.was.splitlines()) <= lines, e


def test_the_files_and_tests_it_runs_are_there():
    assert [name for name in (*FILES, *TESTS) if not (ROOT / name).is_file()] == []


def test_every_mutant_is_tested_by_itself_and_one_that_nobody_calls_is_seen(tmp_path):
    pytest.importorskip("mutmut", reason="mutmut is in the stable world only")
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "__init__.py").write_text("")
    (tmp_path / "shop" / "till.py").write_text(
        "def change(paid, price):\n    return paid - price\n\n\ndef rounded(sum):\n    return sum + 0\n\n\n"
        "def unheard_of(sum):\n    return sum + 1\n"
    )
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_till.py").write_text(
        "from shop.till import change, rounded\n\n\ndef test_change():\n    assert change(5, 3) == 2\n\n\n"
        "def test_rounded():\n    assert rounded(0) == 0\n"
    )
    (tmp_path / "pyproject.toml").write_text(
        '[tool.mutmut]\nsource_paths = ["shop/till.py"]\npytest_add_cli_args_test_selection = ["tests/test_till.py"]\n'
        'pytest_add_cli_args = ["-p", "no:cacheprovider"]\nalso_copy = ["shop", "tests"]\n'
    )
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "PYTHONPATH"))}
    done = subprocess.run(
        [sys.executable, "-P", str(LOOP), "2"],
        cwd=tmp_path,
        env=environ,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    ended = dict(line.split() for line in (tmp_path / "results.txt").read_text().splitlines())
    assert {name.removeprefix("shop.till.x_"): status(int(code)) for name, code in ended.items()} == {
        "change__mutmut_1": "killed",  # +
        "rounded__mutmut_1": "survived",  # - 0
        "rounded__mutmut_2": "killed",  # + 1
        "unheard_of__mutmut_1": "survived",
        "unheard_of__mutmut_2": "survived",
    }
