"""What an evaluation leaves behind, and what a later one takes over: replies are not made twice."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from chatbench import console
from chatbench.conversation import as_json
from chatbench.errors import IntegrityError, UsageError
from chatbench.evaluate.tasks import Question, Sums
from chatbench.evaluate.testset import Replies, read_replies, rows_of
from chatbench.model.folder import OpenedModel, find_base
from chatbench.settings import EvaluateSettings
from chatbench.storage import hash_file, read_manifest, verify, write_file
from chatbench.text.metrics import Judged, fact_hit, known_facts

KIND = "evaluation"
SAMPLES, DOCUMENTS = "samples.jsonl", "documents.jsonl"
_DIGESTED = ("*.safetensors", "config.json", "adapter_config.json")


def model_digest(folder: Path) -> str:
    """SHA-256 over weights and configuration of a model folder, and of an adapter's base."""
    base = find_base(folder)
    whole = hashlib.sha256()
    for place in (folder, *([base] if base is not None else [])):
        manifest = read_manifest(place)
        for path in sorted(p for pattern in _DIGESTED for p in place.glob(pattern)):
            known = manifest.files.get(path.name) if manifest is not None else None
            digest = known.sha256 if known is not None else hash_file(path)
            whole.update(f"{path.name} {digest}\n".encode())
    return whole.hexdigest()


def generation_digest(opened: OpenedModel, settings: EvaluateSettings) -> str:
    """SHA-256 over all that decides a reply but the question and its place."""
    parts = [
        model_digest(opened.folder), opened.tokenizer.digest,
        opened.tokenizer.template_source or "", settings.template or "", settings.quantize,
        settings.max_tokens, settings.temperature,
        settings.seed if settings.temperature else 0,
    ]  # fmt: skip
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()


class Reply(NamedTuple):
    """What a model said; `cut`: it would have gone on."""

    text: str
    cut: bool = False


class Known(NamedTuple):
    """Replies by question; where they were drawn at random, by place and question."""

    replies: dict[bytes, Reply]
    drawn: bool

    def get(self, number: int, question: Question) -> Reply | None:
        return self.replies.get(_key(number if self.drawn else 0, as_json(question.messages)))


def _key(number: int, messages: list[dict[str, Any]]) -> bytes:
    return msgspec.json.encode([number, messages])


def known_replies(settings: EvaluateSettings, digest: str) -> Known:
    """Replies that --reuse names, or those of the same model and sampling in --out and beside it.

    Raises UsageError when what --reuse names was made by something else, or is not there.
    """
    known = Known({}, settings.temperature > 0)
    if settings.reuse is not None:
        place = Path(settings.reuse)
        _require_same(place, digest)
        _take(known, samples_of(place))
    elif settings.out is not None:
        out = Path(settings.out)
        for place in [out, *sorted(p for p in out.absolute().parent.glob("*") if p.is_dir())]:
            if _digest_noted(place) == digest:
                try:
                    verify(place, KIND)
                except IntegrityError:
                    continue
                _take(known, place / SAMPLES)
    return known


def _take(known: Known, path: Path) -> None:
    for number, (_, row) in enumerate(rows_of(str(path))):
        if row is not None and isinstance(row.get("reply"), str):
            messages = row.get("messages")
            if isinstance(messages, list):
                key = _key(number if known.drawn else 0, messages)
                known.replies.setdefault(key, Reply(row["reply"], row.get("cut") is True))


def samples_of(place: Path) -> Path:
    """The file of replies that a path means. Raises UsageError when there is none."""
    path = place / SAMPLES if place.is_dir() else place
    if not path.is_file():
        raise UsageError(
            f"{place} holds no replies", hint="name an evaluation's folder or its samples.jsonl"
        )
    return path


def _digest_noted(place: Path) -> str | None:
    try:
        manifest = read_manifest(place)
    except (IntegrityError, OSError):
        return None
    if manifest is None or manifest.kind != KIND:
        return None
    noted = manifest.info.get("generation")
    return noted if isinstance(noted, str) else None


def _require_same(place: Path, digest: str) -> None:
    noted = _digest_noted(place if place.is_dir() else place.parent)
    if noted is None:
        console.notice(f"{place} does not say what made its replies; they count as this model's")
    elif noted != digest:
        raise UsageError(
            f"the replies in {place} were made by another model or with other sampling",
            hint="leave --reuse out, or judge them as they are: -d SAMPLES.jsonl without -m",
        )


def is_evaluation(place: Path) -> bool:
    """Whether this is a folder that evaluate wrote, or a file of replies."""
    if place.is_file():
        return place.suffix == ".jsonl"
    try:
        manifest = read_manifest(place)
    except IntegrityError:
        return False
    return manifest is not None and manifest.kind == KIND


def read_evaluation(place: Path) -> tuple[Replies, list[Sums]]:
    """Replies with their questions, and the likelihood sums of each document. Raises as `verify`,
    UsageError."""
    sums: list[Sums] = []
    path = samples_of(place)
    if place.is_dir():
        verify(place, KIND)
        if (place / DOCUMENTS).is_file():
            lines = (place / DOCUMENTS).read_bytes().splitlines()
            sums = [msgspec.json.decode(line, type=Sums) for line in lines]
    replies = read_replies(str(path)) if path.stat().st_size else Replies([], [], 0)
    return replies, sums


def sample_rows(
    questions: Sequence[Question],
    pairs: Sequence[Judged],
    right: Sequence[bool] | None = None,
    cut: Sequence[bool] = (),
) -> Iterator[dict[str, Any]]:
    """What samples.jsonl says of each reply; `right` where the task itself has right answers."""
    known = known_facts(pairs)
    for number, (question, pair) in enumerate(zip(questions, pairs, strict=True)):
        row: dict[str, Any] = {
            "messages": as_json(question.messages),
            "reply": pair.reply,
            "reference": pair.reference,
        }
        if cut and cut[number]:
            row["cut"] = True
        if question.turn > 1:
            row["turn"] = question.turn
        if question.facets:
            row["facets"] = dict(question.facets)
        if pair.facts:
            row |= {"facts": pair.facts, "right": fact_hit(pair, known)}
        elif right is not None:
            row["right"] = right[number]
        yield row


def write_lines(path: Path, rows: Iterator[Any]) -> None:
    """JSON Lines."""
    write_file(path, b"".join(msgspec.json.encode(row) + b"\n" for row in rows))


def tell_reused(reused: int, asked: int) -> None:
    """Say where replies came from."""
    if reused:
        console.say(f"{reused} of {asked} replies were there already and are used again")
