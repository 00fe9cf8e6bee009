"""The plan, told to people before the first step."""

from __future__ import annotations

from pathlib import Path

from chatbench import console
from chatbench.model.transformer import ModelConfig
from chatbench.report.reading import PLAN
from chatbench.storage import write_json
from chatbench.train.budget import parameters
from chatbench.train.forecast import Difficulty, forecast
from chatbench.train.meters import flops_per_token
from chatbench.train.plan import Plan
from chatbench.train.planning import Costs, expected_tokens

_LABEL = 12


def show_plan(
    plan: Plan, config: ModelConfig, total: int, rows_per_epoch: int, place: str,
    cost: Costs | None = None, hard: Difficulty | None = None, learns: str = "",
) -> None:  # fmt: skip
    """What a person would ask. `total`: parameters; `place`: number format, device, threads;
    `hard`: of what is predicted how well it will be known, pretraining alone; `learns`: what does,
    where it is not everything."""
    lines = [("model", _model(config, total)), ("run", _run(plan, rows_per_epoch, config))]
    lines += [("learns", learns)] if learns else []
    lines.append(("batch", _batch(plan)))
    tokens = expected_tokens(plan)
    if cost is not None and tokens < float("inf"):
        operations = flops_per_token(config, plan.seq_len)
        speed = plan.rows_per_step * plan.seq_len / (plan.step_seconds or 1.0)
        lines.append((
            "compute",
            f"{tokens * operations:.2g} FLOPs at {console.format_count(speed * operations)}FLOP/s "
            f"({console.format_count(speed)} tokens/s) · {place}",
        ))  # fmt: skip
        lines.append(("memory", _memory(cost)))
        lines.append(("time", f"about {console.format_duration(plan.seconds or 0.0)}"))
    else:
        lines.append(("compute", place))
    if hard is not None and cost is not None:
        lines.append(("expected", _expected(config, tokens, hard)))
    for label, text in lines:
        console.say(f"{label + ':':<{_LABEL}}{text}")


def keep_plan(run: Path, plan: Plan, config: ModelConfig, hard: Difficulty | None = None) -> None:
    """plan.json of a run: what its report holds the outcome against. Raises EnvironmentFault."""
    tokens = expected_tokens(plan)
    known = {
        "steps": plan.steps, "minutes": plan.minutes, "seconds": plan.seconds,
        "learning_rate": plan.learning_rate, "seq_len": plan.seq_len,
        "rows_per_step": plan.rows_per_step, "micro_batch": plan.micro_batch,
    }  # fmt: skip
    if tokens < float("inf"):
        known["tokens"] = tokens
        if hard is not None:
            seen = forecast(hard, *parameters(config), tokens)
            known |= {"bits": seen.bits, "bits_low": seen.low, "bits_high": seen.high}
    write_json(run / PLAN, known)


def _model(config: ModelConfig, total: int) -> str:
    _, tables = parameters(config)
    count = console.format_count
    return (
        f"{config.n_layers} layers × {config.hidden_size} wide, {config.n_heads} heads "
        f"({config.n_kv_heads} kv), {count(total)} parameters ({count(total - tables)} without the "
        f"embedding), context {config.context}"
    )


def _run(plan: Plan, rows_per_epoch: int, config: ModelConfig) -> str:
    length = [console.counted(plan.steps, "step")] if plan.steps else []
    length += [_minutes(plan.minutes)] if plan.minutes else []
    tokens = expected_tokens(plan)
    if tokens == float("inf"):
        return ", ".join(length)
    steps = tokens / (plan.rows_per_step * plan.seq_len)
    if not plan.steps or steps < plan.steps:
        length.append(f"about {console.counted(max(1, round(steps)), 'step')}")
    epochs = steps * plan.rows_per_step / rows_per_epoch
    each = tokens / sum(parameters(config))
    return (
        f"{', '.join(length)} · {console.format_count(tokens)} tokens, {epochs:.2g} epochs, "
        f"{each:.2g} tokens a parameter"
    )


def _minutes(minutes: float) -> str:
    return f"{minutes:g} minute{'' if minutes == 1 else 's'}"


def _batch(plan: Plan) -> str:
    return (
        f"{plan.rows_per_step * plan.seq_len:,} tokens a step, "
        f"{console.counted(plan.rows_per_step, 'row')} of {plan.seq_len}, {plan.micro_batch} at "
        f"once · peak rate {plan.learning_rate:.3g}"
    )


def _memory(cost: Costs) -> str:
    count = console.format_count
    parts = ", ".join(f"{name} {count(size)}" for name, size in cost.memory._asdict().items())
    return f"{count(cost.memory.peak)}B of tensors at the peak ({parts})"


def _expected(config: ModelConfig, tokens: float, hard: Difficulty) -> str:
    seen = forecast(hard, *parameters(config), tokens)
    return (
        f"{seen.bits:.2f} bits per byte ({seen.low:.2f} to {seen.high:.2f}) · trigrams of "
        f"{console.format_count(hard.tokens)} tokens {hard.trigram:.2f}, chance {hard.uniform:.2f}"
    )
