"""Muon for the hidden matrices, AdamW for the rest, and float32 masters behind bfloat16 weights."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from chatbench.model.rows import LEARNED
from chatbench.settings import OptimSettings
from chatbench.train.adapting import ADAPTER_RATE, ROWS_RATE

# Quintic Newton-Schulz coefficients as published with Muon (Jordan et al. 2024).
_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
_NEWTON_SCHULZ_STEPS = 5
# Up to so many tokens a step the direction is noise enough that fewer steps do as well, and there
# they are a large part of the time.
_SMALL_BATCH, _FEWER_STEPS = 8192, 3
# Muon's momentum begins here and has its own value after so many steps (Jordan et al. 2024).
_FIRST_MOMENTUM, _MOMENTUM_STEPS = 0.85, 300
_RMS_OF_ADAMW = 0.2


def is_few(batch_tokens: int | None) -> bool:
    """Whether fewer iterations do for steps of so many tokens; None: many."""
    return batch_tokens is not None and batch_tokens <= _SMALL_BATCH


def newton_schulz_steps(batch_tokens: int | None) -> int:
    """Iterations of Muon where a step sees so many tokens."""
    return _FEWER_STEPS if is_few(batch_tokens) else _NEWTON_SCHULZ_STEPS


class Ranks(Protocol):
    """What an optimiser asks of other processes of the run, when it holds parts of parameters or
    leaves some of the work to them."""

    def norm(self, own: Tensor) -> Tensor:
        """The norm () of all gradients, from that of those held here."""

    def part(self, whole: Tensor) -> Tensor:
        """What of a parameter, or of what is remembered of it, is held here."""

    def orthogonalised(self, matrices: Tensor, size: torch.Size, steps: int) -> Tensor:
        """`orthogonalise` of whole matrices of `size`, from and for the rows of each that are held
        here (N, rows, columns)."""


class Alone:
    """One process holds everything and does everything."""

    def norm(self, own: Tensor) -> Tensor:
        return own

    def part(self, whole: Tensor) -> Tensor:
        return whole

    def orthogonalised(self, matrices: Tensor, size: torch.Size, steps: int) -> Tensor:
        return orthogonalise(matrices, steps)


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised (Jordan et al. 2024); step size matched to AdamW's
    (Liu et al. 2025, 0.2·√max(rows, columns)).

    Same update as torch.optim.Muon with adjust_lr_fn="match_rms_adamw". Matrices of one shape are
    orthogonalised together, in the number format that `work_dtype` says: torch's is always
    bfloat16, which CPUs without such units compute ten times slower than float32.
    """

    def __init__(
        self, params: list[nn.Parameter], lr: float, momentum: float, weight_decay: float,
        work_dtype: torch.dtype, *, sizes: Sequence[torch.Size] | None = None,
        ranks: Ranks | None = None, steps: int = _NEWTON_SCHULZ_STEPS,
    ) -> None:  # fmt: skip
        """`sizes`: of the whole matrices, where `params` are rows of them; `steps` of
        Newton-Schulz."""
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self._work_dtype = work_dtype
        self._ranks: Ranks = ranks or Alone()
        self._steps = steps
        self._sizes = dict(zip(params, sizes or [p.shape for p in params], strict=True))
        # () float, 1 = leave everything as it is; torch's own optimisers know it by this name.
        self.found_inf: Tensor | None = None

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                by_shape[self._sizes[parameter]].append(parameter)
            for size, parameters in by_shape.items():
                self._step_together(parameters, size, group)

    def _step_together(
        self, parameters: list[Tensor], size: torch.Size, group: dict[str, float]
    ) -> None:
        gradients = [p.grad for p in parameters if p.grad is not None]
        assert len(gradients) == len(parameters)
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        buffers = [self.state[p]["momentum_buffer"] for p in parameters]
        rate: float | Tensor = group["lr"]
        if self.found_inf is not None:
            # A buffer drawn towards itself stays, and at rate zero so does the parameter.
            spoiled = self.found_inf > 0
            gradients = [
                torch.where(spoiled, b, g) for b, g in zip(buffers, gradients, strict=True)
            ]
            rate = torch.where(spoiled, 0.0, rate)
        torch._foreach_lerp_(buffers, gradients, 1 - group["momentum"])
        directions = torch._foreach_lerp(gradients, buffers, group["momentum"])
        stacked = torch.stack(directions).to(self._work_dtype)
        moves = self._ranks.orthogonalised(stacked, size, self._steps).to(parameters[0].dtype)
        scale = _RMS_OF_ADAMW * max(size) ** 0.5
        torch._foreach_mul_(parameters, 1 - rate * group["weight_decay"])
        if isinstance(rate, Tensor):
            torch._foreach_add_(parameters, (moves * (-rate * scale)).unbind())
        else:
            torch._foreach_add_(parameters, moves.unbind(), alpha=-rate * scale)


def orthogonalise(matrices: Tensor, steps: int = _NEWTON_SCHULZ_STEPS) -> Tensor:
    """Push the singular values of each matrix (N, rows, columns) towards one."""
    tall = matrices.shape[1] > matrices.shape[2]
    x: Tensor = matrices.mT if tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        x = _newton_schulz(x)
    return x.mT if tall else x


def _newton_schulz(x: Tensor) -> Tensor:
    """One iteration a·x + (b·g + c·g·g)·x with g = x·xᵀ: three products, nothing between them."""
    a, b, c = _NEWTON_SCHULZ
    gram = torch.bmm(x, x.mT)
    inner = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
    return torch.baddbmm(x, inner, x, beta=a)


class Optimizers:
    """The optimisers of what learns of one model, seen as one; also the keeper of the float32
    masters.

    When the model computes in bfloat16, its weights are copies of float32 masters that the
    optimisers own; gradients are summed in float32. Where parameters are spread over processes
    they are the masters themselves, and those here are the parts held by this one.
    """

    def __init__(
        self, model: nn.Module, settings: OptimSettings, learning_rate: float, dtype: torch.dtype,
        ranks: Ranks | None = None, *, batch_tokens: int | None = None,
    ) -> None:  # fmt: skip
        """Take a float32 model; its weights are turned into `dtype` here, unless spread. A step
        sees `batch_tokens` tokens, many when nobody says so."""
        everything = dict(sorted(model.named_parameters()))
        self._working = {name: p for name, p in everything.items() if p.requires_grad}
        self._ranks: Ranks = ranks or Alone()
        self._spread = any(hasattr(p, "to_local") for p in everything.values())
        narrow = any(p.dtype != dtype for p in everything.values())
        self.copied = narrow and not self._spread
        self._folded = False
        self.masters: dict[str, nn.Parameter] = dict(self._working)
        if self._spread:
            self.masters = {n: nn.Parameter(_held(p.detach())) for n, p in self._working.items()}
        if self.copied:
            self.masters = {n: nn.Parameter(p.detach().clone()) for n, p in self._working.items()}
            for weight in everything.values():
                weight.data = weight.data.to(dtype)
        self._masters_of: dict[Tensor, nn.Parameter] = {
            self._working[name]: master for name, master in self.masters.items()
        }
        self._dtype = dtype
        self._peak = learning_rate
        self._momentum = settings.momentum
        steps = newton_schulz_steps(batch_tokens)
        self._optimizers = list(self._build(settings, learning_rate, steps))

    def _build(
        self, settings: OptimSettings, lr: float, steps: int
    ) -> Iterator[torch.optim.Optimizer]:
        hidden = {
            name
            for name, p in self.masters.items()
            if p.ndim == 2 and not name.startswith(("lm_head", "score")) and "embed_" not in name
        }
        muon = hidden if settings.optimizer == "muon" else set()
        new = {n for n in self.masters if n.endswith(f".{LEARNED}")}
        decayed = [p for n, p in self.masters.items() if n not in muon and n in hidden]
        others = [p for n, p in self.masters.items() if n not in muon | hidden | new]
        rows = [p for n, p in self.masters.items() if n in new]
        if muon:
            yield Muon(
                [p for n, p in self.masters.items() if n in muon],
                lr, settings.momentum, settings.weight_decay, self._dtype,
                sizes=[p.shape for n, p in self._working.items() if n in muon], ranks=self._ranks,
                steps=steps,
            )  # fmt: skip
        share = settings.embedding_rate if muon else 1.0
        # Rows of new tokens are no matrices of an adapter, at whose rates they would diverge.
        slow = share * ROWS_RATE / ADAPTER_RATE[settings.optimizer]
        groups = [
            {"params": group, "weight_decay": decay, "share": rate}
            for group, decay, rate in (
                (decayed, settings.weight_decay, share), (others, 0.0, share), (rows, 0.0, slow)
            )
            if group
        ]  # fmt: skip
        if groups:
            yield torch.optim.AdamW(
                groups, lr=lr, betas=(settings.beta1, settings.beta2), eps=1e-8, fused=True
            )

    @torch.no_grad()
    def collect_gradients(self) -> None:
        """After each backward pass: add the working gradients to the masters'."""
        if self._spread:
            for name, working in self._working.items():
                if working.grad is not None:
                    self.masters[name].grad = _held(working.grad)
        if self._folded:
            self._folded = False
            for working in self._working.values():
                working.grad = None
        if not self.copied:
            return
        fresh: list[Tensor] = []
        first: list[Tensor] = []
        sums: list[Tensor] = []
        more: list[Tensor] = []
        for name, working in self._working.items():
            if working.grad is None:
                continue
            master = self.masters[name]
            if master.grad is None:
                master.grad = torch.empty_like(master)
                fresh.append(master.grad)
                first.append(working.grad)
            else:
                sums.append(master.grad)
                more.append(working.grad)
            working.grad = None
        if fresh:
            torch._foreach_copy_(fresh, first)
        if sums:
            torch._foreach_add_(sums, more)

    @torch.no_grad()
    def fold(self, parameters: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
        """What `collect_gradients` does, for some parameters and during a backward pass: the sums
        of all of them, laid flat; the masters' gradients are views of it."""
        masters = [self._masters_of[parameter] for parameter in parameters]
        sums = torch.cat([gradient.flatten() for gradient in gradients]).to(masters[0].dtype)
        parts = torch.split(sums, [master.numel() for master in masters])
        for master, part in zip(masters, parts, strict=True):
            if master.grad is not None:
                part += master.grad.flatten()
            master.grad = part.view_as(master)
        self._folded = True
        return sums

    def gradients(self) -> list[Tensor]:
        return [p.grad for p in self.masters.values() if p.grad is not None]

    @torch.no_grad()
    def clip(self, limit: float) -> Tensor:
        """Scale all gradients down to a norm of `limit`, 0 = never; returns their norm () before.

        A GPU scales them always, by one where they are short enough: it need not tell the host.
        """
        gradients = self.gradients()
        norm = self._ranks.norm(torch.nn.utils.get_total_norm(gradients))
        if limit and (norm.is_cuda or norm > limit):
            torch._foreach_mul_(gradients, (limit / norm).clamp(max=1.0))
        return norm

    @torch.no_grad()
    def step(self, scale: float, skip: Tensor | None = None, *, number: int | None = None) -> None:
        """Move the masters at `scale` times the peak rate and copy them into the model.

        `number`: steps of the run before this one, by which Muon's momentum grows; None: long ago.
        Where `skip` () is true on the device, nothing moves and nothing is remembered.
        """
        found_inf = None if skip is None else skip.to(torch.float32)
        for optimizer in self._optimizers:
            optimizer.found_inf = found_inf  # type: ignore[attr-defined]
            for group in optimizer.param_groups:
                group["lr"] = self._peak * scale * group.get("share", 1.0)
                if isinstance(optimizer, Muon):
                    group["momentum"] = momentum_at(number, self._momentum)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if self._spread:
            self.discard_gradients()
        if self.copied:
            torch._foreach_copy_(list(self._working.values()), list(self.masters.values()))

    def discard_gradients(self) -> None:
        for p in (*self.masters.values(), *self._working.values()):
            p.grad = None

    def state(self) -> dict[str, Tensor]:
        """Everything the optimisers remember, flat: `parameter/quantity`."""
        names = {id(p): name for name, p in self.masters.items()}
        flat = {}
        for optimizer in self._optimizers:
            for parameter, state in optimizer.state.items():
                for quantity, value in state.items():
                    flat[f"{names[id(parameter)]}/{quantity}"] = value
        return dict(sorted(flat.items()))

    @torch.no_grad()
    def load(self, weights: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
        """Put back what `masters` and `state()` held when they were saved, whole; each tensor is
        asked for once, by all processes in the same order."""
        owners = {
            parameter: optimizer
            for optimizer in self._optimizers
            for group in optimizer.param_groups
            for parameter in group["params"]
        }
        for name, master in self.masters.items():
            master.copy_(self._ranks.part(weights[name]))
            if self.copied:
                self._working[name].copy_(master)
        for key, value in state.items():
            name, quantity = key.rsplit("/", 1)
            master = self.masters[name]
            owners[master].state[master][quantity] = self._ranks.part(value).to(master.device)


def _held(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor; it may be spread over several (DTensor)."""
    held: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return held


def momentum_at(number: int | None, momentum: float) -> float:
    """Muon's momentum after `number` steps: it grows to `momentum`, since long memories of a young
    model mislead."""
    if number is None or number >= _MOMENTUM_STEPS:
        return momentum
    first = min(_FIRST_MOMENTUM, momentum)
    return first + (momentum - first) * number / _MOMENTUM_STEPS


def schedule(progress: float, settings: OptimSettings) -> float:
    """Share of the peak rate at `progress` in [0, 1]: warm-up, flat, linear decay to min_lr."""
    if progress < settings.warmup:
        return max(progress / settings.warmup, 0.01)
    start = 1.0 - settings.decay
    if progress <= start or settings.decay == 0:
        return 1.0
    left = max(0.0, (1.0 - progress) / settings.decay)
    return settings.min_lr + (1.0 - settings.min_lr) * left
