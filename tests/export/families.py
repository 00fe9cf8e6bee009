"""Small random models of every family that GGUF has an architecture for, as folders."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import torch
from text.foreign import BUILDERS, Built, write_tokenizer
from tokenizers import Tokenizer as Backend
from torch import nn

from chatbench.model.config import ModelConfig, RopeScaling
from chatbench.model.folder import OpenedModel, open_model, stored_weights, write_model
from chatbench.model.transformer import GPT
from chatbench.text.tokenizer import open_tokenizer, train_tokenizer
from conftest import sample_texts

CPU = torch.device("cpu")
NATIVE = "chatbench"

_PLAIN: dict[str, Any] = {"qk_norm": False}
_GPT2: dict[str, Any] = {
    "model_type": "gpt2", "positions": "learned", "norm": "layer", "activation": "gelu_tanh",
    "gated": False, "qk_norm": False, "qkv_bias": True, "out_bias": True, "ffn_bias": True,
    "n_kv_heads": 4,
}  # fmt: skip
# name → (tokenizer, changes of the config)
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3": (NATIVE, {}),
    "qwen3-yarn": (
        "qwen", {"rope": RopeScaling("yarn", 4.0, 64, attention_factor=1.3, beta_fast=20.0)},
    ),
    "qwen2": ("qwen", {**_PLAIN, "model_type": "qwen2", "qkv_bias": True}),
    "qwen2-linear": (
        "qwen",
        {**_PLAIN, "model_type": "qwen2", "qkv_bias": True, "rope": RopeScaling("linear", 4.0)},
    ),
    "llama2": ("llama2", {**_PLAIN, "model_type": "llama", "head_dim": 24}),
    "llama3": (
        "llama3",
        {**_PLAIN, "model_type": "llama", "rope": RopeScaling("llama3", 8.0, 64, 1.0, 4.0)},
    ),
    "smollm": (
        "smollm", {**_PLAIN, "model_type": "llama", "qkv_bias": True, "out_bias": True,
                   "ffn_bias": True},
    ),
    "mistral": ("mistral", {**_PLAIN, "model_type": "mistral"}),
    "gpt2": ("gpt2", _GPT2),
}  # fmt: skip
ARCHITECTURE = {
    "qwen3": "qwen3", "qwen3-yarn": "qwen3", "qwen2": "qwen2", "qwen2-linear": "qwen2",
    "llama2": "llama", "llama3": "llama", "smollm": "llama", "mistral": "llama", "gpt2": "gpt2",
}  # fmt: skip


def make_family(name: str, folder: Path, rng: random.Random, **changes: Any) -> OpenedModel:
    """Write a random model of a family to `folder`, and open it."""
    kind, family = FAMILIES[name]
    if kind == NATIVE:
        tokenizer = train_tokenizer(sample_texts(), 400)
    else:
        built = complete_merges(BUILDERS[kind]())
        place = write_tokenizer(folder.with_name(f"{folder.name}-tokenizer"), built)
        tokenizer = open_tokenizer(place)
    drawn = {
        "vocab_size": tokenizer.vocab_size + rng.randrange(9), "n_layers": 2, "hidden_size": 64,
        "n_heads": 4, "n_kv_heads": rng.choice((1, 2)), "head_dim": 16, "ffn_size": 96,
        "context": 512, "tie_embeddings": rng.random() < 0.5,
    }  # fmt: skip
    config = ModelConfig(**{**drawn, **family, **changes})
    model = random_model(config, rng)
    write_model(folder, config, stored_weights(model), tokenizer)
    return open_model(folder, CPU)


def random_model(config: ModelConfig, rng: random.Random) -> GPT:
    """Every weight is random, and large enough that logits are far from each other."""
    model = GPT(config)
    generator = torch.Generator().manual_seed(rng.randrange(1 << 32))
    for name, weight in sorted(model.named_parameters()):
        if weight.ndim > 1:
            nn.init.normal_(weight, std=weight.shape[1] ** -0.5, generator=generator)
        else:
            mean = 0.0 if name.endswith("bias") else 1.0
            nn.init.normal_(weight, mean, 0.2, generator=generator)
    return model.eval()


def complete_merges(built: Built) -> Built:
    """A SentencePiece-style tokenizer with the merges that conversion from SentencePiece gives:
    for each entry, every pair of entries that spells it. Others are left as they are."""
    backend, config = built
    raw = json.loads(backend.to_str())
    model = raw["model"]
    if not model.get("byte_fallback"):
        return built
    order = dict.fromkeys(left + right for left, right in model["merges"])
    model["merges"] = [
        (entry[:cut], entry[cut:])
        for entry in order
        for cut in range(1, len(entry))
        if entry[:cut] in model["vocab"] and entry[cut:] in model["vocab"]
    ]
    return Backend.from_str(json.dumps(raw)), config


def random_strings(rng: random.Random, count: int, *, leading_space: bool = True) -> list[str]:
    """English, Chinese and code, with digits, white space and signs of every kind between; all of
    it composed (NFC), for llama.cpp does not compose."""
    words = [w for text in sample_texts(20) for w in text.split()]
    words += ["don't", "WE'LL", "naïve", "１２", "3.14", "2024年", "🙂", "👩‍🚀", "한국어", "пример"]
    code = [
        "def f(x):\n\treturn x**2",
        "if (a<=b) {\n  i++;\r\n}",
        "x = [1, 22, 333, 4444]",
        "//  —",
    ]
    between = [" ", "  ", "", "\n", "\n\n ", "\t", "，", "。", ". ", "! ", "?", "…", "\r\n", "　"]
    found = []
    while len(found) < count:
        parts = rng.choices([*words, *code], k=rng.randrange(1, 12))
        text = "".join(part + rng.choice(between) for part in parts)
        found.append(text if leading_space else text.lstrip(" "))
    return [text for text in found if text]
