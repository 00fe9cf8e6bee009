"""Muon for the hidden matrices, AdamW for the rest, and float32 masters behind bfloat16 weights."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from chatbench.settings import OptimSettings

# Quintic Newton-Schulz coefficients as published with Muon (Jordan et al. 2024).
_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
_NEWTON_SCHULZ_STEPS = 5
_RMS_OF_ADAMW = 0.2


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised (Jordan et al. 2024); step size matched to AdamW's
    (Liu et al. 2025, 0.2·√max(rows, columns)).

    Same update as torch.optim.Muon with adjust_lr_fn="match_rms_adamw". Matrices of one shape are
    orthogonalised together, in the number format that `work_dtype` says: torch's is always
    bfloat16, which CPUs without such units compute ten times slower than float32.
    """

    def __init__(
        self, params: list[nn.Parameter], lr: float, momentum: float, weight_decay: float,
        work_dtype: torch.dtype,
    ) -> None:  # fmt: skip
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self._work_dtype = work_dtype
        # () float, 1 = leave everything as it is; torch's own optimisers know it by this name.
        self.found_inf: Tensor | None = None

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                by_shape[parameter.shape].append(parameter)
            for parameters in by_shape.values():
                self._step_together(parameters, group)

    def _step_together(self, parameters: list[Tensor], group: dict[str, float]) -> None:
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
        updates = orthogonalise(torch.stack(directions).to(self._work_dtype))
        moves = updates.to(parameters[0].dtype)
        scale = _RMS_OF_ADAMW * max(parameters[0].shape) ** 0.5
        torch._foreach_mul_(parameters, 1 - rate * group["weight_decay"])
        if isinstance(rate, Tensor):
            torch._foreach_add_(parameters, (moves * (-rate * scale)).unbind())
        else:
            torch._foreach_add_(parameters, moves.unbind(), alpha=-rate * scale)


def orthogonalise(matrices: Tensor) -> Tensor:
    """Push the singular values of each matrix (N, rows, columns) towards one."""
    tall = matrices.shape[1] > matrices.shape[2]
    x: Tensor = matrices.mT if tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    step = _newton_schulz_fused if x.is_cuda else _newton_schulz
    for _ in range(_NEWTON_SCHULZ_STEPS):
        x = step(x)
    return x.mT if tall else x


def _newton_schulz(x: Tensor) -> Tensor:
    a, b, c = _NEWTON_SCHULZ
    gram = x @ x.mT
    return a * x + (b * gram + c * gram @ gram) @ x


def _newton_schulz_fused(x: Tensor) -> Tensor:
    """The same in three products with nothing between them, which is what a GPU likes."""
    a, b, c = _NEWTON_SCHULZ
    gram = torch.bmm(x, x.mT)
    inner = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
    return torch.baddbmm(x, inner, x, beta=a)


class Optimizers:
    """The optimisers of one model, seen as one; also the keeper of the float32 masters.

    When the model computes in bfloat16, its weights are copies of float32 masters that the
    optimisers own; gradients are summed in float32.
    """

    def __init__(
        self, model: nn.Module, settings: OptimSettings, learning_rate: float, dtype: torch.dtype
    ) -> None:
        """Take a float32 model; its weights are turned into `dtype` here."""
        self._working = dict(sorted(model.named_parameters()))
        self._copied = dtype != torch.float32
        self.masters: dict[str, nn.Parameter] = dict(self._working)
        if self._copied:
            self.masters = {n: nn.Parameter(p.detach().clone()) for n, p in self._working.items()}
            for working in self._working.values():
                working.data = working.data.to(dtype)
        self._dtype = dtype
        self._peak = learning_rate
        self._optimizers = list(self._build(settings, learning_rate))

    def _build(self, settings: OptimSettings, lr: float) -> Iterator[torch.optim.Optimizer]:
        hidden = {
            name
            for name, p in self.masters.items()
            if p.ndim == 2 and "embed_" not in name and "lm_head" not in name
        }
        muon = hidden if settings.optimizer == "muon" else set()
        decayed = [p for n, p in self.masters.items() if n not in muon and n in hidden]
        others = [p for n, p in self.masters.items() if n not in muon and n not in hidden]
        if muon:
            yield Muon(
                [p for n, p in self.masters.items() if n in muon],
                lr, settings.momentum, settings.weight_decay, self._dtype,
            )  # fmt: skip
        yield torch.optim.AdamW(
            [
                {"params": group, "weight_decay": decay}
                for group, decay in ((decayed, settings.weight_decay), (others, 0.0))
                if group
            ],
            lr=lr, betas=(settings.beta1, settings.beta2), eps=1e-8, fused=True,
        )  # fmt: skip

    @torch.no_grad()
    def collect_gradients(self) -> None:
        """After each backward pass: add the working gradients to the masters'."""
        if not self._copied:
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

    def gradients(self) -> list[Tensor]:
        return [p.grad for p in self.masters.values() if p.grad is not None]

    @torch.no_grad()
    def clip(self, limit: float) -> Tensor:
        """Scale all gradients down to a norm of `limit`, 0 = never; returns their norm () before.

        A GPU scales them always, by one where they are short enough: it need not tell the host.
        """
        gradients = self.gradients()
        norm = torch.nn.utils.get_total_norm(gradients)
        if limit and (norm.is_cuda or norm > limit):
            torch._foreach_mul_(gradients, (limit / norm).clamp(max=1.0))
        return norm

    @torch.no_grad()
    def step(self, scale: float, skip: Tensor | None = None) -> None:
        """Move the masters at `scale` times the peak rate and copy them into the model.

        Where `skip` () is true on the device, nothing moves and nothing is remembered.
        """
        found_inf = None if skip is None else skip.to(torch.float32)
        for optimizer in self._optimizers:
            optimizer.found_inf = found_inf  # type: ignore[attr-defined]
            for group in optimizer.param_groups:
                group["lr"] = self._peak * scale
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if self._copied:
            torch._foreach_copy_(list(self._working.values()), list(self.masters.values()))

    def discard_gradients(self) -> None:
        for p in self.masters.values():
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
    def load(self, weights: dict[str, Tensor], state: dict[str, Tensor]) -> None:
        """Put back what `masters` and `state()` held when they were saved."""
        owners = {
            parameter: optimizer
            for optimizer in self._optimizers
            for group in optimizer.param_groups
            for parameter in group["params"]
        }
        for name, master in self.masters.items():
            master.copy_(weights[name])
            self._working[name].copy_(master)
        for key, value in state.items():
            name, quantity = key.rsplit("/", 1)
            master = self.masters[name]
            owners[master].state[master][quantity] = value.to(master.device)


def schedule(progress: float, settings: OptimSettings) -> float:
    """Share of the peak rate at `progress` in [0, 1]: warm-up, flat, linear decay to min_lr."""
    if progress < settings.warmup:
        return max(progress / settings.warmup, 0.01)
    start = 1.0 - settings.decay
    if progress <= start or settings.decay == 0:
        return 1.0
    left = max(0.0, (1.0 - progress) / settings.decay)
    return settings.min_lr + (1.0 - settings.min_lr) * left
