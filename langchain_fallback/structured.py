"""Answers in a shape: what `with_structured_output` binds, parses and checks.

The check runs inside the router, on the whole answer of one target: an answer that does not parse or validate is put
back to its target once, with what is wrong, and then the next target is asked. So it works the same for every method,
streamed or whole, with `include_raw` or without.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import replace
from typing import Any, Literal, cast

from langchain_core.exceptions import OutputParserException
from langchain_core.output_parsers import BaseOutputParser, JsonOutputParser, PydanticOutputParser
from langchain_core.output_parsers.openai_tools import JsonOutputKeyToolsParser, PydanticToolsParser
from langchain_core.outputs import ChatGeneration
from langchain_core.runnables import AddableDict, Runnable, RunnableGenerator, RunnableMap
from langchain_core.utils.function_calling import convert_to_json_schema, convert_to_openai_tool
from langchain_core.utils.pydantic import is_basemodel_subclass
from pydantic import BaseModel

from langchain_fallback._convert import message_of
from langchain_fallback.errors import as_langchain
from shared_core.chat.events import Answer
from shared_core.chat.request import ChatRequest
from shared_core.chat.schema_check import CUT_OFF, complaint, violations
from shared_core.errors import AllTargetsFailed, ConfigurationError, FallbackError, InvalidOutput

__all__ = ["METHODS", "CheckedFormat", "Method", "OutputCheck", "Shape", "spared"]

Method = Literal["function_calling", "json_schema", "json_mode"]
METHODS = ("function_calling", "json_schema", "json_mode")


class CheckedFormat(dict[str, Any]):
    """A `response_format` that knows how its answers are checked. To everybody else it is a plain dict."""

    __slots__ = ("check",)

    check: OutputCheck | None

    def __init__(self, wanted: Mapping[str, Any], check: OutputCheck | None = None) -> None:
        super().__init__(wanted)
        self.check = check

    def __reduce__(self) -> tuple[Any, ...]:
        return CheckedFormat, (dict(self), self.check)


class OutputCheck:
    """Whether `with_structured_output` will be able to parse an answer: by its own parser, and by the schema.

    `lenient` says that the caller takes the raw answer where nobody gave a valid one (`include_raw`).
    """

    def __init__(self, parser: BaseOutputParser[Any], schema: Mapping[str, Any] | None, *, lenient: bool) -> None:
        self._parser = parser
        self._schema = schema
        """What a parser that makes plain dicts does not look at; None where the parser validates."""
        self.lenient = lenient

    def __call__(self, answer: Answer) -> str | None:
        """What is wrong with `answer`, in words for the model; None when it parses and validates."""
        if answer.finish_reason == "length":
            return CUT_OFF
        try:
            # Not `invoke`: callbacks would hear of every look.
            parsed = self._parser.parse_result([ChatGeneration(message=message_of(answer))])
        except (OutputParserException, ValueError, TypeError) as error:
            return _complaint(error)
        if parsed is None:
            if answer.tool_calls and any(_broken(call.arguments) for call in answer.tool_calls):
                return "the arguments of the tool call are not a JSON object"
            by_tool = isinstance(self._parser, (JsonOutputKeyToolsParser, PydanticToolsParser))
            return "the tool was not called" if by_tool else "it is no JSON object"
        if self._schema is not None:
            return violations(json.dumps(parsed), self._schema) or None
        return None


def _broken(arguments: str) -> bool:
    try:
        return not isinstance(json.loads(arguments), dict)
    except ValueError:
        return True


def _complaint(error: Exception) -> str:
    """What went wrong, by the cause where LangChain has wrapped it, without the page that it sends its readers to."""
    cause = error.__cause__ if isinstance(error, OutputParserException) and error.__cause__ is not None else error
    if callable(getattr(cause, "errors", None)):
        return complaint(cast("Exception", cause))
    return complaint(error).partition("\nFor troubleshooting")[0]


class Shape:
    """One call of `with_structured_output`: what to bind, how to parse, how to check.

    Raises:
        ConfigurationError: an unknown method, or no schema where one is needed.
    """

    def __init__(
        self,
        schema: dict[str, Any] | type | None,
        method: Method,
        *,
        strict: bool | None,
        include_raw: bool,
        validate: bool,
    ) -> None:
        if method not in METHODS:
            raise ConfigurationError(f"method must be one of {', '.join(map(repr, METHODS))}, not {method!r}")
        if schema is None and method != "json_mode":
            raise ConfigurationError(f"method {method!r} needs a schema; only 'json_mode' can do without")
        self.schema = schema
        self.method = method
        self.strict = strict
        self.include_raw = include_raw
        self._is_model = isinstance(schema, type) and is_basemodel_subclass(schema)
        self.parser = self._parser()
        self.check = None
        if validate:
            plain = None if self._is_model or schema is None else convert_to_json_schema(schema)
            self.check = OutputCheck(self.parser, plain, lenient=include_raw)

    def _parser(self) -> BaseOutputParser[Any]:
        if self.method == "function_calling":
            if self._is_model:
                return PydanticToolsParser(tools=[cast("type[BaseModel]", self.schema)], first_tool_only=True)
            return JsonOutputKeyToolsParser(key_name=self._function["name"], first_tool_only=True)
        if self._is_model:
            return PydanticOutputParser(pydantic_object=cast("type[BaseModel]", self.schema))
        return JsonOutputParser()

    @property
    def _function(self) -> dict[str, Any]:
        return cast("dict[str, Any]", convert_to_openai_tool(cast("Any", self.schema))["function"])

    @property
    def traced(self) -> dict[str, Any]:
        """What tracers are told."""
        shown = None if self.schema is None else convert_to_openai_tool(self.schema)
        return {"kwargs": {"method": self.method, "strict": self.strict}, "schema": shown}

    @property
    def response_format(self) -> CheckedFormat:
        """For the JSON methods: what is bound to the model."""
        if self.method == "json_mode":
            return CheckedFormat({"type": "json_object"}, self.check)
        inner: dict[str, Any] = {
            "name": self._function["name"],
            "schema": convert_to_json_schema(cast("Any", self.schema)),
        }
        if self.strict is not None:
            inner["strict"] = self.strict
        return CheckedFormat({"type": "json_schema", "json_schema": inner}, self.check)

    def after(self, llm: Runnable[Any, Any]) -> Runnable[Any, Any]:
        """`llm` and then the parser, in the form the caller asked for."""
        if not self.include_raw:
            return llm | self.parser
        return RunnableMap(raw=llm) | RunnableGenerator(self._beside, self._abeside, name="Parsed")

    def _beside(self, chunks: Iterator[Mapping[str, Any]]) -> Iterator[AddableDict]:
        """What came, and behind it what it parses to. LangChain's own stage for it loses the error in a stream."""
        raw = None
        for chunk in chunks:
            raw = chunk["raw"] if raw is None else raw + chunk["raw"]
            yield AddableDict(chunk)
        yield self._parsed(raw)

    async def _abeside(self, chunks: AsyncIterator[Mapping[str, Any]]) -> AsyncIterator[AddableDict]:
        raw = None
        async for chunk in chunks:
            raw = chunk["raw"] if raw is None else raw + chunk["raw"]
            yield AddableDict(chunk)
        yield self._parsed(raw)

    def _parsed(self, raw: Any) -> AddableDict:
        try:
            parsed = self.parser.parse_result([ChatGeneration(message=raw)])
        except (OutputParserException, ValueError, TypeError) as error:
            return AddableDict(parsed=None, parsing_error=error)
        return AddableDict(parsed=parsed, parsing_error=None)


def spared(error: FallbackError, request: ChatRequest) -> Answer:
    """The answer to hand out although nobody's was valid, where the caller wants the raw one all the same.

    Raises:
        FallbackError: there is none, or the caller does not want it: `error`, as one of LangChain's too.
    """
    check = request.check
    if isinstance(check, OutputCheck) and check.lenient and isinstance(error, AllTargetsFailed):
        for attempt in reversed(error.errors):
            if isinstance(attempt, InvalidOutput) and attempt.answer is not None:
                answer: Answer = attempt.answer
                return replace(answer, target=attempt.target, fallback=error.fallback)
    raise as_langchain(error)
