"""Writes the tables of README.md and docs from docs/evidence/*.json.

    python -m tools.evidence.tables            write them
    python -m tools.evidence.tables --check    exit with 1, and say where, if a page is not what the files say

What stands between an opening comment that says `evidence:` and a name and its closing comment is written here. The
name is that of a table below, or the path of one figure: `faults.cells`.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tools.evidence import record
from tools.evidence.sections import SECTIONS

__all__ = ["TABLES", "UnknownTable", "main", "pages", "render", "stale"]

_BLOCK = re.compile(r"(<!-- evidence:(?P<name>[\w.-]+) -->)(?P<body>.*?)(<!-- /evidence(?::[\w.-]+)? -->)", re.DOTALL)

Load = Callable[[str], dict[str, Any] | None]


class UnknownTable(LookupError):
    """A page asks for a table or figure that does not exist."""


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(value: Any) -> str:
    match value:
        case None:
            return ""
        case bool():
            return "yes" if value else "**no**"
        case int():
            return f"{value:,}"
        case float():
            return f"{value:,.3g}" if abs(value) < 1000 else f"{value:,.0f}"
        case _:
            return str(value).replace("|", "\\|").replace("\n", " ")


def _measured(facts: Mapping[str, Any]) -> str:
    """When, where and with what: the line under a table."""
    machine = facts["machine"]
    size = [f"{machine['cores']} cores"]
    if "memory_gib" in machine:
        size.append(f"{machine['memory_gib']} GiB")
    size.append(machine.get("system", ""))
    if "load_average" in machine:
        size.append(f"load {machine['load_average']}")
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    return f"`{facts['command']}`, {facts['date']}, {', '.join(filter(None, size))}; {versions}."


# ── the tables ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _faults(facts: Mapping[str, Any]) -> str:
    twice = facts["broken_twice"]
    rows = [
        ("fault kinds", facts["fault_kinds"]),
        ("cells: fault × SDK × sync or async × whole or streamed", facts["cells"]),
        ("calls made in them", facts["calls"]),
        ("requests that reached the failing server", facts["requests"]),
        ("**cells not as the error table has it**", facts["mismatches"]),
        ("streams that break twice, over three vendors", twice["cases"]),
        ("**of these, not the exact answer**", twice["mismatches"]),
    ]
    return f"{_table(('what', 'count'), rows)}\n\n{_measured(facts)}"


def _promises(facts: Mapping[str, Any]) -> str:
    """Each promise beside what trying to break it has found."""
    rows = (
        (row["number"], f"{row['promise']} {row['small_print']}", row["figure"], row["holds"], f"`{row['test']}`")
        for row in facts["promises"]
    )
    head = ("", "what we promise", "what was measured", "kept", "the same on every change")
    return f"{_table(head, rows)}\n\n{_measured(facts)}"


def _faults_kinds(facts: Mapping[str, Any]) -> str:
    """The list of sixty-four: cells run, and those that cannot be, by name."""
    if (found := facts.get("kinds")) is None:  # a record from before they were listed
        return _NOT_YET
    rows = [
        ("kinds of fault × 3 wires × sync, async × whole, streamed", found["cells"]),
        ("run, over TLS", found["run"]),
        ("scripts in them: some kinds are several", found["scripts"]),
        ("**not as the error table has it**", found["mismatches"]),
        *((f"{row['kind']}: {row['what']}", row["cells"]) for row in found["checked"]),
        *((f"not run: {row['kind']}: {row['why']}", row["cells"]) for row in found["named"]),
    ]
    return _table(("what", "cells"), rows)


def _faults_by_vendor(facts: Mapping[str, Any]) -> str:
    faces = sorted({row["face"] for row in facts["by_vendor"]})
    vendors = dict.fromkeys(row["vendor"] for row in facts["by_vendor"])
    cells = {(row["vendor"], row["face"]): row for row in facts["by_vendor"]}

    def told(vendor: str, face: str) -> str:
        row = cells.get((vendor, face))
        if row is None:
            return "–"
        return f"{row['cells']}" if not row["mismatches"] else f"{row['cells']}, **{row['mismatches']} not**"

    rows = ((vendor, *(told(vendor, face) for face in faces)) for vendor in vendors)
    return _table(("SDK or endpoint", *faces), rows)


def _faults_mismatches(facts: Mapping[str, Any]) -> str:
    wrong = [
        *((d["cell"], d["known"] or "**unexplained**", d["mismatches"][0]) for d in facts["details"]),
        *((d["case"], "**unexplained**", d["mismatches"][0]) for d in facts["broken_twice"]["details"]),
    ]
    return _table(("cell", "why", "the first of what was not as expected"), wrong) if wrong else "None."


def _deadline(facts: Mapping[str, Any]) -> str:
    head = ("", "ways to run into it", "promised", "p50", "p100", "kept", "an idle sleeper on that machine, p100")
    rows = (
        (
            f"{row['colour']}", row["cells"], f"{row['promise_ms']:g} ms", f"{row['p50_ms']:g} ms",
            f"{row['p100_ms']:g} ms", row["holds"], f"{row['sleeper_p100_ms']:g} ms",
        )
        for row in facts["deadline"]
    )  # fmt: skip
    return _table(head, rows)


_VENDORS = {"openai": "OpenAI", "anthropic": "Anthropic", "google": "Gemini"}


def _langchain_suite(facts: Mapping[str, Any]) -> str:
    """By pair of vendors and fault, over all ways to give them: tests passed of tests run."""
    faults = list(dict.fromkeys(row["fault"] for row in facts["cells"]))
    pairs = dict.fromkeys((row["primary"], row["fallback"]) for row in facts["cells"])
    plain = [row for row in facts["cells"] if row["shape"] == "plain"]
    rows: list[tuple[Any, ...]] = []
    for primary, fallback in pairs:
        mine = [row for row in plain if (row["primary"], row["fallback"]) == (primary, fallback)]
        told = [_of(row for row in mine if row["fault"] == fault) for fault in faults]
        rows.append((f"{_VENDORS[primary]} → {_VENDORS[fallback]}", *told))
    for shape in dict.fromkeys(row["shape"] for row in facts["cells"] if row["shape"] != "plain"):
        mine = [row for row in facts["cells"] if row["shape"] == shape]
        rows.append((f"OpenAI → Anthropic, {shape}", *(_of(r for r in mine if r["fault"] == f) for f in faults)))
    return f"{_table(('the primary', *faults), rows)}\n\n{_measured(facts)}"


def _of(cells: Iterable[Mapping[str, Any]]) -> str:
    found = list(cells)
    passed, tests = (sum(row["with_unit"][key] for row in found) for key in ("passed", "tests"))
    return f"{passed:,} of {tests:,}" if found else "–"


def _langchain_suite_exceptions(facts: Mapping[str, Any]) -> str:
    cells = facts["cells"]
    rows: list[tuple[Any, ...]] = []
    for exception in facts["exceptions"]:
        count = sum(any(e["test"] == exception["test"] for e in row["exceptions"]) for row in cells)
        rows.append((f"`{exception['test']}`", f"{count:,} cells", exception["why"]))
    for row in facts["without_registration"]:
        rows += [(f"`{e['test']}`", "class not registered", e["why"]) for e in row["exceptions"]]
    for row in [*facts["models"], *cells]:
        where = ", ".join(str(row[k]) for k in ("primary", "fallback", "mix", "fault", "shape") if k in row)
        wrong = [e for e in row["exceptions"] if e["outcome"] != "unserved"]
        rows += [(f"`{e['test']}`", where, f"**{e['outcome']}**: {e['why']}") for e in wrong]
    return _table(("test", "where", "why it does not pass"), rows) if rows else "None."


def _langchain_suite_short(facts: Mapping[str, Any]) -> str:
    """By what the primary does."""
    rows = []
    for fault in dict.fromkeys(row["fault"] for row in facts["cells"]):
        mine = [row for row in facts["cells"] if row["fault"] == fault]
        passed, tests = (sum(row["with_unit"][key] for row in mine) for key in ("passed", "tests"))
        unserved = sum(row["unserved"] for row in mine)
        rows.append((fault, len(mine), tests, passed, unserved, tests - passed - unserved))
    head = ("the primary", "models", "tests", "passed", "no target can serve", "failed or skipped")
    return _table(head, rows)


_LLAMAINDEX_MIXES = {"native": "both native", "wrapped": "both ready LLMs"}


def _llamaindex_matrix(facts: Mapping[str, Any]) -> str:
    """By pair of vendors, way to give them, and fault: scenarios passed of scenarios run."""
    faults = list(dict.fromkeys(row["fault"] for row in facts["cells"]))
    cells = {(r["primary"], r["fallback"], r["mix"], r["fault"]): r for r in facts["cells"]}
    rows: list[tuple[Any, ...]] = []
    for primary, fallback, mix in dict.fromkeys(key[:3] for key in cells):
        mine = [cells.get((primary, fallback, mix, fault)) for fault in faults]
        told = ("–" if row is None else f"{row['passed']} of {row['tests']}" for row in mine)
        rows.append((f"{_VENDORS[primary]} → {_VENDORS[fallback]}, {_LLAMAINDEX_MIXES.get(mix, mix)}", *told))
    return f"{_table(('the primary', *faults), rows)}\n\n{_measured(facts)}"


def _llamaindex_matrix_exceptions(facts: Mapping[str, Any]) -> str:
    """What does not pass."""
    rows = [
        (
            told["test"],
            f"{row['primary']} → {row['fallback']}, {row['mix']}, {row['fault']}",
            told["outcome"],
            told["why"],
        )
        for row in facts["cells"]
        for told in row["exceptions"]
    ]
    return _table(("scenario", "where", "outcome", "why"), rows) if rows else "Nothing."


def _llamaindex_scenarios(facts: Mapping[str, Any]) -> str:
    return _table(("scenario", "what it is"), facts["scenarios"].items())


def _local_speed(facts: Mapping[str, Any]) -> str:
    rows = (
        (
            row["name"], _unit(row["value"], row["unit"]), row["peer"], _unit(row["peer_value"], row["unit"]),
            row["ratio"], row.get("limit"), row.get("holds"),
        )
        for row in facts["speed"]
    )  # fmt: skip
    head = ("what", "ours", "beside", "it alone", "ratio", "promise", "kept")
    return f"{_table(head, rows)}\n\n{_measured(facts)}"


_KILLS = {
    "killed_idle": "kill -9 while idle: the next first token",
    "killed_in_the_middle": "kill -9 in an answer: its next text",
    "with_standby_once_ready": "kill -9, a standby loads anew: the first token once it is ready",
}


def _local_control(facts: Mapping[str, Any]) -> str:
    """Letting go, coming back, taking over."""
    rows: list[tuple[Any, ...]] = []

    def told(what: str, engine: str, spread: Mapping[str, Any], promise: str, holds: bool | None) -> None:
        figures = (f"{spread[key]:g} ms" for key in ("p50_ms", "p99_ms", "max_ms"))
        rows.append((what, engine, spread["times"], *figures, promise, holds))

    for engine, found in facts["cancel"].items():
        for who, what in (("caller_free", "the caller is free"), ("model_free", "the model is free")):
            for face, spread in found[who].items():
                what_ = f"{face} caller goes while its prompt is read: {what}"
                told(what_, engine, spread, "p99 <= 50 ms", spread["p99_ms"] <= 50)
    for engine, found in facts["restart"].items():
        for key, what in _KILLS.items():
            told(what, engine, found[key], "<= 600 ms", found[key]["max_ms"] <= 600)
    head = ("what", "engine", "times", "p50", "p99", "worst", "promise", "kept")
    return _table(head, rows)


def _local_prefill(facts: Mapping[str, Any]) -> str:
    found = facts["prefill"]
    waits = found["first_token_after_the_failure_ms"]
    rows: list[tuple[Any, ...]] = [(f"a hosted target fails: first local token, {mode}", f"{ms:g} ms")
                                   for mode, ms in waits.items()]  # fmt: skip
    rows.append(("reading the prompt ahead is faster than being warm by a factor of", found["gain"]))
    for mode, what in (("alone", "without one"), ("prefill", "while one reads ahead")):
        spread = found["hosted_first_token"][mode]
        told = f"{spread['p50_ms']:g} ms, p99 {spread['p99_ms']:g} ms"
        rows.append((f"first token of a hosted target that is well, {what}", told))
    return _table(("what", "figure"), rows)


def _local_holds(facts: Mapping[str, Any]) -> str:
    """Exact continuations, schemas, tool choices."""
    rows: list[tuple[Any, ...]] = [
        (f"{row['what']} cut at every character and gone on with", row["engine"], row["cuts"],
         f"{row['exact']:,} exact", row["exact"] == row["cuts"])
        for row in facts["continuation"]
    ]  # fmt: skip
    words = {
        "valid": "valid", "refused_before": "refused beforehand", "refused_after_check": "refused after the check",
        "cut_by_limit": "cut by the token limit, and said so", "invalid": "**invalid**", "untyped": "**untyped error**",
    }  # fmt: skip
    for row in facts["schemas"]:
        what = f"answers of {row['model']} in {row['schemas']} {row['kind']} schemas"
        told = ", ".join(f"{row[key]} {word}" for key, word in words.items() if row[key])
        rows.append((what, row["engine"], row["samples"], told, not (row["invalid"] or row["untyped"])))
    for engine in dict.fromkeys(row["engine"] for row in facts["tool_choices"]):
        for choice in dict.fromkeys(row["choice"] for row in facts["tool_choices"]):
            mine = [row for row in facts["tool_choices"] if (row["engine"], row["choice"]) == (engine, choice)]
            asked, right, calls, refused = (
                sum(row[key] for row in mine) for key in ("samples", "as_it_should", "calls", "refused_after_check")
            )
            told = f"{right} as they should be, {calls} calls"
            told += f", {refused} refused after the check" if refused else ""
            rows.append((f"tool choice `{choice}`, streamed and whole", engine, asked, told, right + refused == asked))
    return _table(("what", "engine", "times", "came of it", "as promised"), rows)


def _money(facts: Mapping[str, Any]) -> str:
    names = ("overspend", "kills", "bill", "power", "disk", "size")
    crowd, kills, bill, power, disk, size = (facts[name] for name in names)
    after = bill["reconciled"] or {}
    rows = (
        (f"runs of {crowd['processes']} processes at one hard budget", crowd["runs"]),
        ("requests that the server saw in them", crowd["requests"]),
        ("kill -9 of a caller", crowd["killed"]),
        ("**runs in which the server had billed more than the limit**", crowd["overspent"]),
        ("**requests that the server saw and the ledger has no row of**", crowd["requests_without_a_row"]),
        ("of the budget that could be used, in the worst run", f"{crowd['least_used_share']:.1%}"),
        ("kill -9 of a process that reserves, sends and settles as fast as it can", kills["kills"]),
        ("requests that were sent meanwhile", kills["requests"]),
        ("**of these, without a row, or booked otherwise than they were billed**", len(kills["faults"])),
        (f"calls over {bill['wires']} wires: streams, tools, cached tokens, aborted, hedged", bill["calls"]),
        ("**reported cost that is not the bill's, in nano-dollars**", bill["difference_nano"]),
        ("outcomes unknown to the caller, resolved by importing the bill", after.get("unknown_resolved")),
        ("**difference between ledger and bill after that, in nano-dollars**", after.get("difference_nano")),
        ("power cuts: after each write, cut and sync, with losses of several kinds", power["images"]),
        ("**rows that were acknowledged and lost, or half there**", power["lost_or_half"]),
        ("runs on a disk that fails at one write or sync, once or for good", disk["runs"]),
        ("**errors without a type, or rows lost, in them**", disk["lost_or_untyped"]),
        (f"bytes for each of {size['rows']:,} rows", size["bytes_per_row"]),
        *((f"`costs()` of {what}, by every dimension", f"{ms:g} ms") for what, ms in size.get("costs_ms", {}).items()),
    )
    return f"{_table(('what', 'figure'), rows)}\n\n{_measured(facts)}"


def _cache(facts: Mapping[str, Any]) -> str:
    keys, flights, entries, crowd = (facts[name] for name in ("keys", "flights", "entries", "processes"))
    rows = [
        (f"pairs of requests that differ in one of {keys['fields']} fields, or only in writing", keys["compared"]),
        ("**pairs whose keys say otherwise**", keys["wrong"]),
        ("calls, a thousand identical ones at once, over real sockets", flights["calls"]),
        ("of these cancelled while they waited", flights["left"]),
        ("requests that the server saw", flights["requests"]),
        ("**calls that stayed and were not answered**", flights["failed"]),
        ("entries with a bit changed, an end cut off, or under another key", entries["spoiled"]),
        ("**of these that could be read**", entries["served"]),
        ("steps of targets that open, go and come back, beside a plain model", facts["standing_in"]["steps"]),
        ("**answers that were not those of whom the request would go to**", facts["standing_in"]["wrong"]),
        (f"looks into a file by {crowd['processes']} processes; {crowd['killed']} were killed", crowd["looks"]),
        ("**wrong or unreadable entries in them**", crowd["wrong"] + crowd["poisoned"]),
    ]
    speed = [(r["name"], _unit(r["value"], r["unit"]), r["limit"] or "") for r in facts["speed"]]
    figures = _table(("what", "figure"), rows)
    return f"{figures}\n\n{_table(('what', 'median', 'promise'), speed)}\n\n{_measured(facts)}"


_MET = {"refused": "where it is configured", "load": "when it is loaded", "answer": "by the first answer"}


def _local_bad_files(facts: Mapping[str, Any]) -> str:
    found = facts["bad_files"]
    rows = [(name, _MET.get(row["met"], f"**{row['met']}**"), row["said"], row["as_expected"])
            for name, row in found["table"].items()]  # fmt: skip
    counts = (
        ("damaged headers, each used as a target", found["mutants"]),
        ("refused where they are configured", found["refused_by_the_reader"]),
        ("refused by llama.cpp, with its reason", found["refused_by_llama_cpp"]),
        ("ended llama.cpp's process; an error with its last words here", found["killed_its_process"]),
        ("failed when asked, with a typed error", found["failed_when_asked"]),
        ("loaded and answered: the damage does not matter", found["loaded_and_answered"]),
        ("**errors without a reason**", found["errors_without_a_reason"]),
        ("**other exceptions, or the end of this program**", found["untyped_errors"]),
    )
    return f"{_table(('what', 'count'), counts)}\n\n{_table(('file', 'refused', 'what is said', 'as expected'), rows)}"


def _local_soak(facts: Mapping[str, Any]) -> str:
    found = facts["soak"]
    errors = ", ".join(f"{count} × {name}" for name, count in found["typed_errors"].items()) or "none"
    rows = (
        ("callers, threads and tasks mixed", found["callers"]),
        ("for", f"{found['seconds']:g} s"),
        ("right answers", found["right"]),
        ("requests that were walked away from", found["cancelled"]),
        ("typed errors", errors),
        ("kill -9 of the worker, at", ", ".join(f"{at:g} s" for at in found["killed_at_s"])),
        ("an answer takes, waiting included", f"{found['answer_p50_ms']:g} ms, p99 {found['answer_p99_ms']:g} ms"),
        ("the event loop is late by", f"p99 {found['loop_stall_p99_ms']:g} ms, max {found['loop_stall_max_ms']:g} ms"),
        ("… and that of a process which does nothing else",
         f"p99 {found['idle_process_stall_p99_ms']:g} ms, max {found['idle_process_stall_max_ms']:g} ms"),
        ("growth of this process's memory", f"{found['memory_growth_mib']:g} MiB"),
        ("**wrong answers, untyped errors, callers that hang, processes, threads and descriptors left**",
         "none" if not found["faults"] else "; ".join(found["faults"])),
    )  # fmt: skip
    return _table(("what", "figure"), rows)


def _bench(facts: Mapping[str, Any]) -> str:
    rows = (
        (
            row["name"], _unit(row["value"], row["unit"]), row["peer"], _unit(row["peer_value"], row["unit"]),
            row["ratio"], row.get("limit"), row.get("holds"),
        )
        for row in facts["rows"]
    )  # fmt: skip
    return f"{_table(('what', 'ours', 'beside', 'theirs', 'ratio', 'promise', 'kept'), rows)}\n\n{_measured(facts)}"


def _unit(value: float | None, unit: str) -> str:
    return "" if value is None else f"{_cell(value)} {unit}"


def _mutants(facts: Mapping[str, Any]) -> str:
    rows = [("mutants", facts["total"]), ("killed", facts["killed"])]
    survivors = facts.get("survivors") or []
    rows.append(("alive, each explained", len(survivors)))
    return f"{_table(('what', 'count'), rows)}\n\n{_measured(facts)}"


def _simulation(facts: Mapping[str, Any]) -> str:
    """One table per trouble."""
    head = ("who asks", "answered", "packets to the troubled one, per call", "p50", "p95", "p99", "per 1,000 answers")
    parts = []
    for trouble in facts["troubles"]:
        rows = [
            (
                f"**{row['who']}**" if row["ours"] else row["who"],
                f"{row['availability']:.2%}",
                row["packets_per_call"],
                *(_unit(row[share], "s") for share in ("p50_s", "p95_s", "p99_s")),
                f"${row['usd_per_1000']:.2f}",
            )
            for row in trouble["rows"]
        ]
        parts.append(f"Ten minutes of {trouble['scenario']}:\n\n{_table(head, rows)}")
    return "\n\n".join([*parts, _measured(facts)])


def _simulation_worlds(facts: Mapping[str, Any]) -> str:
    worlds, speed = facts["worlds"], facts["speed"]
    rows = [
        ("random worlds, one per seed", worlds["seeds"]),
        ("requests in them", worlds["requests"]),
        ("packets", worlds["packets"]),
        ("**worlds in which a promise was broken**", worlds["broken"]),
        ("requests simulated per minute of processor time, all well", int(speed["healthy_requests_per_minute"])),
        ("the same, through an outage", int(speed["outage_requests_per_minute"])),
        *(
            (f"packets per call to a dead target over ten minutes ({dead['kind']})", f"{dead['packets_per_call']:.3f}")
            for dead in facts["dead_target"]
        ),
    ]
    return _table(("what", "count"), rows)


def _readme(load: Load) -> str:
    """The claims a reader meets first: what was counted, measured and compared, each in a line."""
    rows: list[tuple[Any, ...]] = []
    if (faults := load("faults")) is not None:
        wrong = faults["mismatches"]
        what = f"{faults['fault_kinds']} kinds of fault × SDKs × sync, async × whole, streamed, over real sockets"
        rows.append((what, f"{faults['cells']:,} cells, {wrong} not as the error table has it"))
        twice = faults["broken_twice"]
        exact = f"{twice['cases'] - twice['mismatches']} of {twice['cases']} exact"
        rows.append(("streams that break twice and go on with a third vendor", exact))
        for row in faults["deadline"]:
            figure = f"{row['p100_ms']:g} ms (promised {row['promise_ms']:g} ms)"
            rows.append((f"latest return after a deadline, {row['colour']}", figure))
    if (suite := load("langchain_suite")) is not None:
        what = "LangChain's standard tests, for every model and with its primary well and failing"
        wrong = suite["failed"] + suite["skipped"]
        told = f"{suite['passed']:,} of {suite['tests_run']:,} pass, {wrong} fail or are skipped"
        rows.append((what, f"{told}, {suite['unserved']} ask what no live target can do"))
    if (matrix := load("llamaindex_matrix")) is not None:
        what = "engines, agents and extractors of LlamaIndex, for every model and with its primary well and failing"
        wrong = matrix["failed"] + matrix["skipped"] + matrix["unserved"]
        rows.append((what, f"{matrix['passed']:,} of {matrix['tests_run']:,} pass, {wrong} fail or are skipped"))
    if (local := load("local")) is not None:
        exact, cuts = (sum(row[key] for row in local["continuation"]) for key in ("exact", "cuts"))
        rows.append(("local answers cut at a character that go on as if they were not", f"{exact:,} of {cuts:,}"))
        bad = local["bad_files"]
        files = bad["mutants"] + len(bad["table"])
        lived = files - bad["untyped_errors"] - bad["errors_without_a_reason"]
        rows.append(("bad model files, each a typed error with its reason or no matter", f"{lived} of {files}"))
    if (worlds := (load("simulation") or {}).get("worlds")) is not None:
        what = f"random worlds simulated, {worlds['requests']:,} requests in them: a promise was broken in"
        rows.append((what, f"{worlds['broken']} of {worlds['seeds']:,}"))
    if (money := load("money")) is not None:
        rows.extend(_readme_money(money))
    if (bench := load("bench")) is not None:
        rows.extend(_readme_bench(bench["rows"]))
    if (mutants := load("mutants")) is not None:
        figure = f"{mutants['killed']:,} of {mutants['total']:,}"
        rows.append(("small changes to the core that its tests notice", figure))
    return _table(("what", "figure"), rows) if rows else _NOT_YET


def _readme_money(money: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if (crowds := money.get("overspend")) is not None:
        what = f"crowds of {crowds['processes']} processes, killed at random, under one hard budget: limits overspent"
        yield what, f"{crowds['overspent']} of {crowds['runs']:,} (at least {crowds['least_used_share']:.1%} used)"
    if (kills := money.get("kills")) is not None:
        yield (
            "requests without a row on disk after `kill -9`",
            f"{kills['missing_rows']} after {kills['kills']:,} kills",
        )
    if (bill := money.get("bill")) is not None:
        what = f"ledger and bill of {bill['calls']:,} mixed calls, three wires: difference"
        yield what, f"{bill['difference_nano']} nano-dollars"


_FAMILIES = (
    # what several measurements are together in the first table; how their names begin; which of them tells the worst
    ("a decision, for each target of 2 to 100, every strategy", ("a decision adds per target",), max),
    ("FallbackChatModel, whole answers, well or not, with tools or without", ("FallbackChatModel.",), max),
    ("FallbackChatModel, a chunk, well or not, with tools or without", ("a chunk of FallbackChatModel.",), max),
    ("FallbackLLM.chat adds", ("FallbackLLM.",), max),
    ("a chunk of FallbackLLM.stream_chat adds", ("a chunk of FallbackLLM.",), max),
    ("a local answer through worker and router", ("100 tokens", "400 tokens", "1600 tokens"), min),
)


def _readme_bench(measured: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """What something is promised of; families of it in one line each, by the worst of them."""
    promised = [row for row in measured if row["limit"] is not None]  # the page of evidence has the rest
    told: set[str] = set()
    for row in promised:
        family = next((family for family in _FAMILIES if row["name"].startswith(family[1])), None)
        if family is None:
            yield row["name"], _against(row, row["holds"])
            continue
        name, begins, worst = family
        if name in told:
            continue
        told.add(name)
        members = [other for other in promised if other["name"].startswith(begins)]
        compared = "ratio" in row["limit"]
        of = worst(members, key=lambda member: member["ratio" if compared else "value"])
        kept = sum(bool(member["holds"]) for member in members)
        yield f"{name}: the worst of {len(members)}", _against(of, of["holds"], f", {kept} of {len(members)} kept it")


def _against(row: Mapping[str, Any], holds: bool | None, more: str = "") -> str:
    """A figure, its peer's, and the promise."""
    beside = f", {row['peer']}: {_unit(row['peer_value'], row['unit'])}" if row["peer"] else ""
    ratio = f"ratio {row['ratio']:.3g}, " if "ratio" in row["limit"] else ""
    kept = more if more and not holds else "" if holds else ", not kept in this run"
    return f"{_unit(row['value'], row['unit'])}{beside} ({ratio}promised {row['limit'].removeprefix('ratio ')}{kept})"


_NOT_YET = "*Not measured yet: `make evidence`.*"

TABLES: Mapping[str, tuple[str, Callable[[Mapping[str, Any]], str]]] = {
    "faults": ("faults", _faults),
    "faults-by-vendor": ("faults", _faults_by_vendor),
    "faults-kinds": ("faults", _faults_kinds),
    "faults-mismatches": ("faults", _faults_mismatches),
    "deadline": ("faults", _deadline),
    "promises": ("promises", _promises),
    "langchain-suite": ("langchain_suite", _langchain_suite),
    "langchain-suite-exceptions": ("langchain_suite", _langchain_suite_exceptions),
    "langchain-suite-short": ("langchain_suite", _langchain_suite_short),
    "llamaindex-matrix": ("llamaindex_matrix", _llamaindex_matrix),
    "llamaindex-matrix-exceptions": ("llamaindex_matrix", _llamaindex_matrix_exceptions),
    "llamaindex-scenarios": ("llamaindex_matrix", _llamaindex_scenarios),
    "local-speed": ("local", _local_speed),
    "local-control": ("local", _local_control),
    "local-prefill": ("local", _local_prefill),
    "local-holds": ("local", _local_holds),
    "local-bad-files": ("local", _local_bad_files),
    "local-soak": ("local", _local_soak),
    "money": ("money", _money),
    "cache": ("cache", _cache),
    "bench": ("bench", _bench),
    "simulation": ("simulation", _simulation),
    "simulation-worlds": ("simulation", _simulation_worlds),
    "mutants": ("mutants", _mutants),
}
"""Name of a table: the section it is written from, and what writes it. `readme` is written from all of them."""


# ── pages ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def render(text: str, load: Load = record.load) -> str:
    """A page with its tables as the files have them.

    Raises:
        UnknownTable: it asks for one that does not exist.
    """

    def block(match: re.Match[str]) -> str:
        name = match["name"]
        if name in TABLES or name == "readme":
            return f"{match[1]}\n{_named(name, load)}\n{match[4]}"
        return f"{match[1]}{_figure(name, load)}{match[4]}"

    return _BLOCK.sub(block, text)


def _named(name: str, load: Load) -> str:
    if name == "readme":
        return _readme(load)
    section, write = TABLES[name]
    facts = load(section)
    return _NOT_YET if facts is None else write(facts)


def _figure(path: str, load: Load) -> str:
    section, *keys = path.split(".")
    if section not in SECTIONS or not keys:
        raise UnknownTable(f"there is no table or figure {path!r}; tables: readme, {', '.join(TABLES)}")
    found: Any = load(section)
    if found is None:
        return _NOT_YET
    for key in keys:
        try:
            found = found[int(key)] if isinstance(found, list) else found[key]
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise UnknownTable(f"{section}.json has no {'.'.join(keys)!r}") from error
    return _cell(found)


def pages(root: Path = record.ROOT) -> list[Path]:
    """README.md and every page of docs."""
    return [page for page in [root / "README.md", *sorted((root / "docs").rglob("*.md"))] if page.exists()]


def stale(root: Path = record.ROOT) -> list[str]:
    """Pages whose tables are not what the files say, and pages that ask for what does not exist."""
    wrong = []
    for page in pages(root):
        text = page.read_text(encoding="utf-8")
        name = page.relative_to(root).as_posix()
        try:
            if render(text) != text:
                wrong.append(f"{name}: its tables are not what docs/evidence says")
        except UnknownTable as error:
            wrong.append(f"{name}: {error}")
    return wrong


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the pages, or check them."""
    parser = argparse.ArgumentParser(prog="python -m tools.evidence.tables", description="Write the evidence's tables.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if something would change")
    if parser.parse_args(arguments).check:
        wrong = stale()
        told = [*wrong, "hint: python -m tools.evidence.tables"] if wrong else ["evidence: pages are up to date"]
        print("\n".join(told))
        return 1 if wrong else 0
    for page in pages():
        text = page.read_text(encoding="utf-8")
        new = render(text)
        if new != text:
            page.write_text(new, encoding="utf-8")
            print(f"written: {page.relative_to(record.ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
