"""A model beside others and beside simple means; parts of the questions; replies used again."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from chatbench.conversation import Message
from chatbench.errors import DataError, UsageError
from chatbench.evaluate import findings
from chatbench.evaluate.baselines import nearest_replies, ngram_sums
from chatbench.evaluate.comparing import flips, matched
from chatbench.evaluate.eliza import eliza
from chatbench.evaluate.run import Evaluation, evaluate
from chatbench.evaluate.showing import aligned, show, text_of
from chatbench.evaluate.slices import chosen_columns, columns_of
from chatbench.evaluate.tasks import Question, facets_of, prompt_of
from chatbench.evaluate.testset import open_test_set
from chatbench.evaluate.training import Exchange, Training, find_training
from chatbench.model.folder import OpenedModel, open_model
from chatbench.settings import EvaluateSettings
from chatbench.text.measuring import Judged
from chatbench.text.ngram import NGram
from chatbench.text.template import reply_prompt

ROWS: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": "茶叶5号多少钱？"},
                  {"role": "assistant", "content": "茶叶卖5元。"},
                  {"role": "user", "content": "Thanks 谢谢"},
                  {"role": "assistant", "content": "不客气！"}], "topic": "茶"},
    {"prompt": "What does ink 3 cost?", "completion": "The ink costs 3 yuan.", "topic": "ink"},
    {"prompt": "What does tea 7 cost?", "completion": "The tea costs 7 yuan.", "topic": "tea"},
]  # fmt: skip


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), "utf-8")
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@pytest.fixture(scope="module")
def opened(base_run: Path) -> OpenedModel:
    return open_model(base_run, torch.device("cpu"))


Make = Callable[..., EvaluateSettings]


@pytest.fixture
def settings(base_run: Path, tmp_path: Path) -> Make:
    def make(**changes: Any) -> EvaluateSettings:
        data = write(tmp_path / "chats.jsonl", ROWS)
        given = {"model": str(base_run), "data": str(data), "device": "cpu", "max_tokens": 5}
        return EvaluateSettings(**{**given, **changes})

    return make


def values(result: Evaluation) -> dict[str, float]:
    return {score.name: score.value for score in result.scores}


# ---- replies are used again


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many replies were generated, call by call."""
    made: list[int] = []
    answer = findings.answer

    def counted(opened: Any, prompts: Any, *rest: Any) -> Any:
        made.append(len(prompts))
        return answer(opened, prompts, *rest)

    monkeypatch.setattr(findings, "answer", counted)
    return made


@pytest.mark.parametrize("temperature", [0.0, 1.2])
def test_replies_that_are_there_are_not_made_again(
    settings: Make, tmp_path: Path, counting: list[int], temperature: float
) -> None:
    out = tmp_path / "scores"
    hot = {"temperature": temperature}
    first = evaluate(settings(out=str(out), **hot))
    results = (out / "results.json").read_bytes()
    assert evaluate(settings(out=str(out), overwrite=True, **hot)) == first
    assert (out / "results.json").read_bytes() == results
    beside = evaluate(settings(out=str(tmp_path / "more"), **hot))
    named = evaluate(settings(reuse=str(out), **hot))
    file = evaluate(settings(reuse=str(out / "samples.jsonl"), **hot))
    assert beside == named == file == first
    assert counting == [3]


def test_other_sampling_another_model_and_new_questions_are_answered_anew(
    settings: Make, tmp_path: Path, counting: list[int], base_run: Path
) -> None:
    out = str(tmp_path / "scores")
    evaluate(settings(out=out))
    other = {"prompt": "And rain?", "completion": "No."}
    more = write(tmp_path / "more.jsonl", [ROWS[1], other, ROWS[2]])
    evaluate(settings(out=str(tmp_path / "b"), data=str(more)))
    assert counting == [3, 1]
    evaluate(settings(out=str(tmp_path / "c"), max_tokens=4))
    evaluate(settings(out=str(tmp_path / "d"), quantize="int8"))
    assert counting == [3, 1, 3, 3]
    with pytest.raises(UsageError, match="another model or with other sampling"):
        evaluate(settings(reuse=out, max_tokens=4))
    with pytest.raises(UsageError, match="holds no replies"):
        evaluate(settings(reuse=str(tmp_path / "nowhere")))


def test_replies_of_unknown_origin_are_told_of(
    settings: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "scores"
    evaluate(settings(out=str(out)))
    evaluate(settings(reuse=str(out / "samples.jsonl")))
    assert "does not say what made its replies" not in capsys.readouterr().err
    (tmp_path / "loose").mkdir()
    loose = shutil.copy(out / "samples.jsonl", tmp_path / "loose" / "samples.jsonl")
    evaluate(settings(reuse=str(loose)))
    assert "does not say what made its replies" in capsys.readouterr().err


def test_damaged_replies_are_not_trusted(
    settings: Make, tmp_path: Path, counting: list[int]
) -> None:
    out = tmp_path / "scores"
    evaluate(settings(out=str(out)))
    samples = out / "samples.jsonl"
    samples.write_bytes(samples.read_bytes().replace(b"reply", b"Reply", 1))
    evaluate(settings(out=str(tmp_path / "again")))
    assert counting == [3, 3]


def test_replies_made_elsewhere_need_no_model(settings: Make, tmp_path: Path) -> None:
    out = tmp_path / "scores"
    mine = evaluate(settings(out=str(out)))
    theirs = evaluate(settings(model="", data=str(out / "samples.jsonl")))
    assert theirs.model == ""
    judged = {name: value for name, value in values(mine).items() if name in values(theirs)}
    assert judged == values(theirs)
    assert {"chrf", "bleu", "token_f1"} <= judged.keys()
    with pytest.raises(UsageError, match="no model is named"):
        evaluate(settings(model=""))


def test_rows_without_a_reply_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"reply": "a", "reference": "a"}, {"reply": 3}, {"reply": "茶", "reference": "书"}]
    result = evaluate(EvaluateSettings(data=str(write(tmp_path / "r.jsonl", rows))))
    assert result.failed == 1
    assert "r.jsonl:2" in capsys.readouterr().err
    assert values(result)["exact_match"] == 50.0


# ---- parts


def test_a_model_answers_rows_of_prompt_and_reference(settings: Make, tmp_path: Path) -> None:
    chats = [("How are you?", "Fine, thanks."), ("茶热吗？", "很热。")]
    forms = {
        "plain": ([{"prompt": q, "completion": a} for q, a in chats], []),
        "reference": ([{"prompt": q, "reference": a, "reply": "-"} for q, a in chats], []),
        "query": ([{"query": q, "reference": a} for q, a in chats], []),
        "named": ([{"问": q, "wanted": a} for q, a in chats], ["user=问", "assistant=wanted"]),
    }
    found = {
        name: evaluate(settings(data=str(write(tmp_path / f"{name}.jsonl", rows)), map=mapping))
        for name, (rows, mapping) in forms.items()
    }
    assert values(found["plain"])["chrf"] >= 0
    assert found["plain"].scores[0].n > 0
    assert all(each.scores == found["plain"].scores for each in found.values())
    assert not any(each.failed for each in found.values())


def test_by_turn_asks_every_reply(settings: Make, tmp_path: Path) -> None:
    result = evaluate(settings(by=["turn", "topic"], out=str(tmp_path / "scores")))
    parts = {(each.by, each.value): each.n for each in result.slices}
    assert parts == {
        ("turn", "1"): 3, ("turn", "2"): 1, ("topic", "ink"): 1, ("topic", "tea"): 1,
        ("topic", "茶"): 2,
    }  # fmt: skip
    rows = read(tmp_path / "scores" / "samples.jsonl")
    assert [row.get("turn", 1) for row in rows] == [1, 2, 1, 1]
    assert rows[1]["messages"] == ROWS[0]["messages"][:3]
    assert rows[0]["facets"] == {"topic": "茶"}


def test_it_is_told_when_last_replies_alone_are_judged(
    settings: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate(settings())
    said = "only the last reply of each conversation is judged, 1 has more"
    assert said in capsys.readouterr().err
    evaluate(settings(by=["turn"]))
    assert "only the last reply" not in capsys.readouterr().err


def test_a_part_has_the_scores_it_has_by_itself(tmp_path: Path, rng: random.Random) -> None:
    words = ["tea", "茶", "书", "rain", "at", "nine", "\n"]
    rows = [
        {"reply": " ".join(rng.choices(words, k=6)), "reference": " ".join(rng.choices(words, k=6)),
         "kind": rng.choice("ab"), "facts": ["tea"] if rng.random() < 0.5 else []}
        for _ in range(16)
    ]  # fmt: skip
    rows += [{**rows[0], "kind": kind} for kind in "ab"]
    data = write(tmp_path / "all.jsonl", rows)
    whole = evaluate(EvaluateSettings(data=str(data), by=["kind"]))
    for part in whole.slices:
        chosen = [row for row in rows if row["kind"] == part.value]
        assert part.n == len(chosen)
        data = write(tmp_path / f"{part.value}.jsonl", chosen)
        alone = {s.name: s for s in evaluate(EvaluateSettings(data=str(data))).scores}
        for score in part.scores:
            if score.name != "exact_fact_match":
                assert score.value == pytest.approx(alone[score.name].value, rel=1e-9), score.name
                assert score.n == alone[score.name].n


def test_columns_that_no_question_has_are_refused() -> None:
    questions = [Question((), "a", facets=(("tag.style", "formal"),))]
    assert chosen_columns(["style"], questions) == {"tag.style": ["formal"]}
    plain = [Question((), "a", facets=(("style", "formal"),))]
    assert chosen_columns(["tag.style"], plain) == {"style": ["formal"]}
    with pytest.raises(UsageError, match=r"did you mean tag\.style"):
        chosen_columns(["tag.stile"], questions)


def test_columns_of_a_few_values_are_chosen_unasked() -> None:
    questions = [
        Question((), "茶" if n % 2 else "tea", (), 1, (("id2", str(n)), ("x", "same")))
        for n in range(20)
    ]
    assert list(chosen_columns([], questions)) == ["script"]
    assert set(columns_of(questions)) == {"turn", "script", "id2", "x"}
    assert chosen_columns([], []) == {}


def test_facets_are_short_plain_values_and_tags() -> None:
    meta = {"tags": {"style": "formal", "n": 3, "x": {}}, "topic": "茶", "text": "t",
            "long": "x" * 99, "list": [1], "source": "f:1"}  # fmt: skip
    assert facets_of(meta) == (("tag.n", "3"), ("tag.style", "formal"), ("topic", "茶"))


# ---- long conversations


def test_the_oldest_exchanges_give_way_as_in_a_chat(
    opened: OpenedModel, settings: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    talk = [Message("system", "Be kind")]
    for number in range(20):
        talk += [Message("user", f"tea {number}?"), Message("assistant", f"{number} yuan")]
    prompt = prompt_of(opened, Question((*talk, Message("user", "last?")), "r"), 5)
    assert prompt.ids is not None
    assert prompt.forgotten > 0
    kept = [talk[0], *talk[1 + 2 * prompt.forgotten :], Message("user", "last?")]
    assert prompt.ids == reply_prompt(opened.tokenizer, kept)
    more = [talk[0], *talk[1 + 2 * (prompt.forgotten - 1) :], Message("user", "last?")]
    assert len(reply_prompt(opened.tokenizer, more)) > opened.model.config.context - 5
    row = {"messages": [{"role": m.role, "content": m.content} for m in talk]}
    result = evaluate(settings(data=str(write(tmp_path / "long.jsonl", [row]))))
    assert (result.shortened, result.unanswered) == (1, 0)
    assert "oldest exchanges" in capsys.readouterr().err


# ---- baselines


def test_bm25_finds_the_nearest_question_in_both_languages() -> None:
    exchanges = [
        Exchange("When do you open?", "At nine."), Exchange("What does tea cost?", "Five yuan."),
        Exchange("茶多少钱？", "五元。"), Exchange("几点开门？", "九点。"),
        Exchange("What does tea cost?", "A second answer."),
    ]  # fmt: skip
    asked = [
        "so when do you OPEN",
        "tea: cost",
        "你们几点开门",
        "茶要多少钱",
        "🙂",
        "zebra",
        '"OR"',
    ]
    assert nearest_replies(asked, exchanges) == [
        "At nine.", "Five yuan.", "九点。", "五元。", "", "", "",
    ]  # fmt: skip
    assert nearest_replies(["a"], []) == [""]


@pytest.mark.parametrize(
    ("said", "reply"),
    [
        ("I am tired.", {"How long have you been tired?", "Why are you tired?"}),
        ("Me? My tea!", {"Tell me more about your tea.", "Why does your tea matter?"}),
        ("我觉得你很好。", {"为什么觉得我很好？", "你经常这样觉得吗？"}),
        ("谢谢", {"不客气！", "别客气。"}),
        ("zebra", {"Please go on.", "Can you tell me more about that?", "I see."}),
        ("", {"Please go on.", "Can you tell me more about that?", "I see."}),
    ],
)  # fmt: skip
def test_eliza_turns_what_was_said(said: str, reply: set[str]) -> None:
    assert eliza(said) in reply
    assert eliza(said) == eliza(said)


def test_eliza_takes_braces_for_text() -> None:
    assert "{0}" in eliza("I want {0} and {x}")


def test_ngram_sums_are_those_of_the_model_of_the_training_text(
    opened: OpenedModel, corpus_folder: Path
) -> None:
    settings = EvaluateSettings(model="m", data=str(corpus_folder))
    test = open_test_set(settings, opened)
    training = Training(corpus_folder)
    sums, kind = ngram_sums(opened, test.texts, test.chats, training)
    stream = np.concatenate([np.array(ids) for ids in training.ids(opened.tokenizer)])
    model = NGram(stream, opened.tokenizer.vocab_size)
    assert kind == f"5-gram|train-tokens:{len(stream)}"
    prefix = [*opened.tokenizer.text_prefix]
    documents = [*((d, prefix) for d in test.texts), *((d, []) for d in test.chats)]
    for (document, before), found in zip(documents, sums, strict=True):
        chances = model.probabilities([np.array([*before, *document.ids])])[len(before) :]
        nats = -np.log(chances)[np.array(document.weights, bool)]
        assert found.nats == pytest.approx(nats.sum(), rel=1e-9)
        assert found.tokens == sum(document.weights)


def test_exchanges_are_read_from_shards_and_from_files_alike(
    corpus_folder: Path, sources: Path
) -> None:
    from_files = set(Training(sources / "chats.jsonl").exchanges())
    from_corpus = list(Training(corpus_folder).exchanges())
    assert from_corpus
    assert set(from_corpus) <= from_files
    texts = list(Training(corpus_folder).texts())
    assert any("小店早上九点开门。" in text for text in texts)
    assert not any("<|im_start|>" in text for text in texts)


def test_the_training_text_is_what_the_run_names(base_run: Path, corpus_folder: Path) -> None:
    for folder in (base_run, base_run / "model", *base_run.glob("checkpoints/*/model")):
        assert find_training(folder, None) == corpus_folder
    assert find_training(base_run, "mine") == Path("mine")
    assert find_training(corpus_folder, None) is None
    assert find_training(None, None) is None


def test_simple_baselines_stand_beside_each_number(
    settings: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    result = evaluate(settings(baseline=["bm25", "copy", "eliza", "ngram"]))
    bm25, copy, _, ngram = result.baselines
    assert [each.name for each in result.baselines] == ["bm25", "copy", "eliza", "ngram"]
    theirs = {score.name: score for score in copy.scores}
    asked = ["Thanks 谢谢", "What does ink 3 cost?", "What does tea 7 cost?"]
    wanted = ["不客气！", "The ink costs 3 yuan.", "The tea costs 7 yuan."]
    data = [{"reply": a, "reference": w} for a, w in zip(asked, wanted, strict=True)]
    path = write(Path(settings().data).with_name("copy.jsonl"), data)
    alone = values(evaluate(EvaluateSettings(data=str(path))))
    assert {name: score.value for name, score in theirs.items()} == alone
    for each in bm25.differences:
        assert each.difference == pytest.approx(each.value - each.baseline)
        assert each.low <= each.difference + 1e-9
        assert 0 < each.p <= 1
    assert [each.name for each in ngram.differences] == ["perplexity", "bits_per_byte"]
    capsys.readouterr()
    show(result, as_json=False)
    assert "beside bm25" in capsys.readouterr().out


def test_baselines_that_do_not_fit_the_data_are_refused(settings: Make, tmp_path: Path) -> None:
    replies = write(tmp_path / "r.jsonl", [{"reply": "a", "reference": "a"}])
    with pytest.raises(UsageError, match="for likelihood"):
        evaluate(EvaluateSettings(data=str(replies), baseline=["ngram"]))
    with pytest.raises(UsageError, match="--train-data"):
        evaluate(EvaluateSettings(data=str(replies), baseline=["bm25"]))
    story = tmp_path / "story.txt"
    story.write_text("The tea is warm.\n" * 9, "utf-8")
    with pytest.raises(UsageError, match="has none"):
        evaluate(settings(data=str(story), baseline=["copy"]))
    choice = write(tmp_path / "c.jsonl", [{"good": "It is warm.", "bad": "It are warm."}])
    with pytest.raises(UsageError, match=r"another model$"):
        evaluate(settings(data=str(choice), baseline=["copy"]))


def test_another_evaluation_and_its_model_compare_alike(
    settings: Make, tmp_path: Path, base_run: Path
) -> None:
    checkpoint = sorted(base_run.glob("checkpoints/*/model"))[0]
    before = tmp_path / "before"
    evaluate(settings(model=str(checkpoint), out=str(before)))
    result = evaluate(settings(baseline=[str(before), str(checkpoint)]))
    folder, model = result.baselines
    assert [(d.name, d.value, d.baseline, d.low, d.high, d.p) for d in folder.differences] == [
        (d.name, d.value, d.baseline, d.low, d.high, d.p) for d in model.differences
    ]
    assert {"perplexity", "bits_per_byte", "chrf"} <= {d.name for d in folder.differences}
    assert folder.flipped == model.flipped


def test_an_evaluation_of_other_questions_is_no_baseline(settings: Make, tmp_path: Path) -> None:
    evaluate(settings(out=str(tmp_path / "one"), max_examples=1))
    with pytest.raises(DataError, match="lacks replies to 2 of 3"):
        evaluate(settings(baseline=[str(tmp_path / "one")]))


def test_an_evaluation_of_other_texts_is_no_baseline(settings: Make, tmp_path: Path) -> None:
    for name, text in (("one", "The tea is warm."), ("other", "今天的茶是热的，很好喝。")):
        write(tmp_path / f"{name}.jsonl", [{"text": text}, {"text": "A cup, please."}])
        evaluate(settings(data=str(tmp_path / f"{name}.jsonl"), out=str(tmp_path / name)))
    with pytest.raises(DataError, match="not measured on the texts"):
        evaluate(settings(data=str(tmp_path / "one.jsonl"), baseline=[str(tmp_path / "other")]))
    same = evaluate(settings(data=str(tmp_path / "one.jsonl"), baseline=[str(tmp_path / "one")]))
    assert {d.difference for d in same.baselines[0].differences} == {0.0}


def test_a_baseline_does_not_reply_to_nothing(tmp_path: Path, base_run: Path) -> None:
    rows = [
        {"reply": "It is warm.", "reference": "It is warm.", "prompt": "How is the tea?"},
        {"reply": "茶是热的。", "reference": "茶是热的。"},
    ]
    path = str(write(tmp_path / "replies.jsonl", rows))
    for name in ("copy", "eliza", str(base_run)):
        with pytest.raises(UsageError, match="1 of 2 replies"):
            evaluate(EvaluateSettings(data=path, baseline=[name]))


def test_full_weights_stand_beside_quantised_ones(settings: Make, base_run: Path) -> None:
    full = values(evaluate(settings()))
    result = evaluate(settings(quantize="int8", baseline=[str(base_run)]))
    (beside,) = result.baselines
    found = {d.name: d for d in beside.differences}
    assert found["bits_per_byte"].baseline == pytest.approx(full["bits_per_byte"], rel=1e-9)
    assert found["bits_per_byte"].value == values(result)["bits_per_byte"]
    assert found["chrf"].baseline == pytest.approx(full["chrf"])


def test_flips_are_listed_both_ways() -> None:
    questions = [Question((Message("user", f"q{n}"),), "five", ("five",)) for n in range(4)]
    ours, theirs = (
        [Judged(reply, "five", ("five",)) for reply in replies]
        for replies in (["five", "six", "five", "no"], ["five", "five", "six", "no"])
    )
    found = flips(questions, ours, theirs)
    assert found.metric == "exact_fact_match"
    assert [flip.question for flip in found.gained] == ["q2"]
    assert [(flip.reply, flip.baseline) for flip in found.lost] == [("six", "five")]
    by_hand = flips(questions, ours, theirs, [True] * 4, [False] * 4)
    assert (by_hand.metric, len(by_hand.gained)) == ("accuracy", 4)


def test_replies_are_matched_by_question_and_reference() -> None:
    a, b, c = (Question((Message("user", name),), name) for name in "abc")
    assert matched([b, a], [a, b, c], ["1", "2", "3"], "x") == ["2", "1"]
    bare = [Question((), "same")] * 2
    assert matched(bare, bare, ["1", "2"], "x") == ["1", "2"]
    with pytest.raises(DataError, match="1 of 2"):
        matched([a, c], [a], ["1"], "x")


# ---- what is shown


def test_wide_characters_take_two_places_in_a_table() -> None:
    rows = [["by 店铺", "n"], ["tea", "1"], ["北京总店", "12"]]
    assert aligned(rows, left={0}) == ["by 店铺    n", "tea        1", "北京总店  12"]
    assert aligned(rows, left=set()) == [" by 店铺   n", "     tea   1", "北京总店  12"]
    assert aligned([], left={0}) == []


def test_text_of_models_and_data_is_made_visible(tmp_path: Path) -> None:
    rows = [{"prompt": "q\x1b[2J", "reply": "\x1b[31mred", "reference": "red", "kind": "\x1bk"}] * 2
    other = [{"prompt": "q\x1b[2J", "reply": "red", "reference": "red", "kind": "\x1bk"}] * 2
    ours, theirs = (write(tmp_path / f"{n}.jsonl", r) for n, r in enumerate((rows, other)))
    settings = EvaluateSettings(data=str(ours), baseline=[str(theirs)], by=["kind"])
    text = "\n".join(text_of(evaluate(settings)))
    assert "\x1b" not in text
    assert "␛[31mred" in text


def test_two_runs_print_the_same(settings: Make, capsys: pytest.CaptureFixture[str]) -> None:
    shown = []
    for _ in range(2):
        result = evaluate(settings(baseline=["bm25"], by=["turn"]))
        capsys.readouterr()
        show(result, as_json=True)
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1]
    assert json.loads(shown[0])["scores"]


def test_training_data_can_be_named(settings: Make, tmp_path: Path, base_run: Path) -> None:
    model = shutil.copytree(base_run / "model", tmp_path / "model")
    assert "verbatim_overlap" not in values(evaluate(settings(model=str(model))))
    mine = write(tmp_path / "mine.jsonl", ROWS)
    found = values(evaluate(settings(model=str(model), train_data=str(mine))))
    assert found["verbatim_overlap_references"] == pytest.approx(100)
    with pytest.raises(UsageError, match="nowhere"):
        evaluate(settings(model=str(model), train_data=str(tmp_path / "nowhere")))
