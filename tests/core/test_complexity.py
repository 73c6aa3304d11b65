"""How hard a request is: what the estimate goes by, and that it orders targets and never leaves one out."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared_core import (
    Chain,
    ChatRequest,
    ConfigurationError,
    File,
    Image,
    InvalidRequest,
    OutputSchema,
    Price,
    Router,
    Target,
    Text,
    ToolSpec,
    assistant,
    system,
    tool,
    user,
)
from shared_core.chat.request import Native
from shared_core.routing.complexity import COMPLEX, MEDIUM, Features, Judgement, estimate, features_of, judged, tiered
from shared_core.testing import ScriptedProvider

HI = ChatRequest((user("Hello"),))

JUDGED = {
    "simple": [
        "Hello",
        "What is the capital of France?",
        "Translate 'good morning' to French.",
        "Is 17 prime?",
        "Classify as spam or not: win money now",
        "Who was Napoleon?",
        "Define entropy in one sentence.",
        "Yes or no: is water wet?",
        "",
    ],
    "medium": [
        "Explain how photosynthesis works.",
        "Write a short poem about the sea.",
        "Why is the sky blue?",
        "Plan a three day trip to Rome.",
        "How do I change a tyre?",
        "Compare tea and coffee.",
        "print('x');\nfor i in range(3):\n    pass",
        "Summarize this in one sentence: " + "The council met again on Tuesday. " * 100,
        "Solve x^2 = 4",
    ],
    "complex": [
        "Prove that there are infinitely many primes, step by step.",
        "Refactor this:\n```python\ndef f(x): return x\n```",
        "Design a distributed rate limiter; compare token bucket and GCRA.",
        "Analyze the root cause of the outage below and write a migration plan.",
        "1. Read the log\n2. Find the fault\n3. Explain it\n4. Debug the code:\n```\nx = 1\n```",
        "Evaluate the legal trade-offs of both contracts in depth.",
    ],
}


@pytest.mark.parametrize(("level", "text"), [(level, text) for level, texts in JUDGED.items() for text in texts])
def test_people_would_say_the_same(level, text):
    assert judged("auto", ChatRequest((user(text),))).level == level


FULL = Features(50, 50, 1, 0, 0, 0, 0, False, False, 0, 0, 0, 0, None)


@pytest.mark.parametrize(
    ("more", "points"),
    [
        ({"question_tokens": 59}, 0), ({"question_tokens": 60}, 1), ({"question_tokens": 400}, 2),
        ({"question_tokens": 2000}, 3), ({"all_tokens": 3999}, 0), ({"all_tokens": 4000}, 1),
        ({"all_tokens": 16000}, 2), ({"turns": 5}, 0), ({"turns": 6}, 1), ({"turns": 20}, 2), ({"tools": 1}, 1),
        ({"tools": 5}, 1), ({"tools": 6}, 2), ({"tool_results": 2}, 0), ({"tool_results": 3}, 1),
        ({"schema_fields": 3}, 0), ({"schema_fields": 4}, 1), ({"schema_fields": 12}, 2), ({"media": 1}, 1),
        ({"media": 4}, 2), ({"code": True}, 2), ({"maths": True}, 1), ({"parts": 2}, 0), ({"parts": 3}, 1),
        ({"parts": 6}, 2), ({"hard_words": 1}, 2), ({"hard_words": 3}, 6), ({"hard_words": 9}, 6),
        ({"middling_words": 1}, 1), ({"middling_words": 5}, 1), ({"easy_words": 1}, -1), ({"easy_words": 9}, -2),
        ({"max_tokens": 3999}, 0), ({"max_tokens": 4000}, 1),
        ({"easy_words": 2, "code": True}, 2), ({"easy_words": 2, "tools": 1}, 1),
        ({"easy_words": 2, "hard_words": 1}, 2),
    ],
    ids=str,
)  # fmt: skip
def test_each_feature_is_worth_so_many_points(more, points):
    judgement = estimate(replace(FULL, **more))
    assert judgement.points == points
    assert bool(judgement.why) == bool(points)
    assert judgement.level == ("complex" if points >= COMPLEX else "medium" if points >= MEDIUM else "simple")


counts = st.integers(0, 30_000)
anything = st.builds(
    Features, counts, counts, counts, counts, counts, counts, counts, st.booleans(), st.booleans(), counts, counts,
    counts, counts, st.one_of(st.none(), counts),
)  # fmt: skip
LEVELS = ("simple", "medium", "complex")
GROWING = [f for f in Features.__dataclass_fields__ if f not in ("easy_words", "max_tokens", "code", "maths")]


@given(anything, st.sampled_from([*GROWING, "code", "maths"]), st.integers(1, 50))
def test_more_of_anything_hard_never_makes_it_simpler(features, name, more):
    value = getattr(features, name)
    harder = replace(features, **{name: True if isinstance(value, bool) else value + more})
    assert LEVELS.index(estimate(harder).level) >= LEVELS.index(estimate(features).level)


def test_what_is_counted_in_a_request():
    schema = {"type": "object", "properties": {"a": {"type": "object", "properties": {"b": {"type": "string"}}}}}
    request = ChatRequest(
        (
            system("Prove everything. " * 50),
            user("First"),
            assistant("x" * 401),
            tool("1", "result"),
            user([Text("Why? How? What? ```x```"), Image(data=b"x"), File(data=b"x")]),
        ),
        tools=(ToolSpec("t"),),
        output=OutputSchema(schema),
        max_tokens=77,
    )
    f = features_of(request)
    assert (f.turns, f.tools, f.tool_results, f.media, f.schema_fields, f.max_tokens) == (3, 1, 1, 2, 2, 77)
    assert (f.question_tokens, f.parts, f.code) == (5, 3, True)
    assert f.hard_words == 0, "what the system prompt says is not what is asked"
    assert f.all_tokens == (18 * 50 + 5 + 401 + 23) // 4
    assert features_of(request.replace(output=OutputSchema())).schema_fields == 1
    either = {"type": "object", "anyOf": [{"properties": {"a": {}, "b": {}}}, {"properties": {"c": {}}}, True]}
    assert features_of(request.replace(output=OutputSchema(either))).schema_fields == 3


def test_nothing_is_counted_in_a_request_whose_messages_only_the_framework_knows():
    assert features_of(ChatRequest((), native=Native("x", ["m"]))) == Features()


def test_the_last_user_turn_is_what_is_asked_and_without_one_the_last_turn():
    asked, answered = user("Prove it."), assistant("Hello? Hello?")
    assert features_of(ChatRequest((user("Why?"), asked, answered))) == Features(2, 6, 3, parts=0, hard_words=1)
    assert features_of(ChatRequest((system("Prove it."), answered))) == Features(3, 5, 1, parts=2, easy_words=1)


def test_different_words_and_phrases_of_each_kind_are_counted_once_each():
    text = "Translate: hello, hello! Write how to write, and why. Prove, step by step, the TRADE-OFF; prove it."
    f = features_of(ChatRequest((user(text),)))
    assert (f.hard_words, f.middling_words, f.easy_words) == (3, 3, 2)


def counted(text: str) -> Features:
    return features_of(ChatRequest((user(text),)))


@pytest.mark.parametrize(
    "text",
    [
        "2 * 3", "2*3", "10 / 4", "10/4", "2^8", "2 ^8", "x ^ 2", "y^2", "n = 5", "f = (", "k = -1", "a = b",
        r"\frac a b", r"the \sum of it", r"\int", r"\sqrt 2", "∑ over all", "a ≥ b", "π is not, ∞ is",
    ],
)  # fmt: skip
def test_a_formula_is_known_by_any_of_its_signs(text):
    assert counted(text).maths


@pytest.mark.parametrize(
    "text",
    [
        "and/or", "either / or", "a footnote *", "** bold **", "see ^", "up ^ there", "ab^2c", "name = Ann",
        "it = what",
        r"C:\files is \not", r"back\slash", "café, naïve, π", "3 to 4", "Hello",
    ],
)  # fmt: skip
def test_a_sign_alone_is_no_formula(text):
    assert not counted(text).maths


@pytest.mark.parametrize(
    "text",
    ["```\nx", "x => y", "a;\nb", "if {\n", "go();", "f(x):\n", "#include <x>", "def f(x): 1", "Now\n  class A:"],
)
def test_code_is_known_by_its_signs_and_by_how_its_lines_begin(text):
    assert counted(text).code


@pytest.mark.parametrize("text", ["`x`", "a = b", "so; and", "{x}", "f()", "(a)", "#1", "let me see", "no def f(x): 1"])
def test_a_part_of_a_sign_is_no_code(text):
    assert not counted(text).code


@pytest.mark.parametrize(
    ("text", "parts"),
    [("1. a", 1), ("1. a\n2) b\n\n  - c\n* d\n• e", 5), ("see 1. a", 0), ("1.a\n-b\n- \n", 0), ("a?\nb?\n- c", 2)],
)
def test_items_begin_lines(text, parts):
    assert counted(text).parts == parts


def test_words_are_runs_of_small_letters_of_the_alphabet():
    assert counted("PROVE; Derive/theorem,éproof").hard_words == 4
    assert counted("improved prover proves proof2proof").hard_words == 1
    assert counted("\ud800prove").hard_words == 1


@pytest.mark.parametrize(
    ("length", "place", "found"),
    [
        (4000, 0, 1), (4000, 2998, 1), (4000, 3995, 1),
        (4001, 2995, 1), (4001, 2996, 0), (4001, 2998, 0), (4001, 3000, 0), (4001, 3001, 1),
        (90_000, 0, 1), (90_000, 2995, 1), (90_000, 2996, 0), (90_000, 40_000, 0), (90_000, 88_999, 0),
        (90_000, 89_000, 1), (90_000, 89_995, 1),
    ],
)  # fmt: skip
def test_words_are_looked_for_in_the_first_3000_characters_and_the_last_1000(length, place, found):
    text = " " * place + "prove" + " " * (length - place - 5)
    assert features_of(ChatRequest((user(text),))) == Features(length // 4, length // 4, 1, hard_words=found)


# ── the order ────────────────────────────────────────────────────────────────────────────────────────────────────────


def target(name: str, tier: str | None, price: Price | None, **options: object) -> Target:
    return Target(provider=ScriptedProvider(f"from {name}", name=name), name=name, tier=tier, price=price, **options)  # type: ignore[arg-type]


def fleet() -> list[Target]:
    return [
        target("best", "best", Price(9, 9)),
        target("plain", None, Price(3, 3)),
        target("standard", "standard", Price(2, 2)),
        target("fast and dear", "fast", Price(5, 5)),
        target("fast", "fast", Price(1, 1)),
        target("fast, price unknown", "fast", None),
    ]


ORDERS = {
    "simple": ("fast", "fast and dear", "fast, price unknown", "standard", "plain", "best"),
    "medium": ("best", "plain", "standard", "fast and dear", "fast", "fast, price unknown"),
    "complex": ("best", "plain", "standard", "fast and dear", "fast", "fast, price unknown"),
}


@pytest.mark.parametrize("level", LEVELS)
def test_simple_is_fast_and_cheap_first_and_complex_the_best_first(level):
    router = Router(fleet())
    plan = router.explain(HI.replace(complexity=level))
    assert plan.targets == ORDERS[level]
    assert str(plan).endswith(f"complexity: {level}, as asked")
    assert plan.as_dict()["complexity"] == {"level": level, "asked": level}
    answer = router.invoke(HI.replace(complexity=level))
    assert answer.fallback["complexity"] == {"level": level, "asked": level}
    assert answer.target == ORDERS[level][0]


def test_what_is_medium_stays_in_the_strategys_order():
    assert tiered("medium", ["a", "b", "c"], ["fast", "best", None], [3, 2, 1]) == ["a", "b", "c"]


def test_what_is_simple_goes_by_tier_then_by_cost_and_equals_stand_as_they_did():
    tiers = [None, "fast", "standard", "best", "fast", None, "standard"]
    costs = [2, 3, 1, 0, 3, 1, math.inf]
    assert tiered("simple", list("abcdefg"), tiers, costs) == list("becfagd")


def test_within_a_tier_the_strategy_decides_what_is_complex():
    router = Router(
        [target("b1", "best", Price(9, 9)), target("b2", "best", Price(1, 1)), *fleet()[1:]], strategy="cost"
    )
    assert router.explain(HI.replace(complexity="complex")).targets[:2] == ("b2", "b1")


class Local(ScriptedProvider):
    local = True


def here(name: str, tier: str | None = None, **options: object) -> Target:
    return Target(provider=Local(f"from {name}", name=name), name=name, tier=tier, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fleet", "simple", "complex_"),
    [
        ("best fast plain local", "fast plain best local", "best plain fast local"),
        ("best fast local local2", "fast best local local2", "best fast local local2"),
        ("local best fast", "fast local best", "best local fast"),  # no last resort: it stands first
        ("local best local2 fast", "fast local2 local best", "best local local2 fast"),
        ("local best fast local2", "fast local best local2", "best local fast local2"),
        ("best fast tiered", "fast tiered best", "best tiered fast"),  # it has said what it is good for
        ("best tiered local", "tiered best local", "best tiered local"),
        ("best fast plain", "fast plain best", "best plain fast"),
        ("local local2", "local2 local", "local local2"),  # alone, the cheaper of them is first
    ],
)
def test_a_last_resort_on_this_machine_stays_last_unless_it_has_a_tier(fleet: str, simple: str, complex_: str):
    known = {
        "best": target("best", "best", Price(9, 9)),
        "fast": target("fast", "fast", Price(1, 1)),
        "plain": target("plain", None, Price(3, 3)),
        "local": here("local", price=Price(2, 2)),
        "local2": here("local2", price=Price(1, 1)),
        "tiered": here("tiered", "standard"),
    }
    router = Router([known[name] for name in fleet.split()])
    for level, order in (("simple", simple), ("medium", fleet), ("complex", complex_)):
        plan = router.explain(HI, complexity=level)
        assert plan.targets == tuple(order.split()), level
        assert plan.replay(plan.record()).targets == plan.targets
    assert router.invoke(HI, complexity="auto").target == simple.split(maxsplit=1)[0]


def test_auto_says_what_it_found_and_why():
    router = Router(fleet(), complexity="auto")
    easy, hard = router.invoke(HI), router.invoke(JUDGED["complex"][0])
    assert (easy.target, hard.target) == ("fast", "best")
    facts = hard.fallback["complexity"]
    assert (facts["level"], facts["asked"]) == ("complex", "auto")
    assert facts["points"] >= COMPLEX
    assert "words of hard tasks" in " ".join(facts["why"])
    assert "complexity: complex, " in str(router.explain(JUDGED["complex"][0]))
    assert "complexity" not in Router(fleet()).invoke(HI).fallback, "nobody asked"


def test_a_calls_word_goes_before_the_chains_and_the_chains_before_the_routers():
    router = Router(fleet(), complexity="simple", chains={"think": Chain(complexity="complex"), "as is": {}})
    assert router.explain(HI).targets[0] == "fast"
    assert router.explain(HI.replace(chain="think")).targets[0] == "best"
    assert router.explain(HI.replace(chain="as is")).targets[0] == "fast"
    assert router.explain(HI.replace(chain="think", complexity="simple")).targets[0] == "fast"
    assert router.explain(HI.replace(complexity="medium")).targets[0] == "best"


def test_a_pin_and_a_model_of_the_call_go_before_it():
    router = Router(fleet(), complexity="simple")
    assert router.explain(HI.replace(model="plain")).targets[:2] == ("plain", "fast")
    router.pin("best")
    assert router.explain(HI).targets[:2] == ("best", "fast")


@given(
    st.lists(
        st.tuples(
            st.sampled_from([None, "fast", "standard", "best"]),
            st.one_of(st.none(), st.integers(0, 9)),
            st.booleans(),
        ),
        min_size=1,
        max_size=8,
    ),
    st.sampled_from([*LEVELS, "auto"]),
    st.sampled_from(["priority", "cost", "weighted", "round_robin", "performance", "local_first"]),
    st.text(max_size=80),
)
def test_nobody_is_ever_left_out_for_it(rows, complexity, strategy, text):
    made = [
        target(f"t{at}", tier, None if price is None else Price(price, price), enabled=on)
        for at, (tier, price, on) in enumerate(rows)
    ]
    router = Router(made, strategy=strategy)
    asked = ChatRequest((user(text or "?"),))
    with_it, without = router.explain(asked.replace(complexity=complexity)), router.explain(asked)
    assert set(with_it.targets) == set(without.targets)
    assert with_it.excluded == without.excluded
    tiers = {t.name: {"fast": 0, "best": 2}.get(t.tier or "", 1) for t in made}
    ranks = [tiers[name] for name in with_it.targets]
    if with_it.complexity.level == "simple":
        assert ranks == sorted(ranks)
    elif with_it.complexity.level == "complex":
        assert ranks == sorted(ranks, reverse=True)
    else:
        assert with_it.targets == without.targets


def test_a_word_that_is_nearly_one_names_it():
    with pytest.raises(ConfigurationError, match=r"^unknown complexity 'simpel'\. Did you mean 'simple'\?$"):
        Chain(complexity="simpel")  # type: ignore[arg-type]  # it is refused


@pytest.mark.parametrize("wrong", ["hard", "SIMPLE", 3, True])
def test_a_word_that_is_none_is_refused_where_it_is_given(wrong):
    with pytest.raises(ConfigurationError, match="unknown complexity"):
        Router(fleet(), complexity=wrong)
    with pytest.raises(ConfigurationError, match="unknown complexity"):
        Chain(complexity=wrong)
    with pytest.raises(InvalidRequest, match="unknown complexity"):
        HI.replace(complexity=wrong)


def test_each_reason_is_told_in_these_words():
    everything = Features(2000, 16000, 20, 6, 3, 12, 4, True, True, 6, 3, 1, 9, 4000)
    assert estimate(everything) == Judgement(
        "complex",
        "auto",
        27,
        (
            "a question of about 2000 tokens",
            "a conversation of about 16000 tokens",
            "20 turns",
            "tools: 6",
            "3 tool results",
            "a schema of 12 fields",
            "pictures, documents or sounds: 4",
            "code",
            "formulas",
            "6 parts",
            "words of hard tasks: 3",
            "asks for an explanation or a text",
            "a long answer is allowed",
        ),
    )
    assert estimate(replace(FULL, easy_words=2)) == Judgement("simple", "auto", -2, ("words of easy tasks",))


def test_a_judgement_reads_as_a_line():
    assert str(judged("simple", HI)) == "simple, as asked"
    assert str(estimate(FULL)) == "simple, 0 points: nothing hard about it"
    assert str(estimate(replace(FULL, code=True, tools=2))) == "medium, 3 points: tools: 2, code"
    assert judged("complex", HI).as_dict() == {"level": "complex", "asked": "complex"}
    assert estimate(replace(FULL, tools=2)).as_dict() == {
        "level": "medium",
        "asked": "auto",
        "points": 1,
        "why": ["tools: 2"],
    }


def test_a_price_by_the_second_is_taken_for_the_usual_seconds_here_too():
    router = Router([target("slow", "fast", Price(second=1)), target("quick", "fast", Price(second=1))])
    for route, seconds in zip(router._fleet.routes, (9.0, 0.1), strict=True):
        route.gate.health.success(seconds, None, 0.0)
    assert router.explain(HI.replace(complexity="simple")).targets == ("quick", "slow")
    assert router.explain(HI.replace(complexity="complex")).targets == ("slow", "quick")
