"""What a model is judged by: texts and conversations, or replies that were made elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from chatbench import console
from chatbench.conversation import Message, parse_messages
from chatbench.corpus.cleaning.stages import tagged
from chatbench.corpus.document import Document, Failure
from chatbench.corpus.formats import parse_map
from chatbench.corpus.formats.rows import has_shape
from chatbench.corpus.shards import open_corpus
from chatbench.corpus.sources.blob import ReadOptions
from chatbench.corpus.sources.inputs import find_inputs
from chatbench.corpus.sources.reading import read_path
from chatbench.errors import DataError, IntegrityError, UsageError
from chatbench.evaluate.tasks import Question, facets_of, questions_of
from chatbench.model.folder import OpenedModel, read_provenance
from chatbench.settings import EvaluateSettings
from chatbench.text.tags import known_in
from chatbench.text.template import Rendered, render, render_texts

WHOLE = ReadOptions(passage_chars=1 << 62)
_PROMPTS = ("prompt", "question", "query", "instruction")


class TestSet(NamedTuple):
    """Texts and conversations to judge by, rendered and raw."""

    texts: list[Rendered]
    chats: list[Rendered]
    questions: list[Question]
    failed: int


def open_test_set(settings: EvaluateSettings, opened: OpenedModel) -> TestSet:
    """A corpus folder's split, or the records of a file. Raises DataError when it is empty."""
    data = Path(settings.data)
    if is_corpus(data):
        test = _from_corpus(data, settings, opened)
    else:
        test = _from_files(settings, opened)
    if not any(any(document.weights) for document in (*test.texts, *test.chats)):
        raise DataError(
            f"{data} holds nothing to judge by", hint="give texts, or dialogues with replies"
        )
    return test


def is_corpus(data: Path) -> bool:
    """Whether this is a folder that preprocess made."""
    return (data / "manifest.json").is_file()


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
    found = _conversations(rows) if rows.is_file() else iter(())
    questions = list(questions_of(found, every_turn=_asks_every_turn(settings)))
    return TestSet(texts, chats, questions, 0)


def _conversations(rows: Path) -> Iterator[tuple[Any, dict[str, Any]]]:
    for line in rows.read_bytes().splitlines():
        row = msgspec.json.decode(line)
        if "messages" in row:
            yield parse_messages(row["messages"]), row


def _asks_every_turn(settings: EvaluateSettings) -> bool:
    return "turn" in settings.by


def read_documents(
    name: str, mapping: Mapping[str, str] | None = None
) -> tuple[list[Document], int]:
    """The readable records of a file or folder, and how many were not; those are told of.
    `mapping`: part of a row → column, where that is not plain.

    Raises UsageError when there is no such file.
    """
    options = msgspec.structs.replace(WHOLE, mapping=dict(mapping or {}))
    documents: list[Document] = []
    failed = 0
    inputs, unreadable = find_inputs([name], None)
    for failure in unreadable:
        failed += 1
        console.notice(f"{failure.source}: {failure.reason}: {failure.detail}")
    for found in inputs:
        for record in read_path(found.path, found.name, options):
            if isinstance(record, Failure):
                failed += 1
                console.notice(f"{record.source}: {record.reason}: {record.detail}")
            else:
                documents.append(record)
    return documents, failed


def _prompt_and_reference(row: dict[str, Any]) -> dict[str, str]:
    """The columns of rows that hold a question and what a right reply would be."""
    prompt = next((k for k in _PROMPTS if isinstance(row.get(k), str)), None)
    if prompt is None or not isinstance(row.get("reference"), str) or has_shape(tuple(row)):
        return {}
    return {"user": prompt, "assistant": "reference"}


def _from_files(settings: EvaluateSettings, opened: OpenedModel) -> TestSet:
    mapping = parse_map(settings.map) or _prompt_and_reference(first_row(settings.data))
    documents, failed = read_documents(settings.data, mapping)
    columns = list(known_in(read_provenance(opened.folder)))
    documents = [tagged(document, columns, 0.0, b"") for document in documents]
    texts = [d.text for d in documents if d.messages is None and d.text]
    chats = [d for d in documents if d.messages is not None]
    taken, rendered = _taken_by_template(opened, chats)
    asked = ((d.turns() or (), d.meta) for d in taken)
    return TestSet(
        list(render_texts(opened.tokenizer, texts)),
        rendered,
        list(questions_of(asked, every_turn=_asks_every_turn(settings))),
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
            rendered.append(render(opened.tokenizer, document.turns() or ()))
        except UsageError as error:
            refused.append(f"{document.source}: {error}")
        else:
            taken.append(document)
    if refused:
        console.notice(
            f"{len(refused)} of {len(chats)} conversations were left out, first {refused[0]}"
        )
    return taken, rendered


def first_row(data: str) -> dict[str, Any]:
    """The first row of a JSON Lines file; empty when it is none."""
    path = Path(data)
    if not path.is_file() or path.suffix.lower() not in (".jsonl", ".ndjson"):
        return {}
    with open(path, "rb") as handle:
        for line in handle:
            if line.strip():
                try:
                    row = msgspec.json.decode(line.lstrip(b"\xef\xbb\xbf"))
                except (msgspec.DecodeError, UnicodeDecodeError):
                    return {}
                return row if isinstance(row, dict) else {}
    return {}


def rows_of(data: str) -> Iterator[tuple[str, dict[str, Any] | None]]:
    """Every row of a JSON Lines file with where it stands; None for what is no object."""
    with open(data, "rb") as handle:
        for number, line in enumerate(handle, 1):
            if not line.strip():
                continue
            try:
                row = msgspec.json.decode(line.lstrip(b"\xef\xbb\xbf") if number == 1 else line)
            except (msgspec.DecodeError, UnicodeDecodeError):
                row = None
            yield f"{Path(data).name}:{number}", row if isinstance(row, dict) else None


class Replies(NamedTuple):
    """Replies that something else has made, with their questions where the rows have them."""

    questions: list[Question]
    replies: list[str]
    failed: int


def holds_replies(row: dict[str, Any]) -> bool:
    """Whether a row is a reply beside its reference."""
    return isinstance(row.get("reply"), str) and isinstance(row.get("reference"), str)


def read_replies(data: str) -> Replies:
    """Rows of reply and reference; beside them may stand messages or prompt, facts and tags.

    Raises DataError when no row is of that form.
    """
    questions: list[Question] = []
    replies: list[str] = []
    failed = 0
    for where, row in rows_of(data):
        if row is None or not holds_replies(row):
            failed += 1
            console.notice(f"{where}: no object with reply and reference")
            continue
        facts = row.get("facts") or ()
        listed = tuple(map(str, facts)) if isinstance(facts, list) else ()
        messages = asked_in(row)
        turn = row.get("turn")
        noted = row.get("facets")
        meta = {k: v for k, v in row.items() if k not in ("reply", "reference", "turn", *_PROMPTS)}
        meta |= noted if isinstance(noted, dict) else {}
        questions.append(
            Question(
                messages, row["reference"], listed,
                turn if isinstance(turn, int) else 1, facets_of(meta),
            )
        )  # fmt: skip
        replies.append(row["reply"])
    if not replies:
        raise DataError(
            f"{data} holds no row with reply and reference",
            hint='a row is {"reply": "...", "reference": "..."}; name a model with -m to judge it',
        )
    return Replies(questions, replies, failed)


def asked_in(row: dict[str, Any]) -> tuple[Message, ...]:
    """What a row says was asked; empty when it does not."""
    if "messages" in row:
        try:
            return parse_messages(row["messages"])
        except ValueError:
            return ()
    prompt = next((row[k] for k in _PROMPTS if isinstance(row.get(k), str)), None)
    return () if prompt is None else (Message("user", prompt),)
