"""The ranks that torchrun started, on torch.distributed.

What the host has to know goes through gloo, so that a GPU need not be waited for; gradients and
losses go through the device's own backend.
"""

from __future__ import annotations

import hashlib
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from chatbench import __version__
from chatbench.errors import (
    DivergedError,
    EnvironmentFault,
    ExitCode,
    IntegrityError,
    LostError,
    Stopped,
    UsageError,
    UserError,
)
from chatbench.model.transformer import GPT
from chatbench.storage import LOCK
from chatbench.train.objective import Batch, Objective
from chatbench.train.optimizer import Optimizers, Ranks
from chatbench.train.parallel import StepLoss
from chatbench.train.parallel_models import Replicas, Shards, too_large
from chatbench.train.parallel_watch import Verdict, Watch, end_process
from chatbench.train.parts import Meeting, Part, not_shared

T = TypeVar("T")
_MEETING = timedelta(minutes=5)
# Rank 0 may prepare a corpus while the others wait; who dies or hangs is found by the watch.
_LONGEST_WAIT = timedelta(hours=2)
_ECHO = 2.0
_STOPS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def joined(device: torch.device, parallel: str) -> Iterator[Group]:
    """Meet the other ranks, and part from them. Raises EnvironmentFault, LostError."""
    group = Group(device, parallel)
    try:
        group.compare(_program())
        yield group
        group.barrier()
    except BaseException as error:
        group.explain(error)
        raise
    finally:
        group.close()


class Group:
    """This rank among others; see `World` for what it does."""

    grace = _ECHO

    def __init__(self, device: torch.device, parallel: str) -> None:
        self.rank, self.size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        self.first = self.rank == 0
        self.restarted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
        self._device = _own_device(device)
        self._parallel = parallel
        self._spread: Replicas | Shards | None = None
        self._step = 0
        self._stderr = os.dup(2)
        if not self.first:
            _silence()
        store = self._meet()
        self._facts = PrefixStore("facts", store.clone())
        self._rounds = 0
        self._meeting = Meeting(PrefixStore("saves", store.clone()))
        self._watch = Watch(PrefixStore("watch", store.clone()), self.rank, self.size, self._leave)

    def _meet(self) -> Any:
        try:
            store, _, _ = next(rendezvous("env://", timeout=_MEETING))
            # A launcher that starts ranks again may keep the store.
            attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
            store = PrefixStore(f"attempt/{attempt}", store)
            cuda = self._device.type == "cuda"
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if cuda else "gloo", store=store, rank=self.rank,
                world_size=self.size, timeout=_LONGEST_WAIT,
                device_id=self._device if cuda else None,
            )  # fmt: skip
            self.barrier()
        except (RuntimeError, ValueError) as error:
            self._speak()
            raise EnvironmentFault(
                f"rank {self.rank} of {self.size} does not find the others: {error}",
                hint="look at MASTER_ADDR, MASTER_PORT and the network between the machines",
            ) from error
        return store

    # -- words ------------------------------------------------------------------------------------

    def _speak(self) -> None:
        """Let stderr be heard again, for a last word."""
        os.dup2(self._stderr, 2)

    def _leave(self, verdict: Verdict) -> None:
        """Called by the watch in its thread, while ours may wait in a collective for ever."""
        if verdict.words is not None:
            os.write(self._stderr, f"error: {' '.join(verdict.words.split())}\n".encode())
        end_process(verdict.code)

    def explain(self, error: BaseException) -> None:
        """Tell the other ranks why this one ends. Does not return when it is for another's sake."""
        if isinstance(error, Stopped | DivergedError):
            # All have decided so, and rank 0 may still be writing its checkpoint.
            with suppress(RuntimeError):
                self.barrier()
        if _is_lost(error):
            self._watch.suspect()
            self._speak()
            raise LostError(
                f"rank {self.rank} lost the others at step {self._step}: {error}",
                hint="start the same command with --resume to go on from the last checkpoint",
            ) from error
        code, words = ExitCode.LOST, f"{type(error).__name__}: {error}"
        if isinstance(error, UserError):
            code, words = error.exit_code, str(error)
        elif isinstance(error, KeyboardInterrupt):
            code, words = ExitCode.INTERRUPTED, "interrupted"
        if self._watch.confess(code, words) != code:
            self._speak()

    def close(self) -> None:
        self._watch.close()
        if sys.exc_info()[0] is None:
            dist.destroy_process_group()

    # -- agreement --------------------------------------------------------------------------------

    def barrier(self) -> None:
        dist.all_reduce(torch.zeros(1))

    def device(self, chosen: torch.device) -> torch.device:
        return self._device

    def compare(self, facts: Mapping[str, str]) -> None:
        self._rounds += 1
        self._facts.set(f"{self._rounds}/{self.rank}", msgspec.json.encode(facts).decode())
        self.barrier()
        known = [
            msgspec.json.decode(self._facts.get(f"{self._rounds}/{rank}"), type=dict[str, str])
            for rank in range(self.size)
        ]
        self.barrier()  # the store may end with the first that refuses
        for rank, theirs in enumerate(known):
            differing = {
                name: (known[0].get(name), theirs.get(name))
                for name in known[0] | theirs
                if known[0].get(name) != theirs.get(name)
            }
            if differing:
                raise _refusal(rank, differing)

    def same(self, value: T, kind: Any = None) -> T:
        data = msgspec.json.encode(value) if self.first else b""
        length = torch.tensor([len(data)])
        dist.broadcast(length, 0)
        content = torch.zeros(int(length), dtype=torch.uint8)
        if self.first:
            content.copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))
        dist.broadcast(content, 0)
        found: T = msgspec.json.decode(content.numpy().tobytes(), type=kind or type(value))
        return value if self.first else found

    def first_says(self, find: Callable[[], T], kind: Any) -> T:
        found: T = self.same(find() if self.first else None, kind)  # type: ignore[assignment]
        return found

    def tensors(self, held: Mapping[str, Tensor] | None) -> Mapping[str, Tensor]:
        return _Handed(self, (held or {}) if self.first else {})

    def agree(
        self, step: int, values: Sequence[float], stop: int | None
    ) -> tuple[list[float], int | None]:
        self._mark(step)
        mine = values if self.first else [0.0] * len(values)
        *found, interrupted, ended = self._sum(
            [*mine, *(float(stop == number) for number in _STOPS)]
        )
        self._mark(step)
        return found, _STOPS[0] if interrupted else _STOPS[1] if ended else None

    def sums(self, values: Sequence[float]) -> list[float]:
        found = self._sum(values)
        self._mark(self._step)
        return found

    def _sum(self, values: Sequence[float]) -> list[float]:
        summed = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(summed)
        found: list[float] = summed.tolist()
        return found

    def total(self, value: Tensor) -> Tensor:
        dist.all_reduce(value)
        return value

    def _mark(self, step: int, doing: str = "training") -> None:
        self._step = step
        self._watch.mark(step, doing)

    # -- the model --------------------------------------------------------------------------------

    def place(self, model: GPT, objective: Objective, dtype: torch.dtype, run: Path) -> None:
        total = sum(float(parameter.detach().double().sum()) for parameter in model.parameters())
        self.compare({"the sum of the first weights": repr(total)})
        spread = self._parallel == "fsdp"
        if self._parallel == "auto":
            spread = self.same(too_large(model.parameter_count(), self._device))
        if spread:
            self._require_shared(run)
        self._spread = Shards(model, objective, dtype) if spread else Replicas()

    def _require_shared(self, run: Path) -> None:
        """Whether this rank sees the lock that rank 0 holds on its folder."""
        place = Path(self.same(str(run.absolute())))
        if _holder(place) != self.first_says(lambda: _holder(place), str | None):
            raise not_shared(self.rank, place)

    @property
    def ranks(self) -> Ranks:
        assert self._spread is not None
        return self._spread

    def loss(self, objective: Objective, model: GPT, optimizers: Optimizers) -> StepLoss:
        assert self._spread is not None
        return self._spread.loss(objective, model, optimizers)

    def share(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        kept = list(batches)
        if isinstance(self._spread, Shards) and kept:
            # Every rank has to take part in gathering the weights.
            nothing = kept[0]._replace(weights=torch.zeros_like(kept[0].weights), places=None)
            kept += [nothing] * (-len(kept) % self.size)
        return islice(kept, self.rank, None, self.size)

    def whole(self, doing: str) -> AbstractContextManager[bool]:
        self._mark(self._step, doing)
        return self._spread.whole() if isinstance(self._spread, Shards) else nullcontext(self.first)

    @property
    def meeting(self) -> Meeting | None:
        return self._meeting if isinstance(self._spread, Shards) else None

    def pause(self, doing: str) -> None:
        self._mark(self._step, doing)

    def part(self, optimizers: Optimizers) -> Part | None:
        return self._spread.held(optimizers) if isinstance(self._spread, Shards) else None


class _Handed(Mapping[str, Tensor]):
    """Rank 0's tensors, handed to all when all ask for one."""

    def __init__(self, group: Group, held: Mapping[str, Tensor]) -> None:
        self._group, self._held = group, held
        self._names = group.same(list(held), list[str])

    def __getitem__(self, name: str) -> Tensor:
        value = torch.empty(0)
        if self._group.first:
            value = self._held[name].detach().cpu().contiguous()
        described = str(value.dtype).removeprefix("torch."), tuple(value.shape)
        dtype, shape = self._group.same(described, tuple[str, tuple[int, ...]])
        if not self._group.first:
            value = torch.empty(shape, dtype=getattr(torch, dtype))
        dist.broadcast(value, 0)
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _holder(folder: Path) -> str | None:
    """Who holds the lock of a folder, as far as this machine sees it."""
    try:
        return (folder / LOCK).read_text("utf-8")
    except OSError:
        return None


def _own_device(chosen: torch.device) -> torch.device:
    """The GPU of this rank on its machine. Raises EnvironmentFault when there are fewer."""
    if chosen.type != "cuda":
        return chosen
    local, here = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if local >= here:
        raise EnvironmentFault(
            f"{local + 1} ranks were started on a machine with {here} GPUs",
            hint=f"start torchrun with --nproc-per-node {here}",
        )
    device = torch.device("cuda", local)
    torch.cuda.set_device(device)
    return device


def _silence() -> None:
    """Neither data nor words from this process: rank 0 says it all."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)


def _program() -> dict[str, str]:
    """What has to be the same for ranks to compute the same: our code, Python, torch."""
    digest = hashlib.sha256()
    root = Path(__file__).parents[1]
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return {
        "chatbench": __version__,
        "its source": digest.hexdigest()[:12],
        "torch": str(torch.__version__),
        "Python": sys.version.split()[0],
    }


def _refusal(rank: int, differing: dict[str, tuple[str | None, str | None]]) -> UserError:
    shown = ", ".join(
        f"{name} is {theirs}, on rank 0 {ours}" for name, (ours, theirs) in differing.items()
    )
    if all(name.startswith("--") for name in differing):
        return UsageError(
            f"rank {rank} was started with other settings: {shown}",
            hint="give every rank the same command",
        )
    return IntegrityError(
        f"rank {rank} does not fit to rank 0: {shown}",
        hint="give every machine the same program and the same data",
    )


def _is_lost(error: BaseException) -> bool:
    """Whether this is what a collective raises when another rank is gone."""
    if isinstance(error, dist.DistError):
        return True
    names = ("gloo", "NCCL", "Connection closed", "Connection reset", "Broken pipe")
    return isinstance(error, RuntimeError) and any(name in str(error) for name in names)
