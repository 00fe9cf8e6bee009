"""The one training loop. It knows no objective, no data format and no model family."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from chatbench import console
from chatbench.errors import EnvironmentFault, is_out_of_memory
from chatbench.model.adapter import redrawing
from chatbench.model.transformer import GPT
from chatbench.settings import OptimSettings, TrainSettings
from chatbench.text.tokenizer import Tokenizer
from chatbench.train import checkpoint
from chatbench.train.adapting import EVERYTHING, Learned
from chatbench.train.checkpoint import Restored, TrainState
from chatbench.train.compiling import as_trained
from chatbench.train.ending import Ending, StopFlag
from chatbench.train.feed import Feed
from chatbench.train.finishing import finish
from chatbench.train.meters import Meter, Stopwatch
from chatbench.train.monitor import Monitor
from chatbench.train.objective import Batch, GlobalBatch, Objective
from chatbench.train.optimizer import Optimizers, schedule
from chatbench.train.parallel import SOLO, World
from chatbench.train.plan import Plan
from chatbench.train.readings import Reading, Readings
from chatbench.train.references import References
from chatbench.train.run import asked
from chatbench.train.samples import Prompt, samples
from chatbench.train.saving import Saver, snapshot
from chatbench.train.validating import validation


class Trainer:
    """Accumulate, clip, step or skip, log, validate, sample, save, resume."""

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
        *,
        patience: int = 0,
        world: World = SOLO,
        learned: Learned = EVERYTHING,
    ) -> None:
        """Take a float32 model on its device; the computation runs in `dtype`. What requires no
        gradient stays as it is; `learned` says how the rest is written.

        `patience`: validations without a better one that end the run, 0 = any number; `world`: the
        processes that share the run.
        """
        self._run = run
        self._plan = plan
        self._settings = settings
        self._optim = optim
        self._model = model.train()
        self._tokenizer = tokenizer
        self._objective = objective
        self._prompts = prompts
        self._provenance = provenance
        self._patience = patience
        self._device = model.model.embed_tokens.weight.device
        self._world = world
        self._learned = learned
        self._redraw = redrawing(model, learned.seed, world.rank)
        world.place(model, objective, dtype, run)
        self._optimizers = Optimizers(
            model, optim, plan.learning_rate, dtype, world.ranks,
            batch_tokens=plan.rows_per_step * plan.seq_len,
        )  # fmt: skip
        trained, self._prepare = as_trained(model, settings, plan, dtype, self._device)
        self._loss = world.loss(objective, trained, self._optimizers)
        self._readings = Readings(self._device)
        self._meter = Meter(model)
        self._state = TrainState(
            fingerprint=fingerprint, tokenizer=tokenizer.digest, micro_batch=plan.micro_batch,
            base=learned.base,
        )  # fmt: skip
        self._feed = self._new_feed()
        self._saver = Saver(world.meeting.give_up if world.meeting else None)
        self._stop = StopFlag(world.grace)
        self._ending = Ending(plan, model, objective)
        self._clock = Stopwatch()
        self._saved = -1
        self._last_save = 0.0
        self._progress = 0.0
        self._late = False

    def _new_feed(self) -> Feed:
        """Batches of at most as many rows at once as memory has been found to hold."""
        rows = self._state.micro_batch
        return Feed(
            lambda step: self._objective.batch(step).cut(rows),
            self._device,
            self._prepare and partial(cast(Callable[..., Batch], self._prepare), rows=rows),
            ahead=False if self._objective.on_policy else None,
        )

    def restore(self, restored: Restored) -> None:
        """Continue from a checkpoint, bit for bit on the same machine."""
        self._state = restored.state
        self._saved = restored.state.step
        self._optimizers.load(restored.weights, restored.optimizer)
        restored.state.micro_batch = restored.state.micro_batch or self._plan.micro_batch
        self._feed.close()
        self._feed = self._new_feed()

    @property
    def state(self) -> TrainState:
        """Where the run is."""
        return self._state

    def close(self) -> None:
        self._feed.close()

    def fit(self, references: References | None = None) -> Path:
        """Train to the end of the plan; returns the finished model folder.

        Raises Stopped after a signal (saved, resumable), DivergedError when step after step has
        no finite loss, EnvironmentFault when disk or memory do not suffice.
        """
        state = self._state
        begun = (self._plan.begun or time.monotonic()) - state.seconds
        state.seconds = time.monotonic() - begun
        self._last_save = time.monotonic()
        watching = Monitor(
            self._run, self._plan, state.log_bytes, state.step, self._settings.tensorboard,
            meter=self._meter, references=references, histograms=self._settings.histograms,
        )  # fmt: skip
        with closing(self), self._stop, watching as monitor, self._saver:
            while self._goes_on():
                self._advance(monitor)
                state.seconds = time.monotonic() - begun
                self._saver.check()
                if self._is_save_due():
                    self._save(monitor)
            if self._stop.asked:
                self._save(monitor)
                self._written()
                raise self._stop.stopped(state.step, self._run)
            if state.validated != state.step:
                self._validate(monitor)
                if state.validated == state.best_step:
                    self._saved = -1  # what this step has may not know yet that it is the best
            self._save(monitor)
            self._written()
        return self._finish()

    def _goes_on(self) -> bool:
        """What hangs on a clock is for the first process to say."""
        step = self._state.step
        late = time.monotonic() - self._last_save > 60 * self._settings.save_minutes
        own = (self._share(step), self._share(step + 1), float(late))
        (done, self._progress, overdue), number = self._world.agree(step, own, self._stop.number)
        self._late = bool(overdue)
        self._stop.take(number)
        # One step at least, however late it is: nobody wants weights as they were drawn.
        return number is None and not self._is_stale() and (done < 1.0 or not step)

    def _is_stale(self) -> bool:
        """Whether validation has not improved for long enough to stop."""
        return 0 < self._patience <= self._state.stale

    def _share(self, step: int) -> float:
        return self._ending.share(step, self._state.seconds, self._saver.seconds)

    def _is_save_due(self) -> bool:
        """By steps, by time, or because there is none better."""
        state = self._state
        return (
            self._late or state.step % self._plan.save_every == 0 or state.step == state.best_step
        )

    def _advance(self, monitor: Monitor) -> None:
        """One step and whatever is due after it."""
        state, plan = self._state, self._plan
        started = time.monotonic()
        scale = schedule(self._progress, self._optim)
        batch, total = self._accumulate()
        norm = self._optimizers.clip(self._optim.grad_clip)
        if monitor.wants_histograms(state.step + 1):
            monitor.histograms(state.step + 1, self._optimizers.masters)
        with self._clock("compute"):
            self._move(scale, batch, total, norm, watched=self._progress >= self._optim.warmup)
        state.step += 1
        state.tokens += batch.tokens
        due = state.step % self._settings.log_every == 0
        self._settle(monitor, everything=due)
        elapsed = time.monotonic() - started
        self._ending.step_seconds = elapsed
        self._meter.count(batch, elapsed)
        speed = batch.tokens / elapsed
        monitor.progress(state.step, state.seconds + elapsed, state.window.mean, speed)
        if due:
            self._log(monitor, scale, batch.tokens, elapsed)
        if state.step % plan.eval_every == 0:
            self._validate(monitor)
        if state.step % plan.sample_every == 0:
            self._sample(monitor)

    def _accumulate(self) -> tuple[GlobalBatch, Tensor]:
        """The batch of this step and its summed loss (); its gradients lie on the masters.

        Raises EnvironmentFault when memory does not even hold one row.
        """
        while True:
            with self._clock("data"):
                batch = self._feed.batch(self._state.step)
            try:
                with self._clock("compute"):
                    return batch, self._backward(batch)
            except (RuntimeError, MemoryError) as error:
                # One process alone cannot compute in other pieces than the rest.
                if self._world.size > 1 or not is_out_of_memory(error):
                    raise
            # Not above: until the error is gone it keeps what the step had computed.
            self._halve()

    def _backward(self, batch: GlobalBatch) -> Tensor:
        # Summed in float64, which Apple's GPU does not have.
        wide = torch.float32 if self._device.type == "mps" else torch.float64
        total, metrics = torch.zeros((), dtype=wide, device=self._device), []
        for number, part in enumerate(batch.parts, 1):
            self._redraw(self._state.step, number)
            loss = self._loss(part.to(self._device), number == len(batch.parts))
            (loss.total / batch.weight).backward()  # type: ignore[no-untyped-call]
            self._optimizers.collect_gradients()
            total += loss.total.detach()
            metrics.append(loss.metrics)
        # Not before all of the step fitted into memory.
        self._state.window.add(metrics)
        return self._world.total(total)

    def _halve(self) -> None:
        """Compute half as many rows at once from here on; the global batch stays."""
        state = self._state
        self._optimizers.discard_gradients()
        if state.micro_batch == 1:
            raise EnvironmentFault(
                f"memory does not hold one row of {self._plan.seq_len} tokens at step {state.step}",
                hint="choose a smaller model or --seq-len",
            )
        state.micro_batch = -(-state.micro_batch // 2)
        self._feed.close()
        self._feed = self._new_feed()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        console.notice(
            f"out of memory at step {state.step}: from here on "
            f"{console.counted(state.micro_batch, 'row is', 'rows are')} computed at once; the "
            "batch of a step stays the same"
        )

    def _move(
        self, scale: float, batch: GlobalBatch, total: Tensor, norm: Tensor, *, watched: bool
    ) -> None:
        """Step, unless the loss is no number or the gradient stands out. Where the host learns
        that late only, the device decides."""
        step = self._state.step
        limit = self._state.skips.limit(step, self._optim.spike) if watched else math.inf
        refused = ~(total.isfinite() & norm.isfinite()) | (norm > limit)
        self._readings.put(step, batch.weight, total, norm, refused, limit, watched=watched)
        if self._readings.late:
            self._optimizers.step(scale, skip=refused, number=step)
        elif refused:
            self._optimizers.discard_gradients()
        else:
            self._optimizers.step(scale, number=step)

    def _settle(self, monitor: Monitor, *, everything: bool = False) -> None:
        """Take in what is known of the steps so far; raises DivergedError after too many bad."""
        state = self._state
        for reading in self._readings.take(everything=everything):
            why = state.skips.note(reading)
            if why is None:
                state.window.total += reading.total
                state.window.weight += reading.weight
                state.norm = reading.norm
            else:
                self._tell_skipped(monitor, reading, why)

    def _tell_skipped(self, monitor: Monitor, reading: Reading, why: str) -> None:
        rows = self._plan.rows_per_step
        first = reading.step * rows
        # The rows by number, in the endless sequence of epochs.
        what = {"skipped": why, "rows": [first, first + rows]}
        monitor.metrics(reading.step + 1, what)
        console.notice(f"step {reading.step + 1} was skipped: {why}")
        skips = self._state.skips
        if skips.in_a_row >= self._optim.most_skips:
            self._saver.wait()
            raise skips.diverged(reading.step + 1, checkpoint.checkpoints_of(self._run))

    def _log(self, monitor: Monitor, scale: float, tokens: int, elapsed: float) -> None:
        state = self._state
        values = {"learning_rate": scale * self._plan.learning_rate, "tokens": state.tokens}
        if state.window.weight:  # unless every step was skipped
            values |= {"loss": state.window.mean, "grad_norm": state.norm}
        values |= self._objective.report(state.window.gathered(self._world))
        monitor.metrics(state.step, values)
        speed = {"seconds": state.seconds + elapsed, "tokens_per_second": tokens / elapsed}
        monitor.timings(state.step, speed | self._clock.take())
        state.window.clear()

    def _validate(self, monitor: Monitor) -> None:
        begun = time.monotonic()
        self._settle(monitor, everything=True)
        self._state.validated = self._state.step
        values = validation(
            self._model, self._objective, self._world, self._state.micro_batch, self._device
        )
        if not values:
            return
        self._state.judge(values["val_loss"])
        monitor.metrics(self._state.step, values)
        self._ending.validation_seconds = time.monotonic() - begun
        self._clock.add("validation", self._ending.validation_seconds)

    def _sample(self, monitor: Monitor) -> None:
        with self._world.whole("sampling") as needed:
            for prompt, text in samples(self._model, self._tokenizer, self._prompts * needed):
                monitor.sample(self._state.step, prompt, text)

    def _save(self, monitor: Monitor) -> None:
        """Begin to write a checkpoint, unless this step has one: what was logged since is logged
        again. Raises what the write before raised."""
        self._settle(monitor, everything=True)
        state = self._state
        if self._saved == state.step:
            return
        self._written()
        state.window.gathered(self._world)
        self._saved = state.step
        begun = self._last_save = time.monotonic()
        state.log_bytes = monitor.sync()
        part, keep = self._world.part(self._optimizers), self._settings.keep
        if part is not None:
            assert self._world.meeting is not None
            part = part._replace(tensors=snapshot(part.tensors))
            self._saver.start(
                partial(
                    checkpoint.save_part, self._run, state.copied(), part, self._world.meeting, keep
                )
            )  # fmt: skip
        elif self._world.first:
            self._saver.start(
                partial(
                    checkpoint.save, self._run, state.copied(), self._model.config,
                    snapshot(self._optimizers.masters), snapshot(self._optimizers.state()),
                    self._tokenizer, self._provenance, keep, self._learned.write,
                )
            )  # fmt: skip
        self._clock.add("saving", time.monotonic() - begun)

    def _written(self) -> None:
        """Until the checkpoint is that is being written."""
        self._world.pause("saving")
        self._saver.wait()

    def _finish(self) -> Path:
        state = self._state
        if self._is_stale():
            console.say(
                "stopped early: the last "
                f"{console.counted(state.stale, 'validation was', 'validations were')} not better "
                f"than that of step {state.best_step}"
            )
        if not self._world.first:
            return self._run
        # What is spread over ranks is read from the last checkpoint, tensor by tensor.
        newest = None
        if self._world.meeting is None:
            newest = {name: p.detach() for name, p in self._optimizers.masters.items()}
        return finish(
            self._run, state, asked(self._settings), self._model.config, newest, self._tokenizer,
            self._provenance, self._learned.write,
        )  # fmt: skip
