"""Whether replies obey their tags: a classifier that has learned from the training replies tells
which value a reply bears, and its own accuracy on replies that people wrote stands beside."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from chatbench.conversation import Message
from chatbench.corpus.cleaning.stages import tag_value
from chatbench.corpus.document import Document
from chatbench.corpus.shards import Corpus, TokenSplit
from chatbench.evaluate.findings import Findings
from chatbench.evaluate.tasks import Question, answer, prompt_of
from chatbench.evaluate.training import Training
from chatbench.model.folder import OpenedModel, read_provenance
from chatbench.settings import EvaluateSettings, SamplingSettings
from chatbench.text.classifier import MOST_TEXTS, Classifier, learn
from chatbench.text.measuring import Measured, share
from chatbench.text.tags import Known, control_text, known_in, lines_of, tags_in
from chatbench.text.tokenizer import Tokenizer

# Values with fewer replies in training, and further values of a column, are not judged.
_FEWEST = 8
_MOST_VALUES = 20
# What a long text is like shows in its beginning.
_CHARACTERS = 2000


class Told(NamedTuple):
    """A reply with the tags of its conversation."""

    reply: str
    tags: Mapping[str, str]


def taught_by(training: Training, known: Known) -> list[Told]:
    """The replies of a corpus' training split, or of a file's rows, with their known tags."""
    if training.corpus is not None:
        return list(taught_by_corpus(training.corpus, known))
    return [told for document in training.documents for told in _of_document(document, known)]


def taught_by_corpus(corpus: Corpus, known: Known) -> Iterator[Told]:
    """Decoded from the training split, an even choice where it is large."""
    split, tokenizer = corpus.split("train"), corpus.tokenizer
    tagged = [n for n in range(len(split)) if split.untagged(n)] if split.has_tags else []
    for number in tagged[:: -(-len(tagged) // MOST_TEXTS) or 1]:
        # What gives way to no tags at all is where the tags stand.
        end = split.untagged(number)[0].end
        tags = tags_in(lines_of(tokenizer, split.ids(number)[:end].tolist()), known)
        if tags:
            for reply in _replies_in(split, number, tokenizer):
                yield Told(reply, tags)


def _replies_in(split: TokenSplit, number: int, tokenizer: Tokenizer) -> Iterator[str]:
    """What is learned of a document, stretch by stretch."""
    ids = split.ids(number)
    weighed = np.zeros(len(ids) + 2, np.int8)
    weighed[1:-1] = split.weights(number) > 0
    for begin, end in np.flatnonzero(np.diff(weighed)).reshape(-1, 2).tolist():
        text = tokenizer.decode(ids[begin : min(end, begin + _CHARACTERS)].tolist())
        yield text.strip()[:_CHARACTERS]


def _of_document(document: Document, known: Known) -> Iterator[Told]:
    values = {column: tag_value(document, column) for column in known}
    tags = {column: value for column, value in values.items() if value is not None}
    if document.messages is None:
        replies = [document.text or ""]
    else:
        replies = [m.content for m in document.messages if m.role == "assistant" and m.weight]
    for reply in replies if tags else ():
        yield Told(reply.strip()[:_CHARACTERS], tags)


# ---- an evaluation's questions and their tags


def measured_control(
    settings: EvaluateSettings, opened: OpenedModel | None, training: Training | None,
    found: Findings,
) -> list[Measured]:  # fmt: skip
    """How well replies obey their tags; nothing where the test set has none, or where there is no
    training text from which a judge could learn what tags look like."""
    if settings.control == "off" or training is None or not found.pairs:
        return []
    known = {} if opened is None else known_in(read_provenance(opened.folder))
    if not known and training.corpus is not None:
        known = training.corpus.tags()
    tags = [tags_of(question, known) for question in found.questions]
    if not any(tags):
        return []
    taught = taught_by(training, known)
    said = [Told(pair.reply, each) for pair, each in zip(found.pairs, tags, strict=True)]
    written = [Told(q.reference, each) for q, each in zip(found.questions, tags, strict=True)]
    if settings.control == "auto" or opened is None:
        return control_measured(taught, said, written)
    others = under_every_value(found.questions, known)
    said += [
        Told(reply, tags_of(question, known))
        for question, reply in _answered(settings, opened, others)
    ]
    return control_measured(taught, said, written, "every-value")


def _answered(
    settings: EvaluateSettings, opened: OpenedModel, questions: Sequence[Question]
) -> Iterator[tuple[Question, str]]:
    """The questions that fit into the context, with the model's replies."""
    sampling = SamplingSettings(
        temperature=settings.temperature, max_tokens=settings.max_tokens, seed=settings.seed
    )
    prompts = [prompt_of(opened, question, settings.max_tokens).ids for question in questions]
    fitting = [(q, ids) for q, ids in zip(questions, prompts, strict=True) if ids is not None]
    if fitting:
        replies = answer(opened, [ids for _, ids in fitting], sampling, settings.batch_size)
        for (question, _), reply in zip(fitting, replies, strict=True):
            yield question, reply.text.strip()


def tags_of(question: Question, known: Known) -> dict[str, str]:
    """The known tags in its system turn."""
    first = question.messages[0] if question.messages else None
    return tags_in(first.content, known) if first is not None and first.role == "system" else {}


def under_every_value(questions: Sequence[Question], known: Known) -> list[Question]:
    """Each question with a tag once more under each other value of it: what a question is about
    then says nothing about the value. Facts and references stay as they are."""
    found = []
    for question in questions:
        tags = tags_of(question, known)
        for column, own in tags.items():
            others = [value for value in known[column] if value != own]
            found += [_retagged(question, column, own, value) for value in others]
    return found


def _retagged(question: Question, column: str, own: str, value: str) -> Question:
    lines = question.messages[0].content.split("\n")
    place = max(n for n, line in enumerate(lines) if line.strip().endswith(f"{column}: {own}"))
    lines[place] = control_text({column: value})
    system = Message("system", "\n".join(lines))
    return question._replace(messages=(system, *question.messages[1:]))


# ---- the figures


def control_measured(taught: Sequence[Told], said: Sequence[Told], written: Sequence[Told],
                     kind: str = "own-value") -> list[Measured]:  # fmt: skip
    """For each column the share of replies `said` under a tag that bear its value, in all and by
    value, and the judge's accuracy on replies that people have `written` under tags.

    Both are in percent. Columns of one value, and values that training hardly has, are left out.
    `kind`: under which values the questions were asked, for the signature.
    """
    found: list[Measured] = []
    for column in dict.fromkeys(name for each in taught for name in each.tags):
        judge, texts = _judge(column, taught)
        if judge is None:
            continue
        signature = f"judge:char-ngrams|logistic|taught:{texts}|values:{len(judge.labels)}"
        for name, replies, more in (
            ("control", said, f"|asked:{kind}"), ("control_judge", written, "|held-out-replies"),
        ):  # fmt: skip
            mine = [each for each in replies if each.tags.get(column) in judge.labels]
            if mine:
                found += _shares(f"{name}.{column}", column, mine, judge, signature + more)
    return found


def _judge(column: str, taught: Sequence[Told]) -> tuple[Classifier | None, int]:
    counts = Counter(each.tags[column] for each in taught if column in each.tags)
    labels = {v for v, n in counts.most_common(_MOST_VALUES) if n >= _FEWEST}
    mine = [each for each in taught if each.tags.get(column) in labels]
    if len(labels) < 2:
        return None, 0
    judge = learn([each.reply for each in mine], [each.tags[column] for each in mine])
    return judge, min(len(mine), MOST_TEXTS)


def _shares(
    name: str, column: str, replies: Sequence[Told], judge: Classifier, signature: str
) -> list[Measured]:
    """In all, and by value."""
    told = judge.told([each.reply for each in replies])
    # An empty reply bears nothing, whatever is likeliest beforehand.
    hits = [
        float(bool(each.reply.strip()) and label == each.tags[column])
        for each, label in zip(replies, told, strict=True)
    ]
    found = [share(name, hits, signature)]
    for value in judge.labels:
        chosen = [h for h, each in zip(hits, replies, strict=True) if each.tags[column] == value]
        if chosen:
            found.append(share(f"{name}={value}", chosen, signature))
    return found
