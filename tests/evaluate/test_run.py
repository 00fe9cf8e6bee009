"""evaluate: from a model folder and a test set to scores and a folder that keeps them."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from chatbench.errors import DataError, IntegrityError, UsageError
from chatbench.evaluate import findings
from chatbench.evaluate.run import Evaluation, evaluate
from chatbench.evaluate.showing import show
from chatbench.evaluate.tasks import likelihood
from chatbench.model.folder import OpenedModel, open_model
from chatbench.model.quantize import QuantizedLinear, quantize_model
from chatbench.settings import EvaluateSettings
from chatbench.storage import verify
from chatbench.text.template import Rendered, render_texts
from chatbench.text.tokenizer import train_tokenizer

CHATS = [
    {"messages": [{"role": "user", "content": "茶多少钱？"},
                  {"role": "assistant", "content": "茶卖5元。"}], "facts": ["5元"]},
    {"prompt": "When do you open?", "completion": "At 9:30.", "facts": ["9:30"]},
    {"question": "Hi", "answer": "Hello!"},
]  # fmt: skip


def write_rows(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), "utf-8")
    return path


@pytest.fixture
def settings(base_run: Path, tmp_path: Path) -> Callable[..., EvaluateSettings]:
    """Settings for the tiny model on CHATS; `changes` are kept as given."""

    def make(**changes: Any) -> EvaluateSettings:
        data = write_rows(tmp_path / "chats.jsonl", CHATS)
        return EvaluateSettings(
            **{
                "model": str(base_run), "data": str(data), "device": "cpu", "max_tokens": 6,
                **changes,
            }
        )  # fmt: skip

    return make


Make = Callable[..., EvaluateSettings]


def named(result: Evaluation) -> dict[str, Any]:
    return {score.name: score for score in result.scores}


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_results_and_samples_say_what_was_found(settings: Make, tmp_path: Path) -> None:
    chosen = settings(out=str(tmp_path / "scores"))
    result = evaluate(chosen)
    verify(tmp_path / "scores", "evaluation")
    stored = json.loads((tmp_path / "scores" / "results.json").read_text("utf-8"))
    assert stored["data"] == chosen.data
    assert stored["failed"] == 0
    for score, kept in zip(result.scores, stored["scores"], strict=True):
        wanted = {"name": score.name, "value": score.value, "n": score.n}
        assert kept == {
            **wanted, "signature": score.signature, "low": score.low, "high": score.high
        }  # fmt: skip
        assert score.signature
        assert score.low <= score.high
    scores = named(result)
    assert scores["bits_per_byte"].n == sum(
        len(t.encode()) for t in ("茶卖5元。", "At 9:30.Hello!")
    )
    assert scores["chrf"].n == 3
    assert scores["exact_fact_match"].n == 2
    assert scores["exact_fact_match"].signature.startswith("known-facts:2")
    rows = read_rows(tmp_path / "scores" / "samples.jsonl")
    assert [row["reference"] for row in rows] == ["茶卖5元。", "At 9:30.", "Hello!"]
    assert rows[0]["messages"] == [{"role": "user", "content": "茶多少钱？"}]
    assert [row.get("facts") for row in rows] == [["5元"], ["9:30"], None]
    right = [row["right"] for row in rows if "right" in row]
    assert len(right) == 2
    assert scores["exact_fact_match"].value == 50 * sum(right)


def test_right_says_whether_the_reply_has_the_facts(
    settings: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = iter(["是5元。", "At 19:30.", "Hello!"])
    as_it_is = findings.judged

    def scripted(questions: Any, replies: Any) -> Any:
        return as_it_is(questions, [next(said) for _ in replies])

    monkeypatch.setattr("chatbench.evaluate.findings.judged", scripted)
    result = evaluate(settings(out=str(tmp_path / "scores")))
    rows = read_rows(tmp_path / "scores" / "samples.jsonl")
    assert [row.get("right") for row in rows] == [True, False, None]
    assert named(result)["exact_fact_match"].value == 50.0


def test_two_runs_write_identical_files(settings: Make, tmp_path: Path) -> None:
    out = tmp_path / "scores"
    hot = {"temperature": 1.5, "seed": 3}
    evaluate(settings(out=str(out), **hot))
    first = {path.name: path.read_bytes() for path in out.iterdir()}
    evaluate(settings(out=str(out), overwrite=True, **hot))
    second = {path.name: path.read_bytes() for path in out.iterdir()}
    assert first.keys() == second.keys() == {
        "results.json", "samples.jsonl", "documents.jsonl", "settings.json", "manifest.json"
    }  # fmt: skip
    for name in ("results.json", "samples.jsonl", "documents.jsonl"):
        assert first[name] == second[name]
    other = evaluate(settings(**{**hot, "seed": 4}))
    assert other.scores != evaluate(settings(**hot)).scores


def test_a_corpus_folder_and_its_documents_agree_on_conversations(
    settings: Make, corpus_folder: Path, tmp_path: Path
) -> None:
    rows = [row for row in read_rows(corpus_folder / "test.jsonl") if "messages" in row]
    texts = [row for row in read_rows(corpus_folder / "test.jsonl") if "text" in row]
    assert rows
    assert texts
    file = write_rows(tmp_path / "only.jsonl", rows)
    from_file, from_corpus = (named(evaluate(settings(data=str(d)))) for d in (file, corpus_folder))
    for name in ("chrf", "bleu", "rougeL", "exact_match", "distinct2"):
        assert from_file[name] == from_corpus[name]
    everything = write_rows(tmp_path / "all.jsonl", rows + texts)
    assert named(evaluate(settings(data=str(everything))))["perplexity"].value == pytest.approx(
        from_corpus["perplexity"].value, rel=1e-6
    )


def test_the_split_that_is_asked_for_is_judged(settings: Make, corpus_folder: Path) -> None:
    val, test = (evaluate(settings(data=str(corpus_folder), split=s)) for s in ("val", "test"))
    wanted = [row for row in read_rows(corpus_folder / "val.jsonl") if "messages" in row]
    assert named(val)["chrf"].n + val.unanswered == len(wanted)
    assert named(val)["perplexity"] != named(test)["perplexity"]


def test_texts_alone_have_likelihood_scores_only(settings: Make, tmp_path: Path) -> None:
    (tmp_path / "story.txt").write_text("The tea is warm. 茶是热的。\n" * 30, "utf-8")
    result = evaluate(settings(data=str(tmp_path / "story.txt"), out=str(tmp_path / "scores")))
    assert list(named(result)) == ["perplexity", "bits_per_byte"]
    assert (tmp_path / "scores" / "samples.jsonl").read_bytes() == b""


def test_max_examples_limits_the_replies_and_not_the_likelihood(settings: Make) -> None:
    whole, limited = named(evaluate(settings())), named(evaluate(settings(max_examples=1)))
    assert limited["chrf"].n == 1
    assert limited["perplexity"] == whole["perplexity"]


def test_the_batch_size_changes_no_reply(settings: Make, tmp_path: Path) -> None:
    for size in (1, 3):
        evaluate(settings(batch_size=size, out=str(tmp_path / f"by-{size}"), temperature=1.0))
    one, three = ((tmp_path / f"by-{size}" / "samples.jsonl").read_bytes() for size in (1, 3))
    assert one == three


def test_rows_that_cannot_be_read_are_counted_and_named(
    settings: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mixed = write_rows(tmp_path / "mixed.jsonl", [*CHATS, {"what": 1}, {"messages": []}])
    result = evaluate(settings(data=str(mixed)))
    assert result.failed == 2
    assert named(result)["chrf"].n == 3
    said = capsys.readouterr()
    assert "mixed.jsonl:4" in said.err
    assert said.out == ""


def test_questions_longer_than_the_context_are_counted_and_spoil_nothing(
    settings: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = {"prompt": "Tell me more. " * 60, "completion": "No."}
    mixed = write_rows(tmp_path / "mixed.jsonl", [CHATS[0], long, *CHATS[1:]])
    result = evaluate(settings(data=str(mixed), out=str(tmp_path / "scores")))
    assert result.unanswered == 1
    assert "1 of 4 questions" in capsys.readouterr().err
    stored = json.loads((tmp_path / "scores" / "results.json").read_text("utf-8"))
    assert stored["unanswered"] == 1
    assert len(read_rows(tmp_path / "scores" / "samples.jsonl")) == 3
    assert named(result)["chrf"] == named(evaluate(settings()))["chrf"]


def test_another_tokenizer_than_the_models_is_refused(
    settings: Make, base_run: Path, corpus_folder: Path, tmp_path: Path
) -> None:
    model = shutil.copytree(base_run / "model", tmp_path / "model")
    (model / "manifest.json").unlink(missing_ok=True)
    train_tokenizer(["other words entirely"] * 3, 300).save(model)
    with pytest.raises(IntegrityError, match="another tokenizer") as caught:
        evaluate(settings(model=str(model), data=str(corpus_folder)))
    assert caught.value.exit_code == 4
    assert str(corpus_folder) in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "\n\n",
        '{"text": ""}\n',
        '{"wrong": 1}\n',
        '{"messages": [{"role": "user", "content": "anyone?"}]}\n',
    ],
)
def test_data_that_holds_nothing_to_judge_by_is_a_data_error(
    settings: Make, tmp_path: Path, content: str
) -> None:
    (tmp_path / "empty.jsonl").write_text(content, "utf-8")
    with pytest.raises(DataError, match="nothing to judge by") as caught:
        evaluate(settings(data=str(tmp_path / "empty.jsonl"), out=str(tmp_path / "scores")))
    assert caught.value.exit_code == 3
    assert "empty.jsonl" in str(caught.value)
    assert not (tmp_path / "scores").exists()


def test_data_that_does_not_exist_is_a_usage_error(settings: Make, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nowhere"):
        evaluate(settings(data=str(tmp_path / "nowhere.jsonl")))


def test_results_that_are_there_are_kept_unless_told_otherwise(
    settings: Make, tmp_path: Path
) -> None:
    out = tmp_path / "scores"
    out.mkdir()
    (out / "mine.txt").write_text("keep me")
    with pytest.raises(UsageError, match="exists already") as caught:
        evaluate(settings(out=str(out)))
    assert caught.value.exit_code == 2
    assert "--overwrite" in str(caught.value)
    assert (out / "mine.txt").read_text() == "keep me"


def test_scores_are_shown_on_stdout_as_text_or_json(
    settings: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    result = evaluate(settings())
    capsys.readouterr()
    show(result, as_json=False)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [score.name for score in result.scores]
    show(result, as_json=True)
    shown = json.loads(capsys.readouterr().out)
    assert [score["value"] for score in shown["scores"]] == [s.value for s in result.scores]


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_quantised_weights_are_judged_beside_the_full_ones(
    settings: Make, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "story.txt").write_text("The tea is warm. 茶是热的。\n" * 30, "utf-8")
    data = {"data": str(tmp_path / "story.txt")}
    full = named(evaluate(settings(**data)))
    assert "perplexity_change" not in full
    found = named(evaluate(settings(**data, quantize=kind)))
    assert f"MB in {kind}" in capsys.readouterr().err
    assert found["perplexity_full"].value == full["perplexity"].value
    assert found["perplexity_full"].signature == full["perplexity"].signature
    opened = open_model(base_model(settings), torch.device("cpu"))
    quantize_model(opened.model, kind)
    sums = likelihood(opened, _rendered(opened, tmp_path / "story.txt"), False, 16)
    wanted = math.exp(sums.nats / sums.tokens)
    assert found["perplexity"].value == pytest.approx(wanted, rel=1e-9)
    assert found["perplexity"].value != full["perplexity"].value
    assert found["perplexity"].signature.endswith(f"weights:{kind}")
    ratio = found["perplexity"].value / full["perplexity"].value
    assert found["perplexity_change"].value == pytest.approx(ratio, rel=1e-12)
    assert found["perplexity_change"].n == full["perplexity"].n
    assert ratio == pytest.approx(1, abs=0.01 if kind == "int8" else 0.2)


def base_model(settings: Make) -> Path:
    return Path(settings().model)


def _rendered(opened: OpenedModel, path: Path) -> list[Rendered]:
    return list(render_texts(opened.tokenizer, [path.read_text("utf-8").strip()]))


def test_quantised_weights_write_the_replies(settings: Make, tmp_path: Path) -> None:
    """The replies are those of the quantised model: the engine sees no full weights any more."""
    seen: list[set[type]] = []
    answered = findings.answer

    def watched(opened: OpenedModel, *rest: Any) -> Any:
        seen.append({type(block.mlp.up_proj) for block in opened.model.model.layers})
        return answered(opened, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("chatbench.evaluate.findings.answer", watched)
        found = named(evaluate(settings(quantize="int8", out=str(tmp_path / "scores"))))
    assert seen == [{QuantizedLinear}]
    assert found["chrf"].n == 3
    stored = json.loads((tmp_path / "scores" / "results.json").read_text("utf-8"))
    assert {"perplexity", "perplexity_full", "perplexity_change"} <= {
        score["name"] for score in stored["scores"]
    }
