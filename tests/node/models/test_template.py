"""Templates of strangers fail alone: the next conversation is rendered as if nothing had been."""

import asyncio
from datetime import UTC, datetime
from pathlib import Path

import pytest

from node.models.template import (
    TemplateBroken,
    TemplateError,
    TemplateRefused,
    TemplateRenderer,
    TemplateTooSlow,
    TextTooLong,
)
from node.models.vocab import open_vocab

HELLO = [{"role": "user", "content": "hello"}]
GOOD = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"


async def still_works(renderer: TemplateRenderer) -> bool:
    return await renderer.render(GOOD, HELLO) == "[user] hello\n"


async def test_the_demo_models_template_renders(renderer: TemplateRenderer, demo: Path) -> None:
    vocab = open_vocab(demo)
    template = vocab.chat_template
    vocab.close()
    assert template is not None
    messages = [{"role": "system", "content": "Be brief."}, *HELLO]
    assert await renderer.render(template, messages) == "<|system|>Be brief.<|user|>hello<|assistant|>"
    tools = [
        {
            "type": "function",
            "function": {"name": "get", "parameters": {"properties": {"city": {"type": "string"}}}},
        }
    ]
    rendered = await renderer.render(template, HELLO, tools)
    assert rendered == "<|system|>Tools: get(city)<|user|>hello<|assistant|>"
    assert (await renderer.render(template, HELLO, add_generation_prompt=False)).endswith("hello")


async def test_the_dialect_is_that_of_published_models() -> None:
    renderer = TemplateRenderer(now=lambda: datetime(2026, 1, 2, tzinfo=UTC))
    template = """
{%- set ns = namespace(n=0) -%}
{%- for m in messages -%}
    {%- if m.role == "system" -%}{%- continue -%}{%- endif -%}
    {%- set ns.n = ns.n + 1 -%}
    {% generation %}{{ m.content | trim }}{% endgeneration %}
{%- endfor -%}
|{{ ns.n }}|{{ {"b": "ä<", "a": 1} | tojson }}|{{ strftime_now("%Y-%m-%d") }}|{{ bos_token }}"""
    messages = [{"role": "system", "content": "x"}, {"role": "user", "content": " hi "}]
    rendered = await renderer.render(template, messages, bos_token="<s>")
    assert rendered == 'hi|1|{"b": "ä<", "a": 1}|2026-01-02|<s>'
    await renderer.close()


async def test_a_template_may_refuse_and_is_quoted(renderer: TemplateRenderer) -> None:
    with pytest.raises(TemplateRefused, match="Roles must alternate"):
        await renderer.render("{{ raise_exception('Roles must alternate') }}", HELLO)
    assert await still_works(renderer)


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.__class__.__base__.__subclasses__() }}",
        "{{ ''['__class__']['__mro__'] }}",
        "{{ '' | attr('__class__') | attr('__mro__') }}",
        "{{ '{0.__class__.__mro__}'.format('') }}",
        "{{ raise_exception.__globals__ }}",
        "{{ strftime_now.__self__.__class__.__subclasses__() }}",
        "{{ self.__init__.__globals__ }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
    ],
)
async def test_there_is_no_way_out_of_the_sandbox(renderer: TemplateRenderer, template: str) -> None:
    try:
        rendered = await renderer.render(template, HELLO)
    except TemplateBroken:
        rendered = ""
    assert rendered == ""
    assert await still_works(renderer)


@pytest.mark.parametrize(
    "template",
    [
        "{% for",
        "{{ 1 / 0 }}",
        "{{ missing.field.of.nothing }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
        "{{ range(999999999) }}",
        "{% do messages.append(1) %}",
        "{{ messages.append(1) }}",
        "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
        "{{ " + "(" * 5_000 + ")" * 5_000 + " }}",
        "{{ " + "[" * 500 + "]" * 500 + " }}",
    ],
)
async def test_a_broken_template_is_an_error_that_names_it(renderer: TemplateRenderer, template: str) -> None:
    with pytest.raises(TemplateBroken, match="chat template"):
        await renderer.render(template, HELLO)
    assert await still_works(renderer)


@pytest.mark.parametrize(
    "template",
    [
        "{% set ns = namespace(x='xxxx') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        "{{ 'x' * 10000000000 }}",
        "{{ '%10000000000d' % 1 }}",
        "{% set x = [0] * 10000000000 %}",
        "{% for i in range(99999) %}{{ 'x' * 1000 }}{% endfor %}",
        "{{ 'x' * 2000000 }}",
    ],
)
async def test_gigabytes_fail_alone(renderer: TemplateRenderer, template: str) -> None:
    with pytest.raises(TemplateError):
        await renderer.render(template, HELLO)
    assert await still_works(renderer)


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{{ 9 ** (9 ** 9) }}",
    ],
)
async def test_an_endless_template_is_killed(template: str) -> None:
    renderer = TemplateRenderer(timeout=0.5)
    with pytest.raises(TemplateTooSlow):
        await renderer.render(template, HELLO)
    assert await still_works(renderer)
    await renderer.close()


async def test_text_over_the_limit_is_refused(renderer: TemplateRenderer) -> None:
    with pytest.raises(TextTooLong):
        await renderer.render(GOOD, [{"role": "user", "content": "x" * 2**20}])
    with pytest.raises(TextTooLong):
        await renderer.render(GOOD, [{"role": "user", "content": "x" * 9 * 2**20}])
    assert await still_works(renderer)


async def test_callers_at_once_each_get_their_own_answer(renderer: TemplateRenderer) -> None:
    async def one(number: int) -> str:
        template = "{{ 1 / 0 }}" if number % 5 == 0 else "{{ messages[0].content }}"
        return await renderer.render(template, [{"role": "user", "content": str(number)}])

    answers = await asyncio.gather(*map(one, range(25)), return_exceptions=True)
    for number, answer in enumerate(answers):
        assert isinstance(answer, TemplateBroken) if number % 5 == 0 else answer == str(number)


async def test_a_cancelled_rendering_leaves_no_answer_for_the_next(renderer: TemplateRenderer) -> None:
    await renderer.start()
    slow = "{% for i in range(99999) %}{% for j in range(99) %}{% endfor %}{% endfor %}slow"
    task = asyncio.create_task(renderer.render(slow, HELLO))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await still_works(renderer)


async def test_a_closed_renderer_starts_again_when_needed(renderer: TemplateRenderer) -> None:
    assert await still_works(renderer)
    await renderer.close()
    await renderer.close()
    assert await still_works(renderer)
