"""A template is rendered as Jinja renders it, with nothing left of the prompt before."""

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
    ],
)
def test_a_template_that_would_take_all_time_or_memory_is_refused(source: str) -> None:
    with pytest.raises(BadRequest, match="chat template cannot render"):
        Template(source, bos_token="", eos_token="").render(list(SAID), now=CREATED)


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
