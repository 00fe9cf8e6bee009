"""facts.json adds up: with the ledger, the splits and shards, and with the documents themselves."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from corpus.corpora import all_kinds, build, facts_of, fates, numbered, rows_of

from chatbench.corpus import plan
from chatbench.corpus.cleaning.fluency import NGramModel
from chatbench.corpus.cleaning.language import languages
from chatbench.corpus.document import Document
from chatbench.corpus.reports.describing import recorded
from chatbench.corpus.reports.summary import show_corpus
from chatbench.corpus.sources.blob import ReadOptions
from chatbench.corpus.sources.reading import read_path
from chatbench.settings import PreprocessSettings
from conftest import sample_chats, sample_texts

SPLITS = ("train", "val", "test")


def documents_of(path: Path) -> list[Document]:
    found = list(read_path(path, path.name, ReadOptions()))
    return [record for record in found if isinstance(record, Document)]


@pytest.fixture(params=[1 << 24, 15_000], ids=["one bucket", "many buckets"])
def corpus_and_kept(
    request: pytest.FixtureRequest, tmp_path: Path, rng: random.Random,
    monkeypatch: pytest.MonkeyPatch,
) -> Any:  # fmt: skip
    """A random corpus with losses of several kinds, and the documents that are in it by split."""
    monkeypatch.setattr(plan, "BUCKET_BYTES", request.param)
    rows: list[dict[str, Any]] = all_kinds(rng, rng.randint(60, 90)) + sample_chats(20)
    rows += [{"text": text, "style": "短"} for text in sample_texts(30)]
    rows += [{"text": f"Всё хорошо, чай готов, номер {n}."} for n in range(rng.randrange(5))]
    rows += rng.choices(rows, k=rng.randrange(20))
    rows += [{"text": " "}] * rng.randrange(3)
    rng.shuffle(rows)
    path = numbered(tmp_path / "a.jsonl", rows)
    with open(path, "a", encoding="utf-8") as handle:
        handle.write('{"broken\n' * rng.randrange(3))
    corpus = build(
        tmp_path / "c", path, tag_column=["style,topic"], vocab_size=400,
        dedup=rng.choice(["off", "exact", "near"]),
        contamination=rng.choice(["off", "report", "drop"]),
        min_fluency=rng.choice([None, 3.0]), pii=rng.choice(["off", "mask"]),
    )  # fmt: skip
    fate = fates(corpus, len(rows))
    kept = {
        split: [d for d, found in zip(documents_of(path), fate, strict=True) if found == split]
        for split in SPLITS
    }
    return corpus, kept


def test_facts_are_counts_of_the_kept_documents(corpus_and_kept: Any) -> None:
    corpus, kept = corpus_and_kept
    facts = facts_of(corpus)
    everything = [document for split in SPLITS for document in kept[split]]
    chats = [d.messages for d in everything if d.messages is not None]
    assert facts.ledger.kept == len(everything)
    assert facts.languages == Counter(languages([d.joined()[:1000] for d in everything]))
    assert facts.shapes == Counter(document.shape for document in everything)
    assert facts.turns == Counter(map(len, chats))
    assert facts.roles == Counter(message.role for turns in chats for message in turns)
    assert facts.characters == sum(len(document.joined()) for document in everything)
    for column in ("style", "topic"):
        values = [d.meta.get(column) for d in everything]
        assert facts.tags[column] == Counter(value for value in values if value is not None)
    for name in ("languages", "shapes", "roles"):
        counts = list(getattr(facts, name).values())
        assert counts == sorted(counts, reverse=True), f"{name}: the largest first"


def test_facts_add_up_with_the_ledger_the_splits_and_the_shards(corpus_and_kept: Any) -> None:
    corpus, kept = corpus_and_kept
    facts, info = facts_of(corpus), corpus.manifest.info
    ledger = facts.ledger
    assert ledger.read == ledger.kept + sum(ledger.dropped.values()) + sum(ledger.failed.values())
    assert {"read": ledger.read, "kept": ledger.kept, "dropped": ledger.dropped,
            "failed": ledger.failed} == info["ledger"]  # fmt: skip
    assert ledger.read == sum(source.records for source in facts.sources)
    assert set(ledger.examples) == {*ledger.dropped, *ledger.failed}
    for reason, count in {**ledger.dropped, **ledger.failed}.items():
        assert len(ledger.examples[reason]) == min(count, 5)
    assert sum(facts.languages.values()) == sum(facts.shapes.values()) == ledger.kept
    lengths = []
    for name in SPLITS:
        split, row = corpus.split(name), facts.splits[name]
        assert (row.documents, row.tokens) == (len(split), split.tokens)
        assert row.documents == len(kept[name])
        assert row.supervised == sum(int(split.weights(n).sum()) for n in range(len(split)))
        lengths += split.lengths.tolist()
    check_lengths(facts.lengths, lengths)
    assert sum(n for _, n in facts.turns.items()) == ledger.kept - facts.shapes["text"]
    assert facts.duplicates.exact == ledger.dropped.get("duplicate", 0)
    assert facts.duplicates.near == ledger.dropped.get("near-duplicate", 0)
    assert facts.fingerprint == info["fingerprint"] == corpus.fingerprint
    train = [corpus.split("train").ids(n) for n in range(len(corpus.split("train")))]
    plain = set(range(corpus.tokenizer.vocab_size)) - corpus.tokenizer.control_ids
    seen = {int(number) for ids in train for number in ids} & plain
    assert facts.tokenizer.vocabulary_use == pytest.approx(len(seen) / len(plain))
    assert facts.tokenizer.digest == corpus.tokenizer.digest
    assert sum(row.texts for row in facts.tokenizer.fertility) == len(kept["train"])


def check_lengths(found: Any, lengths: list[int]) -> None:
    assert sum(found.counts) == len(lengths)
    for (low, high), count in zip(pairwise(found.edges), found.counts, strict=True):
        last = high == found.edges[-1]
        assert count == sum(low <= n < high or (last and n == high) for n in lengths)
    assert found.max == max(lengths)
    assert found.median == float(np.median(lengths))
    assert found.longer_than == {n: sum(x > n for x in lengths) for n in (512, 1024, 2048)}


def test_info_prints_the_facts_and_the_report_holds_the_numbers(
    corpus_and_kept: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus, _ = corpus_and_kept
    capsys.readouterr()
    show_corpus(corpus.folder, as_json=True)
    out = capsys.readouterr().out
    assert out.encode() == (corpus.folder / "facts.json").read_bytes()
    facts = facts_of(corpus)
    page = (corpus.folder / "report.html").read_text(encoding="utf-8")
    shown = re.sub(r"<(style|script).*?</\1>|<[^>]*>", " ", page, flags=re.DOTALL)
    # Groups of three digits are parted by some kind of space.
    figures = set(re.findall(r"\d+", re.sub(r"(?<=\d)[,\u2009\u202f\u00a0](?=\d{3})", "", shown)))
    wanted = [facts.ledger.read, facts.ledger.kept, *facts.ledger.dropped.values()]
    for row in facts.splits.values():
        wanted += [row.documents, row.tokens, row.supervised]
    wanted += [*facts.languages.values(), facts.tokenizer.vocab_size]
    assert set(map(str, wanted)) <= figures
    assert facts.fingerprint in page
    assert all(reason in page for reason in facts.ledger.dropped)
    show_corpus(corpus.folder)
    lines = capsys.readouterr().out
    for number in (facts.ledger.kept, facts.splits["train"].tokens):
        assert f"{number:,}" in lines


def test_tags_that_say_nothing_are_not_counted(tmp_path: Path) -> None:
    values: list[Any] = ["a\nb", " a b ", "", None, [1], {"x": 1}, 3, " \n"]
    rows = [{"text": f"tea {n}", "style": value} for n, value in enumerate(values)]
    facts = facts_of(build(tmp_path / "c", numbered(tmp_path / "a.jsonl", rows),
                           tag_column=["style"]))  # fmt: skip
    assert facts.tags["style"] == {"a b": 2, "3": 1}


def test_the_baseline_is_that_of_the_training_split(tmp_path: Path, rng: random.Random) -> None:
    rows = all_kinds(rng, 60)
    path = numbered(tmp_path / "a.jsonl", rows)
    corpus = build(tmp_path / "c", path, profile=True, vocab_size=400)
    facts, fate = facts_of(corpus), fates(corpus, len(rows))
    documents = sorted(zip(documents_of(path), fate, strict=True), key=lambda x: x[0].digest())
    texts = {s: [d.joined() for d, found in documents if found == s] for s in SPLITS}
    model = NGramModel.train(texts["train"])
    for split in ("val", "test"):
        size = sum(len(text.encode()) for text in texts[split])
        assert facts.baseline[split] == pytest.approx(model.bits(texts[split]).sum() / size)
    assert set(facts.collocations) <= {"latin", "zh", "ja"}


def test_settings_are_recorded_but_for_where_and_how(tmp_path: Path) -> None:
    rows = [{"text": text} for text in sample_texts(20)]
    path = numbered(tmp_path / "a.jsonl", rows)
    corpus = build(tmp_path / "c", path, workers=1)
    found = corpus.manifest.info["settings"]
    given = PreprocessSettings(
        inputs=[str(path)], out="elsewhere", vocab_size=300, val_fraction=0.2, test_fraction=0.2,
        profile=False, workers=7, overwrite=True,
    )  # fmt: skip
    assert found == json.loads(json.dumps(recorded(given)))
    assert not {"out", "workers", "overwrite", "strict", "show"} & set(found)
    assert facts_of(corpus).settings == found
    odd = recorded(PreprocessSettings(out="x", inputs=["caf\udce9.txt"]))
    json.dumps(odd).encode()
    assert odd["inputs"] == ["caf\\xe9.txt"]


def test_sources_have_their_verdicts_and_records(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    rows = [{"text": text} for text in sample_texts(12)]
    numbered(tmp_path / "in" / "a.jsonl", rows)
    (tmp_path / "in" / "b.txt").write_text("一段\n\nSome prose.\n", encoding="utf-8")
    (tmp_path / "in" / "c.bin").write_bytes(b"\x00\x01" * 40)
    corpus = build(tmp_path / "c", tmp_path / "in")
    facts = facts_of(corpus)
    names = [Path(source.path).name for source in facts.sources]
    assert names == ["a.jsonl", "b.txt", "c.bin"]
    assert [source.records for source in facts.sources] == [12, 1, 1]
    assert [source.verdict for source in facts.sources[:2]] == ["JSON Lines · utf-8",
                                                                "text · utf-8"]  # fmt: skip
    assert facts.files == 3
    assert rows_of(corpus.folder / "sources.jsonl")[2]["failed"] == {
        "token ids without a tokenizer": 1
    }
