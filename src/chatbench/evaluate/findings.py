"""One model's figures on a test set, before anything is compared: likelihood, replies, choices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from msgspec.structs import replace

from chatbench import console
from chatbench.evaluate import choices
from chatbench.evaluate.classes import (
    Classes,
    as_questions,
    class_measured,
    classes_of,
    verdicts,
)
from chatbench.evaluate.saved import Reply, generation_digest, known_replies, tell_reused
from chatbench.evaluate.tasks import (
    Question,
    Sums,
    answer,
    document_sums,
    judged,
    likelihood_measured,
    prompt_of,
    reach_of,
)
from chatbench.evaluate.testset import TestSet, first_row, open_test_set, read_replies
from chatbench.model.folder import OpenedModel
from chatbench.model.quantize import quantize_model
from chatbench.settings import EvaluateSettings, SamplingSettings
from chatbench.text.measuring import Judged, Measured, Score
from chatbench.text.metrics import measure_all


class Findings(NamedTuple):
    """`sums` and `likelihood` are of documents, `replied` of `questions` with their `pairs`;
    `right` says of choices which were right; `others` are scores that have no items.
    `cut` says which replies would have gone on; `classes` is there when texts were labelled."""

    sums: list[Sums]
    likelihood: list[Measured]
    questions: list[Question]
    pairs: list[Judged]
    replied: list[Measured]
    right: list[bool] | None = None
    others: Sequence[Score] = ()
    failed: int = 0
    unanswered: int = 0
    shortened: int = 0
    cut: Sequence[bool] = ()
    classes: Classes | None = None


def judge(opened: OpenedModel, settings: EvaluateSettings) -> Findings:
    """Everything that `settings.data` can tell about a model. Quantises it where that is asked."""
    if settings.choice or opened.model.config.labels:
        if settings.quantize != "none":
            _quantise(opened, settings)
        return judge_classes(opened, settings)
    if choices.is_choice_row(first_row(settings.data)):
        if settings.quantize != "none":
            _quantise(opened, settings)
        return judge_choices(opened, settings)
    test = open_test_set(settings, opened)
    sums = scored_texts(opened, test, settings)
    reach = str(reach_of(opened, settings.context, settings.stride))
    measured = likelihood_measured(sums, reach)
    others: list[Score] = []
    if settings.quantize != "none":
        _quantise(opened, settings)
        full = measured
        sums = scored_texts(opened, test, settings)
        measured = likelihood_measured(sums, f"{reach}|weights:{settings.quantize}")
        others = _beside_full(full, measured)
    _tell_of_turns(test.questions, settings)
    asked = ask(opened, test.questions[: settings.max_examples], settings)
    return asked._replace(sums=sums, likelihood=measured, others=others, failed=test.failed)


def scored_texts(opened: OpenedModel, test: TestSet, settings: EvaluateSettings) -> list[Sums]:
    """Sums of every document: texts, then conversations."""
    reach = reach_of(opened, settings.context, settings.stride)
    size = settings.batch_size
    texts = document_sums(opened, test.texts, False, size, reach)
    return [*texts, *document_sums(opened, test.chats, True, size, reach)]


def _quantise(opened: OpenedModel, settings: EvaluateSettings) -> None:
    done = quantize_model(opened.model, settings.quantize)
    console.notice(
        f"the weights take {done.bytes_after / 1e6:.1f} MB in {settings.quantize}, "
        f"{done.bytes_before / 1e6:.1f} MB before"
    )


def _beside_full(full: list[Measured], ours: list[Measured]) -> list[Score]:
    """perplexity_full is that of the weights as stored, perplexity_change the ratio to it."""
    was, now = ({m.name: m.score() for m in each}["perplexity"] for each in (full, ours))
    signature = f"quantised/full|{now.signature}"
    return [
        replace(was, name="perplexity_full"),
        Score("perplexity_change", now.value / was.value, now.n, signature),
    ]


def ask(
    opened: OpenedModel, questions: Sequence[Question], settings: EvaluateSettings,
    *, every: bool = False,
) -> Findings:  # fmt: skip
    """The replies to questions, those that are known already taken over, and their metrics.

    What does not fit into the context is left out; with `every` it has an empty reply.
    """
    sampling = SamplingSettings(
        temperature=settings.temperature, max_tokens=settings.max_tokens, seed=settings.seed
    )
    prompts = [prompt_of(opened, question, settings.max_tokens) for question in questions]
    fitting = [number for number, prompt in enumerate(prompts) if prompt.ids is not None]
    known = known_replies(settings, generation_digest(opened, settings)) if fitting else None
    found = ((n, known.get(n, questions[n])) for n in fitting) if known is not None else ()
    replies = {n: reply for n, reply in found if reply is not None}
    missing = [n for n in fitting if n not in replies]
    tell_reused(len(fitting) - len(missing), len(fitting))
    ids = [prompts[n].ids or [] for n in missing]
    done = answer(opened, ids, sampling, settings.batch_size, missing) if missing else []
    for number, completion in zip(missing, done, strict=True):
        replies[number] = Reply(completion.text, completion.finish_reason == "length")
    kept = list(range(len(questions))) if every else fitting
    said = [replies.get(number, Reply("")) for number in kept]
    pairs = judged([questions[number] for number in kept], [reply.text for reply in said])
    result = Findings(
        [], [], [questions[n] for n in kept], pairs, measure_all(pairs),
        unanswered=len(questions) - len(fitting),
        shortened=sum(prompts[n].forgotten > 0 for n in fitting),
        cut=[reply.cut for reply in said],
    )  # fmt: skip
    _tell(result, len(questions), opened)
    return result


def _tell(found: Findings, asked: int, opened: OpenedModel) -> None:
    context = f"the model's context of {opened.model.config.context} tokens"
    if found.unanswered:
        console.notice(
            f"{found.unanswered} of {asked} questions do not fit into {context} and were left out"
        )
    if found.shortened:
        console.notice(
            f"{found.shortened} of {asked} conversations are longer than {context}; "
            "their oldest exchanges were left out, as in a chat"
        )


def _tell_of_turns(questions: Sequence[Question], settings: EvaluateSettings) -> None:
    longer = sum(question.turn > 1 for question in questions)
    if longer and "turn" not in settings.by:
        console.notice(
            "only the last reply of each conversation is judged, "
            f"{console.counted(longer, 'has', 'have')} more; --by turn judges every reply"
        )


def judge_choices(opened: OpenedModel, settings: EvaluateSettings) -> Findings:
    """Multiple choice and minimal pairs."""
    items, failed = choices.read_choices(settings.data)
    items = items[: settings.max_examples]
    outcomes = choices.score_choices(opened, items, settings.batch_size)
    questions, pairs = choices.as_questions(items, outcomes)
    right = [choices.is_right(o.nats, i.gold) for i, o in zip(items, outcomes, strict=True)]
    measured = choices.measure_choices(items, outcomes)
    return Findings([], [], questions, pairs, measured, right, failed=failed)


def judge_classes(opened: OpenedModel, settings: EvaluateSettings) -> Findings:
    """Labels of texts."""
    found = verdicts(opened, settings)
    questions, pairs, right = as_questions(found)
    return Findings(
        [], [], questions, pairs, class_measured(found), right, failed=found.left_out,
        classes=classes_of(found),
    )  # fmt: skip


def judge_replies(settings: EvaluateSettings) -> Findings:
    """Replies that something else has made, beside their references."""
    read = read_replies(settings.data)
    questions = read.questions[: settings.max_examples]
    pairs = judged(questions, read.replies[: settings.max_examples])
    return Findings([], [], questions, pairs, measure_all(pairs), failed=read.failed)
