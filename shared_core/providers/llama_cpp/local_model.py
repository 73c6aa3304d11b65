"""One loaded model, whatever engine runs it: prompts, partial answers, stop sequences, thoughts, calls, schemas, usage.

All of an answer is written here once. An engine below only goes on from token ids; the worker above only passes on what
is emitted here:

    start {prompt, cached}, then text {t} | thought {t} | call {index, name, arguments} …, and one
    done {reason, raw, prompt, cached, output, extra}
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from shared_core.providers.llama_cpp import prompt
from shared_core.providers.llama_cpp.engine import Engine, LoadError, OnPiece, Refused, Wanted
from shared_core.providers.llama_cpp.grammar import Grammar, GrammarError
from shared_core.providers.llama_cpp.spoken import CALL, CALL_END, THINK, THINK_END, Spoken, SpokenParser
from shared_core.providers.llama_cpp.stops import StopMatcher
from shared_core.providers.llama_cpp.utf8 import Utf8Stream

__all__ = ["LocalModel", "backed_off"]

Json = dict[str, Any]
Emit = Callable[[Json], None]

_MAX_FORCED = 256
"""Bytes. A partial answer without a space (Chinese, base64) is backed off no further than this."""
_PREFILL_STEP = 64
"""Tokens. Larger steps read a little faster and lose more when they are stopped."""
_MAX_CALLS = 16
"""Calls in one answer. A model that repeats itself would go on until its limit."""
_GRAMMARS_KEPT = 32
_SEGMENTS_KEPT = 16
_SECOND_TEMPERATURE = 0.7
"""Of the second sample, where the first was greedy: that one would only come out the same."""


def backed_off(partial: str) -> tuple[str, bytes]:
    """A partial answer as (what is kept, the bytes to be forced): cut before its last blank space.

    Tokens mostly begin with the blank before a word, so the kept text has the tokens that the model would have written.
    """
    at = len(partial)
    while at > 0 and not partial[at - 1].isspace():
        at -= 1
    while at > 0 and partial[at - 1].isspace():
        at -= 1
    forced = partial[at:].encode("utf-8", "replace")
    if len(forced) > _MAX_FORCED:
        at = len(partial) - _MAX_FORCED // 4
        forced = partial[at:].encode("utf-8", "replace")
    return partial[:at], forced


class LocalModel:
    """An engine with a model in it. Not thread-safe, but for the engine's `abort`."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._grammars: dict[str, Grammar] = {}
        self._segments: dict[tuple[str, bool, bool], list[int]] = {}

    def load(self, settings: Json) -> Json:
        """Load the file, learn its chat template, and return the facts to report.

        Raises:
            LoadError: the file, its template or the options are at fault.
        """
        facts = self.engine.load(settings)
        given, vocabulary = settings.get("chat_template"), self.engine.vocabulary
        self._template = prompt.ChatTemplate.of(given, vocabulary)
        gpus = [d["name"] for d in facts["devices"] if d["gpu"]]
        wanted, used = settings.get("n_gpu_layers"), facts["gpu_layers"]
        asked = wanted not in (None, "auto", 0)
        if asked and not used and not settings.get("allow_cpu"):
            why = f"{self.engine.name} was built without GPU support or finds no GPU"
            if facts["gpu_support"]:
                why = f"none of {', '.join(gpus) or 'them'} took a layer"
            raise LoadError(
                f"n_gpu_layers={wanted} asks for a GPU, but {why}.\n"
                "hint: install a build with CUDA, Metal or Vulkan, leave n_gpu_layers='auto', or set allow_cpu=True",
                what="config",
            )
        warnings = []
        n_ctx, trained = self.engine.n_ctx, facts["n_ctx_train"]
        if n_ctx > trained:
            warnings.append(f"n_ctx {n_ctx} exceeds the {trained} tokens the model was trained on")
        if asked and not used:
            why = "no GPU took a layer" if facts["gpu_support"] else f"{self.engine.name} was built without GPU support"
            warnings.append(f"n_gpu_layers={wanted} has no effect: {why}")
        elif gpus and wanted in (None, "auto") and not used:
            warnings.append(f"{', '.join(gpus)} is there, but the model runs on the CPU")
        return {
            **facts,
            "engine": self.engine.name,
            "n_ctx": n_ctx,
            "backend": gpus[0] if used and gpus else "CPU",
            "gpu_offload": used > 0,
            "chat_template": self._template.origin,
            "template": self._template.traits.as_dict(),
            "warnings": warnings,
        }

    # ── prompts ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def prompt_tokens(self, job: Json) -> tuple[list[int], str]:
        """The tokens of the conversation up to where the assistant speaks, and the end of the prompt's text.

        Raises:
            Refused: the template cannot render this conversation.
        """
        try:
            segments = self._template.render(job["messages"], job.get("tools") or None)
        except prompt.TemplateRefused as error:
            raise Refused("incapable", f"the model's chat template cannot render this conversation: {error}") from error
        bos = self.engine.vocabulary.bos
        tokens: list[int] = []
        for index, segment in enumerate(segments):
            opens = index == 0 and not (segment.trusted and bos and segment.text.startswith(bos))
            tokens += self._tokenised(segment.text, segment.trusted, opens)
        return tokens, segments[-1].text[-64:] if segments else ""

    def _tokenised(self, text: str, trusted: bool, first: bool) -> list[int]:
        """Tokens of a segment. The last few are remembered: a prompt is counted, read ahead, then answered."""
        key = (text, trusted, first)
        if (known := self._segments.pop(key, None)) is None:
            known = self.engine.tokenise(text, trusted=trusted, first=first)
            if len(self._segments) >= _SEGMENTS_KEPT:
                del self._segments[next(iter(self._segments))]
        self._segments[key] = known
        return known

    def _answer_tokens(self, text: str) -> list[int]:
        """Tokens of assistant text that follows a prompt: as the model would have gone on, not as a text of its own."""
        if not text:
            return []
        if self.engine.vocabulary.opens_with_blank:
            # SentencePiece puts a blank before every text; behind a newline it does not.
            lead = self.engine.tokenise("\n", trusted=False)
            tokens = self.engine.tokenise("\n" + text, trusted=False)
            if tokens[: len(lead)] == lead:
                return tokens[len(lead) :]
        return self.engine.tokenise(text, trusted=False)

    def count(self, job: Json) -> int:
        """Tokens of the prompt, a partial answer included."""
        tokens, _ = self.prompt_tokens(job)
        return len(tokens) + len(self._answer_tokens(job.get("partial") or ""))

    def prefill(self, job: Json, emit: Emit) -> None:
        """Read the prompt, so that an answer to it begins at once; ends with `done`, nothing written.

        In small steps: it is stopped as soon as anybody needs the model, and what was read until then is kept.

        Raises:
            Refused: the prompt does not fit the context window.
        """
        start = self._start(job)
        room = self.engine.n_ctx - len(start.tokens)
        if room < 1:
            raise _overflow(len(start.tokens), 1, self.engine.n_ctx)
        cached = self.engine.evaluate(start.tokens, step=_PREFILL_STEP)
        emit(_done("stop", "prefilled", len(start.tokens), cached, 0, {}))

    def grammar(self, text: str) -> Grammar:
        """A grammar that the engine takes; the last few are remembered.

        Raises:
            Refused: it does not.
        """
        if (known := self._grammars.get(text)) is not None:
            return known
        try:
            grammar = Grammar.parse(text)
        except GrammarError as error:
            raise Refused("incapable", f"the grammar cannot be followed: {error}") from error
        if not self.engine.compiles(text):
            raise Refused("incapable", "llama.cpp refuses the grammar")
        if len(self._grammars) >= _GRAMMARS_KEPT:
            del self._grammars[next(iter(self._grammars))]
        self._grammars[text] = grammar
        return grammar

    def generate(self, job: Json, emit: Emit) -> None:
        """Answer; what it comes to is emitted.

        Raises:
            Refused: this request cannot be served, with the error kind.
            Cancelled: the abort flag was set.
        """
        _Answering(self, job, emit).run()

    def _start(self, job: Json) -> _Start:
        """Where the model goes on from: the prompt, and as much of the partial answer as is certain."""
        partial: str = job.get("partial") or ""
        tokens, tail = self.prompt_tokens(job)
        thinking = tail.rstrip().endswith(THINK)
        if thinking and partial:  # the partial answer is what follows the thought
            tokens += self.engine.tokenise(f"\n{THINK_END}\n\n", trusted=True)
            thinking = False
        tools = bool(job.get("tools")) and job.get("tool_choice") != "none"
        must_call = tools and job.get("tool_choice") not in (None, "auto")
        before, call, body = partial.rpartition(CALL) if tools else ("", "", partial)
        if call and CALL_END not in body:  # cut in the middle of a call
            tokens += self._answer_tokens(before) + self.engine.tokenise(CALL, trusted=True)
            kept, forced = backed_off(body)
            return _Start(tokens + self._answer_tokens(kept), kept, forced, "call", partial)
        if must_call:
            tokens += self._answer_tokens(partial) + self.engine.tokenise(f"{CALL}\n", trusted=True)
            return _Start(tokens, "\n", b"", "call", partial)
        kept, forced = backed_off(partial)
        inside: Literal["text", "thought"] = "thought" if thinking else "text"
        return _Start(tokens + self._answer_tokens(kept), kept, forced, inside, partial)


@dataclass(frozen=True, slots=True)
class _Start:
    tokens: list[int]
    kept: str
    """The text at the end of `tokens` that the grammar counts as written: of the answer, or of the call."""
    forced: bytes
    inside: Literal["text", "thought", "call"]
    partial: str


@dataclass(frozen=True, slots=True)
class _Phase:
    """A stretch of the answer under one grammar: free text, the JSON of a schema, one call, or perhaps one more."""

    kind: Literal["free", "schema", "call", "more"]
    tokens: list[int]
    grammar: str | None
    forced: bytes = b""
    body: str = ""
    """Of a call: what of it is written already, `forced` included."""


class _Answering:
    """One answer on its way."""

    def __init__(self, model: LocalModel, job: Json, emit: Emit) -> None:
        self._model, self._engine, self._job, self._emit = model, model.engine, job, emit
        tools: Sequence[Json] = job.get("tools") or ()
        choice = job.get("tool_choice") or "auto"
        self._tools = {t["function"]["name"]: t["function"] for t in tools} if choice != "none" else {}
        self._must_call = bool(self._tools) and choice != "auto"
        self._offered = [self._tools[choice]] if choice in self._tools else list(self._tools.values())
        self._one_call = not job.get("parallel", True) or choice in self._tools
        self._schema: Json | None = None if self._must_call else job.get("schema")
        self._hold = False
        """Whether nothing may be let out before the whole has been checked against the schema."""
        self._said: list[str] = []
        self._calls = 0
        self._second = False
        self._output = 0
        self._prompt = 0
        self._cached = 0
        self._reason, self._raw = "stop", "eos"
        self._started = False
        self._in_call = self._to_call = self._call_over = False

    # ── the whole ────────────────────────────────────────────────────────────────────────────────────────────────────

    def run(self) -> None:
        """Answer."""
        start = self._model._start(self._job)
        whole, calls = self._grammars()
        self._call_grammar = calls
        self._limit = self._fitted(start)
        self._prompt = len(start.tokens)
        plain = bool(start.partial) or self._schema is not None  # JSON does not begin with a thought
        self._speech = SpokenParser(tools=bool(self._tools), inside=start.inside, begun=plain, delivered=start.partial)
        self._decoder = Utf8Stream()
        self._stops = StopMatcher([*(self._job.get("stop") or ()), *self._template_stops], delivered=start.partial)
        phase: _Phase | None = self._first(start, whole)
        while phase is not None:
            phase = self._perform(phase, start)
        self._finish(start)

    @property
    def _template_stops(self) -> Sequence[str]:
        return self._model._template.stops

    def _grammars(self) -> tuple[Grammar | None, Grammar | None]:
        """What the whole answer must fit, and what a call must; None where nothing is demanded.

        Raises:
            Refused: a schema that cannot be held to, where it must be.
        """
        calls = whole = None
        if not self._tools and self._schema is None and not self._job.get("grammar"):
            return None, None
        # Imported when first needed: a worker that starts anew after a crash has no time to lose.
        from shared_core.providers.llama_cpp.schema_grammar import UnsupportedSchema, gbnf, tool_call_gbnf

        if self._tools:
            try:
                text, _ = tool_call_gbnf(self._offered)
                calls = self._model.grammar(text)
            except (UnsupportedSchema, Refused) as error:
                if self._must_call:
                    said = f"the local model cannot be held to this tool's schema: {error}"
                    raise Refused("incapable", said) from error
                calls = None  # a call of the model's own free will is checked when it comes
        if self._schema is not None:
            try:
                text, exact = gbnf(self._schema)
                whole = self._model.grammar(text)
            except UnsupportedSchema as error:
                raise Refused("incapable", f"the local model cannot be held to this JSON schema: {error}") from error
            self._hold = not exact
        elif (own := self._job.get("grammar")) is not None:
            whole = self._model.grammar(own)
        return whole, calls

    def _fitted(self, start: _Start) -> int:
        wanted: int = self._job["max_tokens"]
        n_ctx = self._engine.n_ctx
        room = n_ctx - len(start.tokens) - len(start.forced)
        if self._job.get("fit"):
            wanted = max(1, min(wanted, room))
        if wanted > room:
            raise _overflow(len(start.tokens), wanted, n_ctx)
        return wanted

    def _first(self, start: _Start, whole: Grammar | None) -> _Phase:
        if start.inside == "call":
            body = start.kept + start.forced.decode("utf-8", "replace")
            self._speech.resume(body)
            self._in_call = True
            return _Phase("call", start.tokens, self._rest(self._call_grammar, start.kept), start.forced, body)
        if whole is None:
            return _Phase("free", start.tokens, None, start.forced)
        if self._tools and self._call_grammar is not None:  # an answer in the schema, or calls
            marked = Grammar({"root": ("lit", CALL)})
            whole = whole.or_else(marked.then(self._call_grammar))
        return _Phase("schema", start.tokens, self._rest(whole, start.kept), start.forced)

    def _rest(self, grammar: Grammar | None, written: str) -> str | None:
        """What may still come behind `written`. Where that does not fit, nothing can be demanded of the rest."""
        if grammar is None:
            return None
        try:
            rest = grammar.after(written) if written else grammar
        except GrammarError as error:
            raise Refused("incapable", f"the partial answer cannot be gone on with: {error}") from error
        return None if rest is None else rest.text()

    # ── a phase ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _perform(self, phase: _Phase, start: _Start) -> _Phase | None:
        """Generate until the phase is over; returns the next one."""
        job = self._job
        temperature, seed = job["temperature"], job["seed"]
        if self._second:
            temperature, seed = max(temperature, _SECOND_TEMPERATURE), seed + 1
        wanted = Wanted(
            limit=self._limit - self._output,
            temperature=temperature,
            seed=seed % (2**32 - 1),
            top_p=job.get("top_p"),
            top_k=job.get("top_k") or 0,
            min_p=job.get("min_p") or 0.0,
            repeat_penalty=job.get("repeat_penalty") or 1.0,
            frequency_penalty=job.get("frequency_penalty") or 0.0,
            presence_penalty=job.get("presence_penalty") or 0.0,
            grammar=phase.grammar,
            forced=phase.forced,
        )
        written: list[int] = []
        self._to_call = self._call_over = False
        complaint: list[str] = []
        end = self._engine.generate(phase.tokens, wanted, self._on_start, self._reader(phase, written, complaint))
        if complaint:
            return self._again(phase, complaint[0])
        if end == "stopped" and self._to_call:
            return self._into_call([*phase.tokens, *written])
        if end == "stopped" and self._call_over and not self._one_call and self._calls < _MAX_CALLS:
            return self._behind_call([*phase.tokens, *written])
        if end == "stopped":
            return None
        if end == "eos":
            self._output += 1
        else:
            self._reason, self._raw = "length", "max_tokens" if end == "limit" else "context_full"
        self._decoder.close()
        if (wrong := self._out(self._stops.close(), last=True)) and self._reason != "length":
            return self._again(phase, wrong)
        if phase.kind == "schema" and self._reason == "stop" and not self._calls:
            assert self._schema is not None or self._job.get("grammar") is not None
            if self._schema is not None and (found := _wrong(start.partial + "".join(self._said), self._schema)):
                return self._again(phase, f"the local model's answer does not fit the schema: {found}")
        return None

    def _on_start(self, cached: int) -> None:
        if not self._started:
            self._started, self._cached = True, cached
            self._emit({"ev": "start", "prompt": self._prompt, "cached": cached})

    def _reader(self, phase: _Phase, written: list[int], complaint: list[str]) -> OnPiece:
        """Takes the tokens of one phase as they come; False where the phase is over."""
        rest = phase.forced
        decode, stops = self._decoder.feed, self._stops
        plain = not stops.active

        def read(tokens: Sequence[int], count: int, data: bytes) -> bool:
            nonlocal rest
            written.extend(tokens)
            if rest:
                new, rest = data[len(rest) :], rest[len(data) :]
                if not new:
                    self._prompt += count
                    return True
                data = new
            self._output += count
            text = decode(data)
            if not plain:
                text = stops.feed(text)
            if text:
                wrong = self._out(text)
                if wrong:
                    complaint.append(wrong)
                    return False
                if self._to_call or self._call_over:
                    return False
            if not plain and stops.matched is not None:
                self._raw = "stop_sequence"
                self._out("", last=True)
                return False
            return True

        return read

    def _out(self, text: str, *, last: bool = False) -> str:
        """Let text out as what it says. Returns what is wrong with a call, if something is."""
        speech = self._speech
        if speech.transparent and not last:
            self._say(text)
            return ""
        for piece in [*(speech.feed(text) if text else ()), *(speech.close() if last else ())]:
            if piece.kind == "call":
                if wrong := self._call(piece):
                    return wrong
                self._call_over = True
            elif piece.kind == "thought":
                self._emit({"ev": "thought", "t": piece.text})
            else:
                self._say(piece.text)
                if self._schema is not None:
                    speech.deafen()  # a marker within the JSON is a string's
        if speech.inside == "call" and self._call_grammar is not None and not last and not self._in_call:
            self._to_call = True
        return ""

    def _say(self, text: str) -> None:
        if self._schema is not None:
            self._said.append(text)
        if not self._hold:
            self._emit({"ev": "text", "t": text})

    def _call(self, piece: Spoken) -> str:
        tool = self._tools.get(piece.name)
        if tool is None:
            return f"the local model called {piece.name!r}, which is not offered"
        if tool.get("parameters") and (found := _wrong(piece.arguments, tool["parameters"])):
            return f"the local model's call of {piece.name!r} does not fit its schema: {found}"
        self._emit({"ev": "call", "index": self._calls, "name": piece.name, "arguments": piece.arguments})
        self._calls += 1
        return ""

    def _into_call(self, tokens: list[int]) -> _Phase:
        """The model has begun a call: what it writes from here on is held to the tools' schemas."""
        body = self._speech.body
        grammar = self._rest(self._call_grammar, body)
        self._in_call = True
        return _Phase("call", tokens, grammar, body=body)

    def _behind_call(self, tokens: list[int]) -> _Phase:
        self._in_call = False
        self._second = False
        if not self._must_call:
            return _Phase("free", tokens, None)
        # Another call, or the end. The line break is what templates put between two.
        return _Phase("more", tokens, f'root ::= ("\\n"? "{CALL}")?')

    def _again(self, phase: _Phase, complaint: str) -> _Phase:
        """A second sample of the phase, once, and only where nothing of the first has been let out."""
        if self._second or (phase.kind == "schema" and self._said and not self._hold):
            raise Refused("malformed", complaint)
        self._second = True
        self._said.clear()
        self._reason, self._raw = "stop", "eos"
        self._decoder = Utf8Stream()
        if phase.kind == "call":
            self._speech.resume(phase.body)
            return phase
        if phase.kind == "schema":
            self._speech = SpokenParser(tools=bool(self._tools), begun=True)
            return phase
        raise Refused("malformed", complaint)

    # ── the end ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _finish(self, start: _Start) -> None:
        if self._hold and self._said:
            self._emit({"ev": "text", "t": "".join(self._said)})
        extra: Json = {}
        if self._calls and self._reason != "length":
            self._reason = "tool_calls"
        if self._speech.unfinished is not None:
            extra["unfinished_tool_call"] = self._speech.unfinished
        self._emit(_done(self._reason, self._raw, self._prompt, self._cached, self._output, extra))


def _wrong(text: str, schema: Json) -> str:
    from shared_core.chat.schema_check import violations

    return violations(text, schema)


def _overflow(prompt_tokens: int, wanted: int, n_ctx: int) -> Refused:
    return Refused(
        "context_overflow",
        f"the prompt takes {prompt_tokens} tokens and max_tokens asks for {wanted} more, "
        f"together {prompt_tokens + wanted}; the context window is {n_ctx}",
    )


def _done(reason: str, raw: str, prompt_tokens: int, cached: int, output: int, extra: Json) -> Json:
    return {
        "ev": "done", "reason": reason, "raw": raw, "prompt": prompt_tokens, "cached": cached, "output": output,
        "extra": extra,
    }  # fmt: skip
