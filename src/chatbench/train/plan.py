"""From what the user said to what will be done: shape, batch, length, cadence."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from chatbench.errors import UsageError
from chatbench.model.transformer import ModelConfig
from chatbench.settings import ModelSettings, OptimSettings, PretrainSettings, TrainSettings

DEFAULT_PRETRAIN_MINUTES = 10.0
DEFAULT_FINETUNE_EPOCHS = 3.0
_ALIGNMENT = 64
# At least.
_STEPS_AN_EPOCH = {"pretrain": 10, "finetune": 20}
# What a finetune gets besides where its steps do not become too small by it: two epochs on 230
# thousand tokens ended at 0.083 nats with 58 steps each and at 0.062 with 230.
_WISHED_STEPS = 200
_LEAST_BATCH = 512
# Muon's products cost about 25 operations per parameter and unit of width in a step, a token 6 per
# parameter: with this many tokens they are half of it.
_MUON_TOKENS_PER_WIDTH = 4
_RATE_TIMES_WIDTH = {"muon": 0.77, "adamw": 0.26}
_RATE_BATCH = 2048
_RATE_BOUNDS = (0.7, 3.0)
_EVAL_TOKENS = 65_536


class Size(NamedTuple):
    n_layers: int
    hidden_size: int
    n_heads: int
    n_kv_heads: int
    seq_len: int
    batch_tokens: int


SIZES = {
    "tiny": Size(4, 256, 4, 2, 256, 4096),
    "small": Size(8, 384, 6, 3, 512, 16_384),
    "base": Size(12, 768, 12, 4, 1024, 65_536),
    "gpt2": Size(12, 768, 12, 12, 1024, 65_536),
    "gpt2-medium": Size(24, 1024, 16, 16, 1024, 131_072),
    "gpt2-large": Size(36, 1280, 20, 20, 1024, 262_144),
    "gpt2-xl": Size(48, 1600, 25, 25, 1024, 262_144),
}
# What fills the gaps when only some numbers of a shape are given.
_USUAL = "tiny"
_SHAPE = ("n_layers", "hidden_size", "n_heads", "n_kv_heads", "head_dim", "ffn_size")
# Settings that a plan may choose; a resume takes over what was chosen.
_CHOSEN = {
    "model": ("n_layers", "hidden_size", "n_heads", "n_kv_heads", "head_dim", "ffn_size"),
    "train": ("seq_len", "batch_tokens", "micro_batch", "eval_tokens", "eval_every"),
}


def usual_batch(model: ModelSettings) -> int:
    """Tokens a step where nothing else says how many."""
    return SIZES[_USUAL if model.size == "auto" else model.size].batch_tokens


def is_open(model: ModelSettings) -> bool:
    """Whether the shape is left to be chosen: no size and no number of it is given."""
    return model.size == "auto" and not any(getattr(model, name) for name in _SHAPE)


def take_over(settings: Any, before: Any) -> None:
    """Fill what `settings` leaves open with what was chosen when the run began, `before`."""
    for group, names in _CHOSEN.items():
        now = getattr(settings, group)
        if isinstance(now, str):  # finetune's model is a folder
            continue
        then = getattr(before, group)
        if group == "model" and not is_open(now):
            continue
        for name in names:
            if getattr(now, name) is None:
                setattr(now, name, getattr(then, name))


def fix_shape(settings: PretrainSettings, config: ModelConfig, batch_tokens: int) -> None:
    """Write a chosen shape into the settings, from where config.toml takes it."""
    model, train = settings.model, settings.train
    model.n_layers, model.hidden_size = config.n_layers, config.hidden_size
    model.n_heads, model.n_kv_heads = config.n_heads, config.n_kv_heads
    model.head_dim, model.ffn_size = config.head_dim, config.ffn_size
    train.seq_len = train.seq_len or config.context
    train.batch_tokens = train.batch_tokens or batch_tokens


class Plan(NamedTuple):
    """Everything the loop needs to know that is not a weight or a token."""

    seq_len: int
    rows_per_step: int
    micro_batch: int
    learning_rate: float
    steps: int | None
    minutes: float | None
    eval_every: int
    sample_every: int
    save_every: int
    eval_tokens: int = _EVAL_TOKENS
    # What is expected: seconds of a step, and of the whole run; None: nobody measured.
    step_seconds: float | None = None
    seconds: float | None = None
    # When the command began, on time.monotonic's clock, since minutes count from there; and the
    # seconds until training began, which the schedule does not count.
    begun: float | None = None
    spent: float = 0.0

    def progress(self, step: int, seconds: float) -> float:
        """Share of the run that is done, by whichever limit is nearest."""
        by_step = step / self.steps if self.steps else 0.0
        if not self.minutes:
            return by_step
        limit = 60 * self.minutes
        spent = min(self.spent, 0.9 * limit)
        return max(by_step, (seconds - spent) / (limit - spent))

    def left(self, step: int, seconds: float) -> float:
        """Seconds to go at the pace so far; 0 before the first step."""
        share = min(1.0, self.progress(step, seconds))
        trained = max(0.0, seconds - self.spent) if self.minutes else seconds
        return trained / share - trained if share > 0 else 0.0


def model_config(settings: ModelSettings, seq_len: int | None, vocab_size: int) -> ModelConfig:
    """The shape to build. Raises UsageError when explicit numbers do not fit together."""
    size = SIZES[_USUAL if settings.size == "auto" else settings.size]
    hidden = settings.hidden_size or size.hidden_size
    head_dim = settings.head_dim
    n_heads = settings.n_heads
    if n_heads is None:
        n_heads = size.n_heads if hidden == size.hidden_size else max(1, hidden // (head_dim or 64))
    if head_dim is None:
        head_dim, rest = divmod(hidden, n_heads)
        if rest:
            raise UsageError(f"hidden_size {hidden} is not a multiple of n_heads {n_heads}")
    whole = hidden == size.hidden_size and settings.n_heads is None
    default_kv = size.n_kv_heads if whole else n_heads
    ffn = settings.ffn_size or _round_up(hidden * 8 / 3)
    return ModelConfig(
        vocab_size=vocab_size,
        n_layers=settings.n_layers or size.n_layers,
        hidden_size=hidden,
        n_heads=n_heads,
        n_kv_heads=settings.n_kv_heads or default_kv,
        head_dim=head_dim,
        ffn_size=ffn,
        context=seq_len or size.seq_len,
        rope_theta=settings.rope_theta,
        tie_embeddings=settings.tie_embeddings,
    ).check()


def _round_up(width: float) -> int:
    return -(-int(width) // _ALIGNMENT) * _ALIGNMENT if width > _ALIGNMENT else int(width)


def default_rate(
    optimizer: str, hidden_size: int, *, finetune: bool, batch_tokens: int = _RATE_BATCH
) -> float:
    """Peak rate when none is given: falls as 1 / width (Yang et al. 2022), and grows as the root of
    the batch (Malladi et al. 2022), within bounds. A model that knows something already moves in
    steps of a quarter, whatever its batch. The constants were found at width 128."""
    rate = _RATE_TIMES_WIDTH[optimizer] / hidden_size
    if finetune:
        return rate / 4
    low, high = _RATE_BOUNDS
    return rate * min(max(math.sqrt(batch_tokens / _RATE_BATCH), low), high)


def _least_batch(optimizer: str, hidden_size: int, whole: bool) -> int:
    """Tokens below which a step of a finetune would cost more than they do."""
    muon = _MUON_TOKENS_PER_WIDTH * hidden_size if optimizer == "muon" and whole else 0
    return max(_LEAST_BATCH, muon)


def make_plan(
    settings: TrainSettings,
    optim: OptimSettings,
    *,
    seq_len: int,
    batch_tokens: int,
    rows_per_epoch: int,
    hidden_size: int = SIZES["tiny"].hidden_size,
    finetune: bool = False,
    default_minutes: float | None = None,
    default_epochs: float | None = None,
    rate: float = 1.0,
    whole: bool = True,
) -> Plan:
    """Lengths given in any unit become steps and minutes; the first reached ends the run. `rate`:
    the default learning rate as a multiple of the usual one; `whole`: all weights learn."""
    rows = max(1, round((settings.batch_tokens or batch_tokens) / seq_len))
    if settings.batch_tokens is None:
        # A small set would otherwise be over after a handful of steps.
        most = rows_per_epoch // _STEPS_AN_EPOCH["finetune" if finetune else "pretrain"]
        if finetune:
            least = _least_batch(optim.optimizer, hidden_size, whole) // seq_len
            most = min(most, max(least, rows_per_epoch // _WISHED_STEPS))
        rows = min(rows, max(1, most))
    micro = min(rows, settings.micro_batch or max(1, 4096 // seq_len))
    minutes, epochs = settings.minutes, settings.epochs
    if settings.steps is None and settings.tokens is None and minutes is None and epochs is None:
        minutes, epochs = default_minutes, default_epochs
    limits = [
        settings.steps,
        None if settings.tokens is None else -(-settings.tokens // (rows * seq_len)),
        None if epochs is None else max(1, round(epochs * rows_per_epoch / rows)),
    ]
    steps = min((limit for limit in limits if limit is not None), default=None)
    cadence = max(1, min(250, (steps or 2500) // 5))
    return Plan(
        seq_len=seq_len,
        rows_per_step=rows,
        micro_batch=micro,
        learning_rate=optim.learning_rate
        or rate
        * default_rate(
            optim.optimizer, hidden_size, finetune=finetune, batch_tokens=rows * seq_len
        ),
        steps=steps,
        minutes=minutes,
        eval_every=settings.eval_every or cadence,
        sample_every=settings.sample_every or settings.eval_every or cadence,
        save_every=settings.save_every or max(cadence, 100),
        eval_tokens=settings.eval_tokens or _EVAL_TOKENS,
    )
