"""The lines of the live block fit into any terminal, in both scripts, and obey nothing."""

from __future__ import annotations

import math
import random

import pytest
from rich.cells import cell_len

from chatbench.train.board import ASCII, UNICODE, Board, History, glyphs_for, shorten, sparkline

PIECES = (
    "tea ", "costs", " five yuan ", "信纸", "卖三元，", "。", "👩‍👩‍👧‍👦", "☕️", "\x1b[2J",
    "\x9b31m", "\n", "\t", "\u202e", "é", "é", "あ", "한", "[bold]x[/bold]", "\u200b", "\x07",
)  # fmt: skip


def random_text(rng: random.Random) -> str:
    return "".join(rng.choices(PIECES, k=rng.randint(0, 30)))


def random_board(rng: random.Random, board: Board) -> Board:
    for step in range(1, rng.randint(2, 60)):
        board.take({"step": step, "loss": rng.uniform(0, 12), "learning_rate": rng.random(),
                    "grad_norm": rng.expovariate(1)})  # fmt: skip
        if rng.random() < 0.3:
            board.take({"step": step, "val_loss": rng.uniform(0, 9), "val_bits_per_byte": 1.5})
        if rng.random() < 0.1:
            board.take({"step": step, "skipped": "loss is nan", "rows": [1, 2]})
    board.share, board.left, board.step = rng.random(), rng.expovariate(1e-4), rng.randrange(10**7)
    board.now |= {"tokens_per_second": rng.expovariate(1e-5), "mfu": rng.random(), "memory": 3e9}
    if rng.random() < 0.7:
        board.references = {"ngram_bits_per_byte": 2.1, "uniform_bits_per_byte": 4.0}
    board.samples = [(random_text(rng), random_text(rng)) for _ in range(rng.randint(0, 3))]
    return board


def test_every_line_fits_and_no_control_is_obeyed(rng: random.Random) -> None:
    for _ in range(300):
        ascii_only = rng.random() < 0.3
        board = random_board(rng, Board(ASCII if ascii_only else UNICODE))
        width, height = rng.randint(1, 130), rng.randint(1, 30)
        lines = board.lines(width, height)
        assert 1 <= len(lines) <= height
        for line in lines:
            assert cell_len(line.plain) <= max(1, width - 1)
            assert not set(line.plain) & set("\x1b\x9b\n\t\x07\u202e\u200b")
            assert not ascii_only or line.plain.isascii()


def test_a_terminal_of_eighty_columns_shows_everything() -> None:
    board = Board()
    board.take({"step": 10, "loss": 2.5, "learning_rate": 0.003, "grad_norm": 0.75})
    board.take({"step": 10, "val_loss": 2.25, "val_bits_per_byte": 1.8})
    board.take({"step": 20, "loss": 2.0})
    board.take({"step": 20, "val_loss": 2.5, "val_bits_per_byte": 1.9})
    board.take({"step": 21, "skipped": "loss is nan"})
    board.take({"step": 20, "tokens_per_second": 12_345.0, "mfu": 0.34, "memory": 1.2e9})
    board.references = {"ngram_bits_per_byte": 2.31, "uniform_bits_per_byte": 4.53}
    board.share, board.left, board.step = 0.5, 95, 1234
    board.samples = [("What is tea?", "A drink."), ("茶是什么？", "一种饮料。")]
    plain = [line.plain for line in board.lines(80, 24)]
    assert plain == [
        f" 50 % {'━' * 24}{'─' * 25} step 1,234 · 1m35s left",
        "loss 2.000 █▁",
        "val  2.500 ▁█ best 2.250 at step 10",
        "bits per byte 1.900 · n-gram 2.310 · chance 4.530",
        "12.3k tok/s · MFU 34 % · 1.2GB memory · rate 0.003 · norm 0.75 · 1 skipped",
        "› What is tea? → A drink.",
        "› 茶是什么？ → 一种饮料。",
    ]


def test_the_best_validation_is_the_first_of_the_lowest() -> None:
    board = Board()
    for step, value in ((1, 3.0), (2, 2.0), (3, 2.0), (4, math.nan), (5, 2.5)):
        board.take({"step": step, "val_loss": value})
    assert (board.best, board.best_step) == (2.0, 2)
    assert board.verdict() == "val 2.500 (best 2.000 at step 2)"


def test_a_sparkline_runs_from_the_lowest_level_to_the_highest(rng: random.Random) -> None:
    levels = UNICODE.levels
    assert sparkline([], 10, levels) == ""
    assert sparkline([1.0], 10, levels) == levels[0]
    assert sparkline([2.0, 2.0], 10, levels) == levels[0] * 2
    for _ in range(50):
        values = [rng.uniform(-5, 5) for _ in range(rng.randint(2, 200))]
        columns = rng.randint(2, 60)
        drawn = sparkline(values, columns, levels)
        assert len(drawn) == min(columns, len(values))
        assert {levels[0], levels[-1]} <= set(drawn)
        falling = sparkline(sorted(values, reverse=True), columns, levels)
        assert list(falling) == sorted(falling, reverse=True)


def test_a_history_keeps_its_mean_in_bounded_room(rng: random.Random) -> None:
    history = History()
    count = 1 << rng.randint(4, 13)
    values = [rng.uniform(0, 10) for _ in range(count)]
    for value in values:
        history.add(value)
    history.add(math.nan)
    history.add(math.inf)
    assert len(history.values) < 512
    assert math.fsum(history.values) / len(history.values) == pytest.approx(
        math.fsum(values) / count, rel=1e-12
    )


def test_text_is_shortened_by_columns_and_says_so(rng: random.Random) -> None:
    assert shorten("小店早上九点开门", 16, "…") == "小店早上九点开门"
    assert shorten("小店早上九点开门", 15, "…") == "小店早上九点开…"
    assert shorten("小店早上九点开门", 14, "…") == "小店早上九点…"
    assert shorten("The shop\n opens", 9, "~") == "The shop~"
    assert shorten("茶", 1, "…") == "…"
    assert shorten("tea", 0, "…") == ""
    for _ in range(200):
        text, columns = random_text(rng), rng.randint(0, 40)
        shown = shorten(text, columns, "…")
        assert sum(map(cell_len, shown)) <= columns
        whole = " ".join(text.split())
        assert shown == whole or not shown or whole.startswith(shown[:-1])


def test_a_terminal_without_unicode_gets_ascii() -> None:
    assert glyphs_for("utf-8") is UNICODE
    assert glyphs_for("gb18030") is UNICODE
    assert glyphs_for("ascii") is ASCII
    assert glyphs_for("latin-1") is ASCII
    assert glyphs_for("no such thing") is ASCII
    board = Board(ASCII)
    board.samples = [("茶 tea", "é")]
    assert board.lines(80, 9)[-1].plain == "> \\u8336 tea -> \\xe9"


def test_a_policy_is_judged_by_its_reward_and_the_first_of_equals_is_the_best() -> None:
    board = Board()
    told = []
    for step, reward in ((2, 0.25), (4, 0.5), (6, 0.5), (8, 0.0)):
        board.take({"step": step, "loss": -0.01, "reward": reward / 2, "reply_tokens": 4.0})
        board.take({"step": step, "val_loss": -reward, "val_reward": reward, "val_truncated": 0.5})
        told.append(board.verdict())
    assert told == [
        "val reward 0.250 (best)", "val reward 0.500 (best)",
        "val reward 0.500 (best 0.500 at step 4)", "val reward 0.000 (best 0.500 at step 4)",
    ]  # fmt: skip
    assert board.lately() == "reward 0.000"
    plain = [line.plain for line in board.lines(80, 24)]
    assert plain[1:4] == [
        "reward 0.000 ▅██▁", "val reward 0.000 ▅██▁ best 0.500 at step 4",
        "length 4.0 · truncated 50%",
    ]  # fmt: skip


def test_a_validation_equal_to_an_earlier_one_is_not_the_best() -> None:
    board = Board()
    for step in (3, 5):
        board.take({"step": step, "loss": 1.0, "val_loss": 2.0})
    assert board.verdict() == "val 2.000 (best 2.000 at step 3)"
    assert board.lately() == "loss 1.000"
