"""A conversation longer than the window: refused with both numbers, or without its oldest turns if so chosen."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared_core.chat.request import ChatRequest, Message, Text, ToolCall, ToolResult, assistant, system, user
from shared_core.errors import AllTargetsFailed, ErrorKind, ProviderError
from shared_core.providers.llama_cpp.truncate import fitted, oldest
from shared_core.router import Router
from shared_core.routing.target import Target
from tests.local.support import answer, ask, guard


def said(*roles: str) -> list[dict]:
    """Messages of these roles, the tool's results after the calls they belong to."""
    return [{"role": role, "content": f"{n}"} for n, role in enumerate(roles)]


S, U, A, T = "system", "user", "assistant", "tool"

ORDERS = [
    ("one turn keeps all of itself", (S, U), []),
    ("whole turns go first, the oldest first", (S, U, A, U, A, U), [[1, 2], [3, 4]]),
    ("a greeting goes with the first turn it stands before", (A, U, A, U), [[0], [1, 2]]),
    ("two messages of a user in a row are two turns", (U, U, A, U), [[0], [1, 2]]),
    ("a system message stays wherever it stands", (U, S, A, U), [[0, 2]]),
    ("calls go with all of their results", (U, A, T, T, A, U), [[0, 1, 2, 3, 4]]),
    ("in an agent's long turn its oldest calls go, not the last", (U, A, T, A, T, T, A, T), [[1, 2], [3, 4, 5]]),
]  # fmt: skip


@pytest.mark.parametrize(("roles", "units"), [case[1:] for case in ORDERS], ids=[case[0] for case in ORDERS])
def test_what_may_go_and_in_which_order(roles, units):
    assert oldest(said(*roles)) == units


conversations = st.lists(st.sampled_from([S, U, A, "call"]), min_size=1, max_size=14)


@given(shape=conversations, window=st.integers(1, 60), limit=st.integers(1, 20), fit=st.booleans())
def test_it_leaves_out_no_more_than_it_must_and_never_splits_anything(shape, window, limit, fit):
    messages: list[dict] = []
    for n, kind in enumerate(shape):
        if kind == "call":
            messages += [{"role": A, "content": "c", "call": n}, {"role": T, "content": "rr", "call": n, "n": n}]
        else:
            messages.append({"role": kind, "content": "x" * (1 + n % 4), "n": n})

    def count(job):
        return sum(1 + len(m["content"]) for m in job["messages"])

    job = {"messages": messages, "max_tokens": limit, "fit": fit}
    left, note = fitted(job, count, window)
    room = min(limit, window // 4) if fit else limit
    kept = left["messages"]
    assert [m for m in messages if m in kept] == kept, "in order"
    assert [m for m in kept if m["role"] == S] == [m for m in messages if m["role"] == S]
    assert [m.get("call") for m in kept if m["role"] == T] == [
        m["call"] for m in kept if "call" in m and m["role"] == A
    ]
    users = [m for m in messages if m["role"] == U]
    if users:
        assert any(m is users[-1] for m in kept), "what was asked last stays"
    gone = oldest(messages)
    if count(job) + room <= window or not gone:
        assert kept == messages
        assert note is None
        return
    assert f"with them the prompt takes {count(job)} tokens, the context window is {window}" in note
    # One unit fewer would not have fitted.
    number = next(k for k in range(1, len(gone) + 1) if sum(map(len, gone[:k])) == len(messages) - len(kept))
    before = {i for unit in gone[: number - 1] for i in unit}
    assert count({"messages": [m for i, m in enumerate(messages) if i not in before]}) + room > window
    assert count(left) + room <= window or number == len(gone)


# ── with a model ─────────────────────────────────────────────────────────────────────────────────────────────────────


def long_talk(turns: int) -> list[Message]:
    """A conversation of `turns` turns, the last one a question."""
    talk = [system("You are brief.")]
    for n in range(turns):
        talk += [user(f"Question {n}: " + "word " * 40), assistant("An answer. " * 8)]
    return [*talk, user("What is the capital of France?")]


def test_a_conversation_too_long_is_refused_with_both_numbers_before_anything_is_read(own):
    provider = own(n_ctx=512)
    request = ask(*long_talk(6))
    takes = provider.count_tokens(request)
    with pytest.raises(ProviderError, match=rf"prompt takes {takes} tokens.*the context window is 512") as caught:
        answer(provider, *request.messages)
    assert caught.value.kind is ErrorKind.CONTEXT_OVERFLOW


def test_the_oldest_turns_are_left_out_if_so_chosen_and_the_journal_says_so(own):
    provider = own(n_ctx=512, truncate="oldest")
    request, limits = ask(*long_talk(6), max_tokens=8), guard()
    events = list(provider.stream(request, limits))
    assert events[-1].usage.input_tokens + 8 <= 512
    takes = own(n_ctx=512).count_tokens(request)
    assert [n for n in limits.notes if "oldest of 14 messages" in n and f"{takes} tokens" in n]


def test_the_answer_is_the_same_as_to_the_conversation_without_those_turns(own):
    provider = own(n_ctx=512, truncate="oldest")
    talk = long_talk(6)
    short = [talk[0], *talk[-3:]]
    assert own(n_ctx=512).count_tokens(ask(talk[0], *talk[-5:])) + 128 > 512, "two turns do not fit"
    whole = answer(provider, *talk, max_tokens=128)
    assert whole.text == answer(own(n_ctx=512), *short, max_tokens=128).text


def test_a_call_is_left_out_with_its_result(own):
    call = ToolCall("call_1", "look", '{"at": "' + "x" * 400 + '"}')
    result = Message("tool", (ToolResult("call_1", (Text("y" * 200),), name="look"),))
    talk = (user("look"), Message("assistant", (call,)), result, assistant("seen"), user("and now?"))
    provider = own(n_ctx=256, truncate="oldest")
    limits = guard()
    list(provider.stream(ask(*talk, max_tokens=4), limits))
    assert any("left out the 4 oldest of 5 messages" in note for note in limits.notes)


def test_a_last_message_that_is_itself_too_long_is_refused_all_the_same(own):
    with pytest.raises(ProviderError, match="the context window is 256") as caught:
        answer(own(n_ctx=256, truncate="oldest"), "a", "x" * 900)
    assert caught.value.kind is ErrorKind.CONTEXT_OVERFLOW


def test_a_router_asks_a_target_that_truncates_whatever_the_length_and_tells_the_caller(random_gguf):
    talk = ChatRequest(tuple(long_talk(60)), max_tokens=4)
    small = Target(f"llamacpp:{random_gguf}", name="small", n_ctx=512)
    with Router([small]) as router, pytest.raises(AllTargetsFailed) as caught:
        router.invoke(talk)
    assert caught.value.__cause__.kind is ErrorKind.CONTEXT_OVERFLOW
    assert "512" in str(caught.value)
    cutting = Target(f"llamacpp:{random_gguf}", name="cutting", n_ctx=512, truncate="oldest")
    with Router([cutting]) as router:
        served = router.invoke(talk)
    (attempt,) = served.fallback["attempts"]
    assert any("oldest of 122 messages" in note for note in attempt["history"])
