"""lm-evaluation-harness opens our folders through its own hf model, on tasks made of local files;
its log-likelihoods and ours are the same. Needs the extra `oracle`."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from chatbench.engine.score import continuation_losses
from chatbench.evaluate.choices import Choice, measure_choices, read_choices, score_choices
from chatbench.evaluate.tasks import Reach, document_sums
from chatbench.model.folder import OpenedModel, open_model
from chatbench.text.template import Rendered

lm_eval = pytest.importorskip("lm_eval")
# What it and its libraries warn of is not ours to mend.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]

QUESTIONS = [
    {"query": "The shop opens", "choices": ["at nine in the morning.", "in rain."], "gold": 0},
    {"query": "小店早上", "choices": ["九点开门。", "书和纸。", "雨。"], "gold": 0},
    {"query": "What does tea 3 cost? It", "choices": ["costs 3 yuan.", "rains."], "gold": 1},
]
PAIRS = [
    {"good": "People come in from the rain.", "bad": "People the from in rain come."},
    {"good": "人们从雨里进来。", "bad": "里进从雨来人们。"},
]
TEXT = "The shop opens at nine in the morning. 架子上有茶、书和纸。 " * 6

MULTIPLE_CHOICE = """\
task: {task}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
output_type: multiple_choice
test_split: test
doc_to_text: "{text}"
doc_to_target: {target}
doc_to_choice: "{choices}"
target_delimiter: "{delimiter}"
metric_list:
  - metric: acc
"""
ROLLING = """\
task: ours_text
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
output_type: loglikelihood_rolling
test_split: test
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list:
  - metric: byte_perplexity
"""


@pytest.fixture(scope="module")
def opened(base_run: Path) -> OpenedModel:
    return open_model(base_run, torch.device("cpu"))


@pytest.fixture
def harness(
    opened: OpenedModel, base_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Any:
    """A function of a task's name that runs it and gives its samples."""
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    def rows(name: str, content: list[Any]) -> Path:
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in content))
        return path

    questions, pairs = rows("questions", QUESTIONS), rows("pairs", PAIRS)
    texts = rows("texts", [{"text": TEXT}])
    for task, data, text, target, choices, delimiter in (
        ("ours_choice", questions, "{{query}}", "gold", "{{choices}}", " "),
        ("ours_choice_zh", questions, "{{query}}", "gold", "{{choices}}", ""),
        ("ours_pairs", pairs, "", "0", "{{[good, bad]}}", ""),
    ):
        (tmp_path / f"{task}.yaml").write_text(
            MULTIPLE_CHOICE.format(
                task=task, data=data, text=text, target=target, choices=choices, delimiter=delimiter
            )
        )
    (tmp_path / "ours_text.yaml").write_text(ROLLING.format(data=texts))
    model = HFLM(
        pretrained=str(base_run / "model"), device="cpu", dtype="float32", batch_size=2,
        prefix_token_id=opened.tokenizer.end_of_text,
    )  # fmt: skip
    tasks = TaskManager(include_path=str(tmp_path), include_defaults=False)

    def run(task: str) -> list[dict[str, Any]]:
        found = lm_eval.simple_evaluate(
            model=model, tasks=[task], task_manager=tasks, log_samples=True, bootstrap_iters=0
        )
        samples: list[dict[str, Any]] = found["samples"][task]
        return sorted(samples, key=lambda sample: sample["doc_id"])

    return run


@pytest.fixture(autouse=True)
def _own_caches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)


def theirs(sample: dict[str, Any]) -> list[float]:
    """Log-likelihood of each choice."""
    return [float(response[0]) for response in sample["filtered_resps"]]


@pytest.mark.parametrize(("task", "delimiter"), [("ours_choice", " "), ("ours_choice_zh", "")])
def test_choices_have_the_same_likelihood(
    harness: Any, opened: OpenedModel, task: str, delimiter: str
) -> None:
    """It puts nothing before a query, where documents of ours begin with the end of another; the
    same ids have the same likelihood."""
    tokenizer = opened.tokenizer
    for row, sample in zip(QUESTIONS, harness(task), strict=True):
        query = tokenizer.encode(row["query"])
        whole = [tokenizer.encode(f"{row['query']}{delimiter}{c}") for c in row["choices"]]
        losses = continuation_losses(opened.model, [(ids, len(query)) for ids in whole], 2)
        ours = [-math.fsum(nats.tolist()) for nats in losses]
        assert ours == pytest.approx(theirs(sample), abs=1e-3)


def test_pairs_have_the_same_likelihood_and_accuracy(
    harness: Any, opened: OpenedModel, tmp_path: Path
) -> None:
    samples = harness("ours_pairs")
    items, _ = read_choices(str(tmp_path / "pairs.jsonl"))
    assert all(isinstance(item, Choice) and item.is_pair for item in items)
    outcomes = score_choices(opened, items, 2)
    for sample, outcome in zip(samples, outcomes, strict=True):
        assert (-outcome.nats).tolist() == pytest.approx(theirs(sample), abs=1e-3)
    accuracy = measure_choices(items, outcomes)[0]
    assert accuracy.name == "pair_accuracy"
    wanted = 100 * sum(sample["acc"] for sample in samples) / len(samples)
    assert accuracy.value == pytest.approx(wanted)


def test_a_text_longer_than_the_context_has_the_same_likelihood(
    harness: Any, opened: OpenedModel
) -> None:
    """Its windows do not overlap but in one token, the last one reaches back: a stride of the whole
    context."""
    (sample,) = harness("ours_text")
    ids = opened.tokenizer.encode(TEXT)
    context = opened.model.config.context
    assert len(ids) > 2 * context
    document = Rendered(ids, [1] * len(ids))
    (sums,) = document_sums(opened, [document], False, 2, Reach(context, context))
    response = sample["filtered_resps"][0]
    found = float(response[0] if isinstance(response, list | tuple) else response)
    assert -sums.nats == pytest.approx(found, rel=1e-5, abs=1e-3)
