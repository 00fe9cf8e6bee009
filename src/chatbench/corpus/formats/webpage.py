"""HTML → its readable text, cut into passages as plain text is."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser

from chatbench.corpus.document import Document, Failure, Record
from chatbench.corpus.formats.prose import split_passages
from chatbench.corpus.formats.source import Source
from chatbench.corpus.sources.blob import ReadOptions

_START = re.compile(
    r"\s*(?:<\?xml[^>]*>\s*)?(?:<!--.*?-->\s*)*<(?:!doctype\s+html|html|head|body)\b",
    re.IGNORECASE | re.DOTALL,
)
_ANY_TAG = re.compile(r"</?[a-z][a-z0-9]*(?:\s[^<>]*)?/?>", re.IGNORECASE)
# The parser of the standard library gives up on marked sections that it does not know.
_MARKED_SECTION = re.compile(r"<!\[CDATA\[|\]\]>|<!\[[^<>]*>?")
_SPACES = re.compile(r"[ \t\n\r\f]+")
_MANY_ENDS = re.compile(r"\n{3,}")

_UNSEEN = frozenset({
    "script", "style", "svg", "noscript", "template", "iframe", "object", "canvas", "math",
    "head"
})  # fmt: skip
_ASIDE = frozenset({
    "nav", "header", "footer", "aside", "form"
})  # fmt: skip
_VOID = frozenset({
    "area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "param",
    "source", "track", "wbr"
})  # fmt: skip
_PARAGRAPHS = frozenset({
    "p", "h1", "h2", "h3", "h4", "h5", "h6", "ul", "ol", "dl", "table", "blockquote", "pre",
    "figure", "article", "section", "main", "title"
})  # fmt: skip
_LINES = frozenset({
    "li", "tr", "div", "dt", "dd", "br", "hr", "option", "figcaption", "caption", "address",
    "summary", "details", "thead", "tbody", "body", "html", "fieldset", "center"
})  # fmt: skip
_CELLS = frozenset(("td", "th"))


def matches(head: bytes, text: str, name: str, options: ReadOptions) -> bool:
    """A page begins like one; under .html or .htm any tag will do."""
    if _START.match(text[:4096]):
        return True
    return name.endswith((".html", ".htm", ".xhtml")) and _ANY_TAG.search(text) is not None


def read(source: Source) -> Iterator[Record]:
    """The page as one text under its title, cut into passages `name#1`, `name#2` … when long."""
    pieces: list[str] = []
    for line in source.lines():
        if isinstance(line, Failure):
            yield line
        else:
            pieces.append(line[1])
    title, text = readable("\n".join(pieces))
    if title and title not in text[: 2 * len(title) + 200]:
        text = f"{title}\n\n{text}".strip()
    passages = list(split_passages(text, source.options.passage_chars))
    for number, passage in enumerate(passages, 1):
        where = source.name if len(passages) == 1 else f"{source.name}#{number}"
        yield Document(where, text=passage, meta={"title": title} if title else {})


def readable(page: str) -> tuple[str, str]:
    """Title and text of a page; never raises, whatever the page is.

    Navigation, header, footer, asides and forms are left out, unless nothing else has text: pages
    with unclosed tags seem to lie in them altogether.
    """
    # A blank, lest the pieces around it form a new mark.
    page = _MARKED_SECTION.sub(" ", page)
    unclosed = page.find("<!--", page.rfind("-->") + 1)
    page = page if unclosed < 0 else page[:unclosed]
    for hidden in (_UNSEEN | _ASIDE, _UNSEEN):
        reader = _Reader(hidden)
        reader.feed(page)
        reader.close()
        text = reader.text()
        if text:
            break
    return reader.title(), text


class _Reader(HTMLParser):
    """Collects text; `_hidden` are the open elements from the first one that is not shown."""

    def __init__(self, left_out: frozenset[str]) -> None:
        super().__init__(convert_charrefs=True)
        self._left_out = left_out
        self._pieces: list[str] = []
        self._title: list[str] = []
        self._hidden: list[str] = []
        self._in_title = False
        self._preformatted = 0
        self._cells = 0

    def text(self) -> str:
        lines = [line.rstrip() for line in "".join(self._pieces).split("\n")]
        return _MANY_ENDS.sub("\n\n", "\n".join(lines)).strip()

    def title(self) -> str:
        return _SPACES.sub(" ", "".join(self._title)).strip()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "title" and "svg" not in self._hidden:
            self._in_title = not self._title
        if (
            self._hidden[:1] == ["head"]
            and tag != "title"
            and (tag == "body" or tag in _PARAGRAPHS or tag in _LINES)
        ):
            self._hidden.clear()  # a head that was not closed ends here
        if self._hidden:
            if tag not in _VOID:
                self._hidden.append(tag)
            return
        if tag in self._left_out:
            self._hidden.append(tag)
            return
        self._preformatted += tag == "pre"
        self._break(tag)
        if tag == "tr":
            self._cells = 0
        elif tag == "li":
            self._pieces.append("- ")
        elif tag in _CELLS:
            self._pieces.append(" | " if self._cells else "")
            self._cells += 1

    def handle_endtag(self, tag: str) -> None:
        if tag == "title":
            self._in_title = False
        if self._hidden:
            if tag in self._hidden:
                while self._hidden.pop() != tag:
                    pass
            return
        if tag == "pre":
            self._preformatted = max(0, self._preformatted - 1)
        self._break(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        # <script/> is an open tag in HTML, but in XHTML it is closed.
        if tag in _VOID or tag not in self._left_out:
            self.handle_starttag(tag, attrs)
            if tag not in _VOID:
                self.handle_endtag(tag)

    def handle_data(self, data: str) -> None:
        if self._in_title:
            self._title.append(data)
        elif self._hidden:
            return
        elif self._preformatted:
            self._pieces.append(data)
        else:
            text = _SPACES.sub(" ", data)
            if not self._pieces or self._pieces[-1].endswith(("\n", " ")):
                text = text.lstrip(" ")
            if text:
                self._pieces.append(text)

    def _break(self, tag: str) -> None:
        if tag in _PARAGRAPHS:
            self._pieces.append("\n\n")
        elif (
            tag in _LINES
            and self._pieces
            and (tag in ("br", "hr") or not self._pieces[-1].endswith("\n"))
        ):
            self._pieces.append("\n")
