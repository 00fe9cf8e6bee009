"""What a corpus keeps of documents without their tags is what they are rendered as without."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from corpus.corpora import all_kinds, build, exchange_row, numbered
from safetensors.numpy import load_file, save_file
from text.foreign import BUILDERS, write_tokenizer
from text.test_tags import COLUMNS, HOSTILE, TEMPLATES

from chatbench.conversation import Message, parse_messages
from chatbench.corpus.cleaning.stages import tagged
from chatbench.corpus.document import Document
from chatbench.corpus.encoding import item_of
from chatbench.corpus.mixture import Mixture, Share
from chatbench.corpus.shards import TokenSplit
from chatbench.corpus.untagging import splices, with_fewer_tags
from chatbench.text.rendering import render_arrays
from chatbench.text.tags import FILE, Known, fewer, read_known
from chatbench.text.tokenizer import Tokenizer, open_tokenizer
from conftest import write_jsonl


def documents(rng: random.Random, count: int) -> list[Document]:
    """Texts and conversations with no, one or several tags."""
    found = []
    for n in range(count):
        columns = rng.sample(COLUMNS, rng.randint(0, 3))
        meta = {column: rng.choice(HOSTILE) for column in columns}
        row = exchange_row(rng.choice(["formal?", "style: x", "茶"]), "好。" * rng.randint(1, 3))
        turns = parse_messages(row["messages"])
        if rng.random() < 0.4:
            turns = (Message("system", rng.choice(["Be kind.", "style", "。"])), *turns)
        text = rng.random() < 0.3
        made = (
            Document("a", text=f"tea {n} 茶", meta=meta)
            if text
            else Document("a", messages=turns, meta=meta)
        )
        found.append(tagged(made, columns, 0.0, b""))
    return found


def check(tokenizer: Tokenizer, some: list[Document]) -> None:
    whole = render_arrays(tokenizer, [item_of(d) for d in some])
    variants = [with_fewer_tags(d, tokenizer) for d in some]
    flat = [v for each in variants for v in each]
    others = render_arrays(tokenizer, [item_of(v) for v in flat])
    made = splices(whole, [len(each) for each in variants], others)
    number = 0
    for place, document in enumerate(some):
        assert len(variants[place]) == len(fewer(document.control))
        ids, weights = (
            a[slice(*whole.starts[place : place + 2])] for a in (whole.ids, whole.weights)
        )
        for _ in variants[place]:
            wanted = slice(*others.starts[number : number + 2])
            begin, end = made.spans[number]
            own = slice(*made.rendered.starts[number : number + 2])
            got = np.concatenate([ids[:begin], made.rendered.ids[own], ids[end:]])
            learned = np.concatenate([weights[:begin], made.rendered.weights[own], weights[end:]])
            assert got.tolist() == others.ids[wanted].tolist()
            assert learned.tolist() == others.weights[wanted].tolist()
            assert not made.rendered.weights[own].any(), "what stands for tags is never learned"
            number += 1


def test_every_document_without_tags(tokenizer: Tokenizer, rng: random.Random) -> None:
    check(tokenizer, documents(rng, 60))


@pytest.mark.parametrize(("kind", "template"), TEMPLATES)
def test_every_document_without_tags_in_other_formats(
    tmp_path: Path, rng: random.Random, kind: str, template: str
) -> None:
    check(open_tokenizer(write_tokenizer(tmp_path, BUILDERS[kind]()), template), documents(rng, 30))


def test_a_corpus_keeps_them_over_any_number_of_shards(tmp_path: Path, rng: random.Random) -> None:
    rows = all_kinds(rng, 80)
    path = numbered(tmp_path / "a.jsonl", rows)
    corpus = build(tmp_path / "c", path, tag_column=["style,topic"], dedup="off")
    split = corpus.split("train")
    assert split.has_tags
    known: Known = {
        column: dict(Counter(str(row[column]) for row in rows if row[column] is not None))
        for column in ("style", "topic")
    }
    assert corpus.tags() == read_known(corpus.folder) == known
    bare = build(tmp_path / "b", path, tokenizer=str(corpus.folder), dedup="off")
    assert not bare.split("train").has_tags
    assert not (bare.folder / FILE).exists()
    assert bare.tags() == {}
    for name in ("train", "val", "test"):
        tagged_split, plain = corpus.split(name), bare.split(name)
        assert len(tagged_split) == len(plain)
        for number in range(len(plain)):
            variants = tagged_split.untagged(number)
            assert plain.untagged(number) == ()
            if not variants:
                assert tagged_split.ids(number).tolist() == plain.ids(number).tolist()
                continue
            ids, weights = variants[0].applied(
                tagged_split.ids(number), tagged_split.weights(number)
            )
            assert ids.tolist() == plain.ids(number).tolist()
            assert weights.tolist() == plain.weights(number).tolist()
            assert len(ids) == len(tagged_split.ids(number)) + variants[0].growth
    mixed = Mixture([corpus], [Share(bare, 0.2)], seed=1)
    assert mixed.tags() == known
    both = mixed.split("train")
    assert both.has_tags
    for number in range(len(split)):
        assert len(both.untagged(number)) == len(split.untagged(number))
    assert all(not both.untagged(n) for n in range(len(split), len(both)))


def test_corpora_from_before_open_as_they_were(tmp_path: Path, rng: random.Random) -> None:
    path = numbered(tmp_path / "a.jsonl", all_kinds(rng, 40))
    corpus = build(tmp_path / "c", path, tag_column=["style"])
    shard = corpus.folder / "train" / "00000.safetensors"
    before = {k: v for k, v in load_file(shard).items() if not k.startswith("untagged_")}
    (tmp_path / "old").mkdir()
    save_file(before, tmp_path / "old" / shard.name)
    old, new = TokenSplit(tmp_path / "old"), corpus.split("train")
    assert not old.has_tags
    assert [old.ids(n).tolist() for n in range(len(old))] == [
        new.ids(n).tolist() for n in range(len(new))
    ]
    assert all(old.untagged(n) == () for n in range(len(old)))


def test_turns_that_the_template_refuses_without_their_tags_keep_them(tmp_path: Path) -> None:
    """A reply may follow a system turn, but begin nothing."""
    (tmp_path / "strict.jinja").write_text(
        "{%- if messages[0].role == 'assistant' -%}{{- raise_exception('who asked?') -}}"
        "{%- endif -%}{%- for m in messages -%}{{- '<s>' + m.content + '</s>' -}}{%- endfor -%}"
    )
    place = write_tokenizer(tmp_path / "mistral", BUILDERS["mistral"]())
    rows = [
        {"messages": [{"role": "assistant", "content": f"茶 {n}"}], "style": "随意"}
        for n in range(30)
    ]
    corpus = build(
        tmp_path / "c", write_jsonl(tmp_path / "a.jsonl", rows), tokenizer=str(place),
        template=str(tmp_path / "strict.jinja"), tag_column=["style"],
    )  # fmt: skip
    split = corpus.split("train")
    assert len(split) > 0
    assert not split.has_tags
