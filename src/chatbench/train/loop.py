"""The one training loop. It knows no objective, no data format and no model family."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import torch

from chatbench import console
from chatbench.engine.engine import Engine, Request
from chatbench.errors import DivergedError, ExitCode, Stopped
from chatbench.model.folder import write_model
from chatbench.model.transformer import GPT
from chatbench.settings import OptimSettings, SamplingSettings, TrainSettings
from chatbench.storage import new_folder
from chatbench.text.tokenizer import Tokenizer
from chatbench.train import checkpoint
from chatbench.train.checkpoint import Restored, TrainState
from chatbench.train.compiling import as_trained
from chatbench.train.feed import Feed
from chatbench.train.monitor import Monitor
from chatbench.train.objective import Objective
from chatbench.train.optimizer import Optimizers, schedule
from chatbench.train.plan import Plan
from chatbench.train.readings import Readings

_SAMPLE_TOKENS = 40
MODEL_KIND = "model"


class Prompt(NamedTuple):
    """What a sample continues: as shown, and as ids."""

    text: str
    ids: list[int]


class Trainer:
    """Accumulate, clip, step, log, validate, sample, save, resume."""

    def __init__(
        self,
        run: Path,
        plan: Plan,
        settings: TrainSettings,
        optim: OptimSettings,
        model: GPT,
        tokenizer: Tokenizer,
        objective: Objective,
        prompts: list[Prompt],
        provenance: dict[str, Any],
        fingerprint: str,
        dtype: torch.dtype,
    ) -> None:
        """Take a float32 model on its device; the computation runs in `dtype`."""
        self._run = run
        self._plan = plan
        self._settings = settings
        self._optim = optim
        self._model = model.train()
        self._tokenizer = tokenizer
        self._objective = objective
        self._prompts = prompts
        self._provenance = provenance
        self._device = model.model.embed_tokens.weight.device
        self._optimizers = Optimizers(model, optim, plan.learning_rate, dtype)
        self._trained, prepare = as_trained(model, settings, plan, dtype, self._device)
        self._feed = Feed(objective.batch, self._device, prepare)
        self._readings = Readings(self._device)
        self._state = TrainState(fingerprint=fingerprint)
        self._stop: signal.Signals | None = None
        self._saved = -1
        self._mean = self._norm = math.nan

    def restore(self, restored: Restored) -> None:
        """Continue from a checkpoint, bit for bit on the same machine."""
        self._state = restored.state
        self._saved = restored.state.step
        self._optimizers.load(restored.weights, restored.optimizer)

    def fit(self) -> Path:
        """Train to the end of the plan; returns the finished model folder.

        Raises Stopped after a signal (saved, resumable) and DivergedError on a non-finite loss.
        """
        state = self._state
        begun = time.monotonic() - state.seconds
        last_save = time.monotonic()
        with (
            closing(self._feed),
            self._signals(),
            Monitor(
                self._run, self._plan, state.log_bytes, state.step, self._settings.tensorboard
            ) as monitor,
        ):
            while self._plan.progress(state.step, state.seconds) < 1.0 and self._stop is None:
                self._advance(monitor)
                state.seconds = time.monotonic() - begun
                due = time.monotonic() - last_save > 60 * self._settings.save_minutes
                if due or state.step % self._plan.save_every == 0:
                    self._save(monitor)
                    last_save = time.monotonic()
            if self._stop is not None:
                self._save(monitor)
                self._raise_stopped(self._stop)
            if state.validated != state.step:
                self._validate(monitor)
            self._save(monitor)
        return self._finish()

    def _advance(self, monitor: Monitor) -> None:
        """One step and whatever is due after it."""
        state, plan = self._state, self._plan
        started = time.monotonic()
        scale = schedule(plan.progress(state.step + 1, state.seconds), self._optim)
        batch = self._feed.batch(state.step)
        # Summed in float64, which Apple's GPU does not have.
        wide = torch.float32 if self._device.type == "mps" else torch.float64
        total = torch.zeros((), dtype=wide, device=self._device)
        for part in batch.parts:
            loss = self._objective.loss(self._trained, part.to(self._device))
            (loss.total / batch.weight).backward()  # type: ignore[no-untyped-call]
            self._optimizers.collect_gradients()
            total += loss.total.detach()
        norm = self._optimizers.clip(self._optim.grad_clip)
        self._readings.put(state.step, batch.weight, total, norm)
        if self._readings.late:
            self._optimizers.step(scale, skip=~(total.isfinite() & norm.isfinite()))
        else:
            self._settle()  # raises before anything has moved
            self._optimizers.step(scale)
        state.step += 1
        state.tokens += batch.tokens
        due = state.step % self._settings.log_every == 0
        self._settle(everything=due)
        elapsed = time.monotonic() - started
        monitor.progress(state.step, state.seconds + elapsed, self._mean, batch.tokens / elapsed)
        if due:
            values = {
                "loss": self._mean,
                "learning_rate": scale * plan.learning_rate,
                "grad_norm": self._norm,
                "tokens": state.tokens,
            }
            monitor.metrics(state.step, values)
            monitor.timings(
                state.step,
                {"seconds": state.seconds + elapsed, "tokens_per_second": batch.tokens / elapsed},
            )
            state.window_total = state.window_weight = 0.0
        if state.step % plan.eval_every == 0:
            self._validate(monitor)
        if state.step % plan.sample_every == 0:
            self._sample(monitor)

    def _settle(self, *, everything: bool = False) -> None:
        """Take in what is known of the steps so far; raises DivergedError on a bad one."""
        state = self._state
        for reading in self._readings.take(everything=everything):
            if not (math.isfinite(reading.total) and math.isfinite(reading.norm)):
                self._refuse(reading.step)
            state.window_total += reading.total
            state.window_weight += reading.weight
            self._mean = state.window_total / state.window_weight
            self._norm = reading.norm

    def _refuse(self, step: int) -> None:
        self._optimizers.discard_gradients()
        saved = checkpoint.checkpoints_of(self._run)
        last = (
            f"the last good checkpoint is {saved[-1]}" if saved else "no checkpoint was saved yet"
        )
        raise DivergedError(
            f"the loss is no longer a number at step {step}; {last}",
            hint="lower --learning-rate",
        )

    @torch.no_grad()
    def _validate(self, monitor: Monitor) -> None:
        self._settle(everything=True)
        self._state.validated = self._state.step
        total = weight = nats = size = 0.0
        for batch in self._objective.validation():
            loss = self._objective.loss(self._model, batch.to(self._device))
            total += float(loss.total)
            weight += loss.weight
            nats += loss.metrics["text_nats"]
            size += loss.metrics["text_bytes"]
        if not weight:
            return
        values = {"val_loss": total / weight}
        if size:
            values["val_bits_per_byte"] = nats / size / math.log(2)
        monitor.metrics(self._state.step, values)
        shown = " · ".join(f"{name} {value:.4f}" for name, value in values.items())
        console.say(f"  step {self._state.step} · {shown}")

    def _sample(self, monitor: Monitor) -> None:
        if not self._prompts:
            return
        engine = Engine(self._model, self._tokenizer, max_rows=len(self._prompts))
        greedy = SamplingSettings(temperature=0.0, max_tokens=_SAMPLE_TOKENS)
        replies = engine.complete(Request(prompt.ids, greedy) for prompt in self._prompts)
        for prompt, reply in zip(self._prompts, replies, strict=True):
            monitor.sample(self._state.step, prompt.text, reply.text)

    def _save(self, monitor: Monitor) -> None:
        """Write a checkpoint, unless this step has one: what was logged since is logged again."""
        self._settle(everything=True)
        if self._saved == self._state.step:
            return
        self._saved = self._state.step
        self._state.log_bytes = monitor.sync()
        checkpoint.save(
            self._run,
            self._state,
            self._model.config,
            {name: p.detach() for name, p in self._optimizers.masters.items()},
            self._optimizers.state(),
            self._tokenizer,
            self._provenance,
            self._settings.keep,
        )

    def _finish(self) -> Path:
        final = self._run / "model"
        weights = {name: p.detach() for name, p in self._optimizers.masters.items()}
        with new_folder(final, MODEL_KIND, {"step": self._state.step}) as folder:
            write_model(folder, self._model.config, weights, self._tokenizer, self._provenance)
        return final

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """First SIGINT or SIGTERM: stop after this step. Second SIGINT: leave at once."""

        def ask(number: int, frame: FrameType | None) -> None:
            if self._stop is not None:
                raise KeyboardInterrupt
            self._stop = signal.Signals(number)
            console.say("stopping after this step; once more to leave at once")

        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous: dict[int, Callable[..., Any] | int | None] = {
            number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _raise_stopped(self, number: signal.Signals) -> None:
        code = ExitCode.INTERRUPTED if number == signal.SIGINT else ExitCode.STOPPED
        raise Stopped(
            f"stopped at step {self._state.step}, saved in {self._run}",
            code,
            hint="run the same command with --resume to go on",
        )
