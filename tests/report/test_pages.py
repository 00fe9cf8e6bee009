"""Pages of runs and evaluations show every number and every line, and obey nothing."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import pytest
from report.folders import PROMPT, best_bits, lines, write_evaluation, write_run
from report.pages import HOSTILE, checked

from chatbench.errors import IntegrityError
from chatbench.report.curves import COLOURS, Level, Line, curves
from chatbench.report.evaluation import read_evaluation, worst
from chatbench.report.evaluation_page import render_evaluation
from chatbench.report.facts import differences, essentials, story
from chatbench.report.figures import Bin, calibration, confusion
from chatbench.report.making import _Found, _render
from chatbench.report.overlay import overlay
from chatbench.report.reading import between, lineage, read_run
from chatbench.report.run_page import evenly, render_run
from chatbench.report.terminal import show_runs


def lines_drawn(page: str) -> set[str]:
    """Names of the curves that are on a page."""
    return set(re.findall(r'<path class="line s\d" d="M[^"]+"><title>([^<]*)</title>', page))


# ---- one run


def test_the_page_of_a_run_shows_its_numbers(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "runs" / "小店", reward=2.5))
    page = render_run(run)
    words = checked(page).words
    for name, value, remark in essentials(run):
        assert name in words
        assert value in words
        assert remark in words
    assert f"{best_bits(200, 6.0):.3f}" in words
    assert "n-gram model" in words
    assert "0.50 (0.40 to 0.60)" in words  # what was expected
    assert "gradient norm 90 is above 12" in words
    assert PROMPT in words
    assert "200 九点。" in words
    assert "train.minutes" in words
    assert "reward" in words
    assert {"training", "validation"} <= lines_drawn(page)
    assert page.count('class="skip"') >= 2


def test_the_axis_of_a_run_tells_steps_tokens_and_time(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run"))
    assert run.at(100, "tokens") == 2048 * 100
    assert run.at(100, "seconds") == pytest.approx(10.0, rel=1e-12)
    words = checked(render_run(run)).words
    for axis in ("steps", "tokens", "time"):
        assert axis in words


def test_a_page_is_a_function_of_the_folder(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    assert render_run(read_run(run)) == render_run(read_run(run))


def test_an_unfinished_run_has_a_page(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run", finished=False))
    assert not run.finished
    assert run.parameters == 22
    assert "--resume goes on" in checked(render_run(run)).words


@pytest.mark.parametrize("missing", ["metrics", "timings", "samples"])
def test_a_run_without_a_log_has_a_page(tmp_path: Path, missing: str) -> None:
    run = write_run(tmp_path / "run")
    (run / f"{missing}.jsonl").unlink()
    for name in ("references.json", "plan.json", "environment.json"):
        (run / name).unlink()
    checked(render_run(read_run(run)))


def test_damaged_logs_are_read_as_far_as_they_go(tmp_path: Path, rng: random.Random) -> None:
    run = write_run(tmp_path / "run")
    for name in ("metrics.jsonl", "timings.jsonl", "samples.jsonl", "references.json",
                 "plan.json", "config.toml", "model/config.json"):  # fmt: skip
        raw = bytearray((run / name).read_bytes())
        for _ in range(20):
            raw[rng.randrange(len(raw))] = rng.randrange(256)
        (run / name).write_bytes(raw)
    checked(render_run(read_run(run)))


def test_numbers_that_are_none_leave_gaps(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    with (run / "metrics.jsonl").open("a") as log:
        log.write('{"step":210,"loss":null,"grad_norm":1e999,"learning_rate":true}\n')
        log.write('{"step":220,"val_loss":null}\n[1]\n{"step":"x"}\n{"loss":3}\n')
    known = read_run(run)
    assert known.step == 220
    assert known.curves["loss"][-1][0] == 200
    assert known.curves["grad_norm"][-1][0] == 200
    assert known.best["step"] == 200
    checked(render_run(known))


def test_lineage_goes_back_to_the_corpus(tmp_path: Path, corpus_folder: Path) -> None:
    base = write_run(tmp_path / "base", data=str(corpus_folder))
    tuned = write_run(tmp_path / "bot", base=str(base / "model"), data="gone.jsonl:0.1")
    chain = lineage(read_run(tuned))
    assert [one.role for one in chain] == ["corpus", "base", "corpus", "run"]
    assert chain[0].corpus is not None
    assert chain[2].path is None
    (base / "report.html").write_text("x")
    page = render_run(read_run(tuned), tuned / "report.html")
    assert 'href="../base/report.html"' in page
    assert "not on this machine" in checked(page).words


def test_a_run_that_is_its_own_base_ends(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", base=str(tmp_path / "run"))
    assert len(lineage(read_run(run))) <= 4


# ---- several runs


def test_every_run_is_drawn_on_every_axis(tmp_path: Path) -> None:
    runs = [
        read_run(write_run(tmp_path / f"run{n}", loss=3.0 + n, rate=0.001 * (n + 1)))
        for n in range(COLOURS + 2)
    ]
    page = _render(_Found(runs, [], []), tmp_path / "report.html")
    parser = checked(page)
    assert lines_drawn(page) >= {run.name for run in runs}
    for axis in ("steps", "tokens", "seconds"):
        assert f"Bits per byte of the validation against {axis}" in parser.words
    assert [key for key, _ in differences(runs)] == ["optim.learning_rate"]
    assert "model.size" not in parser.words
    assert len(set(re.findall(r'class="line (s\d)"', page))) == COLOURS


def test_equal_settings_are_said_to_be_equal(tmp_path: Path) -> None:
    runs = [read_run(write_run(tmp_path / name)) for name in "ab"]
    assert differences(runs) == []
    (differing,) = [s for s in overlay(runs) if s.anchor == "differences"]
    assert "None" in differing.body


def test_kinds_differ_only_in_what_both_have(tmp_path: Path) -> None:
    base = write_run(tmp_path / "base")
    tuned = write_run(tmp_path / "tuned", base=str(base), steps=100)
    rows = dict(differences([read_run(base), read_run(tuned)]))
    assert rows["objective"] == ["pretrain", "sft"]
    assert rows["model"] == [None, str(base)]
    assert rows["train.steps"] == [200, 100]
    assert "data" not in rows  # one place, in a list or not
    assert not any(key.startswith(("lora.", "model.")) for key in rows)


def test_names_of_runs_do_nothing_to_a_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    show_runs([read_run(write_run(tmp_path / "a\u202eb\x1b[2J"))])
    said = capsys.readouterr().err
    assert "\\u202e" in said
    assert not {"\u202e", "\x1b"} & {*said}


def test_a_classifier_is_called_one(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run", base="runs/base"))
    assert ", trained to classify from runs/base on " in story(run._replace(kind="classify"))
    assert ", trained by DPO from runs/base on " in story(run._replace(kind="dpo"))


# ---- an evaluation


def test_the_page_of_an_evaluation_shows_all_there_is(tmp_path: Path) -> None:
    facts = read_evaluation(write_evaluation(tmp_path / "evaluation"))
    words = checked(render_evaluation(facts)).words
    for told in (
        "runs/小店", "61.50", "55.25 to 66.00", "each-token-once", "tag.语气", "随意", "bm25",
        "48.50", "+13.000", "6.500 to 19.50", "0.002", "At nine.", "不知道", "card lost",
        "贷款 taken for other: 3", "replies are short: length ratio 0.41",
        "chatbench finetune -m runs/a", "more colour", "required is >= 70",
        "Tea & <i>paper</i>", "1 failed", "78.6 %",
    ):  # fmt: skip
        assert told in words, told
    assert "茶叶卖八元" not in words  # right, so none of the worst


def test_the_worst_come_first(tmp_path: Path) -> None:
    folder = write_evaluation(tmp_path / "evaluation")
    replies = ["the ink costs 3 yuan", "ink costs", "no", "墨水三元"]
    lines(folder / "samples.jsonl", [{"prompt": f"q{n}", "reply": reply,
          "reference": "the ink costs 3 yuan"} for n, reply in enumerate(replies)])  # fmt: skip
    by, cases = worst(read_evaluation(folder).cases, 3)
    assert by == "chrf"
    assert {case.question for case in cases[:2]} == {"q2", "q3"}
    assert cases[2].question == "q1"
    assert [c.scores["chrf"] for c in cases] == sorted(c.scores["chrf"] for c in cases)


@pytest.mark.parametrize(
    "raw", [{"scores": None}, {"scores": [1, {"name": "x"}, {"name": "y", "value": None}]},
            {"scores": [], "slices": {"a": 1}, "baselines": 7, "classes": {"labels": ["a"]}},
            {"classes": {"labels": ["a"], "confusion": [[-1]], "calibration": [{"rows": 1}]}},
            {"advice": [{}, "x", 3], "missed": 4, "model": 3, "data": []}],
)  # fmt: skip
def test_results_of_another_form_are_left_out(tmp_path: Path, raw: object) -> None:
    (tmp_path / "results.json").write_text(json.dumps(raw))
    checked(render_evaluation(read_evaluation(tmp_path)))


def test_results_that_cannot_be_read_are_said_so(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(IntegrityError, match=r"results\.json cannot be read"):
        read_evaluation(tmp_path)


def test_runs_and_evaluations_share_a_page(tmp_path: Path) -> None:
    runs = [read_run(write_run(tmp_path / "run"))]
    evaluations = [read_evaluation(write_evaluation(tmp_path / name)) for name in ("e1", "e2")]
    words = checked(_render(_Found(runs, evaluations, []), tmp_path / "report.html")).words
    assert "Scores side by side" in words
    assert str(tmp_path / "e2") in words  # of the same model, so told apart by folder
    assert "What it learned" in words


# ---- hostile text


@pytest.mark.parametrize("text", HOSTILE)
def test_text_is_shown_and_not_obeyed(tmp_path: Path, text: str) -> None:
    run = write_run(tmp_path / "run")
    safe = text.encode("utf-8", "replace").decode()
    lines(run / "samples.jsonl", [{"step": 5, "prompt": safe, "text": safe}])
    with (run / "metrics.jsonl").open("a", encoding="utf-8") as log:
        log.write(json.dumps({"step": 7, "skipped": text}) + "\n")
        log.write(json.dumps({"step": 8, text: 3.0}) + "\n")
    (run / "plan.json").write_text(json.dumps({text: text, "steps": text}))
    (run / "environment.json").write_text(json.dumps({text: [text]}))
    checked(render_run(read_run(run)))
    folder = write_evaluation(
        tmp_path / "evaluation", model=text, data=text, missed=[text],
        scores=[{"name": text, "value": 1.0, "n": 1, "signature": text}],
        slices=[{"by": text, "value": text, "n": 1, "scores": []}],
        advice=[{"finding": text, "why": text, "command": text}],
        classes={"labels": [text, "b"], "confusion": [[1, 2], [3, 4]]},
        baselines=[{"name": text, "scores": [], "differences": [],
                    "flipped": {"metric": text, "gained": [
                        {"question": text, "reply": text, "reference": text, "baseline": text}]}}],
    )  # fmt: skip
    lines(folder / "samples.jsonl", [{"messages": [{"role": safe, "content": safe}],
                                      "reply": safe, "reference": "x"}])  # fmt: skip
    checked(render_evaluation(read_evaluation(folder)))


# ---- drawings


def test_few_points_are_dots_and_many_are_thinned() -> None:
    few = curves("Loss", [Line("a", [(1.0, 2.0), (2.0, 1.0)])], 920, x_name="steps")
    assert few.count("<circle") == 2
    many = [(float(n), 5.0 + (n == 70_000) * 90) for n in range(100_000)]
    drawn = curves("Loss", [Line("a", many)], 920, x_name="steps")
    (path,) = re.findall(r'class="line s0" d="([^"]+)"><title>', drawn)
    assert path.count("L") < 1000
    highest = min(float(y) for y in re.findall(r"[ML][\d.]+ ([\d.]+)", path))
    assert highest < 60  # the one peak is there
    assert "<circle" not in drawn


def test_a_chart_without_points_is_nothing() -> None:
    assert curves("Loss", [Line("a", [])], 920, x_name="steps") == ""
    assert confusion([], [], 920) == ""
    assert calibration([], 920) == ""


def test_numbers_of_an_axis_begin_within_the_picture() -> None:
    drawn = curves("bytes", [Line("a", [(1.0, 3.8e8), (2.0, 4.4e8)])], 320, x_name="n")
    numbers = re.findall(r'class="tick" x="([\d.]+)" y="[\d.]+" text-anchor="end">(\d+M)<', drawn)
    assert len(numbers) > 1
    for x, words in numbers:
        # Widths of DejaVu Sans, among the broadest there are, at 13 px.
        assert float(x) >= 13 * (0.636 * (len(words) - 1) + 0.863)


def test_levels_and_single_points_are_drawn() -> None:
    drawn = curves("B", [Line("a", [(5.0, 2.0)])], 340, x_name="steps", levels=[Level("n", 9.0)])
    assert drawn.count('class="limit"') == 2  # across the plot, and beside its name
    assert "<circle" in drawn


def test_large_matrices_leave_their_labels_out() -> None:
    labels = [f"label {n} 意图" for n in range(77)]
    counts = [[float((a * b) % 3 == 1) for a in range(77)] for b in range(77)]
    drawn = confusion(labels, counts, 920)
    assert drawn.count("<rect") == sum(map(sum, counts))
    assert "rotate" not in drawn
    assert "rotate" in confusion(labels[:5], [row[:5] for row in counts[:5]], 920)


def test_calibration_puts_each_bin_where_it_belongs() -> None:
    drawn = calibration([Bin(10, 0.5, 0.5), Bin(40, 1.0, 0.0)], 920)
    places = re.findall(r'cx="([\d.]+)" cy="([\d.]+)" r="([\d.]+)"', drawn)
    assert [tuple(map(float, p)) for p in places] == [(204, 186, 7.2), (364, 346, 12.0)]


def test_frames_and_lines_between_points() -> None:
    assert evenly(3, 10) == [0, 1, 2]
    assert evenly(100, 4) == [0, 33, 66, 99]
    assert between([], 5) == 0
    assert between([(10.0, 100.0), (20.0, 300.0)], 5) == 50
    assert between([(10.0, 100.0), (20.0, 300.0)], 15) == 200
    assert between([(10.0, 100.0), (20.0, 300.0)], 25) == 400
    assert between([(0.0, 7.0)], 3) == 7


@pytest.mark.parametrize("text", HOSTILE)
def test_settings_of_a_run_are_shown_and_not_obeyed(tmp_path: Path, text: str) -> None:
    run = write_run(tmp_path / "run")
    quoted = json.dumps(text.replace("\x7f", ""))  # TOML's basic strings are JSON's
    (run / "config.toml").write_text(f"model = {quoted}\ndata = [{quoted}]\n[{quoted}]\na = 1\n")
    checked(render_run(read_run(run)))


def test_absurd_numbers_are_left_out(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    known = read_run(run)
    with (run / "metrics.jsonl").open("a") as log:
        log.write(f'{{"step":1{"0" * 400},"loss":1}}\n{{"step":-4,"val_loss":0.1}}\n')
        log.write(f'{{"step":300,"loss":1{"0" * 400},"val_loss":true}}\n')
    assert read_run(run).curves == known.curves
    assert read_run(run).best == known.best
