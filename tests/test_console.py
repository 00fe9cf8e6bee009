"""Nothing a model writes can steer a terminal, and stdout carries data only."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatbench import console
from chatbench.console import format_count, format_duration, visible

CONTROLS = [chr(c) for c in (*range(0x20), 0x7F, *range(0x80, 0xA0))]
BIDI = [c for c in map(chr, range(0x110000)) if unicodedata.bidirectional(c) in {
    "LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}]  # fmt: skip
MARKS = ["\u200e", "\u200f", "\u061c", "\u2028", "\u2029", "\ud800", "\udfff"]
# Nobody sees them: soft hyphen, zero-width space, word joiner, byte order mark, tags, selectors.
HIDDEN = [
    "\xad", "\u180e", "\u200b", *map(chr, range(0x2060, 0x2070)), "\ufeff", "\ufff9", "\ufffb",
    "\U0001d173", "\U000e0001", "\U000e0041", "\U000e007f", "\U000e0100", "\U000e01ef",
]  # fmt: skip
UNSAFE = frozenset([*CONTROLS, *BIDI, *MARKS, *HIDDEN]) - {"\n", "\t"}
ORDINARY = "abc 09 {}[]<>|\\ 小店九点开门。，「」 éß ж あア 한 👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 ☕️ \u3000\u00a0"


def test_no_random_string_gets_an_unsafe_character_through(rng: random.Random) -> None:
    alphabet = [*UNSAFE, *ORDINARY, "\n", "\t", "\x1b[31m", "\x1b]0;title\x07", "\x9b2J"]
    for _ in range(20_000):
        text = "".join(rng.choices(alphabet, k=rng.randrange(12)))
        cut = rng.randint(0, len(text))
        shown = visible(text)
        assert not UNSAFE & set(shown), repr(text)
        assert visible(text[:cut]) + visible(text[cut:]) == shown, repr(text)


@pytest.mark.parametrize("c", sorted(UNSAFE), ids=lambda c: f"U+{ord(c):04X}")
def test_every_unsafe_character_is_drawn_as_something(c: str) -> None:
    shown = visible(f"a{c}b")
    assert shown.startswith("a")
    assert shown.endswith("b")
    assert len(shown) > 2
    assert c not in shown


def test_escape_is_shown_as_its_picture() -> None:
    assert visible("\x1b[31mred") == "␛[31mred"
    assert visible("\x7f\x00\r") == "␡␀␍"
    assert visible("\x9b") == "\\x9b"
    assert visible("\u202e") == "\\u202e"
    assert visible("a\u200bb\U000e0041") == "a\\u200bb\\U000e0041"


def test_ordinary_text_is_untouched() -> None:
    assert visible(ORDINARY) == ORDINARY
    assert visible("one\n\ttwo") == "one\n\ttwo"


@settings(max_examples=50, deadline=None)
@given(st.text(st.characters(exclude_categories=("Cc", "Cf", "Cs", "Zl", "Zp"))))
def test_text_without_controls_is_untouched(text: str) -> None:
    assert visible(text) == "".join(console.escaped(c) if console.is_hidden(c) else c for c in text)


def test_what_is_hidden_is_what_unicode_calls_ignorable() -> None:
    """Every format character is shown by its number, but for joiners and marks one sees."""
    seen = {
        "\u200c", "\u200d", *map(chr, range(0x600, 0x606)), "\u06dd", "\u070f", "\u0890", "\u0891",
        "\u08e2", "\U000110bd", "\U000110cd", *map(chr, range(0x13430, 0x13440)),
    }  # fmt: skip
    formats = {c for c in map(chr, range(0x110000)) if unicodedata.category(c) == "Cf"}
    assert {c for c in formats if not console.is_hidden(c)} == formats & seen


def test_people_read_stderr_and_no_markup_or_control_is_obeyed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    console.say("[bold]not markup[/bold] :smile: \x1b[2J")
    console.notice("careful")
    console.fail("one\nline")
    console.table("title \x1b", ["a", "b"], [["[red]x", "\x9b1"]])
    out, err = capsys.readouterr()
    assert out == ""
    assert "[bold]not markup[/bold] :smile: ␛[2J\n" in err
    assert "note: careful\n" in err
    assert "error: one line\n" in err
    assert "[red]x" in err
    assert "title ␛" in err
    assert not UNSAFE & set(err)


def test_data_goes_to_stdout_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    console.emit("row")
    console.emit("half", end="")
    assert capsys.readouterr() == ("row\nhalf", "")


def test_progress_without_a_terminal_is_silent_at_first(capsys: pytest.CaptureFixture[str]) -> None:
    with console.ProgressLine("work", total=3) as line:
        for step in range(3):
            line.update(step + 1, f"[{step}]")
    assert "work" not in capsys.readouterr().err


def test_a_progress_line_every_few_seconds_without_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "PLAIN_LINE_SECONDS", 0.0)
    with console.ProgressLine("work", total=4) as line:
        line.update(1, "[a] row")
    assert capsys.readouterr().err.splitlines()[0] == "work  25 %  [a] row"


def test_after_a_broken_pipe_the_interpreter_ends_quietly() -> None:
    child = subprocess.Popen(
        [sys.executable, "-c",
         "from chatbench import console\n"
         "try:\n"
         "    while True: console.emit('y' * 1000)\n"
         "except BrokenPipeError:\n"
         "    console.silence_stdout()\n"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    with child:
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdout.read(10)
        child.stdout.close()
        assert child.stderr.read() == b""
        assert child.wait() == 0


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(-1, "0s"), (0, "0s"), (59.4, "59s"), (59.6, "1m00s"), (95, "1m35s"), (3600, "1h00m"),
     (90_061, "25h01m")],
)  # fmt: skip
def test_durations_are_short(seconds: float, shown: str) -> None:
    assert format_duration(seconds) == shown


@pytest.mark.parametrize(
    ("number", "shown"),
    [(0, "0"), (999, "999"), (1000, "1k"), (1_234_567, "1.23M"), (2.5e9, "2.5G")],
)
def test_counts_are_short(number: float, shown: str) -> None:
    assert format_count(number) == shown


@pytest.mark.parametrize(
    ("terminal", "environment", "animated"),
    [(True, {"TERM": "xterm"}, True), (True, {"TERM": "dumb"}, False),
     (True, {"TERM": "xterm", "NO_COLOR": "1"}, True), (False, {"TERM": "xterm"}, False),
     (False, {"TERM": "xterm", "FORCE_COLOR": "1"}, False)],
)  # fmt: skip
def test_lines_are_drawn_again_only_where_that_can_be_done(
    terminal: bool, environment: dict[str, str], animated: bool
) -> None:
    code = "import sys; from chatbench import console; print(console.is_animated())"
    master, slave = os.openpty()
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True,
            stderr=slave if terminal else subprocess.DEVNULL, env={**clean(), **environment},
        )  # fmt: skip
    finally:
        os.close(master)
        os.close(slave)
    assert done.stdout == f"{animated}\n"


def clean() -> dict[str, str]:
    """The environment without what speaks about terminals."""
    told = ("TERM", "NO_COLOR", "FORCE_COLOR", "COLORTERM", "TTY_COMPATIBLE", "TTY_INTERACTIVE")
    return {name: value for name, value in os.environ.items() if name not in told}


def test_what_is_counted_agrees_with_its_number() -> None:
    said = [console.counted(n, "reply is", "replies are") for n in (0, 1, 2, 1234)]
    assert said == ["0 replies are", "1 reply is", "2 replies are", "1,234 replies are"]
    assert [console.counted(n, "row") for n in (1, 5)] == ["1 row", "5 rows"]
