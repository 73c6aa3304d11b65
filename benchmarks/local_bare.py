"""llama.cpp without anything of ours around it: a decode-and-sample loop, and llama-cpp-python's own streaming call.

Run by `benchmarks`, which hands it the turn: reads 'what number' lines, answers with microseconds per token. Its
arguments are the model file and the context window in tokens. 'inside' is our own loop in the same process, without a
socket.
"""

from __future__ import annotations

import ctypes
import json
import sys
import time
from collections.abc import Callable
from typing import Any

SILENT = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda *_: None)
PROMPT = "<|im_start|>user\nTell me everything you know.<|im_enX|>\n<|im_start|>assistant\n"


def bare(path: str, n_ctx: int) -> Callable[[int], None]:
    """llama_decode and llama_sampler_sample in turn, greedy, each token as a piece of text."""
    import llama_cpp.llama_cpp as c

    c.llama_backend_init()
    c.llama_log_set(SILENT, ctypes.c_void_p(0))
    params = c.llama_model_default_params()
    model = c.llama_model_load_from_file(path.encode(), params)
    context = c.llama_context_default_params()
    context.n_ctx, context.n_batch, context.n_ubatch = n_ctx, 256, 256
    context.n_threads = context.n_threads_batch = 1
    context.no_perf = True
    ctx = c.llama_init_from_model(model, context)
    vocab = c.llama_model_get_vocab(model)
    chain = c.llama_sampler_chain_init(c.llama_sampler_chain_default_params())
    c.llama_sampler_chain_add(chain, c.llama_sampler_init_greedy())
    data = PROMPT.encode()
    tokens = (c.llama_token * 256)()
    count = c.llama_tokenize(vocab, data, len(data), tokens, 256, True, True)
    one = (c.llama_token * 1)()
    piece = ctypes.create_string_buffer(64)

    c.llama_decode(ctx, c.llama_batch_get_one(tokens, count))
    last = (c.llama_token * 1)(tokens[count - 1])

    def run(number: int) -> None:
        # The prompt stays, as it does with us: only its last token is read again.
        c.llama_memory_seq_rm(c.llama_get_memory(ctx), 0, count - 1, -1)
        c.llama_decode(ctx, c.llama_batch_get_one(last, 1))
        for _ in range(number):
            one[0] = c.llama_sampler_sample(chain, ctx, -1)
            c.llama_token_to_piece(vocab, one[0], piece, 64, 0, False)
            c.llama_decode(ctx, c.llama_batch_get_one(one, 1))

    return run


def high_level(path: str, n_ctx: int) -> Callable[[int], None]:
    """`Llama.create_completion(stream=True)`."""
    import llama_cpp

    llama_cpp.llama_log_set(SILENT, ctypes.c_void_p(0))
    llama = llama_cpp.Llama(path, n_ctx=n_ctx, n_threads=1, n_batch=256, verbose=False)

    def run(number: int) -> None:
        said = llama.create_completion(PROMPT, max_tokens=number, temperature=0.0, stream=True, stop=[])
        for _ in said:
            continue

    return run


def inside(path: str, n_ctx: int) -> Callable[[int], None]:
    """What our worker computes, its messages thrown away."""
    from shared_core.providers.llama_cpp.engine import open_engine
    from shared_core.providers.llama_cpp.local_model import LocalModel

    model = LocalModel(open_engine("llama-cpp-python"))
    model.load({"path": path, "n_ctx": n_ctx, "n_batch": 256, "n_threads": 1, "kv_cache_mb": 512})
    job: dict[str, Any] = {
        "messages": [{"role": "user", "content": "Tell me everything you know."}], "temperature": 0.0, "seed": 1,
    }  # fmt: skip

    def run(number: int) -> None:
        ends: list[dict[str, Any]] = []
        model.generate({**job, "max_tokens": number}, ends.append)
        if ends[-1]["output"] != number:
            raise RuntimeError(f"{ends[-1]['output']} tokens instead of {number}")

    return run


def main() -> None:
    """Answer one round a line."""
    path, n_ctx = sys.argv[1], int(sys.argv[2])
    rounds = {f.__name__: f(path, n_ctx) for f in (bare, inside, high_level)}
    sys.stdout.write(json.dumps({"ready": True}) + "\n")
    sys.stdout.flush()
    for line in sys.stdin:
        what, number = line.split()
        begun = time.perf_counter()
        rounds[what](int(number))
        sys.stdout.write(json.dumps({"us": (time.perf_counter() - begun) / int(number) * 1e6}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
