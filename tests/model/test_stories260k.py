"""Real trained weights, end to end: what another program said of them, we say too.

The shared data are no part of the repository; without them these tests skip.
"""

from __future__ import annotations

import copy
import json
import math
import re
import struct
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from chatbench.engine.cache import KVCache
from chatbench.engine.score import token_losses
from chatbench.model.architectures import ARCHITECTURES
from chatbench.model.folder import read_config, read_weights
from chatbench.model.kernels import compiled
from chatbench.model.quantize import quantize_model
from chatbench.model.transformer import GPT
from conftest import SHARED_DATA

FOLDER = SHARED_DATA / "stories260k"
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="the shared data are not here")
BOS = 1


def half_split(weight: Tensor, heads: int) -> Tensor:
    """Rows of interleaved rotary pairs (0 1)(2 3)… put as the hub has them, 0 2 … 1 3 …"""
    rows, width = weight.shape
    pairs = weight.view(heads, rows // heads // 2, 2, width)
    return pairs.transpose(1, 2).reshape(rows, width)


def hub_weights(blob: bytes) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """config.json and weights under the hub's names, from the binary form in SOURCE.md."""
    dim, hidden, layers, heads, kv_heads, vocab, context = struct.unpack_from("<7i", blob)
    values = torch.frombuffer(bytearray(blob[28:]), dtype=torch.float32)
    taken = 0

    def take(*shape: int) -> Tensor:
        nonlocal taken
        count = torch.Size(shape).numel()
        taken += count
        return values[taken - count : taken].view(shape)

    kv = dim // heads * kv_heads
    stacked = {"model.embed_tokens.weight": take(vocab, dim)}
    blocks = {
        "input_layernorm": take(layers, dim),
        "self_attn.q_proj": take(layers, dim, dim),
        "self_attn.k_proj": take(layers, kv, dim),
        "self_attn.v_proj": take(layers, kv, dim),
        "self_attn.o_proj": take(layers, dim, dim),
        "post_attention_layernorm": take(layers, dim),
        "mlp.gate_proj": take(layers, hidden, dim),
        "mlp.down_proj": take(layers, dim, hidden),
        "mlp.up_proj": take(layers, hidden, dim),
    }
    stacked["model.norm.weight"] = take(dim)
    for part, weights in blocks.items():
        turned = {"self_attn.q_proj": heads, "self_attn.k_proj": kv_heads}.get(part)
        for number, weight in enumerate(weights):
            name = f"model.layers.{number}.{part}.weight"
            stacked[name] = half_split(weight, turned) if turned else weight
    config = {
        "model_type": "llama", "vocab_size": vocab, "hidden_size": dim,
        "intermediate_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "max_position_embeddings": context,
        "rms_norm_eps": 1e-5, "tie_word_embeddings": True,
    }  # fmt: skip
    return config, {name: weight.contiguous() for name, weight in stacked.items()}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> GPT:
    """Read back from the folder that a hub download would be, but for its tokenizer."""
    folder = tmp_path_factory.mktemp("stories260k")
    config, weights = hub_weights((FOLDER / "stories260K.bin").read_bytes())
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    model = GPT(read_config(folder))
    found = ARCHITECTURES["llama"].from_hub(read_weights(folder), model.config)
    missing, unexpected = model.load_state_dict(found, strict=False)
    assert missing == ["lm_head.weight"]
    assert not unexpected
    return model.eval()


@pytest.fixture(scope="module")
def reference() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FOLDER / "reference.json").read_text("utf-8"))
    return found


def pieces(path: Path) -> list[tuple[float, bytes]]:
    """Score and bytes of every id."""
    blob, at, found = path.read_bytes(), 4, []
    while at < len(blob):
        score, length = struct.unpack_from("<fi", blob, at)
        found.append((score, blob[at + 8 : at + 8 + length]))
        at += 8 + length
    return found


def encode(text: str, table: list[tuple[float, bytes]]) -> list[int]:
    known = {piece: number for number, (_, piece) in enumerate(table)}
    ids = [known[bytes([byte])] for byte in b" " + text.encode()] if text else []
    while True:
        joined = [
            (table[known[both]][0], -place, known[both])
            for place, (a, b) in enumerate(pairwise(ids))
            if (both := table[a][1] + table[b][1]) in known
        ]
        if not joined:
            return [BOS, *ids]
        _, place, number = max(joined)
        ids[-place : -place + 2] = [number]


def decode(ids: list[int], table: list[tuple[float, bytes]]) -> str:
    found = [table[number][1] for number in ids]
    found[0] = found[0].removeprefix(b" ")
    byte = re.compile(rb"<0x([0-9A-F]{2})>")
    raw = (bytes.fromhex(m[1].decode()) if (m := byte.fullmatch(p)) else p for p in found)
    return b"".join(raw).decode()


@torch.no_grad()
def test_first_scores_equal_the_reference(model: GPT, reference: dict[str, Any]) -> None:
    scores, ids = model.logits(model(torch.tensor([[BOS]])))[0, 0].topk(10)
    wanted = reference["top10_logits_after_bos"]
    assert ids.tolist() == [number for number, _ in wanted]
    torch.testing.assert_close(
        scores, torch.tensor([score for _, score in wanted]), atol=1e-4, rtol=0
    )


@torch.inference_mode()
def test_greedy_stories_equal_the_reference(model: GPT, reference: dict[str, Any]) -> None:
    table = pieces(FOLDER / "tok512.bin")
    for story in reference["greedy"]:
        ids = encode(story["prompt"], table)
        cache = KVCache(model.config, 1, torch.device("cpu"), torch.float32)
        cache.reserve(story["steps"] + 1)
        fresh = ids
        # Positions are counted with the prompt's.
        while len(ids) <= story["steps"]:
            hidden = model(torch.tensor([fresh]), cache=cache.layers(0, 1))
            cache.lengths[0] = len(ids)
            fresh = [int(model.logits(hidden[0, -1]).argmax())]
            ids = ids + fresh
        # The reference was kept without the line end that closes it.
        assert decode(ids[1:], table).rstrip("\n") == story["output"]


def test_likelihoods_equal_the_reference(model: GPT, reference: dict[str, Any]) -> None:
    table = pieces(FOLDER / "tok512.bin")
    texts = reference["likelihood"]
    assert [encode(each["text"], table) for each in texts] == [e["token_ids"] for e in texts]
    losses = token_losses(model, (each["token_ids"] for each in texts), (), 4)
    for each, found in zip(texts, losses, strict=True):
        assert float(found.sum()) == pytest.approx(each["sum_nll"], rel=1e-4)


@pytest.mark.parametrize(("kind", "most", "share"), [("int8", 1.005, 0.39), ("int4", 1.1, 0.33)])
def test_few_bits_keep_the_likelihood(
    model: GPT, reference: dict[str, Any], kind: str, most: float, share: float
) -> None:
    """Measured: int8 0.998 of the perplexity, int4 1.06, of a model far smaller than any that
    needs either; embeddings, a quarter of its numbers, stay exact beside their copy in the head."""
    few = copy.deepcopy(model)
    report = quantize_model(few, kind)
    texts = [each["token_ids"] for each in reference["likelihood"]]
    exact, ours = (sum(float(x.sum()) for x in token_losses(m, texts, (), 4)) for m in (model, few))
    tokens = sum(len(text) - 1 for text in texts)
    assert 0.97 < math.exp((ours - exact) / tokens) < most
    assert report.bytes_after < share * report.bytes_before


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_rounded_activations_keep_the_likelihood(
    model: GPT, reference: dict[str, Any], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    if compiled.why_not():
        pytest.skip(compiled.why_not())
    few = copy.deepcopy(model)
    quantize_model(few, kind)
    texts = [each["token_ids"] for each in reference["likelihood"]]
    found = []
    for rows in (0, 1 << 20):  # no product by the extension, then every one of the blocks
        monkeypatch.setattr(compiled, "FEW_ROWS", rows)
        found.append(sum(float(x.sum()) for x in token_losses(few, texts, (), 4)))
    count = sum(len(ids) - 1 for ids in texts)
    # Perplexity moves by less than a percent, either way.
    assert found[0] != found[1]
    assert abs(found[1] - found[0]) / count < 0.01
