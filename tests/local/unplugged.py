"""An agent of LangChain and an engine of LlamaIndex that must finish their work with no hosted endpoint in reach.

`python -m tests.local.unplugged` runs both and prints what came of it as JSON, so that it can be run where there is no
network at all.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shared_core import RetryPolicy, Target

HANDBOOK = Path(__file__).resolve().parents[2] / "docs" / "handbook"
LOCAL = "llamacpp:tiny"


def models(nowhere: str | None = None) -> list[Any]:
    """Two hosted targets and the local model. `nowhere` stands in for the vendors' own addresses."""
    hosted = {
        "openai:gpt-5-mini": f"{nowhere}/v1" if nowhere else None,
        "anthropic:claude-sonnet-4-5": nowhere,
    }
    once = RetryPolicy(same_target=0)
    return [*(Target(spec, base_url=url, api_key="any-key-at-all", retry=once) for spec, url in hosted.items()), LOCAL]


def langchain_agent(targets: Sequence[Any], *, stream: bool = False, of: Any = None) -> dict[str, Any]:
    """An agent with two tools, asked something that takes one of them."""
    from langchain.agents import create_agent

    from langchain_fallback import FallbackChatModel

    ran: list[tuple[str, str]] = []

    def get_weather(city: str) -> str:
        """Get the current weather of a city."""
        ran.append(("get_weather", city))
        return json.dumps({"city": city, "temperature_c": 21, "condition": "sunny"})

    def get_time(city: str) -> str:
        """Get the local time of a city."""
        ran.append(("get_time", city))
        return json.dumps({"city": city, "time": "14:30"})

    with_it = {"messages": [("user", "What is the weather in Lima?")]}
    model = FallbackChatModel(models=list(targets))
    try:
        agent = create_agent(model, tools=[get_weather, get_time])
        if of is not None:
            messages = of(agent.ainvoke(with_it))["messages"]
        elif stream:
            messages = list(agent.stream(with_it, stream_mode="values"))[-1]["messages"]
        else:
            messages = agent.invoke(with_it)["messages"]
        served = [m.response_metadata["fallback"] for m in messages if m.type == "ai"]
        return {
            "ran": ran,
            "said": messages[-1].text,
            "served": [fallback["target"] for fallback in served],
            "failed": sorted({a["target"] for f in served for a in f["attempts"] if a["outcome"] != "answered"}),
        }
    finally:
        model.close()


def llamaindex_engine(targets: Sequence[Any], *, stream: bool = False, of: Any = None) -> dict[str, Any]:
    """A query engine over the handbook, with an embedding that needs no network."""
    from llama_index.core import Document, VectorStoreIndex

    from llamaindex_fallback import FallbackLLM
    from tools.demo.embedding import WordCounts

    pages = [Document(text=page.read_text(encoding="utf-8")) for page in sorted(HANDBOOK.glob("*.md"))]
    llm = FallbackLLM(models=list(targets))
    try:
        index = VectorStoreIndex.from_documents(pages, embed_model=WordCounts())
        engine = index.as_query_engine(llm=llm, similarity_top_k=1, streaming=stream)
        said = []
        for question in ("Where is customer data stored?", "Who delivers the parcels?"):
            if of is not None:
                said.append(str(of(engine.aquery(question))))
            elif stream:
                answer: Any = engine.query(question)
                said.append("".join(answer.response_gen))
            else:
                said.append(str(engine.query(question)))
        journal = llm.router.last
        assert journal is not None
        return {"said": said, "served": journal.attempts[-1].target}
    finally:
        llm.close()


def main() -> int:
    """Both, sync and async; prints JSON."""
    told = {
        "langchain": langchain_agent(models()),
        "langchain, async": langchain_agent(models(), of=asyncio.run),
        "llamaindex": llamaindex_engine(models()),
        "llamaindex, streamed": llamaindex_engine(models(), stream=True),
    }
    json.dump(told, sys.stdout, indent=2)
    return 0


if __name__ == "__main__":
    sys.exit(main())
