"""The vocabulary: byte-level BPE of 1024 tokens, learnt from the corpus.

llama.cpp reproduces it as tokenizer ``gpt2`` with the pre-tokenizer ``smollm``: single digits, then the GPT-2 pattern.
"""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from .chat_format import SPECIAL_TOKENS

VOCABULARY_SIZE = 1024
LONGEST_TOKEN = 16  # bytes; llama-cpp-python drops pieces over 32


def train_vocabulary(texts: Iterable[str]) -> Tokenizer:
    """A tokenizer of exactly :data:`VOCABULARY_SIZE` tokens; the special tokens come first."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=LONGEST_TOKEN,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() != VOCABULARY_SIZE:
        raise ValueError(f"the corpus gave {tokenizer.get_vocab_size()} tokens instead of {VOCABULARY_SIZE}")
    return tokenizer
