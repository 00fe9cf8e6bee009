"""Templates of strangers: they render as transformers renders them, and can do nothing else."""

from __future__ import annotations

import json
import random
import resource
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

from chatbench.errors import ExitCode, IntegrityError
from chatbench.text.metering import LARGEST, weigh
from chatbench.text.sandbox import Refusal, SafeTemplate
from conftest import SHARED_DATA

MESSAGES = [
    {"role": "user", "content": "茶多少钱？"},
    {"role": "assistant", "content": "Five yuan. 五元。"},
]
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}

LOOP = "{% for i in range(100000) %}"
END = "{% endfor %}"
LIST = "{% set l = range(40000) | list %}"
GROW = "{% set ns = namespace(a=START) %}{% for i in range(200) %}{% set ns.a = STEP %}{% endfor %}"


def growing(start: str, step: str, then: str = "{{ ns.a }}") -> str:
    return GROW.replace("START", start).replace("STEP", step) + then


BOMBS = {
    "nested loops": LOOP * 3 + "x" + END * 3,
    "loops that write nothing": LOOP * 3 + END * 3,
    "loops that test only": "{% for i in range(100000) if false %}{% endfor %}" * 500,
    "constant text": LOOP + "x" * 60_000 + END,
    "long range": "{{ range(1000000000) | list | length }}",
    "loop over a long range": "{% for i in range(10 ** 12) %}{% endfor %}",
    "string times": "{{ ('a' * 1000000000) | length }}",
    "times string": "{{ (1000000000 * 'a') | length }}",
    "list times": "{{ (['a'] * 1000000000) | length }}",
    "power": "{{ 10 ** 10 ** 10 }}",
    "factors": growing("3", "ns.a * ns.a"),
    "round": "{{ 2 | round(1000000000, 'ceil') }}",
    "center": "{{ 'a'.center(1000000000) }}",
    "center filter": "{{ 'a' | center(1000000000) }}",
    "ljust": "{{ 'a'.ljust(1000000000) }}",
    "rjust": "{{ 'a'.rjust(1000000000) }}",
    "percent width": "{{ '%1000000000d' % 5 }}",
    "percent star": "{{ '%*d' % (1000000000, 5) }}",
    "percent precision": "{{ '%.1000000000f' % 5 }}",
    "format filter": "{{ '%1000000000d' | format(5) }}",
    "format width": "{{ '{:1000000000}'.format(5) }}",
    "format nested width": "{{ '{:{}}'.format(5, 1000000000) }}",
    "format many": "{{ ('{0}' * 20000).format('a' * 900000) }}",
    "percent many": "{{ ('%(a)s' * 20000) % {'a': 'a' * 900000} }}",
    "endless macro": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "forking macro": "{% macro m(n) %}{{ m(n - 1) if n }}{{ m(n - 1) if n }}{% endmacro %}"
    "{{ m(60) }}",
    "callers": "{% macro m() %}{{ caller() }}{{ caller() }}{% endmacro %}"
    + "{% call m() %}" * 15 + "x" * 100 + "{% endcall %}" * 15,
    "replace nothing": growing("'a' * 20", "ns.a.replace('', ns.a)"),
    "replace filter": growing("'a' * 20", "ns.a | replace('', ns.a)"),
    "tilde": growing("'a'", "ns.a ~ ns.a"),
    "plus": growing("'a'", "ns.a + ns.a"),
    "lists plus": growing("['a']", "ns.a + ns.a", "{{ ns.a | length }}"),
    "shared lists": growing("['a']", "[ns.a, ns.a]"),
    "shared tuples": growing("('a',)", "(ns.a, ns.a)", "{{ ns.a | tojson }}"),
    "shared dicts": growing("{'a': 1}", "{'p': ns.a, 'q': ns.a}", "{{ ns.a | string }}"),
    "set blocks": "{% set a %}xxxx{% endset %}" + "{% set a %}{{ a }}{{ a }}{% endset %}" * 60,
    "join": "{{ (['a'] * 100000) | join('b' * 100000) }}",
    "join method": "{{ ('b' * 100000).join(['a'] * 100000) }}",
    "indent": "{{ ('\\n' * 100000) | indent(100000) }}",
    "json indent": "{{ [[[1]]] | tojson(indent=1000000000) }}",
    "json separators": "{{ [1, 2] | tojson(separators=('a' * 100000, '')) }}",
    "date width": "{{ strftime_now('%1000000000d') }}",
    "sorting": "{% for i in range(1000) %}{{ range(100000) | sort | length }}{% endfor %}",
    "comparing": "{% set a = 'a' * 900000 %}" + "{{ a == a + '' }}" * 1000,
    "percent width after a name": "{{ '%(a)300000000d' % {'a': 5} }}",
    "format width in other digits": "{{ '{:３００００００００}'.format(5) }}",
    "a test over a list": LIST + "{{ range(-40000, -1) | select('in', l) | list | length }}",
    "a test in a loop": LIST + "{% for i in range(20000) %}{{ 1 if -1 is in l }}{% endfor %}",
    "a body that only asks": "{% for i in range(300000) %}"
    + ("{% if " + " and ".join("i" * 80) + " %}{% endif %}") * 30 + END,
    "a body that only names": "{% for i in range(300000) %}"
    + "{% set a = i if i else i if i else i %}" * 300 + END,
    "numbers with one hash": "{{ range(0, 100000 * PRIME, PRIME) | unique | list | length }}"
    .replace("PRIME", str(2**61 - 1)),
    "search from the right": "{{ ('a' * 400000).rfind('ab' + 'a' * 200000) }}",
    "split from the right": "{{ ('a' * 400000).rsplit('ab' + 'a' * 200000) }}",
    "strip of many": "{{ ('茶' * 400000).strip('店' * 400000 + '茶') }}",
    "trim of many": "{{ ('茶' * 400000) | trim('店' * 400000 + '茶') }}",
    "a loop that compares": LIST
    + "{% for i in range(2000) %}{{ 1 if loop.changed(l) }}{% endfor %}",
    "ten megabytes": "x" * 10_000_000,
    "parentheses": "{{ " + "(" * 100_000 + "1" + ")" * 100_000 + " }}",
    "fewer parentheses": "{{ " + "(" * 9_000 + "1" + ")" * 9_000 + " }}",
    "brackets": "{{ " + "[" * 9_000 + "]" * 9_000 + " }}",
    "attributes": "{{ a" + ".b" * 9_000 + " }}",
    "additions": "{{ 1" + "+1" * 9_000 + " }}",
    "negations": "{{ " + "not " * 9_000 + "1 }}",
    "minus signs": "{{ " + "-" * 9_000 + "1 }}",
    "filters": "{{ 1" + "|int" * 9_000 + " }}",
    "conditions": "{{ " + "1 if 1 else " * 4_000 + "1 }}",
    "nested ifs": "{% if 1 %}" * 2_000 + "{% endif %}" * 2_000,
    "nested fors": "{% for a in b %}" * 100 + END * 100,
    "many digits": "{{ " + "9" * 60_000 + " }}",
    "hexadecimal digits": "{{ 0x" + "f" * 60_000 + " % 7 }}",
    "beyond all numbers": "{{ 1e999 * 0 }}",
    "unclosed": "{{ '" + "\\" * 60_000,
    "spaces": "{%- " + " " * 60_000,
}  # fmt: skip

BREAKOUTS = {
    "class": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "class by item": "{{ ''['__class__'] }}",
    "class by built name": "{{ ''['__cl' ~ 'ass__'] }}",
    "class by filter": "{{ '' | attr('__class__') }}",
    "class by map": "{{ [''] | map(attribute='__class__') | list }}",
    "class by groupby": "{{ [''] | groupby('__class__') }}",
    "class by sort": "{{ ['', 'a'] | sort(attribute='__class__') }}",
    "class by format": "{{ '{0.__class__}'.format('') }}",
    "class by format map": "{{ '{a.__class__}'.format_map({'a': ''}) }}",
    "class by joining": "{{ ['a'] | join(attribute='__class__') }}",
    "globals": "{{ raise_exception.__globals__ }}",
    "builtins": "{{ namespace.__init__.__globals__['__builtins__'] }}",
    "range's class": "{{ range.__class__ }}",
    "cycler": "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "self": "{{ self.__init__ }}",
    "context": "{{ self._TemplateReference__context }}",
    "macro": "{% macro m() %}{% endmacro %}{{ m._func.__globals__ }}",
    "loop": "{% for a in [1] %}{{ loop._iterator }}{% endfor %}",
    "loop's class": "{% for a in [1] %}{{ loop['__class__'] }}{% endfor %}",
    "namespace name": "{% set ns = namespace(__class__=1) %}",
    "namespace item": "{% set ns = namespace() %}{% set ns._x = 1 %}",
    "code in a method": "{{ ''.join.__self__ }}",
    "append": "{{ messages.append(1) }}",
    "update": "{{ messages[0].update({'role': 'system'}) }}",
    "pop": "{{ messages[0].pop('role') }}",
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import '/etc/passwd' as p %}",
    "from": "{% from '/etc/passwd' import p %}",
    "extends": "{% extends '/etc/passwd' %}",
    "block": "{% block b %}{% endblock %}",
    "autoescape": "{% autoescape true %}{% endautoescape %}",
    "recursive loop": "{% for a in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "calling a loop": "{% for a in [1] %}{{ loop([1]) }}{% endfor %}",
    "printing a function": "{{ range }}",
    "encode": "{{ 'a'.encode() }}",
    "translate": "{{ 'a'.translate({97: 'b'}) }}",
    "expandtabs": "{{ '\t'.expandtabs(1000000000) }}",
    "zfill": "{{ '1'.zfill(1000000000) }}",
    "random": "{{ [1, 2] | random }}",
    "unknown filter": "{{ 1 | nope }}",
    "unknown tag": "{% do 1 %}",
    "no end": "{% for a in b %}",
    "no sense": "{{ ) }}",
}


def rendered(source: str, **more: Any) -> str:
    return SafeTemplate(source).render(
        more.get("messages", MESSAGES), TOKENS, add_generation_prompt=more.get("opened", False)
    )


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_goes_off_nowhere(name: str) -> None:
    """That each ends, and soon, shows in that the tests end."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(IntegrityError) as raised:
        rendered(BOMBS[name])
    assert raised.value.exit_code == ExitCode.INTEGRITY
    assert "the chat template " in str(raised.value)
    assert len(str(raised.value)) < 500
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 200_000 * (1000 if sys.platform == "darwin" else 1)


@pytest.mark.parametrize("name", BREAKOUTS)
def test_there_is_no_way_out(name: str) -> None:
    with pytest.raises(IntegrityError) as raised:
        rendered(BREAKOUTS[name])
    assert "passwd" not in raised.value.message or "root" not in raised.value.message
    assert MESSAGES[0] == {"role": "user", "content": "茶多少钱？"}


HARMLESS = {
    "text": "a{{ 1 }}  b\n{{ 'ü茶' }}\n{% if true %}\n  x\n{% endif %}\ny\n",
    "lines": "  {% for m in messages %}\n    {{ m.role }}\n  {% endfor %}\n",
    "minus": "a\n{%- for m in messages -%}\n {{- m['content'] -}} {%- endfor -%}\n b",
    "tokens": "{{ bos_token }}{{ eos_token }}{{ unk_token }}{{ pad_token is defined }}",
    "given": "{{ tools }}{{ tools is none }}{{ documents is defined }}{{ add_generation_prompt }}",
    "loop": "{% for m in messages %}{{ loop.index0 }}{{ loop.index }}"
    "{{ loop.first }}{{ loop.last }}"
    "{{ loop.length }}{{ loop.revindex }}{{ loop.previtem.role if loop.previtem is defined }}"
    "{{ loop.nextitem.role if not loop.last }}{{ loop.cycle('a', 'b') }}"
    "{{ loop.changed(m.role) }}{% endfor %}",
    "loop else": "{% for m in [] %}x{% else %}none{% endfor %}",
    "loop filter": "{% for m in messages if m.role == 'user' %}{{ m.content }}{{ loop.length }}"
    "{% endfor %}",
    "break": "{% for i in range(9) %}{% if i == 3 %}{% break %}{% endif %}"
    "{% if i == 1 %}{% continue %}{% endif %}{{ i }}{% endfor %}",
    "unpack": "{% for k, v in {'a': 1, '茶': [2]}.items() %}{{ k }}{{ v }}{% endfor %}"
    "{% set a, b = 1, 2 %}{{ a + b }}{% for k, v in {'x': 1} | items %}{{ k }}{{ v }}{% endfor %}",
    "dict": "{% set d = {'a': 1} %}{{ d.a }}{{ d['a'] }}{{ d.b is defined }}{{ d.get('c', 5) }}"
    "{{ d.keys() | list }}{{ d.values() | list }}{{ dict(x=1) }}{{ d | length }}{{ 'a' in d }}",
    "namespace": "{% set ns = namespace(n=0, s='') %}"
    "{% for m in messages %}{% set ns.n = ns.n + 1 %}"
    "{% set ns.s = ns.s ~ m.role %}{% endfor %}{{ ns.n }}{{ ns.s }}",
    "slices": "{{ messages[1:] | length }}{{ messages[::-1][0].role }}"
    "{{ 'abc'[:-1] }}{{ 'abc'[-1] }}",
    "strings": "{{ ' a b '.strip() }}|{{ 'a-b'.split('-') }}|{{ 'ab'.startswith('a') }}|"
    "{{ 'ab'.upper() }}|{{ 'x'.replace('x', 'yy') }}|{{ ', '.join(['a', 'b']) }}|"
    "{{ 'a\nb'.splitlines() }}|{{ 'abc'.find('c') }}|{{ '%s-%d' % ('a', 3) }}|{{ 'a' * 3 }}|"
    "{{ '%(k)s%%' % {'k': 5} }}{{ '% d' % 5 }}|"
    "{{ 'x'.rstrip('\n').lstrip('x') }}|{{ '{} {}'.format(1, 'b') }}|{{ 'ab'.center(6) }}",
    "filters": "{{ ' a ' | trim }}{{ 'ab' | capitalize }}{{ 'AB' | lower }}{{ [3, 1] | sort }}"
    "{{ messages | map(attribute='role') | join(', ') }}{{ messages | map('length') | list }}"
    "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}"
    "{{ messages | rejectattr('role', 'equalto', 'user') | map(attribute='content') | first }}"
    "{{ [1, 2, 3] | select('odd') | list }}{{ [1, 2] | reverse | list }}"
    "{{ [1, 1] | unique | list }}{{ -3 | abs }}{{ 'a' | center(5) }}"
    "{{ x | default('d') }}{{ '5' | int + 1 }}{{ 2.567 | round(1) }}{{ [1, 2] | sum }}"
    "{{ [1, 2] | max }}{{ {'b': 1, 'a': 2} | dictsort }}{{ 5 | string + 'a' }}{{ 'a b' | title }}"
    "{{ [1, 2] | last }}{{ 'a\nb\n\nc' | indent(2) }}{{ 'a' | replace('a', 'b') }}"
    "{{ [{'a': 1}] | groupby('a') | length }}{{ '%s' | format('x') }}",
    "tests": "{{ 1 is number }}{{ 'a' is string }}{{ {} is mapping }}{{ [] is iterable }}"
    "{{ [] is sequence }}{{ none is none }}{{ true is true }}{{ 3 is odd }}{{ 4 is divisibleby 2 }}"
    "{{ 'a' is in ['a'] }}{{ 1 is eq 1 }}{{ 'a' is not string }}{{ nothing is undefined }}",
    "json": "{{ {'a': '<茶>&\"', 'b': [1, none, true]} | tojson }}{{ [1] | tojson(indent=2) }}"
    "{{ {'b': 1, 'a': 2} | tojson(sort_keys=true, separators=(',', ':')) }}"
    "{{ '茶' | tojson(ensure_ascii=true) }}",
    "numbers": "{{ 7 // 2 }}{{ 7 % 2 }}{{ 7 / 2 }}{{ 2 ** 8 }}{{ -7 + 1.5 }}{{ 3 - -3 }}{{ +3 }}",
    "logic": "{{ 1 and 0 or 'x' }}{{ not 1 }}{{ 1 < 2 < 3 }}{{ 'a' in 'abc' }}{{ 'z' not in 'a' }}"
    "{{ 1 == 1.0 }}{{ 'a' if false else 'b' }}{{ 'a' if false }}{{ [1, 2] == [1, 2] }}",
    "macro": "{% macro say(m, end='!') %}{{ m.role }}:{{ m.content }}{{ end }}{% endmacro %}"
    "{% for m in messages %}{{ say(m) }}{{ say(m, end='?') }}{% endfor %}",
    "caller": "{% macro b() %}<{{ caller() }}>{% endmacro %}{% call b() %}in{% endcall %}",
    "recursion": "{% macro f(n) %}{{ n }}{% if n %}{{ f(n - 1) }}{% endif %}{% endmacro %}"
    "{{ f(5) }}",
    "set block": "{% set a %}x{{ 1 }}{% endset %}{{ a }}{% set b | upper %}x{% endset %}{{ b }}",
    "filter block": "{% filter upper %}abc{% endfilter %}",
    "with": "{% with a = 1, b = 2 %}{{ a }}{{ b }}{% endwith %}",
    "generation": "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}"
    "{% endfor %}",
    "raw": "{% raw %}{{ x }}{% endraw %}{# no #}",
    "string joins": "{{ 1 ~ 'a' ~ none ~ [1] }}",
    "values": "{{ none }}{{ true }}{{ 1.50 }}{{ [1, 'a', none] }}{{ {'a': 'b'} }}{{ (1,) }}",
}  # fmt: skip


def by_transformers(source: str, messages: Any, opened: bool = False, **tokens: str) -> str:
    utils = pytest.importorskip("transformers.utils.chat_template_utils")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        texts, _ = utils.render_jinja_template(
            conversations=[messages], chat_template=source, add_generation_prompt=opened, **tokens
        )
    return str(texts[0])


@pytest.mark.parametrize("name", HARMLESS)
def test_what_chat_templates_use_renders_as_in_transformers(name: str) -> None:
    for opened in (False, True):
        expected = by_transformers(HARMLESS[name], MESSAGES, opened, **TOKENS)
        assert rendered(HARMLESS[name], opened=opened) == expected
    assert expected


PUBLISHED = sorted((SHARED_DATA / "chat-templates").glob("*/*.jinja"))


@pytest.mark.skipif(not PUBLISHED, reason="the shared data are not there")
@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.name)
def test_published_templates_render_as_in_transformers(path: Path, rng: random.Random) -> None:
    source = path.read_text(encoding="utf-8")
    template = SafeTemplate(source)
    done = 0
    for _ in range(12):
        roles = ["user", "assistant"] * rng.randint(1, 4)
        roles = ([] if rng.random() < 0.5 else ["system"]) + roles[: rng.choice((-1, None))]
        messages = [
            {"role": role, "content": rng.choice(("Hi", "你好", " a\n", "x </think> y")) + str(n)}
            for n, role in enumerate(roles)
        ]
        opened = rng.random() < 0.5
        try:
            expected = by_transformers(source, messages, opened, **TOKENS)
        except Exception:  # transformers lets through whatever goes wrong in the template
            with pytest.raises(Refusal):
                template.render(messages, TOKENS, add_generation_prompt=opened)
            continue
        done += 1
        assert template.render(messages, TOKENS, add_generation_prompt=opened) == expected
    assert done or "tool_use" in path.name  # it loops over tools, of which there are none


def test_todays_date_is_not_in_a_conversation() -> None:
    """Templates that ask whether there is a clock get none; the others always the same day."""
    guarded = (
        "{% if strftime_now is defined %}{{ strftime_now('%Y') }}{% else %}26 Jul 2024{% endif %}"
    )
    assert rendered(guarded) == "26 Jul 2024"
    assert rendered("{{ strftime_now('%d %b %Y') }}") == "26 Jul 2024"
    assert rendered("{{ strftime_now('%Y年%m月%d日') }}") == "2024年07月26日"


def test_refusals_come_in_the_templates_words_on_one_safe_line() -> None:
    with pytest.raises(Refusal) as raised:
        rendered("{{ raise_exception('no\n\x1b[31m 不行 ' ~ 'x' * 900) }}")
    assert str(raised.value).startswith("no ␛[31m 不行 xxx")
    assert len(str(raised.value)) == 200
    for broken in ("{{ nothing.at.all }}", "{{ 1 + 'a' }}", "{{ 1 / 0 }}", "{{ nothing() }}",
                   "{{ messages[9].role }}", "{% for m in 5 %}{% endfor %}"):  # fmt: skip
        with pytest.raises(Refusal):
            rendered(broken)


def test_after_a_bomb_the_next_rendering_has_its_own_allowance() -> None:
    template = SafeTemplate("{% if messages | length > 1 %}" + LOOP * 3 + END * 3 + "{% endif %}ok")
    for _ in range(3):
        with pytest.raises(IntegrityError):
            template.render(MESSAGES, TOKENS, add_generation_prompt=False)
        assert template.render(MESSAGES[:1], TOKENS, add_generation_prompt=False) == "ok"


def test_long_conversations_get_the_room_they_need() -> None:
    source = (
        "{% for m in messages %}{% if m.role == 'user' and messages[loop.index0 - 1].role %}"
        "{{ m.role ~ ': ' ~ (m.content | trim) }}{% else %}{{ m.content }}{% endif %}{% endfor %}"
    )
    messages = MESSAGES * 2000
    assert rendered(source, messages=messages) == by_transformers(source, messages)


def test_asking_how_many_turns_there_are_costs_no_more_in_long_conversations() -> None:
    source = (
        "{% for m in messages %}{% if messages is iterable and loop.index == messages | length %}"
        "{{ m.role }}{% endif %}{% endfor %}"
    )
    assert rendered(source, messages=MESSAGES * 3000) == "assistant"


def test_weight_is_that_of_the_value_written_out(rng: random.Random) -> None:
    def value(depth: int) -> Any:
        kind = rng.randrange(5 if depth else 2)
        if kind == 0:
            return "茶" * rng.randrange(20)
        if kind == 1:
            return rng.choice((None, True, rng.randrange(1 << 60), 0.5))
        if kind == 2:
            return {str(n): value(depth - 1) for n in range(rng.randrange(4))}
        made = [value(depth - 1) for _ in range(rng.randrange(5))]
        return made if kind == 3 else tuple(made)

    for _ in range(200):
        made = value(4)
        assert len(json.dumps(made, ensure_ascii=False)) <= 6 * weigh(made) + 20
    shared: Any = ["x"]
    for _ in range(10):
        shared = [shared, shared]
    assert weigh(shared) > 2**10
    with pytest.raises(IntegrityError):
        rendered("{{ 'a' * " + str(LARGEST + 1) + " }}")
