"""What simple means reach on the same items: a figure is worth what it is above these.

ngram: a 5-gram model of the training text, for likelihood. bm25: the training reply whose question
is nearest. copy: the question itself. eliza: rules that understand nothing.
"""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing

import numpy as np

from chatbench.errors import EnvironmentFault, UsageError
from chatbench.evaluate.eliza import eliza
from chatbench.evaluate.tasks import Question, Sums, sums_of
from chatbench.evaluate.training import Exchange, Training
from chatbench.model.folder import OpenedModel
from chatbench.text.ngram import LARGEST_SAMPLE, ORDER, NGram, sample
from chatbench.text.template import Rendered
from chatbench.text.words import words

SIMPLE = ("ngram", "bm25", "copy", "eliza")
_MOST_EXCHANGES = 1_000_000
_MOST_TERMS = 200


def simple_replies(
    name: str, questions: Sequence[Question], training: Training | None
) -> list[str] | None:
    """The replies of a simple baseline; None for one that makes none. Raises UsageError when it
    needs training text and there is none."""
    asked = [question_text(question) for question in questions]
    if name == "copy":
        return asked
    if name == "eliza":
        return [eliza(text) for text in asked]
    if name == "bm25":
        return nearest_replies(asked, _needed(name, training).exchanges())
    return None


def question_text(question: Question) -> str:
    """What a person said last."""
    return next((m.content for m in reversed(question.messages) if m.role == "user"), "")


def _needed(name: str, training: Training | None) -> Training:
    if training is None:
        raise UsageError(
            f"--baseline {name} needs the training text, which is not where the run says",
            hint="name it: --train-data CORPUS or FILE",
        )
    return training


def nearest_replies(asked: Sequence[str], exchanges: Iterable[Exchange]) -> list[str]:
    """For each text the reply to the nearest question by BM25 (Robertson et al. 1994), the first
    of equals; empty where no word is shared. Raises EnvironmentFault where SQLite lacks FTS5."""
    replies: list[str] = []
    with closing(_index()) as index:
        rows = _rows(exchanges, replies)
        index.executemany("INSERT INTO questions(rowid, words) VALUES (?, ?)", rows)
        return [_nearest(index, text, replies) for text in asked]


def _rows(exchanges: Iterable[Exchange], replies: list[str]) -> Iterator[tuple[int, str]]:
    for number, exchange in enumerate(exchanges):
        if number == _MOST_EXCHANGES:
            return
        replies.append(exchange.reply)
        yield number, " ".join(_terms(exchange.question))


def _index() -> sqlite3.Connection:
    index = sqlite3.connect(":memory:")
    try:
        index.execute("CREATE VIRTUAL TABLE questions USING fts5(words, tokenize='ascii')")
    except sqlite3.OperationalError as error:
        raise EnvironmentFault(
            f"this Python's SQLite cannot search texts: {error}",
            hint="leave --baseline bm25 out, or use a Python whose SQLite has FTS5",
        ) from error
    return index


def _terms(text: str) -> list[str]:
    """Words as FTS5 can take them: letters and digits alone, whatever the word is made of."""
    return [word.encode("utf-8", "surrogatepass").hex() for word in words(text)]


def _nearest(index: sqlite3.Connection, text: str, replies: list[str]) -> str:
    terms = list(dict.fromkeys(_terms(text)))[:_MOST_TERMS]
    if not terms:
        return ""
    found = index.execute(
        "SELECT rowid FROM questions WHERE questions MATCH ? ORDER BY bm25(questions), rowid "
        "LIMIT 1",
        (" OR ".join(f'"{term}"' for term in terms),),
    ).fetchone()
    return "" if found is None else replies[found[0]]


def ngram_sums(
    opened: OpenedModel, texts: Sequence[Rendered], chats: Sequence[Rendered],
    training: Training | None,
) -> tuple[list[Sums], str]:  # fmt: skip
    """Likelihood sums of each document under an n-gram model of the training text, and what to
    call it. The first token of a conversation is never learned."""
    source = _needed("ngram", training).ids(opened.tokenizer)
    stream = sample(np.array(ids, np.int64) for ids in source)
    model = NGram(stream, len(opened.tokenizer.token_bytes), ORDER)
    prefix = [*opened.tokenizer.text_prefix]
    found: list[Sums] = []
    for documents, before, chat in ((texts, prefix, False), (chats, [], True)):
        pieces = [np.array([*before, *d.ids], np.int64) for d in documents]
        chances = model.probabilities(pieces)
        at = 0
        for document, piece in zip(documents, pieces, strict=True):
            nats = -np.log(chances[at + len(before) : at + len(piece)])
            at += len(piece)
            found.append(sums_of(opened, document, nats, chat))
    read = min(len(stream), LARGEST_SAMPLE)
    assert not any(math.isnan(sums.nats) for sums in found)
    return found, f"{ORDER}-gram|train-tokens:{read}"
