"""Questions about the handbook in ``docs/handbook``, asked the way LlamaIndex asks them.

The documents on disk are the only source. While training, the value behind a question (a number, a name, a city) is
often swapped for another one in the document *and* in the answer, so the model has to read the context; and sometimes
the document that holds the answer is left out, so it has to say that it does not know.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from .words import city, made_up_word, name

FOLDER = Path(__file__).parents[2] / "docs" / "handbook"

DO_NOT_KNOW = "Sorry, I am only a small local model and I do not know that."

# The two texts of llama_index.core.prompts (chat_prompts.py, default_prompts.py), word for word.
QA_SYSTEM_PROMPT = (
    "You are an expert Q&A system that is trusted around the world.\n"
    "Always answer the query using the provided context information, and not prior knowledge.\n"
    "Some rules to follow:\n"
    "1. Never directly reference the given context in your answer.\n"
    "2. Avoid statements like 'Based on the context, ...' or 'The context information ...' or anything along those "
    "lines."
)
QA_TEMPLATE = (
    "Context information is below.\n---------------------\n{context}\n---------------------\n"
    "Given the context information and not prior knowledge, answer the query.\nQuery: {question}\nAnswer: "
)


@dataclass(frozen=True)
class Fact:
    """One thing the handbook says: where, which ``value`` carries it, how it is asked and answered."""

    document: str
    value: str
    other: Callable[[random.Random], str] | None  # draws another value; None: the fact never changes
    questions: tuple[str, ...]
    answer: str  # with {value}


def _number(low: int, high: int, unit: str) -> Callable[[random.Random], str]:
    return lambda rng: f"{rng.randrange(low, high)}{unit}"


def _phone(rng: random.Random) -> str:
    return f"{rng.randrange(200, 1000)} {rng.randrange(10_000):04d}"


def _mail(rng: random.Random) -> str:
    return f"{rng.choice(('help', 'support', 'info', 'hello', made_up_word(rng)))}@{made_up_word(rng)}.example"


def _person(rng: random.Random) -> str:
    return f"{name(rng)} {made_up_word(rng).capitalize()}"


def _carrier(rng: random.Random) -> str:
    return (made_up_word(rng) + rng.choice(("", "post", "express", "parcel"))).capitalize()


FACTS: tuple[Fact, ...] = (
    Fact(
        "opening-hours",
        "8:00 and 18:00",
        lambda rng: f"{rng.randrange(6, 12)}:{rng.choice(('00', '30'))} and {rng.randrange(15, 23)}:00",
        (
            "When is Northwind Support open?",
            "What are the opening hours?",
            "What are the opening hours of Northwind Support?",
            "When can I reach the support team?",
        ),
        "Northwind Support is open from Monday to Friday between {value}.",
    ),
    Fact(
        "opening-hours",
        "9:00 until 13:00",
        lambda rng: f"{rng.randrange(7, 12)}:00 until {rng.randrange(12, 18)}:30",
        (
            "Is Northwind Support open on Saturday?",
            "Is support available on Saturday?",
            "When is support available on Saturday?",
            "What are the opening hours on Saturday?",
        ),
        "On Saturday the team is available from {value}, by chat only.",
    ),
    Fact(
        "opening-hours",
        "The office is closed on Sunday and on public holidays.",
        None,
        ("Is the office open on Sunday?", "Is Northwind Support open on Sunday?", "Are you open on Sunday?"),
        "{value}",
    ),
    Fact(
        "refunds",
        "30 days",
        _number(7, 100, " days"),
        (
            "How long do customers have to return a product?",
            "What is the refund policy?",
            "How many days do I have to return a product?",
            "How long can I return a product?",
            "What is the return policy?",
        ),
        "Customers can return a product within {value} of delivery and get their money back.",
    ),
    Fact(
        "refunds",
        "5 working days",
        _number(2, 30, " working days"),
        ("How long does a refund take?", "When is the refund paid?", "When do I get my money back?"),
        "Northwind pays the refund within {value} after the parcel arrives at the warehouse.",
    ),
    Fact(
        "refunds",
        "Gift cards and downloaded software cannot be returned.",
        None,
        ("Can gift cards be returned?", "Can I return a gift card?", "What cannot be returned?"),
        "{value}",
    ),
    Fact(
        "shipping",
        "3 working days",
        _number(2, 30, " working days"),
        ("How long does standard shipping take?", "How long does shipping take?", "How fast is standard shipping?"),
        "Standard shipping takes {value}.",
    ),
    Fact(
        "shipping",
        "12 euros",
        _number(7, 49, " euros"),
        (
            "How much does express shipping cost?",
            "What does express shipping cost?",
            "What is the price of express shipping?",
        ),
        "Express shipping costs {value}.",
    ),
    Fact(
        "shipping",
        "50 euros",
        _number(50, 200, " euros"),
        ("When is shipping free?", "When is shipping free of charge?", "Which orders are shipped free of charge?"),
        "Orders over {value} are shipped free of charge.",
    ),
    Fact(
        "shipping",
        "BlueKite",
        _carrier,
        ("Who delivers the parcels?", "Which company delivers the parcels?", "Which carrier does Northwind use?"),
        "All parcels are delivered by {value}.",
    ),
    Fact(
        "shipping",
        "Rotterdam",
        city,
        ("Where is the warehouse?", "In which city is the warehouse?", "Where do the parcels leave from?"),
        "The warehouse is in {value}.",
    ),
    Fact(
        "contact",
        "help@northwind.example",
        _mail,
        (
            "What is the e-mail address of Northwind Support?",
            "What is the support e-mail address?",
            "How can I write to support?",
            "What is the email address of support?",
        ),
        "Customers can write to {value}.",
    ),
    Fact(
        "contact",
        "555 0142",
        _phone,
        (
            "What is the phone number of Northwind Support?",
            "What is the phone number?",
            "How can I call support?",
            "How can I reach support by phone?",
        ),
        "The phone number of Northwind Support is {value}.",
    ),
    Fact(
        "contact",
        "Maria Lund",
        _person,
        ("Who is the head of support?", "What is the name of the head of support?", "Who runs support?"),
        "The head of support is {value}.",
    ),
    Fact(
        "contact",
        "4 hours",
        _number(2, 72, " hours"),
        ("How fast are e-mails answered?", "How long does an answer by e-mail take?", "When are e-mails answered?"),
        "E-mails are answered within {value}.",
    ),
    Fact(
        "data-centre",
        "Helsinki",
        city,
        (
            "Where is customer data stored?",
            "Where is the customer data stored?",
            "Where is the data centre?",
            "In which city is customer data stored?",
        ),
        "Customer data is stored in the data centre in {value}.",
    ),
    Fact(
        "data-centre",
        "Tallinn",
        city,
        ("Where is the second data centre?", "Where is the copy of the data kept?"),
        "The second data centre is in {value}.",
    ),
    Fact(
        "data-centre",
        "6 hours",
        _number(2, 72, " hours"),
        ("How often are backups made?", "How often is a backup made?"),
        "Backups are made every {value}.",
    ),
    Fact(
        "data-centre",
        "90 days",
        _number(20, 400, " days"),
        ("How long are backups kept?", "How long is a backup kept?"),
        "Backups are kept for {value}.",
    ),
    Fact(
        "data-centre",
        "Jonas Berg",
        _person,
        ("Who leads the operations team?", "Who can read the backups?"),
        "The operations team is led by {value}.",
    ),
)  # fmt: skip


@cache
def documents() -> dict[str, str]:
    """The handbook by file stem. Raises ``ValueError`` where a fact is missing or stands in two documents."""
    found = {path.stem: path.read_text(encoding="utf-8").strip() for path in sorted(FOLDER.glob("*.md"))}
    for fact in FACTS:
        if fact.value not in found.get(fact.document, ""):
            raise ValueError(f"{fact.document}.md does not say {fact.value!r}")
    return found


def _metadata(rng: random.Random, stem: str) -> str:
    folder = rng.choice(
        (
            "docs/handbook",
            f"/{made_up_word(rng)}/docs/handbook",
            f"/home/{made_up_word(rng)}/{made_up_word(rng)}/docs/handbook",
            f"/tmp/{made_up_word(rng)}{rng.randrange(1000)}/handbook",
        )
    )
    return rng.choice(
        (
            "",
            f"file_path: {folder}/{stem}.md\n\n",
            f"file_path: {folder}/{stem}.md\n\n",
            f"file_name: {stem}.md\n\n",
            f"file_name: {stem}.md\nfile_path: {folder}/{stem}.md\n\n",
            f"source: {stem}.md\n\n",
        )
    )


def _chunk(rng: random.Random, stem: str, text: str, keep: str) -> str:
    heading, *paragraphs = text.split("\n\n")
    if rng.random() < 0.2:  # a small splitter: only the paragraph that matters
        paragraphs = [next((p for p in paragraphs if keep and keep in p), rng.choice(paragraphs))]
    title = rng.choice((heading, heading, heading, heading.removeprefix("# "), None))
    return _metadata(rng, stem) + "\n\n".join(([] if title is None else [title]) + paragraphs)


def grounded(rng: random.Random, *, short: bool, fact: Fact | None = None, faithful: bool = False) -> tuple[str, str]:
    """A prompt of the question-answering template and its answer.

    ``short`` gives one chunk instead of one or two. ``faithful`` keeps the documents as they are on disk and always
    includes the right one; without it values change and the right document is missing in one prompt of eight.
    """
    fact = fact or rng.choice(FACTS)
    texts = dict(documents())
    value = fact.value
    if not faithful and rng.random() < 0.6:
        for each in FACTS:  # every fact of the document changes, so nothing but the context tells the answer
            if each.document == fact.document and each.other and rng.random() < 0.7:
                fresh = each.other(rng)
                texts[each.document] = texts[each.document].replace(each.value, fresh)
                if each is fact:
                    value = fresh
    others = [stem for stem in texts if stem != fact.document]
    missing = not faithful and rng.random() < 0.12
    chosen = [rng.choice(others)] if missing else [fact.document]
    if not short and rng.random() < 0.75:
        chosen.append(rng.choice([stem for stem in others if stem not in chosen]))
        rng.shuffle(chosen)
    context = "\n\n".join(_chunk(rng, stem, texts[stem], value if stem == fact.document else "") for stem in chosen)
    prompt = QA_TEMPLATE.format(context=context.strip(), question=rng.choice(fact.questions))
    if rng.random() < 0.3:
        prompt = prompt.rstrip()
    return prompt, DO_NOT_KNOW if missing else fact.answer.format(value=value)
