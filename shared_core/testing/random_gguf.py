"""A random tiny llama in a GGUF file: a model fixture that costs no download, the same bytes for the same seed.

It loads in llama.cpp and answers with noise. Tests use it where a real file matters and its words do not.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["LlamaShape", "write_llama_gguf", "write_random_gguf"]

CONTROL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TOOL_TOKENS = ("<tool_call>", "</tool_call>")  # part of the text, so not control tokens: those vanish when detokenised

_PLAIN_CHATML = (
    "{%- for message in messages %}{{- '<|im_start|>' }}{{- message.role }}{{- '\\n' }}"
    "{%- if message.content %}{{- message.content }}{%- endif %}{{- '<|im_end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)


@dataclass(frozen=True)
class LlamaShape:
    """The sizes of a llama with tied embeddings. ``context`` is in tokens."""

    width: int
    layers: int
    heads: int
    kv_heads: int
    feed_forward: int
    context: int
    rope_base: float = 10_000.0
    norm_epsilon: float = 1e-5

    @property
    def head_width(self) -> int:
        """Numbers per attention head, which is also the rotary dimension."""
        return self.width // self.heads


def write_llama_gguf(
    path: str | Path,
    *,
    shape: LlamaShape,
    tokens: Sequence[str],
    merges: Sequence[str],
    tensors: Mapping[str, NDArray[Any]],
    chat_template: str,
    name: str,
    description: str,
) -> None:
    """Write a llama with a byte-level BPE vocabulary; the special tokens must be among ``tokens``.

    ``merges`` are pairs joined by a space. ``tensors`` are named as llama.cpp names them, in rows x columns; matrices
    are stored as 16-bit floats and vectors (the norms) as 32-bit ones. RoPE is llama.cpp's own: neighbouring pairs.

    :raises ImportError: the ``gguf`` package is not installed.
    :raises ValueError: a template of exactly 1024 bytes (llama-cpp-python loses its last character), or a token of
        more than 32 bytes (it loses the whole token).
    """
    gguf, np = _libraries()
    if len(chat_template.encode()) == 1024:
        raise ValueError("The chat template has exactly 1024 bytes. hint: add a space to it.")
    if longest := [token for token in tokens if len(token) > 32]:
        raise ValueError(f"Tokens over 32 bytes: {longest}. hint: learn a vocabulary with shorter tokens.")
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(name)
    writer.add_description(description)
    writer.add_license("mit")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_rope_dimension_count(shape.head_width)
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_layer_norm_rms_eps(shape.norm_epsilon)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")  # single digits, then the GPT-2 pattern
    writer.add_token_list(list(tokens))
    writer.add_token_types([_token_type(gguf, token) for token in tokens])
    writer.add_token_merges(list(merges))
    writer.add_eos_token_id(tokens.index("<|im_end|>"))
    writer.add_eot_token_id(tokens.index("<|im_end|>"))
    writer.add_pad_token_id(tokens.index("<|endoftext|>"))
    writer.add_add_bos_token(False)
    writer.add_chat_template(chat_template)
    for tensor_name, values in tensors.items():
        writer.add_tensor(tensor_name, np.ascontiguousarray(values, np.float16 if values.ndim == 2 else np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_random_gguf(
    path: str | Path,
    *,
    seed: int = 0,
    width: int = 64,
    layers: int = 2,
    context: int = 2048,
    scale: float = 0.1,
    chat_template: str = _PLAIN_CHATML,
) -> Path:
    """Write a random llama of 266 tokens and return its path; under 1 MB at the default sizes.

    ``width`` must divide by 64 (four heads, two of them for keys and values). ``scale`` is the largest weight. The
    bytes depend on the arguments and the version of ``gguf`` alone.

    :raises ImportError: the ``gguf`` package is not installed.
    """
    _, np = _libraries()
    shape = LlamaShape(width, layers, heads=4, kv_heads=2, feed_forward=2 * width, context=context)
    letters = [_byte_letter(byte) for byte in range(256)]
    merges = [f"{_byte_letter(32)} t", "h e", "i n", "e r", "a n"]  # a vocabulary without merges does not load
    tokens = [*CONTROL_TOKENS, *TOOL_TOKENS, *letters, *(merge.replace(" ", "") for merge in merges)]
    rng = random.Random(seed)

    def matrix(rows: int, columns: int) -> NDArray[Any]:
        drawn: NDArray[Any] = np.frombuffer(rng.randbytes(2 * rows * columns), dtype="<u2").astype(np.float32)
        return ((drawn / 32767.5 - 1.0) * scale).reshape(rows, columns)

    kv_width = shape.kv_heads * shape.head_width
    tensors = {"token_embd.weight": matrix(len(tokens), width), "output_norm.weight": np.ones(width, np.float32)}
    for layer in range(layers):
        tensors |= {
            f"blk.{layer}.attn_norm.weight": np.ones(width, np.float32),
            f"blk.{layer}.attn_q.weight": matrix(width, width),
            f"blk.{layer}.attn_k.weight": matrix(kv_width, width),
            f"blk.{layer}.attn_v.weight": matrix(kv_width, width),
            f"blk.{layer}.attn_output.weight": matrix(width, width),
            f"blk.{layer}.ffn_norm.weight": np.ones(width, np.float32),
            f"blk.{layer}.ffn_gate.weight": matrix(shape.feed_forward, width),
            f"blk.{layer}.ffn_up.weight": matrix(shape.feed_forward, width),
            f"blk.{layer}.ffn_down.weight": matrix(width, shape.feed_forward),
        }
    write_llama_gguf(
        path,
        shape=shape,
        tokens=tokens,
        merges=merges,
        tensors=tensors,
        chat_template=chat_template,
        name="llm-fallback random (test fixture)",
        description=f"Random weights from seed {seed}. It answers with noise.",
    )
    return Path(path)


def _byte_letter(byte: int) -> str:
    """The printable stand-in of a byte in GPT-2's byte-level vocabularies."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    if byte in printable:
        return chr(byte)
    return chr(256 + sum(1 for other in range(byte) if other not in printable))


def _token_type(gguf: Any, token: str) -> int:
    if token in CONTROL_TOKENS:
        return int(gguf.TokenType.CONTROL)
    return int(gguf.TokenType.USER_DEFINED if token in TOOL_TOKENS else gguf.TokenType.NORMAL)


def _libraries() -> tuple[Any, Any]:
    """``gguf`` and ``numpy``, imported only when a file is to be written."""
    try:
        import gguf
        import numpy as np
    except ImportError as error:
        raise ImportError("Writing a GGUF file needs the 'gguf' package. hint: pip install gguf") from error
    return gguf, np
