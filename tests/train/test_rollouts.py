"""What the model replies while it learns, and replies that several steps learn from."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from train.grpo_cases import ROOM, grpo_of, model_of, move

from chatbench.conversation import Message
from chatbench.corpus.shards import Corpus, open_corpus
from chatbench.engine.engine import Engine, Request
from chatbench.errors import IntegrityError
from chatbench.settings import (
    SamplingSettings,
)
from chatbench.text.template import reply_prompt
from chatbench.train.rollouts import Reply, Rollouts, Shelf, Speaker, Tasks, seed_of


@pytest.fixture(scope="module")
def corpus(sums: Path) -> Corpus:
    return open_corpus(sums)


# ---- what is drawn


def test_prompts_are_the_conversations_without_their_last_reply(corpus: Corpus) -> None:
    held = Tasks(corpus.split("val"), corpus.tokenizer, ROOM)
    rows = [row["messages"] for row in corpus.rows("val")]
    assert len(held) == len(rows) > 5
    for number, row in enumerate(rows):
        messages = [Message(m["role"], m["content"]) for m in row]
        task = held[number]
        assert task.ids == reply_prompt(corpus.tokenizer, messages[:-1])
        assert task.reference == messages[-1].content
        assert messages[0].content in task.prompt
    assert held.longest == max(len(held[n].ids) for n in range(len(held)))
    short = Tasks(corpus.split("val"), corpus.tokenizer, held.longest - 1)
    assert 0 < short.skipped == len(held) - len(short)


def test_of_several_replies_the_last_is_the_reference(corpus_folder: Path) -> None:
    corpus = open_corpus(corpus_folder)
    rows = [row["messages"] for row in corpus.rows("val") if "messages" in row]
    tasks = Tasks(corpus.split("val"), corpus.tokenizer, 1000)
    found = {(tasks[n].prompt.count("user"), tasks[n].reference) for n in range(len(tasks))}
    assert found == {(len(row) // 2, row[-1]["content"]) for row in rows}
    assert {count for count, _ in found} == {1, 2}


def test_replies_come_with_the_token_that_ended_them(rng: random.Random, corpus: Corpus) -> None:
    model = model_of(rng, corpus)
    speaker = Speaker(model, corpus.tokenizer)
    prompts = [[rng.randrange(250) for _ in range(5)] for _ in range(60)]
    sampling = SamplingSettings(temperature=1.5, top_k=0, top_p=1.0, max_tokens=60 // 2)
    replies = speaker.replies(prompts, sampling, list(range(60)))
    done = Engine(model, corpus.tokenizer, 4).complete(
        Request(p, SamplingSettings(temperature=1.5, top_k=0, top_p=1.0, max_tokens=30, seed=n))
        for n, p in enumerate(prompts)
    )
    for reply, other in zip(replies, done, strict=True):
        ended = other.finish_reason == "stop"
        assert reply.truncated == (not ended)
        assert reply.ids[: len(other.ids)] == other.ids
        assert len(reply.ids) == len(other.ids) + ended
        assert not ended or reply.ids[-1] in corpus.tokenizer.stops


def test_replies_follow_the_weights(rng: random.Random, corpus: Corpus) -> None:
    """A speaker that spoke before says what a fresh one says after the weights have moved."""
    model = model_of(rng, corpus)
    objective = grpo_of(model, corpus)
    objective.batch(0)
    move(model, rng, 0.1)
    objective.batch(1)
    fresh = grpo_of(model, corpus)
    fresh.batch(1)
    assert objective._drawn == fresh._drawn


def test_a_step_is_drawn_once_and_by_its_number(rng: random.Random, corpus: Corpus) -> None:
    model = model_of(rng, corpus)
    objective = grpo_of(model, corpus)
    calls = []
    speak = objective._speaker.replies

    def counted(*given: Any) -> list[Reply]:
        calls.append(given[2])
        return speak(*given)

    objective._speaker.replies = counted  # type: ignore[method-assign]
    first = objective.batch(0)
    again = objective.batch(0)
    assert len(calls) == 1
    assert all(torch.equal(a.ids, b.ids) for a, b in zip(first.parts, again.parts, strict=True))
    objective.batch(1)
    assert len(set(calls[0] + calls[1])) == 24
    epoch = -(-len(objective._tasks) // 4)
    seen = []
    for step in range(epoch):
        objective.batch(step)
        assert objective._drawn is not None
        seen += objective._drawn[1].tasks
    assert set(seen) == set(range(len(objective._tasks)))


def test_seeds_are_a_function_of_run_set_prompt_and_sample(rng: random.Random) -> None:
    places = {(a, b, c, d) for a in range(3) for b in range(3) for c in range(3) for d in range(3)}
    seeds = {place: seed_of(*place) for place in places}
    assert len(set(seeds.values())) == len(places)
    assert all(0 <= seed < 2**62 for seed in seeds.values())
    place = rng.choice(sorted(places))
    assert seed_of(*place) == seeds[place]


# ---- replies that several steps learn from


def rollouts_of(rng: random.Random) -> Rollouts:
    replies = [Reply([rng.randrange(300), 2], "七", bool(rng.randrange(2))) for _ in range(4)]
    logprobs = [[rng.uniform(-9, 0), -0.0] for _ in replies]
    return Rollouts([3, 1], replies, [[rng.random()] for _ in replies], logprobs, None)


def test_kept_replies_come_back_bit_for_bit(rng: random.Random, tmp_path: Path) -> None:
    shelf, kept = Shelf(tmp_path, 2), rollouts_of(rng)
    shelf.put(5, kept)
    assert shelf.get(5) == kept
    with pytest.raises(IntegrityError, match="missing"):
        shelf.get(6)
    (place,) = (tmp_path / "rollouts").glob("set-*/rollouts.json")
    place.write_bytes(place.read_bytes().replace(b"3", b"4", 1))
    with pytest.raises(IntegrityError):
        shelf.get(5)


def test_kept_is_what_a_checkpoint_may_ask_for(rng: random.Random, tmp_path: Path) -> None:
    shelf = Shelf(tmp_path, 3)
    for number in range(4):
        shelf.put(number, rollouts_of(rng))
    names = {path.name for path in (tmp_path / "rollouts").iterdir()}
    assert names == {f"set-{n:08d}" for n in range(4)}  # a checkpoint may be on its way
    for step in (4, 10):
        (tmp_path / "checkpoints" / f"step-{step:08d}").mkdir(parents=True)
    shelf.put(4, rollouts_of(rng))
    names = {path.name for path in (tmp_path / "rollouts").iterdir()}
    assert names == {f"set-{n:08d}" for n in (1, 3, 4)}
