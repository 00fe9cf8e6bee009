"""A run folder says what it is, belongs to one writer, and refuses what cannot be meant."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from chatbench.config import resolve
from chatbench.errors import DataError, IntegrityError, InUseError, UsageError
from chatbench.settings import FinetuneSettings, PretrainSettings, TrainSettings
from chatbench.storage import FolderLock, recover
from chatbench.train import checkpoint
from chatbench.train.checkpoint import TrainState, checkpoints_of
from chatbench.train.recipes import finetune, pretrain
from chatbench.train.run import open_run
from conftest import sample_chats, write_jsonl

Make = Callable[..., PretrainSettings]


def files_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def tuned(base: Path, data: Path, out: Path, **train: Any) -> FinetuneSettings:
    return FinetuneSettings(
        model=str(base), data=str(data), out=str(out), dtype="float32", device="cpu",
        train=TrainSettings(batch_tokens=96, tensorboard=False, **{"steps": 2} | train),
    )  # fmt: skip


# -- what a run leaves -------------------------------------------------------------------------


def test_a_finished_run_holds_what_is_promised(base_run: Path) -> None:
    found = files_below(base_run)
    for name in ("config.toml", "environment.json", "metrics.jsonl", "timings.jsonl",
                 "samples.jsonl", "model/config.json", "model/model.safetensors",
                 "model/tokenizer.json", "model/manifest.json"):  # fmt: skip
        assert name in found
    assert not [name for name in found if ".partial" in name or ".old" in name or ".tmp" in name]


def test_the_settings_of_a_run_are_themselves_an_input(
    base_run: Path, corpus_folder: Path, tiny_settings: Make
) -> None:
    stored = resolve(PretrainSettings, config_file=base_run / "config.toml", environ={}).settings
    assert stored == tiny_settings(corpus_folder, base_run)


def test_a_model_says_where_it_came_from(base_run: Path, corpus_folder: Path) -> None:
    config = json.loads((base_run / "model" / "config.json").read_text())
    manifest = json.loads((corpus_folder / "manifest.json").read_text())
    assert config["chatbench"]["corpus"] == manifest["info"]["fingerprint"]


def test_the_number_format_of_auto_is_written_down(
    corpus_folder: Path, tiny_settings: Make, tmp_path: Path
) -> None:
    settings = tiny_settings(corpus_folder, tmp_path / "run", steps=1)
    settings.dtype = "auto"
    run = pretrain(settings)
    stored = resolve(PretrainSettings, config_file=run / "config.toml", environ={}).settings
    assert stored.dtype in ("float32", "bfloat16")


def test_a_run_in_bfloat16_stores_float32_masters(
    corpus_folder: Path, tiny_settings: Make, tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    settings = tiny_settings(corpus_folder, tmp_path / "run", steps=2)
    settings.dtype = "bfloat16"
    weights = load_file(pretrain(settings) / "model" / "model.safetensors")
    assert {w.dtype for w in weights.values()} == {torch.float32}
    assert any(not torch.equal(w, w.bfloat16().float()) for w in weights.values())


# -- who may write -----------------------------------------------------------------------------


def test_a_run_in_use_is_refused(corpus_folder: Path, tiny_settings: Make, tmp_path: Path) -> None:
    settings = tiny_settings(corpus_folder, tmp_path / "run")
    (tmp_path / "run").mkdir()
    with FolderLock(tmp_path / "run"), pytest.raises(InUseError, match="in use by process"):
        pretrain(settings)
    assert files_below(tmp_path / "run") == {".lock"}


def test_a_run_that_is_there_is_not_overwritten(
    base_run: Path, corpus_folder: Path, tiny_settings: Make
) -> None:
    before = {name: (base_run / name).read_bytes() for name in files_below(base_run)}
    with pytest.raises(UsageError, match="holds a finished run already"):
        pretrain(tiny_settings(corpus_folder, base_run))
    assert {name: (base_run / name).read_bytes() for name in files_below(base_run)} == before


def test_an_unfinished_run_is_continued_only_when_asked(
    corpus_folder: Path, tiny_settings: Make, tmp_path: Path
) -> None:
    settings = tiny_settings(corpus_folder, tmp_path / "run")
    with open_run(settings) as run:
        run.begin(settings, "fingerprint", torch.device("cpu"))
    with pytest.raises(UsageError, match=r"an unfinished run already.*--resume"):
        pretrain(settings)


def test_a_file_is_not_a_run_folder(
    corpus_folder: Path, tiny_settings: Make, tmp_path: Path
) -> None:
    (tmp_path / "run").write_text("mine")
    with pytest.raises(UsageError, match="is a file"):
        pretrain(tiny_settings(corpus_folder, tmp_path / "run"))
    assert (tmp_path / "run").read_text() == "mine"


def test_a_run_that_never_began_leaves_no_folder(
    corpus_folder: Path, tiny_settings: Make, tmp_path: Path
) -> None:
    settings = tiny_settings(corpus_folder, tmp_path / "deep" / "run")
    with pytest.raises(ZeroDivisionError), open_run(settings):
        raise ZeroDivisionError
    assert not (tmp_path / "deep" / "run").exists()


# -- checkpoints -------------------------------------------------------------------------------


def test_as_many_checkpoints_stay_as_asked(
    corpus_folder: Path, tiny_settings: Make, tmp_path: Path, rng: random.Random
) -> None:
    keep = rng.randint(1, 4)
    settings = tiny_settings(corpus_folder, tmp_path / "run", steps=5, save_every=1, keep=keep)
    names = [path.name for path in checkpoints_of(pretrain(settings))]
    assert names == [f"step-{step:08d}" for step in range(6 - keep, 6)]


def test_a_checkpoint_is_a_model_that_can_be_opened(base_run: Path) -> None:
    from chatbench.model.folder import open_model

    newest = checkpoints_of(base_run)[-1]
    inside, final = (
        open_model(path, torch.device("cpu")).model.state_dict()
        for path in (newest, base_run / "model")
    )
    assert all(torch.equal(inside[name], final[name]) for name in final)


def save_step(run: Path, step: int, tokenizer: Any, model: Any, keep: int) -> None:
    weights = dict(model.named_parameters())
    detached = {name: p.detach() for name, p in weights.items()}
    checkpoint.save(
        run, TrainState(step=step), model.config, detached, {"a/b": torch.ones(2)}, tokenizer, {},
        keep,
    )  # fmt: skip


def test_a_later_checkpoint_that_a_resume_went_back_behind_is_dropped(
    base_run: Path, tmp_path: Path
) -> None:
    """Else, damaged as it is, it would push out the whole ones."""
    from chatbench.model.folder import open_model

    opened = open_model(base_run, torch.device("cpu"))
    for step in (10, 20):
        save_step(tmp_path, step, opened.tokenizer, opened.model, keep=1 if step == 10 else 2)
    (checkpoints_of(tmp_path)[-1] / "optimizer.safetensors").write_bytes(b"")
    save_step(tmp_path, 13, opened.tokenizer, opened.model, keep=1)
    assert [path.name for path in checkpoints_of(tmp_path)] == ["step-00000013"]
    restored = checkpoint.load_newest(tmp_path)
    assert restored is not None
    assert restored.state.step == 13


def test_without_checkpoints_there_is_nothing_to_restore(tmp_path: Path) -> None:
    assert checkpoint.load_newest(tmp_path) is None


def test_what_a_killed_run_left_is_cleared_and_what_it_moved_aside_returns(
    tmp_path: Path,
) -> None:
    for name in (".step-1.partial", ".step-2.old", "step-2", ".step-3.old", ".step-4.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").touch()
    (tmp_path / ".step-4.old" / "manifest.json").unlink()
    (tmp_path / "step-2" / ".lock").touch()
    recover(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-2", "step-3"]
    assert [p.name for p in (tmp_path / "step-2").iterdir()] == ["manifest.json"]


# -- finetune ----------------------------------------------------------------------------------


def test_finetune_keeps_the_corpus_it_made(base_run: Path, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "chats.jsonl", sample_chats(20))
    run = finetune(tuned(base_run, data, tmp_path / "run"))
    assert (run / "corpus" / "manifest.json").is_file()
    config = json.loads((run / "model" / "config.json").read_text())
    assert config["chatbench"]["base"] == str(base_run / "model")


def test_data_mended_after_a_failed_start_is_read_anew(base_run: Path, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "chats.jsonl", [{"messages": [{"role": "user", "content": "?"}]}])
    with pytest.raises(DataError, match="nothing to learn"):
        finetune(tuned(base_run, data, tmp_path / "run"))
    write_jsonl(data, sample_chats(20))
    assert (finetune(tuned(base_run, data, tmp_path / "run")) / "model").is_dir()


def test_a_corpus_of_another_tokenizer_is_refused(
    base_run: Path, sources: Path, tmp_path: Path
) -> None:
    from chatbench.corpus.build import preprocess
    from chatbench.settings import PreprocessSettings

    other = preprocess(
        PreprocessSettings(inputs=[str(sources)], out=str(tmp_path / "other"), vocab_size=300)
    )
    with pytest.raises(IntegrityError, match="another tokenizer"):
        finetune(tuned(base_run, other, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_rows_longer_than_the_context_are_refused(base_run: Path, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "chats.jsonl", sample_chats(20))
    with pytest.raises(UsageError, match="--seq-len 49 is longer than the model's context of 48"):
        finetune(tuned(base_run, data, tmp_path / "run", seq_len=49))


def test_questions_too_long_to_answer_do_not_end_a_run(
    base_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chats = [
        {"messages": [{"role": "user", "content": f"{n} " + "why? " * 60},
                      {"role": "assistant", "content": f"because of {n}"}]}
        for n in range(40)
    ]  # fmt: skip
    data = write_jsonl(tmp_path / "chats.jsonl", chats)
    run = finetune(tuned(base_run, data, tmp_path / "run", sample_every=1))
    assert (run / "model").is_dir()
    assert "do not fit into the context" in capsys.readouterr().err


def test_learning_every_token_is_not_learning_the_replies(base_run: Path, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "chats.jsonl", sample_chats(20))
    metrics = []
    for name in ("assistant", "all"):
        settings = tuned(base_run, data, tmp_path / name, log_every=1)
        settings.train_on = name  # type: ignore[assignment]
        metrics.append((finetune(settings) / "metrics.jsonl").read_bytes())
    assert metrics[0] != metrics[1]
