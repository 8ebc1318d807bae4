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


def test_marks_of_what_to_train_on_leave_the_prompt_as_it_is() -> None:
    source = "{% for m in messages %}{% generation %}<{{ m.content }}>\n{% endgeneration %}{% endfor %}"
    assert Template(source, bos_token="", eos_token="").render(SAID, now=CREATED) == "<one>\n<two>\n"


def test_a_template_tells_what_it_reads() -> None:
    source = "{% set mine = 1 %}{% for m in messages %}{{ m.tools }}{{ mine }}{% endfor %}{{ range(2) }}{{ style }}"
    assert Template(source, bos_token="", eos_token="").variables == {"messages", "style"}
