"""LiteLLM's Router, measured in its own environment: reads 'what number' lines, answers with microseconds per call.

Run by `benchmarks`, which hands it the turn; it imports nothing of ours.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import time
from importlib.metadata import version

import litellm

litellm.suppress_debug_info = True
logging.disable(logging.CRITICAL)

ROUTER = litellm.Router(
    model_list=[
        {"model_name": "m", "litellm_params": {"model": "openai/gpt-4o-mini", "api_key": "k", "mock_response": "ok"}},
        {"model_name": "b", "litellm_params": {"model": "openai/gpt-4o-mini", "api_key": "k", "mock_response": "ok"}},
    ],
    fallbacks=[{"m": ["b"]}],
    num_retries=0,
)
MESSAGES = [{"role": "user", "content": "Hello"}]


def sync(number: int) -> None:
    """Whole answers, one after another."""
    for _ in range(number):
        ROUTER.completion(model="m", messages=MESSAGES)


async def tasks(number: int) -> None:
    """Whole answers, awaited one after another."""
    for _ in range(number):
        await ROUTER.acompletion(model="m", messages=MESSAGES)


def main() -> None:
    """Answer until standard input ends."""
    runner = asyncio.Runner()
    sync(20)
    print(json.dumps({"version": version("litellm")}), flush=True)
    for line in sys.stdin:
        what, number = line.split()
        n = int(number)
        begun = time.perf_counter()
        if what == "sync":
            sync(n)
        else:
            runner.run(tasks(n))
        print(json.dumps({"us": (time.perf_counter() - begun) / n * 1e6}), flush=True)
    runner.close()


if __name__ == "__main__":
    main()
