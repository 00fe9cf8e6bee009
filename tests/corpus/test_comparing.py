"""Documents compared with each other: fates, splits, fluency, and what a stranger changes."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from itertools import combinations, islice
from pathlib import Path
from typing import Any

import pytest
from corpus.corpora import (
    EN,
    ZH,
    Row,
    build,
    exchange_row,
    facts_of,
    fates,
    numbered,
    prose,
    rows_of,
    words,
    written,
)

from chatbench.corpus import chunks
from chatbench.corpus.cleaning.fluency import LEAST_BYTES
from chatbench.corpus.cleaning.grams import spell
from chatbench.corpus.document import Document
from chatbench.corpus.sources import reading
from chatbench.corpus.sources.blob import ReadOptions
from chatbench.corpus.sources.reading import read_path
from chatbench.corpus.split import split_of
from chatbench.errors import DataError
from conftest import SHARED_DATA, sample_texts, write_jsonl

SPLITS = ("train", "val", "test")


def grams(row: Row) -> set[tuple[str, ...]]:
    found = spell(joined(row))
    if len(found) < 5:
        return {tuple(found)} if found else set()
    return {tuple(found[n : n + 5]) for n in range(len(found) - 4)}


def joined(row: Row) -> str:
    return row["text"] if "text" in row else "\n".join(m["content"] for m in row["messages"])


def jaccard(first: set[Any], second: set[Any]) -> float:
    return len(first & second) / len(first | second) if first | second else 0.0


def similar_pairs(rows: list[Row], least: float) -> list[tuple[int, int]]:
    """All pairs with an exact similarity of at least `least`; only those that share a gram are
    looked at."""
    sets = [grams(row) for row in rows]
    holders: dict[Any, list[int]] = defaultdict(list)
    for number, found in enumerate(sets):
        for gram in sorted(found):
            holders[gram].append(number)
    met = {pair for members in holders.values() for pair in combinations(members, 2)}
    return sorted(pair for pair in met if jaccard(sets[pair[0]], sets[pair[1]]) >= least)


def row_of(chosen: list[str], chinese: bool, chat: bool) -> Row:
    half = len(chosen) // 2
    if chat:
        return exchange_row(written(chosen[:half], chinese), written(chosen[half:], chinese))
    return {"text": written(chosen, chinese)}


def families(rng: random.Random, count: int, length: int = 120) -> list[Row]:
    """Texts and dialogues in both languages, each with up to three versions that differ from the
    one before by a word or two."""
    rows = []
    for number in range(count):
        chinese, chat = number % 2 == 1, number % 4 > 1
        chosen = words(rng, chinese, rng.randint(length, 2 * length))
        rows.append(row_of(chosen, chinese, chat))
        for _ in range(rng.randrange(4)):
            for _ in range(rng.randint(1, 2)):
                chosen[rng.randrange(len(chosen))] = rng.choice(ZH if chinese else EN)
            rows.append(row_of(chosen, chinese, chat))
    rng.shuffle(rows)
    return rows


# ---- clusters and splits


@pytest.mark.parametrize("dedup", ["off", "exact", "near"])
def test_no_near_duplicates_lie_in_different_splits(
    tmp_path: Path, rng: random.Random, monkeypatch: pytest.MonkeyPatch, dedup: str
) -> None:
    # Several chunks, so that documents lie on disk in another order than that of their digests.
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 20_000)
    monkeypatch.setattr(reading, "_BATCH_DOCUMENTS", 8)
    rows = families(rng, 80)
    rows += rng.choices(rows, k=20)
    # An estimate of 112 values errs by up to 0.035; between 0.7 and 0.85 lie more than four times
    # as much.
    corpus = build(
        tmp_path / "c", numbered(tmp_path / "a.jsonl", rows), dedup=dedup, near_threshold=0.7,
    )  # fmt: skip
    fate = fates(corpus, len(rows))
    close = similar_pairs(rows, 0.85)
    assert len(close) > 60
    assert {"text" in rows[one] for one, _ in close} == {True, False}
    both = [(fate[one], fate[other]) for one, other in close
            if fate[one] in SPLITS and fate[other] in SPLITS]  # fmt: skip
    assert all(one == other for one, other in both)
    copies = Counter(joined(row) for row in rows)
    expected = sum(n - 1 for n in copies.values())
    dropped = corpus.manifest.info["ledger"]["dropped"]
    assert dropped.get("duplicate", 0) == (0 if dedup == "off" else expected)
    if dedup == "near":
        assert not both
        assert dropped["near-duplicate"] > 20
    else:
        assert "near-duplicate" not in dropped
        assert len(both) > 30
    assert {"train", "val", "test"} <= set(fate)


def test_with_the_settings_as_they_come_versions_stay_together(
    tmp_path: Path, rng: random.Random
) -> None:
    rows = families(rng, 60, length=250)
    corpus = build(tmp_path / "c", numbered(tmp_path / "a.jsonl", rows))
    fate = fates(corpus, len(rows))
    close = similar_pairs(rows, 0.95)
    assert len(close) > 20
    assert all(
        fate[one] == fate[other] or "duplicate" in (fate[one], fate[other]) for one, other in close
    )
    groups = facts_of(corpus).duplicates
    clustered = {n for pair in close for n in pair if fate[n] != "duplicate"}
    assert sum(size * n for size, n in groups.cluster_sizes.items()) >= len(clustered) - 2
    assert groups.largest[0].size == max(groups.cluster_sizes)


@pytest.mark.parametrize("dedup", ["off", "exact", "near"])
def test_documents_looked_at_alone_fall_by_their_own_digest(
    tmp_path: Path, rng: random.Random, dedup: str
) -> None:
    rows = families(rng, 80)
    corpus = build(
        tmp_path / "c", numbered(tmp_path / "a.jsonl", rows), dedup=dedup, split_by="document"
    )
    fate = fates(corpus, len(rows))
    digests = [
        Document("", text=row["text"]).digest() if "text" in row
        else Document("", messages=_messages(row)).digest()
        for row in rows
    ]  # fmt: skip
    for found, digest in zip(fate, digests, strict=True):
        assert found == split_of(digest, 0.2, 0.2) or found not in SPLITS
    crossing = [(a, b) for a, b in similar_pairs(rows, 0.9) if fate[a] != fate[b]]
    assert crossing, "nothing keeps near-duplicates together"


def _messages(row: Row) -> Any:
    from chatbench.conversation import parse_messages

    return parse_messages(row["messages"])


@pytest.mark.parametrize("split_by", ["cluster", "document"])
def test_near_duplicates_are_dropped_for_the_first_of_them_by_digest(
    tmp_path: Path, rng: random.Random, split_by: str
) -> None:
    rows = families(rng, 60)
    corpus = build(
        tmp_path / "c", numbered(tmp_path / "a.jsonl", rows), dedup="near", split_by=split_by
    )
    fate = fates(corpus, len(rows))
    kept = [n for n, found in enumerate(fate) if found in SPLITS]
    sets = [grams(row) for row in rows]
    left_out = [n for n, found in enumerate(fate) if found == "near-duplicate"]
    assert len(left_out) > 20
    for number in left_out:
        assert max(jaccard(sets[number], sets[other]) for other in kept) > 0.65
    lonely = set(range(len(rows))) - {n for pair in similar_pairs(rows, 0.6) for n in pair}
    assert all(fate[number] in SPLITS for number in lonely)


@pytest.mark.parametrize("dedup", ["exact", "near"])
def test_documents_stay_where_they_are_when_others_come(
    tmp_path: Path, rng: random.Random, dedup: str
) -> None:
    rows = families(rng, 70)
    more = [{"text": text} for text in sample_texts(60)] + families(rng, 30)
    few = fates(build(tmp_path / "1", numbered(tmp_path / "a.jsonl", rows), dedup=dedup), len(rows))
    path = numbered(tmp_path / "b.jsonl", [*rows, *more])
    many = fates(build(tmp_path / "2", path, dedup=dedup), len(rows) + len(more))
    # The newcomers hold other words, so no family has grown.
    assert many[: len(rows)] == few


@pytest.mark.parametrize("name", ["sms-spam", "cold-zh"])
def test_real_messages_that_are_nearly_the_same_share_a_split(tmp_path: Path, name: str) -> None:
    place = SHARED_DATA / name
    if not place.is_dir():
        pytest.skip("the real data sets are not here")
    found = [
        record
        for path in sorted(place.iterdir())
        if path.name.lower() not in ("source.md", "license")
        for record in islice(read_path(path, path.name, ReadOptions()), 1500)
    ]
    rows = [{"text": d.joined()} for d in found if isinstance(d, Document) and not d.is_empty()]
    assert len(rows) >= 1000
    corpus = build(tmp_path / "c", numbered(tmp_path / "a.jsonl", rows), repair=False)
    fate = fates(corpus, len(rows))
    close = [(fate[a], fate[b]) for a, b in similar_pairs(rows, 0.95)]
    assert close
    assert all(one == other or "duplicate" in (one, other) for one, other in close)


# ---- fluency


def gibberish(rng: random.Random) -> str:
    letters = "qwxzkjvbpfgh的7茶#龘齉爩鱻麤龗灪吁"
    return "".join(rng.choice(letters) for _ in range(rng.randint(80, 200)))


@pytest.mark.parametrize("dedup", ["exact", "near"])
def test_planted_gibberish_is_the_least_fluent(
    tmp_path: Path, rng: random.Random, dedup: str
) -> None:
    good = [f"{text} {text[::-1][:3]}{n}" for n, text in enumerate(sample_texts(190))]
    rows = [{"text": text} for text in good] + [{"text": gibberish(rng)} for _ in range(10)]
    rows += [{"text": f"xq{n}z"} for n in range(10)]
    assert all(len(row["text"]) < LEAST_BYTES for row in rows[200:])
    order = rng.sample(range(len(rows)), len(rows))
    path = numbered(tmp_path / "a.jsonl", [rows[n] for n in order])
    # Near-duplicates that are left out are not judged.
    percent = 5.0 if dedup == "exact" else 10.0
    corpus = build(tmp_path / "c", path, min_fluency=percent, dedup=dedup)
    fate = fates(corpus, len(rows))
    marked = {order[place] for place, found in enumerate(fate) if found == "not fluent"}
    if dedup == "exact":
        assert marked == set(range(190, 200))
    else:
        judged = 200 - corpus.manifest.info["ledger"]["dropped"].get("near-duplicate", 0)
        assert len(marked) == int(judged * percent / 100)
        assert marked <= set(range(190, 200)) or set(range(190, 200)) <= marked


def test_fluency_of_nothing_but_short_or_empty_documents(tmp_path: Path) -> None:
    path = numbered(tmp_path / "a.jsonl", [{"text": f"茶{n}"} for n in range(12)])
    assert fates(build(tmp_path / "c", path, min_fluency=50.0), 12).count("not fluent") == 0
    path = numbered(tmp_path / "b.jsonl", [{"text": " "}] * 3)
    with pytest.raises(DataError, match="nothing to keep"):
        build(tmp_path / "d", path, min_fluency=50.0)


def test_documents_that_are_left_out_move_no_others(tmp_path: Path, rng: random.Random) -> None:
    rows = [{"text": prose(rng, n % 2 == 1)} for n in range(60)]
    path = numbered(tmp_path / "a.jsonl", rows)
    whole = fates(build(tmp_path / "1", path), 60)
    pruned = fates(build(tmp_path / "2", path, min_fluency=20.0), 60)
    assert pruned.count("not fluent") == 12
    for before, after in zip(whole, pruned, strict=True):
        assert after in (before, "not fluent")


def test_equal_copies_keep_the_first_that_was_read(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "茶 tea"}] * 5)
    dropped = rows_of(build(tmp_path / "c", path).folder / "dropped.jsonl")
    assert [row["source"] for row in dropped] == [f"{path}:{n}" for n in range(2, 6)]


@pytest.mark.parametrize("dedup", ["off", "exact", "near"])
def test_which_copy_is_kept_does_not_depend_on_the_order_of_files(
    tmp_path: Path, rng: random.Random, dedup: str
) -> None:
    rows = []
    for number, text in enumerate(sample_texts(30)):
        # One digest, but other ids, tags and notes.
        rows += [
            {"text": space + text, "style": style, "n": n}
            for n, (space, style) in enumerate([("", "formal"), ("\n ", "随意"), ("", "brief")])
        ]
        rows += [{**exchange_row(f"{number}?", "好"), "style": style} for style in ("a", "b")]
    made = []
    for name in ("one", "other"):
        rng.shuffle(rows)
        folder = tmp_path / name
        folder.mkdir()
        for place in range(0, len(rows), 40):
            write_jsonl(folder / f"{place}.jsonl", rows[place : place + 40])
        made.append(
            build(tmp_path / f"{name}-c", folder, dedup=dedup, tag_column=["style"], repair=False)
        )
    one, other = made
    assert one.fingerprint == other.fingerprint
    for split in SPLITS:
        shard = f"{split}/00000.safetensors"
        assert (one.folder / shard).read_bytes() == (other.folder / shard).read_bytes()
    for name in ("val", "test", "dropped"):
        said = [rows_of(corpus.folder / f"{name}.jsonl") for corpus in made]
        for row in said[0] + said[1]:
            del row["source"]
        assert said[0] == said[1]
