"""`prepare`, rule by rule: a table of histories and what each target makes of them."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from shared_core.chat.request import (
    Audio,
    File,
    Image,
    Message,
    Origin,
    Reasoning,
    Text,
    ToolCall,
    ToolResult,
    ToolSpec,
    assistant,
    system,
    tool,
    user,
)
from shared_core.errors import ErrorKind, InvalidRequest, ProviderError
from shared_core.history import (
    ANTHROPIC,
    COMPATIBLE,
    GOOGLE,
    LLAMA_CPP,
    MISTRAL,
    OPENAI,
    OPENAI_RESPONSES,
    HistoryRules,
    prepare,
    wire_name,
    with_stubs,
)

ME = Origin("me", "model-1", "https://here")
OTHER = Origin("me", "model-2", "https://here")
PNG = b"\x89PNG\r\n\x1a\n-rest"
ALL = {"openai": OPENAI, "responses": OPENAI_RESPONSES, "anthropic": ANTHROPIC, "google": GOOGLE, "llamacpp": LLAMA_CPP,
       "mistral": MISTRAL, "compatible": COMPATIBLE}  # fmt: skip
everyone = pytest.mark.parametrize("rules", ALL.values(), ids=ALL)


def run(*messages: Message, rules: HistoryRules, **options) -> tuple[Message, ...]:
    return prepare(messages, origin=ME, rules=rules, **options)


def shape(messages: tuple[Message, ...]) -> list[tuple[str, str]]:
    return [(m.role, m.text) for m in messages]


def calls(messages: tuple[Message, ...]) -> list[ToolCall]:
    return [c for m in messages for c in m.tool_calls]


def results(messages: tuple[Message, ...]) -> list[ToolResult]:
    return [p for m in messages for p in m.parts if isinstance(p, ToolResult)]


def texts(result: ToolResult) -> str:
    return "".join(p.text for p in result.content if isinstance(p, Text))


@everyone
def test_an_ordinary_conversation_is_left_alone(rules):
    history = (system("s"), user("u"), assistant("a"), user("v"))
    assert run(*history, rules=rules) == history


@everyone
def test_a_good_tool_loop_keeps_ids_names_and_arguments(rules):
    call_id = "abcdef123"
    call = ToolCall(call_id, "add", '{"x": 1}')
    out = run(user("u"), assistant(call), tool(call_id, "2"), rules=rules)
    assert calls(out) == [call]
    assert results(out) == [ToolResult(call_id, (Text("2"),), "add")]


# ── ids ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("rules", "odd"),
    [
        (OPENAI, "x" * 41),
        (OPENAI_RESPONSES, "x" * 65),
        (ANTHROPIC, "functions.add:0"),
        (MISTRAL, "call_abcdef"),
        (GOOGLE, "with space"),
        (COMPATIBLE, "a/b"),
        (LLAMA_CPP, "call__0_f_cmpl-" + "y" * 60),
    ],
)
def test_an_id_the_target_refuses_is_minted_anew_and_stays_the_same_on_later_turns(rules, odd):
    """Rule 1: both the call and its result are rewritten; the same history gives the same ids (P6)."""
    begin = (user("u"), assistant(ToolCall(odd, "add")), tool(odd, "2"))
    first = run(*begin, rules=rules)
    [call], [result] = calls(first), results(first)
    assert call.id == result.call_id != odd
    later = run(*begin, assistant("done"), user("more"), rules=rules)
    assert calls(later)[0].id == call.id


@everyone
def test_calls_that_share_an_id_are_told_apart_and_answered_in_order(rules):
    """Rule 2: two calls with id '' in one turn, and the same id again in a later one."""
    history = [user("u"), assistant([ToolCall("", "f", '{"n":1}'), ToolCall("", "f", '{"n":2}')])]
    history += [tool("", "one"), tool("", "two"), assistant([ToolCall("", "f", '{"n":1}')]), tool("", "three")]
    out = run(*history, rules=rules)
    assert len({c.id for c in calls(out)}) == 3
    assert [r.call_id for r in results(out)] == [c.id for c in calls(out)]
    assert [texts(r) for r in results(out)] == ["one", "two", "three"]


@everyone
def test_results_that_share_an_id_go_by_the_tool_they_name(rules):
    history = [user("u"), assistant([ToolCall("", "f"), ToolCall("", "g")]), tool("", "of g", name="g")]
    out = run(*history, tool("", "of f", name="f"), rules=rules)
    assert [texts(r) for r in results(out)] == ["of f", "of g"]


def test_a_vendor_state_smuggled_into_an_id_is_cut_off():
    """Rule 3: LiteLLM's `__thought__` suffix is not part of the identity."""
    out = run(user("u"), assistant(ToolCall("call_1__thought__c2ln", "f")), tool("call_1", "r"), rules=OPENAI)
    assert calls(out)[0].id == "call_1"
    assert texts(results(out)[0]) == "r"


# ── calls and results ────────────────────────────────────────────────────────────────────────────────────────────────


@everyone
def test_a_call_without_a_result_is_told_as_cancelled(rules):
    """Rule 5, also at the very end of the history."""
    out = run(user("u"), assistant(ToolCall("abcdef123", "f")), user("never mind"), rules=rules)
    [result] = results(out)
    assert "tool call was cancelled" in texts(result)
    assert result.is_error == (rules.error_flag == "native")


@everyone
def test_orphans_go_and_the_last_of_several_results_stays(rules):
    history = [user("u"), tool("zzzzzzzzz", "orphan"), assistant(ToolCall("abcdef123", "f"))]
    out = run(*history, tool("abcdef123", "old"), tool("abcdef123", "new"), rules=rules)
    assert [texts(r) for r in results(out)] == ["new"]


@everyone
def test_results_stand_right_behind_their_calls_in_call_order(rules):
    """Even when they came late, in another order, and behind something the user said."""
    a, b = ToolCall("aaaaaaaaa", "f"), ToolCall("bbbbbbbbb", "f")
    out = run(user("u"), assistant([a, b]), user("wait"), tool("bbbbbbbbb", "B"), tool("aaaaaaaaa", "A"), rules=rules)
    assert [(r.call_id, texts(r)) for r in results(out)] == [("aaaaaaaaa", "A"), ("bbbbbbbbb", "B")]
    at = next(i for i, m in enumerate(out) if m.tool_calls)
    assert isinstance(out[at + 1].parts[0], ToolResult)
    tool_messages = [len(m.parts) for m in out if m.role == "tool"]
    assert tool_messages == {"each": [1, 1], "turn": [2], "user": []}[rules.results]


@pytest.mark.parametrize("broken", ['{"x": 1', "[1]", "7", "nonsense", '{"x": NaN}'])
@everyone
def test_arguments_that_are_no_json_object_are_kept_inside_one(rules, broken):
    """Rule 6: never raw, never lost, and the call was never made."""
    out = run(user("u"), assistant(ToolCall("abcdef123", "f", broken)), rules=rules)
    assert calls(out)[0].parsed() == {"invalid_arguments": broken}
    assert "not a JSON object" in texts(results(out)[0])


@pytest.mark.parametrize(("given", "sent"), [('"{\\"x\\": 1}"', '{"x": 1}'), ("", "{}"), ("  ", "{}")])
def test_arguments_encoded_twice_or_not_at_all_are_read_as_meant(given, sent):
    out = run(user("u"), assistant(ToolCall("c", "f", given)), rules=OPENAI)
    assert calls(out)[0].arguments == sent
    assert "cancelled" in texts(results(out)[0])


def test_a_failed_result_is_flagged_the_targets_way():
    """Rule 8."""
    history = (user("u"), assistant(ToolCall("abcdef123", "f")), tool("abcdef123", "no such city", is_error=True))
    assert results(run(*history, rules=ANTHROPIC))[0].is_error
    prefixed = results(run(*history, rules=OPENAI))[0]
    assert (texts(prefixed), prefixed.is_error) == ("Error: no such city", False)


def test_an_image_in_a_result_moves_to_a_user_turn_where_results_are_text_only():
    """Rule 7."""
    picture = Image(data=PNG)
    history = (user("u"), assistant(ToolCall("abcdef123", "f")), tool("abcdef123", [Text("a plot"), picture]))
    kept = results(run(*history, rules=ANTHROPIC))[0]
    assert isinstance(kept.content[1], Image)
    out = run(*history, user("and?"), rules=OPENAI)
    assert "1 image" in texts(results(out)[0])
    assert [type(p) for p in out[3].parts] == [Text, Image]
    assert out[4].text == "and?"


def test_a_history_with_tool_turns_declares_its_tools_where_that_is_needed():
    """Rule 12."""
    out = run(user("u"), assistant(ToolCall("c", "old_tool")), tool("c", "r"), rules=ANTHROPIC)
    assert [t.name for t in with_stubs((ToolSpec("new"),), out, ANTHROPIC)] == ["new", "old_tool"]
    assert [t.name for t in with_stubs((ToolSpec("new"),), out, OPENAI)] == ["new"]


@pytest.mark.parametrize("name", ["files.read:all", "with space", "9lives", "x" * 100, "", "überprüfen"])
@everyone
def test_tool_names_that_do_not_fit_are_cleaned_the_same_way_everywhere(rules, name):
    sent = wire_name(name, rules)
    assert re.fullmatch(rules.tool_name_pattern, sent)
    assert wire_name(sent, rules) == sent
    out = run(user("u"), assistant(ToolCall("abcdef123", name)), rules=rules)
    assert calls(out)[0].name == results(out)[0].name == sent


def test_names_that_clean_to_the_same_stay_different():
    assert wire_name("a.b", OPENAI) != wire_name("a:b", OPENAI)


def test_a_target_without_tools_is_told_in_words():
    rules = replace(LLAMA_CPP, tool_turns="text")
    out = run(user("u"), assistant([Text("let me see"), ToolCall("c", "f", '{"x":1}')]), tool("c", "2"), rules=rules)
    assert shape(out) == [
        ("user", "u"),
        ("assistant", 'let me see\n\n[tool call f({"x":1})]'),
        ("user", "[tool f answered] 2"),
    ]


# ── system ───────────────────────────────────────────────────────────────────────────────────────────────────────────

LATE = (system("one"), system("two"), user("u"), assistant("a"), system("late"), user("v"))


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        (OPENAI, [(m.role, m.text) for m in LATE]),
        (GOOGLE, [("system", "one\n\ntwo\n\nlate"), ("user", "u"), ("assistant", "a"), ("user", "v")]),
        (
            replace(ANTHROPIC, late_system="note"),
            [
                ("system", "one\n\ntwo"), ("user", "u"), ("assistant", "a"),
                ("user", "<system-note>\nlate\n</system-note>\n\nv"),
            ],
        ),
        (replace(LLAMA_CPP, system="none"), [("user", "one\n\ntwo\n\nlate\n\nu"), ("assistant", "a"), ("user", "v")]),
    ],
)  # fmt: skip
def test_system_messages_go_where_the_target_takes_them(rules, expected):
    """Rule 13: folded, never dropped."""
    assert shape(run(*LATE, rules=rules)) == expected


def test_a_picture_in_a_system_message_moves_to_a_user_turn():
    out = run(system([Text("s"), Image(data=PNG)]), user("u"), rules=ANTHROPIC)
    assert [m.role for m in out] == ["system", "user"]
    assert isinstance(out[1].parts[0], Image)


# ── the shape of turns ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("rules", [ANTHROPIC, GOOGLE, LLAMA_CPP, MISTRAL, COMPATIBLE])
def test_strict_targets_get_a_user_turn_first_and_last_and_no_neighbours(rules):
    """Rules 15 and 16."""
    out = run(assistant("hello"), user("a"), user("b"), assistant("c"), assistant("d"), rules=rules)
    assert [m.role for m in out] == ["user", "assistant", "user", "assistant", "user"]
    assert [m.text for m in out][1:] == ["hello", "a\n\nb", "c\n\nd", "Continue."]


@everyone
def test_an_answer_to_be_continued_stays_last(rules):
    out = run(user("u"), assistant("Once upon a "), rules=rules, keep_trailing_assistant=True)
    assert shape(out) == [("user", "u"), ("assistant", "Once upon a" if rules is ANTHROPIC else "Once upon a ")]


def test_a_picture_of_an_answer_to_be_continued_goes_before_it():
    out = run(user("u"), assistant([Text("See"), Image(data=PNG)]), rules=OPENAI, keep_trailing_assistant=True)
    assert [m.role for m in out] == ["user", "user", "assistant"]


@pytest.mark.parametrize("blank", ["", "  \n"])
def test_blank_texts_vanish_or_are_named(blank):
    """Rules 15 and 34: an assistant turn that says nothing is no turn; a user turn keeps its place."""
    out = run(user("u"), assistant([Text(blank)]), user([Text(blank)]), user([Text(blank), Text("x")]), rules=ANTHROPIC)
    assert shape(out) == [("user", "u\n\n(empty message)\n\nx")]


def test_a_failure_written_into_the_history_by_a_middleware_is_not_repeated():
    """Rule 33."""
    out = run(user("u"), assistant("Model call failed after 3 attempts with APIError: boom"), user("v"), rules=OPENAI)
    assert shape(out) == [("user", "u"), ("user", "v")]


@pytest.mark.parametrize("rules", [LLAMA_CPP, MISTRAL])
def test_no_user_turn_right_behind_a_result_where_that_is_refused(rules):
    out = run(user("u"), assistant(ToolCall("abcdef123", "f")), tool("abcdef123", "r"), user("v"), rules=rules)
    assert [m.role for m in out] == ["user", "assistant", "tool", "assistant", "user"]


@pytest.mark.parametrize(
    ("rules", "name", "expected"),
    [(OPENAI, "bob", ("bob", "hi")), (OPENAI, "Bob B.", (None, "Bob B.: hi")), (ANTHROPIC, "bob", (None, "bob: hi"))],
)
def test_a_speakers_name_is_kept_or_said(rules, name, expected):
    """Rule 17."""
    [message] = run(Message("user", (Text("hi"),), name=name), rules=rules)
    assert (message.name, message.text) == expected


def test_cache_hints_are_for_those_who_read_them_and_at_most_four():
    """Rule 14."""
    history = [replace(m, cache_hint=True) for m in (user("1"), assistant("2"), user("3"), assistant("4"), user("5"))]
    assert [m.cache_hint for m in run(*history, rules=ANTHROPIC)] == [False, True, True, True, True]
    assert not any(m.cache_hint for m in run(*history, rules=OPENAI))


# ── media ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@everyone
def test_a_data_url_becomes_bytes_of_a_known_type(rules):
    out = run(user(Image(url="data:image/png;base64,iVBORw==")), rules=rules)
    assert out[0].parts == (Image(data=b"\x89PNG", media_type="image/png"),)


@pytest.mark.parametrize(
    ("part", "media_type"),
    [
        (Image(data=PNG), "image/png"),
        (Image(data=b"\xff\xd8\xff\xe0"), "image/jpeg"),
        (Image(data=b"RIFF0000WEBPVP8 "), "image/webp"),
        (Image(data=b"?"), "image/png"),
        (Audio(data=b"RIFF0000WAVEfmt "), "audio/wav"),
        (Audio(data=b"ID3\x04"), "audio/mpeg"),
        (File(data=b"%PDF-1.7"), "application/pdf"),
    ],
)
def test_bytes_without_a_type_are_sniffed(part, media_type):
    """Rule 18: never None."""
    sent = run(user(part), rules=GOOGLE)[0].parts[0]
    assert sent == replace(part, media_type=media_type)


@pytest.mark.parametrize(
    ("rules", "part"),
    [
        (ANTHROPIC, Image(file_id="file-openai")),
        (OPENAI, File(file_id="file_anthropic")),
        (OPENAI, File(file_id="files/google")),
        (OPENAI, Image(url="gs://bucket/x.png")),
        (ANTHROPIC, File(url="https://generativelanguage.googleapis.com/v1beta/files/x")),
        (GOOGLE, Image(url="https://example.org/x.png")),
        (ANTHROPIC, Audio(data=b"x")),
        (LLAMA_CPP, File(data=b"x")),
        (MISTRAL, Image(file_id="file-openai")),
    ],
)
def test_what_a_target_cannot_resolve_makes_it_incapable_instead_of_vanishing(rules, part):
    """Rule 19: also inside a tool result."""
    for message in (user([Text("look"), part]), tool("c", part)):
        with pytest.raises(ProviderError) as caught:
            run(user("u"), assistant(ToolCall("c", "f")), message, rules=rules)
        assert caught.value.kind is ErrorKind.INCAPABLE


@pytest.mark.parametrize(
    ("rules", "part"),
    [
        (OPENAI, File(file_id="file-abc")),
        (ANTHROPIC, File(file_id="file_abc")),
        (GOOGLE, File(file_id="files/abc")),
        (GOOGLE, File(url="https://generativelanguage.googleapis.com/v1beta/files/abc")),
        (GOOGLE, Image(url="gs://bucket/x.png")),
        (OPENAI, Image(url="https://example.org/x.png", detail="low")),
    ],
)
def test_a_vendors_own_handles_pass(rules, part):
    assert run(user(part), rules=rules)[0].parts == (part,)


@pytest.mark.parametrize("url", ["data:image/png;base64", "data:image/png;base64,A", "data:image/png;base64,A$=="])
def test_a_broken_data_url_is_the_callers_fault(url):
    with pytest.raises(InvalidRequest):
        run(user(Image(url=url)), rules=OPENAI)


# ── reasoning ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("rules", "origin", "replayed"),
    [
        (ANTHROPIC, ME, True),
        (GOOGLE, ME, True),
        (OPENAI_RESPONSES, ME, True),
        (OPENAI, ME, False),
        (LLAMA_CPP, ME, False),
        (ANTHROPIC, OTHER, False),
        (GOOGLE, Origin("me", "model-1"), False),
        (GOOGLE, None, False),
    ],
)
def test_opaque_blocks_go_back_to_their_exact_origin_and_nowhere_else(rules, origin, replayed):
    """Rules 21 to 23, 26, 31 and 32: never as text, never by vendor alone, never when nobody signed."""
    thought = Reasoning("secret thought", {"signature": "s"})
    call = ToolCall("c", "f", data={"thought_signature": "t"})
    out = run(user("u"), assistant([thought, Text("hm"), call], origin=origin), tool("c", "r"), rules=rules)
    said = out[1].parts
    assert (thought in said) is replayed
    assert bool(calls(out)[0].data) is replayed
    assert "secret thought" not in out[1].text


def test_a_thought_without_its_block_is_not_replayed():
    out = run(user("u"), assistant([Reasoning("hm"), Text("a")], origin=ME), user("v"), rules=ANTHROPIC)
    assert out[1].parts == (Text("a"),)


def test_a_turn_merged_of_two_origins_carries_no_opaque_block():
    mine = assistant([Reasoning("hm", {"signature": "s"}), Text("a")], origin=ME)
    out = run(user("u"), mine, assistant("b", origin=OTHER), user("v"), rules=ANTHROPIC)
    assert out[1] == assistant("a\n\nb")


def test_a_minted_id_never_collides_with_one_that_is_there():
    odd = "with space"
    minted = calls(run(user("u"), assistant(ToolCall(odd, "f")), rules=OPENAI))[0].id
    out = run(user("u"), assistant([ToolCall(odd, "f"), ToolCall(minted, "f")]), rules=OPENAI)
    assert len({c.id for c in calls(out)}) == 2
    assert calls(out)[1].id == minted


def test_of_too_many_results_to_calls_of_one_id_the_last_ones_win():
    history = [
        user("u"),
        assistant([ToolCall("", "f"), ToolCall("", "f")]),
        tool("", "1"),
        tool("", "2"),
        tool("", "3"),
    ]
    assert [texts(r) for r in results(run(*history, rules=OPENAI))] == ["2", "3"]


def test_a_user_message_without_parts_keeps_its_turn():
    assert [m.role for m in run(user("u"), assistant("a"), user([]), rules=OPENAI)] == ["user", "assistant", "user"]
