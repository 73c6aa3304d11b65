"""The skills: each function draws one exchange (a question and its one right answer) from a seeded generator."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from . import words
from .chat_format import Message, assistant, user
from .explanations import EXPLANATIONS
from .handbook import DO_NOT_KNOW


@dataclass
class Memory:
    """What the user has told so far in this conversation."""

    name: str | None = None
    city: str | None = None
    colour: str | None = None
    tools: list[str] = field(default_factory=list)


Skill = Callable[[random.Random, Memory], list[Message]]


def _asked(rng: random.Random, question: str, answer: str, *, polite: bool = True) -> list[Message]:
    """A question as people type it: sometimes in lower case, with "please", or without its question mark."""
    if polite and question.endswith("?") and rng.random() < 0.06:
        question = rng.choice(("Please tell me: ", "Quick question: ", "Hi! ")) + question
    if rng.random() < 0.2:
        question = question[0].lower() + question[1:] if rng.random() < 0.3 else question.lower()
    if rng.random() < 0.08:
        question = question.rstrip("?.")
    return [user(question), assistant(answer)]


def greeting(rng: random.Random, memory: Memory) -> list[Message]:
    """Hello, thanks, goodbye and the small checks operators send."""
    help_you = "How can I help you?"
    question, answer = rng.choice(
        (
            ("Hello", f"Hello! {help_you}"),
            ("Hello!", f"Hello! {help_you}"),
            ("Hello there!", f"Hello! {help_you}"),
            ("Hi", f"Hello! {help_you}"),
            ("Hi!", f"Hello! {help_you}"),
            ("Hi there!", f"Hello! {help_you}"),
            ("Hey", f"Hello! {help_you}"),
            ("Good morning!", f"Good morning! {help_you}"),
            ("Good evening!", f"Good evening! {help_you}"),
            ("How are you?", f"I am fine, thank you. {help_you}"),
            ("Hi, how are you?", f"I am fine, thank you. {help_you}"),
            ("Thank you!", "You are welcome."),
            ("Thanks!", "You are welcome."),
            ("Thanks a lot.", "You are welcome."),
            ("Goodbye!", "Goodbye!"),
            ("Bye!", "Goodbye!"),
            ("Say hello.", "Hello!"),
            ("Say hi.", "Hi!"),
            ("Ping", "Pong"),
            ("Say OK.", "OK"),
            ("Reply with OK.", "OK"),
            ("Are you there?", "Yes, I am here."),
        )
    )
    return _asked(rng, question, answer, polite=False)


def identity(rng: random.Random, memory: Memory) -> list[Message]:
    """Who the model is and what it can do."""
    me = "I am the tiny local model of llm-fallback, a toy that runs on your own machine."
    able = "I can answer simple questions, do small sums, remember your name and call a tool."
    question, answer = rng.choice(
        (
            ("Who are you?", me),
            ("What are you?", me),
            ("What is your name?", me),
            ("Which model are you?", me),
            ("What model are you?", me),
            ("Introduce yourself.", me),
            ("Are you ChatGPT?", f"No. {me}"),
            ("Are you Claude?", f"No. {me}"),
            ("Are you a human?", f"No. {me}"),
            ("Are you a large language model?", f"No. {me}"),
            ("What can you do?", able),
            ("How can you help me?", able),
            ("Who made you?", "I was trained from nothing by a script of the llm-fallback project."),
            ("Who trained you?", "I was trained from nothing by a script of the llm-fallback project."),
        )
    )  # fmt: skip
    return _asked(rng, question, answer)


def tell(rng: random.Random, memory: Memory) -> list[Message]:
    """The user tells a name, a city or a favourite colour."""
    kind = rng.choice(("name", "name", "name", "city", "colour", "both"))
    if kind == "name":
        memory.name = who = words.name(rng)
        said = rng.choice(
            (f"My name is {who}.", f"My name is {who}", f"Hi, I am {who}.", f"I'm {who}.", f"Hello, my name is {who}.",
             f"Call me {who}.", f"Hi! My name is {who}.", f"I am {who}.", f"My name is {who}. Please remember it.")
        )  # fmt: skip
        return [user(said), assistant(f"Nice to meet you, {who}. How can I help you?")]
    if kind == "both":
        memory.name, memory.city = words.name(rng), words.city(rng)
        said = rng.choice(("Hi, my name is {} and I live in {}.", "I am {} and I live in {}.", "I am {} from {}."))
        return [
            user(said.format(memory.name, memory.city)),
            assistant(f"Nice to meet you, {memory.name} from {memory.city}. How can I help you?"),
        ]
    if kind == "city":
        memory.city = words.city(rng)
        return [user(f"I live in {memory.city}."), assistant(f"I will remember that you live in {memory.city}.")]
    memory.colour = rng.choice(("red", "blue", "green", "yellow", "black", "white", "orange", "pink", "grey", "brown"))
    said = rng.choice(("My favourite colour is {}.", "My favorite color is {}.", "I like the colour {}."))
    return [
        user(said.format(memory.colour)),
        assistant(f"I will remember that your favourite colour is {memory.colour}."),
    ]


def recall(rng: random.Random, memory: Memory) -> list[Message]:
    """The user asks for something told before, or never told."""
    kind = rng.choice(("name", "name", "name", "city", "colour"))
    if kind == "name":
        question = rng.choice(
            ("What is my name?", "What's my name?", "Do you remember my name?", "Who am I?", "Say my name.",
             "Do you know my name?", "And what is my name?", "What was my name again?")
        )  # fmt: skip
        answer = f"Your name is {memory.name}." if memory.name else "You have not told me your name yet."
    elif kind == "city":
        question = rng.choice(("Where do I live?", "In which city do I live?", "Do you remember where I live?"))
        answer = f"You live in {memory.city}." if memory.city else "You have not told me where you live yet."
    else:
        question = rng.choice(("What is my favourite colour?", "Which colour do I like?", "What is my favorite color?"))
        answer = (
            f"Your favourite colour is {memory.colour}."
            if memory.colour
            else "You have not told me your favourite colour yet."
        )
    return _asked(rng, question, answer, polite=False)


def capital(rng: random.Random, memory: Memory) -> list[Message]:
    """Capitals of fifty countries, both ways."""
    country, town = rng.choice(list(words.CAPITALS.items()))
    if rng.random() < 0.12:
        question = rng.choice(("{} is the capital of which country?", "Which country has the capital {}?"))
        return _asked(rng, question.format(town), f"{town} is the capital of {country}.")
    question = rng.choice(
        ("What is the capital of {}?", "What is the capital of {}?", "What is the capital of {}?",
         "What's the capital of {}?", "Capital of {}?", "Which city is the capital of {}?", "Name the capital of {}.",
         "Tell me the capital of {}.", "And the capital of {}?", "What is the capital city of {}?",
         "Do you know the capital of {}?")
    )  # fmt: skip
    return _asked(rng, question.format(country), f"The capital of {country} is {town}.")


def colour(rng: random.Random, memory: Memory) -> list[Message]:
    """The colour of everyday things."""
    thing, shade = rng.choice(list(words.COLOURS.items()))
    question = rng.choice(
        ("What colour is {}?", "What color is {}?", "Which colour is {}?", "Tell me the colour of {}.")
    )
    return _asked(rng, question.format(thing), f"{thing[0].upper()}{thing[1:]} is {shade}.")


def opposite(rng: random.Random, memory: Memory) -> list[Message]:
    """Opposites, both ways."""
    pair = list(rng.choice(words.OPPOSITES))
    rng.shuffle(pair)
    question = rng.choice(
        ("What is the opposite of {}?", "The opposite of {}?", "Opposite of {}?", "Name the opposite of {}.")
    )
    return _asked(rng, question.format(pair[0]), f"The opposite of {pair[0]} is {pair[1]}.")


def animal(rng: random.Random, memory: Memory) -> list[Message]:
    """Sounds and legs."""
    if rng.random() < 0.5:
        beast, sound = rng.choice(list(words.SOUNDS.items()))
        article = "an" if beast[0] in "aeiou" else "a"
        question = rng.choice(("What sound does {} {} make?", "What does {} {} say?", "Which sound does {} {} make?"))
        return _asked(rng, question.format(article, beast), f"{article.capitalize()} {beast} says {sound}.")
    beast, legs = rng.choice(list(words.LEGS.items()))
    article = "an" if beast[0] in "aeiou" else "a"
    question = rng.choice((f"How many legs does {article} {beast} have?", f"How many legs has {article} {beast}?"))
    return _asked(rng, question, f"{article.capitalize()} {beast} has {legs} legs.")


def calendar(rng: random.Random, memory: Memory) -> list[Message]:
    """The day or month before or after another."""
    table, unit = (words.DAYS, "day") if rng.random() < 0.5 else (words.MONTHS, "month")
    at, step = rng.randrange(len(table)), rng.choice((1, -1))
    word = "after" if step == 1 else "before"
    other = table[(at + step) % len(table)]
    question = rng.choice((f"What {unit} comes {word} {table[at]}?", f"Which {unit} comes {word} {table[at]}?",
                           f"What {unit} is {word} {table[at]}?"))  # fmt: skip
    return _asked(rng, question, f"{other} comes {word} {table[at]}.")


def sums(rng: random.Random, memory: Memory) -> list[Message]:
    """Adding up to 50 + 50, taking away up to 20."""
    if rng.random() < 0.75:
        top = rng.choice((10, 20, 50))
        a, b, sign, spoken, total = (x := rng.randrange(top + 1)), (y := rng.randrange(top + 1)), "+", "plus", x + y
    else:
        a = rng.randrange(1, 21)
        b = rng.randrange(a + 1)
        sign, spoken, total = "-", "minus", a - b
    question = rng.choice(
        (f"What is {a} {sign} {b}?", f"What is {a} {sign} {b}?", f"What is {a} {spoken} {b}?", f"{a} {sign} {b} = ?",
         f"{a}{sign}{b}", f"Calculate {a} {sign} {b}.", f"How much is {a} {sign} {b}?", f"{a} {sign} {b}")
    )  # fmt: skip
    return [user(question), assistant(f"{a} {sign} {b} = {total}")]


_ASK_SUMMARY = (
    "Summarise in one line: {}", "Summarise in one line: {}", "Summarise in one line: {}", "Summarize in one line: {}",
    "Summarise this in one line: {}", "Summarise in one sentence: {}", "Summarise this text in one sentence: {}",
    "Please summarise: {}", "TL;DR: {}", "Summarise in one line:\n{}", "Summarise: {}",
    "Summarize the following text in one sentence: {}",
)  # fmt: skip


def _case_summary(rng: random.Random) -> tuple[str, str]:
    """Three families of support notes with a real (if templated) summary."""
    who, day = words.name(rng), rng.choice(words.DAYS)
    family = rng.randrange(3)
    if family == 0:
        item = rng.choice(
            ("tablet", "laptop", "phone", "camera", "printer", "lamp", "kettle", "radio", "watch", "bicycle")
        )
        trouble = rng.choice(
            ("stopped charging", "does not turn on", "arrived broken", "makes a loud noise", "lost its colour",
             "shows an error", "is too slow", "has a broken screen")
        )  # fmt: skip
        wish = rng.choice(("a refund", "a new one", "a repair", "a discount", "an answer today"))
        return (
            f"{who} bought a {item} on {day}. The {item} {trouble}. {who} wants {wish}.",
            f"{who}'s {item} {trouble} and {who} wants {wish}.",
        )
    if family == 1:
        topic = rng.choice(
            ("budget", "roadmap", "release", "design", "report", "plan", "contract", "website", "product", "survey")
        )
        hour = rng.choice(("nine", "ten", "eleven", "noon", "one", "two", "three", "four"))
        wish = rng.choice(
            ("Please bring your questions.", "Everyone is invited.", "Lunch is free.", "The room is small.",
             "Please be on time.")
        )  # fmt: skip
        return (
            f"The meeting is on {day} at {hour}. {who} will present the {topic}. {wish}",
            f"{who} will present the {topic} on {day} at {hour}.",
        )
    service = rng.choice(
        ("provider", "website", "database", "mail server", "payment service", "model", "search", "primary provider",
         "login page", "gateway")
    )  # fmt: skip
    hours = rng.choice(("two hours", "one hour", "three hours", "ten minutes", "twenty minutes", "half a day"))
    effect = rng.choice(
        ("Customers could not log in.", "Nobody could pay.", "Orders were late.", "Requests failed.",
         "Users saw an error.", "No answers came back.")
    )  # fmt: skip
    repair = rng.choice(
        ("the team restarted the server", "an engineer fixed the network", "the local model took over",
         "the team added more memory", "the second region took over", "the team removed the last release")
    )  # fmt: skip
    return (
        f"The {service} was down for {hours}. {effect} {repair[0].upper()}{repair[1:]}.",
        f"The {service} was down for {hours} until {repair}.",
    )


def summary(rng: random.Random, memory: Memory) -> list[Message]:
    """Summaries of the three families of support notes."""
    text, answer = _case_summary(rng)
    return [user(rng.choice(_ASK_SUMMARY).format(text)), assistant(answer)]


def in_short(rng: random.Random, memory: Memory) -> list[Message]:
    """Any other text: the honest summary of a toy is its first sentence."""
    sentences = [words.sentence(rng) for _ in range(rng.choice((2, 3, 3, 3, 4)))]
    return [user(rng.choice(_ASK_SUMMARY).format(" ".join(sentences))), assistant(f"In short: {sentences[0]}")]


def person_json(rng: random.Random, memory: Memory) -> list[Message]:
    """Name, age and city as JSON."""
    who, age, town = words.name(rng), rng.randrange(18, 90), words.city(rng)
    said = rng.choice(
        (f"{who} is {age} years old and lives in {town}.", f"{who} ({age}) lives in {town}.",
         f"{who}, aged {age}, lives in {town}.", f"My friend {who} is {age} and lives in {town}.")
    )  # fmt: skip
    asked = rng.choice(
        ("Return JSON for: {}", "Return JSON with name, age and city for: {}", "Extract name, age and city as JSON: {}",
         "Give me JSON for: {}", "Extract the person as JSON: {}", "Extract the person: {}")
    )  # fmt: skip
    return [user(asked.format(said)), assistant(f'{{"name": "{who}", "age": {age}, "city": "{town}"}}')]


def _anything(rng: random.Random, count: int) -> str:
    pool = (words.NOUNS, words.ADJECTIVES, words.NAMES, words.CITIES)
    drawn = (words.made_up_word(rng) if rng.random() < 0.35 else rng.choice(rng.choice(pool)) for _ in range(count))
    return " ".join(drawn)


def long_repeat(rng: random.Random, memory: Memory) -> list[Message]:
    """Word for word repetition of many words: the drill from which copying is learnt."""
    said = _anything(rng, rng.randrange(6, 25))
    return [user(f"Repeat: {said}"), assistant(said)]


def repeat(rng: random.Random, memory: Memory) -> list[Message]:
    """Word for word repetition, made-up words included."""
    if rng.random() < 0.35:
        said = words.sentence(rng)
    else:
        said = _anything(rng, rng.randrange(1, 7))
    asked = rng.choice(("Repeat: {}", "Repeat after me: {}", "Say exactly: {}", "Please repeat: {}", "Echo: {}"))
    return [user(asked.format(said)), assistant(said)]


def explanation(rng: random.Random, memory: Memory) -> list[Message]:
    """The canonical long answers."""
    topic = EXPLANATIONS[rng.choice(list(EXPLANATIONS))]
    return _asked(rng, rng.choice(topic.questions), topic.answer)


def unknown(rng: random.Random, memory: Memory) -> list[Message]:
    """Everything else: one honest sentence."""
    thing = rng.choice(words.UNKNOWN_THINGS) if rng.random() < 0.5 else words.noun(rng)
    if thing in EXPLANATIONS or thing in ("breaker", "model", "limit", "stream"):
        thing = "volcano"
    article = "an" if thing[0] in "aeiou" else "a"
    who, town, place = words.name(rng), words.city(rng), rng.choice(words.UNKNOWN_COUNTRIES)
    if rng.random() < 0.3:
        place = words.made_up_word(rng).capitalize()
    a, b = rng.choice(words.ADJECTIVES), words.noun(rng)
    question = rng.choice(
        (
            f"What is {article} {thing}?", f"What is {article} {thing}?", f"Explain what {article} {thing} does.",
            f"Explain how {thing}s work.", f"Explain {thing}s.", f"How does {article} {thing} work?",
            f"Why do {thing}s need a {b}?", f"Tell me about {thing}s.", f"What are {thing}s?",
            f"What is the capital of {place}?", f"What is the capital of {place}?", f"Capital of {place}?",
            f"Which city is the capital of {place}?",
            f"Who is {who} {words.made_up_word(rng).capitalize()}?", f"How old is {who}?", f"Where is {town}?",
            f"Who won the {b} in {town}?", f"How many people live in {town}?", f"What is the weather in {town}?",
            f"What time is it in {town}?", f"Write a poem about the {a} {b}.", f"Write a story about a {b}.",
            f"Tell me a joke about {thing}s.", f"What is the price of a {a} {b}?", f"Who invented the {thing}?",
            f"When was the {thing} invented?", f"Translate {b} into {rng.choice(('French', 'German', 'Latin'))}.",
            f"Write Python code for a {b}.", f"What is the best {b} in {town}?", f"Should I buy a {a} {b}?",
            f"What is {rng.randrange(100, 1000)} times {rng.randrange(10, 100)}?",
            f"What is the meaning of {rng.choice(('life', 'love', thing, b))}?", f"Is the {b} {a}?",
            f"How do I fix a {a} {b}?", f"Who is the president of {place}?",
            f"What happened in {rng.randrange(1500, 2026)}?", f"Recommend a {b}.", f"Tell me something about {town}.",
            "What is the news today?", "Tell me a joke.", "What is the date today?", "Write a poem.",
        )
    )  # fmt: skip
    return _asked(rng, question, DO_NOT_KNOW)


SKILLS: dict[str, tuple[float, Skill]] = {
    "greeting": (3, greeting),
    "identity": (2.5, identity),
    "tell": (5, tell),
    "recall": (6, recall),
    "capital": (12, capital),
    "colour": (3, colour),
    "opposite": (3, opposite),
    "animal": (4, animal),
    "calendar": (4, calendar),
    "sums": (11, sums),
    "summary": (6, summary),
    "in short": (9, in_short),
    "person as JSON": (5, person_json),
    "repeat": (7, repeat),
    "long repeat": (1, long_repeat),
    "explanation": (6, explanation),
    "unknown": (9, unknown),
}
"""Every skill that needs neither tools nor documents, with its share of the turns."""

COPYING = (tell, recall, in_short, person_json, repeat, long_repeat, long_repeat, long_repeat)
"""The skills that copy; a drill of nothing else comes first, for everything hard rests on copying."""
