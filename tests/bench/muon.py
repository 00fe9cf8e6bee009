"""One Muon step over the hidden matrices of a model: ours beside torch.optim.Muon.

python tests/bench/muon.py [ROUNDS]
"""

from __future__ import annotations

import sys

import torch
from pairs import compare
from torch import nn

from chatbench.model.device import dtype_name, pick_dtype
from chatbench.train.optimizer import Muon


def matrices(width: int, layers: int) -> list[nn.Parameter]:
    shapes = [(width, width)] * 4 + [(3 * width, width)] * 2 + [(width, 3 * width)]
    made = [nn.Parameter(torch.randn(shape)) for _ in range(layers) for shape in shapes]
    for parameter in made:
        parameter.grad = torch.randn_like(parameter)
    return made


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    dtype = pick_dtype("auto", torch.device("cpu"))
    for width, layers in ((128, 4), (256, 4), (384, 6)):
        ours = Muon(matrices(width, layers), 1e-3, 0.95, 0.1, dtype)
        peer = torch.optim.Muon(matrices(width, layers), adjust_lr_fn="match_rms_adamw")
        a, b, ratio = compare(ours.step, peer.step, rounds)
        print(
            f"{layers} layers × {width}: ours ({dtype_name(dtype)}) {1000 * a:.0f} ms · "
            f"torch.optim.Muon {1000 * b:.0f} ms · {ratio:.1f}× faster ({rounds} pairs)"
        )


if __name__ == "__main__":
    main()
