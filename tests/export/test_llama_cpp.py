"""llama.cpp reads the same ids, computes the same logits and writes the same tokens."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from export.families import FAMILIES, make_family, random_strings

from chatbench.export.run import export
from chatbench.model.folder import OpenedModel
from chatbench.settings import ExportSettings

llama_cpp = pytest.importorskip("llama_cpp")
GGMLQuantizationType = pytest.importorskip("gguf").GGMLQuantizationType
quantize_array = pytest.importorskip("gguf.quants").quantize
dequantize = pytest.importorskip("gguf.quants").dequantize
pytestmark = pytest.mark.slow

# llama.cpp computes GELU from a table of f16 numbers, the rest in float32 like us.
_LOGITS = {"gpt2": 1e-2}
_FLOAT32_CACHE = {"type_k": 0, "type_v": 0}
# The binding would otherwise put defaults in place of the file's.
_FROM_FILE = {"yarn_attn_factor": -1.0, "yarn_beta_fast": -1.0, "yarn_beta_slow": -1.0}


def load(path: Path, context: int = 512) -> Any:
    return llama_cpp.Llama(
        str(path), n_ctx=context, n_batch=context, logits_all=True, verbose=False, n_threads=1,
        n_threads_batch=1, **_FLOAT32_CACHE, **_FROM_FILE,
    )  # fmt: skip


@pytest.fixture(params=FAMILIES)
def opened(request: pytest.FixtureRequest, tmp_path: Path, rng: random.Random) -> OpenedModel:
    return make_family(request.param, tmp_path / request.param, rng)


def exported(opened: OpenedModel, tmp_path: Path, quantize: str) -> Any:
    settings = ExportSettings(
        model=str(opened.folder), out=str(tmp_path / f"{quantize}.gguf"), quantize=quantize
    )
    return load(export(settings))


@torch.no_grad()
def our_logits(opened: OpenedModel, ids: list[int]) -> np.ndarray:
    logits: np.ndarray = opened.model.logits(opened.model(torch.tensor([ids])))[0].numpy()
    return logits


def their_logits(llama: Any, ids: list[int]) -> np.ndarray:
    llama.reset()
    llama.eval(ids)
    return np.array(llama.scores[: len(ids)])


def test_logits_are_ours(opened: OpenedModel, tmp_path: Path, rng: random.Random) -> None:
    llama = exported(opened, tmp_path, "f32")
    ids = [rng.randrange(opened.tokenizer.vocab_size) for _ in range(300)]
    difference = np.abs(their_logits(llama, ids) - our_logits(opened, ids)).max()
    assert difference < _LOGITS.get(opened.model.config.model_type, 2e-4)


def test_greedy_tokens_are_ours_in_f16(
    opened: OpenedModel, tmp_path: Path, rng: random.Random
) -> None:
    llama = exported(opened, tmp_path, "f16")
    for _ in range(3):
        ids = [rng.randrange(opened.tokenizer.vocab_size) for _ in range(rng.randrange(1, 30))]
        llama.reset()
        llama.eval(ids)
        for _ in range(32):
            ours = our_logits(opened, ids)[-1]
            best, second = np.sort(ours)[::-1][:2]
            theirs = int(llama.scores[len(ids) - 1].argmax())
            # f16 may decide a tie the other way, and nothing else.
            assert ours[theirs] == best or best - second < 0.02
            ids.append(int(ours.argmax()))
            llama.eval(ids[-1:])


@torch.no_grad()
def rounded(opened: OpenedModel, quantize: str) -> OpenedModel:
    """The same model with the numbers that the file holds."""
    kind = GGMLQuantizationType[quantize.upper()]
    for name, weight in opened.model.named_parameters():
        if weight.ndim > 1 and "embed_positions" not in name:
            vocabulary = "embed_tokens" in name or "lm_head" in name
            its = GGMLQuantizationType.Q8_0 if vocabulary and quantize == "q4_0" else kind
            if weight.shape[1] % 32 and quantize[0] == "q":
                its = GGMLQuantizationType.F16
            weight.copy_(torch.from_numpy(dequantize(quantize_array(weight.numpy(), its), its)))
    return opened


@pytest.mark.parametrize("quantize", ["q8_0", "q4_0"])
def test_logits_are_those_of_the_rounded_weights(
    opened: OpenedModel, tmp_path: Path, rng: random.Random, quantize: str
) -> None:
    llama = exported(opened, tmp_path, quantize)
    ids = [rng.randrange(opened.tokenizer.vocab_size) for _ in range(60)]
    ours, theirs = our_logits(rounded(opened, quantize), ids), their_logits(llama, ids)
    # llama.cpp multiplies by activations of 8 bits.
    assert np.corrcoef(ours.ravel(), theirs.ravel())[0, 1] > 0.998


def test_ids_are_ours(opened: OpenedModel, tmp_path: Path, rng: random.Random) -> None:
    llama = exported(opened, tmp_path, "q8_0")
    # Metaspace adds no space before one, llama.cpp does; the export says so.
    leading = opened.model.config.model_type != "mistral"
    for text in random_strings(rng, 1000, leading_space=leading):
        theirs = llama.tokenize(text.encode(), add_bos=False, special=False)
        assert theirs == opened.tokenizer.encode(text), text


def test_special_tokens_are_ours(opened: OpenedModel, tmp_path: Path) -> None:
    llama = exported(opened, tmp_path, "q8_0")
    tokenizer = opened.tokenizer
    vocabulary = llama._model.vocab
    for stop in tokenizer.stops:
        assert llama_cpp.llama_vocab_is_eog(vocabulary, stop)
    for text, number in tokenizer.controls.items():
        if number in tokenizer.control_ids:
            assert llama.tokenize(text.encode(), add_bos=False, special=True) == [number]
            spelled = llama.tokenize(f"a{text}b".encode(), add_bos=False, special=False)
            assert number not in spelled
    begins = llama.tokenize(b"text", add_bos=True, special=False)
    # The families whose tokenizer puts a token first by itself.
    first = (
        [*tokenizer.text_prefix] if opened.folder.name in ("llama2", "llama3", "mistral") else []
    )
    assert begins == [*first, *tokenizer.encode("text")]


@pytest.mark.parametrize(
    "shape",
    [
        {"hidden_size": 36, "head_dim": 10, "ffn_size": 50, "n_heads": 6, "n_kv_heads": 3},
        # The demo's, with most of its vocabulary missing.
        {"hidden_size": 128, "head_dim": 64, "ffn_size": 384, "n_heads": 2, "vocab_size": 2048},
    ],
    ids=["odd", "demo"],
)
@pytest.mark.parametrize("quantize", ["f32", "f16", "q8_0", "q4_0"])
def test_other_shapes_load(
    tmp_path: Path, rng: random.Random, shape: dict[str, Any], quantize: str
) -> None:
    opened = make_family("qwen3", tmp_path / "model", rng, **shape)
    ids = [rng.randrange(opened.tokenizer.vocab_size) for _ in range(50)]
    llama = exported(opened, tmp_path, quantize)
    ours, theirs = our_logits(rounded(opened, quantize), ids), their_logits(llama, ids)
    assert np.corrcoef(ours.ravel(), theirs.ravel())[0, 1] > 0.998
