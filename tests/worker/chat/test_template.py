"""A template is rendered as Jinja renders it, with nothing left of the prompt before."""

import json

import jinja2
import pytest

from jobs.errors import BadRequest
from tests.worker.chat.asking import CREATED
from worker.chat.template import Template

SAID = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}]


@pytest.mark.parametrize(
    "source",
    [
        "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m['content'] | trim }}{{ eos_token }}{% endfor %}",
        (
            "{% set said = namespace(count=0) %}{% for m in messages %}{% set said.count = said.count + 1 %}"
            "{{ loop.index0 }}{{ said.count }}{% endfor %}{{ said.count }}"
        ),
        "{% macro turn(m) %}<{{ m.role }}>{% endmacro %}{{ turn(messages[0]) }}{{ range(3) | list }}{{ dict(a=1) }}",
        "{% for m in messages %}{% if loop.last %}{% break %}{% endif %}{{ m.content }}{% endfor %}",
        "{% if tools is none and documents is none and add_generation_prompt %}{{ nowhere }}yes{% endif %}",
        "{{ strftime_now('%d %B %Y') }}{{ cycler('a', 'b').next() }}{{ 'x' if messages is defined }}",
    ],
)
def test_a_template_is_rendered_as_jinja_does_it_each_time_anew(source: str) -> None:
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    expected = environment.from_string(source).render(
        messages=SAID,
        tools=None,
        documents=None,
        add_generation_prompt=True,
        strftime_now=CREATED.strftime,
        bos_token="<s>",
        eos_token="</s>",
    )
    template = Template(source, bos_token="<s>", eos_token="</s>")
    assert template.render(SAID[:1] * 3, now=CREATED) is not None
    assert template.render(SAID, now=CREATED) == expected


@pytest.mark.parametrize("source", ["{{ raise_exception('no system') }}", "{{ messages.clear() }}", "{{ 1 / 0 }}"])
def test_what_a_template_may_not_or_cannot_do_is_the_callers_fault(source: str) -> None:
    with pytest.raises(BadRequest, match="chat template cannot render"):
        Template(source, bos_token="", eos_token="").render(list(SAID), now=CREATED)


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro twice(n) %}{{ twice(n) }}{{ twice(n) }}{% endmacro %}{{ twice(1) }}",
        "{% macro twice(n) %}{% if n %}{{ twice(n - 1) }}{{ twice(n - 1) }}{% endif %}{% endmacro %}{{ twice(60) }}",
        "{% set s = namespace(x='aa') %}{% for i in range(60) %}{% set s.x = s.x ~ s.x %}{% endfor %}",
        "{% set s = namespace(x='aa') %}{% for i in range(60) %}{% set s.x = s.x + s.x %}{% endfor %}",
        "{% set s = namespace(x='aa') %}{% for i in range(60) %}{% set s.x = [s.x, s.x] | join %}{% endfor %}",
        "{% set s = namespace(x='aa') %}{% for i in range(60) %}{% set s.x = '%s%s' % (s.x, s.x) %}{% endfor %}",
        "{% set s = namespace(x='aa') %}{% for i in range(60) %}{% set s.x = '{0}{0}'.format(s.x) %}{% endfor %}",
        "{% set s = namespace(x='aa') %}{% for i in range(60) %}{% set s.x = s.x.replace('a', s.x) %}{% endfor %}",
        "{% set s = namespace(x='aa') %}{% for i in range(60) %}{% set s.x = s.x | replace('a', s.x) %}{% endfor %}",
        "{% set s = namespace(x='a') %}{% for i in range(60) %}{% set s.x %}{{ s.x }}{{ s.x }}{% endset %}{% endfor %}",
        "{% set s = namespace(x=[1]) %}{% for i in range(60) %}{% set s.x = [s.x, s.x] %}{% endfor %}{{ s.x }}",
        "{% set s = namespace(x=1) %}{% for i in range(60) %}{% set s.x = [s.x, s.x] %}{% endfor %}{{ s.x | tojson }}",
        "{% set s = namespace(x=9) %}{% for i in range(60) %}{% set s.x = s.x * s.x %}{% endfor %}",
        "{{ 'a' * 10000000000 }}",
        "{{ [0] * 10000000000 }}",
        "{{ 9 ** (9 ** 9) }}",
        "{{ '%9999999999d' % 1 }}",
        "{{ '%*d' % (999999999, 1) }}",
        "{{ '{:9999999999}'.format(1) }}",
        "{{ 'a'.ljust(9999999999) }}",
        "{{ 'a' | center(9999999999) }}",
        "{{ messages | tojson(indent=9999999999) }}",
        "{{ (('\n' * 9999999) | indent(99999)) | length }}",
        "{{ ('\t' * 9999999).expandtabs(99999) | length }}",
        "{{ lipsum(n=99999) }}",
        "{{ ('f' * 9999999) | int(base=16) }}",
        "{{ [1] | round(9, 'floor') }}",
        "{{ '%999999999d' is odd }}",
        "{{ ([1] * 9999) | tojson(indent=99999) }}",
        "{{ (['a' * 99999] * 99999) | map('trim') | join }}",
        "{{ ('%s' * 999) % (([[1] * 999] * 999,) * 999) }}",
        "{% for i in range(99999) %}{% for j in range(99999) if false %}{% endfor %}{% endfor %}",
        "{% set s = 'ab' * 4999999 %}{% for i in range(99999) %}{% set t = s[1:] %}{% endfor %}",
        "{% set s = 'a' * 9999999 %}{% for i in range(99999) %}{% set t = s in s ~ 'b' %}{% endfor %}",
        "{% set s = [1] * 9999 %}{% for i in range(9999) %}{% set t = s.count(2) %}{% endfor %}",
        "{% set x = [[1] * 999] * 99 %}{% for i in range(9999) %}{% set t = x | tojson %}{% endfor %}",
        "{% for i in range(99999) %}{% set x = range(99999) | sum %}{% endfor %}",
        "{% for i in range(99999) %}{% set x = 'a' * 999999 * -9999999 %}{% set y = 'a' * 999999 %}{% endfor %}",
    ],
)
def test_a_template_that_would_take_all_time_or_memory_is_refused(source: str) -> None:
    with pytest.raises(BadRequest, match="chat template cannot render"):
        Template(source, bos_token="", eos_token="").render(list(SAID), now=CREATED)


TWINS = (
    "{% set a = namespace(x=1) %}{% set b = namespace(x=1) %}"
    "{% for i in range(60) %}{% set a.x = NEST(a.x) %}{% set b.x = NEST(b.x) %}{% endfor %}"
)
"""Two values that hold 2 ** 60 others each, if one goes through all of them, and are equal."""


@pytest.mark.parametrize(
    "use",
    [
        *("a.x == b.x", "a.x != b.x", "a.x < b.x", "a.x >= b.x", "1 < a.x <= b.x", "a.x in [b.x]", "a.x not in [b.x]"),
        *("a.x is eq(b.x)", "[a.x] | select('eq', b.x) | list", "[{'k': a.x}] | selectattr('k', 'in', [b.x]) | list"),
        *("[a.x, b.x] | sort", "[a.x, b.x] | unique | list", "[a.x, b.x] | max", "[[a.x], [b.x]] | map('first') | min"),
        *(
            "{'k': a.x, 'l': b.x} | dictsort(by='value')",
            "[[a.x, 1], [b.x, 2]] | groupby(0)",
            "[a.x] | sum(start=[b.x])",
        ),
        *("[a.x].index(b.x)", "(a.x, 1).count(b.x)", "{'k': a.x}.items() == {'k': b.x}.items()"),
        *("b.x in {'k': a.x}.values()", "{a.x: 1}", "{}[a.x].y", "{}.get(a.x)", "dict([(a.x, 1)])", "a.x is filter"),
        *(
            "a.x is lower",
            "a",
            "a ~ ''",
            "a | string",
            "{'k': a.x}.values()",
            "'x' | attr(a.x)",
            "raise_exception(a.x)",
        ),
        *("'%s' % [a.x]", "'{}'.format(a.x)", "{'k': a.x} | xmlattr", "a.x | length == a.x | length and a.x == b.x"),
    ],
)
def test_what_holds_itself_many_times_is_not_gone_through(use: str) -> None:
    refuse_twins("[X, X]", f"{{% set found = {use} %}}{{{{ found }}}}")


@pytest.mark.parametrize("nest", ["(X, X)", "{'k': X, 'l': X}", "[X, X] | batch(1) | list", "dict(k=X, l=X).items()"])
def test_nor_is_it_when_it_is_nested_in_another_way(nest: str) -> None:
    refuse_twins(nest, "{{ a.x == b.x }}")


def test_nor_by_a_loop_that_looks_for_changes() -> None:
    refuse_twins("[X, X]", "{% for x in [a.x, b.x] %}{{ loop.changed(x) }}{% endfor %}")


def refuse_twins(nest: str, use: str) -> None:
    made = TWINS.replace("NEST(a.x)", nest.replace("X", "a.x")).replace("NEST(b.x)", nest.replace("X", "b.x"))
    with pytest.raises(BadRequest, match="chat template cannot render"):
        Template(made + use, bos_token="", eos_token="").render(list(SAID), now=CREATED)


@pytest.mark.parametrize(
    "expression",
    [
        *("messages[0] == messages[-1]", "messages[0] == messages[0]", "messages != [messages]", "1 < 2 < 3 <= 3"),
        *(
            "3 > 2 > 2",
            "'user' in messages[0].role",
            "'role' in messages[0]",
            "messages[1] in messages",
            "2 not in [2]",
        ),
        *("messages[0].role not in ['user', 'tool']", "messages | selectattr('role', 'eq', 'user') | list | length"),
        *("messages[1:] == messages[1:2]", "'a' < 'b'", "(1, 2) < (1, 3)", "{'a': 1}.items() == {'a': 1}.items()"),
        *("messages | map(attribute='role') | join('+')", "range(3) | list", "2 in range(3)", "{messages[0].role: 1}"),
        *(
            "messages | tojson(indent=2)",
            "messages | tojson(separators=(',', ':'))",
            "[3, 1] | sort | first",
            "7 is odd",
        ),
        *(
            "messages[0].role is lower",
            "'trim' is filter",
            "9 // 2 - 1 / 2",
            "2.55 | round(1)",
            "[1, 2] | sum",
            "'9' | int",
        ),
        *(
            "messages | reverse | map(attribute='content') | list",
            "[1, 2, 3] | batch(2) | list",
            "x is defined and x == 1",
        ),
    ],
)
def test_what_is_counted_is_computed_as_jinja_does_it(expression: str) -> None:
    environment = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"])
    environment.policies["json.dumps_kwargs"] = {}
    environment.filters["tojson"] = lambda value, **style: json.dumps(value, **style)
    expected = environment.from_string(f"{{{{ {expression} }}}}").render(messages=SAID)
    found = Template(f"{{{{ {expression} }}}}", bos_token="", eos_token="").render(SAID, now=CREATED)
    assert found == expected


@pytest.mark.parametrize("name", ["striptags", "urlize", "pprint"])
def test_a_filter_that_takes_the_square_of_a_text_is_not_there(name: str) -> None:
    with pytest.raises(jinja2.TemplateError, match=f"No filter named '{name}'"):
        Template(f"{{{{ '<!---->' | {name} }}}}", bos_token="", eos_token="")


def test_after_a_refusal_the_next_prompt_is_rendered_as_always() -> None:
    source = "{% for m in messages %}{% for i in range(m.content | int) %}{% for j in range(9999) %}{% endfor %}"
    template = Template(source + "{% endfor %}{{ m.role }}{% endfor %}", bos_token="", eos_token="")
    for _ in range(2):
        with pytest.raises(BadRequest):
            template.render([{"role": "user", "content": "9999"}], now=CREATED)
        assert template.render([{"role": "user", "content": "1"}], now=CREATED) == "user"


def test_long_conversations_are_well_within_the_limits() -> None:
    source = (
        "{% for m in messages %}{% for n in messages %}{% if n.role == 'never' %}{{ n.content }}{% endif %}{% endfor %}"
        "{{ '<|' + m.role + '|>' ~ m.content | trim }}{% endfor %}{{ messages | tojson | length }}"
    )
    messages = [{"role": "user", "content": "word " * 400}] * 500
    assert len(Template(source, bos_token="", eos_token="").render(messages, now=CREATED)) > 1_000_000


def test_marks_of_what_to_train_on_leave_the_prompt_as_it_is() -> None:
    source = "{% for m in messages %}{% generation %}<{{ m.content }}>\n{% endgeneration %}{% endfor %}"
    assert Template(source, bos_token="", eos_token="").render(SAID, now=CREATED) == "<one>\n<two>\n"


def test_a_template_tells_what_it_reads() -> None:
    source = "{% set mine = 1 %}{% for m in messages %}{{ m.tools }}{{ mine }}{% endfor %}{{ range(2) }}{{ style }}"
    assert Template(source, bos_token="", eos_token="").variables == {"messages", "style"}
