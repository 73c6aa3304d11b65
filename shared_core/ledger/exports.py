"""Vendors' usage and cost exports, read into one shape: what was billed for each day and model.

Known by their own fields: OpenAI's usage and costs (the pages of the organization API, and the dashboard's CSV),
Anthropic's usage and cost reports (the pages of the admin API, and the console's CSV), and any table with a day, a
model and a cost.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from os import PathLike, fspath
from typing import Any

from shared_core.errors import ConfigurationError, InvalidExport
from shared_core.routing.price import NANO

__all__ = ["Billed", "ExportLike", "model_key", "read_export"]

ExportLike = str | PathLike[str] | Mapping[str, Any] | Iterable[Mapping[str, Any]]
"""A path to a .json, .jsonl, .csv or .tsv file, a parsed page, or the pages or rows of one."""


@dataclass(frozen=True, slots=True)
class Billed:
    """What a vendor says of one UTC day and model. None: it does not say."""

    day: date
    model: str
    """As the vendor names it; empty where the export is not told by model."""
    cost_nano: int | None = None
    input_tokens: int | None = None
    """All of them, cached and cache-written ones included, as in `Usage`."""
    output_tokens: int | None = None
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    requests: int | None = None

    def __add__(self, other: Billed) -> Billed:
        return Billed(
            self.day,
            self.model,
            _sum(self.cost_nano, other.cost_nano),
            _sum(self.input_tokens, other.input_tokens),
            _sum(self.output_tokens, other.output_tokens),
            self.cached_tokens + other.cached_tokens,
            self.cache_write_tokens + other.cache_write_tokens,
            _sum(self.requests, other.requests),
        )


def _sum(a: int | None, b: int | None) -> int | None:
    return b if a is None else a if b is None else a + b


# ── names ────────────────────────────────────────────────────────────────────────────────────────────────────────────

_DATED = re.compile(r"[-@ ](\d{4}-\d{2}-\d{2}|20\d{6}|latest)$")


def model_key(name: str) -> str:
    """A model's name without what bills and answers differ in: "gpt-4o-mini-2024-07-18" is "gpt-4o-mini", and "Claude
    Haiku 4.5" is "claude-haiku-4-5"."""
    plain = _DATED.sub("", name.strip().lower())
    return re.sub(r"[\s._]+", "-", plain)


# ── where a value stands ─────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class _Place:
    """Of a value in a file, for an error."""

    file: str
    line: int | None = None
    path: tuple[str | int, ...] = ()
    text: str | None = None

    def wrong(self, column: str, said: str) -> InvalidExport:
        """The error that names the place."""
        path = (*self.path, *(column.split(".") if column and (self.text is not None or self.path) else ()))
        line = self.line
        if line is None and self.text is not None:
            line = _line_of(self.text, path)
        named = _dotted(path) if path else column
        where = f"{self.file}:{line}" if line is not None else self.file
        return InvalidExport(f"{where}: {named}: {said}", line=line, column=named)


def _dotted(path: Sequence[str | int]) -> str:
    told = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
    return told.removeprefix(".")


def _line_of(text: str, path: Sequence[str | int]) -> int | None:
    """The line that the value at `path` begins in, or the last one on the way to it that there is."""
    decoder, at = json.JSONDecoder(), _skip(text, 0)
    for step in path:
        found = None
        if text[at : at + 1] == "{":
            at = _skip(text, at + 1)
            while text[at : at + 1] == '"':
                key, at = decoder.raw_decode(text, at)
                value = _skip(text, _skip(text, at) + 1)
                if key == step:
                    found = value
                    break
                _, at = decoder.raw_decode(text, value)
                at = _skip(text, _skip(text, at) + 1)
        elif text[at : at + 1] == "[" and isinstance(step, int):
            at = _skip(text, at + 1)
            for _ in range(step):
                _, at = decoder.raw_decode(text, at)
                at = _skip(text, _skip(text, at) + 1)
            found = at
        if found is None:
            break
        at = found
    return text.count("\n", 0, at) + 1


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at


# ── values ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _tokens(row: Mapping[str, Any], name: str, place: _Place) -> int | None:
    value = row.get(name)
    if value is None or value == "":
        return None
    try:
        number = Decimal(str(value).replace(",", "").strip())
    except ArithmeticError:
        number = Decimal("NaN")
    if isinstance(value, bool) or not number.is_finite() or number < 0 or number != number.to_integral_value():
        raise place.wrong(name, f"{value!r} is no count of tokens")
    return int(number)


def _money(value: Any, name: str, place: _Place, *, unit: int = NANO) -> int | None:
    """Nano-dollars; `unit` is how many of them one of what stands there is."""
    if value is None or value == "":
        return None
    text = str(value).strip().replace(",", "").removeprefix("$")
    try:
        number = Decimal(text)
    except ArithmeticError:
        number = Decimal("NaN")
    if isinstance(value, bool) or not number.is_finite() or abs(number) > 10**12:
        raise place.wrong(name, f"{value!r} is no amount of money")
    return int((number * unit).to_integral_value())


def _dollars(currency: Any, name: str, place: _Place) -> None:
    if currency not in (None, "") and str(currency).strip().lower() != "usd":
        raise place.wrong(name, f"{currency!r}: only amounts in USD can be compared with the ledger")


def _day(value: Any, name: str, place: _Place) -> date:
    """The UTC day of a bucket's start: seconds since the epoch, or a date or time as text."""
    text = str(value).strip() if value is not None else ""
    try:
        if text and re.fullmatch(r"\d{9,11}(\.0*)?", text):
            return datetime.fromtimestamp(float(text), UTC).date()
        found = datetime.fromisoformat(text.replace("/", "-").removesuffix(" UTC"))
    except (ValueError, OverflowError, OSError):
        raise place.wrong(name, f"{value!r} is no day; expected such as 2026-11-20 or 1795132800") from None
    return (found.astimezone(UTC) if found.tzinfo else found).date()


def _of_line_item(item: Any) -> str:
    """The model in a line item: "gpt-4o-mini-2024-07-18, cached input", "evals | gpt-4o-mini, input"."""
    text = str(item or "").rpartition("|")[2].strip()
    model = text.rpartition(",")[0].strip() if "," in text else text
    return re.sub(r" (text|audio|image)$", "", model)


# ── shapes ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _openai_result(row: Mapping[str, Any], day: date, place: _Place) -> Billed:
    amount = row.get("amount")
    if amount is not None or "costs" in str(row.get("object", "")):
        if amount is not None and not isinstance(amount, Mapping):
            raise place.wrong("amount", f"{amount!r} is not an object with value and currency")
        amount = amount or {}
        _dollars(amount.get("currency"), "amount.currency", place)
        return Billed(day, _of_line_item(row.get("line_item")), _money(amount.get("value"), "amount.value", place) or 0)
    if "input_tokens" not in row:
        raise place.wrong("input_tokens", "it is missing; neither a usage nor a costs result of OpenAI's")
    return Billed(
        day,
        str(row.get("model") or ""),
        None,
        _tokens(row, "input_tokens", place) or 0,
        _tokens(row, "output_tokens", place) or 0,
        _tokens(row, "input_cached_tokens", place) or 0,
        0,
        _tokens(row, "num_model_requests", place),
    )


def _anthropic_result(row: Mapping[str, Any], day: date, place: _Place) -> Billed:
    if "amount" in row:
        _dollars(row.get("currency"), "currency", place)
        # In the lowest unit of the currency: "123.45" is $1.2345.
        cost = _money(row["amount"], "amount", place, unit=NANO // 100) or 0
        return Billed(day, str(row.get("model") or ""), cost)
    if "uncached_input_tokens" not in row:
        raise place.wrong("uncached_input_tokens", "it is missing; neither a usage nor a cost result of Anthropic's")
    creation = row.get("cache_creation")
    if isinstance(creation, Mapping):
        inside = _Place(place.file, place.line, (*place.path, "cache_creation"), place.text)
        written = sum(_tokens(creation, name, inside) or 0 for name in creation)
    else:
        written = sum(_tokens(row, f"cache_creation_{age}_input_tokens", place) or 0 for age in ("5m", "1h"))
    cached = _tokens(row, "cache_read_input_tokens", place) or 0
    fresh = _tokens(row, "uncached_input_tokens", place) or 0
    return Billed(
        day, str(row.get("model") or ""), None, fresh + cached + written, _tokens(row, "output_tokens", place) or 0,
        cached, written,
    )  # fmt: skip


_DAYS = (
    "start_time", "start_time_iso", "starting_at", "usage_date_utc", "date", "day", "timestamp", "created",
    "created_at",
)  # fmt: skip
_MODELS = ("model", "model_version", "line_item", "model_name")
_COSTS = ("amount_value", "cost_usd", "cost", "amount", "amount_usd", "cost_in_usd", "total_cost", "total_cost_usd")
_INPUT = ("input_tokens", "prompt_tokens")
_OUTPUT = ("output_tokens", "completion_tokens", "usage_output_tokens")
_FRESH = ("usage_input_tokens_no_cache", "uncached_input_tokens")
_CACHED = (
    "input_cached_tokens", "cached_tokens", "cached_input_tokens", "usage_input_tokens_cache_read",
    "cache_read_input_tokens",
)  # fmt: skip
_WRITTEN = (
    "usage_input_tokens_cache_write_5m", "usage_input_tokens_cache_write_1h", "usage_input_tokens_cache_write",
    "cache_creation_5m_input_tokens", "cache_creation_1h_input_tokens", "cache_creation_input_tokens",
    "input_cache_write_tokens", "cache_write_tokens",
)  # fmt: skip


def _first(row: Mapping[str, Any], names: Sequence[str]) -> str | None:
    """The first of these columns that there is, one that is filled before one that is not."""
    there = [name for name in names if name in row]
    return next((name for name in there if row[name] not in (None, "")), there[0] if there else None)


def _column(name: Any) -> str:
    """A column's name as the tables above have it: `Cost (USD)` is `cost_usd`."""
    return _NOT_A_WORD.sub("_", str(name).lower()).strip("_")


_NOT_A_WORD = re.compile(r"[^a-z0-9]+")


def _day_column(row: Mapping[str, Any], place: _Place) -> str:
    """The column with the day, of a table that has one, and a figure too."""
    when = _first(row, _DAYS)
    if when is None:
        raise place.wrong("date", f"there is no day; a table needs one of {', '.join(_DAYS)}")
    figures = (*_COSTS, *_FRESH, *_INPUT, *_OUTPUT)
    if _first(row, figures) is None:
        raise place.wrong(
            "cost_usd", f"there is no cost nor count of tokens; a table needs one of {', '.join(figures)}"
        )
    return when


def _table_row(row: Mapping[str, Any], place: _Place) -> Billed | None:
    """A row of a table, by the names of its columns; None for a day without figures."""
    when = _day_column(row, place)
    day = _day(row[when], when, place)
    model = _first(row, _MODELS)
    name = "" if model is None else str(row[model] or "")
    if model == "line_item":
        name = _of_line_item(name)
    cost = _first(row, _COSTS)
    if cost is not None:
        currency = _first(row, ("amount_currency", "currency"))
        if currency is not None:
            _dollars(row[currency], currency, place)
        nano = _money(row[cost], cost, place)
    else:
        nano = None
    cached = _tokens(row, _first(row, _CACHED) or "", place) or 0
    written = sum(_tokens(row, column, place) or 0 for column in _WRITTEN if column in row)
    fresh, total, out = (_first(row, names) for names in (_FRESH, _INPUT, _OUTPUT))
    if fresh is not None:
        # Of the rest of a table with fresh tokens, cached and written ones are not part.
        known = _tokens(row, fresh, place)
        tokens = None if known is None else known + cached + written
    else:
        tokens = _tokens(row, total or "", place)
    output = _tokens(row, out or "", place)
    requests = _first(row, ("num_model_requests", "requests"))
    if nano is None and tokens is None and output is None:
        return None
    return Billed(day, name, nano, tokens, output, cached, written, _tokens(row, requests or "", place))


def _bucket(bucket: Mapping[str, Any], place: _Place) -> Iterator[Billed]:
    results = bucket.get("results", bucket.get("result"))
    if not isinstance(results, list):
        raise place.wrong("results", "it is missing, or not a list")
    anthropic = "starting_at" in bucket
    when = "starting_at" if anthropic else "start_time"
    day = _day(bucket.get(when), when, place)
    for index, row in enumerate(results):
        here = _Place(place.file, place.line, (*place.path, "results", index), place.text)
        if not isinstance(row, Mapping):
            raise here.wrong("", f"{row!r} is not an object")
        yield (_anthropic_result if anthropic else _openai_result)(row, day, here)


def _value(value: Any, place: _Place) -> Iterator[Billed]:
    """A page, a bucket, a row, or a list of such."""
    if isinstance(value, Mapping):
        if "results" in value or value.get("object") == "bucket":
            yield from _bucket(value, place)
        elif isinstance(value.get("data"), list):
            for index, bucket in enumerate(value["data"]):
                yield from _value(bucket, _Place(place.file, place.line, (*place.path, "data", index), place.text))
        elif "error" in value:
            raise place.wrong("error", f"the vendor refused the export: {str(value['error'])[:200]}")
        elif (billed := _table_row({_column(k): v for k, v in value.items()}, place)) is not None:
            yield billed
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _value(item, _Place(place.file, place.line, (*place.path, index), place.text))
    else:
        raise place.wrong("", f"{str(value)[:60]!r} is no page, bucket or row of an export")


# ── files ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _json(text: str, file: str) -> Iterator[Billed]:
    try:
        yield from _value(json.loads(text, parse_float=Decimal), _Place(file, None, (), text))
        return
    except json.JSONDecodeError as error:
        if error.msg != "Extra data":
            raise InvalidExport(
                f"{file}:{error.lineno}: column {error.colno}: {error.msg}", line=error.lineno, column=str(error.colno)
            ) from error
    # One value to a line.
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                value = json.loads(line, parse_float=Decimal)
            except json.JSONDecodeError as error:
                raise InvalidExport(
                    f"{file}:{number}: column {error.colno}: {error.msg}", line=number, column=str(error.colno)
                ) from error
            yield from _value(value, _Place(file, number))


def _csv(text: str, file: str) -> Iterator[Billed]:
    first = text.split("\n", 1)[0]
    delimiter = max(",\t;", key=first.count)
    reader = csv.reader(io.StringIO(text), delimiter=delimiter, strict=True)
    head: list[str] | None = None
    line = 1
    try:
        for cells in reader:
            begun, line = line, reader.line_num + 1
            if not any(cell.strip() for cell in cells):
                continue
            if head is None:
                head = [_column(cell) for cell in cells]
                if twice := next((name for name in head if name and head.count(name) > 1), None):
                    raise InvalidExport(f"{file}:{begun}: {twice}: the column is there twice", line=begun, column=twice)
                continue
            if len(cells) != len(head):
                column = head[len(cells)] if len(cells) < len(head) else str(len(head) + 1)
                raise InvalidExport(
                    f"{file}:{begun}: {column}: the row has {len(cells)} cells, the head {len(head)}",
                    line=begun,
                    column=column,
                )
            billed = _table_row(dict(zip(head, (cell.strip() for cell in cells), strict=True)), _Place(file, begun))
            if billed is not None:
                yield billed
    except csv.Error as error:
        raise InvalidExport(f"{file}:{reader.line_num}: {error}", line=reader.line_num) from error
    if head is None:
        raise InvalidExport(f"{file}: it is empty")
    _day_column(dict.fromkeys(head), _Place(file, 1))  # an empty table passes; a page that is none is refused


def _text(path: str) -> str:
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        raise InvalidExport(f"{path}: {error.strerror or error}") from error
    for mark, encoding in ((b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"), (b"", "utf-8-sig")):
        if data.startswith(mark):
            try:
                return data.decode(encoding)
            except UnicodeDecodeError as error:
                line = data.count(b"\n", 0, error.start) + 1
                raise InvalidExport(f"{path}:{line}: it is not text in UTF-8: {error.reason}", line=line) from error
    raise AssertionError("unreachable: every text begins with nothing")


def read_export(source: ExportLike) -> list[Billed]:
    """What was billed, a row for each day and model, oldest first.

    Args:
        source: a path to a file, or what stands in one: a page, a list of pages, or rows.

    Raises:
        InvalidExport: it cannot be read; names file, line and column.
    """
    if isinstance(source, (str, PathLike)):
        path = fspath(source)
        text = _text(path)
        found = _json(text, path) if text.lstrip()[:1] in {"{", "["} else _csv(text, path)
    elif isinstance(source, Mapping):
        found = _value(source, _Place("export"))
    elif isinstance(source, Iterable):
        found = _value(list(source), _Place("export"))
    else:
        raise ConfigurationError(f"an export is a path, a page or rows, not {source!r}")
    sums: dict[tuple[date, str], Billed] = {}
    for billed in found:
        key = (billed.day, model_key(billed.model))
        sums[key] = sums[key] + billed if key in sums else billed
    return [sums[key] for key in sorted(sums)]
