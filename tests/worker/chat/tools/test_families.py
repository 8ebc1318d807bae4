"""Calls as each family of models writes them: read, written again, held to a grammar, and told from a template."""

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from jobs.contract.tools import Function
from tests import tiny_model
from worker.chat.grammar import Grammars
from worker.chat.tools import calls, families, lark
from worker.chat.tools.bare import Bare
from worker.chat.tools.calls import Call, Malformed
from worker.chat.tools.families import Family
from worker.chat.tools.headed import Headed
from worker.chat.tools.listed import Listed
from worker.chat.tools.pythonic import Pythonic
from worker.chat.tools.tagged import Tagged
from worker.engine import NothingToSample
from worker.model import Tokenizer

MISTRAL = Listed(("[TOOL_CALLS]",))
PHI = Listed(("<|tool_call|>", "functools"), "<|/tool_call|>", ("<|tool|>", "<|/tool|>"))
GRANITE = Listed(("<|tool_call|>", "<tool_call>"))
FAMILIES: list[Family] = [Tagged(), MISTRAL, PHI, GRANITE, Headed(), Pythonic(), Bare()]
WEATHER = Function(
    name="get_weather",
    parameters={
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}, "unit": {"enum": ["c", "f"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
)
NOW = Function(name="now")
ROME = Call("get_weather", '{"city": "Rome"}')

RECORDED: list[tuple[Family, str, str, list[Call]]] = [
    (Tagged(), '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome"}}\n</tool_call>', "", [ROME]),
    (
        Tagged(),
        (
            'I will look.\n\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome"}}\n</tool_call>\n'
            '<tool_call>\n{"arguments": {}, "name": "now"}\n</tool_call>'
        ),
        "I will look.",
        [ROME, Call("now", "{}")],
    ),
    (Tagged(), '<tool_call>{"name": "get_weather", "arguments": {"city": "Rome"}}', "", [ROME]),
    (
        Tagged(),
        '<tool_call>\n{"name": "say", "arguments": {"text": "a </tool_call> b"}}\n</tool_call>\nDone.',
        "Done.",
        [Call("say", '{"text": "a </tool_call> b"}')],
    ),
    (MISTRAL, '[TOOL_CALLS][{"name": "get_weather", "arguments": {"city": "Rome"}}]', "", [ROME]),
    (
        MISTRAL,
        (
            'Let me see.[TOOL_CALLS] [{"name": "get_weather", "arguments": {"city": "Rome"}, "id": "a1B2c3D4e"}, '
            '{"name": "now", "arguments": {}}]'
        ),
        "Let me see.",
        [ROME, Call("now", "{}")],
    ),
    (PHI, '<|tool_call|>[{"name": "get_weather", "arguments": {"city": "Rome"}}]<|/tool_call|>', "", [ROME]),
    (PHI, 'functools[{"name": "get_weather", "arguments": {"city": "Rome"}}]', "", [ROME]),
    (PHI, '<|tool_call|>{"name": "get_weather", "arguments": {"city": "Rome"}}<|/tool_call|>', "", [ROME]),
    (GRANITE, '<|tool_call|>[{"name": "get_weather", "arguments": {"city": "Rome"}}]', "", [ROME]),
    (GRANITE, '<tool_call> [{"name": "get_weather", "arguments": {"city": "Rome"}}]', "", [ROME]),
    (Headed(), '[TOOL_CALLS]get_weather[ARGS]{"city": "Rome"}', "", [ROME]),
    (
        Headed(),
        'Sure.[TOOL_CALLS]get_weather[CALL_ID]a1B2c3D4e[ARGS]{"city": "Rome"}[TOOL_CALLS]now[ARGS]{}',
        "Sure.",
        [ROME, Call("now", "{}")],
    ),
    (Pythonic(), "[get_weather(city='Rome')]", "", [ROME]),
    (Pythonic(), '<|python_start|>[get_weather(city="Rome"), now()]<|python_end|>', "", [ROME, Call("now", "{}")]),
    (
        Pythonic(),
        "[f(a=-1.5, b=[True, None, 'it\\'s'], c={'k': (1, 2,)}, d=\"say \\\"hi\\\"\")]",
        "",
        [Call("f", '{"a": -1.5, "b": [true, null, "it\'s"], "c": {"k": [1, 2]}, "d": "say \\"hi\\""}')],
    ),
    (Bare(), '{"name": "get_weather", "parameters": {"city": "Rome"}}', "", [ROME]),
    (Bare(), '<|python_tag|>{"name": "get_weather", "parameters": {"city": "Rome"}}\n', "", [ROME]),
    (
        Bare(),
        '{"name": "get_weather", "parameters": {"city": "Rome"}}; {"name": "now", "parameters": {}}',
        "",
        [ROME, Call("now", "{}")],
    ),
]

MALFORMED: list[tuple[Family, str]] = [
    (Tagged(), '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Ro'),
    (Tagged(), '<tool_call>\n{"name": "get_weather", "arguments": "Rome"}\n</tool_call>'),
    (Tagged(), '<tool_call>\n{"name": "now", "arguments": {}} and more\n</tool_call>'),
    (Tagged(), "<tool_call>\nget_weather(city='Rome')\n</tool_call>"),
    (Tagged(), '<tool_call>{"name": "f", "arguments": {"a": NaN}}</tool_call>'),
    (Tagged(), '<tool_call>{"name": "f", "arguments": {"a": "\\ud800"}}</tool_call>'),
    (Tagged(), f'<tool_call>{{"name": "f", "arguments": {"[" * 100_000}'),
    (MISTRAL, '[TOOL_CALLS]"now"'),
    (MISTRAL, "[TOOL_CALLS][]"),
    (MISTRAL, '[TOOL_CALLS][{"name": "now", "arguments": {}}, {"name": 5, "arguments": {}}]'),
    (PHI, 'functools[{"name": "now"'),
    (GRANITE, "<|tool_call|>now()"),
    (Headed(), "[TOOL_CALLS]now{}"),
    (Headed(), '[TOOL_CALLS]f[ARGS]{"a": 1} and then[TOOL_CALLS]now[ARGS]{}'),
    (Pythonic(), "[1] is the first source."),
    (Pythonic(), "[get_weather('Rome')]"),
    (Pythonic(), "[get_weather(city=Rome)]"),
    (Pythonic(), "[f(a=1)] and more"),
    (Pythonic(), "[f(a=01)]"),
    (Pythonic(), "[f(a=" + "[" * 100_000),
    (Pythonic(), "[f(a='\\x')]"),
    (Pythonic(), "[f(a={1: 2})]"),
    (Bare(), '{"answer": 42}'),
    (Bare(), '{"name": "now", "parameters": {}} That is all.'),
]


@pytest.mark.parametrize(("family", "text", "said", "found"), RECORDED)
def test_an_answer_of_the_family_is_read(family: Family, text: str, said: str, found: list[Call]) -> None:
    assert family.parse(text) == (said, found)


@pytest.mark.parametrize(("family", "text"), MALFORMED)
def test_what_begins_like_a_call_and_is_none_is_malformed(family: Family, text: str) -> None:
    with pytest.raises(Malformed):
        family.parse(text)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("text", ["", " ", "Hello, {it} is [fine].\n", 'The JSON: {"name": "now", "arguments": {}}'])
def test_a_text_without_calls_is_said_as_it_stands(family: Family, text: str) -> None:
    assert family.parse(text) == (text, [])


# ---- both ways ----

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
texts = st.text(st.characters(codec="utf-8"), max_size=12)
values = st.recursive(
    scalars | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
names = st.from_regex(r"[a-zA-Z_][a-zA-Z0-9_-]{0,8}", fullmatch=True)
made_calls = st.lists(
    st.builds(lambda name, given: Call(name, calls.written(given)), names, st.dictionaries(names, values, max_size=3)),
    min_size=1,
    max_size=3,
)


@pytest.mark.parametrize("family", FAMILIES)
@given(made_calls)
def test_calls_that_are_written_are_read_as_they_were(family: Family, made: list[Call]) -> None:
    assert family.parse(family.spell(made)) == ("", made)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("arguments", ["", "[1]", "Rome", '"\\ud800"', '{"city": "\\ud800"}', "[" * 9_999])
def test_arguments_that_no_model_wrote_are_told_as_they_are(family: Family, arguments: str) -> None:
    assert arguments in family.spell([Call("now", arguments)])


@pytest.mark.parametrize("family", [family for family in FAMILIES if not family.only_first])
@given(st.text("ab \n<[{", max_size=9), made_calls)
def test_what_is_said_before_calls_is_kept_up_to_the_blanks(family: Family, before: str, made: list[Call]) -> None:
    assert family.parse(before + family.spell(made)) == (before.rstrip(" \n"), made)


@pytest.mark.parametrize("family", FAMILIES)
@given(made_calls, st.integers(0, 300), st.text('"{}[](),:\\ax', max_size=3), st.integers(0, 300))
@example([ROME], 0, "", 0)
def test_whatever_a_call_is_damaged_to_it_is_read_or_malformed(
    family: Family, made: list[Call], start: int, new: str, length: int
) -> None:
    text = family.spell(made)
    text = text[:start] + new + text[start + length :]
    try:
        _, found = family.parse(text)
    except Malformed:
        return
    assert all(isinstance(json.loads(call.arguments), dict) for call in found)


# ---- grammars ----


Model = tuple[Tokenizer, Grammars]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    tokenizer = tiny_model.write(tmp_path_factory.mktemp("families") / "tiny").tokenizer()
    return tokenizer, Grammars(tokenizer)


def fits(family: Family, text: str, model: Model, *, is_parallel: bool = True) -> bool:
    """Whether a text is all of what the grammar of the two functions allows, and can end there."""
    tokenizer, grammars = model
    watcher = lark.compiled(family.grammar([WEATHER, NOW], lark.literal, is_parallel=is_parallel), grammars).watcher()
    *before, last = tokenizer.encode_plain(text)
    [end] = tokenizer.eos_token_ids
    try:
        goes_on = all(watcher.accept(token_id) for token_id in before)
        return goes_on and (not watcher.accept(last) or bool(watcher.mask()[end // 32] >> end % 32 & 1))
    except NothingToSample:
        return False


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("arguments", ['{"city": "Rome"}', '{"city": "R\\"ome", "days": 3, "unit": "c"}'])
def test_a_grammar_allows_calls_as_the_family_writes_them(family: Family, arguments: str, model: Model) -> None:
    assert fits(family, family.spell([Call("get_weather", arguments)]), model)
    assert fits(family, family.spell([Call("now", "{}")]), model)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "call",
    [
        Call("get_wether", '{"city": "Rome"}'),
        Call("get_weather", "{}"),
        Call("get_weather", '{"city": 5}'),
        Call("get_weather", '{"city": "Rome", "unit": "k"}'),
        Call("get_weather", '{"city": "Rome", "colour": 1}'),
        Call("now", '{"city": "Rome"}'),
    ],
)
def test_a_grammar_allows_no_other_calls(family: Family, call: Call, model: Model) -> None:
    assert not fits(family, family.spell([call]), model)


@pytest.mark.parametrize("family", [family for family in FAMILIES if not isinstance(family, Bare)])
def test_several_calls_are_allowed_where_they_may_be_several(family: Family, model: Model) -> None:
    both = family.spell([ROME, Call("now", "{}")])
    assert fits(family, both, model)
    assert not fits(family, both, model, is_parallel=False)


# ---- templates ----


@pytest.mark.parametrize(
    ("template", "family"),
    [
        ("{% if tools %}<tools></tools>return a json within <tool_call></tool_call>{% endif %}", Tagged()),
        ("{{ '[AVAILABLE_TOOLS]' }}{{ tools | tojson }}[TOOL_CALLS]", MISTRAL),
        ("[AVAILABLE_TOOLS]{{ tools | tojson }}[TOOL_CALLS]{{ name }}[ARGS]{{ arguments }}", Headed()),
        ("{{ '<|' + role + '|>' + content + '<|tool|>' + message['tools'] + '<|/tool|>' }}", PHI),
        ("<|start_of_role|>available_tools<|end_of_role|> respond only with <|tool_call|>", GRANITE),
        ("<|start_of_role|>tools<|end_of_role|><tool_call>\\n{'name': ...}\\n</tool_call>", Tagged()),
        ("<|python_tag|> Respond in the format", Bare()),
        ('{"name": function name, "parameters": dictionary of argument name and its value}', Bare()),
        ("[func_name1(params_name1=params_value1, params_name2=params_value2...), func_name2(params)]", Pythonic()),
        ("{% for m in messages %}<|im_start|>{{ m.role }}{% endfor %}", Tagged()),
    ],
)
def test_a_template_tells_its_family(template: str, family: Family) -> None:
    found = families.of_template(template, knows_tools=True).family
    assert (type(found), found.openings) == (type(family), family.openings)


@pytest.mark.parametrize("texts", ["<tool_call>\n<function=f>", "<tool_call>f\n<arg_key>a</arg_key>"])
def test_a_template_whose_calls_nobody_reads_is_not_asked_to_write_tools(texts: str) -> None:
    assert not families.of_template(texts, knows_tools=True).by_template
