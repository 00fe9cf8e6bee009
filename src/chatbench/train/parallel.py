"""One process or many: what a run asks of the others, and what it does where there are none.

`torchrun … -m chatbench pretrain …` starts the same command on every rank. Rank 0 alone speaks and
writes. Nothing of torch.distributed is loaded where one process runs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol, TypeVar

import msgspec
import torch
from torch import Tensor

from chatbench.model.transformer import GPT
from chatbench.train.objective import Batch, Loss, Objective
from chatbench.train.optimizer import Alone, Optimizers, Ranks
from chatbench.train.parts import Meeting, Part

T = TypeVar("T")
# The summed loss of one micro-batch; true with the last one of a step.
StepLoss = Callable[[Batch, bool], Loss]


class World(Protocol):
    """The ranks of a run, seen from one of them."""

    rank: int
    size: int
    grace: float
    """Seconds in which a second signal is the launcher's echo of the first."""

    @property
    def ranks(self) -> Ranks:
        """What the optimisers ask of the other ranks."""

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which speaks and writes."""

    @property
    def restarted(self) -> bool:
        """Whether a launcher started this again after a failure, so that it is to resume."""

    def device(self, chosen: torch.device) -> torch.device:
        """The device of this rank, of the kind that was chosen."""

    def compare(self, facts: Mapping[str, str]) -> None:
        """Raise IntegrityError on every rank where one has other facts than rank 0, UsageError
        where only settings (their names begin with dashes) differ."""

    def same(self, value: T, kind: Any = None) -> T:
        """Rank 0's `value`, plain data of the type `kind` (default: its own), on every rank."""

    def first_says(self, find: Callable[[], T], kind: Any) -> T:
        """What rank 0 finds, on every rank; the others do not look."""

    def tensors(self, held: Mapping[str, Tensor] | None) -> Mapping[str, Tensor]:
        """Rank 0's tensors, on the host, each when it is asked for: every rank has to ask for the
        same ones in the same order."""

    def agree(
        self, step: int, values: Sequence[float], stop: int | None
    ) -> tuple[list[float], int | None]:
        """After `step` steps: rank 0's values, which may hang on its clock, and the number of a
        signal that any rank got."""

    def sums(self, values: Sequence[float]) -> list[float]:
        """Each of `values`, summed over the ranks."""

    def total(self, value: Tensor) -> Tensor:
        """A tensor summed over the ranks, in place, without waiting for the device."""

    def share(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The batches that this rank validates on."""

    def place(self, model: GPT, objective: Objective, dtype: torch.dtype, run: Path) -> None:
        """Spread the parameters over the ranks, where one device cannot hold them. Raises
        EnvironmentFault when a rank that would write checkpoints does not see rank 0's `run`."""

    def loss(self, objective: Objective, model: GPT, optimizers: Optimizers) -> StepLoss:
        """What computes the loss of a micro-batch, its backward pass summing gradients over the
        ranks with a step's last one."""

    def pause(self, doing: str) -> None:
        """Tell the other ranks why the next step may take longer."""

    def part(self, optimizers: Optimizers) -> Part | None:
        """What this rank writes of a checkpoint; None where parameters are whole, which rank 0
        writes."""

    @property
    def meeting(self) -> Meeting | None:
        """Where ranks that write their parts meet."""

    def whole(self, doing: str) -> AbstractContextManager[bool]:
        """The model can be called inside, without gradients; whether this rank has to, where one
        alone would do. `doing` tells the other ranks why this may take longer than a step."""


class Solo:
    """The only process of its run."""

    rank = 0
    size = 1
    grace = 0.0
    first = True
    restarted = False
    ranks: Ranks = Alone()
    meeting = None

    def device(self, chosen: torch.device) -> torch.device:
        return chosen

    def compare(self, facts: Mapping[str, str]) -> None:
        pass

    def same(self, value: T, kind: Any = None) -> T:
        return value

    def first_says(self, find: Callable[[], T], kind: Any) -> T:
        return find()

    def tensors(self, held: Mapping[str, Tensor] | None) -> Mapping[str, Tensor]:
        return held or {}

    def agree(
        self, step: int, values: Sequence[float], stop: int | None
    ) -> tuple[list[float], int | None]:
        return list(values), stop

    def sums(self, values: Sequence[float]) -> list[float]:
        return list(values)

    def total(self, value: Tensor) -> Tensor:
        return value

    def share(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        return batches

    def place(self, model: GPT, objective: Objective, dtype: torch.dtype, run: Path) -> None:
        pass

    def loss(self, objective: Objective, model: GPT, optimizers: Optimizers) -> StepLoss:
        return lambda batch, last: objective.loss(model, batch)

    def pause(self, doing: str) -> None:
        pass

    def part(self, optimizers: Optimizers) -> Part | None:
        return None

    def whole(self, doing: str) -> AbstractContextManager[bool]:
        return nullcontext(True)


SOLO = Solo()


@contextmanager
def led(settings: msgspec.Struct, ranks: World) -> Iterator[None]:
    """Inside, settings are filled in by measuring: rank 0 goes first, and the others do the same
    with nothing left to measure."""
    if not ranks.first:
        chosen = ranks.same(settings)
        for name in settings.__struct_fields__:
            setattr(settings, name, getattr(chosen, name))
    yield
    if ranks.first:
        ranks.same(settings)


def options(settings: Any, prefix: str = "--") -> dict[str, str]:
    """Every setting by its key, as facts to compare; folders may differ from machine to machine,
    what is in them may not."""
    facts: dict[str, str] = {}
    for key, value in msgspec.to_builtins(settings).items():
        if isinstance(value, dict):
            facts |= options(value, f"{prefix}{key}.")
        elif prefix + key not in ("--data", "--model", "--out"):
            facts[prefix + key] = repr(value)
    return facts


def launched() -> int:
    """How many ranks a launcher started; 1 without a launcher."""
    if not {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
        return 1
    size = os.environ["WORLD_SIZE"]
    return int(size) if size.isdecimal() else 1


@contextmanager
def world(device: torch.device, parallel: str) -> Iterator[World]:
    """The ranks of this run, from what torchrun put into the environment.

    `parallel`: auto, ddp or fsdp. Raises WorldError when another rank is lost, EnvironmentFault
    when the ranks do not find each other.
    """
    if launched() == 1:
        yield SOLO
        return
    from chatbench.train.parallel_group import joined

    with joined(device, parallel) as group:
        yield group
