"""A mixture holds its whole corpora and drawn documents of the others, and looks like a corpus."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chatbench.corpus.build import preprocess
from chatbench.corpus.mixture import MixedSplit, Mixture, Part, Share, drawn
from chatbench.corpus.shards import Corpus, TokenSplit, open_corpus
from chatbench.settings import PreprocessSettings
from conftest import write_jsonl


def documents(split: TokenSplit) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    return [
        (tuple(split.ids(n).tolist()), tuple(split.weights(n).tolist())) for n in range(len(split))
    ]


@pytest.fixture(scope="module")
def other(corpus_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Conversations in the tokens of `corpus_folder`."""
    folder = tmp_path_factory.mktemp("other")
    rows = [
        {"messages": [{"role": "user", "content": f"Where is shelf {n}? 第{n}架在哪？"},
                      {"role": "assistant", "content": f"Near shelf {n + 1}. 在{n + 1}架旁。"}]}
        for n in range(80)
    ]  # fmt: skip
    data = write_jsonl(folder / "shelves.jsonl", rows)
    settings = PreprocessSettings(
        inputs=[str(data)], out=str(folder / "corpus"), tokenizer=str(corpus_folder / "tokenizer"),
        val_fraction=0.1, test_fraction=0.1,
    )  # fmt: skip
    return open_corpus(preprocess(settings))


def test_documents_come_as_they_are_in_their_corpora(corpus_folder: Path, other: Corpus) -> None:
    known = open_corpus(corpus_folder)
    mixture = Mixture([known, other], [], seed=1)
    for name in ("train", "val", "test"):
        whole = documents(known.split(name)) + documents(other.split(name))
        mixed = mixture.split(name)
        assert documents(mixed) == whole
        assert len(mixed) == len(whole)
        assert mixed.tokens == sum(len(ids) for ids, _ in whole)
        assert mixed.lengths.tolist() == [len(ids) for ids, _ in whole]
        assert mixed.largest() == max(token for ids, _ in whole for token in ids)
        assert not any(mixed.is_replayed(n) for n in range(len(mixed)))
        if name != "train":
            rows = [*known.rows(name), *other.rows(name)]
            assert list(mixture.rows(name)) == rows
            assert len(rows) == len(mixed)


def test_a_share_is_of_the_training_tokens_alone(
    corpus_folder: Path, other: Corpus, rng: random.Random
) -> None:
    known, share = open_corpus(corpus_folder), rng.uniform(0.05, 0.4)
    mixture = Mixture([known], [Share(other, share)], rng.randrange(1000))
    train, new = mixture.split("train"), known.split("train")
    assert documents(train)[: len(new)] == documents(new)
    replayed = [n for n in range(len(train)) if train.is_replayed(n)]
    assert replayed == list(range(len(new), len(train)))
    tokens = sum(int(train.lengths[n]) for n in replayed)
    # To half a document, by which any choice of whole ones may miss.
    wanted = share * new.tokens / (1 - share)
    enough = other.split("train").tokens >= wanted
    longest = int(other.split("train").lengths.max())
    assert not enough or abs(tokens - wanted) <= longest / 2
    assert enough or tokens == other.split("train").tokens
    assert documents(mixture.split("val")) == documents(known.split("val"))
    ((folder, asked, got),) = mixture.shares()
    assert (folder, asked) == (other.folder, share)
    assert got == pytest.approx(tokens / train.tokens, rel=1e-12)


def test_a_mixture_is_a_function_of_its_corpora_shares_and_seed(
    corpus_folder: Path, other: Corpus
) -> None:
    known = open_corpus(corpus_folder)

    def mixed(share: float, seed: int) -> tuple[str, list[Any]]:
        mixture = Mixture([known], [Share(other, share)], seed)
        return mixture.fingerprint, documents(mixture.split("train"))

    assert mixed(0.2, 3) == mixed(0.2, 3)
    seen = [mixed(0.2, 3), mixed(0.2, 4), mixed(0.3, 3)]
    assert len({fingerprint for fingerprint, _ in seen}) == 3
    assert seen[0][1] != seen[1][1]
    assert Mixture([other], [Share(known, 0.2)], 3).fingerprint != seen[0][0]


def test_what_is_drawn_is_drawn_once_and_as_near_as_can_be(
    corpus_folder: Path, rng: random.Random
) -> None:
    split = open_corpus(corpus_folder).split("train")
    for _ in range(20):
        wanted, seed = rng.uniform(0, 1.5 * split.tokens), [rng.randrange(100), 1]
        numbers = drawn(split, wanted, seed)
        assert numbers.tolist() == sorted(set(numbers.tolist()))
        got = int(split.lengths[numbers].sum())
        if wanted >= split.tokens:
            assert len(numbers) == len(split)
        else:
            assert abs(got - wanted) <= split.lengths.max() / 2
        assert drawn(split, wanted, seed).tolist() == numbers.tolist()


def test_rejected_endings_come_along(corpus_folder: Path, tmp_path: Path) -> None:
    chosen = [{"role": "user", "content": "茶?"}, {"role": "assistant", "content": "好 yes"}]
    rejected = [chosen[0], {"role": "assistant", "content": "no 不"}]
    data = write_jsonl(tmp_path / "pairs.jsonl", [{"chosen": chosen, "rejected": rejected}])
    pairs = open_corpus(
        preprocess(
            PreprocessSettings(
                inputs=[str(data)], out=str(tmp_path / "pairs"), val_fraction=0, test_fraction=0,
                tokenizer=str(corpus_folder / "tokenizer"),
            )
        )
    )  # fmt: skip
    known = open_corpus(corpus_folder)
    mixed = Mixture([known, pairs], [], 0).split("train")
    alone = pairs.split("train").rejected(0)
    assert alone is not None
    last = mixed.rejected(len(mixed) - 1)
    assert last is not None
    assert [side.tolist() for side in last] == [side.tolist() for side in alone]
    assert mixed.rejected(0) is None


def test_any_choice_of_documents_is_a_split(corpus_folder: Path, rng: random.Random) -> None:
    split = open_corpus(corpus_folder).split("train")
    chosen = [np.array(sorted(rng.sample(range(len(split)), 5))) for _ in range(2)]
    parts = [Part(split, chosen[0]), Part(split, chosen[1], replayed=True)]
    mixed = MixedSplit(parts)
    wanted = [documents(split)[n] for numbers in chosen for n in numbers.tolist()]
    assert Counter(documents(mixed)) == Counter(wanted)
    assert [mixed.is_replayed(n) for n in range(10)] == [False] * 5 + [True] * 5
