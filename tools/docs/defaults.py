"""Writes the tables that the code knows best: README.md's defaults, failures, providers; a local model's options.

    python -m tools.docs.defaults            write them
    python -m tools.docs.defaults --check    exit with 1, and say where, if a page differs from the code

A table stands between `<!-- NAME -->` and `<!-- /NAME -->`; whatever a hand wrote there is replaced.
"""

from __future__ import annotations

import argparse
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path

from shared_core import (
    BreakerConfig,
    Budget,
    Chain,
    Disposition,
    ErrorKind,
    HealthCheck,
    Hedge,
    Limits,
    RetryPolicy,
    Router,
    Target,
    Timeouts,
    WebhookHook,
)
from shared_core.errors import RULES, Rule, Scope
from shared_core.providers import compatible, registry
from shared_core.providers.llama_cpp.options import Options
from shared_core.router import _DEFAULTS
from shared_core.routing.presets import PRESETS

__all__ = ["TABLES", "main", "rendered"]

ROOT = Path(__file__).parents[2]
PAGES = (
    ROOT / "README.md",
    *(
        ROOT / "docs" / f"{page}.md"
        for page in (
            "circuit-breaker",
            "configuration",
            "events",
            "health",
            "hedging",
            "local-model",
            "rate-limits",
            "retries-and-deadlines",
            "strategies",
        )
    ),
)

# ── the tables ───────────────────────────────────────────────────────────────────────────────────────────────────────


def defaults() -> str:
    """Every option of the three option groups, with its default and its docstring's words."""
    rows = [
        (f"`{group.__name__}.{field.name}`", f"{field.default:g}", _meaning(group, field.name))
        for group in (Timeouts, RetryPolicy, BreakerConfig)
        for field in fields(group)
    ]
    return _table(("option", "default", "meaning"), rows)


SEEN_AS: Mapping[ErrorKind, str] = {
    ErrorKind.OVERLOADED: "503, 529, 'overloaded', also inside a stream",
    ErrorKind.TRANSIENT: "500, 502, 504, a reset before the first byte",
    ErrorKind.CONNECT: "the address refuses, or cannot be reached",
    ErrorKind.TIMEOUT: "silence: no first token, no next one, no whole answer in time",
    ErrorKind.STREAM_CUT: "a stream that ends without its terminal event",
    ErrorKind.MALFORMED: "an answer that is none: HTML, half a JSON, nothing at all",
    ErrorKind.THROTTLED: "429 with or without Retry-After",
    ErrorKind.RAMP: "429: traffic grew too fast",
    ErrorKind.QUOTA_DAY: "429: the day's quota is used up",
    ErrorKind.AUTH: "401, a key that is not valid",
    ErrorKind.BILLING: "402, `insufficient_quota`: no money",
    ErrorKind.FORBIDDEN: "403, a region, a permission",
    ErrorKind.NO_ENTITLEMENT: "a quota of zero",
    ErrorKind.NOT_FOUND: "404: no such model",
    ErrorKind.CONFLICT: "409",
    ErrorKind.CONTEXT_OVERFLOW: "the conversation is longer than the context window",
    ErrorKind.TOO_LARGE: "413, a request larger than this target takes",
    ErrorKind.INCAPABLE: "tools, images or a schema that this target does not have",
    ErrorKind.BAD_REQUEST: "400, 422: the request is malformed",
    ErrorKind.INVALID_OUTPUT: "an answer that does not fit the schema asked for, again after it was shown its mistake",
    ErrorKind.POLICY: "refused for its content (see `route_around_policy`)",
    ErrorKind.CONFIG: "a local model file that does not load",
    ErrorKind.CANCELLED: "the vendor cancelled the request",
    ErrorKind.UNKNOWN: "anything else a vendor comes up with",
}
"""How each kind of failure shows itself, in the order of the table."""


def failures() -> str:
    """What follows from each kind of failure, as the error table has it."""
    missing = set(ErrorKind) - set(SEEN_AS)
    if missing:
        raise SystemExit(f"say in SEEN_AS how these show themselves: {', '.join(sorted(missing))}")
    rules = [(seen, kind, RULES[kind]) for kind, seen in SEEN_AS.items()]
    then = {kind: _then(rule) for _, kind, rule in rules}
    then[ErrorKind.CONNECT] = "one more try at once, which counts for nothing; then the next target"
    rows = [(seen, f"`{kind}`", then[kind], "yes" if rule.trips_breaker else "") for seen, kind, rule in rules]
    return _table(("what happens", "kind", "what follows", "counts for the circuit"), rows)


def _then(rule: Rule) -> str:
    match rule.disposition:
        case Disposition.FAIL:
            return "the error is raised: asking elsewhere would not help"
        case Disposition.INCAPABLE:
            return "a target that can is asked"
        case Disposition.RETRY if rule.prefers_fall_over:
            return "the next target, at once; this one again only when no other is left"
        case Disposition.RETRY if rule.locks:
            wait = RetryPolicy().max_wait_s
            return f"one more try after the wait it names; if that is over {wait:g} s, the next target"
        case Disposition.RETRY:
            return "one more try after a short wait, then the next target"
    if rule.locks is None:
        return "the next target"
    whom = "everything behind that key" if rule.locks is Scope.ACCOUNT else "this target"
    return f"the next target; {whom} is left alone for {rule.lock_s / 60:g} min"


def providers() -> str:
    """Every provider a target may name, where its key is read, and which extra brings its SDK."""
    rows = []
    for name in registry.provider_names():
        entry, (keys, needed) = registry._entry(name), registry._keys(name)  # the registry's own, not for users
        row = compatible.ROWS.get(name)
        where = "this machine" if name == "llamacpp" or (row is not None and row.local) else "hosted"
        if row is not None and row.base_url is None:
            where = "wherever `base_url=` says"
        key = " or ".join(f"`{key}`" for key in keys) + ("" if needed or not keys else ", if it wants one")
        rows.append((f"`{name}:`", where, key or "none", f"`{entry.extra}`"))
    return _table(("target", "runs", "key", "extra"), rows)


def options_of(group: type) -> str:
    """Every option of one group, with its default and its docstring's words."""
    rows = [
        (f"`{field.name}`", "–" if field.default is None else f"`{field.default!r}`", _meaning(group, field.name))
        for field in fields(group)
    ]
    return _table(("option", "default", "meaning"), rows)


def webhook() -> str:
    """Every option of a webhook."""
    parameters = [one for name, one in inspect.signature(WebhookHook.__init__).parameters.items() if name != "self"]
    rows = [
        (
            f"`{one.name}`",
            "" if one.default is one.empty else "–" if one.default is None else f"`{one.default!r}`",
            _meaning(WebhookHook, one.name),
        )
        for one in parameters
    ]
    return _table(("option", "default", "meaning"), rows)


def keywords_of(cls: type, name: str, defaults: Mapping[str, object]) -> str:
    """Every keyword of a class that people build, in the order of its docstring, with its default."""
    told = dict(_told(cls))
    missing = set(defaults) - set(told)
    if missing:
        raise SystemExit(f"{cls.__name__}'s docstring does not say what {min(missing)} is")
    rows = [(f"`{word}`", _shown(defaults[word]), why) for word, why in told.items() if word in defaults]
    return _table((name, "default", "meaning"), rows)


def _told(cls: type) -> Iterator[tuple[str, str]]:
    """What the docstring says under 'Args:' or 'Attributes:', by name; several may share their words."""
    doc = inspect.getdoc(cls) or ""
    part = re.search(r"^(?:Args|Attributes):\n(.*?)(?=^\S|\Z)", doc, re.MULTILINE | re.DOTALL)
    for names, words in re.findall(
        r"^    (\*{0,2}\w+(?:, \w+)*): (.*?)(?=^    \S|\Z)", part[1] if part else "", re.MULTILINE | re.DOTALL
    ):
        for word in names.split(", "):
            yield word, " ".join(words.split()).rstrip(".")


def _shown(value: object) -> str:
    return "–" if value is None or (callable(value) and not isinstance(value, type)) else f"`{value!r}`"


def router_table() -> str:
    """Every keyword of a router but its targets."""
    found = {name: None if name == "continue_prompt" else value for name, value in _DEFAULTS.items()}
    return keywords_of(Router, "keyword", found)


def target_table() -> str:
    """Every keyword of a target that its provider is not told."""
    found = inspect.signature(Target.__init__).parameters.values()
    named = [one for one in found if one.name not in ("self", "model") and one.kind is not one.VAR_KEYWORD]
    return keywords_of(Target, "keyword", {one.name: one.default for one in named})


def group_table(cls: type) -> str:
    """Every option of a group of options that is built by keyword."""
    known = [one for one in fields(cls) if one.init]
    return keywords_of(cls, "option", {one.name: None if one.default is MISSING else one.default for one in known})


def presets() -> str:
    """What each preset sets, beside what holds without one."""
    rows = []
    for group, cls in (("timeouts", Timeouts), ("retry", RetryPolicy), ("breaker", BreakerConfig)):
        for one in fields(cls):
            values = [one.default, *(getattr(getattr(preset, group), one.name) for preset in PRESETS.values())]
            if len(set(values)) > 1:
                rows.append((f"`{group}.{one.name}`", *(f"{value:g}" for value in values)))
    rows.append(
        ("log", "as the program has it", *("every step" if p.verbose else "as without" for p in PRESETS.values()))
    )
    return _table(("option", "without a preset", *(f"`{name}`" for name in PRESETS)), rows)


TABLES: Mapping[str, Callable[[], str]] = {
    "router-options": router_table, "target-options": target_table, "presets": presets,
    "chain-options": lambda: group_table(Chain), "hedge-options": lambda: group_table(Hedge),
    "budget-keywords": lambda: group_table(Budget),
    "health-check": lambda: options_of(HealthCheck), "webhook": webhook,
    "defaults": defaults, "failures": failures, "providers": providers, "local-options": lambda: options_of(Options),
    "breaker-options": lambda: options_of(BreakerConfig), "limits-options": lambda: options_of(Limits),
    "retry-options": lambda: options_of(RetryPolicy), "timeouts-options": lambda: options_of(Timeouts),
}  # fmt: skip
"""What may stand between markers, by name."""

# ── pages ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def rendered(text: str) -> str:
    """`text` with every table between markers as the code has it now."""
    for name, table in TABLES.items():
        body = f"<!-- {name} -->\n\n{table()}\n\n<!-- /{name} -->"
        text = re.sub(rf"<!-- {name} -->.*?<!-- /{name} -->", lambda _, body=body: body, text, flags=re.DOTALL)  # type: ignore[misc]  # a default binds the loop's value
    return text


def main(arguments: Sequence[str] | None = None) -> int:
    """Write or check the pages; 1 if a check found a difference."""
    parser = argparse.ArgumentParser(prog="python -m tools.docs.defaults", description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a page differs")
    check = parser.parse_args(arguments).check
    stale = [page for page in PAGES if rendered(page.read_text(encoding="utf-8")) != page.read_text(encoding="utf-8")]
    for page in stale:
        if not check:
            page.write_text(rendered(page.read_text(encoding="utf-8")), encoding="utf-8")
        print(f"{page.name}: {'differs from the code; run python -m tools.docs.defaults' if check else 'written'}")
    return 1 if check and stale else 0


# ── Markdown ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _meaning(group: type, option: str) -> str:
    """What the class's docstring says under 'Attributes:' of `option`."""
    documented = re.search(rf"^ +{option}: (.*?)(?=^ +\w+: |^\s*$)", group.__doc__ or "", re.MULTILINE | re.DOTALL)
    if documented is None:
        raise SystemExit(f"{group.__name__}'s docstring does not say what {option} is")
    return " ".join(documented[1].split()).rstrip(".")


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


if __name__ == "__main__":
    sys.exit(main())
