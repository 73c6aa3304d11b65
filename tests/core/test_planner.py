"""Who may answer, in which order, and the reason for everybody who may not."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from shared_core import (
    Capabilities,
    ChatRequest,
    ConfigurationError,
    Constraints,
    File,
    Image,
    OutputSchema,
    Price,
    Router,
    Target,
    ToolSpec,
    tool,
    user,
)
from shared_core.chat.request import Audio
from shared_core.errors import InvalidRequest
from shared_core.routing.planner import plan as plan_of
from shared_core.routing.policy import FlowPolicy
from shared_core.routing.strategies import STRATEGIES
from shared_core.testing import ScriptedProvider, VirtualClock

HI = ChatRequest((user("Hello"),))
TOOLS = (ToolSpec("look"),)
SCHEMA = OutputSchema({"type": "object", "properties": {"a": {"type": "string"}}})


def router(*targets: dict, **options) -> Router:
    made = []
    for name, fields in zip("abcdef", targets, strict=False):
        provider = ScriptedProvider("ok", name=f"vendor-{name}", model=f"model-{name}")
        provider.local = fields.pop("local", False)  # type: ignore[misc]
        made.append(Target(provider=provider, name=name, **fields))
    return Router(made, clock=VirtualClock(), **options)


def only(request: ChatRequest, reason: str, **capabilities) -> None:
    """A target without the capability is excluded with `reason`, one with everything is planned."""
    r = router({"capabilities": Capabilities(**capabilities)}, {"capabilities": Capabilities(pdfs=True, audio=True)})
    plan = r.explain(request)
    assert plan.targets == ("b",)
    assert plan.excluded == (("a", reason),)
    answer = r.invoke(request)
    assert answer.target == "b"
    assert answer.fallback["excluded"] == [{"target": "a", "reason": reason}]
    assert not answer.fallback["used_fallback"], "a target that could not serve it was never the primary"


PNG = Image(data=b"\x89PNG", media_type="image/png")
LINK = Image(url="https://example.com/a.png")
PDF = File(data=b"%PDF", media_type="application/pdf")
WAV = Audio(data=b"RIFF", media_type="audio/wav")


@pytest.mark.parametrize(
    ("request_", "reason", "capabilities"),
    [
        (HI.replace(tools=TOOLS), "cannot call tools", {"tools": False}),
        (
            HI.replace(tools=TOOLS, tool_choice="any"),
            "cannot be made to choose tools by 'any'",
            {"tool_choice": frozenset({"auto"})},
        ),
        (
            HI.replace(tools=TOOLS, tool_choice="look"),
            "cannot be made to choose tools by 'tool'",
            {"tool_choice": frozenset({"auto", "any"})},
        ),
        (HI.replace(output=SCHEMA), "cannot answer in a JSON schema", {"json_schema": False}),
        (HI.replace(output=OutputSchema()), "has no JSON mode", {"json_mode": False}),
        (ChatRequest((user([PNG]),)), "cannot take images", {"images": False}),
        (ChatRequest((user([LINK]),)), "cannot take images by URL: it fetches nothing", {"image_urls": False}),
        (ChatRequest((user([PDF]),)), "cannot take documents", {"pdfs": False}),
        (ChatRequest((user([WAV]),)), "cannot take audio", {"audio": False}),
        (ChatRequest((user("x"), tool("1", [PNG]))), "cannot take images", {"images": False}),
        (
            ChatRequest((user("x" * 6007),)),
            "the request needs at least 1001 tokens, its context window is 1000",
            {"context_window": 1000},
        ),
    ],
)
def test_a_target_that_cannot_serve_the_request_is_incapable_not_sick(request_, reason, capabilities):
    only(request_, reason, **capabilities)


def test_who_is_too_small_for_a_conversation_is_told_apart_from_who_may_not_answer():
    r = router({"capabilities": Capabilities(context_window=1000)}, {"enabled": False})
    assert r.explain(ChatRequest((user("x" * 6007),))).too_small == {"a"}
    assert r.explain(HI).too_small == frozenset()


def test_a_request_at_the_edge_of_the_window_is_planned():
    r = router({"capabilities": Capabilities(context_window=1000)})
    assert r.explain(ChatRequest((user("x" * 6005),))).targets == ("a",)
    assert r.explain(HI.replace(max_tokens=9999)).targets == ("a",), "how much it may say is another matter"


def test_tool_choice_without_tools_excludes_nobody():
    r = router({"capabilities": Capabilities(tools=False, tool_choice=frozenset())})
    assert r.explain(HI.replace(tool_choice="none")).targets == ("a",)


def test_nobody_can_serve_it_and_the_error_says_why_for_each():
    r = router({"capabilities": Capabilities(tools=False)}, {"enabled": False})
    with pytest.raises(Exception, match="no target can serve this request") as caught:
        r.invoke(HI.replace(tools=TOOLS))
    assert "a: cannot call tools" in str(caught.value)
    assert "b: disabled" in str(caught.value)


@pytest.mark.parametrize(
    ("constraints", "planned", "reason"),
    [
        (Constraints(local_only=True), "b", "constraint: local only"),
        (Constraints(deny=frozenset({"a"})), "b", "constraint: denied"),
        (Constraints(deny=frozenset({"vendor-a"})), "b", "constraint: denied"),
        (Constraints(deny=["vendor-a"]), "b", "constraint: denied"),
        (Constraints(allow=frozenset({"b"})), "b", "constraint: not on the allow list"),
        (Constraints(allow=frozenset({"vendor-b"})), "b", "constraint: not on the allow list"),
        (Constraints(max_price=1.0), "b", "constraint: costs $2 per million tokens, the maximum is $1"),
        (Constraints(require=frozenset({"pdfs"})), "b", "constraint: needs pdfs"),
    ],
)
def test_hard_constraints_keep_targets_out(constraints, planned, reason):
    r = router(
        {"price": Price(input=1, output=2)},
        {"local": True, "price": Price(input=1), "capabilities": Capabilities(pdfs=True)},
    )
    plan = r.explain(HI.replace(constraints=constraints))
    assert plan.targets == (planned,)
    assert plan.excluded == (("a", reason),)


def test_one_text_is_no_collection_of_names():
    with pytest.raises(InvalidRequest, match=r"deny takes a collection of names, not one text: \['vendor-a'\]"):
        Constraints(deny="vendor-a")


def test_an_unknown_price_fails_closed_under_a_maximum():
    r = router({}, {"local": True})
    plan = r.explain(HI.replace(constraints=Constraints(max_price=1000.0)))
    assert plan.targets == ("b",), "a local target costs nothing"
    assert plan.excluded == (("a", "constraint: its price is unknown and a maximum is set"),)


def test_an_unknown_capability_in_constraints_is_refused():
    with pytest.raises(ConfigurationError, match=r"capability 'wings' in constraints. Valid: audio, .*, tools\.$"):
        router({}).explain(HI.replace(constraints=Constraints(require=frozenset({"wings"}))))


def test_priority_keeps_the_configured_order():
    assert router({}, {}, {}).explain(HI).targets == ("a", "b", "c")


@pytest.mark.parametrize("name", ["round_robin", "round-robin"])
def test_round_robin_begins_one_further_on_each_call_and_explaining_takes_no_turn(name):
    r = router({}, {}, {}, strategy=name)
    served = []
    for _ in range(4):
        r.explain(HI)
        r.explain(HI)
        first = r.explain(HI).targets[0]
        served.append(r.invoke(HI).target)
        assert served[-1] == first
    assert served == ["a", "b", "c", "a"]
    assert r.explain(HI).targets == ("b", "c", "a")
    assert r.explain(HI).strategy == "round_robin"


def test_a_users_own_strategy_sees_health_and_may_leave_targets_out():
    seen = []

    def healthiest(request, views):
        assert request is HI
        seen.append([(v.name, v.health.status, v.turn) for v in views])
        return [v for v in reversed(views) if v.name != "a"]

    r = router({}, {}, {}, {"enabled": False}, strategy=healthiest)
    plan = r.explain(HI)
    assert plan.targets == ("c", "b")
    assert plan.excluded == (("d", "disabled"), ("a", "left out by strategy 'healthiest'"))
    assert plan.strategy == "healthiest"
    assert seen == [[("a", "UNKNOWN", 0), ("b", "UNKNOWN", 0), ("c", "UNKNOWN", 0)]]


def test_a_strategy_learns_how_long_this_request_would_wait_for_its_turn():
    waits = {"a": 3.0, "b": 1.0, "c": 2.0}
    routes = [
        SimpleNamespace(
            name=name,
            target=SimpleNamespace(enabled=True),
            capabilities=Capabilities(),
            wait_s=lambda asked, name=name: waits[name] if asked is HI else None,
        )
        for name in waits
    ]
    planned = plan_of(HI, routes, lambda _, views: sorted(views, key=lambda view: view.wait_s))
    assert [one.name for one in planned.routes] == ["b", "c", "a"]


def test_the_explained_plan_shows_the_figures_that_the_strategy_went_by():
    plan = router({"price": Price(input=3)}, {"price": Price(input=1)}, strategy="cost").explain(HI)
    assert {score.target: score.price_usd_per_mtok[0] for score in plan.scores} == {"a": 3.0, "b": 1.0}
    assert "<caption>why this order</caption>" in plan._repr_html_()


def test_a_strategy_that_names_a_target_twice_is_refused():
    with pytest.raises(ConfigurationError, match="returned a target twice"):
        router({}, {}, strategy=lambda q, v: [v[0], v[0]]).explain(HI)


def test_a_strategy_can_be_chosen_per_call():
    r = router({}, {})
    r.invoke(HI)
    assert r.invoke(HI, strategy="round_robin").target == "b"
    assert r.invoke(HI).target == "a"


@pytest.mark.parametrize(
    ("wrong", "match"), [("round_robbin", "Did you mean 'round_robin'"), (3, "a name or a callable")]
)
def test_an_unknown_strategy_is_refused_at_construction(wrong, match):
    with pytest.raises(ConfigurationError, match=match):
        router({}, strategy=wrong)


def test_explain_notes_what_would_stop_a_target_right_now_and_prints_for_people():
    r = router({}, {"enabled": False})
    r.force_open("a")
    plan = r.explain(HI)
    assert plan.notes == {"a": "circuit forced open"}
    assert str(plan) == "plan (priority):\n  1. a  (circuit forced open)\n  -  b: disabled"
    assert plan.as_dict()["excluded"] == [{"target": "b", "reason": "disabled"}]
    assert "<td>b</td><td>disabled</td>" in plan._repr_html_()
    assert all(p.calls == 0 for p in r.providers), "explaining sends nothing"


def test_a_model_named_per_call_is_asked_first_when_it_is_ours():
    r = router({}, {})
    answer = r.invoke(HI.replace(model="model-b"))
    assert answer.target == "b"
    assert r.providers[1].requests[-1].model is None


def test_another_model_named_per_call_replaces_the_primarys_and_no_other_vendors():
    r = router({}, {})
    r.invoke(HI.replace(model="newer"))
    assert r.providers[0].requests[-1].model == "newer"
    r.force_open("a")
    r.invoke(HI.replace(model="newer"))
    assert r.providers[1].requests[-1].model is None


def test_a_plan_prints_exactly_what_it_holds():
    r = router({}, {"enabled": False}, {})
    r.force_open("c")
    plan = r.explain(HI)
    assert str(plan) == "plan (priority):\n  1. a\n  2. c  (circuit forced open)\n  -  b: disabled"
    assert plan.as_dict() == {
        "strategy": "priority",
        "chain": None,
        "targets": [{"target": "a", "note": None}, {"target": "c", "note": "circuit forced open"}],
        "excluded": [{"target": "b", "reason": "disabled"}],
    }
    assert plan._repr_html_().partition("<table><caption>why this order")[0] == (
        "<table><caption>plan (priority)</caption><tr><th></th><th>target</th><th>why</th></tr>"
        "<tr><td>1</td><td>a</td><td></td></tr><tr><td>2</td><td>c</td><td>circuit forced open</td></tr>"
        "<tr><td>–</td><td>b</td><td>disabled</td></tr></table>"
    )
    assert str(router({}).explain(HI)) == "plan (priority):\n  1. a"
    nobody = router({"enabled": False}, {"enabled": False}).explain(HI)
    assert str(nobody) == "plan (priority):\n  -  a: disabled\n  -  b: disabled"
    assert "<td>a</td><td>disabled</td></tr><tr><td>–</td><td>b</td>" in nobody._repr_html_()


@pytest.mark.parametrize(
    ("targets", "shown"),
    [
        ([{}], "Plan(priority: a)"),
        ([{}, {}], "Plan(priority: a, b)"),
        ([{}, {"enabled": False}, {"enabled": False}], "Plan(priority: a; left out: b, c)"),
        ([{"enabled": False}], "Plan(priority: nobody; left out: a)"),
    ],
)
def test_the_repr_of_a_plan_is_one_line_of_names(targets, shown):
    assert repr(router(*targets).explain(HI)) == shown


def test_a_plan_of_nobody_says_so_and_markup_in_names_is_escaped():
    from shared_core.routing.planner import Plan

    assert str(Plan(())) == "plan (priority):\n  nobody"
    page = Plan((), (("<a>", "<b>"),), "<s>")._repr_html_()
    assert "&lt;a&gt;" in page
    assert "&lt;b&gt;" in page
    assert "plan (&lt;s&gt;)" in page
    r = router({})
    object.__setattr__(r.targets[0], "name", "<t>")
    r._fleet.routes[0].name = "<t>"
    r._fleet.routes[0].gate.park_reason, r._fleet.routes[0].gate.parked_until = "<why>", 1e9
    page = r.explain(HI)._repr_html_()
    assert "<td>&lt;t&gt;</td><td>parked: &lt;why&gt;" in page


def test_explain_says_for_how_long_a_target_is_out():
    r = router({})
    r._fleet.routes[0].gate.park_reason, r._fleet.routes[0].gate.parked_until = "throttled", 1000.0 + 7.25
    assert r.explain(HI).notes == {"a": "parked: throttled, for 7.2 s more"}


def test_a_limit_meant_for_a_larger_model_is_lowered_to_what_the_target_can_say():
    r = router({"capabilities": Capabilities(max_output=100)}, {})
    r.invoke(HI.replace(max_tokens=4096))
    r.invoke(HI.replace(max_tokens=100))
    r.invoke(HI.replace(max_tokens=7))
    r.invoke(HI)
    assert [q.max_tokens for q in r.providers[0].requests] == [100, 100, 7, None]
    r.force_open("a")
    r.invoke(HI.replace(max_tokens=4096))
    assert r.providers[1].requests[-1].max_tokens == 4096


def test_bytes_and_data_urls_travel_to_targets_that_fetch_nothing():
    r = router({"capabilities": Capabilities(image_urls=False)})
    assert r.explain(ChatRequest((user([PNG, Image(url="data:image/png;base64,AAAA")]),))).targets == ("a",)


def test_a_plan_made_outside_a_router_has_a_default_order_and_knows_nothing_of_health():
    from shared_core.routing.planner import plan
    from shared_core.routing.strategies import priority

    seen = []

    def strategy(request, views):
        seen.extend((v.name, v.turn, v.price, v.health) for v in views)
        return views

    routes = router({}, {})._fleet.routes
    made = plan(HI, routes, strategy, strategy_name="mine")
    assert (made.targets, made.strategy) == (("a", "b"), "mine")
    assert seen == [("a", 0, None, None), ("b", 0, None, None)]
    assert plan(HI, routes, priority).targets == ("a", "b")
    assert plan(HI, routes, strategy).strategy == "priority"


def test_a_plan_knows_what_its_request_may_do():
    policy = FlowPolicy()
    assert plan_of(HI, router({}, {})._fleet.routes, STRATEGIES["priority"], policy=policy).policy is policy


def test_a_strategy_that_returns_something_else_is_told_what_it_returned():
    with pytest.raises(ConfigurationError) as refused:
        router({}, {}, strategy=lambda request, views: ["a" * 200]).explain(HI)
    assert str(refused.value).endswith(
        "must return the views that it is given, in the order in which to ask, not ['" + "a" * 78
    )
    kept = []

    def mine(request, views):
        kept.extend(views)
        return kept[:2]

    routes = router({}, {})._fleet.routes
    assert plan_of(HI, routes, mine).targets == ("a", "b")
    with pytest.raises(ConfigurationError, match="strategy 'mine' returned a view that it was not given for this req"):
        plan_of(HI, router({}, {})._fleet.routes, mine, strategy_name="mine")


def test_a_strategy_is_not_asked_about_a_single_target_and_is_about_two():
    asked = []

    def strategy(request, views):
        asked.append(len(views))
        return views

    router({}, {"enabled": False}, strategy=strategy).explain(HI)
    assert asked == []
    router({}, {}, strategy=strategy).explain(HI)
    assert asked == [2]


def test_a_plans_repr_is_one_line():
    r = router({}, {"enabled": False})
    assert repr(r.explain(HI)) == "Plan(priority: a; left out: b)"
    assert repr(router({"enabled": False}).explain(HI)) == "Plan(priority: nobody; left out: a)"
    assert repr(r.explain(HI).routes) == "(Route(a),)"


def test_a_strategy_may_know_how_long_this_request_would_wait():
    """Of a provider whose requests wait for one another; of others nothing is known."""
    asked = []

    class Queueing(ScriptedProvider):
        standby = "prefill"

        def wait_s(self, request):
            asked.append(request)
            return 2.5

        def stand_by(self):
            asked.append("to stand by")

    seen = {}

    def curious(request, views):
        seen.update({view.name: view.wait_s for view in views})
        return views

    r = Router([Queueing("x", name="queueing"), ScriptedProvider("y", name="free")], strategy=curious)
    r.explain(HI)
    assert seen == {"queueing:script": 2.5, "free:script": None}
    assert asked[0] == "to stand by"
    assert asked[1] is HI
    assert [route.standby for route in r._fleet.routes] == ["prefill", None]


def test_a_pinned_target_is_asked_first_and_the_others_keep_their_order():
    r = router({}, {}, {})
    r.pin("b")
    assert r.explain(HI).targets == ("b", "a", "c")
    r.unpin()
    assert r.explain(HI).targets == ("a", "b", "c")


def test_a_plan_of_explain_has_a_record_of_its_own_and_is_made_again_from_it():
    from shared_core.routing.planner import Plan

    plan = router({}, {"enabled": False}).explain(HI)
    record = plan.record()
    record["targets"].clear()
    assert [row["name"] for row in plan.record()["targets"]] == ["a", "b"], "what is done to a record stays there"
    again = Plan.replay(plan.record())
    assert (again.targets, again.excluded, again.record()) == (plan.targets, plan.excluded, plan.record())
    with pytest.raises(ConfigurationError, match=r"^only a plan of router\.explain\(request\) has a record$"):
        Plan(()).record()


def test_a_model_named_per_call_does_not_get_round_the_constraints():
    from shared_core.routing.planner import plan
    from shared_core.routing.strategies import priority

    r = Router(
        [
            Target("x:small", provider=ScriptedProvider(name="engine", model="small"), name="a", price=Price(1, 1)),
            Target("y:other", provider=ScriptedProvider(name="y", model="other"), name="b", price=Price(2, 2)),
        ]
    )
    for denied in ("large", "x:large", "engine:large"):
        asked = HI.replace(model="large", constraints={"deny": [denied]})
        assert r.explain(asked).excluded == (("a", "constraint: denied"),), denied
    assert r.explain(HI.replace(model="large", constraints={"deny": ["x:medium"]})).excluded == ()
    dear = HI.replace(model="large", constraints={"max_price": 5})
    unknown = "constraint: the price of 'large' is unknown and a maximum is set"
    assert r.explain(dear).excluded == (("a", unknown),), "another vendor's target is asked for its own model"
    assert r.explain(HI.replace(model="small", constraints={"max_price": 5})).targets == ("a", "b")
    assert plan(dear, r._fleet.routes, priority).excluded == (("a", unknown), ("b", unknown)), "of whom is not known"


@pytest.mark.parametrize("beside", [{"second": 1}, {"request": "0.01"}, {"second": 1, "request": 1}])
def test_a_maximum_per_token_keeps_out_what_costs_otherwise(beside):
    r = router({"price": Price(1, 1, **beside)}, {"price": Price(1, 1)})
    assert r.explain(HI.replace(constraints={"max_price": 5})).excluded == (
        ("a", "constraint: it is not paid by the token alone, and a maximum per token is set"),
    )
