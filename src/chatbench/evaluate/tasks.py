"""Likelihood of given text, and replies to questions: engine calls and exact sums."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np

from chatbench import console
from chatbench.conversation import Message
from chatbench.engine.engine import Completion, Engine, Request
from chatbench.engine.score import token_losses, usual_stride
from chatbench.model.folder import OpenedModel
from chatbench.settings import SamplingSettings
from chatbench.text.fitting import fit, room_for
from chatbench.text.measuring import Floats, Judged, Measured, Score, ratio, table
from chatbench.text.template import Rendered

_LONGEST_VALUE = 60
# Columns that say nothing by which questions could be grouped.
_NO_FACETS = ("source", "id", "text", "right", "facts", "cut")


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


class Reach(NamedTuple):
    """How far back a token sees when a text is longer: `context` tokens, moved on by `stride`."""

    context: int
    stride: int

    def __str__(self) -> str:
        return f"context:{self.context}|stride:{self.stride}"


def reach_of(opened: OpenedModel, context: int | None = None, stride: int | None = None) -> Reach:
    """What was asked for, within what the model can."""
    most = opened.model.config.context
    context = min(context or most, most)
    return Reach(context, min(stride or usual_stride(context), context))


def likelihood(
    opened: OpenedModel, documents: Iterable[Rendered], chats: bool, batch_size: int
) -> Sums:
    """Sums over every learned token of the documents, each scored once."""
    reach = reach_of(opened)
    return sum(document_sums(opened, documents, chats, batch_size, reach), Sums())


def document_sums(
    opened: OpenedModel, documents: Iterable[Rendered], chats: bool, batch_size: int, reach: Reach
) -> Iterator[Sums]:
    """Sums over the learned tokens of each document, each token scored once.

    Texts follow what the tokenizer puts before them; conversations begin by themselves, as in
    training.
    """
    documents = list(documents)
    prefix = [] if chats else [*opened.tokenizer.text_prefix]
    losses = token_losses(
        opened.model, [d.ids for d in documents], prefix, batch_size, reach.context, reach.stride
    )
    for document, nats in zip(documents, losses, strict=True):
        yield sums_of(opened, document, nats.numpy(), chats)


def sums_of(opened: OpenedModel, document: Rendered, nats: Floats, chats: bool) -> Sums:
    """Sums of one document, from -ln p (T,) of its tokens."""
    counted = np.asarray(document.weights, bool)
    values = nats[counted]
    entries = opened.tokenizer.token_bytes
    size = np.array([len(entries[i]) for i, c in zip(document.ids, counted, strict=True) if c])
    spelled = size > 0
    if not chats and len(counted) and counted[0]:
        # Some tokenizers put a space before a text that the text does not hold.
        size[0] -= opened.tokenizer.opening_space(document.ids[0])
    return Sums(math.fsum(values), len(values), math.fsum(values[spelled]), int(size.sum()))


def likelihood_measured(sums: Sequence[Sums], reach: str) -> list[Measured]:
    """Perplexity per token and bits per byte of text, from the sums of each document."""
    tokens, size = sum(s.tokens for s in sums), sum(s.text_bytes for s in sums)
    if not tokens:
        return []
    signature = f"corpus-sum|each-token-once|{reach}"
    found = [
        Measured(
            "perplexity", table([(s.nats, s.tokens) for s in sums]), _exponential, tokens, signature
        )
    ]
    if size:
        per_byte = signature.replace("corpus-sum", "corpus-sum|text-tokens")
        rows = table([(s.text_nats, s.text_bytes) for s in sums])
        found.append(Measured("bits_per_byte", rows, ratio(1 / math.log(2)), size, per_byte))
    return found


def _exponential(totals: Floats) -> Floats:
    with np.errstate(over="ignore"):
        return np.exp(ratio()(totals))


def likelihood_scores(sums: Sums, context: int) -> list[Score]:
    """`likelihood_measured` of corpus sums alone."""
    return [each.score() for each in likelihood_measured([sums], f"context:{context}")]


class Question(NamedTuple):
    """The turns before a reply, that reply, and the facts it must hold. `turn`: which reply of its
    conversation it is, from 1; `facets` are what the row says of itself, for slices."""

    messages: tuple[Message, ...]
    reference: str
    facts: tuple[str, ...] = ()
    turn: int = 1
    facets: tuple[tuple[str, str], ...] = ()


def questions_of(
    conversations: Iterable[tuple[Sequence[Message], Mapping[str, object]]],
    *,
    every_turn: bool = False,
) -> Iterator[Question]:
    """Conversations that end with a reply, as questions; or every reply that is to be learned.

    Facts belong to the last reply.
    """
    for messages, meta in conversations:
        facts = meta.get("facts") or ()
        listed = tuple(str(f) for f in facts) if isinstance(facts, list) else ()
        facets = facets_of(meta)
        replies = [n for n, m in enumerate(messages) if n and m.role == "assistant"]
        last = len(messages) - 1
        for turn, at in enumerate(replies, 1):
            if at == last or (every_turn and messages[at].weight):
                own = listed if at == last else ()
                yield Question(tuple(messages[:at]), messages[at].content, own, turn, facets)


def facets_of(meta: Mapping[str, object]) -> tuple[tuple[str, str], ...]:
    """Plain short values of a row by column; those of an object `tags` as `tag.COLUMN`."""
    found: dict[str, str] = {}
    for name, value in meta.items():
        if name == "tags" and isinstance(value, dict):
            found |= {f"tag.{tag}": str(v) for tag, v in value.items() if _is_plain(v)}
        elif _is_plain(value) and name not in _NO_FACETS:
            found[name] = str(value)
    return tuple(sorted(found.items()))


def _is_plain(value: Any) -> bool:
    return isinstance(value, str | int | bool) and 0 < len(str(value)) <= _LONGEST_VALUE


class Prompt(NamedTuple):
    """Ids to continue, and how many of the oldest exchanges had to be left out; `ids` is None where
    even the last question does not fit."""

    ids: list[int] | None
    forgotten: int


def prompt_of(opened: OpenedModel, question: Question, max_tokens: int) -> Prompt:
    """What the model reads before it replies; as in a chat, the oldest exchanges give way."""
    context = opened.model.config.context
    system = question.messages[:1] if question.messages[0].role == "system" else ()
    rest = question.messages[len(system) :]
    ids, forgotten = fit(opened.tokenizer, system, rest, room_for(context, max_tokens))
    return Prompt(ids if len(ids) < context else None, forgotten)


def fits(opened: OpenedModel, question: Question) -> bool:
    """Whether the model's context holds the last exchange and the beginning of a reply."""
    return prompt_of(opened, question, 1).ids is not None


def answer(
    opened: OpenedModel, prompts: Sequence[list[int]], sampling: SamplingSettings, batch_size: int,
    numbers: Sequence[int] | None = None,
) -> list[Completion]:  # fmt: skip
    """The model's replies, in order, several rows at once. `numbers`: which sample each is, for its
    seed; by default its place."""
    engine = Engine(opened.model, opened.tokenizer, batch_size)
    numbers = range(len(prompts)) if numbers is None else numbers
    # One seed for all would draw the same numbers for every question.
    requests = [
        Request(ids, msgspec.structs.replace(sampling, seed=(sampling.seed or 0) + number), place)
        for place, (ids, number) in enumerate(zip(prompts, numbers, strict=True))
    ]
    done: dict[int, Completion] = {}
    with console.ProgressLine("replies", len(requests)) as line:
        for event in engine.run(requests):
            if isinstance(event, Completion):
                done[event.key] = event
                line.update(len(done), f"{len(done)} of {len(requests)}")
    return [done[number] for number in range(len(requests))]


def judged(questions: Sequence[Question], replies: Sequence[str]) -> list[Judged]:
    """Replies beside their references."""
    return [
        Judged(reply.strip(), question.reference, question.facts)
        for question, reply in zip(questions, replies, strict=True)
    ]
