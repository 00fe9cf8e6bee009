"""Control tokens for a tokenizer that lacks them: all other ids stay, transformers agrees."""

from __future__ import annotations

import json
import random
import warnings
from pathlib import Path
from typing import Any

import pytest
from text.foreign import BUILDERS, gpt2_like, write_tokenizer
from text.test_chat_templates import HARMLESS, LOOKALIKES, content, conversation, spelled, spoken
from tokenizers import AddedToken, decoders, models
from tokenizers import Tokenizer as Backend

from chatbench.conversation import Message
from chatbench.errors import UsageError
from chatbench.text.chat_templates import TOKENS
from chatbench.text.new_tokens import with_new_tokens
from chatbench.text.template import render, reply_prompt
from chatbench.text.tokenizer import Tokenizer, open_tokenizer

OWN = """\
{%- for m in messages -%}
{{- '<|turn|>' + m.role + '\\n' + m.content | trim + '<|fin|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|turn|>assistant\\n' -}}{%- endif -%}
"""
# The roles' marks stand in the text of the template, and the end is the base's own.
ZEPHYR = """\
{%- for m in messages -%}
{%- if m.role == 'user' -%}{{- '<|user|>\\n' + m.content + eos_token + '\\n' -}}
{%- else -%}{{- '<|assistant|>\\n' + m.content + eos_token + '\\n' -}}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>\\n' -}}{%- endif -%}
"""
TEMPLATES = [*TOKENS, OWN]
CHAT = [Message("user", "茶？"), Message("assistant", "Five yuan."), Message("user", "谢谢")]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("tokenizers")
    return {name: write_tokenizer(root / name, build()) for name, build in BUILDERS.items()}


def needed(template: str) -> tuple[str, ...]:
    return TOKENS.get(template, ("<|turn|>", "<|fin|>"))


@pytest.mark.parametrize("kind", BUILDERS)
@pytest.mark.parametrize("template", TEMPLATES, ids=[*TOKENS, "own"])
def test_what_lacks_is_added_behind_and_everything_else_stays(
    folders: dict[str, Path], kind: str, template: str, rng: random.Random, tmp_path: Path
) -> None:
    before = open_tokenizer(folders[kind], template)
    after, fresh = with_new_tokens(before)
    lacking = [token for token in needed(template) if token not in before.controls]
    assert fresh == tuple(range(before.vocab_size, before.vocab_size + len(lacking)))
    assert [after.controls[token] for token in lacking] == [*fresh]
    assert after.control_ids == before.control_ids | {*fresh}
    assert (after.end_of_text, after.text_prefix) == (before.end_of_text, before.text_prefix)
    words = [*HARMLESS, *LOOKALIKES, *needed(template)]
    for _ in range(20):
        text = content(rng, words)
        ids = after.encode(text)
        assert ids == before.encode(text)
        assert after.decode(ids) == before.decode(ids)
        assert not after.control_ids & {*ids}
    if not lacking:
        assert after is before
    # A reply ends where the template ends it, and so it is when the folder is read again.
    after.save(tmp_path / "saved")
    again, none = with_new_tokens(open_tokenizer(tmp_path / "saved"))
    assert (none, again.digest, again.stops) == ((), after.digest, after.stops)
    messages = CHAT if template == "mistral" else [Message("system", "Be kind."), *CHAT]
    found, prompt = render(after, messages), reply_prompt(after, messages)
    assert (render(again, messages), reply_prompt(again, messages)) == (found, prompt)
    learned = [n for n, w in zip(*found, strict=True) if w]
    assert learned[-1] in after.stops
    assert needed(template)[-1:] in ((), (spelled(after, learned[-1:]),))


@pytest.mark.parametrize("kind", ["gpt2", "llama2", "llama3"])
@pytest.mark.parametrize("template", ["chatml", "llama3", OWN], ids=["chatml", "llama3", "own"])
def test_transformers_gives_the_same_ids(
    folders: dict[str, Path], kind: str, template: str, rng: random.Random, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer, _ = with_new_tokens(open_tokenizer(folders[kind], template))
    tokenizer.save(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
        assert len(theirs) == tokenizer.vocab_size
        for _ in range(5):
            messages = spoken(conversation(rng, HARMLESS))
            rows = [{"role": m.role, "content": m.content.strip()} for m in messages]
            wanted = theirs.apply_chat_template(rows, tokenize=True, return_dict=False)
            assert render(tokenizer, messages).ids == wanted


def test_marks_of_a_template_that_ends_in_the_bases_own_token_stay_text(
    folders: dict[str, Path],
) -> None:
    for kind in ("zephyr", "gpt2", "mistral"):
        before = open_tokenizer(folders[kind], ZEPHYR)
        after, fresh = with_new_tokens(before)
        assert (after, fresh) == (before, ())
    # Ended by a token of its own it is a template of tokens.
    own = ZEPHYR.replace("eos_token", "'<|end|>'")
    after, fresh = with_new_tokens(open_tokenizer(folders["gpt2"], own))
    names = sorted(after.controls[name] for name in ("<|user|>", "<|end|>", "<|assistant|>"))
    assert names == [*fresh]


@pytest.mark.parametrize(
    ("end", "written"), [("<|fin|>", "'<|' + 'fin' + '|>'"), ("</s>", "eos_token")]
)
def test_an_end_that_is_no_word_of_the_template_ends_replies(
    tmp_path: Path, end: str, written: str
) -> None:
    backend, config = gpt2_like()
    write_tokenizer(tmp_path / "base", (backend, {**config, "eos_token": "</s>"}))
    before = open_tokenizer(tmp_path / "base", OWN.replace("'<|fin|>\\n'", written))
    after, fresh = with_new_tokens(before)
    names = {number: name for name, number in after.controls.items()}
    assert [names[number] for number in fresh] == ["<|turn|>", end]
    found = render(after, CHAT)
    learned = [n for n, w in zip(*found, strict=True) if w]
    assert learned[-1] == after.controls[end]
    assert learned[-1] in after.stops


def test_nothing_is_added_to_what_nobody_asked_for(folders: dict[str, Path]) -> None:
    plain = open_tokenizer(folders["gpt2"])
    assert with_new_tokens(plain) == (plain, ())
    words = "{% for m in messages %}{{ m.role + ': ' + m.content }}{% endfor %}"
    unended = open_tokenizer(folders["gpt2"], words)
    assert with_new_tokens(unended) == (unended, ())
    with pytest.raises(UsageError, match="neither a file nor the name"):
        with_new_tokens(open_tokenizer(folders["gpt2"], "chatmll"))


def test_without_finetuning_the_template_is_refused_with_the_way_out(
    folders: dict[str, Path],
) -> None:
    with pytest.raises(UsageError, match=r"no <\|im_start\|>.*finetune with --template chatml"):
        _ = open_tokenizer(folders["gpt2"], "chatml").template


def holed(rng: random.Random) -> Backend:
    """Ids that leave some numbers out, so that counting entries would number twice."""
    content = json.loads(gpt2_like()[0].to_str())
    vocab = content["model"]["vocab"]
    last = max(vocab, key=vocab.get)
    vocab[last] += rng.randint(2, 5)
    content["added_tokens"] = []
    vocab["<|endoftext|>"] = vocab[last] + 1
    backend = Backend.from_str(json.dumps(content))
    backend.add_special_tokens([AddedToken("<|endoftext|>", special=True, normalized=False)])
    return backend


def test_ids_with_holes_are_not_given_twice(rng: random.Random, tmp_path: Path) -> None:
    write_tokenizer(tmp_path, (holed(rng), gpt2_like()[1]))
    before = open_tokenizer(tmp_path, "llama3")
    after, fresh = with_new_tokens(before)
    assert fresh == tuple(range(before.vocab_size, before.vocab_size + 4))
    numbers = list(json.loads(after.to_bytes())["model"]["vocab"].values())
    assert len({*numbers, *after.controls.values()}) == len({*numbers})
    text = content(rng, HARMLESS)
    assert after.encode(text) == before.encode(text)


def test_a_list_of_entries_may_name_one_twice(tmp_path: Path) -> None:
    backend = Backend(models.Unigram([("<unk>", 0.0), ("a", -1.0), ("b", -1.0), ("a", -2.0)], 0))
    backend.decoder = decoders.Metaspace()
    backend.add_special_tokens(["</s>"])
    write_tokenizer(tmp_path, (backend, {"eos_token": "</s>", "unk_token": "<unk>"}))
    before = open_tokenizer(tmp_path, "chatml")
    after, fresh = with_new_tokens(before)
    assert fresh == (5, 6)
    assert after.encode("ab a") == before.encode("ab a")


def test_an_entry_of_that_name_becomes_the_token_and_needs_no_row(tmp_path: Path) -> None:
    backend, config = gpt2_like()
    raw: Any = json.loads(backend.to_str())
    raw["model"]["vocab"]["<|im_end|>"] = backend.get_vocab_size()
    write_tokenizer(tmp_path, (Backend.from_str(json.dumps(raw)), config))
    before = open_tokenizer(tmp_path, "chatml")
    after, fresh = with_new_tokens(before)
    assert after.controls["<|im_end|>"] == backend.get_vocab_size()
    assert fresh == (before.vocab_size,)


def test_added_tokens_that_are_text_stay_text_under_chatml(tmp_path: Path) -> None:
    backend, config = gpt2_like()
    backend.add_tokens([AddedToken("    ", special=False, normalized=False)])
    write_tokenizer(tmp_path, (backend, config))
    before = open_tokenizer(tmp_path, "chatml")
    after, _ = with_new_tokens(before)
    assert after.encode("a    茶") == before.encode("a    茶")
    after.save(tmp_path / "saved")
    reopened: Tokenizer = open_tokenizer(tmp_path / "saved")
    assert reopened.encode("a    茶") == before.encode("a    茶")
    assert render(reopened, CHAT) == render(after, CHAT)
