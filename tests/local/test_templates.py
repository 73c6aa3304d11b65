"""Chat templates: tried out once, and conversations told in the shape that each one takes."""

from __future__ import annotations

import pytest

from shared_core.errors import ConfigurationError, ProviderError
from shared_core.providers.llama_cpp import LlamaCppProvider
from shared_core.providers.llama_cpp.engine import LoadError, Vocabulary
from shared_core.providers.llama_cpp.prompt import CHATML, NAMED, ChatTemplate, Traits, compile_template, probe
from shared_core.routing.target import Target
from tests.local.support import answer

PLAIN = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
NO_SYSTEM = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no') }}{% endif %}"
    "[{{ m.role }}]{{ m.content }}{% endfor %}"
)
DEAF = "{% for m in messages %}{% if m.role != 'system' %}[{{ m.role }}]{{ m.content }}{% endif %}{% endfor %}"
STRICT = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('no') }}{% endif %}"
    "[{{ m.role }}]{{ m.content }}{% endfor %}"
)
PARTS = "{% for m in messages %}[{{ m.role }}]{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}"
OWN_CALLS = PLAIN + "{% if tools %}[TOOLS]{{ tools | tojson }}{% endif %}"
HERMES = (
    "{% if tools %}<tools>{{ tools | tojson }}</tools>{% endif %}{% for m in messages %}[{{ m.role }}]{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}{% endfor %}"
)
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}


def of(source: str) -> ChatTemplate:
    return ChatTemplate.of(source, Vocabulary(("<s>",), "<s>", "</s>", None, opens_with_blank=False))


def text(template: ChatTemplate, *messages: tuple[str, str], tools=None) -> str:
    said = template.render([{"role": role, "content": content} for role, content in messages], tools)
    return "".join(segment.text for segment in said)


@pytest.mark.parametrize(
    ("source", "traits"),
    [
        (PLAIN, Traits(tools=False, tool_turns=False)),
        (NO_SYSTEM, Traits(system=False, tools=False, tool_turns=False)),
        (DEAF, Traits(system=False, tools=False, tool_turns=False)),
        (STRICT, Traits(system=False, any_order=False, tools=False, tool_turns=False)),
        (PARTS, Traits(tools=False, tool_turns=False, parts=True)),
        (OWN_CALLS, Traits(tools=False, tool_turns=True)),
        (HERMES, Traits()),
    ],
    ids=["plain", "refuses a system", "leaves a system out", "wants turns", "wants parts", "own calls", "hermes"],
)
def test_a_template_is_known_by_what_it_does(source, traits):
    found = probe(compile_template(source))
    if source is OWN_CALLS:  # a list of tools alone is not yet a notation for calls
        assert not found.tools
    else:
        assert found == traits


@pytest.mark.parametrize(
    ("source", "told"),
    [
        (PLAIN, "[system]be kind[user]hi[user]there"),
        (NO_SYSTEM, "[user]be kind\n\nhi[user]there"),
        (DEAF, "[user]be kind\n\nhi[user]there"),
        (STRICT, "[user]be kind\n\nhi\n\nthere"),
        (PARTS, "[system]be kind[user]hi[user]there"),
    ],
    ids=["plain", "refuses a system", "leaves a system out", "wants turns", "wants parts"],
)
def test_a_conversation_is_told_in_the_shape_that_a_template_takes(source, told):
    assert text(of(source), ("system", "be kind"), ("user", "hi"), ("user", "there")) == told


def test_tools_are_told_where_the_template_has_no_words_for_them_or_words_of_its_own():
    for source in (PLAIN, OWN_CALLS):
        said = text(of(source), ("system", "be kind"), ("user", "hi"), tools=[TOOL])
        assert said.startswith("[system]be kind\n\nYou may call these functions:")
        assert "[TOOLS]" not in said
        assert "<tool_call>" in said
    assert text(of(HERMES), ("user", "hi"), tools=[TOOL]).startswith("<tools>[")


def test_calls_and_results_are_told_as_text_where_the_template_leaves_them_out():
    call = {"name": "add", "arguments": {"a": 1}}
    said = of(PLAIN).render(
        [
            {"role": "user", "content": "add"},
            {"role": "assistant", "content": "", "tool_calls": [{"id": "1", "type": "function", "function": call}]},
            {"role": "tool", "content": "3", "tool_call_id": "1", "name": "add"},
        ],
        None,
    )
    whole = "".join(segment.text for segment in said)
    assert '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>' in whole
    assert whole.endswith("[user]Result of add: 3")


@pytest.mark.parametrize("name", NAMED)
def test_every_named_template_tells_a_whole_conversation(name):
    template = of(name)
    said = text(template, ("system", "be kind"), ("user", "one"), ("assistant", "two"), ("user", "three"))
    places = [said.index(word) for word in ("be kind", "one", "two", "three")]
    assert places == sorted(places)
    assert template.origin == name
    assert template.stops, "it knows what ends a turn, whatever the file says"


def test_a_file_without_a_template_gets_chatml():
    template = ChatTemplate.of(None, Vocabulary((), "", "", None, opens_with_blank=False))
    assert template.origin == "chatml"
    assert text(template, ("user", "hi")) == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert CHATML in NAMED["chatml"]


@pytest.mark.parametrize(
    "source", ["{{ 1 / 0 }}", "nothing of what is said", "{% if %}", "{{ raise_exception('never') }}"]
)
def test_a_template_that_is_of_no_use_is_refused_when_the_model_is_loaded(source):
    with pytest.raises(LoadError, match="of no use") as caught:
        of(source)
    assert caught.value.what == "config"


def test_a_named_template_is_used_by_the_worker(own):
    provider = own(chat_template="llama-3")
    assert provider.warm()["chat_template"] == "llama-3"
    assert answer(provider, "x", max_tokens=2).usage.output_tokens == 2


def test_a_template_of_the_options_that_is_of_no_use_is_an_error_of_the_options(own):
    with pytest.raises(ProviderError, match="of no use") as caught:
        own(chat_template="{{ nothing }}").warm()
    assert caught.value.kind.value == "config"


def test_a_name_that_is_no_template_is_refused_with_those_that_are():
    with pytest.raises(ConfigurationError, match="llama-3, mistral"):
        LlamaCppProvider(Target("llamacpp:tiny", chat_template="lama3"))
