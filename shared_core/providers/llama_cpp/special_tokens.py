"""The control tokens of a GGUF, read from its vocabulary without llama.cpp: its server does not tell them."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from pathlib import Path

__all__ = ["special_tokens"]

_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _ARRAY, _INT32 = 8, 9, 5
_UNKNOWN, _CONTROL = 2, 3
"""Kinds of token. Source: ggml's llama_token_type."""


def special_tokens(path: Path) -> tuple[str, ...]:
    """Texts of the control and unknown tokens. Empty where the file does not say what kind its tokens are.

    Raises:
        ValueError: the file is no GGUF, or ends inside its header.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return tuple(_read(data))
    except struct.error as error:
        raise ValueError(f"{path} ends inside its header") from error


def _read(data: mmap.mmap) -> Iterator[str]:
    (entries,) = struct.unpack_from("<Q", data, 16)
    at, texts, kinds = 24, -1, None
    for _ in range(entries):
        (length,) = struct.unpack_from("<Q", data, at)
        key = data[at + 8 : at + 8 + length]
        at += 8 + length
        (kind,) = struct.unpack_from("<I", data, at)
        at += 4
        if kind == _STRING:
            at += 8 + struct.unpack_from("<Q", data, at)[0]
        elif kind != _ARRAY:
            at += _SIZES[kind]
        else:
            inner, count = struct.unpack_from("<IQ", data, at)
            at += 12
            if key == b"tokenizer.ggml.tokens":
                texts = at
            if key == b"tokenizer.ggml.token_type" and inner == _INT32:
                kinds = struct.unpack_from(f"<{count}i", data, at)
            if inner == _STRING:
                for _ in range(count):
                    at += 8 + struct.unpack_from("<Q", data, at)[0]
            else:
                at += count * _SIZES[inner]
    if texts < 0 or kinds is None:
        return
    at = texts
    for kind in kinds:
        (length,) = struct.unpack_from("<Q", data, at)
        if kind in (_UNKNOWN, _CONTROL) and length:
            yield data[at + 8 : at + 8 + length].decode("utf-8", "replace")
        at += 8 + length
