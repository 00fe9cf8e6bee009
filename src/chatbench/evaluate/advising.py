"""The numbers that advice is drawn from: what was measured, and what the model's run tells."""

from __future__ import annotations

import math
import shlex
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from chatbench.corpus.shards import TokenSplit
from chatbench.errors import IntegrityError
from chatbench.evaluate.advice import Advice, Curve, Numbers, advise
from chatbench.evaluate.comparing import Beside
from chatbench.evaluate.findings import Findings
from chatbench.evaluate.slices import Slice
from chatbench.evaluate.training import Training
from chatbench.model.folder import OpenedModel
from chatbench.settings import EvaluateSettings
from chatbench.text.measuring import Score

_SMOOTHED = 20
_FEWEST = 20


def advice_for(
    settings: EvaluateSettings, opened: OpenedModel, training: Training | None, found: Findings,
    scores: Sequence[Score], slices: Sequence[Slice], baselines: Sequence[Beside],
) -> list[Advice]:  # fmt: skip
    """What to do next with this model."""
    # Shares of a handful of replies say nothing.
    enough = len(found.pairs) >= _FEWEST
    of_text = {s.name: s.value for s in scores if enough or s.name == "bits_per_byte"}
    numbers = Numbers(
        shlex.quote(settings.model),
        shlex.quote(settings.data),
        of_text,
        opened.model.parameter_count(),
        read_curve(opened.folder, training.path if training is not None else None),
        _ngram(baselines),
        _by_script(slices),
        _lacking(baselines),
        sum(found.cut) / len(found.cut) if found.cut and enough else 0.0,
    )
    return advise(numbers)


def _ngram(baselines: Sequence[Beside]) -> float | None:
    scores = [s for b in baselines if b.name == "ngram" for s in b.scores]
    return next((s.value for s in scores if s.name == "bits_per_byte"), None)


def _by_script(slices: Sequence[Slice]) -> Mapping[str, float]:
    chosen = [s for s in slices if s.by == "script" and s.n >= _FEWEST]
    return {s.value: score.value for s in chosen for score in s.scores if score.name == "chrf"}


def _lacking(baselines: Sequence[Beside]) -> Mapping[str, float]:
    return {b.name: d.high for b in baselines for d in b.differences if d.name == "chrf"}


def read_curve(folder: Path, corpus: Path | None) -> Curve | None:
    """The learning curve of the run that `folder` is the model of, None when there is none."""
    run = folder.parent if folder.name == "model" else folder
    rows = _rows(run / "metrics.jsonl")
    if not rows:
        return None
    losses = [r["loss"] for r in rows if _is_number(r.get("loss"))][-_SMOOTHED:]
    valid = [r for r in rows if _is_number(r.get("val_loss")) and _is_number(r.get("step"))]
    tokens = max((int(r["tokens"]) for r in rows if _is_number(r.get("tokens"))), default=0)
    steps = max((int(r["step"]) for r in rows if _is_number(r.get("step"))), default=0)
    best = min(valid, key=lambda r: float(r["val_loss"])) if valid else None
    return Curve(
        train=math.fsum(losses) / len(losses) if losses else None,
        halfway=_halfway(valid, steps),
        last=float(valid[-1]["val_loss"]) if valid else None,
        best=float(best["val_loss"]) if best else None,
        best_at=float(best["step"]) / steps if best and steps else None,
        tokens=tokens,
        corpus_tokens=_corpus_tokens(corpus),
        steps=steps,
        run=shlex.quote(str(run)),
        corpus=shlex.quote(str(corpus)) if corpus is not None else "CORPUS",
        finetuned=_is_finetune(run),
    )


def _halfway(valid: list[dict[str, Any]], steps: int) -> float | None:
    """The validation nearest to half of the steps, if it is a third to two thirds of the way."""
    if len(valid) < 2 or not steps:
        return None
    row = min(valid[:-1], key=lambda r: abs(float(r["step"]) / steps - 0.5))
    near = 1 / 3 <= float(row["step"]) / steps <= 2 / 3
    return float(row["val_loss"]) if near else None


def _is_number(value: object) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(float(str(value)))


def _rows(log: Path) -> list[dict[str, Any]]:
    found = []
    try:
        lines = log.read_bytes().splitlines()
    except OSError:
        return []
    for line in lines:
        try:
            row = msgspec.json.decode(line)
        except msgspec.DecodeError:
            continue
        if isinstance(row, dict):
            found.append(row)
    return found


def _corpus_tokens(corpus: Path | None) -> int:
    """Tokens of the training split of a corpus folder."""
    if corpus is None or not corpus.is_dir():
        return 0
    try:
        return TokenSplit(corpus / "train").tokens
    except IntegrityError:
        return 0


def _is_finetune(run: Path) -> bool:
    """Whether the settings of a run name a model it began with."""
    try:
        settings = tomllib.loads((run / "config.toml").read_text("utf-8"))
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError):
        return False
    return isinstance(settings.get("model"), str)
