"""Questions with a right answer among several, and sentences of which one is better.

Rows are JSON Lines of {query, choices, gold} or {good, bad}. A query is plain text that the choice
continues; `messages` in its place are turns that the choice answers, in the model's template.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from chatbench import console
from chatbench.conversation import Message, parse_messages
from chatbench.engine.score import continuation_losses
from chatbench.errors import DataError
from chatbench.evaluate.tasks import Question, facets_of
from chatbench.evaluate.testset import rows_of
from chatbench.model.folder import OpenedModel
from chatbench.text.measuring import Floats, Judged, Measured, share
from chatbench.text.template import render, reply_prompt
from chatbench.text.words import has_unspaced

_GOOD, _BAD = ("good", "sentence_good"), ("bad", "sentence_bad")
_LETTER = re.compile(r"\(?([A-Za-z])[).:]?")


class Choice(NamedTuple):
    """What is asked, what may be answered, which answer is right; `is_pair`: two whole sentences,
    and nothing is asked."""

    query: str | tuple[Message, ...]
    choices: tuple[str, ...]
    gold: int
    is_pair: bool
    facets: tuple[tuple[str, str], ...] = ()


class Outcome(NamedTuple):
    """Nats (C,) and bytes (C,) of the choices of one item."""

    nats: Floats
    sizes: Floats


def is_choice_row(row: dict[str, Any]) -> bool:
    """Whether a row is of one of the two forms."""
    asks = "choices" in row and "gold" in row and ("query" in row or "messages" in row)
    return asks or (any(k in row for k in _GOOD) and any(k in row for k in _BAD))


def read_choices(data: str) -> tuple[list[Choice], int]:
    """The items of a file, and how many rows were none; those are told of.

    Raises DataError when there is no item.
    """
    items: list[Choice] = []
    failed = 0
    for where, row in rows_of(data):
        try:
            if row is None:
                raise ValueError("not an object")
            items.append(_item(row))
        except ValueError as error:
            failed += 1
            console.notice(f"{where}: {error}")
    if not items:
        raise DataError(
            f"{data} holds nothing to judge by",
            hint="rows are {query, choices, gold} or {good, bad}",
        )
    return items, failed


def _item(row: dict[str, Any]) -> Choice:
    """One row. Raises ValueError saying what is off."""
    good, bad = (next((row[k] for k in keys if k in row), None) for keys in (_GOOD, _BAD))
    if good is not None or bad is not None:
        if not isinstance(good, str) or not isinstance(bad, str) or not good or not bad:
            raise ValueError("good and bad are not two texts")
        facets = facets_of({k: v for k, v in row.items() if k not in (*_GOOD, *_BAD)})
        return Choice("", (good, bad), 0, True, facets)
    choices = row.get("choices")
    if not isinstance(choices, list) or len(choices) < 2 or not all(
        isinstance(choice, str) and choice for choice in choices
    ):  # fmt: skip
        raise ValueError("choices is not a list of two texts or more")
    query = row.get("query")
    asked = parse_messages(row["messages"]) if "messages" in row else query
    if not isinstance(asked, str | tuple):
        raise ValueError("query is not a text")
    facets = facets_of({k: v for k, v in row.items() if k not in ("query", "gold")})
    return Choice(asked, tuple(choices), _gold(row.get("gold"), choices), False, facets)


def _gold(gold: Any, choices: list[str]) -> int:
    """Which choice is meant by a number from 0, a list of one, a choice's text or a letter."""
    if isinstance(gold, list) and len(gold) == 1:
        gold = gold[0]
    if isinstance(gold, int) and not isinstance(gold, bool) and 0 <= gold < len(choices):
        return gold
    if isinstance(gold, str):
        if gold in choices:
            return choices.index(gold)
        letter = _LETTER.fullmatch(gold.strip())
        if letter is not None and ord(letter[1].upper()) - 65 < len(choices):
            return ord(letter[1].upper()) - 65
    raise ValueError(f"gold {gold!r} names none of the {len(choices)} choices")


def joined(query: str, choice: str) -> str:
    """A choice behind its query: with a space where words are parted by spaces."""
    if not query or query[-1].isspace() or choice[0].isspace():
        return query + choice
    unspaced = (
        has_unspaced(query[-1]) or has_unspaced(choice[0]) or query[-1] in "，。：；？！、（“"
    )
    return f"{query}{choice}" if unspaced else f"{query} {choice}"


def score_choices(opened: OpenedModel, items: Sequence[Choice], batch_size: int) -> list[Outcome]:
    """-ln p of every choice behind its query, summed over its tokens."""
    sequences: list[tuple[list[int], int]] = []
    for item in items:
        sequences += [choice_ids(opened, item.query, choice) for choice in item.choices]
    losses = iter(continuation_losses(opened.model, sequences, batch_size))
    found = []
    for item in items:
        nats = [math.fsum(next(losses).tolist()) for _ in item.choices]
        sizes = [len(choice.encode("utf-8", "surrogatepass")) for choice in item.choices]
        found.append(Outcome(np.array(nats), np.array(sizes, np.float64)))
    return found


def choice_ids(
    opened: OpenedModel, query: str | tuple[Message, ...], choice: str
) -> tuple[list[int], int]:
    """Ids of a query with one choice, and where the choice begins among them: at the first token
    that is not the query's own. A reply counts with the end of its turn."""
    tokenizer = opened.tokenizer
    if isinstance(query, tuple):
        prompt = reply_prompt(tokenizer, query)
        rendered = render(tokenizer, (*query, Message("assistant", choice)))
        learned = [n for n, weight in enumerate(rendered.weights) if weight and n >= len(prompt)]
        end = learned[-1] + 1 if learned else len(rendered.ids)
        return list(rendered.ids[:end]), min(len(prompt), end)
    before = [*tokenizer.text_prefix] or [tokenizer.end_of_text]
    alone, whole = tokenizer.encode(query), tokenizer.encode(joined(query, choice))
    shared = 0
    while shared < min(len(alone), len(whole) - 1) and alone[shared] == whole[shared]:
        shared += 1
    return [*before, *whole], len(before) + shared


def is_right(nats: Floats, gold: int) -> bool:
    """Whether the right choice is likelier than every other; a tie is not."""
    others = np.delete(nats, gold)
    return bool((nats[gold] < others).all())


def measure_choices(items: Sequence[Choice], outcomes: Sequence[Outcome]) -> list[Measured]:
    """Accuracy by the sum of log-probabilities and by their mean per byte of the choice, for
    questions and for pairs of sentences apart; the signature says what guessing gets."""
    found = []
    for name, is_pair in (("accuracy", False), ("pair_accuracy", True)):
        chosen = [
            (item, o) for item, o in zip(items, outcomes, strict=True) if item.is_pair == is_pair
        ]
        if not chosen:
            continue
        chance = 100 * sum(1 / len(item.choices) for item, _ in chosen) / len(chosen)
        for suffix, by in (("", "sum"), ("_per_byte", "byte")):
            hits = [
                is_right(o.nats / o.sizes if by == "byte" else o.nats, item.gold)
                for item, o in chosen
            ]
            found.append(share(name + suffix, hits, f"log-likelihood|{by}|chance:{chance:.1f}"))
    return found


def as_questions(
    items: Sequence[Choice], outcomes: Sequence[Outcome]
) -> tuple[list[Question], list[Judged]]:
    """Each item as a question whose reference is the right choice and whose reply the likeliest."""
    questions, pairs = [], []
    for item, outcome in zip(items, outcomes, strict=True):
        asked = (
            item.query if isinstance(item.query, tuple) else (Message("user", item.query),)
        ) if item.query else ()  # fmt: skip
        known = np.where(np.isnan(outcome.nats), np.inf, outcome.nats)
        reference = item.choices[item.gold]
        questions.append(Question(asked, reference, facets=item.facets))
        pairs.append(Judged(item.choices[int(known.argmin())], reference))
    return questions, pairs
