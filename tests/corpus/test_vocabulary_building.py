"""The corpus's tokenizer is the one that all training texts at once give, and no other texts."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest
from corpus.corpora import Row, all_kinds, build, fates, numbered

from chatbench.corpus import plan
from chatbench.corpus.document import Document
from chatbench.corpus.shards import Corpus
from chatbench.corpus.sources.blob import ReadOptions
from chatbench.corpus.sources.reading import read_path
from chatbench.corpus.vocabulary import check_tokenizer, open_given
from chatbench.errors import IntegrityError, UsageError
from chatbench.settings import PreprocessSettings
from chatbench.text import bpe_training
from chatbench.text.tokenizer import Tokenizer, train_tokenizer
from chatbench.text.vocabulary import extend_tokenizer
from conftest import sample_chats, sample_texts, write_jsonl


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """A corpus with a tokenizer of 320 entries."""
    folder = tmp_path_factory.mktemp("base")
    rows = [{"text": text} for text in sample_texts(40)] + sample_chats(40)
    return build(folder / "c", write_jsonl(folder / "a.jsonl", rows), vocab_size=320)


def texts_of(path: Path, fate: list[str], split: str) -> list[str]:
    found: list[str] = []
    for record, place in zip(read_path(path, "x", ReadOptions()), fate, strict=True):
        assert isinstance(record, Document)
        found += record.texts() if place == split else []
    return found


def some_rows(rng: random.Random) -> list[Row]:
    return [*all_kinds(rng, 60), *({"text": text} for text in sample_texts(40))]


@pytest.mark.parametrize("held", [1 << 20, 40], ids=["one run", "many runs"])
@pytest.mark.parametrize("bucket_bytes", [1 << 24, 9_000], ids=["one bucket", "many buckets"])
def test_counting_in_buckets_is_training_on_all_texts_at_once(
    tmp_path: Path, rng: random.Random, monkeypatch: pytest.MonkeyPatch,
    bucket_bytes: int, held: int,
) -> None:  # fmt: skip
    path = numbered(tmp_path / "a.jsonl", rows := some_rows(rng))
    monkeypatch.setattr(plan, "BUCKET_BYTES", bucket_bytes)
    with monkeypatch.context() as patch:
        patch.setattr(bpe_training, "MOST_HELD", held)
        corpus = build(tmp_path / "c", path, vocab_size=500)
    train = texts_of(path, fates(corpus, len(rows)), "train")
    expected = train_tokenizer(train, 500)
    assert corpus.tokenizer.to_bytes() == expected.to_bytes()
    assert corpus.tokenizer.vocab_size == 500


def test_the_words_of_held_out_documents_have_no_part(tmp_path: Path, rng: random.Random) -> None:
    path = numbered(tmp_path / "a.jsonl", rows := some_rows(rng))
    corpus = build(tmp_path / "c", path, vocab_size=400)
    fate = fates(corpus, len(rows))
    only_train = [row for row, found in zip(rows, fate, strict=True) if found == "train"]
    again = build(
        tmp_path / "again", write_jsonl(tmp_path / "b.jsonl", only_train), vocab_size=400,
        val_fraction=0, test_fraction=0,
    )  # fmt: skip
    assert again.tokenizer.to_bytes() == corpus.tokenizer.to_bytes()


@pytest.mark.parametrize("bucket_bytes", [1 << 24, 9_000], ids=["one bucket", "many buckets"])
def test_extending_keeps_every_id_and_learns_from_training_alone(
    tmp_path: Path, rng: random.Random, base: Corpus, monkeypatch: pytest.MonkeyPatch,
    bucket_bytes: int,
) -> None:  # fmt: skip
    monkeypatch.setattr(plan, "BUCKET_BYTES", bucket_bytes)
    path = numbered(tmp_path / "a.jsonl", rows := some_rows(rng))
    corpus = build(
        tmp_path / "c", path, tokenizer=str(base.folder), extend_vocab=True, vocab_size=420
    )
    old, new = base.tokenizer, corpus.tokenizer
    assert (old.vocab_size, new.vocab_size) == (320, 420)
    assert new.token_bytes[:320] == old.token_bytes
    assert new.control_ids == old.control_ids
    assert (new.end_of_text, new.turn_start, new.turn_end) == (
        old.end_of_text, old.turn_start, old.turn_end
    )  # fmt: skip
    assert len(set(new.token_bytes) - {b""}) == 417
    train = texts_of(path, fates(corpus, len(rows)), "train")
    assert new.to_bytes() == extend_tokenizer(old, train, 420).to_bytes()


def test_a_tokenizer_that_is_only_used_stays_as_it_is(tmp_path: Path, base: Corpus) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "quite other words 完全不同的话"}] * 3)
    corpus = build(tmp_path / "c", path, tokenizer=str(base.folder), vocab_size=5000)
    assert corpus.tokenizer.to_bytes() == base.tokenizer.to_bytes()


# ---- where a tokenizer is found


def test_a_tokenizer_is_found_in_any_folder_that_has_one(tmp_path: Path, base: Corpus) -> None:
    tokenizer = base.folder / "tokenizer"
    run = tmp_path / "run"
    shutil.copytree(tokenizer, run / "checkpoints" / "step-000002" / "model")
    (run / "checkpoints" / "step-000001" / "model").mkdir(parents=True)
    finished = tmp_path / "finished"
    shutil.copytree(tokenizer, finished / "model")
    places = [base.folder, tokenizer, tokenizer / "tokenizer.json", run, finished,
              finished / "model"]  # fmt: skip
    for place in places:
        found: Tokenizer = open_given(str(place))
        assert found.digest == base.tokenizer.digest
        check_tokenizer(PreprocessSettings(out="x", tokenizer=str(place)))


def test_what_cannot_be_used_is_said_at_once(tmp_path: Path, base: Corpus) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "tokenizer.json").write_text('{"model": ')
    given = {"tokenizer": str(base.folder), "extend_vocab": True}
    for settings, error, what in (
        ({"tokenizer": str(tmp_path / "nowhere")}, UsageError, "nowhere does not exist"),
        ({"tokenizer": str(tmp_path / "empty")}, IntegrityError, "empty has no tokenizer.json"),
        ({"tokenizer": str(tmp_path / "damaged")}, IntegrityError, "is not a readable tokenizer"),
        ({**given, "vocab_size": 300}, UsageError, "has 320 entries already, more than the 300"),
    ):
        with pytest.raises(error, match=what):
            check_tokenizer(PreprocessSettings(out="x", **settings))
    for settings in ({}, {**given, "vocab_size": 320}, {"tokenizer": str(base.folder)}):
        check_tokenizer(PreprocessSettings(out="x", **settings))


def test_a_template_belongs_to_a_tokenizer_and_is_looked_at_before_any_work(
    corpus_folder: Path,
) -> None:
    with pytest.raises(UsageError, match="--tokenizer"):
        check_tokenizer(PreprocessSettings(inputs=["x"], out="y", template="plain"))
    given = {"inputs": ["x"], "out": "y", "tokenizer": str(corpus_folder)}
    with pytest.raises(UsageError, match="neither a file nor the name of a chat template"):
        check_tokenizer(PreprocessSettings(**given, template="llama33"))
    for template in ("plain", "llama3"):
        check_tokenizer(PreprocessSettings(**given, template=template))
    # Its control tokens are added where they are lacking.
    before, after = (open_given(str(corpus_folder), name) for name in (None, "llama3"))
    assert after.vocab_size == before.vocab_size + 4
