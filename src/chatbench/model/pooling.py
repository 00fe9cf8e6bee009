"""One hidden state for each text: what a classifier's head sees.

Legend: B rows, T tokens, C width, N texts.
"""

from __future__ import annotations

import torch
from torch import Tensor

from chatbench.model.config import Pooling


def pooled(hidden: Tensor, ends: Tensor, lengths: Tensor, pooling: Pooling) -> Tensor:
    """(N, C) of hidden states (B, T, C), for texts that lie in the rows one after another.

    `ends` (N,): places of their last tokens in the rows laid end to end, rising; `lengths` (N,).
    mean: of all tokens of the text; last: that of its last token.
    """
    flat = hidden.flatten(0, 1)
    if pooling == "last" or not len(ends):
        return flat[ends]
    place = torch.arange(len(flat), device=ends.device)
    text = torch.searchsorted(ends, place)
    # Tokens of no text are summed in a row of their own.
    owner = text.clamp(max=len(ends) - 1)
    inside = (text < len(ends)) & (place > (ends - lengths)[owner])
    exact = torch.promote_types(flat.dtype, torch.float32)
    sums = flat.new_zeros(len(ends) + 1, flat.shape[1], dtype=exact)
    sums = sums.index_add(0, torch.where(inside, text, len(ends)), flat.to(sums.dtype))
    return (sums[:-1] / lengths[:, None]).to(flat.dtype)
