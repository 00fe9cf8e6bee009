"""When a run ends: by its plan, with the time kept that the end itself takes, or by a signal."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from torch import nn

from chatbench import console
from chatbench.errors import ExitCode, Stopped
from chatbench.train.objective import Objective
from chatbench.train.plan import Plan

# Until measured: a forward pass is a third of a step, disks take so much a second, and of each
# weight a checkpoint holds about so many bytes.
_FORWARD = 1 / 3
_BYTES_A_SECOND = 2e8
_BYTES_A_WEIGHT = 12
# The last checkpoint, then the finished model, which has no optimiser.
_LAST_WRITES = 1.5


class Ending:
    """How far a run is, such that a run measured in minutes is over, all files written, on time."""

    def __init__(self, plan: Plan, model: nn.Module, objective: Objective) -> None:
        self._plan = plan
        self._save_seconds = (
            _BYTES_A_WEIGHT
            * sum(p.numel() for p in model.parameters() if p.requires_grad)
            / _BYTES_A_SECOND
        )
        held_out = sum(batch.ids.numel() for batch in objective.validation())
        self._steps_a_validation = _FORWARD * held_out / (plan.rows_per_step * plan.seq_len)
        self.step_seconds = 0.0
        self.validation_seconds: float | None = None

    def reserve(self, save_seconds: float | None) -> float:
        """Seconds from the end of the last step to the end of the run, from what was measured;
        half a step is added because the last one cannot be broken off."""
        validation = self.validation_seconds
        if validation is None:
            validation = self._steps_a_validation * self.step_seconds
        save = self._save_seconds if save_seconds is None else save_seconds
        return validation + _LAST_WRITES * save + self.step_seconds / 2

    def share(self, step: int, seconds: float, save_seconds: float | None) -> float:
        """Share of the run that is done after `step` steps and `seconds`; 1 = time to end it.

        `save_seconds`: what a checkpoint took, None = not known yet.
        """
        plan = self._plan
        if plan.minutes is not None:
            # A reserve of half the run or more would be a mistake of measuring.
            kept = min(self.reserve(save_seconds) / 60, plan.minutes / 2)
            plan = plan._replace(minutes=plan.minutes - kept)
        return plan.progress(step, seconds)


class StopFlag:
    """First SIGINT or SIGTERM: stop after this step. Second: leave at once, by KeyboardInterrupt.

    Signals are heard inside the context, in the main thread only. One that comes within `grace`
    seconds after the first is its echo by a launcher.
    """

    def __init__(self, grace: float = 0.0) -> None:
        self._grace = grace
        self._heard = 0.0
        self._number: signal.Signals | None = None
        self._previous: dict[int, Callable[..., Any] | int | None] = {}

    @property
    def asked(self) -> bool:
        return self._number is not None

    @property
    def number(self) -> int | None:
        return self._number

    def take(self, number: int | None) -> None:
        """Heed the signal that another process of the run got."""
        if number is not None and self._number is None:
            self._number, self._heard = signal.Signals(number), time.monotonic()

    def stopped(self, step: int, run: Path) -> Stopped:
        """What to raise once all is saved."""
        code = ExitCode.INTERRUPTED if self._number == signal.SIGINT else ExitCode.STOPPED
        return Stopped(
            f"stopped at step {step}, saved in {run}",
            code,
            hint="run the same command with --resume to go on",
        )

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self._number is not None:
            if time.monotonic() - self._heard < self._grace:
                return
            raise KeyboardInterrupt
        self.take(number)
        console.say("stopping after this step; once more to leave at once")

    def __enter__(self) -> StopFlag:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._ask)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()
