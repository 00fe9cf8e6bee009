"""What a conversation shows: readable, by display width, and never obeyed by a terminal."""

from __future__ import annotations

import random
import re
import unicodedata

import pytest
from rich.cells import cell_len

from chatbench.chat.columns import clusters, line_width, plain, wrap
from chatbench.chat.display import STYLES, Reply, Screen, Shown, Span, bucket, joined, lay_out

SCREEN = Screen(width=80, colour=True, markdown=True)
PLAIN = Screen(width=80, colour=False, markdown=False)
SCREENS = [SCREEN, PLAIN, Screen(20, False, True), Screen(7, True, True)]

# Cc and Cf, what else nobody sees, and what only looks like a sequence of ours.
HOSTILE = [
    *map(chr, range(0x20)), *map(chr, range(0x7F, 0xA0)), *"\xad\u061c\u180e\u200b\u200e\u200f",
    *map(chr, range(0x2028, 0x202F)), *map(chr, range(0x2060, 0x2070)), "\ufeff", "\ufff9",
    "\ud800", "\udfff", "\U000e0001", "\U000e0041", "\U000e0100", "\u200c", "\u200d", "\ufe0f",
    "\x1b[31m", "\x1b]0;title\x07", "\x1b]8;;http://a\x1b\\", "\x9b2J", "\x1b[2J", "\x1b[999D",
    "\x1bP", "\x1bc", "[bold]", "[/]", "[red]x[/red]", "\r", "\b", "[0m", "[1m", "\x1b",
]  # fmt: skip
ORDINARY = [
    *"abc 茶叶，。 *_`~[]()|!\\#>-1.\n\t", "**", "```", "|-|\n", "|a|\n", "[x](\x1b[2J)", "- ",
    "👩‍👩‍👧‍👦", "☕️",
]  # fmt: skip
OURS = {"\x1b[0m", "\x1b[1m", "\x1b[2m", "\x1b[3m", "\x1b[4m", "\x1b[9m", "\x1b[36m"}
SGR = re.compile(r"\x1b\[\d+m")
UNSAFE = frozenset(
    c for c in map(chr, range(0x110000))
    if (c not in "\n\t" and unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp"))
    or 0xE0000 <= ord(c) < 0xE1000 or c in "\xad\u061c\u180e\u200b\u200e\u200f\ufeff\ufff9"
    or 0x202A <= ord(c) <= 0x202E or 0x2060 <= ord(c) <= 0x206F
)  # fmt: skip


def through(text: str, rng: random.Random, on: Screen) -> str:
    """What a reply that comes in random pieces writes."""
    written: list[str] = []
    reply, at = Reply(written.append, on), 0
    while at < len(text):
        size = rng.choice([1, 1, 2, 3, 9])
        reply.feed(text[at : at + size])
        at += size
    reply.finish(rng.choice(["", "[stopped]"]))
    return "".join(written)


def unsafe(written: str) -> set[str]:
    """What is written and should not be: unsafe characters, and sequences that are not ours."""
    bare = SGR.sub("", written)
    return UNSAFE & set(bare) | (set(SGR.findall(written)) - OURS)


def fuzz(rng: random.Random, count: int) -> None:
    alphabet = [*HOSTILE, *ORDINARY * 2]
    for _ in range(count):
        text = "".join(rng.choices(alphabet, k=rng.randrange(16)))
        on = rng.choice(SCREENS)
        written = through(text, rng, on)
        assert not unsafe(written), (text, on)
        assert on.colour or "\x1b" not in written, (text, on)
        assert on.colour or not on.markdown or SGR.sub("", written) == written


def test_no_hostile_text_gets_through_at_any_split(rng: random.Random) -> None:
    fuzz(rng, 20_000)


@pytest.mark.slow
def test_no_hostile_text_gets_through_a_hundred_thousand_times(rng: random.Random) -> None:
    fuzz(rng, 100_000)


def test_the_check_itself_sees_what_is_unsafe() -> None:
    for text in ("\x1b[2J", "\x1b[31m", "\x1b", "\x9b", "\u202e", "\r", "\u200b", "\ufeff", "\xad"):
        assert unsafe(f"a{text}b"), repr(text)
    assert not unsafe("\x1b[1ma\x1b[0m 茶\n\t☕️ 👩‍👩‍👧‍👦")


def test_the_same_bytes_for_any_pieces(rng: random.Random) -> None:
    for _ in range(2000):
        text = "".join(rng.choices([*HOSTILE, *ORDINARY * 2], k=rng.randrange(16)))
        on = rng.choice(SCREENS)
        one, other = through(text, rng, on), through(text, rng, on)
        assert one.replace("[stopped]", "").rstrip() == other.replace("[stopped]", "").rstrip()


def test_spans_and_titles_are_as_safe_as_replies(rng: random.Random) -> None:
    for _ in range(2000):
        texts = ["".join(rng.choices([*HOSTILE, *ORDINARY], k=rng.randrange(9))) for _ in range(6)]
        spans = [[Span(texts[0], "certain", texts[1])], [Span(texts[2], "nonsense", texts[3])]]
        on = Screen(rng.choice([7, 59, 60, 100]), rng.random() < 0.5, True)
        written = lay_out(Shown(spans, texts[4:]), on)
        bare = SGR.sub("", written)
        assert not UNSAFE & set(bare), texts
        assert set(SGR.findall(written)) <= {*STYLES.values(), "\x1b[0m"}, texts
        assert on.colour or bare == written


@pytest.mark.parametrize("on", SCREENS)
def test_ordinary_text_is_as_it_was(rng: random.Random, on: Screen) -> None:
    text = "小店 opens at 9.\n\nتو می‌خواهی क्‍ष 👩‍👩‍👧‍👦 ☕️ 🏳️‍🌈 1️⃣ é\tend"
    assert SGR.sub("", through(text, rng, on)).replace(" [stopped]", "") == text + "\n"


def test_joiners_that_join_nothing_are_shown() -> None:
    assert joined("pay\u200dpal", "") == "pay\\u200dpal"
    assert joined("茶\u200c叶", "") == "茶\\u200c叶"
    assert joined("\u200d", "👩") == "\u200d"
    assert joined("\u200d\u200d", "👩") == "\u200d\\u200d"
    assert joined("a\ufe0f☕\ufe0f\ufe0f", "") == "a\\ufe0f☕\ufe0f\\ufe0f"


def test_a_reply_ends_its_line_once_and_says_that_it_was_stopped() -> None:
    for on in (SCREEN, PLAIN):
        for text, mark, expected in [
            ("茶", "", "茶\n"), ("茶\n", "", "茶\n"), ("", "", "\n"),
            ("茶", "[stopped]", "茶 [stopped]\n"), ("", "[stopped]", "[stopped]\n"),
        ]:  # fmt: skip
            written: list[str] = []
            reply = Reply(written.append, on)
            reply.feed(text)
            reply.finish(mark)
            assert "".join(written) == expected


def test_a_stopped_reply_leaves_no_colour_behind() -> None:
    for text in ("# 标题", "```\ncode", "**open", "| a |\n|---|\n| **b** |", "> quote"):
        written: list[str] = []
        reply = Reply(written.append, SCREEN)
        reply.feed(text)
        reply.finish("[stopped]")
        codes = SGR.findall("".join(written))
        assert not codes or codes[-1] == "\x1b[0m"
        assert "".join(written).endswith("[stopped]\n")


# ---- layout


def test_probabilities_fall_into_buckets_that_have_a_style() -> None:
    names = [bucket(p) for p in (1.0, 0.9, 0.89, 0.5, 0.2, 0.05, 0.049, 0.0)]
    assert names == ["certain", "certain", "likely", "likely", "unsure", "doubtful",
                     "unlikely", "unlikely"]  # fmt: skip
    assert set(names) <= set(STYLES)


def test_one_column_is_running_text_with_colours_or_with_figures() -> None:
    spans = [Span("茶", "certain", "97%"), Span(" tea", "unlikely", "2%")]
    spans += [Span("\n", "unsure", "30%"), Span("end")]
    coloured = lay_out(Shown([spans], ["Why"]), SCREEN)
    assert coloured == "\x1b[1mWhy\x1b[0m\n\x1b[32m茶\x1b[0m\x1b[31m tea\x1b[0m\nend\n"
    assert lay_out(Shown([spans], [""]), PLAIN) == "茶[97%] tea[2%][30%]\nend\n"


def test_two_columns_stand_side_by_side_where_there_is_room() -> None:
    left, right = [Span("小店九点开门。" * 5)], [Span("The shop opens at nine in the morning.")]
    shown = Shown([left, right], ["甲", "two"])
    wide = lay_out(shown, Screen(63, False, True)).splitlines()
    assert wide[0] == "甲" + " " * 28 + " │ two"
    assert wide[2] == "小店九点开门。小店九点开门。小" + " │ The shop opens at nine in the"
    assert wide[3] == "店九点开门。小店九点开门。小店" + " │ morning."
    assert all(line.index("│") for line in wide)
    narrow = lay_out(shown, Screen(59, False, True)).splitlines()
    assert narrow[0] == "甲"
    assert "│" not in "".join(narrow)
    assert narrow[-1] == "The shop opens at nine in the morning."


def test_lines_are_never_wider_than_the_terminal_and_nothing_is_lost(rng: random.Random) -> None:
    alphabet = [*"abc 茶叶，。（） \n", "word ", "👩‍👩‍👧‍👦", "e\u0301", "，，，", "x" * 9]
    for _ in range(2000):
        width = rng.choice([1, 2, 3, 10, 31])
        pieces = ["".join(rng.choices(alphabet, k=rng.randrange(12))) for _ in range(3)]
        runs = [(text, str(n)) for n, text in enumerate(pieces)]
        lines = wrap(runs, width)
        for line in lines:
            alone = len(list(clusters(plain(line)))) == 1
            assert line_width(line) <= width or alone, (pieces, width)
        kept = "".join(map(plain, lines))
        assert kept.replace(" ", "") == "".join(pieces).replace(" ", "").replace("\n", "")
        styles = [style for line in lines for text, style in line for _ in text.replace(" ", "")]
        expected = [s for text, s in runs for _ in text.replace(" ", "").replace("\n", "")]
        assert styles == expected


def test_words_stay_whole_and_no_line_begins_with_a_full_stop() -> None:
    assert [plain(line) for line in wrap([("one two three", "")], 8)] == ["one two", "three"]
    assert [plain(line) for line in wrap([("小店九点。开门", "")], 8)] == ["小店九", "点。开门"]
    assert [plain(line) for line in wrap([("a\n\n好", "")], 8)] == ["a", "", "好"]


def test_joined_characters_are_one() -> None:
    assert list(clusters("a👩‍👩‍👧‍👦e\u0301👍🏽茶")) == ["a", "👩‍👩‍👧‍👦", "e\u0301", "👍🏽", "茶"]
    assert cell_len("👩‍👩‍👧‍👦") <= 8
