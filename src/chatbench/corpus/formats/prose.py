"""Plain text and Markdown → passages cut at paragraphs, one after the other in flat memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from chatbench.corpus.cleaning.fluency import Punkt, split_sentences
from chatbench.corpus.document import Document, Failure, Record
from chatbench.corpus.formats.source import Source

_FRONT_MATTER_LINES = 200
_LEARNED_FROM = 100_000


def read(source: Source) -> Iterator[Record]:
    """Documents of about `passage_chars` characters. `source` is the name for the only one, and
    `name:LINE` where there are several."""
    lines: Iterator[tuple[int, str] | Failure] = source.lines()
    if source.first_line == 1:
        lines = without_front_matter(lines)
    passages = pack(lines, source.options.passage_chars)
    records = named(passages, source.name, several=source.first_line > 1)
    first = next(records, Document(source.name, text=""))
    yield first
    yield from records


def named(
    passages: Iterator[tuple[int, str] | Failure], name: str, several: bool = False
) -> Iterator[Record]:
    """Passages as documents called `name:LINE`, or `name` for one that stays alone."""
    waiting: tuple[int, str] | None = None
    for passage in passages:
        if waiting is not None:
            yield Document(f"{name}:{waiting[0]}", text=waiting[1])
        several = several or waiting is not None or isinstance(passage, Failure)
        waiting = None
        if isinstance(passage, Failure):
            yield passage
        else:
            waiting = passage
    if waiting is not None:
        yield Document(f"{name}:{waiting[0]}" if several else name, text=waiting[1])


def without_front_matter(
    lines: Iterator[tuple[int, str] | Failure],
) -> Iterator[tuple[int, str] | Failure]:
    """The lines without a YAML block between `---` lines at the very beginning."""
    held: list[tuple[int, str] | Failure] = []
    for line in lines:
        held.append(line)
        text = None if isinstance(line, Failure) else line[1].rstrip()
        if len(held) == 1 and text == "---":
            continue
        if len(held) > 1 and text in ("---", "..."):
            held = [line for line in held if isinstance(line, Failure)]
            break
        # A rule at the top of a text is followed by prose, not by `key: value`.
        if len(held) == 1 or len(held) > _FRONT_MATTER_LINES or not _is_yaml(text):
            break
    yield from held
    yield from lines


def _is_yaml(text: str | None) -> bool:
    if text is None or not text.strip() or text[0] in " \t-#":
        return True
    return ":" in text


def split_passages(text: str, passage_chars: int) -> Iterator[str]:
    """Cut at blank lines, else at line ends, into pieces of at most `passage_chars` characters.

    Nothing but white space between pieces is lost; an empty text is one empty piece.
    """
    lines = enumerate(text.split("\n"), 1)
    pieces = [p[1] for p in pack(lines, passage_chars) if not isinstance(p, Failure)]
    yield from pieces or [""]


def pack(
    lines: Iterable[tuple[int, str] | Failure], limit: int
) -> Iterator[tuple[int, str] | Failure]:
    """Numbered lines → passages with the number of their first line, failures between them.

    Greedy: a passage takes paragraph after paragraph while they fit. A paragraph that does not fit
    into any passage is cut at line ends, a line that does not at the ends of its sentences, as
    Punkt finds them after learning from the first such line.
    """
    passage = _Passage(limit)
    paragraph: list[tuple[int, str]] = []
    size = 0
    is_long = False
    for line in lines:
        if isinstance(line, Failure):
            # What stood there is missing, so the texts before and after do not belong together.
            yield from passage.take(paragraph)
            yield from passage.flush()
            paragraph, size, is_long = [], 0, False
            yield line
            continue
        number, text = line
        is_blank = not text or text.isspace()
        if is_long:
            yield from passage.add(number, text)
            is_long = not is_blank
            continue
        paragraph.append((number, text))
        size += len(text) + 1
        if is_blank:
            yield from passage.take(paragraph)
            paragraph, size = [], 0
        elif size > limit + 1:
            yield from passage.flush()
            for held in paragraph:
                yield from passage.add(*held)
            paragraph, size, is_long = [], 0, True
    yield from passage.take(paragraph)
    yield from passage.flush()


class _Passage:
    """The passage that is being filled; `_size` is its length with a line end after each line."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lines: list[str] = []
        self._start = 0
        self._size = 0
        self._punkt: Punkt | None = None

    def take(self, paragraph: list[tuple[int, str]]) -> Iterator[tuple[int, str]]:
        """Add a paragraph that fits into a passage; the passage so far comes out when it does not
        fit beside it."""
        content = sum(len(text) + 1 for _, text in paragraph if text.strip()) - 1
        if self._size + content > self._limit:
            yield from self.flush()
        for number, text in paragraph:
            yield from self.add(number, text)

    def add(self, number: int, text: str) -> Iterator[tuple[int, str]]:
        """Add a line, in slices when it is longer than a passage."""
        for place, piece in enumerate(self._pieces(text)):
            if self._lines and (place or self._size + len(piece) > self._limit):
                yield from self.flush()
            if self._lines or piece.strip():
                self._start = self._start if self._lines else number
                self._lines.append(piece)
                self._size += len(piece) + 1

    def _pieces(self, text: str) -> Iterator[str]:
        """The line in pieces of at most the limit, joined they are the line."""
        at = 0
        while len(text) - at > self._limit:
            if self._punkt is None:
                self._punkt = Punkt.train([text[:_LEARNED_FROM]])
            window = text[at : at + self._limit]
            # What is cut off at the end of the window is no sentence.
            whole = len(window) - len(split_sentences(window, self._punkt)[-1])
            end = max(whole, window.rfind(" ") + 1 if whole < self._limit // 2 else 0)
            end = end if end > self._limit // 2 else self._limit
            yield window[:end]
            at += end
        yield text[at:]

    def flush(self) -> Iterator[tuple[int, str]]:
        text = "\n".join(self._lines).strip()
        if text:
            yield self._start, text
        self._lines, self._size = [], 0
