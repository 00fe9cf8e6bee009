"""What a head sees of each text, against a loop."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from chatbench.model.config import Pooling
from chatbench.model.pooling import pooled


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_texts_anywhere_in_the_rows(rng: random.Random, pooling: Pooling) -> None:
    rows, tokens, width = rng.randint(1, 4), rng.randint(1, 40), rng.randint(1, 9)
    hidden = torch.randn(rows, tokens, width, dtype=torch.float64, requires_grad=True)
    ends, lengths, wanted = [], [], list[Tensor]()
    for row in range(rows):
        at = 0
        while True:
            begin = at + rng.randint(0, 2)  # what belongs to no text
            end = begin + rng.randint(1, 7)
            if end > tokens:
                break
            ends.append(row * tokens + end - 1)
            lengths.append(end - begin)
            text = hidden[row, begin:end]
            wanted.append(text.mean(0) if pooling == "mean" else text[-1])
            at = end
    places = torch.tensor(ends, dtype=torch.int64)
    found = pooled(hidden, places, torch.tensor(lengths, dtype=torch.int64), pooling)
    assert found.shape == (len(ends), width)
    if ends:
        expected = torch.stack(wanted)
        assert float((found - expected).detach().abs().max()) < 1e-12
        upstream = torch.randn_like(found)
        (ours,) = torch.autograd.grad(found, hidden, upstream, retain_graph=True)
        (theirs,) = torch.autograd.grad(expected, hidden, upstream)
        assert float((ours - theirs).abs().max()) < 1e-12


def test_narrow_numbers_are_added_in_wide_ones(rng: random.Random) -> None:
    ones = torch.ones(1, 4000, 2, dtype=torch.bfloat16)  # added in bfloat16 they stop at 256
    count = rng.randint(300, 4000)
    found = pooled(ones, torch.tensor([count - 1]), torch.tensor([count]), "mean")
    assert found.dtype == torch.bfloat16
    assert found.tolist() == [[1.0, 1.0]]
