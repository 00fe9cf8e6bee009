"""evaluate: a model folder and a test set → scores with signatures, and a folder keeping them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from msgspec.structs import replace

from chatbench import console
from chatbench.conversation import as_json, parse_messages
from chatbench.corpus.document import Document, Failure
from chatbench.corpus.shards import open_corpus
from chatbench.corpus.sources.blob import ReadOptions
from chatbench.corpus.sources.inputs import find_inputs
from chatbench.corpus.sources.reading import read_path
from chatbench.errors import DataError, IntegrityError, UsageError
from chatbench.evaluate.tasks import (
    Question,
    answer,
    fits,
    judged,
    likelihood,
    likelihood_scores,
    questions_of,
)
from chatbench.model.device import pick_device
from chatbench.model.folder import OpenedModel, open_model
from chatbench.model.quantize import quantize_model
from chatbench.settings import EvaluateSettings, SamplingSettings
from chatbench.storage import new_folder, pretty_json, require_own, write_file, write_json
from chatbench.text.metrics import Judged, Score, fact_hit, known_facts, score_all
from chatbench.text.template import Rendered, render, render_texts

KIND = "evaluation"
_WHOLE = ReadOptions(passage_chars=1 << 62)


class TestSet(NamedTuple):
    """Texts and conversations to judge by, rendered and raw."""

    texts: list[Rendered]
    chats: list[Rendered]
    questions: list[Question]
    failed: int


class Evaluation(msgspec.Struct, frozen=True):
    """What evaluate found out. `failed`: rows that could not be read, and conversations that the
    chat template does not take; `unanswered`: questions that do not fit into the model's context
    and are in no score of replies."""

    model: str
    data: str
    scores: list[Score]
    failed: int = 0
    unanswered: int = 0


def evaluate(settings: EvaluateSettings) -> Evaluation:
    """Score `settings.model` on `settings.data`; writes `settings.out` when one is given."""
    out = None if settings.out is None else Path(settings.out)
    if out is not None:
        require_own(out, KIND, overwrite=settings.overwrite)
    opened = open_model(settings.model, pick_device(settings.device), template=settings.template)
    test = _open_test_set(settings, opened)
    scores = _likelihood_scores(settings, opened, test)
    if settings.quantize != "none":
        scores = _quantized_scores(settings, opened, test, scores)
    asked = test.questions[: settings.max_examples]
    questions = [question for question in asked if fits(opened, question)]
    unanswered = len(asked) - len(questions)
    if unanswered:
        console.notice(
            f"{unanswered} of {len(asked)} questions do not fit into the model's context of "
            f"{opened.model.config.context} tokens and were left out"
        )
    sampling = SamplingSettings(
        temperature=settings.temperature, max_tokens=settings.max_tokens, seed=settings.seed
    )
    replies = answer(opened, questions, sampling, settings.batch_size) if questions else []
    pairs = judged(questions, replies)
    scores += score_all(pairs)
    result = Evaluation(str(opened.folder), settings.data, scores, test.failed, unanswered)
    if out is not None:
        _write(out, settings, result, questions, pairs)
    return result


def _likelihood_scores(
    settings: EvaluateSettings, opened: OpenedModel, test: TestSet
) -> list[Score]:
    sums = likelihood(opened, test.texts, chats=False, batch_size=settings.batch_size)
    sums += likelihood(opened, test.chats, chats=True, batch_size=settings.batch_size)
    return likelihood_scores(sums, opened.model.config.context)


def _quantized_scores(
    settings: EvaluateSettings, opened: OpenedModel, test: TestSet, exact: list[Score]
) -> list[Score]:
    """Quantise the model in place; its likelihood beside the `exact` one of the same data.

    perplexity_full is that of the weights as stored, perplexity_change the ratio to it.
    """
    done = quantize_model(opened.model, settings.quantize)
    console.notice(
        f"the weights take {done.bytes_after / 1e6:.1f} MB in {settings.quantize}, "
        f"{done.bytes_before / 1e6:.1f} MB before"
    )
    kind = f"weights:{settings.quantize}"
    scores = [
        replace(score, signature=f"{score.signature}|{kind}")
        for score in _likelihood_scores(settings, opened, test)
    ]
    full, ours = ({s.name: s for s in each}["perplexity"] for each in (exact, scores))
    signature = f"quantised/full|{ours.signature}"
    return [
        *scores,
        replace(full, name="perplexity_full"),
        Score("perplexity_change", ours.value / full.value, ours.n, signature),
    ]


def _open_test_set(settings: EvaluateSettings, opened: OpenedModel) -> TestSet:
    """A corpus folder's split, or the records of a file. Raises DataError when it is empty."""
    data = Path(settings.data)
    if (data / "manifest.json").is_file():
        test = _from_corpus(data, settings, opened)
    else:
        test = _from_files(settings, opened)
    if not any(any(document.weights) for document in (*test.texts, *test.chats)):
        raise DataError(
            f"{data} holds nothing to judge by", hint="give texts, or dialogues with replies"
        )
    return test


def _from_corpus(data: Path, settings: EvaluateSettings, opened: OpenedModel) -> TestSet:
    """Token shards for the likelihood, the documents beside them for the replies."""
    corpus = open_corpus(data)
    if corpus.tokenizer.digest != opened.tokenizer.digest:
        raise IntegrityError(
            f"{data} was made with another tokenizer than {opened.folder}",
            hint="judge by the text itself, or preprocess it with --tokenizer",
        )
    split = corpus.split(settings.split)
    texts: list[Rendered] = []
    chats: list[Rendered] = []
    for number in range(len(split)):
        rendered = Rendered(split.ids(number).tolist(), split.weights(number).tolist())
        # Nothing of a conversation is learned before its first reply.
        (texts if any(rendered.weights[:1]) else chats).append(rendered)
    if chats and corpus.tokenizer.template.source != opened.tokenizer.template.source:
        raise UsageError(
            f"the conversations of {data} are written in another chat template than the model's",
            hint="judge by the .jsonl itself, or give --template as preprocess got it",
        )
    rows = data / f"{settings.split}.jsonl"
    questions = list(questions_of(_conversations(rows))) if rows.is_file() else []
    return TestSet(texts, chats, questions, 0)


def _conversations(rows: Path) -> Iterator[tuple[Any, dict[str, Any]]]:
    for line in rows.read_bytes().splitlines():
        row = msgspec.json.decode(line)
        if "messages" in row:
            yield parse_messages(row["messages"]), row


def _from_files(settings: EvaluateSettings, opened: OpenedModel) -> TestSet:
    texts: list[str] = []
    chats: list[Document] = []
    failed = 0
    inputs, unreadable = find_inputs([settings.data], None)
    for failure in unreadable:
        failed += 1
        console.notice(f"{failure.source}: {failure.reason}: {failure.detail}")
    for found in inputs:
        for record in read_path(found.path, found.name, _WHOLE):
            if isinstance(record, Failure):
                failed += 1
                console.notice(f"{record.source}: {record.reason}: {record.detail}")
            elif record.messages is not None:
                chats.append(record)
            elif record.text:
                texts.append(record.text)
    taken, rendered = _taken_by_template(opened, chats)
    return TestSet(
        list(render_texts(opened.tokenizer, texts)),
        rendered,
        list(questions_of((d.messages or (), d.meta) for d in taken)),
        failed + len(chats) - len(taken),
    )


def _taken_by_template(
    opened: OpenedModel, chats: list[Document]
) -> tuple[list[Document], list[Rendered]]:
    """The conversations that the chat template takes, as they are and as ids; the others are told
    of. Raises UsageError when the model has no template."""
    if chats:
        opened.tokenizer.template  # noqa: B018  without one, no conversation is to blame
    taken: list[Document] = []
    rendered: list[Rendered] = []
    refused: list[str] = []
    for document in chats:
        try:
            rendered.append(render(opened.tokenizer, document.messages or ()))
        except UsageError as error:
            refused.append(f"{document.source}: {error}")
        else:
            taken.append(document)
    if refused:
        console.notice(
            f"{len(refused)} of {len(chats)} conversations were left out, first {refused[0]}"
        )
    return taken, rendered


def _write(
    out: Path,
    settings: EvaluateSettings,
    result: Evaluation,
    questions: list[Question],
    pairs: list[Judged],
) -> None:
    known = known_facts(pairs)
    rows = []
    for question, pair in zip(questions, pairs, strict=True):
        row: dict[str, Any] = {
            "messages": as_json(question.messages),
            "reply": pair.reply,
            "reference": pair.reference,
        }
        if pair.facts:
            row |= {"facts": pair.facts, "right": fact_hit(pair, known)}
        rows.append(msgspec.json.encode(row))
    with new_folder(out, KIND, replace=settings.overwrite) as folder:
        write_json(folder / "results.json", result)
        write_json(folder / "settings.json", settings)
        write_file(folder / "samples.jsonl", b"\n".join([*rows, b""]))


def show(result: Evaluation, *, as_json: bool) -> None:
    """The scores on stdout: aligned text, or JSON."""
    if as_json:
        console.emit(pretty_json(result).decode(), end="")
        return
    width = max((len(score.name) for score in result.scores), default=0)
    for score in result.scores:
        console.emit(f"{score.name:<{width}}  {score.value:10.4f}  n={score.n}  {score.signature}")
