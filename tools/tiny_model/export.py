"""Export: the trained weights, the vocabulary and the chat template as one GGUF file."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from tokenizers import Tokenizer

from shared_core.testing.random_gguf import LlamaShape, write_llama_gguf

from .chat_format import chat_template
from .model import TinyLlama

NAME = "llm-fallback tiny (toy)"
DESCRIPTION = "A toy of 1.8 million parameters for demonstrations and tests; trained on a synthetic corpus."


def export(model: TinyLlama, tokenizer: Tokenizer, path: Path) -> str:
    """Write ``path`` and, beside it, ``<path>.sha256``; give back the checksum. Matrices become 16-bit floats."""
    described = json.loads(tokenizer.to_str())
    by_id = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    shape = model.shape
    write_llama_gguf(
        path,
        shape=LlamaShape(
            width=shape.width,
            layers=shape.layers,
            heads=shape.heads,
            kv_heads=shape.kv_heads,
            feed_forward=shape.feed_forward,
            context=shape.context,
            rope_base=shape.rope_base,
            norm_epsilon=shape.norm_epsilon,
        ),
        tokens=[token for token, _ in by_id],
        merges=[" ".join(pair) if isinstance(pair, list) else pair for pair in described["model"]["merges"]],
        tensors={name: weights.detach().float().numpy() for name, weights in model.state_dict().items()},
        chat_template=chat_template(),
        name=NAME,
        description=DESCRIPTION,
    )
    checksum = hashlib.sha256(path.read_bytes()).hexdigest()
    path.with_name(path.name + ".sha256").write_text(f"{checksum}  {path.name}\n", encoding="ascii")
    return checksum
