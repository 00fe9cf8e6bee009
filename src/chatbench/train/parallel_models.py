"""A model over several ranks: whole on each (DDP), or spread over all (FSDP2).

Either way the gradient of a step is the sum over ranks of sums over tokens. Muon needs whole
matrices, so each is orthogonalised by one rank, its owner: replicas hand each other the results,
shards send their rows there and get them back (ZeRO, Rajbhandari et al. 2020, with whole matrices).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

from chatbench.model.transformer import GPT
from chatbench.train.objective import Batch, Loss, Objective
from chatbench.train.optimizer import Optimizers, orthogonalise
from chatbench.train.parallel import StepLoss
from chatbench.train.parts import Part

# A float32 master, its gradient, two moments and a bfloat16 copy.
_BYTES_A_PARAMETER = 18
_USABLE = 0.6
# While gradients accumulate, whole weights and gradients may stay when they take no more than this.
_ROOMY = 0.25
# The name changed in torch 2.13.
_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


def too_large(parameters: int, device: torch.device) -> bool:
    """Whether a model with its optimiser would leave a GPU too little for activations."""
    if device.type != "cuda":
        return False
    memory = torch.cuda.get_device_properties(device).total_memory
    return parameters * _BYTES_A_PARAMETER > _USABLE * memory


class _Step(nn.Module):
    """Model and head and loss in one forward, which is what both engines wrap."""

    def __init__(self, model: GPT, objective: Objective) -> None:
        super().__init__()
        self.model = model
        self._objective = objective

    def forward(self, batch: Batch) -> Loss:
        return self._objective.loss(self.model, batch)


class Replicas:
    """The whole model on every rank."""

    def loss(self, objective: Objective, model: GPT, optimizers: Optimizers) -> StepLoss:
        """The loss of a micro-batch, under torch's DDP."""
        # Buffers are quantised weights, which never change.
        replica = DistributedDataParallel(
            _Step(model, objective), gradient_as_bucket_view=True, broadcast_buffers=False
        )
        # torch reads annotations of a hook and takes no quoted ones.
        replica.register_comm_hook(optimizers, lambda state, bucket: _summed(state, bucket))

        def loss(batch: Batch, last: bool) -> Loss:
            replica.require_backward_grad_sync = last
            found: Loss = replica(batch)
            return found

        return loss

    def norm(self, own: Tensor) -> Tensor:
        return own

    def part(self, whole: Tensor) -> Tensor:
        return whole

    def orthogonalised(self, matrices: Tensor, size: torch.Size, steps: int) -> Tensor:
        """`matrices` (N, rows, columns), the same on every rank."""
        count, world = len(matrices), dist.get_world_size()
        share = -(-count // world)
        begin = dist.get_rank() * share
        mine = matrices.new_zeros(share, *size)
        owned = matrices[begin : begin + share]
        if len(owned):
            mine[: len(owned)] = orthogonalise(owned, steps)
        everyones = matrices.new_empty(world * share, *size)
        _gather(everyones, mine)
        return everyones[:count]


def _summed(optimizers: Optimizers, bucket: Any) -> torch.futures.Future[Tensor]:
    """Sum a bucket over the ranks; with masters what is summed is their float32 gradient."""
    working = bucket.buffer()
    sums = working
    if optimizers.copied:
        sums = optimizers.fold(bucket.parameters(), bucket.gradients())
    arrived = dist.all_reduce(sums, async_op=True).get_future()
    done: torch.futures.Future[Tensor] = arrived.then(lambda _: working)
    return done


class Shards:
    """Rows of every parameter on every rank, gathered block by block when they are needed."""

    def __init__(self, model: GPT, objective: Objective, dtype: torch.dtype) -> None:
        """Parameters stay float32 masters; computation is in `dtype`, sums in float32."""
        policy = MixedPrecisionPolicy(
            param_dtype=dtype,
            cast_forward_inputs=False,
            reduce_dtype=torch.promote_types(dtype, torch.float32),
        )
        self._roomy = _has_room(model)
        self._step = _Step(model, objective)
        for layer in model.model.layers:
            fully_shard(layer, mp_policy=policy)
        fully_shard(self._step, mp_policy=policy)
        for module in self._sharded():
            module.set_gradient_divide_factor(1.0)  # sums, not means
            module.set_force_sum_reduction_for_comms(True)  # gloo knows no other
        self._sizes = {name: p.shape[0] for name, p in model.named_parameters()}

    def _sharded(self) -> Iterator[FSDPModule]:
        return (module for module in self._step.modules() if isinstance(module, FSDPModule))

    def loss(self, objective: Objective, model: GPT, optimizers: Optimizers) -> StepLoss:
        """The loss of a micro-batch. Where there is room, whole weights and gradients stay until
        the step's last one; otherwise each backward pass hands them back."""
        step = self._step
        assert isinstance(step, FSDPModule)

        def loss(batch: Batch, last: bool) -> Loss:
            if self._roomy:
                step.set_requires_gradient_sync(last)
                step.set_reshard_after_backward(last)
            step.set_is_last_backward(last)
            found: Loss = step(batch)
            return found

        return loss

    def norm(self, own: Tensor) -> Tensor:
        squared = own.square()
        dist.all_reduce(squared)
        return squared.sqrt()

    def part(self, whole: Tensor) -> Tensor:
        """This rank's rows of a parameter, as FSDP2 cuts it."""
        if not whole.ndim:
            return whole
        rows = -(-len(whole) // dist.get_world_size())
        begin = dist.get_rank() * rows
        return whole[begin : begin + rows].clone()

    def orthogonalised(self, matrices: Tensor, size: torch.Size, steps: int) -> Tensor:
        """`matrices` (N, own rows, columns) of whole `size` (rows, columns)."""
        count, own, columns = matrices.shape
        world = dist.get_world_size()
        share, rows = -(-count // world), -(-size[0] // world)
        sent = matrices.new_zeros(world * share, rows, columns)
        sent[:count, :own] = matrices
        got = torch.empty_like(sent)
        dist.all_to_all_single(got, sent)
        # From each rank its rows of the matrices owned here.
        whole = got.view(world, share, rows, columns).transpose(0, 1).flatten(1, 2)
        owned = min(share, max(0, count - dist.get_rank() * share))
        if owned:
            whole[:owned, : size[0]] = orthogonalise(whole[:owned, : size[0]], steps)
        # Maybe a view of what was got, which therefore cannot receive.
        handed = whole.view(share, world, rows, columns).transpose(0, 1).contiguous()
        back = torch.empty_like(sent)
        dist.all_to_all_single(back, handed.flatten(0, 1))
        return back[:count, :own]

    def held(self, optimizers: Optimizers) -> Part:
        """This rank's rows of the masters and of what the optimisers remember."""
        rank, size = dist.get_rank(), dist.get_world_size()
        tensors = {name: master.detach() for name, master in optimizers.masters.items()}
        tensors |= optimizers.state()
        begins = {}
        for name in tensors:
            whole = self._sizes[name.split("/")[0]]
            begins[name] = min(rank * -(-whole // size), whole)
        return Part(rank, size, tensors, begins)

    @contextmanager
    def whole(self) -> Iterator[bool]:
        """Every rank takes part in what is computed inside; blocks gather themselves."""
        assert isinstance(self._step, FSDPModule)
        self._step.unshard()
        try:
            yield True
        finally:
            self._step.reshard()


def _has_room(model: GPT) -> bool:
    device = model.model.embed_tokens.weight.device
    if device.type != "cuda":
        return True
    memory = torch.cuda.get_device_properties(device).total_memory
    return model.parameter_count() * 6 < _ROOMY * memory
