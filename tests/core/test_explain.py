"""Why this order, and the same decision again from what was written down of it: random fleets, random requests."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared_core import (
    Capabilities,
    ChatRequest,
    ConfigurationError,
    Constraints,
    File,
    Image,
    OutputSchema,
    Plan,
    Price,
    Router,
    Target,
    Text,
    ToolSpec,
    assistant,
    user,
)
from shared_core.routing.replay import replay
from shared_core.testing import ScriptedProvider, VirtualClock

HI = ChatRequest((user("Hello"),))


class Local(ScriptedProvider):
    local = True

    def wait_s(self, request: ChatRequest) -> float:
        return 0.25


def only_short(request, views):
    """A strategy of one's own: half of them, backwards."""
    return list(views)[::-2]


flags = st.booleans()
prices = st.one_of(
    st.none(),
    st.builds(
        Price,
        st.integers(0, 40),
        st.integers(0, 40),
        request=st.sampled_from([0, "0.001"]),
        second=st.sampled_from([0, 1]),
    ),
)
able = st.builds(
    Capabilities,
    tools=flags,
    json_schema=flags,
    images=flags,
    image_urls=flags,
    pdfs=flags,
    context_window=st.sampled_from([None, 5, 4000]),
    tool_choice=st.sampled_from([frozenset({"auto"}), frozenset({"auto", "any", "none", "tool"})]),
)


@st.composite
def targets(draw):
    made = []
    for name in draw(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=6, unique=True)):
        cls = Local if draw(st.integers(0, 3)) == 0 else ScriptedProvider
        provider = cls("ok", name=draw(st.sampled_from(["x", "y"])), model=name, capabilities=draw(able))
        made.append(
            Target(
                provider=provider,
                name=name,
                price=draw(prices),
                weight=draw(st.sampled_from([0.0, 1.0, 3.0])),
                tier=draw(st.sampled_from([None, "fast", "standard", "best"])),
                enabled=draw(st.integers(0, 5)) > 0,
            )
        )
    return made


constraints = st.builds(
    Constraints,
    local_only=st.integers(0, 4).map(lambda n: n == 0),
    allow=st.one_of(st.none(), st.frozensets(st.sampled_from(["a", "b", "c", "x", "y"]))),
    deny=st.frozensets(st.sampled_from(["a", "d", "y"]), max_size=1),
    max_price=st.one_of(st.none(), st.sampled_from([0.0, 5.0, 20.0])),
    require=st.frozensets(st.sampled_from(["tools", "images"]), max_size=1),
)
pieces = st.sampled_from(
    [
        Text("word " * 40),
        Text("Prove it, step by step."),
        Image(data=b"x"),
        Image(url="https://h/p.png"),
        File(data=b"x"),
    ]
)


@st.composite
def requests(draw):
    tools = tuple(ToolSpec(f"tool{at}") for at in range(draw(st.integers(0, 2))))
    return ChatRequest(
        (user([Text("Hello"), *draw(st.lists(pieces, max_size=3))]), assistant("yes"), user("What is the capital?")),
        tools=tools,
        tool_choice=draw(st.sampled_from([None, "auto", "any", "tool0"])) if tools else None,
        output=draw(
            st.sampled_from([None, OutputSchema({"type": "object"}), OutputSchema(), OutputSchema(anyhow=True)])
        ),
        max_tokens=draw(st.sampled_from([None, 10, 5000])),
        streaming=draw(flags),
        model=draw(st.sampled_from([None, "b", "elsewhere"])),
        chain=draw(st.sampled_from([None, "low-cost", "local-first"])),
        constraints=draw(st.one_of(st.just(Constraints()), constraints)),
        complexity=draw(st.sampled_from([None, "simple", "medium", "complex", "auto"])),
        strategy=draw(
            st.sampled_from([None, "priority", "cost", "performance", "round_robin", "weighted", only_short])
        ),
    )


def learnt(router: Router, measured: list[tuple[int, bool]]) -> None:
    """What calls would have left behind: times, failures, an open circuit."""
    for route, (calls, works) in zip(router._fleet.routes, measured, strict=False):
        for at in range(calls):
            route.gate.health.calls += 1
            if works or at % 2:
                route.gate.health.success(0.1 * calls, 0.01 * calls, float(at))
            else:
                route.gate.health.failure("transient", float(at))
        if calls == 7:
            route.gate.force_open()


@settings(max_examples=300, deadline=None)
@given(targets(), requests(), st.lists(st.tuples(st.integers(0, 9), flags), max_size=6), st.integers(0, 3), flags)
def test_a_recorded_decision_is_made_again_offline_just_as_it_was(fleet, request, measured, turn, pinned):
    router = Router(fleet, clock=VirtualClock(), strategy="weighted")
    learnt(router, measured)
    router._turn = turn * 17
    if pinned:
        router.pin(fleet[-1].name)
    explained = router.explain(request)
    taken = router._plan(router._fleet.line, request, None, router._turn)
    assert (explained.targets, explained.excluded, explained.strategy) == (
        taken.targets,
        taken.excluded,
        taken.strategy,
    )
    assert (explained.complexity, explained.chain) == (taken.complexity, taken.chain)
    assert [route.gate for route in explained.routes] == [route.gate for route in taken.routes], "the router's own"

    record = json.loads(json.dumps(explained.record()))
    again = Plan.replay(record)
    assert again.targets == explained.targets == tuple(record["answer"]["targets"])
    assert again.excluded == explained.excluded == tuple(map(tuple, record["answer"]["excluded"]))
    assert (again.strategy, again.chain, again.complexity) == (
        explained.strategy,
        explained.chain,
        explained.complexity,
    )
    assert (dict(again.notes), again.scores) == (dict(explained.notes), explained.scores)
    assert (str(again), again.record()) == (str(explained), record)
    assert {score.target for score in explained.scores} == {target.name for target in fleet} or request.chain


def test_a_record_says_nothing_of_what_was_asked_and_holds_no_key():
    router = Router([Target("openai:gpt-5-mini", api_key="sk-secret-key-0123456789", base_url="https://u:pw@h/v1")])
    record = json.dumps(router.explain(HI.replace(messages=(user("my private question"),), complexity="auto")).record())
    for secret in ("private", "sk-secret", "pw@"):
        assert secret not in record


def test_a_replay_needs_no_sdk_no_target_and_no_network(tmp_path):
    router = Router([Target("openai:gpt-5-mini", api_key="k", tier="best"), Target("llamacpp:tiny", tier="fast")])
    plan = router.explain(HI.replace(complexity="simple"))
    path = tmp_path / "decision.json"
    path.write_text(json.dumps(plan.record()), encoding="utf-8")
    code = (
        "import json, socket, sys\n"
        "socket.socket = None\n"
        "from shared_core.routing.replay import replay\n"
        f"print(*replay(json.load(open({str(path)!r}))).targets)\n"
        "assert not {'openai', 'llama_cpp', 'httpx', 'shared_core.router'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout.split(), done.stderr) == (["llamacpp:tiny", "openai:gpt-5-mini"], "")


def test_a_change_of_what_was_read_changes_the_answer():
    """So the answer is made again, not read out."""
    router = Router(
        [
            Target(provider=ScriptedProvider(name="a"), name="a", price=Price(1, 1)),
            Target(provider=ScriptedProvider(name="b"), name="b", price=Price(2, 2)),
        ],
        strategy="cost",
    )
    record = router.explain(HI).record()
    assert replay(record).targets == ("a", "b")
    record["targets"][0]["price"]["expected_nano"] *= 10
    assert replay(record).targets == ("b", "a")
    record["targets"][1]["enabled"] = False
    assert replay(record).excluded == (("b", "disabled"),)


def test_targets_that_the_chain_does_not_name_are_left_out_with_that_reason_and_have_scores():
    made = [Target(provider=ScriptedProvider("yes", name=n), name=n, price=Price(1, 1)) for n in "abcd"]
    router = Router(made, chains={"two": {"targets": ["c", "a"]}})
    plan = router.explain("Hello", chain="two", deny=["a"])
    assert plan.targets == ("c",)
    assert plan.excluded == (("a", "constraint: denied"), ("b", "not in chain 'two'"), ("d", "not in chain 'two'"))
    assert "-  d: not in chain 'two'" in str(plan)
    assert [(row["target"], row["excluded"]) for row in plan.table()] == [("c", None), *plan.excluded]
    again = Plan.replay(json.loads(json.dumps(plan.record())))
    assert (again.excluded, again.scores, str(again)) == (plan.excluded, plan.scores, str(plan))

    assert router.explain("Hello").excluded == router.explain("Hello", chain="low-cost").excluded == ()
    by_default = Router(made, chains={"default": {"targets": ["b", "c", "d"]}})
    assert by_default.explain("Hello").excluded == (("a", "not in chain 'default'"),)
    assert by_default.invoke("Hello").target == "b"
    assert by_default.last.excluded == (), "a request's journal tells of those that its chain names"
    older = plan.record()
    del older["outside"]
    assert Plan.replay(older).excluded == (("a", "constraint: denied"),)


@pytest.mark.parametrize("wrong", [{}, {"version": 99}, [], None])
def test_what_is_no_record_is_refused(wrong):
    with pytest.raises(ConfigurationError, match="no record of a decision"):
        replay(wrong)
    with pytest.raises(ConfigurationError, match=r"only a plan of router\.explain"):
        Plan(()).record()


@pytest.mark.parametrize(
    ("strategy", "scores", "unit"),
    [
        ("priority", [1.0, 2.0], "place"),
        ("cost", [0.000401, 0.004], "US dollars expected"),
        ("performance", [0.5, 2.0], "seconds expected"),
        ("weighted", [1.0, 4.0], "weight"),
    ],
)
def test_the_scores_say_what_the_strategy_went_by(strategy, scores, unit):
    dear = Target(provider=ScriptedProvider(name="a"), name="a", price=Price(0, 10), weight=4, tier="best")
    cheap = Target(provider=ScriptedProvider(name="b"), name="b", price=Price(1, 1), tier="fast")
    router = Router([dear, cheap], strategy=strategy)
    for route, seconds in zip(router._fleet.routes, (2.0, 0.5), strict=True):
        for at in range(3):
            route.gate.health.calls += 1
            route.gate.health.success(seconds, None, float(at))
    plan = router.explain("Hello")
    rows = {row["target"]: row for row in plan.table()}
    assert sorted(row["score"] for row in rows.values()) == pytest.approx(scores)
    assert {row["unit"] for row in rows.values()} == {unit}
    assert [row["target"] for row in plan.table()] == list(plan.targets)
    assert (rows["a"]["tier"], rows["a"]["price_usd_per_mtok"], rows["a"]["latency_p50_s"]) == (
        "best",
        (0.0, 10.0),
        2.0,
    )
    assert rows["a"]["expected_s"] == pytest.approx(2.0)
    page = plan._repr_html_()
    assert "why this order" in page
    assert "<td>0 / 10</td>" in page
    assert "<th>drift</th>" not in page, "columns that nobody has are left out"


def test_a_stream_is_explained_as_a_stream():
    router = Router(
        [Target(provider=ScriptedProvider(name=n), name=n) for n in ("whole", "first")], strategy="performance"
    )
    for route, (latency, first) in zip(router._fleet.routes, ((1.0, 0.9), (5.0, 0.1)), strict=True):
        for at in range(3):
            route.gate.health.calls += 1
            route.gate.health.success(latency, first, float(at))
    assert router.explain(HI).targets[0] == "whole"
    assert router.explain(HI.replace(streaming=True)).targets[0] == "first"


# ── constraints ──────────────────────────────────────────────────────────────────────────────────────────────────────


def allowed(target: Target, c: Constraints) -> bool:
    """The rule in its own words: unknown means no."""
    provider = target.provider
    assert provider is not None
    names = {target.name, target.spec, target.provider_name, provider.name}
    price = target.price if target.price is not None else (Price() if provider.local else None)
    return (
        (provider.local or not c.local_only)
        and not names & c.deny
        and (c.allow is None or bool(names & c.allow))
        and (
            c.max_price is None
            or (price is not None and float(price.dearest) <= c.max_price and not (price.second or price.request))
        )
        and all(getattr(provider.capabilities, need) for need in c.require)
    )


@settings(max_examples=300, deadline=None)
@given(targets(), constraints, st.sampled_from(["cost", "performance", "weighted", "round_robin", "priority"]), flags)
def test_nobody_who_is_kept_out_is_ever_asked_whatever_fails(fleet, limits, strategy, streaming):
    """On every hop: all that are allowed fail, and the others are still not asked."""
    from shared_core import AllTargetsFailed, ErrorKind

    for target in fleet:
        target.provider.script = (ErrorKind.NOT_FOUND,)
    router = Router(fleet, strategy=strategy, clock=VirtualClock())
    router.pin(fleet[0].name)
    request = HI.replace(constraints=limits)
    with pytest.raises(AllTargetsFailed):
        list(router.stream(request)) if streaming else router.invoke(request)
    for target in fleet:
        may = allowed(target, limits) and target.enabled
        assert target.provider.calls == may, (target, limits)


def test_constraints_given_twice_hold_both():
    one = Constraints(allow=["a", "b"], max_price=5, require=["tools"])
    two = Constraints(local_only=True, allow=["b", "c"], deny=["d"], max_price=3, require=["images"])
    both = Constraints(local_only=True, allow=["b"], deny=["d"], max_price=3, require=frozenset({"tools", "images"}))
    assert one.narrowed(two) == two.narrowed(one) == both
    assert one.narrowed(Constraints()) == one == Constraints().narrowed(one)


@pytest.mark.parametrize("price", [float("nan"), -1, "5", True])
def test_a_maximum_that_is_no_price_is_refused_rather_than_obeyed_by_nobody(price):
    from shared_core import InvalidRequest

    with pytest.raises(InvalidRequest, match="max_price"):
        Constraints(max_price=price)


def three(**options):
    return Router([Target(provider=ScriptedProvider(name=name), name=name) for name in "abc"], **options)


@pytest.mark.parametrize(
    "answer", [lambda views: views[0], lambda views: ["a", "b"], lambda views: None, lambda views: [views[0], 5]]
)
def test_a_strategy_that_returns_no_views_is_told_what_to_return(answer):
    def mine(request, views):
        return answer(views)

    with three(strategy=mine) as router:
        for ask in (router.invoke, router.explain):
            with pytest.raises(ConfigurationError, match="strategy 'mine' must return the views that it is given"):
                ask("Hello")


def test_a_bug_in_a_strategy_is_raised_as_what_it_is():
    def mine(request, views):
        return sorted(views, key=lambda view: view.no_such_thing)

    with three(strategy=mine) as router, pytest.raises(AttributeError, match="no_such_thing"):
        router.invoke("Hello")


def test_a_strategy_may_be_a_generator_for_requests_and_for_explanations_alike():
    def mine(request, views):
        yield from reversed(views)

    with three(strategy=mine) as router:
        plan = router.explain("Hello")
        assert plan.targets == ("c", "b", "a")
        assert Plan.replay(plan.record()).targets == ("c", "b", "a")
        assert router.invoke("Hello").target == "c"


def test_a_view_kept_from_another_request_gets_nobody_round_the_constraints():
    kept = []

    def mine(request, views):
        kept.extend(view for view in views if view.name == "a")
        return kept[:1]

    with three(strategy=mine) as router:
        assert router.invoke("Hello").target == "a"
        with pytest.raises(ConfigurationError, match="a view that it was not given for this request"):
            router.invoke(ChatRequest((user("Hello"),), constraints={"deny": ["a"]}))


@pytest.mark.parametrize(
    "spoilt",
    [
        lambda record: record.pop("targets"),
        lambda record: record["targets"][0].pop("capabilities"),
        lambda record: record.update(targets=5),
        lambda record: record.update(strategy="chepest"),
        lambda record: record["request"].update(kinds=["film"]),
        lambda record: record["targets"][0]["price"].update(input="dear"),
    ],
)
def test_a_record_that_lacks_something_is_refused_in_words(spoilt):
    with Router([Target(provider=ScriptedProvider(), name="a", price=Price(1, 1))]) as router:
        record = json.loads(json.dumps(router.explain("Hello").record()))
    spoilt(record)
    with pytest.raises(ConfigurationError, match=r"cannot be replayed|unknown strategy 'chepest'"):
        Plan.replay(record)
