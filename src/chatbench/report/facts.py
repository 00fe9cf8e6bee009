"""What pages, tables and JSON say of runs alike: essentials, plan and outcome, differences."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from chatbench.config import leaves
from chatbench.console import format_count, format_duration
from chatbench.corpus.reports.charts import count
from chatbench.report.reading import RunFacts, is_number, number
from chatbench.settings import FinetuneSettings, PretrainSettings

_KINDS = {"pretrain": "pretrained", "sft": "finetuned", "classify": "trained to classify"}
# Where a run lies and on what it ran makes it no other experiment.
NO_DIFFERENCE = frozenset(("out", "resume", "dry_run", "objective"))


def best_value(run: RunFacts, name: str) -> float | None:
    """A number of the best validation."""
    return number(run.best.get(name))


def essentials(run: RunFacts) -> list[tuple[str, str, str]]:
    """Label, value and a remark for each of the numbers that sum up a run; what is not known is
    left out."""
    found: list[tuple[str, str, str]] = []
    loss, bits = best_value(run, "val_loss"), best_value(run, "val_bits_per_byte")
    best = f"at step {count(run.best['step'])}" if run.best else ""
    if bits is not None:
        usual = run.references.get("ngram_bits_per_byte")
        against = f"n-gram model {usual:.3f}" if usual is not None else best
        found.append(("bits per byte", f"{bits:.3f}", against))
    if loss is not None:
        found.append(("validation loss", f"{loss:.4f}", best))
    last = run.last("loss")
    if last is not None:
        found.append(("training loss", f"{last:.4f}", "mean of the last steps"))
    if run.step:
        skipped = f"{count(len(run.skipped))} not taken" if run.skipped else ""
        found.append(("steps", count(run.step), skipped))
    if run.tokens:
        speed = run.last("tokens_per_second")
        pace = f"{format_count(speed)} a second" if speed else ""
        found.append(("tokens", format_count(run.tokens), pace))
    if run.seconds:
        found.append(("time", format_duration(run.seconds), ""))
    if run.parameters:
        each = (
            f"{format_count(float(f'{run.tokens / run.parameters:.3g}'))} tokens each"
            if run.tokens
            else ""
        )
        found.append(("parameters", format_count(run.parameters), each))
    if "after" in run.probe and "before" in run.probe:
        before = f"{run.probe['before']:.3f} before"
        found.append(("earlier text, bits per byte", f"{run.probe['after']:.3f}", before))
    memory = run.curves.get("memory")
    if memory:
        found.append(("memory", f"{format_count(max(v for _, v in memory))}B", "at the peak"))
    return found


def story(run: RunFacts) -> str:
    """One sentence on what the run is."""
    data = run.settings.get("data")
    names = [str(each) for each in data] if isinstance(data, list) else [str(data)] if data else []
    verb = _KINDS.get(run.kind, f"trained by {run.kind.upper()}")
    size = f" of {format_count(run.parameters)} parameters" if run.parameters else ""
    base = run.settings.get("model")
    parts = [f"A model{size}, {verb}"]
    parts += [f"from {base}"] if isinstance(base, str) and base else []
    parts += [f"on {', '.join(names)}"] if names else []
    sentence = " ".join(parts)
    if not run.finished:
        return f"{sentence}. Not finished: --resume goes on."
    if run.chosen is not None and run.step and run.chosen != run.step:
        return f"{sentence}. Its model is that of step {count(run.chosen)}, the best by validation."
    return f"{sentence}."


def reached(run: RunFacts) -> list[tuple[str, str, str]]:
    """What was planned, beside what came of it."""
    plan, train = run.plan, "train."
    rows: list[tuple[str, str, str]] = []

    def row(what: str, asked: str, got: str) -> None:
        if asked != "–":
            rows.append((what, asked, got))

    steps = run.settings.get(train + "steps", plan.get("steps"))
    row("steps", _whole(steps), _whole(run.step))
    tokens = run.settings.get(train + "tokens", plan.get("tokens"))
    row("tokens", _counted(tokens), _counted(run.tokens))
    epochs = run.settings.get(train + "epochs")
    each = plan.get("tokens_an_epoch")
    got = f"{run.tokens / each:.2f}" if is_number(each) and each else "–"
    row("epochs", f"{epochs:g}" if is_number(epochs) else "–", got)
    minutes = run.settings.get(train + "minutes")
    asked = number(minutes)
    seconds = plan.get("seconds") if asked is None else 60 * asked
    row("time", _lasting(seconds), _lasting(run.seconds))
    rate = plan.get("learning_rate", run.settings.get("optim.learning_rate"))
    rates = [value for _, value in run.curves.get("learning_rate", [])]
    row("peak learning rate", f"{rate:.3g}" if is_number(rate) else "–",
        f"{max(rates):.3g}" if rates else "–")  # fmt: skip
    bits = best_value(run, "val_bits_per_byte")
    expected = [plan.get(name) for name in ("bits", "bits_low", "bits_high")]
    if all(is_number(value) for value in expected):
        middle, low, high = (number(value) or 0.0 for value in expected)
        told = f"{middle:.2f} ({low:.2f} to {high:.2f})"
        row("bits per byte", told, "–" if bits is None else f"{bits:.2f}")
    return rows


def _whole(value: object) -> str:
    known = number(value)
    return "–" if known is None else count(known)


def _counted(value: object) -> str:
    known = number(value)
    return "–" if known is None else format_count(known)


def _lasting(seconds: object) -> str:
    known = number(seconds)
    return format_duration(known) if known else "–"


def changed_settings(run: RunFacts) -> list[tuple[str, tuple[Any, Any]]]:
    """Settings that are not at their default: key, value and default."""
    usual = _defaults(run)
    return [
        (key, (value, usual.get(key)))
        for key, value in sorted(run.settings.items())
        if key not in NO_DIFFERENCE and (key not in usual or usual[key] != value)
    ]


def _defaults(run: RunFacts) -> dict[str, Any]:
    kind = PretrainSettings if run.kind == "pretrain" else FinetuneSettings
    return {leaf.key: leaf.default for leaf in leaves(kind)}


def shown_value(value: object) -> str:
    """A setting as a person would write it."""
    if value is None or value in ("", []) or not isinstance(value, str | int | float | list | dict):
        return "–"
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        return ", ".join(value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def differences(runs: Sequence[RunFacts]) -> list[tuple[str, list[Any]]]:
    """Settings that are not the same in all runs: key, and a value of each. Where runs of several
    kinds are compared, those that not all kinds have are left out, but for the base."""
    rows: list[tuple[str, list[Any]]] = []
    kinds = [run.kind for run in runs]
    if len(set(kinds)) > 1:
        rows.append(("objective", kinds))
    # What was left open is not in the file; nor is what an older version did not know.
    known = [_defaults(run) | run.settings for run in runs]
    shared = set.intersection(*(set(each) for each in known)) | {"model"}
    for key in sorted(shared & {key for run in runs for key in run.settings}):
        values = [_plain(each.get(key)) for each in known]
        if key not in NO_DIFFERENCE and any(value != values[0] for value in values):
            rows.append((key, values))
    return rows


def _plain(value: Any) -> Any:
    """One place is one place, in a list or not."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def labels(runs: Sequence[RunFacts]) -> list[str]:
    """A name for each, none twice."""
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        names = [str(run.path) for run in runs]
    return [
        name if names.index(name) == number else f"{name} ({number + 1})"
        for number, name in enumerate(names)
    ]


def results(runs: Sequence[RunFacts]) -> list[tuple[str, list[str]]]:
    """What came out: one row for each number that any of the runs has."""
    tables = [{label: value for label, value, _ in essentials(run)} for run in runs]
    names = dict.fromkeys(name for table in tables for name in table)
    return [(name, [table.get(name, "–") for table in tables]) for name in names]


def as_data(run: RunFacts) -> dict[str, Any]:
    """The essentials for programs."""
    return {
        "kind": run.kind,
        "folder": str(run.path),
        "name": run.name,
        "finished": run.finished,
        "step": run.step,
        "best_step": run.best.get("step"),
        "val_loss": best_value(run, "val_loss"),
        "val_bits_per_byte": best_value(run, "val_bits_per_byte"),
        "loss": run.last("loss"),
        "tokens": int(run.tokens),
        "seconds": run.seconds,
        "parameters": run.parameters,
        "skipped": len(run.skipped),
        "when": run.when,
        "tags": run.tags,
    }
