"""Conversations for models of other families: their ids, and nobody's text in control."""

from __future__ import annotations

import random
import unicodedata
import warnings
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from text.foreign import BUILDERS, write_tokenizer

from chatbench.conversation import Message
from chatbench.errors import IntegrityError, UsageError
from chatbench.text.chat_templates import NAMES, has_template
from chatbench.text.layout import LayoutEncoder, mark
from chatbench.text.rendering import Item, render_arrays
from chatbench.text.sandbox import SafeTemplate
from chatbench.text.template import ChatML, Rendered, render, render_batch, reply_prompt
from chatbench.text.tokenizer import Tokenizer, open_tokenizer
from conftest import SHARED_DATA

# The published formats, in our words.
QWEN = """\
{%- if messages[0].role != 'system' -%}
{{- '<|im_start|>system\\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.' -}}
{{- '<|im_end|>\\n' -}}
{%- endif -%}
{%- for m in messages -%}
{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""
SMOLLM = QWEN.replace(
    "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face",
)
LLAMA3 = """\
{% for m in messages %}
{% set text = '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n' + m['content'] | trim %}
{{- (bos_token if loop.first else '') + text + '<|eot_id|>' -}}
{% endfor %}
{% if add_generation_prompt %}
{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}
{% endif %}
"""
LLAMA2 = """\
{%- if messages[0].role == 'system' -%}
{%- set opening = '<<SYS>>\\n' ~ messages[0].content ~ '\\n<</SYS>>\\n\\n' -%}
{%- set messages = messages[1:] -%}
{%- endif -%}
{%- for m in messages -%}
{%- if m.role == 'user' -%}
{{- bos_token + '[INST] ' + (opening if loop.first and opening else '') + m.content + ' [/INST]' -}}
{%- else -%}
{{- ' ' + m.content + ' ' + eos_token -}}
{%- endif -%}
{%- endfor -%}
"""
MISTRAL = """\
{{- bos_token -}}
{%- for m in messages -%}
{%- if (m.role == 'user') != (loop.index0 % 2 == 0) -%}
{{- raise_exception('Conversation roles must alternate user/assistant') -}}
{%- endif -%}
{%- if m.role == 'user' -%}{{- '[INST] ' + m.content + ' [/INST]' -}}
{%- elif m.role == 'assistant' -%}{{- m.content + eos_token -}}
{%- else -%}{{- raise_exception('Only user and assistant roles are supported!') -}}{%- endif -%}
{%- endfor -%}
"""
ZEPHYR = """\
{% for m in messages %}
{{ '<|' + m.role + '|>\\n' + m.content + eos_token }}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}
"""
# No tokens of its own at all, and a prompt that ends in a blank.
WORDS_ONLY = """\
{%- for m in messages -%}{{- m.role | upper + ': ' + m.content + '\\n' -}}{%- endfor -%}
{%- if add_generation_prompt -%}{{- 'ASSISTANT: ' -}}{%- endif -%}
"""

CHAT = [
    Message("user", " 茶多少钱？\n"),
    Message("assistant", "Five yuan."),
    Message("user", "谢谢!"),
    Message("assistant", "Bye"),
]
WITH_SYSTEM = [Message("system", "Be kind."), *CHAT[:2]]
QWEN_START = (
    "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant."
    "<|im_end|>\n"
)
LLAMA3_TURN = "<|start_header_id|>{}<|end_header_id|>\n\n{}<|eot_id|>"
# Tokenizer, template, conversation → the text with marks; learned is what stands in ⟦ ⟧. The old
# SentencePiece manner puts a blank behind every control token.
KNOWN = [
    ("qwen", QWEN, CHAT,
     QWEN_START + "<|im_start|>user\n茶多少钱？<|im_end|>\n"
     "<|im_start|>assistant\n⟦Five yuan.<|im_end|>⟧\n<|im_start|>user\n谢谢!<|im_end|>\n"
     "<|im_start|>assistant\n⟦Bye<|im_end|>⟧\n"),
    ("qwen", QWEN, WITH_SYSTEM,
     "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\n茶多少钱？<|im_end|>\n"
     "<|im_start|>assistant\n⟦Five yuan.<|im_end|>⟧\n"),
    ("smollm", SMOLLM, CHAT[:2],
     "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
     "<|im_end|>\n<|im_start|>user\n茶多少钱？<|im_end|>\n"
     "<|im_start|>assistant\n⟦Five yuan.<|im_end|>⟧\n"),
    ("llama3", LLAMA3, WITH_SYSTEM,
     "<|begin_of_text|>" + LLAMA3_TURN.format("system", "Be kind.")
     + LLAMA3_TURN.format("user", "茶多少钱？")
     + "<|start_header_id|>assistant<|end_header_id|>\n\n⟦Five yuan.<|eot_id|>⟧"),
    ("llama3", "llama3", WITH_SYSTEM,
     "<|begin_of_text|>" + LLAMA3_TURN.format("system", "Be kind.")
     + LLAMA3_TURN.format("user", "茶多少钱？")
     + "<|start_header_id|>assistant<|end_header_id|>\n\n⟦Five yuan.<|eot_id|>⟧"),
    ("mistral", MISTRAL, CHAT,
     "<s>[INST] 茶多少钱？ [/INST]⟦Five yuan.</s>⟧[INST] 谢谢! [/INST]⟦Bye</s>⟧"),
    ("mistral", MISTRAL, WITH_SYSTEM,
     "<s>[INST] Be kind.\n\n茶多少钱？ [/INST]⟦Five yuan.</s>⟧"),
    ("mistral", "mistral", WITH_SYSTEM,
     "<s>[INST] Be kind.\n\n茶多少钱？ [/INST]⟦ Five yuan.</s>⟧"),
    ("llama2", "mistral", CHAT,
     "<s> [INST] 茶多少钱？ [/INST]⟦ Five yuan.</s>⟧ [INST] 谢谢! [/INST]⟦ Bye</s>⟧"),
    ("llama2", LLAMA2, WITH_SYSTEM,
     "<s> [INST] <<SYS>>\nBe kind.\n<</SYS>>\n\n茶多少钱？ [/INST]⟦ Five yuan. </s>⟧"),
    ("zephyr", ZEPHYR, WITH_SYSTEM,
     " <|system|>\nBe kind.</s> \n<|user|>\n茶多少钱？</s> \n<|assistant|>\n⟦Five yuan.</s>⟧ \n"),
    ("zephyr", "zephyr", CHAT[:2],
     " <|user|>\n茶多少钱？</s> \n<|assistant|>\n⟦Five yuan.</s>⟧ \n"),
    ("gpt2", "plain", WITH_SYSTEM + CHAT[2:],
     "<|endoftext|>System: Be kind.\nUser: 茶多少钱？\nAssistant:⟦ Five yuan.<|endoftext|>⟧\n"
     "User: 谢谢!\nAssistant:⟦ Bye<|endoftext|>⟧\n"),
    ("llama3", "plain", CHAT[:2],
     "<|begin_of_text|>User: 茶多少钱？\nAssistant:⟦ Five yuan.<|end_of_text|>⟧\n"),
    ("gpt2", WORDS_ONLY, CHAT[:2], "USER: 茶多少钱？\nASSISTANT: ⟦Five yuan.⟧\n"),
]  # fmt: skip

HARMLESS = [
    "tea", " 茶叶", "，", "é", "e\u0301", "👩\u200d👧", "\n", "  ", "'s", "12", ".", "\u200b",
    "{{ x }}", "{% y %}", "!", ":", "\n\n", "Hello there", "小店", "\t", "-", "[", "|>",
]  # fmt: skip
LOOKALIKES = [
    "<|im_start|>", "<|im_end|>\n<|im_start|>assistant\n", "</s>", "<s>", "[INST]", "[/INST]",
    "<|eot_id|>", "<|start_header_id|>", "<|endoftext|>", "<|begin_of_text|>", "<unk>", "<|",
    "<|end_of_text|>", "s>", "</", mark(0), mark(1), "\U0010f010", "\U0010f001", "INST]",
    "<0x0A>", "▁",
]  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("tokenizers")
    return {name: write_tokenizer(root / name, build()) for name, build in BUILDERS.items()}


@pytest.fixture(scope="module")
def opened(folders: dict[str, Path]) -> Any:
    """Tokenizers with templates; each is opened once."""
    known: dict[tuple[str, str], Tokenizer] = {}

    def get(kind: str, template: str) -> Tokenizer:
        if (kind, template) not in known:
            known[kind, template] = open_tokenizer(folders[kind], template)
        return known[kind, template]

    return get


def fitting() -> list[tuple[str, str]]:
    """Tokenizers and templates that go together."""
    own = [
        ("qwen", QWEN), ("smollm", SMOLLM), ("llama3", LLAMA3), ("llama2", LLAMA2),
        ("mistral", MISTRAL), ("llama2", MISTRAL), ("zephyr", ZEPHYR), ("mistral", ZEPHYR),
    ]  # fmt: skip
    named = [
        ("llama3", "llama3"), ("llama2", "mistral"), ("mistral", "mistral"),
        ("zephyr", "zephyr"), ("mistral", "zephyr"),
    ]  # fmt: skip
    plain = [(kind, "plain") for kind in BUILDERS]
    return [*own, *named, *plain, *[(kind, WORDS_ONLY) for kind in BUILDERS]]


FITTING = fitting()
IDS = [f"{kind}-{name if len(name) < 9 else number}" for number, (kind, name) in enumerate(FITTING)]


def content(rng: random.Random, words: Sequence[str], least: int = 1) -> str:
    return "".join(rng.choices(words, k=rng.randint(least, 7)))


def conversation(rng: random.Random, words: Sequence[str], least: int = 1) -> list[Message]:
    roles = ["user", "assistant"] * rng.randint(1, 3)
    roles = (["system"] if rng.random() < 0.4 else []) + roles
    return [Message(role, content(rng, words, least)) for role in roles]  # type: ignore[arg-type]


def spelled(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    names = {number: name for name, number in tokenizer.controls.items()}
    table = tokenizer.token_bytes
    return b"".join(
        names[n].encode() if n in tokenizer.control_ids else table[n] for n in ids
    ).decode()


def as_spelled(text: str) -> str:
    """Qwen normalises text; SentencePiece's blank is this character."""
    return unicodedata.normalize("NFC", text.strip()).replace("▁", " ").strip()


def drawn(tokenizer: Tokenizer, rendered: Rendered) -> str:
    """The text of the ids, with what is learned in brackets."""
    text, ids, learned = "", [], 0
    for number, weight in zip([*rendered.ids, None], [*rendered.weights, None], strict=True):
        if weight != learned:
            text += spelled(tokenizer, ids)
            text += {1: "⟦", 0: "⟧", None: "⟧" if learned else ""}[weight]
            ids, learned = [], weight or 0
        ids += [] if number is None else [number]
    return text


@pytest.mark.parametrize(("kind", "template", "messages", "expected"), KNOWN)
def test_known_renderings(
    opened: Any, kind: str, template: str, messages: list[Message], expected: str
) -> None:
    tokenizer = opened(kind, template)
    assert drawn(tokenizer, render(tokenizer, messages)) == expected
    prompt = spelled(tokenizer, reply_prompt(tokenizer, messages[:-1]))
    last = expected.rindex("⟦")
    assert prompt == expected[:last].replace("⟦", "").replace("⟧", "")


def transformers_ids(
    tokenizer: Tokenizer, folder: Path, conversations: list[list[Message]], opened: bool
) -> list[list[int]]:
    tokenizer.save(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformers = pytest.importorskip("transformers")
        theirs = transformers.AutoTokenizer.from_pretrained(str(folder))
        return [
            theirs.apply_chat_template(
                [{"role": m.role, "content": m.content.strip()} for m in messages],
                tokenize=True, add_generation_prompt=opened, return_dict=False,
            )
            for messages in conversations
        ]  # fmt: skip


def spoken(messages: list[Message]) -> list[Message]:
    """`messages` with something in every content but the replies'."""
    return [
        Message(m.role, m.content if m.content.strip() or m.role == "assistant" else "嗯", m.weight)
        for m in messages
    ]


def joined(messages: list[Message]) -> list[Message]:
    """The system turn in front of the first question."""
    if messages[0].role != "system":
        return messages
    text = f"{messages[0].content.strip()}\n\n{messages[1].content.strip()}"
    return [Message("user", text), *messages[2:]]


@pytest.mark.parametrize(("kind", "template"), FITTING, ids=IDS)
def test_ids_are_those_of_transformers(
    opened: Any, kind: str, template: str, rng: random.Random, tmp_path: Path
) -> None:
    tokenizer = opened(kind, template)
    conversations = [spoken(conversation(rng, HARMLESS)) for _ in range(15)]
    seen = conversations
    if template in (MISTRAL, "mistral"):
        seen = [joined(messages) for messages in conversations]
    theirs = transformers_ids(tokenizer, tmp_path / "saved", seen, opened=False)
    cut = 0
    for messages, expected in zip(conversations, theirs, strict=True):
        found = render(tokenizer, messages).ids
        if found != expected:
            # Only where a prompt's ids would not have begun the reply's.
            assert spelled(tokenizer, found) == spelled(tokenizer, expected)
            prompt = reply_prompt(tokenizer, messages[:-1])
            first = reply_prompt(
                tokenizer, messages[: [m.role for m in messages].index("assistant")]
            )
            assert found[: len(prompt)] == prompt
            assert expected[: len(prompt)] != prompt or expected[: len(first)] != first
            cut += 1
    if template != WORDS_ONLY:
        assert cut == 0
    if template in (QWEN, SMOLLM, LLAMA3, "plain", "llama3", "zephyr", MISTRAL, WORDS_ONLY):
        opening = transformers_ids(
            tokenizer, tmp_path / "saved", [messages[:-1] for messages in seen], opened=True
        )
        for messages, expected in zip(conversations, opening, strict=True):
            if template != WORDS_ONLY:
                assert reply_prompt(tokenizer, messages[:-1]) == expected


@pytest.mark.parametrize(("kind", "template"), FITTING, ids=IDS)
def test_a_prompt_begins_what_is_trained_and_the_rest_of_the_reply_is_learned(
    opened: Any, kind: str, template: str, rng: random.Random
) -> None:
    tokenizer = opened(kind, template)
    for _ in range(15):
        messages = conversation(rng, HARMLESS + LOOKALIKES, least=0)
        ids, weights = render(tokenizer, messages)
        assert len(ids) == len(weights)
        assert weights[0] == 0
        begins = [n for n in range(1, len(ids)) if weights[n] > weights[n - 1]]
        replies = [n for n, message in enumerate(messages) if message.role == "assistant"]
        prompts = [reply_prompt(tokenizer, messages[:n]) for n in replies]
        for prompt in prompts:
            assert ids[: len(prompt)] == prompt
        if all(messages[n].content.strip() for n in replies):
            assert begins == [len(prompt) for prompt in prompts]
        for number in replies:
            one = [Message(m.role, m.content, int(n == number)) for n, m in enumerate(messages)]
            alone = render(tokenizer, one)
            assert alone.ids == ids
            text = spelled(tokenizer, [n for n, w in zip(*alone, strict=True) if w])
            learned = text.strip()
            assert as_spelled(messages[number].content) in as_spelled(text)
            ends = [n for n, w in zip(*alone, strict=True) if w and n in tokenizer.stops]
            assert len(ends) == (0 if template == WORDS_ONLY else 1)
            if ends:
                assert learned.endswith(spelled(tokenizer, ends))


@pytest.mark.parametrize(("kind", "template"), FITTING, ids=IDS)
def test_contents_never_become_control_tokens(
    opened: Any, kind: str, template: str, rng: random.Random
) -> None:
    tokenizer = opened(kind, template)
    for _ in range(20):
        messages = conversation(rng, LOOKALIKES)
        plain = [Message(m.role, "x", m.weight) for m in messages]

        def control(rendered: Rendered) -> list[int]:
            return [n for n in rendered.ids if n in tokenizer.control_ids]

        found = render(tokenizer, messages)
        assert control(found) == control(render(tokenizer, plain))
        text = spelled(tokenizer, found.ids)
        for message in messages:
            assert as_spelled(message.content) in as_spelled(text)


def test_contents_cannot_stand_in_for_other_contents(opened: Any) -> None:
    tokenizer = opened("llama3", LLAMA3)
    tricky = [Message("user", mark(1)), Message("assistant", f"{mark(0)}{mark(1)}")]
    text = spelled(tokenizer, render(tokenizer, tricky).ids)
    assert text.count(mark(1)) == 2
    assert text.count(mark(0)) == 1


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("{% for m in messages %}{{ m.content[:3] }}{% endfor %}", "takes contents apart"),
        ("{{ messages[0].content.replace('\U0010f010', '') }}", "characters that mark contents"),
        ("{{ messages[0].content }}{{ '\\U0010f011' }}", "takes contents apart"),
        ("{{ messages[0].content }}{{ '%c%s%c' % (1110032, messages[0].content[1:-1].replace("
         "'%c' % 1110016, '%c' % 1110025), 1110033) }}", "makes up contents"),
        ("{{ messages[0].content }}{{ '\\ud800' }}", "writes what is no text"),
        ("{{ ''.__class__ }}", "private attribute"),
        ("{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}", "longer"),
        ("{% if %}", "cannot be read"),
    ],
)  # fmt: skip
def test_hostile_templates_are_integrity_errors(opened: Any, source: str, words: str) -> None:
    with pytest.raises(IntegrityError, match=words):
        render(opened("llama3", source), [Message("user", "你好")])


def test_what_a_template_leaves_out_is_named(opened: Any) -> None:
    source = "{% for m in messages if m.role != 'tool' %}{{ m.role + m.content }}{% endfor %}"
    tokenizer = opened("llama3", source)
    with pytest.raises(UsageError, match="leaves out the tool turn"):
        render(tokenizer, [Message("user", "a"), Message("tool", "b")])
    with pytest.raises(UsageError, match="must alternate"):
        render(opened("mistral", MISTRAL), [Message("assistant", "a"), Message("user", "b")])
    with pytest.raises(UsageError, match="none of system, user"):
        render(tokenizer, [Message("root", "a")])  # type: ignore[arg-type]


def test_a_system_turn_that_is_only_shown_at_the_end_is_joined_to_the_first_question(
    opened: Any,
) -> None:
    """As in Mistral Nemo, whose template drops it from conversations that end with a reply."""
    source = (
        "{{ bos_token }}{% for m in messages if m.role != 'system' %}{% if m.role == 'user' %}"
        "[INST]{% if loop.last and messages[0].role == 'system' %}{{ messages[0].content + '\n' }}"
        "{% endif %}{{ m.content }}[/INST]{% else %}{{ m.content + eos_token }}{% endif %}"
        "{% endfor %}"
    )
    tokenizer = opened("mistral", source)
    expected = "<s>[INST]Be kind.\n\n茶多少钱？[/INST]⟦Five yuan.</s>⟧"
    assert drawn(tokenizer, render(tokenizer, WITH_SYSTEM)) == expected
    empty = [Message("system", " \n"), *CHAT[:2]]
    assert render(tokenizer, empty) == render(tokenizer, CHAT[:2])
    assert reply_prompt(tokenizer, empty[:2]) == reply_prompt(tokenizer, CHAT[:1])


def test_templates_without_a_prompt_for_replies_get_one(opened: Any) -> None:
    """What such a template writes before a reply opens it, but for the blank of its first word."""
    source = (
        "{% for m in messages %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>: ' "
        "+ m.content + '<|eot_id|>' }}{% endfor %}"
    )
    tokenizer = opened("llama3", source)
    prompt = reply_prompt(tokenizer, CHAT[:1])
    opening = "<|start_header_id|>{}<|end_header_id|>:"
    asked = opening.format("user") + " 茶多少钱？<|eot_id|>"
    assert spelled(tokenizer, prompt) == asked + opening.format("assistant")
    assert render(tokenizer, CHAT[:2]).ids[: len(prompt)] == prompt


def test_templates_that_rewrite_earlier_turns_still_learn_replies(opened: Any) -> None:
    """A thought that is asked for in the prompt and dropped from the conversation."""
    source = LLAMA3.replace(
        "assistant<|end_header_id|>\\n\\n", "assistant<|end_header_id|>\\n\\n<think>\\n"
    )
    tokenizer = opened("llama3", source)
    assert spelled(tokenizer, reply_prompt(tokenizer, CHAT[:1])).endswith("<think>\n")
    assert drawn(tokenizer, render(tokenizer, CHAT[:2])).endswith("⟦Five yuan.<|eot_id|>⟧")


def test_text_is_cut_where_a_merge_would_swallow_the_border(
    opened: Any, rng: random.Random
) -> None:
    """`ASSISTANT: ` and `tea` share the token ` t` in a whole text; in a prompt they cannot."""
    tokenizer = opened("gpt2", WORDS_ONLY)
    whole = tokenizer.encode("USER: a\nASSISTANT: the\n")
    messages = [Message("user", "a"), Message("assistant", "the")]
    prompt = reply_prompt(tokenizer, messages[:1])
    assert whole[: len(prompt)] != prompt
    found = render(tokenizer, messages)
    assert found.ids != whole
    assert found.ids[: len(prompt)] == prompt
    assert tokenizer.decode(found.ids) == "USER: a\nASSISTANT: the\n"
    # A reply that leaves the border alone is not touched.
    messages = [Message("user", "a"), Message("assistant", "\u200b")]
    assert render(tokenizer, messages).ids == tokenizer.encode("USER: a\nASSISTANT: \u200b\n")


def test_the_quick_look_at_borders_gives_what_encoding_each_prompt_gives(
    opened: Any, rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = []
    for (kind, template), _ in product(FITTING, range(4)):
        messages = conversation(rng, HARMLESS + LOOKALIKES, least=0)
        cases.append((opened(kind, template), messages, render(opened(kind, template), messages)))
    monkeypatch.setattr(LayoutEncoder, "_quick_border", lambda *_: None)
    for tokenizer, messages, expected in cases:
        assert render(tokenizer, messages) == expected


def test_jinja_runs_once_for_each_sequence_of_roles(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, rng: random.Random
) -> None:
    runs = 0
    original = SafeTemplate.render

    def counted(self: SafeTemplate, *args: Any, **named: Any) -> str:
        nonlocal runs
        runs += 1
        return original(self, *args, **named)

    monkeypatch.setattr(SafeTemplate, "render", counted)
    tokenizer = open_tokenizer(folders["llama3"], LLAMA3)
    render(tokenizer, CHAT)
    before = runs
    many = [[Message(m.role, content(rng, HARMLESS)) for m in CHAT] for _ in range(50)]
    rendered = list(render_batch(tokenizer, many))
    assert runs == before > 0
    assert rendered == [render(tokenizer, messages) for messages in many]


@pytest.mark.parametrize(("kind", "template"), FITTING[:10], ids=IDS[:10])
def test_arrays_hold_what_render_gives(
    opened: Any, kind: str, template: str, rng: random.Random
) -> None:
    tokenizer = opened(kind, template)
    chats = [conversation(rng, HARMLESS + LOOKALIKES, least=0) for _ in range(12)]
    control = Message("system", " 写诗 \n")
    items = [Item(chat) for chat in chats]
    items[3:3] = [Item((), "a text 一篇"), Item([control], "verse 诗"), Item(())]
    found = render_arrays(tokenizer, items)
    parts = [
        Rendered(found.ids[a:b].tolist(), found.weights[a:b].tolist())
        for a, b in zip(found.starts, found.starts[1:], strict=False)
    ]
    assert [found.ids.dtype, found.starts.dtype, found.weights.dtype] == [
        np.uint32, np.int64, np.uint8
    ]  # fmt: skip
    text, verse, nothing = parts[3:6]
    del parts[3:6]
    assert parts == [render(tokenizer, chat) for chat in chats]
    assert nothing == ([], [])
    end = tokenizer.end_of_text
    assert text == ([*tokenizer.encode("a text 一篇"), end], [1] * len(text.ids))
    read, learned = tokenizer.encode("写诗\n\n"), [*tokenizer.encode("verse 诗"), end]
    assert verse == (read + learned, [0] * len(read) + [1] * len(learned))


USER_TURNS = [
    ("qwen", QWEN, "<|im_start|>user\n", "<|im_start|>"),
    ("llama3", LLAMA3, "<|start_header_id|>user<|end_header_id|>\n\n", "<|start_header_id|>"),
    ("mistral", MISTRAL, "[INST]", "[INST]"),
    ("zephyr", ZEPHYR, " \n<|user|>\n", None),
    ("gpt2", "plain", "\nUser:", None),
    ("llama2", LLAMA2, "<s> [INST]", "<s>"),
]


@pytest.mark.parametrize(("kind", "template", "opening", "first"), USER_TURNS)
def test_the_ids_that_open_a_persons_turn(
    opened: Any, kind: str, template: str, opening: str, first: str | None, rng: random.Random
) -> None:
    tokenizer = opened(kind, template)
    turn = tokenizer.template.user_turn
    assert spelled(tokenizer, turn).rstrip(" ") == opening.rstrip(" ")
    assert tokenizer.template.turn_start == (None if first is None else tokenizer.controls[first])
    for _ in range(20):
        messages = conversation(rng, HARMLESS)
        ids = render(tokenizer, messages).ids
        places = [n for n in range(len(ids)) if tuple(ids[n : n + len(turn)]) == turn]
        asked = [n for n, m in enumerate(messages) if m.role == "user"]
        assert len(places) >= len(asked) - 1


def test_a_template_is_chosen_by_what_was_given_then_by_what_is_there(
    folders: dict[str, Path], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    assert isinstance(tokenizer.template, ChatML)
    assert tokenizer.template.name == "chatml"
    path = tmp_path / "mine.jinja"
    path.write_text(QWEN, encoding="utf-8")
    given = open_tokenizer(folders["qwen"], str(path))
    assert given.template.source == QWEN
    assert given.template.name == "jinja"
    for name in NAMES:
        kind = {"chatml": "smollm", "llama3": "llama3", "plain": "gpt2"}.get(name, "zephyr")
        assert open_tokenizer(folders[kind], name).template.name == name
    own = write_tokenizer(tmp_path / "own", BUILDERS["zephyr"](), chat_template=ZEPHYR)
    assert open_tokenizer(own).template.source == ZEPHYR
    assert open_tokenizer(own, "plain").template.name == "plain"


def test_without_a_template_only_conversations_are_refused(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    bare = open_tokenizer(folders["gpt2"])
    assert not has_template(bare)
    with pytest.raises(UsageError, match=r"no chat template; give --template chatml\|.*--raw"):
        reply_prompt(bare, CHAT[:1])
    with pytest.raises(UsageError, match="no chat template"):
        render_arrays(bare, [Item(CHAT)])
    assert list(render_batch(bare, [])) == []
    control = render_arrays(bare, [Item([Message("system", "诗")], "verse")])
    assert control.weights.tolist()[:1] == [0]
    for given, words in (
        ("llama3", r"no <\|begin_of_text\|>.*--template plain"),
        ("mistral", "no <s>.*--template plain"),
        ("zephyr", "no </s>.*--template plain"),
        ("chatml", r"no <\|im_start\|>.*--template plain"),
        ("lama3", "did you mean llama3"),
        (str(tmp_path / "none.jinja"), "neither a file nor the name"),
        (str(tmp_path), "neither a file nor the name"),
        ("x" * 5000, "neither a file nor the name"),
    ):
        with pytest.raises(UsageError, match=words):
            reply_prompt(open_tokenizer(folders["gpt2"], given), CHAT[:1])
    binary = tmp_path / "latin.jinja"
    binary.write_bytes(b"{{ '\xe9' }}")
    with pytest.raises(UsageError, match="UTF-8"):
        reply_prompt(open_tokenizer(folders["gpt2"], str(binary)), CHAT[:1])


@pytest.mark.parametrize(("kind", "template"), [("gpt2", "plain"), ("llama3", "llama3"),
                                                ("zephyr", ZEPHYR)])  # fmt: skip
def test_a_saved_tokenizer_writes_conversations_alike(
    opened: Any, kind: str, template: str, tmp_path: Path, rng: random.Random
) -> None:
    tokenizer = opened(kind, template)
    tokenizer.save(tmp_path / "saved")
    again = open_tokenizer(tmp_path / "saved")
    for _ in range(10):
        messages = conversation(rng, HARMLESS + LOOKALIKES)
        assert render(again, messages) == render(tokenizer, messages)


PUBLISHED = {
    "Qwen-Qwen2.5-7B-Instruct": "qwen",
    "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use": None,
    "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B": "llama3",
    "google-gemma-2-2b-it": "llama3",
    "mistralai-Mistral-Nemo-Instruct-2407": "mistral",
}


@pytest.mark.skipif(
    not (SHARED_DATA / "chat-templates").is_dir(), reason="the shared data are not there"
)
@pytest.mark.parametrize("name", [name for name, kind in PUBLISHED.items() if kind])
def test_published_templates_with_tokenizers_of_their_kind(
    opened: Any, name: str, rng: random.Random, tmp_path: Path
) -> None:
    path = SHARED_DATA / "chat-templates" / "with-tools" / f"{name}.jinja"
    tokenizer = opened(PUBLISHED[name], path.read_text(encoding="utf-8"))
    conversations = [spoken(conversation(rng, HARMLESS)) for _ in range(15)]
    seen = conversations
    if "gemma" in name or "Nemo" in name:
        seen = [joined(messages) for messages in conversations]
    theirs = transformers_ids(tokenizer, tmp_path / "saved", seen, opened=False)
    assert [render(tokenizer, messages).ids for messages in conversations] == theirs
    if "DeepSeek" not in name:  # there the prompt asks for a thought that the history drops
        for messages in conversations:
            prompt = reply_prompt(tokenizer, messages[:-1])
            assert render(tokenizer, messages).ids[: len(prompt)] == prompt
