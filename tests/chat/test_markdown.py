"""Markdown is shown while it is written: the same bytes for any pieces, nothing taken back."""

from __future__ import annotations

import random
import re

import pytest
from rich.cells import cell_len

from chatbench.chat.markdown import Markdown
from chatbench.chat.markdown_inline import LIMIT

ALPHABET = [
    *"*_`~[]()|!\\#>-.1a茶，  \n\n", "**", "***", "```", "~~", "- ", "1. ", "|-|-|\n", "|a|茶叶|\n",
    "[书](http://a.b)", "word ", "小店", "---", "a" * 30, "*" * 150, " " * 150, "-" * 150,
    "x" * LIMIT,
]  # fmt: skip
SGR = re.compile(r"\x1b\[[0-9]+m")


def shown(text: str, width: int = 80, *, colour: bool = True) -> str:
    """What is shown of a text that comes at once."""
    markdown = Markdown(width, colour=colour)
    return markdown.feed(text) + markdown.finish()


def plain(text: str, width: int = 80) -> str:
    return SGR.sub("", shown(text, width))


@pytest.mark.parametrize("colour", [True, False])
def test_the_bytes_do_not_depend_on_the_pieces(rng: random.Random, colour: bool) -> None:
    for _ in range(3000):
        text = "".join(rng.choices(ALPHABET, k=rng.randrange(40)))
        width = rng.choice([1, 7, 30, 80])
        markdown, at, parts = Markdown(width, colour=colour), 0, []
        while at < len(text):
            size = rng.choice([1, 1, 2, 5, 50])
            parts.append(markdown.feed(text[at : at + size]))
            at += size
        parts.append(markdown.finish())
        assert "".join(parts) == shown(text, width, colour=colour), (width, text)


def test_nothing_moves_the_cursor_and_colours_end(rng: random.Random) -> None:
    for _ in range(2000):
        text = "".join(rng.choices(ALPHABET, k=rng.randrange(40)))
        result = shown(text)
        rest = SGR.sub("", result)
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", rest), text
        codes = SGR.findall(result)
        assert not codes or codes[-1] == "\x1b[0m", text
        for line in result.split("\n"):  # no colour goes on into the next line
            codes = SGR.findall(line)
            assert not codes or codes[-1] == "\x1b[0m", text
        assert "\x1b" not in shown(text, colour=False)


def test_no_letter_is_lost(rng: random.Random) -> None:
    """Words are there in their order, whatever the marks around them."""
    for _ in range(1000):
        words = [f"{rng.choice(['w', '词'])}{n}x" for n in range(rng.randrange(1, 30))]
        marks = ["*", "**", " ", "\n", "`", "_", "~~", "\n# ", "\n- ", "\n> ", "\n```\n", "[", "]("]
        text = "".join(word + rng.choice(marks) for word in words)
        for colour in (True, False):
            found = re.findall(r"[w词]\d+x", SGR.sub("", shown(text, colour=colour)))
            assert found == words, text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("# 标题 one\nx", "\x1b[1m\x1b[4m标题 one\x1b[0m\nx"),
        ("## two\n", "\x1b[1mtwo\x1b[0m\n"),
        ("#hash", "#hash"),
        ("a **你好。**世界", "a \x1b[1m你好。\x1b[0m世界"),
        ("*it* _is_ ~~so~~", "\x1b[3mit\x1b[0m \x1b[3mis\x1b[0m \x1b[9mso\x1b[0m"),
        ("**a *b* c**",
         "\x1b[1ma \x1b[0m\x1b[1m\x1b[3mb\x1b[0m\x1b[1m c\x1b[0m"),
        ("`a**b**` x", "\x1b[36ma**b**\x1b[0m x"),
        ("`` a`b ``", "\x1b[36ma`b\x1b[0m"),
        ("2*3*4 snake_case_name 变量_名_字", "2*3*4 snake_case_name 变量_名_字"),
        ("5 * 3 ** 2", "5 * 3 ** 2"),
        ("**open\nnext**", "**open\nnext**"),
        (r"\*no\* \[x\] C:\dir", r"*no* \[x\] C:\dir"),
        ("[茶](http://a/b_(c)) [1] ![p](u)",
         "\x1b[4m茶\x1b[0m (\x1b[2mhttp://a/b_(c)\x1b[0m) [1] \x1b[4mp\x1b[0m (\x1b[2mu\x1b[0m)"),
        ("[http://a](http://a)", "\x1b[4mhttp://a\x1b[0m"),
        ("- 茶\n  * b\n1. c\n+ d", "• 茶\n  • b\n1. c\n• d"),
        ("> 说 *x*\n> > y", "\x1b[2m│ \x1b[0m说 \x1b[3mx\x1b[0m\n\x1b[2m│ │ \x1b[0my"),
        ("a\n\n* * *\nb", "a\n\n\x1b[2m" + "─" * 40 + "\x1b[0m\nb"),
        ("-5 degrees\n3.5 kg\n**b** c\n--flag", "-5 degrees\n3.5 kg\n\x1b[1mb\x1b[0m c\n--flag"),
        ("Hello!", "Hello!"),
        ("", ""),
    ],
)  # fmt: skip
def test_each_form_is_drawn(text: str, expected: str) -> None:
    assert shown(text) == expected


def test_without_colour_the_marks_are_the_style() -> None:
    text = "# 标题\n**b** `c` [茶](u)\n- x\n```py\n*y*\n```\n"
    assert shown(text, colour=False) == "# 标题\n**b** `c` 茶 (u)\n• x\n```py\n*y*\n```\n"


def test_code_is_shown_as_it_is() -> None:
    code = "def f(x):  # **no** [a](b)\n\n    return '茶' * 3 | x\n" + "长" * 300 + "\n``\n"
    assert plain(f"```python\n{code}```\nafter **b**") == f"```python\n{code}```\nafter b"
    assert plain(f"~~~~\n{code}~~~\n~~~~~\n*x*") == f"~~~~\n{code}~~~\n~~~~~\nx"
    assert plain(f"```\n{code}") == f"```\n{code}"  # a reply that was stopped


def test_tables_are_aligned_by_what_is_seen() -> None:
    text = "| 名称 | price |\n|:--|--:|\n| 龙井 **茶** | 12 |\n| `a|b` | 3.50 |\n| x \\| y |\nend"
    assert plain(text) == (
        "名称    │ price\n────────┼──────\n龙井 茶 │    12\na|b     │  3.50\nx | y   │\nend"
    )


def test_a_bar_makes_no_table() -> None:
    assert plain("| a | b\n| c *d*\n\nx") == "| a | b\n| c d\n\nx"
    assert plain("| a |\n|---|") == "a\n─\n"


@pytest.mark.parametrize("width", [8, 13, 20, 33, 79])
def test_a_wide_table_fits_the_terminal(rng: random.Random, width: int) -> None:
    for _ in range(50):
        count = rng.randint(1, 5)
        words = ["茶叶", "好", "word", "longerword", "，", "a b c", "**粗体字很长很长**", ""]
        cells = [
            [" ".join(rng.choices(words, k=rng.randrange(8))) for _ in range(count)]
            for _ in range(rng.randint(1, 4))
        ]
        rows = [f"| {' | '.join(row)} |" for row in cells]
        text = "\n".join([rows[0], "|" + "---|" * count, *rows[1:]]) + "\n"
        result = plain(text, width)
        assert max(map(cell_len, result.split("\n"))) <= width, text
        for kind in ("茶叶", "好", "l", "d"):  # every character is still there
            assert result.count(kind[0]) >= text.count(kind[0]), (kind, text)


def test_what_is_certain_is_shown_at_once() -> None:
    markdown = Markdown(80, colour=False)
    assert markdown.feed("小店九点") == "小店九点"
    assert markdown.feed("开门 **now") == "开门 "
    assert markdown.feed("** or") == "**now** or"
    assert markdown.feed(" la") == " la"
    assert markdown.feed("ter\n#") == "ter\n"
    assert markdown.feed(" T") == "# T"
    assert markdown.feed("\n| a |\n| - |\n") == "\n"
    assert markdown.feed("| 1 |\n") == ""
    assert markdown.feed("\n") == "a\n─\n1\n\n"


def test_a_mark_that_is_never_closed_holds_a_line_only_so_far() -> None:
    markdown = Markdown(80, colour=False)
    assert markdown.feed("**" + "茶" * (LIMIT - 3)) == ""
    assert markdown.feed("茶") == "**" + "茶" * (LIMIT - 2)


def test_a_long_reply_is_shown_to_its_end(rng: random.Random) -> None:
    lines = [f"line {n} **粗 {n}** `c{n}` 茶" for n in range(5000)]
    text = "\n".join(lines)
    assert plain(text) == text.replace("*", "").replace("`", "")
