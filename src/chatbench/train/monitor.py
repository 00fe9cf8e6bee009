"""What a run tells: metrics.jsonl is the truth and a function of settings and data alone;
timings.jsonl holds what the clock says; samples.jsonl what the model says."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import TracebackType
from typing import Any

from chatbench import console
from chatbench.storage import AppendLog
from chatbench.train.plan import Plan

_LOGS = ("metrics", "timings", "samples")


class Monitor:
    """Logs on disk, a line on the terminal, and TensorBoard events when it is installed."""

    def __init__(
        self, run: Path, plan: Plan, kept: dict[str, int], start: int, tensorboard: bool
    ) -> None:
        self._plan = plan
        self._logs = {name: AppendLog(run / f"{name}.jsonl", kept.get(name, 0)) for name in _LOGS}
        self._events = _event_writer(run, start) if tensorboard else None
        self._line = console.ProgressLine("training", total=1.0)

    def __enter__(self) -> Monitor:
        self._line.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._line.__exit__(kind, error, trace)
        for log in self._logs.values():
            log.close()
        if self._events is not None:
            self._events.close()

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """One line of metrics.jsonl: nothing in it may depend on the clock."""
        self._logs["metrics"].append({"step": step, **values})
        self._scalars(step, values)

    def timings(self, step: int, values: dict[str, float]) -> None:
        self._logs["timings"].append({"step": step, **values})
        self._scalars(step, values)

    def sample(self, step: int, prompt: str, text: str) -> None:
        self._logs["samples"].append({"step": step, "prompt": prompt, "text": text})
        console.say(f"  step {step} › {_one_line(prompt)} → {_one_line(text)}", style="dim")
        if self._events is not None:
            self._events.add_text(prompt, text, step)

    def progress(self, step: int, seconds: float, loss: float, rate: float) -> None:
        """Move the bar: loss, tokens a second, time left."""
        share = min(1.0, self._plan.progress(step, seconds))
        left = seconds / share - seconds if share > 0 else 0.0
        self._line.update(
            share,
            f"step {step} · loss {loss:.3f} · {console.format_count(rate)} tok/s · "
            f"{console.format_duration(left)} left",
        )

    def sync(self) -> dict[str, int]:
        """Make the logs durable; how far a resume may trust them."""
        return {name: log.sync() for name, log in self._logs.items()}

    def _scalars(self, step: int, values: dict[str, float]) -> None:
        if self._events is not None:
            for name, value in values.items():
                self._events.add_scalar(name, value, step)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _event_writer(run: Path, start: int) -> Any:
    if importlib.util.find_spec("tensorboard") is None:
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(run / "tensorboard"), purge_step=start + 1 if start else None)
