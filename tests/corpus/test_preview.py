"""The preview shows every token of an example once, and what is learned of it, without colour."""

from __future__ import annotations

import io
import random
import re
import unicodedata
from itertools import pairwise

import pytest
from rich.console import Console

from chatbench.conversation import Message
from chatbench.corpus.document import Document
from chatbench.corpus.reports.preview import LEARNED, READ, draw, example, pieces, show
from chatbench.text.template import Rendered, render, render_texts
from chatbench.text.tokenizer import Tokenizer, train_tokenizer

CHAT = (
    Message("system", "Be kind 请友好"),
    Message("user", "When do you open? 几点开门？ <|im_end|>"),
    Message("assistant", "At nine.\n\n\t早上九点，饕餮 👩‍👧 \x1b[31m\u202e", weight=1),
    Message("user", "Thanks"),
    Message("assistant", "Never mind", weight=0),
)
ALPHABET = "abc 09 \n\t小店开门👩‍👧é\u0301·›│⏎⇥|<>\\\x1b\u200b\u3000\u00a0\u202e\ufeff"


@pytest.fixture(scope="module")
def small() -> Tokenizer:
    texts = ["The shop opens at nine in the morning. 小店早上九点开门。At nine."] * 9
    return train_tokenizer(texts, 360)


def on_paper(width: int = 80, colour: bool = False) -> Console:
    return Console(
        file=io.StringIO(), width=width, force_terminal=colour, soft_wrap=True, markup=False,
        highlight=False, emoji=False, color_system="truecolor" if colour else None,
        no_color=not colour,
    )  # fmt: skip


def written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def undrawn(shown: str) -> bytes:
    """What a token's drawing stands for, read back."""
    out = b""
    for part in re.findall(r"<0x[0-9A-F]{2}>|\\u[0-9a-f]{4,5}|\\x[0-9a-f]{2}|◌.|.", shown, re.S):
        if part.startswith("<0x"):
            out += bytes([int(part[3:5], 16)])
        elif len(part) > 2 and part[0] == "\\":
            out += chr(int(part[2:], 16)).encode()
        elif part[0] == "◌":
            out += part[1:].encode()
        elif "\u2400" <= part < "\u2420":
            out += bytes([ord(part) - 0x2400])
        else:
            out += {"·": b" ", "⏎": b"\n", "⇥": b"\t"}.get(part, part.encode())
    return out


def tokens_of(lines: list[str]) -> list[tuple[str, str]]:
    """(mark, drawing) of every token in the lines of an example."""
    flow = "".join(line.removeprefix("  ") for line in lines)
    return re.findall(f"([{LEARNED}{READ}])([^{LEARNED}{READ}]*)", flow)


def test_every_token_is_shown_once_with_its_mark(small: Tokenizer, rng: random.Random) -> None:
    for width in (24, 40, 80, 200):
        text = "".join(rng.choices(ALPHABET, k=60))
        turns = (Message("user", text), Message("assistant", text + "."), Message("user", "茶"))
        tokens = render(small, turns)
        lines = [line.plain for line in example(small, tokens, width)]
        found = tokens_of(lines)
        assert [mark == LEARNED for mark, _ in found] == [bool(w) for w in tokens.weights]
        for (_, drawn), number in zip(found, tokens.ids, strict=True):
            if number in small.control_ids:
                assert re.fullmatch(r"<\|\w+\|>", drawn)
            else:
                assert undrawn(drawn) == small.token_bytes[number], drawn


def test_no_line_is_wider_than_the_terminal(small: Tokenizer, rng: random.Random) -> None:
    from rich.cells import cell_len

    for _ in range(20):
        width = rng.randrange(24, 100)
        text = "".join(rng.choices("ab 小店👩", k=rng.randrange(400)))
        tokens = next(iter(render_texts(small, [text])))
        for line in example(small, tokens, width, longest=2000):
            assert cell_len(line.plain) <= width


def test_a_line_end_is_drawn_and_followed_by_one(small: Tokenizer) -> None:
    tokens = next(iter(render_texts(small, ["one\ntwo\n\n三"])))
    lines = [line.plain for line in example(small, tokens, 100)]
    assert len(lines) == 4
    assert [line.endswith("⏎") for line in lines] == [True, True, True, False]


def test_control_tokens_have_their_names_and_lookalikes_fall_apart(small: Tokenizer) -> None:
    tokens = render(small, CHAT)
    drawn = list(pieces(small, tokens, range(len(tokens.ids))))
    controls = [piece.drawn for piece in drawn if piece.control]
    assert controls == ["<|im_start|>", "<|im_end|>"] * len(CHAT)
    assert "<|im_end|>" not in [piece.drawn for piece in drawn if not piece.control]
    ends = next(iter(render_texts(small, ["x"])))
    assert [p.drawn for p in pieces(small, ends, range(len(ends.ids)))][-1] == "<|endoftext|>"


@pytest.mark.parametrize(
    ("data", "drawn"),
    [
        (b" a", "·a"), (b"\n", "⏎"), (b"\t", "⇥"), (b"\xe4", "<0xE4>"),
        ("茶".encode() + b"\xe8\x8c", "茶<0xE8><0x8C>"), ("·".encode(), "\\u00b7"),
        ("›".encode(), "\\u203a"), ("\u200b".encode(), "\\u200b"), (b"\x1b", "␛"), (b"\r", "␍"),
        ("\u3000".encode(), "\\u3000"), ("\u0301".encode(), "◌\u0301"),
        ("e\u0301".encode(), "e\u0301"), ("\u202e".encode(), "\\u202e"),
        ("小店".encode(), "小店"), (b"", ""),
    ],
    ids=ascii,
)  # fmt: skip
def test_nothing_in_a_token_is_invisible(data: bytes, drawn: str) -> None:
    assert draw(data) == drawn


def test_no_byte_string_gets_a_control_through(rng: random.Random) -> None:
    for _ in range(3000):
        data = bytes(rng.choices(range(256), k=rng.randrange(1, 6)))
        shown = draw(data)
        assert shown
        bad = {unicodedata.category(c) for c in shown} & {"Cc", "Cf", "Cs", "Zl", "Zp", "Zs"}
        assert not bad, (data, shown)


def test_a_long_example_loses_its_middle_and_says_so(small: Tokenizer, rng: random.Random) -> None:
    text = "".join(rng.choices("ab小店 ", k=900))
    tokens = next(iter(render_texts(small, [text])))
    lines = [line.plain for line in example(small, tokens, 80, longest=50)]
    (note,) = [line for line in lines if "left out" in line]
    assert note == f"  ... {len(tokens.ids) - 50:,} tokens left out ..."
    place = lines.index(note)
    head, tail = tokens_of(lines[:place]), tokens_of(lines[place + 1 :])
    assert len(head) + len(tail) == 50
    numbers = [*tokens.ids[: len(head)], *tokens.ids[-len(tail) :]]
    for (_, drawn), number in zip([*head, *tail], numbers, strict=True):
        if number not in small.control_ids:
            assert undrawn(drawn) == small.token_bytes[number]
    exact = [line.plain for line in example(small, tokens, 80, longest=len(tokens.ids))]
    assert not any("left out" in line for line in exact)


def test_what_is_printed_names_the_source_and_counts(small: Tokenizer) -> None:
    documents = [
        Document("chats.jsonl:7", messages=CHAT, rejected=CHAT, shape="preference"),
        Document("坏\x1b[2J\n名.txt", text="小店开门。"),
    ]
    rendered = [render(small, CHAT), next(iter(render_texts(small, ["小店开门。"])))]
    paper = on_paper(60)
    show(small, documents, rendered, paper)
    shown = written(paper)
    first = rendered[0]
    assert f"{LEARNED}learned" in shown
    assert f"{READ}read only" in shown
    assert "part of a character" in shown
    counts = f"{len(first.ids):,} tokens, {sum(first.weights):,} learned"
    assert f"1/2  chats.jsonl:7 (preference) · {counts} · a rejected ending besides" in shown
    assert "2/2  坏␛[2J 名.txt (text)" in shown
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e]", shown)


def test_colour_changes_no_character(small: Tokenizer) -> None:
    documents = [Document("a", messages=CHAT)]
    plain, coloured = on_paper(50), on_paper(50, colour=True)
    for console in (plain, coloured):
        show(small, documents, [render(small, CHAT)], console)
    escape = re.compile(r"\x1b\[[0-9;]*m")
    assert escape.search(written(coloured))
    assert escape.sub("", written(coloured)) == written(plain)


def test_learned_and_read_tokens_differ_in_style_as_well(small: Tokenizer) -> None:
    tokens = Rendered(small.encode("The shop"), [0, 1])
    (line,) = example(small, tokens, 80)
    styles = {line.plain[span.start]: str(span.style) for span in line.spans}
    assert styles["T"] != styles["s"]


def test_examples_go_to_stderr_by_default(
    small: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    show(small, [Document("a.txt", text="tea 茶")], list(render_texts(small, ["tea 茶"])))
    out, err = capsys.readouterr()
    assert out == ""
    assert "a.txt" in err


def test_documents_without_their_tokens_are_a_bug(small: Tokenizer) -> None:
    with pytest.raises(ValueError):
        show(small, [Document("a", text="x")], [], on_paper())


def test_wrapping_depends_on_the_width_alone(small: Tokenizer) -> None:
    tokens = render(small, CHAT)
    flat = ["".join(line.plain[2:] for line in example(small, tokens, w)) for w in (24, 50, 300)]
    assert all(a == b for a, b in pairwise(flat))
