"""Chooses tokens with llama.cpp's samplers: temperature, top-p and the like, penalties, and perhaps a grammar."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from typing import Any

from shared_core.providers.llama_cpp.engine import Refused, Wanted

__all__ = ["Sampler"]


class Sampler:
    """With a grammar a token is chosen freely first and only checked against the grammar; choosing among the grammar's
    tokens alone, which means testing the whole vocabulary, happens only when it fails. The distribution is the same.
    """

    def __init__(self, library: Any, vocab: Any, wanted: Wanted) -> None:
        """Raises Refused: llama.cpp does not take the grammar."""
        self._c = c = library
        self._vocab = vocab
        self._n_vocab = c.llama_vocab_n_tokens(vocab)
        self._grammar: Any = None
        self._strict: Any = None
        if wanted.grammar is not None:
            text = wanted.grammar.encode("utf-8", "replace")
            self._grammar = c.llama_sampler_init_grammar(vocab, text, b"root")
            if not self._grammar:  # llama.cpp would crash on it later
                raise Refused("incapable", "llama.cpp refuses the grammar made for this request")
        self._free: Any = self._chain(wanted, 0)
        if self._grammar:
            self._strict = self._chain(wanted, 1)
            self._one = self._array(1)
            self._all = self._array(self._n_vocab)
            for token in range(self._n_vocab):
                self._all.items[token].id = token
            self._ids = bytes(self._all.items)
        self._sample = c.llama_sampler_sample

    def _chain(self, wanted: Wanted, offset: int) -> Any:
        c = self._c
        chain = c.llama_sampler_chain_init(c.llama_sampler_chain_default_params())

        def add(sampler: Any) -> None:
            c.llama_sampler_chain_add(chain, sampler)

        repeat, frequency, presence = wanted.repeat_penalty, wanted.frequency_penalty, wanted.presence_penalty
        if repeat != 1.0 or frequency or presence:
            add(c.llama_sampler_init_penalties(self._n_vocab, 64, repeat, frequency, presence))
        if wanted.temperature <= 0.0:
            add(c.llama_sampler_init_greedy())
            return chain
        if wanted.top_k:
            add(c.llama_sampler_init_top_k(wanted.top_k))
        if wanted.top_p is not None:
            add(c.llama_sampler_init_top_p(wanted.top_p, 1))
        if wanted.min_p:
            add(c.llama_sampler_init_min_p(wanted.min_p, 1))
        add(c.llama_sampler_init_temp(wanted.temperature))
        add(c.llama_sampler_init_dist((wanted.seed + offset) & 0xFFFFFFFF))
        return chain

    def _array(self, size: int) -> Any:
        """A candidate array that keeps its memory alive."""
        c = self._c
        items = (c.llama_token_data * size)()
        array = c.llama_token_data_array(ctypes.cast(items, c.llama_token_data_p), size, -1, False)
        array.items = items
        return array

    def _fits(self, token: int) -> bool:
        item = self._one.items[0]
        item.id, item.logit = token, 0.0
        self._c.llama_sampler_apply(self._grammar, ctypes.byref(self._one))
        return bool(item.logit != -math.inf)

    def choose(self, ctx: Any) -> int:
        """The next token, accepted.

        Raises:
            Refused: no token fits the grammar.
        """
        token: int = self._sample(self._free, ctx, -1)
        if self._grammar:
            if not self._fits(token):
                token = self._choose_strictly(ctx)
            self._c.llama_sampler_accept(self._grammar, token)
        return token

    def _choose_strictly(self, ctx: Any) -> int:
        c, array = self._c, self._all
        ctypes.memmove(array.items, self._ids, len(self._ids))
        logits = (ctypes.c_float * self._n_vocab).from_address(
            ctypes.addressof(c.llama_get_logits_ith(ctx, -1).contents)
        )
        # id, logit, p: the second of each three numbers. Copied in C; a loop here would take as long as the model.
        memoryview(array.items).cast("B").cast("f")[1::3] = memoryview(logits).cast("B").cast("f")
        array.size, array.selected, array.sorted = self._n_vocab, -1, False
        c.llama_sampler_apply(self._grammar, ctypes.byref(array))
        c.llama_sampler_apply(self._strict, ctypes.byref(array))
        chosen = array.data[max(0, array.selected)]
        token = int(chosen.id)
        # All forbidden, or a rounding error has picked what is: accepting that would end the process.
        if chosen.logit == -math.inf or not self._fits(token):
            raise Refused("malformed", "no token of this model can go on within the schema")
        c.llama_sampler_accept(self._strict, token)
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

    def close(self) -> None:
        """Free what C allocated."""
        for sampler in (self._free, self._strict, self._grammar):
            if sampler:
                self._c.llama_sampler_free(sampler)
        self._free = self._strict = self._grammar = None
