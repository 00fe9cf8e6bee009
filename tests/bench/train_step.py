"""Tokens a second of a training step: ours beside transformers' model of the same shape.

Both run AdamW over the same batch with the same learning rate; the peer is Qwen3ForCausalLM in a
bare loop, without a Trainer's overhead.

python tests/bench/train_step.py [ROUNDS]
"""

from __future__ import annotations

import sys

import torch
from pairs import compare
from transformers import Qwen3Config, Qwen3ForCausalLM

from chatbench.model.architectures import qwen3
from chatbench.model.device import dtype_name, pick_dtype
from chatbench.model.head import linear_cross_entropy
from chatbench.model.transformer import GPT, ModelConfig, initialise
from chatbench.settings import OptimSettings
from chatbench.train.objective import Batch
from chatbench.train.optimizer import Optimizers

SHAPES = {
    "demo 4×128, T 128": (ModelConfig(2048, 4, 128, 2, 2, 64, 384, 128), 16),
    "tiny 4×256, T 256": (ModelConfig(4096, 4, 256, 4, 2, 64, 704, 256), 16),
    "small 6×384, T 512": (ModelConfig(8192, 6, 384, 6, 2, 64, 1024, 512), 8),
}


class _Ours:
    def __init__(self, config: ModelConfig, batch: Batch) -> None:
        self.model = GPT(config).train()
        initialise(self.model, 0)
        dtype = pick_dtype("auto", torch.device("cpu"))
        self.optimizers = Optimizers(self.model, OptimSettings(optimizer="adamw"), 1e-3, dtype)
        self.batch = batch

    def step(self) -> None:
        hidden = self.model(self.batch.ids).flatten(0, 1)
        targets = self.batch.targets.flatten()
        loss = linear_cross_entropy(hidden, self.model.lm_head.weight, targets)
        (loss.total / len(targets)).backward()
        self.optimizers.collect_gradients()
        self.optimizers.step(1.0)


class _Peer:
    def __init__(self, config: ModelConfig, batch: Batch) -> None:
        self.model = Qwen3ForCausalLM(Qwen3Config(**qwen3.write(config))).train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3, fused=True)
        self.batch = batch

    def step(self) -> None:
        logits = self.model(self.batch.ids, use_cache=False).logits.flatten(0, 1).float()
        loss = torch.nn.functional.cross_entropy(logits, self.batch.targets.flatten())
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 9
    for name, (config, rows) in SHAPES.items():
        ids = torch.randint(0, config.vocab_size, (rows, config.context + 1))
        batch = Batch(ids[:, :-1], ids[:, 1:], torch.ones(rows, config.context), None)
        a, b, ratio = compare(_Ours(config, batch).step, _Peer(config, batch).step, rounds)
        tokens = rows * config.context
        dtype = dtype_name(pick_dtype("auto", torch.device("cpu")))
        print(
            f"{name}: ours ({dtype}) {tokens / a:,.0f} tok/s · transformers (float32) "
            f"{tokens / b:,.0f} tok/s · {ratio:.2f}× ({rounds} pairs)"
        )


if __name__ == "__main__":
    main()
