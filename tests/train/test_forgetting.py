"""What a finetune forgets is measured on the right text, before and after, and told."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from chatbench.corpus.shards import Corpus, open_corpus
from chatbench.errors import DataError, IntegrityError, UserError
from chatbench.model.folder import open_model
from chatbench.settings import FinetuneSettings, OptimSettings, TrainSettings
from chatbench.train import forgetting
from chatbench.train.forgetting import FILE, Probe, Probed, probe_of, read_probed
from chatbench.train.recipes import finetune
from conftest import sample_chats, write_jsonl

CPU = torch.device("cpu")


def tuned(base: Path, data: Any, out: Path, **more: Any) -> FinetuneSettings:
    train = {"steps": 2} | more.pop("train", {})
    return FinetuneSettings(
        model=str(base), data=data, out=str(out), dtype="float32", device="cpu",
        train=TrainSettings(batch_tokens=96, tensorboard=False, **train), **more,
    )  # fmt: skip


def slow_bits(model_folder: Path, corpus: Corpus, seq_len: int, tokens: int) -> float:
    """Bits per byte of the stream of a validation split, row by row and token by token."""
    from chatbench.train.batches import StreamRows

    model, tokenizer, _ = open_model(model_folder, CPU)
    rows = StreamRows(corpus.split("val"), seq_len, tokenizer.end_of_text, 0)
    nats, size = 0.0, 0
    for number in range(min(rows.count(), max(1, tokens // seq_len))):
        row = rows.row(0, number)
        with torch.no_grad():
            scores = model.double().logits(model(torch.from_numpy(row.ids)[None])[0])
        for place, target in enumerate(row.targets.tolist()):
            spelled = len(tokenizer.token_bytes[target])
            if row.weights[place] and spelled:
                nats -= float(scores[place].log_softmax(-1)[target])
                size += spelled
    return nats / size / math.log(2)


@pytest.fixture
def chats(tmp_path: Path) -> str:
    return str(write_jsonl(tmp_path / "chats.jsonl", sample_chats(30)))


def test_the_base_models_corpus_is_found_and_measured_on_both_models(
    base_run: Path, corpus_folder: Path, chats: str, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    run = finetune(tuned(base_run, [chats], tmp_path / "run"))
    assert run is not None
    found = read_probed(run)
    assert found is not None
    assert found.source == str(corpus_folder)
    assert found.after is not None
    corpus = open_corpus(corpus_folder)
    assert found.tokens <= corpus.split("val").tokens
    context = 48
    for measured, folder in ((found.before, base_run), (found.after, run)):
        wanted = slow_bits(folder, corpus, context, 16_384)
        # float32 sums of a few thousand terms of the order of 1 to 10
        assert measured == pytest.approx(wanted, rel=1e-4)
    said = " ".join(capsys.readouterr().err.split())
    assert f"{found.before:.3f} bits per byte before, {found.after:.3f} now" in said


def test_much_forgotten_is_said_with_what_to_do(
    base_run: Path, corpus_folder: Path, chats: str, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    settings = tuned(
        base_run, [chats], tmp_path / "run", train={"steps": 12, "patience": 0, "eval_every": 12},
        optim=OptimSettings(learning_rate=0.5, grad_clip=0.0, warmup=0.0, spike=0.0),
    )  # fmt: skip
    run = finetune(settings)
    assert run is not None
    found = read_probed(run)
    assert found is not None
    assert found.after is not None
    assert found.after > 1.1 * found.before
    said = " ".join(capsys.readouterr().err.split())
    assert "the model has forgotten much: on" in said
    assert f"replay some of it: -d {corpus_folder}:0.1" in said


@pytest.mark.parametrize(
    ("objective", "told"),
    [
        ("sft", "replay some of it: -d {old}:0.1, or learn less: fewer --epochs"),
        ("dpo", "learn less: a larger --beta, fewer --epochs"),
        ("grpo", "learn less: --kl-coef, fewer --epochs"),
    ],
)
def test_what_helps_depends_on_what_is_learned(
    base_run: Path, corpus_folder: Path, chats: str, tmp_path: Path, objective: str, told: str
) -> None:
    settings = tuned(base_run, [chats], tmp_path / "run", objective=objective)
    corpus, folder = open_corpus(corpus_folder), open_model(base_run, CPU).folder
    probe = probe_of(settings, corpus, folder, tmp_path, 48, 2, 1000)
    assert probe is not None
    assert probe.advice.startswith(told.format(old=corpus_folder))
    assert ("-d " in probe.advice) == (objective == "sft")


def test_little_forgotten_is_no_warning(
    tmp_path: Path, base_run: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    probe = Probe("一 old", [], None, "do this")  # type: ignore[arg-type]
    for before, after, loud in ((1.0, 1.09, False), (1.0, 1.11, True), (0.1, 0.14, False)):
        (tmp_path / FILE).write_text(
            json.dumps({"source": "一 old", "tokens": 5, "before": before})
        )
        monkeypatch.setattr(Probe, "_bits", lambda self, model, after=after: after)
        monkeypatch.setattr(forgetting, "open_model", lambda *_: open_model(base_run, CPU))
        probe.end(tmp_path, CPU)
        said = capsys.readouterr().err
        assert ("forgotten much" in said) == loud
        assert ("little forgotten" in said) != loud
        assert f"{before:.3f} bits per byte before, {after:.3f} now" in " ".join(said.split())
        assert read_probed(tmp_path) == Probed("一 old", 5, before, after)


def test_replayed_data_come_before_the_base_models(
    base_run: Path, corpus_folder: Path, chats: str, tmp_path: Path
) -> None:
    old = str(write_jsonl(tmp_path / "old.jsonl", sample_chats(70)[30:]))
    run = finetune(tuned(base_run, [chats, f"{old}:0.3"], tmp_path / "run"))
    assert run is not None
    found = read_probed(run)
    assert found is not None
    assert found.source == str(run / "corpus-2")


@pytest.mark.parametrize("kind", ["texts", "dialogues", "corpus"])
def test_what_the_user_names_is_measured(
    base_run: Path, corpus_folder: Path, chats: str, tmp_path: Path, kind: str
) -> None:
    named = {
        "texts": lambda: write_jsonl(tmp_path / "t.jsonl", [{"text": "旧文 old text. " * 30}]),
        "dialogues": lambda: write_jsonl(tmp_path / "d.jsonl", sample_chats(40)[30:]),
        "corpus": lambda: corpus_folder,
    }[kind]()
    run = finetune(tuned(base_run, [chats], tmp_path / "run", probe=str(named)))
    assert run is not None
    found = read_probed(run)
    assert found is not None
    assert found.source == str(named)
    if kind == "corpus":
        wanted = slow_bits(base_run, open_corpus(corpus_folder), 48, 16_384)
        assert found.before == pytest.approx(wanted, rel=1e-4)


def test_a_probe_in_other_tokens_or_of_nothing_is_refused(
    base_run: Path, sources: Path, chats: str, tmp_path: Path
) -> None:
    from chatbench.corpus.build import preprocess
    from chatbench.settings import PreprocessSettings

    other = preprocess(
        PreprocessSettings(inputs=[str(sources)], out=str(tmp_path / "other"), vocab_size=300)
    )
    empty = write_jsonl(tmp_path / "empty.jsonl", [{"messages": []}])
    refused: list[tuple[Path, type[UserError], str]] = [
        (other, IntegrityError, "another tokenizer"), (empty, DataError, "nothing to keep")
    ]  # fmt: skip
    for probe, kind, words in refused:
        with pytest.raises(kind, match=words):
            finetune(tuned(base_run, [chats], tmp_path / "run", probe=str(probe)))
        assert not (tmp_path / "run" / "config.toml").exists()


def test_without_the_base_models_corpus_nothing_is_measured(
    base_run: Path, chats: str, tmp_path: Path
) -> None:
    import shutil

    lone = shutil.copytree(base_run / "model", tmp_path / "lone")
    run = finetune(tuned(lone, [chats], tmp_path / "run"))
    assert run is not None
    assert not (run / FILE).exists()


def test_a_damaged_corpus_of_the_base_is_told_and_no_end(
    base_run: Path, corpus_folder: Path, chats: str, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    import shutil

    twin = shutil.copytree(corpus_folder, tmp_path / "twin")
    base = shutil.copytree(base_run, tmp_path / "base")
    config = (base / "config.toml").read_text("utf-8")
    (base / "config.toml").write_text(config.replace(str(corpus_folder), str(twin)), "utf-8")
    shard = next((twin / "val").glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"\xff\xff")
    run = finetune(tuned(base, [chats], tmp_path / "run"))
    assert run is not None
    assert "what the model forgets is not measured" in " ".join(capsys.readouterr().err.split())
    assert not (run / FILE).exists()


def test_a_resume_keeps_what_was_measured_of_the_base(
    base_run: Path, chats: str, tmp_path: Path
) -> None:
    run = finetune(tuned(base_run, [chats], tmp_path / "run"))
    assert run is not None
    first = read_probed(run)
    assert first is not None
    marked = Probed(first.source, first.tokens, before=9.0, after=first.after)
    forgetting.write_json(run / FILE, marked)
    settings = tuned(base_run, [chats], tmp_path / "run", train={"steps": 4})
    settings.resume = True
    finetune(settings)
    second = read_probed(run)
    assert second is not None
    assert second.before == 9.0
    assert second.after != first.after


def test_a_dry_run_measures_nothing(base_run: Path, chats: str, tmp_path: Path) -> None:
    settings = tuned(base_run, [chats], tmp_path / "run", dry_run=True)
    assert finetune(settings) is None
    assert not (tmp_path / "run").exists()


def test_a_corpus_that_is_not_the_bases_is_not_taken_for_it(
    base_run: Path, chats: str, tmp_path: Path, corpus_folder: Path, sources: Path
) -> None:
    import shutil

    from chatbench.corpus.build import preprocess
    from chatbench.settings import PreprocessSettings

    other = preprocess(
        PreprocessSettings(
            inputs=[str(sources / "texts.jsonl")], out=str(tmp_path / "other"),
            tokenizer=str(corpus_folder / "tokenizer"),
        )
    )  # fmt: skip
    base = shutil.copytree(base_run, tmp_path / "base")
    config = (base / "config.toml").read_text("utf-8")
    (base / "config.toml").write_text(config.replace(str(corpus_folder), str(other)), "utf-8")
    opened = open_model(base, CPU)
    settings = tuned(base, [chats], tmp_path / "run")
    corpus = open_corpus(corpus_folder)
    assert probe_of(settings, corpus, opened.folder, tmp_path, 48, 2, 1000) is None
