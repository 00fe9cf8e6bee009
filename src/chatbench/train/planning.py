"""The plan of a run on this machine: what to train, how many rows at once, and what it costs."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import torch

from chatbench import console
from chatbench.corpus.shards import Corpus
from chatbench.model.transformer import ModelConfig
from chatbench.settings import OptimSettings, PretrainSettings, TrainSettings
from chatbench.text.tokenizer import Tokenizer
from chatbench.train import machine
from chatbench.train.adapting import WHOLE, Adaptation
from chatbench.train.budget import Amount, Choice, choose, parameters, shapes, warnings
from chatbench.train.compiling import activation_bytes
from chatbench.train.forecast import Difficulty
from chatbench.train.memory import Kept, Memory, kept_by_a_row, predict
from chatbench.train.meters import flops_per_token, peak_flops
from chatbench.train.plan import (
    DEFAULT_PRETRAIN_MINUTES,
    Plan,
    fix_shape,
    is_open,
    model_config,
)
from chatbench.train.probe import (
    Probe,
    Timing,
    best_micro_batch,
    few_share,
    fitting_rows,
    look,
    update_flops,
)

# Shares of the time: for looking at the machine, for validation, samples and checkpoints.
_LOOKING = 0.03
_LONGEST_LOOK = 5.0
_LONGEST_TRIAL = 1.5
_LOOKING_BACK = 0.05
_LOOKS = 4
_FEWEST_JUDGED = 8192
_USABLE_MEMORY = 0.8
# Where only an amount of text is given, of what a step without --batch-tokens consists.
_USUAL_BATCH = 4096
# A vocabulary or a block beyond this is not measured but reckoned, at this share of the peak.
_LARGEST_MEASURED = 60_000_000
_USUAL_SHARE = 0.35
# What nobody can measure: how hard text is of which nothing is held out. Of use for choosing.
_USUAL_TRIGRAM = (2.0, 1 << 19, 0.085, 8.0)


class Costs(NamedTuple):
    """What one step takes, and at its peak holds."""

    timing: Timing
    memory: Memory


def use_threads(device: torch.device) -> str:
    """Compute with as many threads as there are cores for us; how many, and why."""
    if device.type != "cpu":
        return ""
    count, reason = machine.threads()
    if torch.get_num_threads() != count:
        torch.set_num_threads(count)
    return f"{count} threads ({reason})" if count > 1 else f"1 thread ({reason})"


def amount_of(train: TrainSettings, tokens_an_epoch: int, begun: float) -> Amount:
    """How much there is to choose a shape for; minutes count from `begun`."""
    if train.minutes is None and not (train.steps or train.tokens or train.epochs):
        return _seconds(DEFAULT_PRETRAIN_MINUTES, begun)
    if train.minutes is not None:
        return _seconds(train.minutes, begun)
    limits = [
        train.steps and train.steps * (train.batch_tokens or _USUAL_BATCH),
        train.tokens,
        train.epochs and train.epochs * tokens_an_epoch,
    ]
    return Amount(tokens=float(min(limit for limit in limits if limit)))


def _seconds(minutes: float, begun: float) -> Amount:
    limit = 60 * minutes
    spent = time.monotonic() - begun
    return Amount(seconds=max(0.1 * limit, (limit - spent) * (1 - _LOOKING_BACK)))


def chosen_shape(
    settings: PretrainSettings, corpus: Corpus, hard: Difficulty | None, device: torch.device,
    dtype: torch.dtype, begun: float,
) -> ModelConfig:  # fmt: skip
    """The shape that the settings give or leave open; what is chosen is written into them."""
    vocabulary = corpus.tokenizer.vocab_size
    usual = model_config(settings.model, settings.train.seq_len, vocabulary)
    if not is_open(settings.model):
        return usual
    train = corpus.split("train")
    longest = int(np.quantile(train.lengths, 0.95)) if len(train) else 0
    candidates = list(shapes(usual, longest))
    if given := settings.train.seq_len:
        candidates = [config._replace(context=given) for config in candidates]
    amount = amount_of(settings.train, train.tokens, begun)
    batch = settings.train.batch_tokens
    if batch is None and settings.train.steps and amount.seconds is None:
        batch = _USUAL_BATCH
    muon = settings.optim.optimizer == "muon"
    clock: Callable[[ModelConfig], Timing] = partial(_by_operations, settings.optim)
    if amount.seconds is not None:
        probe = Probe(device, dtype, settings.optim)
        seconds = min(_LONGEST_LOOK, _LOOKING * amount.seconds)
        by_width = {config.hidden_size: config for config in candidates}
        measured = look(
            probe.timing, device.type, lambda width: by_width[width]._replace(n_layers=2), seconds
        )
        clock = measured.timing
    free = free_memory(device)

    def fits(config: ModelConfig) -> bool:
        one = Kept(activation_bytes(config, config.context, dtype), 0)
        return free is None or predict(config, 1, config.context, one, dtype, muon=muon).peak < free

    if hard is None:
        hard = Difficulty(*_USUAL_TRIGRAM, vocabulary, max(1, train.tokens))
    choice = choose(candidates, amount, clock, hard, batch, fits)
    fix_shape(settings, choice.config, choice.batch_tokens)
    return model_config(settings.model, settings.train.seq_len, vocabulary)


def _by_operations(optim: OptimSettings, config: ModelConfig) -> Timing:
    """In operations instead of seconds: enough to compare shapes."""
    update = update_flops(config) if optim.optimizer == "muon" else 0.0
    return Timing(flops_per_token(config, config.context), update, few_share(optim))


def free_memory(device: torch.device) -> int | None:
    """Bytes that a run may fill."""
    if device.type == "cuda":
        free: int | None = int(torch.cuda.mem_get_info(device)[0])
    else:
        free = machine.free_memory()
    return None if free is None else int(_USABLE_MEMORY * free)


def costs(
    config: ModelConfig, plan: Plan, optim: OptimSettings, device: torch.device,
    dtype: torch.dtype, adaptation: Adaptation = WHOLE,
) -> Costs:  # fmt: skip
    """Measured where the shape is small enough for it, else reckoned."""
    muon = optim.optimizer == "muon"
    shape = config._replace(context=plan.seq_len)
    if _too_large(config):
        rate = _USUAL_SHARE * peak_flops(dtype, device)
        update = update_flops(config) / rate if muon and adaptation.is_whole else 0.0
        passes = flops_per_token(config, plan.seq_len) / rate
        timing = Timing(passes, update, few_share(optim))
        kept = Kept(activation_bytes(config, plan.seq_len, dtype), 0)
    else:
        rows = max(1, min(plan.micro_batch, 4096 // plan.seq_len))
        timing = Probe(device, dtype, optim, adaptation).timing(shape, rows, seconds=0.2)
        kept = kept_by_a_row(shape, plan.seq_len, dtype, adaptation)
    memory = predict(
        config, plan.micro_batch, plan.seq_len, kept, dtype, muon=muon, adaptation=adaptation
    )
    return Costs(timing, memory)


def _too_large(config: ModelConfig) -> bool:
    block, tables = parameters(config._replace(n_layers=1))
    return block + tables > _LARGEST_MEASURED


def fitting_micro_batch(
    config: ModelConfig, plan: Plan, train: TrainSettings, optim: OptimSettings,
    device: torch.device, dtype: torch.dtype, *, measure: bool, adaptation: Adaptation = WHOLE,
) -> int:  # fmt: skip
    """Rows at once: as given; else on a GPU as many as memory holds, and on a CPU those that
    compute fastest (with `measure`, otherwise the plan's) and fit."""
    if train.micro_batch is not None:
        return plan.micro_batch
    rows = plan.micro_batch
    shape = config._replace(context=plan.seq_len)
    free = free_memory(device)
    if device.type == "cuda" and not _too_large(config) and free is not None:
        probe = Probe(device, dtype, optim, adaptation)
        return fitting_rows(lambda count: probe.peak(shape, count), plan.rows_per_step, free)
    if measure and device.type == "cpu" and not _too_large(config):
        probe = Probe(device, dtype, optim, adaptation)
        seconds = min(_LONGEST_TRIAL, 60 * _LOOKING * (plan.minutes or 1.0))
        rows = best_micro_batch(probe.timing, shape, plan.rows_per_step, seconds)
    if free is None or rows == 1:
        return rows
    kept = Kept(activation_bytes(config, plan.seq_len, dtype), 0)
    muon = optim.optimizer == "muon"

    def peak(count: int) -> int:
        held = predict(config, count, plan.seq_len, kept, dtype, muon=muon, adaptation=adaptation)
        return held.peak

    return fitting_rows(peak, rows, free)


def settled(plan: Plan, train: TrainSettings, cost: Costs, begun: float, ranks: int = 1) -> Plan:
    """The plan with what it is expected to take on `ranks` devices like this one.

    A run by the clock looks at its validation so often and so long that it costs about a twentieth
    of the time, yet at enough of it to say something. What is chosen goes into `train`.
    """
    step = cost.timing.step(-(-plan.rows_per_step // ranks) * plan.seq_len)
    spent = time.monotonic() - begun
    by_time = math.inf if plan.minutes is None else max(0.0, 60 * plan.minutes - spent)
    by_step = math.inf if plan.steps is None else plan.steps * step
    if by_time < by_step:
        if train.eval_every is None:
            train.eval_every = max(1, min(plan.eval_every, int(by_time / step) // _LOOKS))
            plan = plan._replace(eval_every=train.eval_every)
            if train.sample_every is None:
                plan = plan._replace(sample_every=train.eval_every)
        if train.eval_tokens is None:
            affordable = _LOOKING_BACK * by_time / (_LOOKS + 1) / (cost.timing.token / 3)
            train.eval_tokens = max(_FEWEST_JUDGED, min(plan.eval_tokens, int(affordable)))
            plan = plan._replace(eval_tokens=train.eval_tokens)
    elif plan.minutes is not None:
        # A resume has less time left, or measures a slower machine: it looks as the start did.
        train.eval_every, train.eval_tokens = plan.eval_every, plan.eval_tokens
    return plan._replace(step_seconds=step, seconds=min(by_time, by_step))


def expected_tokens(plan: Plan) -> float:
    """That a run by this plan will have seen, repeated ones among them."""
    a_step = plan.rows_per_step * plan.seq_len
    steps = math.inf if plan.steps is None else plan.steps
    if plan.minutes is not None and plan.seconds is not None and plan.step_seconds:
        steps = min(steps, (1 - _LOOKING_BACK) * plan.seconds / plan.step_seconds)
    return float(steps * a_step)


def tell_warnings(config: ModelConfig, plan: Plan, hard: Difficulty, tokenizer: Tokenizer) -> None:
    """What a person should know before the first step."""
    choice = Choice(config, plan.rows_per_step * plan.seq_len, expected_tokens(plan))
    for line in warnings(choice, hard, smallest_vocabulary(tokenizer)):
        console.notice(line)


def tell_haste(plan: Plan) -> None:
    """Say so when getting ready took most of the time."""
    if plan.minutes is not None and plan.spent > 30 * plan.minutes:
        took, whole = map(console.format_duration, (plan.spent, 60 * plan.minutes))
        console.notice(f"getting ready took {took} of {whole}: more --minutes would train longer")


def smallest_vocabulary(tokenizer: Tokenizer) -> int:
    """Entries below which nothing should be advised: scripts of thousands of characters would
    fall apart into bytes."""
    spelt = tokenizer.token_bytes
    # In UTF-8 the lead bytes of Chinese, Japanese and Korean.
    wide = sum(1 for entry in spelt if entry[:1] >= b"\xe3" and entry[:1] <= b"\xed")
    return 2048 if wide > len(spelt) / 5 else 512
