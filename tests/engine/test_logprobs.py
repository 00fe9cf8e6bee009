"""Log-probabilities of a reply and of given text against log_softmax of the whole text."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from chatbench.engine.engine import Engine, Request, TokenLogprob
from chatbench.errors import UsageError
from chatbench.model.transformer import GPT
from chatbench.settings import SamplingSettings
from chatbench.text.tokenizer import Tokenizer

Make = Callable[..., GPT]


@torch.no_grad()
def distribution(model: GPT, ids: list[int], size: int) -> Tensor:
    """(len(ids) - 1, V): what is expected after each token but the last."""
    logits: Tensor = model.logits(model(torch.tensor([ids[:-1]])))[0, :, :size]
    return logits.log_softmax(-1)


def compare(found: list[TokenLogprob], model: GPT, ids: list[int], begin: int, top: int) -> None:
    wanted = distribution(model, ids, model.config.vocab_size)[begin - 1 :]
    assert [entry.id for entry in found] == ids[begin:]
    for entry, row in zip(found, wanted, strict=True):
        assert entry.logprob == pytest.approx(float(row[entry.id]), abs=1e-5)
        values, order = row.topk(top)
        assert [number for number, *_ in entry.top] == order.tolist()
        assert [value for *_, value in entry.top] == pytest.approx(values.tolist(), abs=1e-5)


def prompt(rng: random.Random, tokenizer: Tokenizer, tokens: int) -> list[int]:
    return [rng.randrange(tokenizer.vocab_size) for _ in range(tokens)]


@pytest.mark.parametrize("top", [0, 1, 5])
def test_a_reply_tells_the_figures_of_the_model_itself(
    make_model: Make, tokenizer: Tokenizer, rng: random.Random, top: int
) -> None:
    """Whatever temperature, filters, penalties and bias made of them."""
    model = make_model()
    settings = SamplingSettings(
        temperature=1.7, top_k=9, presence_penalty=1.0, logit_bias={"7": 2.0}, max_tokens=15,
        logprobs=top, seed=rng.randrange(1 << 40),
    )  # fmt: skip
    requests = [Request(prompt(rng, tokenizer, n), settings) for n in (3, 12, 7)]
    for request, done in zip(requests, Engine(model, tokenizer, 2).complete(requests), strict=True):
        assert done.logprobs is not None
        compare(done.logprobs, model, [*request.ids, *done.ids], len(request.ids), top)


def test_nothing_is_told_unasked(make_model: Make, tokenizer: Tokenizer) -> None:
    (done,) = Engine(make_model(), tokenizer).complete([Request([1], SamplingSettings())])
    assert done.logprobs is None


def test_given_text_is_explained_from_any_token_on(
    make_model: Make, tokenizer: Tokenizer, rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model()
    engine = Engine(model, tokenizer)
    ids = prompt(rng, tokenizer, 40)
    for begin in (1, 2, 25, 39):
        compare(engine.explain(ids, begin, 4), model, ids, begin, 4)
    monkeypatch.setattr("chatbench.engine.engine._LOGITS_AT_ONCE", 1000)
    compare(engine.explain(ids, 3, 2), model, ids, 3, 2)
    assert engine.explain(ids, 40, 2) == []


def test_explaining_a_reply_gives_what_the_reply_said(
    make_model: Make, tokenizer: Tokenizer, rng: random.Random
) -> None:
    engine = Engine(make_model(), tokenizer)
    ids = prompt(rng, tokenizer, 12)
    settings = SamplingSettings(max_tokens=20, logprobs=3, seed=1)
    (done,) = engine.complete([Request(ids, settings)])
    told = engine.explain([*ids, *done.ids], len(ids), 3)
    assert done.logprobs is not None
    for ours, theirs in zip(done.logprobs, told, strict=True):
        assert (ours.id, ours.text, ours.bytes) == (theirs.id, theirs.text, theirs.bytes)
        assert ours.logprob == pytest.approx(theirs.logprob, abs=1e-5)


def test_text_and_bytes_of_words_half_characters_and_controls(
    make_model: Make, tokenizer: Tokenizer
) -> None:
    single = {data: n for n, data in enumerate(tokenizer.token_bytes) if len(data) == 1}
    half = single["茶".encode()[:1]]
    ids = [tokenizer.encode("b")[0], tokenizer.encode("a")[0], half, tokenizer.turn_end]
    word, broken, control = Engine(make_model(), tokenizer).explain(ids, 1, 0)
    assert (word.text, word.bytes) == ("a", [97])
    assert (broken.text, broken.bytes) == ("\\xe8", [0xE8])
    assert (control.text, control.bytes) == ("<|im_end|>", [])


def test_what_cannot_be_explained(make_model: Make, tokenizer: Tokenizer) -> None:
    engine = Engine(make_model(context=16), tokenizer)
    assert len(engine.explain([1] * 16, 1, 0)) == 15
    for ids, begin, words in (
        ([1] * 17, 1, "17 tokens"),
        ([1, 2], 0, "nothing"),
        ([], 1, "nothing"),
    ):
        with pytest.raises(UsageError, match=words):
            engine.explain(ids, begin, 0)


def test_padding_of_the_table_has_no_share(make_chain: Make, tokenizer: Tokenizer) -> None:
    size = tokenizer.vocab_size
    logits = torch.zeros(size + 30, size + 30)
    logits[:, size:] = 50.0
    (found,) = Engine(make_chain(logits), tokenizer).explain([1, 2], 1, 20)
    assert found.logprob == pytest.approx(-torch.tensor(float(size)).log().item(), abs=1e-5)
    assert all(number < size for number, *_ in found.top)


def test_seconds_are_counted_from_the_request_on(make_model: Make, tokenizer: Tokenizer) -> None:
    settings = SamplingSettings(max_tokens=4, temperature=0)
    for done in Engine(make_model(), tokenizer, 1).complete([Request([1], settings)] * 3):
        assert 0 < done.first_seconds <= done.seconds
