"""A block that stays below what is said, and leaves nothing behind."""

from __future__ import annotations

import random
import sys

import pytest
from rich.text import Text
from train.screens import Screen, use

from chatbench import console
from chatbench.train.live import LiveBlock, _rows


def test_what_is_said_stays_whole_above_the_block(
    rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(20):
        width = rng.randint(10, 60)
        screen = use(Screen(width, 24, color=rng.random() < 0.5), monkeypatch)
        lines: list[str] = []
        said: list[str] = []
        with LiveBlock(lambda *_: [Text(line, "bold") for line in lines]) as block:  # noqa: B023
            for number in range(rng.randint(1, 30)):
                what = rng.randrange(5)
                if what == 0:
                    text = f"{number} " + rng.choice(("tea ", "信纸", "x")) * rng.randint(0, 40)
                    console.say(text, style=rng.choice(("dim", "bold red", None)))
                    said.append(text)
                elif what == 1:
                    print(f"{number} printed", file=sys.stderr)
                    said.append(f"{number} printed")
                else:
                    # Also wider than the terminal, as where it finds characters wider than we do.
                    count = rng.randint(1, 6)
                    lines = [f"{n}:" + "─" * rng.randint(0, width + 5) for n in range(count)]
                    block.redraw()
            block.redraw()
            shown = screen.rows()
            tail = shown[len(shown) - len(lines) :]
            assert tail == [line[:width] for line in lines]
            assert squeezed(shown[: len(shown) - len(lines)]) == squeezed(said)
        assert squeezed(screen.rows()) == squeezed(said)
        assert screen.out.getvalue().endswith("\x1b[J")


def squeezed(rows: list[str]) -> str:
    """Without line ends and blanks, which wrapping moves."""
    return "".join("".join(row.split()) for row in rows)


def test_the_end_of_a_block_gives_stderr_back(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = use(Screen(40, 20), monkeypatch)
    before = sys.stderr

    def leave() -> None:
        with LiveBlock(lambda *_: [Text("block")]) as block:
            block.redraw()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        leave()
    assert sys.stderr is before
    assert screen.rows() == []
    console.say("afterwards")
    assert screen.rows() == ["afterwards"]


def test_a_block_is_never_as_high_as_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = use(Screen(40, 5), monkeypatch)
    with LiveBlock(lambda *_: [Text(str(n)) for n in range(9)]) as block:
        block.redraw()
        assert screen.rows() == ["0", "1", "2", "3"]


def test_the_rows_of_a_folded_line_are_counted(rng: random.Random) -> None:
    columns = rng.randint(1, 90)
    widths = [rng.randint(0, 200) for _ in range(6)]
    rows = 0
    for width in widths:
        rows += 1
        while width > columns:
            rows, width = rows + 1, width - columns
    assert _rows(widths, columns) == rows
