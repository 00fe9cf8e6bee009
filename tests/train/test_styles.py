"""A model learns to obey its tags, and with tag dropout it still works without them."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from evaluate.styled import styles

from chatbench.corpus.build import preprocess
from chatbench.errors import IntegrityError, UsageError
from chatbench.evaluate.run import evaluate
from chatbench.model.folder import read_provenance
from chatbench.settings import (
    EvaluateSettings,
    FinetuneSettings,
    ModelSettings,
    PreprocessSettings,
    PretrainSettings,
    TrainSettings,
)
from chatbench.text.tags import Known, known_in
from chatbench.train.recipes import finetune, pretrain
from conftest import sample_chats, write_jsonl

COLUMNS = ["style", "语气"]


def tuned(base: Path, data: Path, out: Path, **given: Any) -> Path:
    settings = {"tensorboard": False, "steps": 2, "batch_tokens": 96, "seq_len": 48}
    train = TrainSettings(**{**settings, **given.pop("train", {})})
    run = finetune(
        FinetuneSettings(
            model=str(base), data=[str(data)], out=str(out), dtype="float32", device="cpu",
            train=train, **given,
        )
    )  # fmt: skip
    assert run is not None
    return run


def known_of(run: Path) -> Known:
    return known_in(read_provenance(run / "model"))


def test_a_file_is_learned_with_its_tags_and_the_model_knows_them(
    base_run: Path, tmp_path: Path
) -> None:
    rows = [
        row | {"style": "随意" if n % 3 else "formal"} for n, row in enumerate(sample_chats(30))
    ]
    data = write_jsonl(tmp_path / "a.jsonl", rows)
    bot = tuned(base_run, data, tmp_path / "bot", tag_column=["style"])
    assert known_of(bot) == {"style": {"随意": 20, "formal": 10}}
    (checkpoint,) = sorted((bot / "checkpoints").glob("step-*"))[-1:]
    assert known_in(read_provenance(checkpoint / "model")) == known_of(bot)
    more = write_jsonl(tmp_path / "b.jsonl", [r | {"new": "茶"} for r in sample_chats(20)])
    again = tuned(bot, more, tmp_path / "again", tag_column=["new"])
    assert known_of(again) == {"new": {"茶": 20}, "style": {"随意": 20, "formal": 10}}
    bare = tuned(base_run, more, tmp_path / "bare")
    assert "tags" not in json.loads((bare / "model" / "config.json").read_text())["chatbench"]


def test_tags_of_a_corpus_are_settled_when_it_is_made(
    base_run: Path, corpus_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="give --tag-column to preprocess"):
        tuned(base_run, corpus_folder, tmp_path / "bot", tag_column=["style"])


def test_going_on_drops_the_tags_that_an_undisturbed_run_drops(
    base_run: Path, tmp_path: Path
) -> None:
    rows = [
        row | {"style": "随意" if n % 3 else "formal"} for n, row in enumerate(sample_chats(30))
    ]
    data = write_jsonl(tmp_path / "a.jsonl", rows)
    given = {"tag_column": ["style"], "tag_dropout": 0.5,
             "train": {"steps": 6, "save_every": 3, "log_every": 1, "patience": 0}}  # fmt: skip
    whole = tuned(base_run, data, tmp_path / "whole", **given)
    other = tuned(base_run, data, tmp_path / "other", **given | {"tag_dropout": 0.0})
    assert (whole / "metrics.jsonl").read_bytes() != (other / "metrics.jsonl").read_bytes()
    metrics = (whole / "metrics.jsonl").read_bytes()
    weights = (whole / "model" / "model.safetensors").read_bytes()
    shutil.rmtree(whole / "model")
    shutil.rmtree(whole / "checkpoints" / "step-00000006")
    again = tuned(base_run, data, tmp_path / "whole", resume=True, **given)
    assert (again / "metrics.jsonl").read_bytes() == metrics
    assert (again / "model" / "model.safetensors").read_bytes() == weights
    with pytest.raises(IntegrityError, match="tag_dropout was"):
        tuned(base_run, data, tmp_path / "whole", resume=True, **given | {"tag_dropout": 0.4})


def corpus_of(data: Path, out: Path, **given: Any) -> Path:
    return preprocess(
        PreprocessSettings(
            inputs=[str(data)], out=str(out), vocab_size=512, val_fraction=0.1, test_fraction=0.1,
            profile=False, workers=1, split_by="document", **given,
        )
    )  # fmt: skip


def scores_of(run: Path, data: Path) -> dict[str, float]:
    settings = EvaluateSettings(
        model=str(run), data=str(data), train_data=str(data), device="cpu", max_tokens=60,
        control="every",
    )  # fmt: skip
    return {score.name: score.value for score in evaluate(settings).scores}


@pytest.mark.slow
def test_a_model_obeys_its_tags_and_works_without(tmp_path: Path) -> None:
    """Three finetunes of one base: with tags of which a fifth is dropped, with all tags, without.

    Half a minute on one core; the bounds leave several times the room that was measured.
    """
    data = write_jsonl(tmp_path / "rows.jsonl", styles.dialogues(900, 1))
    tagged = corpus_of(data, tmp_path / "tagged", tag_column=COLUMNS)
    bare = corpus_of(data, tmp_path / "bare", tokenizer=str(tagged))
    train = {"seq_len": 128, "batch_tokens": 1024, "steps": 300, "patience": 0,
             "eval_every": 1000, "sample_every": 1000, "save_every": 1000}  # fmt: skip
    base = pretrain(
        PretrainSettings(
            data=str(bare), out=str(tmp_path / "base"), dtype="float32", device="cpu",
            model=ModelSettings(n_layers=2, hidden_size=64, n_heads=2, ffn_size=128),
            train=TrainSettings(steps=3, seq_len=128, batch_tokens=1024, tensorboard=False),
        )
    )  # fmt: skip
    assert base is not None
    dropped = tuned(base, tagged, tmp_path / "dropped", tag_dropout=0.2, train=train)
    kept = tuned(base, tagged, tmp_path / "kept", tag_dropout=0.0, train=train)
    without = tuned(base, bare, tmp_path / "without", train=train)

    obeys, ignores = scores_of(dropped, tagged), scores_of(without, tagged)
    for column in COLUMNS:
        assert obeys[f"control_judge.{column}"] >= 95, "the judge knows the styles"
        assert obeys[f"control.{column}"] >= 90
        assert ignores[f"control.{column}"] <= 75, "who was not taught cannot obey"
    loss = {run.name: math.log(scores_of(run, bare)["perplexity"])
            for run in (dropped, kept, without)}  # fmt: skip
    assert loss["dropped"] <= loss["without"] + 0.1, "without tags nearly as good as never tagged"
    assert loss["dropped"] < loss["kept"], "who never missed its tags misses them more"
