"""What a run tells: metrics.jsonl is the truth and a function of settings and data alone;
timings.jsonl holds what the clock says; samples.jsonl what the model says."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import msgspec
from torch import Tensor

from chatbench import console
from chatbench.storage import AppendLog
from chatbench.train.board import Board, glyphs_for
from chatbench.train.events import open_events
from chatbench.train.live import LiveBlock
from chatbench.train.meters import Meter
from chatbench.train.plan import Plan
from chatbench.train.references import References

_LOGS = ("metrics", "timings", "samples")
_REDRAW_SECONDS = 0.1
# Between lines of a log: ten seconds, and in long runs a hundredth of what has passed.
_SHARE_BETWEEN_LINES = 0.01
_LAST_WAIT = 5.0


class Monitor:
    """Logs on disk, a block on a terminal or lines in a log, and TensorBoard events when it is
    installed."""

    def __init__(
        self,
        run: Path,
        plan: Plan,
        kept: dict[str, int],
        start: int,
        tensorboard: bool,
        *,
        meter: Meter | None = None,
        references: References | None = None,
        histograms: int | None = None,
    ) -> None:
        """`kept`: how much of each log a resume trusts; `histograms`: steps between them."""
        self._plan = plan
        self._logs = {name: AppendLog(run / f"{name}.jsonl", kept.get(name, 0)) for name in _LOGS}
        self._events = open_events(run, start) if tensorboard else None
        self._meter = meter
        self._references = references
        self._histograms = histograms if self._events is not None else None
        self._board = Board(glyphs_for(console.people().encoding))
        self._recall(run)
        self._block = LiveBlock(self._board.lines) if console.is_animated() else None
        self._begun = self._said = self._drawn = time.monotonic()
        self._sampled = -1
        self._paces: list[float] = []  # seconds a token, of each step since the last line

    def _recall(self, run: Path) -> None:
        """Show what was logged before a resume."""
        for row in (run / "metrics.jsonl").read_bytes().splitlines():
            with contextlib.suppress(msgspec.DecodeError):
                self._board.take(msgspec.json.decode(row, type=dict[str, object]))

    def __enter__(self) -> Monitor:
        if self._references is not None:
            self._references.start()
        if self._block is not None:
            self._block.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._block is not None:
            self._block.__exit__(kind, error, trace)
        if self._references is not None:
            # Not for long where something went wrong; a thread must not outlive the interpreter.
            self._references.ready(seconds=None if kind is None else _LAST_WAIT)
        for log in self._logs.values():
            log.close()
        if self._events is not None:
            self._events.close()

    def metrics(self, step: int, values: Mapping[str, object]) -> None:
        """One line of metrics.jsonl: nothing in it may depend on the clock. With `val_loss` it is
        a validation, which people are told of; with `skipped` a step that moved nothing."""
        row = {"step": step, **values}
        self._logs["metrics"].append(row)
        self._board.take(row)
        if self._events is not None:
            self._events.scalars(step, values)
        if "val_loss" in values:
            self._validated(step)

    def timings(self, step: int, values: Mapping[str, float]) -> None:
        """One line of timings.jsonl, with the speed over all steps since the last line and what
        the meter reads."""
        row = {"step": step, **values}
        if self._paces:
            row["tokens_per_second"] = len(self._paces) / sum(self._paces)
            self._paces.clear()
        if self._meter is not None:
            row |= self._meter.readings()
        self._logs["timings"].append(row)
        self._board.take(row)
        if self._events is not None:
            self._events.scalars(step, row)

    def _validated(self, step: int) -> None:
        if self._references is not None:
            self._board.references = self._references.ready()
            if self._events is not None:
                self._events.references(step, self._board.references)
        if self._block is None:
            board = self._board
            facts = [f"  step {step}", board.verdict(), *board.reported(), *board.bits()]
            console.say(" · ".join(facts))

    def skipped(self, step: int, why: str, rows: tuple[int, int]) -> None:
        """A step that was not taken, with its rows: first and end in the endless sequence of
        epochs."""
        self.metrics(step, {"skipped": why, "rows": rows})

    def sample(self, step: int, prompt: str, text: str) -> None:
        """What the model makes of a prompt."""
        self._logs["samples"].append({"step": step, "prompt": prompt, "text": text})
        if step != self._sampled:
            self._board.samples.clear()
        self._sampled = step
        self._board.samples.append((prompt, text))
        if self._block is None:
            console.say(f"  step {step} › {_one_line(prompt)} → {_one_line(text)}", style="dim")
        if self._events is not None:
            self._events.text(step, prompt, text)

    def wants_histograms(self, step: int) -> bool:
        """Whether they are due after `step` steps."""
        return self._histograms is not None and step % self._histograms == 0

    def histograms(self, step: int, parameters: Mapping[str, Tensor]) -> None:
        """Weights and gradients, to TensorBoard; to be called while the gradients are there."""
        if self._events is not None:
            self._events.histograms(step, parameters)

    def progress(self, step: int, seconds: float, loss: float, rate: float) -> None:
        """Show where the run stands: its mean loss of late, tokens a second, time left."""
        board, now = self._board, time.monotonic()
        board.step, board.loss = step, loss
        board.share = min(1.0, self._plan.progress(step, seconds))
        board.left = self._plan.left(step, seconds)
        board.now.setdefault("tokens_per_second", rate)
        self._paces.append(1 / rate)
        if self._block is not None:
            if now - self._drawn >= _REDRAW_SECONDS:
                self._drawn = now
                self._block.redraw()
        elif now - self._said >= self._pause(now):
            self._said = now
            facts = [
                board.lately(),
                *board.speed(),
                f"{console.format_duration(board.left)} left",
            ]
            console.say(f"{100 * board.share:3.0f} %  step {step} · {' · '.join(facts)}")

    def _pause(self, now: float) -> float:
        return max(console.PLAIN_LINE_SECONDS, _SHARE_BETWEEN_LINES * (now - self._begun))

    def sync(self) -> dict[str, int]:
        """Make the logs durable; how far a resume may trust them."""
        return {name: log.sync() for name, log in self._logs.items()}


def _one_line(text: str) -> str:
    return " ".join(text.split())
