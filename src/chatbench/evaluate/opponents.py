"""What a model is compared with: another model, an evaluation that is there, simple means."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from msgspec.structs import replace

from chatbench import console
from chatbench.errors import DataError, UsageError
from chatbench.evaluate.baselines import SIMPLE, ngram_sums, simple_replies
from chatbench.evaluate.comparing import Beside, beside, flips, matched
from chatbench.evaluate.findings import Findings, ask, judge, scored_texts
from chatbench.evaluate.saved import is_evaluation, read_evaluation
from chatbench.evaluate.tasks import judged, likelihood_measured, reach_of
from chatbench.evaluate.testset import open_test_set
from chatbench.evaluate.training import Training
from chatbench.model.device import pick_device
from chatbench.model.folder import OpenedModel, open_model
from chatbench.settings import EvaluateSettings
from chatbench.text.measuring import Measured
from chatbench.text.metrics import measure_all


def compared(
    name: str, settings: EvaluateSettings, found: Findings, opened: OpenedModel | None,
    training: Training | None,
) -> Beside:  # fmt: skip
    """Our figures beside those of one baseline, on the same items. Raises UserError where the
    baseline cannot be had or does not fit the data."""
    if name in SIMPLE:
        return _simple(name, settings, found, opened, training)
    if is_evaluation(Path(name)):
        return _evaluated(name, settings, found)
    return _model(name, settings, found, opened)


def _simple(
    name: str, settings: EvaluateSettings, found: Findings, opened: OpenedModel | None,
    training: Training | None,
) -> Beside:  # fmt: skip
    if name == "ngram":
        if opened is None or not found.sums:
            raise UsageError(
                "--baseline ngram is for likelihood", hint="give a model, and texts or dialogues"
            )
        test = open_test_set(settings, opened)
        sums, kind = ngram_sums(opened, test.texts, test.chats, training)
        theirs = [m._replace(signature=kind) for m in likelihood_measured(sums, kind)]
        return beside(name, found.likelihood, theirs, settings.seed)
    if found.right is not None or not found.questions:
        raise UsageError(
            f"--baseline {name} replies to questions, and {settings.data} has none",
            hint="compare with another model"
            + ("" if found.right is not None else ", or with ngram"),
        )
    replies = simple_replies(name, found.questions, training)
    assert replies is not None
    _require_asked(name, settings, found)
    return _replies_beside(name, settings, found, replies)


def _require_asked(name: str, settings: EvaluateSettings, found: Findings) -> None:
    # A reply to nothing would be an empty one, and every figure beside it flattering.
    silent = sum(not question.messages for question in found.questions)
    if silent:
        raise UsageError(
            f"--baseline {name} replies to questions, and {silent} of {len(found.questions)} "
            f"replies in {settings.data} stand without one",
            hint="give every row a prompt or messages, or compare with a file of replies",
        )


def _replies_beside(
    name: str, settings: EvaluateSettings, found: Findings, replies: Sequence[str],
    likelihood: Sequence[Measured] = (),
) -> Beside:  # fmt: skip
    pairs = judged(found.questions, replies)
    flipped = flips(found.questions, found.pairs, pairs) if pairs else None
    theirs = [*likelihood, *measure_all(pairs)]
    return beside(name, [*found.likelihood, *found.replied], theirs, settings.seed, flipped)


def _evaluated(name: str, settings: EvaluateSettings, found: Findings) -> Beside:
    """An evaluation's folder, or a file of replies. Raises DataError for those of other data."""
    if found.right is not None:
        raise UsageError(
            f"{name} keeps replies, and {settings.data} is of choices",
            hint="compare with the model itself",
        )
    theirs, sums = read_evaluation(Path(name))
    replies: list[str] = []
    if found.questions:
        replies = matched(found.questions, theirs.questions, theirs.replies, name)
    if found.sums and [s.text_bytes for s in sums] != [s.text_bytes for s in found.sums]:
        if not found.questions:
            raise DataError(
                f"{name} was not measured on the texts of {settings.data}",
                hint="evaluate both on the same data",
            )
        if sums:
            console.notice(f"{name} was measured on other texts: only replies are compared")
        sums = []
    likelihood = likelihood_measured(sums, f"from:{Path(name).name}") if sums else []
    return _replies_beside(name, settings, found, replies, _same_tokens(found, likelihood))


def _same_tokens(found: Findings, theirs: Sequence[Measured]) -> list[Measured]:
    """Without perplexity where the other counts other tokens: those of another tokenizer."""
    tokens = {m.name: m.n for m in found.likelihood}
    return [m for m in theirs if m.name != "perplexity" or tokens.get(m.name) == m.n]


def _model(
    name: str, settings: EvaluateSettings, found: Findings, opened: OpenedModel | None
) -> Beside:
    """Another model, or the same one with its full weights."""
    device = pick_device(settings.device)
    # What --reuse and --out hold are replies of the model that is judged.
    plain = replace(settings, model=name, quantize="none", reuse=None)
    labelled = found.classes is not None
    other = open_model(name, device, template=settings.template, classifier=labelled)
    if found.right is not None:
        theirs = judge(other, plain)
        flipped = flips(found.questions, found.pairs, theirs.pairs, found.right, theirs.right)
        return beside(name, found.replied, theirs.replied, settings.seed, flipped)
    likelihood: list[Measured] = []
    if found.sums:
        sums = scored_texts(other, open_test_set(plain, other), plain)
        reach = str(reach_of(other, settings.context, settings.stride))
        likelihood = likelihood_measured(sums, reach)
        if opened is not None and opened.tokenizer.digest != other.tokenizer.digest:
            likelihood = [m for m in likelihood if m.name != "perplexity"]
    _require_asked(name, settings, found)
    replies: list[str] = []
    if found.questions:
        replies = [pair.reply for pair in ask(other, found.questions, plain, every=True).pairs]
    return _replies_beside(name, settings, found, replies, likelihood)
