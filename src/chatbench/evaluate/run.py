"""evaluate: a model and a test set → scores with intervals and signatures, how they compare, what
to do next, and a folder that keeps all of it."""

from __future__ import annotations

from pathlib import Path

import msgspec

from chatbench.errors import UsageError
from chatbench.evaluate.advice import Advice
from chatbench.evaluate.advising import advice_for
from chatbench.evaluate.classes import Classes
from chatbench.evaluate.comparing import Beside
from chatbench.evaluate.control import measured_control
from chatbench.evaluate.copying import verbatim_overlap
from chatbench.evaluate.findings import Findings, judge, judge_replies
from chatbench.evaluate.gate import missed, parse_requirements
from chatbench.evaluate.opponents import compared
from chatbench.evaluate.saved import (
    DOCUMENTS,
    KIND,
    SAMPLES,
    generation_digest,
    sample_rows,
    write_lines,
)
from chatbench.evaluate.slices import Slice, chosen_columns, sliced
from chatbench.evaluate.testset import first_row, holds_replies
from chatbench.evaluate.training import open_training
from chatbench.model.device import pick_device
from chatbench.model.folder import OpenedModel, open_model
from chatbench.settings import EvaluateSettings
from chatbench.storage import new_folder, require_own, write_json
from chatbench.text.intervals import with_intervals
from chatbench.text.measuring import Score


class Evaluation(msgspec.Struct, frozen=True):
    """What evaluate found out. `failed`: rows that could not be read, and conversations that the
    chat template does not take; `unanswered`: questions that do not fit into the model's context
    and are in no score of replies; `shortened`: those whose oldest exchanges were left out;
    `missed`: what was required and is not so; `classes`: of labels, who is taken for whom."""

    model: str
    data: str
    scores: list[Score]
    failed: int = 0
    unanswered: int = 0
    shortened: int = 0
    slices: list[Slice] = []
    baselines: list[Beside] = []
    missed: list[str] = []
    advice: list[Advice] = []
    classes: Classes | None = None


def evaluate(settings: EvaluateSettings) -> Evaluation:
    """Score `settings.model` on `settings.data`; writes `settings.out` when one is given."""
    requirements = parse_requirements(settings.require)
    out = None if settings.out is None else Path(settings.out)
    if out is not None:
        require_own(out, KIND, overwrite=settings.overwrite)
    opened = _opened(settings)
    found = judge_replies(settings) if opened is None else judge(opened, settings)
    training = open_training(None if opened is None else opened.folder, settings.train_data)
    if training is not None and found.pairs and found.right is None:
        found.replied.extend(verbatim_overlap(found.pairs, training.texts()))
    control = measured_control(settings, opened, training, found)
    scores = with_intervals([*found.likelihood, *found.replied, *control], settings.seed)
    scores += [*found.others]
    columns = chosen_columns(settings.by, found.questions)
    slices = sliced(columns, found.pairs, found.replied, settings.seed)
    baselines = [compared(name, settings, found, opened, training) for name in settings.baseline]
    advice: list[Advice] = []
    if opened is not None:
        advice = advice_for(settings, opened, training, found, scores, slices, baselines)
    result = Evaluation(
        str(opened.folder) if opened is not None else "", settings.data, scores, found.failed,
        found.unanswered, found.shortened, slices, baselines, missed(requirements, scores), advice,
        found.classes,
    )  # fmt: skip
    if out is not None:
        _write(out, settings, result, found, opened)
    return result


def _opened(settings: EvaluateSettings) -> OpenedModel | None:
    """The model, or None for replies that are there already. Raises UsageError without either."""
    if settings.model:
        device = pick_device(settings.device)
        return open_model(settings.model, device, template=settings.template, classifier=True)
    if holds_replies(first_row(settings.data)):
        return None
    raise UsageError(
        "no model is named", hint="give -m MODEL, or as -d a JSON Lines file of reply and reference"
    )


def _write(
    out: Path, settings: EvaluateSettings, result: Evaluation, found: Findings,
    opened: OpenedModel | None,
) -> None:  # fmt: skip
    # What decides the replies: an evaluation with the same takes them over.
    info = {} if opened is None else {"generation": generation_digest(opened, settings)}
    with new_folder(out, KIND, info, replace=settings.overwrite) as folder:
        write_json(folder / "results.json", result)
        write_json(folder / "settings.json", settings)
        rows = sample_rows(found.questions, found.pairs, found.right, found.cut)
        write_lines(folder / SAMPLES, rows)
        write_lines(folder / DOCUMENTS, iter(found.sums))
