"""The six steps of the demonstration, one function each. What a step promises is checked; a broken promise counts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate

from langchain_fallback import FallbackChatModel
from llamaindex_fallback import FallbackLLM
from shared_core import Execution, Router
from tools.demo.screen import Screen
from tools.demo.world import SAYS, World

__all__ = ["STEPS", "Show", "Step"]

HANDBOOK = Path(__file__).parents[2] / "docs" / "handbook"


class Show:
    """One router, the world it lives in, and the screen."""

    def __init__(self, world: World, screen: Screen) -> None:
        self.world, self.screen = world, screen
        self.router = Router(world.targets, on_event=screen.event, seed=6)
        self.model = FallbackChatModel(router=self.router, max_tokens=world.longest)
        self.chain = self.chain_with()
        for provider in self.router.providers:
            getattr(provider, "load", int)()  # imports the SDK: an audience should not take that for a slow vendor

    def chain_with(self, instructions: str | None = None) -> Any:
        """prompt | model | parser, as in any LangChain application."""
        system = [("system", instructions)] if instructions else []
        prompt = ChatPromptTemplate.from_messages([*system, ("human", "{question}")])
        return prompt | self.model | StrOutputParser()

    def ask(self, question: str) -> str:
        """Put a question to the chain; show it, what goes wrong meanwhile, and the answer."""
        self.screen.question(question)
        text: str = self.chain.invoke({"question": question})
        self.router.flush_events()
        self.screen.answer(text, self.journal)
        return text

    @property
    def journal(self) -> Execution:
        """The last request: who was tried, and what came of it."""
        assert self.router.last is not None, "nothing was asked yet"
        return self.router.last

    @property
    def asked(self) -> list[str]:
        """Who was tried for the last request, in order; the last of them answered it."""
        return [attempt.target for attempt in self.journal.attempts]


def one(show: Show) -> None:
    text = show.ask("Explain what a circuit breaker does.")
    show.screen.promise("the first vendor answered, nobody else was asked", show.asked == [show.world.first.name])
    show.screen.promise("the chain's parser returned its text", bool(text))


def two(show: Show) -> None:
    world, screen = show.world, show.screen
    first, second = world.first.name, world.second.name
    world.failing()
    show.ask("Explain what a retry does.")
    screen.promise("503: the second vendor answered, without a wait", show.asked == [first, second])
    show.ask("Explain what a timeout does.")
    waited = show.journal.waited_s >= 1.0
    again = show.asked[:2] == [first, first]
    screen.promise("429: it waited as long as it was told to, and asked once more", again and waited)
    screen.promise(f"silence: after {world.patience_s:g} s the second vendor answered", show.asked[2:] == [second])


def three(show: Show) -> None:
    world, screen = show.world, show.screen
    world.down()
    question = "Explain what a local model does."
    text = show.ask(question)
    screen.promise("the same chain, answered by llama.cpp from a GGUF", show.asked[-1] == world.local.name)
    if world.local_knows:
        screen.promise("the words are the ones this small model was taught", text == SAYS[question])


def four(show: Show) -> None:
    world, screen = show.world, show.screen
    question = "Explain what a fallback does."
    expected = SAYS[question]
    world.healthy()
    world.cutting(expected, after_words=23)
    show.router.reset()  # what an operator does when a vendor is back, rather than wait for the next probe
    screen.question(question)
    pieces = show.chain_with(world.instructions(expected)).stream({"question": question})
    text, seam = screen.streamed(pieces, show.router.flush_events)
    screen.served(show.journal)
    both = show.asked[0] == world.first.name and show.asked[-1] == world.local.name
    screen.promise("the vendor began (green), the local model finished (magenta)", both)
    screen.promise(f"the journal knows the seam: character {seam}", show.journal.seams == [seam])
    scripted = world.instructions(expected) is None
    if world.local_knows and (scripted or expected.startswith(text[:seam])):
        screen.promise("the reader got one whole text: no word lost, none said twice", text == expected)
    else:
        screen.note("A vendor or a model with words of its own: whether they fit together is for you to judge.")


QUESTIONS = {
    "Where is customer data stored?": "Helsinki",
    "Who delivers the parcels?": "BlueKite",
}
"""Asked of the handbook, and what a right answer names."""


def five(show: Show) -> None:
    from llama_index.core import Settings, VectorStoreIndex
    from llama_index.core.schema import TextNode

    from tools.demo.embedding import WordCounts

    world, screen = show.world, show.screen
    world.down()
    Settings.llm = FallbackLLM(router=show.router, max_tokens=100)
    Settings.embed_model = WordCounts()
    pages = [TextNode(text=page.read_text(encoding="utf-8")) for page in sorted(HANDBOOK.glob("*.md"))]
    engine = VectorStoreIndex(pages).as_query_engine(similarity_top_k=2)
    for question, named in QUESTIONS.items():
        screen.question(question)
        text = str(engine.query(question))
        show.router.flush_events()
        screen.answer(text, show.journal)
        local = show.asked[-1] == world.local.name
        screen.promise(f"answered on this machine, from the handbook: {named}", local and named in text)


def six(show: Show) -> None:
    screen, router = show.screen, show.router
    screen.health(router.health())
    screen.costs(router.costs())
    screen.journal(show.journal)
    names = [target.name for target in show.world.targets]
    screen.promise("every target has its health", [health.target for health in router.health()] == names)
    costs = {cost.target: cost for cost in router.costs().targets}
    hosted, local = costs[names[1]].cost_nano, costs[names[2]].cost_nano
    screen.promise("hosted answers cost money, local ones nothing", hosted > 0 == local)
    left = [*(str(error) for error in show.journal.errors), *(skip.reason for skip in show.journal.skips)]
    screen.promise("the journal says of every vendor why it was left", len(left) >= 2 and all(left))


@dataclass(frozen=True)
class Step:
    """A title, a sentence that says what is about to happen, and what makes it happen."""

    title: str
    sentence: str
    play: Callable[[Show], None]


STEPS = (
    Step(
        "A LangChain chain, answered by a hosted vendor",
        "prompt | FallbackChatModel | parser, over the vendor's own SDK and a real socket.",
        one,
    ),
    Step(
        "The vendor fails, another vendor answers",
        "It says 503, then 429 'come back in a second', then nothing at all. The chain does not change.",
        two,
    ),
    Step(
        "Every vendor is unreachable, this machine answers",
        "Both addresses refuse connections. What is left is a GGUF in llama.cpp, in a process of its own.",
        three,
    ),
    Step(
        "An answer breaks off in mid-sentence, another model finishes it",
        "The first vendor is back, and loses the connection while it writes; the second one says 503.",
        four,
    ),
    Step(
        "A LlamaIndex query engine over docs/handbook, without a vendor",
        "Both addresses refuse connections again. The same router serves LlamaIndex: it shares what it has learnt.",
        five,
    ),
    Step("What the operator sees", "Health, costs, and the journal of the last request. All of it is data too.", six),
)
