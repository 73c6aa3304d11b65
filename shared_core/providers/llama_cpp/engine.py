"""One loaded model: load, count, generate. Not thread-safe: the worker's one compute thread owns it.

It stands on llama.cpp's C functions rather than on `llama_cpp.Llama`, whose completion methods detokenise the whole
answer again for every token, take cubic time on invalid UTF-8, check no grammar for NULL and turn user text into
control tokens.
"""

from __future__ import annotations

import ctypes
import math
import os
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from shared_core.chat.schema_check import violations
from shared_core.providers.llama_cpp import prompt
from shared_core.providers.llama_cpp.library import AbortFlag, LogKeeper
from shared_core.providers.llama_cpp.schema_grammar import UnsupportedSchema, gbnf, tool_call_gbnf
from shared_core.providers.llama_cpp.spoken import CALL, CALL_END, THINK, THINK_END, SpokenParser
from shared_core.providers.llama_cpp.stops import StopMatcher
from shared_core.providers.llama_cpp.utf8 import Utf8Stream

__all__ = ["Cancelled", "Engine", "LoadError", "Refused", "backed_off"]

Json = dict[str, Any]

_VISIBLE = frozenset({CALL, CALL_END, THINK, THINK_END})
"""Markers that must show in the text even where a file declares them control tokens, which render as nothing."""
_MAX_FORCED = 256
"""Bytes. A partial answer without a space (Chinese, base64) is backed off no further than this."""


class LoadError(Exception):
    """The model cannot be loaded; the message is llama.cpp's reason. `what` is at fault: 'model' or 'config'."""

    def __init__(self, reason: str, what: str = "model") -> None:
        super().__init__(reason)
        self.what = what


class Refused(Exception):
    """This request cannot be served; `kind` is an `ErrorKind` value."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Cancelled(Exception):
    """The caller went away."""


@dataclass
class _Run:
    """What one generation has come to."""

    prompt_tokens: int
    cached_tokens: int = 0
    output_tokens: int = 0
    reason: str = "stop"
    raw: str = "eos"


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


class Engine:
    """A model and its one context."""

    def __init__(self, library: Any, log: LogKeeper, *, on_progress: Callable[[float], None] | None = None) -> None:
        self._c = library
        self._log = log
        self._on_progress = on_progress
        self.abort = AbortFlag(library)
        self._model: Any = None
        self._ctx: Any = None
        self._cached: list[int] = []
        """The tokens whose keys and values the context holds."""
        self._logits_fresh = False

    # ── loading ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def load(self, settings: Json) -> Json:
        """Load the file, warm it up and try it. Returns the facts to report.

        Raises:
            LoadError: with the reason from llama.cpp's log.
        """
        c, path = self._c, settings["path"]
        c.llama_backend_init()
        self._log.clear()
        params = c.llama_model_default_params()
        gpu = bool(c.llama_supports_gpu_offload())
        wanted = settings.get("n_gpu_layers")
        layers = (-1 if gpu else 0) if wanted is None else wanted
        if layers != 0 and not gpu and not settings.get("allow_cpu"):
            raise LoadError(
                f"n_gpu_layers={layers} asks for a GPU, but llama-cpp-python was built without GPU support.\n"
                "hint: install a build with CUDA, Metal or Vulkan, leave n_gpu_layers='auto', or set allow_cpu=True",
                "config",
            )
        params.n_gpu_layers = 0x7FFFFFFF if layers < 0 else layers
        if not settings.get("use_mmap", True):
            params.load_mode = c.LLAMA_LOAD_MODE_NONE

        def progress(value: float, _user_data: Any) -> bool:
            if self._on_progress is not None:
                self._on_progress(value)
            return not self.abort.is_set()

        self._progress = c.llama_progress_callback(progress)
        params.progress_callback = self._progress
        try:
            with Path(path).open("rb"):
                pass
        except OSError as error:
            raise LoadError(f"{error.strerror}") from error
        model = c.llama_model_load_from_file(os.fsencode(path), params)
        if not model:
            raise LoadError(self._log.reason() or "llama.cpp gave no reason")
        self._model = model
        if not c.llama_model_has_decoder(model) or c.llama_model_has_encoder(model):
            raise LoadError("this is not a text generation model (it has an encoder)")
        self._vocab = c.llama_model_get_vocab(model)
        self._n_vocab = c.llama_vocab_n_tokens(self._vocab)
        self._n_ctx = settings["n_ctx"]
        self._check_memory(settings)
        context = c.llama_context_default_params()
        context.n_ctx = self._n_ctx
        self._n_batch = min(settings["n_batch"], self._n_ctx)
        context.n_batch = self._n_batch
        context.n_ubatch = min(self._n_batch, 512)  # what is computed in one go: a cancel is heard in between
        context.n_seq_max = 1
        context.n_threads = context.n_threads_batch = settings["n_threads"]
        context.no_perf = True
        flash = settings.get("flash_attn")
        if flash is not None:
            context.flash_attn_type = 1 if flash else 0
        context.abort_callback, context.abort_callback_data = self.abort.callback, self.abort.data
        self._ctx = c.llama_init_from_model(model, context)
        if not self._ctx:
            raise LoadError(self._log.reason() or f"no memory for a context of {self._n_ctx} tokens")
        self._memory = c.llama_get_memory(self._ctx)
        self._n_ctx = min(self._n_ctx, c.llama_n_ctx(self._ctx))
        self._tokens_in = (c.llama_token * self._n_batch)()
        self._set_up_template(settings.get("chat_template"))
        self._try_out()
        warnings = []
        trained = c.llama_model_n_ctx_train(model)
        if self._n_ctx > trained:
            warnings.append(f"n_ctx {self._n_ctx} exceeds the {trained} tokens the model was trained on")
        if layers != 0 and not gpu:
            warnings.append(f"n_gpu_layers={layers} has no effect: llama-cpp-python was built without GPU support")
        return {
            "n_ctx": self._n_ctx,
            "n_ctx_train": trained,
            "parameters": c.llama_model_n_params(model),
            "bytes": c.llama_model_size(model),
            "description": self._description(),
            "gpu_offload": gpu and layers != 0,
            "gpu_layers": min(c.llama_model_n_layer(model) + 1, params.n_gpu_layers) if gpu else 0,
            "n_threads": settings["n_threads"],
            "system": c.llama_print_system_info().decode("utf-8", "replace").strip(),
            "chat_template": self._template_from,
            "warnings": warnings,
        }

    def _check_memory(self, settings: Json) -> None:
        # llama.cpp zeroes the whole cache at once; a cache too big would meet the OOM killer rather than an error.
        per_token = settings.get("kv_bytes_per_token")
        try:
            lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        except OSError:
            return
        free = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)
        if per_token and free is not None and per_token * self._n_ctx > free * 0.9:
            raise LoadError(
                f"a context of {self._n_ctx} tokens takes {per_token * self._n_ctx / 2**30:.1f} GiB, "
                f"and {free / 2**30:.1f} GiB are free; lower n_ctx"
            )

    def _description(self) -> str:
        buffer = ctypes.create_string_buffer(256)
        self._c.llama_model_desc(self._model, buffer, len(buffer))
        return buffer.value.decode("utf-8", "replace")

    def _set_up_template(self, given: str | None) -> None:
        c = self._c
        source, self._template_from = given, "option"
        if source is None:
            own = c.llama_model_chat_template(self._model, None)
            source, self._template_from = (own.decode("utf-8", "replace"), "file") if own else (prompt.CHATML, "chatml")
        bos, eos = c.llama_vocab_bos(self._vocab), c.llama_vocab_eos(self._vocab)
        self._bos = self._text_of(bos) if bos >= 0 else ""
        try:
            self._template = prompt.compile_template(source, bos=self._bos, eos=self._text_of(eos) if eos >= 0 else "")
        except prompt.TemplateRefused as error:
            raise LoadError(str(error)) from error
        self._template_knows_tools = "tools" in source
        hidden = c.LLAMA_TOKEN_ATTR_CONTROL | c.LLAMA_TOKEN_ATTR_UNKNOWN
        self._markers = []
        self._shown: dict[int, bytes] = {}
        for token in range(self._n_vocab):
            if c.llama_vocab_get_attr(self._vocab, token) & hidden:
                text = self._text_of(token)
                if text:
                    self._markers.append(text)
                if text in _VISIBLE:
                    self._shown[token] = text.encode()

    def _text_of(self, token: int) -> str:
        text = self._c.llama_vocab_get_text(self._vocab, token)
        return text.decode("utf-8", "replace") if text else ""

    def _try_out(self) -> None:
        tokens = self.tokenise("Hello", trusted=False, first=True) or [0]
        try:
            self._decode(tokens[: self._n_batch])
        except Cancelled:
            raise LoadError("loading was cancelled") from None
        logits = self._c.llama_get_logits_ith(self._ctx, -1)
        if not logits:
            raise LoadError("this is not a text generation model (it gives no logits)")
        values = logits[: self._n_vocab]
        total = sum(values)
        if not math.isfinite(total):
            raise LoadError("the model computes NaN or infinity: its weights are damaged")
        if self._n_vocab > 1 and min(values) == max(values):
            raise LoadError("the model finds every token equally likely: its weights are damaged")
        self._forget()

    def close(self) -> None:
        """Free everything; the engine is not to be used again."""
        if self._ctx:
            self._c.llama_free(self._ctx)
        if self._model:
            self._c.llama_model_free(self._model)
        self._ctx = self._model = None

    # ── tokens ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def tokenise(self, text: str, *, trusted: bool, first: bool = False) -> list[int]:
        """Tokens of `text`; control tokens are recognised only in `trusted` text; `first` adds what opens a prompt."""
        data = text.encode("utf-8", "replace")
        room = len(data) + 8
        buffer = (self._c.llama_token * room)()
        count = self._c.llama_tokenize(self._vocab, data, len(data), buffer, room, first, trusted)
        if count < 0:
            buffer = (self._c.llama_token * -count)()
            count = self._c.llama_tokenize(self._vocab, data, len(data), buffer, -count, first, trusted)
        return list(buffer[: max(0, count)])

    def _tokenise_answer(self, text: str) -> list[int]:
        """Tokens of assistant text that follows a prompt: as the model would have gone on, not as a text of its own."""
        if not text:
            return []
        if self._c.llama_vocab_type(self._vocab) == self._c.LLAMA_VOCAB_TYPE_SPM:
            # SentencePiece puts a blank before every text; behind a newline it does not.
            lead = self.tokenise("\n", trusted=False)
            tokens = self.tokenise("\n" + text, trusted=False)
            if tokens[: len(lead)] == lead:
                return tokens[len(lead) :]
        return self.tokenise(text, trusted=False)

    @cached_property
    def _pieces(self) -> list[bytes]:
        """Every token's bytes; control tokens have none."""
        return [self._piece(token) for token in range(self._n_vocab)]

    @cached_property
    def _sorted_pieces(self) -> list[tuple[bytes, int]]:
        return sorted((piece, token) for token, piece in enumerate(self._pieces) if piece)

    def _piece(self, token: int) -> bytes:
        if (shown := self._shown.get(token)) is not None:
            return shown
        size = 64
        while True:
            buffer = ctypes.create_string_buffer(size)
            count = self._c.llama_token_to_piece(self._vocab, token, buffer, size, 0, False)
            if count >= 0:
                return buffer.raw[:count]
            size = -count  # a long token: the buffer must hold it, or it would be lost

    @cached_property
    def _by_piece(self) -> dict[bytes, list[int]]:
        found: dict[bytes, list[int]] = {}
        for piece, token in self._sorted_pieces:
            found.setdefault(piece, []).append(token)
        return found

    def _agreeing(self, rest: bytes) -> list[int]:
        """The tokens that may come next where the text must go on with `rest`: its beginnings, and what goes beyond."""
        found = [token for size in range(1, len(rest) + 1) for token in self._by_piece.get(rest[:size], ())]
        pieces = self._sorted_pieces
        at = bisect_left(pieces, (rest, 1 << 40))
        while at < len(pieces) and pieces[at][0].startswith(rest):
            found.append(pieces[at][1])
            at += 1
        return found

    # ── evaluating ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _forget(self) -> None:
        if self._memory:
            self._c.llama_memory_clear(self._memory, True)
        self._cached.clear()
        self._logits_fresh = False

    def _decode(self, tokens: Sequence[int]) -> None:
        """Evaluate `tokens` behind what is cached. Raises `Cancelled` when the flag is set meanwhile."""
        for at in range(0, len(tokens), self._n_batch):
            if self.abort.is_set():
                raise Cancelled
            part = tokens[at : at + self._n_batch]
            self._tokens_in[: len(part)] = part
            self._logits_fresh = False
            code = self._c.llama_decode(self._ctx, self._c.llama_batch_get_one(self._tokens_in, len(part)))
            if code != 0:
                # Part of the batch may be in the cache already.
                if not self._c.llama_memory_seq_rm(self._memory, 0, len(self._cached), -1):
                    self._forget()
                if code == 2 or self.abort.is_set():
                    raise Cancelled
                raise Refused("transient", f"llama.cpp could not evaluate the prompt (llama_decode returned {code})")
            self._cached += part
            self._logits_fresh = True

    def _evaluate(self, tokens: list[int]) -> int:
        """Bring the context to exactly `tokens`; returns how many were cached."""
        same = 0
        for a, b in zip(self._cached, tokens, strict=False):
            if a != b:
                break
            same += 1
        if same == len(tokens) and not (self._logits_fresh and len(self._cached) == same):
            same -= 1  # the last token's logits are needed, so it is evaluated again
        if same < len(self._cached):
            # A recurrent state cannot be rewound, nor a sliding window whose beginning has been overwritten.
            whole = self._c.llama_memory_seq_pos_min(self._memory, 0) == 0
            if same > 0 and whole and self._c.llama_memory_seq_rm(self._memory, 0, same, -1):
                del self._cached[same:]
            else:
                self._forget()
                same = 0
        self._decode(tokens[same:])
        return same

    # ── answering ────────────────────────────────────────────────────────────────────────────────────────────────────

    def prompt_tokens(self, job: Json) -> tuple[list[int], str]:
        """The tokens of the conversation up to where the assistant speaks, and the end of the prompt's text.

        Raises:
            Refused: the template cannot render this conversation.
        """
        messages, tools = job["messages"], job.get("tools") or None
        if tools and not self._template_knows_tools:
            told = prompt.tool_instructions(tools)
            if messages and messages[0]["role"] == "system":
                told, messages = f"{messages[0]['content']}\n\n{told}", messages[1:]
            messages = [{"role": "system", "content": told}, *messages]
        try:
            segments = prompt.render(self._template, messages, tools, self._markers)
        except prompt.TemplateRefused as error:
            raise Refused("incapable", f"the model's chat template cannot render this conversation: {error}") from error
        tokens: list[int] = []
        for index, segment in enumerate(segments):
            opens = index == 0 and not (segment.trusted and self._bos and segment.text.startswith(self._bos))
            tokens += self.tokenise(segment.text, trusted=segment.trusted, first=opens)
        return tokens, segments[-1].text[-64:] if segments else ""

    def count(self, job: Json) -> int:
        """Tokens of the prompt, a partial answer included."""
        tokens, _ = self.prompt_tokens(job)
        return len(tokens) + len(self._tokenise_answer(job.get("partial") or ""))

    def prefill(self, job: Json) -> Json:
        """Read the prompt and keep it, so that answering it begins at once. Returns its tokens and those cached before.

        Raises:
            Refused: the prompt does not fit, or the template cannot render it.
            Cancelled: the abort flag was set; what was read until then is kept.
        """
        tokens, _ = self.prompt_tokens(job)
        if len(tokens) >= self._n_ctx:
            raise Refused("context_overflow", f"the prompt takes {len(tokens)} tokens, the window is {self._n_ctx}")
        return {"prompt": len(tokens), "cached": self._evaluate(tokens)}

    def generate(self, job: Json) -> Iterator[Json]:
        """Answer. Yields `start`, then `text`, `thought` and `call` messages, and one `done`.

        Raises:
            Refused: this request cannot be served, with the error kind.
            Cancelled: the abort flag was set.
        """
        partial: str = job.get("partial") or ""
        head, tail_text = self.prompt_tokens(job)
        kept, forced = backed_off(partial)
        tokens = head + self._tokenise_answer(kept)
        tools = job.get("tools") or []
        choice = job.get("tool_choice") or "auto"
        must_call = bool(tools) and choice not in ("auto", "none")
        grammar_text: str | None = None
        exact = True
        try:
            if must_call:
                wanted = tools if choice == "any" else [t for t in tools if t["function"]["name"] == choice]
                grammar_text, exact = tool_call_gbnf([t["function"] for t in wanted])
                tokens += self.tokenise(f"{CALL}\n", trusted=True)
            elif job.get("schema") is not None:
                grammar_text, exact = gbnf(job["schema"])
        except UnsupportedSchema as error:
            raise Refused("incapable", f"the local model cannot be held to this JSON schema: {error}") from error
        wanted_tokens: int = job["max_tokens"]
        room = self._n_ctx - len(tokens) - len(forced)
        if job.get("fit"):
            wanted_tokens = max(1, min(wanted_tokens, room))
        if wanted_tokens > room:
            raise Refused(
                "context_overflow",
                f"the prompt takes {len(tokens)} tokens and max_tokens asks for {wanted_tokens} more, "
                f"together {len(tokens) + wanted_tokens}; the context window is {self._n_ctx}",
            )
        sampler = _Sampler(self._c, self._vocab, job, grammar_text)
        try:
            yield from self._answer(job, tokens, forced, partial, sampler, wanted_tokens, tail_text, must_call, exact)
        finally:
            sampler.close()

    def _answer(
        self,
        job: Json,
        tokens: list[int],
        forced: bytes,
        partial: str,
        sampler: _Sampler,
        limit: int,
        tail_text: str,
        must_call: bool,
        exact: bool,
    ) -> Iterator[Json]:
        run = _Run(prompt_tokens=len(tokens))
        run.cached_tokens = self._evaluate(tokens)
        yield {"ev": "start", "prompt": run.prompt_tokens, "cached": run.cached_tokens}
        if sampler.constrained and partial and not must_call:
            sampler.catch_up(self._tokenise_answer(partial[: len(partial) - len(forced.decode("utf-8", "ignore"))]))
        schema = job.get("schema") if not must_call else None
        inside: Literal["text", "thought", "call"]
        inside = "call" if must_call else "thought" if tail_text.rstrip().endswith(THINK) and not partial else "text"
        speech = SpokenParser(tools=bool(job.get("tools")) and job.get("tool_choice") != "none", inside=inside)
        decoder, stops = Utf8Stream(), StopMatcher(job.get("stop") or (), delivered=partial)
        said: list[str] = []
        calls = [0]
        # A schema with parts that no grammar expresses: nothing is let out before the whole has been checked.
        hold = schema is not None and not exact
        speak_plainly = schema is not None

        def let_out(text: str, *, last: bool = False) -> Iterator[Json]:
            if speak_plainly:
                said.append(text)
                if text and not hold:
                    yield {"ev": "text", "t": text}
                return
            for piece in [*(speech.feed(text) if text else ()), *(speech.close() if last else ())]:
                match piece.kind:
                    case "text":
                        yield {"ev": "text", "t": piece.text}
                    case "thought":
                        yield {"ev": "thought", "t": piece.text}
                    case "call":
                        index, calls[0] = calls[0], calls[0] + 1
                        yield {"ev": "call", "index": index, "name": piece.name, "arguments": piece.arguments}

        rest = forced
        steps = 0
        while True:
            if rest:
                token = sampler.best(self._ctx, self._agreeing(rest))
                if token is None:
                    raise Refused("incapable", "no token of this model can spell the partial answer to go on with")
            else:
                token = sampler.next(self._ctx)
                if self._c.llama_vocab_is_eog(self._vocab, token):
                    run.output_tokens += 1
                    break
            piece = self._piece(token)
            over = len(piece) > len(rest)
            new, rest = piece[len(rest) :], rest[len(piece) :]
            if over:
                run.output_tokens += 1
                out = stops.feed(decoder.feed(new))
                yield from let_out(out)
                if stops.matched is not None:
                    run.raw = "stop_sequence"
                    break
                if calls[0] and not job.get("parallel", True):
                    run.raw = "one_tool_call"
                    break
                if run.output_tokens >= limit:
                    run.reason, run.raw = "length", "max_tokens"
                    break
            else:
                run.prompt_tokens += 1
            steps += 1
            if len(self._cached) >= self._n_ctx:
                run.reason, run.raw = "length", "context_full"
                break
            self._decode((token,))
        decoder.close()
        yield from let_out(stops.close(), last=True)
        extra: Json = {}
        if schema is not None and run.reason == "stop":
            wrong = violations(partial + "".join(said), schema)
            if wrong:
                raise Refused("malformed", f"the local model's answer does not fit the schema: {wrong}")
        if hold and said:
            yield {"ev": "text", "t": "".join(said)}
        if speech.calls and run.reason != "length":
            run.reason = "tool_calls"
        if speech.unfinished is not None:
            extra["unfinished_tool_call"] = speech.unfinished
        yield {
            "ev": "done",
            "reason": run.reason,
            "raw": run.raw,
            "prompt": run.prompt_tokens,
            "cached": run.cached_tokens,
            "output": run.output_tokens,
            "extra": extra,
        }


class _Sampler:
    """Chooses tokens: temperature, top-p and the like, penalties, and perhaps a grammar.

    With a grammar a token is chosen freely first and only checked against the grammar; choosing among the grammar's
    tokens alone, which means testing the whole vocabulary, happens only when it fails. The distribution is the same.
    """

    def __init__(self, library: Any, vocab: Any, job: Json, grammar: str | None) -> None:
        self._c = c = library
        self._vocab = vocab
        self.constrained = grammar is not None
        self._grammar: Any = None
        self._free: Any = None
        self._strict: Any = None
        if grammar is not None:
            self._grammar = c.llama_sampler_init_grammar(vocab, grammar.encode(), b"root")
            if not self._grammar:  # llama.cpp would crash on it later
                raise Refused("incapable", "llama.cpp refuses the grammar made from this JSON schema")
        self._free = self._chain(job, 0)
        if self._grammar:
            self._strict = self._chain(job, 1)

    def _chain(self, job: Json, offset: int) -> Any:
        c = self._c
        chain = c.llama_sampler_chain_init(c.llama_sampler_chain_default_params())

        def add(sampler: Any) -> None:
            c.llama_sampler_chain_add(chain, sampler)

        repeat, frequency, presence = (job.get(k) for k in ("repeat_penalty", "frequency_penalty", "presence_penalty"))
        if repeat not in (None, 1.0) or frequency or presence:
            add(c.llama_sampler_init_penalties(
                c.llama_vocab_n_tokens(self._vocab), 64, repeat or 1.0, frequency or 0.0, presence or 0.0
            ))  # fmt: skip
        temperature = job["temperature"]
        if temperature <= 0.0:
            add(c.llama_sampler_init_greedy())
            return chain
        if job.get("top_k"):
            add(c.llama_sampler_init_top_k(job["top_k"]))
        if (top_p := job.get("top_p")) is not None:
            add(c.llama_sampler_init_top_p(top_p, 1))
        if job.get("min_p"):
            add(c.llama_sampler_init_min_p(job["min_p"], 1))
        add(c.llama_sampler_init_temp(temperature))
        add(c.llama_sampler_init_dist((job["seed"] + offset) & 0xFFFFFFFF))
        return chain

    def _data(self, tokens: Sequence[int], logits: Any) -> Any:
        """A candidate array; keeps its memory alive for the call."""
        c = self._c
        items = (c.llama_token_data * len(tokens))()
        for item, token in zip(items, tokens, strict=True):
            item.id, item.logit, item.p = token, float(logits[token]) if logits is not None else 0.0, 0.0
        array = c.llama_token_data_array(ctypes.cast(items, c.llama_token_data_p), len(tokens), -1, False)
        array.items = items
        return array

    def _fits(self, token: int) -> bool:
        array = self._data([token], None)
        self._c.llama_sampler_apply(self._grammar, ctypes.byref(array))
        return bool(array.items[0].logit != -math.inf)

    def next(self, ctx: Any) -> int:
        """The next token, accepted."""
        c = self._c
        token = int(c.llama_sampler_sample(self._free, ctx, -1))
        if not self._grammar:
            return token
        if not self._fits(token):
            n = c.llama_vocab_n_tokens(self._vocab)
            array = self._data(range(n), c.llama_get_logits_ith(ctx, -1))
            c.llama_sampler_apply(self._grammar, ctypes.byref(array))
            # What the grammar forbids is taken out, so that no later sampler can choose it.
            left = [item.id for item in array.items if item.logit != -math.inf]
            if not left:
                raise Refused("malformed", "no token of this model can go on within the schema")
            array = self._data(left, c.llama_get_logits_ith(ctx, -1))
            c.llama_sampler_apply(self._strict, ctypes.byref(array))
            token = int(array.data[max(0, array.selected)].id)
            c.llama_sampler_accept(self._strict, token)
        c.llama_sampler_accept(self._grammar, token)
        return token

    def best(self, ctx: Any, tokens: Sequence[int]) -> int | None:
        """The likeliest of `tokens` (that the grammar allows), accepted; None if there is none."""
        logits = self._c.llama_get_logits_ith(ctx, -1)
        for token in sorted(tokens, key=lambda t: (-logits[t], t)):
            if self._grammar:
                if not self._fits(token):
                    continue
                self._c.llama_sampler_accept(self._grammar, token)
            self._c.llama_sampler_accept(self._free, token)
            return int(token)
        return None

    def catch_up(self, tokens: Sequence[int]) -> None:
        """Take the grammar over text that is already there. Where that text does not fit it, the grammar is dropped.

        Accepting a token that the grammar does not allow would end the process.
        """
        for token in tokens:
            if not self._fits(token):
                self._c.llama_sampler_free(self._grammar)
                self._grammar = None
                return
            self._c.llama_sampler_accept(self._grammar, token)

    def close(self) -> None:
        """Free what C allocated."""
        for sampler in (self._free, self._strict, self._grammar):
            if sampler:
                self._c.llama_sampler_free(sampler)
        self._free = self._strict = self._grammar = None
