"""Changing what can change an answer changes the key; writing the same differently does not."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import textwrap
from collections import OrderedDict
from dataclasses import fields, replace
from enum import StrEnum
from types import MappingProxyType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared_core import (
    Audio,
    ChatRequest,
    Constraints,
    File,
    Image,
    Message,
    Native,
    Origin,
    OutputSchema,
    Reasoning,
    Text,
    ToolCall,
    ToolResult,
    ToolSpec,
    user,
)
from shared_core.cache.keys import (
    IN_KEY,
    NOT_IN_KEY,
    Unkeyable,
    check_classified,
    digest,
    form,
    native_form,
    request_form,
)

TEXT = st.text(max_size=12)
NAME = st.text("abcxyz_", min_size=1, max_size=6)
NUMBER = st.integers(-(10**20), 10**20) | st.floats(allow_nan=False)
PLAIN = st.recursive(
    st.none() | st.booleans() | NUMBER | TEXT | st.binary(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
DATA = st.dictionaries(TEXT, PLAIN, max_size=3)
MEDIA = st.fixed_dictionaries(
    {"media_type": st.none() | TEXT, "name": st.none() | TEXT},
)
SOURCE = st.one_of(
    st.builds(lambda v: {"data": v}, st.binary(max_size=6)),
    st.builds(lambda v: {"url": v}, TEXT),
    st.builds(lambda v: {"file_id": v}, TEXT),
)


def media(cls):
    return st.builds(lambda where, what: cls(**where, **what), SOURCE, MEDIA)


LEAVES = [
    st.builds(Text, TEXT),
    media(Image),
    media(File),
    media(Audio),
    st.builds(ToolCall, TEXT, NAME, TEXT, DATA),
    st.builds(Reasoning, TEXT, DATA),
]
RESULT = st.builds(
    ToolResult, TEXT, st.lists(st.one_of(LEAVES), max_size=2).map(tuple), st.none() | TEXT, st.booleans()
)
PARTS = [*LEAVES, RESULT]
PART = st.one_of(PARTS)
ORIGIN = st.none() | st.builds(Origin, TEXT, TEXT, st.none() | TEXT)
MESSAGE = st.builds(
    Message,
    st.sampled_from(["system", "user", "assistant", "tool"]),
    st.lists(PART, max_size=3).map(tuple),
    st.none() | TEXT,
    ORIGIN,
    st.booleans(),
)
SCHEMA = st.builds(
    lambda names, kind: {"type": "object", "properties": {n: {"type": kind} for n in names}},
    st.lists(NAME, max_size=3),
    st.sampled_from(["string", "integer"]),
)
TOOL = st.builds(ToolSpec, NAME, TEXT, SCHEMA, st.none() | st.booleans())
OUTPUT = st.none() | st.builds(OutputSchema, SCHEMA, NAME, st.none() | st.booleans(), st.booleans())
VALUES = {
    "messages": st.lists(MESSAGE, min_size=1, max_size=4).map(tuple),
    "tools": st.lists(TOOL, max_size=2, unique_by=lambda tool: tool.name).map(tuple),
    "tool_choice": st.sampled_from([None, "auto", "any", "none"]),
    "parallel_tool_calls": st.none() | st.booleans(),
    "output": OUTPUT,
    "max_tokens": st.none() | st.integers(1, 10_000),
    "temperature": st.none() | st.floats(0, 2),
    "top_p": st.none() | st.floats(0, 1),
    "stop": st.lists(st.text(min_size=1, max_size=5), max_size=2).map(tuple),
    "seed": st.none() | st.integers(),
    "model": st.none() | TEXT,
    "extra": st.dictionaries(NAME, st.dictionaries(TEXT, PLAIN, min_size=1, max_size=2), max_size=2),
    "continues": st.booleans(),
    "check": st.sampled_from([None, lambda answer: None]),
}
REQUEST = st.fixed_dictionaries(VALUES).map(lambda v: ChatRequest(**v))


def key(request: ChatRequest) -> bytes:
    return digest(request_form(request))


def alike(a, b) -> bool:
    """Whether two values say the same to a vendor: by type, but for integers and floats."""
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, (int, float)) and isinstance(b, (int, float)):
        return a == b
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(alike(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(alike, a, b))
    if dataclasses.is_dataclass(a) and type(a) is type(b):
        return all(
            alike(getattr(a, f.name), getattr(b, f.name))
            for f in fields(a)
            if f.name not in NOT_IN_KEY.get(type(a), ())
        )
    return type(a) is type(b) and a == b


class TestChanges:
    @settings(max_examples=100, deadline=None)
    @given(REQUEST, st.data())
    def test_changing_any_field_that_can_change_an_answer_changes_the_key(self, request_, data):
        """Each field of the table in turn, with a value that does not say the same."""
        name = data.draw(st.sampled_from(sorted(VALUES)))
        other = data.draw(VALUES[name])
        changed = request_.replace(**{name: other})
        same = alike(getattr(request_, name), other) if name != "check" else (request_.check is None) == (other is None)
        assert (key(changed) == key(request_)) is same

    @settings(max_examples=100, deadline=None)
    @given(MESSAGE, MESSAGE)
    def test_two_messages_have_one_key_only_if_they_say_the_same(self, a, b):
        """Roles, names, origins, and every part with everything in it."""
        assert (key(ChatRequest((a,))) == key(ChatRequest((b,)))) is alike(a, b)

    @settings(max_examples=100, deadline=None)
    @given(st.sampled_from(PARTS).flatmap(lambda kind: st.tuples(kind, kind)), st.data())
    def test_changing_any_field_of_a_part_changes_the_key(self, two, data):
        """Whatever kind of part it is."""
        part, other = two
        name = data.draw(st.sampled_from([f.name for f in fields(part)]))
        try:
            changed = replace(part, **{name: getattr(other, name)})
        except ValueError:  # two sources of one picture
            return
        before, after = (ChatRequest((Message("user", (p,)),)) for p in (part, changed))
        assert (key(before) == key(after)) is alike(part, changed)

    @settings(max_examples=100, deadline=None)
    @given(PLAIN, PLAIN)
    def test_plain_data_has_one_form_only_if_it_is_the_same(self, a, b):
        """What vendor options, schemas and opaque blocks are made of."""
        assert (digest(form(a)) == digest(form(b))) is alike(a, b)

    @pytest.mark.parametrize(
        ("a", "b"),
        [
            ("é", "e\u0301"),
            ("a", "a "),
            ("\ud83d\ude00", "\U0001f600"),
            ("", "\0"),
            ("1", 1),
            (1, True),
            (0, False),
            (0, None),
            ([], {}),
            ([], ""),
            (["a", "b"], ["ab"]),
            ([["a"], "b"], ["a", ["b"]]),
            ({"a": {"b": 1}}, {"a": {}, "b": 1}),
            (b"a", "a"),
            (["["], [["["]]),
            ({"user": "u", "stop": "x"}, {"user": "ustop: x"}),
        ],
    )
    def test_what_looks_alike_is_told_apart(self, a, b):
        """Texts by code point, numbers from truths, and no value can pretend to be two."""
        assert digest(form(a)) != digest(form(b))

    def test_messages_cannot_run_into_one_another(self):
        """The same text, cut elsewhere."""
        assert key(ChatRequest((user("ab"), user("c")))) != key(ChatRequest((user("a"), user("bc"))))
        assert key(ChatRequest((user("abc"),))) != key(ChatRequest((Message("user", (Text("ab"), Text("c"))),)))


class TestSameness:
    @settings(max_examples=100, deadline=None)
    @given(REQUEST, st.randoms(use_true_random=False))
    def test_the_order_of_dictionaries_does_not_matter(self, request_, random):
        """Schemas, vendor options and opaque blocks, filled the other way round; other kinds of mapping, too."""

        def shuffled(value):
            if isinstance(value, dict):
                items = [(k, shuffled(v)) for k, v in value.items()]
                random.shuffle(items)
                kind = random.choice([dict, OrderedDict, lambda i: MappingProxyType(dict(i))])
                return kind(items)
            return [shuffled(v) for v in value] if isinstance(value, list) else value

        again = request_.replace(extra=shuffled(dict(request_.extra)))
        if request_.output is not None and request_.output.schema:
            schema = dict(reversed(list(request_.output.schema.items())))
            again = again.replace(output=replace(request_.output, schema=schema))
        assert key(again) == key(request_)

    @settings(max_examples=100, deadline=None)
    @given(st.integers(-(2**53), 2**53))
    def test_equal_numbers_have_equal_keys(self, number):
        """1 and 1.0 are one number to every vendor."""
        assert form(number) == form(float(number))
        assert type(form(float(number))) is type(form(number))

    @pytest.mark.parametrize("name", ["temperature", "top_p"])
    def test_a_float_of_an_integer_is_that_integer(self, name):
        """LiteLLM's cache asks twice for these."""
        asked = ChatRequest((user("x"),))
        assert (
            key(asked.replace(**{name: 0})) == key(asked.replace(**{name: 0.0})) == key(asked.replace(**{name: -0.0}))
        )
        assert key(asked.replace(**{name: 0})) != key(asked)

    def test_defaults_spelled_out_are_defaults(self):
        """Every field at its default, said or not; and an empty table of vendor options is none."""
        asked = ChatRequest((user("x"),))
        spelled = ChatRequest(
            (Message("user", (Text("x"),), None, None, False),),
            **{f.name: getattr(asked, f.name) for f in fields(ChatRequest) if f.name != "messages"},
        )
        assert key(spelled) == key(asked) == key(asked.replace(extra={"openai": {}}))
        tool = ToolSpec("t")
        assert key(asked.replace(tools=(tool,))) == key(
            asked.replace(tools=(ToolSpec("t", "", {"properties": {}, "type": "object"}, None),))
        )

    @pytest.mark.parametrize(
        "change",
        [
            {"streaming": True},
            {"cache": "refresh"},
            {"chain": "low-cost"},
            {"constraints": Constraints(local_only=True)},
            {"timeout_s": 3.0},
            {"user": "ann"},
            {"tags": ("a",)},
            {"strategy": "cost"},
            {"complexity": "simple"},
        ],
        ids=lambda change: next(iter(change)),
    )
    def test_what_cannot_change_an_answer_does_not_change_the_key(self, change):
        """Who is asked, for how long, for whom, and in how many pieces."""
        asked = ChatRequest((user("x"),))
        assert key(asked.replace(**change)) == key(asked)

    def test_texts_of_a_class_of_their_own_are_texts(self):
        """An enum of texts, and whatever else is a `str`."""

        class Tier(StrEnum):
            FLEX = "flex"

        asked = ChatRequest((user("x"),))
        assert key(asked.replace(extra={"openai": {"tier": Tier.FLEX}})) == key(
            asked.replace(extra={"openai": {"tier": "flex"}})
        )
        assert key(asked.replace(model=Tier.FLEX)) == key(asked.replace(model="flex"))

    def test_the_key_is_the_same_in_another_process(self):
        """No address in memory, no order of a set, no seed of a hash has a part in it."""
        code = """
            from shared_core import ChatRequest, ToolSpec, user
            from shared_core.cache.keys import digest, request_form
            tool = ToolSpec("t", "d", {"type": "object", "properties": {"a": {"type": "string"}}})
            print(digest(request_form(ChatRequest((user("Grüße"),), tools=(tool,), temperature=0.5,
                  extra={"openai": {"tags": {"a", "b", "c"}}}))).hex())
        """

        def run(seed: str) -> str:
            command = [sys.executable, "-c", textwrap.dedent(code)]
            environment = {"PYTHONHASHSEED": seed, "PATH": ""}
            return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout

        assert run("1") == run("2") != ""


class TestUnknown:
    @pytest.mark.parametrize(
        "value", [object(), lambda: 1, iter([1]), open, {"a": [object()]}, type("Mine", (), {})()], ids=type
    )
    def test_what_cannot_be_told_by_value_is_refused(self, value):
        """Rather than told by its address, or by nothing."""
        with pytest.raises(Unkeyable, match="by value"):
            form(value)

    def test_nesting_without_an_end_is_refused_too(self):
        """A list that holds itself has no value."""
        endless: list = []
        endless.append(endless)
        with pytest.raises((Unkeyable, RecursionError)):
            digest(form(endless))

    def test_native_objects_that_nobody_tells_are_refused(self):
        """A framework of somebody else's rides along: what it holds may change the answer."""
        with pytest.raises(Unkeyable, match="mine"):
            native_form(Native("mine", ["x"]))
        assert native_form(Native("mine", ["x"], form=lambda native: native.messages)) != native_form(
            Native("mine", ["y"], form=lambda native: native.messages)
        )


class TestClassification:
    def test_every_field_is_in_one_table_and_in_no_other(self):
        """What is in the key and what is not."""
        check_classified()
        for cls, names in IN_KEY.items():
            assert not names & set(NOT_IN_KEY.get(cls, ()))

    @pytest.mark.parametrize("cls", list(IN_KEY), ids=lambda cls: cls.__name__)
    def test_a_field_that_is_not_classified_breaks_the_build(self, cls):
        """A new field of a request, a message, a part, a tool or a schema."""
        forgotten = {**IN_KEY, cls: IN_KEY[cls] - {min(IN_KEY[cls])}}
        with pytest.raises(TypeError, match=min(IN_KEY[cls])):
            check_classified(forgotten)

    def test_the_module_cannot_be_imported_while_one_is_missing(self):
        """Not a test alone: no cache can be built."""
        code = """
            import dataclasses
            import shared_core.chat.request as r
            made = dataclasses.make_dataclass("ChatRequest", [("mood", str, None)], bases=(r.ChatRequest,), frozen=True)
            r.ChatRequest = made
            import shared_core.cache.keys
        """
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False
        )
        assert done.returncode != 0
        assert "mood" in done.stderr
        assert "NOT_IN_KEY" in done.stderr

    def test_a_new_kind_of_part_breaks_it_as_well(self):
        """A message may hold it before the key knows it."""
        fewer = {cls: names for cls, names in IN_KEY.items() if cls is not Audio}
        with pytest.raises(TypeError, match="Audio"):
            check_classified(fewer)
