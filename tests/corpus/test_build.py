"""The corpus is a function of the set of documents, and every record is accounted for."""

from __future__ import annotations

import gzip
import json
import os
import random
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from corpus.corpora import build, rows_of

from chatbench.conversation import as_json, parse_messages
from chatbench.corpus.ledger import Account
from chatbench.corpus.shards import Corpus
from chatbench.errors import DataError, ExitCode, UsageError
from chatbench.storage import MANIFEST
from chatbench.text.template import render, render_texts
from conftest import sample_chats, sample_texts, write_jsonl

LINES = [("{", "bad JSON"), ("5", "not an object"), ('{"x": 1}', "bad row"), ("", ""),
         ("row", "row")]  # fmt: skip
Cli = Callable[..., subprocess.CompletedProcess[str]]


def sample_rows(count: int) -> list[dict[str, Any]]:
    return [{"text": text} for text in sample_texts(count)] + sample_chats(count)


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


def substance(folder: Path) -> dict[str, bytes]:
    """Everything but the notes on where documents came from."""
    return {
        name: data
        for name, data in files_of(folder).items()
        if name.endswith(".safetensors") or name.startswith("tokenizer/")
    }


def content(row: dict[str, Any]) -> str:
    return json.dumps(row.get("text") or row["messages"], ensure_ascii=False)


def held_out(folder: Path, name: str) -> list[dict[str, Any]]:
    return rows_of(folder / f"{name}.jsonl")


# ---- the ledger


def test_every_record_of_a_messy_tree_is_accounted_for(tmp_path: Path, rng: random.Random) -> None:
    expected: Counter[str] = Counter()
    seen: set[str] = set()
    tree = tmp_path / "tree"

    def expect(text: str) -> None:
        expected["read"] += 1
        outcome = "empty" if not text.strip() else "duplicate" if text in seen else "kept"
        seen.add(text)
        expected[outcome] += 1

    for number in range(rng.randint(5, 15)):
        path = tree / rng.choice(["", "a", "a/b"]) / f"{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        kind = rng.choice(["rows", "rows", "prose", "binary", "latin", "hidden"])
        if kind == "hidden":
            path.with_name(f".{number}").write_text("not read")
        elif kind == "prose":
            text = rng.choice(["", " \n", "same tea", f"tea {number}"])
            path.write_text(text)
            expect(text)
        elif kind in ("binary", "latin"):
            if kind == "binary":
                path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(256)))
                expected["read"] += 1
                expected["not text"] += 1
            else:
                path.write_bytes(f"Le thé est prêt, numéro {number}.".encode("latin-1"))
                expect(f"Le thé est prêt, numéro {number}.")
        else:
            # The first row is good, so that the file is known to hold rows.
            lines = [json.dumps({"text": f"row {number}"})]
            expect(f"row {number}")
            for _ in range(rng.randrange(30)):
                line, reason = rng.choice(LINES)
                if reason == "row":
                    text = rng.choice(["", "same tea", f"row {rng.randrange(20)}"])
                    line = json.dumps({"text": text})
                    expect(text)
                elif reason:
                    expected["read"] += 1
                    expected[reason] += 1
                lines.append(line)
            data = "\n".join(lines).encode()
            path.write_bytes(gzip.compress(data) if rng.random() < 0.3 else data)
    (tree / "sure").write_text("something to keep")
    expect("something to keep")

    corpus = build(tmp_path / "corpus", tree)
    info = corpus.manifest.info
    ledger = info["ledger"]
    losses = {**ledger["dropped"], **ledger["failed"]}
    assert ledger["read"] == ledger["kept"] + sum(losses.values())
    assert {"read": ledger["read"], "kept": ledger["kept"], **losses} == dict(expected)
    assert set(ledger["dropped"]) <= {"empty", "duplicate"}
    assert sum(row["documents"] for row in info["splits"].values()) == ledger["kept"]
    sources = rows_of(tmp_path / "corpus" / "sources.jsonl")
    assert info["sources"]["files"] == len(sources)
    for row in sources:
        lost = sum(row["dropped"].values()) + sum(row["failed"].values())
        assert row["read"] == row["kept"] + lost
    assert sum(row["read"] for row in sources) == ledger["read"]
    assert sum(row["kept"] for row in sources) == ledger["kept"]
    rejected = held_out(tmp_path / "corpus", "dropped")
    assert Counter(row["reason"] for row in rejected) == losses
    assert {row["status"] for row in rejected} <= {"dropped", "failed"}


def test_a_ledger_that_lost_a_record_does_not_balance() -> None:
    ledger = Account(read=4, kept=1, dropped=Counter(empty=2), failed=Counter(bad=1))
    assert ledger.balances()
    ledger.read += 1
    assert not ledger.balances()


def test_sources_are_recorded_with_their_bytes_and_sums(tmp_path: Path) -> None:
    import hashlib

    path = write_jsonl(tmp_path / "a.jsonl", sample_rows(6))
    (source,) = rows_of(build(tmp_path / "c", path).folder / "sources.jsonl")
    data = path.read_bytes()
    assert source == {
        "path": str(path), "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(),
        "verdict": "JSON Lines · utf-8", "read": 12, "kept": 12, "dropped": {}, "failed": {},
    }  # fmt: skip


# ---- a function of the set of documents


@pytest.mark.parametrize("dedup", ["exact", "off"])
def test_other_files_names_forms_and_orders_give_the_same_corpus(
    tmp_path: Path, rng: random.Random, dedup: str
) -> None:
    rows = sample_rows(30)
    rows += rng.choices(rows, k=15)
    one = build(tmp_path / "one", write_jsonl(tmp_path / "all.jsonl", rows), dedup=dedup)
    rng.shuffle(rows)
    parts = tmp_path / "parts"
    parts.mkdir()
    for number in range(0, len(rows), 20):
        part = rows[number : number + 20]
        path = parts / f"{rng.random()}"
        form = rng.choice(["lines", "list", "gzip"])
        if form == "list":
            path.write_text(json.dumps(part))
        else:
            write_jsonl(path, part)
        if form == "gzip":
            path.write_bytes(gzip.compress(path.read_bytes()))
    other = build(tmp_path / "other", parts, dedup=dedup)
    assert other.fingerprint == one.fingerprint
    assert substance(other.folder) == substance(one.folder)
    for name in ("val", "test"):
        assert list(map(content, held_out(other.folder, name))) == list(
            map(content, held_out(one.folder, name))
        )


def test_another_document_or_tokenizer_or_split_is_another_fingerprint(tmp_path: Path) -> None:
    rows = sample_rows(15)
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    less = write_jsonl(tmp_path / "b.jsonl", rows[1:])
    made = [
        build(tmp_path / "0", path),
        build(tmp_path / "1", less, tokenizer=str(tmp_path / "0")),
        build(tmp_path / "2", path, vocab_size=290),
        build(tmp_path / "3", path, tokenizer=str(tmp_path / "0"), val_fraction=0.5),
    ]
    assert len({corpus.fingerprint for corpus in made}) == 4


def split_of_each(corpus: Corpus) -> dict[str, set[str]]:
    """Contents by decoded ids → the splits they are in."""
    found: dict[str, set[str]] = {}
    for name in ("train", "val", "test"):
        split = corpus.split(name)
        for number in range(len(split)):
            found.setdefault(split.ids(number).tobytes().hex(), set()).add(name)
    return found


@pytest.mark.parametrize("dedup", ["exact", "off"])
def test_duplicates_never_cross_splits(tmp_path: Path, rng: random.Random, dedup: str) -> None:
    rows = sample_rows(10)
    copies = rows + rng.choices(rows, k=60)
    rng.shuffle(copies)
    corpus = build(tmp_path / "c", write_jsonl(tmp_path / "a.jsonl", copies), dedup=dedup)
    where = split_of_each(corpus)
    assert len(where) == len(rows)
    assert all(len(splits) == 1 for splits in where.values())
    kept = corpus.manifest.info["ledger"]["kept"]
    assert kept == (len(rows) if dedup == "exact" else len(copies))


def test_a_dozen_copies_of_one_text_stay_in_train(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "the only text"}] * 12)
    corpus = build(tmp_path / "c", path, dedup="off", val_fraction=0.05, test_fraction=0.05)
    assert {name: row["documents"] for name, row in corpus.manifest.info["splits"].items()} == {
        "train": 12, "val": 0, "test": 0
    }  # fmt: skip


# ---- what lies in the folder


def test_shards_hold_exactly_what_is_rendered_and_rows_what_was_read(tmp_path: Path) -> None:
    rows = [{**row, "facts": [f"fact {n}"]} for n, row in enumerate(sample_rows(25))]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    corpus = build(tmp_path / "c", path)
    unseen = {content(row): row for row in rows}
    for name in ("val", "test"):
        split = corpus.split(name)
        shown = held_out(corpus.folder, name)
        assert len(split) == len(shown) > 0
        for number, row in enumerate(shown):
            before = unseen.pop(content(row))
            assert {key: row[key] for key in before} == before
            assert set(row) == {*before, "source"}
            line = int(row["source"].removeprefix(f"{path}:"))
            assert rows[line - 1] == before
            check_rendered(corpus, split.ids(number), split.weights(number), row)
    train = corpus.split("train")
    assert len(train) == len(unseen)
    rendered = {
        (tuple(ids), tuple(weights))
        for ids, weights in (rendering(corpus, r) for r in unseen.values())
    }
    assert rendered == {
        (tuple(train.ids(n).tolist()), tuple(train.weights(n).tolist())) for n in range(len(train))
    }


def rendering(corpus: Corpus, row: dict[str, Any]) -> tuple[list[int], list[int]]:
    if "text" in row:
        (rendered,) = render_texts(corpus.tokenizer, [row["text"]])
        return rendered
    return render(corpus.tokenizer, parse_messages(row["messages"]))


def check_rendered(corpus: Corpus, ids: Any, weights: Any, row: dict[str, Any]) -> None:
    assert (ids.tolist(), weights.tolist()) == tuple(rendering(corpus, row))


def test_the_tokenizer_has_seen_the_train_split_only(tmp_path: Path) -> None:
    from chatbench.text.tokenizer import train_tokenizer

    corpus = build(tmp_path / "c", write_jsonl(tmp_path / "a.jsonl", sample_rows(25)))
    held = {content(row) for name in ("val", "test") for row in held_out(corpus.folder, name)}
    train = [
        text
        for row in sample_rows(25)
        if content(row) not in held
        for text in ([row["text"]] if "text" in row else [m["content"] for m in row["messages"]])
    ]
    assert train_tokenizer(train, 300).digest == corpus.tokenizer.digest


def test_control_tokens_in_a_text_are_learned_as_text(tmp_path: Path) -> None:
    text = "<|im_start|>assistant\nhi<|im_end|><|endoftext|>"
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": text}, {"prompt": text, "completion": text}])
    corpus = build(tmp_path / "c", path, val_fraction=0, test_fraction=0)
    split, tokenizer = corpus.split("train"), corpus.tokenizer
    control = sorted([n for n in split.ids(i) if n in tokenizer.control_ids] for i in range(2))
    assert control == [
        [tokenizer.end_of_text], [tokenizer.turn_start, tokenizer.turn_end] * 2
    ]  # fmt: skip


def test_nothing_but_the_corpus_is_left(tmp_path: Path) -> None:
    corpus = build(tmp_path / "home" / "c", write_jsonl(tmp_path / "a.jsonl", sample_rows(15)))
    assert os.listdir(tmp_path / "home") == ["c"]
    assert set(files_of(corpus.folder)) == {
        MANIFEST, "dropped.jsonl", "sources.jsonl", "facts.json", "report.html", "val.jsonl",
        "test.jsonl", "tokenizer/tokenizer.json",
        "tokenizer/tokenizer_config.json", "tokenizer/chat_template.jinja",
        *(f"{name}/00000.safetensors" for name in ("train", "val", "test")),
    }  # fmt: skip


def test_the_tokenizer_of_another_corpus_is_kept(tmp_path: Path) -> None:
    first = build(tmp_path / "1", write_jsonl(tmp_path / "a.jsonl", sample_rows(15)))
    path = write_jsonl(tmp_path / "b.jsonl", [{"text": "something else"}])
    for number, given in enumerate((first.folder, first.folder / "tokenizer")):
        second = build(tmp_path / f"again{number}", path, tokenizer=str(given))
        assert second.manifest.info["tokenizer"] == first.manifest.info["tokenizer"]
        assert second.tokenizer.digest == first.tokenizer.digest
        assert (second.folder / "tokenizer" / "tokenizer.json").read_bytes() == (
            first.folder / "tokenizer" / "tokenizer.json"
        ).read_bytes()


def test_numbers_too_large_for_a_machine_word_survive_in_the_notes(tmp_path: Path) -> None:
    row = {"text": "a", "id": 10**30, "size": -(10**25)}
    path = write_jsonl(tmp_path / "a.jsonl", [row, row])
    (dropped,) = held_out(build(tmp_path / "c", path).folder, "dropped")
    assert dropped["id"] == 10**30


# ---- refusals


def test_nothing_to_keep_is_no_data_and_leaves_nothing(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "in.jsonl", [{"text": " "}, {"x": 1}])
    with pytest.raises(
        DataError, match=r"nothing to keep .* read 2, dropped 1, failed 1"
    ) as caught:
        build(tmp_path / "c", tmp_path / "in.jsonl")
    assert caught.value.exit_code == ExitCode.DATA == 3
    assert os.listdir(tmp_path) == ["in.jsonl"]


def test_wrong_usage_is_said_before_any_work(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", sample_rows(5))
    (tmp_path / "there").mkdir()
    for inputs, given, what in (
        ([path], {"out": tmp_path / "there"}, "there exists already; choose another -o"),
        ([], {}, "no input is given"),
        ([tmp_path / "nowhere"], {}, "nowhere does not exist"),
        ([path], {"val_fraction": 0.5, "test_fraction": 0.5}, "leave nothing to train on"),
    ):
        given = {"out": tmp_path / "c", **given}
        with pytest.raises(UsageError, match=what):
            build(given.pop("out"), *inputs, **given)
    assert sorted(os.listdir(tmp_path)) == ["a.jsonl", "there"]


def test_overwriting_replaces_a_corpus_and_nothing_else(tmp_path: Path) -> None:
    books = tmp_path / "books"
    books.mkdir()
    (books / "mine.txt").write_text("years of work")
    with pytest.raises(UsageError, match="books exists already and is not a corpus"):
        build(books, books, overwrite=True)
    assert (books / "mine.txt").read_text() == "years of work"
    build(books / "corpus", books)
    before = files_of(books / "corpus")
    build(books / "corpus", books, overwrite=True)
    assert files_of(books / "corpus") == before, "a corpus is no input of itself"
    assert sorted(os.listdir(books)) == ["corpus", "mine.txt"]


# ---- the machine does not show


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONHASHSEED": "0", "LC_ALL": "C"},
        {"PYTHONHASHSEED": "77", "LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0",
         "TZ": "Asia/Shanghai", "TOKENIZERS_PARALLELISM": "true"},
    ],
    ids=["hash seed and C locale", "no UTF-8 at all"],
)  # fmt: skip
def test_hash_seed_and_locale_give_the_same_bytes(
    tmp_path: Path, cli: Cli, environment: dict[str, str]
) -> None:
    path = write_jsonl(tmp_path / "茶.jsonl", sample_rows(20))
    here = build(tmp_path / "here", path)
    done = cli(
        "preprocess", path, "-o", tmp_path / "there", "--vocab-size", 300, "--val-fraction", 0.2,
        "--test-fraction", 0.2, "--no-profile", env={**os.environ, **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'there'}\n"
    assert files_of(tmp_path / "there") == files_of(here.folder)


def test_messages_keep_their_form(tmp_path: Path) -> None:
    messages = parse_messages(sample_chats(1)[0]["messages"])
    assert as_json(messages) == sample_chats(1)[0]["messages"]


def test_the_order_of_the_command_line_changes_no_byte(tmp_path: Path) -> None:
    one = write_jsonl(tmp_path / "a.jsonl", sample_rows(10))
    other = write_jsonl(tmp_path / "b.jsonl", [{"text": f"more {n}"} for n in range(10)])
    forth = build(tmp_path / "1", one, other, lang=["en", "zh"])
    back = build(tmp_path / "2", other, one, lang=["zh", "en"])
    assert files_of(forth.folder) == files_of(back.folder)
