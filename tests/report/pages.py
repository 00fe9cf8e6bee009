"""What must hold for every page: well-formed, obeying nothing, needing nothing but itself."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

VOID = {"meta", "br", "hr", "img", "link", "input"}
HOSTILE = [
    "<script>alert(1)</script>", "a & b &amp; c", '"quoted" \'single\'', "</title></style>",
    "\x1b[31mred\x1b[0m", "\u202eright to left", "שלום עולם (1)", "小店的语料 <b>", "a\nb\tc\r",
    "x" * 10_000, "汉" * 10_000, " ", "\uffff\ufffe", "]]>", "{{ x }}", "https://a.b",
    "\u2028", "url(evil)", "%s {0}", "-->", "😀👩‍👧", "javascript:alert(1)", "@import 'x'",
]  # fmt: skip


class Page(HTMLParser):
    """Tags that are open, attributes and the text of a page."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.pieces: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.pieces.append(data)

    @property
    def words(self) -> str:
        return " ".join("".join(self.pieces).split())


def checked(page: str) -> Page:
    """The page parsed, after everything that must hold for any page."""
    page.encode()
    parser = Page()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    forbidden = {"script", "img", "link", "iframe", "object", "embed", "base", "form", "i"}
    assert not forbidden & set(parser.tags)
    for name, value in parser.attributes:
        assert not name.startswith("on")
        assert name not in ("src", "style", "srcset", "action")
        if name == "href":  # an anchor here, or the page of a neighbour
            assert re.fullmatch(r"#[a-z]+|[\w.%~/-]*report\.html", value or ""), value
    ids = [value for name, value in parser.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    anchors = {v for n, v in parser.attributes if n == "href" and (v or "").startswith("#")}
    assert {f"#{i}" for i in ids} == anchors
    assert ("lang", "en") in parser.attributes
    (style,) = re.findall("<style>(.*?)</style>", page, re.DOTALL)
    assert not re.search(r"url\(|@import|http|<", style)
    for needed in ("prefers-color-scheme:dark", "@media print", "max-width:700px"):
        assert needed in style
    for drawing in re.findall("<svg.*?</svg>", page, re.DOTALL):
        assert "nan" not in re.sub("<(title|text).*?</", "", drawing)
        ET.fromstring(drawing)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", page)
    return parser
