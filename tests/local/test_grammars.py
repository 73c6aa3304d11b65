"""Grammars without a model: whatever a schema's grammar can say fits the schema; a grammar cut anywhere goes on."""

from __future__ import annotations

import json
import random
from fractions import Fraction

import jsonschema
import pytest

from shared_core.providers.llama_cpp.grammar import ANYTHING, Grammar, GrammarError
from shared_core.providers.llama_cpp.number_grammar import integers, multiples, numbers
from shared_core.providers.llama_cpp.pattern_grammar import UnsupportedPattern, pattern_gbnf
from shared_core.providers.llama_cpp.schema_grammar import UnsupportedSchema, gbnf, tool_call_gbnf

PATTERNS = (
    "^[a-z]+$", "[0-9]{3}", r"^(foo|ba[rz])-?\d*", r"^\w+@\w+\.com$", "a.c", "^[^x]*$", r"\s", "^$|^q+$", '^["\\\\]+$',
    "(?:ab){2,3}", "x|^y$", r"^\S+\W\D$", "^[^-a]+?$", "^[]x]$", r"^[\d.]{1,4}$", r"^\u0041\x42$",
)  # fmt: skip


def accepts(grammar: Grammar, text: str) -> bool:
    """Whether the whole text fits."""
    left = grammar.after(text)
    return left is not None and left.may_end()


def sample(grammar: Grammar, rng: random.Random, node=None, depth=0) -> str:
    """A text that fits."""
    node = node or grammar.rules["root"]
    match node[0]:
        case "lit":
            return node[1]
        case "class":
            low, high = rng.choice(node[2])
            return chr(rng.randint(ord(low), min(ord(high), ord(low) + 90)))
        case "ref":
            return sample(grammar, rng, grammar.rules[node[1]], depth + 1)
        case "seq":
            return "".join(sample(grammar, rng, part, depth) for part in node[1])
        case "alt":
            return sample(grammar, rng, rng.choice(node[1]) if depth < 40 else node[1][-1], depth)
        case _:
            _, inner, least, most = node
            times = rng.randint(least, least + 3 if most is None else min(most, least + 3)) if depth < 30 else least
            if most is not None and most < 50 and rng.random() < 0.2:
                times = most
            return "".join(sample(grammar, rng, inner, depth + 1) for _ in range(times))


def scalar(rng: random.Random) -> dict:
    """A random schema of a text, a number or a choice."""
    match rng.randrange(5):
        case 0:
            schema: dict = {"type": "integer"}
            if rng.random() < 0.6:
                schema["minimum"] = rng.randint(-300, 300)
            if rng.random() < 0.6:
                schema[rng.choice(["maximum", "exclusiveMaximum"])] = rng.randint(-300, 700)
            if rng.random() < 0.3:
                schema["multipleOf"] = rng.choice([2, 3, 5, 10, 7, 20])
        case 1:
            schema = {"type": "number"}
            if rng.random() < 0.6:
                schema[rng.choice(["minimum", "exclusiveMinimum"])] = rng.choice([0, -1.5, 0.1, 3, -20, 0.25])
            if rng.random() < 0.6:
                schema[rng.choice(["maximum", "exclusiveMaximum"])] = rng.choice([0, 1, 0.7, 5.5, 100, -0.3])
            if rng.random() < 0.2:
                schema["multipleOf"] = rng.choice([0.5, 5])
        case 2:
            schema = {"type": "string"}
            if rng.random() < 0.6:
                schema["pattern"] = rng.choice(PATTERNS)
            if rng.random() < 0.3:
                schema["maxLength"] = rng.randint(0, 12)
            if rng.random() < 0.3:
                schema["minLength"] = rng.randint(0, 5)
            if rng.random() < 0.2:
                schema["format"] = rng.choice(["date", "uuid"])
        case 3:
            schema = {"enum": rng.sample([1, 2.5, "a", 'b"c', None, True, [1], {"k": 1}], 3)}
        case _:
            schema = {"type": rng.sample(["integer", "string", "null", "boolean"], 2)}
    return schema


def drawn(rng: random.Random, depth: int = 0) -> dict:
    """A random schema."""
    match rng.randrange(8) if depth < 2 else 0:
        case 4:
            schema: dict = {"type": "array", "items": drawn(rng, depth + 1)}
            for key, top in (("minItems", 3), ("maxItems", 4)):
                if rng.random() < 0.5:
                    schema[key] = rng.randint(0, top)
            if rng.random() < 0.3:
                schema["uniqueItems"] = True
            if rng.random() < 0.3:
                schema["prefixItems"] = [drawn(rng, depth + 1) for _ in range(2)]
        case 5 | 6:
            names = rng.sample(["a", "ab", 'b"', "c d", "é", "abc"], rng.randint(0, 4))
            schema = {
                "type": "object",
                "properties": {name: drawn(rng, depth + 1) for name in names},
                "required": [name for name in names if rng.random() < 0.5],
            }
            if rng.random() < 0.5:
                schema["additionalProperties"] = rng.choice([False, True, {"type": "null"}])
            if rng.random() < 0.2:
                schema["minProperties"] = rng.randint(0, 2)
            if rng.random() < 0.2:
                schema["maxProperties"] = rng.randint(1, 4)
        case 7:
            schema = {rng.choice(["anyOf", "oneOf"]): [drawn(rng, depth + 1) for _ in range(2)]}
        case _:
            schema = scalar(rng)
    return schema


@pytest.mark.parametrize("seed", range(6))
def test_what_the_grammar_of_a_schema_can_say_fits_the_schema(seed):
    rng, sampled = random.Random(seed), 0
    for _ in range(80):
        schema = drawn(rng)
        try:
            text, exact = gbnf(schema)
        except UnsupportedSchema:
            continue
        if not exact:
            continue  # checked once the answer is whole
        grammar = Grammar.parse(text)
        judge = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER)
        for _ in range(3):
            said = sample(grammar, rng)
            assert judge.is_valid(json.loads(said)), f"{json.dumps(schema)} allows {said}"
            sampled += 1
    assert sampled > 100


@pytest.mark.parametrize("seed", range(4))
def test_what_is_left_of_a_grammar_takes_the_rest_of_a_text_and_nothing_else(seed):
    rng = random.Random(seed)
    for _ in range(12):
        try:
            grammar = Grammar.parse(gbnf(drawn(rng))[0])
        except UnsupportedSchema:
            continue
        said = sample(grammar, rng)[:60]
        assert grammar.after(said) is not None
        for cut in sorted({rng.randrange(len(said) + 1) for _ in range(3)}):
            left = grammar.after(said[:cut])
            assert left is not None
            again = Grammar.parse(left.text())  # as an engine reads it
            assert again.after(said[cut:]) is not None
            for wrong in ("\x01", "}}", "nulx"):
                assert (again.after(wrong) is None) == (grammar.after(said[:cut] + wrong) is None)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_what_the_grammar_of_a_pattern_can_say_matches_the_pattern(pattern):
    rng = random.Random(pattern)
    grammar = Grammar.parse(gbnf({"type": "string", "pattern": pattern})[0])
    for _ in range(20):
        assert jsonschema.Draft202012Validator({"pattern": pattern}).is_valid(json.loads(sample(grammar, rng)))


@pytest.mark.parametrize("pattern", ["^(?=a)b$", r"^(a)\1$", r"\bword", "a^b", "a$b", "^(?i)x$", "^a{300}$", "a{x"])
def test_a_pattern_that_no_grammar_says_is_not_half_said(pattern):
    with pytest.raises(UnsupportedPattern):
        pattern_gbnf(pattern)


def test_whole_numbers_within_bounds_are_exactly_those():
    rng = random.Random(1)
    for _ in range(60):
        low, high = (rng.choice([None, rng.randint(-1200, 1200)]) for _ in range(2))
        found = integers(low, high)
        edges = [edge + by for edge in (low, high, 0) if edge is not None for by in (-1, 0, 1)]
        for number in [*edges, *(rng.randint(-1500, 1500) for _ in range(6))]:
            wanted = (low is None or number >= low) and (high is None or number <= high)
            assert (found is not None and accepts(Grammar.parse(f"root ::= {found}"), str(number))) is wanted


@pytest.mark.parametrize(
    ("low", "high", "good", "bad"),
    [
        ("0.5", "2.5", ["0.5", "1", "2.25", "2.5"], ["0.49", "2.51", "3"]),
        ("0", "1", ["0", "0.123456", "1"], ["1.1", "-0.5"]),
        ("-0.7", "-0.2", ["-0.2", "-0.33", "-0.7"], ["0", "-0.1", "-0.71"]),
        ("10", None, ["10", "10.5", "12345.6"], ["9.9", "-11"]),
        (None, "-3", ["-3", "-3.5", "-400.25"], ["-2.9", "0"]),
    ],
)  # fmt: skip
def test_numbers_within_bounds(low, high, good, bad):
    found = numbers(None if low is None else Fraction(low), None if high is None else Fraction(high))
    grammar = Grammar.parse(f"root ::= {found}")
    assert [text for text in good if not accepts(grammar, text)] == []
    assert [text for text in bad if accepts(grammar, text)] == []


@pytest.mark.parametrize(
    ("step", "low", "high", "some"),
    [(5, 0, 100, [0, 5, 100]), (7, None, None, [0, 7, 70]), (20, None, None, [-40, 0, 1220]), (3, 10, 20, [12, 18])],
)
def test_multiples_within_bounds(step, low, high, some):
    grammar = Grammar.parse(f"root ::= {multiples(step, low, high)}")
    said = [n for n in range(-130, 1300) if accepts(grammar, str(n))]
    assert set(some) <= set(said)
    assert all(n % step == 0 and (low is None or n >= low) and (high is None or n <= high) for n in said)


@pytest.mark.parametrize(
    "text", ["", "root ::= nosuch", 'root ::= "a', "x ::= y", "root ::= [a", 'root ::= "\\q"', "="]
)
def test_what_is_no_grammar_is_refused(text):
    with pytest.raises(GrammarError):
        Grammar.parse(text)


def test_a_rule_that_begins_with_itself_is_refused_rather_than_followed_for_ever():
    with pytest.raises(GrammarError, match="begins with itself"):
        Grammar.parse('root ::= root "a" | "b" root').after("b")


def test_the_grammar_of_anything_takes_anything():
    assert accepts(Grammar.parse(ANYTHING), 'é"\\\n日本😀')


def test_a_call_may_be_laid_out_in_several_ways_but_must_be_one_of_the_tools():
    text, exact = tool_call_gbnf([{"name": "f", "parameters": {"type": "object", "properties": {}}}, {"name": "g"}])
    grammar = Grammar.parse(text)
    assert exact
    for body in ('\n{"name": "f", "arguments": {}}\n</tool_call>', '{"name":"g","arguments":{"x": [1]}}</tool_call>'):
        assert accepts(grammar, body)
    assert not accepts(grammar, '\n{"name": "h", "arguments": {}}\n</tool_call>')
