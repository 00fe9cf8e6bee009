"""Shards give back the ids and weights that were put in, over any number of files."""

from __future__ import annotations

import random
from pathlib import Path

import msgspec
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from chatbench.corpus.shards import ShardWriter, TokenSplit, map_arrays, open_corpus
from chatbench.errors import ExitCode, IntegrityError, UsageError
from chatbench.storage import MANIFEST
from chatbench.text.rendering import RenderedArrays

Rows = list[tuple[list[int], list[int]]]


def some_rows(rng: random.Random, top: int, weighted: bool) -> Rows:
    rows = []
    for _ in range(rng.randint(1, 40)):
        length = rng.randint(1, 30)
        ids = [rng.randrange(top) for _ in range(length)]
        rows.append((ids, [rng.randint(0, 1) if weighted else 1 for _ in ids]))
    return rows


def rendered(rows: Rows) -> RenderedArrays:
    starts = np.cumsum([0, *(len(ids) for ids, _ in rows)])
    flat = [np.array([n for row in rows for n in row[side]], int) for side in (0, 1)]
    return RenderedArrays(flat[0].astype(np.uint32), starts, flat[1].astype(np.uint8))


def write(path: Path, rows: Rows, vocab_size: int, step: int = 7) -> ShardWriter:
    writer = ShardWriter(path, vocab_size)
    for begin in range(0, len(rows), step):
        writer.add(rendered(rows[begin : begin + step]))
    writer.close()
    return writer


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("vocab_size", [300, 1 << 16, (1 << 16) + 1])
@pytest.mark.parametrize("files", [1, 2, 3])
def test_what_was_put_in_comes_out(
    tmp_path: Path, rng: random.Random, weighted: bool, vocab_size: int, files: int
) -> None:
    folder = tmp_path / "train"
    rows: Rows = []
    for number in range(files):
        some = some_rows(rng, vocab_size, weighted)
        some[0] = ([vocab_size - 1, 0], [1, 1])
        writer = write(folder / f"{number:05d}.safetensors", some, vocab_size)
        assert writer.documents == len(some)
        assert writer.tokens == sum(len(ids) for ids, _ in some)
        assert writer.supervised == sum(sum(weights) for _, weights in some)
        rows += some
    split = TokenSplit(folder)
    assert len(split) == len(rows)
    assert split.tokens == sum(len(ids) for ids, _ in rows)
    assert split.lengths.tolist() == [len(ids) for ids, _ in rows]
    for number in rng.sample(range(len(rows)), len(rows)):
        assert split.ids(number).tolist() == rows[number][0]
        assert split.weights(number).tolist() == rows[number][1]
        assert split.rejected(number) is None
    expected = np.uint16 if vocab_size <= 1 << 16 else np.uint32
    assert split.ids(0).dtype == expected


def test_the_other_ending_of_a_preference_lies_beside_it(
    tmp_path: Path, rng: random.Random
) -> None:
    wanted = some_rows(rng, 500, weighted=True)
    other = [row if rng.random() < 0.4 else ([], []) for row in some_rows(rng, 500, True)]
    other = (other + [([], [])] * len(wanted))[: len(wanted)]
    other[-1] = ([7, 8], [0, 1])
    writer = ShardWriter(tmp_path / "train" / "00000.safetensors", 500)
    begin = 0
    while begin < len(wanted):
        end = begin + rng.randint(1, 5)
        pairs = rendered(other[begin:end]) if any(ids for ids, _ in other[begin:end]) else None
        writer.add(rendered(wanted[begin:end]), pairs)
        begin = end
    writer.close()
    split = TokenSplit(tmp_path / "train")
    for number, (ids, weights) in enumerate(other):
        found = split.rejected(number)
        assert split.ids(number).tolist() == wanted[number][0]
        assert found is None if not ids else found is not None
        if found is not None:
            assert (found[0].tolist(), found[1].tolist()) == (ids, weights)


def test_mapped_arrays_equal_safetensors_own_reading(tmp_path: Path, rng: random.Random) -> None:
    path = tmp_path / "00000.safetensors"
    write(path, some_rows(rng, 999, weighted=True), 999)
    ours, theirs = map_arrays(path), load_file(path)
    assert set(ours) == set(theirs)
    for name, array in theirs.items():
        assert ours[name].dtype == array.dtype
        np.testing.assert_array_equal(ours[name], array)


def test_weights_that_are_all_one_take_no_room(tmp_path: Path) -> None:
    write(tmp_path / "plain", [([1, 2], [1, 1])], 300)
    write(tmp_path / "chat", [([1, 2], [0, 1])], 300)
    assert set(load_file(tmp_path / "plain")) == {"ids", "starts"}
    assert set(load_file(tmp_path / "chat")) == {"ids", "starts", "weights"}


def test_an_empty_split_has_no_file_and_opens_as_empty(tmp_path: Path) -> None:
    write(tmp_path / "val" / "00000.safetensors", [], 300)
    assert not (tmp_path / "val").exists()
    split = TokenSplit(tmp_path / "val")
    assert (len(split), split.tokens) == (0, 0)


@pytest.mark.parametrize(
    "data",
    [b"", b"\x02", b"\xff" * 64, b"\x02" + bytes(7) + b"[]", b"\x09" + bytes(7) + b'{"a": 5}\n'],
)
def test_a_file_that_is_no_shard_is_named(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "00000.safetensors"
    path.write_bytes(data)
    with pytest.raises(IntegrityError, match=r"00000\.safetensors is not a readable shard"):
        map_arrays(path)


def test_an_array_type_that_is_not_ours_is_named(tmp_path: Path) -> None:
    save_file({"ids": np.zeros(3, np.float64)}, tmp_path / "x.safetensors")
    with pytest.raises(IntegrityError, match="not a readable shard"):
        map_arrays(tmp_path / "x.safetensors")


# ---- the corpus folder


def copied(corpus_folder: Path, tmp_path: Path) -> Path:
    for path in corpus_folder.rglob("*"):
        if path.is_file():
            target = tmp_path / "copy" / path.relative_to(corpus_folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    return tmp_path / "copy"


def test_a_corpus_opens_with_its_tokenizer_and_splits(corpus_folder: Path) -> None:
    corpus = open_corpus(corpus_folder)
    assert corpus.tokenizer.digest == corpus.manifest.info["tokenizer"]["digest"]
    for name, counts in corpus.manifest.info["splits"].items():
        split = corpus.split(name)
        assert (len(split), split.tokens) == (counts["documents"], counts["tokens"])


def test_what_is_no_corpus_gets_the_command_that_makes_one(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for name, what in (("absent", "does not exist"), ("file", "is a file, not a corpus folder")):
        with pytest.raises(UsageError, match=f"{name} {what}; make one: chatbench preprocess"):
            open_corpus(tmp_path / name)
    with pytest.raises(IntegrityError, match="not a finished corpus"):
        open_corpus(tmp_path)


def test_damage_to_any_file_of_a_corpus_is_found(
    corpus_folder: Path, tmp_path: Path, rng: random.Random
) -> None:
    folder = copied(corpus_folder, tmp_path)
    files = [p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST]
    for path in files:
        whole = path.read_bytes()
        if not whole:
            continue
        damaged = bytearray(whole)
        damaged[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(IntegrityError) as caught:
            open_corpus(folder)
        assert str(path) in str(caught.value)
        assert caught.value.exit_code == ExitCode.INTEGRITY
        path.write_bytes(whole)
    open_corpus(folder)


def test_a_manifest_without_fingerprint_is_refused(corpus_folder: Path, tmp_path: Path) -> None:
    folder = copied(corpus_folder, tmp_path)
    manifest = msgspec.json.decode((folder / MANIFEST).read_bytes())
    del manifest["info"]["fingerprint"]
    (folder / MANIFEST).write_bytes(msgspec.json.encode(manifest))
    with pytest.raises(IntegrityError, match="no fingerprint"):
        open_corpus(folder)
