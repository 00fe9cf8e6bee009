"""Classification: one text one vote, however texts are packed; what is read, held out, learned."""

from __future__ import annotations

import csv
import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from chatbench.corpus.labelled import Labelled
from chatbench.engine.classes import text_states
from chatbench.errors import DataError, IntegrityError, UsageError
from chatbench.model.folder import labels_of, open_model
from chatbench.model.transformer import GPT, ModelConfig, initialise
from chatbench.settings import FinetuneSettings, LoraSettings, TrainSettings
from chatbench.settings.heads import HeadSettings
from chatbench.text.tokenizer import Tokenizer
from chatbench.train.batches import Batches, collate
from chatbench.train.classes import Classes, StateBatches, TextRows
from chatbench.train.labelled import Examples, LabelledTexts, open_labelled
from chatbench.train.objective import GlobalBatch
from chatbench.train.recipes import finetune

LABELS = ("card", "退款", "3")
SEQ_LEN = 24


@pytest.fixture(params=[("last", True), ("mean", True), ("mean", False)])
def model(rng: random.Random, request: pytest.FixtureRequest) -> GPT:
    """A random classifier in float64."""
    pooling, causal = request.param
    config = ModelConfig(
        60, 2, 16, 2, 1, 8, 24, SEQ_LEN, labels=LABELS, pooling=pooling, causal=causal
    )
    made = GPT(config).double()
    initialise(made, rng.randrange(1 << 30))
    with torch.no_grad():
        for weight in made.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return made


@pytest.fixture
def examples(rng: random.Random) -> Examples:
    ids = [[rng.randrange(60) for _ in range(rng.randint(1, SEQ_LEN))] for _ in range(23)]
    labels = np.array([rng.randrange(len(LABELS)) for _ in ids], np.int64)
    return Examples(ids, labels, 0)


def seen(model: GPT, ids: list[int]) -> Tensor:
    """What the head sees of a text alone."""
    states = model(torch.tensor([ids]))[0]
    return states[-1] if model.config.pooling == "last" else states.mean(0)


def by_hand(model: GPT, examples: Examples) -> Tensor:
    """The summed loss, text by text."""
    losses = []
    for ids, label in zip(examples.ids, examples.labels, strict=True):
        scores = model.logits(seen(model, ids))
        losses.append(-scores.log_softmax(-1)[int(label)])
    return torch.stack(losses).sum()


def gradients(model: GPT, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def summed(model: GPT, batch: GlobalBatch) -> Tensor:
    objective = Classes(None, [], len(LABELS))  # type: ignore[arg-type]
    return torch.stack([objective.loss(model, part).total for part in batch.parts]).sum()


def close(found: Tensor, wanted: Tensor) -> None:
    """Equal but for the order in which some hundred float64 products were added."""
    found, wanted = found.detach(), wanted.detach()
    size = 1 + float(wanted.abs().max())
    assert float((found - wanted).abs().max()) < 1e-9 * size


def test_packed_texts_count_as_texts_alone(
    model: GPT, examples: Examples, rng: random.Random
) -> None:
    rows = TextRows(examples, SEQ_LEN, rng.randrange(99))
    assert rows.count() < len(examples.ids)
    wanted = by_hand(model, examples)
    expected = gradients(model, wanted)
    for micro in (1, 2, rows.count()):
        batch = Batches(rows, rows.count(), micro).batch(0)
        assert batch.weight == len(examples.ids)
        assert sum(float(part.weights.sum()) for part in batch.parts) == batch.weight
        loss = summed(model, batch)
        close(loss, wanted)
        found = gradients(model, loss)
        assert found.keys() == expected.keys()
        for name, gradient in found.items():
            close(gradient, expected[name])


def test_states_of_a_frozen_trunk_count_as_their_texts(
    model: GPT, examples: Examples, rng: random.Random
) -> None:
    pooling = model.config.pooling
    states = text_states(model, examples.ids, rng.randint(1, 9), pooling).clone()
    wanted = by_hand(model, examples)
    head = f"{model.head_name}.weight"
    expected = gradients(model, wanted)[head]
    count = len(examples.ids)
    source = StateBatches(states, examples.labels, count, rng.randint(1, count), rng.randrange(99))
    loss = summed(model, source.batch(0))
    close(loss, wanted)
    close(gradients(model, loss)[head], expected)


def test_an_epoch_of_states_has_every_text_once(examples: Examples, rng: random.Random) -> None:
    count, per_step = len(examples.ids), 5
    states = torch.arange(count, dtype=torch.float64)[:, None]
    alone = StateBatches(states, examples.labels, per_step, 2, 7)
    ranks = [StateBatches(states, examples.labels, per_step, 2, 7, rank=r, ranks=3)
             for r in range(3)]  # fmt: skip
    seen: list[int] = []
    for step in range(count):  # a whole number of epochs

        def numbers(source: StateBatches, step: int = step) -> list[int]:
            found = []
            for part in source.batch(step).parts:
                assert part.more is not None
                kept = part.weights[:, 0] > 0
                found += part.more["hidden"][kept, 0].long().tolist()
            return found

        own = numbers(alone)
        assert sorted(own) == sorted(n for source in ranks for n in numbers(source))
        assert len({len(source.batch(step).parts) for source in ranks}) == 1
        seen += own
    assert sorted(seen) == sorted(list(range(count)) * per_step)
    assert set(seen[:count]) == set(range(count))


def test_a_new_head_knows_nothing(model: GPT, examples: Examples) -> None:
    plain = GPT(model.config._replace(labels=(), pooling="last", causal=True)).double()
    plain.become_classifier(LABELS, model.config.pooling, causal=model.config.causal)
    batch = collate([TextRows(examples, SEQ_LEN, 0).row(0, 0)], True)
    loss = Classes(None, [], len(LABELS)).loss(plain, batch)  # type: ignore[arg-type]
    assert float(loss.total.detach()) / loss.weight == pytest.approx(
        math.log(len(LABELS)), rel=1e-12
    )


def test_validation_reports_accuracy_and_macro_f1(
    model: GPT, examples: Examples, rng: random.Random
) -> None:
    rows = TextRows(examples, SEQ_LEN, 1)
    objective = Classes(None, [], len(LABELS))  # type: ignore[arg-type]
    sums = dict.fromkeys(objective.summed, 0.0)
    with torch.no_grad():
        for part in Batches(rows, rows.count(), rng.randint(1, 3)).batch(0).parts:
            for name, value in objective.loss(model, part).metrics.items():
                sums[name] += float(value)
        given = [int(model.logits(seen(model, ids)).argmax()) for ids in examples.ids]
    wanted = examples.labels.tolist()
    scores = []
    for label in sorted({*given, *wanted}):
        hits = sum(g == w == label for g, w in zip(given, wanted, strict=True))
        scores.append(2 * hits / (given.count(label) + wanted.count(label)))
    found = objective.report(sums)
    right = sum(g == w for g, w in zip(given, wanted, strict=True))
    assert found["accuracy"] == pytest.approx(right / len(wanted), rel=1e-12)
    assert found["macro_f1"] == pytest.approx(sum(scores) / len(scores), rel=1e-12)
    assert objective.report(dict.fromkeys(objective.summed, 0.0)) == {}


# ---- what is learned from


def texts_of(corpus: LabelledTexts, name: str) -> set[tuple[str, str]]:
    return {(row["text"], row["label"]) for row in corpus.rows(name)}


def test_rows_fall_by_their_texts_alone(tokenizer: Tokenizer, rng: random.Random) -> None:
    rows = [Labelled(f"text 第{n}号 {rng.random()}", rng.choice(LABELS)) for n in range(400)]
    rows.append(Labelled(rows[0].text, "another"))
    first = LabelledTexts(rows, tokenizer)
    rng.shuffle(rows)
    again = LabelledTexts(rows, tokenizer)
    assert first.fingerprint == again.fingerprint
    assert first.labels == again.labels == tuple(sorted({row.label for row in rows}))
    train, held = texts_of(first, "train"), texts_of(first, "val")
    assert (train, held) == (texts_of(again, "train"), texts_of(again, "val"))
    assert train | held == {tuple(row) for row in rows}
    assert not train & held
    # 400 rows at a tenth: fewer than 4 or more than 110 have less than one chance in a billion.
    assert 4 <= len(held) <= 110
    both = {text for text, _ in train} & {text for text, _ in held}
    assert both <= {rows[n].text for n in range(len(rows)) if rows[n].label == "another"}
    other = LabelledTexts([row for row in rows if row.label != "another"], tokenizer)
    assert other.fingerprint != first.fingerprint
    assert texts_of(other, "val") <= held | train


def test_every_label_has_a_row_to_learn_from(tokenizer: Tokenizer, rng: random.Random) -> None:
    rows = [Labelled(f"{n} {rng.random()}", f"label {n}") for n in range(60)]
    corpus = LabelledTexts(rows, tokenizer)
    assert {label for _, label in texts_of(corpus, "train")} == set(corpus.labels)
    assert not texts_of(corpus, "val")


def test_long_texts_keep_beginning_and_end(tokenizer: Tokenizer) -> None:
    long = "The beginning. " + "茶 tea " * 200 + "The end."
    corpus = LabelledTexts([Labelled(long, "a"), Labelled("short", "b")], tokenizer)
    found = corpus.examples("train", 32)
    assert found.cut == 1
    ids = next(each for each in found.ids if len(each) == 32)
    whole = tokenizer.encode(long)
    assert ids == whole[:8] + whole[-24:]
    assert [*tokenizer.encode("short")] in found.ids


# ---- runs


WORDS = {"card": ("my card is lost", "卡丢了"), "loan": ("I want a loan", "我想借钱"),
         "cash": ("the machine gave no cash", "取款机没吐钱")}  # fmt: skip


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A hundred bilingual rows that hardly anybody confuses."""
    path = tmp_path / "rows.csv"
    with open(path, "w", encoding="utf-8-sig", newline="") as file:
        write = csv.writer(file)
        write.writerow(["id", "Anfrage", "Absicht"])
        for n in range(120):
            label = [*WORDS][n % 3]
            write.writerow([n, f"{WORDS[label][n % 2]} {n}", label])
    return path


@pytest.fixture
def settings(base_run: Path, table: Path, tmp_path: Path) -> Callable[..., FinetuneSettings]:
    def make(**changes: Any) -> FinetuneSettings:
        train = changes.pop("train", {})
        given: dict[str, Any] = {
            "model": str(base_run), "data": [str(table)], "out": str(tmp_path / "run"),
            "objective": "classify", "map": ["text=Anfrage", "label=Absicht"],
            "dtype": "float32", "device": "cpu", **changes,
        }  # fmt: skip
        length = {} if "steps" in train else {"epochs": 6}
        return FinetuneSettings(**given, train=TrainSettings(tensorboard=False, **length, **train))

    return make


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]


def test_a_classifier_is_learned_and_opened(
    settings: Callable[..., FinetuneSettings], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = finetune(settings())
    assert run is not None
    assert labels_of(run) == ("card", "cash", "loan")
    opened = open_model(run, torch.device("cpu"), classifier=True)
    ids = [opened.tokenizer.encode(f"{said} 77") for both in WORDS.values() for said in both]
    with torch.no_grad():
        states = text_states(opened.model, ids, 4, opened.model.config.pooling)
        found = opened.model.logits(states).argmax(-1).tolist()
    assert found == [0, 0, 2, 2, 1, 1]
    rows = metrics(run)
    judged = [row for row in rows if "val_loss" in row]
    assert judged[-1]["val_accuracy"] == 1.0
    assert judged[-1]["val_macro_f1"] == 1.0
    first = next(row for row in rows if "loss" in row)
    assert first["loss"] < math.log(3) + 0.5
    assert f"chatbench classify -m {run}" in capfd.readouterr().err


def test_the_head_alone_leaves_the_trunk_as_it_is(
    settings: Callable[..., FinetuneSettings], base_run: Path
) -> None:
    run = finetune(settings(train_layers=0))
    assert run is not None
    before, after = (load_file(path / "model" / "model.safetensors") for path in (base_run, run))
    head = after.pop("score_of_mean.weight")
    assert head.shape == (3, 32)
    assert head.any()
    assert after.keys() == before.keys() - {"lm_head.weight"}
    assert all(torch.equal(after[name], before[name]) for name in after)
    held = [row["val_loss"] for row in metrics(run) if "val_loss" in row]
    assert min(held) < math.log(3)


def test_the_last_block_learns_beside_the_head(
    settings: Callable[..., FinetuneSettings], base_run: Path
) -> None:
    run = finetune(settings(train_layers=1, train={"steps": 4}))
    assert run is not None
    before, after = (load_file(path / "model" / "model.safetensors") for path in (base_run, run))
    changed = {name for name in before.keys() & after if not torch.equal(before[name], after[name])}
    assert changed
    assert all(name.startswith(("model.layers.1.", "model.norm")) for name in changed)


def test_a_finished_run_goes_on(settings: Callable[..., FinetuneSettings]) -> None:
    run = finetune(settings(train={"steps": 3}))
    assert run is not None
    again = finetune(settings(train={"steps": 6}, resume=True))
    assert again == run
    assert max(row["step"] for row in metrics(run)) == 6


def test_a_run_from_before_there_was_a_choice_of_heads_keeps_its_own(
    settings: Callable[..., FinetuneSettings],
) -> None:
    old = HeadSettings(pooling="last", token_dropout=0.0)
    run = finetune(settings(train={"steps": 2}, head=old))
    assert run is not None
    file = run / "config.toml"
    before, _, after = file.read_text("utf-8").partition("[head]")
    file.write_text(before + after[after.index("\n[") :], "utf-8")
    with pytest.raises(IntegrityError, match=r"head.pooling was 'last', now 'mean'"):
        finetune(settings(train={"steps": 4}, resume=True))
    assert finetune(settings(train={"steps": 4}, resume=True, head=old)) == run
    assert max(row["step"] for row in metrics(run)) == 4


def test_rows_that_cannot_be_used_are_told(
    settings: Callable[..., FinetuneSettings], table: Path, tokenizer: Tokenizer,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    with open(table, "a", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([
            [1, "  ", "card"], [2, "no label", ""], [3, "once", "rare"], [4, "once", "rare"],
            [5, "卡丢了 1", "card"], [6, "卡丢了 1", "loan"],
        ])  # fmt: skip
    corpus = open_labelled(settings(), tokenizer)
    told = capfd.readouterr().err
    assert "rare" in corpus.labels
    for words in ("empty text", "no label", "copy of another row", "more than one label", "rare"):
        assert words in " ".join(told.split()), words


def test_what_cannot_be_meant_is_one_sentence(
    settings: Callable[..., FinetuneSettings], tmp_path: Path, corpus_folder: Path
) -> None:
    one = tmp_path / "one.csv"
    one.write_text("text,label\na,x\nb,x\n", "utf-8")
    with pytest.raises(DataError, match="only the label x"):
        finetune(settings(data=[str(one)], map=[]))
    prose = tmp_path / "prose.txt"
    prose.write_text("Nothing is labelled here.\n", "utf-8")
    with pytest.raises(DataError, match="no text with a label"):
        finetune(settings(data=[str(prose)], map=[]))
    with pytest.raises(UsageError, match="corpus folder"):
        finetune(settings(data=[str(corpus_folder)]))
    with pytest.raises(UsageError, match="learned whole"):
        finetune(settings(data=[str(one), f"{one}:0.1"]))
    with pytest.raises(UsageError, match="--lora-rank"):
        finetune(settings(lora=LoraSettings(rank=4)))
    with pytest.raises(UsageError, match="--template is of"):
        finetune(settings(template="llama3"))
    with pytest.raises(UsageError, match="no part"):
        finetune(settings(map=["label=Absicht", "column=3"]))


@pytest.mark.parametrize("layers", [None, 0])
def test_two_ranks_learn_what_one_does(
    ranks: Callable[..., list[dict[str, Any]]], base_run: Path, table: Path, tmp_path: Path,
    layers: int | None,
) -> None:  # fmt: skip
    runs = []
    for size in (1, 2):
        runs.append(tmp_path / f"run-{size}")
        words = ["finetune", "--objective", "classify", "-m", str(base_run), "-d", str(table),
                 "-o", str(runs[-1]), "--map", "text=Anfrage",
                 "--map", "label=Absicht"]  # fmt: skip
        changes = ("train.steps=6", "train.batch_tokens=240", "train.micro_batch=2",
                   "train.log_every=1", "train.eval_every=3", "train.tensorboard=false",
                   "optim.learning_rate=0.001", "dtype=float32", "device=cpu")  # fmt: skip
        words += [word for change in changes for word in ("--set", change)]
        words += [] if layers is None else ["--train-layers", str(layers)]
        replies = ranks(size, words)
        assert [reply["code"] for reply in replies] == [0] * size, replies[0]["err"]
    alone, together = map(metrics, runs)
    assert [sorted(row) for row in alone] == [sorted(row) for row in together]
    for one, other in zip(alone, together, strict=True):
        for name, value in one.items():
            # Float32 sums of a few hundred terms in another order, over six steps.
            assert math.isclose(other[name], value, rel_tol=1e-3, abs_tol=1e-5), (one, other)
