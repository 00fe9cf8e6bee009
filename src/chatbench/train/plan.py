"""From what the user said to what will be done: shape, batch, length, cadence."""

from __future__ import annotations

from typing import NamedTuple

from chatbench import console
from chatbench.errors import UsageError
from chatbench.model.transformer import ModelConfig
from chatbench.settings import ModelSettings, OptimSettings, TrainSettings

DEFAULT_PRETRAIN_MINUTES = 10.0
DEFAULT_FINETUNE_EPOCHS = 3.0
_ALIGNMENT = 64
_STEPS_AN_EPOCH = 10
_RATE_TIMES_WIDTH = {"muon": 0.77, "adamw": 0.26}


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
}


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

    def progress(self, step: int, seconds: float) -> float:
        """Share of the run that is done, by whichever limit is nearest."""
        by_step = step / self.steps if self.steps else 0.0
        by_time = seconds / (60 * self.minutes) if self.minutes else 0.0
        return max(by_step, by_time)


def model_config(settings: ModelSettings, seq_len: int | None, vocab_size: int) -> ModelConfig:
    """The shape to build. Raises UsageError when explicit numbers do not fit together."""
    size = SIZES[settings.size]
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


def default_rate(optimizer: str, hidden_size: int, *, finetune: bool) -> float:
    """Peak rate when none is given: falls as 1 / width (Yang et al. 2022), and a model that knows
    something already moves in steps of a quarter. The constants were found at width 128."""
    rate = _RATE_TIMES_WIDTH[optimizer] / hidden_size
    return rate / 4 if finetune else rate


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
) -> Plan:
    """Lengths given in any unit become steps and minutes; the first reached ends the run."""
    rows = max(1, round((settings.batch_tokens or batch_tokens) / seq_len))
    if settings.batch_tokens is None:
        # A small set would otherwise be over after a handful of steps.
        rows = min(rows, max(1, rows_per_epoch // _STEPS_AN_EPOCH))
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
        or default_rate(optim.optimizer, hidden_size, finetune=finetune),
        steps=steps,
        minutes=minutes,
        eval_every=settings.eval_every or cadence,
        sample_every=settings.sample_every or settings.eval_every or cadence,
        save_every=settings.save_every or max(cadence, 100),
    )


def show_plan(
    plan: Plan, config: ModelConfig, parameters: int, rows_per_epoch: int, dtype: str, device: str
) -> None:
    """What a person would ask before the first step."""
    length = [f"{plan.steps:,} steps"] if plan.steps else []
    length += [f"{plan.minutes:g} minutes"] if plan.minutes else []
    if plan.steps:
        length.append(f"{plan.steps * plan.rows_per_step / rows_per_epoch:.2g} epochs")
    console.say(
        f"model: {config.n_layers} layers × {config.hidden_size} wide, "
        f"{config.n_heads} heads ({config.n_kv_heads} kv), "
        f"{console.format_count(parameters)} parameters, context {config.context}"
    )
    console.say(
        f"run: {', '.join(length)} · {plan.rows_per_step} rows of {plan.seq_len} tokens a step, "
        f"{rows_per_epoch:,} rows an epoch · {dtype} on {device}"
    )
