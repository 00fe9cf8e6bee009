"""Model folders of every family: both ways with transformers, in one file and in several."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from text.foreign import BUILDERS, write_tokenizer

from chatbench.errors import IntegrityError, UsageError
from chatbench.model.architectures import ARCHITECTURES
from chatbench.model.folder import (
    CONFIG,
    WEIGHTS,
    find_model,
    open_model,
    read_provenance,
    stored_weights,
    write_model,
)
from chatbench.model.lora import LoraConfig, add_adapter, save_adapter
from chatbench.model.quantize import QuantizedLinear
from chatbench.model.transformer import GPT, ModelConfig
from chatbench.text.tokenizer import Tokenizer, open_tokenizer

transformers = pytest.importorskip("transformers")

CPU = torch.device("cpu")
INDEX = f"{WEIGHTS}.index.json"
Save = Callable[..., tuple[GPT, Path]]


@pytest.fixture
def save(
    tokenizer: Tokenizer,
    random_family: Callable[..., ModelConfig],
    random_model: Callable[[ModelConfig], GPT],
    tmp_path: Path,
) -> Save:
    """Write a random model of a family; `changes` go into its config."""

    def make(family: str, name: str = "saved", shard: int = 1 << 40, **changes: Any) -> Any:
        room = {"vocab_size": tokenizer.vocab_size, "context": 64}
        model = random_model(random_family(family, **{**room, **changes}))
        write_model(
            tmp_path / name, model.config, stored_weights(model), tokenizer, {"from": "测试"},
            largest_shard=shard,
        )  # fmt: skip
        return model, tmp_path / name

    return make


def logits_of(model: GPT, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.logits(model(ids))


def ids_for(rng: random.Random, config: ModelConfig) -> torch.Tensor:
    return torch.tensor([[rng.randrange(config.vocab_size) for _ in range(40)]])


def identical(one: GPT, other: GPT) -> bool:
    before, after = stored_weights(one), stored_weights(other)
    return before.keys() == after.keys() and all(torch.equal(before[n], after[n]) for n in before)


def all_weights(folder: Path) -> dict[str, torch.Tensor]:
    return {
        name: weight.clone()
        for path in folder.glob("*.safetensors")
        for name, weight in load_file(path).items()
    }


def edit(path: Path, **changes: Any) -> None:
    raw = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps(raw | changes, ensure_ascii=False), "utf-8")


@pytest.mark.parametrize("shard", [1 << 40, 3000], ids=["whole", "sharded"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("family", sorted(ARCHITECTURES))
def test_transformers_loads_what_we_write_and_we_what_it_saves(
    save: Save, tokenizer: Tokenizer, rng: random.Random, tmp_path: Path,
    family: str, tied: bool, shard: int,
) -> None:  # fmt: skip
    model, folder = save(family, shard=shard, tie_embeddings=tied)
    assert (folder / INDEX).exists() is (shard == 3000)
    assert identical(open_model(folder, CPU).model, model)
    twin = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = ids_for(rng, model.config)
    difference = logits_of(model, ids) - twin(ids).logits
    assert float(difference.detach().abs().max()) < 1e-4
    twin.save_pretrained(tmp_path / "again", max_shard_size=shard)
    tokenizer.save(tmp_path / "again")
    again = open_model(tmp_path / "again", CPU).model
    assert again.config == model.config
    assert identical(again, model)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_kept_and_said(
    save: Save, tokenizer: Tokenizer, tmp_path: Path, dtype: torch.dtype
) -> None:
    model, folder = save("llama")
    half = open_model(folder, CPU, dtype).model
    assert {w.dtype for w in half.parameters()} == {dtype}
    write_model(tmp_path / "half", half.config, stored_weights(half), tokenizer)
    name = str(dtype).removeprefix("torch.")
    said = json.loads((tmp_path / "half" / CONFIG).read_text("utf-8"))
    assert said.get("dtype", said.get("torch_dtype")) == name
    assert {w.dtype for w in all_weights(tmp_path / "half").values()} == {dtype}
    twin = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "half", dtype="auto")
    assert twin.dtype == dtype
    rounded = open_model(tmp_path / "half", CPU).model
    for name, weight in stored_weights(rounded).items():
        assert weight.dtype == torch.float32
        assert torch.equal(weight, stored_weights(model)[name].to(dtype).float())


def test_what_is_stored_in_double_precision_is_rounded(save: Save) -> None:
    model, folder = save("qwen2")
    save_file({n: w.double() for n, w in all_weights(folder).items()}, folder / WEIGHTS)
    assert identical(open_model(folder, CPU).model, model)


# ---- heads


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_head_stored_in_place_of_the_embedding_it_is_tied_to_serves_both(
    save: Save, family: str
) -> None:
    model, folder = save(family, tie_embeddings=True)
    weights = all_weights(folder)
    embedding = next(n for n in weights if n.endswith(("embed_tokens.weight", "wte.weight")))
    weights["lm_head.weight"] = weights.pop(embedding)
    save_file(weights, folder / WEIGHTS)
    opened = open_model(folder, CPU).model
    assert identical(opened, model)
    assert opened.lm_head.weight is opened.model.embed_tokens.weight


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_head_that_differs_from_the_embedding_it_is_said_to_be_counts(
    save: Save, rng: random.Random, capsys: pytest.CaptureFixture[str], family: str
) -> None:
    model, folder = save(family, tie_embeddings=True)
    head = {"lm_head.weight": torch.randn(model.lm_head.weight.shape)}
    save_file(all_weights(folder) | head, folder / WEIGHTS, {"format": "pt"})
    opened = open_model(folder, CPU).model
    assert not opened.config.tie_embeddings
    assert "differs" in capsys.readouterr().err
    ids = ids_for(rng, model.config)
    twin = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    difference = logits_of(opened, ids) - twin(ids).logits
    assert float(difference.detach().abs().max()) < 1e-4


def test_an_untied_model_without_head_is_refused_with_what_may_help(save: Save) -> None:
    _, folder = save("llama", tie_embeddings=True)
    edit(folder / CONFIG, tie_word_embeddings=False)
    with pytest.raises(IntegrityError, match=r"lm_head\.weight.*tie_word_embeddings"):
        open_model(folder, CPU)


def test_masks_of_old_checkpoints_are_left_out(save: Save) -> None:
    model, folder = save("gpt2")
    masks = {
        "transformer.h.0.attn.bias": torch.ones(1, 1, 8, 8, dtype=torch.bool),
        "transformer.h.0.attn.masked_bias": torch.tensor(-1e4),
    }
    save_file(all_weights(folder) | masks, folder / WEIGHTS)
    assert identical(open_model(folder, CPU).model, model)


def test_a_quantised_tensor_is_named(save: Save) -> None:
    _, folder = save("llama")
    weights = all_weights(folder)
    name = "model.layers.0.mlp.up_proj.weight"
    save_file(weights | {name: weights[name].to(torch.int8)}, folder / WEIGHTS)
    with pytest.raises(IntegrityError, match="before it was quantised") as caught:
        open_model(folder, CPU)
    assert name in str(caught.value)


# ---- tokenizers


@pytest.mark.parametrize("kind", sorted(BUILDERS))
def test_the_ids_that_end_a_reply_are_written_for_other_programs(
    random_family: Callable[..., ModelConfig], random_model: Callable[[ModelConfig], GPT],
    tmp_path: Path, kind: str,
) -> None:  # fmt: skip
    tokenizer = open_tokenizer(write_tokenizer(tmp_path / "tokenizer", BUILDERS[kind]()))
    model = random_model(random_family("llama", vocab_size=tokenizer.vocab_size, context=64))
    write_model(tmp_path / "model", model.config, stored_weights(model), tokenizer)
    generation = transformers.GenerationConfig.from_pretrained(tmp_path / "model")
    assert set(generation.eos_token_id) == tokenizer.stops
    config = transformers.AutoConfig.from_pretrained(tmp_path / "model")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    assert config.eos_token_id == theirs.eos_token_id == generation.eos_token_id[0]
    assert theirs.bos_token_id is None or config.bos_token_id == theirs.bos_token_id
    assert generation.pad_token_id is not None
    opened = open_model(tmp_path / "model", CPU).tokenizer
    assert opened.stops == tokenizer.stops
    assert opened.encode("Tea, 茶叶!") == tokenizer.encode("Tea, 茶叶!")


def test_what_was_asked_for_is_passed_on(
    random_model: Callable[[ModelConfig], GPT], random_family: Callable[..., ModelConfig],
    tokenizer: Tokenizer, rng: random.Random, tmp_path: Path,
) -> None:  # fmt: skip
    shape = {"hidden_size": 64, "ffn_size": 128, "context": 64, "tie_embeddings": True}
    model = random_model(random_family("llama", vocab_size=tokenizer.vocab_size, **shape))
    write_model(tmp_path / "model", model.config, stored_weights(model), tokenizer)
    folder, ids = str(tmp_path / "model"), ids_for(rng, model.config)
    opened = open_model(folder, CPU, quantize="int8", template="plain")
    assert opened.tokenizer.template_source == "plain"
    assert any(isinstance(module, QuantizedLinear) for module in opened.model.modules())
    exact, ours = logits_of(model, ids), logits_of(opened.model, ids)
    assert not torch.equal(ours, exact)
    assert float((ours - exact).std()) < 0.1 * float(exact.std())


@torch.no_grad()
def test_a_model_with_a_window_opens_for_texts_that_fit_into_it(
    save: Save, rng: random.Random, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    _, folder = save("mistral")
    raw = json.loads((folder / CONFIG).read_text("utf-8"))
    raw |= {"max_position_embeddings": 64, "sliding_window": 40}
    (folder / CONFIG).write_text(json.dumps(raw), "utf-8")
    (folder / "manifest.json").unlink(missing_ok=True)
    opened = open_model(folder, CPU)
    told = capsys.readouterr().err
    assert "64" in told
    assert "40" in told
    assert opened.model.config.context == 40
    twin = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    assert twin.config.sliding_window == 40
    ids = ids_for(rng, opened.model.config)
    torch.testing.assert_close(logits_of(opened.model, ids), twin.eval()(ids).logits,
                               atol=1e-4, rtol=0)  # fmt: skip
    write_model(tmp_path / "again", opened.model.config, stored_weights(opened.model),
                opened.tokenizer)  # fmt: skip
    capsys.readouterr()
    again = open_model(tmp_path / "again", CPU)
    assert again.model.config == opened.model.config
    assert capsys.readouterr().err == ""


def test_provenance_survives(save: Save) -> None:
    assert read_provenance(save("gpt2")[1]) == {"from": "测试"}


# ---- adapters


@pytest.fixture
def adapted(save: Save, rng: random.Random, tmp_path: Path) -> Callable[..., tuple[GPT, Path]]:
    """A model with a random adapter, and the folder of the adapter; the base lies in base/."""

    def make(base_name: str = "../base", family: str = "llama") -> tuple[GPT, Path]:
        model, _ = save(family, name="base")
        config = LoraConfig(rank=3, alpha=6.0)
        add_adapter(model, config, seed=rng.randrange(1000))
        with torch.no_grad():
            for weight in model.parameters():
                if weight.requires_grad:
                    weight.normal_(std=0.3)
        folder = tmp_path / "adapter"
        folder.mkdir()
        save_adapter(folder, model, config, base_name)
        return model.eval(), folder

    return make


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_an_adapter_folder_opens_with_its_base(
    adapted: Callable[..., tuple[GPT, Path]], rng: random.Random, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, family: str,
) -> None:  # fmt: skip
    model, folder = adapted(family=family)
    ids = ids_for(rng, model.config)
    opened = open_model(folder, CPU)
    assert opened.folder == folder == find_model(folder)
    assert torch.allclose(logits_of(opened.model, ids), logits_of(model, ids), atol=1e-4)
    base = logits_of(open_model(tmp_path / "base", CPU).model, ids)
    assert not torch.allclose(logits_of(opened.model, ids), base, atol=1e-2)
    assert opened.tokenizer.vocab_size == model.config.vocab_size
    assert read_provenance(folder) == {"from": "测试"}
    # Relative to the working directory, and in full.
    monkeypatch.chdir(tmp_path)
    for name in ("base", str(tmp_path / "base")):
        edit(folder / "adapter_config.json", base_model_name_or_path=name)
        assert identical(open_model(folder, CPU).model, opened.model)


def test_an_adapter_uses_its_own_tokenizer_when_it_has_one(
    adapted: Callable[..., tuple[GPT, Path]], tmp_path: Path
) -> None:
    _, folder = adapted()
    write_tokenizer(folder, BUILDERS["qwen"]())
    own = open_tokenizer(folder)
    if own.vocab_size > open_tokenizer(tmp_path / "base").vocab_size:
        with pytest.raises(IntegrityError, match="tokenizer"):
            open_model(folder, CPU)
    else:
        assert open_model(folder, CPU).tokenizer.digest == own.digest


@pytest.mark.parametrize("name", ["owner/nowhere", "owner/模型", "x" * 5000, "../..\n/etc"])
def test_an_adapter_whose_base_is_elsewhere_says_how_to_fetch_it(
    adapted: Callable[..., tuple[GPT, Path]], name: str
) -> None:
    _, folder = adapted(name)
    with pytest.raises(UsageError, match="hf://") as caught:
        open_model(folder, CPU)
    assert len(str(caught.value)) < 800


@pytest.mark.parametrize("name", [None, "", 7, "a\0b"])
def test_an_adapter_that_does_not_say_its_base_is_refused(
    adapted: Callable[..., tuple[GPT, Path]], name: object
) -> None:
    _, folder = adapted()
    edit(folder / "adapter_config.json", base_model_name_or_path=name)
    with pytest.raises(IntegrityError, match="base_model_name_or_path"):
        open_model(folder, CPU)


def test_an_adapter_without_safetensors_says_what_lies_there(
    adapted: Callable[..., tuple[GPT, Path]],
) -> None:
    _, folder = adapted()
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(IntegrityError, match=r"adapter_model\.bin: a pickle"):
        open_model(folder, CPU)
    (folder / "adapter_model.bin").unlink()
    with pytest.raises(IntegrityError, match=r"has no adapter_model\.safetensors"):
        open_model(folder, CPU)


@pytest.mark.parametrize("name", [".", "../second"])
def test_an_adapter_of_an_adapter_is_refused(
    adapted: Callable[..., tuple[GPT, Path]], tmp_path: Path, name: str
) -> None:
    _, folder = adapted()
    (tmp_path / "second").mkdir()
    for path in folder.iterdir():
        (tmp_path / "second" / path.name).write_bytes(path.read_bytes())
    edit(folder / "adapter_config.json", base_model_name_or_path=name)
    with pytest.raises(IntegrityError, match="adapter itself"):
        open_model(folder, CPU)


def test_a_folder_that_holds_a_whole_model_too_is_that_model(
    adapted: Callable[..., tuple[GPT, Path]], tmp_path: Path
) -> None:
    _, folder = adapted()
    base = open_model(tmp_path / "base", CPU).model
    for path in (tmp_path / "base").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    assert identical(open_model(folder, CPU).model, base)
