"""The vocabulary of a GGUF file: entries, merges or scores, special ids, and what is refused."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from export.families import complete_merges, random_strings
from text.foreign import BUILDERS, Built, write_tokenizer
from tokenizers import AddedToken, Regex, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend

from chatbench.errors import IntegrityError
from chatbench.export.gguf_splitting import GPT2_PATTERN, LLAMA3_PATTERN
from chatbench.export.gguf_tokenizer import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    Vocabulary,
    describe_tokenizer,
)
from chatbench.text.splitting import QWEN2_PATTERN
from chatbench.text.tokenizer import Tokenizer, open_tokenizer, train_tokenizer
from conftest import sample_texts

Describe = Callable[..., tuple[Tokenizer, Vocabulary]]


@pytest.fixture
def describe(tmp_path: Path) -> Describe:
    """Open a tokenizer from its folder and describe it, with `more` rows than entries."""

    def make(built: Built, more: int = 0) -> tuple[Tokenizer, Vocabulary]:
        tokenizer = open_tokenizer(write_tokenizer(tmp_path / "tokenizer", built))
        return tokenizer, describe_tokenizer(tokenizer, tokenizer.vocab_size + more)

    return make


def value(vocabulary: Vocabulary, key: str) -> Any:
    return vocabulary.metadata[f"tokenizer.ggml.{key}"]


def edited(built: Built, **changes: Any) -> Built:
    """The same tokenizer with other parts, such as `pre_tokenizer`."""
    backend, config = built
    for name, part in changes.items():
        setattr(backend, name, part)
    return backend, config


def with_model(built: Built, **options: Any) -> Built:
    raw = json.loads(built[0].to_str())
    raw["model"] |= options
    return Backend.from_str(json.dumps(raw)), built[1]


def split(pattern: str, behavior: str = "isolated") -> Any:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior=behavior),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


# ---- byte-level vocabularies


@pytest.mark.parametrize(
    ("kind", "name"),
    [("gpt2", "gpt-2"), ("llama3", "llama-bpe"), ("smollm", "smollm"), ("qwen", "qwen2")],
)
def test_a_known_split_has_its_name(describe: Describe, kind: str, name: str) -> None:
    tokenizer, vocabulary = describe(BUILDERS[kind](), more=3)
    assert value(vocabulary, "model") == "gpt2"
    assert value(vocabulary, "pre") == vocabulary.name == name
    raw = json.loads(tokenizer.to_bytes())
    tokens, types = value(vocabulary, "tokens"), value(vocabulary, "token_type")
    assert len(tokens) == len(types) == tokenizer.vocab_size + 3
    assert tokens[-3:] == [f"[PAD{tokenizer.vocab_size + n}]" for n in range(3)]
    assert types[-3:] == [UNUSED] * 3
    added = {token["id"]: token for token in raw["added_tokens"]}
    for text, number in raw["model"]["vocab"].items():
        assert tokens[number] == text
        assert types[number] == NORMAL or number in added
    for number, token in added.items():
        assert tokens[number] == token["content"]
        assert types[number] == (CONTROL if number in tokenizer.control_ids else USER_DEFINED)
    assert value(vocabulary, "merges") == [" ".join(pair) for pair in raw["model"]["merges"]]
    assert bool(vocabulary.notices) == (kind == "qwen")  # NFC


def test_our_own_tokenizer(tmp_path: Path) -> None:
    train_tokenizer(sample_texts(), 350).save(tmp_path)
    tokenizer = open_tokenizer(tmp_path)
    vocabulary = describe_tokenizer(tokenizer, 350)
    assert value(vocabulary, "pre") == "qwen2"
    assert value(vocabulary, "eos_token_id") == tokenizer.turn_end
    assert value(vocabulary, "eot_token_id") == tokenizer.turn_end
    assert value(vocabulary, "bos_token_id") == tokenizer.end_of_text
    assert value(vocabulary, "padding_token_id") == tokenizer.end_of_text
    assert value(vocabulary, "add_bos_token") is False
    template = (tmp_path / "chat_template.jinja").read_text(encoding="utf-8")
    assert vocabulary.metadata["tokenizer.chat_template"] == template


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        ("gpt2", {"bos": "<|endoftext|>", "eos": "<|endoftext|>", "eot": "<|endoftext|>"}),
        ("llama3", {"bos": "<|begin_of_text|>", "eos": "<|eot_id|>", "eot": "<|eot_id|>"}),
        ("smollm", {"bos": "<|im_start|>", "eos": "<|im_end|>", "padding": "<|im_end|>"}),
        ("qwen", {"bos": "<|endoftext|>", "eos": "<|im_end|>", "padding": "<|endoftext|>"}),
        ("llama2", {"bos": "<s>", "eos": "</s>", "eot": "</s>", "unknown": "<unk>"}),
        ("zephyr", {"bos": "<s>", "eos": "</s>", "padding": "</s>"}),
    ],
)
def test_special_ids(describe: Describe, kind: str, wanted: dict[str, str]) -> None:
    _, vocabulary = describe(complete_merges(BUILDERS[kind]()))
    tokens = value(vocabulary, "tokens")
    for role, token in wanted.items():
        assert tokens[value(vocabulary, f"{role}_token_id")] == token
    first = kind in ("llama3", "llama2", "zephyr")
    assert value(vocabulary, "add_bos_token") is first
    assert value(vocabulary, "add_eos_token") is False


def test_a_split_with_and_without_a_look_at_whole_words(describe: Describe) -> None:
    llama3 = BUILDERS["llama3"]()
    assert describe(with_model(llama3, ignore_merges=False))[1].name == "smaug-bpe"
    with pytest.raises(IntegrityError, match="no name in GGUF"):
        describe(with_model(BUILDERS["qwen"](), ignore_merges=True))


@pytest.mark.parametrize(
    ("pattern", "name"),
    [(GPT2_PATTERN, "gpt-2"), (LLAMA3_PATTERN, "smaug-bpe"), (QWEN2_PATTERN, "qwen2")],
)
def test_patterns_are_recognised_by_their_letters(
    describe: Describe, pattern: str, name: str
) -> None:
    assert describe(edited(BUILDERS["gpt2"](), pre_tokenizer=split(pattern)))[1].name == name
    for another in (f"{pattern}|x", pattern.removesuffix(r"|\s+"), pattern.replace("'ll", "'l")):
        assert another != pattern
        with pytest.raises(IntegrityError, match="cut words differently"):
            describe(edited(BUILDERS["gpt2"](), pre_tokenizer=split(another)))


@pytest.mark.parametrize(
    "splitter",
    [
        split(QWEN2_PATTERN, "removed"),
        pre_tokenizers.ByteLevel(add_prefix_space=True),
        pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=False),
                                 pre_tokenizers.ByteLevel(add_prefix_space=False)]),
        pre_tokenizers.Sequence([pre_tokenizers.Punctuation(),
                                 pre_tokenizers.ByteLevel(add_prefix_space=False)]),
    ],
    ids=["removed", "prefix", "digits", "punctuation"],
)  # fmt: skip
def test_an_unknown_split_is_refused(describe: Describe, splitter: Any) -> None:
    with pytest.raises(IntegrityError, match="--to hf") as caught:
        describe(edited(BUILDERS["gpt2"](), pre_tokenizer=splitter))
    assert caught.value.exit_code == 4


@pytest.mark.parametrize("kind", ["qwen", "llama2"])
def test_text_that_is_changed_first_is_refused(describe: Describe, kind: str) -> None:
    built = complete_merges(BUILDERS[kind]())
    changed = normalizers.Sequence([built[0].normalizer, normalizers.Lowercase()])
    with pytest.raises(IntegrityError, match="Lowercase"):
        describe(edited(built, normalizer=changed))


# ---- vocabularies of SentencePiece


def scored_ids(vocabulary: Vocabulary, text: str) -> list[int]:
    """llama.cpp's way, slowly: join the neighbours that spell the entry of the highest score."""
    tokens = {token: number for number, token in enumerate(value(vocabulary, "tokens"))}
    scores = value(vocabulary, "scores")
    if value(vocabulary, "add_space_prefix") and text:
        text = f" {text}"
    parts = list(text.replace(" ", "▁"))
    while True:
        pairs = [
            (-scores[tokens[parts[at] + parts[at + 1]]], at)
            for at in range(len(parts) - 1)
            if parts[at] + parts[at + 1] in tokens
        ]
        if not pairs:
            break
        _, at = min(pairs)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    found = []
    for part in parts:
        bytes_ = [f"<0x{byte:02X}>" for byte in part.encode()]
        found += [tokens[part]] if part in tokens else [tokens[byte] for byte in bytes_]
    return found


@pytest.mark.parametrize("kind", ["llama2", "mistral"])
def test_scores_give_the_ids_that_merges_give(
    describe: Describe, rng: random.Random, kind: str
) -> None:
    tokenizer, vocabulary = describe(complete_merges(BUILDERS[kind]()))
    assert value(vocabulary, "model") == "llama"
    for text in random_strings(rng, 300, leading_space=kind == "llama2"):
        assert scored_ids(vocabulary, text) == tokenizer.encode(text), text


def test_types_of_pieces(describe: Describe) -> None:
    tokenizer, vocabulary = describe(complete_merges(BUILDERS["llama2"]()), more=2)
    types, tokens = value(vocabulary, "token_type"), value(vocabulary, "tokens")
    assert types.count(BYTE) == 256
    assert types[tokens.index("<0x0A>")] == BYTE
    assert types[tokens.index("<unk>")] == UNKNOWN
    assert types[tokens.index("<s>")] == types[tokens.index("</s>")] == CONTROL
    assert types[-2:] == [UNUSED, UNUSED]
    assert len(value(vocabulary, "scores")) == len(tokens) == tokenizer.vocab_size + 2


@pytest.mark.parametrize(
    ("scheme", "prefix", "warned"),
    [("always", True, True), ("first", True, True), ("never", False, False)],
)
def test_spaces_in_the_new_manner(
    describe: Describe, scheme: str, prefix: bool, warned: bool
) -> None:
    splitter = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    built = edited(complete_merges(BUILDERS["mistral"]()), pre_tokenizer=splitter)
    _, vocabulary = describe(built)
    assert value(vocabulary, "add_space_prefix") is prefix
    assert any("a space" in notice for notice in vocabulary.notices) == warned


def test_merges_that_scores_cannot_carry_are_refused(
    describe: Describe, rng: random.Random
) -> None:
    # Trained here: an entry is merged from the one pair that was counted.
    with pytest.raises(IntegrityError, match="cannot be written as scores"):
        describe(BUILDERS["llama2"]())
    built = complete_merges(BUILDERS["llama2"]())
    merges = json.loads(built[0].to_str())["model"]["merges"]
    # An entry's merges torn apart, and one left out.
    several = [i for i in range(1, len(merges)) if "".join(merges[i]) == "".join(merges[i - 1])]
    at = rng.choice(several)
    for changed in (merges[:at] + merges[at + 1 :] + [merges[at]], merges[:at] + merges[at + 1 :]):
        with pytest.raises(IntegrityError, match="cannot be written as scores"):
            describe(with_model(complete_merges(BUILDERS["llama2"]()), merges=changed))


def test_pieces_without_all_bytes_and_odd_spaces_are_refused(describe: Describe) -> None:
    built = complete_merges(BUILDERS["llama2"]())
    vocab = json.loads(built[0].to_str())["model"]["vocab"]
    renamed = {("gone" if text == "<0x41>" else text): n for text, n in vocab.items()}
    with pytest.raises(IntegrityError, match="255 of the 256"):
        describe(with_model(built, vocab=renamed))
    with pytest.raises(IntegrityError, match="treats spaces"):
        describe(edited(complete_merges(BUILDERS["mistral"]()), pre_tokenizer=None))
    cutting = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
    vocab = json.loads(complete_merges(BUILDERS["mistral"]())[0].to_str())["model"]["vocab"]
    across = with_model(complete_merges(BUILDERS["mistral"]()), vocab=vocab | {"a▁b": len(vocab)})
    with pytest.raises(IntegrityError, match="a▁b"):
        describe(edited(across, pre_tokenizer=cutting))


def test_what_llama_cpp_reads_otherwise_is_said(describe: Describe) -> None:
    backend, config = BUILDERS["gpt2"]()
    backend.add_special_tokens([AddedToken("<|sep|>", rstrip=True, special=True)])
    assert any("<|sep|>" in notice for notice in describe((backend, config))[1].notices)
    built = complete_merges(BUILDERS["llama2"]())
    assert not describe(built)[1].notices
    vocab = json.loads(built[0].to_str())["model"]["vocab"]
    more = {text: len(vocab) + n for n, text in enumerate(("</", "s>"))}
    # Both halves of </s> are entries now, so llama.cpp joins them.
    spelled = describe(with_model(built, vocab=vocab | more))[1]
    assert any("</s>" in notice for notice in spelled.notices)
