"""What ranks check among themselves in tests; each function runs on every rank."""

from __future__ import annotations

import os
import random
import resource
import signal
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from chatbench.model.adapter import LoraConfig, adapted
from chatbench.model.attention import Packing
from chatbench.model.transformer import GPT, ModelConfig, initialise
from chatbench.settings import OptimSettings
from chatbench.train.adapting import Adaptation
from chatbench.train.objective import Batch, Loss, Objective
from chatbench.train.optimizer import Optimizers
from chatbench.train.parallel import SOLO, World, world
from chatbench.train.parts import Part, Parts, write_part

HOST = torch.device("cpu")


class Likelihood:
    """The objective without a tokenizer."""

    def loss(self, model: GPT, batch: Batch) -> Loss:
        batch = batch.counted()
        hidden = model(batch.ids, packing=batch.packing)
        logits = model.logits(hidden).flatten(0, 1)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        losses = torch.nn.functional.cross_entropy(
            logits, batch.targets.flatten(), reduction="none"
        )
        return Loss((losses * batch.weights.flatten()).sum(), batch.weight, {})


def tiny(seed: int, *, tie: bool) -> GPT:
    """Every width another one, and rows that no number of ranks divides."""
    config = ModelConfig(37, 3, 20, 2, 1, 10, 26, 16, tie_embeddings=tie)
    model = GPT(config)
    initialise(model, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for _, weight in sorted(model.named_parameters()):
            weight += 0.05 * torch.randn(weight.shape, generator=generator)
    return model


def adapt(model: GPT, seed: int, rank: int | None = None, layers: int | None = None) -> None:
    """Let an adapter of this rank, none of whose matrices is zero, or the last blocks learn."""
    lora = None if rank is None else LoraConfig(rank)
    Adaptation(lora, layers, seed=seed).apply(model)
    generator = torch.Generator().manual_seed(seed + 2)
    with torch.no_grad():
        for _, layer in adapted(model):
            layer.lora_B += 0.2 * torch.randn(layer.lora_B.shape, generator=generator)


def rows_of(step: int, seed: int, count: int) -> Batch:
    """`count` packed rows of random ids, some of weight zero."""
    generator = torch.Generator().manual_seed(seed * 1000 + step)

    def draw(high: int) -> Tensor:
        return torch.randint(high, (count, 12), generator=generator)

    document = draw(2).cumsum(1)
    position = torch.arange(12).expand(count, 12).contiguous()
    weights = draw(3).clamp(max=1).float()
    return Batch(draw(37), draw(37), weights, Packing(document, position))


def train(ranks: World, data: dict[str, Any], start: dict[str, Any] | None = None) -> Optimizers:
    """Some steps, as the loop takes them; micro-batches of two rows, or of `cut`."""
    seed, dtype = data["seed"], getattr(torch, data.get("dtype", "float32"))
    model = tiny(seed, tie=data["tie"])
    if dtype == torch.float64:
        model.double()
    if "part" in data:
        adapt(model, seed, **data["part"])
    objective: Objective = Likelihood()  # type: ignore[assignment]
    ranks.place(model, objective, dtype, Path(data["folder"]))
    optimizers = Optimizers(
        model, OptimSettings(optimizer=data["optimizer"]), 1e-2, dtype, ranks.ranks
    )
    if start is not None:
        optimizers.load(ranks.tensors(start["weights"]), ranks.tensors(start["memory"]))
    loss_of = ranks.loss(objective, model, optimizers)
    for step in range(*data["steps"]):
        every = rows_of(step, seed, data["rows"])
        weight = float(every.weights.sum())
        own = pick(every, range(ranks.rank, data["rows"], ranks.size))
        missing = -(-data["rows"] // ranks.size) - len(own.ids)
        if missing:
            nothing = pick(every, range(missing))
            own = join(own, nothing._replace(weights=torch.zeros_like(nothing.weights)))
        parts = own.cut(data.get("cut", 2))
        total = torch.zeros((), dtype=torch.float64)
        for place, part in enumerate(parts):
            loss = loss_of(part, place + 1 == len(parts))
            (loss.total / weight).backward()
            optimizers.collect_gradients()
            total += loss.total.detach()
        assert torch.isfinite(ranks.total(total))
        optimizers.clip(data["clip"])
        optimizers.step(0.7)
    return optimizers


def pick(batch: Batch, rows: range) -> Batch:
    chosen = torch.tensor(rows, dtype=torch.long)
    assert batch.packing is not None
    packing = Packing(batch.packing.document[chosen], batch.packing.position[chosen])
    return Batch(batch.ids[chosen], batch.targets[chosen], batch.weights[chosen], packing)


def join(one: Batch, other: Batch) -> Batch:
    assert one.packing is not None
    assert other.packing is not None
    packing = Packing(
        torch.cat((one.packing.document, other.packing.document)),
        torch.cat((one.packing.position, other.packing.position)),
    )
    ids, targets, weights = (torch.cat(pair) for pair in zip(one[:3], other[:3], strict=True))
    return Batch(ids, targets, weights, packing)


def held(ranks: World, optimizers: Optimizers, folder: str) -> dict[str, Any]:
    """Whole weights and whole memory; spread ones as they are in the files of all ranks."""
    part = ranks.part(optimizers)
    if part is None:
        weights = {name: master.detach() for name, master in optimizers.masters.items()}
        return {"weights": weights, "memory": optimizers.state()}
    place = Path(folder) / f"{random.randrange(1 << 40)}" if ranks.first else None
    place = Path(ranks.same(str(place)))
    place.mkdir(exist_ok=True)
    write_part(place, part)
    dist.barrier()
    parts = Parts(place)
    found = {"weights": parts.chosen(memory=False), "memory": parts.chosen(memory=True)}
    assert len(parts) == sum(map(len, found.values()))
    return found


def distance(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """The largest difference, relative to each tensor's norm; of unequal names, infinite."""
    if one.keys() != other.keys():
        return float("inf")
    return max(
        float((one[name] - other[name]).norm() / other[name].norm().clamp(min=1e-30))
        for name in other
    )


def same_as_one(rank: int, size: int, data: dict[str, Any]) -> None:
    """Training on all ranks is training alone, and what it leaves can be gone on with."""
    with world(HOST, data["parallel"]) as ranks:
        ours = held(ranks, train(ranks, data), data["folder"])
        alone = held(SOLO, train(SOLO, data), data["folder"])
        if rank == 0:
            for what in ("weights", "memory"):
                assert distance(ours[what], alone[what]) < data["bound"], what
        end = data["steps"][1]
        further = data | {"steps": (end, end + 2)}
        more = held(ranks, train(ranks, further, alone), data["folder"])
        if rank == 0:
            from_ours = held(SOLO, train(SOLO, further, ours), data["folder"])
            for what in ("weights", "memory"):
                assert distance(more[what], from_ours[what]) < data["bound"], what
        assert dist.get_world_size() == size


def same_sums_as_one(rank: int, size: int, data: dict[str, Any]) -> None:
    """What grows with the gradients alone, after one step."""
    with world(HOST, data["parallel"]) as ranks:
        ours, alone = (held(w, train(w, data), data["folder"])["memory"] for w in (ranks, SOLO))
        if rank == 0:
            linear = {name for name in alone if name.endswith(("/momentum_buffer", "/exp_avg"))}
            assert len(linear) == len({name.rsplit("/", 1)[0] for name in alone})
            ours, alone = ({n: w[n] for n in linear} for w in (ours, alone))
            assert distance(ours, alone) < data["bound"]


def meets_another_program(rank: int, size: int, data: None) -> None:
    """Rank 1 has one byte more of source."""
    import chatbench.train.parallel_group as group
    from chatbench.errors import IntegrityError

    ours = group._program()
    assert set(ours) == {"chatbench", "its source", "torch", "Python"}
    group._program = lambda: ours | {"its source": "0123"} if rank else ours  # type: ignore[assignment]
    with pytest.raises(IntegrityError, match="its source is 0123, on rank 0"), world(HOST, "ddp"):
        raise AssertionError


def trades_files_with_torch(rank: int, size: int, data: dict[str, Any]) -> None:
    """What we write torch's reader reads, on parts of its own; what its writer writes we read."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    folder = Path(data["folder"])
    generator = torch.Generator().manual_seed(data["seed"])
    shapes = {"a.weight": (7, 5), "a.weight/exp_avg": (7, 5), "b": (size - 1,), "c": (4 * size, 2)}
    with world(HOST, "fsdp") as ranks:
        mesh = init_device_mesh("cpu", (size,))
        whole = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
        spread = {n: distribute_tensor(w, mesh, [Shard(0)]) for n, w in whole.items()}
        held = {name: tensor.to_local() for name, tensor in spread.items()}
        begins = {n: min(rank * -(-len(w) // size), len(w)) for n, w in whole.items()}
        ours, theirs = (folder / who for who in ("ours", "theirs"))
        if ranks.first:
            ours.mkdir()
        dist.barrier()
        write_part(ours, Part(rank, size, held, begins))
        dist.barrier()
        empty = {
            name: distribute_tensor(torch.zeros_like(tensor), mesh, [Shard(0)])
            for name, tensor in whole.items()
        }
        dcp.load(empty, storage_reader=dcp.HuggingFaceStorageReader(str(ours)))
        assert all(empty[name].to_local().equal(held[name]) for name in whole)
        writer = dcp.HuggingFaceStorageWriter(str(theirs), save_distributed=True)
        dcp.save(spread, storage_writer=writer)
        dist.barrier()
        assert {p.name for p in ours.iterdir()} == {p.name for p in theirs.glob("shard*")}
        found = Parts(theirs)
        assert found.keys() == whole.keys()
        assert all(found[name].equal(whole[name]) for name in whole)


def dies_while_saving(rank: int, size: int, data: dict[str, Any]) -> int:
    """The program, in which one rank is killed `before`, in the midst of, or `after` writing its
    part of the n-th checkpoint."""
    from chatbench.cli import run
    from chatbench.train import parts

    begun = 0

    def write(folder: Path, part: Part) -> Any:
        nonlocal begun
        begun += 1
        if begun < data["save"]:
            return write_part(folder, part)
        if data["moment"] != "before":
            ((name, entry),) = write_part(folder, part).items()
            if data["moment"] == "midst":
                os.truncate(folder / name, entry.bytes // 2)
        os.kill(os.getpid(), signal.SIGKILL)

    if rank == data["lost"]:
        parts.write_part = write  # type: ignore[assignment]
    return int(run(data["arguments"]))


def has_no_room(rank: int, size: int, data: dict[str, Any]) -> int:
    """The program, in which one rank cannot write files of more bytes than `largest`."""
    from chatbench.cli import run

    if rank == data["full"]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (data["largest"], data["largest"]))
    return int(run(data["arguments"]))


def sees_another_folder(rank: int, size: int, data: dict[str, Any]) -> int:
    """The program, in which rank 1 finds no lock where rank 0 holds one."""
    import chatbench.train.parallel_group as group
    from chatbench.cli import run

    if rank == 1:
        group._holder = lambda folder: None
    return int(run(data["arguments"]))


def same_preferences_as_one(rank: int, size: int, data: dict[str, Any]) -> None:
    """Ranks judge pairs together, and the sum of their gradients is that of one process."""
    import numpy as np
    from preference_cases import drawn, gradients, model_of, preference, rows_of

    from chatbench.settings import PreferenceSettings
    from chatbench.train.preference import reply_logprobs
    from chatbench.train.preference_reference import Reference

    rng = random.Random(data["seed"])
    rows = rows_of([drawn(rng) for _ in range(40)], row_len=160)
    first, second = (model_of(rng.randrange(1 << 30)) for _ in range(2))
    with world(HOST, "ddp") as ranks, tempfile.TemporaryDirectory() as place:
        tables = [
            Reference(first, torch.float64, Path(place) / each, {}).of(
                {"train": rows}, reply_logprobs, 2, whose
            )["train"]
            for each, whose in (("ours", ranks), ("alone", SOLO))
        ]
        assert np.array_equal(*tables)
        # Seven rows, which two ranks cannot share evenly.
        ours, alone = (
            gradients(
                second,
                preference(
                    PreferenceSettings(sft_weight=0.3), rows, tables[0], rows_per_step=7,
                    micro_batch=2, rank=whose.rank, ranks=whose.size,
                ),
            )
            for whose in (ranks, SOLO)
        )  # fmt: skip
        for gradient in ours.values():
            ranks.total(gradient)
        assert distance(ours, alone) < data["bound"]
