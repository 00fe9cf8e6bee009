"""Likelihood and replies against sums made by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from chatbench.conversation import Message, exchange
from chatbench.engine.engine import Engine, Request
from chatbench.evaluate.tasks import (
    Question,
    Sums,
    answer,
    judged,
    likelihood,
    likelihood_scores,
    questions_of,
)
from chatbench.model.folder import OpenedModel, open_model
from chatbench.settings import SamplingSettings
from chatbench.text.template import Rendered, render_batch, render_texts, reply_prompt

TEXTS = ("Tea.", "茶叶和信纸", "é")


@pytest.fixture(scope="module")
def opened(base_run: Path) -> OpenedModel:
    return open_model(base_run, torch.device("cpu"))


@torch.no_grad()
def nats(opened: OpenedModel, ids: Sequence[int]) -> list[float]:
    """-ln p of ids[1:] in float64."""
    model = opened.model.double()
    chances = F.log_softmax(model.logits(model(torch.tensor([ids[:-1]])))[0], dim=-1)
    model.float()
    return [-float(chances[at, target]) for at, target in enumerate(ids[1:])]


def test_perplexity_and_bits_per_byte_by_hand(opened: OpenedModel) -> None:
    end = opened.tokenizer.end_of_text
    all_nats: list[float] = []
    text_nats: list[float] = []
    for text in TEXTS:
        found = nats(opened, [end, *opened.tokenizer.encode(text), end])
        all_nats += found
        text_nats += found[:-1]
    sums = likelihood(opened, render_texts(opened.tokenizer, TEXTS), chats=False, batch_size=2)
    perplexity, per_byte = likelihood_scores(sums, opened.model.config.context)
    size = sum(len(text.encode()) for text in TEXTS)
    assert size == 4 + 15 + 2
    assert perplexity.name == "perplexity"
    assert perplexity.n == len(all_nats)
    assert perplexity.value == pytest.approx(
        math.exp(math.fsum(all_nats) / len(all_nats)), rel=1e-5
    )
    assert per_byte.name == "bits_per_byte"
    assert per_byte.n == size
    assert per_byte.value == pytest.approx(math.fsum(text_nats) / math.log(2) / size, rel=1e-5)
    assert f"context:{opened.model.config.context}" in perplexity.signature
    assert f"context:{opened.model.config.context}" in per_byte.signature


def test_conversations_count_their_replies_and_ends_of_turn_only(opened: OpenedModel) -> None:
    tokenizer = opened.tokenizer
    asked = (Message("user", "茶?"), Message("assistant", "茶 5"), Message("user", "ok"))
    told = Message("assistant", "Bye")
    (rendered,) = render_batch(tokenizer, [(*asked, told)])
    wanted: list[float] = []
    of_text: list[float] = []
    for before, reply in ((asked[:1], asked[1]), (asked, told)):
        content = tokenizer.encode(reply.content)
        prompt = reply_prompt(tokenizer, before)
        found = nats(opened, [*prompt, *content, tokenizer.turn_end])[-len(content) - 1 :]
        wanted += found
        of_text += found[:-1]
    sums = likelihood(opened, [rendered], chats=True, batch_size=4)
    assert sums.tokens == len(wanted)
    assert sums.text_bytes == len("茶 5".encode()) + len("Bye")
    assert sums.nats == pytest.approx(math.fsum(wanted), rel=1e-5)
    assert sums.text_nats == pytest.approx(math.fsum(of_text), rel=1e-5)


def test_the_batch_size_does_not_change_the_sums(opened: OpenedModel) -> None:
    documents = list(render_texts(opened.tokenizer, [*TEXTS, "Long " * 60, "x"]))
    one, many = (likelihood(opened, documents, chats=False, batch_size=n) for n in (1, 8))
    assert one == pytest.approx(many, rel=1e-6)
    assert one.tokens == sum(len(document.ids) for document in documents)


def test_sums_of_parts_add_up_to_the_sums_of_all(opened: OpenedModel) -> None:
    documents = list(render_texts(opened.tokenizer, TEXTS))
    parts = [likelihood(opened, [d], chats=False, batch_size=1) for d in documents]
    together = likelihood(opened, documents, chats=False, batch_size=1)
    assert parts[0] + parts[1] + parts[2] == pytest.approx(together, rel=1e-6)


def test_a_conversation_without_replies_counts_nothing(opened: OpenedModel) -> None:
    documents = render_batch(opened.tokenizer, [[Message("user", "Hello")]])
    sums = likelihood(opened, documents, chats=True, batch_size=1)
    assert sums == Sums()
    assert likelihood_scores(sums, 48) == []


def test_control_tokens_alone_have_a_perplexity_and_no_bits_per_byte(opened: OpenedModel) -> None:
    ended = Rendered([opened.tokenizer.end_of_text], [1])
    sums = likelihood(opened, [ended], chats=False, batch_size=1)
    assert [score.name for score in likelihood_scores(sums, 48)] == ["perplexity"]


def test_a_uniform_model_has_the_perplexity_of_its_table() -> None:
    perplexity, per_byte = likelihood_scores(Sums(10 * math.log(400), 10, 8 * math.log(256), 8), 48)
    assert perplexity.value == pytest.approx(400)
    assert per_byte.value == pytest.approx(8.0)


def test_questions_are_the_conversations_that_end_with_a_reply() -> None:
    longer = (*exchange("a", "b", "be kind"), *exchange("c", "d"))
    found = list(
        questions_of(
            [
                (exchange("q", "r"), {"facts": ["9:30", 5]}),
                (longer, {"facts": "not a list"}),
                (longer[:-1], {}),
                ((Message("assistant", "hello"),), {}),
            ]
        )
    )
    assert found == [
        Question((Message("user", "q"),), "r", ("9:30", "5")),
        Question(longer[:-1], "d", (), 2),
    ]


def test_answers_are_the_engines_in_the_order_of_the_questions(opened: OpenedModel) -> None:
    questions = [Question((Message("user", "?" * n),), "r", ()) for n in (1, 9, 3, 5)]
    greedy = SamplingSettings(temperature=0, max_tokens=6)
    prompts = [reply_prompt(opened.tokenizer, question.messages) for question in questions]
    replies = answer(opened, prompts, greedy, batch_size=2)
    for question, reply in zip(questions, replies, strict=True):
        request = Request(reply_prompt(opened.tokenizer, question.messages), greedy)
        (alone,) = Engine(opened.model, opened.tokenizer, 1).complete([request])
        assert reply.ids == alone.ids
    pairs = judged(questions, [reply.text for reply in replies])
    assert [pair.reply for pair in pairs] == [reply.text.strip() for reply in replies]
    assert {pair.reference for pair in pairs} == {"r"}
