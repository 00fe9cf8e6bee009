"""One linear layer, float32 or bfloat16 beside its int8 and int4 twins: by torch's kernels, and by
weights made whole again. The last column is what the dispatch takes.

python tests/bench/quantized_linear.py [float32|bfloat16] [ROUNDS]
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from chatbench.model.quantize import (
    Kind,
    QuantizedLinear,
    kernel_block,
    kernel_product,
    whole_product,
)

SIZES = ((256, 256), (256, 1024), (1024, 1024), (1024, 4096), (4096, 1024), (4096, 4096))
ROWS = (1, 2, 4, 8, 16, 32, 64)
KINDS: tuple[Kind, ...] = ("int8", "int4")


def microseconds(work: Callable[[], object], rounds: int) -> float:
    """The median of some runs, after one that is not counted."""
    work()
    times = []
    for _ in range(rounds):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return 1e6 * sorted(times)[rounds // 2]


@torch.inference_mode()
def main() -> None:
    dtype = torch.bfloat16 if "bfloat16" in sys.argv else torch.float32
    rounds = next((int(a) for a in sys.argv[1:] if a.isdigit()), 7)
    print(f"{torch.get_num_threads()} threads, activations {dtype}, int4 blocks {kernel_block()}")
    print("    K     N  rows    exact |  int8 kernel    whole |  int4 kernel    whole   (µs)")
    for inputs, outputs in SIZES:
        linear = nn.Linear(inputs, outputs, bias=False)
        exact = linear.weight.to(dtype)
        layers = [QuantizedLinear(linear, kind) for kind in KINDS]
        for rows in ROWS:
            x = torch.randn(rows, inputs, dtype=dtype)
            cells = [f"{microseconds(lambda x=x, w=exact: F.linear(x, w), rounds):8.0f}"]
            for layer in layers:
                kernel, whole = (
                    microseconds(lambda p=product, x=x, q=layer: p(x, q), rounds)
                    for product in (kernel_product, whole_product)
                )
                cells.append(f"{kernel:12.0f} {whole:8.0f}")
            print(f"{inputs:5} {outputs:5} {rows:5} {' | '.join(cells)}")


if __name__ == "__main__":
    main()
