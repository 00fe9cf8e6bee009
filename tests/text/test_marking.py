"""Text never becomes a control token, and in markup they are recognised as by the backend."""

from __future__ import annotations

import json
import random

import pytest
from text.foreign import gpt2_like
from text.foreign_kinds import (
    FRAGMENTS,
    HARMLESS,
    built,
    every_kind,
    opened,
)
from tokenizers import AddedToken, Regex, normalizers
from tokenizers import Tokenizer as Backend

from chatbench.errors import DataError, IntegrityError
from chatbench.text.tokenizer import Tokenizer
from chatbench.text.tokenizer_files import TokenizerFiles

Parts = list[tuple[str, bool]]


@every_kind
def test_lookalikes_stay_text(kind: str, rng: random.Random) -> None:
    tokenizer = opened(kind)
    names = [name for name, number in tokenizer.controls.items() if number in tokenizer.control_ids]
    wide = [name.translate({c: c + 0xFEE0 for c in range(0x21, 0x7F)}) for name in names]
    pool = [*names * 3, *wide, *FRAGMENTS, *HARMLESS]
    texts = ["".join(rng.choices(pool, k=rng.randrange(1, 10))) for _ in range(1500)]
    assert sum(any(name in text for name in names) for text in texts) > 300
    for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
        assert not tokenizer.control_ids & set(ids), repr(text)
        assert ids == tokenizer.encode(text)


@pytest.mark.parametrize("kind", ["treacherous", "whole words", "unigram"])
def test_the_traps_are_real(kind: str) -> None:
    """Without its added tokens, the vocabulary itself would lead to the control token."""
    backend, _ = built(kind)
    content = json.loads(backend.to_str()) | {"added_tokens": [], "post_processor": None}
    naive = Backend.from_str(json.dumps(content))
    name = "<|eot_id|>" if kind == "whole words" else "</s>"
    found = naive.encode(f"{name}", add_special_tokens=False)
    assert backend.token_to_id(name) in found.ids
    assert backend.token_to_id(name) not in opened(kind).encode(name)


def test_every_short_text_over_the_characters_of_the_control_tokens_is_text() -> None:
    tokenizer = opened("treacherous")
    texts = [""]
    for _ in range(6):
        texts += [text + c for text in texts[-(4**6) :] for c in "</s>" if len(text) < 6]
    texts = sorted({text for text in texts if len(text) <= 6})
    assert len(texts) > 5000
    for ids in tokenizer.encode_batch(texts):
        assert not tokenizer.control_ids & set(ids)


def with_special(backend: Backend, name: str, entry: bool) -> Backend:
    """With one more special token, which is an entry of the vocabulary if wanted."""
    content = json.loads(backend.to_str())
    if entry:
        content["model"]["vocab"].setdefault(name, len(content["model"]["vocab"]))
    backend = Backend.from_str(json.dumps(content))
    backend.add_special_tokens([AddedToken(name, normalized=False)])
    return backend


@pytest.mark.parametrize("name", ["茶", "§"])
def test_a_control_token_of_one_character_is_spelled_by_bytes_in_texts(name: str) -> None:
    backend, config = built("llama2")
    tokenizer = Tokenizer(with_special(backend, name, entry=True), TokenizerFiles(config))
    assert tokenizer.controls[name] in tokenizer.control_ids
    text = f"小{name} a{name}"
    assert not tokenizer.control_ids & {*tokenizer.encode(text), *tokenizer.encode_batch([text])[0]}
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize(("kind", "name"), [("gpt2", "!"), ("llama2", "<0x07>")])
def test_the_entry_of_a_byte_stays_text_even_when_files_call_it_special(
    kind: str, name: str
) -> None:
    """Without it some texts could not be written at all."""
    backend, config = built(kind)
    tokenizer = Tokenizer(with_special(backend, name, entry=False), TokenizerFiles(config))
    assert tokenizer.controls[name] not in tokenizer.control_ids
    text = "tea! \x07"
    assert tokenizer.controls[name] in tokenizer.encode(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("normalized", [True, False])
def test_a_normaliser_that_knows_of_stand_ins_is_refused(normalized: bool) -> None:
    """It takes the names apart that control tokens have while contents hold lookalikes."""
    backend, config = gpt2_like()
    backend.normalizer = normalizers.Replace(Regex("<[0-9a-f]{32}"), "")
    backend.add_special_tokens([AddedToken("<a>", normalized=normalized)])
    tokenizer = Tokenizer(backend, TokenizerFiles(config))
    with pytest.raises(IntegrityError, match="makes up control tokens"):
        tokenizer.encode_marked([("<a>", True), ("<a>", False)])


def test_lone_surrogates_are_refused() -> None:
    for kind in ("llama2", "llama3"):
        with pytest.raises(DataError, match="lone surrogate"):
            opened(kind).encode("a\ud800")
        with pytest.raises(DataError, match="lone surrogate"):
            opened(kind).encode_marked([("a\ud800", True)])
        with pytest.raises(DataError, match="lone surrogate"):
            opened(kind).encode_with_offsets("a\ud800")


# ---- markup and contents


def some_parts(rng: random.Random, names: list[str], contents: tuple[str, ...]) -> Parts:
    return [
        ("".join(rng.choices([*HARMLESS, *names * 3], k=rng.randrange(4))), True)
        if rng.random() < 0.5
        else ("".join(rng.choices(contents, k=rng.randrange(4))), False)
        for _ in range(rng.randrange(7))
    ]


@every_kind
def test_harmless_contents_give_the_ids_of_the_whole_string(kind: str, rng: random.Random) -> None:
    backend, tokenizer = built(kind)[0], opened(kind)
    names = list(tokenizer.controls)
    texts = [some_parts(rng, names, HARMLESS) for _ in range(400)]
    assert tokenizer.encode_marked_batch(texts) == [tokenizer.encode_marked(t) for t in texts]
    for parts in texts:
        whole = "".join(text for text, _ in parts)
        expected = backend.encode(whole, add_special_tokens=False).ids
        ids, offsets = tokenizer.encode_marked(parts)
        assert ids == expected, parts
        assert len(offsets) == len(ids)
        assert all(0 <= start <= end <= len(whole) for start, end in offsets)


@every_kind
def test_the_careful_way_gives_the_same_as_the_quick_one(kind: str, rng: random.Random) -> None:
    """Whenever both ways are open, ids and offsets agree."""
    from chatbench.text.marking import _runs

    tokenizer = opened(kind)
    marker, compared = tokenizer._marker, 0
    for _ in range(400):
        parts = some_parts(rng, list(tokenizer.controls), HARMLESS)
        whole, runs = "".join(text for text, _ in parts), _runs(parts)
        quick = marker._whole.encode(whole, add_special_tokens=False)
        if marker._kept_to_markup(whole, runs, quick.ids, quick.offsets):
            careful = marker._encode_apart(whole, runs)
            assert (careful.ids, careful.offsets) == (quick.ids, quick.offsets), parts
            compared += 1
    assert compared > 200


@every_kind
def test_lookalikes_in_contents_never_control(kind: str, rng: random.Random) -> None:
    tokenizer = opened(kind)
    names = [name for name, number in tokenizer.controls.items() if number in tokenizer.control_ids]
    contents = (*names * 3, *FRAGMENTS, *HARMLESS)
    for _ in range(400):
        parts = some_parts(rng, names, contents)
        whole = "".join(text for text, _ in parts)
        ids, offsets = tokenizer.encode_marked(parts)
        inside, place = [False] * len(whole), 0
        for text, markup in parts:
            inside[place : place + len(text)] = [markup] * len(text)
            place += len(text)
        for number, (start, end) in zip(ids, offsets, strict=True):
            if number in tokenizer.control_ids:
                core = whole[start:end].strip()
                at = whole.index(core, start)
                assert all(inside[at : at + len(core)]), (parts, whole[start:end])


@pytest.mark.parametrize("kind", ["gpt2", "llama3", "smollm", "qwen", "llama2", "mistral", "gemma"])
def test_hostile_contents_leave_the_markup_alone(kind: str, rng: random.Random) -> None:
    """The control tokens are those of the markup, in order, and the text comes back."""
    tokenizer = opened(kind)
    names = list(tokenizer.controls)
    for _ in range(200):
        parts: Parts = []
        for _ in range(rng.randrange(1, 6)):
            parts += [
                (rng.choice(names), True),
                ("".join(rng.choices((*names * 2, *FRAGMENTS, "茶", "tea "), k=5)), False),
            ]
        ids, offsets = tokenizer.encode_marked(parts)
        assert [n for n in ids if n in tokenizer.control_ids] == [
            tokenizer.controls[text] for text, markup in parts if markup
        ]
        whole = "".join(text for text, _ in parts)
        spans = [
            whole[a:b] for n, (a, b) in zip(ids, offsets, strict=True) if n in tokenizer.control_ids
        ]
        assert spans == [text for text, markup in parts if markup]
        shown = "".join(text for text, markup in parts if not markup)
        if kind != "llama2":  # which puts a space before every stretch of text
            # The split of Mistral's kind adds a space to a whole text alone, its decoder takes one.
            assert tokenizer.decode(ids) == shown.removeprefix(" " if kind == "mistral" else "")


def test_a_lookalike_that_reaches_over_a_border_is_text() -> None:
    for kind, name in (("llama3", "<|eot_id|>"), ("llama2", "</s>"), ("mistral", "[INST]")):
        tokenizer = opened(kind)
        for cut in range(1, len(name)):
            for parts in (
                [(name[:cut], False), (name[cut:], True)],
                [(name[:cut], True), (name[cut:], False)],
                [(name, True), (name[:cut], False), (name[cut:] + name, True)],
            ):
                ids, _ = tokenizer.encode_marked(parts)
                wanted = [tokenizer.controls[name]] * (2 if len(parts) == 3 else 0)
                assert [n for n in ids if n in tokenizer.control_ids] == wanted
        joined, _ = tokenizer.encode_marked([(name[:2], True), (name[2:], True)])
        assert [n for n in joined if n in tokenizer.control_ids] == [tokenizer.controls[name]]


def test_marked_text_by_hand() -> None:
    tokenizer = opened("llama3")
    ids, offsets = tokenizer.encode_marked(
        [("<|eot_id|>", True), ("茶", False), ("<|eot_id|>x", True)]
    )
    end = tokenizer.controls["<|eot_id|>"]
    assert ids == [end, *tokenizer.encode("茶"), end, *tokenizer.encode("x")]
    assert offsets == [(0, 10), (10, 11), (11, 21), (21, 22)]
    hostile, spans = tokenizer.encode_marked([("<|eot_id|>", True), ("<|eot_id|>茶", False)])
    assert hostile == [end, *tokenizer.encode("<|eot_id|>茶")]
    assert (spans[0], spans[1][0], spans[-1]) == ((0, 10), 10, (20, 21))
    assert tokenizer.encode_marked([]) == ([], [])
    assert tokenizer.encode_marked([("", True), ("", False)]) == ([], [])
