"""The model as training runs it: compiled where that pays, blocks run twice where memory asks.

Evaluation, samples and checkpoints use the plain model, whose parameters are the same tensors.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from chatbench import console
from chatbench.errors import EnvironmentFault
from chatbench.model.adapter import adapted
from chatbench.model.attention import Packing
from chatbench.model.transformer import GPT, ModelConfig
from chatbench.settings import TrainSettings
from chatbench.train.feed import Prepare
from chatbench.train.objective import Batch
from chatbench.train.plan import Plan

# Boundaries of documents are padded to a power of two from here on, so that few lengths occur.
_FEWEST_STARTS = 512
_USABLE = 0.8
# What compiling takes, and how much faster steps are then, from published figures; on a CPU
# chatbench gains nothing by default, as its own passes are fused by hand.
_COMPILE_SECONDS = 60.0
_COMPILED_SPEED = 1.5


def as_trained(
    model: GPT, settings: TrainSettings, plan: Plan, dtype: torch.dtype, device: torch.device
) -> tuple[GPT, Prepare | None]:
    """The model that a training step calls, and what its batches have to go through first.

    Raises EnvironmentFault as `wants_compiling` does.
    """
    tokens = plan.micro_batch * plan.seq_len
    if wants_checkpointing(
        settings.activation_checkpointing, model.config, model.parameter_count(), tokens, dtype,
        device,
    ):  # fmt: skip
        model.block_runner = run_twice
    if any(layer.dropout for _, layer in adapted(model)):
        # It draws by generators of its own, which a compiler does not see through.
        if settings.compile == "on":
            console.notice("the model is not compiled, since its adapter has dropout")
        return model, None
    if not wants_compiling(settings.compile, device, plan.seconds):
        return model, None
    return compiled(model), partial(to_shape, rows=plan.micro_batch, seq_len=plan.seq_len)


def wants_compiling(setting: str, device: torch.device, seconds: float | None = None) -> bool:
    """What `auto`, `on` or `off` means on this device: `auto` compiles on CUDA alone, and only a
    run of so many `seconds`, where that is known, that it pays.

    Raises EnvironmentFault when `on` is asked where a compiler is missing.
    """
    if setting == "off" or (setting == "auto" and device.type != "cuda"):
        return False
    if setting == "auto" and seconds is not None and seconds < compiling_pays_from():
        return False
    missing = _missing(device)
    if missing is None:
        return True
    if setting == "on":
        raise EnvironmentFault(
            f"--compile on needs {missing}, which is not here",
            hint="install it, or leave --compile out",
        )
    console.notice(f"the model is not compiled, since {missing} is not here")
    return False


def compiling_pays_from() -> float:
    """Seconds that a run must take uncompiled for compiling to save time."""
    return _COMPILE_SECONDS * _COMPILED_SPEED / (_COMPILED_SPEED - 1)


def check_compiler(setting: str, device: torch.device) -> None:
    """Before any work: raises EnvironmentFault when `on` is asked and cannot be had."""
    if setting == "on":
        wants_compiling(setting, device)


def _missing(device: torch.device) -> str | None:
    """What torch.compile would look for in vain."""
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        return "the package triton"
    named = os.environ.get("CXX" if device.type == "cpu" else "CC")
    usual = ("g++",) if device.type == "cpu" else ("gcc", "clang")
    if not any(shutil.which(name) for name in ([named] if named else usual)):
        return f"a C++ compiler ({named or 'g++'})"
    return None


def compiled(model: GPT, backend: str = "inductor") -> GPT:
    """The model with a forward compiled for fixed shapes, once for each that occurs."""
    if model.rope is not None:
        # A table that grows later would be another shape.
        model.rope.cover(model.config.context, model.model.embed_tokens.weight.device)
    return cast(GPT, torch.compile(model, dynamic=False, backend=backend))


def to_shape(batch: Batch, rows: int, seq_len: int) -> Batch:
    """The batch with rows and columns of weight zero added, until it is (rows, seq_len).

    So every micro-batch has one shape; added places count for nothing and no other sees them.
    """
    short, narrow = rows - batch.ids.shape[0], seq_len - batch.ids.shape[1]

    def padded(tensor: Tensor, value: int = 0) -> Tensor:
        return F.pad(tensor, (0, narrow, 0, short), value=value)

    def grown(tensor: Tensor) -> Tensor:
        """A line for each row; what has an entry for each column gets those, too."""
        by_column = tensor.shape[1:2] == batch.ids.shape[1:]
        sizes = [short, narrow if by_column else 0][: tensor.ndim] + [0] * (tensor.ndim - 2)
        return F.pad(tensor, [edge for size in reversed(sizes) for edge in (0, size)])

    packing = batch.packing
    if packing is not None:
        # -1 belongs to no document: added columns must not prolong the last one.
        packing = Packing(padded(packing.document, -1), padded(packing.position))
        found = packing.starts()
        size = max(_FEWEST_STARTS, 1 << (len(found) - 2).bit_length()) + 1
        end = int(packing.document.numel())
        starts = F.pad(found, (0, size - len(found)), value=end)
        packing = Packing(packing.document, packing.position, starts)
    more = batch.more and {name: grown(tensor) for name, tensor in batch.more.items()}
    return Batch(
        padded(batch.ids), padded(batch.targets), padded(batch.weights), packing, more=more
    )


def run_twice(block: nn.Module, x: Tensor, *rest: Any) -> Tensor:
    """A block that keeps its input only and computes the rest again in the backward pass (Chen et
    al. 2016); as always where no gradient is wanted."""
    if not torch.is_grad_enabled():
        return cast(Tensor, block(x, *rest))
    # What is random in a block, an adapter's dropout, draws the same again by itself.
    return cast(Tensor, checkpoint(block, x, *rest, use_reentrant=False, preserve_rng_state=False))


def wants_checkpointing(
    setting: str, config: ModelConfig, parameters: int, tokens: int, dtype: torch.dtype,
    device: torch.device,
) -> bool:  # fmt: skip
    """What `auto`, `on` or `off` means for micro-batches of `tokens` tokens: `auto` saves memory
    on a GPU where `activation_bytes` and the optimiser's needs exceed 0.8 of what is free."""
    if setting != "auto" or device.type != "cuda":
        return setting == "on"
    free = float(torch.cuda.mem_get_info(device)[0])
    # To come: gradients, two moments, and a master behind a narrower weight.
    coming = parameters * (12 if dtype == torch.float32 else 18)
    return activation_bytes(config, tokens, dtype) + coming > _USABLE * free


def activation_bytes(config: ModelConfig, tokens: int, dtype: torch.dtype) -> int:
    """Rough size of what the blocks keep for the backward pass: inputs of every product, norm and
    activation, before and after rotation."""
    heads = (config.n_heads + config.n_kv_heads) * config.head_dim
    inner = config.n_heads * config.head_dim
    values = config.n_kv_heads * config.head_dim
    fed = (3 if config.gated else 2) * config.ffn_size
    kept = 4 * config.hidden_size + 3 * heads + values + 2 * inner + fed
    return config.n_layers * tokens * kept * dtype.itemsize
