"""Tool use: a call when a tool fits, a sentence when its result is there."""

from __future__ import annotations

import random

from . import words
from .chat_format import Message, Tool, assistant, compact_json, function_tool, tool_call, tool_result, user

TOOLS: dict[str, Tool] = {
    "get_weather": function_tool("get_weather", "Get the current weather of a city.", city="string"),
    "get_time": function_tool("get_time", "Get the local time of a city.", city="string"),
    "get_order": function_tool("get_order", "Look up an order by its number.", order_id="string"),
    "add": function_tool("add", "Add two numbers.", a="integer", b="integer"),
    "Person": function_tool("Person", "A person.", name="string", age="integer", city="string"),
}

CONDITIONS = ("sunny", "cloudy", "rainy", "windy", "foggy", "snowy", "clear", "stormy", "dry", "hot", "cold")
STATES = ("shipped", "delivered", "cancelled", "waiting", "on its way", "packed", "lost")


def _weather(rng: random.Random) -> list[Message]:
    town, degrees, sky = words.city(rng), rng.randrange(0, 41), rng.choice(CONDITIONS)
    question = rng.choice(
        (f"What is the weather in {town}?", f"What is the weather in {town}?", f"What's the weather in {town}?",
         f"How is the weather in {town}?", f"What is the weather like in {town}?", f"Tell me the weather in {town}.",
         f"What is the weather in {town} today?", f"Weather in {town}?")
    )  # fmt: skip
    heat = rng.choice(("temperature_c", "temperature_c", "temperature", "temp_c", "temp", "degrees", "celsius"))
    look = rng.choice(("condition", "condition", "conditions", "sky", "weather", "summary"))
    result = rng.choice(
        (
            compact_json({"city": town, heat: degrees, look: sky}, spaces=rng.random() < 0.8),
            compact_json({heat: degrees, look: sky}),
            compact_json({look: sky, heat: degrees}),
            compact_json({"city": town, look: sky, heat: degrees}),
            f"{sky}, {degrees} degrees",
            f"{sky.capitalize()}, {degrees} degrees in {town}.",
            f"{degrees} degrees and {sky}",
            f"{degrees} C, {sky}",
            f"It is {degrees} degrees and {sky} in {town}.",
        )
    )
    return [
        user(question),
        tool_call("get_weather", compact_json({"city": town}, spaces=rng.random() < 0.8)),
        tool_result(result),
        assistant(f"It is {degrees} degrees and {sky} in {town}."),
    ]


def _time(rng: random.Random) -> list[Message]:
    town, clock = words.city(rng), f"{rng.randrange(24):02d}:{rng.randrange(60):02d}"
    question = rng.choice(
        (f"What time is it in {town}?", f"What is the time in {town}?", f"Tell me the time in {town}.")
    )
    result = rng.choice((compact_json({"city": town, "time": clock}), compact_json({"time": clock}), clock))
    return [
        user(question),
        tool_call("get_time", compact_json({"city": town}, spaces=rng.random() < 0.8)),
        tool_result(result),
        assistant(f"It is {clock} in {town}."),
    ]


def _order(rng: random.Random) -> list[Message]:
    number, state = f"{rng.choice(('NW', 'NW', 'A', 'B'))}{rng.randrange(1000, 100_000)}", rng.choice(STATES)
    question = rng.choice(
        (f"Where is my order {number}?", f"What is the status of order {number}?", f"Look up order {number}.",
         f"Check order {number}, please.")
    )  # fmt: skip
    result = rng.choice((compact_json({"order_id": number, "status": state}), compact_json({"status": state}), state))
    return [
        user(question),
        tool_call("get_order", compact_json({"order_id": number}, spaces=rng.random() < 0.8)),
        tool_result(result),
        assistant(f"Order {number} is {state}."),
    ]


def _add(rng: random.Random) -> list[Message]:
    a, b = rng.randrange(1, 1000), rng.randrange(1, 1000)
    question = rng.choice((f"Add {a} and {b}.", f"Use the tool to add {a} and {b}.", f"Please add {a} and {b}."))
    return [
        user(question),
        tool_call("add", compact_json({"a": a, "b": b}, spaces=rng.random() < 0.8)),
        tool_result(rng.choice((str(a + b), compact_json({"result": a + b})))),
        assistant(f"The sum of {a} and {b} is {a + b}."),
    ]


def _person(rng: random.Random) -> list[Message]:
    who, age, town = words.name(rng), rng.randrange(18, 90), words.city(rng)
    said = f"{who} is {age} years old and lives in {town}."
    return [
        user(rng.choice(("Extract the person: {}", "Extract the person: {}", "{}", "Who is this? {}")).format(said)),
        tool_call("Person", compact_json({"name": who, "age": age, "city": town})),
        tool_result("ok"),
        assistant("Done."),
    ]


_USES = {"get_weather": _weather, "get_time": _time, "get_order": _order, "add": _add, "Person": _person}


def tool_exchange(rng: random.Random, offered: list[str]) -> list[Message]:
    """A question for one of the tools on offer, the call, its result and the answer."""
    return _USES[rng.choice(offered + ["get_weather"] * 2 * ("get_weather" in offered))](rng)


def draw_tools(rng: random.Random) -> list[str]:
    """The names of one to four tools, in any order; the weather is nearly always among them."""
    names = rng.sample(list(TOOLS), rng.choice((1, 1, 2, 3, 4)))
    if "get_weather" not in names and rng.random() < 0.7:
        names[rng.randrange(len(names))] = "get_weather"
    return names
