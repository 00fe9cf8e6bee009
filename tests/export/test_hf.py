"""A plain folder: adapters merged, nothing of ours needed to open it."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from export.families import CPU, make_family

import chatbench.export.run as run
from chatbench.errors import IntegrityError, UsageError
from chatbench.export.run import export
from chatbench.model.adapter import LoraConfig, adapted, add_adapter
from chatbench.model.folder import (
    OpenedModel,
    open_model,
    read_weights,
    stored_weights,
    write_model,
)
from chatbench.model.lora import save_adapter
from chatbench.settings import ExportSettings
from chatbench.storage import verify

PROBE = "The tea costs 5 yuan. 茶叶卖5元。"
FAMILIES = ("qwen3", "llama3", "gpt2")


@pytest.fixture(params=FAMILIES)
def opened(request: pytest.FixtureRequest, tmp_path: Path, rng: random.Random) -> OpenedModel:
    return make_family(request.param, tmp_path / request.param, rng)


@pytest.fixture
def adapter(opened: OpenedModel, tmp_path: Path, rng: random.Random) -> Path:
    """A trained-looking adapter beside its base."""
    model = open_model(opened.folder, CPU).model
    config = LoraConfig(rank=rng.randrange(1, 5), alpha=rng.uniform(1, 20))
    add_adapter(model, config, seed=0)
    with torch.no_grad():
        for _, layer in adapted(model):
            generator = torch.Generator().manual_seed(rng.randrange(1 << 32))
            # Small, or logits grow until float32 itself is coarser than what is compared.
            layer.lora_B.normal_(std=0.1, generator=generator)
    folder = tmp_path / "adapter"
    folder.mkdir()
    save_adapter(folder, model, config, str(opened.folder))
    return folder


def save(model: Path, out: Path, **settings: Any) -> Path:
    return export(ExportSettings(model=str(model), out=str(out), to="hf", **settings))


@torch.no_grad()
def logits(opened: OpenedModel) -> torch.Tensor:
    ids = torch.tensor([opened.tokenizer.encode(PROBE)])
    return opened.model.logits(opened.model(ids))


def test_an_adapter_is_merged(adapter: Path, opened: OpenedModel, tmp_path: Path) -> None:
    out = save(adapter, tmp_path / "plain", verify=True)
    assert verify(out, "model").kind == "model"
    assert not list(out.glob("adapter*"))
    plain, lively = open_model(out, CPU), open_model(adapter, CPU)
    assert stored_weights(plain.model).keys() == stored_weights(opened.model).keys()
    assert float((logits(plain) - logits(lively)).abs().max()) < 1e-4
    assert float((logits(plain) - logits(opened)).abs().max()) > 1e-2
    assert plain.tokenizer.digest == opened.tokenizer.digest


def test_transformers_opens_it(adapter: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    out = save(adapter, tmp_path / "plain")
    plain = open_model(out, CPU)
    twin = transformers.AutoModelForCausalLM.from_pretrained(out).eval()
    ids = torch.tensor([plain.tokenizer.encode(PROBE)])
    with torch.no_grad():
        assert float((twin(ids).logits - logits(plain)).abs().max()) < 1e-4


def test_a_plain_model_stays_bit_for_bit(
    opened: OpenedModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = save(opened.folder, tmp_path / "copy", verify=True)
    said = capsys.readouterr().err
    assert "transformers" in said
    assert "verified" in said
    again = open_model(out, CPU)
    assert again.model.config == opened.model.config
    for name, weight in stored_weights(opened.model).items():
        assert torch.equal(stored_weights(again.model)[name], weight), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_in_several_files_stays_and_an_adapter_makes_it_whole(
    adapter: Path, opened: OpenedModel, tmp_path: Path, dtype: torch.dtype
) -> None:
    halves = {n: w.to(dtype) for n, w in stored_weights(opened.model).items()}
    config = opened.model.config
    shutil.rmtree(opened.folder)
    write_model(opened.folder, config, halves, opened.tokenizer, largest_shard=20_000)
    assert len(list(opened.folder.glob("*.safetensors"))) > 2
    out = save(opened.folder, tmp_path / "copy", verify=True)
    kept = read_weights(out)
    assert {weight.dtype for weight in kept.values()} == {dtype}
    stored = read_weights(opened.folder)
    assert kept.keys() == stored.keys()
    assert all(torch.equal(kept[name], stored[name]) for name in stored)
    merged = save(adapter, tmp_path / "merged", verify=True)
    assert {weight.dtype for weight in read_weights(merged).values()} == {torch.float32}
    assert torch.equal(logits(open_model(merged, CPU)), logits(open_model(adapter, CPU)))


def test_verify_finds_a_changed_weight_and_keeps_nothing(
    opened: OpenedModel, tmp_path: Path, rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(folder: Path, config: Any, weights: Any, *rest: Any) -> None:
        name = rng.choice(sorted(weights))
        changed = weights[name].clone()
        changed.view(-1)[rng.randrange(changed.numel())] += 1e-3
        write_model(folder, config, {**weights, name: changed}, *rest)

    monkeypatch.setattr(run, "write_model", change)
    with pytest.raises(IntegrityError, match="is not what was written"):
        save(opened.folder, tmp_path / "out" / "copy", verify=True)
    assert not list((tmp_path / "out").iterdir())


def test_number_formats_of_gguf_are_refused(opened: OpenedModel, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="q8_0 is for --to gguf"):
        save(opened.folder, tmp_path / "copy", quantize="q8_0")
    assert not (tmp_path / "copy").exists()


def test_only_models_are_replaced(tmp_path: Path, rng: random.Random) -> None:
    opened = make_family("qwen3", tmp_path / "model", rng)
    out = save(opened.folder, tmp_path / "copy")
    with pytest.raises(UsageError, match="--overwrite"):
        save(opened.folder, out)
    save(opened.folder, out, overwrite=True)
    other = tmp_path / "notes"
    other.mkdir()
    (other / "mine.txt").write_text("x", encoding="utf-8")
    with pytest.raises(UsageError, match="not a model"):
        save(opened.folder, other, overwrite=True)
    assert (other / "mine.txt").exists()


@pytest.mark.parametrize("to", ["hf", "gguf"])
def test_a_classifier_is_refused_with_what_can_be_done(
    opened: OpenedModel, tmp_path: Path, to: Any
) -> None:
    path = opened.folder / "config.json"
    config = json.loads(path.read_text("utf-8"))
    named = {"architectures": ["QwenForSequenceClassification"], "id2label": {"0": "好", "1": "b"}}
    path.write_text(json.dumps(config | named), "utf-8")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UsageError, match=r"is a classifier.*a Hugging Face folder already") as told:
        export(ExportSettings(model=str(opened.folder), out=str(tmp_path / "out"), to=to))
    assert f"chatbench classify -m {opened.folder}" in str(told.value)
    assert sorted(tmp_path.rglob("*")) == before
