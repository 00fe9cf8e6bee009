"""Likelihood of given text, and replies beside references: engine calls and exact sums."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import msgspec
import numpy as np

from chatbench import console
from chatbench.conversation import Message
from chatbench.engine.engine import Completion, Engine, Request
from chatbench.engine.score import token_losses
from chatbench.model.folder import OpenedModel
from chatbench.settings import SamplingSettings
from chatbench.text.metrics import Judged, Score
from chatbench.text.template import Rendered, reply_prompt


class Sums(NamedTuple):
    """What likelihood adds up to; divided once, at the end."""

    nats: float = 0.0
    tokens: int = 0
    text_nats: float = 0.0
    text_bytes: int = 0

    def __add__(self, other: object) -> Sums:
        assert isinstance(other, Sums)
        return Sums(
            self.nats + other.nats,
            self.tokens + other.tokens,
            self.text_nats + other.text_nats,
            self.text_bytes + other.text_bytes,
        )


def likelihood(
    opened: OpenedModel, documents: Iterable[Rendered], chats: bool, batch_size: int
) -> Sums:
    """Sums over every learned token of the documents, each scored once.

    Texts follow what the tokenizer puts before them; conversations begin by themselves, as in
    training.
    """
    bytes_of = np.array([len(b) for b in opened.tokenizer.token_bytes])
    documents = list(documents)
    prefix = [] if chats else [*opened.tokenizer.text_prefix]
    losses = token_losses(opened.model, [d.ids for d in documents], prefix, batch_size)
    total = Sums()
    for document, nats in zip(documents, losses, strict=True):
        counted = np.asarray(document.weights, bool)
        values = nats.numpy()[counted]
        size = bytes_of[np.asarray(document.ids)[counted]]
        spelled = size > 0
        if not chats and counted[0]:
            # Some tokenizers put a space before a text that the text does not hold.
            size[0] -= opened.tokenizer.opening_space(document.ids[0])
        total += Sums(math.fsum(values), len(values), math.fsum(values[spelled]), int(size.sum()))
    return total


def likelihood_scores(sums: Sums, context: int) -> list[Score]:
    """Perplexity per token and bits per byte of text, from corpus sums."""
    if not sums.tokens:
        return []
    signature = f"corpus-sum|each-token-once|context:{context}"
    scores = [Score("perplexity", math.exp(sums.nats / sums.tokens), sums.tokens, signature)]
    if sums.text_bytes:
        bits = sums.text_nats / math.log(2) / sums.text_bytes
        per_byte = signature.replace("corpus-sum", "corpus-sum|text-tokens")
        scores.append(Score("bits_per_byte", bits, sums.text_bytes, per_byte))
    return scores


class Question(NamedTuple):
    """The turns before the last reply, that reply, and the facts it must hold."""

    messages: tuple[Message, ...]
    reference: str
    facts: tuple[str, ...]


def questions_of(
    conversations: Iterable[tuple[Sequence[Message], dict[str, object]]],
) -> Iterator[Question]:
    """Conversations that end with a reply, as questions."""
    for messages, meta in conversations:
        if len(messages) > 1 and messages[-1].role == "assistant":
            facts = meta.get("facts") or ()
            listed = tuple(str(f) for f in facts) if isinstance(facts, list) else ()
            yield Question(tuple(messages[:-1]), messages[-1].content, listed)


def fits(opened: OpenedModel, question: Question) -> bool:
    """Whether the model's context holds the question and the beginning of a reply."""
    return len(reply_prompt(opened.tokenizer, question.messages)) < opened.model.config.context


def answer(
    opened: OpenedModel, questions: Sequence[Question], sampling: SamplingSettings, batch_size: int
) -> list[Completion]:
    """The model's replies, in order, several rows at once. Every question must fit."""
    engine = Engine(opened.model, opened.tokenizer, batch_size)
    prompts = [reply_prompt(opened.tokenizer, q.messages) for q in questions]
    # One seed for all would draw the same numbers for every question.
    requests = [
        Request(ids, msgspec.structs.replace(sampling, seed=(sampling.seed or 0) + number), number)
        for number, ids in enumerate(prompts)
    ]
    done: dict[int, Completion] = {}
    with console.ProgressLine("replies", len(requests)) as line:
        for event in engine.run(requests):
            if isinstance(event, Completion):
                done[event.key] = event
                line.update(len(done), f"{len(done)} of {len(requests)}")
    return [done[number] for number in range(len(requests))]


def judged(questions: Sequence[Question], replies: Sequence[Completion]) -> list[Judged]:
    """Replies beside their references."""
    return [
        Judged(reply.text.strip(), question.reference, question.facts)
        for question, reply in zip(questions, replies, strict=True)
    ]
