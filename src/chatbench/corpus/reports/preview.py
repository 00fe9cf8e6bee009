"""--show: training examples token by token, the way a model gets them."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from chatbench import console
from chatbench.corpus.document import Document
from chatbench.text.template import Rendered
from chatbench.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

LEARNED, READ = "›", "│"  # what stands before each token
SPACE, LINE_END, TAB = "·", "⏎", "⇥"
LONGEST = 400  # tokens of an example that are shown
_STYLES = {"learned": "green", "read": "dim", "control": "bold cyan", "border": "dim"}
_DRAWN = {" ": SPACE, "\n": LINE_END, "\t": TAB}
_MARKS = frozenset((LEARNED, READ, SPACE, LINE_END, TAB))
_INDENT = 2
_NARROWEST = 24


class Piece(NamedTuple):
    """One token as it is drawn."""

    drawn: str
    learned: bool
    control: bool


def show(
    tokenizer: Tokenizer,
    documents: Sequence[Document],
    rendered: Sequence[Rendered],
    to: Console | None = None,
    longest: int = LONGEST,
) -> None:
    """Print `documents` as `rendered` for training, on stderr or `to`, with a legend.

    Of an example of more than `longest` tokens the middle is left out.
    """
    target = to or console.people()
    target.print(_legend(target.width))
    for number, (document, tokens) in enumerate(zip(documents, rendered, strict=True), 1):
        target.print(_heading(document, tokens, f"{number}/{len(documents)}"))
        for line in example(tokenizer, tokens, target.width, longest):
            target.print(line, no_wrap=True, overflow="ignore", crop=False)


def example(
    tokenizer: Tokenizer, tokens: Rendered, width: int, longest: int = LONGEST
) -> Iterator[Text]:
    """The lines of one example, each at most `width` columns wide; below 24 columns, and for the
    note on what was left out, the terminal has to wrap them."""
    from rich.text import Text

    length = len(tokens.ids)
    room = max(width, _NARROWEST) - _INDENT
    if length <= longest:
        yield from _lines(pieces(tokenizer, tokens, range(length)), room)
        return
    head = (2 * longest + 2) // 3
    tail = longest - head
    yield from _lines(pieces(tokenizer, tokens, range(head)), room)
    yield Text(f"{' ' * _INDENT}... {length - longest:,} tokens left out ...", style="italic")
    yield from _lines(pieces(tokenizer, tokens, range(length - tail, length)), room)


def pieces(tokenizer: Tokenizer, tokens: Rendered, places: Sequence[int]) -> Iterator[Piece]:
    """The tokens at these places, drawn."""
    names = {number: name for name, number in tokenizer.controls.items()}
    for place in places:
        number = int(tokens.ids[place])
        learned = bool(tokens.weights[place])
        if number in tokenizer.control_ids:
            yield Piece(console.visible(names[number]), learned, True)
        else:
            yield Piece(draw(tokenizer.token_bytes[number]), learned, False)


def draw(data: bytes) -> str:
    """The bytes of a token so that nothing in it is invisible or can be taken for our marks.

    Bytes that are no whole character become `<0xE4>`, spaces `·`, tabs `⇥`, line ends `⏎`; all
    else that cannot be seen, and our own marks where a text holds them, `\\u00b7`.
    """
    text = data.decode("utf-8", errors="surrogateescape")
    return "".join(_drawn_character(c, place == 0) for place, c in enumerate(text))


def _drawn_character(c: str, first: bool) -> str:
    if c in _DRAWN:
        return _DRAWN[c]
    if "\udc80" <= c <= "\udcff":
        return f"<0x{ord(c) - 0xDC00:02X}>"
    category = unicodedata.category(c)
    if c in _MARKS or category in ("Cf", "Zs", "Cn", "Co"):
        return f"\\u{ord(c):04x}"
    if first and category in ("Mn", "Me"):
        return f"◌{c}"  # or it would sit on the mark before the token
    return console.visible(c)


def _lines(drawn: Iterator[Piece], room: int) -> Iterator[Text]:
    """Tokens flowing into lines of `room` columns; after a line end a new line begins."""
    from rich.text import Text

    line, used = Text(" " * _INDENT), 0
    for piece in drawn:
        style = _STYLES["control" if piece.control else "learned" if piece.learned else "read"]
        chunks = [(LEARNED if piece.learned else READ, _STYLES["border"])]
        if used and used + 1 + _first_line_width(piece.drawn) > room:
            yield line
            line, used = Text(" " * _INDENT), 0
        chunks += [(c, style) for c in piece.drawn]
        for c, look in chunks:
            wide = _cells(c)
            if used and used + wide > room:
                yield line
                line, used = Text(" " * _INDENT), 0
            line.append(c, style=look)
            used += wide
            if c == LINE_END:
                yield line
                line, used = Text(" " * _INDENT), 0
    if used:
        yield line


def _first_line_width(drawn: str) -> int:
    return sum(_cells(c) for c in drawn.split(LINE_END, 1)[0]) + (LINE_END in drawn)


def _cells(c: str) -> int:
    from rich.cells import cell_len

    return cell_len(c)


def _heading(document: Document, tokens: Rendered, place: str) -> Text:
    from rich.text import Text

    learned = sum(1 for weight in tokens.weights if weight)
    parts = [
        f"{document.source} ({document.shape})",
        f"{console.counted(len(tokens.ids), 'token')}, {learned:,} learned",
    ]
    if document.rejected is not None:
        parts.append("a rejected ending besides")
    heading = " · ".join(" ".join(console.visible(part).split()) for part in parts)
    return Text(f"\n{place}  {heading}", style="bold")


def _legend(width: int) -> Text:
    """What the marks mean, wrapped between its entries."""
    from rich.cells import cell_len
    from rich.text import Text

    entries = [
        (f"{LEARNED}learned", "learned"), (f"{READ}read only", "read"),
        ("<|name|> control token", "control"), (f"{SPACE} space", "read"),
        (f"{LINE_END} line end", "read"), ("<0xE4> part of a character", "read"),
    ]  # fmt: skip
    legend, used = Text(), 0
    for text, style in entries:
        if used and used + 3 + cell_len(text) > width:
            legend.append("\n")
            used = 0
        elif used:
            legend.append("   ")
            used += 3
        legend.append(text, style=_STYLES[style])
        used += cell_len(text)
    return legend
