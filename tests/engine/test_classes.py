"""Labels by a head or by choices: each text by itself, beginning and end of long ones."""

from __future__ import annotations

import math
import random

import pytest
import torch
from tokenizers import AddedToken, decoders, models
from tokenizers import Tokenizer as Backend

from chatbench.chat.forms import Weighed
from chatbench.conversation import Message
from chatbench.engine.choosing import reply_ids
from chatbench.engine.classes import (
    ChoiceJudge,
    HeadJudge,
    class_ids,
    judge_of,
    shortened,
    text_states,
)
from chatbench.engine.engine import Engine, Request
from chatbench.errors import UsageError
from chatbench.model.config import Pooling
from chatbench.model.folder import OpenedModel, open_model
from chatbench.model.transformer import GPT, ModelConfig, initialise
from chatbench.settings import SamplingSettings
from chatbench.text.template import reply_prompt
from chatbench.text.tokenizer import Tokenizer

LABELS = ("card", "退款", "a loan")
TEXTS = ("Where is my card?", "退款要多久到账", "x", "tea 茶叶 " * 40, "I want a loan!", "a")


@pytest.fixture
def opened(
    base_run: object, tokenizer: Tokenizer, rng: random.Random, tmp_path: object
) -> OpenedModel:
    """A random chat model in float64."""
    opened = open_model(str(base_run), torch.device("cpu"))
    initialise(opened.model, rng.randrange(1 << 30))
    with torch.no_grad():
        for weight in opened.model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    opened.model.double()
    return opened


@pytest.fixture(params=[("last", True), ("mean", True), ("mean", False)])
def labelled(opened: OpenedModel, request: pytest.FixtureRequest) -> OpenedModel:
    pooling, causal = request.param
    opened.model.become_classifier(LABELS, pooling, causal=causal)
    with torch.no_grad():
        opened.model.head.get_parameter("weight").normal_()
    return opened


def test_shortened_ids_are_a_beginning_and_an_end(rng: random.Random) -> None:
    for _ in range(50):
        ids = [rng.randrange(1000) for _ in range(rng.randrange(60))]
        room = rng.randrange(1, 70)
        found = shortened(ids, room)
        assert len(found) == min(len(ids), room)
        if len(ids) > room:
            assert found == ids[: room // 4] + ids[len(ids) - (room - room // 4) :]
        else:
            assert found == ids
    assert shortened([1, 2, 3], 0) == []


def test_each_text_has_the_state_it_has_alone(opened: OpenedModel, rng: random.Random) -> None:
    sequences = [[rng.randrange(90) for _ in range(rng.randint(1, 40))] for _ in range(11)]
    pooling: Pooling
    for pooling, causal in (("last", True), ("mean", True), ("mean", False)):
        if not causal:
            opened.model.become_classifier(LABELS, pooling, causal=causal)
        with torch.no_grad():
            alone = [opened.model(torch.tensor([ids]))[0] for ids in sequences]
        wanted = [states[-1] if pooling == "last" else states.mean(0) for states in alone]
        found = text_states(opened.model, sequences, rng.randint(1, 12), pooling)
        # Float64; what differs is the order of some hundred additions of numbers of order one.
        assert float((found - torch.stack(wanted)).abs().max()) < 1e-9
        assert text_states(opened.model, [], 3, pooling).shape == (0, 32)


def test_a_head_judges_as_softmax_of_its_scores(labelled: OpenedModel, rng: random.Random) -> None:
    judge = HeadJudge(labelled, rng.randint(1, 4))
    found = judge.probabilities(TEXTS)
    assert judge.cut == 1
    for row, text in zip(found.tolist(), TEXTS, strict=True):
        ids = labelled.tokenizer.encode(text.strip())
        if len(ids) > 48:
            ids = ids[:12] + ids[-36:]
        with torch.no_grad():
            states = labelled.model(torch.tensor([ids]))[0]
            state = states[-1] if labelled.model.config.pooling == "last" else states.mean(0)
            scores = (labelled.model.head.get_parameter("weight") @ state).tolist()
        mass = [math.exp(score - max(scores)) for score in scores]
        assert row == pytest.approx([m / sum(mass) for m in mass], abs=1e-9)
    shuffled = rng.sample(range(len(TEXTS)), len(TEXTS))
    again = HeadJudge(labelled, 3).probabilities([TEXTS[n] for n in shuffled])
    assert float((again - found[shuffled]).abs().max()) < 1e-9
    assert judge.probabilities([]).shape == (0, len(LABELS))


def test_outer_white_space_does_not_count(tokenizer: Tokenizer) -> None:
    (bare, wide) = class_ids(tokenizer, ["a card", "\n a card \t"], 40)
    assert bare == wide
    assert not bare.cut


def test_a_text_that_has_no_tokens_is_one_that_ends_at_once(labelled: OpenedModel) -> None:
    """A vocabulary without bytes has nothing for a character that it never met."""
    letters = {name: n for n, name in enumerate(("<|endoftext|>", "a", "b"))}
    backend = Backend(models.BPE(letters, []))
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens([AddedToken("<|endoftext|>", special=True, normalized=False)])
    tokenizer = Tokenizer(backend)
    assert [read.ids for read in class_ids(tokenizer, ["茶", "a茶b", ""], 9)] == [[0], [1, 2], [0]]
    judge = HeadJudge(labelled._replace(tokenizer=tokenizer), 2)
    found = judge.probabilities(["茶", "a茶b", "ab"])
    assert found.isfinite().all()
    assert float((found[1] - found[2]).abs().max()) < 1e-9


def test_choices_are_judged_as_a_chat_judges_them(opened: OpenedModel) -> None:
    judge = ChoiceJudge(opened, LABELS, 2)
    found = judge.probabilities(TEXTS[:3])
    assert found.sum(-1).tolist() == pytest.approx([1.0] * 3, abs=1e-12)
    for row, text in zip(found.tolist(), TEXTS, strict=False):
        engine = Engine(opened.model, opened.tokenizer, 2)
        spelled = {label: reply_ids(opened.tokenizer, label) for label in LABELS}
        form = Weighed(spelled, opened.tokenizer)
        prompt = reply_prompt(opened.tokenizer, [Message("user", text)])
        form.draw(engine, Request(prompt, SamplingSettings(seed=1)))
        # The chat rounds to six digits.
        assert row == pytest.approx([form.shares()[label] for label in LABELS], abs=2e-6)


def test_long_texts_are_cut_to_the_room_beside_a_choice(opened: OpenedModel) -> None:
    judge = ChoiceJudge(opened, LABELS, 2)
    found = judge.probabilities([TEXTS[3], "short"])
    assert judge.cut == 1
    assert torch.isfinite(found).all()
    longest = max(len(reply_ids(opened.tokenizer, label)) for label in LABELS)
    fitting = judge._fitting("abc 茶 " * 300)
    assert len(fitting) + longest < 48


def test_a_system_prompt_is_read(opened: OpenedModel) -> None:
    plain = ChoiceJudge(opened, LABELS, 2).probabilities(["a"])
    told = ChoiceJudge(opened, LABELS, 2, system="Be fair.").probabilities(["a"])
    assert float((plain - told).abs().max()) > 0


def test_what_cannot_be_judged_is_one_sentence(opened: OpenedModel) -> None:
    with pytest.raises(UsageError, match="no classifier"):
        judge_of(opened, (), 2)
    for choices in (["a"], ["a", "a"], ["a", " a "]):
        with pytest.raises(UsageError, match="two choices or more"):
            judge_of(opened, choices, 2)
    with pytest.raises(UsageError, match="empty"):
        judge_of(opened, ["a", " "], 2)
    with pytest.raises(UsageError, match="context of 48"):
        judge_of(opened, ["a", "long " * 60], 2)
    head = OpenedModel(
        GPT(ModelConfig(400, 1, 8, 1, 1, 8, 8, 48, labels=LABELS)), opened.tokenizer, opened.folder
    )
    with pytest.raises(UsageError, match="takes no --choice"):
        judge_of(head, ["a", "b"], 2)
    with pytest.raises(UsageError, match="takes no --system"):
        judge_of(head, (), 2, "Be fair.")
