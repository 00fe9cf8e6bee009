"""Model folders: what transformers reads is what we wrote, and damage is named."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from chatbench.engine.engine import Engine, Request
from chatbench.errors import IntegrityError, UsageError, UserError
from chatbench.model.folder import (
    CONFIG,
    WEIGHTS,
    find_model,
    open_model,
    read_config,
    read_provenance,
    stored_weights,
    write_model,
)
from chatbench.model.transformer import GPT, ModelConfig
from chatbench.settings import SamplingSettings
from chatbench.text.tokenizer import TOKENIZER_FILE, Tokenizer, train_tokenizer

transformers = pytest.importorskip("transformers")

CPU = torch.device("cpu")
Make = Callable[..., ModelConfig]
Build = Callable[[ModelConfig], GPT]


@pytest.fixture
def save(
    tokenizer: Tokenizer, random_config: Make, random_model: Build, tmp_path: Path
) -> Callable[..., tuple[GPT, Path]]:
    """Write a random model; `changes` go into its config."""

    def make(name: str = "saved", **changes: Any) -> tuple[GPT, Path]:
        room = {"vocab_size": tokenizer.vocab_size, "context": 256}
        model = random_model(random_config(**{**room, **changes}))
        write_model(tmp_path / name, model.config, stored_weights(model), tokenizer)
        return model, tmp_path / name

    return make


@pytest.fixture
def folder(save: Callable[..., tuple[GPT, Path]]) -> Path:
    return save()[1]


def ids_of(rng: random.Random, config: ModelConfig, tokens: int) -> torch.Tensor:
    return torch.tensor([[rng.randrange(config.vocab_size) for _ in range(tokens)]])


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    """Copies, for tensors of an opened file go when the file is written over."""
    return {name: weight.clone() for name, weight in load_file(folder / WEIGHTS).items()}


def edit_config(folder: Path, drop: tuple[str, ...] = (), **changes: Any) -> None:
    raw = json.loads((folder / CONFIG).read_text("utf-8")) | changes
    kept = {key: value for key, value in raw.items() if key not in drop}
    (folder / CONFIG).write_text(json.dumps(kept), "utf-8")


def refused(folder: Path, *words: str) -> str:
    """The message of the integrity error that opening must raise, with these words in it."""
    with pytest.raises(IntegrityError) as caught:
        open_model(folder, CPU)
    assert caught.value.exit_code == 4
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message
    return message


# ---- the same model in transformers


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@torch.no_grad()
def test_transformers_computes_the_same_logits_from_our_folder(
    save: Callable[..., tuple[GPT, Path]], rng: random.Random, tied: bool
) -> None:
    model, folder = save(tie_embeddings=tied)
    twin = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = ids_of(rng, model.config, 200)
    difference = model.logits(model(ids)) - twin(ids).logits
    assert float(difference.abs().max()) < 1e-4


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_greedy_replies_equal_transformers_generate(
    save: Callable[..., tuple[GPT, Path]], rng: random.Random, tokenizer: Tokenizer, tied: bool
) -> None:
    _, folder = save(tie_embeddings=tied)
    opened = open_model(folder, CPU)
    twin = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    prompts = [ids_of(rng, opened.model.config, rng.randrange(1, 30)) for _ in range(3)]
    greedy = SamplingSettings(temperature=0, max_tokens=64)
    ours = Engine(opened.model, tokenizer).complete(Request(p[0].tolist(), greedy) for p in prompts)
    for prompt, completion in zip(prompts, ours, strict=True):
        reply = twin.generate(prompt, max_new_tokens=64, do_sample=False)[0, prompt.shape[1] :]
        ends = (tokenizer.turn_end, tokenizer.end_of_text)
        wanted = [number for number in reply.tolist() if number not in ends]
        assert completion.ids == wanted
        assert completion.finish_reason == ("length" if len(wanted) == 64 else "stop")


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_what_transformers_saves_again_opens_here_with_identical_tensors(
    save: Callable[..., tuple[GPT, Path]], tokenizer: Tokenizer, tmp_path: Path, tied: bool
) -> None:
    model, folder = save(tie_embeddings=tied)
    twin = transformers.AutoModelForCausalLM.from_pretrained(folder)
    twin.save_pretrained(tmp_path / "again")
    tokenizer.save(tmp_path / "again")
    opened = open_model(tmp_path / "again", CPU).model
    assert opened.config == model.config
    before, after = stored_weights(model), stored_weights(opened)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_saving_what_was_opened_gives_the_same_bytes(
    save: Callable[..., tuple[GPT, Path]], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    _, folder = save()
    opened = open_model(folder, CPU)
    write_model(
        tmp_path / "again", opened.model.config, stored_weights(opened.model), opened.tokenizer
    )
    for path in folder.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_the_head_is_stored_only_where_it_is_its_own(
    save: Callable[..., tuple[GPT, Path]], tied: bool
) -> None:
    model, folder = save(tie_embeddings=tied)
    assert ("lm_head.weight" in weights_of(folder)) is not tied
    opened = open_model(folder, CPU).model
    assert (opened.lm_head.weight is opened.model.embed_tokens.weight) is tied
    assert torch.equal(opened.lm_head.weight, model.lm_head.weight)


def test_a_tied_file_that_repeats_its_head_opens(
    save: Callable[..., tuple[GPT, Path]],
) -> None:
    model, folder = save(tie_embeddings=True)
    weights = weights_of(folder)
    head = {"lm_head.weight": weights["model.embed_tokens.weight"].clone()}
    save_file(weights | head, folder / WEIGHTS)
    opened = open_model(folder, CPU).model
    assert opened.parameter_count() == model.parameter_count()


@torch.no_grad()
def test_the_opened_model_computes_as_the_saved_one_and_can_be_trained_on(
    save: Callable[..., tuple[GPT, Path]], rng: random.Random
) -> None:
    model, folder = save()
    opened = open_model(folder, CPU).model
    ids = ids_of(rng, model.config, 20)
    assert torch.equal(opened.logits(opened(ids)), model.logits(model(ids)))
    assert not opened.training
    assert all(p.requires_grad for p in opened.parameters())
    assert open_model(folder, CPU, torch.bfloat16).model.lm_head.weight.dtype == torch.bfloat16


# ---- config.json


def test_the_spellings_of_transformers_4_and_5_read_alike(
    save: Callable[..., tuple[GPT, Path]],
) -> None:
    model, folder = save(rope_theta=1_000_000.0)
    assert read_config(folder) == model.config
    edit_config(folder, drop=("rope_parameters",), rope_scaling=None)
    assert read_config(folder) == model.config
    edit_config(
        folder,
        drop=("rope_theta", "torch_dtype", "rope_scaling"),
        rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
        dtype="float32",
    )
    assert read_config(folder) == model.config


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"use_sliding_window": True}, "use_sliding_window"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        ({"num_experts": 8}, "num_experts"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "gptq"),
        ({"quantization": {"bits": 4, "group_size": 64}}, "quantised"),
        ({"model_type": "my_gpt", "auto_map": {"AutoModel": "m.py"}}, "trust_remote_code"),
        ({"model_type": "gpt_oss"}, "gpt_oss"),
        ({"model_type": None}, "model_type"),
        ({"model_type": ["qwen3"]}, CONFIG),
        ({"num_attention_heads": 4, "num_key_value_heads": 3}, "n_kv_heads"),
        ({"hidden_size": "wide"}, "str"),
        ({"num_hidden_layers": 0}, "n_layers"),
        ({"rope_parameters": "default"}, CONFIG),
    ],
)
def test_what_is_not_computed_here_is_refused_by_name(
    folder: Path, change: dict[str, Any], word: str
) -> None:
    edit_config(folder, **change)
    refused(folder, str(folder), word)


@pytest.mark.parametrize("key", ["vocab_size", "num_attention_heads", "max_position_embeddings"])
def test_a_number_that_config_does_not_say_is_named(folder: Path, key: str) -> None:
    edit_config(folder, drop=(key,))
    refused(folder, CONFIG, key)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b"\xff\xfe{}"])
def test_a_config_that_is_no_json_object_is_named(folder: Path, content: bytes) -> None:
    (folder / CONFIG).write_bytes(content)
    refused(folder, str(folder / CONFIG))


# ---- damage


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS, TOKENIZER_FILE])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    refused(folder, str(folder), name)


def cut_points(size: int, header: int) -> dict[str, int]:
    return {
        "empty": 0,
        "in the header's size": 5,
        "before the header": 8,
        "in the header": 8 + header // 2,
        "before the tensors": 8 + header,
        "in the tensors": (8 + header + size) // 2,
        "one byte short": size - 1,
    }


@pytest.mark.parametrize("where", cut_points(0, 0))
def test_weights_cut_short_are_named(folder: Path, where: str) -> None:
    data = (folder / WEIGHTS).read_bytes()
    at = cut_points(len(data), int.from_bytes(data[:8], "little"))[where]
    (folder / WEIGHTS).write_bytes(data[:at])
    refused(folder, str(folder / WEIGHTS), "damaged")


def test_a_pickle_under_the_name_of_the_weights_is_not_opened(folder: Path) -> None:
    torch.save(weights_of(folder), folder / WEIGHTS)
    refused(folder, str(folder / WEIGHTS), "pickle", "save_pretrained")


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("pytorch_model.bin", "pickle"),
        ("pytorch_model-00001-of-00002.bin", "pickle"),
        ("model.PT", "pickle"),
        ("权重.pth", "pickle"),
        ("last.ckpt", "pickle"),
        ("model.pkl", "pickle"),
        ("tf_model.h5", "TensorFlow"),
        ("flax_model.msgpack", "Flax"),
        ("model-q4.gguf", "GGUF"),
        ("model.onnx", "ONNX"),
    ],
)
def test_other_weights_are_not_taken_but_named(folder: Path, name: str, word: str) -> None:
    torch.save(weights_of(folder), folder / name)
    (folder / WEIGHTS).unlink()
    refused(folder, str(folder), name, word)
    (folder / CONFIG).unlink()
    refused(folder, str(folder), name, word)


def test_the_weights_are_named_rather_than_what_lies_beside_them(folder: Path) -> None:
    for name in ("args.bin", "pytorch_model.bin", "vocab.pkl"):
        (folder / name).write_bytes(b"")
    (folder / WEIGHTS).unlink()
    refused(folder, "pytorch_model.bin")


@pytest.mark.parametrize(
    ("name", "code", "word"),
    [
        ("model.pt", 4, "pickle"),
        ("model.gguf", 2, "GGUF"),
        ("tf_model.h5", 2, "TensorFlow"),
        (WEIGHTS, 2, "name the folder it lies in"),
        ("说明.txt", 2, "holds no model"),
    ],
)
def test_a_file_in_place_of_a_folder_is_named(
    tmp_path: Path, name: str, code: int, word: str
) -> None:
    (tmp_path / name).write_bytes(b"PK")
    with pytest.raises(UserError, match=word) as caught:
        open_model(tmp_path / name, CPU)
    assert caught.value.exit_code == code


def test_a_weight_that_is_missing_is_named(folder: Path, rng: random.Random) -> None:
    weights = weights_of(folder)
    name = rng.choice(sorted(weights))
    del weights[name]
    save_file(weights, folder / WEIGHTS)
    refused(folder, WEIGHTS, name)


def test_a_weight_too_many_is_named(folder: Path) -> None:
    weights = weights_of(folder)
    save_file(weights | {"model.layers.0.extra": torch.zeros(1)}, folder / WEIGHTS)
    refused(folder, WEIGHTS, "model.layers.0.extra")


def test_a_weight_of_another_shape_is_named(folder: Path, rng: random.Random) -> None:
    weights = weights_of(folder)
    name = rng.choice(sorted(weights))
    weights[name] = torch.zeros(*weights[name].shape, 2)
    save_file(weights, folder / WEIGHTS)
    refused(folder, WEIGHTS, name, str(tuple(weights[name].shape)))


def test_a_tokenizer_larger_than_the_model_is_refused(folder: Path) -> None:
    larger = train_tokenizer(["a b c"] * 3 + [chr(n) * 3 for n in range(0x4E00, 0x5200)], 900)
    assert larger.vocab_size > read_config(folder).vocab_size
    larger.save(folder)
    refused(folder, str(folder), "tokenizer", str(larger.vocab_size))


def test_a_table_larger_than_the_tokenizer_opens(
    save: Callable[..., tuple[GPT, Path]], tokenizer: Tokenizer
) -> None:
    _, folder = save(vocab_size=tokenizer.vocab_size + 40)
    assert open_model(folder, CPU).model.config.vocab_size == tokenizer.vocab_size + 40


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS, TOKENIZER_FILE])
def test_a_flipped_bit_in_a_sealed_model_is_named(
    base_run: Path, tmp_path: Path, rng: random.Random, name: str
) -> None:
    run = shutil.copytree(base_run, tmp_path / "run")
    for holder in (run / "model", find_checkpoint(run)):
        damaged = bytearray((holder / name).read_bytes())
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        (holder / name).write_bytes(damaged)
        refused(holder, name, "checksum")


# ---- which folder is meant


def find_checkpoint(run: Path) -> Path:
    return max(run.glob("checkpoints/step-*")) / "model"


def test_a_path_to_a_run_means_its_model_else_its_newest_checkpoint(
    base_run: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(base_run, tmp_path / "run")
    assert find_model(run) == run / "model"
    assert find_model(run / "model") == run / "model"
    assert open_model(run, CPU).folder == run / "model"
    shutil.rmtree(run / "model")
    newest = find_checkpoint(run)
    shutil.copytree(newest.parent, run / "checkpoints" / "step-00000001")
    assert find_model(run) == newest
    assert open_model(run, CPU).folder == newest
    assert find_model(newest.parent) == newest


def test_a_missing_path_is_a_usage_error_with_a_suggestion(folder: Path) -> None:
    with pytest.raises(UsageError, match="does not exist") as caught:
        open_model(folder.with_name("savde"), CPU)
    assert caught.value.exit_code == 2
    assert str(folder) in str(caught.value)


def test_a_folder_or_file_that_is_no_model_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    for path in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(UsageError, match="holds no model"):
            open_model(path, CPU)


def test_another_programs_manifest_does_not_matter(folder: Path) -> None:
    for place in (folder, folder.parent):
        (place / "manifest.json").write_text('{"name": "a web page", "icons": []}')
    assert open_model(folder, CPU).folder == folder


def test_a_model_knows_how_its_corpus_was_split(base_run: Path) -> None:
    noted = read_provenance(base_run / "model")
    assert noted["split"] == {
        "val_fraction": 0.15, "test_fraction": 0.15, "split_by": "cluster", "near_threshold": 0.8,
        "repair": True,
    }  # fmt: skip
