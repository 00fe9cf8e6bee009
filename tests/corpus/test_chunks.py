"""Documents on disk come back in digest order, whatever chunks they were in."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from chatbench.conversation import Message
from chatbench.corpus import chunks
from chatbench.corpus.chunks import (
    ChunkWriter,
    content_sizes,
    digests_of,
    in_order,
    map_signatures,
    read_documents,
    read_entries,
    repeats,
)
from chatbench.corpus.document import Document


def some_documents(rng: random.Random, count: int) -> list[Document]:
    texts = [f"tea 茶 {rng.randrange(count)}" for _ in range(count)]
    return [
        Document(f"f:{n}", text=text)
        if rng.random() < 0.5
        else Document(f"f:{n}", messages=(Message("user", text), Message("assistant", "好", 0)),
                      meta={"n": 10**30, "deep": [1, {"a": None}]}, control="style: x")
        for n, text in enumerate(texts)
    ]  # fmt: skip


def write(
    folder: Path, rng: random.Random, documents: list[Document], width: int = 3
) -> tuple[list[str], np.ndarray]:
    names: list[str] = []
    signatures = np.array(
        [[rng.randrange(1 << 32) for _ in range(width)] for _ in documents], np.uint32
    )
    begin = part = 0
    while begin < len(documents):
        writer = ChunkWriter(folder / f"part-{part:03d}")
        end = min(len(documents), begin + rng.randint(1, 30))
        while begin < end:
            stop = min(end, begin + rng.randint(1, 9))
            some = documents[begin:stop]
            digests = [d.digest() for d in some]
            sources = range(1000 + begin, 1000 + stop)
            writer.add(some, digests, list(sources), range(begin, stop), signatures[begin:stop])
            begin = stop
        writer.flush()
        names += writer.files
        part += 1
    return names, signatures


@pytest.mark.parametrize("chunk_bytes", [1, 300, 1 << 24])
def test_all_documents_come_back_sorted_by_digest_then_by_reading_order(
    tmp_path: Path, rng: random.Random, monkeypatch: pytest.MonkeyPatch, chunk_bytes: int
) -> None:
    monkeypatch.setattr(chunks, "CHUNK_BYTES", chunk_bytes)
    documents = some_documents(rng, 80)
    names, signatures = write(tmp_path, rng, documents)
    unsorted = read_entries(tmp_path, names)
    order = in_order(unsorted)
    entries = unsorted[order]
    expected = sorted(range(80), key=lambda n: (documents[n].digest(), n))
    assert entries["source"].tolist() == [1000 + n for n in expected]
    assert list(read_documents(tmp_path, names, entries)) == [documents[n] for n in expected]
    assert digests_of(entries) == b"".join(documents[n].digest() for n in expected)
    digests = [documents[n].digest() for n in expected]
    assert repeats(entries).tolist() == [n > 0 and digests[n] == digests[n - 1] for n in range(80)]
    stored = np.concatenate([rows[:] for rows in map_signatures(tmp_path, names, 3)])
    np.testing.assert_array_equal(stored[order], signatures[expected])


def test_a_part_without_documents_leaves_no_file(tmp_path: Path) -> None:
    writer = ChunkWriter(tmp_path / "part")
    writer.flush()
    assert writer.files == []
    assert list(tmp_path.iterdir()) == []
    assert len(read_entries(tmp_path, [])) == 0
    assert list(read_documents(tmp_path, [], read_entries(tmp_path, []))) == []


def test_a_chunk_that_is_cut_or_gone_is_noticed(tmp_path: Path, rng: random.Random) -> None:
    names, _ = write(tmp_path, rng, some_documents(rng, 10))
    before = content_sizes(tmp_path, names)
    path = tmp_path / f"{names[0]}{rng.choice(['.docs', '.index.npy', '.signatures'])}"
    path.write_bytes(path.read_bytes()[:-1])
    assert content_sizes(tmp_path, names) != before
    path.unlink()
    assert content_sizes(tmp_path, names) != before
