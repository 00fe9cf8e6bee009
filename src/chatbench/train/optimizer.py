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

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                by_shape[parameter.shape].append(parameter)
            for parameters in by_shape.values():
                self._step_together(parameters, group)

    def _step_together(self, parameters: list[Tensor], group: dict[str, float]) -> None:
        directions = []
        for parameter in parameters:
            gradient = parameter.grad
            assert gradient is not None
            state = self.state[parameter]
            if not state:
                state["momentum_buffer"] = torch.zeros_like(parameter)
            buffer = state["momentum_buffer"]
            buffer.lerp_(gradient, 1 - group["momentum"])
            directions.append(gradient.lerp(buffer, group["momentum"]))
        updates = orthogonalise(torch.stack(directions).to(self._work_dtype))
        scale = _RMS_OF_ADAMW * max(parameters[0].shape) ** 0.5
        for parameter, update in zip(parameters, updates, strict=True):
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parameter.add_(update.to(parameter.dtype), alpha=-group["lr"] * scale)


def orthogonalise(matrices: Tensor) -> Tensor:
    """Push the singular values of each matrix (N, rows, columns) towards one."""
    a, b, c = _NEWTON_SCHULZ
    tall = matrices.shape[1] > matrices.shape[2]
    x: Tensor = matrices.mT if tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(_NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


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
            if p.ndim == 2 and "embed_tokens" not in name and "lm_head" not in name
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
        for name, working in self._working.items():
            if working.grad is not None:
                master = self.masters[name]
                fresh = working.grad.float()
                master.grad = fresh if master.grad is None else master.grad.add_(fresh)
                working.grad = None

    def gradients(self) -> list[Tensor]:
        return [p.grad for p in self.masters.values() if p.grad is not None]

    @torch.no_grad()
    def step(self, scale: float) -> None:
        """Move the masters at `scale` times the peak rate and copy them into the model."""
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self._peak * scale
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if self._copied:
            for name, working in self._working.items():
                working.copy_(self.masters[name])

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
